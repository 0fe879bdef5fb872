//! The snapshots of the past. Most of one is the same as in the one before: of most only the differences are kept, and a
//! snapshot is made of them again when somebody asks.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::histogram::Histogram;
use super::snapshot::{ALLOCATION, Family, ModuleStatus, ProcessRow, Series, Snapshot, Value};

/// How much of the past is kept: at most this many bytes, so that a short interval or thousands of processes shorten the
/// history rather than fill the memory.
pub const HISTORY_BYTES: usize = 4 << 20;

/// Successful collections.
#[derive(Debug)]
pub struct History {
    span: Duration,
    newest: Option<Arc<Snapshot>>,
    /// Those before it, oldest first.
    earlier: VecDeque<Earlier>,
    bytes: usize,
}

/// A collection that another one followed.
#[derive(Debug, Clone)]
struct Earlier {
    moment: Moment,
    kept: Kept,
}

#[derive(Debug, Clone, Copy)]
struct Moment {
    sequence: u64,
    collected_at: SystemTime,
    collected_instant: Instant,
}

#[derive(Debug, Clone)]
enum Kept {
    /// What makes it of the one that followed.
    Differences(Arc<[u8]>),
    /// All of it: the one that followed has other series, or other probes.
    Whole(Arc<Snapshot>),
}

impl Moment {
    fn of(s: &Snapshot) -> Self {
        Self { sequence: s.sequence, collected_at: s.collected_at, collected_instant: s.collected_instant }
    }
}

impl Earlier {
    fn new(of: &Arc<Snapshot>, next: &Snapshot) -> Self {
        let kept = match alike(next, of) {
            true => Kept::Differences(differences(next, of)),
            false => Kept::Whole(Arc::clone(of)),
        };
        Self { moment: Moment::of(of), kept }
    }

    /// About the bytes of memory that it takes.
    fn bytes(&self) -> usize {
        let kept = match &self.kept {
            Kept::Differences(bytes) => bytes.len() + 2 * ALLOCATION,
            Kept::Whole(snapshot) => snapshot.size(),
        };
        size_of::<Self>() + kept
    }
}

impl History {
    /// An empty one, that will keep the collections of the last `span`, and at most [`HISTORY_BYTES`] of them.
    pub fn new(span: Duration) -> Self {
        Self { span, newest: None, earlier: VecDeque::new(), bytes: 0 }
    }

    /// Adds a collection.
    pub fn add(&mut self, next: &Arc<Snapshot>) {
        if let Some(last) = self.newest.replace(Arc::clone(next)) {
            let last = Earlier::new(&last, next);
            self.bytes += last.bytes();
            self.earlier.push_back(last);
        }
        self.forget(next.collected_instant);
    }

    /// Forgets what has grown too old by now, and what there is no room for. The newest stays.
    pub fn forget(&mut self, now: Instant) {
        while let Some(oldest) = self.earlier.front()
            && (self.bytes > HISTORY_BYTES
                || now.saturating_duration_since(oldest.moment.collected_instant) > self.span)
        {
            self.bytes -= oldest.bytes();
            self.earlier.pop_front();
        }
    }

    /// About the bytes of memory that it takes, beside the newest.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The collections kept that began in `start..end`; a missing end is open.
    pub fn between(&self, start: Option<SystemTime>, end: Option<SystemTime>) -> Past {
        let mut past = Past { newest: self.newest.clone(), earlier: Vec::new(), start, end };
        // Each is made of the one that followed.
        let first = self.earlier.iter().position(|e| past.wants(e.moment)).unwrap_or(self.earlier.len());
        past.earlier = self.earlier.range(first..).cloned().collect();
        past
    }
}

/// Collections of the past, as they are kept.
#[derive(Debug, Clone)]
pub struct Past {
    newest: Option<Arc<Snapshot>>,
    earlier: Vec<Earlier>,
    start: Option<SystemTime>,
    end: Option<SystemTime>,
}

impl Past {
    fn wants(&self, m: Moment) -> bool {
        self.start.is_none_or(|t| m.collected_at >= t) && self.end.is_none_or(|t| m.collected_at < t)
    }

