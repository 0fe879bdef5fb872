//! The agent's API (proto/banyandb/ebpf/v1) as plain functions over the newest snapshot and those before it. gRPC and
//! HTTP/JSON only carry what is said here.

mod configure;
mod convert;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};

use crate::collector::Control;
use crate::config::AllowConfigure;
use crate::ebpf::os;
use crate::host::logging::clean;
use crate::host::time::timestamp_parts;
use crate::host::version;
use crate::metrics::cell::SnapshotCell;
use crate::metrics::health::{self, Status};
use crate::metrics::snapshot::{ModuleStatus, Snapshot};
use crate::monitor::files;

pub use configure::Caller;

/// The messages, made from proto/ by build.rs.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

use proto::metrics as pb;
use proto::rpc;

/// Most bytes of an answer to GetMetrics: below the 4 MiB that gRPC clients take.
pub const ANSWER_MAX: u64 = 3 << 20;
/// Bounds of a stream's interval, in seconds.
const STREAM_INTERVAL: std::ops::RangeInclusive<u32> = 1..=3600;

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Kinds of failure, with their numbers in gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request makes no sense, whatever the state of the agent.
    InvalidArgument = 3,
    /// It names something that is not there.
    NotFound = 5,
    /// The caller may not do that.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// A bug.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
}

impl Code {
    /// The status code that HTTP has for it.
    pub fn http(self) -> u16 {
        match self {
            Code::InvalidArgument => 400,
            Code::NotFound => 404,
            Code::PermissionDenied => 403,
            Code::ResourceExhausted => 429,
            Code::Internal => 500,
            Code::Unavailable => 503,
        }
    }
}

impl Failure {
    /// A failure with its message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

/// The API of one agent.
pub struct Api {
    cell: SnapshotCell,
    control: Control,
    allow: Mutex<AllowConfigure>,
}

impl Api {
    /// An API that answers from `cell`, and has `control` make the changes that `allow` permits.
    pub fn new(cell: SnapshotCell, control: Control, allow: AllowConfigure) -> Self {
        Self { cell, control, allow: Mutex::new(allow) }
    }

    /// Others may change the agent from now on.
    pub fn allow(&self, allow: AllowConfigure) {
        *self.allow.lock().unwrap_or_else(|e| e.into_inner()) = allow;
    }

    /// The newest snapshot.
    pub fn newest(&self) -> Arc<Snapshot> {
        self.cell.load()
    }

    /// The metrics of the newest snapshot, or of those of a time range.
    pub fn get_metrics(&self, request: &rpc::GetMetricsRequest) -> Result<rpc::GetMetricsResponse, Failure> {
        let newest = self.cell.load();
        let Some(range) = request.time_range.as_ref() else {
            return metrics_of(&newest, std::iter::once(&*newest), request);
        };
        let (start, end) = bounds(range)?;
        metrics_of(&newest, self.cell.between(start, end).newest_first(), request)
    }

    /// Whether a stream can be as asked for, and its interval if so.
    pub fn check_stream(&self, request: &rpc::StreamMetricsRequest) -> Result<Duration, Failure> {
        let seconds = request.interval_seconds;
        if !STREAM_INTERVAL.contains(&seconds) {
            let message = format!("interval_seconds: {seconds} is not allowed; allowed: 1 to 3600");
            return Err(Failure::new(Code::InvalidArgument, message));
        }
        chosen(&self.cell.load(), &request.modules)?;
        Ok(Duration::from_secs(seconds.into()))
    }

    /// What a stream has to say of a snapshot: one message for each module.
    pub fn stream(
        &self,
        snapshot: &Snapshot,
        request: &rpc::StreamMetricsRequest,
    ) -> Result<Vec<rpc::StreamMetricsResponse>, Failure> {
        let message = |m| {
            let set = convert::metric_set(snapshot, m, &request.label_filters);
            rpc::StreamMetricsResponse { metric_set: Some(set).into(), ..Default::default() }
        };
        Ok(chosen(snapshot, &request.modules)?.into_iter().map(message).collect())
    }

