//! Cumulative rows of processes, built from what each interval's map held.
//!
//! A row lives as long as its process, and about a minute longer. What has no room, and what belonged to
//! processes since forgotten, is in the overflow: nothing is lost from the sum.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ledger::{Did, Ledger};
use super::reads::FILL_READ;
use super::rows::{IsAlive, Reading, comm_text};
use crate::ebpf::abi::{
    COMM_LEN, DID_FADVISE, DID_FADVISE_SUCCESS, DID_FILL, DID_READ_BYTES, DID_READ_PAGES, DID_WAIT_NS, DID_WAITS,
    FILL_CAUSES, MAX_PROCS, ProcKey, START_SHIFT,
};
use crate::ebpf::os;
use crate::metrics::snapshot::{Activity, ProcessRow};

/// Rows kept.
const MAX_ROWS: usize = MAX_PROCS;
/// With more of them than this those of processes that have gone make room at once: a dozen new ones a second have 720 for a
/// minute.
const AMPLE: usize = 1024;
/// A row is kept this long after the last event of a process that has gone.
const LINGER: Duration = Duration::from_secs(60);
/// And this long where it cannot be told whether the process has gone.
const LINGER_BLIND: Duration = Duration::from_secs(15 * 60);
/// Processes looked up in /proc in one tick: what bounds its cost. More when room is wanted.
const CHECKS: usize = 64;
const CHECKS_WHEN_FULL: usize = 1024;

/// The rows.
pub struct Processes {
    ledger: Ledger<ProcKey, [u8; COMM_LEN]>,
    /// Every key of the rows once, the one checked longest ago first.
    to_check: VecDeque<ProcKey>,
    is_alive: IsAlive,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new(is_alive_here())
    }
}

impl Processes {
    fn new(is_alive: IsAlive) -> Self {
        Self { ledger: Ledger::new(MAX_ROWS), to_check: VecDeque::new(), is_alive }
    }

    /// Adds a reading; the kernel had no room for `lost`, since the beginning.
    pub fn absorb(&mut self, reading: &Reading, lost: &Did, now: Instant) {
        let keys = reading.done.iter().map(|(k, _)| k).chain(reading.live.keys());
        let fresh = keys.filter(|k| self.ledger.get(&k.proc).is_none()).count();
        self.forget(now, fresh);
        let key = |proc: ProcKey| (proc != ProcKey::default()).then_some(proc);
        // It called exec, or renamed itself.
        let fresh = self.ledger.absorb(reading, lost, now, |k| key(k.proc), |comm, _, row| *comm = row.comm);
        self.to_check.extend(fresh);
    }

    /// Moves rows of processes that have gone into the overflow, when they have lingered or others come.
    fn forget(&mut self, now: Instant, coming: usize) {
        let checks = if self.ledger.len() + coming > AMPLE { CHECKS_WHEN_FULL } else { CHECKS };
        for _ in 0..checks.min(self.to_check.len()) {
            let want_room = self.ledger.len() + coming > AMPLE;
            let Some(key) = self.to_check.pop_front() else { break };
            let Some(row) = self.ledger.get(&key) else { continue };
            let idle = now.saturating_duration_since(row.last_event);
            let gone = (idle >= LINGER || want_room)
                && match (self.is_alive)(&key) {
                    Some(alive) => !alive,
                    None => idle >= LINGER_BLIND,
                };
            if !(gone && self.ledger.forget(&key)) {
                self.to_check.push_back(key);
            }
        }
    }

    /// When what the kernel has is lost, but for what it had no room for.
    pub fn keep_what_was_told(&mut self, lost: &Did) {
        self.ledger.keep_what_was_told(lost);
    }

    /// Number of processes with a row.
    pub fn len(&self) -> usize {
        self.ledger.len()
    }

    /// Whether no process has a row.
    pub fn is_empty(&self) -> bool {
        self.ledger.is_empty()
    }

    /// What all of them did.
    pub fn total(&self) -> Did {
        self.ledger.total()
    }

