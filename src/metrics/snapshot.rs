//! One collection of everything the agent knows: made by the collector, never changed afterwards, read by
//! every output.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use super::catalogue::Metric;
use super::histogram::Histogram;

/// One immutable collection.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Number of this snapshot, from 1, growing by one with each; shown by every output.
    pub sequence: u64,
    /// Wall-clock time at which the kernel's counters were read. A failed collection publishes a new
    /// snapshot with the old data and this time unchanged.
    pub collected_at: SystemTime,
    /// The same moment on the monotonic clock, for ages.
    pub collected_instant: Instant,
    /// When the agent started.
    pub started: Instant,
    /// Time between collections.
    pub interval: Duration,
    /// Whose I/O is counted: `host`, `cgroup:<path>` or `comm:<name>`.
    pub scope: String,
    /// The I/O statistics, for outputs with a shape of their own (JSON, gRPC).
    pub io: IoStats,
    /// Every metric with its series, in catalogue order, for outputs that render a list.
    pub families: Vec<Family>,
    /// Each configured module.
    pub modules: Vec<ModuleStatus>,
    /// Why the last collection failed; `None` when it did not.
    pub last_error: Option<String>,
}

/// A metric of the catalogue with its current series.
#[derive(Debug, Clone)]
pub struct Family {
    /// Name, type and help.
    pub metric: &'static Metric,
    /// The series; label values stand in the order of `metric.labels`. May be empty.
    pub series: Vec<Series>,
}

impl Family {
    /// A metric without labels.
    pub fn single(metric: &'static Metric, value: Value) -> Self {
        Self { metric, series: vec![Series { labels: Vec::new(), value }] }
    }

    /// A counter or gauge with one label, a series for each of its values.
    pub fn labelled(metric: &'static Metric, series: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let series = series.into_iter().map(|(l, v)| Series { labels: vec![l.to_owned()], value: Value::Int(v) });
        Self { metric, series: series.collect() }
    }
}

/// One value of a metric.
#[derive(Debug, Clone)]
pub struct Series {
    /// Label values, one for each of the metric's labels.
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// The value of a series.
#[derive(Debug, Clone)]
pub enum Value {
    /// A whole number (counters, most gauges).
    Int(u64),
    /// A measure in seconds or the like.
    Float(f64),
    /// A percentage; `None` when there was nothing to divide by (NaN in Prometheus, null in JSON).
    Percent(Option<f64>),
    /// Durations.
    Histogram(Histogram),
}

/// State of one module.
#[derive(Debug, Clone)]
pub struct ModuleStatus {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Whether at least one of its probes is attached.
    pub running: bool,
    /// Number of series it contributes to the snapshot.
    pub metric_count: usize,
    /// Each of its probes, attached or not.
    pub probes: Vec<ProbeStatus>,
}

/// State of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeStatus {
    /// Name of the probe, as in `ebpf_sidecar_probe_attached{probe}`.
    pub name: &'static str,
    /// How it is attached (`raw_tracepoint`, `tracepoint`, …); `None` when it could not be.
    pub mode: Option<&'static str>,
    /// Each way that was tried and failed: mode and reason.
    pub failures: Vec<(&'static str, String)>,
}

/// The I/O statistics since the start of the agent. `None` throughout: the probe behind it is not attached.
#[derive(Debug, Clone, Default)]
pub struct IoStats {
    /// fadvise64 calls.
    pub fadvise: Option<Fadvise>,
    /// The page cache.
    pub cache: Cache,
    /// Memory reclaim.
    pub memory: Memory,
}

/// Names of the fadvise advices, in the order of [`Fadvise::advice`].
pub const ADVICES: [&str; 7] = ["normal", "random", "sequential", "willneed", "dontneed", "noreuse", "invalid"];
/// Causes of a page-cache fill, in the order of [`Cache::adds`].
pub const FILL_CAUSES: [&str; 5] = ["read", "write", "fault", "prefetch", "other"];
/// Causes of a page-cache eviction, in the order of [`Cache::evictions`].
pub const EVICTION_CAUSES: [&str; 3] = ["reclaim", "fadvise", "other"];
/// Who reclaims, in the order of [`Memory::scanned`] and [`Memory::reclaimed`].
pub const RECLAIMERS: [&str; 3] = ["kswapd", "direct", "memcg"];

/// fadvise64 calls.
#[derive(Debug, Clone, Default)]
pub struct Fadvise {
    /// Calls that returned 0.
    pub success: u64,
    /// Calls that returned an error.
    pub failed: u64,
    /// Calls by advice, as [`ADVICES`].
    pub advice: [u64; 7],
    /// Successful calls per hundred, over the last interval.
    pub success_rate_percent: Option<f64>,
    /// Per process, most calls first; the rows' calls add up to `success + failed`.
    pub processes: Vec<ProcessRow>,
}

impl Fadvise {
    /// All calls.
    pub fn total(&self) -> u64 {
        self.success + self.failed
    }
}

/// One process's fadvise calls, cumulative while it is known. The row with pid 0 and comm `overflow` holds
/// what did not fit and what belonged to processes since forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessRow {
    /// Process id (tgid) in the initial pid namespace; 0 for the overflow row.
    pub pid: u32,
    /// The process's name (comm of its main thread).
    pub comm: String,
    /// Calls.
    pub calls: u64,
    /// Calls that returned 0.
    pub success: u64,
}

