//! The life of the agent, seen from outside: `check`, start, stop, what it leaves behind, what it does with
//! fewer privileges, and that neither clients nor time disturb it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::config::Config;
use ebpf_sidecar::ebpf::os;
use ebpf_sidecar::ebpf::os::cap;
use ebpf_sidecar::host::confine::{self, Role};
use ebpf_sidecar::metrics::own::MEANS;

use common::bpf::{self, assert_gone, assert_nothing_left_since};
use common::{
    Agent, Cgroup, Killed, Metrics, Scoped, TempDir, TestFile, alone, command, free_port, free_ports, output,
    output_of, sys, text, wait_for,
};

/// SIGTERM and SIGINT stop it within this: the bound.
const STOP: Duration = Duration::from_secs(2);

// ---- check ----

/// The lines of a report: mark, what was examined, words.
fn report(o: &Output) -> Vec<(String, String, String)> {
    let text = String::from_utf8(o.stdout.clone()).unwrap();
    text.lines()
        .map(|l| {
            let (mark, rest) = l.split_once(' ').unwrap();
            let (what, words) = rest.trim_start().split_once("  ").or(rest.trim_start().split_once(' ')).unwrap();
            (mark.to_owned(), what.to_owned(), words.trim_start().to_owned())
        })
        .collect()
}

/// The probes that an agent on this machine reports, with how they are attached.
fn probes(health: &serde_json::Value) -> Vec<(String, Option<String>)> {
    let modules = health["modules"].as_array().unwrap();
    let probes = modules.iter().flat_map(|m| m["probes"].as_array().unwrap());
    probes.map(|p| (p["name"].as_str().unwrap().to_owned(), p["mode"].as_str().map(str::to_owned))).collect()
}

fn health(agent: &Agent) -> serde_json::Value {
    serde_json::from_str(&agent.get("/health").body).unwrap()
}

#[test]
fn check_examines_everything_and_leaves_nothing() {
    need_bpf!("check_examines_everything_and_leaves_nothing");
    let _alone = alone();
    let (before, mounts) = (bpf::existing(), tracing_mounts());
    let [port, grpc_port] = free_ports().map(|p| p.to_string());
    let o = output(&["check"], &[("SERVER_HTTP_PORT", &port), ("SERVER_GRPC_PORT", &grpc_port)]);
    assert_eq!(tracing_mounts(), mounts);
    assert_nothing_left_since(&before);
    let lines = report(&o);
    assert!(o.status.success() && o.stderr.is_empty(), "{o:?}");
    assert!(lines.iter().all(|l| ["ok", "warn", ""].contains(&l.0.as_str())), "{lines:?}");
    let words = |what: &str| &lines.iter().find(|l| l.1 == what).unwrap_or_else(|| panic!("{what}: {lines:?}")).2;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(words("kernel"), release.trim());
    for what in ["BTF", "tracefs", "lockdown", "capabilities", "cgroup v2", "confined", "scope"] {
        assert!(!words(what).is_empty());
    }
    assert!(words("HTTP port").contains(&port) && words("gRPC port").contains(&grpc_port));

    // As it says, so the agent does.
    let agent = Agent::start(&[]);
    for (name, mode) in probes(&health(&agent)) {
        match mode {
            Some(mode) => assert_eq!(words(&name), &format!("would attach as {mode}")),
            None => assert!(words(&name).starts_with("would not attach")),
        }
        assert!(lines.iter().filter(|l| l.1 == name).skip(1).all(|l| l.2.starts_with("not by ")), "{lines:?}");
    }
}

#[test]
fn check_names_the_port_that_is_taken() {
    need_bpf!("check_names_the_port_that_is_taken");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let free = free_port().to_string();
    for (http, grpc, what) in [(&port, &free, "HTTP port"), (&free, &port, "gRPC port")] {
        let address = "127.0.0.1";
        let http = [("SERVER_HTTP_PORT", http.as_str()), ("SERVER_HTTP_ADDRESS", address)];
        let grpc = [("SERVER_GRPC_PORT", grpc.as_str()), ("SERVER_GRPC_ADDRESS", address)];
        let o = output(&["check"], &[http, grpc].concat());
        let failed: Vec<_> = report(&o).into_iter().filter(|l| l.0 == "FAIL").collect();
        assert_eq!(o.status.code(), Some(1));
        assert!(failed.len() == 1 && failed[0].1 == what, "{failed:?}");
        assert!(failed[0].2.contains(&format!("127.0.0.1:{port}")) && failed[0].2.contains("in use"), "{failed:?}");
    }
}

#[test]
fn without_btf_it_says_why_not_in_a_better_way() {
    need_bpf!("without_btf_it_says_why_not_in_a_better_way");
    let _alone = alone();
    let agent = Agent::start(&[("COLLECTOR_EBPF_BTF", "off")]);
    let health = health(&agent);
    for probe in health["modules"][0]["probes"].as_array().unwrap() {
        let mode = probe["mode"].as_str();
        // Reads have no way where there are no kprobes.
        assert!(matches!(mode, Some("kprobe" | "tracepoint")) || probe["name"] == "cache_read", "{probe}");
        let failures = probe["failures"].as_array().unwrap().iter();
        let better: Vec<_> = failures.filter(|f| f["mode"] == "fexit" || f["mode"] == "raw_tracepoint").collect();
        assert!(!better.is_empty(), "{probe}");
        for way in better {
            let why = way["reason"].as_str().unwrap();
            let no_btf = why.ends_with("it needs the kernel's BTF: collector.ebpf.btf is off");
            assert!(no_btf || why.contains("preemptible") || why.contains("kernels before 5.12"), "{why}");
        }
    }
}

// ---- health ----

#[test]
fn health_asks_the_running_agent() {
    need_bpf!("health_asks_the_running_agent");
    let agent = Agent::start(&[]);
    let (port, address) = (agent.port.to_string(), format!("127.0.0.1:{}", agent.port));
    let truth = health(&agent)["status"].as_str().unwrap().to_owned();
    let asked = |args: &[&str], settings: &[(&str, &str)]| {
        let o = output(args, settings);
        let (out, err) = (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap());
        assert_eq!(format!("{out}{err}").lines().count(), 1, "{out}{err}");
        (o.status.code(), out, err)
    };
    // The address of the configuration listens everywhere; it is asked on loopback.
    for (args, settings) in [
        (&["health", "--address", &address][..], &[][..]),
        (&["health"], &[("SERVER_HTTP_PORT", port.as_str())]),
        (&["health"], &[("SERVER_HTTP_PORT", port.as_str()), ("SERVER_HTTP_ADDRESS", "127.0.0.1")]),
    ] {
        let (code, out, err) = asked(args, settings);
        assert!(code == Some(0) && out.starts_with(&format!("{truth}: ")), "{code:?} {out} {err}");
    }

    // One that hangs is not waited for.
    sys::kill(agent.child.id(), libc::SIGSTOP);
    let (code, out, err) = asked(&["health", "--address", &address], &[]);
    sys::kill(agent.child.id(), libc::SIGCONT);
    assert!(code == Some(1) && out.is_empty() && err.contains("unreachable") && err.contains(&address), "{err}");
    drop(agent);
    let (code, _, err) = asked(&["health", "--address", &address], &[]);
    assert!(code == Some(1) && err.contains("unreachable"), "{err}");
}

#[test]
fn health_of_a_bad_configuration_is_bad_usage() {
    let o = output(&["health"], &[("SERVER_HTTP_PORT", "0")]);
    assert_eq!(o.status.code(), Some(2));
}

// ---- memory ----

/// As many collections as the default history has at an interval of a second, with ever new processes in their rows.
#[test]
fn a_full_history_stays_small() {
    need_bpf!("a_full_history_stays_small");
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "10ms"), ("COLLECTOR_HISTORY", "9s")]);
    let f = TestFile::new("history", 1);
    let busy = |collections: f64| {
        let sequence = || s.agent.metrics().get("ebpf_sidecar_snapshot_sequence");
        let end = sequence() + collections;
        while sequence() < end {
            let child = sys::fork_one_fadvise(f.file.as_raw_fd());
            sys::wait_for(child);
        }
    };
    // What serving takes is there already.
    busy(50.0);
    let before = s.agent.own_kib();
    busy(1000.0);
    let after = s.agent.own_kib();
    let rows = s.agent.stats()["fadvise"]["process_stats"].as_array().map_or(0, Vec::len);
    println!("MEMORY of the history: {before} to {after} KiB resident, {rows} rows in the last of 900");
    assert!(rows >= 128, "{rows}");
    assert!(after <= before + 4 * 1024, "{before} to {after} KiB");
}

