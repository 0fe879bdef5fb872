//! Snapshots as messages.

use std::collections::HashMap;

use protobuf::MessageField;

use super::proto::metrics as pb;
use super::proto::rpc;
use super::{at, count, matches};
use crate::metrics::diagnosis::{Confidence, Unseen, Verdict};
use crate::metrics::files::{Counts, FileGroup, FileRow, Files};
use crate::metrics::histogram::cumulative;
use crate::metrics::metric::{Kind, Metric};
use crate::metrics::snapshot::{Activity, Family, Knows, ModuleStatus, ProcessRow, Series, Snapshot, Value, find};
use crate::monitor::evictions::EVICTION_CAUSES;
use crate::monitor::fills::FILL_CAUSES;
use crate::monitor::stat::Stat;
use crate::monitor::{catalogue, evictions, fadvise, file_groups, fills, iomonitor, reads, reclaim};

/// The metrics of a module that have all labels of `filters`.
pub fn metric_set(snapshot: &Snapshot, module: &ModuleStatus, filters: &HashMap<String, String>) -> pb::MetricSet {
    let mut metrics = Vec::new();
    for family in snapshot.families_of(module) {
        for series in &family.series {
            add_series(&mut metrics, snapshot, family.metric, series.named(family.metric), &series.value);
        }
    }
    // Files are of the one module that has them.
    let files = snapshot.files.as_deref().filter(|_| module.name == iomonitor::NAME);
    for family in files.into_iter().flat_map(file_groups::families) {
        for (labels, value) in &family.series {
            add_series(&mut metrics, snapshot, family.metric, labels.iter().copied(), value);
        }
    }
    if !filters.is_empty() {
        metrics.retain(|m| matches(&m.labels, filters));
    }
    pb::MetricSet {
        module_name: module.name.into(),
        metrics,
        collected_at: at(snapshot.collected_at),
        sequence: snapshot.sequence,
        ..Default::default()
    }
}

fn add_series<'a>(
    metrics: &mut Vec<pb::Metric>,
    snapshot: &Snapshot,
    metric: &Metric,
    labels: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    value: &Value,
) {
    let kind = match metric.kind {
        Kind::Counter => pb::MetricType::METRIC_TYPE_COUNTER,
        Kind::Gauge => pb::MetricType::METRIC_TYPE_GAUGE,
        Kind::Histogram => pb::MetricType::METRIC_TYPE_HISTOGRAM,
    };
    let labels = || labels.clone().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut add = |suffix: &str, value: f64, le: Option<String>| {
        metrics.push(pb::Metric {
            name: format!("{}{suffix}", metric.name),
            value,
            type_: kind.into(),
            labels: labels().chain(le.map(|le| ("le".to_owned(), le))).collect(),
            timestamp: at(snapshot.collected_at),
            ..Default::default()
        });
    };
    match value {
        Value::Int(n) => add("", *n as f64, None),
        Value::Float(v) => add("", *v, None),
        Value::Percent(p) => add("", p.unwrap_or(f64::NAN), None),
        Value::Histogram(h) => {
            for (le, events) in cumulative(h) {
                add("_bucket", events as f64, Some(le));
            }
            add("_sum", h.sum_seconds(), None);
            add("_count", h.count() as f64, None);
        }
    }
}

/// The statistics that these metrics are, with the rows of these processes (of all, if none is named) if rows are wanted.
/// The contract has a fixed set of them.
pub fn io_stats(families: &[Family], processes: &[ProcessRow], knows: Knows, rows: Option<&[u32]>) -> pb::IOStats {
    let wanted = |row: &&ProcessRow| rows.is_some_and(|pids| pids.is_empty() || pids.contains(&row.pid));
    let family = |stat: &Stat| find(families, stat.metric.name);
    let int = |stat| family(stat).map(Family::total);
    let percent = |stat| match family(stat)?.series.first()?.value {
        Value::Percent(value) => value,
        _ => None,
    };
    let by_label = |s: &Series| match s.value {
        Value::Int(n) => Some((s.labels.first()?.clone(), n)),
        _ => None,
    };
    let fadvise = family(&fadvise::FADVISE_ADVICE).map(|advice| pb::FadviseStats {
        total_calls: int(&fadvise::FADVISE_CALLS).unwrap_or(0),
        success_calls: int(&fadvise::FADVISE_SUCCESS).unwrap_or(0),
        failed_calls: int(&fadvise::FADVISE_FAILED).unwrap_or(0),
        advice_counts: advice.series.iter().filter_map(by_label).collect(),
        process_stats: processes.iter().filter(wanted).filter(|r| r.calls > 0).map(process).collect(),
        ..Default::default()
    });
    pb::IOStats {
        fadvise: fadvise.into(),
        cache: Some(pb::CacheStats {
            read_attempts: int(&reads::CACHE_READ_ATTEMPTS),
            hits: int(&reads::CACHE_HITS),
            misses: int(&reads::CACHE_MISSES),
            hit_rate_percent: percent(&reads::CACHE_HIT_RATE),
            miss_rate_percent: percent(&reads::CACHE_MISS_RATE),
            pages_added: int(&fills::PAGE_CACHE_ADDS),
            pages_evicted: int(&evictions::PAGE_CACHE_EVICTIONS),
            ..Default::default()
        })
        .into(),
        memory: Some(pb::MemoryStats {
            lru_pages_scanned: int(&reclaim::LRU_PAGES_SCANNED),
            pages_reclaimed: int(&reclaim::PAGES_RECLAIMED),
            reclaim_efficiency_percent: percent(&reclaim::RECLAIM_EFFICIENCY),
            direct_reclaim_processes: int(&reclaim::DIRECT_RECLAIM_PROCESSES).map(|n| count(n as usize)),
            kswapd_wakeups: int(&reclaim::KSWAPD_WAKEUPS),
            ..Default::default()
        })
        .into(),
        processes: processes.iter().filter(wanted).filter_map(|r| process_io(r, knows)).collect(),
        ..Default::default()
    }
}

