//! A snapshot as JSON: the I/O statistics (`GET /api/v1/stats`) and the agent's health (`GET /health`).
//!
//! A key is absent when the probe behind it is not attached; a percentage with nothing to divide by is null.

use std::cmp::Reverse;
use std::time::Instant;

use serde::{Serialize, Serializer};

use crate::host::time::rfc3339;
use crate::metrics::files::{Counts, FileGroup, FileRow, Files};
use crate::metrics::health::{self, Health, Status};
use crate::metrics::histogram::{Histogram, cumulative};
use crate::metrics::metric::Kind;
use crate::metrics::own::CONFINED;
use crate::metrics::snapshot::{Activity, Family, ProbeStatus, ProcessRow, Snapshot, Value, find};
use crate::monitor::evictions::EVICTION_CAUSES;
use crate::monitor::fills::FILL_CAUSES;
use crate::monitor::{catalogue, file_groups};

/// The I/O statistics. The status is that at the time of the collection, so that the text can be kept.
pub fn stats(snapshot: &Snapshot) -> String {
    to_json(&Stats {
        status: health::assess(snapshot, snapshot.collected_instant).status,
        sequence: snapshot.sequence,
        scope: &snapshot.scope,
        collected_at: rfc3339(snapshot.collected_at),
        total_modules: snapshot.modules.len(),
        total_metrics: snapshot.modules.iter().map(|m| m.metric_count).sum(),
        modules: Map(snapshot.modules.iter().map(|m| (m.name, m.metric_count as u64)).collect()),
        sections: sections(snapshot),
        files: snapshot.files.as_deref().map(FilesJson::from),
        processes: snapshot.knows.anything().then(|| readers(snapshot)),
    })
}

/// The agent's health as of `now`: the verdict, and the body that tells it.
pub fn health(snapshot: &Snapshot, now: Instant) -> (Health, String) {
    let health = health::assess(snapshot, now);
    let body = to_json(&HealthJson {
        status: health.status,
        message: &health.message,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: now.saturating_duration_since(snapshot.started).as_secs(),
        last_collection_age_seconds: health.age.as_millis() as f64 / 1e3,
        sequence: snapshot.sequence,
        last_error: snapshot.last_error.as_deref(),
        modules: snapshot
            .modules
            .iter()
            .map(|m| ModuleJson {
                name: m.name,
                running: m.running,
                probes: m.probes.iter().map(ProbeJson::from).collect(),
            })
            .collect(),
        confined: confined(snapshot),
    });
    (health, body)
}

/// Files that the I/O statistics show.
const TOP: usize = 20;

fn to_json(value: &impl Serialize) -> String {
    // Fails only for a map whose keys are not strings: there is none here.
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Serialize)]
struct Stats<'a> {
    status: Status,
    sequence: u64,
    scope: &'a str,
    collected_at: String,
    total_modules: usize,
    total_metrics: usize,
    modules: Map<&'a str>,
    #[serde(flatten)]
    sections: Map<&'a str, Map<&'a str, Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<FilesJson<'a>>,
    processes: Option<Vec<ReaderJson<'a>>>,
}

/// What a key of a section has.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Int(u64),
    Float(f64),
    Percent(Option<f64>),
    ByLabel(Map<&'a str>),
    Histogram(HistogramJson),
    Histograms(Map<&'a str, HistogramJson>),
    Processes(Vec<ProcessJson<'a>>),
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    comm: &'a str,
    call_count: u64,
    success_count: u64,
}

/// What happened to files: `top` and `rest` together are all of it, as are `groups` and `other`.
#[derive(Serialize)]
struct FilesJson<'a> {
    known: usize,
    top: Vec<FileJson<'a>>,
    rest: CountsJson,
    groups: Vec<FileGroupJson<'a>>,
    other: CountsJson,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    device: String,
    inode: u64,
    generation: u32,
    /// Labels of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Map<&'a str, &'a str>>,
    #[serde(flatten)]
    counts: CountsJson,
}

#[derive(Serialize)]
struct FileGroupJson<'a> {
    labels: Map<&'a str, &'a str>,
    #[serde(flatten)]
    counts: CountsJson,
}

