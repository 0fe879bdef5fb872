//! The I/O monitor: attaches bpf/iomonitor.bpf.c and turns its counters into metrics.
//!
//! To add a probe: its programs in bpf/iomonitor.bpf.c, their counters in bpf/shared.h and
//! `ebpf/abi.rs`, an entry in [`PROBES`], the metrics in `metrics/catalogue.rs`, and their values in
//! `IoMonitor::statistics` and [`families`].

use std::cell::{Cell, LazyCell};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::processes::{self, Processes};
use super::rows::Rows;
use super::{Module, ModuleSettings, Sample};
use crate::config::{self, AttachMode, Scope, Switch};
use crate::ebpf::abi::{self, COMM_LEN, Plain, ProcKey, ProcRow, Settings, Stall, Totals};
use crate::ebpf::layout::Layout;
use crate::ebpf::object::{Aligned, Error, KernelBtf, Link, Map, Object, Program};
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

/// Something to observe, and the ways of attaching to it, best first.
struct Probe {
    name: &'static str,
    ways: &'static [Way],
    /// Programs of a probe above that count for this one too: where they are attached, it needs none of its own.
    counted_by: &'static [&'static str],
    /// What the configuration says beside `collector.probes`; under `auto` nothing is wrong where it cannot be had.
    switch: fn(&config::Collector) -> Switch,
}

impl Probe {
    const fn new(name: &'static str, ways: &'static [Way]) -> Self {
        Self { name, ways, counted_by: &[], switch: |_| Switch::On }
    }
}

/// All its programs are attached, in order, or none.
struct Way {
    mode: &'static str,
    /// Which value of `collector.ebpf.attach` asks for it; `None`: every one.
    choice: Option<AttachMode>,
    programs: &'static [(&'static str, Hook)],
    /// Why it would attach on this kernel and yet tell nothing.
    ruled_out: fn() -> Option<&'static str>,
}

