//! Configuration and command line of the real binary: what it refuses, before anything is loaded, and what it
//! prints.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{TempDir, cgroup_root, output, text};

/// Runs the agent with a configuration file of this content; returns the file's path too.
fn run_with_file(command: &str, content: &[u8], env: &[(&str, &str)]) -> (Output, String) {
    let dir = TempDir::new("config");
    let file = dir.path.join("config.yaml");
    fs::write(&file, content).unwrap();
    (output(&["--config", text(&file), command], env), text(&file).to_owned())
}

/// Sees that the agent refused with exit code 2 and one line on stderr, and no log line: it had not begun to
/// run. Returns the line.
#[track_caller]
fn refusal(o: &Output, case: &str) -> String {
    let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    assert_eq!(o.status.code(), Some(2), "{case}\n{out}{err}");
    assert_eq!(out, "", "{case}");
    assert_eq!(err.lines().count(), 1, "{case}\n{err}");
    err.strip_prefix("ebpf-sidecar: ").unwrap_or_else(|| panic!("{case}\n{err}")).trim_end().to_owned()
}

/// Files that are errors: the content, the line, and what the message says beside the file's name.
const BAD_FILES: &str = r#"
# unknown keys
sever:\n  http: | 1 | sever: unknown key | nearest is server; | allowed here: server, collector, export
server:\n  http:\n    prot: 1 | 3 | server.http.prot: unknown key | nearest is server.http.port; | address, port, metrics_path
server:\n  grpc:\n    tls:\n      cert: a | 4 | server.grpc.tls.cert: unknown key | enabled, cert_file, key_file
collector:\n  scope:\n    pod: a | 3 | collector.scope.pod: unknown key | cgroup, comm, pod_uid
export:\n  banyandb:\n    host: a | 3 | export.banyandb.host: unknown key | endpoint, group, timeout
port: 1 | 1 | port: unknown key | nearest is server.grpc.port;
server:\n  http:\n    port: 1\n    port: 2 | 4 | server.http.port: given twice | each key once
# wrong types
server: 8080 | 1 | server | 8080 | a section with grpc, http
server:\n  http: 8080 | 2 | server.http | 8080 | a section with address, port, metrics_path
server:\n  http:\n    port: [1] | 3 | server.http.port | sequence | a port from 1 to 65535
server:\n  http:\n    port: many | 3 | server.http.port | "many" | a port from 1 to 65535
server:\n  http:\n    address: localhost | 3 | server.http.address | "localhost" | an IPv4 or IPv6 address
server:\n  grpc:\n    tls:\n      enabled: yes | 4 | server.grpc.tls.enabled | "yes" | true or false
collector:\n  interval: {a: b} | 2 | collector.interval | map | a duration from 10ms to 1h
collector:\n  modules: iomonitor | 2 | collector.modules | "iomonitor" | a list of modules
just text | 1 | "just text" | a section with server, collector, export
# values out of range
server:\n  http:\n    port: 0 | 3 | server.http.port | "0" | a port from 1 to 65535
server:\n  http:\n    port: 70000 | 3 | server.http.port | "70000" | a port from 1 to 65535
server:\n  grpc:\n    port: 0 | 3 | server.grpc.port | "0" | a port from 1 to 65535
server:\n  grpc:\n    port: 70000 | 3 | server.grpc.port | "70000" | a port from 1 to 65535
server:\n  grpc:\n    port: 8080 | 3 | server.grpc.port | "8080" | server.http.port: "8080" (built-in default) | different ports
server:\n  http:\n    metrics_path: /health | 3 | server.http.metrics_path | "/health" | serves something else there | a path such as /metrics
collector:\n  interval: 0 | 2 | collector.interval | "0" | a duration from 10ms to 1h, such as 500ms, 10s or 1m30s
collector:\n  interval: 0s | 2 | collector.interval | "0s" | a duration from 10ms to 1h
collector:\n  interval: 10 | 2 | collector.interval | "10" | a number alone has no unit | a duration from 10ms to 1h
collector:\n  interval: 2h | 2 | collector.interval | "2h" | a duration from 10ms to 1h
export:\n  banyandb:\n    timeout: 0s | 3 | export.banyandb.timeout | "0s" | a duration from 10ms to 1h
export:\n  banyandb:\n    endpoint: nowhere | 3 | export.banyandb.endpoint | "nowhere" | host:port
# names that are none
collector:\n  modules: [fadvise] | 2 | collector.modules | "fadvise" | iomonitor has all of the former modules | each once: iomonitor
collector:\n  modules: [memory] | 2 | collector.modules | "memory" | iomonitor has all of the former modules | each once: iomonitor
collector:\n  modules:\n  - iomonitor\n  - cache | 4 | collector.modules | "cache" | iomonitor has all of the former modules | each once: iomonitor
collector:\n  modules: [tcp] | 2 | collector.modules | "tcp" | no such module | each once: iomonitor
collector:\n  probes: [fadvice] | 2 | collector.probes | "fadvice" | no such probe | a list of probes, each once: fadvise, read_latency
collector:\n  ebpf: {attach: fexit} | 2 | collector.ebpf.attach | "fexit" | auto, fentry, kprobe or tracepoint
collector:\n  modules: [] | 2 | collector.modules | [] | each once: iomonitor
export:\n  type: influxdb | 2 | export.type | "influxdb" | prometheus, banyandb, otlp, or a list
# the scope
collector:\n  scope:\n    cgroup: system.slice | 3 | collector.scope.cgroup | "system.slice" | not absolute | the absolute path of a cgroup v2 directory
collector:\n  scope:\n    comm: sixteen-bytes-xy | 3 | collector.scope.comm | "sixteen-bytes-xy" | 1 to 15 bytes
collector:\n  scope:\n    comm: db\n    cgroup: /a | 3 | collector.scope.comm | "db" | collector.scope.cgroup: "/a" | at most one of them
# encryption without its files
server:\n  grpc:\n    tls:\n      enabled: true | 4 | server.grpc.tls.enabled | "true" needs server.grpc.tls.cert_file | true with both
# no YAML
server:\n  http: [1\n | 3 | not valid YAML
server:\n	http: 1 | 2 | not valid YAML
server:\n---\nserver: | 3 | a second YAML document | allowed: one
"#;

#[test]
fn a_bad_file_is_refused_with_file_line_key_value_and_what_is_allowed() {
    for case in BAD_FILES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut fields = case.split(" | ");
        let (yaml, line) = (fields.next().unwrap().replace("\\n", "\n"), fields.next().unwrap());
        let (o, file) = run_with_file("run", yaml.as_bytes(), &[]);
        let message = refusal(&o, case);
        for part in fields.chain([format!("{file}:{line}: ").as_str()]) {
            assert!(message.contains(part), "{case}\n{message}\nlacks {part}");
        }
    }
    let (o, file) = run_with_file("run", b"server:\n  # \xff\n", &[]);
    assert!(refusal(&o, "not UTF-8").starts_with(&format!("{file}:2: byte 0xff is not UTF-8")));
}

