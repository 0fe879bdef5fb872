//! What the exporter to BanyanDB counts of itself, and whether it gets anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::histogram::Histogram;
use super::own::{self as m, DROPS, FAILURES};
use super::snapshot::{Family, Series, Value};

/// The exporter of this process.
pub static STATE: State = State {
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
};

/// Counts since the start, and the state now.
#[derive(Debug)]
pub struct State {
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
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Each change is one assignment: nothing can be half done.
        self.progress.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// There is an exporter; trying for so long in vain is a reason to worry.
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
            .then(|| format!("nothing could be sent to BanyanDB for {:.0} s: {why}", vain.as_secs_f64()))
    }

    /// The metrics; none without an exporter.
    pub fn families(&self) -> Vec<Family> {
        let progress = self.progress();
        if progress.running.is_none() {
            return Vec::new();
        }
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let last = progress.last_success.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let last = last.map(|at| Series { labels: Vec::new(), value: Value::Float(at.as_millis() as f64 / 1e3) });
        vec![
            Family::single(&m::EXPORT_SENT, Value::Int(get(&self.sent))),
            Family::labelled(&m::EXPORT_FAILED, FAILURES.into_iter().zip(self.failed.iter().map(get))),
            Family::labelled(&m::EXPORT_DROPPED, DROPS.into_iter().zip(self.dropped.iter().map(get))),
            Family::single(&m::EXPORT_QUEUE_POINTS, Value::Int(get(&self.queued))),
            Family::single(&m::EXPORT_QUEUE_BYTES, Value::Int(get(&self.queued_bytes))),
            Family { metric: &m::EXPORT_LAST_SUCCESS, series: last.into_iter().collect() },
            Family::single(&m::EXPORT_BATCH_SECONDS, Value::Histogram(progress.batches.clone())),
        ]
    }
}

fn add<const N: usize>(counts: &[AtomicU64; N], names: &[&str; N], reason: &str, points: usize) {
    let count = names.iter().position(|n| *n == reason).map(|i| &counts[i]);
    debug_assert!(count.is_some(), "{reason}");
    if let Some(count) = count {
        count.fetch_add(points as u64, Ordering::Relaxed);
    }
}
