//! What is on its way to the server, in order of time: acknowledged a moment ago and kept in case the server loses it,
//! and waiting. Bounded in time and bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Points;
use super::meter::Meter;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Age at which a waiting chunk is dropped.
    pub age: Duration,
    /// Bytes of all chunks.
    pub bytes: usize,
    /// How long acknowledged chunks are kept.
    pub resend: Duration,
}

/// What had to be dropped to stay within the bounds: numbers of points.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Too old.
    pub age: usize,
    /// Too many.
    pub bytes: usize,
}

/// Points that are sent together.
#[derive(Debug)]
pub struct Chunk<P> {
    /// When they were collected.
    pub at: Instant,
    /// Whether they were acknowledged once.
    pub sent: bool,
    /// The points.
    pub points: P,
}

impl<P: Points> Chunk<P> {
    /// These points, which were part of it.
    pub fn part(&self, points: P) -> Self {
        Self { at: self.at, sent: self.sent, points }
    }

    fn unsent(&self) -> usize {
        if self.sent { 0 } else { self.points.count() }
    }
}

/// Number of points in these chunks.
pub fn count<'a, P: Points + 'a>(chunks: impl IntoIterator<Item = &'a Chunk<P>>) -> usize {
    chunks.into_iter().map(|c| c.points.count()).sum()
}

/// Of them, those that never were acknowledged.
pub fn unsent<'a, P: Points + 'a>(chunks: impl IntoIterator<Item = &'a Chunk<P>>) -> usize {
    chunks.into_iter().map(Chunk::unsent).sum()
}

/// The chunks.
pub struct Queue<P> {
    limits: Limits,
    meter: Meter,
    acknowledged: VecDeque<(Instant, Chunk<P>)>,
    waiting: VecDeque<Chunk<P>>,
    /// Points that were taken, and are neither acknowledged nor back.
    in_flight: usize,
}

impl<P: Points> Queue<P> {
    /// An empty queue; `meter` counts the bytes of its chunks.
    pub fn new(limits: Limits, meter: Meter) -> Self {
        Self { limits, meter, acknowledged: VecDeque::new(), waiting: VecDeque::new(), in_flight: 0 }
    }

    /// Adds the points of one collection, and drops the oldest ones beyond the bounds.
    pub fn push(&mut self, points: Vec<P>, now: Instant) -> Dropped {
        let newest = points.len();
        self.waiting.extend(points.into_iter().map(|points| Chunk { at: now, sent: false, points }));
        let mut dropped = Dropped::default();
        while self.waiting.front().is_some_and(|c| now.saturating_duration_since(c.at) > self.limits.age) {
            dropped.age += self.waiting.pop_front().map_or(0, |c| c.unsent());
        }
        while self.meter.bytes() > self.limits.bytes {
            if self.acknowledged.pop_front().is_none() {
                // The collection just made is kept, or one that is too large would never be sent.
                if self.waiting.len() <= newest {
                    break;
                }
                dropped.bytes += self.waiting.pop_front().map_or(0, |c| c.unsent());
            }
        }
        dropped
    }

    /// Points that are not acknowledged, and the bytes of all chunks.
    pub fn size(&self) -> (usize, usize) {
        (self.in_flight + count(&self.waiting), self.meter.bytes())
    }

    /// Points that wait and never were acknowledged.
    pub fn unsent(&self) -> usize {
        unsent(&self.waiting)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a batch of `size` points is full.
    pub fn has(&self, size: usize) -> bool {
        let mut points = 0;
        self.waiting.iter().any(|c| {
            points += c.points.count();
            points >= size
        })
    }

    /// When the oldest waiting chunk was made.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|c| c.at)
    }

    /// Takes the oldest chunks for a batch of at most `size` points (one chunk at least).
    pub fn take(&mut self, size: usize) -> Vec<Chunk<P>> {
        let mut batch = Vec::new();
        let mut points = 0;
        while let Some(next) = self.waiting.pop_front() {
            points += next.points.count();
            if points > size && !batch.is_empty() {
                self.waiting.push_front(next);
                break;
            }
            batch.push(next);
        }
        self.in_flight = count(&batch);
        batch
    }

