//! Every metric there is, in the order of the outputs: those of the kernel, subject by subject, then those of the agent
//! itself.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::stat::{self, Stat, Subject};
use super::{evictions, fadvise, fills, reads, reclaim, sleeps, waits};
use crate::metrics::metric::Metric;
use crate::metrics::own::OWN;
use crate::metrics::snapshot::Family;

/// What the programs observe.
pub static SUBJECTS: [&Subject; 7] = [
    &fadvise::SUBJECT,
    &reads::SUBJECT,
    &waits::SUBJECT,
    &sleeps::SUBJECT,
    &fills::SUBJECT,
    &evictions::SUBJECT,
    &reclaim::SUBJECT,
];

/// All metrics.
pub static CATALOGUE: LazyLock<Vec<&Metric>> =
    LazyLock::new(|| stats().map(|s| &s.metric).chain(OWN.iter().copied()).collect());

/// Those of the kernel.
pub fn stats() -> impl Iterator<Item = &'static Stat> {
    SUBJECTS.iter().flat_map(|s| s.stats).copied()
}

/// What the metrics of the kernel grew by from one collection to another: [`stat::growth`].
pub fn growth(first: &[Family], last: &[Family], peaks: &HashMap<&str, u64>) -> Vec<Family> {
    stat::growth(&SUBJECTS, first, last, peaks)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::metrics::metric::Kind;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = HashSet::new();
        for m in CATALOGUE.iter() {
            assert!(seen.insert(m.name), "{} is declared twice", m.name);
            assert_eq!(m.name.ends_with("_total"), m.kind == Kind::Counter, "{}", m.name);
            assert!(m.help.ends_with('.'), "{}: help is a sentence", m.name);
            assert!(!m.help.contains(['\n', '\\']), "{}: help is one plain line", m.name);
        }
    }
}
