//! A snapshot as JSON: the I/O statistics (`GET /api/v1/stats`) and the agent's health (`GET /health`).
//!
//! A key is absent when the probe behind it is not attached; a percentage with nothing to divide by is null.

use std::time::Instant;

use serde::{Serialize, Serializer};

use crate::host::time::rfc3339;
use crate::metrics::health::{self, Health, Status};
use crate::metrics::histogram::{Histogram, cumulative};
use crate::metrics::snapshot::{
    ADVICES, Cache, EVICTION_CAUSES, FILL_CAUSES, Fadvise, Memory, ProbeStatus, ProcessRow, RECLAIMERS, Snapshot,
};

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
        fadvise: snapshot.io.fadvise.as_ref().map(FadviseJson::from),
        cache: CacheJson::from(&snapshot.io.cache),
        memory: MemoryJson::from(&snapshot.io.memory),
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
    });
    (health, body)
}

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
    #[serde(skip_serializing_if = "Option::is_none")]
    fadvise: Option<FadviseJson<'a>>,
    cache: CacheJson,
    memory: MemoryJson,
}

#[derive(Serialize)]
struct FadviseJson<'a> {
    total_calls: u64,
    success_calls: u64,
    failed_calls: u64,
    success_rate_percent: Option<f64>,
    advice_counts: Map,
    process_stats: Vec<ProcessJson<'a>>,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    pid: u32,
    comm: &'a str,
    call_count: u64,
    success_count: u64,
}

/// In the rates the outer `None` is an absent key, the inner one null.
#[derive(Serialize)]
struct CacheJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    read_attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hits: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    misses: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate_percent: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    miss_rate_percent: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_wait_seconds: Option<HistogramJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_added: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_added_by_cause: Option<Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_evicted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_evicted_by_cause: Option<Map>,
}

#[derive(Serialize)]
struct MemoryJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    lru_pages_scanned: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lru_pages_scanned_by_reclaimer: Option<Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_reclaimed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_reclaimed_by_reclaimer: Option<Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reclaim_efficiency_percent: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_reclaim_processes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_reclaim_seconds: Option<HistogramJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kswapd_wakeups: Option<u64>,
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

/// An object of counts that keeps its order.
struct Map<K = &'static str>(Vec<(K, u64)>);

impl<K: AsRef<str>> Serialize for Map<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(k, v)| (k.as_ref(), v)))
    }
}

impl Map {
    fn of<const N: usize>(names: [&'static str; N], counts: [u64; N]) -> Self {
        Self(names.into_iter().zip(counts).collect())
    }
}

impl<'a> From<&'a Fadvise> for FadviseJson<'a> {
    fn from(f: &'a Fadvise) -> Self {
        Self {
            total_calls: f.total(),
            success_calls: f.success,
            failed_calls: f.failed,
            success_rate_percent: f.success_rate_percent,
            advice_counts: Map::of(ADVICES, f.advice),
            process_stats: f.processes.iter().map(ProcessJson::from).collect(),
        }
    }
}

impl<'a> From<&'a ProcessRow> for ProcessJson<'a> {
    fn from(row: &'a ProcessRow) -> Self {
        Self { pid: row.pid, comm: &row.comm, call_count: row.calls, success_count: row.success }
    }
}

impl From<&Cache> for CacheJson {
    fn from(c: &Cache) -> Self {
        // Hits need both attempts and misses, as do the rates.
        let rates = c.hits.is_some();
        Self {
            read_attempts: c.read_attempts,
            hits: c.hits,
            misses: c.misses,
            hit_rate_percent: rates.then_some(c.hit_rate_percent),
            miss_rate_percent: rates.then_some(c.miss_rate_percent),
            read_bytes: c.read_bytes,
            read_wait_seconds: c.read_latency.as_ref().map(HistogramJson::from),
            pages_added: c.adds.map(|a| a.iter().sum()),
            pages_added_by_cause: c.adds.map(|a| Map::of(FILL_CAUSES, a)),
            pages_evicted: c.evictions.map(|e| e.iter().sum()),
            pages_evicted_by_cause: c.evictions.map(|e| Map::of(EVICTION_CAUSES, e)),
        }
    }
}

