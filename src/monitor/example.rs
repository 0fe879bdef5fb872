//! A snapshot with invented numbers in every metric of the catalogue, for tests of the outputs.

use std::time::{Duration, Instant, SystemTime};

use super::iomonitor;
use crate::metrics::catalogue::*;
use crate::metrics::histogram::{BUCKETS, Histogram};
use crate::metrics::snapshot::*;

/// The snapshot: no two numbers alike, nothing absent, one percentage with nothing to divide by.
pub fn snapshot() -> Snapshot {
    let io = io();
    let families = families(&io);
    let probe = |name, mode| ProbeStatus { name, mode: Some(mode), failures: vec![] };
    Snapshot {
        scope: "host".into(),
        sequence: 42,
        collected_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        collected_instant: Instant::now(),
        started: Instant::now(),
        interval: Duration::from_secs(10),
        io,
        modules: vec![ModuleStatus {
            name: "iomonitor",
            enabled: true,
            running: true,
            last_error: None,
            trouble: None,
            last_collected: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
            families: 0..families.iter().filter(|f| is_io(f.metric)).count(),
            metric_count: families.iter().filter(|f| is_io(f.metric)).map(|f| f.series.len()).sum(),
            probes: vec![probe("fadvise", "tracepoint"), probe("cache_fill", "raw_tracepoint")],
        }],
        families,
        last_error: None,
    }
}

fn is_io(metric: &Metric) -> bool {
    metric.name.starts_with("ebpf_") && !metric.name.starts_with("ebpf_sidecar_")
}

fn io() -> IoStats {
    let row = |pid, comm: &str, calls, success| ProcessRow { pid, comm: comm.into(), calls, success };
    let mut stalls = Histogram { sum_ns: 1_234_567_891, ..Default::default() };
    for (i, bucket) in stalls.buckets.iter_mut().enumerate() {
        *bucket = i as u64;
    }
    let mut latency = Histogram { sum_ns: 987_654_321, ..Default::default() };
    for (i, bucket) in latency.buckets.iter_mut().enumerate() {
        *bucket = 100 - i as u64;
    }
    IoStats {
        fadvise: Some(Fadvise {
            success: 1001,
            failed: 3,
            advice: [2, 4, 6, 900, 80, 1, 11],
            success_rate_percent: None,
            processes: vec![row(4711, "banyand \"hot\"\n\\", 1000, 999), row(0, "overflow", 4, 2)],
        }),
        cache: Cache {
            read_attempts: Some(16384),
            hits: Some(16000),
            misses: Some(384),
            hit_rate_percent: Some(97.65625),
            miss_rate_percent: Some(2.34375),
            read_bytes: Some(67_108_864),
            read_latency: Some(latency),
            adds: Some([384, 512, 33, 2048, 7]),
            evictions: Some([640, 128, 5]),
        },
        memory: Memory {
            scanned: Some([5000, 300, 70]),
            reclaimed: [4000, 200, 60].map(Some),
            reclaim_efficiency_percent: Some(100.0 / 3.0),
            direct_reclaim_processes: Some(9),
            stalls: Some(stalls),
            kswapd_wakeups: Some(13),
        },
    }
}

/// The real mapping of the statistics, and any number for what the agent says of itself.
fn families(io: &IoStats) -> Vec<Family> {
    let mut all = iomonitor::families(io);
    let own = CATALOGUE.iter().enumerate().filter(|(_, m)| !is_io(m)).map(|(i, &metric)| {
        let labels = metric.labels.iter().map(|l| format!("a {l}")).collect();
        let value = match metric.kind {
            Kind::Histogram => Value::Histogram(Histogram { buckets: [i as u64; BUCKETS], sum_ns: 1 }),
            _ => Value::Float(i as f64 + 0.5),
        };
        Family { metric, series: vec![Series { labels, value }] }
    });
    all.extend(own);
    all
}