    /// The rows, most fadvise calls first, then most pages read, and last the overflow, if anything is in it.
    pub fn rows(&self) -> Vec<ProcessRow> {
        let row = |pid, comm, did: &Did| ProcessRow {
            pid,
            comm,
            calls: did[DID_FADVISE],
            success: did[DID_FADVISE_SUCCESS],
            reads: activity(did),
        };
        let mut rows: Vec<_> = self.ledger.rows().map(|(k, r)| row(k.tgid, comm_text(&r.about), &r.did)).collect();
        rows.sort_unstable_by(|a, b| (b.calls, b.reads.pages, a.pid).cmp(&(a.calls, a.reads.pages, b.pid)));
        let rest = self.ledger.rest();
        if rest != Did::default() {
            rows.push(row(0, "overflow".into(), &rest));
        }
        rows
    }
}

/// What of it is of reads.
pub fn activity(did: &Did) -> Activity {
    let fills = &did[DID_FILL..DID_FILL + FILL_CAUSES];
    Activity {
        pages: did[DID_READ_PAGES],
        misses: fills[FILL_READ],
        other_fills: fills.iter().sum::<u64>().wrapping_sub(fills[FILL_READ]),
        bytes: did[DID_READ_BYTES],
        waits: did[DID_WAITS],
        wait_ns: did[DID_WAIT_NS],
    }
}

/// How to tell whether a process still runs, from where the agent is.
pub fn is_alive_here() -> IsAlive {
    if in_initial_pid_namespace() { is_alive } else { |_| None }
}

/// Process ids of the kernel side are those of the initial pid namespace: in another, /proc speaks of other
/// processes. The initial one has a fixed inode (PROC_PID_INIT_INO, include/linux/proc_ns.h).
pub fn in_initial_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|m| m.ino() == 0xEFFF_FFFC)
}

/// Looks for the process in /proc; its start time, in clock ticks of 10 ms, tells it from a later one of the
/// same id.
fn is_alive(key: &ProcKey) -> Option<bool> {
    let stat = match fs::read_to_string(format!("/proc/{}/stat", key.tgid)) {
        // Where /proc hides processes (hidepid), init seems to have gone too.
        Err(e) => return (has_gone(&e) && Path::new("/proc/1").exists()).then_some(false),
        Ok(stat) => stat,
    };
    let started = os::stat_field::<u64>(&stat, 22)?;
    let (first, last) = (start(started * TICK_NS), start(started * TICK_NS + TICK_NS - 1));
    Some(key.start.wrapping_sub(first) <= last.wrapping_sub(first))
}

/// Whether this answer of /proc means that there is no such process, and not that the agent lacks something.
pub fn has_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// A clock tick of /proc (USER_HZ is 100 on every architecture here).
const TICK_NS: u64 = 10_000_000;

