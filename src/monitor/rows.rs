//! Takes the rows of processes out of the kernel, each interval, without losing a count (bpf/processes.h).

use std::collections::HashMap;

use super::halves::Halves;
use crate::ebpf::abi::{COMM_LEN, HeldRow, MAX_PROCS, Plain, ProcKey, ProcRow, RowKey};
use crate::ebpf::object::{Error, Map, Object};

/// How often the rows that CPUs hold are read, at most, until none of them was put away meanwhile.
const TRIES: usize = 4;

/// Whether a process still runs; `None` if that cannot be told.
pub type IsAlive = fn(&ProcKey) -> Option<bool>;

/// What processes did.
#[derive(Debug, Default)]
pub struct Reading {
    /// Since the last reading: taken out of the kernel.
    pub done: Vec<(RowKey, ProcRow)>,
    /// And what is still there: it comes again in the next reading, here or above. What was put away in the very moment
    /// may be missing this once.
    pub live: HashMap<RowKey, ProcRow>,
}

/// The kernel's rows.
pub struct Rows {
    procs: Turns,
    /// What found no place in those.
    cgroups: Turns,
    held: Held,
}

impl Rows {
    /// Those of the object. Before 4.20 the kernel does not wait for the programs that still work on a map which is
    /// replaced: `release` tells.
    pub fn new(object: &Object, release: (u32, u32), is_alive: IsAlive) -> Result<Self, Error> {
        let turns = |name, is_alive| Turns::new(object, name, (release < (4, 20)).then_some(is_alive));
        Ok(Self {
            procs: turns("procs", is_alive)?,
            cgroups: turns("cgroups", |_| None)?,
            held: Held { map: object.map("held_by_cpu")?, is_inode: is_inode(release) },
        })
    }

    /// Has the programs write to other maps, unless they wrote nothing to these.
    pub fn swap(&mut self) -> Result<(), Error> {
        self.procs.swap()?;
        self.cgroups.swap()
    }

    /// What there is.
    pub fn take(&mut self) -> Result<Reading, Error> {
        let mut reading = Reading::default();
        let (mut before, mut now) = (Vec::new(), Vec::new());
        let is_inode = self.held.is_inode;
        let done = &mut reading.done;
        for turns in [&mut self.procs, &mut self.cgroups] {
            turns.take(|key, row| done.push((is_inode(key), row)))?;
        }
        // What a CPU puts away between the look at the maps and that at what it holds is seen in neither; never in both.
        for tries in 1..=TRIES {
            self.held.read(&mut before)?;
            let live = &mut reading.live;
            live.clear();
            for turns in [&mut self.procs, &mut self.cgroups] {
                turns.show(|key, row| add(live, is_inode(key), &row), |key, row| done.push((is_inode(key), row)))?;
            }
            self.held.read(&mut now)?;
            if tries == TRIES || self.held.same(&before, &now) {
                self.held.rows(&now, |key, row| add(live, key, &row));
                break;
            }
        }
        Ok(reading)
    }

    /// All there is, when no program runs any more.
    pub fn finish(&mut self) -> Result<Vec<(RowKey, ProcRow)>, Error> {
        let Reading { mut done, live } = self.take()?;
        done.extend(live);
        Ok(done)
    }
}

fn add(live: &mut HashMap<RowKey, ProcRow>, key: RowKey, row: &ProcRow) {
    let sum = live.entry(key).or_default();
    sum.did.iter_mut().zip(row.did).for_each(|(sum, n)| *sum = sum.wrapping_add(n));
    sum.comm = row.comm;
}

/// Makes the inode number of what a kernel of this release has for one: before 5.5 a generation stands in the upper half.
fn is_inode(release: (u32, u32)) -> fn(RowKey) -> RowKey {
    if release < (5, 5) { |key| RowKey { cgroup: u64::from(key.cgroup as u32), ..key } } else { |key| key }
}

/// Two maps that take turns, or one that is written to all the time.
struct Turns {
    halves: Halves,
    /// Instead of taking turns.
    one: Option<One>,
}

impl Turns {
    fn new(object: &Object, name: &str, one: Option<IsAlive>) -> Result<Self, Error> {
        Ok(Self {
            halves: Halves::new(object, name, [&format!("{name}_a"), &format!("{name}_b")])?,
            one: one.map(|is_alive| One { seen: HashMap::new(), is_alive }),
        })
    }

