//! How a metric of the kernel is declared: what it is called in each output, which counters it is made of, and which probes
//! it needs. Each subject (the files beside this one) has a table of such declarations; all outputs are made from them.

use std::collections::HashMap;

use super::counters::Counters;
use crate::metrics::histogram::{BUCKETS, Histogram};
use crate::metrics::metric::{Json, Kind, Metric};
use crate::metrics::snapshot::{Family, ProbeStatus, Series, Value, find};

/// A metric of the kernel.
#[derive(Debug)]
pub struct Stat {
    /// Its names.
    pub metric: Metric,
    /// What it is made of, and what that needs.
    pub how: How,
}

/// What a metric is made of, what it needs, and where it is shown.
#[derive(Debug, Clone, Copy)]
pub struct How {
    source: Source,
    /// Without these it is absent.
    pub needs: Needs,
    json: Option<Json>,
    /// Its row on the page, or why it has none.
    pub row: Option<Result<Row, &'static str>>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    /// The sum of these counters.
    Sum(&'static [&'static str]),
    /// One value of a counter.
    Nth(&'static str, usize),
    /// Each value of a counter, for each value of the label.
    Each(&'static str),
    /// The buckets, and the sum in nanoseconds.
    Durations(&'static str, &'static str),
    /// The same for each value of the label: the buckets of one behind those of the other.
    DurationsEach(&'static str, &'static str),
    /// What the growth of others over a time comes to; `None` if there is nothing to divide by.
    Percent(fn(&Grown) -> Option<f64>),
    /// Anything else: values with their labels, `None` if they cannot be known.
    Other(fn(&View) -> Option<Vec<Series>>),
}

/// By how much a metric has grown over the time in question.
pub type Grown<'a> = dyn Fn(&Stat) -> u64 + 'a;

/// Names of probes.
#[derive(Debug, Clone, Copy)]
pub enum Needs {
    /// Every one.
    All(&'static [&'static str]),
    /// One of them at least.
    Any(&'static [&'static str]),
}

/// A row on the page.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What it is called there.
    pub label: &'static str,
    /// It is larger than others.
    pub tall: bool,
    /// The label stands before the name of each of its lines.
    pub named: bool,
    /// Its place in the panel, if it is another than in the table.
    pub place: Option<usize>,
}

/// What one collection read, as the metrics are made of it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The counters.
    pub counters: &'a Counters,
    /// How the probes are attached.
    pub probes: &'a [ProbeStatus],
    /// Pages read that had not to be filled ([`super::hits`]).
    pub hits: u64,
    /// Distinct processes that had to reclaim ([`super::reclaim::stalled`]).
    pub stalled: u64,
}

/// What belongs together: a header of bpf/, a file here, a panel of the page.
#[derive(Debug)]
pub struct Subject {
    /// Title and explanation of its panel.
    pub panel: (&'static str, &'static str),
    /// Its metrics, in the order of the outputs.
    pub stats: &'static [&'static Stat],
}

/// The table of a subject: its `STATS`, and a static for each. The form is
/// `NAME = Kind "name" ["label" in VALUES] "unit": "help", how;`, with [`How`] made by one of its functions.
macro_rules! stats {
    ($($id:ident = $kind:ident $name:literal [$($label:literal in $values:ident)?] $unit:literal: $help:literal, $how:expr;)*) => {
        $(#[doc = $help] pub static $id: $crate::monitor::stat::Stat = $crate::monitor::stat::Stat::new(
            $crate::metrics::metric::Metric {
                name: $name,
                kind: $crate::metrics::metric::Kind::$kind,
                unit: $unit,
                help: $help,
                labels: &[$($label)?],
                label_values: &[$(&$values)?],
                json: None,
            },
            $how,
        );)*
        static STATS: &[&$crate::monitor::stat::Stat] = &[$(&$id),*];
    };
}
pub(super) use stats;

impl Stat {
    /// Every one has a place in JSON, and a row or a reason to have none.
    pub(super) const fn new(metric: Metric, how: How) -> Self {
        assert!(how.json.is_some() && how.row.is_some());
        Self { metric: Metric { json: how.json, ..metric }, how }
    }

