//! What is on its way to BanyanDB, in order of time: acknowledged a moment ago and kept in case the server loses it,
//! being sent, and waiting. Bounded in time and bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::points::{Chunk, Meter};

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

/// The chunks.
pub struct Queue {
    limits: Limits,
    meter: Meter,
    acknowledged: VecDeque<(Instant, Chunk)>,
    in_flight: Vec<Chunk>,
    waiting: VecDeque<Chunk>,
}

impl Queue {
    /// An empty queue; `meter` counts the bytes of its chunks.
    pub fn new(limits: Limits, meter: Meter) -> Self {
        Self { limits, meter, acknowledged: VecDeque::new(), in_flight: Vec::new(), waiting: VecDeque::new() }
    }

    /// Adds the chunks of one collection, and drops the oldest ones beyond the bounds.
    pub fn push(&mut self, chunks: Vec<Chunk>, now: Instant) -> Dropped {
        let newest = chunks.len();
        self.waiting.extend(chunks);
        let mut dropped = Dropped::default();
        let unsent = |c: Chunk| if c.sent { 0 } else { c.points() };
        while self.waiting.front().is_some_and(|c| now.saturating_duration_since(c.at) > self.limits.age) {
            dropped.age += self.waiting.pop_front().map_or(0, unsent);
        }
        while self.meter.bytes() > self.limits.bytes {
            if self.acknowledged.pop_front().is_none() {
                // The collection just made is kept, or one that is too large would never be sent.
                if self.waiting.len() <= newest {
                    break;
                }
                dropped.bytes += self.waiting.pop_front().map_or(0, unsent);
            }
        }
        dropped
    }

    /// Points that are not acknowledged, and the bytes of all chunks.
    pub fn size(&self) -> (usize, usize) {
        (self.in_flight.iter().chain(&self.waiting).map(Chunk::points).sum(), self.meter.bytes())
    }

    /// Points that never were acknowledged.
    pub fn unsent(&self) -> usize {
        self.in_flight.iter().chain(&self.waiting).filter(|c| !c.sent).map(Chunk::points).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a batch of `size` points is full.
    pub fn has(&self, size: usize) -> bool {
        let mut points = 0;
        self.waiting.iter().any(|c| {
            points += c.points();
            points >= size
        })
    }

    /// When the oldest waiting chunk was made.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|c| c.at)
    }

    /// Takes the oldest chunks for a batch of at most `size` points (one chunk at least), in place of what was in
    /// flight before, which has to be settled.
    pub fn take(&mut self, size: usize) {
        let mut points = 0;
        while let Some(next) = self.waiting.pop_front() {
            points += next.points();
            if points > size && !self.in_flight.is_empty() {
                self.waiting.push_front(next);
                break;
            }
            self.in_flight.push(next);
        }
    }

    /// What is being sent.
    pub fn in_flight(&mut self) -> &mut [Chunk] {
        &mut self.in_flight
    }

