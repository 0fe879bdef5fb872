//! What the tests of all exporters have in common.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebpf_sidecar::export::engine::Exporter;
use ebpf_sidecar::export::prometheus;
use ebpf_sidecar::metrics::cell::SnapshotCell;
use ebpf_sidecar::metrics::export::State;
use ebpf_sidecar::metrics::snapshot::{Snapshot, Value};
use ebpf_sidecar::monitor::example;

use crate::common::Metrics;

/// Far longer than anything takes.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Writes the log where `TEST_LOG` asks for a level of it.
pub fn log() {
    let level = std::env::var("TEST_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(log::LevelFilter::Off);
    let _ = env_logger::Builder::new().filter_level(level).format_timestamp_millis().try_init();
}

/// What an exporter says of itself.
pub fn own_metrics(state: &'static State) -> Metrics {
    let snapshot = Snapshot { families: state.families(), ..example::snapshot() };
    Metrics::parse(&prometheus::text(&snapshot))
}

/// An exporter in this process, and the collections that it was given.
pub struct Setup<K> {
    pub exporter: Exporter,
    pub cell: SnapshotCell,
    pub made: u64,
    /// The points that they are.
    pub truth: BTreeMap<K, f64>,
    points_of: fn(&Snapshot) -> BTreeMap<K, f64>,
    state: &'static State,
    name: &'static str,
    pub before: Metrics,
}

impl<K: Ord> Setup<K> {
    /// With the first collection; `start` starts the exporter, whose state and name in its metrics these are.
    pub fn of(
        state: &'static State,
        name: &'static str,
        unhealthy_after: Duration,
        points_of: fn(&Snapshot) -> BTreeMap<K, f64>,
        start: impl FnOnce(&SnapshotCell) -> std::io::Result<Exporter>,
    ) -> Self {
        log();
        let first = collection(1);
        let truth = points_of(&first);
        let cell = SnapshotCell::new(first);
        state.started(unhealthy_after);
        let before = own_metrics(state);
        let exporter = start(&cell).unwrap();
        Self { exporter, cell, made: 1, truth, points_of, state, name, before }
    }

    /// Makes another collection.
    pub fn collect(&mut self) {
        self.made += 1;
        let next = collection(self.made);
        self.truth.extend((self.points_of)(&next));
        self.cell.store(next);
    }

    /// What a counter of the exporter has grown by.
    pub fn grown(&self, counter: &str, labels: &str) -> usize {
        let series = format!("ebpf_sidecar_export_{counter}{{exporter=\"{}\"{labels}}}", self.name);
        (own_metrics(self.state).get(&series) - self.before.get(&series)) as usize
    }

    /// The same, for a reason.
    pub fn grown_for(&self, counter: &str, reason: &str) -> usize {
        self.grown(counter, &format!(",reason=\"{reason}\""))
    }
}

pub fn wait_until(state: &State, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}; trouble: {:?}", state.trouble(Instant::now()));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The collection number `n`: other values and another time.
pub fn collection(n: u64) -> Snapshot {
    let mut snapshot = example::snapshot();
    snapshot.sequence = n;
    snapshot.collected_at += Duration::from_millis(1001 * n);
    for value in snapshot.families.iter_mut().flat_map(|f| &mut f.series).map(|s| &mut s.value) {
        match value {
            Value::Int(v) => *v += n,
            Value::Float(v) => *v += n as f64,
            _ => {}
        }
    }
    for row in snapshot.processes.iter_mut().flatten() {
        row.calls += n;
    }
    snapshot
}

/// Where the random numbers of a run begin: `TEST_SEED` repeats it.
pub fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = std::env::var("TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock.as_nanos() as u64);
    println!("TEST_SEED={seed}");
    seed
}

/// A random number generator (splitmix64): the same numbers for a seed on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
