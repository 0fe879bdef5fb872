//! Threads in direct or memcg reclaim, as the kernel's map has them. An end that was missed leaves an entry behind: those
//! whose thread has gone, or does something else, are dropped.

use std::fs;

use super::processes;
use crate::ebpf::abi::{Plain, ProcKey, Stall};
use crate::ebpf::object::{Error, Map};
use crate::ebpf::os;

/// An entry is believed for so long: most stalls are over by then, and few threads have to be looked up.
const BELIEVED_NS: u64 = 1_000_000_000;
/// And for so long where the thread cannot be seen.
const BELIEVED_BLIND_NS: u64 = 120_000_000_000;
/// In the flags of a thread (`PF_MEMALLOC` of linux/sched.h): it reclaims.
const RECLAIMS: u64 = 0x800;

/// Whether a thread (process << 32 | thread) reclaims; `None` if that cannot be told.
type Reclaims = fn(u64) -> Option<bool>;

/// The kernel's map of them.
pub struct Stalls {
    map: Map,
    reclaims: Reclaims,
}

/// What is in the map.
#[derive(Debug, Default, PartialEq)]
pub struct Now {
    /// Processes of the threads that are stalled.
    pub stalled: Vec<ProcKey>,
    /// Stalls that were dropped, since their end was missed.
    pub lost: u64,
}

impl Stalls {
    /// That of the object.
    pub fn new(map: Map) -> Self {
        Self { map, reclaims: if processes::in_initial_pid_namespace() { reclaims } else { |_| None } }
    }

    /// What is in it at this time of `CLOCK_MONOTONIC`, in ns; what should not be is taken out.
    pub fn take(&self, now_ns: u64) -> Result<Now, Error> {
        let (mut now, mut old) = (Now::default(), Vec::new());
        self.map.for_each(|thread: u64, stall: Stall| {
            if now_ns.saturating_sub(stall.since_ns) > BELIEVED_NS {
                old.push((thread, stall));
            } else if stall.proactive == 0 {
                now.stalled.push(stall.proc);
            }
        })?;
        for (thread, stall) in old {
            let goes_on = (self.reclaims)(thread);
            if goes_on.unwrap_or(now_ns.saturating_sub(stall.since_ns) < BELIEVED_BLIND_NS) {
                now.stalled.extend((stall.proactive == 0).then_some(stall.proc));
            } else {
                // One that began anew just now is lost as well.
                self.map.delete(thread.bytes())?;
                now.lost += u64::from(stall.proactive == 0);
            }
        }
        Ok(now)
    }
}

fn reclaims(thread: u64) -> Option<bool> {
    match fs::read_to_string(format!("/proc/{}/task/{}/stat", thread >> 32, thread as u32)) {
        Ok(stat) => os::stat_field::<u64>(&stat, 9).map(|flags| flags & RECLAIMS != 0),
        Err(e) => processes::has_gone(&e).then_some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::object::Object;
    use crate::monitor::iomonitor;

    const SECOND: u64 = 1_000_000_000;
    /// `MAX_STALLS` of bpf/shared.h.
    const MAX_STALLS: u64 = 1024;

    fn key(tgid: u32) -> ProcKey {
        ProcKey { tgid, start: 7 }
    }

    /// Odd threads reclaim, even ones do not, and of those from 1000 on nothing is known. `None` without the privilege.
    fn stalls() -> Option<Stalls> {
        if os::capabilities() & os::cap::SYS_ADMIN == 0 || !os::has_btf() {
            println!("SKIPPED stalls whose end was missed: needs root and BTF");
            return None;
        }
        let object = Object::prepare("stalls", iomonitor::elf(), None, None).unwrap();
        let reclaims = |thread| (thread < 1000).then_some(thread % 2 == 1);
        Some(Stalls { map: object.map("stalls").unwrap(), reclaims })
    }

    fn begin(stalls: &Stalls, thread: u64, since_ns: u64, proactive: u32) {
        let stall = Stall { since_ns, proc: key(thread as u32), reclaimer: 1, proactive };
        stalls.map.update(thread.bytes(), stall.bytes()).unwrap();
    }

    fn take(stalls: &Stalls, now_ns: u64) -> (Vec<u32>, u64) {
        let now = stalls.take(now_ns).unwrap();
        let mut threads: Vec<u32> = now.stalled.iter().map(|k| k.tgid).collect();
        threads.sort_unstable();
        (threads, now.lost)
    }

    #[test]
    fn an_end_that_was_missed_is_found_out() {
        let Some(s) = stalls() else { return };
        for thread in [1, 2, 1000] {
            begin(&s, thread, 10 * SECOND, 0);
        }
        begin(&s, 3, 10 * SECOND, 1);
        begin(&s, 4, 10 * SECOND, 1);
        assert_eq!(take(&s, 11 * SECOND), (vec![1, 2, 1000], 0), "too early to ask; the told ones are no stalls");
        assert_eq!(take(&s, 12 * SECOND), (vec![1, 1000], 1));
        assert_eq!(take(&s, 129 * SECOND), (vec![1, 1000], 0));
        assert_eq!(take(&s, 131 * SECOND), (vec![1], 1), "too old for what cannot be seen");
        assert!(s.map.lookup(3u64.bytes(), &mut Vec::new()).unwrap());
        assert!(!s.map.lookup(4u64.bytes(), &mut Vec::new()).unwrap());
    }

    #[test]
    fn a_map_full_of_missed_ends_is_usable_again() {
        let Some(s) = stalls() else { return };
        (0..MAX_STALLS).for_each(|thread| begin(&s, thread, SECOND, 0));
        let stall = Stall::default();
        assert!(s.map.update(5000u64.bytes(), stall.bytes()).is_err(), "full");
        assert_eq!(take(&s, 10 * SECOND).1, 500, "the even ones of which something is known");
        begin(&s, 5000, 10 * SECOND, 0);
    }

    #[test]
    fn this_thread_does_not_reclaim() {
        let me = u64::from(std::process::id()) << 32;
        assert_eq!(reclaims(me | u64::from(std::process::id())), Some(false));
        assert_eq!(reclaims(u64::from(u32::MAX) << 32 | 1), Some(false), "nobody");
    }
}
