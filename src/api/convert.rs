//! Snapshots as messages.

use std::collections::HashMap;

use super::proto::metrics as pb;
use super::{at, count, matches};
use crate::metrics::catalogue::{Kind, Metric};
use crate::metrics::histogram::cumulative;
use crate::metrics::snapshot::{
    ADVICES, Cache, Fadvise, IoStats, Memory, ModuleStatus, ProcessRow, Series, Snapshot, Value,
};
use crate::monitor::iomonitor::{miss_rate, percent};

/// The metrics of a module that have all labels of `filters`.
pub fn metric_set(snapshot: &Snapshot, module: &ModuleStatus, filters: &HashMap<String, String>) -> pb::MetricSet {
    let mut metrics = Vec::new();
    for family in snapshot.families_of(module) {
        for series in &family.series {
            add_series(&mut metrics, snapshot, family.metric, series);
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

fn add_series(metrics: &mut Vec<pb::Metric>, snapshot: &Snapshot, metric: &Metric, series: &Series) {
    let kind = match metric.kind {
        Kind::Counter => pb::MetricType::METRIC_TYPE_COUNTER,
        Kind::Gauge => pb::MetricType::METRIC_TYPE_GAUGE,
        Kind::Histogram => pb::MetricType::METRIC_TYPE_HISTOGRAM,
    };
    let labels = || metric.labels.iter().map(|l| (*l).to_owned()).zip(series.labels.iter().cloned());
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
    match &series.value {
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

/// The statistics, with the rows of these processes (of all, if none is named) if rows are wanted.
pub fn io_stats(io: &IoStats, rows: Option<&[u32]>) -> pb::IOStats {
    let sum = |of: &[u64]| of.iter().sum::<u64>();
    let (cache, memory) = (&io.cache, &io.memory);
    let fadvise = io.fadvise.as_ref().map(|f| pb::FadviseStats {
        total_calls: f.total(),
        success_calls: f.success,
        failed_calls: f.failed,
        advice_counts: ADVICES.into_iter().map(str::to_owned).zip(f.advice).collect(),
        process_stats: rows.map_or(Vec::new(), |pids| {
            f.processes.iter().filter(|r| pids.is_empty() || pids.contains(&r.pid)).map(process).collect()
        }),
        ..Default::default()
    });
    pb::IOStats {
        fadvise: fadvise.into(),
        cache: Some(pb::CacheStats {
            read_attempts: cache.read_attempts,
            hits: cache.hits,
            misses: cache.misses,
            hit_rate_percent: cache.hit_rate_percent,
            miss_rate_percent: cache.miss_rate_percent,
            pages_added: cache.adds.map(|a| sum(&a)),
            pages_evicted: cache.evictions.map(|e| sum(&e)),
            ..Default::default()
        })
        .into(),
        memory: Some(pb::MemoryStats {
            lru_pages_scanned: memory.scanned.map(|s| sum(&s)),
            pages_reclaimed: memory.reclaimed.into_iter().flatten().reduce(|a, b| a + b),
            reclaim_efficiency_percent: memory.reclaim_efficiency_percent,
            direct_reclaim_processes: memory.direct_reclaim_processes.map(|n| count(n as usize)),
            kswapd_wakeups: memory.kswapd_wakeups,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
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

/// What the counters grew by from one snapshot to a later one, with the rates over that time.
pub fn growth(first: &IoStats, last: &IoStats) -> IoStats {
    let one = |a: Option<u64>, b: Option<u64>| b.map(|b| b.saturating_sub(a.unwrap_or(0)));
    let (a, b) = (&first.cache, &last.cache);
    let (attempts, misses) = (one(a.read_attempts, b.read_attempts), one(a.misses, b.misses));
    let miss_rate = attempts.zip(misses).and_then(|(attempts, misses)| miss_rate(attempts, misses));
    let cache = Cache {
        read_attempts: attempts,
        hits: one(a.hits, b.hits),
        misses,
        hit_rate_percent: miss_rate.map(|r| 100.0 - r),
        miss_rate_percent: miss_rate,
        adds: each(a.adds, b.adds),
        evictions: each(a.evictions, b.evictions),
        ..Default::default()
    };
    let (a, b) = (&first.memory, &last.memory);
    let scanned = each(a.scanned, b.scanned);
    let mut reclaimed = b.reclaimed;
    for (now, before) in reclaimed.iter_mut().zip(a.reclaimed) {
        *now = one(before, *now);
    }
    let memory = Memory {
        scanned,
        reclaimed,
        reclaim_efficiency_percent: scanned.and_then(|s| percent(reclaimed.iter().flatten().sum(), s.iter().sum())),
        kswapd_wakeups: one(a.kswapd_wakeups, b.kswapd_wakeups),
        ..Default::default()
    };
    let fadvise = last.fadvise.as_ref().map(|last| fadvise_growth(first.fadvise.as_ref(), last));
    IoStats { fadvise, cache, memory }
}

fn each<const N: usize>(first: Option<[u64; N]>, last: Option<[u64; N]>) -> Option<[u64; N]> {
    let first = first.unwrap_or([0; N]);
    last.map(|last| std::array::from_fn(|i| last[i].saturating_sub(first[i])))
}

fn fadvise_growth(first: Option<&Fadvise>, last: &Fadvise) -> Fadvise {
    let nothing = Fadvise::default();
    let first = first.unwrap_or(&nothing);
    let mut growth = Fadvise {
        success: last.success.saturating_sub(first.success),
        failed: last.failed.saturating_sub(first.failed),
        advice: std::array::from_fn(|i| last.advice[i].saturating_sub(first.advice[i])),
        ..Default::default()
    };
    growth.success_rate_percent = percent(growth.success, growth.total());
    let before: HashMap<u32, &ProcessRow> = first.processes.iter().map(|r| (r.pid, r)).collect();
    for row in last.processes.iter().filter(|r| r.pid != 0) {
        // Fewer calls than before: another process has got the id.
        let same = before.get(&row.pid).filter(|b| b.calls <= row.calls && b.success <= row.success);
        let (calls, success) = same.map_or((0, 0), |b| (b.calls, b.success));
        let row = ProcessRow { calls: row.calls - calls, success: row.success - success, ..row.clone() };
        growth.processes.extend(Some(row).filter(|r| r.calls > 0));
    }
    growth.processes.sort_unstable_by(|a, b| b.calls.cmp(&a.calls).then(a.pid.cmp(&b.pid)));
    // The row of the forgotten has also grown by what processes had called before the range: take the rest instead.
    let sum = |of: fn(&ProcessRow) -> u64| growth.processes.iter().map(of).sum::<u64>();
    let calls = growth.total().saturating_sub(sum(|r| r.calls));
    let success = growth.success.saturating_sub(sum(|r| r.success));
    if calls > 0 {
        growth.processes.push(ProcessRow { pid: 0, comm: "overflow".into(), calls, success });
    }
    growth
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