    /// All in flight is acknowledged. Returns how many of its points are so for the first time.
    pub fn acknowledge(&mut self, now: Instant) -> usize {
        while self.acknowledged.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > self.limits.resend) {
            self.acknowledged.pop_front();
        }
        let mut first = 0;
        for mut chunk in self.in_flight.drain(..) {
            first += if chunk.sent { 0 } else { chunk.points() };
            chunk.sent = true;
            self.acknowledged.push_back((now, chunk));
        }
        first
    }

    /// The connection was lost: what is in flight, and what was acknowledged a moment before, waits again.
    pub fn send_again(&mut self) {
        for chunk in self.in_flight.drain(..).rev() {
            self.waiting.push_front(chunk);
        }
        for (_, chunk) in self.acknowledged.drain(..).rev() {
            self.waiting.push_front(chunk);
        }
    }

    /// Gives up what is in flight. Returns the number of its points that never were acknowledged.
    pub fn give_up(&mut self) -> usize {
        self.in_flight.drain(..).filter(|c| !c.sent).map(|c| c.points()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::points::Converter;
    use super::super::schema::specs;
    use super::*;
    use crate::metrics::snapshot::Snapshot;
    use crate::monitor::example;

    const LIMITS: Limits = Limits { age: Duration::from_secs(100), bytes: 1 << 20, resend: Duration::from_secs(30) };

    struct Setup {
        queue: Queue,
        converter: Converter,
        start: Instant,
    }

    impl Setup {
        fn new(limits: Limits, batch_size: usize) -> Self {
            let meter = Meter::default();
            let converter = Converter::new("n".into(), specs().into(), batch_size, meter.clone());
            Self { queue: Queue::new(limits, meter), converter, start: Instant::now() }
        }

        /// Adds a collection made `seconds` after the start.
        fn push(&mut self, seconds: u64) -> Dropped {
            let at = Duration::from_secs(seconds);
            let base = example::snapshot();
            let snapshot = Snapshot { collected_at: base.collected_at + at, ..base };
            let mut chunks = self.converter.chunks(&snapshot);
            chunks.iter_mut().for_each(|c| c.at = self.start + at);
            self.queue.push(chunks, self.start + at)
        }

        fn flight(&mut self, size: usize) -> Vec<i64> {
            self.queue.take(size);
            self.queue.in_flight().iter().map(|c| c.time / 1000 - 1_700_000_000).collect()
        }
    }

    #[test]
    fn in_order_and_again_after_a_lost_connection() {
        let mut s = Setup::new(LIMITS, 10_000);
        for n in 1..=6 {
            assert_eq!(s.push(n), Dropped::default());
        }
        let points = s.queue.size().0 / 6;
        assert_eq!(s.flight(2 * points), [1, 2]);
        assert_eq!(s.queue.acknowledge(s.start), 2 * points);
        assert_eq!(s.flight(points - 1), [3], "one chunk at least");
        s.queue.send_again();
        assert_eq!(s.queue.size().0, 6 * points);
        assert_eq!(s.flight(3 * points), [1, 2, 3], "the acknowledged ones first");
        assert_eq!(s.queue.acknowledge(s.start), points, "two were counted before");
        assert_eq!(s.flight(points), [4]);
        s.queue.acknowledge(s.start + Duration::from_secs(31));
        s.queue.send_again();
        assert_eq!(s.flight(9 * points), [4, 5, 6], "the first three are out of the window");
        assert_eq!(s.queue.give_up(), 2 * points);
        assert!(s.queue.is_empty());
    }

    #[test]
    fn the_oldest_is_dropped_by_age_and_counted() {
        let mut s = Setup::new(LIMITS, 10_000);
        s.push(0);
        let points = s.queue.size().0;
        assert_eq!(s.push(100), Dropped::default());
        assert_eq!(s.push(101), Dropped { age: points, bytes: 0 });
        assert_eq!(s.flight(9 * points), [100, 101]);
    }

    #[test]
    fn the_oldest_is_dropped_by_bytes_acknowledged_ones_first() {
        let limits = Limits { age: Duration::from_secs(3600), bytes: 40_000, ..LIMITS };
        let mut s = Setup::new(limits, 10_000);
        s.push(0);
        let points = s.queue.size().0;
        s.queue.take(points);
        s.queue.acknowledge(s.start);
        let mut dropped = Dropped::default();
        let mut n = 0;
        while dropped == Dropped::default() {
            n += 1;
            dropped = s.push(n);
            assert!(s.queue.size().1 <= limits.bytes);
        }
        assert_eq!(dropped, Dropped { age: 0, bytes: points }, "at {n}");
        assert!(n > 3);
        s.queue.send_again();
        let kept: Vec<i64> = (2..=n as i64).collect();
        assert_eq!(s.flight(usize::MAX), kept, "what was acknowledged went first, then the oldest");
    }

    #[test]
    fn a_collection_larger_than_the_bound_is_kept_while_it_is_the_newest() {
        let mut s = Setup::new(Limits { bytes: 1, ..LIMITS }, 10);
        s.push(1);
        let points = s.queue.size().0;
        assert!(s.queue.size().1 > 1);
        assert_eq!(s.push(2), Dropped { age: 0, bytes: points });
        assert_eq!(s.flight(usize::MAX).iter().filter(|t| **t != 2).count(), 0);
    }
}
