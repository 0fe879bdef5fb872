//! What goes on while the exporter waits, whatever it waits for: snapshots become points in the queue, and the wish to
//! stop is heard. So a server that hangs, is slow or away never makes the collector wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, never};
use crossbeam::select;
use grpcio::Environment;

use super::queue::Queue;
use super::{End, Points};
use crate::host::confine::Role;
use crate::host::threads;
use crate::metrics::export::State;
use crate::metrics::snapshot::Snapshot;

/// How long a call may outlast its deadline before gRPC itself is given up.
const GRACE: Duration = Duration::from_secs(5);

/// Makes points of a snapshot.
pub type Converter<P> = Box<dyn FnMut(&Snapshot) -> Vec<P> + Send>;

/// Snapshots on their way into the queue.
pub struct Intake<P> {
    snapshots: Receiver<Arc<Snapshot>>,
    stop: Receiver<()>,
    stop_at: Option<Instant>,
    timeout: Duration,
    converter: Converter<P>,
    pub(super) queue: Queue<P>,
    /// Sequence and points of the last collection.
    last: (u64, usize),
    /// Points collected a second.
    rate: f64,
    environment: Option<Arc<Environment>>,
    state: &'static State,
}

impl<P: Points> Intake<P> {
    /// For snapshots that come through one channel until the other closes; `timeout` is that of a call, and of sending
    /// what is left then.
    pub(super) fn new(
        snapshots: Receiver<Arc<Snapshot>>,
        stop: Receiver<()>,
        timeout: Duration,
        converter: Converter<P>,
        queue: Queue<P>,
        state: &'static State,
    ) -> Self {
        let (last, rate) = ((0, 0), 0.0);
        Self { snapshots, stop, stop_at: None, timeout, converter, queue, last, rate, environment: None, state }
    }

    /// Whether the agent stops.
    pub fn stopping(&self) -> bool {
        self.stop_at.is_some()
    }

    /// Whether the time to send what is left is up.
    pub fn out_of_time(&self) -> bool {
        self.stop_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Points collected a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// gRPC's thread, made when it is first needed.
    pub fn environment(&mut self) -> Arc<Environment> {
        Arc::clone(self.environment.get_or_insert_with(|| threads::grpc(1, "export", Role::Exporter)))
    }

    /// Time limit of a call made now; never none, which gRPC would take as no limit.
    pub fn limit(&self) -> Duration {
        let left = |at: Instant| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stop_at.map_or(self.timeout, |at| left(at).min(self.timeout))
    }

    /// Waits for what a call gives; an error when the time is up, since then gRPC or the resolver hangs.
    pub fn answer<T>(&mut self, what: &str, answer: &Receiver<T>) -> Result<T, End> {
        let until = Instant::now() + self.timeout + GRACE;
        match self.wait(answer, until, false) {
            Some(value) => Ok(value),
            None if self.out_of_time() => Err(End::Stopped),
            None => {
                self.environment = None;
                Err(End::Lost(format!("{what}: no answer came")))
            }
        }
    }

    /// Whether something comes through `awaited` within this time.
    pub fn happens(&mut self, awaited: &Receiver<()>, time: Duration) -> bool {
        self.wait(awaited, Instant::now() + time, false).is_some()
    }

    /// Waits until something comes through `awaited` (`None` too if that closes), or until then. When `idle`, ends at a
    /// snapshot and at the wish to stop as well.
    pub(super) fn wait<T>(&mut self, awaited: &Receiver<T>, until: Instant, idle: bool) -> Option<T> {
        loop {
            let until = self.stop_at.map_or(until, |at| at.min(until));
            select! {
                recv(self.snapshots) -> snapshot => match snapshot {
                    Ok(snapshot) => self.take_in(&snapshot),
                    Err(_) => self.snapshots = never(),
                },
                // Nothing comes through it: it closes.
                recv(self.stop) -> _ => {
                    self.stop = never();
                    self.stop_at = Some(Instant::now() + self.timeout);
                    while let Ok(snapshot) = self.snapshots.try_recv() {
                        self.take_in(&snapshot);
                    }
                    self.snapshots = never();
                }
                recv(awaited) -> value => return value.ok(),
                default(until.saturating_duration_since(Instant::now())) => return None,
            }
            if idle {
                return None;
            }
        }
    }

    /// Waits so long, or until the agent is to stop.
    pub(super) fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let stopping = self.stopping();
        while Instant::now() < until.min(self.stop_at.unwrap_or(until)) && self.stopping() == stopping {
            self.wait::<()>(&never(), until, true);
        }
    }

    fn take_in(&mut self, snapshot: &Snapshot) {
        let missed = snapshot.sequence.saturating_sub(self.last.0 + 1);
        if self.last.0 > 0 && missed > 0 {
            log::warn!("the exporter was not run for so long that it missed {missed} collections");
            self.state.dropped("overrun", usize::try_from(missed).unwrap_or(0).saturating_mul(self.last.1));
        }
        self.last.0 = snapshot.sequence;
        // A failed collection repeats the data and the time of the one before.
        if snapshot.last_error.is_some() {
            return;
        }
        let points = (self.converter)(snapshot);
        self.last.1 = points.iter().map(Points::count).sum();
        self.rate = self.last.1 as f64 / snapshot.interval.as_secs_f64().max(1e-3);
        let dropped = self.queue.push(points, Instant::now());
        self.state.dropped("queue_limit", dropped.age);
        self.state.dropped("queue_bytes", dropped.bytes);
        self.show();
    }

    /// Tells how much waits.
    pub(super) fn show(&self) {
        let (points, bytes) = self.queue.size();
        self.state.queued(points, bytes);
    }
}
