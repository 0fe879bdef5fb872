//! From where on something counts: one table, with the reason beside each. What is active goes on down to [`STAYS`] of it.

use std::time::Duration;

/// The time that is looked at: long enough for a burst to be none, short enough for whoever was just called.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Before so much of it has passed nothing is said: one window of readahead, or one burst, is no rate.
pub const SETTLED: Duration = Duration::from_secs(5);
/// Intervals that a verdict stays at least, so that it can be read.
pub const STAYS_INTERVALS: u64 = 3;
/// The part of a threshold below which what is active ends: what lies at it would come and go.
pub const STAYS: f64 = 0.7;

/// Bytes a second. Below it a bad ratio costs nothing: a disk of any kind does 4 MiB/s beside its work.
pub const BUSY: f64 = (4u64 << 20) as f64;
/// Seconds that threads wait per second, all together: a tenth of one thread is felt in the latency of its queries.
pub const WAITED: f64 = 0.1;
/// Of the pages read, those that were not in memory: fewer than a fifth are what every database has.
pub const MISSED: f64 = 0.2;
/// The part of the missing pages that a cause has to explain: below a quarter it is not the cause.
pub const EXPLAINS: f64 = 0.25;
/// Of what was dropped, the part that is read again: a merge's own readers come back to a few pages.
pub const REGRETTED: f64 = 0.25;
/// Pages filled per page read from which on readahead is in vain: ahead of a reader it is one window, which a minute hides.
pub const IN_VAIN: f64 = 1.5;
/// Points of the hit rate that double the memory has to bring to be worth it: as many as the curve may be off.
pub const WORTH_MEMORY: f64 = 5.0;
/// Of all waits those for fsync from which on it is what bounds.
pub const BOUND: f64 = 0.5;
/// Of the events those that were missed from which on the numbers cannot be trusted.
pub const UNTRUSTED: f64 = 0.01;
