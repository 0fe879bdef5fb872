//! What the agent needs of the machine, said in words: for `ebpf-sidecar check`, and beside an error at start.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::config::{Collector, Config, Pod};
use crate::ebpf::os;
use crate::modules::Module;
use crate::modules::iomonitor::IoMonitor;
use crate::pod;

/// Bits of the capabilities that loading and attaching need (linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// The capabilities that this kernel wants for BPF tracing and the agent lacks, with the way to grant them;
/// `None` if it has them.
pub fn missing_privilege() -> Option<String> {
    missing_of(os::capabilities(), &os::kernel_release())
}

fn missing_of(have: u64, release: &str) -> Option<String> {
    if have & CAP_SYS_ADMIN != 0 {
        return None;
    }
    // CAP_BPF and CAP_PERFMON were split off CAP_SYS_ADMIN in 5.8.
    let wanted: &[(&str, u64)] = match os::version_of(release) < (5, 8) {
        true => &[("SYS_ADMIN", CAP_SYS_ADMIN)],
        false => &[("BPF", CAP_BPF), ("PERFMON", CAP_PERFMON)],
    };
    let lacking: Vec<&str> = wanted.iter().filter(|(_, bit)| have & bit == 0).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return None;
    }
    // The grant is of all of them: setcap replaces what was granted before.
    let join = |names: &[&str], prefix: &str, between: &str| -> String {
        names.iter().map(|n| format!("{prefix}{n}")).collect::<Vec<_>>().join(between)
    };
    let all: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    Some(format!(
        "{} missing: run as root, or grant it: setcap {}+ep ebpf-sidecar; docker run {}; systemd AmbientCapabilities={}",
        join(&lacking, "CAP_", " and "),
        join(&all, "cap_", ",").to_lowercase(),
        join(&all, "--cap-add ", " "),
        join(&all, "CAP_", " "),
    ))
}

/// Examines the machine as if the agent were to start with `config`, and leaves nothing behind. Returns the
/// report and whether the agent would run.
pub fn check(config: &Config) -> (String, bool) {
    let mut report = Report::default();
    report.line(true, "kernel", os::kernel_release());
    match os::has_btf() {
        true => report.line(true, "BTF", "/sys/kernel/btf/vmlinux"),
        false => report.line(
            false,
            "BTF",
            "/sys/kernel/btf/vmlinux is missing: a kernel with CONFIG_DEBUG_INFO_BTF=y has it",
        ),
    }
    match (os::tracefs(), os::mount_tracefs_privately()) {
        (Some(path), _) => report.line(true, "tracefs", path.display()),
        (None, Ok(_)) => report.line(true, "tracefs", "not mounted; the agent mounts it for itself"),
        (None, Err(e)) => report.note("tracefs", e),
    }
    match missing_privilege() {
        None => report.line(true, "capabilities", "sufficient"),
        Some(missing) => report.line(false, "capabilities", missing),
    }
    match cgroup2() {
        Some(path) => report.line(true, "cgroup v2", path.display()),
        None => {
            report.note("cgroup v2", "not mounted: collector.scope.cgroup cannot be used, collector.scope.comm can")
        }
    }
    let http = SocketAddr::new(config.server.http.address, config.server.http.port);
    match TcpListener::bind(http) {
        Ok(_) => report.line(true, "HTTP port", format!("{http} is free")),
        Err(e) => report.line(false, "HTTP port", format!("{http}: {e}")),
    }

    report.line(true, "scope", scope_words(&config.collector));
    let mut monitor = IoMonitor::new(&config.collector);
    let started = monitor.start();
    for p in monitor.probes() {
        match p.mode {
            Some(mode) => report.line(true, p.name, format!("would attach as {mode}")),
            None => {
                let why: Vec<String> = p.failures.iter().map(|(mode, why)| format!("{mode}: {why}")).collect();
                report.note(p.name, format!("would not attach, its metrics would be absent: {}", why.join("; ")));
            }
        }
    }
    if let Err(e) = started {
        report.line(false, "BPF", e);
    }
    (report.text, !report.failed)
}

/// Why `path` cannot be a scope, if it cannot: it is no cgroup v2 directory.
pub fn no_cgroup(path: &Path) -> Option<String> {
    match fs::metadata(path).and_then(|m| Ok((m.is_dir(), os::is_on_cgroup2(path)?))) {
        Ok((true, true)) => None,
        Ok((false, _)) => Some("it is no directory".into()),
        Ok((true, false)) => Some(match cgroup2() {
            Some(root) => format!("it is no cgroup v2; those of this host are under {}", root.display()),
            None => "it is no cgroup v2, and this host has none mounted: use collector.scope.comm".into(),
        }),
        Err(e) => Some(e.to_string()),
    }
}

/// Where cgroup v2 is mounted.
fn cgroup2() -> Option<PathBuf> {
    pod::cgroup2_mounts().into_iter().next()
}

/// The scope in words, with how it was chosen if the agent chose it.
pub fn scope_words(collector: &Collector) -> String {
    let how = match (&collector.pod, pod::own()) {
        (Some(Pod::Auto), Ok(_)) => ", the own pod".into(),
        (Some(Pod::Auto), Err(why)) => format!(", since the own pod is not known: {why}"),
        _ => String::new(),
    };
    format!("{}{how}", collector.scope)
}

#[derive(Default)]
struct Report {
    text: String,
    failed: bool,
}

impl Report {
    fn line(&mut self, ok: bool, what: &str, words: impl std::fmt::Display) {
        self.failed |= !ok;
        self.write(if ok { "ok" } else { "FAIL" }, what, words);
    }

    /// Something is missing that the agent can run without.
    fn note(&mut self, what: &str, words: impl std::fmt::Display) {
        self.write("warn", what, words);
    }

    fn write(&mut self, mark: &str, what: &str, words: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{mark:5} {what:16} {words}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_those_of_the_kernel() {
        assert_eq!(missing_of(CAP_SYS_ADMIN, "4.14.0"), None);
        assert_eq!(missing_of(CAP_BPF | CAP_PERFMON, "5.8.0-1-amd64"), None);
        let old = missing_of(CAP_BPF | CAP_PERFMON, "5.7.19").unwrap();
        assert!(old.contains("CAP_SYS_ADMIN") && old.contains("--cap-add SYS_ADMIN"), "{old}");
        let half = missing_of(CAP_BPF, "6.12.3").unwrap();
        assert!(half.starts_with("CAP_PERFMON missing") && half.contains("setcap cap_bpf,cap_perfmon+ep"), "{half}");
        let none = missing_of(0, "7.2-rc1").unwrap();
        assert!(none.contains("CAP_BPF and CAP_PERFMON") && none.contains("--cap-add BPF --cap-add PERFMON"), "{none}");
    }

    #[test]
    fn only_a_directory_of_cgroup_v2_is_a_cgroup() {
        assert_eq!(no_cgroup(Path::new("/proc/self/mounts")).unwrap(), "it is no directory");
        assert!(no_cgroup(Path::new("/proc/self")).unwrap().contains("no cgroup v2"));
        assert!(no_cgroup(Path::new("/proc/self/none")).unwrap().contains("No such file"));
        if let Some(root) = cgroup2() {
            assert_eq!(no_cgroup(&root), None);
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(os::version_of("5.10.0-40-cloud-amd64") > os::version_of("5.8"));
        assert_eq!(os::version_of("7.2-rc1"), (7, 2));
        assert_eq!(os::version_of("odd"), (0, 0));
    }
}
