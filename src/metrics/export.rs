//! What each exporter counts of itself, and whether it gets anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::histogram::Histogram;
use super::metric::Metric;
use super::own::{self as m, DROPS, FAILURES};
use super::snapshot::{Family, Series, Value};

/// The exporter to BanyanDB.
pub static BANYANDB: State = State::new("banyandb", "BanyanDB", FAILURES_OF_BANYANDB);
/// The exporter of OTLP.
pub static OTLP: State = State::new("otlp", "the OTLP receiver", &FAILURES_OF_OTLP);
/// Every exporter of this process.
const ALL: [&State; 2] = [&BANYANDB, &OTLP];

/// Of [`FAILURES`], those that BanyanDB can cause: all but the last, which is OTLP's.
const FAILURES_OF_BANYANDB: &[&str] = {
    let [own @ .., _] = &FAILURES;
    own
};
/// Those that a receiver of OTLP can.
const FAILURES_OF_OTLP: [&str; 2] = ["connection", "try_again"];

/// What is wrong with the exporters as of `now`.
pub fn troubles(now: Instant) -> Vec<String> {
    ALL.iter().filter_map(|state| state.trouble(now)).collect()
}

/// The metrics of the exporters that run.
pub fn families() -> Vec<Family> {
    of(&ALL)
}

fn of(states: &[&State]) -> Vec<Family> {
    let running: Vec<_> = states.iter().filter_map(|state| state.series()).collect();
    if running.is_empty() {
        return Vec::new();
    }
    let metrics = [
        &m::EXPORT_SENT,
        &m::EXPORT_FAILED,
        &m::EXPORT_DROPPED,
        &m::EXPORT_QUEUE_POINTS,
        &m::EXPORT_QUEUE_BYTES,
        &m::EXPORT_LAST_SUCCESS,
        &m::EXPORT_BATCH_SECONDS,
    ];
    let family = |(i, metric): (usize, &&'static Metric)| Family {
        metric,
        series: running.iter().flat_map(|of| of[i].clone()).collect(),
    };
    metrics.iter().enumerate().map(family).collect()
}

/// Counts since the start, and the state now.
#[derive(Debug)]
pub struct State {
    /// Its value of the label `exporter`.
    label: &'static str,
    /// What the server is called.
    server: &'static str,
    /// Its reasons to send a point again.
    failures: &'static [&'static str],
    sent: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
    dropped: [AtomicU64; DROPS.len()],
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// Time in vain that is too long; `None` if there is no exporter.
    running: Option<Duration>,
    /// When the first attempt since the last success began.
    trying_since: Option<Instant>,
    problem: Option<String>,
    last_success: Option<SystemTime>,
    batches: Histogram,
}

impl State {
    const fn new(label: &'static str, server: &'static str, failures: &'static [&'static str]) -> Self {
        Self {
            label,
            server,
            failures,
            sent: AtomicU64::new(0),
            failed: [const { AtomicU64::new(0) }; FAILURES.len()],
            dropped: [const { AtomicU64::new(0) }; DROPS.len()],
            queued: AtomicU64::new(0),
            queued_bytes: AtomicU64::new(0),
            progress: Mutex::new(Progress {
                running: None,
                trying_since: None,
                problem: None,
                last_success: None,
                batches: Histogram { buckets: [0; super::histogram::BUCKETS], sum_ns: 0 },
            }),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Each change is one assignment: nothing can be half done.
        self.progress.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// It runs; trying for so long in vain is a reason to worry.
    pub fn started(&self, unhealthy_after: Duration) {
        self.progress().running = Some(unhealthy_after);
    }

    /// It has ended.
    pub fn ended(&self) {
        self.progress().running = None;
    }

    /// It tries to reach the server or to send something.
    pub fn attempt(&self, now: Instant) {
        self.progress().trying_since.get_or_insert(now);
    }

    /// It did not work.
    pub fn problem(&self, why: &str) {
        self.progress().problem = Some(why.to_owned());
    }

    /// A batch was acknowledged, so long after it was sent first.
    pub fn success(&self, took: Duration) {
        let mut progress = self.progress();
        (progress.trying_since, progress.problem) = (None, None);
        progress.last_success = Some(SystemTime::now());
        progress.batches.record(took);
    }

    /// The server answers, and there is nothing to send.
    pub fn idle(&self) {
        let mut progress = self.progress();
        (progress.trying_since, progress.problem) = (None, None);
    }

    /// Points were acknowledged.
    pub fn sent(&self, points: usize) {
        self.sent.fetch_add(points as u64, Ordering::Relaxed);
    }

    /// Points have to be sent again, for a reason of [`FAILURES`].
    pub fn failed(&self, reason: &str, points: usize) {
        add(&self.failed, &FAILURES, reason, points);
    }

    /// Points are given up, for a reason of [`DROPS`].
    pub fn dropped(&self, reason: &str, points: usize) {
        add(&self.dropped, &DROPS, reason, points);
    }

    /// So many points wait, in so many bytes.
    pub fn queued(&self, points: usize, bytes: usize) {
        self.queued.store(points as u64, Ordering::Relaxed);
        self.queued_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    /// What is wrong as of `now`, if nothing was sent for too long.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        let progress = self.progress();
        let vain = now.saturating_duration_since(progress.trying_since?);
        let why = progress.problem.as_deref().and_then(|p| p.lines().next()).unwrap_or("no answer yet");
        (vain > progress.running?)
            .then(|| format!("nothing could be sent to {} for {:.0} s: {why}", self.server, vain.as_secs_f64()))
    }

    /// Its metrics; none while it does not run.
    pub fn families(&'static self) -> Vec<Family> {
        of(&[self])
    }

    /// Its series of each metric, in the order of [`of`]; `None` while it does not run.
    fn series(&self) -> Option<[Vec<Series>; 7]> {
        let progress = self.progress();
        progress.running?;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let labels = |more: Option<&str>| [self.label].into_iter().chain(more).map(str::to_owned).collect();
        let one = |value| vec![Series { labels: labels(None), value }];
        let by = |names: &[&str], counts: &[AtomicU64], mine: &[&str]| {
            let of_mine = names.iter().zip(counts).filter(|(name, _)| mine.contains(name));
            of_mine.map(|(name, n)| Series { labels: labels(Some(name)), value: Value::Int(get(n)) }).collect()
        };
        let last = progress.last_success.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let last = last.map(|at| one(Value::Float(at.as_millis() as f64 / 1e3)));
        Some([
            one(Value::Int(get(&self.sent))),
            by(&FAILURES, &self.failed, self.failures),
            by(&DROPS, &self.dropped, &DROPS),
            one(Value::Int(get(&self.queued))),
            one(Value::Int(get(&self.queued_bytes))),
            last.unwrap_or_default(),
            one(Value::Histogram(progress.batches.clone())),
        ])
    }
}

fn add<const N: usize>(counts: &[AtomicU64; N], names: &[&str; N], reason: &str, points: usize) {
    let count = names.iter().position(|n| *n == reason).map(|i| &counts[i]);
    debug_assert!(count.is_some(), "{reason}");
    if let Some(count) = count {
        count.fetch_add(points as u64, Ordering::Relaxed);
    }
}