// ---- threads ----

/// Each thread is in the table of docs/development.md, which has its reason.
#[test]
fn every_thread_has_its_reason() {
    need_bpf!("every_thread_has_its_reason");
    let _alone = alone();
    let docs = include_str!("../docs/development.md");
    let table = docs.split("\n## Threads\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().filter(|l| l.starts_with("| ")).skip(1).map(|l| l.split(" | ").collect()).collect();
    let documented = |parts: &[&str]| -> BTreeMap<String, usize> {
        let there = rows.iter().filter(|r| r[2] == "always" || r[2].split(", ").any(|part| parts.contains(&part)));
        there.map(|r| (r[0].trim_start_matches("| ").to_owned(), r[1].parse().unwrap())).collect()
    };
    let running = |agent: &Agent| {
        let mut names = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap() {
            // One that has just ended has no name.
            let Ok(name) = fs::read_to_string(task.unwrap().path().join("comm")) else { continue };
            *names.entry(name.trim_end().to_owned()).or_default() += 1;
        }
        // As many as with two CPUs; a machine with more has up to 14 more.
        names.entry("grpc-core".into()).and_modify(|n| *n = if (6..=20).contains(n) { 6 } else { *n });
        names
    };
    // Of a server that is not there.
    let exporter = [("EXPORT_TYPE", "banyandb"), ("EXPORT_BANYANDB_ENDPOINT", "127.0.0.1:1")];
    // Emulated machines have some agents without gRPC.
    let grpc = if std::env::var_os("TEST_GRPC").is_none_or(|v| v != "false") { "gRPC" } else { "" };
    let http = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let over_http =
        [("EXPORT_TYPE", "otlp"), ("EXPORT_OTLP_PROTOCOL", "http"), ("EXPORT_OTLP_ENDPOINT", http.as_str())];
    let cases = [
        (documented(&[grpc]), Agent::start(&[])),
        (documented(&[grpc, "exporter"]), Agent::start(&exporter)),
        (documented(&[grpc, "exporter over HTTP"]), Agent::start(&over_http)),
    ];
    for (expected, agent) in cases {
        let deadline = Instant::now() + Duration::from_secs(60);
        while running(&agent) != expected {
            assert!(Instant::now() < deadline, "{:?}, not {expected:?}", running(&agent));
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The address of a server that answers each request with this.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                while stream.read(&mut [0; 64 << 10]).is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

// ---- a pod as the scope ----

#[test]
fn a_pod_is_counted_by_its_uid() {
    need_bpf!("a_pod_is_counted_by_its_uid");
    let _alone = alone();
    // As kubelet's systemd driver makes them, for a uid that no other run of this test has.
    let uid = format!("0b1c2d3e-aaaa-bbbb-cccc-{:012x}", std::process::id());
    let (slice, own) = (Cgroup::new(), uid.replace('-', "_"));
    let pod = slice.child(&format!("kubepods-burstable-pod{own}.slice"));
    let container = pod.child("cri-containerd-0123.scope");
    let agent = Agent::start(&[("COLLECTOR_SCOPE_POD_UID", &uid), ("COLLECTOR_INTERVAL", "100ms")]);
    let scope = format!("cgroup:{}", pod.path.display());
    assert_eq!(agent.stats()["scope"], scope.as_str());
    assert!(agent.log().contains(&format!("counting {scope} every")), "{}", agent.log());

    let f = TestFile::cold("pod", 2 * common::MIB);
    let (outside, _) = agent.during(|| common::read_all(&f.file, 4096));
    assert_eq!(outside.misses(), 0.0, "{}", outside.moved());
    f.drop_cache();
    container.enter();
    let (inside, _) = agent.during(|| common::read_all(&f.file, 4096));
    container.leave();
    assert_eq!(inside.misses_of(512.0), 512.0, "{}", inside.moved());

    // The own pod is not known outside of Kubernetes.
    let auto = Agent::start(&[("COLLECTOR_SCOPE_POD_UID", "auto")]);
    assert_eq!(auto.stats()["scope"], "host");
    let words = "counting host, since the own pod is not known: this is no Kubernetes pod";
    assert!(auto.log().contains(words), "{}", auto.log());

    let o = output(&["run"], &[("COLLECTOR_SCOPE_POD_UID", "0b1c2d3e")]);
    let said = String::from_utf8(o.stderr).unwrap();
    assert_eq!(o.status.code(), Some(2), "{said}");
    for part in
        ["COLLECTOR_SCOPE_POD_UID", "\"0b1c2d3e\"", "no cgroup of pod 0b1c2d3e under", "allowed: auto, or the uid"]
    {
        assert!(said.contains(part), "{said}");
    }
}

// ---- what is attached ----

/// With no configuration: what is attached, and how. Debian's kernels have everything that the agent can use.
#[test]
fn by_default_it_attaches_in_the_best_way() {
    need_bpf!("by_default_it_attaches_in_the_best_way");
    let _alone = alone();
    let agent = Agent::start(&[]);
    let (said, attached) = (health(&agent), probes(&health(&agent)));
    assert!(attached.len() >= 8, "{said}");
    common::tell_attached(&agent.metrics());
    assert!(attached.iter().any(|(_, mode)| mode.is_some()), "{said}");
    if common::sized(true, false) {
        return;
    }
    assert_eq!(said["status"], "healthy", "{said}");
    for probe in said["modules"][0]["probes"].as_array().unwrap() {
        let at_function =
            ["fadvise", "read_latency", "io_wait", "cache_read"].contains(&probe["name"].as_str().unwrap());
        // What misses events on a preemptible kernel comes last there.
        let failures = probe["failures"].to_string();
        let passed_over = ["this kernel is preemptible", "this kernel has none", "kernels before 5.12"]
            .iter()
            .any(|why| failures.contains(why));
        let best = match (at_function, passed_over) {
            (true, false) => "fexit",
            (true, true) => "kprobe",
            (false, false) => "raw_tracepoint",
            (false, true) => "tracepoint",
        };
        assert_eq!(probe["mode"], best, "{probe}");
    }
}

/// Programs that a kernel refuses: reads by tracepoint before 6.12.
#[test]
fn a_refused_program_is_explained_wherever_one_looks() {
    need_bpf!("a_refused_program_is_explained_wherever_one_looks");
    let _alone = alone();
    let port = free_port().to_string();
    let settings = [
        ("COLLECTOR_EBPF_ATTACH", "tracepoint"),
        ("COLLECTOR_PROBES", "cache_read,cache_fill"),
        ("LOG_LEVEL", "debug"),
    ];
    let agent = Agent::start(&settings);
    let said = health(&agent);
    let read = said["modules"][0]["probes"].as_array().unwrap().iter().find(|p| p["name"] == "cache_read").unwrap();
    if read["attached"] == true || !os::has_btf() {
        let why = "this kernel accepts every program, or has no BTF, without which that program is not tried";
        return common::skipped("a_refused_program_is_explained_wherever_one_looks", why);
    }
    let reason = read["failures"][0]["reason"].as_str().unwrap();
    let mut check = command();
    check.args(["check", "--log-level", "debug"]);
    let checked = output_of(check, &[&settings[..], &[("SERVER_HTTP_PORT", &port)]].concat());
    let (at_length, lines) = (String::from_utf8(checked.stderr.clone()).unwrap(), report(&checked));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let program = format!("load program raw_read on Linux {}", release.trim());
    for log in [at_length, agent.log()] {
        let refused = log.lines().find(|l| l.contains("DEBUG not by raw_tracepoint: ")).unwrap();
        let meaning = "nothing to do if the probe is attached in another way";
        for part in [&program, "the kernel's verifier refused it: ", meaning] {
            assert!(refused.contains(part), "{part} is not in {refused}");
        }
        for dump in ["R10=", "processed"] {
            assert!(!refused.contains(dump), "{dump} is in {refused}");
        }
    }
    println!("{reason}");
    assert!(reason.starts_with("refused by the verifier: ") && reason.chars().count() <= 84, "{reason}");
    let line = format!("not by raw_tracepoint: {reason}");
    assert!(lines.iter().any(|l| l.1 == "cache_read" && l.2 == line), "{lines:?}");
    assert!(said["message"].as_str().unwrap().contains(reason), "{said}");
    assert!(agent.log().contains(&format!("WARN  probe cache_read: {line}")), "{}", agent.log());
}

// ---- privileges ----

/// A copy of the binary that any user may run.
fn binary_for_all(dir: &TempDir) -> PathBuf {
    let copy = dir.path.join("ebpf-sidecar");
    fs::copy(common::binary(), &copy).unwrap();
    copy
}

/// `setpriv` of util-linux, starting the binary as this user with these capabilities and no others.
fn as_user(uid: u32, capabilities: &[&str], binary: &Path) -> Vec<String> {
    let set: String = ["-all".to_owned()]
        .into_iter()
        .chain(capabilities.iter().map(|c| format!("+{c}")))
        .collect::<Vec<_>>()
        .join(",");
    // By its path, since a busybox shell has one of its own that cannot do this.
    let paths = std::env::var("PATH").unwrap_or_default();
    let setpriv = paths.split(':').map(|dir| Path::new(dir).join("setpriv")).find(|p| p.exists());
    let setpriv = text(&setpriv.expect("setpriv of util-linux")).to_owned();
    let mut words = vec![setpriv, format!("--inh-caps={set}"), format!("--bounding-set={set}")];
    if uid != 0 {
        words.push(format!("--ambient-caps={set}"));
        words.extend([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()]);
    }
    words.push(text(binary).to_owned());
    words
}

/// The command of these words, with nothing of the caller's environment that configures the agent.
fn command_of(words: &[String]) -> Command {
    let mut c = Command::new(&words[0]);
    c.args(&words[1..]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EBPF_SIDECAR_") {
            c.env_remove(name);
        }
    }
    c
}

const NOBODY: u32 = 65534;

/// Before, all of it takes CAP_SYS_ADMIN.
const CAP_BPF_SINCE: (u32, u32) = (5, 8);

#[test]
fn without_privilege_it_says_which_and_how() {
    need_bpf!("without_privilege_it_says_which_and_how");
    if os::kernel_version() < CAP_BPF_SINCE {
        return common::skipped("without_privilege_it_says_which_and_how", "this kernel has no CAP_BPF");
    }
    let dir = TempDir::new("nobody");
    let binary = binary_for_all(&dir);
    let port = free_port().to_string();
    let before = bpf::existing();
    // Before 5.11 the maps count against a limit.
    let (why, cap, flag, unit) = match counts_memlock() {
        true => (
            " and CAP_SYS_RESOURCE missing (CAP_SYS_RESOURCE is to lift RLIMIT_MEMLOCK, which BPF maps count against \
             before 5.11)",
            ",cap_sys_resource",
            " --cap-add SYS_RESOURCE",
            " CAP_SYS_RESOURCE",
        ),
        false => (" missing", "", "", ""),
    };
    for uid in [NOBODY, 0] {
        for (command, has, lacking) in [
            ("check", &[][..], "CAP_BPF and CAP_PERFMON"),
            ("run", &[], "CAP_BPF and CAP_PERFMON"),
            ("run", &["perfmon"], "CAP_BPF"),
            ("run", &["bpf"], "CAP_PERFMON"),
        ] {
            let mut c = command_of(&confined(uid, has, NO_TRACEFS, &binary));
            c.arg(command);
            let o = output_of(c, &[("SERVER_HTTP_PORT", &port), ("SERVER_HTTP_ADDRESS", "127.0.0.1")]);
            let said = [o.stdout, o.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert_eq!(o.status.code(), Some(1), "{command} as {uid}: {said}");
            // All of them in the commands: setcap replaces what was granted before.
            let hint = format!(
                "{lacking}{why}: run as root, or grant it: setcap cap_bpf,cap_perfmon{cap}+ep ebpf-sidecar; docker run \
                 --cap-add BPF --cap-add PERFMON{flag}; systemd AmbientCapabilities=CAP_BPF CAP_PERFMON{unit}"
            );
            assert!(said.contains(&hint), "{command} as {uid} with {has:?}: {said}");
            assert!(!said.contains("panic"), "{said}");
        }
    }
    // Where tracefs is there and only root may read it, one more, which may be needed.
    let mut c = command_of(&confined(NOBODY, &["bpf"], TRACEFS, &binary));
    c.arg("run");
    let said = output_of(c, &[("SERVER_HTTP_PORT", &port), ("SERVER_HTTP_ADDRESS", "127.0.0.1")]).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("CAP_PERFMON and CAP_DAC_READ_SEARCH"), "{said}");
    assert!(said.contains("CAP_DAC_READ_SEARCH is to read tracefs as a user other than root"), "{said}");
    assert!(said.contains("setcap cap_bpf,cap_perfmon,cap_dac_read_search"), "{said}");
    assert_nothing_left_since(&before);
}

/// Everything that could be asked for, with its bit.
const CAPABILITIES: [(&str, u32); 8] = [
    ("sys_admin", 21),
    ("sys_ptrace", 19),
    ("syslog", 34),
    ("dac_override", 1),
    ("sys_resource", 24),
    ("dac_read_search", 2),
    ("perfmon", 38),
    ("bpf", 39),
];

/// Whether BPF maps count against RLIMIT_MEMLOCK: before 5.11.
fn counts_memlock() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut number = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (number.next(), number.next()) < (Some(5), Some(11))
}

const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// For each way of attaching, the capabilities that a user other than root needs: with them everything attaches that
/// does with all, without any one of them something is missing, and an agent with no others counts. Root needs the
/// same but for those that pass over the permissions of files.
#[test]
fn the_fewest_capabilities() {
    need_bpf!("the_fewest_capabilities");
    if os::kernel_version() < CAP_BPF_SINCE {
        return common::skipped("the_fewest_capabilities", "this kernel has no CAP_BPF");
    }
    let _alone = alone();
    let dir = TempDir::new("fewest");
    let binary = binary_for_all(&dir);
    let port = free_port().to_string();
    // Those that this process may hand on.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap().trim();
    let bounding = u64::from_str_radix(bounding, 16).unwrap();
    let everything: Vec<&str> = CAPABILITIES.iter().filter(|c| bounding & (1 << c.1) != 0).map(|c| c.0).collect();

    // Above 2, which is an addition of Debian's and Ubuntu's kernels, perf events take CAP_SYS_ADMIN.
    let paranoid: i32 = fs::read_to_string(PARANOID).unwrap().trim().parse().unwrap();
    // Each takes some eight starts of the agent: all of them on the oldest of those kernels, and where time is no matter.
    let emulated = [("fentry", 3), ("kprobe", 2), ("kprobe", 3), ("tracepoint", 2)];
    let all = counts_memlock() || std::env::var_os("TEST_FULL").is_some();
    let emulated = if all { &emulated[..] } else { &emulated[..2] };
    let here = [("auto", paranoid), ("kprobe", paranoid), ("tracepoint", paranoid)];
    let mut told = Vec::new();
    for (attach, paranoid) in common::sized(&here[..], emulated) {
        if common::sized(false, true) {
            fs::write(PARANOID, paranoid.to_string()).unwrap();
        }
        let settings = [("SERVER_HTTP_PORT", port.as_str()), ("COLLECTOR_EBPF_ATTACH", attach)];
        let attaches_as = |uid: u32, capabilities: &[&str]| -> Vec<(String, String)> {
            let mut c = command_of(&confined(uid, capabilities, TRACEFS, &binary));
            c.arg("check");
            let lines = report(&output_of(c, &settings)).into_iter();
            lines.filter_map(|l| Some((l.1, l.2.strip_prefix("would attach as ")?.to_owned()))).collect()
        };
        let attaches = |capabilities: &[&str]| attaches_as(NOBODY, capabilities);
        let all = attaches(&everything);
        assert!(!all.is_empty(), "{attach}: nothing attaches");
        let way = |probe: &str| all.iter().find(|(name, _)| name == probe).map(|(_, way)| way.as_str());
        let any = |way: &str| all.iter().any(|(_, w)| w == way);
        // Kprobes and tracepoints by number are perf events.
        let perf = any("kprobe") || any("tracepoint");
        let mut fewest = match perf && *paranoid > 2 {
            true => vec!["sys_admin"],
            false => vec!["bpf", "perfmon"],
        };
        // In tracefs the event of fadvise's kprobe is defined, and others are looked up.
        match way("fadvise") {
            Some("kprobe") => fewest.push("dac_override"),
            _ if any("tracepoint") => fewest.push("dac_read_search"),
            _ => {}
        }
        if counts_memlock() {
            fewest.push("sys_resource");
        }
        assert_eq!(attaches(&fewest), all, "{attach}, perf_event_paranoid {paranoid}: {fewest:?} are not enough");
        for needed in &fewest {
            let others: Vec<&str> = fewest.iter().copied().filter(|c| c != needed).collect();
            assert_ne!(attaches(&others), all, "{attach}, perf_event_paranoid {paranoid}: {needed} is not needed");
        }
        // Root owns tracefs.
        let of_root: Vec<&str> = fewest.iter().copied().filter(|c| !c.starts_with("dac_")).collect();
        assert_eq!(attaches_as(0, &of_root), all, "{attach}, perf_event_paranoid {paranoid}: root with {of_root:?}");
        let when = if perf { format!(" (perf_event_paranoid {paranoid})") } else { String::new() };
        told.push(format!("{attach}{when} {}", fewest.join("+")));

        let cgroup = Cgroup::new();
        let scope = [
            ("COLLECTOR_INTERVAL", "100ms"),
            ("COLLECTOR_SCOPE_CGROUP", text(&cgroup.path)),
            ("COLLECTOR_EBPF_ATTACH", attach),
        ];
        let agent = start_confined(NOBODY, &fewest, TRACEFS, &binary, &scope);
        cgroup.enter();
        let f = TestFile::cold("fewest", 4 * common::MIB);
        let (d, _) = agent.during(|| common::read_all(&f.file, common::MIB));
        assert_eq!((d.attempts(1024.0), d.misses_of(1024.0)), (1024.0, 1024.0), "{attach};{}", d.moved());
        let there = f.resident() as f64;
        let (d, ()) = agent.during(|| f.drop_cache());
        assert_eq!(d.evictions_of("fadvise", there), there, "{attach};{}", d.moved());
        let calls = way("fadvise").map(|_| d.of("ebpf_fadvise_calls_total"));
        assert!(calls.is_none_or(|n| n >= 1.0), "{attach};{}", d.moved());

        // A cgroup that is made anew is followed with no more than that.
        let path = cgroup.path.clone();
        drop(cgroup);
        let cgroup = Cgroup::at(path);
        agent.settled();
        cgroup.enter();
        let (d, _) = agent.during(|| common::read_all(&f.file, common::MIB));
        assert_eq!((d.attempts(1024.0), d.misses_of(1024.0)), (1024.0, 1024.0), "{attach}, anew;{}", d.moved());
    }
    println!("CAPABILITIES {}", told.join("; "));
}

/// Starts an agent as `uid` with CAP_BPF and CAP_PERFMON, in a mount namespace of its own where tracefs is what
/// `tracefs` (a shell command) makes it.
fn start_confined(uid: u32, capabilities: &[&str], tracefs: &str, binary: &Path, settings: &[(&str, &str)]) -> Agent {
    Agent::start_with(command_of(&confined(uid, capabilities, tracefs, binary)), settings)
}

fn confined(uid: u32, capabilities: &[&str], tracefs: &str, binary: &Path) -> Vec<String> {
    let mut words: Vec<String> =
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec"].map(str::to_owned).into();
    words.push(format!("{tracefs}; exec \"$@\""));
    words.push("sh".to_owned());
    words.extend(as_user(uid, capabilities, binary));
    words
}

const NO_TRACEFS: &str =
    "for d in /sys/kernel/debug /sys/kernel/tracing; do mount -t tmpfs -o ro,size=4k none $d; done";
const TRACEFS: &str = "mount -t tmpfs none /sys/kernel/debug; mount -t tracefs tracefs /sys/kernel/tracing || \
                       ls /sys/kernel/tracing/events >/dev/null";

/// Whether fadvise is attached by the tracepoint that tracefs has; else it tells that `test` is skipped.
fn needs_tracefs(modes: &[(String, Option<String>)], test: &str) -> bool {
    let needs = modes.iter().all(|(name, mode)| name != "fadvise" || mode.as_deref() == Some("tracepoint"));
    if !needs {
        common::skipped(test, "fadvise does not need tracefs on this kernel");
    }
    needs
}

/// The agent without tracefs and without CAP_SYS_ADMIN: fadvise, which needs a tracepoint by number, is missing;
/// CAP_BPF and CAP_PERFMON suffice for the rest.
#[test]
fn degraded_without_tracefs() {
    need_bpf!("degraded_without_tracefs");
    let _alone = alone();
    let dir = TempDir::new("degraded");
    let binary = binary_for_all(&dir);
    let mounts = tracing_mounts();
    let whole = Agent::start(&[]);
    let modes = probes(&health(&whole));
    if !needs_tracefs(&modes, "degraded_without_tracefs") {
        return;
    }
    for uid in [0, NOBODY] {
        let cgroup = Cgroup::new();
        let settings = [("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&cgroup.path))];
        let agent = start_confined(uid, &["bpf", "perfmon"], NO_TRACEFS, &binary, &settings);
        cgroup.enter();

        let answer = agent.get("/health");
        assert_eq!(answer.status, 200, "degraded is no reason to be restarted");
        let said = health(&agent);
        assert_eq!(said["status"], "degraded", "{said}");
        let message = said["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("1 of {} probes not attached: fadvise (tracepoint: ", modes.len())),
            "{message}"
        );
        assert!(message.contains("tracefs") && message.contains("mount -t tracefs"), "{message}");
        let probe = said["modules"][0]["probes"].as_array().unwrap().iter().find(|p| p["name"] == "fadvise").unwrap();
        assert_eq!((&probe["attached"], &probe["mode"]), (&false.into(), &serde_json::Value::Null));
        let failure = probe["failures"].as_array().unwrap().last().unwrap();
        assert!(failure["reason"].as_str().unwrap().contains("tracefs"), "{probe}");
        assert!(agent.log().contains("WARN  probe fadvise could not be attached"), "{}", agent.log());

        // Absent, not zero.
        let metrics = agent.get("/metrics").body;
        assert!(!metrics.contains("ebpf_fadvise"), "{metrics}");
        assert!(agent.stats().get("fadvise").is_none());
        assert_eq!(agent.stats()["status"], "degraded");
        let m = agent.metrics();
        for (name, mode) in &modes {
            let mode = mode.as_deref().filter(|_| name != "fadvise").unwrap_or("none");
            let series = format!("ebpf_sidecar_probe_attached{{probe=\"{name}\",mode=\"{mode}\"}}");
            assert_eq!(m.get(&series), f64::from(name != "fadvise"), "{series}");
        }

        // All the others count.
        let f = TestFile::cold("degraded", 4 * common::MIB);
        let (d, _) = agent.during(|| common::read_all(&f.file, common::MIB));
        assert_eq!((d.attempts(1024.0), d.misses_of(1024.0)), (1024.0, 1024.0), "as {uid};{}", d.moved());
        let there = f.resident() as f64;
        let (d, ()) = agent.during(|| f.drop_cache());
        assert_eq!(d.evictions_of("fadvise", there), there, "as {uid};{}", d.moved());
        println!("as user {uid}: CAP_BPF and CAP_PERFMON suffice for all but fadvise");
    }
    assert_eq!(tracing_mounts(), mounts);
}

/// Where tracefs is mounted, the host's root may use it with the same two capabilities; others need one more.
#[test]
fn what_tracefs_takes() {
    need_bpf!("what_tracefs_takes");
    let _alone = alone();
    let modes = probes(&health(&Agent::start(&[])));
    if !needs_tracefs(&modes, "what_tracefs_takes") {
        return;
    }
    if tracing_mounts().iter().any(|m| m.contains("tracefs") && (m.contains("mode=") || m.contains("gid="))) {
        common::skipped("what_tracefs_takes", "tracefs is mounted for others than root, too");
        return;
    }
    let dir = TempDir::new("tracefs");
    let binary = binary_for_all(&dir);
    for (uid, capabilities, attached) in [
        (0, &["bpf", "perfmon"][..], true),
        (NOBODY, &["bpf", "perfmon", "dac_read_search"], true),
        (NOBODY, &["bpf", "perfmon"], false),
    ] {
        let agent = start_confined(uid, capabilities, TRACEFS, &binary, &[]);
        let said = health(&agent);
        let status = if attached { "healthy" } else { "degraded" };
        assert_eq!(said["status"], status, "as {uid} with {capabilities:?}: {said}");
        if !attached {
            let message = said["message"].as_str().unwrap();
            assert!(message.contains("CAP_DAC_READ_SEARCH") && !message.contains("mount"), "{message}");
        }
    }
}

// ---- stopping ----

/// What is mounted for tracing, as this process sees it.
fn tracing_mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .filter(|l| l.contains("tracefs") || l.contains("debugfs") || l.contains("bpf"))
        .map(str::to_owned)
        .collect()
}

/// Sees that a stop takes no longer than it may. Detaching waits for grace periods of the kernel, which other
/// programs can hold up on a machine that is saturated: so the best of three counts.
#[track_caller]
fn assert_in_time(when: &str, stop: impl Fn() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 3 {
        took.push(stop());
        if took[took.len() - 1] < STOP {
            return;
        }
    }
    panic!("{when}: stopped after {took:?}");
}

/// Sends the signal, and sees that the agent ends with 0 and that nothing of it is left. Returns how long it
/// took to end.
#[track_caller]
fn stop(mut agent: Agent, signal: i32, when: &str) -> Duration {
    let held = bpf::held_by(agent.child.id());
    assert!(held.len() >= 10 && held.is_subset(&bpf::existing()), "{when}: it holds {held:?}");
    let begun = Instant::now();
    sys::kill(agent.child.id(), signal);
    let status = wait_for(&mut agent.child, Duration::from_secs(30));
    let took = begun.elapsed();
    println!("signal {signal}, {when}: {} objects, ended after {took:?}", held.len());
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{when}: {}", agent.log());
    assert!(!agent.log().contains("panic") && !agent.log().contains("ERROR"), "{when}: {}", agent.log());
    assert_gone(&held);
    TcpListener::bind(("127.0.0.1", agent.port)).expect("the port is free again");
    took
}

#[test]
fn signals_stop_it_and_nothing_stays() {
    need_bpf!("signals_stop_it_and_nothing_stays");
    let _alone = alone();
    let mounts = tracing_mounts();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let when = "in an interval of an hour";
        assert_in_time(when, || {
            let agent = Agent::start(&[("COLLECTOR_INTERVAL", "1h")]);
            assert_eq!(tracing_mounts(), mounts, "its mount shows");
            stop(agent, signal, when)
        });

        let when = "collecting every 20 ms";
        assert_in_time(when, || stop(Agent::start(&[("COLLECTOR_INTERVAL", "20ms")]), signal, when));

        let when = "under 50 scrapers";
        assert_in_time(when, || {
            let agent = Agent::start(&[]);
            let (port, served) = (agent.port, AtomicBool::new(false));
            thread::scope(|scope| {
                for _ in 0..50 {
                    scope.spawn(|| scrape_until_it_ends(port, &served));
                }
                agent.wait(|_| served.load(Ordering::Relaxed));
                stop(agent, signal, when)
            })
        });
    }
    assert_eq!(tracing_mounts(), mounts);
}

/// Waits until the agent's log says so, behind its first `before` bytes.
fn until_it_says(agent: &Agent, before: usize, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !agent.log()[before..].contains(words) {
        assert!(Instant::now() < deadline, "it does not say {words:?}:\n{}", agent.log());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Has the agent read its configuration again, and waits until it has said all this. What it has said meanwhile.
fn reload(agent: &Agent, said: &[&str]) -> String {
    let before = agent.log().len();
    sys::kill(agent.child.id(), libc::SIGHUP);
    for words in said {
        until_it_says(agent, before, words);
    }
    agent.log()[before..].to_owned()
}

// ---- what it gives up ----

/// What is said of each thread of the agent, by its name.
fn threads_of(pid: u32, line: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let of = |path: PathBuf| {
        let status = fs::read_to_string(path.join("status")).ok()?; // it may have ended
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        Some((field("Name:"), field(line)))
    };
    tasks.filter_map(of).collect()
}

#[test]
fn every_thread_gives_up_what_it_does_not_need() {
    need_bpf!("every_thread_gives_up_what_it_does_not_need");
    let missing: Vec<&str> = confine::missing().into_iter().map(|(what, _)| what).collect();
    assert!(missing.iter().all(|what| *what == "landlock"), "seccomp is in every kernel: {missing:?}");
    let expected: Vec<&str> = MEANS.into_iter().filter(|what| !missing.contains(what)).collect();
    let zero = "0".repeat(16);
    // From 5.19 on a descriptor is enough to read a map.
    let of_collector = match os::kernel_version() {
        (5, 19..) | (6.., _) => zero.clone(),
        kernel => format!("{:016x}", if kernel >= CAP_BPF_SINCE { cap::BPF } else { cap::SYS_ADMIN }),
    };
    for confine in ["auto", "on"] {
        if confine == "on" && !missing.is_empty() {
            let o = output(&[], &[("COLLECTOR_CONFINE", "on")]);
            let said = String::from_utf8_lossy(&o.stderr).into_owned();
            assert_eq!(o.status.code(), Some(1), "{said}");
            assert!(said.contains("collector.confine is on, and here is no landlock (from Linux 5.13 on"), "{said}");
            continue;
        }
        let settings = [("COLLECTOR_CONFINE", confine), ("EXPORT_TYPE", "banyandb"), ("COLLECTOR_INTERVAL", "1h")];
        let mut agent = Agent::start(&settings);
        until_it_says(&agent, 0, "capabilities kept: ");
        let pid = agent.child.id();
        for (name, capabilities) in threads_of(pid, "CapEff:").into_iter().chain(threads_of(pid, "CapPrm:")) {
            assert_eq!(capabilities, if name == "collector" { &*of_collector } else { &*zero }, "{name}");
        }
        for (name, value) in threads_of(pid, "NoNewPrivs:") {
            assert_eq!(value, "1", "{name}");
        }
        for (name, value) in threads_of(pid, "Seccomp:") {
            assert_eq!(value, "2", "{name}");
        }
        println!("{confine}: {} threads", threads_of(pid, "Name:").len());
        let metrics = agent.metrics();
        for what in MEANS {
            let value = metrics.get(&format!("ebpf_sidecar_confined{{by=\"{what}\"}}"));
            assert_eq!(value, f64::from(u8::from(expected.contains(&what))), "{what}");
        }
        assert_eq!(metrics.get("ebpf_sidecar_system_calls_refused_total"), 0.0, "{}", agent.log());
        assert_eq!(health(&agent)["confined"], serde_json::json!(expected));
        assert!(agent.log().contains(&format!("confined by {}", expected.join(", "))), "{}", agent.log());
        assert_eq!(agent.log().contains("here is no landlock"), !missing.is_empty(), "{}", agent.log());
        sys::kill(pid, libc::SIGTERM);
        wait_for(&mut agent.child, Duration::from_secs(60)).unwrap_or_else(|| panic!("{}", agent.log()));
        assert!(!agent.log().contains("refused: "), "{}", agent.log());
    }
    let agent = Agent::start(&[("COLLECTOR_CONFINE", "off")]);
    assert!(threads_of(agent.child.id(), "Seccomp:").iter().all(|(_, value)| value == "0"));
    assert_eq!(health(&agent)["confined"], serde_json::json!([]));
}

/// A thread of this process, confined as those of the agent are, that tries what none of them does.
#[test]
fn what_a_confined_thread_tries_is_refused_and_told() {
    need_bpf!("what_a_confined_thread_tries_is_refused_and_told");
    let (named, other) = (TempDir::new("named"), TempDir::new("other"));
    let (config, secret) = (named.path.join("config.yaml"), other.path.join("secret"));
    fs::write(&config, "").unwrap();
    fs::write(&secret, "").unwrap();
    let landlock = confine::missing().is_empty();
    confine::plan(&Config::default(), Some(&config)).unwrap();
    const BPF_MAP_CREATE: u64 = 0;
    const BPF_PROG_LOAD: u64 = 5;
    let calls: [(&str, i64, [u64; 3]); 18] = [
        ("execve", libc::SYS_execve, [c"/bin/true".as_ptr() as u64, 0, 0]),
        ("execveat", libc::SYS_execveat, [0; 3]),
        ("clone", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
        ("bpf", libc::SYS_bpf, [BPF_PROG_LOAD, 0, 128]),
        ("bpf", libc::SYS_bpf, [BPF_MAP_CREATE, 0, 128]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 3]),
        ("socket", libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0]),
        ("socket", libc::SYS_socket, [libc::AF_VSOCK as u64, libc::SOCK_STREAM as u64, 0]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
        ("setns", libc::SYS_setns, [0; 3]),
        ("ptrace", libc::SYS_ptrace, [0; 3]),
        ("mount", libc::SYS_mount, [0; 3]),
        ("init_module", libc::SYS_init_module, [0; 3]),
        ("keyctl", libc::SYS_keyctl, [0; 3]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 3]),
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("openat2", libc::SYS_openat2, [0; 3]),
        ("prctl", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0]),
    ];
    for role in [Role::Main, Role::Collector, Role::Http, Role::Grpc, Role::Exporter] {
        let (config, secret, named) = (config.clone(), secret.clone(), named.path.clone());
        let confined = thread::spawn(move || {
            if !matches!(role, Role::Main | Role::Collector) {
                confine::enter(Role::Main);
            }
            confine::enter(role);
            confine::newly_refused();
            for (name, number, arguments) in calls {
                assert_eq!(sys::attempt(number, arguments), Err(libc::EPERM), "{role:?}: {name} {arguments:?}");
                let told = confine::newly_refused();
                let words = format!("system call {number} {name}, 1 times, its first argument {:#x}", arguments[0]);
                assert!(told.len() == 1 && told[0].contains(&words), "{role:?}: {told:?}");
            }
            // With glibc this one is answered as if there were none.
            let netlink = sys::attempt(libc::SYS_socket, [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0]);
            match cfg!(target_env = "gnu") && matches!(role, Role::Main | Role::Grpc | Role::Exporter) {
                true => assert_eq!(netlink, Err(libc::ENOSYS)),
                false => assert_eq!((netlink, confine::newly_refused().len()), (Err(libc::EPERM), 1), "{role:?}"),
            }
            let internet = TcpListener::bind("127.0.0.1:0").map(drop).map_err(|e| e.raw_os_error());
            match role {
                Role::Collector | Role::Http => assert_eq!(internet, Err(Some(libc::EPERM))),
                Role::Main | Role::Grpc | Role::Exporter => assert_eq!(internet, Ok(())),
            }
            confine::newly_refused();

            let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EPERM);
            assert!(refused(fs::write(named.join("new"), "")), "a new file");
            assert!(refused(fs::write(&config, "")), "one that is there");
            assert!(refused(fs::remove_file(&config)));
            assert!(refused(fs::create_dir(named.join("folder"))));
            assert!(refused(fs::rename(&config, named.join("other"))));
            // Two of them by the same number.
            assert_eq!(confine::newly_refused().len(), 4);
            // What the configuration does not name cannot be read, and the rest can.
            let outside = fs::read(&secret).map_err(|e| e.kind());
            match landlock {
                true => assert_eq!(outside, Err(std::io::ErrorKind::PermissionDenied)),
                false => assert_eq!(outside, Ok(Vec::new())),
            }
            assert!(fs::read(&config).is_ok() && fs::read_to_string("/proc/self/stat").is_ok());
            assert!(fs::read_dir("/sys/fs").unwrap().count() > 0);
            // As a panic prints it.
            assert!(!std::backtrace::Backtrace::force_capture().to_string().is_empty());
            thread::spawn(|| assert_eq!(fs::read_to_string("/proc/thread-self/comm").map(drop).ok(), Some(())))
                .join()
                .unwrap();
            assert_eq!(confine::newly_refused(), Vec::<String>::new());
        });
        confined.join().unwrap();
    }
    // The others of this process are as they were.
    fs::write(&secret, "still").unwrap();
}

#[test]
fn a_confined_agent_says_what_a_reload_cannot_give_it() {
    need_bpf!("a_confined_agent_says_what_a_reload_cannot_give_it");
    let (dir, other) = (TempDir::new("confined"), TempDir::new("elsewhere"));
    let file = dir.path.join("config.yaml");
    let write = |yaml: &str| fs::write(&file, yaml).unwrap();
    write("collector: {interval: 1h}");
    let mut c = command();
    c.arg("--config").arg(&file);
    let agent = Agent::start_with(c, &[]);
    let held = bpf::held_by(agent.child.id());
    let reload = |yaml: &str, said: &[&str]| {
        write(yaml);
        reload(&agent, said);
    };
    reload(
        "server: {allow_configure: any}\ncollector: {interval: 1h, read_latency: off, scope: {comm: nobody-is-it}}",
        &[
            "INFO  reload: collector.scope.comm: none → \"nobody-is-it\"",
            "WARN  reload: server.allow_configure: \"off\" → \"any\": takes a restart",
            "WARN  reload: collector.read_latency: \"auto\" → \"off\": takes a restart",
        ],
    );
    assert_eq!(agent.stats()["scope"], "comm:nobody-is-it");
    assert_eq!(bpf::held_by(agent.child.id()), held, "another scope takes no other programs");
    if confine::missing().is_empty() {
        let cert = other.path.join("cert.pem");
        fs::write(&cert, "").unwrap();
        let cert = cert.to_str().unwrap();
        reload(
            &format!("server: {{grpc: {{tls: {{enabled: true, cert_file: {cert}, key_file: {cert}}}}}}}"),
            &[&format!("ERROR reload: {cert}: it may not be read; confined (collector.confine)")],
        );
    }
    // A configuration that was replaced, not written again, is read too.
    fs::write(dir.path.join("new"), "collector: {interval: 2h}").unwrap();
    fs::rename(dir.path.join("new"), &file).unwrap();
    reload("collector: {interval: 30m}", &["INFO  reload: collector.interval: \"1h\" → \"30m\""]);
    assert_eq!(agent.metrics().get("ebpf_sidecar_system_calls_refused_total"), 0.0, "{}", agent.log());
}

#[test]
fn a_second_signal_ends_it_though_something_waits_to_be_sent() {
    need_bpf!("a_second_signal_ends_it_though_something_waits_to_be_sent");
    // A server that takes connections and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    for (first, second) in
        [(libc::SIGTERM, libc::SIGTERM), (libc::SIGINT, libc::SIGTERM), (libc::SIGTERM, libc::SIGINT)]
    {
        // As a shell starts what it runs in the background: there they are ignored.
        let mut ignoring = common::command_of("sh");
        ignoring.args(["-c", "trap '' INT TERM HUP; exec \"$0\" \"$@\""]).arg(common::binary());
        let settings = [
            ("COLLECTOR_INTERVAL", "50ms"),
            ("EXPORT_TYPE", "banyandb"),
            ("EXPORT_BANYANDB_ENDPOINT", &endpoint),
            ("EXPORT_BANYANDB_TIMEOUT", "1h"),
        ];
        let mut agent = Agent::start_with(ignoring, &settings);
        agent.wait(|m| {
            m.0.get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}").is_some_and(|points| *points > 0.0)
        });
        let held = bpf::held_by(agent.child.id());
        sys::kill(agent.child.id(), first);
        until_it_says(&agent, 0, ": stopping");
        // Nor does another reload hurry it.
        sys::kill(agent.child.id(), libc::SIGHUP);
        assert_eq!(agent.child.try_wait().unwrap(), None, "{}", agent.log());
        let begun = Instant::now();
        sys::kill(agent.child.id(), second);
        let status = wait_for(&mut agent.child, Duration::from_secs(30)).unwrap_or_else(|| panic!("{}", agent.log()));
        println!("{second} after {first}: ended after {:?}", begun.elapsed());
        assert_eq!(status.signal(), Some(second), "as systemd takes for a clean end; {}", agent.log());
        assert!(agent.log().contains("once more: ending at once"), "{}", agent.log());
        assert_gone(&held);
    }
}

#[test]
fn a_reload_takes_over_what_can_be_and_says_what_cannot() {
    need_bpf!("a_reload_takes_over_what_can_be_and_says_what_cannot");
    let dir = TempDir::new("reload");
    let file = dir.path.join("config.yaml");
    let write = |yaml: &str| fs::write(&file, yaml).unwrap();
    write("collector: {interval: 1h}");
    let mut c = command();
    c.arg("--config").arg(&file);
    // One that is confined cannot let anybody attach later.
    let agent = Agent::start_with(c, &[("COLLECTOR_CONFINE", "off")]);
    let reload = |said: &[&str]| reload(&agent, said);
    let change = |host: &str| {
        let head = format!(
            "POST /api/v1/ebpf/modules/configure HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        common::request(agent.port, &head).unwrap().status
    };
    let scope = || agent.stats()["scope"].as_str().unwrap().to_owned();
    assert_eq!((change("localhost"), scope()), (403, "host".into()));
    let held = bpf::held_by(agent.child.id());

    write(
        "log: {level: debug}
collector: {interval: 50ms, history: 1m, scope: {comm: nobody-is-it}}
server:
  allow_configure: any
  http: {hosts: [agent.example], metrics_path: /other}
  grpc: {limits: {streams: 1, memory_bytes: 33554432}}
export: {banyandb: {username: me, password: secret}}",
    );
    let said = reload(&[
        "INFO  reload: log.level: \"info\" → \"debug\"",
        "INFO  reload: server.grpc.limits.streams: \"1024\" → \"1\"",
        "INFO  reload: server.http.hosts: none → \"agent.example\"",
        "INFO  reload: server.allow_configure: \"off\" → \"any\"",
        "INFO  reload: collector.interval: \"1h\" → \"50ms\"",
        "INFO  reload: collector.scope.comm: none → \"nobody-is-it\"",
        "WARN  reload: collector.history: \"15m\" → \"1m\": takes a restart",
        "WARN  reload: server.http.metrics_path: \"/metrics\" → \"/other\": takes a restart",
        "WARN  reload: server.grpc.limits.memory_bytes: ",
        "WARN  reload: export.banyandb.password: none → ***: takes a restart",
    ]);
    assert!(!said.contains("secret") && !said.contains("ERROR"), "{said}");
    agent.settled();
    assert_eq!(scope(), "comm:nobody-is-it");
    assert_eq!((change("localhost"), change("agent.example"), change("evil.example")), (404, 404, 403));
    until_it_says(&agent, 0, "DEBUG ");
    assert_gone(&held.difference(&bpf::held_by(agent.child.id())).cloned().collect());

    // What takes a restart is said each time.
    let said = reload(&["WARN  reload: export.banyandb.username"]);
    assert!(!said.contains("collector.interval"), "{said}");

    for (yaml, why) in [
        ("collector: {interval: 5}", "collector.interval: \"5\" is not allowed"),
        ("colector: {}", "colector: unknown key"),
        ("collector: {scope: {cgroup: /proc}}", "no cgroup v2"),
        (
            "server: {grpc: {tls: {enabled: true, cert_file: /none, key_file: /none}}}",
            "server.grpc.tls.cert_file: /none",
        ),
        ("server:\n  http: {port: [", "not valid YAML"),
    ] {
        write(yaml);
        let said = reload(&["; the configuration in use stays\n"]);
        assert!(said.contains("ERROR reload: ") && said.contains(why), "{yaml}: {said}");
    }
    fs::remove_file(&file).unwrap();
    reload(&["cannot read the configuration"]);
    assert_eq!((scope(), change("agent.example")), ("comm:nobody-is-it".into(), 404));

    write("collector: {interval: 1h}");
    reload(&["INFO  reload: server.allow_configure: \"any\" → \"off\""]);
    assert_eq!((scope(), change("localhost")), ("host".into(), 403));
    reload(&["INFO  reload: nothing has changed"]);
}

/// Asks for the metrics again and again on one connection.
fn scrape_until_it_ends(port: u16, served: &AtomicBool) {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let mut stream = BufReader::new(stream);
    while answer(&mut stream, "/metrics").is_some() {
        served.store(true, Ordering::Relaxed);
    }
}

/// One answer's body on a connection that stays open.
fn answer(stream: &mut BufReader<TcpStream>, path: &str) -> Option<String> {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let (mut head, mut line) = (String::new(), String::new());
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        head += &line;
    }
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

/// What tells of a lack of descriptors must not need one, and a restart is told by the start time alone.
#[test]
fn its_own_usage_is_known_when_there_are_no_more_descriptors() {
    need_bpf!("its_own_usage_is_known_when_there_are_no_more_descriptors");
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms")]);
    // Its ports listen before gRPC has what it needs.
    until_it_says(&agent, 0, "capabilities kept: ");
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", agent.port)).unwrap());
    let mut metrics = || Metrics::parse(&answer(&mut stream, "/metrics").unwrap());
    let before = metrics();
    let of_process = |m: &Metrics| m.0.keys().filter(|k| k.starts_with("process_")).cloned().collect::<Vec<_>>();
    assert_eq!(of_process(&before).len(), 7);
    let limit = |n: &str| {
        let pid = agent.child.id().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={n}:4096")]).status();
        assert!(set.expect("prlimit, of util-linux, is needed").success());
    };
    limit("16");
    let sequence = |m: &Metrics| m.get("ebpf_sidecar_snapshot_sequence");
    let after = loop {
        let m = metrics();
        if sequence(&m) >= sequence(&before) + 5.0 {
            break m;
        }
        thread::sleep(Duration::from_millis(20));
    };
    limit("4096");
    assert_eq!(of_process(&after), of_process(&before));
    assert!(after.get("process_open_fds") > after.get("process_max_fds"), "that it lacks some is told");
    assert_eq!(after.get("process_start_time_seconds"), before.get("process_start_time_seconds"));
}

#[test]
fn too_few_descriptors_are_an_error_with_a_way_out() {
    need_bpf!("too_few_descriptors_are_an_error_with_a_way_out");
    for n in ["20", "40", "60", "100"] {
        let mut shell = common::command_of("sh");
        shell.args(["-c", "ulimit -n $0; exec \"$@\"", n]).arg(common::binary()).arg("run");
        let o = common::output_of(shell, &[]);
        let said = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{n}: {said}");
        for part in [&format!("(RLIMIT_NOFILE) is {n},"), "needs 128", "ulimit -n", "LimitNOFILE=", "--ulimit nofile="]
        {
            assert!(said.contains(part), "{n}: {said}");
        }
    }
}

/// A signal as early as the agent takes any: it has hardly begun to load.
#[test]
fn signals_stop_it_while_it_starts() {
    need_bpf!("signals_stop_it_while_it_starts");
    let _alone = alone();
    let before = bpf::existing();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for delay in [0, 5, 20, 50, 100] {
            assert_in_time("while it starts", || stop_starting(signal, delay));
        }
    }
    assert_nothing_left_since(&before);
}

/// Sends the signal some milliseconds after the agent takes it; returns how long it took to end.
fn stop_starting(signal: i32, delay: u64) -> Duration {
    let mut c = command();
    let [http, grpc] = free_ports().map(|p| p.to_string());
    c.env("EBPF_SIDECAR_SERVER_HTTP_PORT", http).env("EBPF_SIDECAR_SERVER_GRPC_PORT", grpc).stderr(Stdio::piped());
    let mut child = Killed(c.spawn().unwrap());
    let child = &mut child.0;
    let bit = 1 << (signal - 1);
    while u64::from_str_radix(&blocked(child.id()), 16).unwrap_or(0) & bit == 0 {
        assert_eq!(child.try_wait().unwrap(), None);
    }
    thread::sleep(Duration::from_millis(delay));
    let begun = Instant::now();
    sys::kill(child.id(), signal);
    let status = wait_for(child, Duration::from_secs(30));
    let took = begun.elapsed();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{log}");
    took
}

fn blocked(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap_or_default().trim().to_owned()
}

#[test]
fn killed_it_leaves_nothing_either() {
    need_bpf!("killed_it_leaves_nothing_either");
    let _alone = alone();
    let mounts = tracing_mounts();
    let mut agent = Agent::start(&[]);
    let held = bpf::held_by(agent.child.id());
    assert!(held.len() >= 10, "{held:?}");
    sys::kill(agent.child.id(), libc::SIGKILL);
    assert!(wait_for(&mut agent.child, Duration::from_secs(30)).is_some());
    assert_gone(&held);
    assert_eq!(tracing_mounts(), mounts);
}

// ---- two of them ----

#[test]
fn a_second_one_on_the_same_port_ends_and_leaves_nothing() {
    need_bpf!("a_second_one_on_the_same_port_ends_and_leaves_nothing");
    let _alone = alone();
    let first = Agent::start(&[]);
    let before = bpf::existing();
    let [free_http, free_grpc] = free_ports();
    for (http, grpc, taken, what) in
        [(first.port, free_grpc, first.port, "HTTP"), (free_http, first.grpc_port, first.grpc_port, "gRPC")]
    {
        let (http, grpc) = (http.to_string(), grpc.to_string());
        let http = [("SERVER_HTTP_PORT", http.as_str()), ("SERVER_HTTP_ADDRESS", "127.0.0.1")];
        let grpc = [("SERVER_GRPC_PORT", grpc.as_str()), ("SERVER_GRPC_ADDRESS", "127.0.0.1")];
        let o = output(&[], &[http, grpc].concat());
        let said = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap();
        let words = format!("ebpf-sidecar: cannot listen for {what} on 127.0.0.1 port {taken}: the port is in use");
        assert!(last.starts_with(&words), "{said}");
        assert_nothing_left_since(&before);
    }
    assert_eq!(first.get("/health").status, 200);
}

#[test]
fn two_count_the_same_work() {
    need_bpf!("two_count_the_same_work");
    let s = Scoped::start(&[]);
    let other = Agent::start(&[("COLLECTOR_INTERVAL", "70ms"), ("COLLECTOR_SCOPE_CGROUP", text(&s.cgroup.path))]);
    let f = TestFile::cold("two", 8 * common::MIB);
    let (second, (first, ())) = other.during(|| {
        s.agent.during(|| {
            common::read_all(&f.file, common::MIB);
            for _ in 0..1000 {
                sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            }
        })
    });
    for d in [&first, &second] {
        assert_eq!((d.attempts(2048.0), d.misses_of(2048.0)), (2048.0, 2048.0), "{}", d.moved());
        assert_eq!(d.of("ebpf_fadvise_calls_total"), 1000.0, "{}", d.moved());
    }
    assert_eq!(first.moved(), second.moved());
}

// ---- time ----

#[test]
fn first_metrics() {
    need_bpf!("first_metrics");
    let _alone = alone();
    let begun = Instant::now();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "1h")]);
    assert!(agent.get("/metrics").body.contains("ebpf_sidecar_snapshot_sequence 1\n"));
    let took = begun.elapsed();
    println!("first metrics {took:?} after the start, of an unoptimized build if this is one");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn stopped_and_continued_it_loses_nothing() {
    need_bpf!("stopped_and_continued_it_loses_nothing");
    let s = Scoped::start(&[]);
    let f = TestFile::cold("stopped", 8 * common::MIB);
    let before = s.agent.settled();
    let pid = s.agent.child.id();
    sys::kill(pid, libc::SIGSTOP);
    let _continued = Continue(pid);
    let end = Instant::now() + Duration::from_secs(3);
    let mut calls = 0u32;
    common::read_all(&f.file, common::MIB);
    while Instant::now() < end {
        for _ in 0..100 {
            sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            calls += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    sys::kill(pid, libc::SIGCONT);
    let d = common::Delta { before, after: s.agent.settled() };
    assert_eq!(d.of("ebpf_fadvise_calls_total"), f64::from(calls), "{}", d.moved());
    assert_eq!((d.attempts(2048.0), d.misses_of(2048.0)), (2048.0, 2048.0), "{}", d.moved());
    let me = common::kernel_pid(&s.agent);
    let stats = s.agent.stats();
    let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
    let row = rows.iter().find(|r| r["pid"] == me).unwrap();
    assert!(row["call_count"].as_u64().unwrap() >= u64::from(calls), "{row}, not {calls}");
    assert_eq!(d.of("ebpf_sidecar_collect_errors_total"), 0.0);
    assert_eq!(health(&s.agent)["status"], "healthy");
}

/// Lets a stopped process go on, whatever happens.
struct Continue(u32);

impl Drop for Continue {
    fn drop(&mut self) {
        sys::kill(self.0, libc::SIGCONT);
    }
}

/// What the agent uses: descriptors, threads, KiB of memory of its own.
fn usage(agent: &Agent) -> (usize, u64, u64) {
    let pid = agent.child.id();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (fds, common::status_field(pid, "Threads:"), agent.own_kib())
}

#[test]
fn a_short_interval_does_not_make_it_grow() {
    need_bpf!("a_short_interval_does_not_make_it_grow");
    // The history grows until it is as long as configured.
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "20ms"), ("COLLECTOR_HISTORY", "500ms")]);
    let f = TestFile::new("short", common::MIB);
    let work = |seconds| {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            common::read_all(&f.file, common::MIB);
            sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        s.agent.settled()
    };
    let first = work(2);
    let warm = usage(&s.agent);
    let last = work(5);
    let then = usage(&s.agent);
    let collections = last.get("ebpf_sidecar_snapshot_sequence") - first.get("ebpf_sidecar_snapshot_sequence");
    println!("{collections} collections; descriptors, threads, KiB: {warm:?}, then {then:?}");
    // An answer may be under way at either moment.
    assert!(then.0 <= warm.0 + 2 && then.1 <= warm.1, "{warm:?}, then {then:?}");
    assert!(then.2 <= warm.2 + 512, "{warm:?}, then {then:?}");
    assert_eq!(last.get("ebpf_sidecar_collect_errors_total"), 0.0);
}

