//! What the agent needs of the machine, said in words: for `ebpf-sidecar check`, and beside an error at start.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::config::{self, Config, Switch};
use crate::ebpf::os::{self, cap};
use crate::host::{cgroup, confine, scope};
use crate::metrics::own::MEANS;
use crate::monitor::Module;
use crate::monitor::iomonitor::IoMonitor;
use crate::server::grpc::tls;
use crate::server::http::access;
use crate::server::listen;

/// What this machine makes necessary besides.
#[derive(Clone, Copy, Default)]
struct Needs {
    /// A probe is not attached, and tracefs is there but may not be read.
    tracefs: bool,
    /// The maps count against a limit that is in force.
    memlock: bool,
}

/// The capabilities that this kernel wants for BPF tracing and the agent lacks, with the way to grant them;
/// `None` if it has them. `attached`: whether every probe is.
pub fn missing_privilege(attached: bool) -> Option<String> {
    if os::is_in_user_namespace() {
        return Some(
            "the capabilities are those of a user namespace, which do not count for this: run it in the host's".into(),
        );
    }
    let needs = Needs { tracefs: !attached && os::tracefs_is_refused(), memlock: os::memlock_is_limited() };
    missing_of(os::capabilities(), &os::kernel_release(), needs)
}

fn missing_of(have: u64, release: &str, needs: Needs) -> Option<String> {
    /// Those that only some machines want, and what for.
    const BESIDES: [(u64, &str); 2] = [
        (cap::DAC_READ_SEARCH, "to read tracefs as a user other than root"),
        (cap::SYS_RESOURCE, "to lift RLIMIT_MEMLOCK, which BPF maps count against before 5.11"),
    ];
    let besides = BESIDES.iter().zip([needs.tracefs, needs.memlock]).filter(|(_, needed)| *needed);
    let wanted = besides.fold(cap::for_tracing(have, os::version_of(release)), |all, ((bit, _), _)| all | bit);
    let lacking = wanted & !have;
    if lacking == 0 {
        return None;
    }
    let names = |of: u64, prefix: &str, between: &str| cap::names(of, prefix).join(between);
    let why: Vec<String> = BESIDES
        .iter()
        .filter(|(bit, _)| lacking & bit != 0)
        .map(|(bit, why)| format!("{} is {why}", names(*bit, "CAP_", "")))
        .collect();
    let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
    // The grant is of all of them: setcap replaces what was granted before.
    Some(format!(
        "{} missing{why}: run as root, or grant it: setcap {}+ep ebpf-sidecar; docker run {}; \
         systemd AmbientCapabilities={}",
        names(lacking, "CAP_", " and "),
        names(wanted, "cap_", ",").to_lowercase(),
        names(wanted, "--cap-add ", " "),
        names(wanted, "CAP_", " "),
    ))
}

