//! The collector: one thread that has each module read the kernel's counters every interval, and publishes
//! what they found as one immutable snapshot.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use crate::ebpf::object::{self, Error};
use crate::metrics::catalogue as m;
use crate::metrics::histogram::Histogram;
use crate::metrics::process;
use crate::metrics::snapshot::{Family, IoStats, ModuleStatus, Series, Snapshot, SnapshotCell, Value};
use crate::modules::Module;
use crate::version;

/// The running collector. Dropping it without [`Collector::stop`] ends the thread too, at its next tick.
pub struct Collector {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    cell: SnapshotCell,
}

impl Collector {
    /// Starts the modules, takes the first snapshot, then one every `interval`, in a thread of its own.
    /// `scope` is how the outputs name it. An error: nothing of a module could be attached.
    pub fn start(mut modules: Vec<Box<dyn Module>>, interval: Duration, scope: String) -> Result<Self, Error> {
        let started = Instant::now();
        for module in &mut modules {
            module.start()?;
        }
        let mut state = State { modules, errors: 0, durations: Histogram::default() };
        let nothing = Snapshot {
            sequence: 0,
            collected_at: SystemTime::now(),
            collected_instant: started,
            started,
            interval,
            scope,
            io: IoStats::default(),
            families: Vec::new(),
            modules: Vec::new(),
            last_error: None,
        };
        let cell = SnapshotCell::new(state.collect(&nothing));
        let (stop, stopped) = channel::bounded(0);
        let publish = cell.clone();
        let thread = thread::Builder::new()
            .name("collector".into())
            .spawn(move || state.run(interval, &publish, &stopped))
            .map_err(|cause| Error { what: "start the collector thread".into(), cause, log: String::new() })?;
        Ok(Self { stop, thread, cell })
    }

    /// Where the snapshots appear.
    pub fn snapshots(&self) -> SnapshotCell {
        self.cell.clone()
    }

    /// Detaches everything and ends the thread.
    pub fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|p| io::Error::other(panic_text(&*p)))
    }
}

struct State {
    modules: Vec<Box<dyn Module>>,
    errors: u64,
    durations: Histogram,
}

impl State {
    fn run(mut self, interval: Duration, publish: &SnapshotCell, stopped: &Receiver<()>) {
        let mut next = Instant::now() + interval;
        // The channel carries nothing: it closes when the collector is to stop.
        while stopped.recv_deadline(next) == Err(RecvTimeoutError::Timeout) {
            log::debug!("tick late by {:.6} s", next.elapsed().as_secs_f64());
            let snapshot = self.collect(&publish.load());
            publish.store(snapshot);
            // A tick that was missed (the machine slept) is not made up for.
            next = (next + interval).max(Instant::now());
        }
        for module in self.modules.iter_mut().rev() {
            module.stop();
        }
    }

    /// The snapshot that follows `last`. A module that fails leaves the last one's data, with the error.
    fn collect(&mut self, last: &Snapshot) -> Snapshot {
        // A bug in one tick must not end all later ones.
        match panic::catch_unwind(AssertUnwindSafe(|| self.try_collect(last))) {
            Ok(Ok(next)) => next,
            Ok(Err(e)) => self.failed(last, e.to_string()),
            Err(p) => self.failed(last, panic_text(&*p)),
        }
    }

    fn try_collect(&mut self, last: &Snapshot) -> Result<Snapshot, Error> {
        let waiting = Instant::now();
        for module in &mut self.modules {
            module.prepare()?;
        }
        let begin = Instant::now();
        let collected_at = SystemTime::now();
        let mut next = Snapshot {
            sequence: last.sequence + 1,
            collected_at,
            collected_instant: begin,
            started: last.started,
            interval: last.interval,
            scope: last.scope.clone(),
            io: IoStats::default(),
            families: Vec::new(),
            modules: Vec::new(),
            last_error: None,
        };
        for module in &mut self.modules {
            let sample = module.collect()?;
            next.modules.push(ModuleStatus {
                name: module.name(),
                running: module.probes().iter().any(|p| p.mode.is_some()),
                metric_count: sample.families.iter().map(|f| f.series.len()).sum(),
                probes: module.probes(),
            });
            if let Some(io) = sample.io {
                next.io = io;
            }
            next.families.extend(sample.families);
        }
        let took = begin.elapsed();
        self.durations.record(took);
        let waited = begin.duration_since(waiting).as_secs_f64();
        log::debug!("maps ready in {waited:.6} s, collected in {:.6} s", took.as_secs_f64());
        next.families.extend(self.own_families(&next));
        Ok(next)
    }

