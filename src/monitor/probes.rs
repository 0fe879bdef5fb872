//! The table of probes: what is observed, and the ways of attaching to it.

use log::Level;

use super::proof;
use crate::config::{self, Switch};
use crate::ebpf::attach::{self, AttachMode, Failures, Hook, Kernel, Loader, Way};
use crate::ebpf::object::{Error, Link, Program};
use crate::ebpf::os;
use crate::metrics::snapshot::ProbeStatus;

/// Something to observe, and the ways of attaching to it, best first.
pub(super) struct Probe {
    pub(super) name: &'static str,
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

/// The ways through tracepoints of one category: pairs of what its programs' names end in and tracepoint.
macro_rules! tracepoints {
    ($category:literal, $($name:literal => $tracepoint:literal),+) => {
        tracepoints!($category, || None, None, $($name => $tracepoint),+)
    };
    ($category:literal, $ruled_out:expr, $proof:expr, $($name:literal => $tracepoint:literal),+) => {
        &[
            // The cheaper one: no record is made.
            Way {
                ruled_out: $ruled_out,
                proof: $proof,
                ..Way::new("raw_tracepoint", None, &[$((concat!("raw_", $name), Hook::RawTracepoint($tracepoint))),+])
            },
            Way {
                ruled_out: $ruled_out,
                proof: $proof,
                ..Way::new("tracepoint", None, &[$((concat!("tp_", $name), Hook::Tracepoint($category, $tracepoint))),+])
            },
        ]
    };
}

/// fadvise64 calls.
pub const FADVISE: &str = "fadvise";
/// Reads that wait for I/O.
pub const READ_LATENCY: &str = "read_latency";
/// Sleeps for I/O.
pub const IO_WAIT: &str = "io_wait";
/// Buffered reads.
pub const CACHE_READ: &str = "cache_read";
/// Pages that come into the page cache.
pub const CACHE_FILL: &str = "cache_fill";
/// Pages that leave it.
pub const CACHE_EVICT: &str = "cache_evict";
/// Scans of inactive lists.
pub const RECLAIM_SCAN: &str = "reclaim_scan";
/// Begins and ends of direct reclaim.
pub const DIRECT_RECLAIM: &str = "direct_reclaim";
/// Begins and ends of the reclaim of a cgroup.
pub const MEMCG_RECLAIM: &str = "memcg_reclaim";
/// Rounds of kswapd.
pub const KSWAPD: &str = "kswapd";

pub(super) static PROBES: &[Probe] = &[
    Probe::new(
        FADVISE,
        &[
            advised("fexit", FENTRY, &[("fexit_fadvise", Hook::FunctionExit(FADVISE_FUNCTIONS))]),
            advised("fexit", FENTRY, &[("fexit_fadvise_call", Hook::FunctionExit(FADVISE_CALLS))]),
            advised("kprobe", KPROBE, &[("kret_fadvise", Hook::Kretprobe(FADVISE_FUNCTIONS))]),
            advised("kprobe", KPROBE, &[("kret_fadvise", Hook::Kretprobe(FADVISE_CALLS))]),
            advised("tracepoint", TRACEPOINT, &[("tp_fadvise", Hook::Tracepoint("syscalls", FADVISE_TRACEPOINT))]),
        ],
    ),
    // The ends first: a wait whose beginning is seen must not miss its end.
    Probe {
        switch: |config| config.read_latency,
        ..Probe::new(
            READ_LATENCY,
            &[read(
                "fexit",
                FENTRY,
                &[
                    ("fexit_read_timed", Hook::FunctionExit(READ_FUNCTIONS)),
                    ("fexit_splice_timed", Hook::IfThere(&Hook::FunctionExit(SPLICE_FUNCTIONS))),
                    ("fentry_splice", Hook::IfThere(&Hook::FunctionEntry(SPLICE_FUNCTIONS))),
                    ("fentry_splice_iter", Hook::IfThere(&Hook::FunctionEntry(&["generic_file_splice_read"]))),
                    ("fentry_wait", Hook::FunctionEntry(&["io_schedule"])),
                    ("fentry_wait_timeout", Hook::IfThere(&Hook::FunctionEntry(&["io_schedule_timeout"]))),
                ],
            )],
        )
    },
    // The ends first, as above.
    Probe {
        switch: |_| Switch::Auto,
        ..Probe::new(
            IO_WAIT,
            &[
                Way {
                    ruled_out: frees_what_sleeps,
                    ..Way::new(
                        "fexit",
                        FENTRY,
                        &[
                            ("fexit_sleep", Hook::FunctionExit(SLEEP)),
                            ("fexit_sleep_timeout", Hook::FunctionExit(SLEEP_TIMEOUT)),
                            ("fentry_sleep", Hook::FunctionEntry(SLEEP)),
                            ("fentry_sleep_timeout", Hook::FunctionEntry(SLEEP_TIMEOUT)),
                        ],
                    )
                },
                Way::new(
                    "kprobe",
                    KPROBE,
                    &[
                        ("kret_sleep", Hook::Kretprobe(SLEEP)),
                        ("kret_sleep_timeout", Hook::Kretprobe(SLEEP_TIMEOUT)),
                        ("kprobe_sleep", Hook::Kprobe(SLEEP)),
                        ("kprobe_sleep_timeout", Hook::Kprobe(SLEEP_TIMEOUT)),
                    ],
                ),
            ],
        )
    },
    Probe {
        // A read runs one program, not two.
        counted_by: &["fexit_read_timed", "fexit_splice_timed"],
        ..Probe::new(
            CACHE_READ,
            &[
                read(
                    "fexit",
                    FENTRY,
                    &[
                        ("fexit_read", Hook::FunctionExit(READ_FUNCTIONS)),
                        ("fexit_splice", Hook::IfThere(&Hook::FunctionExit(SPLICE_FUNCTIONS))),
                    ],
                ),
                read(
                    "kprobe",
                    KPROBE,
                    &[
                        ("kprobe_read", Hook::Else(&Hook::Kprobe(READ_FUNCTIONS), "kprobe_read_iter", &READ_ITER)),
                        ("kprobe_splice", Hook::IfThere(&Hook::Kprobe(SPLICE_FUNCTIONS))),
                    ],
                ),
                read("raw_tracepoint", TRACEPOINT, &[("raw_read", Hook::RawTracepoint("mm_filemap_get_pages"))]),
            ],
        )
    },
    Probe::new(
        CACHE_FILL,
        &[
            // The cheaper one: no record is made.
            filled("raw_tracepoint", &[("raw_fill", Hook::RawTracepoint(ADDED))]),
            filled("tracepoint", &[("tp_fill", Hook::Tracepoint("filemap", ADDED))]),
            filled("tracepoint", &[("tp_fill_stackless", Hook::Tracepoint("filemap", ADDED))]),
        ],
    ),
    Probe::new(
        CACHE_EVICT,
        tracepoints!("filemap", || None, Some(proof::EVICT), "evict" => "mm_filemap_delete_from_page_cache"),
    ),
    Probe::new(RECLAIM_SCAN, tracepoints!("vmscan", silent_scans, None, "scan" => "mm_vmscan_lru_shrink_inactive")),
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

/// A way of seeing fadvise calls.
const fn advised(mode: &'static str, choice: Option<AttachMode>, programs: &'static [(&'static str, Hook)]) -> Way {
    Way { proof: Some(proof::ADVISE), ..Way::new(mode, choice, programs) }
}

/// A way of seeing pages that come.
const fn filled(mode: &'static str, programs: &'static [(&'static str, Hook)]) -> Way {
    Way { proof: Some(proof::FILL), ..Way::new(mode, None, programs) }
}

/// A way of seeing reads.
const fn read(mode: &'static str, choice: Option<AttachMode>, programs: &'static [(&'static str, Hook)]) -> Way {
    Way { proof: Some(proof::READ), ..Way::new(mode, choice, programs) }
}

const FENTRY: Option<AttachMode> = Some(AttachMode::Fentry);
const KPROBE: Option<AttachMode> = Some(AttachMode::Kprobe);
const TRACEPOINT: Option<AttachMode> = Some(AttachMode::Tracepoint);

fn silent_scans() -> Option<&'static str> {
    os::scans_are_silent().then_some("the multi-generational LRU of kernels before 6.7 does not tell what it scans")
}

/// Before, fexit of a function that sleeps is not safe: what is detached is freed while a thread is still to return to it.
fn frees_what_sleeps() -> Option<&'static str> {
    (os::kernel_version() < (5, 12)).then_some("kernels before 5.12 may free it under a thread that sleeps")
}

/// What every thread sleeps in that waits for I/O.
const SLEEP: &[&str] = &["io_schedule"];
/// What some of them do, above all writers that are throttled.
const SLEEP_TIMEOUT: &[&str] = &["io_schedule_timeout"];
const ADDED: &str = "mm_filemap_add_to_page_cache";

/// What the system call does its work in; that of 32-bit programs too.
const FADVISE_FUNCTIONS: &[&str] = &["ksys_fadvise64_64"];
/// Its own function, where the other is inlined or not there: now, and before 4.17.
#[cfg(target_arch = "x86_64")]
const FADVISE_CALLS: &[&str] = &["__x64_sys_fadvise64", "sys_fadvise64"];
#[cfg(target_arch = "aarch64")]
const FADVISE_CALLS: &[&str] = &["__arm64_sys_fadvise64_64", "sys_fadvise64_64"];
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

/// The programs attached, in the order in which they are detached when it is dropped.
#[derive(Default)]
pub struct Running(Vec<Attached>);

/// An attached program.
struct Attached {
    probe: &'static str,
    mode: &'static str,
    /// Another probe that it counts for.
    also: Option<&'static str>,
    /// Also held for its `Drop`.
    link: Link,
    program: Program,
}

impl Attached {
    fn counts_for(&self, probe: &str) -> bool {
        self.probe == probe || self.also == Some(probe)
    }

    /// Events that it missed; `None` where the kernel does not count them.
    fn missed(&self) -> Result<Option<u64>, Error> {
        Ok(match self.program.missed()? {
            Some(missed) => Some(missed + self.link.missed()?),
            None => None,
        })
    }
}

impl Running {
    /// Attaches each probe that the configuration wants, in the first way that works.
    pub fn start(loader: &Loader, config: &config::Collector, kernel: Kernel) -> (Self, Vec<ProbeStatus>) {
        let mut running = Self::default();
        let mut probes = Vec::new();
        for probe in PROBES.iter().filter(|p| config.probes.contains(&p.name)) {
            let switch = (probe.switch)(config);
            if switch == Switch::Off {
                continue;
            }
            let (ways, passed_over) = attach::ladder(probe.ways, switch == Switch::Auto, config.ebpf.attach, kernel);
            let status = running.add(loader, probe, &ways, passed_over);
            if status.mode.is_none() && switch == Switch::Auto {
                log::info!("probe {} is left out, its metrics are absent", probe.name);
                tell_refused(&status, Level::Info);
            } else {
                probes.push(status);
            }
        }
        (running, probes)
    }

    fn add(&mut self, loader: &Loader, probe: &Probe, ways: &[&Way], passed_over: Failures) -> ProbeStatus {
        let mut status = ProbeStatus { name: probe.name, mode: None, failures: passed_over };
        for a in self.0.iter_mut().filter(|a| probe.counted_by.contains(&a.program.name())) {
            a.also = Some(probe.name);
            status.mode = Some(a.mode);
            status.failures.clear();
        }
        if status.mode.is_some() {
            return status;
        }
        if let Some((mode, programs)) = loader.attach_first(ways, &mut status.failures) {
            status.mode = Some(mode);
            // The last attached is the first to go.
            let new = programs.into_iter().rev();
            let new = new.map(|(program, link)| Attached { probe: probe.name, mode, also: None, link, program });
            self.0.splice(0..0, new);
        }
        status
    }

    /// Events that the programs of each probe missed; a probe is left out if the kernel does not count those of each.
    pub fn missed(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let mut by_probe = Vec::new();
        for probe in PROBES {
            let mut programs = self.0.iter().filter(|a| a.counts_for(probe.name)).peekable();
            if programs.peek().is_none() {
                continue;
            }
            let missed: Result<Vec<Option<u64>>, Error> = programs.map(Attached::missed).collect();
            by_probe.extend(missed?.into_iter().sum::<Option<u64>>().map(|missed| (probe.name, missed)));
        }
        Ok(by_probe)
    }
}

/// Tells the refused ways of a probe, each in a line.
pub fn tell_refused(probe: &ProbeStatus, level: Level) {
    for (mode, why) in &probe.failures {
        log::log!(level, "probe {}: not by {mode}: {why}", probe.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let (ways, passed_over) = attach::ladder(probe.ways, switch == Switch::Auto, choice, kernel);
            let names = |modes: &mut dyn Iterator<Item = &'static str>| modes.collect::<Vec<_>>().join(" ");
            (names(&mut ways.iter().map(|w| w.mode)), names(&mut passed_over.iter().map(|(mode, _)| *mode)))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let kernel = |version, preemptible| Kernel { version, preemptible };
        let (auto, on) = (AttachMode::Auto, Switch::On);
        for calm in [kernel((7, 2), false), kernel((5, 10), true)] {
            assert_eq!(modes(FADVISE, on, auto, calm), pair("fexit fexit kprobe kprobe tracepoint", ""));
            assert_eq!(modes(READ_LATENCY, Switch::Auto, auto, calm), pair("fexit", ""));
        }
        let (early, late) = (kernel((6, 12), true), kernel((7, 2), true));
        assert_eq!(modes(FADVISE, on, auto, early), pair("kprobe kprobe tracepoint fexit fexit", "fexit"));
        assert_eq!(modes(FADVISE, on, auto, late), pair("kprobe kprobe fexit fexit tracepoint", "fexit tracepoint"));
        assert_eq!(modes(CACHE_READ, on, auto, early), pair("kprobe raw_tracepoint fexit", "fexit"));
        assert_eq!(modes(CACHE_READ, on, auto, late), pair("kprobe fexit raw_tracepoint", "fexit raw_tracepoint"));
        assert_eq!(modes(READ_LATENCY, Switch::Auto, auto, late), pair("", "fexit"));
        assert_eq!(modes(READ_LATENCY, on, auto, late), pair("fexit", "fexit"));
        // What the configuration names is taken.
        assert_eq!(modes(FADVISE, on, AttachMode::Fentry, late), pair("fexit fexit", ""));
        assert_eq!(modes(READ_LATENCY, Switch::Auto, AttachMode::Fentry, late), pair("fexit", ""));
        assert_eq!(modes(READ_LATENCY, on, AttachMode::Kprobe, late), pair("", "fexit"));
    }
}