    /// Makes the snapshots again, one after the other.
    pub fn newest_first(&self) -> impl Iterator<Item = Snapshot> {
        let newest = self.newest.as_deref().cloned();
        let mut earlier = self.earlier.iter().rev();
        let all = std::iter::successors(newest, move |next| {
            let Earlier { moment, kept } = earlier.next()?;
            Some(match kept {
                Kept::Whole(snapshot) => Snapshot::clone(snapshot),
                Kept::Differences(bytes) => apply(next, *moment, bytes),
            })
        });
        all.filter(|s| self.wants(Moment::of(s)))
    }
}

// ---- differences ----

/// Whether two snapshots differ in nothing but what [`differences`] tells.
fn alike(a: &Snapshot, b: &Snapshot) -> bool {
    let Snapshot {
        sequence: _,
        collected_at: _,
        collected_instant: _,
        started,
        interval,
        scope,
        families,
        processes: _,
        files: _,
        diagnosis: _,
        knows,
        modules,
        last_error,
    } = a;
    let module = |(x, y): (&ModuleStatus, &ModuleStatus)| {
        let known = y.last_collected == x.last_collected || y.last_collected == Some(b.collected_at);
        known && ModuleStatus { last_collected: y.last_collected, ..x.clone() } == *y
    };
    (started, interval, scope, knows, last_error) == (&b.started, &b.interval, &b.scope, &b.knows, &b.last_error)
        && modules.len() == b.modules.len()
        && modules.iter().zip(&b.modules).all(module)
        && families.len() == b.families.len()
        && families.iter().zip(&b.families).all(same_series)
}

fn same_series((a, b): (&Family, &Family)) -> bool {
    let same = |(x, y): (&Series, &Series)| {
        x.labels == y.labels && mem::discriminant(&x.value) == mem::discriminant(&y.value) && !is_nothing(&y.value)
    };
    a.metric.name == b.metric.name && a.series.len() == b.series.len() && a.series.iter().zip(&b.series).all(same)
}

/// What stands for a percentage of nothing among the numbers: no result of a division.
const NOTHING: u64 = u64::MAX;

fn is_nothing(value: &Value) -> bool {
    matches!(value, Value::Percent(Some(p)) if p.to_bits() == NOTHING)
}

/// The numbers of all series, in their order.
fn numbers(of: &Snapshot) -> Vec<u64> {
    let mut all = Vec::new();
    for series in of.families.iter().flat_map(|f| &f.series) {
        match &series.value {
            Value::Int(n) => all.push(*n),
            Value::Float(v) => all.push(v.to_bits()),
            Value::Percent(p) => all.push(p.map_or(NOTHING, f64::to_bits)),
            Value::Histogram(h) => {
                let Histogram { buckets, sum_ns } = h;
                all.extend(buckets);
                all.push(*sum_ns);
            }
        }
    }
    all
}

fn add_to_numbers(of: &mut Snapshot, by: &mut Differences<'_>) {
    let mut sum = |n: u64| n.wrapping_add_signed(by.step());
    for series in of.families.iter_mut().flat_map(|f| &mut f.series) {
        match &mut series.value {
            Value::Int(n) => *n = sum(*n),
            Value::Float(v) => *v = f64::from_bits(sum(v.to_bits())),
            Value::Percent(p) => {
                let bits = sum(p.map_or(NOTHING, f64::to_bits));
                *p = (bits != NOTHING).then(|| f64::from_bits(bits));
            }
            Value::Histogram(Histogram { buckets, sum_ns }) => {
                buckets.iter_mut().for_each(|b| *b = sum(*b));
                *sum_ns = sum(*sum_ns);
            }
        }
    }
}

/// What [`apply`] makes the second of the first with.
fn differences(a: &Snapshot, b: &Snapshot) -> Arc<[u8]> {
    let mut to = Vec::new();
    for (x, y) in a.modules.iter().zip(&b.modules) {
        put(&mut to, u64::from(x.last_collected != y.last_collected));
    }
    put_steps(&mut to, numbers(a).into_iter().zip(numbers(b)).map(|(x, y)| y.wrapping_sub(x).cast_signed()));
    match (&a.processes, &b.processes) {
        (a, b) if a == b => put(&mut to, SAME),
        (_, None) => put(&mut to, NONE),
        (a, Some(rows)) => {
            put(&mut to, ROWS + rows.len() as u64);
            put_rows(&mut to, a.as_deref().unwrap_or_default(), rows);
        }
    }
    to.into()
}

