//! The agent's own resources, as every Prometheus client shows them; read from /proc/self.

use std::fs;
use std::time::UNIX_EPOCH;

use crate::ebpf::os;

/// Ticks a second in which /proc counts CPU time and start times (USER_HZ, 100 on x86-64 and arm64).
const USER_HZ: f64 = 100.0;

/// What this process uses; what cannot be read is `None`.
#[derive(Debug, Default)]
pub struct Usage {
    /// CPU time since its start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory, in bytes.
    pub resident: Option<u64>,
    /// Virtual memory, in bytes.
    pub mapped: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// How many there may be.
    pub max_fds: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// When it started, in seconds since 1970.
    pub started: Option<f64>,
}

/// What this process uses now.
pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let field = |n| os::stat_field::<u64>(&stat, n);
    let seconds = |n| field(n).map(|ticks| ticks as f64 / USER_HZ);
    Usage {
        cpu_seconds: seconds(14).zip(seconds(15)).map(|(user, system)| user + system),
        resident: field(24).map(|pages| pages * os::page_size()),
        mapped: field(23),
        // The directory that is being read is one of them.
        open_fds: fs::read_dir("/proc/self/fd").ok().map(|d| (d.count() as u64).saturating_sub(1)),
        max_fds: max_fds(),
        threads: field(20),
        started: boot_time().zip(seconds(22)).map(|(boot, since)| boot + since),
    }
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
        let usage = usage();
        assert!(usage.resident.unwrap() > 100_000 && usage.mapped >= usage.resident);
        assert!(usage.open_fds.unwrap() >= 3 && usage.max_fds > usage.open_fds);
        assert!(usage.threads.unwrap() >= 1 && usage.cpu_seconds.unwrap() >= 0.0);
        let age = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - usage.started.unwrap();
        assert!((-1.0..86400.0).contains(&age), "{age}");
    }
}