#[test]
fn the_other_commands_refuse_the_same_way() {
    for command in ["config", "check"] {
        let (o, file) = run_with_file(command, b"server:\n  http:\n    port: 0\n", &[]);
        let allowed = "server.http.port: \"0\" is not allowed; allowed: a port from 1 to 65535";
        assert_eq!(refusal(&o, command), format!("{file}:3: {allowed}"));
    }
}

/// Variables that are errors, and what the message says beside their names.
const BAD_VARIABLES: &str = r#"
SERVER_HTTP_PORT=0 | server.http.port: "0" | a port from 1 to 65535
SERVER_HTTP_PORT=70000 | server.http.port: "70000" | a port from 1 to 65535
SERVER_HTTP_PORT=x | server.http.port: "x" | a port from 1 to 65535
SERVER_GRPC_PORT=8080 | server.grpc.port: "8080" | server.http.port: "8080" (built-in default) | different ports
SERVER_GRPC_TLS_ENABLED=true | server.grpc.tls.enabled: "true" needs server.grpc.tls.cert_file | true with both
COLLECTOR_INTERVAL=0 | collector.interval: "0" | a duration from 10ms to 1h
COLLECTOR_INTERVAL=10 | collector.interval: "10" | a number alone has no unit | a duration from 10ms to 1h
COLLECTOR_MODULES=cache | collector.modules: "cache" | iomonitor has all | each once: iomonitor
COLLECTOR_MODULES=iomonitor,fadvise | collector.modules: "iomonitor,fadvise" | iomonitor has all | each once: iomonitor
COLLECTOR_MODULES=iomonitor,iomonitor | collector.modules | given twice | each once: iomonitor
COLLECTOR_MODULES=iomonitor, | "iomonitor," | a name is missing | each once: iomonitor
COLLECTOR_SCOPE_CGROUP=a | collector.scope.cgroup: "a" | not absolute | the absolute path of a cgroup
EXPORT_TYPE=influxdb | export.type: "influxdb" | prometheus, banyandb, otlp, or a list
COLLECTOR_INTREVAL=1s | no such key | nearest is EBPF_SIDECAR_COLLECTOR_INTERVAL;
HTTP_PORT=1 | no such key | nearest is EBPF_SIDECAR_
PORT_X_TCP=1 | no such key | nearest is EBPF_SIDECAR_
"#;

