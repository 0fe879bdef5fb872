//! The rules: each says of the rates whether its pattern is there, with the numbers behind it, or what it would take to see.

use super::reading::Rates;
use super::thresholds::{BOUND, BUSY, EXPLAINS, IN_VAIN, MISSED, REGRETTED, STAYS, UNTRUSTED, WAITED, WORTH_MEMORY};
use crate::metrics::diagnosis::{Confidence, Number, Pattern};

/// What a rule says.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// It is not there.
    Not,
    /// It is there.
    There(Evidence),
    /// That cannot be seen without this.
    Unseen(&'static str),
}

/// What speaks for a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// How sure.
    pub confidence: Confidence,
    /// One sentence.
    pub summary: String,
    /// The numbers.
    pub numbers: Vec<Number>,
    /// Seconds waited per second.
    pub waited: Option<f64>,
    /// Bytes read again per second.
    pub read_again: Option<f64>,
}

/// What rules look at: the rates, and which patterns were there before. Of these a part of the threshold is enough.
pub struct Sight<'a> {
    /// The rates.
    pub rates: &'a Rates,
    /// Whether a pattern was there before.
    pub was: &'a dyn Fn(Pattern) -> bool,
}

const NO_FILLS: &str = "the probes cache_fill and cache_evict";
const NO_READS: &str = "the probe cache_read: what of the pages read had been in memory";
const NO_WAITS: &str = "the probe io_wait: how long threads sleep for I/O";
const NO_REFILLS: &str = "ebpf_page_refill_seconds: whether what is dropped is read again";
const NO_CURVE: &str = "ebpf_cache_hit_rate_at_size_percent: what other sizes of the cache would do";
const NO_REFAULTS: &str =
    "the kernel's count of refaults: a scope that is the host, or a cgroup v2 with the memory controller";

/// A rule for each pattern but those that follow from the others, and blindness.
pub type Rule = fn(&Sight, Pattern) -> Finding;

/// All of them. What explains missing data comes before what remains.
pub static RULES: [(Pattern, Rule); 12] = [
    (Pattern::MemoryPressureCgroup, memory_pressure),
    (Pattern::MemoryPressureHost, memory_pressure),
    (Pattern::PolicyEvictionHurts, policy_eviction),
    (Pattern::PolicyEvictionHarmless, policy_eviction),
    (Pattern::PolicyEviction, policy_eviction),
    (Pattern::CompactionHurts, compaction),
    (Pattern::CompactionHarmless, compaction),
    (Pattern::CacheTooSmall, cache_too_small),
    (Pattern::ReadaheadInVain, readahead_in_vain),
    (Pattern::WriteThrottling, write_throttling),
    (Pattern::SyncBound, sync_bound),
    (Pattern::ColdData, cold_data),
];

impl Sight<'_> {
    /// Whether so much is enough for a pattern.
    fn enough(&self, pattern: Pattern, value: f64, threshold: f64) -> bool {
        value >= if (self.was)(pattern) { threshold * STAYS } else { threshold }
    }

    /// Whether so much is missing that it costs something, and what: bytes a second. `None`: not so.
    fn missing(&self, pattern: Pattern) -> Option<f64> {
        let missing = self.rates.missing()?;
        let costs = self.enough(pattern, missing, BUSY)
            || self.rates.waited().is_some_and(|waited| self.enough(pattern, waited, WAITED));
        // Faults are misses by themselves.
        let ratio = self.rates.per_second.fills.zip(self.rates.per_second.read).map(|([misses, _, fault], read)| {
            let all = read.max(misses) + fault;
            if all > 0.0 { (misses + fault) / all } else { 0.0 }
        });
        (costs && missing > 0.0 && ratio.is_none_or(|r| self.enough(pattern, r, MISSED))).then_some(missing)
    }

    /// Bytes a second that reclaim had evicted and that came again.
    fn refaults(&self) -> Option<f64> {
        let refaults = self.rates.per_second.refaults?;
        // Counted elsewhere: no more than what is missing here.
        Some(self.rates.missing().map_or(refaults, |missing| refaults.min(missing)))
    }
}

fn number(name: &'static str, value: f64, unit: &'static str) -> Number {
    Number { name, value, unit }
}

const BYTES: &str = "bytes/s";

