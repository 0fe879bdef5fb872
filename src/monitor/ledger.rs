//! Sums by process, or by whatever else its rows are told apart: what was taken out of the kernel and what is still there,
//! so that the rows and the rest are the whole.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Instant;

use super::rows::Reading;
use crate::ebpf::abi::{ACTIVITIES, ProcRow, RowKey};

/// What was done, by `enum activity`.
pub type Did = [u64; ACTIVITIES];

/// What is missing in so many readings is not on the way from one map to another, but with the rest.
const ON_THE_WAY: u32 = 3;

/// Of one key.
#[derive(Debug)]
pub struct Row<M> {
    /// Taken out of the kernel.
    done: Did,
    /// Still there.
    live: Did,
    /// The most that both ever came to: what is told, since what is just put away is seen in neither.
    pub did: Did,
    /// In how many readings in a row less was seen than that.
    short: u32,
    /// When it last grew.
    pub last_event: Instant,
    /// What else is known of it.
    pub about: M,
}

/// The rows, and the rest: of keys without room, and of those forgotten.
#[derive(Debug)]
pub struct Ledger<K, M> {
    rows: HashMap<K, Row<M>>,
    room: usize,
    rest: Did,
    /// Forgotten, while something of them is still in the kernel.
    forgotten: HashSet<K>,
    total: Did,
}

impl<K: Copy + Eq + Hash, M: Default> Ledger<K, M> {
    /// One with room for so many rows.
    pub fn new(room: usize) -> Self {
        Self { rows: HashMap::new(), room, rest: Did::default(), forgotten: HashSet::new(), total: Did::default() }
    }

    /// Adds a reading, of which each row belongs to `key`, or to none; `note` is told of each that has a place. What the
    /// kernel had no room for is `lost`, since the beginning. Returns the keys that are new.
    pub fn absorb(
        &mut self,
        reading: &Reading,
        lost: &Did,
        now: Instant,
        key: impl Fn(&RowKey) -> Option<K>,
        note: impl Fn(&mut M, &RowKey, &ProcRow),
    ) -> Vec<K> {
        let (mut fresh, mut rest, mut seen) = (Vec::new(), *lost, HashSet::new());
        self.rows.values_mut().for_each(|row| row.live = Did::default());
        let live = reading.live.iter().map(|(k, row)| (k, row, true));
        for (row_key, row, is_live) in reading.done.iter().map(|(k, row)| (k, row, false)).chain(live) {
            if row.did == Did::default() {
                continue;
            }
            let key = key(row_key);
            if is_live {
                seen.extend(key);
            }
            let to = match key.filter(|k| !self.forgotten.contains(k)).and_then(|k| self.place(k, now, &mut fresh)) {
                Some(to) => {
                    note(&mut to.about, row_key, row);
                    if is_live { &mut to.live } else { &mut to.done }
                }
                None if is_live => &mut rest,
                None => &mut self.rest,
            };
            add(to, &row.did);
        }
        self.forgotten.retain(|k| seen.contains(k));
        add(&mut rest, &self.rest);
        // What was seen of a row can be in the rest by now, if it found no place when it was put away: so neither sum has it
        // twice, and each is no more than the whole.
        let (mut sum, mut told) = (rest, Did::default());
        for row in self.rows.values_mut() {
            let mut all = row.done;
            add(&mut all, &row.live);
            add(&mut sum, &all);
            if raise(&mut row.did, &all) {
                row.last_event = now;
            }
            row.short = if all == row.did { 0 } else { row.short + 1 };
            add(&mut told, &row.did);
        }
        raise(&mut self.total, &sum);
        raise(&mut self.total, &told);
        fresh
    }

    fn place(&mut self, key: K, now: Instant, fresh: &mut Vec<K>) -> Option<&mut Row<M>> {
        if !self.rows.contains_key(&key) {
            if self.rows.len() >= self.room {
                return None;
            }
            fresh.push(key);
        }
        Some(self.rows.entry(key).or_insert_with(|| Row {
            done: Did::default(),
            live: Did::default(),
            did: Did::default(),
            short: 0,
            last_event: now,
            about: M::default(),
        }))
    }

    /// Moves a row into the rest, unless something of it is on the way.
    pub fn forget(&mut self, key: &K) -> bool {
        let Some(row) = self.rows.get(key) else { return true };
        if (1..ON_THE_WAY).contains(&row.short) {
            return false;
        }
        add(&mut self.rest, &row.done);
        if row.live != Did::default() {
            self.forgotten.insert(*key);
        }
        self.rows.remove(key);
        true
    }

    /// When the kernel's part is lost, but for what it had no room for: what was told of it stays.
    pub fn keep_what_was_told(&mut self, lost: &Did) {
        for row in self.rows.values_mut() {
            (row.done, row.live, row.short) = (row.did, Did::default(), 0);
        }
        self.rest = self.rest();
        self.rest.iter_mut().zip(lost).for_each(|(rest, n)| *rest = rest.saturating_sub(*n));
    }

    /// The row of a key.
    pub fn get(&self, key: &K) -> Option<&Row<M>> {
        self.rows.get(key)
    }

    /// All of them.
    pub fn rows(&self) -> impl Iterator<Item = (&K, &Row<M>)> {
        self.rows.iter()
    }

    /// The same, to note more about them.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = (&K, &mut Row<M>)> {
        self.rows.iter_mut()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What is in no row.
    pub fn rest(&self) -> Did {
        let mut rest = self.total;
        for row in self.rows.values() {
            rest.iter_mut().zip(row.did).for_each(|(rest, n)| *rest = rest.saturating_sub(n));
        }
        rest
    }

