//! A snapshot with invented numbers in every metric of the catalogue, for tests of the outputs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::catalogue::CATALOGUE;
use super::file_groups;
use crate::metrics::diagnosis::{Confidence, Diagnosis, Number, Pattern, Unseen, Verdict};
use crate::metrics::files::{Counts, FileGroup, FileKind, FileRow, Files};
use crate::metrics::histogram::{BUCKETS, Histogram};
use crate::metrics::metric::{Kind, Metric};
use crate::metrics::snapshot::*;

/// The snapshot: no two numbers alike, nothing absent, one percentage with nothing to divide by.
pub fn snapshot() -> Snapshot {
    let families: Vec<Family> = CATALOGUE.iter().enumerate().map(|(i, metric)| family(i, metric)).collect();
    let of_module = || families.iter().filter(|f| f.metric.json.is_some());
    let probe = |name, mode| ProbeStatus { name, mode: Some(mode), failures: vec![] };
    let row = |pid, comm: &str, numbers| ProcessRow { pid, comm: comm.into(), ..Default::default() }.with(numbers);
    Snapshot {
        scope: "host".into(),
        sequence: 42,
        collected_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        collected_instant: Instant::now(),
        started: Instant::now(),
        interval: Duration::from_secs(10),
        modules: vec![ModuleStatus {
            name: "iomonitor",
            enabled: true,
            running: true,
            last_error: None,
            trouble: None,
            last_collected: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
            families: 0..of_module().count(),
            metric_count: of_module().map(|f| f.series.len()).sum::<usize>() + file_groups::series(&files()),
            probes: vec![probe("fadvise", "tracepoint"), probe("cache_fill", "raw_tracepoint")],
        }],
        families,
        processes: Some(vec![
            row(4711, "banyand \"hot\"\n\\", [1000, 999, 16000, 380, 2500, 65_000_000, 44, 1_500_000_000]),
            row(0, "overflow", [4, 2, 384, 4, 100, 2_108_864, 1, 250_000]),
        ]),
        knows: Knows { pages: true, bytes: true, fills: true, waits: true },
        files: Some(Arc::new(files())),
        diagnosis: Some(Arc::new(diagnosis())),
        last_error: None,
    }
}

/// Something that hurts, and something that is not seen.
fn diagnosis() -> Diagnosis {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    Diagnosis {
        at,
        window: Duration::from_secs(60),
        verdicts: vec![Verdict {
            pattern: Pattern::WriteThrottling,
            since: at - Duration::from_secs(30),
            confidence: Confidence::Certain,
            summary: "Writers are throttled: they wait 1.50 s in each second for the disk".into(),
            numbers: vec![Number { name: "waited_in_writes", value: 1.5, unit: "s/s" }],
            waited: Some(1.5),
            read_again: None,
        }],
        unseen: vec![Unseen { pattern: Pattern::CacheTooSmall, needs: "a curve" }],
    }
}

/// Two files, of which one has a group, and what others did.
fn files() -> Files {
    let counts = |n: u64| Counts {
        fills: std::array::from_fn(|i| n * 10 + i as u64),
        evictions: std::array::from_fn(|i| n * 100 + i as u64),
        waits: n,
        wait_ns: n * 1_500_000_000,
    };
    let file = |n, path: &str, group| FileRow {
        device: (8, 1),
        inode: n,
        generation: 7,
        kind: FileKind::Regular,
        path: path.into(),
        group,
        counts: counts(n),
    };
    let labels = vec![("db".to_owned(), "a \"b\"\\\n".to_owned()), ("kind".to_owned(), "sst".to_owned())];
    let group = FileGroup { preset: "rocksdb", labels, counts: counts(4) };
    let (named, nameless) = (file(3, "/data/a \"b\"\\\n/000001.sst", Some(0)), file(2, "", None));
    let sum = |all: &[Counts]| all.iter().fold(Counts::default(), |sum, more| sum + *more);
    Files {
        known: 3,
        total: sum(&[named.counts, nameless.counts, counts(5)]),
        other: sum(&[nameless.counts, counts(4)]),
        top: vec![named, nameless],
        groups: vec![group],
        has_fills: true,
        has_evictions: true,
        has_waits: true,
    }
}