impl From<&Memory> for MemoryJson {
    fn from(m: &Memory) -> Self {
        let reclaimed: Vec<_> =
            RECLAIMERS.into_iter().zip(m.reclaimed).filter_map(|(name, pages)| Some((name, pages?))).collect();
        let known = !reclaimed.is_empty();
        Self {
            lru_pages_scanned: m.scanned.map(|s| s.iter().sum()),
            lru_pages_scanned_by_reclaimer: m.scanned.map(|s| Map::of(RECLAIMERS, s)),
            pages_reclaimed: known.then(|| reclaimed.iter().map(|(_, pages)| pages).sum()),
            pages_reclaimed_by_reclaimer: known.then_some(Map(reclaimed)),
            reclaim_efficiency_percent: m.scanned.map(|_| m.reclaim_efficiency_percent),
            direct_reclaim_processes: m.direct_reclaim_processes,
            direct_reclaim_seconds: m.stalls.as_ref().map(HistogramJson::from),
            kswapd_wakeups: m.kswapd_wakeups,
        }
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
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::export::prometheus;
    use crate::metrics::snapshot::IoStats;
    use crate::monitor::example;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn stats_of_a_whole_snapshot() {
        let stats = parse(&stats(&example::snapshot()));
        let mut memory = stats["memory"].clone();
        let stalls = memory.as_object_mut().unwrap().remove("direct_reclaim_seconds").unwrap();
        let mut cache = stats["cache"].clone();
        let latency = cache.as_object_mut().unwrap().remove("read_wait_seconds").unwrap();
        assert_eq!(stats["status"], "healthy");
        assert_eq!(stats["sequence"], 42);
        assert_eq!(stats["collected_at"], "2023-11-14T22:13:20.123Z");
        assert_eq!(stats["total_modules"], 1);
        assert_eq!(stats["modules"], json!({ "iomonitor": stats["total_metrics"] }));
        assert_eq!(
            stats["fadvise"],
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
            })
        );
        assert_eq!(
            cache,
            json!({
                "read_attempts": 16384, "hits": 16000, "misses": 384,
                "hit_rate_percent": 97.65625, "miss_rate_percent": 2.34375, "read_bytes": 67108864,
                "pages_added": 2984,
                "pages_added_by_cause": { "read": 384, "write": 512, "fault": 33, "prefetch": 2048, "other": 7 },
                "pages_evicted": 773,
                "pages_evicted_by_cause": { "reclaim": 640, "fadvise": 128, "other": 5 },
            })
        );
        assert_eq!(
            memory,
            json!({
                "lru_pages_scanned": 5370,
                "lru_pages_scanned_by_reclaimer": { "kswapd": 5000, "direct": 300, "memcg": 70 },
                "pages_reclaimed": 4260,
                "pages_reclaimed_by_reclaimer": { "kswapd": 4000, "direct": 200, "memcg": 60 },
                "reclaim_efficiency_percent": 100.0 / 3.0,
                "direct_reclaim_processes": 9, "kswapd_wakeups": 13,
            })
        );
        assert_eq!((&latency["count"], &latency["sum"]), (&json!(2275), &json!(0.987654321)));
        assert_eq!(latency["buckets"]["1.024e-06"], 100);
        assert_eq!(stalls["count"], 325);
        assert_eq!(stalls["sum"], 1.234567891);
        assert_eq!(stalls["buckets"]["4.096e-06"], 3);
        assert_eq!(stalls["buckets"]["+Inf"], 325);
    }

    #[test]
    fn what_no_probe_gives_is_absent() {
        let snapshot = Snapshot { io: IoStats::default(), families: vec![], ..example::snapshot() };
        let stats = parse(&stats(&snapshot));
        assert_eq!(stats.get("fadvise"), None);
        assert_eq!(stats["cache"], json!({}));
        assert_eq!(stats["memory"], json!({}));
    }

    #[test]
    fn a_rate_with_nothing_to_divide_is_null() {
        let mut snapshot = example::snapshot();
        snapshot.io.cache.hit_rate_percent = None;
        snapshot.io.memory.reclaim_efficiency_percent = None;
        let stats = parse(&stats(&snapshot));
        assert_eq!(stats["cache"].get("hit_rate_percent"), Some(&Value::Null));
        assert_eq!(stats["memory"].get("reclaim_efficiency_percent"), Some(&Value::Null));
    }

    #[test]
    fn any_string_is_valid_json() {
        let mut snapshot = example::snapshot();
        let comm: String = (0..=0x2ff).filter_map(char::from_u32).chain("\u{2028}\u{fffd}😀".chars()).collect();
        snapshot.io.fadvise.as_mut().unwrap().processes[0].comm = comm.clone();
        snapshot.last_error = Some(comm.clone());
        assert_eq!(parse(&stats(&snapshot))["fadvise"]["process_stats"][0]["comm"], comm.as_str());
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
        for (path, series) in [
            ("/fadvise/total_calls", "ebpf_fadvise_calls_total"),
            ("/fadvise/success_calls", "ebpf_fadvise_success_total"),
            ("/fadvise/failed_calls", "ebpf_fadvise_failed_total"),
            ("/fadvise/success_rate_percent", "ebpf_fadvise_success_rate_percent"),
            ("/cache/read_attempts", "ebpf_cache_read_attempts_total"),
            ("/cache/hits", "ebpf_cache_hits_total"),
            ("/cache/misses", "ebpf_cache_misses_total"),
            ("/cache/hit_rate_percent", "ebpf_cache_hit_rate_percent"),
            ("/cache/miss_rate_percent", "ebpf_cache_miss_rate_percent"),
            ("/cache/read_bytes", "ebpf_cache_read_bytes_total"),
            ("/cache/read_wait_seconds/count", "ebpf_read_wait_seconds_count"),
            ("/cache/read_wait_seconds/sum", "ebpf_read_wait_seconds_sum"),
            ("/memory/reclaim_efficiency_percent", "ebpf_memory_reclaim_efficiency_percent"),
            ("/memory/direct_reclaim_processes", "ebpf_memory_direct_reclaim_processes"),
            ("/memory/direct_reclaim_seconds/count", "ebpf_memory_direct_reclaim_seconds_count"),
            ("/memory/direct_reclaim_seconds/sum", "ebpf_memory_direct_reclaim_seconds_sum"),
            ("/memory/kswapd_wakeups", "ebpf_memory_kswapd_wakeups_total"),
        ] {
            same(series, stats.pointer(path).expect(path));
        }
        for (path, name, label) in [
            ("/fadvise/advice_counts", "ebpf_fadvise_advice_total", "advice"),
            ("/cache/pages_added_by_cause", "ebpf_page_cache_adds_total", "cause"),
            ("/cache/pages_evicted_by_cause", "ebpf_page_cache_evictions_total", "cause"),
            ("/memory/lru_pages_scanned_by_reclaimer", "ebpf_memory_lru_pages_scanned_total", "reclaimer"),
            ("/memory/pages_reclaimed_by_reclaimer", "ebpf_memory_pages_reclaimed_total", "reclaimer"),
            ("/cache/read_wait_seconds/buckets", "ebpf_read_wait_seconds_bucket", "le"),
            ("/memory/direct_reclaim_seconds/buckets", "ebpf_memory_direct_reclaim_seconds_bucket", "le"),
        ] {
            for (key, value) in stats.pointer(path).expect(path).as_object().unwrap() {
                same(&format!("{name}{{{label}=\"{key}\"}}"), value);
            }
        }
        let of_the_kernel = text.iter().filter(|(s, _)| s.starts_with("ebpf_") && !s.starts_with("ebpf_sidecar_"));
        assert_eq!(compared, of_the_kernel.count(), "a metric of the kernel is missing from this comparison");
    }
}
