//! A snapshot as Prometheus text 0.0.4 and as OpenMetrics 1.0: the same families and values, in the two
//! dialects of one format.

use std::fmt::{self, Write};

use crate::metrics::histogram::{Histogram, cumulative};
use crate::metrics::metric::{Kind, Metric};
use crate::metrics::snapshot::{Snapshot, Value};
use crate::monitor::file_groups;

/// Media type of [`text`].
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of [`openmetrics`].
pub const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Prometheus text format 0.0.4.
pub fn text(snapshot: &Snapshot) -> String {
    render(snapshot, Dialect::Text)
}

/// OpenMetrics 1.0.
pub fn openmetrics(snapshot: &Snapshot) -> String {
    render(snapshot, Dialect::OpenMetrics)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Text,
    OpenMetrics,
}

fn render(snapshot: &Snapshot, dialect: Dialect) -> String {
    let mut out = String::with_capacity(16 << 10);
    // Writing to a String cannot fail.
    let _ = write_families(&mut out, snapshot, dialect);
    out
}

fn write_families(out: &mut String, snapshot: &Snapshot, dialect: Dialect) -> fmt::Result {
    for family in &snapshot.families {
        let metric = family.metric;
        write_head(out, metric, dialect)?;
        for series in &family.series {
            write_series(out, metric, series.named(metric), &series.value)?;
        }
    }
    for family in snapshot.files.iter().flat_map(|files| file_groups::families(files)) {
        write_head(out, family.metric, dialect)?;
        for (labels, value) in &family.series {
            write_series(out, family.metric, labels.iter().copied(), value)?;
        }
    }
    if dialect == Dialect::OpenMetrics {
        out.push_str("# EOF\n");
    }
    Ok(())
}

fn write_series<'a>(
    out: &mut String,
    metric: &Metric,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    value: &Value,
) -> fmt::Result {
    let labels = label_list(labels);
    match value {
        Value::Histogram(h) => write_histogram(out, metric.name, &labels, h),
        Value::Int(v) => write_sample(out, metric.name, &labels, v),
        Value::Float(v) => write_sample(out, metric.name, &labels, number(*v)),
        Value::Percent(v) => write_sample(out, metric.name, &labels, number(v.unwrap_or(f64::NAN))),
    }
}

/// HELP, TYPE and UNIT. OpenMetrics names a counter without `_total` here, and knows a unit only as the end of
/// that name.
fn write_head(out: &mut String, metric: &Metric, dialect: Dialect) -> fmt::Result {
    let mut name = metric.name;
    let mut help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
    if dialect == Dialect::OpenMetrics {
        name = name.strip_suffix("_total").unwrap_or(name);
        help = help.replace('"', "\\\"");
    }
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(out, "# HELP {name} {help}")?;
    writeln!(out, "# TYPE {name} {kind}")?;
    if dialect == Dialect::OpenMetrics
        && let Some(unit) = metric.unit.split(' ').next().filter(|u| !u.is_empty())
        && name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
    {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    Ok(())
}

fn write_sample(out: &mut String, name: &str, labels: &str, value: impl fmt::Display) -> fmt::Result {
    match labels {
        "" => writeln!(out, "{name} {value}"),
        _ => writeln!(out, "{name}{{{labels}}} {value}"),
    }
}

fn write_histogram(out: &mut String, name: &str, labels: &str, histogram: &Histogram) -> fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    for (le, count) in cumulative(histogram) {
        writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {count}")?;
    }
    write_sample(out, &format!("{name}_sum"), labels, number(histogram.sum_seconds()))?;
    write_sample(out, &format!("{name}_count"), labels, histogram.count())
}

fn label_list<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if out.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

