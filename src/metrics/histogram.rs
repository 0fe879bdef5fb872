//! Histograms with power-of-two buckets, the form in which the kernel side counts durations.

use std::time::Duration;

/// Number of buckets: the first holds up to 1.024 µs, each next one twice that, the last everything longer
/// than 2^24 × 1.024 µs (about 17 s).
pub const BUCKETS: usize = 26;

/// Upper bound of bucket `i` in seconds, `None` for the last one (+Inf).
///
/// Bucket `i` counts durations `d` with `bound(i-1) < d <= bound(i)`; the bounds are 2^(10+i) ns, because a
/// shift is what a BPF program can afford.
pub fn upper_bound_seconds(i: usize) -> Option<f64> {
    (i + 1 < BUCKETS).then(|| (1u64 << (10 + i)) as f64 / 1e9)
}

/// A cumulative histogram of durations since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Events per bucket (not cumulated over the buckets).
    pub buckets: [u64; BUCKETS],
    /// Sum of all durations in nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// Counts one event.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let above = ns.saturating_sub(1) >> 10;
        let i = (u64::BITS - above.leading_zeros()) as usize;
        self.buckets[i.min(BUCKETS - 1)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// Number of events in all buckets.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of all durations in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_from_a_microsecond_to_seventeen_seconds() {
        assert_eq!(upper_bound_seconds(0), Some(1.024e-6));
        assert_eq!(upper_bound_seconds(1), Some(2.048e-6));
        let last = upper_bound_seconds(BUCKETS - 2).unwrap();
        assert!((17.0..18.0).contains(&last), "{last}");
        assert_eq!(upper_bound_seconds(BUCKETS - 1), None);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_is_not_below_it() {
        for ns in [0, 1, 1023, 1024, 1025, 2048, 2049, 1 << 20, (1 << 20) + 1, 1 << 34, (1 << 34) + 1, u64::MAX] {
            let mut h = Histogram::default();
            h.record(Duration::from_nanos(ns));
            let i = h.buckets.iter().position(|n| *n == 1).unwrap();
            assert!(upper_bound_seconds(i).is_none_or(|b| ns as f64 / 1e9 <= b), "{ns} in {i}");
            assert!(i == 0 || upper_bound_seconds(i - 1).is_some_and(|b| ns as f64 / 1e9 > b), "{ns} in {i}");
            assert_eq!((h.count(), h.sum_ns), (1, ns));
        }
    }
}
