//! The I/O monitor: attaches bpf/iomonitor.bpf.c and turns its counters into metrics.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::time::Instant;

use super::causes;
use super::hits::Hits;
use super::probes::{
    CACHE_EVICT, CACHE_FILL, CACHE_READ, DIRECT_RECLAIM, FADVISE, KSWAPD, MEMCG_RECLAIM, READ_LATENCY, RECLAIM_SCAN,
    Running, reasons,
};
use super::processes::{self, Processes};
use super::rows::Rows;
use super::scope::CgroupScope;
use super::stalls::Stalls;
use super::{Module, ModuleSettings, Sample};
use crate::config::{self, Scope, Switch};
use crate::ebpf::abi::{self, COMM_LEN, Plain, ProcKey, ProcRow, Settings, Totals};
use crate::ebpf::attach::{Hook, Kernel, Loader};
use crate::ebpf::layout::Layout;
use crate::ebpf::object::{Aligned, Error, Map, Object};
use crate::ebpf::os;
use crate::metrics::catalogue as m;
use crate::metrics::histogram::Histogram;
use crate::metrics::snapshot::{
    ADVICES, Cache, EVICTION_CAUSES, FILL_CAUSES, Fadvise, Family, IoStats, Memory, ProbeStatus, RECLAIMERS, Value,
};

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
    /// Counters of earlier attachments: they go on where they were.
    base: Totals,
    /// Events missed in earlier attachments, by probe.
    missed_before: BTreeMap<&'static str, u64>,
    /// Counters at the last collection, for what is "of the last interval".
    last: Totals,
    hits: Hits,
    /// Stalls whose end was missed.
    lost_stalls: u64,
}

/// What lives in the kernel; dropping it detaches and frees.
struct Attached {
    scope: Option<CgroupScope>,
    running: Running,
    totals: Map,
    rows: Rows,
    stalls: Stalls,
}

