use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::KEYS;
use super::*;

const FILE: &str = "/etc/x.yaml";

fn env(vars: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    vars.iter().map(|(n, v)| (n.into(), v.into())).collect()
}

fn load_text(yaml: &str, vars: &[(&str, &str)]) -> Result<Config, String> {
    from_sources(Some((Path::new(FILE), yaml.as_bytes())), env(vars)).map_err(|e| e.to_string())
}

fn load_env(vars: &[(&str, &str)]) -> Result<Config, String> {
    from_sources(None, env(vars)).map_err(|e| e.to_string())
}

fn repo_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_table_is_in_order() {
    let mut names = HashSet::new();
    for key in KEYS {
        let name = env_name(key.path);
        assert!(!injected_by_kubernetes(&name[ENV_PREFIX.len()..]), "{name}");
        assert!(names.insert(name), "{} has the variable of another key", key.path);
        assert!(key.help.ends_with('.'), "{}: help is a sentence", key.path);
        assert!(!key.allowed.contains('|') && !key.help.contains('|'), "{}: breaks the table in the docs", key.path);
        if let Some(default) = (key.get)(&Config::default()) {
            let mut config = Config::default();
            assert_eq!((key.set)(&mut config, &default), Ok(()), "{}", key.path);
            assert_eq!(config, Config::default(), "{}", key.path);
        }
    }
}

#[test]
fn nothing_given_is_the_defaults() {
    for yaml in [
        "",
        "# nothing\n",
        "---\n",
        "---\n# nothing\n...\n",
        "\u{feff}",
        "~",
        "{}",
        "server:\n",
        "server: ~\ncollector:\n  scope:\nexport:\n  banyandb: {}\n",
        "server:\n  http:\n    port:\n    address: null\n",
        "collector:\n  modules:\n",
    ] {
        assert_eq!(load_text(yaml, &[]), Ok(Config::default()), "{yaml:?}");
    }
    assert_eq!(load_env(&[("PATH", "/bin"), ("EBPF_SIDECARX", "1")]), Ok(Config::default()));
}

