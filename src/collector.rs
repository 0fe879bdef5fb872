//! The collector: one thread that has each module read the kernel's counters every interval, and publishes
//! what they found as one immutable snapshot. The same thread enables, disables and changes modules, so that no
//! collection ever meets a module that is being changed.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, Sender};

use crate::config::Scope;
use crate::diagnosis::Diagnoser;
use crate::diagnosis::reading::Reading;
use crate::ebpf::object::{self, Error};
use crate::ebpf::os;
use crate::host::confine::{self, Role};
use crate::host::process::{self, Usage};
use crate::host::refaults::Refaults;
use crate::host::version;
use crate::metrics::cell::SnapshotCell;
use crate::metrics::diagnosis::{Diagnosis, Pattern};
use crate::metrics::health::{self, Status};
use crate::metrics::histogram::Histogram;
use crate::metrics::own as m;
use crate::metrics::snapshot::{Family, Knows, ModuleStatus, Series, Snapshot, Value};
use crate::metrics::{export, grpc, http};
use crate::monitor::{Module, ModuleSettings, file_groups};

/// Changes that may wait for the collector.
const CHANGES_MAX: usize = 4;

/// The running collector. Dropping it without [`Collector::stop`] ends the thread too, without waiting for it.
pub struct Collector {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    cell: SnapshotCell,
    control: Control,
}

/// A change of a running module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub module: String,
    /// The state wanted.
    pub enabled: bool,
    /// Time between collections, if it is to change.
    pub interval: Option<Duration>,
    /// The module's settings.
    pub settings: ModuleSettings,
}

/// What became of a [`Change`].
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is in effect.
    Done(ModuleStatus),
    /// The module could not be attached so; what was in effect before is again, if it could be.
    Failed(String, ModuleStatus),
    /// There is no such module.
    NoModule,
    /// Too many changes wait already, or the collector has ended.
    Busy,
}

/// Called in the collector's thread with what became of a change.
pub type Reply = Box<dyn FnOnce(Outcome) + Send>;

/// Where changes are asked for.
#[derive(Clone)]
pub struct Control(Sender<(Change, Reply)>);

impl Control {
    /// One whose collector has ended.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn nobody() -> Self {
        Self(channel::bounded(1).0)
    }

    /// Has the collector make `change` and call `reply`, which is dropped uncalled if the collector ends before.
    pub fn request(&self, change: Change, reply: Reply) {
        if let Err(e) = self.0.try_send((change, reply)) {
            let (_, reply) = e.into_inner();
            reply(Outcome::Busy);
        }
    }
}

impl Collector {
    /// Starts the modules, confines this thread and those that it starts from now on, takes the first snapshot, then one
    /// every `interval`, in a thread of its own. `scope` is
    /// how the outputs name it; snapshots are kept for `history`. An error: nothing of a module could be attached.
    pub fn start(
        modules: Vec<Box<dyn Module>>,
        interval: Duration,
        scope: String,
        history: Duration,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let mut slots = Vec::new();
        for mut module in modules {
            module.start()?;
            slots.push(Slot { module, enabled: true, running: true, error: None, collected: None });
        }
        let mut state = State {
            slots,
            interval,
            scope,
            errors: 0,
            missed: 0,
            durations: Histogram::default(),
            diagnoser: Diagnoser::default(),
            refaults: Refaults::default(),
        };
        let nothing = Snapshot {
            sequence: 0,
            collected_at: SystemTime::now(),
            collected_instant: started,
            started,
            interval,
            scope: String::new(),
            families: Vec::new(),
            processes: None,
            files: None,
            diagnosis: None,
            knows: Knows::default(),
            modules: Vec::new(),
            last_error: None,
        };
        let (stop, stopped) = channel::bounded(0);
        let (control, changes) = channel::bounded(CHANGES_MAX);
        let (entered, enters) = channel::bounded(1);
        let (go, goes) = channel::bounded(1);
        let (first, firsts) = channel::bounded(1);
        let run = move || {
            confine::enter(Role::Collector);
            let _ = entered.send(());
            if goes.recv().is_ok() {
                let publish = SnapshotCell::with_history(state.collect(&nothing), history);
                let _ = first.send(publish.clone());
                state.run(&publish, &stopped, &changes);
            }
        };
        let thread = thread::Builder::new()
            .name("collector".into())
            .spawn(run)
            .map_err(|cause| Error::new("start the collector thread", cause))?;
        // From here on the agent has no more than it needs, and the first collection shows whether that is enough.
        let ended = |_| Error::new("begin to collect", io::Error::other("the thread has ended"));
        enters.recv().map_err(ended)?;
        confine::enter(Role::Main);
        confine::verify().map_err(|why| Error::new("confine the agent", io::Error::other(why)))?;
        let _ = go.send(());
        let cell = firsts.recv().map_err(ended)?;
        Ok(Self { stop, thread, cell, control: Control(control) })
    }