impl Way {
    const fn new(mode: &'static str, choice: Option<AttachMode>, programs: &'static [(&'static str, Hook)]) -> Self {
        Self { mode, choice, programs, ruled_out: || None }
    }

    fn misses_events(&self, kernel: Kernel) -> bool {
        self.programs.iter().any(|(_, hook)| hook.misses_events(kernel))
    }
}

/// What decides whether programs miss events.
#[derive(Clone, Copy)]
struct Kernel {
    version: (u32, u32),
    preemptible: bool,
}

impl Kernel {
    fn running() -> Self {
        Self { version: os::kernel_version(), preemptible: os::is_preemptible() }
    }
}

/// Where a program hangs. Of several functions the first that this kernel has is taken.
enum Hook {
    FunctionEntry(&'static [&'static str]),
    FunctionExit(&'static [&'static str]),
    Kprobe(&'static [&'static str]),
    Kretprobe(&'static [&'static str]),
    RawTracepoint(&'static str),
    Tracepoint(&'static str, &'static str),
    /// As the other, but left out where the kernel has no such function.
    IfThere(&'static Hook),
    /// As the first, but another program and hook where the kernel has no such function.
    Else(&'static Hook, &'static str, &'static Hook),
}

impl Hook {
    /// Whether a thread can be preempted inside a program here: the kernel then skips that program for the other
    /// threads of the CPU until the first goes on.
    fn misses_events(&self, kernel: Kernel) -> bool {
        let since = match self {
            Self::FunctionEntry(_) | Self::FunctionExit(_) => (5, 12),
            Self::RawTracepoint(_) | Self::Tracepoint("syscalls", _) => (7, 0),
            Self::Kprobe(_) | Self::Kretprobe(_) | Self::Tracepoint(..) => return false,
            Self::IfThere(hook) | Self::Else(hook, ..) => return hook.misses_events(kernel),
        };
        kernel.preemptible && kernel.version >= since
    }
}

/// The ways of a probe through tracepoints of one category: pairs of what its programs' names end in and tracepoint.
macro_rules! tracepoints {
    ($category:literal, $($name:literal => $tracepoint:literal),+) => {
        tracepoints!($category, || None, $($name => $tracepoint),+)
    };
    ($category:literal, $ruled_out:expr, $($name:literal => $tracepoint:literal),+) => {
        &[
            // The cheaper one: no record is made.
            Way {
                ruled_out: $ruled_out,
                ..Way::new("raw_tracepoint", None, &[$((concat!("raw_", $name), Hook::RawTracepoint($tracepoint))),+])
            },
            Way {
                ruled_out: $ruled_out,
                ..Way::new("tracepoint", None, &[$((concat!("tp_", $name), Hook::Tracepoint($category, $tracepoint))),+])
            },
        ]
    };
}

const FADVISE: &str = "fadvise";
const READ_LATENCY: &str = "read_latency";
const CACHE_READ: &str = "cache_read";
const CACHE_FILL: &str = "cache_fill";
const CACHE_EVICT: &str = "cache_evict";
const RECLAIM_SCAN: &str = "reclaim_scan";
const DIRECT_RECLAIM: &str = "direct_reclaim";
const MEMCG_RECLAIM: &str = "memcg_reclaim";
const KSWAPD: &str = "kswapd";

static PROBES: &[Probe] = &[
    Probe::new(
        FADVISE,
        &[
            Way::new("fexit", FENTRY, &[("fexit_fadvise", Hook::FunctionExit(FADVISE_FUNCTIONS))]),
            Way::new("kprobe", KPROBE, &[("kret_fadvise", Hook::Kretprobe(FADVISE_FUNCTIONS))]),
            Way::new("tracepoint", TRACEPOINT, &[("tp_fadvise", Hook::Tracepoint("syscalls", FADVISE_TRACEPOINT))]),
        ],
    ),
    // The ends first: a wait whose beginning is seen must not miss its end.
    Probe {
        switch: |config| config.read_latency,
        ..Probe::new(
            READ_LATENCY,
            &[Way::new(
                "fexit",
                FENTRY,
                &[
                    ("fexit_read_timed", Hook::FunctionExit(READ_FUNCTIONS)),
                    ("fexit_splice_timed", Hook::IfThere(&Hook::FunctionExit(SPLICE_FUNCTIONS))),
                    ("fentry_wait", Hook::FunctionEntry(&["io_schedule"])),
                    ("fentry_wait_timeout", Hook::IfThere(&Hook::FunctionEntry(&["io_schedule_timeout"]))),
                ],
            )],
        )
    },
    Probe {
        // A read runs one program, not two.
        counted_by: &["fexit_read_timed", "fexit_splice_timed"],
        ..Probe::new(
            CACHE_READ,
            &[
                Way::new(
                    "fexit",
                    FENTRY,
                    &[
                        ("fexit_read", Hook::FunctionExit(READ_FUNCTIONS)),
                        ("fexit_splice", Hook::IfThere(&Hook::FunctionExit(SPLICE_FUNCTIONS))),
                    ],
                ),
                Way::new(
                    "kprobe",
                    KPROBE,
                    &[
                        ("kprobe_read", Hook::Else(&Hook::Kprobe(READ_FUNCTIONS), "kprobe_read_iter", &READ_ITER)),
                        ("kprobe_splice", Hook::IfThere(&Hook::Kprobe(SPLICE_FUNCTIONS))),
                    ],
                ),
                Way::new("raw_tracepoint", TRACEPOINT, &[("raw_read", Hook::RawTracepoint("mm_filemap_get_pages"))]),
            ],
        )
    },
    Probe::new(CACHE_FILL, tracepoints!("filemap", "fill" => "mm_filemap_add_to_page_cache")),
    Probe::new(CACHE_EVICT, tracepoints!("filemap", "evict" => "mm_filemap_delete_from_page_cache")),
    Probe::new(RECLAIM_SCAN, tracepoints!("vmscan", silent_scans, "scan" => "mm_vmscan_lru_shrink_inactive")),
    // The end first: a stall whose begin is seen must not miss its end.
    Probe::new(
        DIRECT_RECLAIM,
        tracepoints!(
            "vmscan",
            "direct_out" => "mm_vmscan_direct_reclaim_end",
            "direct_in" => "mm_vmscan_direct_reclaim_begin"
        ),
    ),
    Probe::new(
        MEMCG_RECLAIM,
        tracepoints!(
            "vmscan",
            "memcg_out" => "mm_vmscan_memcg_reclaim_end",
            "memcg_in" => "mm_vmscan_memcg_reclaim_begin"
        ),
    ),
    Probe::new(KSWAPD, tracepoints!("vmscan", "kswapd" => "mm_vmscan_kswapd_wake")),
];

const FENTRY: Option<AttachMode> = Some(AttachMode::Fentry);
const KPROBE: Option<AttachMode> = Some(AttachMode::Kprobe);
const TRACEPOINT: Option<AttachMode> = Some(AttachMode::Tracepoint);

fn silent_scans() -> Option<&'static str> {
    os::scans_are_silent().then_some("the multi-generational LRU of kernels before 6.7 does not tell what it scans")
}

/// What the system call does its work in.
const FADVISE_FUNCTIONS: &[&str] = &["ksys_fadvise64_64"];
/// The second was its name in 4.18 to 5.11.
const READ_FUNCTIONS: &[&str] = &["filemap_read", "generic_file_buffered_read"];
/// What has them inlined before 4.18.
const READ_ITER: Hook = Hook::Kprobe(&["generic_file_read_iter"]);
/// sendfile and splice, from 6.5 on; before, they came through the former.
const SPLICE_FUNCTIONS: &[&str] = &["filemap_splice_read"];

#[cfg(target_arch = "x86_64")]
const FADVISE_TRACEPOINT: &str = "sys_exit_fadvise64";
#[cfg(target_arch = "aarch64")]
const FADVISE_TRACEPOINT: &str = "sys_exit_fadvise64_64";

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
    hits: u64,
}

