//! Hosts that are not as most are: without IPv6, with calls that a sandbox refuses, with little of /proc and /sys.

mod common;

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use common::{Agent, TempDir, alone, command, output, skipped, sys, text};

/// Runs `test` where the network is this thread's own; false if that cannot be had.
fn in_a_network(test: impl FnOnce() + Send) -> bool {
    thread::scope(|scope| {
        let run = || {
            let ready = sys::new_network();
            if ready {
                test();
            }
            ready
        };
        scope.spawn(run).join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

#[test]
fn both_families_are_served_and_ipv4_alone_where_there_is_no_other() {
    need_bpf!("both_families_are_served_and_ipv4_alone_where_there_is_no_other");
    let _alone = alone();
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/ipv6/{name}"), value).unwrap();
    let test = || {
        if fs::metadata("/proc/sys/net/ipv6").is_err() {
            return skipped("both_families_are_served_and_ipv4_alone_where_there_is_no_other", "there is no IPv6");
        }
        serve_both("[::]");
        set("bindv6only", "1");
        serve_both("[::]");
        // Loopback loses its address of that family.
        set("conf/all/disable_ipv6", "1");
        for address in ["0.0.0.0", "::"] {
            serve(command(), address, "[::]", false);
            let mut command = command();
            sys::refuse(&mut command, &[(libc::SYS_socket, Some(libc::AF_INET6), libc::EAFNOSUPPORT)]);
            serve(command, address, "0.0.0.0", false);
        }
    };
    if !in_a_network(test) {
        skipped("both_families_are_served_and_ipv4_alone_where_there_is_no_other", "needs root");
    }
}

fn serve_both(shown: &str) {
    for address in ["0.0.0.0", "::"] {
        serve(command(), address, shown, true);
    }
}

/// Starts an agent whose servers are told `address`, and asks it in either family.
fn serve(command: Command, address: &str, shown: &str, v6: bool) {
    let settings =
        [("SERVER_HTTP_ADDRESS", address), ("SERVER_GRPC_ADDRESS", address), ("SERVER_ALLOW_CONFIGURE", "loopback")];
    let agent = Agent::start_with(command, &settings);
    for said in [format!("http://{shown}:{}/", agent.port), format!("gRPC: {shown}:{} ", agent.grpc_port)] {
        agent.wait(|_| agent.log().contains(&said));
    }
    for port in [agent.port, agent.grpc_port] {
        assert_eq!(TcpStream::connect(("::1", port)).is_ok(), v6, "port {port} at {address}");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "port {port} at {address}");
    }
    let port = agent.port.to_string();
    for by in [vec!["health".to_owned()], vec!["health".into(), "--address".into(), format!("[::1]:{port}")]] {
        let args: Vec<&str> = by.iter().map(String::as_str).collect();
        let o = output(&args, &[("SERVER_HTTP_ADDRESS", address), ("SERVER_HTTP_PORT", &port)]);
        assert_eq!(o.status.success(), v6 || args.len() == 1, "{args:?} at {address}: {o:?}");
    }
    // A client of IPv4 counts as one of this host, and has its own address in the log.
    let body = r#"{"module":"iomonitor","enabled":true,"config_json":"{\"interval\":\"1h\"}"}"#;
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let path = "/api/v1/ebpf/modules/configure";
    let request = format!("POST {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n{body}");
    let answer = common::request(agent.port, &request).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let log = agent.log();
    assert!(log.contains("ConfigureModule by 127.0.0.1:") && !log.contains("::ffff"), "{log}");
}

// ---- sandboxes, and what is not mounted ----

/// Runs `test` where the mounts are this thread's own and `setup`, in words of the shell, has changed them; else says that
/// `name` is skipped.
fn in_mounts(name: &str, setup: &str, test: impl FnOnce() + Send) {
    let setup = format!("mount --make-rprivate / && {setup}");
    let ready = thread::scope(|scope| {
        let run = || {
            let made = || Command::new("sh").args(["-c", &setup]).status().is_ok_and(|s| s.success());
            let ready = sys::new_mounts() && made();
            if ready {
                test();
            }
            ready
        };
        scope.spawn(run).join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    });
    if !ready {
        skipped(name, &format!("cannot be had here: {setup}"));
    }
}

/// Nothing is mounted for tracing; what was is out of sight.
const NO_TRACEFS: &str = "for d in /sys/kernel/debug /sys/kernel/tracing; do \
                          [ ! -d $d ] || mount -t tmpfs -o ro,size=4k none $d || exit; done";

const FSOPEN: i64 = 430;

/// A command of the agent of which these calls are refused, all of them alike.
fn refused(calls: &[i64], errno: i32) -> Command {
    let mut command = command();
    sys::refuse(&mut command, &calls.iter().map(|call| (*call, None, errno)).collect::<Vec<_>>());
    command
}

/// The mode of a probe, and its refused ways.
fn probe(agent: &Agent, name: &str) -> (Option<String>, String) {
    let said: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
    let probes = said["modules"][0]["probes"].as_array().unwrap();
    let probe = probes.iter().find(|p| p["name"] == name).unwrap();
    let failures = probe["failures"].as_array().unwrap().iter();
    let failures: String =
        failures.map(|f| format!("{}: {}\n", f["mode"].as_str().unwrap(), f["reason"].as_str().unwrap())).collect();
    (probe["mode"].as_str().map(str::to_owned), failures)
}

/// What the agent says of its own accord, and what `/health` does, is short.
fn assert_short(agent: &Agent) {
    let said: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
    for line in agent.log().lines().chain(said["message"].as_str()) {
        assert!(line.chars().count() <= 165, "{} characters: {line}", line.chars().count());
    }
}

const BY_TRACEPOINT: [(&str, &str); 1] = [("COLLECTOR_EBPF_ATTACH", "tracepoint")];

#[test]
fn tracefs_is_had_where_it_can_be() {
    const NAME: &str = "tracefs_is_had_where_it_can_be";
    need_bpf!("tracefs_is_had_where_it_can_be");
    let _alone = alone();
    let test = || {
        for (command, had) in [
            (command(), true),
            // As before 5.2: in a namespace.
            (refused(&[FSOPEN], libc::ENOSYS), true),
            (refused(&[FSOPEN, libc::SYS_mount], libc::EPERM), false),
        ] {
            let agent = Agent::start_with(command, &BY_TRACEPOINT);
            let (mode, failures) = probe(&agent, "fadvise");
            let log = agent.log();
            assert_eq!(mode.is_some(), had, "{failures}{log}");
            assert_eq!(log.contains("mounted it for this process alone"), had, "{log}");
            let advice = "no tracefs: it is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)";
            assert!(had || failures.contains(advice) && log.contains(advice), "{failures}{log}");
            assert_short(&agent);
        }
    };
    in_mounts(NAME, NO_TRACEFS, test);

    // In a root that is no mount point nothing can be mounted in a namespace.
    let dir = TempDir::new("root");
    let root = text(&dir.path);
    let setup = format!(
        "{NO_TRACEFS}; cd {root} && cp {} agent && mkdir proc sys && mount --rbind /proc proc && mount --rbind /sys sys",
        text(&common::binary())
    );
    let test = || {
        let mut chroot = common::command_of("chroot");
        chroot.args([root, "/agent"]);
        let agent = Agent::start_with(chroot, &BY_TRACEPOINT);
        // Without, it is in the words of the kernel that has no such call.
        let version = ebpf_sidecar::ebpf::os::kernel_version();
        assert_eq!(probe(&agent, "fadvise").0.is_some(), version >= (5, 2), "{}", agent.log());
    };
    in_mounts(NAME, &setup, test);
}

#[test]
fn lockdown_is_said_and_heeded() {
    need_bpf!("lockdown_is_said_and_heeded");
    let _alone = alone();
    let setup = |mode: &str| {
        let file = "/sys/kernel/security/lockdown";
        format!("{NO_TRACEFS}; mount -t tmpfs none /sys/kernel/security && echo '{mode}' >{file}")
    };
    let name = "lockdown_is_said_and_heeded";
    in_mounts(name, &setup("none integrity [confidentiality]"), || {
        let agent = Agent::start_with(command(), &BY_TRACEPOINT);
        let forbids = "no tracefs: lockdown=confidentiality forbids to read tracefs";
        let (mode, failures) = probe(&agent, "fadvise");
        assert!(mode.is_none() && failures.contains(forbids), "{failures}");
        assert!(agent.log().contains(&format!("WARN  {forbids}")), "{}", agent.log());
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.child.id())).unwrap();
        assert!(!mounts.lines().any(|l| l.contains(" tracefs ")), "{mounts}");
        assert_short(&agent);
        let said = checked(command());
        assert!(said.contains("warn  lockdown         confidentiality: no kprobes, no tracefs"), "{said}");
        assert!(said.contains(&format!("warn  tracefs          {}", &forbids["no tracefs: ".len()..])), "{said}");
    });
    in_mounts(name, &setup("none [integrity] confidentiality"), || {
        let said = checked(command());
        assert!(said.contains("ok    lockdown         integrity\n"), "{said}");
        // What may be behind a refusal is named, and nothing else.
        for (calls, by) in [(&[][..], ""), (&[libc::SYS_perf_event_open], " or a seccomp filter")] {
            let agent = Agent::start_with(refused(calls, libc::EPERM), &BY_TRACEPOINT);
            let (mode, failures) = probe(&agent, "fadvise");
            assert_eq!(mode.is_none(), !calls.is_empty(), "{failures}");
            let reason = format!("not permitted: lockdown=integrity{by}\n");
            assert!(mode.is_some() || failures.contains(&reason), "{failures}");
        }
    });
}

