//! Cumulative rows of processes, built from what each interval's map held.
//!
//! A row lives as long as its process, and about a minute longer. What has no room, and what belonged to
//! processes since forgotten, is in the overflow: nothing is lost from the sum.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ebpf::abi::{MAX_PROCS, ProcKey, ProcRow, START_SHIFT};
use crate::ebpf::os;
use crate::metrics::snapshot::ProcessRow;

/// Rows kept.
const MAX_ROWS: usize = MAX_PROCS;
/// A row is kept this long after the last event of a process that has gone.
const LINGER: Duration = Duration::from_secs(60);
/// And this long where it cannot be told whether the process has gone.
const LINGER_BLIND: Duration = Duration::from_secs(15 * 60);
/// Processes looked up in /proc in one tick: what bounds its cost. More when room is wanted.
const CHECKS: usize = 64;
const CHECKS_WHEN_FULL: usize = 1024;

struct Row {
    comm: String,
    calls: u64,
    success: u64,
    last_event: Instant,
}

/// Whether a process still runs; `None` if that cannot be told.
pub type IsAlive = fn(&ProcKey) -> Option<bool>;

/// The rows.
pub struct Processes {
    rows: HashMap<ProcKey, Row>,
    /// Every key of `rows` once, the one checked longest ago first.
    to_check: VecDeque<ProcKey>,
    overflow_calls: u64,
    overflow_success: u64,
    is_alive: IsAlive,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new(is_alive_here())
    }
}

impl Processes {
    fn new(is_alive: IsAlive) -> Self {
        Self { rows: HashMap::new(), to_check: VecDeque::new(), overflow_calls: 0, overflow_success: 0, is_alive }
    }

    /// Adds one interval's rows.
    pub fn absorb(&mut self, interval: &[(ProcKey, ProcRow)], now: Instant) {
        let fresh = interval.iter().filter(|(k, _)| !self.rows.contains_key(k)).count();
        let full = self.rows.len() + fresh > MAX_ROWS;
        self.forget(now, full);
        for (key, row) in interval.iter().filter(|(_, r)| r.fadvise_calls > 0) {
            let has_room = self.rows.len() < MAX_ROWS;
            match self.rows.entry(*key) {
                Entry::Occupied(mut e) => {
                    let r = e.get_mut();
                    r.calls += row.fadvise_calls;
                    r.success += row.fadvise_success;
                    r.last_event = now;
                    let comm = comm_text(&row.comm);
                    if r.comm != comm {
                        r.comm = comm; // it called exec, or renamed itself
                    }
                }
                Entry::Vacant(e) if has_room => {
                    e.insert(Row {
                        comm: comm_text(&row.comm),
                        calls: row.fadvise_calls,
                        success: row.fadvise_success,
                        last_event: now,
                    });
                    self.to_check.push_back(*key);
                }
                Entry::Vacant(_) => {
                    self.overflow_calls += row.fadvise_calls;
                    self.overflow_success += row.fadvise_success;
                }
            }
        }
    }

    /// Moves rows of processes that have gone into the overflow.
    fn forget(&mut self, now: Instant, want_room: bool) {
        let checks = if want_room { CHECKS_WHEN_FULL } else { CHECKS };
        for _ in 0..checks.min(self.to_check.len()) {
            let Some(key) = self.to_check.pop_front() else { break };
            let Some(row) = self.rows.get(&key) else { continue };
            let idle = now.saturating_duration_since(row.last_event);
            let gone = (idle >= LINGER || want_room)
                && match (self.is_alive)(&key) {
                    Some(alive) => !alive,
                    None => idle >= LINGER_BLIND,
                };
            if gone {
                self.overflow_calls += row.calls;
                self.overflow_success += row.success;
                self.rows.remove(&key);
            } else {
                self.to_check.push_back(key);
            }
        }
    }

    /// Number of processes with a row.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no process has a row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, most calls first, and last the overflow, if anything is in it; `lost` are the calls (and
    /// of those the successful ones) that the kernel's map had no room for.
    pub fn rows(&self, lost: (u64, u64)) -> Vec<ProcessRow> {
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .map(|(k, r)| ProcessRow { pid: k.tgid, comm: r.comm.clone(), calls: r.calls, success: r.success })
            .collect();
        rows.sort_unstable_by(|a, b| b.calls.cmp(&a.calls).then(a.pid.cmp(&b.pid)));
        let calls = self.overflow_calls + lost.0;
        if calls > 0 {
            let success = self.overflow_success + lost.1;
            rows.push(ProcessRow { pid: 0, comm: "overflow".into(), calls, success });
        }
        rows
    }
}

/// A task's name; bytes that are no UTF-8 are replaced.
fn comm_text(comm: &[u8]) -> String {
    let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
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

    fn key(tgid: u32) -> ProcKey {
        ProcKey { tgid, start: tgid * 10 }
    }

    fn row(calls: u64, success: u64, name: &str) -> ProcRow {
        let mut r = ProcRow { fadvise_calls: calls, fadvise_success: success, ..Default::default() };
        r.comm[..name.len()].copy_from_slice(name.as_bytes());
        r
    }

    fn sum(rows: &[ProcessRow]) -> (u64, u64) {
        rows.iter().fold((0, 0), |s, r| (s.0 + r.calls, s.1 + r.success))
    }

    #[test]
    fn rows_accumulate_and_follow_a_new_name() {
        let mut p = Processes::new(|_| Some(true));
        let now = Instant::now();
        p.absorb(&[(key(1), row(3, 2, "sh")), (key(2), row(9, 9, "db"))], now);
        p.absorb(&[(key(1), row(4, 4, "cp"))], now);
        let rows = p.rows((0, 0));
        assert_eq!(rows[0], ProcessRow { pid: 2, comm: "db".into(), calls: 9, success: 9 });
        assert_eq!(rows[1], ProcessRow { pid: 1, comm: "cp".into(), calls: 7, success: 6 });
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut p = Processes::new(|_| Some(true));
        let now = Instant::now();
        let later = ProcKey { start: 99, ..key(1) };
        p.absorb(&[(key(1), row(1, 1, "a")), (later, row(1, 1, "b"))], now);
        assert_eq!(p.len(), 2);
    }

    #[test]
    fn who_has_gone_is_forgotten_after_a_while_and_stays_in_the_sum() {
        let mut p = Processes::new(|k| Some(k.tgid == 2));
        let start = Instant::now();
        p.absorb(&[(key(1), row(3, 2, "gone")), (key(2), row(5, 5, "lives"))], start);
        p.absorb(&[], start + LINGER / 2);
        assert_eq!(p.len(), 2, "too early to forget");
        p.absorb(&[], start + LINGER);
        let rows = p.rows((0, 0));
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1], ProcessRow { pid: 0, comm: "overflow".into(), calls: 3, success: 2 });
        assert_eq!(sum(&rows), (8, 7));
    }

    #[test]
    fn without_sight_of_the_processes_only_long_idle_ones_are_forgotten() {
        let mut p = Processes::new(|_| None);
        let start = Instant::now();
        p.absorb(&[(key(1), row(3, 2, "x"))], start);
        p.absorb(&[], start + LINGER_BLIND - Duration::from_secs(1));
        assert_eq!(p.len(), 1);
        p.absorb(&[], start + LINGER_BLIND);
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
            p.absorb(&interval, now);
            assert!(p.len() <= MAX_ROWS);
            assert_eq!(p.to_check.len(), p.len());
            assert_eq!(sum(&p.rows((0, 0))), (2 * made, made));
        }
        assert_eq!(sum(&p.rows((10, 4))), (2 * made + 10, made + 4), "what the kernel had no room for");
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
