//! The I/O monitor: attaches bpf/iomonitor.bpf.c and turns its counters into metrics.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use log::Level;

use super::catalogue::SUBJECTS;
use super::causes;
use super::counters::Counters;
use super::files::{self, Files};
use super::hits::Hits;
use super::ledger::Did;
use super::probes::{CACHE_FILL, CACHE_READ, FADVISE, READ_LATENCY, Running, tell_refused};
use super::processes::{self, Processes};
use super::proof::Prover;
use super::reads::{self, FILL_READ};
use super::reclaim::stalled;
use super::rows::{Reading, Rows, stalling};
use super::scope::CgroupScope;
use super::stalls::Stalls;
use super::stat::{self, View};
use super::{Module, ModuleSettings, Sample};
use crate::config::{self, Scope, Switch};
use crate::ebpf::abi::{
    self, COMM_LEN, DID_FADVISE, DID_FILL, DID_READ_BYTES, DID_READ_PAGES, FILL_CAUSES, Plain, ProcKey, Settings, State,
};
use crate::ebpf::attach::{Hook, Kernel, Loader, Way};
use crate::ebpf::layout::Layout;
use crate::ebpf::object::{Aligned, Error, Map, Object};
use crate::ebpf::os;
use crate::host::cgroup;
use crate::metrics::own as m;
use crate::metrics::snapshot::{Family, Knows, ProbeStatus, Value};

/// The name of this module in the configuration.
pub const NAME: &str = "iomonitor";

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/iomonitor.bpf.o")));
static OBJECT_NO_BTF: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/iomonitor-nobtf.bpf.o")));

/// The compiled programs.
pub fn elf() -> &'static [u8] {
    &OBJECT.0
}

/// Those of them that need no BTF of the kernel, for kernels of 4.14 and newer.
pub fn elf_no_btf() -> &'static [u8] {
    &OBJECT_NO_BTF.0
}

/// The module.
pub struct IoMonitor {
    config: config::Collector,
    attached: Option<Attached>,
    probes: Vec<ProbeStatus>,
    processes: Processes,
    files: Files,
    /// Counters of earlier attachments: they go on where they were.
    base: Counters,
    /// Events missed in earlier attachments, by probe.
    missed_before: BTreeMap<&'static str, u64>,
    /// Counters at the last collection, for what is "of the last interval".
    last: Counters,
    /// The same without what is in rows.
    last_own: Counters,
    hits: Hits,
    /// Stalls whose end was missed.
    lost_stalls: u64,
}

/// What lives in the kernel; dropping it detaches and frees.
struct Attached {
    scope: Option<CgroupScope>,
    /// The map that holds the scope's cgroup.
    cgroups: Map,
    /// What the programs are told as they run.
    state: Map,
    running: Running,
    /// As the programs have them, all zero.
    counters: Counters,
    totals: Map,
    rows: Rows,
    /// Unless files are not told apart.
    files: Option<files::Maps>,
    stalls: Stalls,
}

/// What an attachment had counted when it ended.
struct End {
    counters: Counters,
    reading: Reading,
    files: Vec<files::Interval>,
    missed: Vec<(&'static str, u64)>,
}

impl IoMonitor {
    /// A monitor as configured, not yet attached.
    pub fn new(config: &config::Collector) -> Self {
        Self {
            config: config.clone(),
            attached: None,
            probes: Vec::new(),
            processes: Processes::default(),
            // They were checked when the configuration was read.
            files: Files::new(config.files.patterns().unwrap_or_default()),
            base: Counters::default(),
            missed_before: BTreeMap::new(),
            last: Counters::default(),
            last_own: Counters::default(),
            hits: Hits::default(),
            lost_stalls: 0,
        }
    }

    /// Whether files are told apart.
    fn tells_files(&self) -> bool {
        self.attached.as_ref().map_or(self.config.files.enabled, |attached| attached.files.is_some())
    }