/// What lives in the kernel; dropping it detaches and frees.
struct Attached {
    /// Detached in this order when dropped.
    running: Vec<Running>,
    totals: Map,
    rows: Rows,
    stalls: Map,
}

/// What an attachment had counted when it ended.
struct End {
    totals: Totals,
    rows: Vec<(ProcKey, ProcRow)>,
    missed: Vec<(&'static str, u64)>,
}

/// An attached program.
struct Running {
    probe: &'static str,
    mode: &'static str,
    /// Another probe that it counts for.
    also: Option<&'static str>,
    /// Held for its `Drop`.
    _link: Link,
    program: Program,
}

impl Running {
    fn counts_for(&self, probe: &str) -> bool {
        self.probe == probe || self.also == Some(probe)
    }
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
            hits: 0,
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
        self.hits = self.hits.max(attempts.saturating_sub(misses));
        let (new_attempts, new_misses) = (attempts - last.read_pages, misses - last.fills[0]);
        let miss_rate = miss_rate(new_attempts, new_misses).filter(|_| reads && fills);
        let cache = Cache {
            read_attempts: reads.then_some(attempts),
            hits: (reads && fills).then_some(self.hits),
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
        self.attached.as_mut().map_or(Ok(()), |a| a.rows.swap())
    }

    fn collect(&mut self) -> Result<Sample, Error> {
        let Some(attached) = &mut self.attached else { return Ok(Sample::default()) };
        let totals = attached.totals(&self.base)?;
        let interval = attached.rows.take()?;
        let mut stalling = Vec::new();
        attached.stalls.for_each(|_: u64, s: Stall| stalling.push(s.proc))?;
        let mut missed = attached.missed()?;
        for (probe, events) in &mut missed {
            *events += self.missed_before.get(probe).unwrap_or(&0);
        }

        self.processes.absorb(&interval, Instant::now());
        let io = self.statistics(&totals, &interval, &stalling);
        let mut families = families(&io);
        families.push(Family::single(&m::PROCESS_ROWS, Value::Int(self.processes.len() as u64)));
        families.push(Family::labelled(
            &m::EVENTS_LOST,
            [("processes", totals.overflow_calls), ("stalls", totals.lost_stalls), ("reads", totals.lost_reads)],
        ));
        families.push(Family::labelled(&m::EVENTS_MISSED, missed));
        Ok(Sample { io: Some(io), families })
    }

