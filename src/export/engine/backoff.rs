//! How long to wait before trying again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// After so many failures in a row: doubling up to ten seconds, with jitter so that agents that lost the same server do
/// not come back at once.
pub fn backoff(failures: u32) -> Duration {
    jittered(failures, RandomState::new().hash_one(failures))
}

fn jittered(failures: u32, jitter: u64) -> Duration {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST);
    let half = full / 2;
    half + half.mul_f64(jitter as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_ten_seconds_with_jitter() {
        for (failures, full) in [(0, 200), (1, 200), (2, 400), (3, 800), (6, 6400), (7, 10_000), (u32::MAX, 10_000)] {
            assert_eq!(jittered(failures, 0), Duration::from_millis(full / 2));
            assert_eq!(jittered(failures, u64::MAX), Duration::from_millis(full));
        }
    }
}