/// What a key has for a start so long after boot.
fn start(ns: u64) -> u32 {
    (ns >> START_SHIFT) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::abi::{ProcRow, RowKey};

    fn key(tgid: u32) -> ProcKey {
        ProcKey { tgid, start: tgid * 10 }
    }

    fn row(calls: u64, success: u64, name: &str) -> ProcRow {
        let mut r = ProcRow::default();
        (r.did[DID_FADVISE], r.did[DID_FADVISE_SUCCESS]) = (calls, success);
        r.comm[..name.len()].copy_from_slice(name.as_bytes());
        r
    }

    fn told(pid: u32, comm: &str, calls: u64, success: u64) -> ProcessRow {
        ProcessRow { pid, comm: comm.into(), calls, success, ..Default::default() }
    }

    fn absorb(p: &mut Processes, interval: &[(ProcKey, ProcRow)], now: Instant) {
        let row = |&(proc, row): &(ProcKey, ProcRow)| (RowKey { proc, cgroup: 1 }, row);
        let reading = Reading { done: interval.iter().map(row).collect(), ..Default::default() };
        p.absorb(&reading, &Did::default(), now);
    }

    fn sum(rows: &[ProcessRow]) -> (u64, u64) {
        rows.iter().fold((0, 0), |s, r| (s.0 + r.calls, s.1 + r.success))
    }

    #[test]
    fn rows_accumulate_and_follow_a_new_name() {
        let mut p = Processes::new(|_| Some(true));
        let now = Instant::now();
        absorb(&mut p, &[(key(1), row(3, 2, "sh")), (key(2), row(9, 9, "db"))], now);
        absorb(&mut p, &[(key(1), row(4, 4, "cp"))], now);
        assert_eq!(p.rows(), [told(2, "db", 9, 9), told(1, "cp", 7, 6)]);
    }

    #[test]
    fn a_process_in_two_cgroups_has_one_row() {
        let mut p = Processes::new(|_| Some(true));
        let of = |cgroup, n| (RowKey { proc: key(1), cgroup }, row(n, n, "runc"));
        let reading = Reading { done: vec![of(1, 3)], live: [of(1, 1), of(2, 4)].into() };
        p.absorb(&reading, &Did::default(), Instant::now());
        assert_eq!(p.rows(), [told(1, "runc", 8, 8)]);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut p = Processes::new(|_| Some(true));
        let later = ProcKey { start: 99, ..key(1) };
        absorb(&mut p, &[(key(1), row(1, 1, "a")), (later, row(1, 1, "b"))], Instant::now());
        assert_eq!(p.len(), 2);
    }

    #[test]
    fn who_has_gone_is_forgotten_after_a_while_and_stays_in_the_sum() {
        let mut p = Processes::new(|k| Some(k.tgid == 2));
        let start = Instant::now();
        absorb(&mut p, &[(key(1), row(3, 2, "gone")), (key(2), row(5, 5, "lives"))], start);
        absorb(&mut p, &[], start + LINGER / 2);
        assert_eq!(p.len(), 2, "too early to forget");
        absorb(&mut p, &[], start + LINGER);
        assert_eq!(p.rows(), [told(2, "lives", 5, 5), told(0, "overflow", 3, 2)]);
    }

    #[test]
    fn without_sight_of_the_processes_only_long_idle_ones_are_forgotten() {
        let mut p = Processes::new(|_| None);
        let start = Instant::now();
        absorb(&mut p, &[(key(1), row(3, 2, "x"))], start);
        absorb(&mut p, &[], start + LINGER_BLIND - Duration::from_secs(1));
        assert_eq!(p.len(), 1);
        absorb(&mut p, &[], start + LINGER_BLIND);
        assert_eq!(p.len(), 0);
    }

    #[test]
    fn rows_are_bounded_and_the_sum_is_kept() {
        let mut p = Processes::new(|_| Some(false));
        let now = Instant::now();
        let mut made = 0;
        for batch in 0..10 {
            let interval: Vec<_> = (0..3000).map(|i| (key(batch * 3000 + i + 1), row(2, 1, "w"))).collect();
            made += interval.len() as u64;
            absorb(&mut p, &interval, now);
            assert!(p.len() <= MAX_ROWS);
            assert_eq!(p.to_check.len(), p.len());
            assert_eq!(sum(&p.rows()), (2 * made, made));
        }
        let lost = row(10, 4, "").did;
        p.absorb(&Reading::default(), &lost, now);
        assert_eq!(sum(&p.rows()), (2 * made + 10, made + 4), "what the kernel had no room for");
    }

    #[test]
    fn what_is_told_of_reads() {
        let did: Did = std::array::from_fn(|i| 1 << i);
        let fills = 0b11110 << DID_FILL;
        let expected =
            Activity { pages: 4, misses: 1 << DID_FILL, other_fills: fills, bytes: 8, waits: 16, wait_ns: 32 };
        assert_eq!(activity(&did), expected);
    }

    #[test]
    fn liveness_of_this_process() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let ticks: u64 = os::stat_field(&stat, 22).unwrap();
        let me = ProcKey { tgid: std::process::id(), start: start(ticks * TICK_NS + 123) };
        assert_eq!(is_alive(&me), Some(true));
        assert_eq!(is_alive(&ProcKey { start: 0, ..me }), Some(false), "an earlier process of this id");
        assert_eq!(is_alive(&ProcKey { tgid: u32::MAX, ..me }), Some(false));
    }
}