    fn probes(&self) -> Vec<ProbeStatus> {
        self.probes.clone()
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
        let missed = self.missed()?;
        self.running.clear();
        // Each of the two maps may hold rows; swapping waits until no program writes any more.
        let mut rows = self.rows.take()?;
        self.rows.swap()?;
        rows.extend(self.rows.take()?);
        Ok(End { totals: self.totals(base)?, rows, missed })
    }

    /// Events that each probe's programs missed.
    fn missed(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let mut by_probe = Vec::new();
        for probe in PROBES {
            let mut programs = self.running.iter().filter(|r| r.counts_for(probe.name)).peekable();
            if programs.peek().is_some() {
                let missed = programs.map(|r| r.program.missed()).sum::<Result<u64, _>>()?;
                by_probe.push((probe.name, missed));
            }
        }
        Ok(by_probe)
    }
}

/// The failed ways of a probe, as a text.
fn reasons(probe: &ProbeStatus) -> String {
    let all: Vec<String> = probe.failures.iter().map(|(mode, why)| format!("{mode}: {why}")).collect();
    all.join("; ")
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
    let (object, layout) = prepare(config.ebpf.btf)?;
    log::debug!("BPF object prepared in {:.6} s", begin.elapsed().as_secs_f64());
    let mut settings = scope_settings(&object, &config.scope)?;
    if let Some(layout) = &layout {
        (settings.regs_offset, settings.vmemmap) = (layout.regs_offset, layout.vmemmap);
    }
    write_settings(&object, &settings)?;
    let begin = Instant::now();
    let kernel = Kernel::running();
    let loader = Loader {
        object: &object,
        no_btf: layout.is_some().then_some(match config.ebpf.btf {
            Switch::Off => "collector.ebpf.btf is off",
            _ => "this kernel has none",
        }),
        btf: LazyCell::new(KernelBtf::load),
        settings: Cell::new(settings),
    };
    let mut running = Vec::new();
    let mut probes = Vec::new();
    for probe in PROBES.iter().filter(|p| config.probes.contains(&p.name)) {
        let switch = (probe.switch)(config);
        if switch == Switch::Off {
            continue;
        }
        let (ways, passed_over) = ladder(probe, switch, config.ebpf.attach, kernel);
        let status = loader.attach_probe(probe, &ways, passed_over, &mut running);
        if status.mode.is_none() && switch == Switch::Auto {
            log::info!("probe {} is left out, its metrics are absent: {}", probe.name, reasons(&status));
        } else {
            probes.push(status);
        }
    }
    drop(loader);
    log::debug!("programs loaded and attached in {:.6} s", begin.elapsed().as_secs_f64());
    let attached = Attached {
        running,
        totals: object.map("totals")?,
        rows: Rows::new(&object, kernel.version, processes::is_alive_here())?,
        stalls: object.map("stalls")?,
    };
    drop(object);
    os::trim_heap();
    Ok((attached, probes))
}

/// The ways of a probe to be tried, in order, and those passed over with the reason: best first, as the table has
/// them, but those that miss events on this kernel last, unless the configuration names them. A probe that is there
/// only if it can be is not worth a miss.
fn ladder(
    probe: &'static Probe,
    switch: Switch,
    choice: AttachMode,
    kernel: Kernel,
) -> (Vec<&'static Way>, Vec<(&'static str, String)>) {
    let asked = |w: &&Way| choice == AttachMode::Auto || w.choice.is_none_or(|c| c == choice);
    let (mut ways, others): (Vec<&Way>, Vec<&Way>) = probe.ways.iter().partition(asked);
    if ways.is_empty() {
        return (ways, others.iter().map(|w| (w.mode, "collector.ebpf.attach rules it out".into())).collect());
    }
    let misses = |w: &Way| w.choice != Some(choice) && w.misses_events(kernel);
    let passed_over = ways.iter().filter(|w| misses(w)).map(|w| {
        let force = w.choice.map_or("".into(), |c| format!("; force it with collector.ebpf.attach: {}", c.name()));
        (w.mode, format!("this kernel is preemptible: programs attached so would miss events{force}"))
    });
    let passed_over = passed_over.collect();
    ways.sort_by_key(|w| misses(w));
    if switch == Switch::Auto {
        ways.retain(|w| !misses(w));
    }
    (ways, passed_over)
}