    fn swap(&mut self) -> Result<(), Error> {
        if self.one.is_some() || self.halves.in_use().is_empty()? {
            return Ok(());
        }
        self.halves.swap()
    }

    /// Empties the one not in use.
    fn take(&mut self, done: impl FnMut(RowKey, ProcRow)) -> Result<(), Error> {
        self.halves.drain(done).map(|_| ())
    }

    /// Shows what is in the one in use; where there is but one, what is new in it is done.
    fn show(&mut self, live: impl FnMut(RowKey, ProcRow), mut done: impl FnMut(RowKey, ProcRow)) -> Result<(), Error> {
        let in_use = self.halves.in_use();
        match &mut self.one {
            Some(one) => one.take(in_use)?.into_iter().for_each(|(key, row)| done(key, row)),
            None => in_use.show(live)?,
        }
        Ok(())
    }
}

/// A map that programs write to all the time: what is new is the difference to what was there before, and only the row
/// of a process that has gone, to which hardly anything is added any more, can be deleted.
struct One {
    seen: HashMap<RowKey, ProcRow>,
    is_alive: IsAlive,
}

impl One {
    fn take(&mut self, map: &Map) -> Result<Vec<(RowKey, ProcRow)>, Error> {
        let mut keys = Vec::new();
        map.for_each(|key: RowKey, _: ProcRow| keys.push(key))?;
        // Looking for processes costs more than reading rows: only when room is wanted.
        let want_room = keys.len() > MAX_PROCS / 2;
        let mut interval = Vec::new();
        let mut value = Vec::new();
        for key in keys {
            // Before the row is read: what is read then is the last of it.
            let gone = want_room && (self.is_alive)(&key.proc) == Some(false);
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
    fn since_last(&mut self, key: RowKey, now: ProcRow) -> Option<ProcRow> {
        let before = self.seen.insert(key, now).unwrap_or_default();
        let mut new = ProcRow { stalls: now.stalls.wrapping_sub(before.stalls), ..now };
        new.did.iter_mut().zip(before.did).for_each(|(n, before)| *n = n.wrapping_sub(before));
        (new != ProcRow { comm: now.comm, ..Default::default() }).then_some(new)
    }
}

/// The rows that CPUs hold.
struct Held {
    map: Map,
    is_inode: fn(RowKey) -> RowKey,
}

impl Held {
    fn read(&self, all: &mut Vec<u8>) -> Result<(), Error> {
        self.map.lookup(&0u32.to_ne_bytes(), all).map(|_| ())
    }

    /// Each, with its owner and its place as often taken as is said of it. Its words are read in order where loads are
    /// seen in order; elsewhere (arm64) one that is taken in these nanoseconds could pass for whole.
    fn each<'a>(&self, all: &'a [u8]) -> impl Iterator<Item = HeldRow> + use<'a> {
        self.map.per_cpu(all).flat_map(|cpu| cpu.chunks_exact(size_of::<HeldRow>())).filter_map(HeldRow::read)
    }

    /// Whether nothing was put away between two readings.
    fn same(&self, before: &[u8], now: &[u8]) -> bool {
        self.each(before).zip(self.each(now)).all(|(a, b)| [a.settled, a.taken, b.settled] == [b.taken; 3])
    }

    fn rows(&self, all: &[u8], mut row: impl FnMut(RowKey, ProcRow)) {
        let empty = ProcRow::default().did;
        for held in self.each(all).filter(|h| h.settled == h.taken && h.did != empty) {
            row((self.is_inode)(held.key), ProcRow { did: held.did, stalls: 0, comm: held.comm });
        }
    }
}