/// Examines the machine as if the agent were to start with `config`, and leaves nothing behind. Returns the
/// report and whether the agent would run.
pub fn check(config: &Config) -> (String, bool) {
    let mut report = Report::default();
    report.line(true, "kernel", os::kernel_release());
    let missing = "/sys/kernel/btf/vmlinux is missing: a kernel with CONFIG_DEBUG_INFO_BTF=y has it";
    match (config.collector.ebpf.btf, os::has_btf()) {
        (Switch::Off, _) => report.line(true, "BTF", "not used, collector.ebpf.btf is off"),
        (_, true) => report.line(true, "BTF", "/sys/kernel/btf/vmlinux"),
        (Switch::On, false) => report.line(false, "BTF", missing),
        (Switch::Auto, false) => {
            report.note("BTF", format!("{missing}; fexit cannot be used, waits of reads are not timed"))
        }
    }
    match (os::tracefs(), os::mount_tracefs_privately()) {
        (Some(path), _) => report.line(true, "tracefs", path.display()),
        (None, Ok(_)) => report.line(true, "tracefs", "not mounted; the agent mounts it for itself"),
        (None, Err(e)) => report.note("tracefs", e),
    }
    match os::lockdown() {
        Some(mode) if mode == "confidentiality" => report
            .note("lockdown", format!("{mode}: no kprobes, no tracefs, and programs may not read the kernel's memory")),
        Some(mode) => report.line(true, "lockdown", mode),
        None => report.line(true, "lockdown", "none that could be seen (/sys/kernel/security/lockdown)"),
    }
    match cgroup::root() {
        Some(path) => report.line(true, "cgroup v2", path.display()),
        None => {
            report.note("cgroup v2", "not mounted: collector.scope.cgroup cannot be used, collector.scope.comm can")
        }
    }
    match (config.collector.confine, confine::missing()) {
        (Switch::Off, _) => report.note("confined", "no: collector.confine is off"),
        (_, missing) if missing.is_empty() => report.line(true, "confined", format!("by {}", MEANS.join(", "))),
        (switch, missing) => {
            let missing: Vec<String> = missing.into_iter().map(|(what, why)| format!("{what}: {why}")).collect();
            let words = format!("not by all of {}: here is no {}", MEANS.join(", "), missing.join("; "));
            match switch {
                Switch::On => report.line(false, "confined", words),
                _ => report.note("confined", words),
            }
        }
    }
    let config::Server { grpc, http, .. } = &config.server;
    let grpc_port = grpc.enabled.then_some(("gRPC port", grpc.address, grpc.port));
    for (what, address, port) in [("HTTP port", http.address, http.port)].into_iter().chain(grpc_port) {
        let address = SocketAddr::new(address, port);
        match listen::bind(address).and_then(|listener| listener.local_addr()) {
            // The port that 0 stands for is another each time.
            Ok(found) => report.line(true, what, format!("{} is free", SocketAddr::new(found.ip(), port))),
            Err(e) => report.line(false, what, format!("{address}: {e}")),
        }
    }
    match tls::check(grpc) {
        Ok(false) => {}
        Ok(true) => report.line(true, "certificates", "can be used"),
        Err(e) => report.line(false, "certificates", e),
    }

    match http.web_config.as_deref().map(access::check) {
        None => {}
        Some(Ok(tls)) => {
            report.line(true, "web config", if tls { "can be used, with TLS" } else { "can be used, without TLS" })
        }
        Some(Err(e)) => report.line(false, "web config", e),
    }

    let mut monitor = IoMonitor::new(&config.collector);
    let started = monitor.start();
    match monitor.trouble() {
        None => report.line(true, "scope", scope::words(&config.collector)),
        Some(why) => report.note("scope", format!("{}: {why}", scope::words(&config.collector))),
    }
    let all = monitor.probes().iter().all(|p| p.mode.is_some()) && started.is_ok();
    match missing_privilege(all) {
        None => report.line(true, "capabilities", "sufficient"),
        // Without them some metrics are missing, or all.
        Some(missing) if started.is_ok() => report.note("capabilities", missing),
        Some(missing) => report.line(false, "capabilities", missing),
    }
    for p in monitor.probes() {
        match p.mode {
            Some(mode) => report.line(true, p.name, format!("would attach as {mode}")),
            None => report.note(p.name, "would not attach, its metrics would be absent"),
        }
        for (mode, why) in &p.failures {
            report.write("", p.name, format!("not by {mode}: {why}"));
        }
    }
    if let Err(e) = started {
        match &e.short {
            none if none.is_empty() => report.line(false, "BPF", e),
            short => report.line(false, "BPF", format!("{}: {short}", e.what)),
        }
    }
    (report.text, !report.failed)
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
        let usual = |have, release| missing_of(have, release, Needs::default());
        assert_eq!(usual(cap::SYS_ADMIN, "4.14.0"), None);
        assert_eq!(usual(cap::BPF | cap::PERFMON, "5.8.0-1-amd64"), None);
        let old = usual(cap::BPF | cap::PERFMON, "5.7.19").unwrap();
        assert!(old.contains("CAP_SYS_ADMIN") && old.contains("--cap-add SYS_ADMIN"), "{old}");
        let half = usual(cap::BPF, "6.12.3").unwrap();
        assert!(half.starts_with("CAP_PERFMON missing: ") && half.contains("setcap cap_bpf,cap_perfmon+ep"), "{half}");
        let none = usual(0, "7.2-rc1").unwrap();
        assert!(none.contains("CAP_BPF and CAP_PERFMON") && none.contains("--cap-add BPF --cap-add PERFMON"), "{none}");
    }

    #[test]
    fn what_the_machine_makes_necessary_is_named_with_its_reason() {
        let tracefs = Needs { tracefs: true, ..Needs::default() };
        let said = missing_of(cap::BPF | cap::PERFMON, "6.18.1", tracefs).unwrap();
        assert!(said.starts_with("CAP_DAC_READ_SEARCH missing (CAP_DAC_READ_SEARCH is to read tracefs"), "{said}");
        assert!(said.contains("setcap cap_bpf,cap_perfmon,cap_dac_read_search+ep"), "{said}");
        assert_eq!(missing_of(cap::BPF | cap::PERFMON | cap::DAC_READ_SEARCH, "6.18.1", tracefs), None);
        let memlock = Needs { memlock: true, ..Needs::default() };
        let said = missing_of(cap::SYS_ADMIN, "5.10.0", memlock).unwrap();
        assert!(said.starts_with("CAP_SYS_RESOURCE missing (") && said.contains("RLIMIT_MEMLOCK"), "{said}");
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(os::version_of("5.10.0-40-cloud-amd64") > os::version_of("5.8"));
        assert_eq!(os::version_of("7.2-rc1"), (7, 2));
        assert_eq!(os::version_of("odd"), (0, 0));
    }
}