/// The programs for this kernel; where it does not describe its types, or is not to be asked, with what was found
/// out about them.
fn prepare(btf: Switch) -> Result<(Object, Option<Layout>), Error> {
    let described = match btf {
        Switch::Auto => os::has_btf(),
        Switch::On => true,
        Switch::Off => false,
    };
    if described {
        return Ok((Object::prepare(NAME, elf(), None)?, None));
    }
    let layout = Layout::find()?;
    let object = Object::prepare(NAME, elf_no_btf(), Some(&layout.btf()?))?;
    Ok((object, Some(layout)))
}

struct Loader<'a> {
    object: &'a Object,
    /// Why the kernel's own description of its types is not used, if it is not.
    no_btf: Option<&'static str>,
    btf: LazyCell<Result<KernelBtf, Error>>,
    /// As the programs have them.
    settings: Cell<Settings>,
}

impl Loader<'_> {
    /// Tells the programs where page frames are described, if they do not know yet.
    fn tell_frames(&self) -> Result<(), Error> {
        let mut settings = self.settings.get();
        if settings.vmemmap == 0 {
            settings.vmemmap = Layout::find()?.vmemmap;
            write_settings(self.object, &settings)?;
            self.settings.set(settings);
        }
        Ok(())
    }

    /// Attaches a probe in the first way that works, and adds its programs to those running.
    fn attach_probe(
        &self,
        probe: &Probe,
        ways: &[&Way],
        passed_over: Vec<(&'static str, String)>,
        running: &mut Vec<Running>,
    ) -> ProbeStatus {
        let mut status = ProbeStatus { name: probe.name, mode: None, failures: passed_over };
        for r in running.iter_mut().filter(|r| probe.counted_by.contains(&r.program.name())) {
            r.also = Some(probe.name);
            status.mode = Some(r.mode);
            status.failures.clear();
        }
        if status.mode.is_some() {
            return status;
        }
        for way in ways {
            // Tried after all.
            status.failures.retain(|(mode, _)| *mode != way.mode);
            if let Some(why) = (way.ruled_out)() {
                status.failures.push((way.mode, why.into()));
                continue;
            }
            match self.attach(way) {
                Ok(new) => {
                    status.mode = Some(way.mode);
                    // The last attached is the first to go.
                    let new = new.into_iter().rev().map(|(program, link)| Running {
                        probe: probe.name,
                        mode: way.mode,
                        also: None,
                        _link: link,
                        program,
                    });
                    running.splice(0..0, new);
                    break;
                }
                Err(e) => status.failures.push((way.mode, e.to_string())),
            }
        }
        status
    }

    fn attach(&self, way: &Way) -> Result<Vec<(Program, Link)>, Error> {
        let all = way.programs.iter().map(|(name, hook)| self.attach_one(name, hook));
        all.filter_map(Result::transpose).collect()
    }

    fn attach_one(&self, name: &str, hook: &Hook) -> Result<Option<(Program, Link)>, Error> {
        if let Some(why) = self.no_btf
            && !self.object.has_program(name)
        {
            let log = format!("it needs the kernel's BTF: {why}");
            return Err(Error { what: format!("load program {name}"), cause: io::ErrorKind::Unsupported.into(), log });
        }
        let at_symbol = |functions: &[&str], attach: fn(&Program, &str) -> Result<Link, Error>| {
            let program = self.object.load(name, None)?;
            // In the words of perf, and of tracefs.
            let kinds = [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput];
            let absent = |r: &Result<Link, Error>| r.as_ref().is_err_and(|e| kinds.contains(&e.cause.kind()));
            let by_name = functions.iter().map(|f| attach(&program, f)).find(|r| !absent(r));
            // Reading all symbols takes a while: only for one that the compiler has given a suffix, or that is not there.
            let link = match by_name {
                Some(link) => link?,
                None => attach(&program, &kernel_function(functions)?)?,
            };
            Ok((program, link))
        };
        let attached = match hook {
            Hook::FunctionEntry(functions) | Hook::FunctionExit(functions) => {
                let btf = self.btf.as_ref().map_err(Error::clone)?;
                let function = functions.iter().find_map(|f| btf.function(f)).ok_or_else(|| no_function(functions))?;
                let program = self.object.load(name, Some(function))?;
                let link = program.attach_function()?;
                (program, link)
            }
            Hook::Kprobe(functions) => at_symbol(functions, Program::attach_kprobe)?,
            Hook::Kretprobe(functions) => at_symbol(functions, Program::attach_kretprobe)?,
            Hook::RawTracepoint(tracepoint) => {
                let program = self.object.load(name, None)?;
                let link = program.attach_raw_tracepoint(tracepoint)?;
                (program, link)
            }
            Hook::Tracepoint(category, tracepoint) => {
                // Those of files name a page by its frame.
                if *category == "filemap" {
                    self.tell_frames()?;
                }
                let program = self.object.load(name, None)?;
                let link = program.attach_tracepoint(category, tracepoint)?;
                (program, link)
            }
            Hook::Else(hook, other, or) => {
                return match self.attach_one(name, hook) {
                    Err(e) if e.cause.kind() == io::ErrorKind::NotFound => self.attach_one(other, or),
                    first => first,
                };
            }
            Hook::IfThere(hook) => {
                return match self.attach_one(name, hook) {
                    Err(e) if e.cause.kind() == io::ErrorKind::NotFound => Ok(None),
                    other => other,
                };
            }
        };
        Ok(Some(attached))
    }
}