    /// The statistics since the start, or their growth over a time range.
    pub fn get_io_stats(&self, request: &rpc::GetIOStatsRequest) -> Result<rpc::GetIOStatsResponse, Failure> {
        let rows = request.include_process_stats.then_some(request.pids.as_slice());
        let answer = |families, processes, of: &Snapshot| rpc::GetIOStatsResponse {
            stats: Some(convert::io_stats(families, processes, of.knows, rows)).into(),
            timestamp: at(of.collected_at),
            sequence: of.sequence,
            ..Default::default()
        };
        let Some(range) = request.time_range.as_ref() else {
            let newest = self.cell.load();
            let mut found = answer(&newest.families, newest.processes.as_deref().unwrap_or_default(), &newest);
            let shown = (request.files as usize).min(files::MAX_TOP);
            if let Some(files) = newest.files.as_deref().filter(|_| shown > 0) {
                found.stats.mut_or_insert_default().files = Some(convert::files(files, shown)).into();
            }
            return Ok(found);
        };
        let (start, end) = bounds(range)?;
        let past = self.cell.between(start, end);
        // While nothing is attached there are no counters to compare.
        let counted = past.newest_first().filter(|s| s.modules.iter().any(|m| m.running));
        let Some((last, growth, processes)) = convert::growth(counted) else {
            return Err(Failure::new(
                Code::NotFound,
                "time_range: no collection in it is kept; collector.history says for how long they are",
            ));
        };
        Ok(answer(&growth, &processes, &last))
    }

    /// The state of modules and of the agent.
    pub fn get_module_status(
        &self,
        request: &rpc::GetModuleStatusRequest,
    ) -> Result<rpc::GetModuleStatusResponse, Failure> {
        let newest = self.cell.load();
        let system = rpc::SystemStatus {
            // It has been collected from only if its programs were loaded and attached.
            ebpf_supported: newest.modules.iter().any(|m| m.last_collected.is_some()),
            kernel_version: os::kernel_release(),
            active_modules: count(newest.modules.iter().filter(|m| m.running).count()),
            total_metrics: count(newest.metric_count()),
            uptime_seconds: newest.started.elapsed().as_secs(),
            ..Default::default()
        };
        Ok(rpc::GetModuleStatusResponse {
            modules: chosen(&newest, &request.modules)?.into_iter().map(convert::module_status).collect(),
            system_status: Some(system).into(),
            ..Default::default()
        })
    }

    /// The verdict of /health.
    pub fn get_health(&self, request: &rpc::GetHealthRequest) -> rpc::GetHealthResponse {
        let newest = self.cell.load();
        let health = health::assess(&newest, Instant::now());
        let mut message = health.message;
        if request.include_diagnostics {
            message += &convert::diagnostics(&newest);
        }
        let status = match health.status {
            Status::Healthy => rpc::HealthStatus::HEALTH_STATUS_HEALTHY,
            Status::Degraded => rpc::HealthStatus::HEALTH_STATUS_DEGRADED,
            Status::Unhealthy => rpc::HealthStatus::HEALTH_STATUS_UNHEALTHY,
        };
        rpc::GetHealthResponse {
            status: status.into(),
            message,
            version: version::VERSION.into(),
            uptime_seconds: newest.started.elapsed().as_secs(),
            last_error: newest.last_error.clone().unwrap_or_default(),
            ..Default::default()
        }
    }

    /// What the numbers of the last minute mean.
    pub fn get_diagnosis(&self, _: &rpc::GetDiagnosisRequest) -> rpc::GetDiagnosisResponse {
        convert::diagnosis(&self.cell.load())
    }

