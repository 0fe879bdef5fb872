use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::reading::{Amounts, Rates, Reading};
use super::*;
use crate::metrics::diagnosis::{Confidence, PATTERNS};
use crate::monitor::catalogue::CATALOGUE;
use crate::monitor::example;

const PAGE: f64 = 4096.0;
const MIB: f64 = 1048576.0;
const INTERVAL: u64 = 10;

/// What grows in a second: bytes, and seconds.
#[derive(Clone, Default)]
struct Load {
    read: f64,
    fills: [f64; 3],
    evictions: [f64; 3],
    waits: [f64; 5],
    stalls: f64,
    reclaimed: [f64; 2],
    refaults: f64,
    refills: Option<[f64; 2]>,
    curve: Vec<(f64, f64)>,
}

/// A host that does little.
fn idle() -> Load {
    Load { read: 0.1 * MIB, fills: [0.02 * MIB, 0.05 * MIB, 0.01 * MIB], waits: [0.001; 5], ..Default::default() }
}

struct Host {
    diagnoser: Diagnoser,
    reading: Reading,
    hidden: fn(&mut Reading),
}

impl Host {
    fn new(hidden: fn(&mut Reading)) -> Self {
        let totals = Amounts {
            read: Some(0.0),
            fills: Some([0.0; 3]),
            evictions: Some([0.0; 3]),
            waits: Some([0.0; 5]),
            read_waits: None,
            stalls: Some(0.0),
            reclaimed: Some([0.0; 2]),
            refaults: Some(0.0),
            refills: Some([0.0; 2]),
        };
        let (at, instant) = (UNIX_EPOCH, Instant::now());
        let reading = Reading { sequence: 0, at, instant, totals, missed: 0.0, curve: Vec::new(), page: PAGE };
        Self { diagnoser: Diagnoser::default(), reading, hidden }
    }

    /// After one more interval under this load.
    fn step(&mut self, load: &Load) -> Diagnosis {
        let seconds = INTERVAL as f64;
        let r = &mut self.reading;
        (r.sequence, r.at, r.instant) =
            (r.sequence + 1, r.at + Duration::from_secs(INTERVAL), r.instant + Duration::from_secs(INTERVAL));
        let pages = |bytes: f64| bytes * seconds / PAGE;
        fn add<const N: usize>(to: &mut Option<[f64; N]>, more: [f64; N]) {
            to.iter_mut().flatten().zip(more).for_each(|(a, b)| *a += b);
        }
        let t = &mut r.totals;
        t.read = t.read.map(|n| n + pages(load.read));
        add(&mut t.fills, load.fills.map(pages));
        add(&mut t.evictions, load.evictions.map(pages));
        add(&mut t.waits, load.waits.map(|s| s * seconds));
        t.stalls = t.stalls.map(|s| s + load.stalls * seconds);
        add(&mut t.reclaimed, load.reclaimed.map(pages));
        t.refaults = t.refaults.map(|n| n + pages(load.refaults));
        match load.refills {
            Some(more) => add(&mut t.refills, more.map(pages)),
            None => t.refills = None,
        }
        r.curve = load.curve.clone();
        (self.hidden)(r);
        self.diagnoser.observe(r.clone())
    }

    fn after(&mut self, load: &Load, intervals: usize) -> Diagnosis {
        (1..intervals).for_each(|_| drop(self.step(load)));
        self.step(load)
    }
}

fn see_all(_: &mut Reading) {}

fn patterns(d: &Diagnosis) -> Vec<&'static str> {
    d.verdicts.iter().map(|v| v.pattern.name()).collect()
}

/// What a load is called after two minutes; each time it is the same after one more.
fn of(load: &Load) -> (Vec<&'static str>, Diagnosis) {
    let mut host = Host::new(see_all);
    let d = host.after(load, 13);
    assert_eq!(patterns(&d), patterns(&host.step(load)));
    (patterns(&d), d)
}

#[test]
fn the_first_collection_says_nothing_and_an_idle_host_is_well() {
    let mut host = Host::new(see_all);
    let first = host.step(&idle());
    assert!(first.window.is_zero() && first.headline().starts_with("Nothing can be said yet"), "{first:?}");
    let d = host.after(&idle(), 5);
    assert_eq!(patterns(&d), ["all_is_well"]);
    assert_eq!(d.headline(), "All is well");
    assert_eq!(d.window, Duration::from_secs(50));
    // Nothing at all happens.
    assert_eq!(of(&Load { refills: Some([0.0; 2]), ..Default::default() }).0, ["all_is_well"]);
}