    /// These chunks are acknowledged. Returns how many of their points are so for the first time.
    pub fn acknowledge(&mut self, batch: Vec<Chunk<P>>, now: Instant) -> usize {
        while self.acknowledged.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > self.limits.resend) {
            self.acknowledged.pop_front();
        }
        let first = unsent(&batch);
        self.in_flight = 0;
        self.acknowledged.extend(batch.into_iter().map(|c| (now, Chunk { sent: true, ..c })));
        first
    }

    /// The connection was lost: what was in flight, and what was acknowledged a moment before, waits again.
    pub fn send_again(&mut self, in_flight: Vec<Chunk<P>>) {
        self.in_flight = 0;
        let acknowledged = self.acknowledged.drain(..).map(|(_, chunk)| chunk);
        for chunk in acknowledged.chain(in_flight).rev() {
            self.waiting.push_front(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::meter::Metered;
    use super::*;

    const LIMITS: Limits = Limits { age: Duration::from_secs(100), bytes: 1 << 20, resend: Duration::from_secs(30) };
    /// Points of a collection, and their bytes.
    const SIZE: (usize, usize) = (120, 4000);

    /// Points of the collection made so many seconds after the start.
    #[derive(Debug)]
    struct Part {
        seconds: u64,
        count: usize,
        _bytes: Metered,
    }

    impl Points for Part {
        fn count(&self) -> usize {
            self.count
        }
    }

    struct Setup {
        queue: Queue<Part>,
        meter: Meter,
        in_flight: Vec<Chunk<Part>>,
        start: Instant,
    }

    impl Setup {
        fn new(limits: Limits) -> Self {
            let meter = Meter::default();
            let queue = Queue::new(limits, meter.clone());
            Self { queue, meter, in_flight: Vec::new(), start: Instant::now() }
        }

        /// Adds a collection made `seconds` after the start, in two chunks.
        fn push(&mut self, seconds: u64) -> Dropped {
            let half = || Part { seconds, count: SIZE.0 / 2, _bytes: self.meter.add(SIZE.1 / 2) };
            self.queue.push(vec![half(), half()], self.start + Duration::from_secs(seconds))
        }

        /// Sends a batch: the collections in it.
        fn flight(&mut self, size: usize) -> Vec<u64> {
            self.in_flight = self.queue.take(size);
            let mut seconds: Vec<u64> = self.in_flight.iter().map(|c| c.points.seconds).collect();
            seconds.dedup();
            seconds
        }

        fn acknowledge(&mut self, seconds: u64) -> usize {
            self.queue.acknowledge(std::mem::take(&mut self.in_flight), self.start + Duration::from_secs(seconds))
        }

        fn send_again(&mut self) {
            self.queue.send_again(std::mem::take(&mut self.in_flight));
        }
    }

    #[test]
    fn in_order_and_again_after_a_lost_connection() {
        let mut s = Setup::new(LIMITS);
        for n in 1..=6 {
            assert_eq!(s.push(n), Dropped::default());
        }
        let points = SIZE.0;
        assert_eq!(s.flight(2 * points), [1, 2]);
        assert_eq!(s.acknowledge(0), 2 * points);
        assert_eq!(s.flight(1), [3], "one chunk at least");
        assert_eq!(s.in_flight.len(), 1);
        assert_eq!(s.queue.size().0, 4 * points);
        s.send_again();
        assert_eq!(s.queue.size().0, 6 * points);
        assert_eq!(s.queue.unsent(), 4 * points);
        assert_eq!(s.flight(3 * points), [1, 2, 3], "the acknowledged ones first");
        assert_eq!(s.acknowledge(0), points, "two were counted before");
        assert_eq!(s.flight(points), [4]);
        s.acknowledge(31);
        s.send_again();
        assert_eq!(s.flight(9 * points), [4, 5, 6], "the first three are out of the window");
        assert_eq!(unsent(&s.in_flight), 2 * points);
        assert!(s.queue.is_empty());
    }

    #[test]
    fn the_oldest_is_dropped_by_age_and_counted() {
        let mut s = Setup::new(LIMITS);
        s.push(0);
        assert_eq!(s.push(100), Dropped::default());
        assert_eq!(s.push(101), Dropped { age: SIZE.0, bytes: 0 });
        assert_eq!(s.flight(9 * SIZE.0), [100, 101]);
    }

    #[test]
    fn the_oldest_is_dropped_by_bytes_acknowledged_ones_first() {
        let limits = Limits { age: Duration::from_secs(3600), bytes: 10 * SIZE.1, ..LIMITS };
        let mut s = Setup::new(limits);
        s.push(0);
        s.flight(SIZE.0);
        s.acknowledge(0);
        for n in 1..=10 {
            assert_eq!(s.push(n), Dropped::default(), "at {n}");
        }
        assert_eq!(s.push(11), Dropped { age: 0, bytes: SIZE.0 });
        assert!(s.queue.size().1 <= limits.bytes);
        s.send_again();
        assert_eq!(s.flight(usize::MAX), (2..=11).collect::<Vec<_>>(), "the acknowledged went first, then the oldest");
    }

    #[test]
    fn a_collection_larger_than_the_bound_is_kept_while_it_is_the_newest() {
        let mut s = Setup::new(Limits { bytes: 1, ..LIMITS });
        s.push(1);
        assert_eq!(s.push(2), Dropped { age: 0, bytes: SIZE.0 });
        assert_eq!(s.flight(usize::MAX), [2]);
    }
}
