//! The programs' counters (`struct totals` of bpf/shared.h), by name: where each lies is asked of the object's own BTF, so
//! that none has to be repeated here.

use std::ops::AddAssign;
use std::sync::Arc;

use crate::ebpf::object::{Error, Member, Object};

/// The struct that has them: nothing but `__u64` and arrays of it.
const STRUCT: &str = "totals";
const WORD: usize = size_of::<u64>();

/// Values of the counters. The default knows no counter; it can be added to others, and takes their place where a zero is
/// meant.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    members: Arc<[Member]>,
    words: Vec<u64>,
}

impl Counters {
    /// Those of an object's programs, all zero.
    pub fn new(object: &Object) -> Result<Self, Error> {
        let members: Arc<[Member]> = object.members(STRUCT)?.into();
        let words = vec![0; members.last().map_or(0, |m| m.bytes.end / WORD)];
        Ok(Self { members, words })
    }

    /// Adds one CPU's struct.
    pub fn add(&mut self, bytes: &[u8]) {
        for (sum, word) in self.words.iter_mut().zip(bytes.chunks_exact(WORD)) {
            *sum = sum.wrapping_add(word.try_into().map_or(0, u64::from_ne_bytes));
        }
    }

    /// The values of a counter: as many as the programs tell apart.
    pub fn each(&self, name: &str) -> &[u64] {
        let member = self.members.iter().find(|m| m.name == name);
        // A test asks for every name that is used.
        debug_assert!(member.is_some() || self.members.is_empty(), "no counter {name}");
        member.and_then(|m| self.words.get(m.bytes.start / WORD..m.bytes.end / WORD)).unwrap_or_default()
    }

    /// Adds to the first values of a counter.
    pub fn more(&mut self, name: &str, by: &[u64]) {
        let at = self.members.iter().find(|m| m.name == name).map_or(0, |m| m.bytes.start / WORD);
        let words = self.words.get_mut(at..).unwrap_or_default();
        words.iter_mut().zip(by).for_each(|(word, n)| *word = word.wrapping_add(*n));
    }

    /// The sum of its values.
    pub fn sum(&self, name: &str) -> u64 {
        self.each(name).iter().sum()
    }

    /// One of its values.
    pub fn nth(&self, name: &str, n: usize) -> u64 {
        self.each(name).get(n).copied().unwrap_or(0)
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a = a.wrapping_add(*b);
        }
    }
}

#[cfg(test)]
impl Counters {
    /// Those of the compiled programs.
    pub(super) fn zero() -> Self {
        Self::new(&Object::open("counters", super::iomonitor::elf(), None).unwrap()).unwrap()
    }

    /// Their names.
    pub(super) fn names(&self) -> Vec<String> {
        self.members.iter().map(|m| m.name.clone()).collect()
    }

    /// Sets the first values of a counter.
    pub(super) fn set(&mut self, name: &str, values: &[u64]) {
        let at = self.members.iter().find(|m| m.name == name).unwrap().bytes.start / WORD;
        self.words[at..at + values.len()].copy_from_slice(values);
    }

    /// Sets all words.
    pub(super) fn fill(&mut self, mut word: impl FnMut() -> u64) {
        self.words.iter_mut().for_each(|w| *w = word());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_the_cpus() {
        let mut one = Counters::zero();
        one.set("fadvise_success", &[1]);
        one.set("lost_stalls", &[u64::from(u32::MAX)]);
        one.set("fills", &[1, 2, 3, 4, 5]);
        let bytes: Vec<u8> = one.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut sum = one.clone();
        sum.add(&bytes);
        sum += &one;
        sum += &Counters::default();
        assert_eq!(sum.sum("fadvise_success"), 3);
        assert_eq!(sum.each("fills"), [3, 6, 9, 12, 15]);
        assert_eq!((sum.sum("fills"), sum.nth("fills", 1), sum.nth("fills", 5)), (45, 6, 0));
        assert_eq!(sum.sum("lost_stalls"), 3 * u64::from(u32::MAX));
        assert_eq!(sum.sum("read_pages"), 0);
        assert_eq!(Counters::default().sum("read_pages"), 0);
    }

    #[test]
    fn both_objects_have_the_same_counters() {
        let no_btf = Object::open("counters", super::super::iomonitor::elf_no_btf(), None).unwrap();
        assert_eq!(Counters::new(&no_btf).unwrap().members, Counters::zero().members);
    }
}