// ---- hostile clients ----

#[test]
fn hostile_clients_disturb_neither_health_nor_counting() {
    need_bpf!("hostile_clients_disturb_neither_health_nor_counting");
    let s = Scoped::start(&[]);
    let f = TestFile::cold("hostile", 16 * common::MIB);
    let port = s.agent.port;
    s.agent.get("/api/v1/stats");
    let before = s.agent.settled();
    let memory = s.agent.own_kib();
    let ask = || {
        let asked = Instant::now();
        assert_eq!(s.agent.get("/health").status, 200);
        asked.elapsed()
    };
    // Ten times what it takes without them, here and now, is a disturbance.
    let limit = Duration::from_millis(500).max((0..20).map(|_| ask()).max().unwrap_or_default() * 10);
    let begun = Instant::now();

    // A reader that never reads: more answers than the buffers between hold.
    let mut lazy = TcpStream::connect(("127.0.0.1", port)).unwrap();
    lazy.set_nonblocking(true).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let asked = (0..100_000).take_while(|_| lazy.write_all(request).is_ok()).count();
    let halves: [&[u8]; 2] = [b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: ", b"POST /"];
    let mut held = Vec::new();
    let (mut took, mut peak, mut calls) = (Vec::new(), memory, 0u32);
    let mut first = true;
    // As long as connections may stay, and until something was collected meanwhile.
    let collections =
        || s.agent.metrics().get("ebpf_sidecar_snapshot_sequence") - before.get("ebpf_sidecar_snapshot_sequence");
    while held.len() < 400 || begun.elapsed() < Duration::from_secs(7) || collections() < 18.0 {
        assert!(begun.elapsed() < Duration::from_secs(180), "it does not collect any more: {}", s.agent.log());
        for half in halves.iter().cycle().take(20.min(400 - held.len())) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(half).unwrap();
            held.push(stream);
        }
        took.push(ask());
        peak = peak.max(s.agent.own_kib());
        // The work that is to be counted.
        for _ in 0..100 {
            sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            calls += 1;
        }
        if std::mem::take(&mut first) {
            common::read_all(&f.file, common::MIB);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let d = common::Delta { before, after: s.agent.settled() };
    let ticks = d.of("ebpf_sidecar_snapshot_sequence");
    println!(
        "{asked} requests not read, 400 halves; /health within {:?}, memory +{} KiB, {ticks} collections in {seconds:.1} s",
        took.iter().max(),
        peak - memory
    );
    // Now and then the machine has other things to do.
    took.sort();
    assert!(took[took.len() / 2] < limit, "/health takes more than {limit:?}: {took:?}");
    assert!(peak - memory < 24 << 10, "memory grew by {} KiB", peak - memory);
    assert_eq!(d.of("ebpf_fadvise_calls_total"), f64::from(calls), "{}", d.moved());
    assert_eq!((d.attempts(4096.0), d.misses_of(4096.0)), (4096.0, 4096.0), "{}", d.moved());
    assert_eq!(d.of("ebpf_sidecar_collect_errors_total"), 0.0);
}