/// Numbers that belong together, and any others.
fn family(i: usize, metric: &'static Metric) -> Family {
    let percent = |value| Family::single(metric, Value::Percent(value));
    let histogram = |buckets, sum_ns| Family::single(metric, Value::Histogram(Histogram { buckets, sum_ns }));
    let numbers: &[u64] = match metric.name {
        "ebpf_fadvise_calls_total" => &[1004],
        "ebpf_fadvise_success_total" => &[1001],
        "ebpf_fadvise_failed_total" => &[3],
        "ebpf_fadvise_advice_total" => &[2, 4, 6, 900, 80, 1, 11],
        "ebpf_fadvise_success_rate_percent" => return percent(None),
        "ebpf_cache_read_attempts_total" => &[16384],
        "ebpf_cache_hits_total" => &[16000],
        "ebpf_cache_misses_total" => &[384],
        "ebpf_cache_hit_rate_percent" => return percent(Some(97.65625)),
        "ebpf_cache_miss_rate_percent" => return percent(Some(2.34375)),
        "ebpf_cache_read_bytes_total" => &[67_108_864],
        "ebpf_read_wait_seconds" => return histogram(std::array::from_fn(|i| 100 - i as u64), 987_654_321),
        "ebpf_io_wait_seconds" => {
            let labels = metric.label_values[0].iter().enumerate();
            let series = labels.map(|(op, label)| Series {
                labels: vec![(*label).to_owned()],
                value: Value::Histogram(Histogram {
                    buckets: std::array::from_fn(|i| i as u64 + op as u64 + 1),
                    sum_ns: 100 + op as u64,
                }),
            });
            return Family { metric, series: series.collect() };
        }
        "ebpf_page_cache_adds_total" => &[384, 512, 33, 2048, 7],
        "ebpf_page_cache_evictions_total" => &[640, 128, 5],
        "ebpf_memory_lru_pages_scanned_total" => &[5000, 300, 70],
        "ebpf_memory_pages_reclaimed_total" => &[4000, 200, 60],
        "ebpf_memory_reclaim_efficiency_percent" => return percent(Some(100.0 / 3.0)),
        "ebpf_memory_direct_reclaim_processes" => &[9],
        "ebpf_memory_direct_reclaim_seconds" => return histogram(std::array::from_fn(|i| i as u64), 1_234_567_891),
        "ebpf_memory_kswapd_wakeups_total" => &[13],
        _ => return any(i, metric),
    };
    let labels = metric.label_values.first().copied().unwrap_or(&[""]);
    match metric.labels {
        [] => Family::single(metric, Value::Int(numbers[0])),
        _ => Family::labelled(metric, labels.iter().copied().zip(numbers.iter().copied())),
    }
}

fn any(i: usize, metric: &'static Metric) -> Family {
    let n = i as u64;
    let of_kernel = metric.json.is_some();
    let value = match metric.kind {
        Kind::Histogram => Value::Histogram(Histogram { buckets: [n; BUCKETS], sum_ns: 1 }),
        Kind::Gauge if of_kernel && metric.unit == "percent" => Value::Percent(Some(i as f64 + 0.5)),
        _ if of_kernel && metric.labels.is_empty() => Value::Int(100_000 + n),
        _ if of_kernel => {
            let labels = metric.label_values.first().copied().unwrap_or_default();
            return Family::labelled(metric, labels.iter().copied().zip(100_000 * (n + 1)..));
        }
        _ => Value::Float(i as f64 + 0.5),
    };
    let labels = metric.labels.iter().map(|l| format!("a {l}")).collect();
    Family { metric, series: vec![Series { labels, value }] }
}

impl Snapshot {
    /// Has a metric of the kernel say this, one number for each of its series.
    pub fn say(&mut self, name: &str, numbers: &[u64]) {
        for (series, n) in self.family_mut(name).series.iter_mut().zip(numbers) {
            series.value = Value::Int(*n);
        }
    }

    /// As if no probe behind a metric of the kernel were attached.
    pub fn forget(&mut self, name: &str) {
        let series = self.family_mut(name).series.len();
        self.families.retain(|f| f.metric.name != name);
        self.modules[0].families.end -= 1;
        self.modules[0].metric_count -= series;
    }

    /// A metric to be changed.
    pub fn family_mut(&mut self, name: &str) -> &mut Family {
        self.families.iter_mut().find(|f| f.metric.name == name).unwrap_or_else(|| panic!("no metric {name}"))
    }
}
