//! The agent's own resources, as every Prometheus client shows them; read from /proc/self.

use std::fs;
use std::time::UNIX_EPOCH;

use crate::ebpf::os;
use crate::metrics::catalogue as m;
use crate::metrics::snapshot::{Family, Value};

/// Ticks a second in which /proc counts CPU time and start times (USER_HZ, 100 on x86-64 and arm64).
const USER_HZ: f64 = 100.0;

/// The `process_*` metrics; what cannot be read is left out.
pub fn families() -> Vec<Family> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let field = |n| os::stat_field::<u64>(&stat, n);
    let seconds = |n| field(n).map(|ticks| ticks as f64 / USER_HZ);
    let float = |metric, v: Option<f64>| v.map(|v| Family::single(metric, Value::Float(v)));
    let int = |metric, v: Option<u64>| v.map(|v| Family::single(metric, Value::Int(v)));
    let page = os::page_size();
    [
        float(&m::PROCESS_CPU, seconds(14).zip(seconds(15)).map(|(user, system)| user + system)),
        int(&m::PROCESS_RESIDENT, field(24).map(|pages| pages * page)),
        int(&m::PROCESS_VIRTUAL, field(23)),
        // The directory that is being read is one of them.
        int(&m::PROCESS_OPEN_FDS, fs::read_dir("/proc/self/fd").ok().map(|d| (d.count() as u64).saturating_sub(1))),
        int(&m::PROCESS_MAX_FDS, max_fds()),
        int(&m::PROCESS_THREADS, field(20)),
        float(&m::PROCESS_START, boot_time().zip(seconds(22)).map(|(boot, since)| boot + since)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Seconds since 1970 at which the host started.
fn boot_time() -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    let now = UNIX_EPOCH.elapsed().ok()?;
    Some(now.as_secs_f64() - uptime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_known_and_plausible() {
        let all = families();
        assert_eq!(all.len(), 7);
        let value = |name| match all.iter().find(|f| f.metric.name == name).map(|f| &f.series[0].value) {
            Some(Value::Int(n)) => *n as f64,
            Some(Value::Float(n)) => *n,
            other => panic!("{name}: {other:?}"),
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let age = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - value("process_start_time_seconds");
        assert!((-1.0..86400.0).contains(&age), "{age}");
    }
}
