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

/// Upper bounds as in the label `le`, and the events up to each.
pub fn cumulative(histogram: &Histogram) -> impl Iterator<Item = (String, u64)> {
    histogram.buckets.iter().enumerate().scan(0, |sum, (i, count)| {
        *sum += count;
        Some((canonical(upper_bound_seconds(i).unwrap_or(f64::INFINITY)), *sum))
    })
}

/// A number that is a label value, where another spelling would be another series: as OpenMetrics prescribes
/// (Go's %g, with `.0` where it would look like an integer), and the same in both dialects.
fn canonical(v: f64) -> String {
    let scientific = format!("{v:e}"); // shortest digits: 1.024e-6
    match scientific.split_once('e').and_then(|(digits, exp)| Some((digits, exp.parse::<i32>().ok()?))) {
        Some((digits, exp)) if !(-4..6).contains(&exp) => {
            format!("{digits}e{}{:02}", if exp < 0 { '-' } else { '+' }, exp.abs())
        }
        Some(_) => format!("{v:?}"),
        None => "+Inf".into(), // no other bound is without digits
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

    /// The examples of the OpenMetrics specification.
    #[test]
    fn bounds_are_canonical() {
        for (v, printed) in [
            (0.0, "0.0"),
            (1e-10, "1e-10"),
            (1e-5, "1e-05"),
            (1e-4, "0.0001"),
            (0.001, "0.001"),
            (0.1, "0.1"),
            (1.0, "1.0"),
            (10.0, "10.0"),
            (1e5, "100000.0"),
            (1e6, "1e+06"),
            (1.024e-6, "1.024e-06"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(canonical(v), printed);
        }
    }
}