/// A key is absent where its probe is.
#[derive(Serialize)]
struct CountsJson {
    #[serde(flatten)]
    all: Map<&'static str, CountJson>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum CountJson {
    Int(u64),
    Seconds(f64),
    ByCause(Map<&'static str>),
}

/// What a process did but for fadvise; what cannot be known is absent.
#[derive(Serialize)]
struct ReaderJson<'a> {
    pid: u32,
    comm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    misses: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other_fills: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_reads: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_seconds: Option<f64>,
}

/// Processes that are told apart of those that read; the others are in the overflow row.
const READERS: usize = 100;

/// The processes, most pages read first, and last the overflow row, if anything is in it: together they are the whole.
fn readers(snapshot: &Snapshot) -> Vec<ReaderJson<'_>> {
    let all = snapshot.processes.iter().flatten().filter(|r| r.reads != Activity::default());
    let (mut rows, overflow): (Vec<_>, Vec<_>) = all.partition(|r| r.pid != 0);
    rows.sort_by_key(|r| Reverse((r.reads.pages, r.reads.misses, r.reads.other_fills)));
    let others = rows.split_off(rows.len().min(READERS));
    let mut rest = Activity::default();
    others.into_iter().chain(overflow).for_each(|r| rest += r.reads);
    let knows = snapshot.knows;
    let row = |pid, comm, reads: &Activity| {
        let Activity { pages, misses, other_fills, bytes, waits, .. } = *reads;
        ReaderJson {
            pid,
            comm,
            read_attempts: knows.pages.then_some(pages),
            misses: knows.fills.then_some(misses),
            other_fills: knows.fills.then_some(other_fills),
            read_bytes: knows.bytes.then_some(bytes),
            waited_reads: knows.waits.then_some(waits),
            wait_seconds: knows.waits.then_some(reads.wait_seconds()),
        }
    };
    let rest = (rest != Activity::default()).then(|| row(0, "overflow", &rest));
    rows.iter().map(|r| row(r.pid, &r.comm, &r.reads)).chain(rest).collect()
}

/// `buckets` is {upper bound: events up to it}, with the bounds as in Prometheus.
#[derive(Serialize)]
struct HistogramJson {
    count: u64,
    sum: f64,
    buckets: Map<String>,
}

#[derive(Serialize)]
struct HealthJson<'a> {
    status: Status,
    message: &'a str,
    version: &'static str,
    uptime_seconds: u64,
    last_collection_age_seconds: f64,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<&'a str>,
    modules: Vec<ModuleJson<'a>>,
    /// By what the agent is confined.
    confined: Vec<&'a str>,
}

fn confined(snapshot: &Snapshot) -> Vec<&str> {
    let series = find(&snapshot.families, CONFINED.name).into_iter().flat_map(|family| &family.series);
    series.filter(|s| matches!(s.value, Value::Int(1))).filter_map(|s| s.labels.first().map(String::as_str)).collect()
}

#[derive(Serialize)]
struct ModuleJson<'a> {
    name: &'a str,
    running: bool,
    probes: Vec<ProbeJson<'a>>,
}

#[derive(Serialize)]
struct ProbeJson<'a> {
    name: &'a str,
    attached: bool,
    mode: Option<&'a str>,
    failures: Vec<FailureJson<'a>>,
}

#[derive(Serialize)]
struct FailureJson<'a> {
    mode: &'a str,
    reason: &'a str,
}

/// An object that keeps its order.
struct Map<K, V = u64>(Vec<(K, V)>);

impl<K: AsRef<str>, V: Serialize> Serialize for Map<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(k, v)| (k.as_ref(), v)))
    }
}

/// These are objects even if they have nothing to tell; others are absent then.
const ALWAYS: [&str; 2] = ["cache", "memory"];

