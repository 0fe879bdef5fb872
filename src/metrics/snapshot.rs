//! One collection of everything the agent knows: made by the collector, never changed afterwards, read by
//! every output.

use std::ops::{AddAssign, Range};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::diagnosis::Diagnosis;
use super::files::{FileGroup, FileRow, Files};
use super::histogram::Histogram;
use super::metric::Metric;

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
    /// Every metric that is known, with its series: those of the modules in the catalogue's order, then the agent's own.
    pub families: Vec<Family>,
    /// Rows: what single processes did, which is too much for series. `None`: no probe behind them is attached.
    pub processes: Option<Vec<ProcessRow>>,
    /// What happened to files. `None`: they are not told apart, or it is one of the past.
    pub files: Option<Arc<Files>>,
    /// What it means together with those before it. `None`: it is one of the past, or of nothing yet.
    pub diagnosis: Option<Arc<Diagnosis>>,
    /// What those rows tell of beside fadvise calls.
    pub knows: Knows,
    /// Each configured module.
    pub modules: Vec<ModuleStatus>,
    /// Why the last collection failed; `None` when it did not.
    pub last_error: Option<String>,
}

/// Bytes that an allocation costs beside its own, about.
pub const ALLOCATION: usize = 16;

impl Snapshot {
    /// The metrics of one of its modules.
    pub fn families_of(&self, module: &ModuleStatus) -> &[Family] {
        self.families.get(module.families.clone()).unwrap_or_default()
    }

    /// Series of all modules together.
    pub fn metric_count(&self) -> usize {
        self.modules.iter().map(|m| m.metric_count).sum()
    }

    /// About the bytes of memory that it takes.
    pub(super) fn size(&self) -> usize {
        let labels = |s: &Series| s.labels.iter().map(|l| size_of::<String>() + l.len() + ALLOCATION).sum::<usize>();
        let series = |s: &Series| size_of::<Series>() + labels(s) + ALLOCATION;
        let family = |f: &Family| size_of::<Family>() + f.series.iter().map(series).sum::<usize>() + ALLOCATION;
        let rows = self.processes.iter().flatten().map(|r| size_of::<ProcessRow>() + r.comm.len() + ALLOCATION);
        let files = self.files.as_deref().map_or(0, size_of_files);
        size_of::<Self>() + self.families.iter().map(family).sum::<usize>() + rows.sum::<usize>() + files
    }
}

fn size_of_files(files: &Files) -> usize {
    let row = |row: &FileRow| size_of::<FileRow>() + row.path.len() + ALLOCATION;
    let label = |(k, v): &(String, String)| 2 * size_of::<String>() + k.len() + v.len() + 2 * ALLOCATION;
    let group = |group: &FileGroup| size_of::<FileGroup>() + group.labels.iter().map(label).sum::<usize>() + ALLOCATION;
    size_of::<Files>() + files.top.iter().map(row).sum::<usize>() + files.groups.iter().map(group).sum::<usize>()
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

    /// The sum of its series, if they are whole numbers.
    pub fn total(&self) -> u64 {
        self.series.iter().filter_map(|s| if let Value::Int(n) = s.value { Some(n) } else { None }).sum()
    }
}

/// The metric of this name among `families`, if it is known.
pub fn find<'a>(families: &'a [Family], name: &str) -> Option<&'a Family> {
    families.iter().find(|f| f.metric.name == name)
}

/// One value of a metric.
#[derive(Debug, Clone)]
pub struct Series {
    /// Label values, one for each of the metric's labels.
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

impl Series {
    /// Its labels by name: those of its metric.
    pub fn named<'a>(&'a self, metric: &Metric) -> impl Iterator<Item = (&'a str, &'a str)> + Clone + use<'a> {
        metric.labels.iter().copied().zip(self.labels.iter().map(String::as_str))
    }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleStatus {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Whether it is wanted: not disabled while the agent runs.
    pub enabled: bool,
    /// Whether at least one of its probes is attached.
    pub running: bool,
    /// Why it does not run, or why its last collection failed.
    pub last_error: Option<String>,
    /// Why what it counts is not all that it should, although it runs: its scope's cgroup is not there.
    pub trouble: Option<String>,
    /// When it was last collected.
    pub last_collected: Option<SystemTime>,
    /// Number of series it contributes to the snapshot.
    pub metric_count: usize,
    /// Its part of [`Snapshot::families`].
    pub families: Range<usize>,
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

/// What one process did, cumulative while it is known. The row with pid 0 and comm `overflow` holds what did not fit and
/// what belonged to processes since forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessRow {
    /// Process id (tgid) in the initial pid namespace; 0 for the overflow row.
    pub pid: u32,
    /// The process's name (comm of its main thread).
    pub comm: String,
    /// fadvise calls.
    pub calls: u64,
    /// Of those, calls that returned 0.
    pub success: u64,
    /// What it read, if that is known.
    pub reads: Activity,
}

/// What was read, filled and waited for; what cannot be known is told by [`Snapshot::knows`], and 0 here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Pages that buffered reads touched.
    pub pages: u64,
    /// Pages filled on behalf of reads.
    pub misses: u64,
    /// Pages filled for other causes.
    pub other_fills: u64,
    /// Bytes that reads copied.
    pub bytes: u64,
    /// Reads that waited for I/O.
    pub waits: u64,
    /// And for how many nanoseconds.
    pub wait_ns: u64,
}

impl Activity {
    /// How long reads waited, together.
    pub fn wait_seconds(&self) -> f64 {
        self.wait_ns as f64 / 1e9
    }
}

impl AddAssign for Activity {
    fn add_assign(&mut self, other: Self) {
        let Self { pages, misses, other_fills, bytes, waits, wait_ns } = other;
        self.pages += pages;
        self.misses += misses;
        self.other_fills += other_fills;
        self.bytes += bytes;
        self.waits += waits;
        self.wait_ns += wait_ns;
    }
}

impl ProcessRow {
    /// All its numbers.
    pub fn numbers(&self) -> [u64; 8] {
        let Activity { pages, misses, other_fills, bytes, waits, wait_ns } = self.reads;
        [self.calls, self.success, pages, misses, other_fills, bytes, waits, wait_ns]
    }

    /// The same row with these.
    pub fn with(self, numbers: [u64; 8]) -> Self {
        let [calls, success, pages, misses, other_fills, bytes, waits, wait_ns] = numbers;
        Self { calls, success, reads: Activity { pages, misses, other_fills, bytes, waits, wait_ns }, ..self }
    }
}

/// What rows tell of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Knows {
    /// Pages read.
    pub pages: bool,
    /// Bytes read.
    pub bytes: bool,
    /// Pages filled, misses among them.
    pub fills: bool,
    /// Reads that waited.
    pub waits: bool,
}

impl Knows {
    /// Whether anything.
    pub fn anything(self) -> bool {
        self != Self::default()
    }
}
