//! Takes the rows of processes out of the kernel, each interval, without losing a count.

use std::collections::HashMap;

use super::halves::Halves;
use super::processes::IsAlive;
use crate::ebpf::abi::{MAX_PROCS, Plain, ProcKey, ProcRow};
use crate::ebpf::object::{Error, Map, Object};

/// What processes did in an interval.
pub type Interval = Vec<(ProcKey, ProcRow)>;

/// The kernel's maps of processes.
pub struct Rows {
    halves: Halves,
    /// Instead of taking turns.
    live: Option<Live>,
}

impl Rows {
    /// Those of the object. Before 4.20 the kernel does not wait for the programs that still work on a map which is
    /// replaced: `release` tells.
    pub fn new(object: &Object, release: (u32, u32), is_alive: IsAlive) -> Result<Self, Error> {
        Ok(Self {
            halves: Halves::new(object, "procs", ["procs_a", "procs_b"])?,
            live: (release < (4, 20)).then(|| Live { seen: HashMap::new(), is_alive }),
        })
    }

    /// Has the programs write to the other map, unless they wrote nothing to this one.
    pub fn swap(&mut self) -> Result<(), Error> {
        if self.live.is_some() || self.halves.in_use().is_empty()? {
            return Ok(());
        }
        self.halves.swap()
    }

    /// The rows since the last call.
    pub fn take(&mut self) -> Result<Interval, Error> {
        if let Some(live) = &mut self.live {
            return live.take(self.halves.in_use());
        }
        let mut rows = Vec::new();
        self.halves.drain(|key, row| rows.push((key, row)))?;
        Ok(rows)
    }
}

/// A map that programs write to all the time: what is new is the difference to what was there before, and only the row
/// of a process that has gone, to which nothing is added any more, can be deleted.
struct Live {
    seen: HashMap<ProcKey, ProcRow>,
    is_alive: IsAlive,
}

impl Live {
    fn take(&mut self, map: &Map) -> Result<Interval, Error> {
        let mut keys = Vec::new();
        map.for_each(|key: ProcKey, _: ProcRow| keys.push(key))?;
        // Looking for processes costs more than reading rows: only when room is wanted.
        let want_room = keys.len() > MAX_PROCS / 2;
        let mut interval = Vec::new();
        let mut value = Vec::new();
        for key in keys {
            // Before the row is read: what is read then is the last of it.
            let gone = want_room && (self.is_alive)(&key) == Some(false);
            if !map.lookup(key.bytes(), &mut value)? {
                continue;
            }
            let Some(now) = ProcRow::read(&value) else { continue };
            interval.extend(self.since_last(key, now).map(|new| (key, new)));
            if gone {
                map.delete(key.bytes())?;
                self.seen.remove(&key);
            }
        }
        Ok(interval)
    }

    /// What was added to a row since it was last seen, if anything.
    fn since_last(&mut self, key: ProcKey, now: ProcRow) -> Option<ProcRow> {
        let before = self.seen.insert(key, now).unwrap_or_default();
        let new = ProcRow {
            fadvise_calls: now.fadvise_calls.wrapping_sub(before.fadvise_calls),
            fadvise_success: now.fadvise_success.wrapping_sub(before.fadvise_success),
            stalls: now.stalls.wrapping_sub(before.stalls),
            comm: now.comm,
        };
        ([new.fadvise_calls, new.fadvise_success, new.stalls] != [0; 3]).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::os;
    use crate::monitor::iomonitor;

    fn key(tgid: u32) -> ProcKey {
        ProcKey { tgid, start: 7 }
    }

    fn row(calls: u64) -> ProcRow {
        ProcRow { fadvise_calls: calls, fadvise_success: calls / 2, ..Default::default() }
    }

    fn calls(rows: &Interval) -> u64 {
        rows.iter().map(|(_, r)| r.fadvise_calls).sum()
    }

    /// As a kernel of this release needs it; the test writes in place of the programs. `None` without the privilege.
    fn rows(release: (u32, u32)) -> Option<(Rows, Map)> {
        if os::capabilities() & os::cap::SYS_ADMIN == 0 || !os::has_btf() {
            println!("SKIPPED taking rows of processes: needs root and BTF");
            return None;
        }
        let object = Object::prepare("rows", iomonitor::elf(), None, None).unwrap();
        // Those with odd ids have gone.
        let rows = Rows::new(&object, release, |k| Some(k.tgid.is_multiple_of(2))).unwrap();
        Some((rows, object.map("procs_a").unwrap()))
    }

    #[test]
    fn a_map_that_is_written_to_is_emptied_of_processes_that_have_gone() {
        let Some((mut rows, map)) = rows((4, 19)) else { return };
        let write = |tgid, calls| map.update(key(tgid).bytes(), row(calls).bytes()).unwrap();
        let left = || {
            let mut n = 0;
            map.for_each(|_: ProcKey, _: ProcRow| n += 1).unwrap();
            n
        };
        let mut take = || {
            rows.swap().unwrap();
            rows.take().unwrap()
        };
        write(1, 10);
        write(2, 20);
        assert_eq!(calls(&take()), 30);
        assert!(take().is_empty(), "nothing new");
        write(1, 11);
        let new = take();
        assert_eq!((new.len(), new[0].0, new[0].1.fadvise_calls), (1, key(1), 1));
        assert_eq!(left(), 2, "there is room enough");
        for tgid in 3..3 + MAX_PROCS as u32 / 2 {
            write(tgid, 1);
        }
        assert_eq!(calls(&take()), MAX_PROCS as u64 / 2);
        let alive = 1 + MAX_PROCS / 4;
        assert_eq!(left(), alive);
        // One of those that have gone: its id may come again with the same start, and then begins anew.
        write(1, 3);
        assert_eq!(calls(&take()), 3);
    }

    #[test]
    fn maps_take_turns() {
        let Some((mut rows, map)) = rows((4, 20)) else { return };
        map.update(key(1).bytes(), row(10).bytes()).unwrap();
        assert!(rows.take().unwrap().is_empty(), "the map is in use");
        rows.swap().unwrap();
        assert_eq!(rows.take().unwrap(), [(key(1), row(10))]);
        assert!(map.is_empty().unwrap());
        assert!(rows.take().unwrap().is_empty());
    }
}