    /// What these counters and the rows tell, with the processes that stalled in the interval or stall now.
    fn sample<'a>(
        &mut self,
        mut now: Counters,
        interval: impl Iterator<Item = &'a ProcKey>,
        stalling: &'a [ProcKey],
    ) -> Sample {
        let total = self.processes.total();
        now.more("read_pages", &total[DID_READ_PAGES..=DID_READ_PAGES]);
        now.more("read_bytes", &total[DID_READ_BYTES..=DID_READ_BYTES]);
        now.more("fills", &total[DID_FILL..DID_FILL + FILL_CAUSES]);
        let view = View {
            counters: &now,
            probes: &self.probes,
            hits: self.hits.count(now.sum("read_pages"), now.nth("fills", FILL_READ), Instant::now()),
            stalled: stalled(interval, stalling),
        };
        let by_process = self.config.by.process && cgroup::tells();
        let knows = Knows {
            pages: by_process && view.mode(CACHE_READ).is_some(),
            bytes: by_process && reads::knows_bytes(&view),
            fills: by_process && view.mode(CACHE_FILL).is_some(),
            waits: by_process && view.mode(READ_LATENCY).is_some(),
        };
        let sample = Sample {
            families: stat::families(&SUBJECTS, &view, &self.last),
            processes: (view.mode(FADVISE).is_some() || knows.anything()).then(|| self.processes.rows()),
            knows,
            files: self.tells_files().then(|| self.files.known(&view)),
        };
        self.last = now;
        sample
    }
}

/// What the kernel had no room for in its maps of rows.
fn overflow(counters: &Counters) -> Did {
    let mut did = Did::default();
    did.iter_mut().zip(counters.each("overflow")).for_each(|(did, n)| *did = *n);
    did
}

/// Events that are missing from the metrics by the map that had no place for them; ends of stalls can be missed too.
fn lost(counters: &Counters, missed_ends: u64) -> [(&'static str, u64); 5] {
    let rows = [DID_FADVISE, DID_READ_PAGES].into_iter().chain(DID_FILL..DID_FILL + FILL_CAUSES);
    let of_files = ["no_file_fills", "no_file_evictions", "no_file_waits"];
    [
        ("processes", rows.into_iter().map(|i| counters.nth("overflow", i)).sum()),
        ("stalls", counters.sum("lost_stalls") + missed_ends),
        ("reads", counters.sum("lost_reads")),
        ("sleeps", counters.sum("lost_sleeps")),
        ("files", of_files.iter().map(|name| counters.sum(name)).sum()),
    ]
}

impl Module for IoMonitor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start(&mut self) -> Result<(), Error> {
        self.stop();
        let (attached, probes) = attach(&self.config)?;
        for p in &probes {
            match p.mode {
                Some(mode) => log::info!("probe {} attached: {mode}", p.name),
                None => log::warn!("probe {} could not be attached, its metrics are absent", p.name),
            }
            tell_refused(p, if p.mode.is_some() { Level::Info } else { Level::Warn });
        }
        self.probes = probes;
        if self.probes.iter().all(|p| p.mode.is_none()) {
            let last = |p: &ProbeStatus| p.failures.last().map(|(mode, why)| format!("\n  {}: {mode}: {why}", p.name));
            let why: String = self.probes.iter().filter_map(last).collect();
            return Err(Error::new("attach any probe", io::ErrorKind::Unsupported.into()).because(why));
        }
        self.attached = Some(attached);
        Ok(())
    }

    fn stop(&mut self) {
        let Some(attached) = self.attached.take() else { return };
        match attached.finish(&self.base) {
            Ok(End { counters, reading, files, missed }) => {
                self.processes.absorb(&reading, &overflow(&counters), Instant::now());
                for interval in files {
                    self.files.absorb(interval);
                }
                self.base = counters;
                for (probe, events) in missed {
                    *self.missed_before.entry(probe).or_default() += events;
                }
            }
            Err(e) => {
                log::warn!("{NAME}: what was counted since the last collection is lost: {e}");
                self.base = self.last_own.clone();
                self.processes.keep_what_was_told(&overflow(&self.base));
            }
        }
        for p in &mut self.probes {
            p.mode = None;
        }
    }

    fn configure(&mut self, settings: &ModuleSettings) -> ModuleSettings {
        let config = &mut self.config;
        ModuleSettings {
            scope: settings.scope.clone().map(|new| std::mem::replace(&mut config.scope, new)),
            read_latency: settings.read_latency.map(|new| std::mem::replace(&mut config.read_latency, new)),
        }
    }

    fn adjust(&mut self, new: &ModuleSettings) -> bool {
        let (Some(attached), Some(scope), None) = (&mut self.attached, &new.scope, new.read_latency) else {
            return false;
        };
        match attached.count_in(scope) {
            Ok(()) => self.config.scope = scope.clone(),
            Err(e) => log::warn!("{NAME}: the scope cannot be changed as it runs: {e}"),
        }
        self.config.scope == *scope
    }

    /// Swapping the maps of processes waits for an RCU grace period: some milliseconds asleep.
    fn prepare(&mut self) -> Result<(), Error> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        if let Some(scope) = &mut attached.scope {
            scope.follow();
        }
        attached.rows.swap()?;
        attached.files.as_mut().map_or(Ok(()), files::Maps::swap)
    }

    fn collect(&mut self) -> Result<Sample, Error> {
        let Some(attached) = &mut self.attached else { return Ok(Sample::default()) };
        // What the kernel had no room for comes out of the rows: looked at before them, it is not seen in both. And again
        // after, so that each call in a row is in the counters too.
        let lost_before = overflow(&attached.counters(&self.base)?);
        let reading = attached.rows.take()?;
        let counters = attached.counters(&self.base)?;
        if let Some(maps) = &mut attached.files {
            let nameless = self.files.absorb(maps.take()?);
            maps.ask_again(&nameless)?;
        }
        let stalls = attached.stalls.take(os::monotonic_ns())?;
        self.lost_stalls += stalls.lost;
        let mut missed = attached.running.missed()?;
        for (probe, events) in &mut missed {
            *events += self.missed_before.get(probe).unwrap_or(&0);
        }

        let lost = lost(&counters, self.lost_stalls);
        self.processes.absorb(&reading, &lost_before, Instant::now());
        self.last_own = counters.clone();
        let mut sample = self.sample(counters, stalling(&reading.done), &stalls.stalled);
        sample.families.extend([
            Family::single(&m::PROCESS_ROWS, Value::Int(self.processes.len() as u64)),
            Family::single(&m::FILES, Value::Int(self.files.len() as u64)),
            Family::labelled(&m::EVENTS_LOST, lost),
            Family::labelled(&m::EVENTS_MISSED, missed),
        ]);
        Ok(sample)
    }

    fn probes(&self) -> Vec<ProbeStatus> {
        self.probes.clone()
    }

    fn scope(&self) -> Option<Scope> {
        let scope = self.attached.as_ref()?.scope.as_ref()?;
        Some(Scope::Cgroup(scope.path().to_owned()))
    }

    fn trouble(&self) -> Option<String> {
        self.attached.as_ref()?.scope.as_ref()?.trouble().map(str::to_owned)
    }
}

