//! Metrics of groups of files (bpf/files.h): their series have the labels that the patterns' names make, so that they are made
//! of [`Files`] where they are shown and are no [`Family`](crate::metrics::snapshot::Family).

use super::evictions::EVICTION_CAUSES;
use super::fills::FILL_CAUSES;
use crate::metrics::files::{Counts, FileGroup, Files};
use crate::metrics::metric::{Kind, Metric};
use crate::metrics::snapshot::Value;

/// The label that tells whose patterns they are.
pub const PRESET: &str = "preset";
/// Its value for the patterns of the configuration.
const CUSTOM: &str = "custom";
/// And for files that no pattern takes, or that found no room among the groups.
const OTHER: &str = "other";

const fn metric(name: &'static str, unit: &'static str, help: &'static str, by_cause: bool) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit,
        help,
        labels: if by_cause { &[PRESET, "cause"] } else { &[PRESET] },
        label_values: &[],
        json: None,
    }
}

/// Pages that came.
pub static ADDS: Metric = metric(
    "ebpf_file_group_page_cache_adds_total",
    "pages",
    "Pages added to the page cache for files of each group, by cause.",
    true,
);
/// Pages that left.
pub static EVICTIONS: Metric = metric(
    "ebpf_file_group_page_cache_evictions_total",
    "pages",
    "Pages of files of each group removed from the page cache, by cause.",
    true,
);
/// Reads that waited.
pub static WAITS: Metric = metric(
    "ebpf_file_group_read_waits_total",
    "reads",
    "Buffered reads of files of each group that had to wait for I/O.",
    false,
);
/// How long.
pub static WAIT_SECONDS: Metric = metric(
    "ebpf_file_group_read_wait_seconds_total",
    "seconds",
    "How long buffered reads of files of each group that had to wait for I/O took together.",
    false,
);

/// All of them.
pub static METRICS: [&Metric; 4] = [&ADDS, &EVICTIONS, &WAITS, &WAIT_SECONDS];

/// Labels by name, in their order.
pub type Labels<'a> = Vec<(&'a str, &'a str)>;

/// A metric with its series.
#[derive(Debug)]
pub struct OpenFamily<'a> {
    /// Name, type and help.
    pub metric: &'static Metric,
    /// The labels of each: `preset`, then those of the group, then `cause` if it has one. And its value.
    pub series: Vec<(Labels<'a>, Value)>,
}

/// What is known of groups of files. A metric is absent where its probe is.
pub fn families(files: &Files) -> Vec<OpenFamily<'_>> {
    let rest = (vec![(PRESET, OTHER)], files.other);
    let groups: Vec<_> = files.groups.iter().map(|g| (labels(g), g.counts)).chain([rest]).collect();
    let mut all = Vec::new();
    if files.has_fills {
        all.push(by_cause(&ADDS, &groups, &FILL_CAUSES, |counts| &counts.fills));
    }
    if files.has_evictions {
        all.push(by_cause(&EVICTIONS, &groups, &EVICTION_CAUSES, |counts| &counts.evictions));
    }
    if files.has_waits {
        all.push(whole(&WAITS, &groups, |counts| Value::Int(counts.waits)));
        all.push(whole(&WAIT_SECONDS, &groups, |counts| Value::Float(counts.wait_seconds())));
    }
    all
}

fn by_cause<'a>(
    metric: &'static Metric,
    groups: &[(Labels<'a>, Counts)],
    causes: &[&'static str],
    of: fn(&Counts) -> &[u64],
) -> OpenFamily<'a> {
    let mut series = Vec::new();
    for (labels, counts) in groups {
        for (cause, n) in causes.iter().zip(of(counts)) {
            let labels = labels.iter().copied().chain([("cause", *cause)]).collect();
            series.push((labels, Value::Int(*n)));
        }
    }
    OpenFamily { metric, series }
}

fn whole<'a>(metric: &'static Metric, groups: &[(Labels<'a>, Counts)], of: fn(&Counts) -> Value) -> OpenFamily<'a> {
    OpenFamily { metric, series: groups.iter().map(|(labels, counts)| (labels.clone(), of(counts))).collect() }
}

/// How many series [`families`] makes of them.
pub fn series(files: &Files) -> usize {
    let causes = usize::from(files.has_fills) * FILL_CAUSES.len()
        + usize::from(files.has_evictions) * EVICTION_CAUSES.len()
        + usize::from(files.has_waits) * 2;
    (files.groups.len() + 1) * causes
}

/// The labels of a group: whose pattern it is, and what its names stand for.
pub fn labels(group: &FileGroup) -> Labels<'_> {
    let preset = if group.preset.is_empty() { CUSTOM } else { group.preset };
    [(PRESET, preset)]
        .into_iter()
        .chain(group.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::example;

    #[test]
    fn groups_have_their_names_as_labels_and_the_rest_is_other() {
        let snapshot = example::snapshot();
        let files = snapshot.files.as_deref().unwrap();
        let all = families(files);
        assert_eq!(all.iter().map(|f| f.metric.name).collect::<Vec<_>>(), METRICS.map(|m| m.name));
        assert_eq!(all.iter().map(|f| f.series.len()).sum::<usize>(), series(files));
        let names = |n: usize| all[0].series[n].0.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(0), ["preset", "db", "kind", "cause"]);
        let last = &all[0].series[9];
        assert_eq!(last.0, [("preset", "other"), ("cause", "other")]);
        let total: u64 = all[0].series.iter().map(|(_, v)| if let Value::Int(n) = v { *n } else { 0 }).sum();
        assert_eq!(total, files.total.filled(), "nothing is lost");
        assert!(series(&Files::default()) == 0 && families(&Files::default()).is_empty());
    }
}