/// A task's name; bytes that are no UTF-8 are replaced.
pub fn comm_text(comm: &[u8; COMM_LEN]) -> String {
    let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

/// The processes whose rows tell of stalls.
pub fn stalling(done: &[(RowKey, ProcRow)]) -> impl Iterator<Item = &ProcKey> {
    done.iter().filter(|(_, row)| row.stalls > 0).map(|(key, _)| &key.proc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::abi::{ACTIVITIES, DID_FADVISE};
    use crate::ebpf::os;
    use crate::monitor::iomonitor;

    fn key(tgid: u32) -> RowKey {
        RowKey { proc: ProcKey { tgid, start: 7 }, cgroup: 1 }
    }

    fn did(n: u64) -> [u64; ACTIVITIES] {
        std::array::from_fn(|i| if i == DID_FADVISE { n } else { 0 })
    }

    fn row(calls: u64) -> ProcRow {
        ProcRow { did: did(calls), ..Default::default() }
    }

    fn calls(rows: &[(RowKey, ProcRow)]) -> u64 {
        rows.iter().map(|(_, r)| r.did[DID_FADVISE]).sum()
    }

    /// As a kernel of this release needs it; the test writes in place of the programs. `None` without the privilege.
    fn rows(release: (u32, u32)) -> Option<(Rows, Object)> {
        if os::capabilities() & os::cap::SYS_ADMIN == 0 || !os::has_btf() {
            println!("SKIPPED taking rows of processes: needs root and BTF");
            return None;
        }
        let object = Object::prepare("rows", iomonitor::elf(), None, None).unwrap();
        // Those with odd ids have gone.
        let rows = Rows::new(&object, release, |k| Some(k.tgid.is_multiple_of(2))).unwrap();
        Some((rows, object))
    }

    #[test]
    fn a_map_that_is_written_to_is_emptied_of_processes_that_have_gone() {
        let Some((mut rows, object)) = rows((4, 19)) else { return };
        let map = object.map("procs_a").unwrap();
        let write = |tgid, calls| map.update(key(tgid).bytes(), row(calls).bytes()).unwrap();
        let left = || {
            let mut n = 0;
            map.for_each(|_: RowKey, _: ProcRow| n += 1).unwrap();
            n
        };
        let mut take = || {
            rows.swap().unwrap();
            let reading = rows.take().unwrap();
            assert!(reading.live.is_empty());
            reading.done
        };
        write(1, 10);
        write(2, 20);
        assert_eq!(calls(&take()), 30);
        assert!(take().is_empty(), "nothing new");
        write(1, 11);
        let new = take();
        assert_eq!((new.len(), new[0].0, calls(&new)), (1, key(1), 1));
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
    fn maps_take_turns_and_what_is_in_use_is_seen_as_well() {
        let Some((mut rows, object)) = rows((4, 20)) else { return };
        let [map, cgroups] = ["procs_a", "cgroups_a"].map(|name| object.map(name).unwrap());
        map.update(key(1).bytes(), row(10).bytes()).unwrap();
        let nobody = RowKey { proc: ProcKey::default(), cgroup: (3 << 32) + 5 };
        cgroups.update(nobody.bytes(), row(7).bytes()).unwrap();
        let inode = RowKey { cgroup: 5, ..nobody };
        let all = [(key(1), row(10)), (inode, row(7))];
        let reading = rows.take().unwrap();
        assert_eq!((reading.done, reading.live), (vec![], all.into()), "the maps are in use");
        rows.swap().unwrap();
        let reading = rows.take().unwrap();
        assert_eq!((reading.done, reading.live), (all.into(), [].into()));
        assert!(map.is_empty().unwrap() && cgroups.is_empty().unwrap());
        assert!(rows.take().unwrap().done.is_empty());
    }

    #[test]
    fn what_cpus_hold_is_read_again_and_again_but_for_what_is_just_taken() {
        let Some((mut rows, object)) = rows((5, 10)) else { return };
        let held = object.map("held_by_cpu").unwrap();
        let mut all = Vec::new();
        held.lookup(&0u32.to_ne_bytes(), &mut all).unwrap();
        let put = |all: &mut [u8], place: usize, row: HeldRow| {
            all[place * size_of::<HeldRow>()..][..size_of::<HeldRow>()].copy_from_slice(row.bytes());
        };
        let row_of = |tgid, n| HeldRow { settled: 3, taken: 3, key: key(tgid), did: did(n), ..Default::default() };
        put(&mut all, 0, row_of(1, 10));
        put(&mut all, 63, row_of(1, 5));
        put(&mut all, 2, HeldRow { taken: 4, ..row_of(2, 100) });
        held.update(&0u32.to_ne_bytes(), &all).unwrap();
        for _ in 0..2 {
            let reading = rows.take().unwrap();
            assert_eq!((reading.done, reading.live), (vec![], [(key(1), row(15))].into()));
        }
        assert_eq!(calls(&rows.finish().unwrap()), 15);
    }
}
