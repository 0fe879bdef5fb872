//! The agent's own resources, as every Prometheus client shows them; read from /proc/self.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex, PoisonError};
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

/// What is read at each collection: open for good, so that it can be read when there are no more descriptors.
struct Sources {
    stat: Option<File>,
    fds: Option<os::Directory>,
    /// Read once: the clock may be set, and the process has not started at another time then.
    started: Option<f64>,
}

static SOURCES: LazyLock<Mutex<Sources>> = LazyLock::new(|| {
    let stat = File::open("/proc/self/stat").ok();
    let since = stat.as_ref().and_then(read).and_then(|text| os::stat_field::<u64>(&text, 22));
    let started = boot_time().zip(since).map(|(boot, ticks)| boot + ticks as f64 / USER_HZ);
    Mutex::new(Sources { stat, fds: os::Directory::open(c"/proc/self/fd").ok(), started })
});

/// What this process uses now. The first call opens what later ones read.
pub fn usage() -> Usage {
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    let stat = sources.stat.as_ref().and_then(read).unwrap_or_default();
    let field = |n| os::stat_field::<u64>(&stat, n);
    let seconds = |n| field(n).map(|ticks| ticks as f64 / USER_HZ);
    Usage {
        cpu_seconds: seconds(14).zip(seconds(15)).map(|(user, system)| user + system),
        resident: field(24).map(|pages| pages * os::page_size()),
        mapped: field(23),
        open_fds: sources.fds.as_mut().and_then(|d| d.count().ok()),
        max_fds: os::max_fds(),
        threads: field(20),
        started: sources.started,
    }
}

/// The text of a file of /proc, from its beginning.
fn read(file: &File) -> Option<String> {
    let mut text = [0; 2048]; // a stat file has some 50 numbers and a short name
    let n = file.read_at(&mut text, 0).ok()?;
    Some(String::from_utf8_lossy(&text[..n]).into_owned())
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

    #[test]
    fn the_start_is_one_constant_and_the_rest_follows() {
        let first = usage();
        let spent = || usage().cpu_seconds.unwrap() - first.cpu_seconds.unwrap();
        while spent() < 0.05 {
            assert_eq!(usage().started, first.started);
        }
        // As many that those of other tests do not hide them.
        let files: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(usage().open_fds.unwrap() > first.open_fds.unwrap() + 100);
        drop(files);
    }
}
