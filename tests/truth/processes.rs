//! Rows of processes: nothing lost while they are drained, and bounded however many processes there are.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::common::sys::{self, page};
use crate::common::{self, Agent, Delta, Scoped, TestFile};

/// Calls and successful calls in the rows of one process.
pub fn rows_of(agent: &Agent, pid: u32) -> (u64, u64) {
    let stats = agent.stats();
    let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
    let of = |key| rows.iter().filter(|r| r["pid"] == pid).map(|r| r[key].as_u64().unwrap()).sum();
    (of("call_count"), of("success_count"))
}

#[test]
fn draining_loses_nothing() {
    need_bpf!("draining_loses_nothing");
    let s = Scoped::start(common::sized(&[("COLLECTOR_INTERVAL", "20ms")], &[]));
    let f = TestFile::new("million", page());
    let least: u64 = common::sized(1_000_000, 20_000);
    s.agent.settled();
    let me = common::kernel_pid(&s.agent);
    let before = rows_of(&s.agent, me);
    let (calls, drained) = (AtomicU64::new(0), AtomicBool::new(false));
    let (d, _) = s.agent.during(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // However fast calls are here: until enough are made, and were drained meanwhile.
                    while calls.load(Ordering::Relaxed) < least || !drained.load(Ordering::Relaxed) {
                        for _ in 0..1000 {
                            sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
                        }
                        calls.fetch_add(1000, Ordering::Relaxed);
                    }
                });
            }
            // Ends the threads also if waiting panics.
            let _drained = SetAtEnd(&drained);
            let begun = s.agent.metrics().get("ebpf_sidecar_snapshot_sequence");
            s.agent.wait(|m| m.get("ebpf_sidecar_snapshot_sequence") >= begun + 6.0);
        });
    });
    let calls = calls.into_inner();
    // Each call is counted, or told of as missed.
    let missed = d.missed("fadvise");
    assert_eq!(d.of("ebpf_fadvise_calls_total") + missed, calls as f64);
    assert_eq!(d.of("ebpf_fadvise_success_total") + missed, calls as f64);
    let made = calls - missed as u64;
    let after = rows_of(&s.agent, me);
    assert_eq!((after.0 - before.0, after.1 - before.1), (made, made));
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn short_lived_processes_stay_bounded() {
    need_bpf!("short_lived_processes_stay_bounded");
    // More than there are rows, 5120.
    let processes = common::sized(20_000, 5_300);
    // One interval holds them all, then a short one.
    for interval in common::sized(&["5s", "50ms"][..], &["2s"]) {
        // The history has a bound of its own.
        let s = Scoped::start(&[("COLLECTOR_INTERVAL", interval), ("COLLECTOR_HISTORY", "10ms")]);
        let f = TestFile::new("forked", page());
        let own = s.agent.own_kib();
        // Nothing was in the scope before.
        let before = s.agent.metrics();
        for _ in 0..processes / 100 {
            let children: Vec<_> = (0..100).map(|_| sys::fork_one_fadvise(f.file.as_raw_fd())).collect();
            children.into_iter().for_each(sys::wait_for);
        }
        let d = Delta { before, after: s.agent.settled() };
        let calls = d.of("ebpf_fadvise_calls_total") + d.missed("fadvise");
        assert_eq!(calls, f64::from(processes), "{interval};{}", d.moved());
        let stats = s.agent.stats();
        let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
        let sum: u64 = rows.iter().map(|r| r["call_count"].as_u64().unwrap()).sum();
        assert_eq!(stats["fadvise"]["total_calls"], sum, "{interval}: rows + overflow = total");
        assert!(rows.len() <= 5121, "{interval}: {} rows", rows.len());
        let overflow = rows.iter().find(|r| r["pid"] == 0).expect("an overflow row");
        assert_eq!(overflow["comm"], "overflow");
        let grown = s.agent.own_kib().saturating_sub(own);
        assert!(grown < 8 * 1024, "{interval}: resident memory grew by {grown} KiB");
    }
}

/// What the rows of processes have of `key`, the overflow row apart.
fn of_rows(agent: &Agent, key: &str) -> (Vec<u64>, u64) {
    let stats = agent.stats();
    let rows = stats["processes"].as_array().expect("rows");
    let sum =
        |overflow: bool| rows.iter().filter(move |r| (r["pid"] == 0) == overflow).map(|r| r[key].as_u64().unwrap());
    let mut each: Vec<u64> = sum(false).filter(|n| *n > 0).collect();
    each.sort_unstable();
    (each, sum(true).sum())
}

/// More processes than a CPU has places for, each of which ends at once.
#[test]
fn what_each_of_many_short_processes_read_is_in_its_row() {
    need_bpf!("what_each_of_many_short_processes_read_is_in_its_row");
    // An agent of its own: nothing was in the scope before.
    let s = Scoped::start(&[("COLLECTOR_HISTORY", "1s")]);
    let f = TestFile::cold("by process", 8 * page());
    let before = s.agent.settled();
    if !before.0.contains_key("ebpf_cache_read_attempts_total") {
        return common::skipped("what_each_of_many_short_processes_read_is_in_its_row", "no read attempts here");
    }
    let reads: Vec<u64> = (0..90).map(|i| 1 + i % 7).collect();
    let children: Vec<_> = reads.iter().map(|n| sys::fork_reads(f.file.as_raw_fd(), *n as usize)).collect();
    children.into_iter().for_each(sys::wait_for);
    let d = Delta { before, after: s.agent.settled() };
    let (rows, overflow) = of_rows(&s.agent, "read_attempts");
    assert_eq!((rows.iter().sum::<u64>() as f64, overflow), (d.of("ebpf_cache_read_attempts_total"), 0));
    // On a preemptible kernel programs can be skipped, which is told: then the rows are less by no more.
    if d.missed("cache_read") == 0.0 {
        let mut expected = reads.clone();
        expected.sort_unstable();
        assert_eq!(rows, expected);
    }
    // The first that came filled the file.
    let (misses, overflow) = of_rows(&s.agent, "misses");
    assert_eq!((misses.iter().sum::<u64>() as f64, overflow), (d.misses(), 0));
}

/// The rows and the overflow are the whole, also of more processes than there are rows.
#[test]
fn reads_of_more_processes_than_rows_add_up() {
    need_bpf!("reads_of_more_processes_than_rows_add_up");
    let processes = common::sized(12_000, 5_300);
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "2s"), ("COLLECTOR_HISTORY", "10ms")]);
    let f = TestFile::new("many", page());
    let before = s.agent.settled();
    if !before.0.contains_key("ebpf_cache_read_attempts_total") {
        return common::skipped("reads_of_more_processes_than_rows_add_up", "no read attempts here");
    }
    for _ in 0..processes / 100 {
        let children: Vec<_> = (0..100).map(|_| sys::fork_reads(f.file.as_raw_fd(), 1)).collect();
        children.into_iter().for_each(sys::wait_for);
    }
    let d = Delta { before, after: s.agent.settled() };
    assert_eq!(d.of("ebpf_cache_read_attempts_total") + d.missed("cache_read"), f64::from(processes), "{}", d.moved());
    let (rows, overflow) = of_rows(&s.agent, "read_attempts");
    assert!(rows.len() <= 100 && overflow > 0);
    assert_eq!((rows.iter().sum::<u64>() + overflow) as f64, d.of("ebpf_cache_read_attempts_total"));
}