fn no_function(functions: &[&str]) -> Error {
    Error {
        what: format!("find function {}", functions.join(" or ")),
        cause: io::ErrorKind::NotFound.into(),
        log: "this kernel does not have it, or has inlined it".into(),
    }
}

/// Symbol of the first of these functions that the kernel has.
fn kernel_function(functions: &[&str]) -> Result<String, Error> {
    for name in functions {
        let found = os::kernel_symbol(name);
        let found = found.map_err(|cause| Error { what: "read /proc/kallsyms".into(), cause, log: String::new() })?;
        if let Some(symbol) = found {
            return Ok(symbol);
        }
    }
    Err(no_function(functions))
}

/// What tells the programs whom to count.
fn scope_settings(object: &Object, scope: &Scope) -> Result<Settings, Error> {
    let mut settings = Settings { page_shift: os::page_size().ilog2(), scope: abi::SCOPE_HOST, ..Default::default() };
    match scope {
        Scope::Host => {}
        Scope::Cgroup(path) => {
            settings.scope = abi::SCOPE_CGROUP;
            let no_cgroup = |cause| Error {
                what: format!("collector.scope.cgroup {:?}", path.display()),
                cause,
                log: "it must be a directory of a mounted cgroup v2 hierarchy, such as /sys/fs/cgroup/system.slice"
                    .into(),
            };
            let dir = File::open(path).map_err(no_cgroup)?;
            object.map("scope_cgroup")?.set_fd(dir.as_fd()).map_err(|e| no_cgroup(e.cause))?;
        }
        Scope::Comm(name) => {
            settings.scope = abi::SCOPE_COMM;
            // The kernel cuts names the same way, and the configuration allows no longer one.
            let n = name.len().min(COMM_LEN - 1);
            settings.comm[..n].copy_from_slice(&name.as_bytes()[..n]);
        }
    }
    Ok(settings)
}