/// The metrics of the kernel where they say that they stand, and the rows of processes.
fn sections(snapshot: &Snapshot) -> Map<&str, Map<&str, Entry<'_>>> {
    let mut sections: Vec<Section> = Vec::new();
    for json in catalogue::stats().filter_map(|s| s.metric.json) {
        if sections.iter().all(|s| s.name != json.section) {
            sections.push(Section { name: json.section, entries: Vec::new(), last: Vec::new() });
        }
    }
    for family in &snapshot.families {
        let Some(json) = family.metric.json else { continue };
        let Some(section) = sections.iter_mut().find(|s| s.name == json.section) else { continue };
        section.entries.extend(json.key.zip(whole(family)));
        match (json.key, json.by) {
            (Some(_), Some(by)) => section.entries.push((by, by_label(family))),
            (None, Some(by)) => section.last.push((by, by_label(family))),
            _ => {}
        }
    }
    // There only with the probe behind it.
    let advised = sections.iter_mut().find(|s| s.name == "fadvise" && !s.entries.is_empty());
    if let (Some(rows), Some(section)) = (&snapshot.processes, advised) {
        section.last.push((
            "process_stats",
            Entry::Processes(rows.iter().filter(|r| r.calls > 0).map(ProcessJson::from).collect()),
        ));
    }
    let sections = sections.into_iter().map(|s| (s.name, Map(s.entries.into_iter().chain(s.last).collect())));
    Map(sections.filter(|(name, map)| !map.0.is_empty() || ALWAYS.contains(name)).collect())
}

struct Section<'a> {
    name: &'a str,
    entries: Vec<(&'a str, Entry<'a>)>,
    /// What comes after them.
    last: Vec<(&'a str, Entry<'a>)>,
}

/// The value of a metric, or the sum of its series.
fn whole(family: &Family) -> Option<Entry<'_>> {
    Some(match &family.series.first()?.value {
        Value::Int(_) => Entry::Int(family.total()),
        Value::Float(v) => Entry::Float(*v),
        Value::Percent(v) => Entry::Percent(*v),
        Value::Histogram(h) => Entry::Histogram(HistogramJson::from(h)),
    })
}

/// The value for each value of the one label.
fn by_label(family: &Family) -> Entry<'_> {
    fn each<T>(family: &Family, value: impl Fn(&Value) -> Option<T>) -> Map<&str, T> {
        Map(family.series.iter().filter_map(|s| Some((s.labels.first()?.as_str(), value(&s.value)?))).collect())
    }
    match family.metric.kind {
        Kind::Histogram => Entry::Histograms(each(family, |value| match value {
            Value::Histogram(h) => Some(HistogramJson::from(h)),
            _ => None,
        })),
        _ => Entry::ByLabel(each(family, int)),
    }
}

fn int(value: &Value) -> Option<u64> {
    if let Value::Int(n) = value { Some(*n) } else { None }
}

impl<'a> From<&'a Files> for FilesJson<'a> {
    fn from(files: &'a Files) -> Self {
        let (top, rest) = files.first(TOP);
        let labels = |group: &'a FileGroup| Map(file_groups::labels(group));
        let file = |row: &'a FileRow| FileJson {
            path: &row.path,
            kind: row.kind.name(),
            device: format!("{}:{}", row.device.0, row.device.1),
            inode: row.inode,
            generation: row.generation,
            group: files.group_of(row).map(labels),
            counts: CountsJson::of(&row.counts, files),
        };
        Self {
            known: files.known,
            top: top.iter().map(file).collect(),
            rest: CountsJson::of(&rest, files),
            groups: (files.groups.iter())
                .map(|group| FileGroupJson { labels: labels(group), counts: CountsJson::of(&group.counts, files) })
                .collect(),
            other: CountsJson::of(&files.other, files),
        }
    }
}

impl CountsJson {
    fn of(counts: &Counts, files: &Files) -> Self {
        let by = |names: &[&'static str], values: &[u64]| {
            CountJson::ByCause(Map(names.iter().copied().zip(values.iter().copied()).collect()))
        };
        let mut all = Vec::new();
        if files.has_fills {
            all.push(("pages_added", CountJson::Int(counts.filled())));
            all.push(("pages_added_by_cause", by(&FILL_CAUSES, &counts.fills)));
        }
        if files.has_evictions {
            all.push(("pages_evicted", CountJson::Int(counts.evicted())));
            all.push(("pages_evicted_by_cause", by(&EVICTION_CAUSES, &counts.evictions)));
        }
        if files.has_waits {
            all.push(("waits", CountJson::Int(counts.waits)));
            all.push(("wait_seconds", CountJson::Seconds(counts.wait_seconds())));
        }
        Self { all: Map(all) }
    }
}

impl<'a> From<&'a ProcessRow> for ProcessJson<'a> {
    fn from(row: &'a ProcessRow) -> Self {
        Self { pid: row.pid, comm: &row.comm, call_count: row.calls, success_count: row.success }
    }
}

