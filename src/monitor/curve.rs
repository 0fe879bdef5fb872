//! The hit rate that a page cache of any size would have, and the data read in a time, from the times between two reads of
//! a page: Denning and Schwartz, "Properties of the working-set model", CACM 15 (1972). With G(t) the share of reads whose
//! page is not read again within t, and r the pages read per second, the pages of the last T seconds are
//! s(T) = r * integral of G from 0 to T, and a cache that holds them misses G(T) of the reads.
//!
//! Times are of one page in `every`. Three things are set right:
//! - The sample has some more or fewer reads than its share, since hot pages are in it or not. The number of all reads is
//!   known, and what lacks is put to the shortest times, as those are of hot pages (SHARDS-adj: Waldspurger, Park,
//!   Garthwaite and Ahmad, "Efficient MRC construction with SHARDS", FAST 2015).
//! - A page that was not read again yet may still be: its time is at least its age. So G is estimated as Kaplan and Meier do
//!   ("Nonparametric estimation from incomplete observations", JASA 53, 1958).
//! - No more pages can be held than were ever seen.

/// Buckets of times for each doubling.
pub const PER_OCTAVE: usize = 8;
/// The first bucket ends at this time, in nanoseconds: 16.4 us.
pub const FIRST_NS: f64 = 16_384.0;
/// Up to 12 hours.
pub const BUCKETS: usize = 32 * PER_OCTAVE;

/// Where a time falls, in nanoseconds.
pub fn bucket_of(ns: f64) -> usize {
    let octaves = (ns.max(1.0) / FIRST_NS).log2() * PER_OCTAVE as f64;
    ((octaves.floor() + 1.0).max(0.0) as usize).min(BUCKETS - 1)
}

/// The end of a bucket, in seconds.
fn end_of(bucket: usize) -> f64 {
    FIRST_NS * (bucket as f64 / PER_OCTAVE as f64).exp2() / 1e9
}

/// What was seen of the sampled pages in some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Reuse {
    /// Reads of sampled pages by the time since the read before.
    pub again: Vec<u64>,
    /// Sampled pages by the time since their last read.
    pub open: Vec<u64>,
    /// Reads of sampled pages that had not been read before.
    pub first: u64,
    /// One page of so many is sampled.
    pub every: f64,
    /// All pages read, sampled or not.
    pub reads: f64,
    /// In so many seconds.
    pub seconds: f64,
}

/// The hit rate by size.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Size in pages and the share of reads that hit, both rising.
    points: Vec<(f64, f64)>,
    /// Seconds, and distinct pages read in them.
    windows: Vec<(f64, f64)>,
}

impl Curve {
    /// `None` if nothing was read, or nothing sampled.
    pub fn of(reuse: &Reuse) -> Option<Self> {
        let open: f64 = reuse.open.iter().map(|n| *n as f64).sum();
        let mut again: Vec<f64> = reuse.again.iter().map(|n| *n as f64).collect();
        let sampled = again.iter().sum::<f64>() + reuse.first as f64;
        if reuse.reads <= 0.0 || reuse.seconds <= 0.0 || sampled <= 0.0 || again.is_empty() {
            return None;
        }
        // What lacks goes to the shortest times, what is too much comes from them.
        let mut lacking = reuse.reads / reuse.every - sampled;
        for count in &mut again {
            let less = (*count + lacking).max(0.0);
            lacking += *count - less;
            *count = less;
            if lacking >= 0.0 {
                break;
            }
        }
        let most = open * reuse.every;
        let rate = reuse.reads / reuse.seconds;
        let ended: f64 = again.iter().sum();
        let all = ended + reuse.first as f64;
        let mut at_risk = ended + open;
        let (mut missing, mut size, mut since, mut hits) = (1.0, 0.0, 0.0, 0.0);
        let (mut points, mut windows) = (vec![(0.0, 0.0)], vec![(0.0, 0.0)]);
        for (i, ended) in again.iter().enumerate() {
            let censored = reuse.open.get(i).copied().unwrap_or_default() as f64;
            // Those whose age lies in this bucket were at risk for half of it.
            let exposed = at_risk - censored / 2.0;
            let before: f64 = missing;
            if exposed > 0.0 {
                missing *= (1.0 - ended / exposed).max(0.0);
            }
            at_risk -= ended + censored;
            let end = end_of(i);
            size = f64::min(size + rate * (end - since) * (before + missing) / 2.0, most);
            since = end;
            hits += ended;
            points.push((size, hits / all));
            windows.push((end, size));
            if at_risk <= 0.0 {
                break;
            }
        }
        Some(Self { points, windows })
    }