    /// Its values, but for those that are computed from the growth of others.
    fn series(&self, view: &View) -> Option<Vec<Series>> {
        let one = |value| Some(vec![Series { labels: Vec::new(), value }]);
        match self.how.source {
            Source::Sum(names) => one(Value::Int(names.iter().map(|name| view.counters.sum(name)).sum())),
            Source::Nth(name, n) => one(Value::Int(view.counters.nth(name, n))),
            Source::Each(name) => {
                let labels = self.metric.label_values.first().copied().unwrap_or_default();
                Some(by_label(labels.iter().copied().zip(view.counters.each(name).iter().copied())))
            }
            Source::Durations(buckets, ns) => {
                let buckets = std::array::from_fn(|i| view.counters.nth(buckets, i));
                one(Value::Histogram(Histogram { buckets, sum_ns: view.counters.sum(ns) }))
            }
            Source::DurationsEach(buckets, ns) => {
                let series = |(n, label): (usize, &&str)| {
                    let buckets = std::array::from_fn(|i| view.counters.nth(buckets, n * BUCKETS + i));
                    let value = Value::Histogram(Histogram { buckets, sum_ns: view.counters.nth(ns, n) });
                    Series { labels: vec![(*label).to_owned()], value }
                };
                let labels = self.metric.label_values.first().copied().unwrap_or_default();
                Some(labels.iter().enumerate().map(series).collect())
            }
            Source::Other(values) => values(view),
            Source::Percent(_) => None,
        }
    }

    fn family(&'static self, view: &View, grown: &Grown) -> Option<Family> {
        let series = match self.how.source {
            _ if !view.has(self.how.needs) => return None,
            Source::Percent(rate) => vec![Series { labels: Vec::new(), value: Value::Percent(rate(grown)) }],
            _ => self.series(view)?,
        };
        Some(Family { metric: &self.metric, series })
    }
}

/// A series for each value of the one label.
pub(super) fn by_label(values: impl IntoIterator<Item = (&'static str, u64)>) -> Vec<Series> {
    let series = |(label, n): (&str, u64)| Series { labels: vec![label.to_owned()], value: Value::Int(n) };
    values.into_iter().map(series).collect()
}

/// One number without a label.
pub(super) fn number(n: u64) -> Option<Vec<Series>> {
    Some(vec![Series { labels: Vec::new(), value: Value::Int(n) }])
}

/// `part` per hundred of `whole`; `None` if there is nothing to divide by.
pub(super) fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

impl How {
    const fn of(source: Source) -> Self {
        Self { source, needs: Needs::All(&[]), json: None, row: None }
    }

    /// The sum of these counters.
    pub(super) const fn sum(counters: &'static [&'static str]) -> Self {
        Self::of(Source::Sum(counters))
    }

    /// One value of a counter that has several.
    pub(super) const fn nth(counter: &'static str, n: usize) -> Self {
        Self::of(Source::Nth(counter, n))
    }

    /// A counter that has a value for each value of the label.
    pub(super) const fn each(counter: &'static str) -> Self {
        Self::of(Source::Each(counter))
    }

    /// A histogram: the counter of its buckets, and that of the nanoseconds.
    pub(super) const fn durations(buckets: &'static str, ns: &'static str) -> Self {
        Self::of(Source::Durations(buckets, ns))
    }

    /// A histogram for each value of the label.
    pub(super) const fn durations_each(buckets: &'static str, ns: &'static str) -> Self {
        Self::of(Source::DurationsEach(buckets, ns))
    }

    /// A percentage of what others grew by.
    pub(super) const fn percent(rate: fn(&Grown) -> Option<f64>) -> Self {
        Self::of(Source::Percent(rate))
    }

    /// What none of these gives.
    pub(super) const fn other(values: fn(&View) -> Option<Vec<Series>>) -> Self {
        Self::of(Source::Other(values))
    }

    /// It is absent without all of these probes.
    pub(super) const fn needs(self, probes: &'static [&'static str]) -> Self {
        Self { needs: Needs::All(probes), ..self }
    }

    /// It is absent with none of them.
    pub(super) const fn needs_one_of(self, probes: &'static [&'static str]) -> Self {
        Self { needs: Needs::Any(probes), ..self }
    }

    /// In JSON: its value.
    pub(super) const fn json(self, section: &'static str, key: &'static str) -> Self {
        Self { json: Some(Json { section, key: Some(key), by: None }), ..self }
    }

    /// In JSON: its values by label, at the end of the section, where others say what they come to.
    pub(super) const fn json_by(self, section: &'static str, by: &'static str) -> Self {
        Self { json: Some(Json { section, key: None, by: Some(by) }), ..self }
    }

    /// In JSON: the sum of its values, and they by label.
    pub(super) const fn json_sum_and_by(self, section: &'static str, key: &'static str, by: &'static str) -> Self {
        Self { json: Some(Json { section, key: Some(key), by: Some(by) }), ..self }
    }

    /// On the page: a row of this name.
    pub(super) const fn row(self, label: &'static str) -> Self {
        Self { row: Some(Ok(Row { label, tall: false, named: false, place: None })), ..self }
    }

    /// The same at a place of its own among the subject's rows.
    pub(super) const fn row_at(self, place: usize, label: &'static str) -> Self {
        Self { row: Some(Ok(Row { label, tall: false, named: false, place: Some(place) })), ..self }
    }

    /// Its row is larger than others.
    pub(super) const fn tall(self) -> Self {
        match self.row {
            Some(Ok(row)) => Self { row: Some(Ok(Row { tall: true, ..row })), ..self },
            _ => self,
        }
    }

    /// Its row's label stands before the name of each of its lines.
    pub(super) const fn named(self) -> Self {
        match self.row {
            Some(Ok(row)) => Self { row: Some(Ok(Row { named: true, ..row })), ..self },
            _ => self,
        }
    }

    /// Not on the page, for a reason.
    pub(super) const fn no_row(self, why: &'static str) -> Self {
        Self { row: Some(Err(why)), ..self }
    }
}