impl Attached {
    /// Has the programs count in this scope from now on.
    fn count_in(&mut self, scope: &Scope) -> Result<(), Error> {
        let (key, mut value) = (0u32.to_ne_bytes(), Vec::new());
        self.state.lookup(&key, &mut value)?;
        let State { scope: number, comm, comm_mask, .. } = state_for(scope);
        // What the programs have found out stays; what one of them finds out just now it finds out once more.
        let state = State { scope: number, comm, comm_mask, ..State::read(&value).unwrap_or_default() };
        // A cgroup is there before it is asked for.
        let cgroup = cgroup_scope(&self.cgroups, scope)?;
        self.state.update(&key, state.bytes())?;
        self.scope = cgroup;
        Ok(())
    }

    /// The counters now, and those of earlier attachments.
    fn counters(&self, base: &Counters) -> Result<Counters, Error> {
        let mut value = Vec::new();
        self.totals.lookup(&0u32.to_ne_bytes(), &mut value)?;
        let mut sum = self.counters.clone();
        self.totals.per_cpu(&value).for_each(|cpu| sum.add(cpu));
        sum += base;
        Ok(sum)
    }

    /// Detaches everything, then reads what was counted to the last.
    fn finish(mut self, base: &Counters) -> Result<End, Error> {
        let missed = self.running.missed()?;
        drop(std::mem::take(&mut self.running));
        // Swapping waits until no program writes any more.
        self.rows.swap()?;
        let reading = Reading { done: self.rows.finish()?, ..Default::default() };
        let mut files = Vec::new();
        if let Some(maps) = &mut self.files {
            files.push(maps.take()?);
            maps.swap()?;
            files.push(maps.take()?);
        }
        Ok(End { counters: self.counters(base)?, reading, files, missed })
    }
}

