//! What the rules look at: how much of it there has been at one time, and at what rate from one time to another.

use std::time::{Duration, Instant, SystemTime};

use crate::metrics::snapshot::{Family, Snapshot, Value, find};

/// How much there was of what the rules look at, or how much a second; what is not known is `None`. What is read, filled,
/// evicted, reclaimed and comes again: pages in all, bytes a second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amounts {
    /// What reads touched.
    pub read: Option<f64>,
    /// Filled for reads, for writes and by faults.
    pub fills: Option<[f64; 3]>,
    /// Evicted by reclaim, fadvise and otherwise.
    pub evictions: Option<[f64; 3]>,
    /// Seconds asleep for I/O in reads, faults, writes, fsync, otherwise.
    pub waits: Option<[f64; 5]>,
    /// Seconds that reads waited, where the former is not known.
    pub read_waits: Option<f64>,
    /// Seconds of stalls by reclaim.
    pub stalls: Option<f64>,
    /// What the limits of cgroups and what the host had reclaimed.
    pub reclaimed: Option<[f64; 2]>,
    /// Evicted by reclaim and filled again, as the kernel counts it.
    pub refaults: Option<f64>,
    /// Of what reclaim and fadvise evicted, what was filled again for a read.
    pub refills: Option<[f64; 2]>,
}

/// A collection, as the rules see it.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Its number.
    pub sequence: u64,
    /// When the counters were read.
    pub at: SystemTime,
    /// The same on the monotonic clock.
    pub instant: Instant,
    /// What they said.
    pub totals: Amounts,
    /// Events missed, of all probes.
    pub missed: f64,
    /// The hit rate that other sizes of the cache would have: multiples of today's, and percent.
    pub curve: Vec<(f64, f64)>,
    /// Bytes of a page.
    pub page: f64,
}

impl Reading {
    /// Of a snapshot; `refaults` as the kernel counts them.
    pub fn of(snapshot: &Snapshot, refaults: Option<u64>, page: u64) -> Self {
        let families = &snapshot.families[..];
        let family = |name: &str| find(families, name);
        let int = |name: &str| family(name).map(|f| f.total() as f64);
        let totals = Amounts {
            read: int("ebpf_cache_read_attempts_total"),
            fills: each(family("ebpf_page_cache_adds_total"), ["read", "write", "fault"]),
            evictions: each(family("ebpf_page_cache_evictions_total"), ["reclaim", "fadvise", "other"]),
            waits: each(family("ebpf_io_wait_seconds"), ["read", "fault", "write", "sync", "other"]),
            read_waits: each(family("ebpf_read_wait_seconds"), [""]).map(|[seconds]| seconds),
            stalls: each(family("ebpf_memory_direct_reclaim_seconds"), [""]).map(|[seconds]| seconds),
            reclaimed: each(family("ebpf_memory_pages_reclaimed_total"), ["memcg", "kswapd", "direct"])
                .map(|[memcg, kswapd, direct]| [memcg, kswapd + direct]),
            refaults: refaults.map(|pages| pages as f64),
            refills: None,
        };
        Self {
            sequence: snapshot.sequence,
            at: snapshot.collected_at,
            instant: snapshot.collected_instant,
            totals,
            missed: int("ebpf_sidecar_events_missed_total").unwrap_or(0.0),
            curve: family("ebpf_cache_hit_rate_at_size_percent").map(curve).unwrap_or_default(),
            page: page as f64,
        }
    }
}

/// The values with these labels, of a histogram its seconds; `None` if one of them is not there. "" is the one without label.
fn each<const N: usize>(family: Option<&Family>, labels: [&str; N]) -> Option<[f64; N]> {
    let family = family?;
    let mut values = [0.0; N];
    for (value, label) in values.iter_mut().zip(labels) {
        let series = family.series.iter().find(|s| s.labels.first().map_or("", String::as_str) == label)?;
        *value = match &series.value {
            Value::Int(n) => *n as f64,
            Value::Float(v) => *v,
            Value::Percent(v) => (*v)?,
            Value::Histogram(h) => h.sum_seconds(),
        };
    }
    Some(values)
}