fn write_settings(object: &Object, settings: &Settings) -> Result<(), Error> {
    object.map("settings")?.update(&0u32.to_ne_bytes(), settings.bytes())
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

    fn monitor() -> IoMonitor {
        let mut monitor = IoMonitor::new(&Config::default().collector);
        let status = |p: &Probe| ProbeStatus { name: p.name, mode: Some("test"), failures: Vec::new() };
        monitor.probes = PROBES.iter().map(status).collect();
        monitor
    }

    fn names(io: &IoStats) -> Vec<&'static str> {
        families(io).iter().map(|f| f.metric.name).collect()
    }

    #[test]
    fn the_configuration_knows_every_probe() {
        assert!(PROBES.iter().map(|p| p.name).eq(config::PROBES.iter().copied()));
    }

    #[test]
    fn programs_that_count_for_a_probe_are_those_of_one_above() {
        for (i, probe) in PROBES.iter().enumerate() {
            let above = PROBES[..i].iter().flat_map(|p| p.ways).flat_map(|w| w.programs);
            let above: Vec<&str> = above.map(|(name, _)| *name).collect();
            assert!(probe.counted_by.iter().all(|name| above.contains(name)), "{}", probe.name);
        }
    }

    #[test]
    fn a_preemptible_kernel_is_watched_by_what_misses_nothing() {
        let modes = |name: &str, switch, choice, kernel| {
            let probe = PROBES.iter().find(|p| p.name == name).unwrap();
            let (ways, passed_over) = ladder(probe, switch, choice, kernel);
            let names = |modes: &mut dyn Iterator<Item = &'static str>| modes.collect::<Vec<_>>().join(" ");
            (names(&mut ways.iter().map(|w| w.mode)), names(&mut passed_over.iter().map(|(mode, _)| *mode)))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let kernel = |version, preemptible| Kernel { version, preemptible };
        let (auto, on) = (AttachMode::Auto, Switch::On);
        for calm in [kernel((7, 2), false), kernel((5, 10), true)] {
            assert_eq!(modes(FADVISE, on, auto, calm), pair("fexit kprobe tracepoint", ""));
            assert_eq!(modes(READ_LATENCY, Switch::Auto, auto, calm), pair("fexit", ""));
        }
        let (early, late) = (kernel((6, 12), true), kernel((7, 2), true));
        assert_eq!(modes(FADVISE, on, auto, early), pair("kprobe tracepoint fexit", "fexit"));
        assert_eq!(modes(FADVISE, on, auto, late), pair("kprobe fexit tracepoint", "fexit tracepoint"));
        assert_eq!(modes(CACHE_READ, on, auto, early), pair("kprobe raw_tracepoint fexit", "fexit"));
        assert_eq!(modes(CACHE_READ, on, auto, late), pair("kprobe fexit raw_tracepoint", "fexit raw_tracepoint"));
        assert_eq!(modes(READ_LATENCY, Switch::Auto, auto, late), pair("", "fexit"));
        assert_eq!(modes(READ_LATENCY, on, auto, late), pair("fexit", "fexit"));
        // What the configuration names is taken.
        assert_eq!(modes(FADVISE, on, AttachMode::Fentry, late), pair("fexit", ""));
        assert_eq!(modes(READ_LATENCY, Switch::Auto, AttachMode::Fentry, late), pair("fexit", ""));
        assert_eq!(modes(READ_LATENCY, on, AttachMode::Kprobe, late), pair("", "fexit"));
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
