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
    // More than there are rows, 4096.
    let processes = common::sized(20_000, 4_200);
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
        assert!(rows.len() <= 4097, "{interval}: {} rows", rows.len());
        let overflow = rows.iter().find(|r| r["pid"] == 0).expect("an overflow row");
        assert_eq!(overflow["comm"], "overflow");
        let grown = s.agent.own_kib().saturating_sub(own);
        assert!(grown < 8 * 1024, "{interval}: resident memory grew by {grown} KiB");
    }
}