#[test]
fn every_key_is_read_from_the_file() {
    let yaml = "
log: {level: off}
server:
  grpc: {address: '::1', port: 1, tls: {enabled: true, cert_file: c.pem, key_file: /k.pem, client_ca_file: ca.pem}, auth: {token_file: t},
    limits: {streams: 2, calls: 3,
    message_bytes: 2048, memory_bytes: 4294967296, answer_bytes: 4194304, connection_idle: 4s, connection_age: 30m, keepalive: 5s}}
  http: &http
    address: 127.0.0.1
    port: '65535'
    metrics_path: /a/b-c_d.e~f
    hosts: [Agent.example, '::2']
    web_config: web.yml
  allow_configure: mtls
collector:
  interval: &time 1m30s
  history: 1h
  modules: [\"iomonitor\"]
  scope:
    comm: 0x10
  probes: [kswapd, fadvise]
  by: [container]
  read_latency: off
  ebpf: {attach: kprobe, btf: off}
  files: {enabled: true, groups: ['a/{b}.{c=x|y}', 'z*'], preset: etcd}
  confine: on
export:
  type: [banyandb, otlp]
  otlp:
    {endpoint: 'o:4318', protocol: http, path: /a/b, headers_file: h, compression: gzip, resource: [a.b=c d, e=], timeout: 2s,
     batch_size: 8, flush_interval: 3s, queue_limit: 4m, queue_bytes: 3145728, unhealthy_after: 5s,
     tls: {enabled: true, ca_file: oa, cert_file: oc, key_file: ok}}
  banyandb:
    {endpoint: 'a-b.c:1,[::1]:17912,10.0.0.1:2', group: g_1, timeout: *time, batch_size: 7, flush_interval: 1s,
     queue_limit: 2m, queue_bytes: 2097152, resend_window: 3s, unhealthy_after: 4s, node: 'n:1', shards: 2,
     segment_interval: 12h, ttl: 30d, username: me, password_file: /p,
     tls: {enabled: true, ca_file: ca, cert_file: c, key_file: k}}
client: {ca_file: ca, cert_file: c, key_file: k, username: Ünï, password_file: p, token_file: t}
";
    let expected = Config {
        log: Log { level: log::LevelFilter::Off },
        server: Server {
            grpc: Grpc {
                enabled: true,
                address: "::1".parse().unwrap(),
                port: 1,
                tls: Tls {
                    enabled: true,
                    cert_file: Some("c.pem".into()),
                    key_file: Some("/k.pem".into()),
                    client_ca_file: Some("ca.pem".into()),
                },
                token_file: Some("t".into()),
                limits: Limits {
                    streams: 2,
                    calls: 3,
                    message_bytes: 2048,
                    memory_bytes: 4 << 30,
                    answer_bytes: 4 << 20,
                    connection_idle: Duration::from_secs(4),
                    connection_age: Some(Duration::from_secs(1800)),
                    keepalive: Duration::from_secs(5),
                },
            },
            http: Http {
                address: "127.0.0.1".parse().unwrap(),
                port: 65535,
                metrics_path: "/a/b-c_d.e~f".into(),
                hosts: vec!["agent.example".into(), "::2".into()],
                web_config: Some("web.yml".into()),
            },
            allow_configure: AllowConfigure::Mtls,
        },
        collector: Collector {
            interval: Duration::from_secs(90),
            history: Duration::from_secs(3600),
            modules: vec![ModuleName::IoMonitor],
            scope: Scope::Comm("0x10".into()),
            pod: None,
            probes: vec!["kswapd", "fadvise"],
            by: By { process: false, container: true },
            read_latency: Switch::Off,
            confine: Switch::On,
            ebpf: Ebpf { attach: AttachMode::Kprobe, btf: Switch::Off },
            files: Files { enabled: true, groups: vec!["a/{b}.{c=x|y}".into(), "z*".into()], preset: "etcd".into() },
        },
        export: Export {
            kinds: vec![ExportKind::BanyanDb, ExportKind::Otlp],
            banyandb: BanyanDb {
                endpoint: "a-b.c:1,[::1]:17912,10.0.0.1:2".into(),
                group: "g_1".into(),
                timeout: Duration::from_secs(90),
                batch_size: 7,
                flush_interval: Duration::from_secs(1),
                queue_limit: Duration::from_secs(120),
                queue_bytes: 2 << 20,
                resend_window: Duration::from_secs(3),
                unhealthy_after: Duration::from_secs(4),
                node: Some("n:1".into()),
                shards: 2,
                segment_interval: Span::Hours(12),
                ttl: Span::Days(30),
                username: Some("me".into()),
                password: None,
                password_file: Some("/p".into()),
                tls: ClientTls {
                    enabled: true,
                    ca_file: Some("ca".into()),
                    cert_file: Some("c".into()),
                    key_file: Some("k".into()),
                },
            },
            otlp: Otlp {
                endpoint: "o:4318".into(),
                protocol: Protocol::Http,
                path: "/a/b".into(),
                headers: None,
                headers_file: Some("h".into()),
                compression: Compression::Gzip,
                resource: vec![("a.b".into(), "c d".into()), ("e".into(), String::new())],
                timeout: Duration::from_secs(2),
                batch_size: 8,
                flush_interval: Duration::from_secs(3),
                queue_limit: Duration::from_secs(240),
                queue_bytes: 3 << 20,
                unhealthy_after: Duration::from_secs(5),
                tls: ClientTls {
                    enabled: true,
                    ca_file: Some("oa".into()),
                    cert_file: Some("oc".into()),
                    key_file: Some("ok".into()),
                },
            },
        },
        client: Client {
            ca_file: Some("ca".into()),
            cert_file: Some("c".into()),
            key_file: Some("k".into()),
            username: Some("Ünï".into()),
            password_file: Some("p".into()),
            token_file: Some("t".into()),
        },
    };
    assert_eq!(load_text(yaml, &[]), Ok(expected.clone()));

    // The same through the environment alone.
    let vars: Vec<_> =
        KEYS.iter().filter_map(|k| Some((env_name(k.path).into(), (k.get)(&expected)?.into()))).collect();
    assert_eq!(from_sources(None, vars), Ok(expected));
}

/// Values, as YAML, that a key does not take, and what the message says beside what is allowed.
const BAD_VALUES: &[(&str, &str, &[&str])] = &[
    ("server.grpc.address", "", &["localhost", "1.2.3", "1.2.3.4:80", "'[::]'", "''", "0"]),
    ("server.http.address", "", &["localhost", "::g"]),
    ("server.grpc.port", "", &["0", "70000"]),
    (
        "server.http.port",
        "",
        &["0", "70000", "65536", "-1", "+80", "1.5", "0x50", "x", "''", "' 80'", "999999999999999999"],
    ),
    ("server.grpc.enabled", "", &["off", "0"]),
    ("server.grpc.tls.enabled", "", &["yes", "on", "1", "''"]),
    ("server.grpc.tls.cert_file", "", &["''"]),
    ("server.http.web_config", "", &["''"]),
    ("server.grpc.tls.key_file", "", &["''"]),
    ("server.grpc.tls.client_ca_file", "", &["''"]),
    ("server.grpc.auth.token_file", "", &["''"]),
    ("client.ca_file", "", &["''"]),
    ("client.cert_file", "", &["''"]),
    ("client.key_file", "", &["''"]),
    ("client.username", "", &["''", "'a:b'"]),
    ("client.password_file", "", &["''"]),
    ("client.token_file", "", &["''"]),
    ("server.grpc.limits.streams", "", &["0", "65537", "-1", "many"]),
    ("server.grpc.limits.calls", "", &["0", "65537"]),
    ("server.grpc.limits.memory_bytes", "", &["1048575", "4294967297", "64M"]),
    ("server.grpc.limits.answer_bytes", "", &["4194303", "4294967297", "32M"]),
    ("server.grpc.limits.connection_idle", "", &["off", "2h"]),
    ("server.grpc.limits.keepalive", "", &["off", "0s"]),
    ("collector.history", "", &["off", "2h"]),
    ("server.grpc.limits.message_bytes", "", &["1023", "16777217", "1MiB"]),
    ("server.grpc.limits.connection_age", "", &["never", "2h"]),
    ("log.level", "", &["warning", "on", "3", "''"]),
    ("server.allow_configure", "", &["true", "tls", "''"]),
    (
        "server.http.metrics_path",
        "the agent serves something else there",
        &["/", "/health", "/api/v1", "/api/v1/stats"],
    ),
    ("server.http.metrics_path", "it must start with /", &["metrics", "''", "http://x/metrics"]),
    ("server.http.metrics_path", "", &["/a b", "/a?b", "/ä", "/a/", "//a", "/a/../b", "/./a", "/%41"]),
    ("collector.interval", "a number alone has no unit", &["10", "0", "007"]),
    (
        "collector.interval",
        "",
        &["0s", "9ms", "1h1ms", "2h", "-1s", "1.5s", "10 s", "10S", "s", "''", "1d", "10us", "１s"],
    ),
    ("collector.interval", "", &["1s1m", "1s1s", "99999999999999999999h", "9999999999999999h"]),
    ("collector.scope.cgroup", "not absolute", &["system.slice", "../a"]),
    ("collector.scope.cgroup", "", &["''"]),
    ("collector.scope.comm", "", &["''", "sixteen-bytes-xy", "ääääääää"]),
    ("collector.scope.pod_uid", "", &["''", "Auto!", "a/b", "..", "a b"]),
    ("collector.read_latency", "", &["true", "no", "Auto", "''"]),
    ("collector.ebpf.attach", "", &["fexit", "Auto"]),
    ("collector.ebpf.btf", "", &["no", "Off"]),
    ("collector.files.enabled", "", &["auto", "''"]),
    ("collector.files.preset", "", &["mysql", "Auto", "''"]),
    ("collector.confine", "", &["true", "''"]),
    ("export.type", "", &["influxdb", "Prometheus"]),
    ("export.type", "a name is missing", &["''"]),
    ("export.banyandb.endpoint", "no scheme stands before the host", &["http://a:1"]),
    (
        "export.banyandb.endpoint",
        "",
        &["a", "a:0", "a:70000", ":1", "::1:1", "'[::1]'", "'[x]:1'", "a:1,", "a:1,b", "'a:1, b:2'"],
    ),
    ("export.banyandb.group", "", &["''", "a/b", "a b"]),
    ("export.banyandb.timeout", "", &["0s", "2h"]),
    ("export.banyandb.batch_size", "", &["0", "10001", "x"]),
    ("export.banyandb.flush_interval", "", &["0s", "2h"]),
    ("export.banyandb.queue_limit", "", &["0s", "2h"]),
    ("export.banyandb.queue_bytes", "", &["1048575", "1073741825"]),
    ("export.banyandb.resend_window", "", &["0s", "2h"]),
    ("export.banyandb.unhealthy_after", "", &["0s", "2h"]),
    ("export.banyandb.node", "", &["''", "a b", "a/b"]),
    ("export.banyandb.shards", "", &["0", "1025", "-1"]),
    ("export.banyandb.segment_interval", "", &["1", "0d", "0h", "8761h", "3651d", "1m", "+1d", "d", "''"]),
    ("export.banyandb.ttl", "", &["1", "0d", "7days"]),
    ("export.banyandb.username", "", &["''", "é"]),
    ("export.banyandb.password_file", "", &["''"]),
    ("export.banyandb.tls.enabled", "", &["yes"]),
    ("export.banyandb.tls.ca_file", "", &["''"]),
    ("export.banyandb.tls.cert_file", "", &["''"]),
    ("export.banyandb.tls.key_file", "", &["''"]),
    ("export.banyandb.timeout", "a number alone has no unit", &["30"]),
    ("export.otlp.endpoint", "no scheme stands before the host", &["http://a:1"]),
    ("export.otlp.endpoint", "", &["a", "a:0"]),
    ("export.otlp.protocol", "", &["http/protobuf", "''"]),
    ("export.otlp.path", "it must start with /", &["v1/metrics", "''"]),
    ("export.otlp.path", "", &["/a b", "/../b", "/a//b"]),
    ("export.otlp.headers_file", "", &["''"]),
    ("export.otlp.compression", "", &["zstd"]),
    ("export.otlp.timeout", "", &["0s", "2h"]),
    ("export.otlp.batch_size", "", &["0", "10001"]),
    ("export.otlp.flush_interval", "", &["0s", "2h"]),
    ("export.otlp.queue_limit", "", &["0s", "2h"]),
    ("export.otlp.queue_bytes", "", &["1048575"]),
    ("export.otlp.unhealthy_after", "", &["0s", "2h"]),
    ("export.otlp.tls.enabled", "", &["yes"]),
    ("export.otlp.tls.ca_file", "", &["''"]),
    ("export.otlp.tls.cert_file", "", &["''"]),
    ("export.otlp.tls.key_file", "", &["''"]),
];

#[test]
fn a_bad_value_is_an_error_with_file_line_key_value_and_what_is_allowed() {
    for (path, why, values) in BAD_VALUES {
        for value in *values {
            let (mut yaml, mut lines) = ("# first\n".to_string(), 1);
            for (depth, name) in path.split('.').enumerate() {
                yaml += &format!("{}{name}:\n", "  ".repeat(depth));
                lines += 1;
            }
            yaml.pop();
            yaml += &format!(" {value}\n");
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            let (shown, allowed) = (value.trim_matches('\''), keys::find(path).unwrap().allowed);
            let expected = format!("{FILE}:{lines}: {path}: {shown:?} is not allowed{why}; allowed: {allowed}");
            assert_eq!(load_text(&yaml, &[]), Err(expected));
        }
    }
    let without: Vec<_> = KEYS.iter().filter(|k| !BAD_VALUES.iter().any(|b| b.0 == k.path)).map(|k| k.path).collect();
    assert_eq!(
        without,
        [
            "server.http.hosts",
            "collector.modules",
            "collector.probes",
            "collector.by",
            "collector.files.groups",
            "export.banyandb.password",
            "export.otlp.headers",
            "export.otlp.resource",
        ],
        "lists are among the bad files, and a secret is not shown"
    );
}

/// The other errors of the file: the text, the line, and what the message says.
const BAD_FILES: &str = r#"
sever:\n  http: | 1 | sever: unknown key | nearest is server; | allowed here: server, collector, export, client, log
server:\n  http:\n    prot: 1 | 3 | server.http.prot | nearest is server.http.port; | allowed here: address, port, metrics_path
server.http.port: 1 | 1 | server.http.port: keys are written in sections | allowed: server: {http: {port: …}}
server:\n  http.port: 1 | 2 | server.http.port: keys are written in sections
port: 1 | 1 | port: unknown key | nearest is server.grpc.port; | allowed here: server, collector, export, client, log
collector:\n  scope:\n    a: 1 | 3 | collector.scope.a: unknown key | allowed here: cgroup, comm, pod_uid
7: 1 | 1 | 7: unknown key | allowed here: server
<<: {} | 1 | <<: unknown key | allowed here: server
"a\\nb": 1 | 1 | a\\nb: unknown key | allowed here: server
? [a]\n: b | 1 | sequence | one of server, collector, export
server:\n  http:\n    port: 1\n    port: 2 | 4 | server.http.port: given twice | allowed: each key once
server:\ncollector:\nserver: | 3 | server: given twice | allowed: each key once
just text | 1 | "just text" | a section with server, collector, export
- server | 1 | sequence | a section with server, collector, export
server:\n  http: 8080 | 2 | server.http | 8080 | a section with address, port, metrics_path
server:\n  grpc: [1] | 2 | server.grpc | sequence | a section with enabled, address, port, tls
server:\n  http:\n    port: [1] | 3 | server.http.port | sequence | a port from 1 to 65535
server:\n  http:\n    port:\n      a: 1 | 4 | server.http.port | map | a port from 1 to 65535
collector:\n  probes: [fadvice] | 2 | collector.probes: "fadvice" is not allowed | a list of probes
collector:\n  by: [process, file] | 2 | collector.by: "file" is not allowed | a list of process and container
collector:\n  probes:\n    - kswapd\n    - kswapd | 4 | collector.probes: "kswapd" is not allowed | given twice
server:\n  http:\n    hosts: [a, b, A] | 3 | server.http.hosts: "A" is not allowed | given twice | a list of host names
server:\n  http:\n    hosts: ['a:80'] | 3 | server.http.hosts: "a:80" is not allowed | a list of host names
collector:\n  files:\n    groups: [a/*, '{a}{b}'] | 3 | collector.files.groups: "a/*,{a}{b}" is not allowed | where one placeholder ends | a list of patterns
server:\n  allow_configure: mtls\n  grpc: {enabled: false} | 2 | server.allow_configure: "mtls" | server.grpc.enabled: "false" | allowed: mtls with
server:\n  allow_configure: mtls | 2 | server.allow_configure: "mtls" | server.grpc.tls.enabled: "false" | allowed: mtls with
collector:\n  modules: iomonitor | 2 | collector.modules | "iomonitor" | a list of modules
collector:\n  modules: {a: b} | 2 | collector.modules | map | a list of modules
collector:\n  modules: [[a]] | 2 | collector.modules[0] | sequence | a list of modules
collector:\n  modules: [] | 2 | collector.modules: [] is not allowed | each once: iomonitor
collector:\n  modules: [''] | 2 | collector.modules: "" is not allowed | a name is missing | each once: iomonitor
collector:\n  modules:\n    - | 3 | collector.modules: "" is not allowed | a name is missing | each once: iomonitor
collector:\n  modules: [fadvise] | 2 | collector.modules: "fadvise" | iomonitor has all of the former modules | each once: iomonitor
collector:\n  modules: [memory] | 2 | collector.modules: "memory" | iomonitor has all of the former modules | each once: iomonitor
collector:\n  modules:\n  - iomonitor\n  - cache | 4 | collector.modules: "cache" | iomonitor has all | each once: iomonitor
collector:\n  modules:\n  - iomonitor\n  - tcp | 4 | collector.modules: "tcp" | no such module | each once: iomonitor
collector:\n  modules:\n  - iomonitor\n  - iomonitor | 4 | collector.modules: "iomonitor" | given twice | each once: iomonitor
collector:\n  scope:\n    cgroup: "/a\\0b" | 3 | collector.scope.cgroup | the absolute path of a cgroup
server:\n  grpc:\n    port: 7\n  http:\n    port: 7 | 5 | server.http.port: "7" | server.grpc.port: "7" (/etc/x.yaml:3) | allowed: different ports
server:\n  http:\n    port: 9090 | 3 | server.http.port: "9090" | server.grpc.port: "9090" (built-in default) | allowed: different ports
server:\n  grpc:\n    port: 8080 | 3 | server.grpc.port: "8080" | server.http.port: "8080" (built-in default) | allowed: different ports
server:\n  grpc:\n    tls:\n      enabled: true\n      key_file: /k | 4 | server.grpc.tls.enabled: "true" needs server.grpc.tls.cert_file: "" | allowed: true with
server:\n  grpc:\n    tls: {enabled: true, cert_file: /c} | 3 | server.grpc.tls.enabled: "true" needs server.grpc.tls.key_file: "" | allowed: true with
export:\n  type: banyandb\n  banyandb: {username: me} | 3 | export.banyandb.username: "me" needs export.banyandb.password: "" | allowed: a username with
server:\n  grpc:\n    auth: {token_file: /t} | 3 | server.grpc.auth.token_file: "/t" cannot be had with server.grpc.tls.enabled: "false" | loopback
export:\n  type: banyandb\n  banyandb: {password_file: /p} | 3 | export.banyandb.password_file: "/p" needs export.banyandb.username: ""
export:\n  type: banyandb\n  banyandb: {username: a, password: b, password_file: /p} | 3 | password: "***" cannot be combined with export.banyandb.password_file: "/p"
export:\n  type: banyandb\n  banyandb:\n    tls: {enabled: true, cert_file: /c} | 4 | export.banyandb.tls.cert_file: "/c" needs export.banyandb.tls.key_file: ""
export:\n  type: [banyandb, banyandb] | 2 | export.type: "banyandb" is not allowed | given twice | or a list of them
export:\n  type: 3 | 2 | export.type | 3 | or a list of them
export:\n  type: otlp\n  otlp: {headers: 'a=b', headers_file: /h} | 3 | export.otlp.headers: "***" cannot be combined with export.otlp.headers_file: "/h"
export:\n  type: otlp\n  otlp:\n    tls: {enabled: true, key_file: /k} | 4 | export.otlp.tls.key_file: "/k" needs export.otlp.tls.cert_file: ""
export:\n  otlp:\n    resource: [a=b, a=c] | 3 | export.otlp.resource: "a=c" is not allowed | given twice | a list of name=value
export:\n  otlp:\n    resource: [a] | 3 | export.otlp.resource: "a" is not allowed | a list of name=value
collector:\n  scope:\n    comm: db\n    cgroup: /a | 3 | collector.scope.comm: "db" | collector.scope.cgroup: "/a" (/etc/x.yaml:4) | at most one of them
server:\n  http: [1\n | 3 | not valid YAML
server:\n	http: 1 | 2 | not valid YAML
a: b: c | 1 | not valid YAML
server: *nowhere | 1 | not valid YAML: unknown anchor
server:\n---\nserver: | 3 | a second YAML document | allowed: one
"#;

#[test]
fn a_bad_file_is_an_error_with_its_line() {
    for case in BAD_FILES.trim().lines() {
        let case = case.replace("\\\\", "\0").replace("\\n", "\n").replace('\0', "\\");
        let mut fields = case.split(" | ");
        let (yaml, line) = (fields.next().unwrap(), fields.next().unwrap());
        let message = load_text(yaml, &[]).expect_err(yaml);
        for part in fields.chain([format!("{FILE}:{line}: ").as_str()]) {
            assert!(message.contains(part), "{yaml}\n{message}\nlacks {part}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
    for (bytes, expected) in [
        (&b"server:\n  # \xff\n"[..], "/etc/x.yaml:2: byte 0xff is not UTF-8 text"),
        (b"server:\n\n# \x01\n", "/etc/x.yaml:3: character U+0001 is not allowed in YAML"),
    ] {
        let e = from_sources(Some((Path::new(FILE), bytes)), []).unwrap_err();
        assert_eq!(e.to_string(), expected);
    }
}

#[test]
fn headers_are_names_and_values_that_a_request_can_have() {
    let of = |s: &str| keys::headers(s).map_err(|why| why.unwrap_or_default());
    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    assert_eq!(of("Authorization=Basic YQ==, x-a ="), Ok(vec![pair("authorization", "Basic YQ=="), pair("x-a", "")]));
    for (text, why) in [
        ("a", "= is missing"),
        ("a=b,", "= is missing"),
        ("=b", ""),
        ("a b=c", ""),
        ("a=\u{e9}", ""),
        ("a=b\r\nc=d", ""),
        ("a=1,A=2", "given twice"),
        ("Content-Length=1", "the agent sets such headers itself"),
        ("grpc-timeout=1", "the agent sets such headers itself"),
    ] {
        assert_eq!(of(text), Err(why), "{text:?}");
    }
}

#[test]
fn the_message_in_full() {
    assert_eq!(
        load_text("server:\n  http:\n    port: 70000\n", &[]),
        Err("/etc/x.yaml:3: server.http.port: \"70000\" is not allowed; allowed: a port from 1 to 65535".into())
    );
    assert_eq!(
        load_env(&[("EBPF_SIDECAR_COLLECTOR_INTERVAL", "10")]),
        Err("environment variable EBPF_SIDECAR_COLLECTOR_INTERVAL: collector.interval: \"10\" is not allowed: \
             a number alone has no unit; allowed: a duration from 10ms to 1h, such as 500ms, 10s or 1m30s"
            .into())
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let yaml = "server:\n  http:\n    port: 1000\n    metrics_path: /m\n";
    let config = load_text(
        yaml,
        &[("EBPF_SIDECAR_SERVER_HTTP_PORT", "2000"), ("EBPF_SIDECAR_COLLECTOR_MODULES", " iomonitor ")],
    )
    .unwrap();
    assert_eq!((config.server.http.port, config.server.http.metrics_path.as_str()), (2000, "/m"));

    // Even where the file alone would not do.
    let same = "server:\n  http:\n    port: 9090\n";
    assert!(load_text(same, &[]).is_err());
    assert!(load_text(same, &[("EBPF_SIDECAR_SERVER_HTTP_PORT", "9091")]).is_ok());
    assert!(load_text(same, &[("EBPF_SIDECAR_SERVER_GRPC_PORT", "9091")]).is_ok());
    let tls = "server:\n  grpc:\n    tls: {enabled: true, cert_file: /c}\n";
    assert!(load_text(tls, &[("EBPF_SIDECAR_SERVER_GRPC_TLS_KEY_FILE", "/k")]).is_ok());

    // Empty takes back, in either order of the two keys.
    for yaml in ["collector: {scope: {cgroup: /a, comm: b}}", "collector: {scope: {comm: b, cgroup: /a}}"] {
        let scope = |var| load_text(yaml, &[(var, "")]).unwrap().collector.scope;
        assert_eq!(scope("EBPF_SIDECAR_COLLECTOR_SCOPE_CGROUP"), Scope::Comm("b".into()));
        assert_eq!(scope("EBPF_SIDECAR_COLLECTOR_SCOPE_COMM"), Scope::Cgroup("/a".into()));
    }
    assert_eq!(load_text(yaml, &[("EBPF_SIDECAR_SERVER_HTTP_PORT", "")]).unwrap().server.http.port, 8080);

    // But what is not allowed at all stays an error.
    assert!(load_text("server: {http: {port: 0}}", &[("EBPF_SIDECAR_SERVER_HTTP_PORT", "1")]).is_err());
}

/// Variables that are errors, and what the message says beside the name and what is allowed.
const BAD_VARIABLES: &str = r#"
EBPF_SIDECAR_SERVER_HTTP_PORT=70000 | server.http.port: "70000" is not allowed | a port from 1 to 65535
EBPF_SIDECAR_SERVER_HTTP_PORT= 80 | server.http.port: " 80" is not allowed | a port from 1 to 65535
EBPF_SIDECAR_COLLECTOR_MODULES=iomonitor,cache | collector.modules: "iomonitor,cache" | iomonitor has all | a list of modules
EBPF_SIDECAR_COLLECTOR_MODULES=iomonitor,iomonitor | given twice | a list of modules
EBPF_SIDECAR_COLLECTOR_MODULES=iomonitor, | "iomonitor," is not allowed: a name is missing | a list of modules
EBPF_SIDECAR_COLLECTOR_INTREVAL=1s | no such key | nearest is EBPF_SIDECAR_COLLECTOR_INTERVAL;
EBPF_SIDECAR_SERVER_HTTP_METRICS.PATH=/a | nearest is EBPF_SIDECAR_SERVER_HTTP_METRICS_PATH;
EBPF_SIDECAR_server_http_port=1 | no such key
EBPF_SIDECAR_=1 | no such key
EBPF_SIDECAR_SERVER_GRPC_PORT=8080 | server.grpc.port: "8080" | server.http.port: "8080" (built-in default)
EBPF_SIDECAR_SERVER_GRPC_TLS_ENABLED=true | server.grpc.tls.enabled: "true" needs server.grpc.tls.cert_file
"#;

#[test]
fn errors_in_the_environment_name_variable_key_value_and_what_is_allowed() {
    for case in BAD_VARIABLES.trim().lines() {
        let mut fields = case.split(" | ");
        let (name, value) = fields.next().unwrap().split_once('=').unwrap();
        let message = load_env(&[(name, value)]).expect_err(name);
        for part in fields.chain([name, "allowed: "]) {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    }

    let message =
        load_text("collector: {scope: {cgroup: /a}}", &[("EBPF_SIDECAR_COLLECTOR_SCOPE_COMM", "b")]).unwrap_err();
    for part in [
        "environment variable EBPF_SIDECAR_COLLECTOR_SCOPE_COMM: collector.scope.comm: \"b\"",
        "collector.scope.cgroup: \"/a\" (/etc/x.yaml:1)",
    ] {
        assert!(message.contains(part), "{message}");
    }

    let odd = || OsString::from_vec(b"\xff".to_vec());
    let message = from_sources(None, [("EBPF_SIDECAR_COLLECTOR_SCOPE_COMM".into(), odd())]).unwrap_err().to_string();
    assert!(message.contains("EBPF_SIDECAR_COLLECTOR_SCOPE_COMM") && message.contains("not UTF-8"), "{message}");
    let mut name = OsString::from(ENV_PREFIX);
    name.push(odd());
    assert!(from_sources(None, [(name, "1".into())]).is_err());
    assert!(from_sources(None, [(odd(), odd())]).is_ok());
}

#[test]
fn variables_of_a_kubernetes_service_are_ignored() {
    for name in [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP_METRICS",
        "PORT",
        "PORT_9090_TCP",
        "PORT_9090_TCP_ADDR",
        "PORT_9090_TCP_PORT",
        "PORT_9090_TCP_PROTO",
        "PORT_53_UDP",
        "PORT_53_UDP_ADDR",
        "PORT_1_SCTP_PROTO",
    ] {
        assert!(load_env(&[(&format!("{ENV_PREFIX}{name}"), "tcp://10.0.0.1:1")]).is_ok(), "{name}");
    }
    for name in ["SERVICE", "SERVICE_HOSTS", "PORT_", "PORT_X_TCP", "PORT_9090", "PORT_1_TCP_X", "PORT_1_TCP_ADDR_X"] {
        assert!(load_env(&[(&format!("{ENV_PREFIX}{name}"), "1")]).is_err(), "{name}");
    }
}

#[test]
fn servers_share_a_port_only_at_addresses_that_do_not_meet() {
    for (a, b, meet) in [
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("127.0.0.1", "0.0.0.0", true),
        ("::", "127.0.0.1", true),
        ("::", "0.0.0.0", true),
        ("127.0.0.1", "::1", false),
        ("::ffff:127.0.0.1", "127.0.0.1", true),
        // Every interface is that of both families.
        ("::1", "0.0.0.0", true),
    ] {
        for (a, b) in [(a, b), (b, a)] {
            let yaml = format!("server: {{http: {{address: '{a}', port: 1}}, grpc: {{address: '{b}', port: 1}}}}");
            assert_eq!(load_text(&yaml, &[]).is_err(), meet, "{yaml}");
        }
    }
}

#[test]
fn the_file_is_the_named_one_else_the_default_one_if_present() {
    let dir = std::env::temp_dir().join(format!("ebpf-sidecar-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, content: &[u8]| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let one = file("one.yaml", b"server: {http: {port: 1}}");
    let two = file("two.yaml", b"server: {http: {port: 2}}");
    let big = file("big.yaml", &vec![b'#'; MAX_FILE_BYTES as usize + 1]);
    let absent = dir.join("absent.yaml");
    let port = |path: Option<&Path>, default: &Path| {
        load_with(path, default, [], |_| Ok(())).map(|c| c.server.http.port).map_err(|e| e.to_string())
    };

    assert_eq!(port(Some(&one), &two), Ok(1));
    assert_eq!(port(None, &two), Ok(2));
    assert_eq!(port(None, &absent), Ok(8080));
    // Named but absent, a directory, below a file, too large.
    for (path, default) in
        [(Some(absent.as_path()), two.as_path()), (None, dir.as_path()), (None, &one.join("x")), (Some(&big), &two)]
    {
        let message = port(path, default).unwrap_err();
        assert!(message.starts_with(path.unwrap_or(default).to_str().unwrap()), "{message}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_running_agent_takes_over_what_it_can_of_a_new_configuration() {
    let old = load_text("server: {grpc: {address: 127.0.0.1}}", &[]).unwrap();
    let live = "{log: {level: debug}, collector: {interval: 1s, read_latency: off, scope: {comm: db}},
        server: {allow_configure: any, http: {hosts: [a.example], web_config: web.yml}, grpc: {address: 127.0.0.1, auth: {token_file: t}, limits: {streams: 1, calls: 2}}}}";
    let new = load_text(live, &[]).unwrap();
    let taken = old.taking_over(&new, true);
    let keys = |lines: Vec<String>| -> Vec<String> {
        lines.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect()
    };
    assert_eq!(taken.differences(&new), Vec::<String>::new(), "all of it needs no restart");
    let changed = keys(old.differences(&taken));
    let scopes = changed.iter().filter(|key| key.starts_with("collector.scope.")).count();
    assert_eq!(
        (changed.len(), scopes),
        (docs::RELOADED.len() - 2, 1),
        "docs/configuration.md has the others: {changed:?}"
    );
    assert!(changed.iter().all(|key| docs::RELOADED.contains(&key.as_str())), "{changed:?}");
    assert_eq!(old.differences(&taken).last().unwrap(), "log.level: \"info\" → \"debug\"");

    let with = |password: &str| {
        load_text(&format!("export: {{type: banyandb, banyandb: {{username: me, password: {password}}}}}"), &[])
            .unwrap()
    };
    assert_eq!(with("old").taking_over(&with("new"), true), with("old"));
    assert_eq!(with("old").differences(&with("new")), ["export.banyandb.password: *** → ***"]);
}

#[test]
fn a_cgroup_is_checked_where_it_is_to_be_used() {
    let load = |why: Option<&str>| {
        let env = env(&[("EBPF_SIDECAR_COLLECTOR_SCOPE_CGROUP", "/a")]);
        load_with(None, Path::new("/nowhere/x"), env, |_| match why {
            Some(why) => Err(("collector.scope.cgroup", why.into())),
            None => Ok(()),
        })
    };
    assert_eq!(load(None).unwrap().collector.scope, Scope::Cgroup("/a".into()));
    assert_eq!(
        load(Some("it is a plum")).unwrap_err().to_string(),
        "environment variable EBPF_SIDECAR_COLLECTOR_SCOPE_CGROUP: collector.scope.cgroup: \"/a\" is not allowed: \
         it is a plum; allowed: the absolute path of a cgroup v2 directory, such as /sys/fs/cgroup/system.slice"
    );
}

#[test]
fn a_pod_is_looked_for_where_it_is_to_be_used_and_excludes_the_other_scopes() {
    let pod = |text: &str| load_text(&format!("collector: {{scope: {{pod_uid: {text}}}}}"), &[]).unwrap().collector;
    assert_eq!((pod("auto").pod, pod("auto").scope), (Some(Pod::Auto), Scope::Host));
    assert_eq!(pod("0b1c-2d").pod, Some(Pod::Uid("0b1c-2d".into())));
    assert_eq!(pod("~").pod, None);

    let variables = env(&[("EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID", "0b1c-2d")]);
    let message =
        load_with(None, Path::new("/nowhere/x"), variables, |_| Err(("collector.scope.pod_uid", "gone".into())));
    assert!(
        message.unwrap_err().to_string().starts_with(
            "environment variable EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID: collector.scope.pod_uid: \"0b1c-2d\" is not allowed: \
             gone; allowed: auto, or the uid"
        )
    );
    for other in ["comm: db", "cgroup: /a"] {
        let yaml = format!("collector:\n  scope:\n    pod_uid: auto\n    {other}\n");
        let message = load_text(&yaml, &[]).unwrap_err();
        assert!(message.contains("cannot be combined with collector.scope.pod_uid: \"auto\""), "{message}");
        load_text(&yaml, &[("EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID", "")]).unwrap();
    }
}

#[test]
fn what_is_printed_loads_again() {
    let mut config = Config::default();
    config.server.grpc.tls.cert_file = Some("/with space: #1".into());
    config.server.grpc.address = "::".parse().unwrap();
    config.server.http.port = 1;
    for comm in
        ["banyand", "0x10", "007", "1.0", "true", "null", "~", " x ", "- a", "a\n", "\u{7f}\u{1}", "é🦀", "'\"\\"]
    {
        config.collector.scope = Scope::Comm(comm.into());
        let text = print(&config);
        assert_eq!(load_text(&text, &[]), Ok(config.clone()), "{text}");
    }
    for ms in (10..100).chain((1000..3_600_000).step_by(12_347)).chain([60_000, 3_600_000]) {
        config.collector.interval = Duration::from_millis(ms);
        let text = print(&config);
        assert_eq!(load_text(&text, &[]), Ok(config.clone()), "{text}");
    }
    let text = print(&Config::default());
    assert_eq!(load_text(&text, &[]), Ok(Config::default()));
    assert!(text.contains("    port: 8080\n") && text.contains("  interval: 10s\n"), "{text}");
}

#[test]
fn secrets_are_never_shown() {
    let message = load_text("export:\n  banyandb:\n    password: hünter2\n", &[]).unwrap_err();
    assert!(message.contains("/etc/x.yaml:3: export.banyandb.password: *** is not allowed"), "{message}");
    let good = "export:\n  type: banyandb\n  banyandb:\n    password: hunter2\n";
    let message = load_text(good, &[]).unwrap_err();
    assert!(message.contains("needs export.banyandb.username") && !message.contains("hunter2"), "{message}");
    let config = load_text(&format!("{good}    username: me\n"), &[]).unwrap();
    assert_eq!(config.export.banyandb.password, Some(Secret("hunter2".into())));
    assert!(print(&config).contains("    password: '***'\n"));
    assert!(!print(&config).contains("hunter2") && !format!("{config:?}").contains("hunter2"));
}

#[test]
fn values_in_messages_are_of_bounded_length() {
    let message = load_env(&[("EBPF_SIDECAR_SERVER_HTTP_PORT", &"ü".repeat(100_000))]).unwrap_err();
    assert!(message.len() < 500);
}

#[test]
fn the_example_is_complete_and_at_the_defaults() {
    let text = repo_file("configs/config.yaml");
    assert_eq!(load_text(&text, &[]), Ok(Config::default()));

    // Each optional key by itself, and which keys the file has with them.
    let optional: Vec<&str> = text
        .lines()
        .filter(|l| l.trim_start().strip_prefix('#').is_some_and(|r| r.starts_with(|c: char| c.is_ascii_lowercase())))
        .collect();
    let mut all = text.clone();
    for line in &optional {
        let set = line.replacen('#', "", 1);
        // Where a token needs no TLS.
        let loopback = [("EBPF_SIDECAR_SERVER_GRPC_ADDRESS", "127.0.0.1")];
        let with = load_text(&text.replace(line, &set), &loopback).expect(&set);
        assert_ne!(Ok(with), load_text(&text, &loopback), "{set} sets nothing");
        all = all.replace(line, &set);
    }
    for key in KEYS {
        let line = yaml::line_of(all.as_bytes(), key.path);
        assert!(line.is_some(), "configs/config.yaml lacks {}", key.path);
    }
    let unset = KEYS.iter().filter(|k| (k.get)(&Config::default()).is_none()).count();
    assert_eq!(optional.len(), unset, "optional keys are those without a default: {optional:?}");
}

#[test]
fn the_docs_are_up_to_date() {
    let rendered = markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
        std::fs::write(path, &rendered).unwrap();
    }
    assert!(repo_file("docs/configuration.md") == rendered, "run UPDATE_DOCS=1 cargo test");
}

/// xorshift: the same bytes on every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn no_input_panics() {
    let example = repo_file("configs/config.yaml").into_bytes();
    let pieces: &[&[u8]] = &[
        b"server:",
        b"\n",
        b"  ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b",",
        b"&a ",
        b"*a",
        b"!!null ",
        b"!x ",
        b"|\n",
        b">-\n",
        b"'",
        b"\"",
        b"\\",
        b"?",
        b"#",
        b"%YAML 1.2\n",
        b"---",
        b"...",
        b"http",
        b"port",
        b"~",
        b"\xff",
        b"\0",
        b"\t",
        b"\xc3\xa4",
        b"collector: {modules: ",
        b"<<: ",
        b"\r",
        b"\xef\xbb\xbf",
        b"1",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for round in 0..6000 {
        let mut bytes = Vec::new();
        match round % 3 {
            0 => bytes.extend((0..random(&mut state) % 60).map(|_| random(&mut state) as u8)),
            1 => {
                for _ in 0..random(&mut state) % 30 {
                    bytes.extend(pieces[random(&mut state) as usize % pieces.len()]);
                }
            }
            _ => {
                bytes.extend(&example);
                for _ in 0..1 + random(&mut state) % 4 {
                    let at = random(&mut state) as usize % bytes.len();
                    match random(&mut state) % 3 {
                        0 => drop(bytes.remove(at)),
                        1 => bytes[at] = random(&mut state) as u8,
                        _ => {
                            let piece = pieces[random(&mut state) as usize % pieces.len()];
                            bytes.splice(at..at, piece.iter().copied());
                        }
                    }
                }
            }
        }
        let value = OsString::from_vec(bytes.clone());
        let _ = from_sources(Some((Path::new(FILE), &bytes)), []);
        for key in KEYS {
            let _ = from_sources(None, [(env_name(key.path).into(), value.clone())]);
        }
    }
}

#[test]
fn hostile_yaml_ends_soon() {
    const SIZE: usize = 32 << 10;
    let fill = |piece: &str| piece.repeat(SIZE / piece.len());
    let mut laughs = String::from("a0: &a0 [x]\n");
    for i in 1..30 {
        laughs += &format!("a{i}: &a{i} [*a{p}, *a{p}, *a{p}]\n", p = i - 1);
    }
    // Nanoseconds that this thread has run: a busy machine is not the parser's fault.
    let spent = || -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    };
    let before = spent();
    for yaml in [
        fill("["),
        fill("{a: "),
        fill("- "),
        fill("? "),
        "server: &a {http: *a}".into(),
        "server: &a\n  http: *a\n".into(),
        "&a [*a]".into(),
        "collector: {modules: &a [*a]}".into(),
        "*a".into(),
        "&a &b server:".into(),
        "!!null x".into(),
        "server: !!null x".into(),
        "server: {http: {port: !!int x}}".into(),
        "k: &x ".repeat(1000),
        format!("{laughs}server: *a29\n"),
        format!("server: {}", fill("x")),
        fill("\0"),
        format!("? {}", "a".repeat(2000)),
    ] {
        let shown: String = yaml.chars().take(60).collect();
        let message = load_text(&yaml, &[]).expect_err(&shown);
        assert!(message.len() < 2000, "{shown}: {} bytes of message", message.len());
    }
    let took = Duration::from_nanos(spent() - before);
    assert!(took < Duration::from_secs(20), "{took:?}"); // an expansion of all the aliases would take years
}