#[test]
fn each_load_has_its_name_and_no_other() {
    let cold = Load { read: 50.0 * MIB, fills: [40.0 * MIB, 0.0, 0.0], waits: [0.6, 0.0, 0.0, 0.0, 0.0], ..idle() };
    let mapped = Load { read: 0.0, fills: [0.0, 0.0, 30.0 * MIB], waits: [0.0, 0.8, 0.0, 0.0, 0.0], ..idle() };
    let backup = Load { evictions: [40.0 * MIB, 0.0, 0.0], reclaimed: [0.0, 40.0 * MIB], ..cold.clone() };
    let pressure = Load { refaults: 38.0 * MIB, ..backup.clone() };
    let limit = Load { reclaimed: [40.0 * MIB, 1.0 * MIB], ..pressure.clone() };
    let stalls = Load { stalls: 0.4, reclaimed: [0.0, 1.0 * MIB], ..idle() };
    let dropped = Load { evictions: [0.0, 40.0 * MIB, 0.0], refills: Some([0.0, 39.0 * MIB]), ..cold.clone() };
    let dropped_warm = Load { read: 100.0 * MIB, evictions: [0.0, 40.0 * MIB, 0.0], refills: None, ..idle() };
    let dropped_once = Load { refills: Some([0.0, 0.4 * MIB]), ..dropped_warm.clone() };
    let dropped_unknown = Load { refills: None, ..dropped.clone() };
    let ahead = Load { read: 4.0 * MIB, fills: [40.0 * MIB, 0.0, 0.0], waits: [0.5, 0.0, 0.0, 0.0, 0.0], ..idle() };
    let throttled = Load { fills: [0.0, 80.0 * MIB, 0.0], waits: [0.0, 0.0, 1.5, 0.0, 0.0], ..idle() };
    let synced = Load { fills: [0.0, 1.0 * MIB, 0.0], waits: [0.01, 0.0, 0.05, 0.9, 0.0], ..idle() };
    let merge = Load {
        read: 60.0 * MIB,
        fills: [50.0 * MIB, 50.0 * MIB, 0.0],
        evictions: [0.0, 0.0, 55.0 * MIB],
        waits: [0.3, 0.0, 0.0, 0.0, 0.0],
        ..idle()
    };
    let small = Load { curve: vec![(0.5, 20.0), (1.0, 30.0), (2.0, 60.0), (4.0, 90.0), (8.0, 91.0)], ..cold.clone() };
    for (load, expected) in [
        (&cold, vec!["cold_data"]),
        (&mapped, vec!["cold_data"]),
        (&backup, vec!["cold_data"]),
        (&pressure, vec!["memory_pressure_host"]),
        (&limit, vec!["memory_pressure_cgroup"]),
        (&stalls, vec!["memory_pressure_host"]),
        (&dropped, vec!["policy_eviction_hurts"]),
        (&dropped_warm, vec!["policy_eviction_harmless", "all_is_well"]),
        (&dropped_once, vec!["policy_eviction_harmless", "all_is_well"]),
        (&dropped_unknown, vec!["policy_eviction"]),
        (&ahead, vec!["readahead_in_vain"]),
        (&throttled, vec!["write_throttling"]),
        (&synced, vec!["sync_bound"]),
        (&merge, vec!["compaction_harmless", "all_is_well"]),
        (&small, vec!["cache_too_small", "cold_data"]),
    ] {
        let (got, d) = of(load);
        assert_eq!(got, expected, "{d:#?}");
        assert_eq!(expected.contains(&"all_is_well"), d.headline().starts_with("All is well"), "{}", d.headline());
        for v in &d.verdicts {
            assert!(!v.summary.is_empty() && v.numbers.iter().all(|n| n.value.is_finite()), "{v:?}");
            assert!(v.waited.is_none_or(|w| w.is_finite() && w >= 0.0), "{v:?}");
        }
    }
    let (got, d) = of(&Load {
        evictions: [40.0 * MIB, 0.0, 55.0 * MIB],
        refaults: 45.0 * MIB,
        reclaimed: [0.0, 40.0 * MIB],
        ..merge
    });
    assert_eq!(got, ["memory_pressure_host", "compaction_hurts"], "{d:#?}");
    assert!(d.headline().ends_with("(and 1 more)"), "{}", d.headline());
}

#[test]
fn what_it_costs_is_what_it_causes() {
    let load = Load {
        read: 50.0 * MIB,
        fills: [40.0 * MIB, 0.0, 0.0],
        evictions: [30.0 * MIB, 0.0, 0.0],
        waits: [0.8, 0.0, 0.3, 0.1, 0.0],
        stalls: 0.25,
        reclaimed: [0.0, 30.0 * MIB],
        refaults: 20.0 * MIB,
        ..idle()
    };
    let d = of(&load).1;
    let v = &d.verdicts[0];
    assert_eq!(v.pattern, Pattern::MemoryPressureHost);
    // Half of what is missing had been there; and the stalls.
    assert!((v.waited.unwrap() - 0.65).abs() < 0.01, "{v:?}");
    assert!((v.read_again.unwrap() / MIB - 20.0).abs() < 0.1, "{v:?}");
    assert_eq!(v.confidence, Confidence::Certain, "stalls are counted");
}

#[test]
fn pages_given_up_on_request_are_told_as_that() {
    let load = Load {
        read: 50.0 * MIB,
        fills: [40.0 * MIB, 0.0, 0.0],
        evictions: [40.0 * MIB, 0.0, 0.0],
        refaults: 38.0 * MIB,
        ..idle()
    };
    let (got, d) = of(&load);
    assert_eq!(got, ["memory_pressure_host"]);
    assert!(d.verdicts[0].summary.contains("DAMON"), "{}", d.verdicts[0].summary);
}