/// A value: the shortest digits that read back as the same number, never with an exponent.
fn number(v: f64) -> String {
    if v.is_infinite() { if v > 0.0 { "+Inf" } else { "-Inf" }.into() } else { v.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::own::{PROCESS_CPU, PROCESS_START};
    use crate::metrics::snapshot::{Family, Series};
    use crate::monitor::example;
    use crate::monitor::fadvise::{FADVISE_ADVICE, FADVISE_CALLS};
    use crate::monitor::reads::{CACHE_HIT_RATE, CACHE_MISS_RATE};
    use crate::monitor::reclaim::DIRECT_RECLAIM_SECONDS;

    static AWKWARD: Metric = Metric {
        name: "awkward_bytes_total",
        kind: Kind::Counter,
        unit: "bytes",
        help: "A \"quote\", a \\ and a\nnew line.",
        labels: &["a", "b"],
        label_values: &[&[], &[]],
        json: None,
    };

    fn series(labels: &[&str], value: Value) -> Series {
        Series { labels: labels.iter().map(|l| l.to_string()).collect(), value }
    }

    fn small() -> Snapshot {
        let mut stalls = Histogram { sum_ns: 1_500_000_000, ..Default::default() };
        (stalls.buckets[0], stalls.buckets[1], stalls.buckets[25]) = (2, 1, 4);
        let families = vec![
            Family { metric: &FADVISE_CALLS.metric, series: vec![series(&[], Value::Int(u64::MAX))] },
            Family { metric: &FADVISE_ADVICE.metric, series: vec![] },
            Family { metric: &CACHE_MISS_RATE.metric, series: vec![series(&[], Value::Percent(None))] },
            Family { metric: &CACHE_HIT_RATE.metric, series: vec![series(&[], Value::Percent(Some(99.9)))] },
            Family { metric: &DIRECT_RECLAIM_SECONDS.metric, series: vec![series(&[], Value::Histogram(stalls))] },
            Family { metric: &PROCESS_CPU, series: vec![series(&[], Value::Float(0.1 + 0.2))] },
            Family { metric: &PROCESS_START, series: vec![series(&[], Value::Float(1.7e9))] },
            Family { metric: &AWKWARD, series: vec![series(&["x\"y\\z\n", "é{},="], Value::Int(1))] },
        ];
        Snapshot { families, ..example::snapshot() }
    }

    #[test]
    fn text_of_a_small_snapshot() {
        let text = text(&small());
        let (before, rest) = text.split_once("ebpf_memory_direct_reclaim_seconds_bucket").unwrap();
        assert_eq!(
            before,
            format!(
                "# HELP ebpf_fadvise_calls_total {}\n\
                 # TYPE ebpf_fadvise_calls_total counter\n\
                 ebpf_fadvise_calls_total 18446744073709551615\n\
                 # HELP ebpf_fadvise_advice_total {}\n\
                 # TYPE ebpf_fadvise_advice_total counter\n\
                 # HELP ebpf_cache_miss_rate_percent {}\n\
                 # TYPE ebpf_cache_miss_rate_percent gauge\n\
                 ebpf_cache_miss_rate_percent NaN\n\
                 # HELP ebpf_cache_hit_rate_percent {}\n\
                 # TYPE ebpf_cache_hit_rate_percent gauge\n\
                 ebpf_cache_hit_rate_percent 99.9\n\
                 # HELP ebpf_memory_direct_reclaim_seconds {}\n\
                 # TYPE ebpf_memory_direct_reclaim_seconds histogram\n",
                FADVISE_CALLS.metric.help,
                FADVISE_ADVICE.metric.help,
                CACHE_MISS_RATE.metric.help,
                CACHE_HIT_RATE.metric.help,
                DIRECT_RECLAIM_SECONDS.metric.help
            )
        );
        assert!(rest.starts_with("{le=\"1.024e-06\"} 2\n"), "{rest}");
        for line in [
            "ebpf_memory_direct_reclaim_seconds_bucket{le=\"2.048e-06\"} 3",
            "ebpf_memory_direct_reclaim_seconds_bucket{le=\"0.000131072\"} 3",
            "ebpf_memory_direct_reclaim_seconds_bucket{le=\"17.179869184\"} 3",
            "ebpf_memory_direct_reclaim_seconds_bucket{le=\"+Inf\"} 7",
            "ebpf_memory_direct_reclaim_seconds_sum 1.5",
            "ebpf_memory_direct_reclaim_seconds_count 7",
            "process_cpu_seconds_total 0.30000000000000004",
            "process_start_time_seconds 1700000000",
            "# HELP awkward_bytes_total A \"quote\", a \\\\ and a\\nnew line.",
            "awkward_bytes_total{a=\"x\\\"y\\\\z\\n\",b=\"é{},=\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn openmetrics_of_a_small_snapshot() {
        let text = openmetrics(&small());
        for line in [
            "# TYPE ebpf_fadvise_calls counter",
            "# UNIT ebpf_fadvise_calls calls",
            "ebpf_fadvise_calls_total 18446744073709551615",
            "# TYPE ebpf_fadvise_advice counter",
            "# UNIT ebpf_cache_miss_rate_percent percent",
            "ebpf_cache_miss_rate_percent NaN",
            "# UNIT ebpf_memory_direct_reclaim_seconds seconds",
            "ebpf_memory_direct_reclaim_seconds_bucket{le=\"+Inf\"} 7",
            "# UNIT process_cpu_seconds seconds",
            "# UNIT process_start_time_seconds seconds",
            "# HELP awkward_bytes A \\\"quote\\\", a \\\\ and a\\nnew line.",
            "# UNIT awkward_bytes bytes",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("# UNIT ebpf_fadvise_advice"), "the name does not end in that unit");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
    }

    #[test]
    fn numbers_read_back_as_themselves() {
        for v in [0.0, 0.1 + 0.2, 1e-7, 1e21, 1.5e300, 5e-324, f64::MAX, -2.5, 100.0] {
            let printed = number(v);
            assert_eq!(printed.parse::<f64>(), Ok(v));
            assert!(!printed.contains('e'), "{printed}");
        }
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NEG_INFINITY), "-Inf");
    }
}
