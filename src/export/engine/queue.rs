//! What is on its way to the server: in order of time, acknowledged a moment ago and kept in case the server loses it,
//! and waiting; and put aside, what the server would not take while it took the rest. Bounded in time and bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Points;
use super::backoff::backoff;
use super::meter::Meter;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Age at which a waiting chunk is dropped.
    pub age: Duration,
    /// Bytes of all chunks.
    pub bytes: usize,
    /// How long acknowledged chunks are kept; zero: not at all.
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
    /// What failed, the last that did at the end.
    aside: VecDeque<Chunk<P>>,
    /// When that is tried again,
    retry_at: Instant,
    /// and how often in a row all that was tried of it failed again.
    vain: u32,
    /// Points that were taken, and are neither acknowledged nor back.
    in_flight: usize,
}

impl<P: Points> Queue<P> {
    /// An empty queue; `meter` counts the bytes of its chunks.
    pub fn new(limits: Limits, meter: Meter) -> Self {
        let (acknowledged, waiting, aside) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { limits, meter, acknowledged, waiting, aside, retry_at: Instant::now(), vain: 0, in_flight: 0 }
    }

    /// Adds the points of one collection, and drops the oldest ones beyond the bounds.
    pub fn push(&mut self, points: Vec<P>, now: Instant) -> Dropped {
        let newest = points.len();
        self.waiting.extend(points.into_iter().map(|points| Chunk { at: now, sent: false, points }));
        let mut dropped = Dropped::default();
        let too_old = |c: &Chunk<P>| now.saturating_duration_since(c.at) > self.limits.age;
        while self.waiting.front().is_some_and(too_old) {
            dropped.age += self.waiting.pop_front().map_or(0, |c| c.unsent());
        }
        self.aside.retain(|c| {
            dropped.age += if too_old(c) { c.unsent() } else { 0 };
            !too_old(c)
        });
        // The collection just made is kept, or one that is too large would never be sent.
        dropped.bytes = self.shed(newest);
        dropped
    }

    /// Drops what is beyond the bytes allowed, but for the last so many of those that wait. Returns the number of points.
    fn shed(&mut self, keep: usize) -> usize {
        let mut dropped = 0;
        while self.meter.bytes() > self.limits.bytes {
            if self.acknowledged.pop_front().is_some() {
                continue;
            }
            // What the server does not take must not cost what it would.
            let oldest = self.aside.iter().enumerate().min_by_key(|(_, c)| c.at).map(|(i, _)| i);
            let chunk = match oldest {
                Some(i) => self.aside.remove(i),
                None if self.waiting.len() <= keep => break,
                None => self.waiting.pop_front(),
            };
            dropped += chunk.map_or(0, |c| c.unsent());
        }
        dropped
    }

    /// Points that are not acknowledged, and the bytes of all chunks.
    pub fn size(&self) -> (usize, usize) {
        (self.in_flight + count(self.waiting.iter().chain(&self.aside)), self.meter.bytes())
    }

    /// Points that wait or are put aside, and never were acknowledged.
    pub fn unsent(&self) -> usize {
        unsent(self.waiting.iter().chain(&self.aside))
    }

    /// Whether nothing waits, nor is put aside.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.aside.is_empty()
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

    /// When to try again what was put aside; `None`: nothing was.
    pub fn retry_at(&self) -> Option<Instant> {
        (!self.aside.is_empty()).then_some(self.retry_at)
    }

    /// Takes the oldest waiting chunks for a batch of at most `size` points (one chunk at least).
    pub fn take(&mut self, size: usize) -> Vec<Chunk<P>> {
        let batch = batch(&mut self.waiting, size);
        self.in_flight = count(&batch);
        batch
    }

    /// Takes such a batch of what was put aside, what was tried last coming last.
    pub fn take_aside(&mut self, size: usize) -> Vec<Chunk<P>> {
        let batch = batch(&mut self.aside, size);
        self.in_flight = count(&batch);
        batch
    }

    /// Puts aside what failed. Returns how many points have to be dropped for it.
    pub fn put_aside(&mut self, chunks: Vec<Chunk<P>>, now: Instant) -> usize {
        self.in_flight = self.in_flight.saturating_sub(count(&chunks));
        if self.aside.is_empty() && !chunks.is_empty() {
            (self.vain, self.retry_at) = (0, now + backoff(1));
        }
        self.aside.extend(chunks);
        self.shed(self.waiting.len())
    }