    /// All of it: it only grows.
    pub fn total(&self) -> Did {
        self.total
    }
}

fn add(to: &mut Did, did: &Did) {
    to.iter_mut().zip(did).for_each(|(sum, n)| *sum = sum.wrapping_add(*n));
}

/// Raises each to what it has grown to; whether any has. Where programs are preempted a row can lack what another has too
/// much, and be below nothing for a moment.
fn raise(told: &mut Did, to: &Did) -> bool {
    let mut grown = false;
    for (told, n) in told.iter_mut().zip(to) {
        if n.wrapping_sub(*told).cast_signed() > 0 {
            *told = *n;
            grown = true;
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::abi::ProcKey;

    fn reading(done: &[(u32, u64)], live: &[(u32, u64)]) -> Reading {
        let row = |&(tgid, n): &(u32, u64)| {
            let key = RowKey { proc: ProcKey { tgid, start: 1 }, cgroup: 1 };
            (key, ProcRow { did: [n; ACTIVITIES], ..Default::default() })
        };
        Reading { done: done.iter().map(row).collect(), live: live.iter().map(row).collect() }
    }

    fn absorb(ledger: &mut Ledger<u32, ()>, done: &[(u32, u64)], live: &[(u32, u64)], lost: u64) {
        let key = |k: &RowKey| (k.proc.tgid != 0).then_some(k.proc.tgid);
        ledger.absorb(&reading(done, live), &[lost; ACTIVITIES], Instant::now(), key, |(), _, _| {});
        let rows: u64 = ledger.rows().map(|(_, row)| row.did[0]).sum();
        assert_eq!(rows + ledger.rest()[0], ledger.total()[0]);
    }

    fn state(ledger: &Ledger<u32, ()>) -> (Vec<(u32, u64)>, u64) {
        let mut rows: Vec<_> = ledger.rows().map(|(k, row)| (*k, row.did[3])).collect();
        rows.sort_unstable();
        (rows, ledger.rest()[3])
    }

    #[test]
    fn what_is_still_in_the_kernel_is_not_counted_twice() {
        let mut ledger = Ledger::new(10);
        absorb(&mut ledger, &[], &[(1, 5), (2, 1)], 0);
        absorb(&mut ledger, &[(2, 2)], &[(1, 7)], 0);
        assert_eq!(state(&ledger), (vec![(1, 7), (2, 2)], 0));
        // Put away at the moment of the reading: seen nowhere, then taken out.
        absorb(&mut ledger, &[], &[(3, 1)], 0);
        assert_eq!(state(&ledger), (vec![(1, 7), (2, 2), (3, 1)], 0));
        absorb(&mut ledger, &[(1, 9)], &[(3, 1)], 0);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 9), (2, 2), (3, 1)], 0), 12));
    }

    #[test]
    fn what_has_no_room_is_the_rest() {
        let mut ledger = Ledger::new(1);
        absorb(&mut ledger, &[(1, 5), (2, 1), (0, 3)], &[(3, 1), (1, 1)], 10);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 6)], 15), 21));
        absorb(&mut ledger, &[(3, 2)], &[], 10);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 5 + 1)], 15), 21));
    }

    #[test]
    fn what_was_seen_and_then_found_no_place_counts_once() {
        let mut ledger = Ledger::new(10);
        absorb(&mut ledger, &[(2, 4)], &[(1, 1)], 0);
        // Of nobody, or lost.
        absorb(&mut ledger, &[(0, 1), (2, 3)], &[], 0);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 1), (2, 7)], 0), 8));
        absorb(&mut ledger, &[], &[(3, 1)], 0);
        absorb(&mut ledger, &[], &[], 1);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 1), (2, 7), (3, 1)], 0), 9));
        absorb(&mut ledger, &[(4, 5)], &[], 2);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 1), (2, 7), (3, 1), (4, 5)], 1), 15));
        assert!(ledger.forget(&1));
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(2, 7), (3, 1), (4, 5)], 2), 15));
    }

    #[test]
    fn who_is_forgotten_does_not_come_back_as_what_the_kernel_still_has() {
        let mut ledger = Ledger::new(10);
        absorb(&mut ledger, &[(1, 5)], &[(1, 2)], 0);
        assert!(ledger.forget(&1));
        absorb(&mut ledger, &[], &[(1, 2)], 0);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![], 7), 7));
        absorb(&mut ledger, &[(1, 2)], &[(2, 1)], 0);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(2, 1)], 7), 8));
        // Nothing of it is left: another with the same key begins anew.
        absorb(&mut ledger, &[(1, 1)], &[(2, 1)], 0);
        assert_eq!(state(&ledger), (vec![(1, 1), (2, 1)], 7));
        // On the way.
        absorb(&mut ledger, &[], &[], 0);
        assert!(!ledger.forget(&2), "or it would be told less");
        ledger.keep_what_was_told(&Did::default());
        absorb(&mut ledger, &[], &[], 0);
        assert!(ledger.forget(&2));
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 1)], 8), 9));
    }

    #[test]
    fn a_row_below_nothing_for_a_moment_is_nothing() {
        let mut ledger = Ledger::new(10);
        absorb(&mut ledger, &[(1, 5)], &[(2, 1u64.wrapping_neg())], 0);
        assert_eq!((state(&ledger), ledger.total()[3]), ((vec![(1, 5), (2, 0)], 0), 5));
    }
}