/// Bytes a second, for people.
pub fn bytes(rate: f64) -> String {
    const UNITS: [&str; 4] = ["KiB/s", "MiB/s", "GiB/s", "TiB/s"];
    let (mut value, mut unit) = (rate / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn memory_pressure(sight: &Sight, pattern: Pattern) -> Finding {
    let rates = sight.rates;
    let stalled = rates.per_second.stalls.is_some_and(|s| sight.enough(pattern, s, WAITED));
    let evicted = rates.per_second.evictions.map_or(0.0, |[reclaim, ..]| reclaim);
    let again = sight.refaults().unwrap_or(0.0);
    let reads_again = sight.enough(pattern, again, BUSY)
        && sight.missing(pattern).is_some_and(|missing| sight.enough(pattern, again, EXPLAINS * missing));
    if !stalled && !reads_again {
        // Who reads again what was evicted need not be stalled.
        return if rates.per_second.refaults.is_none() { Finding::Unseen(NO_REFAULTS) } else { Finding::Not };
    }
    let by_cgroup = match rates.per_second.reclaimed {
        Some([cgroup, host]) if cgroup + host > 0.0 => Some(cgroup > host),
        _ => None,
    };
    let Some(cgroup) = by_cgroup.or((pattern == Pattern::MemoryPressureHost).then_some(false)) else {
        // Nobody has scanned for it: DAMON, or MADV_PAGEOUT. That is the host's.
        return if rates.per_second.reclaimed.is_some() { Finding::Not } else { Finding::Unseen(NO_REFAULTS) };
    };
    if cgroup != (pattern == Pattern::MemoryPressureCgroup) {
        return Finding::Not;
    }
    let who = if cgroup { "A cgroup is at its memory limit" } else { "The host's memory is short" };
    let asked = by_cgroup.is_none() && rates.per_second.reclaimed.is_some();
    let who = if asked { "Somebody has the kernel give pages up (DAMON, MADV_PAGEOUT)" } else { who };
    let mut parts = Vec::new();
    if reads_again {
        parts.push(format!("{} that was evicted is read again", bytes(again)));
    }
    if let Some(stalls) = rates.per_second.stalls.filter(|_| stalled) {
        parts.push(format!("threads are stalled for {stalls:.2} s in each second"));
    }
    let mut numbers = vec![number("evicted_by_reclaim", evicted, BYTES)];
    numbers.extend(rates.per_second.refaults.map(|n| number("refaults", n, BYTES)));
    numbers.extend(rates.per_second.stalls.map(|n| number("stalled", n, "s/s")));
    numbers.extend(rates.missing().map(|n| number("missing", n, BYTES)));
    let waited = rates.waited_for(again);
    Finding::There(Evidence {
        confidence: if stalled { Confidence::Certain } else { Confidence::Likely },
        summary: format!("{who}: {}", parts.join(", and ")),
        numbers,
        waited: match (waited, rates.per_second.stalls) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
        },
        read_again: rates.per_second.refaults.map(|_| again),
    })
}

/// The three of them are one question: pages are dropped, and are they missed?
fn policy_eviction(sight: &Sight, pattern: Pattern) -> Finding {
    let rates = sight.rates;
    let (Some([_, dropped, _]), Some([misses, ..])) = (rates.per_second.evictions, rates.per_second.fills) else {
        return Finding::Unseen(NO_FILLS);
    };
    if !sight.enough(pattern, dropped, BUSY) {
        // Seen as soon as there is something to see.
        return Finding::Not;
    }
    let again = rates.per_second.refills.map(|[_, fadvise]| fadvise);
    let nobody_misses = sight.missing(pattern).is_none_or(|missing| missing < EXPLAINS * dropped);
    let answer = match again {
        Some(again) if sight.enough(pattern, again, REGRETTED * dropped) => Pattern::PolicyEvictionHurts,
        Some(_) => Pattern::PolicyEvictionHarmless,
        None if nobody_misses => Pattern::PolicyEvictionHarmless,
        None => Pattern::PolicyEviction,
    };
    if answer == Pattern::PolicyEviction && pattern == Pattern::PolicyEvictionHurts {
        return Finding::Unseen(NO_REFILLS);
    }
    if answer != pattern {
        return Finding::Not;
    }
    let mut numbers = vec![number("dropped_by_fadvise", dropped, BYTES), number("missing_reads", misses, BYTES)];
    numbers.extend(again.map(|n| number("read_again", n, BYTES)));
    let dropped_words = bytes(dropped);
    let (summary, confidence, read_again, waited) = match answer {
        Pattern::PolicyEvictionHurts => {
            let again = again.unwrap_or(0.0);
            let words = format!("fadvise drops {dropped_words}, and {} of it is read again", bytes(again));
            (words, Confidence::Certain, Some(again), rates.waited_for(again))
        }
        Pattern::PolicyEvictionHarmless => {
            let sure = if again.is_some() { Confidence::Certain } else { Confidence::Likely };
            (format!("fadvise drops {dropped_words}, and nobody misses it"), sure, again, Some(0.0))
        }
        _ => {
            let words = format!("fadvise drops {dropped_words} while {} has to be read", bytes(misses));
            (words, Confidence::Certain, None, None)
        }
    };
    Finding::There(Evidence { confidence, summary, numbers, waited, read_again })
}

/// Both are one question: something is rewritten, and does it push out what is read?
fn compaction(sight: &Sight, pattern: Pattern) -> Finding {
    let rates = sight.rates;
    let (Some([reclaim, fadvise, other]), Some([misses, written, _])) =
        (rates.per_second.evictions, rates.per_second.fills)
    else {
        return Finding::Unseen(NO_FILLS);
    };
    let removed = fadvise + other;
    let merges = sight.enough(pattern, written, BUSY)
        && sight.enough(pattern, removed, EXPLAINS * written)
        && sight.enough(pattern, rates.per_second.read.unwrap_or(misses), EXPLAINS * written);
    if !merges {
        return Finding::Not;
    }
    let again = sight.refaults();
    let pushes = sight.enough(pattern, reclaim, EXPLAINS * written)
        && again.is_some_and(|again| sight.enough(pattern, again, BUSY));
    if pushes != (pattern == Pattern::CompactionHurts) {
        return Finding::Not;
    }
    let mut numbers = vec![
        number("written", written, BYTES),
        number("removed", removed, BYTES),
        number("evicted_by_reclaim", reclaim, BYTES),
    ];
    numbers.extend(again.map(|n| number("refaults", n, BYTES)));
    let words = format!("{} is written and {} of old files goes", bytes(written), bytes(removed));
    Finding::There(Evidence {
        confidence: Confidence::Likely,
        summary: match pushes {
            true => {
                format!("A merge pushes out what is read: {words}, and {} comes again", bytes(again.unwrap_or(0.0)))
            }
            false => format!("what looks like a merge ({words}) pushes out nothing that is read"),
        },
        numbers,
        waited: if pushes { rates.waited() } else { Some(0.0) },
        read_again: if pushes { again } else { Some(0.0) },
    })
}

fn cache_too_small(sight: &Sight, pattern: Pattern) -> Finding {
    let rates = sight.rates;
    let now = rates.curve.iter().find(|(size, _)| *size == 1.0).map(|(_, rate)| *rate);
    let larger = rates.curve.iter().filter(|(size, _)| *size > 1.0);
    let Some((now, best)) = now.zip(larger.clone().map(|(_, rate)| *rate).reduce(f64::max)) else {
        return Finding::Unseen(NO_CURVE);
    };
    let double = rates.curve.iter().find(|(size, _)| *size == 2.0).map_or(now, |(_, rate)| *rate);
    let Some(missing) = sight.missing(pattern) else { return Finding::Not };
    if !sight.enough(pattern, best - now, WORTH_MEMORY) {
        return Finding::Not;
    }
    // The least that comes close to the best.
    let (size, rate) = larger.copied().find(|(_, rate)| best - rate < 2.0).unwrap_or((2.0, double));
    Finding::There(Evidence {
        confidence: Confidence::Likely,
        summary: format!(
            "The cache is too small: {size} times of it would serve {rate:.0} % of the reads, today's serves {now:.0} %"
        ),
        numbers: vec![
            number("hit_rate_now", now, "percent"),
            number("hit_rate_at_twice", double, "percent"),
            number("size_worth_having", size, "times today's"),
            number("hit_rate_at_that", rate, "percent"),
        ],
        waited: rates.waited().map(|w| w * ((rate - now) / (100.0 - now).max(1.0)).clamp(0.0, 1.0)),
        read_again: Some(missing * ((rate - now) / (100.0 - now).max(1.0)).clamp(0.0, 1.0)),
    })
}

fn readahead_in_vain(sight: &Sight, pattern: Pattern) -> Finding {
    let Some([misses, ..]) = sight.rates.per_second.fills else { return Finding::Unseen(NO_FILLS) };
    let Some(read) = sight.rates.per_second.read else { return Finding::Unseen(NO_READS) };
    let surplus = misses - read;
    if !sight.enough(pattern, misses, IN_VAIN * read) || !sight.enough(pattern, surplus, BUSY) {
        return Finding::Not;
    }
    Finding::There(Evidence {
        confidence: Confidence::Likely,
        summary: format!("Readahead fills {} that nobody reads, beside {} that is read", bytes(surplus), bytes(read)),
        numbers: vec![number("filled_for_reads", misses, BYTES), number("read", read, BYTES)],
        waited: None,
        read_again: None,
    })
}

fn write_throttling(sight: &Sight, pattern: Pattern) -> Finding {
    let Some([.., write, _, _]) = sight.rates.per_second.waits else { return Finding::Unseen(NO_WAITS) };
    if !sight.enough(pattern, write, WAITED) {
        return Finding::Not;
    }
    let mut numbers = vec![number("waited_in_writes", write, "s/s")];
    numbers.extend(sight.rates.per_second.fills.map(|[_, written, _]| number("written", written, BYTES)));
    Finding::There(Evidence {
        confidence: Confidence::Certain,
        summary: format!("Writers are throttled: they wait {write:.2} s in each second for the disk"),
        numbers,
        waited: Some(write),
        read_again: None,
    })
}

fn sync_bound(sight: &Sight, pattern: Pattern) -> Finding {
    let Some(waits) = sight.rates.per_second.waits else { return Finding::Unseen(NO_WAITS) };
    let (sync, all) = (waits[3], waits.iter().sum::<f64>());
    if !sight.enough(pattern, sync, WAITED) || !sight.enough(pattern, sync, BOUND * all) {
        return Finding::Not;
    }
    Finding::There(Evidence {
        confidence: Confidence::Certain,
        summary: format!("Bound by fsync: threads wait {sync:.2} s in each second for it, of {all:.2} s for all I/O"),
        numbers: vec![number("waited_in_fsync", sync, "s/s"), number("waited_in_all", all, "s/s")],
        waited: Some(sync),
        read_again: None,
    })
}

fn cold_data(sight: &Sight, pattern: Pattern) -> Finding {
    let rates = sight.rates;
    let (Some([reclaim, fadvise, _]), Some([misses, written, fault])) =
        (rates.per_second.evictions, rates.per_second.fills)
    else {
        return Finding::Unseen(NO_FILLS);
    };
    let Some(missing) = sight.missing(pattern) else { return Finding::Not };
    // What is explained otherwise.
    let again = match rates.per_second.refills {
        Some([reclaim, fadvise]) => reclaim + fadvise,
        None => sight.refaults().unwrap_or(reclaim),
    };
    let dropped = if rates.per_second.refills.is_some() { 0.0 } else { fadvise };
    let in_vain = rates.per_second.read.map_or(0.0, |read| (misses - read).max(0.0));
    let there = EXPLAINS * missing;
    if again >= there || dropped >= there || in_vain >= missing / 2.0 {
        return Finding::Not;
    }
    // The input of a merge is cold by nature.
    if matches!(compaction(sight, Pattern::CompactionHarmless), Finding::There(_)) && missing <= 2.0 * written {
        return Finding::Not;
    }
    let ratio = rates.miss_ratio();
    let mut numbers = vec![number("missing", missing, BYTES), number("by_faults", fault, BYTES)];
    numbers.extend(ratio.map(|r| number("missed_of_read", r * 100.0, "percent")));
    numbers.extend(rates.waited().map(|w| number("waited", w, "s/s")));
    Finding::There(Evidence {
        confidence: if rates.per_second.refaults.is_some() || rates.per_second.refills.is_some() {
            Confidence::Certain
        } else {
            Confidence::Likely
        },
        summary: format!("Cold data is read: {} was not in memory, and had not been evicted", bytes(missing)),
        numbers,
        waited: rates.waited(),
        read_again: Some(0.0),
    })
}

/// Why nothing can be said, if so: what is missing.
pub fn blind(rates: &Rates) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if rates.per_second.fills.is_none() || rates.per_second.evictions.is_none() {
        missing.push(NO_FILLS);
    }
    if rates.per_second.read.is_none() {
        missing.push(NO_READS);
    }
    if rates.missed >= UNTRUSTED {
        missing.push("events that were missed: ebpf_sidecar_events_missed_total");
    }
    missing
}