/// What an attachment had counted when it ended.
struct End {
    totals: Totals,
    rows: Vec<(ProcKey, ProcRow)>,
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
            base: Totals::default(),
            missed_before: BTreeMap::new(),
            last: Totals::default(),
            hits: Hits::default(),
            lost_stalls: 0,
        }
    }

    fn attached_as(&self, probe: &str, mode: &str) -> bool {
        self.probes.iter().any(|p| p.name == probe && p.mode == Some(mode))
    }

    fn has(&self, probe: &str) -> bool {
        self.probes.iter().any(|p| p.name == probe && p.mode.is_some())
    }

    /// The statistics, from counters and from what the interval's map of processes and the map of stalls
    /// under way hold.
    fn statistics(&mut self, now: &Totals, interval: &[(ProcKey, ProcRow)], stalling: &[ProcKey]) -> IoStats {
        let last = std::mem::replace(&mut self.last, *now);
        let fadvise = self.has(FADVISE).then(|| {
            let success = now.fadvise_success - last.fadvise_success;
            let failed = now.fadvise_failed - last.fadvise_failed;
            Fadvise {
                success: now.fadvise_success,
                failed: now.fadvise_failed,
                advice: now.fadvise_advice,
                success_rate_percent: percent(success, success + failed),
                processes: self.processes.rows((now.overflow_calls, now.overflow_success)),
            }
        });

        let (reads, fills) = (self.has(CACHE_READ), self.has(CACHE_FILL));
        let (attempts, misses) = (now.read_pages, now.fills[0]);
        let hits = self.hits.count(attempts, misses, Instant::now());
        let (new_attempts, new_misses) = (attempts - last.read_pages, misses - last.fills[0]);
        let miss_rate = miss_rate(new_attempts, new_misses).filter(|_| reads && fills);
        let cache = Cache {
            read_attempts: reads.then_some(attempts),
            hits: (reads && fills).then_some(hits),
            misses: fills.then_some(misses),
            hit_rate_percent: miss_rate.map(|r| 100.0 - r),
            miss_rate_percent: miss_rate,
            // The tracepoint does not tell what was copied.
            read_bytes: (reads && !self.attached_as(CACHE_READ, "raw_tracepoint")).then_some(now.read_bytes),
            adds: fills.then_some(now.fills),
            evictions: self.has(CACHE_EVICT).then_some(now.evictions),
            read_latency: self
                .has(READ_LATENCY)
                .then_some(Histogram { buckets: now.wait_buckets, sum_ns: now.wait_ns }),
        };

        let scans = self.has(RECLAIM_SCAN);
        let stalls = self.has(DIRECT_RECLAIM) || self.has(MEMCG_RECLAIM);
        let total = |of: &[u64; 3]| of.iter().sum::<u64>();
        let stalled: HashSet<&ProcKey> =
            interval.iter().filter(|(_, r)| r.stalls > 0).map(|(k, _)| k).chain(stalling).collect();
        let memory = Memory {
            scanned: scans.then_some(now.scanned),
            // Where scans are not told of, the ends of direct and memcg reclaim say what they freed.
            reclaimed: match scans {
                true => now.reclaimed.map(Some),
                false => [
                    None,
                    self.has(DIRECT_RECLAIM).then_some(now.ended[1]),
                    self.has(MEMCG_RECLAIM).then_some(now.ended[2]),
                ],
            },
            reclaim_efficiency_percent: percent(
                total(&now.reclaimed) - total(&last.reclaimed),
                total(&now.scanned) - total(&last.scanned),
            ),
            direct_reclaim_processes: stalls.then_some(stalled.len() as u64),
            stalls: stalls.then_some(Histogram { buckets: now.stall_buckets, sum_ns: now.stall_ns }),
            kswapd_wakeups: self.has(KSWAPD).then_some(now.kswapd_wakeups),
        };
        IoStats { fadvise, cache, memory }
    }
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
                Some(mode) if p.failures.is_empty() => log::info!("probe {} attached: {mode}", p.name),
                Some(mode) => log::info!("probe {} attached: {mode}, not by {}", p.name, reasons(p)),
                None => log::warn!("probe {} could not be attached, its metrics are absent: {}", p.name, reasons(p)),
            }
        }
        self.probes = probes;
        if self.probes.iter().all(|p| p.mode.is_none()) {
            return Err(Error {
                what: "attach any probe".into(),
                cause: io::ErrorKind::Unsupported.into(),
                log: self.probes.iter().map(|p| format!("\n  {}: {}", p.name, reasons(p))).collect(),
            });
        }
        self.attached = Some(attached);
        Ok(())
    }

    fn stop(&mut self) {
        let Some(attached) = self.attached.take() else { return };
        match attached.finish(&self.base) {
            Ok(End { totals, rows, missed }) => {
                self.processes.absorb(&rows, Instant::now());
                self.base = totals;
                for (probe, events) in missed {
                    *self.missed_before.entry(probe).or_default() += events;
                }
            }
            Err(e) => {
                log::warn!("{NAME}: what was counted since the last collection is lost: {e}");
                self.base = self.last;
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

    /// Swapping the maps of processes waits for an RCU grace period: some milliseconds asleep. It comes
    /// before the totals are read, so that each call in the rows taken is in the totals too.
    fn prepare(&mut self) -> Result<(), Error> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        if let Some(scope) = &mut attached.scope {
            scope.follow();
        }
        attached.rows.swap()
    }

    fn collect(&mut self) -> Result<Sample, Error> {
        let Some(attached) = &mut self.attached else { return Ok(Sample::default()) };
        let totals = attached.totals(&self.base)?;
        let interval = attached.rows.take()?;
        let stalls = attached.stalls.take(os::monotonic_ns())?;
        self.lost_stalls += stalls.lost;
        let mut missed = attached.running.missed()?;
        for (probe, events) in &mut missed {
            *events += self.missed_before.get(probe).unwrap_or(&0);
        }

        self.processes.absorb(&interval, Instant::now());
        let io = self.statistics(&totals, &interval, &stalls.stalled);
        let mut families = families(&io);
        families.push(Family::single(&m::PROCESS_ROWS, Value::Int(self.processes.len() as u64)));
        families.push(Family::labelled(
            &m::EVENTS_LOST,
            [
                ("processes", totals.overflow_calls),
                ("stalls", totals.lost_stalls + self.lost_stalls),
                ("reads", totals.lost_reads),
            ],
        ));
        families.push(Family::labelled(&m::EVENTS_MISSED, missed));
        Ok(Sample { io: Some(io), families })
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
    fn totals(&self, base: &Totals) -> Result<Totals, Error> {
        let mut value = Vec::new();
        self.totals.lookup(&0u32.to_ne_bytes(), &mut value)?;
        Ok(Totals::sum(self.totals.per_cpu(&value).chain([base.bytes()])))
    }

    /// Detaches everything, then reads what was counted to the last.
    fn finish(mut self, base: &Totals) -> Result<End, Error> {
        let missed = self.running.missed()?;
        drop(std::mem::take(&mut self.running));
        // Each of the two maps may hold rows; swapping waits until no program writes any more.
        let mut rows = self.rows.take()?;
        self.rows.swap()?;
        rows.extend(self.rows.take()?);
        Ok(End { totals: self.totals(base)?, rows, missed })
    }
}

/// `part` per hundred of `whole`; `None` if there is nothing to divide by.
pub(crate) fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// Misses per hundred pages read; readahead can fill more of them than were read.
pub(crate) fn miss_rate(attempts: u64, misses: u64) -> Option<f64> {
    percent(misses, attempts.max(misses))
}

/// Loads the object and attaches each probe in the first way that works.
fn attach(config: &config::Collector) -> Result<(Attached, Vec<ProbeStatus>), Error> {
    let begin = Instant::now();
    let (object, layout) = prepare(config.ebpf.btf, || Object::prepare(NAME, elf(), None))?;
    log::debug!("BPF object prepared in {:.6} s", begin.elapsed().as_secs_f64());
    let mut settings = scope_settings(&config.scope);
    let scope = match &config.scope {
        Scope::Cgroup(path) => Some(CgroupScope::new(object.map("scope_cgroup")?, path)),
        Scope::Host | Scope::Comm(_) => None,
    };
    if let Some(layout) = &layout {
        settings.regs_offset = layout.regs_offset;
        settings.vmemmap = layout.vmemmap().unwrap_or(0); // asked for again by what needs it
    } else if os::kernel_version() < (5, 15) {
        // There programs have no helper that tells where the registers are saved.
        match Layout::find() {
            Ok(layout) => settings.regs_offset = layout.regs_offset,
            Err(e) => log::debug!("the saved registers are taken to be at the top of a stack of the usual size: {e}"),
        }
    }
    if config.probes.contains(&CACHE_FILL) {
        causes::tell(&mut settings);
    }
    write_settings(&object, &settings)?;
    let begin = Instant::now();
    let kernel = Kernel::running();
    let no_btf = layout.is_some().then_some(match config.ebpf.btf {
        Switch::Off => "collector.ebpf.btf is off",
        _ if os::has_btf() => "this kernel's cannot be used",
        _ => "this kernel has none",
    });
    let settings = Cell::new(settings);
    let before = |hook: &Hook| match hook {
        // These name a page by its frame.
        Hook::Tracepoint("filemap", _) => tell_frames(&object, &settings),
        _ => Ok(()),
    };
    let (running, probes) = Running::start(&Loader::new(&object, no_btf, &before), config, kernel);
    log::debug!("programs loaded and attached in {:.6} s", begin.elapsed().as_secs_f64());
    let attached = Attached {
        scope,
        running,
        totals: object.map("totals")?,
        rows: Rows::new(&object, kernel.version, processes::is_alive_here())?,
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
                log::warn!("the kernel's BTF cannot be used, so the agent does without: {why}");
            }
            found.map(|(object, layout)| (object, Some(layout)))
        }
    }
}

