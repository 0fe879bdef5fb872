//! Sends every collection to a server, whatever it is: what is sent and how is an [`Encoding`]'s.
//!
//! One thread of its own takes the snapshots in as they are published, whatever else it waits for. Points leave in
//! batches. What the server does not take of a batch is put aside and tried again by itself, so that nothing is lost and
//! the rest goes on. After a lost connection the batches acknowledged shortly before are sent again too, since a server
//! may answer before it stores.

mod backoff;
mod intake;
pub mod link;
pub mod meter;
mod queue;
pub mod wire;

use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};

use crate::ebpf::os;
use crate::host::confine::{self, Role};
use crate::host::logging::clean;
use crate::metrics::cell::SnapshotCell;
use crate::metrics::export::State;
use backoff::backoff;
use meter::Meter;
use queue::Queue;

pub use intake::{Converter, Intake};
pub use queue::{Chunk, Limits, count};

/// Points a second of a backlog, or twice what is collected if that is more.
const BACKLOG_RATE: f64 = 20_000.0;
/// How long to wait at most after a batch of which nothing was taken: other points may fare better.
const VAIN: Duration = Duration::from_secs(1);
/// How long a server may ask for at most.
const LATER: Duration = Duration::from_secs(3600);
/// Time between two warnings of the same problem.
const REMIND: Duration = Duration::from_secs(60);

/// How snapshots become points, and how those go to a server.
pub trait Encoding: Send + 'static {
    /// What the server is called in the log.
    const NAME: &'static str;
    /// Where it is counted what becomes of the points.
    const STATE: &'static State;
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
    /// What they are of, for the log.
    pub of: String,
    /// Why nothing of the batch was taken, nor will be: it was given up.
    pub refused: Option<String>,
}

/// Why a connection is no longer used.
#[derive(Debug)]
pub enum End {
    /// It failed.
    Lost(String),
    /// The server asks to be left alone for so long.
    Later(String, Duration),
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

/// Whether what goes to `endpoint` stays on this host.
pub fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The name of this host, or of the pod, in which it is the host's.
pub fn host_name() -> String {
    let name = os::host_name();
    if name.is_empty() { "localhost".into() } else { name }
}

/// The running exporter.
pub struct Exporter {
    name: &'static str,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Has it send what is left, for at most the timeout, and end.
    pub fn end(self) -> Ending {
        drop(self.stop);
        Ending { name: self.name, thread: self.thread }
    }

    /// The same, and waits for it.
    pub fn stop(self) {
        self.end().wait();
    }
}

/// An exporter that ends.
pub struct Ending {
    name: &'static str,
    thread: JoinHandle<()>,
}

impl Ending {
    /// Waits until it has ended.
    pub fn wait(self) {
        if self.thread.join().is_err() {
            log::error!("the exporter to {} had panicked", self.name);
        }
    }
}

/// Starts to send the snapshots of `cell`. Whether the server can be reached shows later, in the log and in health.
pub fn start<E: Encoding>(settings: Settings, encoding: E, cell: &SnapshotCell) -> io::Result<Exporter> {
    let (stop, stopped) = channel::bounded(0);
    let snapshots = cell.subscribe();
    E::STATE.started(settings.unhealthy_after);
    let spawned = thread::Builder::new().name("exporter".into()).spawn(move || {
        confine::enter(Role::Exporter);
        let meter = Meter::default();
        let (converter, queue) = (encoding.converter(meter.clone()), Queue::new(settings.limits, meter));
        let intake = Intake::new(snapshots, stopped, settings.timeout, converter, queue, E::STATE);
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
            E::STATE.ended();
            Err(e)
        }
    }
}

/// What a batch is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Points that wait.
    Fresh,
    /// Points that failed before.
    Aside,
}

struct Engine<E: Encoding> {
    settings: Settings,
    encoding: E,
    intake: Intake<E::Points>,
    /// Which of the endpoints is next, counted on and on.
    endpoint: usize,
    /// The batch in flight.
    batch: Vec<Chunk<E::Points>>,
    /// Failures since the last success, for the backoff.
    failures: u32,
    /// Whether a batch has failed since the last success.
    write_failed: bool,
    /// The problem last warned of, and when.
    warned: Option<(String, Instant)>,
    /// When it was last said that something was put aside.
    put_aside_told: Option<Instant>,
}

impl<E: Encoding> Engine<E> {
    fn new(settings: Settings, encoding: E, intake: Intake<E::Points>) -> Self {
        let (batch, endpoint, failures, write_failed) = (Vec::new(), 0, 0, false);
        let (warned, put_aside_told) = (None, None);
        Self { settings, encoding, intake, endpoint, batch, failures, write_failed, warned, put_aside_told }
    }