/// Loads the object and attaches each probe in the first way that works.
fn attach(config: &config::Collector) -> Result<(Attached, Vec<ProbeStatus>), Error> {
    let mut settings = Settings { page_shift: os::page_size().ilog2().into(), ..Default::default() };
    settings.rows = u64::from((config.by.process || config.by.container) && cgroup::tells());
    if config.probes.contains(&CACHE_FILL) {
        causes::tell(&mut settings);
    }
    let kernel = Kernel::running();
    settings.files = u64::from(config.files.enabled && files::what_lacks(true, kernel.version).is_none());
    let begin = Instant::now();
    let (object, layout) = prepare(config.ebpf.btf, || with_btf(settings))?;
    let files = match (config.files.enabled, files::what_lacks(layout.is_none(), kernel.version)) {
        (false, _) => None,
        (true, None) => Some(files::Maps::new(&object)?),
        (true, Some(why)) => {
            log::info!("files are not told apart: {why}");
            None
        }
    };
    log::debug!("BPF object prepared in {:.6} s", begin.elapsed().as_secs_f64());
    let mut vmemmap = 0;
    if let Some(layout) = &layout {
        settings.regs_offset = layout.regs_offset;
        log::debug!("the saved registers lie at {} of a task's stack", layout.regs_offset);
        object.map("settings")?.update(&0u32.to_ne_bytes(), settings.bytes())?;
        vmemmap = layout.vmemmap().unwrap_or(0); // asked for again by what needs it
    }
    let cgroups = object.map("scope_cgroup")?;
    let scope = cgroup_scope(&cgroups, &config.scope)?;
    let prover = Prover::new(state_map(&object)?, State { vmemmap, ..state_for(&config.scope) })?;
    let begin = Instant::now();
    let no_btf = layout.is_some().then_some(match config.ebpf.btf {
        Switch::Off => "collector.ebpf.btf is off",
        _ if os::has_btf() => "this kernel's cannot be used",
        _ => "this kernel has none",
    });
    let before = |hook: &Hook| match hook {
        // These name a page by its frame.
        Hook::Tracepoint("filemap", _) => tell_frames(&prover),
        _ => Ok(()),
    };
    let prove = |way: &Way| prover.prove(way);
    let (running, probes) = Running::start(&Loader::new(&object, no_btf, &before, &prove), config, kernel);
    prover.end()?; // from here on it counts
    log::debug!("programs loaded and attached in {:.6} s", begin.elapsed().as_secs_f64());
    let attached = Attached {
        scope,
        cgroups,
        state: state_map(&object)?,
        running,
        counters: Counters::new(&object)?,
        totals: object.map("totals")?,
        rows: Rows::new(&object, kernel.version, processes::is_alive_here())?,
        files,
        stalls: Stalls::new(object.map("stalls")?),
    };
    drop(object);
    os::trim_heap();
    Ok((attached, probes))
}

/// The programs for this kernel; where it does not describe its types, or is not to be asked, or they cannot be made
/// from what it says (`with_btf`), with what was found out about them.
fn prepare(btf: Switch, with_btf: impl FnOnce() -> Result<Object, Error>) -> Result<(Object, Option<Layout>), Error> {
    let described = match btf {
        Switch::Auto => os::has_btf(),
        Switch::On => true,
        Switch::Off => false,
    };
    let unusable = match described.then(with_btf) {
        Some(Ok(object)) => return Ok((object, None)),
        // 5.4 has most structs twice, and libbpf cannot decide between them.
        Some(Err(e)) if btf == Switch::Auto && e.cause.kind() != io::ErrorKind::PermissionDenied => Some(e),
        Some(Err(e)) => return Err(e),
        None => None,
    };
    match (without_btf(), unusable) {
        (Err(_), Some(first)) => Err(first),
        (found, unusable) => {
            if let Some(why) = unusable {
                log::warn!("the kernel's BTF cannot be used, so the agent does without: {}", why.brief());
                log::debug!("{why}");
            }
            found.map(|(object, layout)| (object, Some(layout)))
        }
    }
}

