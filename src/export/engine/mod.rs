//! Sends every collection to a server, whatever it is: what is sent and how is an [`Encoding`]'s.
//!
//! One thread of its own takes the snapshots in as they are published, whatever else it waits for. Points leave in
//! batches; a batch is done when the server has taken every point of it, and what it has not is sent again, so that
//! nothing is lost. After a lost connection the batches acknowledged shortly before are sent again too, since a server
//! may answer before it stores.

mod backoff;
mod intake;
pub mod link;
pub mod meter;
mod queue;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};

use crate::host::logging::clean;
use crate::metrics::export::STATE;
use crate::metrics::snapshot::SnapshotCell;
use backoff::backoff;
use meter::Meter;
use queue::Queue;

pub use intake::{Converter, Intake};
pub use queue::{Chunk, Limits};

/// Points a second of a backlog, or twice what is collected if that is more.
const BACKLOG_RATE: f64 = 20_000.0;
/// Time between two warnings of the same problem.
const REMIND: Duration = Duration::from_secs(60);

/// How snapshots become points, and how those go to a server.
pub trait Encoding: Send + 'static {
    /// What the server is called in the log.
    const NAME: &'static str;
    /// Points of one collection, or as many as fit into a batch.
    type Points: Points;
    /// A connection to a server that is ready for points.
    type Session;

    /// Makes points of snapshots; `meter` counts their bytes.
    fn converter(&self, meter: Meter) -> Converter<Self::Points>;

    /// Connects, and prepares the server. All waiting is done by `intake`.
    fn connect(&mut self, intake: &mut Intake<Self::Points>, endpoint: &str) -> Result<Self::Session, End>;

    /// Where a lost connection is told, once.
    fn lost(session: &Self::Session) -> &Receiver<()>;

    /// Sends a batch. What the server refuses for good is taken out of it and counted here; what may be taken later is
    /// moved into the answer.
    fn send(
        &mut self,
        intake: &mut Intake<Self::Points>,
        session: &mut Self::Session,
        batch: &mut [Chunk<Self::Points>],
    ) -> Result<Again<Self::Points>, End>;
}

/// Points as an encoding keeps them.
pub trait Points: Send + 'static {
    /// How many they are.
    fn count(&self) -> usize;
}

/// What has to be sent again.
pub struct Again<P> {
    /// The points.
    pub chunks: Vec<Chunk<P>>,
    /// Why, as in [`FAILURES`](crate::metrics::export::FAILURES), with the number of points.
    pub reasons: Vec<(&'static str, usize)>,
}

/// Why a connection is no longer used.
#[derive(Debug)]
pub enum End {
    /// It failed.
    Lost(String),
    /// The agent stops, and there is no more time or nothing to send.
    Stopped,
}

/// A problem with the server, as text, ends the use of the connection.
impl From<String> for End {
    fn from(why: String) -> Self {
        End::Lost(why)
    }
}

/// What is the same for every encoding.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses: the next one when one fails.
    pub endpoints: Vec<String>,
    /// Time limit of one request, and of sending what is left when the agent stops.
    pub timeout: Duration,
    /// Points that are sent together.
    pub batch_size: usize,
    /// How long a point may wait for others to fill its batch.
    pub flush_interval: Duration,
    /// The bounds of what is kept.
    pub limits: Limits,
    /// Time without success after which the agent is degraded.
    pub unhealthy_after: Duration,
}

/// The running exporter.
pub struct Exporter {
    name: &'static str,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Sends what is left, for at most the timeout, and ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            log::error!("the exporter to {} had panicked", self.name);
        }
    }
}

