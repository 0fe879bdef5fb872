//! Histograms with power-of-two buckets, the form in which the kernel side counts durations.

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
}