fn with_btf(mut settings: Settings) -> Result<Object, Error> {
    // There programs have no helper that tells where the registers are saved.
    if os::kernel_version() < (5, 15) {
        match Layout::find() {
            Ok(layout) => settings.regs_offset = layout.regs_offset,
            Err(e) => log::debug!("the saved registers are taken to be at the top of a stack of the usual size: {e}"),
        }
    }
    let without: &[&str] = if settings.files == 0 { &files::MAPS } else { &[] };
    Object::prepare_without(NAME, elf(), None, Some((".rodata.settings", settings.bytes())), without)
}

fn without_btf() -> Result<(Object, Layout), Error> {
    let layout = Layout::find()?;
    let object = Object::prepare(NAME, elf_no_btf(), Some(&layout.btf()?), None)?;
    Ok((object, layout))
}

/// The cgroup that is counted, if one is.
fn cgroup_scope(map: &Map, scope: &Scope) -> Result<Option<CgroupScope>, Error> {
    match scope {
        Scope::Cgroup(path) => Ok(Some(CgroupScope::new(map.try_clone()?, path))),
        Scope::Host | Scope::Comm(_) => Ok(None),
    }
}

/// What tells the programs whom to count.
fn state_for(scope: &Scope) -> State {
    let mut state = State::default();
    match scope {
        Scope::Host => state.scope = abi::SCOPE_HOST,
        Scope::Cgroup(_) => state.scope = abi::SCOPE_CGROUP,
        Scope::Comm(name) => {
            state.scope = abi::SCOPE_COMM;
            // The kernel cuts names the same way, and the configuration allows no longer one.
            let n = name.len().min(COMM_LEN - 1);
            state.comm[..n].copy_from_slice(&name.as_bytes()[..n]);
            state.comm_mask[..=n].fill(0xff);
        }
    }
    state
}

/// Where the programs keep what changes: a variable of theirs, or a map of programs that have none.
pub(super) fn state_map(object: &Object) -> Result<Map, Error> {
    object.map(".data.state").or_else(|_| object.map("state"))
}