    /// The share of reads that hit in a cache of so many pages, 0 to 1.
    pub fn hit_rate(&self, pages: f64) -> f64 {
        between(&self.points, pages)
    }

    /// Distinct pages read in so many seconds.
    pub fn working_set(&self, seconds: f64) -> f64 {
        between(&self.windows, seconds)
    }
}

/// The value at `x` between the points on its sides.
fn between(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|(at, _)| *at <= x);
    match (points.get(after.wrapping_sub(1)), points.get(after)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
        (Some((_, y)), None) | (None, Some((_, y))) => *y,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::random::Random;
    use std::collections::HashMap;

    fn below(random: &mut Random, n: usize) -> usize {
        random.below(n as u64) as usize
    }

    fn is_sampled(page: usize, every: usize) -> bool {
        let block = page / every;
        let hash = (block as u64 ^ 0x1234_5678).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        page % every == hash as usize % every
    }

    const NS: f64 = 10_000.0; // between two reads

    /// What the kernel would have seen of these reads, one each 10 us.
    fn seen(reads: &[usize], every: usize) -> Reuse {
        let mut last: HashMap<usize, usize> = HashMap::new();
        let (mut again, mut open, mut first) = (vec![0; BUCKETS], vec![0; BUCKETS], 0);
        for (now, page) in reads.iter().enumerate().filter(|(_, page)| is_sampled(**page, every)) {
            match last.insert(*page, now) {
                Some(before) => again[bucket_of((now - before) as f64 * NS)] += 1,
                None => first += 1,
            }
        }
        for at in last.values() {
            open[bucket_of((reads.len() - at) as f64 * NS)] += 1;
        }
        Reuse {
            again,
            open,
            first,
            every: every as f64,
            reads: reads.len() as f64,
            seconds: reads.len() as f64 * NS / 1e9,
        }
    }

    /// The hit rate of LRU caches of these sizes, by stack distances: the distinct pages since the last read (Mattson and
    /// others, 1970), counted with a Fenwick tree.
    fn exact(reads: &[usize], sizes: &[usize]) -> Vec<f64> {
        let mut tree = vec![0i64; reads.len() + 1];
        let add = |tree: &mut Vec<i64>, mut i: usize, n: i64| {
            i += 1;
            while i < tree.len() {
                tree[i] += n;
                i += i & i.wrapping_neg();
            }
        };
        let sum = |tree: &Vec<i64>, mut i: usize| {
            let mut all = 0;
            while i > 0 {
                all += tree[i];
                i -= i & i.wrapping_neg();
            }
            all
        };
        let mut last: HashMap<usize, usize> = HashMap::new();
        let mut hits = vec![0usize; sizes.len()];
        for (now, page) in reads.iter().enumerate() {
            if let Some(before) = last.insert(*page, now) {
                let distance = sum(&tree, now) - sum(&tree, before);
                for (hits, size) in hits.iter_mut().zip(sizes) {
                    *hits += usize::from(distance as usize <= *size);
                }
                add(&mut tree, before, -1);
            }
            add(&mut tree, now, 1);
        }
        hits.iter().map(|n| *n as f64 / reads.len() as f64).collect()
    }

    /// The largest difference to the truth, in points.
    #[track_caller]
    fn compare(name: &str, reads: &[usize]) {
        let curve = Curve::of(&seen(reads, 64)).unwrap();
        let sizes: Vec<usize> = [8, 4, 2, 1].iter().map(|n| PAGES / n).chain([PAGES * 5 / 4, PAGES * 2]).collect();
        for (size, truth) in sizes.iter().zip(exact(reads, &sizes)) {
            let got = curve.hit_rate(*size as f64);
            let words = format!("{name}: {size} pages: {:.1} %, exact {:.1} %", got * 100.0, truth * 100.0);
            println!("{words}");
            assert!((got - truth).abs() <= 0.05, "{words}");
        }
    }

    const PAGES: usize = 32_768;
    const READS: usize = 600_000;

    /// Zipf's law with exponent 0.9 by inverting its integral; the ranks scattered over the pages.
    fn zipf(random: &mut Random) -> usize {
        let rank = (random.unit() * ((PAGES as f64).powf(0.1) - 1.0) + 1.0).powf(10.0) - 1.0;
        (rank as usize).wrapping_mul(40_503) % PAGES
    }

    #[test]
    fn it_is_as_exact_stack_distances_say() {
        let mut random = Random(42);
        compare("uniform", &(0..READS).map(|_| below(&mut random, PAGES)).collect::<Vec<_>>());
        compare("zipf", &(0..READS).map(|_| zipf(&mut random)).collect::<Vec<_>>());
        let hot = |i: usize| match i % 10 {
            0..7 => below(&mut random, PAGES / 8),
            _ => PAGES / 8 + i * 3 / 10 % (PAGES * 7 / 8),
        };
        compare("hot and scan", &(0..READS).map(hot).collect::<Vec<_>>());
        let half = |i: usize| below(&mut random, PAGES / 2) + if i < READS / 2 { 0 } else { PAGES / 2 };
        compare("two phases", &(0..READS).map(half).collect::<Vec<_>>());
        compare("loop", &(0..READS).map(|i| i % PAGES).collect::<Vec<_>>());
        compare("never again", &(0..READS).collect::<Vec<_>>());
    }

    #[test]
    fn data_read_in_a_time() {
        let mut random = Random(7);
        let reads: Vec<usize> = (0..READS).map(|_| below(&mut random, PAGES)).collect();
        let curve = Curve::of(&seen(&reads, 64)).unwrap();
        for n in [PAGES / 4, PAGES, 4 * PAGES] {
            let truth = PAGES as f64 * (1.0 - (-(n as f64) / PAGES as f64).exp());
            let got = curve.working_set(n as f64 * NS / 1e9);
            assert!((got / truth - 1.0).abs() < 0.05, "{n} reads: {got}, not {truth}");
        }
        assert!(curve.working_set(1e9) <= PAGES as f64 * 1.01);
    }

    #[test]
    fn what_nothing_is_known_of_has_none() {
        let none =
            Reuse { again: vec![0; BUCKETS], open: vec![0; BUCKETS], first: 0, every: 64.0, reads: 1e6, seconds: 1.0 };
        assert_eq!(Curve::of(&none), None);
        assert_eq!(Curve::of(&Reuse { first: 10, reads: 0.0, ..none.clone() }), None);
        assert_eq!(Curve::of(&Reuse { first: 10, again: Vec::new(), ..none.clone() }), None);
        // Pages of which each was read once hit at no size.
        let mut open = vec![0; BUCKETS];
        open[9] = 10;
        let once = Curve::of(&Reuse { first: 10, open, reads: 640.0, ..none }).unwrap();
        assert_eq!(once.hit_rate(1e9), 0.0);
        assert_eq!((bucket_of(0.0), bucket_of(FIRST_NS), bucket_of(f64::MAX)), (0, 1, BUCKETS - 1));
    }
}
