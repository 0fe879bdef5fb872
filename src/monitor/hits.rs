//! Hits: the pages read that did not have to be filled.
//!
//! A page that readahead fills is a miss at once, and an attempt only when it is read. So what is filled ahead is owed by
//! the reads to come, and read in the order in which it was filled; only what is read beyond that is a hit. Readahead is
//! repaid within seconds or never (the file is closed, the reader goes elsewhere): what is owed expires.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long pages filled ahead are waited for.
const OWED_FOR: Duration = Duration::from_secs(30);
/// Fills within this time expire together: what bounds the list.
const GRAIN: Duration = Duration::from_secs(1);

/// The counter of hits, which never falls.
#[derive(Debug, Default)]
pub struct Hits {
    total: u64,
    attempts: u64,
    misses: u64,
    /// Pages filled and not yet read, with the time of the first of them; the oldest first.
    owed: VecDeque<(Instant, u64)>,
}

impl Hits {
    /// The hits, when attempts and misses have come to these numbers.
    pub fn count(&mut self, attempts: u64, misses: u64, now: Instant) -> u64 {
        let read = attempts.saturating_sub(std::mem::replace(&mut self.attempts, attempts));
        let filled = misses.saturating_sub(std::mem::replace(&mut self.misses, misses));
        while self.owed.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= OWED_FOR + GRAIN) {
            self.owed.pop_front();
        }
        if filled > 0 {
            match self.owed.back_mut() {
                Some((since, pages)) if now.saturating_duration_since(*since) < GRAIN => *pages += filled,
                _ => self.owed.push_back((now, filled)),
            }
        }
        self.total += self.repay(read);
        self.total
    }

    /// Takes pages read from those owed; returns the rest.
    fn repay(&mut self, mut read: u64) -> u64 {
        while let Some((_, pages)) = self.owed.front_mut() {
            let paid = read.min(*pages);
            *pages -= paid;
            read -= paid;
            if *pages > 0 {
                break;
            }
            self.owed.pop_front();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader and a clock.
    struct Reader {
        hits: Hits,
        now: Instant,
        attempts: u64,
        misses: u64,
    }

    impl Reader {
        fn new() -> Self {
            Self { hits: Hits::default(), now: Instant::now(), attempts: 0, misses: 0 }
        }

        /// The new hits after `seconds`, in which so many pages were read and filled.
        fn after(&mut self, seconds: f64, read: u64, filled: u64) -> u64 {
            self.now += Duration::from_secs_f64(seconds);
            self.attempts += read;
            self.misses += filled;
            let before = self.hits.total;
            self.hits.count(self.attempts, self.misses, self.now) - before
        }
    }

    #[test]
    fn a_sequential_cold_read_has_none_however_long_it_takes() {
        for seconds in [0.1, 1.0, 10.0] {
            let mut r = Reader::new();
            assert_eq!(r.after(seconds, 4, 32), 0);
            for _ in 0..1000 {
                assert_eq!(r.after(seconds, 32, 32), 0, "every {seconds} s");
            }
            assert_eq!(r.after(seconds, 28, 0), 0, "the end, that was filled before");
            assert_eq!(r.after(seconds, 32, 0), 32, "once more");
            assert!(r.hits.owed.is_empty());
        }
    }

    #[test]
    fn readahead_that_nobody_reads_is_forgotten() {
        let mut r = Reader::new();
        assert_eq!(r.after(10.0, 324, 900), 0);
        assert_eq!(r.after(10.0, 0, 0), 0);
        assert_eq!(r.after(25.0, 624, 0), 624, "warm reads");
        let mut r = Reader::new();
        r.after(10.0, 324, 900);
        assert_eq!(r.after(10.0, 624, 0), 48, "they may be of what was filled ahead");
        assert_eq!(r.after(10.0, 100, 0), 100);
    }

    #[test]
    fn waste_of_each_second_expires_by_itself() {
        let mut r = Reader::new();
        for _ in 0..100 {
            r.after(0.1, 0, 10);
        }
        assert!(r.hits.owed.len() <= 11, "{} times are kept", r.hits.owed.len());
        assert_eq!(r.after(26.0, 1000, 0), 1000 - 500, "those of the last five seconds are owed");
    }

    #[test]
    fn warm_reads_beside_cold_ones_are_the_hits() {
        let mut r = Reader::new();
        r.after(1.0, 0, 32);
        assert_eq!(r.after(1.0, 32 + 500, 32), 500 - 32, "once");
        for _ in 0..100 {
            assert_eq!(r.after(1.0, 32 + 500, 32), 500);
        }
    }

    #[test]
    fn counters_that_stand_still_or_fall_add_nothing() {
        let mut hits = Hits::default();
        let now = Instant::now();
        assert_eq!(hits.count(100, 0, now), 100);
        assert_eq!(hits.count(100, 0, now), 100);
        assert_eq!(hits.count(90, 0, now), 100);
    }
}
