//! What the numbers of the last minutes mean: rules ([`rules`]) over the rates from one snapshot to another ([`reading`]), with
//! the thresholds of one table ([`thresholds`]), and a memory, so that a verdict does not come and go.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

pub mod reading;
pub mod rules;
pub mod thresholds;

use self::reading::{Rates, Reading};
use self::rules::{Finding, RULES, Sight};
use self::thresholds::{SETTLED, STAYS_INTERVALS, WINDOW};
use crate::metrics::diagnosis::{Confidence, Diagnosis, Pattern, Unseen, Verdict};

/// Readings that are kept of the window: one a second at most.
const KEPT: usize = WINDOW.as_secs() as usize + 2;
const APART: Duration = Duration::from_secs(1);

/// Reaches the verdicts, one collection after the other.
#[derive(Debug, Default)]
pub struct Diagnoser {
    past: VecDeque<Reading>,
    /// What is there, and the number of the collection that saw it first.
    active: Vec<(Verdict, u64)>,
}

impl Diagnoser {
    /// The verdict after this collection.
    pub fn observe(&mut self, now: Reading) -> Diagnosis {
        let rates = self.rates(&now).filter(|r| r.window >= SETTLED);
        let (at, sequence) = (now.at, now.sequence);
        self.keep(now);
        let Some(rates) = rates else {
            self.active.clear();
            return nothing_yet(at);
        };
        let was: Vec<Pattern> = self.active.iter().map(|(v, _)| v.pattern).collect();
        let sight = Sight { rates: &rates, was: &|pattern| was.contains(&pattern) };
        let (mut found, mut unseen) = (Vec::new(), Vec::new());
        for (pattern, rule) in &RULES {
            match rule(&sight, *pattern) {
                Finding::Not => {}
                Finding::There(evidence) => found.push(Verdict {
                    pattern: *pattern,
                    since: at,
                    confidence: evidence.confidence,
                    summary: evidence.summary,
                    numbers: evidence.numbers,
                    waited: evidence.waited,
                    read_again: evidence.read_again,
                }),
                Finding::Unseen(needs) => unseen.push(Unseen { pattern: *pattern, needs }),
            }
        }
        let blind = rules::blind(&rates);
        if !blind.is_empty() {
            let summary = format!("Too little is seen to judge: it takes {}", blind.join(", and "));
            found.push(plain(Pattern::Blind, at, summary));
        }
        self.remember(found, sequence, at);
        let mut verdicts: Vec<Verdict> = self.active.iter().map(|(v, _)| v.clone()).collect();
        let well = verdicts.iter().all(|v| v.pattern.is_harmless());
        verdicts.retain(|v| v.pattern != Pattern::AllIsWell || well);
        verdicts.sort_by_key(|v| v.pattern.rank());
        unseen.retain(|u| verdicts.iter().all(|v| v.pattern != u.pattern));
        Diagnosis { at, window: rates.window, verdicts, unseen }
    }

    /// From the oldest reading of the window; of a counter that fell, from the newest on.
    fn rates(&mut self, now: &Reading) -> Option<Rates> {
        // Before the clock of the window, one is kept: without it there would be less than the window.
        while self.past.len() > 1
            && now.instant.saturating_duration_since(self.past[1].instant) >= WINDOW
            && self.past[1].sequence + STAYS_INTERVALS <= now.sequence
        {
            self.past.pop_front();
        }
        let first = self.past.front()?;
        let rates = Rates::between(first, now);
        if rates.is_none() {
            self.past.clear();
        }
        rates
    }

    fn keep(&mut self, now: Reading) {
        let apart = |last: &Reading| now.instant.saturating_duration_since(last.instant) >= APART;
        if self.past.back().is_none_or(apart) {
            self.past.push_back(now);
        }
        if self.past.len() > KEPT {
            self.past.pop_front();
        }
    }

    /// Takes what is found now; what is found no more stays until its time is over.
    fn remember(&mut self, mut found: Vec<Verdict>, sequence: u64, at: SystemTime) {
        if found.iter().all(|v| v.pattern.is_harmless()) {
            let summary = "All is well".to_owned();
            found.push(plain(Pattern::AllIsWell, at, summary));
        }
        for (old, first) in std::mem::take(&mut self.active) {
            match found.iter_mut().find(|v| v.pattern == old.pattern) {
                Some(new) => {
                    new.since = old.since;
                    self.active.push((new.clone(), first));
                }
                None if sequence < first + STAYS_INTERVALS && old.pattern != Pattern::AllIsWell => {
                    self.active.push((old, first));
                }
                None => {}
            }
        }
        for new in found {
            // Of two answers to one question the earlier has its time.
            if self.active.iter().all(|(v, _)| v.pattern != new.pattern && !same_question(v.pattern, new.pattern)) {
                self.active.push((new, sequence));
            }
        }
    }
}

/// Whether one of the two rules out the other.
fn same_question(a: Pattern, b: Pattern) -> bool {
    const QUESTIONS: [&[Pattern]; 3] = [
        &[Pattern::PolicyEviction, Pattern::PolicyEvictionHurts, Pattern::PolicyEvictionHarmless],
        &[Pattern::CompactionHurts, Pattern::CompactionHarmless],
        &[Pattern::MemoryPressureHost, Pattern::MemoryPressureCgroup],
    ];
    QUESTIONS.iter().any(|question| question.contains(&a) && question.contains(&b))
}

fn plain(pattern: Pattern, since: SystemTime, summary: String) -> Verdict {
    Verdict {
        pattern,
        since,
        confidence: Confidence::Certain,
        summary,
        numbers: Vec::new(),
        waited: None,
        read_again: None,
    }
}

/// The verdict after the first collection.
fn nothing_yet(at: SystemTime) -> Diagnosis {
    Diagnosis { at, window: Duration::ZERO, verdicts: Vec::new(), unseen: Vec::new() }
}

#[cfg(test)]
mod tests;