/// Tells the programs where page frames are described, if they do not know yet.
fn tell_frames(prover: &Prover) -> Result<(), Error> {
    let state = prover.state();
    if state.vmemmap == 0 {
        prover.set(State { vmemmap: Layout::find()?.vmemmap()?, ..state })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ebpf::abi::{ProcRow, RowKey};
    use crate::metrics::snapshot::find;
    use crate::monitor::catalogue::{CATALOGUE, stats};
    use crate::monitor::probes::{PROBES, Probe, RECLAIM_SCAN};
    use crate::monitor::reclaim;

    fn monitor() -> IoMonitor {
        let mut config = Config::default().collector;
        config.files.enabled = true;
        let mut monitor = IoMonitor::new(&config);
        let status = |p: &Probe| ProbeStatus { name: p.name, mode: Some("test"), failures: Vec::new() };
        monitor.probes = PROBES.iter().map(status).collect();
        monitor
    }

    #[test]
    fn where_libbpf_cannot_decide_between_types_the_agent_does_without_btf() {
        let Some(layout) = Layout::for_tests(false).filter(|_| os::has_btf()) else {
            println!(
                "SKIPPED where_libbpf_cannot_decide_between_types_the_agent_does_without_btf: needs root, tracefs, BTF"
            );
            return;
        };
        let twins = layout.btf_of_twins().unwrap();
        let with_twins = || Object::prepare(NAME, elf(), Some(&twins), None);
        let (object, found) = prepare(Switch::Auto, with_twins).unwrap();
        assert!(found.is_some() && !object.has_program("fexit_read"));
        assert!(prepare(Switch::On, with_twins).err().unwrap().to_string().contains("ambiguity"));
    }

    fn detach(monitor: &mut IoMonitor, probe: &str) {
        monitor.probes.iter_mut().filter(|p| p.name == probe).for_each(|p| p.mode = None);
    }

    fn names(sample: &Sample) -> Vec<&'static str> {
        sample.families.iter().map(|f| f.metric.name).collect()
    }

    fn int(sample: &Sample, stat: &stat::Stat) -> u64 {
        find(&sample.families, stat.metric.name).unwrap().total()
    }

    /// Hit rate, miss rate and hits, after these counts more.
    fn cache(monitor: &mut IoMonitor, read_pages: u64, fills: u64) -> (Option<f64>, Option<f64>, u64) {
        let mut more = Counters::zero();
        more.set("read_pages", &[read_pages]);
        more.set("fills", &[fills]);
        more += &monitor.last;
        let sample = monitor.sample(more, [].iter(), &[]);
        let rate = |stat: &stat::Stat| match find(&sample.families, stat.metric.name).unwrap().series[0].value {
            Value::Percent(rate) => rate,
            ref other => panic!("{other:?}"),
        };
        (rate(&reads::CACHE_HIT_RATE), rate(&reads::CACHE_MISS_RATE), int(&sample, &reads::CACHE_HITS))
    }

    #[test]
    fn rates_are_of_the_last_interval() {
        let mut monitor = monitor();
        assert_eq!(cache(&mut monitor, 1000, 250), (Some(75.0), Some(25.0), 750));
        assert_eq!(cache(&mut monitor, 100, 0), (Some(100.0), Some(0.0), 850));
        assert_eq!(cache(&mut monitor, 0, 0), (None, None, 850), "nothing was read");
    }

    #[test]
    fn readahead_ahead_of_the_reader_neither_lowers_the_hits_nor_exceeds_100_percent() {
        let mut monitor = monitor();
        assert_eq!(cache(&mut monitor, 100, 0).2, 100);
        assert_eq!(cache(&mut monitor, 100, 400), (Some(0.0), Some(100.0), 100));
    }

    #[test]
    fn a_probe_that_is_not_attached_takes_its_metrics_away() {
        let mut monitor = monitor();
        let all = names(&monitor.sample(Counters::zero(), [].iter(), &[]));
        assert!(stats().map(|s| s.metric.name).eq(all));
        detach(&mut monitor, CACHE_READ);
        let got = names(&monitor.sample(Counters::zero(), [].iter(), &[]));
        for gone in ["ebpf_cache_read_attempts_total", "ebpf_cache_hits_total", "ebpf_cache_miss_rate_percent"] {
            assert!(!got.contains(&gone), "{gone}");
        }
        assert!(got.contains(&"ebpf_cache_misses_total"));
        monitor.probes.clear();
        let nothing = monitor.sample(Counters::zero(), [].iter(), &[]);
        assert!(nothing.families.is_empty() && nothing.processes.is_none());
    }

    #[test]
    fn a_process_that_stalls_counts_once_however_often() {
        let key = |tgid| ProcKey { tgid, start: 1 };
        let row = |tgid, stalls| (RowKey { proc: key(tgid), cgroup: 1 }, ProcRow { stalls, ..Default::default() });
        let interval = [row(1, 7), row(2, 0), row(3, 1)];
        let stalls = [key(3), key(4), key(4)];
        let sample = monitor().sample(Counters::zero(), stalling(&interval), &stalls);
        assert_eq!(int(&sample, &reclaim::DIRECT_RECLAIM_PROCESSES), 3);
    }

    #[test]
    fn families_stand_in_catalogue_order() {
        let all = monitor().sample(Counters::zero(), [].iter(), &[]).families;
        let place = |f: &Family| CATALOGUE.iter().position(|m| m.name == f.metric.name);
        assert!(all.is_sorted_by_key(place));
        for f in &all {
            assert!(f.series.iter().all(|s| s.labels.len() == f.metric.labels.len()), "{}", f.metric.name);
        }
    }

    /// A counter that is in the programs and in no output would be forgotten silently.
    #[test]
    fn every_counter_of_the_programs_is_told() {
        let told = |now: &Counters| {
            let mut all = String::new();
            for without in ["", RECLAIM_SCAN] {
                let mut monitor = monitor();
                detach(&mut monitor, without);
                let lost = lost(now, 0);
                all += &format!("{:?} {lost:?}\n", monitor.sample(now.clone(), [].iter(), &[]));
            }
            all
        };
        let mut base = Counters::zero();
        base.fill(|| 1000);
        base.set("read_pages", &[9000]);
        for name in base.names() {
            let mut more = base.clone();
            more.set(&name, &base.each(&name).iter().map(|n| n + 1).collect::<Vec<_>>());
            assert!(told(&more) != told(&base), "{name} is in no output");
        }
    }
}