    /// A part of what was put aside was tried again. If nothing of it was taken the next one has to wait longer.
    pub fn retried(&mut self, in_vain: bool, now: Instant) {
        self.vain = if in_vain { self.vain.saturating_add(1) } else { 0 };
        self.retry_at = if in_vain { now + backoff(self.vain) } else { now };
    }

    /// These chunks are acknowledged. Returns how many of their points are so for the first time.
    pub fn acknowledge(&mut self, batch: Vec<Chunk<P>>, now: Instant) -> usize {
        while self.acknowledged.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > self.limits.resend) {
            self.acknowledged.pop_front();
        }
        let first = unsent(&batch);
        self.in_flight = 0;
        // Of some all was put aside.
        let keep = |c: &Chunk<P>| c.points.count() > 0 && !self.limits.resend.is_zero();
        let rest = batch.into_iter().filter(keep);
        self.acknowledged.extend(rest.map(|c| (now, Chunk { sent: true, ..c })));
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

fn batch<P: Points>(from: &mut VecDeque<Chunk<P>>, size: usize) -> Vec<Chunk<P>> {
    let mut batch = Vec::new();
    let mut points = 0;
    while let Some(next) = from.pop_front() {
        points += next.points.count();
        if points > size && !batch.is_empty() {
            from.push_front(next);
            break;
        }
        batch.push(next);
    }
    batch
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

    impl Setup {
        /// Sends a batch of which the first chunk is put aside, and the rest acknowledged.
        fn first_fails(&mut self, seconds: u64) {
            let failed = self.in_flight.remove(0);
            self.queue.put_aside(vec![failed], self.start + Duration::from_secs(seconds));
            self.acknowledge(seconds);
        }
    }

    #[test]
    fn what_failed_is_put_aside_and_tried_again_in_turn() {
        let mut s = Setup::new(LIMITS);
        for n in 1..=3 {
            s.push(n);
            s.flight(SIZE.0);
            s.first_fails(n);
        }
        let half = SIZE.0 / 2;
        assert_eq!((s.queue.size().0, s.queue.unsent()), (3 * half, 3 * half));
        assert!(!s.queue.is_empty() && s.queue.oldest().is_none());
        let at = |seconds| s.start + Duration::from_secs(seconds);
        let first = s.queue.retry_at().unwrap();
        assert!(first > at(1) && first < at(2), "from the first failure on");
        let now = at(10);
        s.in_flight = s.queue.take_aside(half);
        assert_eq!(s.in_flight[0].points.seconds, 1);
        s.queue.put_aside(std::mem::take(&mut s.in_flight), now);
        s.queue.retried(true, now);
        assert!(s.queue.retry_at().unwrap() > now);
        s.in_flight = s.queue.take_aside(2 * half);
        let seconds: Vec<u64> = s.in_flight.iter().map(|c| c.points.seconds).collect();
        assert_eq!(seconds, [2, 3], "what was not tried yet");
        s.queue.retried(false, now);
        assert_eq!(s.queue.retry_at(), Some(now), "the next at once");
        s.acknowledge(10);
        s.in_flight = s.queue.take_aside(half);
        s.acknowledge(10);
        assert!(s.queue.is_empty() && s.queue.retry_at().is_none());
        s.send_again();
        assert_eq!(s.queue.size().0, 6 * half, "acknowledged like the rest");
    }

    #[test]
    fn what_failed_is_bounded_by_age_and_goes_before_what_has_not() {
        let mut s = Setup::new(LIMITS);
        s.push(0);
        s.flight(SIZE.0);
        s.first_fails(0);
        assert_eq!(s.push(100), Dropped::default());
        assert_eq!(s.push(101), Dropped { age: SIZE.0 / 2, bytes: 0 });
        assert!(s.queue.retry_at().is_none());

        let limits = Limits { bytes: 3 * SIZE.1, ..LIMITS };
        let mut s = Setup::new(limits);
        s.push(0);
        s.push(1);
        s.flight(SIZE.0);
        s.first_fails(1);
        s.push(2);
        assert_eq!(s.push(3), Dropped { age: 0, bytes: SIZE.0 / 2 }, "the acknowledged half, then the failed one");
        assert_eq!(s.flight(9 * SIZE.0), [1, 2, 3]);
    }
}