    /// What the standard health protocol says of `service`; `None` for one that is not served. Degraded is serving:
    /// a probe that cannot be attached here is no reason to restart.
    pub fn serving(&self, service: &str, served: &[&str]) -> Option<bool> {
        let known = service.is_empty() || served.contains(&service);
        known.then(|| health::assess(&self.cell.load(), Instant::now()).status != Status::Unhealthy)
    }
}

/// The metrics of these snapshots, as far as they fit into one answer.
fn metrics_of(
    newest: &Snapshot,
    newest_first: impl Iterator<Item = impl Borrow<Snapshot>>,
    request: &rpc::GetMetricsRequest,
) -> Result<rpc::GetMetricsResponse, Failure> {
    // Unknown names are an error, whatever the range holds.
    chosen(newest, &request.modules)?;
    let mut answer = rpc::GetMetricsResponse { timestamp: at(newest.collected_at), ..Default::default() };
    let mut size = 0;
    for snapshot in newest_first {
        let snapshot = snapshot.borrow();
        let sets: Vec<pb::MetricSet> = chosen(snapshot, &request.modules)?
            .into_iter()
            .map(|m| convert::metric_set(snapshot, m, &request.label_filters))
            .collect();
        // Each with its tag and length.
        size += sets.iter().map(|s| s.compute_size() + 6).sum::<u64>();
        if size > ANSWER_MAX {
            answer.truncated = true;
            break;
        }
        answer.metric_sets.extend(sets.into_iter().rev());
    }
    answer.metric_sets.reverse();
    answer.total_metrics = count(answer.metric_sets.iter().map(|s| s.metrics.len()).sum());
    Ok(answer)
}

/// The modules of these names, all if none is named.
fn chosen<'a>(snapshot: &'a Snapshot, names: &[String]) -> Result<Vec<&'a ModuleStatus>, Failure> {
    let known = |name: &&String| !snapshot.modules.iter().any(|m| m.name == name.as_str());
    if let Some(unknown) = names.iter().find(known) {
        return Err(no_module(unknown, snapshot));
    }
    let wanted = |m: &&ModuleStatus| names.is_empty() || names.iter().any(|n| n == m.name);
    Ok(snapshot.modules.iter().filter(wanted).collect())
}

fn no_module(name: &str, snapshot: &Snapshot) -> Failure {
    let known: Vec<&str> = snapshot.modules.iter().map(|m| m.name).collect();
    Failure::new(Code::NotFound, format!("no module \"{}\"; there are: {}", clean(name), known.join(", ")))
}

type Bound = Option<SystemTime>;

/// Start and end of a range.
fn bounds(range: &rpc::TimeRange) -> Result<(Bound, Bound), Failure> {
    let (start, end) = (instant("start", &range.start)?, instant("end", &range.end)?);
    if let (Some(start), Some(end)) = (start, end)
        && start >= end
    {
        return Err(Failure::new(Code::InvalidArgument, "time_range: start has to be before end"));
    }
    Ok((start, end))
}

fn instant(name: &str, time: &MessageField<Timestamp>) -> Result<Bound, Failure> {
    let Some(time) = time.as_ref() else { return Ok(None) };
    let nanos = u32::try_from(time.nanos).ok().filter(|n| *n < 1_000_000_000);
    let distance = Duration::from_secs(time.seconds.unsigned_abs());
    let second = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(distance),
        false => UNIX_EPOCH.checked_add(distance),
    };
    let at = second.zip(nanos).and_then(|(s, n)| s.checked_add(Duration::from_nanos(n.into())));
    at.map(Some).ok_or_else(|| Failure::new(Code::InvalidArgument, format!("time_range: {name} is no point in time")))
}

fn at(time: SystemTime) -> MessageField<Timestamp> {
    // Whole milliseconds, as in every other output.
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let (seconds, nanos) = timestamp_parts(i64::try_from(millis).unwrap_or(i64::MAX));
    Some(Timestamp { seconds, nanos, ..Default::default() }).into()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whether a metric's labels are among those that a filter wants.
fn matches(labels: &HashMap<String, String>, filters: &HashMap<String, String>) -> bool {
    filters.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests;