/// Starts to send the snapshots of `cell`. Whether the server can be reached shows later, in the log and in health.
pub fn start<E: Encoding>(settings: Settings, encoding: E, cell: &SnapshotCell) -> io::Result<Exporter> {
    let (stop, stopped) = channel::bounded(0);
    let snapshots = cell.subscribe();
    STATE.started(settings.unhealthy_after);
    let spawned = thread::Builder::new().name("exporter".into()).spawn(move || {
        let meter = Meter::default();
        let (converter, queue) = (encoding.converter(meter.clone()), Queue::new(settings.limits, meter));
        let intake = Intake::new(snapshots, stopped, settings.timeout, converter, queue);
        let mut engine = Engine::new(settings, encoding, intake);
        // A bug here must end neither the agent nor the export.
        while catch_unwind(AssertUnwindSafe(|| engine.run())).is_err() {
            log::error!("the exporter to {} panicked; it goes on without the batch that it was sending", E::NAME);
            engine.recover();
        }
    });
    match spawned {
        Ok(thread) => Ok(Exporter { name: E::NAME, stop, thread }),
        Err(e) => {
            STATE.ended();
            Err(e)
        }
    }
}

struct Engine<E: Encoding> {
    settings: Settings,
    encoding: E,
    intake: Intake<E::Points>,
    /// Which of the endpoints is next, counted on and on.
    endpoint: usize,
    /// Of the batch in flight, what the server has taken,
    taken: Vec<Chunk<E::Points>>,
    /// and what it has not.
    todo: Vec<Chunk<E::Points>>,
    /// Failures since the last success, for the backoff.
    failures: u32,
    /// Whether a batch has failed since the last success.
    write_failed: bool,
    /// The problem last warned of, and when.
    warned: Option<(String, Instant)>,
}

impl<E: Encoding> Engine<E> {
    fn new(settings: Settings, encoding: E, intake: Intake<E::Points>) -> Self {
        let (taken, todo) = (Vec::new(), Vec::new());
        let (failures, write_failed, warned) = (0, false, None);
        Self { settings, encoding, intake, endpoint: 0, taken, todo, failures, write_failed, warned }
    }

    /// Sends until the agent stops.
    fn run(&mut self) {
        loop {
            if self.intake.stopping() && self.intake.queue.is_empty() {
                return self.end();
            }
            if self.failures > 0 {
                self.intake.pause(backoff(self.failures));
            }
            let endpoint = self.settings.endpoints[self.endpoint % self.settings.endpoints.len()].clone();
            let end = match self.connect(&endpoint) {
                Ok(mut session) => self.serve(&mut session),
                Err(end) => Err(end),
            };
            let end = end.err().unwrap_or(End::Stopped);
            self.send_again();
            let timed_out = self.intake.out_of_time();
            match end {
                End::Lost(why) => {
                    self.problem(format!("{} at {endpoint}: {why}", E::NAME));
                    self.endpoint += 1;
                }
                End::Stopped => return self.end(),
            }
            if timed_out {
                return self.end();
            }
        }
    }

    /// The batch in flight waits again, and what was acknowledged shortly before.
    fn send_again(&mut self) {
        self.taken.append(&mut self.todo);
        self.intake.queue.send_again(std::mem::take(&mut self.taken));
        self.intake.show();
    }

    /// After a panic: gives up the batch in flight, which may be why.
    fn recover(&mut self) {
        STATE.dropped("panic", queue::unsent(self.taken.iter().chain(&self.todo)));
        self.taken.clear();
        self.todo.clear();
        self.send_again();
        self.problem("the exporter panicked".into());
    }

    fn end(&mut self) {
        let left = self.intake.queue.unsent();
        if left > 0 {
            STATE.dropped("stopped", left);
            log::warn!("{}: {left} points could not be sent before the stop, and are lost", E::NAME);
        }
        STATE.ended();
    }

    fn problem(&mut self, why: String) {
        // A server may say anything.
        let why = clean(why);
        self.failures = self.failures.saturating_add(1);
        STATE.problem(&why);
        let waits = self.intake.queue.size().0;
        match &self.warned {
            Some((last, at)) if *last == why && at.elapsed() < REMIND => log::debug!("{why}; {waits} points wait"),
            _ => {
                log::warn!("{why}; {waits} points wait");
                self.warned = Some((why, Instant::now()));
            }
        }
    }