    /// Sends until the agent stops.
    fn run(&mut self) {
        let mut not_before = Duration::ZERO;
        loop {
            if self.intake.stopping() && self.intake.queue.is_empty() {
                return self.end();
            }
            if self.failures > 0 {
                self.intake.pause(backoff(self.failures).max(std::mem::take(&mut not_before)));
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
                End::Later(why, wait) => {
                    self.problem(format!("{} at {endpoint}: {why}", E::NAME));
                    not_before = wait.min(LATER);
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
        self.intake.queue.send_again(std::mem::take(&mut self.batch));
        self.intake.show();
    }

    /// After a panic: gives up the batch in flight, which may be why.
    fn recover(&mut self) {
        E::STATE.dropped("panic", queue::unsent(&self.batch));
        self.batch.clear();
        self.send_again();
        self.problem("the exporter panicked".into());
    }

    fn end(&mut self) {
        let left = self.intake.queue.unsent();
        if left > 0 {
            E::STATE.dropped("stopped", left);
            log::warn!("{}: {left} points could not be sent before the stop, and are lost", E::NAME);
        }
        E::STATE.ended();
    }

    fn problem(&mut self, why: String) {
        // A server may say anything.
        let why = clean(why);
        self.failures = self.failures.saturating_add(1);
        E::STATE.problem(&why);
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
        E::STATE.attempt(Instant::now());
        let session = self.encoding.connect(&mut self.intake, endpoint)?;
        log::info!("{}: connected to {endpoint}; {} points wait", E::NAME, self.intake.queue.size().0);
        if !self.write_failed {
            E::STATE.idle();
        }
        Ok(session)
    }

    /// Sends batches as they come due, until the connection is lost or all is sent and the agent stops.
    fn serve(&mut self, session: &mut E::Session) -> Result<(), End> {
        // A backlog leaves at a bounded rate.
        let mut not_before = Instant::now();
        loop {
            if self.intake.stopping() && self.intake.queue.is_empty() {
                return Err(End::Stopped);
            }
            let (due, which) = self.next(not_before);
            if Instant::now() < due {
                if self.intake.wait(E::lost(session), due, true).is_some() {
                    return Err(lost());
                }
                if self.intake.out_of_time() {
                    return Err(End::Stopped);
                }
                continue;
            }
            let began = Instant::now();
            let points = self.send(session, which)?;
            let rate = BACKLOG_RATE.max(2.0 * self.intake.rate());
            not_before = began + Duration::from_secs_f64(points as f64 / rate);
            if self.failures > 0 {
                not_before = not_before.max(Instant::now() + backoff(self.failures).min(VAIN));
            }
        }
    }

    /// When something is to be sent, and what.
    fn next(&self, not_before: Instant) -> (Instant, Which) {
        let queue = &self.intake.queue;
        let fresh = queue.oldest().map(|at| {
            let full = self.intake.stopping() || queue.has(self.settings.batch_size);
            if full { not_before } else { not_before.max(at + self.settings.flush_interval) }
        });
        let aside = queue.retry_at().map(|at| at.max(not_before));
        match (fresh, aside) {
            (None, None) => (Instant::now() + REMIND, Which::Fresh),
            (Some(fresh), None) => (fresh, Which::Fresh),
            (Some(fresh), Some(aside)) if fresh <= aside => (fresh, Which::Fresh),
            (_, Some(aside)) => (aside, Which::Aside),
        }
    }

    /// Sends a batch. Returns the number of its points.
    fn send(&mut self, session: &mut E::Session, which: Which) -> Result<usize, End> {
        let queue = &mut self.intake.queue;
        self.batch = match which {
            Which::Fresh => queue.take(self.settings.batch_size),
            Which::Aside => queue.take_aside(self.settings.batch_size),
        };
        let points = queue::count(&self.batch);
        let began = Instant::now();
        if which == Which::Fresh {
            E::STATE.attempt(began);
        }
        let sent = self.encoding.send(&mut self.intake, session, &mut self.batch);
        let again = sent.inspect_err(|end| {
            self.write_failed = true;
            let reason = if matches!(end, End::Later(..)) { "try_again" } else { "connection" };
            E::STATE.failed(reason, queue::count(&self.batch));
        })?;
        again.reasons.iter().for_each(|(reason, n)| E::STATE.failed(reason, *n));
        let failed = queue::count(&again.chunks);
        E::STATE.dropped("queue_bytes", self.intake.queue.put_aside(again.chunks, Instant::now()));
        // Before the acknowledged ones that may have to be sent again are forgotten.
        if E::lost(session).try_recv().is_ok() {
            return Err(lost());
        }
        let in_vain = failed > 0 && queue::count(&self.batch) == 0;
        if which == Which::Aside {
            self.intake.queue.retried(in_vain, Instant::now());
        }
        let first = self.intake.queue.acknowledge(std::mem::take(&mut self.batch), Instant::now());
        E::STATE.sent(first);
        if let Some(why) = again.refused {
            self.problem(format!("{} refuses a batch for good: {why}", E::NAME));
        } else if !in_vain {
            self.success(began);
        }
        if failed > 0 {
            let reasons: Vec<String> = again.reasons.iter().map(|(r, n)| format!("{r} for {n} points")).collect();
            let why = format!("{} answers {} of {}", E::NAME, reasons.join(", "), again.of);
            self.failed(why, in_vain, which);
        }
        self.intake.show();
        Ok(points)
    }

    /// The server has taken something.
    fn success(&mut self, began: Instant) {
        E::STATE.success(began.elapsed());
        if self.failures > 0 {
            log::info!("{}: sending works again; {} points wait", E::NAME, self.intake.queue.size().0);
        }
        (self.failures, self.write_failed, self.warned) = (0, false, None);
    }

    /// It has not taken something.
    fn failed(&mut self, why: String, in_vain: bool, which: Which) {
        let why = clean(why);
        self.write_failed |= in_vain;
        match (in_vain, which) {
            (true, Which::Fresh) => self.problem(why),
            // What was put aside fails by itself, and the rest is not the worse for it.
            _ => {
                if self.put_aside_told.is_none_or(|at| at.elapsed() >= REMIND) {
                    self.put_aside_told = Some(Instant::now());
                    log::warn!("{why}: put aside, and tried again; {} points wait", self.intake.queue.size().0);
                }
            }
        }
    }
}

fn lost() -> End {
    End::Lost("the connection was lost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_endpoints() {
        for (endpoint, loopback) in [
            ("localhost:1", true),
            ("127.0.0.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("db:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(is_loopback(endpoint), loopback, "{endpoint}");
        }
    }
}