/// What is said of the rows: as before, not known, or so many.
const SAME: u64 = 0;
const NONE: u64 = 1;
const ROWS: u64 = 2;

fn apply(to: &Snapshot, moment: Moment, differences: &[u8]) -> Snapshot {
    let mut from = Differences { bytes: differences, zeros: 0 };
    let mut made = Snapshot { processes: None, files: None, diagnosis: None, ..to.clone() };
    let Moment { sequence, collected_at, collected_instant } = moment;
    (made.sequence, made.collected_at, made.collected_instant) = (sequence, collected_at, collected_instant);
    for module in &mut made.modules {
        if from.number() != 0 {
            module.last_collected = Some(collected_at);
        }
    }
    add_to_numbers(&mut made, &mut from);
    made.processes = match from.number() {
        SAME => to.processes.clone(),
        NONE => None,
        rows => Some(from.rows((rows - ROWS) as usize, to.processes.as_deref().unwrap_or_default())),
    };
    made
}

/// How rows are told: as they are; so many as they are there; or one that is there, with what it differs by. Those there are
/// told by their place, as the distance from the place after that of the row above.
const NEW: u64 = 0;
const RUN: u64 = 1;
const ONE: u64 = 2;

fn put_rows(to: &mut Vec<u8>, there: &[ProcessRow], rows: &[ProcessRow]) {
    let places: HashMap<(u32, &str), usize> =
        there.iter().enumerate().map(|(i, r)| ((r.pid, r.comm.as_str()), i)).collect();
    let (mut expected, mut at) = (0, 0);
    while let Some(row) = rows.get(at) {
        let same = |(a, b): &(&ProcessRow, &ProcessRow)| a == b;
        let run = there.iter().skip(expected).zip(&rows[at..]).take_while(same).count();
        if run > 0 {
            put(to, RUN);
            put(to, run as u64);
            expected += run;
            at += run;
            continue;
        }
        at += 1;
        match places.get(&(row.pid, row.comm.as_str())) {
            Some(place) => {
                put(to, ONE + zigzag(*place as i64 - expected as i64));
                let there = there[*place].numbers();
                put_steps(to, row.numbers().into_iter().zip(there).map(|(n, m)| n.wrapping_sub(m).cast_signed()));
                expected = place + 1;
            }
            None => {
                put(to, NEW);
                put(to, row.pid.into());
                put(to, row.comm.len() as u64);
                to.extend(row.comm.as_bytes());
                put_steps(to, row.numbers().into_iter().map(u64::cast_signed));
            }
        }
    }
}

/// Most numbers stay as they are: of zeros the number is told.
fn put_steps(to: &mut Vec<u8>, steps: impl Iterator<Item = i64>) {
    let mut zeros = 0;
    let flush = |to: &mut Vec<u8>, zeros: &mut u64| {
        if *zeros > 0 {
            put(to, 0);
            put(to, mem::take(zeros));
        }
    };
    for step in steps {
        if step == 0 {
            zeros += 1;
        } else {
            flush(to, &mut zeros);
            put_signed(to, step);
        }
    }
    flush(to, &mut zeros);
}

/// A number in as few bytes as it needs, seven bits in each.
fn put(to: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

/// Few bytes for what is near zero, on either side.
fn put_signed(to: &mut Vec<u8>, n: i64) {
    put(to, zigzag(n));
}

fn zigzag(n: i64) -> u64 {
    (n << 1 ^ n >> 63).cast_unsigned()
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -(n & 1).cast_signed()
}

/// What `put` and its like wrote, from the beginning on. Where it ends there are zeros.
struct Differences<'a> {
    bytes: &'a [u8],
    /// Steps of zero that come first.
    zeros: u64,
}