/// What `check` says.
fn checked(mut command: Command) -> String {
    let [http, grpc] = common::free_ports().map(|p| p.to_string());
    command.arg("check");
    let o = common::output_of(command, &[("SERVER_HTTP_PORT", &http), ("SERVER_GRPC_PORT", &grpc)]);
    String::from_utf8(o.stdout).unwrap()
}

#[test]
fn a_sandbox_that_refuses_maps_is_named() {
    need_bpf!("a_sandbox_that_refuses_maps_is_named");
    const MAP_CREATE: i32 = 0;
    for (first, errno, words) in [
        (Some(MAP_CREATE), libc::EPERM, "a seccomp filter"),
        (Some(MAP_CREATE), libc::ENOSYS, "a seccomp filter or a sandbox, such as gVisor or Fargate"),
        (None, libc::ENOSYS, "a seccomp filter or a sandbox, such as gVisor or Fargate"),
    ] {
        let port = common::free_port().to_string();
        let mut command = command();
        sys::refuse(&mut command, &[(libc::SYS_bpf, first, errno)]);
        let o = common::output_of(command, &[("SERVER_HTTP_PORT", &port)]);
        let said = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
        // From 5.11 on nothing counts against that.
        let counted = ebpf_sidecar::ebpf::os::memlock_is_limited();
        assert!(counted || !said.contains("MEMLOCK"), "{said}");
    }
}