#[test]
fn a_bad_variable_is_refused_with_its_name_key_value_and_what_is_allowed() {
    for case in BAD_VARIABLES.trim().lines() {
        let mut fields = case.split(" | ");
        let (name, value) = fields.next().unwrap().split_once('=').unwrap();
        let message = refusal(&output(&["run"], &[(name, value)]), case);
        let beginning = format!("environment variable EBPF_SIDECAR_{name}: ");
        for part in fields.chain([beginning.as_str(), "allowed: "]) {
            assert!(message.contains(part), "{case}\n{message}\nlacks {part}");
        }
    }
}

#[test]
fn a_scope_that_is_no_cgroup_is_refused() {
    let dir = TempDir::new("cgroup");
    let mut cases = vec![
        (dir.path.clone(), "it is no cgroup v2"),
        (dir.path.join("none"), "No such file"),
        ("/proc/self/mounts".into(), "it is no directory"),
    ];
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    match mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f[2] == "cgroup") {
        Some(v1) => cases.push((v1[1].into(), "it is no cgroup v2")),
        None => common::skipped("a_scope_that_is_no_cgroup_is_refused", "no cgroup v1 here; the others were tried"),
    }
    if let Some(root) = cgroup_root() {
        cases.push((root.join("cgroup.procs"), "it is no directory"));
    }
    for (path, why) in cases {
        let yaml = format!("collector:\n  scope:\n    cgroup: {}\n", path.display());
        for command in ["run", "check"] {
            let (o, file) = run_with_file(command, yaml.as_bytes(), &[]);
            let message = refusal(&o, &yaml);
            let beginning = format!("{file}:3: collector.scope.cgroup: {path:?} is not allowed: {why}");
            let allowed = "; allowed: the absolute path of a cgroup v2 directory, such as /sys/fs/cgroup/system.slice";
            assert!(message.starts_with(&beginning) && message.ends_with(allowed), "{message}");
        }
        // The host that the file is for may be another one.
        assert!(run_with_file("config", yaml.as_bytes(), &[]).0.status.success());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    // Nobody ever writes into it.
    let dir = TempDir::new("fifo");
    let fifo = dir.path.join("config.yaml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in ["/nowhere/config.yaml", "/proc", "/dev/zero", text(&fifo)] {
        let message = refusal(&output(&["--config", path], &[]), path);
        assert!(message.starts_with(&format!("{path}: cannot read the configuration: ")), "{message}");
    }
}