    /// Where the snapshots appear.
    pub fn snapshots(&self) -> SnapshotCell {
        self.cell.clone()
    }

    /// Where changes of its modules are asked for.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Detaches everything and ends the thread.
    pub fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|p| io::Error::other(panic_text(&*p)))
    }
}

struct State {
    slots: Vec<Slot>,
    interval: Duration,
    scope: String,
    errors: u64,
    /// Collections that were due and not made.
    missed: u64,
    durations: Histogram,
    diagnoser: Diagnoser,
    refaults: Refaults,
}

/// A module and what is known of it.
struct Slot {
    module: Box<dyn Module>,
    enabled: bool,
    running: bool,
    error: Option<String>,
    collected: Option<SystemTime>,
}

impl Slot {
    fn start(&mut self) -> Result<(), String> {
        // A bug in attaching must not end the collector.
        let started = panic::catch_unwind(AssertUnwindSafe(|| self.module.start()));
        let started = started.map_err(|p| panic_text(&*p)).and_then(|r| r.map_err(|e| e.to_string()));
        self.running = started.is_ok();
        self.error = started.clone().err();
        started
    }

    fn stop(&mut self) {
        if let Err(p) = panic::catch_unwind(AssertUnwindSafe(|| self.module.stop())) {
            log::error!("module {}: {}", self.module.name(), panic_text(&*p));
        }
        self.running = false;
    }

    fn status(&self) -> ModuleStatus {
        ModuleStatus {
            name: self.module.name(),
            enabled: self.enabled,
            running: self.running,
            last_error: self.error.clone(),
            trouble: self.module.trouble(),
            last_collected: self.collected,
            metric_count: 0,
            families: 0..0,
            probes: self.module.probes(),
        }
    }
}

impl State {
    fn run(mut self, publish: &SnapshotCell, stopped: &Receiver<()>, changes: &Receiver<(Change, Reply)>) {
        let mut next = Instant::now() + self.interval;
        loop {
            channel::select! {
                // This channel carries nothing: it closes when the collector is to stop.
                recv(stopped) -> _ => break,
                recv(changes) -> change => {
                    let Ok((change, reply)) = change else { break };
                    let interval = self.interval;
                    let outcome = self.change(&change, publish);
                    let now = Instant::now();
                    // What it has published is the one that was due first meanwhile.
                    self.missed += missed(next, interval, now);
                    next = now + self.interval;
                    reply(outcome);
                }
                default(next.saturating_duration_since(Instant::now())) => {
                    log::debug!("tick late by {:.6} s", next.elapsed().as_secs_f64());
                    publish.store(self.collect(&publish.load()));
                    // Of the ticks that are due by now (it was not run, or took long) the first is made up for.
                    let now = Instant::now();
                    self.missed += missed(next + self.interval, self.interval, now);
                    next = (next + self.interval).max(now);
                }
            }
        }
        for slot in self.slots.iter_mut().rev() {
            slot.stop();
        }
    }