fn without_btf() -> Result<(Object, Layout), Error> {
    let layout = Layout::find()?;
    let object = Object::prepare(NAME, elf_no_btf(), Some(&layout.btf()?))?;
    Ok((object, layout))
}

/// What tells the programs whom to count.
fn scope_settings(scope: &Scope) -> Settings {
    let mut settings = Settings { page_shift: os::page_size().ilog2(), scope: abi::SCOPE_HOST, ..Default::default() };
    match scope {
        Scope::Host => {}
        Scope::Cgroup(_) => settings.scope = abi::SCOPE_CGROUP,
        Scope::Comm(name) => {
            settings.scope = abi::SCOPE_COMM;
            // The kernel cuts names the same way, and the configuration allows no longer one.
            let n = name.len().min(COMM_LEN - 1);
            settings.comm[..n].copy_from_slice(&name.as_bytes()[..n]);
            settings.comm_mask[..=n].fill(0xff);
        }
    }
    settings
}

fn write_settings(object: &Object, settings: &Settings) -> Result<(), Error> {
    object.map("settings")?.update(&0u32.to_ne_bytes(), settings.bytes())
}

/// Tells the programs where page frames are described, if they do not know yet.
fn tell_frames(object: &Object, settings: &Cell<Settings>) -> Result<(), Error> {
    let mut new = settings.get();
    if new.vmemmap == 0 {
        new.vmemmap = Layout::find()?.vmemmap()?;
        write_settings(object, &new)?;
        settings.set(new);
    }
    Ok(())
}