fn printed(file: &str, env: &[(&str, &str)]) -> serde_yaml::Value {
    let (o, _) = run_with_file("config", file.as_bytes(), env);
    assert!(o.status.success() && o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
    serde_yaml::from_slice(&o.stdout).unwrap()
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "server: {http: {port: 1000, metrics_path: /m}}\ncollector: {interval: 1s}\n";
    let env = [("SERVER_HTTP_PORT", "2000"), ("COLLECTOR_INTERVAL", "1m30s"), ("COLLECTOR_MODULES", " iomonitor ")];
    let config = printed(file, &env);
    assert_eq!(config["server"]["http"]["port"], 2000);
    assert_eq!(config["server"]["http"]["metrics_path"], "/m");
    assert_eq!(config["collector"]["interval"], "1m30s");
    assert_eq!(config["collector"]["modules"], serde_yaml::from_str::<serde_yaml::Value>("[iomonitor]").unwrap());
    assert_eq!(printed(file, &[])["server"]["http"]["port"], 1000);
}

#[test]
fn lists_have_commas() {
    let config = printed("", &[("EXPORT_BANYANDB_ENDPOINT", "a:1,[::1]:2"), ("COLLECTOR_PROBES", "kswapd, fadvise")]);
    assert_eq!(config["export"]["banyandb"]["endpoint"], "a:1,[::1]:2");
    assert_eq!(config["collector"]["probes"], serde_yaml::from_str::<serde_yaml::Value>("[kswapd, fadvise]").unwrap());
}

#[test]
fn variables_of_a_kubernetes_service_are_ignored() {
    let env = [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "9090"),
        ("SERVICE_PORT_GRPC", "9090"),
        ("PORT", "tcp://10.0.0.1:9090"),
        ("PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ("PORT_9090_TCP_ADDR", "10.0.0.1"),
        ("PORT_9090_TCP_PORT", "9090"),
        ("PORT_9090_TCP_PROTO", "tcp"),
    ];
    assert_eq!(printed("", &env), printed("", &[]));
}

#[test]
fn what_config_prints_loads_again() {
    let file = "server: {http: {address: '::1', port: 1}}\ncollector: {interval: 250ms, scope: {comm: 'a: b'}}\n";
    let (first, _) = run_with_file("config", file.as_bytes(), &[]);
    let (second, _) = run_with_file("config", &first.stdout, &[]);
    assert!(second.status.success());
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/config.yaml");
    let shipped = output(&["config", "-c", text(&shipped)], &[]);
    let (defaults, _) = run_with_file("config", b"", &[]);
    assert!(shipped.status.success());
    assert_eq!(String::from_utf8(shipped.stdout).unwrap(), String::from_utf8(defaults.stdout).unwrap());
}

fn printout(args: &[&str]) -> String {
    let o = output(args, &[]);
    assert!(o.status.success() && o.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&o.stderr));
    String::from_utf8(o.stdout).unwrap()
}

#[test]
fn version_tells_what_was_built() {
    let shown = printout(&["version"]);
    let lines: Vec<(&str, &str)> = shown.lines().map(|l| l.split_once(' ').unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|l| l.0).collect();
    assert_eq!(names, ["ebpf-sidecar", "commit", "built", "libbpf"], "{shown}");
    assert_eq!(lines[0].1, env!("CARGO_PKG_VERSION"));
    assert!(lines[2].1.starts_with("20") && lines[2].1.contains('T'), "{shown}");
    assert!(lines[3].1.starts_with("1."), "{shown}");
    assert_eq!(printout(&["--version"]), shown);
    assert_eq!(printout(&["-V"]), shown);
}

#[test]
fn help_names_the_commands() {
    let shown = printout(&["--help"]);
    for word in ["run", "check", "config", "version", "--config", "--log-level", "EBPF_SIDECAR_", "Exit codes"] {
        assert!(shown.contains(word), "{word}");
    }
    assert_eq!(printout(&["help"]), shown);
    assert_eq!(printout(&["check", "-h"]), shown);
}

#[test]
fn a_bad_command_line_is_refused() {
    for (args, parts) in [
        (&["chekc"][..], &["unknown command \"chekc\"", "nearest is check", "allowed: run, check"][..]),
        (&["--confg", "x"], &["unknown option \"--confg\"", "nearest is --config"]),
        (&["-x"], &["unknown option \"-x\"", "allowed: "]),
        (&["check", "run"], &["unexpected argument \"run\"", "one command"]),
        (&["--config"], &["--config", "missing"]),
        (&["--log-level", "loud"], &["--log-level", "\"loud\"", "off, error, warn, info, debug, trace"]),
    ] {
        let message = refusal(&output(args, &[]), &format!("{args:?}"));
        for part in parts {
            assert!(message.contains(part), "{args:?}\n{message}\nlacks {part}");
        }
    }
}