#[test]
fn little_of_proc_and_sys_is_no_riddle() {
    const NAME: &str = "little_of_proc_and_sys_is_no_riddle";
    need_bpf!("little_of_proc_and_sys_is_no_riddle");
    let _alone = alone();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    // 5.8 has subset.
    for setup in ["mount -t proc -o subset=pid proc /proc", "mount -t tmpfs none /proc"] {
        in_mounts(NAME, setup, || {
            let said = checked(command());
            assert!(said.contains(&format!("ok    kernel           {release}")), "{said}");
            assert!(said.contains("ok    capabilities     sufficient"), "{said}");
            let agent = Agent::start(&[]);
            assert_short(&agent);
        });
    }
    in_mounts(NAME, "mount -t proc -o hidepid=2 proc /proc", || assert_short(&Agent::start(&[])));
    in_mounts(NAME, "mount -o remount,ro,bind /sys", || assert_short(&Agent::start(&[])));
    in_mounts(NAME, "mount -t tmpfs none /sys", || {
        let o = common::output_of(command(), &[("SERVER_HTTP_PORT", &common::free_port().to_string())]);
        let said = String::from_utf8_lossy(&o.stderr);
        assert!(o.status.code() == Some(1) && said.contains("/sys has to be mounted"), "{said}");
    });
    // Without both, and without privilege that counts.
    let mut user = common::command_of("unshare");
    user.args(["--user", "--map-root-user", text(&common::binary())]);
    let said = checked(user);
    if !said.is_empty() {
        assert!(said.contains("FAIL  capabilities     the capabilities are those of a user namespace"), "{said}");
        assert!(said.contains("not permitted: a user namespace"), "{said}");
    }
    let mut limited = common::command_of("sh");
    limited.args(["-c", "ulimit -l 0; exec \"$0\"", text(&common::binary())]);
    assert_short(&Agent::start_with(limited, &[]));
}