fn curve(family: &Family) -> Vec<(f64, f64)> {
    let point = |labels: &[String], value: &Value| {
        let size = labels.first()?.parse().ok()?;
        match value {
            Value::Percent(Some(rate)) | Value::Float(rate) => Some((size, *rate)),
            _ => None,
        }
    };
    let mut points: Vec<(f64, f64)> = family.series.iter().filter_map(|s| point(&s.labels, &s.value)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// What happened over some time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// How long.
    pub window: Duration,
    /// How much a second.
    pub per_second: Amounts,
    /// Of the events of all probes, about the part that was missed.
    pub missed: f64,
    /// The curve at the end.
    pub curve: Vec<(f64, f64)>,
}

impl Rates {
    /// From one reading to a later one; `None` if a counter fell, or no time went by.
    pub fn between(first: &Reading, last: &Reading) -> Option<Self> {
        let window = last.instant.checked_duration_since(first.instant).filter(|w| !w.is_zero())?;
        let (a, b, seconds) = (&first.totals, &last.totals, window.as_secs_f64());
        let mut fell = false;
        let mut rate = |before: f64, now: f64, unit: f64| {
            fell |= now < before;
            (now - before) * unit / seconds
        };
        macro_rules! rates {
            ($field:ident, $unit:expr) => {
                match (a.$field, b.$field) {
                    (Some(a), Some(b)) => {
                        let mut out = b;
                        for (i, value) in out.iter_mut().enumerate() {
                            *value = rate(a[i], b[i], $unit);
                        }
                        Some(out)
                    }
                    _ => None,
                }
            };
        }
        macro_rules! one {
            ($field:ident, $unit:expr) => {
                a.$field.zip(b.$field).map(|(a, b)| rate(a, b, $unit))
            };
        }
        let page = last.page;
        let per_second = Amounts {
            read: one!(read, page),
            fills: rates!(fills, page),
            evictions: rates!(evictions, page),
            waits: rates!(waits, 1.0),
            read_waits: one!(read_waits, 1.0),
            stalls: one!(stalls, 1.0),
            reclaimed: rates!(reclaimed, page),
            refaults: one!(refaults, page),
            refills: rates!(refills, page),
        };
        let missed = rate(first.missed, last.missed, page);
        let sum = |all: Option<[f64; 3]>| all.map_or(0.0, |all| all.iter().sum::<f64>());
        let seen = per_second.read.unwrap_or(0.0) + sum(per_second.fills) + sum(per_second.evictions);
        let missed = if missed > 0.0 { missed / (missed + seen) } else { 0.0 };
        (!fell).then(|| Self { window, per_second, missed, curve: last.curve.clone() })
    }

    /// What was filled because it was missing: for reads and by faults.
    pub fn missing(&self) -> Option<f64> {
        self.per_second.fills.map(|[read, _, fault]| read + fault)
    }

    /// Of what was read, the part that was missing.
    pub fn miss_ratio(&self) -> Option<f64> {
        let ([misses, ..], read) = (self.per_second.fills?, self.per_second.read?);
        (read.max(misses) > 0.0).then(|| misses / read.max(misses))
    }

    /// Seconds that threads waited for what was missing.
    pub fn waited(&self) -> Option<f64> {
        let waits = self.per_second.waits.map(|[read, fault, ..]| read + fault);
        waits.or(self.per_second.read_waits)
    }

    /// For this part of it.
    pub fn waited_for(&self, part: f64) -> Option<f64> {
        let share = self.missing().filter(|m| *m > 0.0).map_or(0.0, |missing| (part / missing).min(1.0));
        self.waited().map(|waited| waited * share)
    }
}