    fn connect(&mut self, endpoint: &str) -> Result<E::Session, End> {
        STATE.attempt(Instant::now());
        let session = self.encoding.connect(&mut self.intake, endpoint)?;
        log::info!("{}: connected to {endpoint}; {} points wait", E::NAME, self.intake.queue.size().0);
        if !self.write_failed {
            STATE.idle();
        }
        Ok(session)
    }

    /// Sends batches as they come due, until the connection is lost or all is sent and the agent stops.
    fn serve(&mut self, session: &mut E::Session) -> Result<(), End> {
        // A backlog leaves at a bounded rate.
        let mut not_before = Instant::now();
        loop {
            let intake = &mut self.intake;
            if intake.stopping() && intake.queue.is_empty() {
                return Err(End::Stopped);
            }
            let due = match intake.queue.oldest() {
                _ if intake.stopping() => not_before,
                _ if intake.queue.has(self.settings.batch_size) => not_before,
                Some(at) => not_before.max(at + self.settings.flush_interval),
                None => Instant::now() + REMIND,
            };
            if Instant::now() < due || intake.queue.is_empty() {
                if intake.wait(E::lost(session), due, true).is_some() {
                    return Err(lost());
                }
                if intake.out_of_time() {
                    return Err(End::Stopped);
                }
                continue;
            }
            let began = Instant::now();
            let points = self.send_batch(session)?;
            let rate = BACKLOG_RATE.max(2.0 * self.intake.rate());
            not_before = began + Duration::from_secs_f64(points as f64 / rate);
        }
    }

    /// Sends the oldest points until each is acknowledged or given up. Returns their number.
    fn send_batch(&mut self, session: &mut E::Session) -> Result<usize, End> {
        self.todo = self.intake.queue.take(self.settings.batch_size);
        let points = queue::count(&self.todo);
        let began = Instant::now();
        STATE.attempt(began);
        let mut attempts = 0;
        while !self.todo.is_empty() {
            if attempts > 0 {
                self.intake.pause(backoff(attempts));
                if E::lost(session).try_recv().is_ok() {
                    return Err(lost());
                }
                if self.intake.out_of_time() {
                    return Err(End::Stopped);
                }
            }
            attempts += 1;
            self.attempt(session)?;
        }
        // Before the acknowledged ones that may have to be sent again are forgotten.
        if E::lost(session).try_recv().is_ok() {
            return Err(lost());
        }
        let first = self.intake.queue.acknowledge(std::mem::take(&mut self.taken), Instant::now());
        STATE.sent(first);
        STATE.success(began.elapsed());
        self.intake.show();
        if self.failures > 0 || self.warned.is_some() {
            log::info!("{}: sending works again; {} points wait", E::NAME, self.intake.queue.size().0);
        }
        (self.failures, self.write_failed, self.warned) = (0, false, None);
        Ok(points)
    }

    /// Sends once what is still to be taken.
    fn attempt(&mut self, session: &mut E::Session) -> Result<(), End> {
        let sent = self.encoding.send(&mut self.intake, session, &mut self.todo);
        let again = sent.inspect_err(|_| {
            self.write_failed = true;
            STATE.failed("connection", queue::count(&self.todo));
        })?;
        self.taken.append(&mut self.todo);
        self.todo = again.chunks;
        if !again.reasons.is_empty() {
            self.write_failed = true;
            again.reasons.iter().for_each(|(reason, n)| STATE.failed(reason, *n));
            let reasons: Vec<String> = again.reasons.iter().map(|(r, n)| format!("{r} for {n} points")).collect();
            self.problem(format!("{} answers {}", E::NAME, reasons.join(", ")));
        }
        Ok(())
    }
}

fn lost() -> End {
    End::Lost("the connection was lost".into())
}