    fn failed(&mut self, last: &Snapshot, why: String) -> Snapshot {
        self.errors += 1;
        log::error!("collection {} failed: {why}", last.sequence + 1);
        let mut next = last.clone();
        next.sequence += 1;
        next.last_error = Some(why);
        let own = self.own_families(&next);
        next.families.retain(|f| !own.iter().any(|o| o.metric.name == f.metric.name));
        next.families.extend(own);
        next
    }

    /// The metrics of the agent itself.
    fn own_families(&self, snapshot: &Snapshot) -> Vec<Family> {
        let build = [version::VERSION.to_owned(), version::COMMIT.to_owned(), object::libbpf_version()];
        let probes = snapshot.modules.iter().flat_map(|module| &module.probes).map(|p| Series {
            labels: vec![p.name.to_owned(), p.mode.unwrap_or("none").to_owned()],
            value: Value::Int(p.mode.is_some().into()),
        });
        let at = snapshot.collected_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut own = vec![
            Family { metric: &m::BUILD_INFO, series: vec![Series { labels: build.into(), value: Value::Int(1) }] },
            Family { metric: &m::PROBE_ATTACHED, series: probes.collect() },
            Family::single(&m::SNAPSHOT_SEQUENCE, Value::Int(snapshot.sequence)),
            Family::single(&m::SNAPSHOT_TIMESTAMP, Value::Float(at.as_millis() as f64 / 1e3)),
            Family::single(&m::COLLECT_SECONDS, Value::Histogram(self.durations.clone())),
            Family::single(&m::COLLECT_ERRORS, Value::Int(self.errors)),
        ];
        own.extend(process::families());
        own
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::snapshot::ProbeStatus;
    use crate::modules::Sample;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    /// Succeeds with a counter, but for the second collection (an error) and the third (a panic).
    struct Flaky {
        calls: u64,
        stopped: Arc<AtomicU64>,
    }

    impl Module for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }
        fn start(&mut self) -> Result<(), Error> {
            Ok(())
        }
        fn stop(&mut self) {
            self.stopped.fetch_add(1, Ordering::SeqCst);
        }
        fn prepare(&mut self) -> Result<(), Error> {
            Ok(())
        }
        fn collect(&mut self) -> Result<Sample, Error> {
            self.calls += 1;
            match self.calls {
                2 => Err(Error { what: "read map x".into(), cause: io::ErrorKind::Other.into(), log: String::new() }),
                3 => panic!("a bug"),
                n => Ok(Sample { io: None, families: vec![Family::single(&m::KSWAPD_WAKEUPS, Value::Int(n))] }),
            }
        }
        fn probes(&self) -> Vec<ProbeStatus> {
            vec![ProbeStatus { name: "p", mode: Some("test"), failures: Vec::new() }]
        }
    }

    fn int(s: &Snapshot, metric: &m::Metric) -> u64 {
        match s.families.iter().find(|f| f.metric.name == metric.name).map(|f| &f.series[0].value) {
            Some(Value::Int(n)) => *n,
            other => panic!("{}: {other:?}", metric.name),
        }
    }

    #[test]
    fn a_tick_that_fails_is_counted_and_the_next_one_works() {
        let stopped = Arc::new(AtomicU64::new(0));
        let flaky = Flaky { calls: 0, stopped: stopped.clone() };
        let collector = Collector::start(vec![Box::new(flaky)], Duration::from_millis(5), "host".into()).unwrap();
        let cell = collector.snapshots();
        let seen = Mutex::new(Vec::new());
        while cell.load().sequence < 5 {
            let s = cell.load();
            let mut seen = seen.lock().unwrap();
            if seen.last().is_none_or(|l: &Arc<Snapshot>| l.sequence != s.sequence) {
                seen.push(s);
            }
        }
        let last = cell.load();
        assert_eq!(int(&last, &m::COLLECT_ERRORS), 2);
        assert_eq!(last.last_error, None);
        assert_eq!(int(&last, &m::KSWAPD_WAKEUPS), last.sequence);
        for s in seen.lock().unwrap().iter().filter(|s| s.last_error.is_some()) {
            assert_eq!(int(s, &m::KSWAPD_WAKEUPS), 1, "the data of the last good one");
            assert_eq!(int(s, &m::SNAPSHOT_SEQUENCE), s.sequence);
            assert_eq!(s.families.iter().filter(|f| f.metric.name == m::BUILD_INFO.name).count(), 1);
        }
        collector.stop().unwrap();
        assert_eq!(stopped.load(Ordering::SeqCst), 1);
        let end = cell.load().sequence;
        thread::sleep(Duration::from_millis(30));
        assert_eq!(cell.load().sequence, end, "the thread has ended");
    }
}