/// What happened to files, of which so many are shown.
pub fn files(files: &Files, n: usize) -> pb::FilesStats {
    let (top, rest) = files.first(n);
    let labels = |group: &FileGroup| {
        file_groups::labels(group).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let file = |row: &FileRow| pb::FileStats {
        path: row.path.clone(),
        type_: row.kind.name().into(),
        device: format!("{}:{}", row.device.0, row.device.1),
        inode: row.inode,
        generation: row.generation,
        group: files.group_of(row).map(labels).unwrap_or_default(),
        counts: file_counts(&row.counts, files),
        ..Default::default()
    };
    let group = |group: &FileGroup| pb::FileGroupStats {
        labels: labels(group),
        counts: file_counts(&group.counts, files),
        ..Default::default()
    };
    pb::FilesStats {
        known: files.known as u64,
        top: top.iter().map(file).collect(),
        rest: file_counts(&rest, files),
        groups: files.groups.iter().map(group).collect(),
        other: file_counts(&files.other, files),
        ..Default::default()
    }
}

fn file_counts(counts: &Counts, files: &Files) -> MessageField<pb::FileCounts> {
    let by = |names: &[&'static str], values: &[u64]| {
        names.iter().map(|name| (*name).to_owned()).zip(values.iter().copied()).collect()
    };
    let mut all = pb::FileCounts::default();
    if files.has_fills {
        all.pages_added = Some(counts.filled());
        all.pages_added_by_cause = by(&FILL_CAUSES, &counts.fills);
    }
    if files.has_evictions {
        all.pages_evicted = Some(counts.evicted());
        all.pages_evicted_by_cause = by(&EVICTION_CAUSES, &counts.evictions);
    }
    if files.has_waits {
        all.waits = Some(counts.waits);
        all.wait_seconds = Some(counts.wait_seconds());
    }
    Some(all).into()
}

fn process(row: &ProcessRow) -> pb::ProcessFadviseStats {
    pb::ProcessFadviseStats {
        pid: row.pid,
        comm: row.comm.clone(),
        call_count: row.calls,
        success_count: row.success,
        ..Default::default()
    }
}

/// What a process did but for fadvise; `None` if that is nothing.
fn process_io(row: &ProcessRow, knows: Knows) -> Option<pb::ProcessIOStats> {
    let Activity { pages, misses, other_fills, bytes, waits, .. } = row.reads;
    (row.reads != Activity::default()).then(|| pb::ProcessIOStats {
        pid: row.pid,
        comm: row.comm.clone(),
        read_attempts: knows.pages.then_some(pages),
        misses: knows.fills.then_some(misses),
        other_fills: knows.fills.then_some(other_fills),
        read_bytes: knows.bytes.then_some(bytes),
        waited_reads: knows.waits.then_some(waits),
        wait_seconds: knows.waits.then_some(row.reads.wait_seconds()),
        ..Default::default()
    })
}

/// The newest of these snapshots and what happened over all: what the metrics grew by, and what processes did. `None` if there
/// are none.
pub fn growth(mut newest_first: impl Iterator<Item = Snapshot>) -> Option<(Snapshot, Vec<Family>, Vec<ProcessRow>)> {
    let last = newest_first.next()?;
    let mut peaks = HashMap::new();
    let mut see = |s: &Snapshot| {
        for f in s.families.iter().filter(|f| f.metric.kind == Kind::Gauge) {
            let peak: &mut u64 = peaks.entry(f.metric.name).or_default();
            *peak = f.total().max(*peak);
        }
    };
    see(&last);
    let first = newest_first.inspect(|s| see(s)).last();
    let first = first.as_ref().unwrap_or(&last);
    let growth = catalogue::growth(&first.families, &last.families, &peaks);
    let int = |stat: &Stat| find(&growth, stat.metric.name).map_or(0, Family::total);
    let rows = |s: &Snapshot| s.processes.clone().unwrap_or_default();
    let (calls, success) = (int(&fadvise::FADVISE_CALLS), int(&fadvise::FADVISE_SUCCESS));
    let processes = processes_growth(&rows(first), &rows(&last), calls, success);
    Some((last, growth, processes))
}

/// What processes did from one snapshot to a later one, of so many fadvise calls in all.
fn processes_growth(first: &[ProcessRow], last: &[ProcessRow], calls: u64, success: u64) -> Vec<ProcessRow> {
    let mut growth = Vec::new();
    let before: HashMap<u32, &ProcessRow> = first.iter().map(|r| (r.pid, r)).collect();
    for row in last.iter().filter(|r| r.pid != 0) {
        let now = row.numbers();
        // Less than before: another process has got the id.
        let before = before.get(&row.pid).map(|r| r.numbers()).filter(|b| b.iter().zip(now).all(|(b, n)| *b <= n));
        let grown = minus(now, before.unwrap_or_default());
        growth.extend((grown != [0; 8]).then(|| row.clone().with(grown)));
    }
    growth.sort_unstable_by(|a, b| (b.calls, b.reads.pages, a.pid).cmp(&(a.calls, a.reads.pages, b.pid)));
    // The row of the forgotten has also grown by what processes had done before the range: take the rest instead.
    let sum = |rows: &[ProcessRow]| rows.iter().fold([0; 8], |sum, row| plus(sum, row.numbers()));
    let mut all = minus(sum(last), sum(first));
    [all[0], all[1]] = [calls, success];
    let rest = minus(all, sum(&growth));
    if rest != [0; 8] {
        growth.push(ProcessRow { comm: "overflow".into(), ..Default::default() }.with(rest));
    }
    growth
}

fn plus(a: [u64; 8], b: [u64; 8]) -> [u64; 8] {
    std::array::from_fn(|i| a[i].wrapping_add(b[i]))
}

fn minus(a: [u64; 8], b: [u64; 8]) -> [u64; 8] {
    std::array::from_fn(|i| a[i].saturating_sub(b[i]))
}

/// The state of a module.
pub fn module_status(module: &ModuleStatus) -> pb::ModuleStatus {
    pb::ModuleStatus {
        name: module.name.into(),
        enabled: module.enabled,
        running: module.running,
        last_error: module.last_error.as_ref().or(module.trouble.as_ref()).cloned().unwrap_or_default(),
        metric_count: count(module.metric_count),
        last_collected: module.last_collected.map(at).unwrap_or_default(),
        ..Default::default()
    }
}

/// What the numbers of the last minute mean.
pub fn diagnosis(snapshot: &Snapshot) -> rpc::GetDiagnosisResponse {
    let Some(diagnosis) = snapshot.diagnosis.as_deref() else { return rpc::GetDiagnosisResponse::default() };
    let verdict = |v: &Verdict| rpc::Verdict {
        pattern: v.pattern.name().into(),
        hurts: v.pattern.hurts(),
        since: at(v.since),
        confidence: match v.confidence {
            Confidence::Possible => rpc::Confidence::CONFIDENCE_POSSIBLE,
            Confidence::Likely => rpc::Confidence::CONFIDENCE_LIKELY,
            Confidence::Certain => rpc::Confidence::CONFIDENCE_CERTAIN,
        }
        .into(),
        summary: v.summary.clone(),
        evidence: v
            .numbers
            .iter()
            .map(|n| rpc::Evidence { name: n.name.into(), value: n.value, unit: n.unit.into(), ..Default::default() })
            .collect(),
        waited: v.waited,
        read_again: v.read_again,
        advice: v.pattern.advice().into(),
        see: v.pattern.see(),
        ..Default::default()
    };
    let unseen =
        |u: &Unseen| rpc::Unseen { pattern: u.pattern.name().into(), needs: u.needs.into(), ..Default::default() };
    rpc::GetDiagnosisResponse {
        headline: diagnosis.headline(),
        verdicts: diagnosis.verdicts.iter().map(verdict).collect(),
        unseen: diagnosis.unseen.iter().map(unseen).collect(),
        timestamp: at(diagnosis.at),
        window_seconds: diagnosis.window.as_secs_f64(),
        sequence: snapshot.sequence,
        ..Default::default()
    }
}

/// Each probe and how it is attached, to follow a message.
pub fn diagnostics(snapshot: &Snapshot) -> String {
    let mut text = format!("; snapshot {} of {} every {:?}", snapshot.sequence, snapshot.scope, snapshot.interval);
    for probe in snapshot.modules.iter().flat_map(|m| &m.probes) {
        text += &match (probe.mode, probe.failures.last()) {
            (Some(mode), _) => format!("; {}: {mode}", probe.name),
            (None, Some((mode, why))) => format!("; {}: not attached ({mode}: {why})", probe.name),
            (None, None) => format!("; {}: not attached", probe.name),
        };
    }
    text
}