    /// Makes a change, and publishes a snapshot that shows it.
    fn change(&mut self, change: &Change, publish: &SnapshotCell) -> Outcome {
        let Some(slot) = self.slots.iter_mut().find(|s| s.module.name() == change.module) else {
            return Outcome::NoModule;
        };
        let (was_running, was_enabled) = (slot.running, slot.enabled);
        let changes_module = change.settings != ModuleSettings::default();
        let mut failure = None;
        if !change.enabled {
            slot.stop();
            slot.error = None;
        } else if was_running && slot.module.adjust(&change.settings) {
            log::debug!("module {}: changed as it runs", change.module);
        } else if !was_running || changes_module {
            slot.stop();
            let before = slot.module.configure(&change.settings);
            if let Err(why) = slot.start() {
                slot.module.configure(&before);
                if was_running && let Err(again) = slot.start() {
                    log::error!("module {}: the state before could not be restored: {again}", change.module);
                }
                failure = Some(why);
            }
        }
        match &failure {
            // What was wanted before is wanted still.
            Some(_) => slot.enabled = was_enabled,
            None => {
                slot.enabled = change.enabled;
                self.interval = change.interval.unwrap_or(self.interval);
                if let Some(scope) = &change.settings.scope {
                    self.scope = scope.to_string();
                }
            }
        }
        publish.store(self.collect(&publish.load()));
        let status = publish.load().modules.iter().find(|m| m.name == change.module).cloned();
        match (status, failure) {
            (None, _) => Outcome::NoModule,
            (Some(status), None) => Outcome::Done(status),
            (Some(status), Some(why)) => Outcome::Failed(why, status),
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
        for slot in self.slots.iter_mut().filter(|s| s.running) {
            slot.module.prepare()?;
        }
        if let Some(scope) = self.slots.iter().find_map(|s| s.module.scope()) {
            self.scope = scope.to_string();
        }
        let begin = Instant::now();
        let collected_at = SystemTime::now();
        let mut next = Snapshot {
            sequence: last.sequence + 1,
            collected_at,
            collected_instant: begin,
            started: last.started,
            interval: self.interval,
            scope: self.scope.clone(),
            families: Vec::new(),
            processes: None,
            files: None,
            diagnosis: None,
            knows: Knows::default(),
            modules: Vec::new(),
            last_error: None,
        };
        for slot in &mut self.slots {
            if !slot.running {
                next.modules.push(slot.status());
                continue;
            }
            let sample = slot.module.collect()?;
            slot.collected = Some(collected_at);
            slot.error = None;
            let start = next.families.len();
            next.modules.push(ModuleStatus {
                metric_count: sample.families.iter().map(|f| f.series.len()).sum::<usize>()
                    + sample.files.as_ref().map_or(0, file_groups::series),
                families: start..start + sample.families.len(),
                ..slot.status()
            });
            next.families.extend(sample.families);
            if sample.processes.is_some() {
                (next.processes, next.knows) = (sample.processes, sample.knows);
            }
            next.files = next.files.or(sample.files.map(Arc::new));
        }
        // Those of the host are anybody's: nothing that a scope could be blamed for.
        let refaults = match self.slots.iter().find_map(|s| s.module.scope()) {
            Some(Scope::Cgroup(path)) => Refaults::of_cgroup(&path),
            _ if self.scope == Scope::Host.to_string() => self.refaults.of_host(),
            _ => None,
        };
        next.diagnosis = Some(Arc::new(self.diagnoser.observe(Reading::of(&next, refaults, os::page_size()))));
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
        for (module, slot) in next.modules.iter_mut().zip(&self.slots) {
            (module.enabled, module.running) = (slot.enabled, slot.running);
            module.probes = slot.module.probes();
            module.trouble = slot.module.trouble();
            module.last_error = if slot.running { Some(why.clone()) } else { slot.error.clone() };
        }
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
        let status = health::assess(snapshot, Instant::now()).status;
        let states = Status::ALL.map(|(state, name)| (name, u64::from(state == status)));
        let mut own = vec![
            Family { metric: &m::BUILD_INFO, series: vec![Series { labels: build.into(), value: Value::Int(1) }] },
            Family {
                metric: &m::SCOPE_INFO,
                series: vec![Series { labels: vec![snapshot.scope.clone()], value: Value::Int(1) }],
            },
            Family::single(&m::INTERVAL, Value::Float(snapshot.interval.as_secs_f64())),
            Family::single(&m::PAGE_SIZE, Value::Int(os::page_size())),
            Family::labelled(&m::HEALTH, states),
            Family { metric: &m::PROBE_ATTACHED, series: probes.collect() },
            Family::single(&m::SNAPSHOT_SEQUENCE, Value::Int(snapshot.sequence)),
            Family::single(&m::SNAPSHOT_TIMESTAMP, Value::Float(at.as_millis() as f64 / 1e3)),
            Family::single(&m::COLLECT_SECONDS, Value::Histogram(self.durations.clone())),
            Family::single(&m::COLLECT_ERRORS, Value::Int(self.errors)),
            Family::single(&m::COLLECTIONS_MISSED, Value::Int(self.missed)),
        ];
        own.push(Family::labelled(&m::CONFINED, confine::in_force().map(|(by, is)| (by, u64::from(is)))));
        own.push(Family::single(&m::CALLS_REFUSED, Value::Int(confine::refusals())));
        own.extend(grpc::COUNTS.families());
        own.extend(snapshot.diagnosis.as_deref().and_then(diagnosis_family));
        own.extend(http::COUNTS.families());
        own.extend(export::families());
        own.extend(process_families(&process::usage()));
        own
    }
}

/// Of the ticks from `due` on, every `interval`, those that are over by now but for the first.
fn missed(due: Instant, interval: Duration, now: Instant) -> u64 {
    let ticks = now.saturating_duration_since(due).as_nanos() / interval.as_nanos().max(1);
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Which patterns are there; what cannot be seen is absent, and all of it until something can be said.
fn diagnosis_family(diagnosis: &Diagnosis) -> Option<Family> {
    let known = Pattern::all().filter_map(|p| Some((p.name(), u64::from(diagnosis.active(p)?))));
    (!diagnosis.window.is_zero()).then(|| Family::labelled(&m::DIAGNOSIS_ACTIVE, known))
}

/// The `process_*` metrics, as every Prometheus client has them.
fn process_families(usage: &Usage) -> impl Iterator<Item = Family> {
    let float = |metric, v: Option<f64>| v.map(|v| Family::single(metric, Value::Float(v)));
    let int = |metric, v: Option<u64>| v.map(|v| Family::single(metric, Value::Int(v)));
    let all = [
        float(&m::PROCESS_CPU, usage.cpu_seconds),
        int(&m::PROCESS_RESIDENT, usage.resident),
        int(&m::PROCESS_VIRTUAL, usage.mapped),
        int(&m::PROCESS_OPEN_FDS, usage.open_fds),
        int(&m::PROCESS_MAX_FDS, usage.max_fds),
        int(&m::PROCESS_THREADS, usage.threads),
        float(&m::PROCESS_START, usage.started),
    ];
    all.into_iter().flatten()
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::metric::Metric;
    use crate::metrics::snapshot::ProbeStatus;
    use crate::monitor::Sample;
    use crate::monitor::reclaim::KSWAPD_WAKEUPS;
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
        fn configure(&mut self, _: &ModuleSettings) -> ModuleSettings {
            ModuleSettings::default()
        }
        fn prepare(&mut self) -> Result<(), Error> {
            Ok(())
        }
        fn collect(&mut self) -> Result<Sample, Error> {
            self.calls += 1;
            match self.calls {
                2 => Err(Error::new("read map x", io::ErrorKind::Other.into())),
                3 => panic!("a bug"),
                n => Ok(Sample {
                    families: vec![Family::single(&KSWAPD_WAKEUPS.metric, Value::Int(n))],
                    ..Sample::default()
                }),
            }
        }
        fn probes(&self) -> Vec<ProbeStatus> {
            vec![ProbeStatus { name: "p", mode: Some("test"), failures: Vec::new() }]
        }
    }

    fn start(module: impl Module + 'static, interval: Duration) -> Collector {
        Collector::start(vec![Box::new(module)], interval, "host".into(), Duration::ZERO).unwrap()
    }

    fn int(s: &Snapshot, metric: &Metric) -> u64 {
        match s.families.iter().find(|f| f.metric.name == metric.name).map(|f| &f.series[0].value) {
            Some(Value::Int(n)) => *n,
            other => panic!("{}: {other:?}", metric.name),
        }
    }

    #[test]
    fn ticks_are_missed_from_the_second_on() {
        let (begin, interval) = (Instant::now(), Duration::from_secs(10));
        for (seconds, expected) in [(0, 0), (9, 0), (10, 1), (19, 1), (35, 3)] {
            assert_eq!(missed(begin, interval, begin + Duration::from_secs(seconds)), expected, "{seconds} s");
        }
        assert_eq!(missed(begin + interval, interval, begin), 0, "it is not due yet");
    }

    /// Takes long once.
    struct Slow(Option<Duration>);

    impl Module for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }
        fn start(&mut self) -> Result<(), Error> {
            Ok(())
        }
        fn stop(&mut self) {}
        fn configure(&mut self, _: &ModuleSettings) -> ModuleSettings {
            ModuleSettings::default()
        }
        fn prepare(&mut self) -> Result<(), Error> {
            thread::sleep(self.0.take().unwrap_or_default());
            Ok(())
        }
        fn collect(&mut self) -> Result<Sample, Error> {
            Ok(Sample::default())
        }
        fn probes(&self) -> Vec<ProbeStatus> {
            Vec::new()
        }
    }

    #[test]
    fn every_tick_is_a_collection_or_counted_as_missed() {
        let interval = Duration::from_millis(5);
        let begin = Instant::now();
        let collector = start(Slow(Some(Duration::from_millis(100))), interval);
        let cell = collector.snapshots();
        let first = cell.load();
        // The start itself is no tick.
        let begun = begin.elapsed();
        let change =
            Change { module: "slow".into(), enabled: false, interval: None, settings: ModuleSettings::default() };
        while cell.load().sequence < 10 {
            thread::sleep(interval);
        }
        assert!(matches!(ask(&collector, change), Outcome::Done(_)));
        let last = cell.load();
        let due = (last.collected_instant - begin).saturating_sub(begun).as_nanos() / interval.as_nanos();
        let told = last.sequence - first.sequence + int(&last, &m::COLLECTIONS_MISSED);
        assert!(u128::from(told) + 2 >= due, "{told} collections of {due} are told of");
    }

    #[test]
    fn a_tick_that_fails_is_counted_and_the_next_one_works() {
        let stopped = Arc::new(AtomicU64::new(0));
        let flaky = Flaky { calls: 0, stopped: stopped.clone() };
        let collector = start(flaky, Duration::from_millis(5));
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
        assert_eq!(int(&last, &KSWAPD_WAKEUPS.metric), last.sequence);
        for s in seen.lock().unwrap().iter().filter(|s| s.last_error.is_some()) {
            assert_eq!(int(s, &KSWAPD_WAKEUPS.metric), 1, "the data of the last good one");
            assert_eq!(int(s, &m::SNAPSHOT_SEQUENCE), s.sequence);
            assert_eq!(s.families.iter().filter(|f| f.metric.name == m::BUILD_INFO.name).count(), 1);
        }
        collector.stop().unwrap();
        assert_eq!(stopped.load(Ordering::SeqCst), 1);
        let end = cell.load().sequence;
        thread::sleep(Duration::from_millis(30));
        assert_eq!(cell.load().sequence, end, "the thread has ended");
    }

    /// Counts its collections, and cannot be attached to one scope.
    struct Scoped {
        scope: Scope,
        attached: bool,
        collections: u64,
    }

    impl Module for Scoped {
        fn name(&self) -> &'static str {
            "scoped"
        }
        fn start(&mut self) -> Result<(), Error> {
            self.attached = self.scope != Scope::Comm("bad".into());
            let refused = Error::new("attach", io::ErrorKind::NotFound.into());
            if self.attached { Ok(()) } else { Err(refused) }
        }
        fn stop(&mut self) {
            self.attached = false;
        }
        fn configure(&mut self, settings: &ModuleSettings) -> ModuleSettings {
            let scope = settings.scope.clone().map(|new| std::mem::replace(&mut self.scope, new));
            ModuleSettings { scope, read_latency: None }
        }
        fn prepare(&mut self) -> Result<(), Error> {
            assert!(self.attached);
            Ok(())
        }
        fn collect(&mut self) -> Result<Sample, Error> {
            self.collections += 1;
            let count = Family::single(&KSWAPD_WAKEUPS.metric, Value::Int(self.collections));
            Ok(Sample { families: vec![count], ..Sample::default() })
        }
        fn probes(&self) -> Vec<ProbeStatus> {
            vec![ProbeStatus { name: "p", mode: self.attached.then_some("test"), failures: Vec::new() }]
        }
    }

    fn ask(collector: &Collector, change: Change) -> Outcome {
        let (reply, outcome) = channel::bounded(1);
        collector.control().request(change, Box::new(move |o| reply.send(o).unwrap()));
        outcome.recv().unwrap()
    }

    #[test]
    fn a_module_is_disabled_changed_and_enabled_again() {
        let hour = Duration::from_secs(3600);
        let collector = start(Scoped { scope: Scope::Host, attached: false, collections: 0 }, hour);
        let cell = collector.snapshots();
        let change = |enabled, scope: Option<Scope>, interval| Change {
            module: "scoped".into(),
            enabled,
            interval,
            settings: ModuleSettings { scope, read_latency: None },
        };
        assert_eq!(int(&cell.load(), &KSWAPD_WAKEUPS.metric), 1);

        let Outcome::Done(status) = ask(&collector, change(false, None, None)) else { panic!() };
        assert_eq!((status.enabled, status.running, status.metric_count), (false, false, 0));
        assert!(status.last_collected.is_some() && status.last_error.is_none());
        assert_eq!(cell.load().sequence, 2);
        assert!(
            cell.load().families.iter().all(|f| f.metric.name != KSWAPD_WAKEUPS.metric.name),
            "its metrics are gone"
        );

        let minute = Duration::from_secs(60);
        let comm = Scope::Comm("banyand".into());
        let Outcome::Done(status) = ask(&collector, change(true, Some(comm), Some(minute))) else { panic!() };
        assert_eq!((status.enabled, status.running, status.metric_count), (true, true, 1));
        assert_eq!((cell.load().interval, cell.load().scope.as_str()), (minute, "comm:banyand"));
        assert_eq!(int(&cell.load(), &KSWAPD_WAKEUPS.metric), 2, "it goes on where it was");

        let bad = change(true, Some(Scope::Comm("bad".into())), Some(hour));
        let Outcome::Failed(why, status) = ask(&collector, bad.clone()) else { panic!() };
        assert!(why.contains("attach"), "{why}");
        assert!(status.enabled && status.running, "the scope before is in effect");
        assert_eq!((cell.load().interval, cell.load().scope.as_str()), (minute, "comm:banyand"));

        ask(&collector, change(false, None, None));
        let Outcome::Failed(_, status) = ask(&collector, bad) else { panic!() };
        assert!(!status.enabled && !status.running && status.last_error.is_some());

        let unknown = Change { module: "none".into(), ..change(true, None, None) };
        assert!(matches!(ask(&collector, unknown), Outcome::NoModule));
        collector.stop().unwrap();
    }
}