impl Differences<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        let (taken, rest) = self.bytes.split_at(n.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    fn number(&mut self) -> u64 {
        let n = self.bytes.iter().take_while(|b| **b > 0x7f).count() + 1;
        self.take(n).iter().rev().fold(0, |sum, b| sum << 7 | u64::from(b & 0x7f))
    }

    fn step(&mut self) -> i64 {
        if self.zeros == 0 {
            match self.number() {
                0 => self.zeros = self.number().max(1),
                step => return unzigzag(step),
            }
        }
        self.zeros -= 1;
        0
    }

    fn rows(&mut self, count: usize, there: &[ProcessRow]) -> Vec<ProcessRow> {
        let (mut rows, mut expected) = (Vec::with_capacity(count), 0);
        while rows.len() < count {
            match self.number() {
                NEW => {
                    let (pid, len) = (self.number() as u32, self.number() as usize);
                    let comm = String::from_utf8_lossy(self.take(len)).into_owned();
                    let numbers = std::array::from_fn(|_| self.step().cast_unsigned());
                    rows.push(ProcessRow { pid, comm, ..Default::default() }.with(numbers));
                }
                RUN => {
                    let run = self.number() as usize;
                    rows.extend(there.iter().skip(expected).take(run).cloned());
                    expected += run;
                }
                tag => {
                    let place = expected.wrapping_add_signed(unzigzag(tag - ONE) as isize);
                    expected = place + 1;
                    let row = there.get(place).cloned().unwrap_or_default();
                    let numbers = row.numbers().map(|n| n.wrapping_add_signed(self.step()));
                    rows.push(row.with(numbers));
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::random::Random;
    use crate::metrics::snapshot::Activity;
    use crate::monitor::example;

    fn row(pid: u64, calls: u64) -> ProcessRow {
        let reads = Activity { pages: calls * 3, wait_ns: pid << 30, ..Default::default() };
        ProcessRow { pid: pid as u32, comm: format!("worker-{}", pid % 7), calls, success: calls / 2, reads }
    }

    /// A second later, with other numbers: small steps, large ones, backwards, and rates that are not known.
    fn after(last: &Snapshot, random: &mut Random) -> Snapshot {
        let mut next = last.clone();
        next.sequence += 1 + random.below(2);
        next.collected_at += Duration::from_secs(1);
        next.collected_instant += Duration::from_secs(1);
        for series in next.families.iter_mut().flat_map(|f| &mut f.series) {
            match &mut series.value {
                Value::Int(n) if random.below(2) == 0 => *n = n.wrapping_add(random.below(1000)),
                Value::Int(n) if random.below(20) == 0 => *n = random.next(),
                Value::Int(_) => {}
                Value::Float(v) => *v = [f64::NAN, 1e300, -0.0, f64::INFINITY, 1.0 / 3.0][random.below(5) as usize],
                Value::Percent(p) => *p = [None, Some(100.0), Some(2.0 / 3.0), Some(0.0)][random.below(4) as usize],
                Value::Histogram(h) => {
                    h.buckets[random.below(26) as usize] += random.below(3);
                    h.sum_ns = random.next();
                }
            }
        }
        match random.below(20) {
            0 => next.processes = None,
            1 => next.processes = Some(Vec::new()),
            2..5 => {}
            _ => {
                let rows = next.processes.get_or_insert_default();
                for _ in 0..random.below(9) {
                    let place = random.below(rows.len() as u64 + 1) as usize;
                    rows.insert(place, row(random.below(50), random.below(1 << 40)));
                }
                if !rows.is_empty() {
                    let places = rows.len() as u64;
                    rows.swap_remove(random.below(places) as usize);
                    rows.iter_mut().take(3).for_each(|r| r.calls += 1);
                }
            }
        }
        let at = next.collected_at;
        next.modules.iter_mut().filter(|_| random.below(10) > 0).for_each(|m| m.last_collected = Some(at));
        // What makes a new beginning.
        match random.below(60) {
            0 => next.interval += Duration::from_millis(1),
            1 => next.scope += "/x",
            2 => next.families.truncate(next.families.len() - 1),
            3 => next.modules[0].trouble = Some("gone".into()),
            4 => next.modules[0].last_collected = None,
            _ => {}
        }
        next
    }

    #[test]
    fn what_comes_back_is_what_was_added() {
        let mut random = Random(42);
        // What happened to files is of the newest alone.
        let mut last = Snapshot { files: None, diagnosis: None, ..example::snapshot() };
        let (mut history, mut truth) = (History::new(Duration::from_secs(200)), VecDeque::new());
        for _ in 0..1000 {
            history.add(&Arc::new(last.clone()));
            truth.push_back(format!("{last:?}"));
            last = after(&last, &mut random);
        }
        let kept: Vec<String> = history.between(None, None).newest_first().map(|s| format!("{s:?}")).collect();
        assert_eq!(kept.len(), 201);
        assert!(kept.iter().eq(truth.iter().rev().take(kept.len())));
        // A part of them.
        let newest = last.collected_at - Duration::from_secs(1);
        let (start, end) = (newest - Duration::from_secs(150), newest - Duration::from_secs(50));
        let some = history.between(Some(start), Some(end));
        assert!(some.newest_first().map(|s| format!("{s:?}")).eq(kept[51..=150].iter().cloned()));
        let bytes = history.earlier.iter().map(Earlier::bytes).sum::<usize>();
        assert_eq!(history.bytes(), bytes, "what has gone is not counted");
    }

    #[test]
    fn numbers_come_back() {
        let all = [0, 1, -1, 63, 64, -64, 0, 0, 0, -65, i64::MAX, i64::MIN, 0, 0];
        let mut bytes = Vec::new();
        put_steps(&mut bytes, all.into_iter());
        let mut read = Differences { bytes: &bytes, zeros: 0 };
        assert_eq!(all.map(|_| read.step()), all, "{bytes:x?}");
        assert_eq!((read.bytes.len(), read.zeros), (0, 0));
        assert_eq!((read.step(), read.number()), (0, 0), "the end is no panic");
    }

    /// A quarter of an hour at an interval of a second, under load: every counter moves, and a dozen processes a second
    /// come for a minute and a bit each.
    #[test]
    fn a_full_history_is_small() {
        let mut random = Random(7);
        let mut snapshot = example::snapshot();
        let mut history = History::new(Duration::from_secs(900));
        for second in 0..2000u64 {
            snapshot.sequence += 1;
            snapshot.collected_at += Duration::from_secs(1);
            snapshot.collected_instant += Duration::from_secs(1);
            for series in snapshot.families.iter_mut().flat_map(|f| &mut f.series) {
                match &mut series.value {
                    Value::Int(n) => *n += random.below(100_000),
                    Value::Float(v) => *v += 0.25,
                    Value::Percent(p) => *p = Some(random.below(1000) as f64 / 7.0),
                    Value::Histogram(h) => {
                        (10..16).for_each(|i| h.buckets[i] += random.below(1000));
                        h.sum_ns += random.below(1 << 30);
                    }
                }
            }
            // Those with the most calls first.
            let mut rows: Vec<_> = (second * 12..second * 12 + 128).map(|pid| row(pid, 1 + pid * 7 % 5)).collect();
            rows.sort_by_key(|r| (u64::MAX - r.calls, r.pid));
            snapshot.processes = Some(rows);
            history.add(&Arc::new(snapshot.clone()));
        }
        let kept = 1 + history.earlier.len();
        println!("{kept} collections in {} KiB", history.bytes() / 1024);
        assert_eq!(kept, 901);
        assert!(history.bytes() < 1 << 20, "{} bytes", history.bytes());
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let mut snapshot = example::snapshot();
        let mut history = History::new(Duration::from_secs(3600));
        for n in 1..100 {
            snapshot.sequence = n;
            // All of them others each time.
            snapshot.processes = Some((n * 5000..(n + 1) * 5000).map(|pid| row(pid, 1)).collect());
            history.add(&Arc::new(snapshot.clone()));
        }
        assert!(history.bytes() <= HISTORY_BYTES, "{}", history.bytes());
        let kept: Vec<u64> = history.between(None, None).newest_first().map(|s| s.sequence).collect();
        assert!(kept.len() > 5 && kept[0] == 99, "{kept:?}");
    }
}