impl View<'_> {
    /// How a probe is attached, if it is.
    pub(super) fn mode(&self, probe: &str) -> Option<&'static str> {
        self.probes.iter().find(|p| p.name == probe)?.mode
    }

    /// Whether these probes are attached.
    pub(super) fn has(&self, needs: Needs) -> bool {
        let attached = |probe: &&str| self.mode(probe).is_some();
        match needs {
            Needs::All(probes) => probes.iter().all(attached),
            Needs::Any(probes) => probes.iter().any(attached),
        }
    }
}

impl Needs {
    /// All names.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::All(names) | Self::Any(names) => names,
        }
    }
}

/// The metrics of these subjects, those that are there. `last` are the counters of the collection before, for what is
/// "of the last interval".
pub(super) fn families(subjects: &[&Subject], view: &View, last: &Counters) -> Vec<Family> {
    let before = View { counters: last, ..*view };
    let total = |stat: &Stat, view: &View| -> u64 {
        let values = stat.series(view).unwrap_or_default();
        values.iter().filter_map(|s| if let Value::Int(n) = s.value { Some(n) } else { None }).sum()
    };
    let grown = |stat: &Stat| total(stat, view).saturating_sub(total(stat, &before));
    let stats = subjects.iter().flat_map(|s| s.stats);
    stats.filter_map(|stat| stat.family(view, &grown)).collect()
}

/// What happened from the first to the last of some collections: the growth of counters, the percentages of it, and of other
/// gauges the most, which `peaks` has by name. Histograms are left out.
pub(super) fn growth(
    subjects: &[&Subject],
    first: &[Family],
    last: &[Family],
    peaks: &HashMap<&str, u64>,
) -> Vec<Family> {
    let stats = || subjects.iter().flat_map(|s| s.stats).copied();
    let counters: Vec<Family> = stats()
        .filter(|s| s.metric.kind == Kind::Counter)
        .filter_map(|s| {
            let before = find(first, s.metric.name);
            let mut family = find(last, s.metric.name)?.clone();
            for series in &mut family.series {
                let before = before.and_then(|f| f.series.iter().find(|b| b.labels == series.labels));
                if let (Value::Int(now), Some(Value::Int(before))) = (&mut series.value, before.map(|b| &b.value)) {
                    *now = now.saturating_sub(*before);
                }
            }
            Some(family)
        })
        .collect();
    let grown = |stat: &Stat| find(&counters, stat.metric.name).map_or(0, Family::total);
    let gauges = stats().filter(|s| s.metric.kind == Kind::Gauge).filter_map(|s| {
        let value = match s.how.source {
            Source::Percent(rate) => find(last, s.metric.name).map(|_| Value::Percent(rate(&grown)))?,
            _ => Value::Int(*peaks.get(s.metric.name)?),
        };
        Some(Family::single(&s.metric, value))
    });
    let gauges: Vec<Family> = gauges.collect();
    counters.into_iter().chain(gauges).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::catalogue::SUBJECTS;

    #[test]
    fn every_counter_has_as_many_values_as_its_metric_tells_apart() {
        let counters = Counters::zero();
        for stat in SUBJECTS.iter().flat_map(|s| s.stats) {
            match stat.how.source {
                Source::Each(name) => {
                    assert_eq!(counters.each(name).len(), stat.metric.label_values[0].len(), "{name}")
                }
                Source::Durations(buckets, ns) => {
                    assert_eq!((counters.each(buckets).len(), counters.each(ns).len()), (BUCKETS, 1), "{buckets}");
                }
                Source::DurationsEach(buckets, ns) => {
                    let labels = stat.metric.label_values[0].len();
                    let there = (counters.each(buckets).len(), counters.each(ns).len());
                    assert_eq!(there, (labels * BUCKETS, labels), "{buckets}");
                }
                Source::Nth(name, n) => assert!(n < counters.each(name).len(), "{name}"),
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_counted_by_label_is_a_sum_or_at_the_end_in_json() {
        for stat in SUBJECTS.iter().flat_map(|s| s.stats) {
            let json = stat.metric.json.unwrap();
            assert_eq!(json.by.is_some(), !stat.metric.labels.is_empty(), "{}", stat.metric.name);
            assert!(json.key.or(json.by).is_some(), "{}", stat.metric.name);
        }
    }
}