impl From<&Histogram> for HistogramJson {
    fn from(h: &Histogram) -> Self {
        Self { count: h.count(), sum: h.sum_seconds(), buckets: Map(cumulative(h).collect()) }
    }
}

impl<'a> From<&'a ProbeStatus> for ProbeJson<'a> {
    fn from(p: &'a ProbeStatus) -> Self {
        Self {
            name: p.name,
            attached: p.mode.is_some(),
            mode: p.mode,
            failures: p.failures.iter().map(|(mode, reason)| FailureJson { mode, reason }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use std::time::Duration;

    use super::*;
    use crate::export::prometheus;
    use crate::monitor::example;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// What is named here has this value; a metric that comes later may stand beside it.
    fn has(section: &Value, expected: Value) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(section.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn stats_of_a_whole_snapshot() {
        let stats = parse(&stats(&example::snapshot()));
        let (stalls, latency) = (&stats["memory"]["direct_reclaim_seconds"], &stats["cache"]["read_wait_seconds"]);
        assert_eq!(stats["status"], "healthy");
        assert_eq!(stats["sequence"], 42);
        assert_eq!(stats["collected_at"], "2023-11-14T22:13:20.123Z");
        assert_eq!(stats["total_modules"], 1);
        assert_eq!(stats["modules"], json!({ "iomonitor": stats["total_metrics"] }));
        has(
            &stats["fadvise"],
            json!({
                "total_calls": 1004, "success_calls": 1001, "failed_calls": 3, "success_rate_percent": null,
                "advice_counts": {
                    "normal": 2, "random": 4, "sequential": 6, "willneed": 900, "dontneed": 80, "noreuse": 1,
                    "invalid": 11,
                },
                "process_stats": [
                    { "pid": 4711, "comm": "banyand \"hot\"\n\\", "call_count": 1000, "success_count": 999 },
                    { "pid": 0, "comm": "overflow", "call_count": 4, "success_count": 2 },
                ],
            }),
        );
        has(
            &stats["cache"],
            json!({
                "read_attempts": 16384, "hits": 16000, "misses": 384,
                "hit_rate_percent": 97.65625, "miss_rate_percent": 2.34375, "read_bytes": 67108864,
                "pages_added": 2984,
                "pages_added_by_cause": { "read": 384, "write": 512, "fault": 33, "prefetch": 2048, "other": 7 },
                "pages_evicted": 773,
                "pages_evicted_by_cause": { "reclaim": 640, "fadvise": 128, "other": 5 },
            }),
        );
        has(
            &stats["memory"],
            json!({
                "lru_pages_scanned": 5370,
                "lru_pages_scanned_by_reclaimer": { "kswapd": 5000, "direct": 300, "memcg": 70 },
                "pages_reclaimed": 4260,
                "pages_reclaimed_by_reclaimer": { "kswapd": 4000, "direct": 200, "memcg": 60 },
                "reclaim_efficiency_percent": 100.0 / 3.0,
                "direct_reclaim_processes": 9, "kswapd_wakeups": 13,
            }),
        );
        let sleeps = &stats["waits"]["io_wait_seconds_by_op"];
        assert_eq!((&sleeps["read"]["count"], &sleeps["sync"]["sum"]), (&json!(351), &json!(0.000000103)));
        assert_eq!((&latency["count"], &latency["sum"]), (&json!(2275), &json!(0.987654321)));
        assert_eq!(latency["buckets"]["1.024e-06"], 100);
        assert_eq!(stalls["count"], 325);
        assert_eq!(stalls["sum"], 1.234567891);
        assert_eq!(stalls["buckets"]["4.096e-06"], 3);
        assert_eq!(stalls["buckets"]["+Inf"], 325);
    }

    #[test]
    fn files_and_their_groups() {
        let stats = parse(&stats(&example::snapshot()));
        let files = &stats["files"];
        assert_eq!(files["known"], 3);
        assert_eq!(
            files["top"][0],
            json!({
                "path": "/data/a \"b\"\\\n/000001.sst", "type": "file", "device": "8:1", "inode": 3, "generation": 7,
                "group": { "preset": "rocksdb", "db": "a \"b\"\\\n", "kind": "sst" },
                "pages_added": 160,
                "pages_added_by_cause": { "read": 30, "write": 31, "fault": 32, "prefetch": 33, "other": 34 },
                "pages_evicted": 903, "pages_evicted_by_cause": { "reclaim": 300, "fadvise": 301, "other": 302 },
                "waits": 3, "wait_seconds": 4.5,
            })
        );
        assert_eq!((&files["top"][1]["path"], files["top"][1].get("group")), (&json!(""), None));
        assert_eq!(files["groups"][0]["labels"], files["top"][0]["group"]);
        assert_eq!((&files["groups"][0]["waits"], &files["other"]["waits"]), (&json!(4), &json!(6)));
        // Those that are not shown.
        assert_eq!((&files["rest"]["waits"], &files["rest"]["pages_added"]), (&json!(5), &json!(260)));
        let mut snapshot = example::snapshot();
        Arc::make_mut(snapshot.files.as_mut().unwrap()).has_waits = false;
        let told = parse(&super::stats(&snapshot));
        assert_eq!(told["files"]["rest"].get("waits"), None);
        snapshot.files = None;
        assert_eq!(parse(&super::stats(&snapshot)).get("files"), None);
    }

    #[test]
    fn keys_keep_their_order() {
        let text = stats(&example::snapshot());
        let at = |key: &str| text.find(&format!("\"{key}\":")).unwrap();
        assert!(
            [
                "modules",
                "fadvise",
                "total_calls",
                "success_rate_percent",
                "advice_counts",
                "process_stats",
                "cache",
                "read_attempts",
                "pages_added",
                "pages_added_by_cause",
                "pages_evicted",
                "memory",
                "kswapd_wakeups",
            ]
            .is_sorted_by_key(|key| at(key))
        );
    }

    #[test]
    fn what_no_probe_gives_is_absent() {
        let snapshot = Snapshot { processes: None, families: vec![], ..example::snapshot() };
        let stats = parse(&stats(&snapshot));
        assert_eq!(stats.get("fadvise"), None);
        assert_eq!(stats["cache"], json!({}));
        assert_eq!(stats["memory"], json!({}));
    }

    #[test]
    fn a_rate_with_nothing_to_divide_is_null() {
        let mut snapshot = example::snapshot();
        for name in ["ebpf_cache_hit_rate_percent", "ebpf_memory_reclaim_efficiency_percent"] {
            snapshot.family_mut(name).series[0].value = crate::metrics::snapshot::Value::Percent(None);
        }
        let stats = parse(&stats(&snapshot));
        assert_eq!(stats["cache"].get("hit_rate_percent"), Some(&Value::Null));
        assert_eq!(stats["memory"].get("reclaim_efficiency_percent"), Some(&Value::Null));
    }

    #[test]
    fn any_string_is_valid_json() {
        let mut snapshot = example::snapshot();
        let comm: String = (0..=0x2ff).filter_map(char::from_u32).chain("\u{2028}\u{fffd}😀".chars()).collect();
        snapshot.processes.as_mut().unwrap()[0].comm = comm.clone();
        snapshot.last_error = Some(comm.clone());
        Arc::make_mut(snapshot.files.as_mut().unwrap()).top[0].path = comm.clone();
        assert_eq!(parse(&stats(&snapshot))["fadvise"]["process_stats"][0]["comm"], comm.as_str());
        assert_eq!(parse(&stats(&snapshot))["files"]["top"][0]["path"], comm.as_str());
        assert_eq!(parse(&health(&snapshot, Instant::now()).1)["last_error"], comm.as_str());
    }

    #[test]
    fn health_tells_each_probe() {
        let mut snapshot = example::snapshot();
        let probe = &mut snapshot.modules[0].probes[1];
        probe.mode = None;
        probe.failures = vec![("tracepoint", "EACCES".into())];
        let now = snapshot.started.max(snapshot.collected_instant) + Duration::from_millis(61_250);
        (snapshot.started, snapshot.collected_instant) =
            (now - Duration::from_secs(61), now - Duration::from_millis(1250));
        let (health, body) = health(&snapshot, now);
        assert_eq!(health.status, Status::Degraded);
        assert_eq!(
            parse(&body),
            json!({
                "status": "degraded",
                "message": "1 of 2 probes not attached: cache_fill (tracepoint: EACCES)",
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_seconds": 61,
                "last_collection_age_seconds": 1.25,
                "sequence": 42,
                "modules": [{
                    "name": "iomonitor", "running": true, "probes": [
                        { "name": "fadvise", "attached": true, "mode": "tracepoint", "failures": [] },
                        { "name": "cache_fill", "attached": false, "mode": null,
                          "failures": [{ "mode": "tracepoint", "reason": "EACCES" }] },
                    ],
                }],
                "confined": [],
            })
        );
    }

    /// Value of each series line of an exposition.
    fn samples(exposition: &str) -> Vec<(&str, &str)> {
        exposition.lines().filter(|l| !l.starts_with('#')).map(|l| l.rsplit_once(' ').unwrap()).collect()
    }

    #[test]
    fn the_outputs_of_a_snapshot_agree() {
        let snapshot = example::snapshot();
        let (text, openmetrics) = (prometheus::text(&snapshot), prometheus::openmetrics(&snapshot));
        let text = samples(&text);
        assert_eq!(text, samples(&openmetrics));
        let stats = parse(&stats(&snapshot));
        let mut compared = 0;
        let mut same = |series: &str, json: &Value| {
            let value: f64 = text.iter().find(|(s, _)| *s == series).expect(series).1.parse().unwrap();
            match json.as_f64() {
                Some(json) => assert_eq!(value, json, "{series}"),
                None => assert!(value.is_nan() && json.is_null(), "{series}: {value} and {json}"),
            }
            compared += 1;
        };
        for metric in catalogue::stats().map(|s| &s.metric) {
            let (json, name) = (metric.json.unwrap(), metric.name);
            let value = |key| &stats[json.section][key];
            match (json.key.map(value), json.by.map(value), metric.labels) {
                (Some(value), None, []) if metric.kind == Kind::Histogram => {
                    same(&format!("{name}_count"), &value["count"]);
                    same(&format!("{name}_sum"), &value["sum"]);
                    for (le, events) in value["buckets"].as_object().unwrap() {
                        same(&format!("{name}_bucket{{le=\"{le}\"}}"), events);
                    }
                }
                (Some(value), None, []) => same(name, value),
                (None, Some(by), [label]) if metric.kind == Kind::Histogram => {
                    for (key, value) in by.as_object().unwrap() {
                        same(&format!("{name}_count{{{label}=\"{key}\"}}"), &value["count"]);
                        same(&format!("{name}_sum{{{label}=\"{key}\"}}"), &value["sum"]);
                        for (le, events) in value["buckets"].as_object().unwrap() {
                            same(&format!("{name}_bucket{{{label}=\"{key}\",le=\"{le}\"}}"), events);
                        }
                    }
                }
                (sum, Some(by), [label]) => {
                    let by = by.as_object().unwrap();
                    by.iter().for_each(|(key, value)| same(&format!("{name}{{{label}=\"{key}\"}}"), value));
                    let all: u64 = by.values().map(|v| v.as_u64().unwrap()).sum();
                    assert!(sum.is_none_or(|sum| *sum == all), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        // Groups of files: those with causes, and the numbers beside.
        let (files, rest) = (snapshot.files.as_deref().unwrap(), &stats["files"]["other"]);
        let groups = files.groups.iter().zip(stats["files"]["groups"].as_array().unwrap());
        let groups = groups.map(|(group, counts)| (file_groups::labels(group), counts));
        for (labels, counts) in groups.chain([(vec![("preset", "other")], rest)]) {
            // JSON and the exposition escape alike.
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={}", to_json(v))).collect();
            let labels = labels.join(",");
            for (name, key) in [("adds", "pages_added_by_cause"), ("evictions", "pages_evicted_by_cause")] {
                for (cause, n) in counts[key].as_object().unwrap() {
                    same(&format!("ebpf_file_group_page_cache_{name}_total{{{labels},cause=\"{cause}\"}}"), n);
                }
            }
            same(&format!("ebpf_file_group_read_waits_total{{{labels}}}"), &counts["waits"]);
            same(&format!("ebpf_file_group_read_wait_seconds_total{{{labels}}}"), &counts["wait_seconds"]);
        }
        let own = |s: &str| ["ebpf_sidecar_", "ebpf_diagnosis_"].iter().any(|own| s.starts_with(own));
        let of_the_kernel = text.iter().filter(|(s, _)| s.starts_with("ebpf_") && !own(s));
        assert_eq!(compared, of_the_kernel.count(), "a metric of the kernel is missing from this comparison");
    }
}