/// The page cache. Pages are of the base page size (4 KiB on x86-64).
#[derive(Debug, Clone, Default)]
pub struct Cache {
    /// Pages that buffered reads of regular files touched.
    pub read_attempts: Option<u64>,
    /// Running maximum of attempts − misses.
    pub hits: Option<u64>,
    /// Pages of regular files filled on behalf of reads, readahead included.
    pub misses: Option<u64>,
    /// Over the last interval.
    pub hit_rate_percent: Option<f64>,
    /// Over the last interval.
    pub miss_rate_percent: Option<f64>,
    /// Bytes copied to the readers; needs a hook that sees the return value of the read.
    pub read_bytes: Option<u64>,
    /// How long reads that had to wait for I/O took; needs hooks at functions.
    pub read_latency: Option<Histogram>,
    /// Pages filled, as [`FILL_CAUSES`].
    pub adds: Option<[u64; 5]>,
    /// Pages removed, as [`EVICTION_CAUSES`].
    pub evictions: Option<[u64; 3]>,
}

/// Memory reclaim.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Pages of the inactive lists scanned, as [`RECLAIMERS`].
    pub scanned: Option<[u64; 3]>,
    /// Pages reclaimed, as [`RECLAIMERS`]; without the scans kswapd's are unknown.
    pub reclaimed: [Option<u64>; 3],
    /// Reclaimed per hundred scanned, over the last interval.
    pub reclaim_efficiency_percent: Option<f64>,
    /// Distinct processes with a direct or memcg reclaim in the last interval.
    pub direct_reclaim_processes: Option<u64>,
    /// How long each direct or memcg reclaim stalled its thread.
    pub stalls: Option<Histogram>,
    /// Times that kswapd began a round of balancing.
    pub kswapd_wakeups: Option<u64>,
}

/// The place where the collector publishes and the outputs read. Reading takes a lock for the copy of one
/// pointer and never waits for a collection.
#[derive(Debug, Clone)]
pub struct SnapshotCell(Arc<RwLock<Arc<Snapshot>>>);

impl SnapshotCell {
    /// A cell holding `first`.
    pub fn new(first: Snapshot) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(first))))
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        // A poisoned lock still holds a whole pointer: it is replaced in one assignment.
        Arc::clone(&self.0.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Publishes `next`.
    pub fn store(&self, next: Snapshot) {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(next);
    }
}