/// The metrics of the statistics: those that are there, in catalogue order.
pub fn families(io: &IoStats) -> Vec<Family> {
    let single = |metric, value: Option<Value>| value.map(|v| Family::single(metric, v));
    let int = |metric, value: Option<u64>| single(metric, value.map(Value::Int));
    let (f, c, r) = (io.fadvise.as_ref(), &io.cache, &io.memory);
    // A rate is absent with its probes, and empty where they saw nothing.
    let rate = |r| c.hits.map(|_| Value::Percent(r));
    [
        int(&m::FADVISE_CALLS, f.map(Fadvise::total)),
        int(&m::FADVISE_SUCCESS, f.map(|f| f.success)),
        int(&m::FADVISE_FAILED, f.map(|f| f.failed)),
        f.map(|f| Family::labelled(&m::FADVISE_ADVICE, ADVICES.into_iter().zip(f.advice))),
        single(&m::FADVISE_SUCCESS_RATE, f.map(|f| Value::Percent(f.success_rate_percent))),
        int(&m::CACHE_READ_ATTEMPTS, c.read_attempts),
        int(&m::CACHE_HITS, c.hits),
        int(&m::CACHE_MISSES, c.misses),
        single(&m::CACHE_HIT_RATE, rate(c.hit_rate_percent)),
        single(&m::CACHE_MISS_RATE, rate(c.miss_rate_percent)),
        int(&m::CACHE_READ_BYTES, c.read_bytes),
        single(&m::READ_WAIT_SECONDS, c.read_latency.clone().map(Value::Histogram)),
        c.adds.map(|v| Family::labelled(&m::PAGE_CACHE_ADDS, FILL_CAUSES.into_iter().zip(v))),
        c.evictions.map(|v| Family::labelled(&m::PAGE_CACHE_EVICTIONS, EVICTION_CAUSES.into_iter().zip(v))),
        r.scanned.map(|v| Family::labelled(&m::LRU_PAGES_SCANNED, RECLAIMERS.into_iter().zip(v))),
        r.reclaimed.iter().any(Option::is_some).then(|| {
            let known = RECLAIMERS.into_iter().zip(r.reclaimed);
            Family::labelled(&m::PAGES_RECLAIMED, known.filter_map(|(name, pages)| Some((name, pages?))))
        }),
        single(&m::RECLAIM_EFFICIENCY, r.scanned.map(|_| Value::Percent(r.reclaim_efficiency_percent))),
        int(&m::DIRECT_RECLAIM_PROCESSES, r.direct_reclaim_processes),
        single(&m::DIRECT_RECLAIM_SECONDS, r.stalls.clone().map(Value::Histogram)),
        int(&m::KSWAPD_WAKEUPS, r.kswapd_wakeups),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::monitor::probes::{PROBES, Probe};

    fn monitor() -> IoMonitor {
        let mut monitor = IoMonitor::new(&Config::default().collector);
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
        let with_twins = || Object::prepare(NAME, elf(), Some(&twins));
        let (object, found) = prepare(Switch::Auto, with_twins).unwrap();
        assert!(found.is_some() && !object.has_program("fexit_read"));
        assert!(prepare(Switch::On, with_twins).err().unwrap().to_string().contains("ambiguity"));
    }

    fn names(io: &IoStats) -> Vec<&'static str> {
        families(io).iter().map(|f| f.metric.name).collect()
    }

    #[test]
    fn rates_are_of_the_last_interval() {
        let mut monitor = monitor();
        let mut totals = Totals { read_pages: 1000, fills: [250, 0, 0, 0, 0], ..Default::default() };
        let cache = monitor.statistics(&totals, &[], &[]).cache;
        assert_eq!((cache.hit_rate_percent, cache.miss_rate_percent), (Some(75.0), Some(25.0)));
        assert_eq!(cache.hits, Some(750));
        totals.read_pages += 100;
        let cache = monitor.statistics(&totals, &[], &[]).cache;
        assert_eq!((cache.hit_rate_percent, cache.hits), (Some(100.0), Some(850)));
        let cache = monitor.statistics(&totals, &[], &[]).cache;
        assert_eq!((cache.hit_rate_percent, cache.miss_rate_percent), (None, None), "nothing was read");
    }

    #[test]
    fn readahead_ahead_of_the_reader_neither_lowers_the_hits_nor_exceeds_100_percent() {
        let mut monitor = monitor();
        let mut totals = Totals { read_pages: 100, ..Default::default() };
        assert_eq!(monitor.statistics(&totals, &[], &[]).cache.hits, Some(100));
        totals.fills[0] = 400;
        totals.read_pages += 100;
        let cache = monitor.statistics(&totals, &[], &[]).cache;
        assert_eq!((cache.hits, cache.miss_rate_percent), (Some(100), Some(100.0)));
    }

    #[test]
    fn a_probe_that_is_not_attached_takes_its_metrics_away() {
        let mut monitor = monitor();
        assert_eq!(names(&monitor.statistics(&Totals::default(), &[], &[])).len(), 20);
        monitor.probes.iter_mut().filter(|p| p.name == CACHE_READ).for_each(|p| p.mode = None);
        let io = monitor.statistics(&Totals::default(), &[], &[]);
        let got = names(&io);
        for gone in ["ebpf_cache_read_attempts_total", "ebpf_cache_hits_total", "ebpf_cache_miss_rate_percent"] {
            assert!(!got.contains(&gone), "{gone}");
        }
        assert!(got.contains(&"ebpf_cache_misses_total"));
        monitor.probes.clear();
        assert!(names(&monitor.statistics(&Totals::default(), &[], &[])).is_empty());
    }

    #[test]
    fn a_process_that_stalls_counts_once_however_often() {
        let mut monitor = monitor();
        let key = |tgid| ProcKey { tgid, start: 1 };
        let row = |stalls| ProcRow { stalls, ..Default::default() };
        let interval = [(key(1), row(7)), (key(2), row(0)), (key(3), row(1))];
        let io = monitor.statistics(&Totals::default(), &interval, &[key(3), key(4), key(4)]);
        assert_eq!(io.memory.direct_reclaim_processes, Some(3));
    }

    #[test]
    fn families_stand_in_catalogue_order() {
        let all = families(&monitor().statistics(&Totals::default(), &[], &[]));
        let place = |f: &Family| m::CATALOGUE.iter().position(|m| m.name == f.metric.name);
        assert!(all.is_sorted_by_key(place));
        for f in &all {
            assert!(f.series.iter().all(|s| s.labels.len() == f.metric.labels.len()), "{}", f.metric.name);
        }
    }
}