#[test]
fn what_cannot_be_seen_is_said_and_not_guessed() {
    // As on a host with tracepoints alone, without the sample of pages.
    let mut host = Host::new(|r| (r.totals.waits, r.totals.refills) = (None, None));
    let d = host.after(&idle(), 8);
    assert_eq!(patterns(&d), ["all_is_well"]);
    for pattern in [Pattern::WriteThrottling, Pattern::SyncBound, Pattern::CacheTooSmall] {
        assert_eq!(d.active(pattern), None, "{}", pattern.name());
    }
    for pattern in [Pattern::ColdData, Pattern::MemoryPressureHost, Pattern::Blind] {
        assert_eq!(d.active(pattern), Some(false), "{}", pattern.name());
    }
    assert_eq!(d.active(Pattern::AllIsWell), Some(true));
    let dropped = Load {
        read: 50.0 * MIB,
        fills: [40.0 * MIB, 0.0, 0.0],
        evictions: [0.0, 40.0 * MIB, 0.0],
        refills: None,
        ..idle()
    };
    let d = host.after(&dropped, 8);
    assert_eq!(patterns(&d), ["policy_eviction"]);
    assert_eq!(d.active(Pattern::PolicyEvictionHurts), None);
    assert!(d.unseen.iter().all(|u| !u.needs.is_empty()));

    // Without attempts, as on 5.10 by tracepoints.
    let d = Host::new(|r| r.totals.read = None).after(&idle(), 8);
    assert_eq!(patterns(&d), ["blind"]);
    assert!(d.headline().contains("cache_read"), "{}", d.headline());
    let d =
        Host::new(|Reading { totals: t, .. }| (t.fills, t.evictions, t.read) = (None, None, None)).after(&idle(), 8);
    assert_eq!(patterns(&d), ["blind"]);
    let d = Host::new(|r| r.missed += 1000.0).after(&idle(), 8);
    assert_eq!(patterns(&d), ["blind"], "a program that misses much");
}

#[test]
fn a_verdict_stays_three_intervals_and_does_not_come_and_go() {
    let mut host = Host::new(see_all);
    host.after(&idle(), 8);
    let burst = Load { waits: [0.0, 0.0, 30.0, 0.0, 0.0], ..idle() };
    let begun = host.step(&burst);
    assert_eq!(patterns(&begun), ["write_throttling"]);
    let mut seen = 1;
    loop {
        let d = host.step(&idle());
        if patterns(&d) == ["all_is_well"] {
            break;
        }
        assert_eq!(patterns(&d), ["write_throttling"]);
        assert_eq!(d.verdicts[0].since, begun.at, "since when it is there");
        seen += 1;
    }
    assert!((3..=8).contains(&seen), "{seen} intervals");

    // About the threshold, and the minute over which it is averaged is not told of each crossing.
    let mut host = Host::new(see_all);
    let about =
        |i: usize| Load { waits: [0.0, 0.0, if i.is_multiple_of(2) { 0.13 } else { 0.08 }, 0.0, 0.0], ..idle() };
    let all: Vec<bool> = (0..60).map(|i| host.step(&about(i)).active(Pattern::WriteThrottling) == Some(true)).collect();
    let changes = all.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes <= 1, "{all:?}");
}

#[test]
fn counters_that_begin_anew_are_no_load() {
    let mut host = Host::new(see_all);
    host.after(&Load { read: 900.0 * MIB, ..idle() }, 8);
    host.reading.totals = Host::new(see_all).reading.totals;
    let d = host.step(&idle());
    assert!(d.window.is_zero(), "{d:?}");
    assert_eq!(patterns(&host.after(&idle(), 2)), ["all_is_well"]);
}

#[test]
fn a_reading_is_of_metrics_that_there_are() {
    let snapshot = example::snapshot();
    let reading = Reading::of(&snapshot, Some(7), 4096);
    let t = &reading.totals;
    assert_eq!((t.read, t.fills), (Some(16384.0), Some([384.0, 512.0, 33.0])));
    assert_eq!(t.evictions, Some([640.0, 128.0, 5.0]));
    assert_eq!(t.reclaimed, Some([60.0, 4200.0]));
    assert_eq!(t.waits, Some([1e-7, 1.01e-7, 1.02e-7, 1.03e-7, 1.04e-7]));
    assert_eq!((t.read_waits, t.stalls), (Some(0.987654321), Some(1.234567891)));
    assert_eq!(t.refaults, Some(7.0));
    assert!(CATALOGUE.iter().any(|m| m.name == "ebpf_diagnosis_active" && m.label_values == [&PATTERNS[..]]));
}

#[test]
fn no_rates_without_time() {
    let reading = Host::new(see_all).reading;
    assert_eq!(Rates::between(&reading, &reading), None);
    let _: SystemTime = reading.at;
}
