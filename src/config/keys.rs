//! The table of keys: path, what is allowed, help, and how a text becomes a field and back. Each key once.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::groups::Groups;
use super::{
    AllowConfigure, AttachMode, By, Compression, Config, ExportKind, ModuleName, PROBES, Pod, Protocol, Scope, Secret,
    Span, Switch,
};

/// One key of the configuration.
pub(super) struct Key {
    /// Its place in the file, sections separated by dots.
    pub path: &'static str,
    /// Its form.
    pub kind: Kind,
    /// What is allowed, as messages and documentation say it.
    pub allowed: &'static str,
    /// What it is for, in one sentence.
    pub help: &'static str,
    /// Parses the text into its field.
    pub set: fn(&mut Config, &str) -> Result<(), Why>,
    /// Its field as the text that sets it; `None` when it is unset.
    pub get: fn(&Config) -> Option<String>,
}

/// Form of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One value.
    Scalar,
    /// A list in YAML; as text, with commas.
    List,
    /// One value, or a list of several.
    OneOrMore,
    /// One value that no message or printout shows.
    Secret,
}

/// Why a text is not allowed, where what is allowed does not say enough.
pub(crate) type Why = Option<&'static str>;

type Parsed<T> = Result<T, Why>;

const ADDRESS: &str = "an IPv4 or IPv6 address, such as 0.0.0.0 or ::1";
const PORT: &str = "a port from 1 to 65535";
const BOOL: &str = "true or false";
const FILE: &str = "the path of a PEM file";
const SPAN: &str = "hours or days, such as 12h or 7d, up to 8760h or 3650d";
const USER: &str = "1 to 255 characters without a colon";
const HEADERS: &str =
    "name=value, with commas between several and none in a value, printable ASCII characters up to 4096";
const CREDENTIAL: &str = "1 to 255 printable ASCII characters";
const DURATION: &str = "a duration from 10ms to 1h, such as 500ms, 10s or 1m30s";

/// Every key, in the order of the file.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "server.grpc.enabled",
        kind: Kind::Scalar,
        allowed: BOOL,
        help: "Whether there is a gRPC server; without it the same methods are served over HTTP alone.",
        set: |c, s| put(&mut c.server.grpc.enabled, boolean(s)),
        get: |c| Some(c.server.grpc.enabled.to_string()),
    },
    Key {
        path: "server.grpc.address",
        kind: Kind::Scalar,
        allowed: ADDRESS,
        help: "Address of the gRPC server; 0.0.0.0 and :: are both every interface, of IPv4 and IPv6.",
        set: |c, s| put(&mut c.server.grpc.address, address(s)),
        get: |c| Some(c.server.grpc.address.to_string()),
    },
    Key {
        path: "server.grpc.port",
        kind: Kind::Scalar,
        allowed: PORT,
        help: "Port of the gRPC server.",
        set: |c, s| put(&mut c.server.grpc.port, port(s)),
        get: |c| Some(c.server.grpc.port.to_string()),
    },
    Key {
        path: "server.grpc.tls.enabled",
        kind: Kind::Scalar,
        allowed: BOOL,
        help: "Whether the gRPC server encrypts; needs both files.",
        set: |c, s| put(&mut c.server.grpc.tls.enabled, boolean(s)),
        get: |c| Some(c.server.grpc.tls.enabled.to_string()),
    },
    Key {
        path: "server.grpc.tls.cert_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Certificate chain of the gRPC server.",
        set: |c, s| put(&mut c.server.grpc.tls.cert_file, file(s).map(Some)),
        get: |c| c.server.grpc.tls.cert_file.as_deref().map(show_path),
    },
    Key {
        path: "server.grpc.tls.key_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Private key that belongs to it.",
        set: |c, s| put(&mut c.server.grpc.tls.key_file, file(s).map(Some)),
        get: |c| c.server.grpc.tls.key_file.as_deref().map(show_path),
    },
    Key {
        path: "server.grpc.tls.client_ca_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Authorities that sign the clients' certificates; with it, a client without such a one is refused.",
        set: |c, s| put(&mut c.server.grpc.tls.client_ca_file, file(s).map(Some)),
        get: |c| c.server.grpc.tls.client_ca_file.as_deref().map(show_path),
    },
    Key {
        path: "server.grpc.auth.token_file",
        kind: Kind::Scalar,
        allowed: "the path of a file with a token of 16 to 4096 printable ASCII characters without spaces",
        help: "Token that gRPC calls have to send as `authorization: Bearer TOKEN`; those of grpc.health.v1 need none.",
        set: |c, s| put(&mut c.server.grpc.token_file, file(s).map(Some)),
        get: |c| c.server.grpc.token_file.as_deref().map(show_path),
    },
    Key {
        path: "server.grpc.limits.streams",
        kind: Kind::Scalar,
        allowed: "a number from 1 to 65536",
        help: "Open streams of all gRPC clients together; one more is RESOURCE_EXHAUSTED.",
        set: |c, s| put(&mut c.server.grpc.limits.streams, number(s, 1, 65536)),
        get: |c| Some(c.server.grpc.limits.streams.to_string()),
    },
    Key {
        path: "server.grpc.limits.calls",
        kind: Kind::Scalar,
        allowed: "a number from 1 to 65536",
        help: "Other calls of all gRPC clients together that are being answered; one more is RESOURCE_EXHAUSTED. A connection may have as many as stay free.",
        set: |c, s| put(&mut c.server.grpc.limits.calls, number(s, 1, 65536)),
        get: |c| Some(c.server.grpc.limits.calls.to_string()),
    },
    Key {
        path: "server.grpc.limits.message_bytes",
        kind: Kind::Scalar,
        allowed: "a number from 1024 to 16777216",
        help: "Bytes of one request; a larger one is RESOURCE_EXHAUSTED.",
        set: |c, s| put(&mut c.server.grpc.limits.message_bytes, number(s, 1024, 16 << 20)),
        get: |c| Some(c.server.grpc.limits.message_bytes.to_string()),
    },
    Key {
        path: "server.grpc.limits.memory_bytes",
        kind: Kind::Scalar,
        allowed: "a number from 1048576 to 4294967296",
        help: "Bytes that gRPC may hold for its connections and calls; beyond, it refuses and drops them.",
        set: |c, s| put(&mut c.server.grpc.limits.memory_bytes, number(s, 1 << 20, 4 << 30)),
        get: |c| Some(c.server.grpc.limits.memory_bytes.to_string()),
    },
    Key {
        path: "server.grpc.limits.answer_bytes",
        kind: Kind::Scalar,
        allowed: "a number from 4194304 to 4294967296",
        help: "Bytes of answers of all gRPC clients together that they have not read; the next call is RESOURCE_EXHAUSTED.",
        set: |c, s| put(&mut c.server.grpc.limits.answer_bytes, number(s, 4 << 20, 4 << 30)),
        get: |c| Some(c.server.grpc.limits.answer_bytes.to_string()),
    },
    Key {
        path: "server.grpc.limits.connection_idle",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time after which a gRPC connection without calls is closed.",
        set: |c, s| put(&mut c.server.grpc.limits.connection_idle, duration(s)),
        get: |c| Some(show_duration(c.server.grpc.limits.connection_idle)),
    },
    Key {
        path: "server.grpc.limits.connection_age",
        kind: Kind::Scalar,
        allowed: "off, or a duration from 10ms to 1h",
        help: "Time after which any gRPC connection is closed, with a minute for its calls and streams to end.",
        set: |c, s| put(&mut c.server.grpc.limits.connection_age, unless_off(s)),
        get: |c| Some(c.server.grpc.limits.connection_age.map_or("off".into(), show_duration)),
    },
    Key {
        path: "server.grpc.limits.keepalive",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time without a sign of life after which a gRPC connection is probed; with no answer for 20 s it is closed.",
        set: |c, s| put(&mut c.server.grpc.limits.keepalive, duration(s)),
        get: |c| Some(show_duration(c.server.grpc.limits.keepalive)),
    },
    Key {
        path: "server.http.address",
        kind: Kind::Scalar,
        allowed: ADDRESS,
        help: "Address of the HTTP server; 0.0.0.0 and :: are both every interface, of IPv4 and IPv6.",
        set: |c, s| put(&mut c.server.http.address, address(s)),
        get: |c| Some(c.server.http.address.to_string()),
    },
    Key {
        path: "server.http.port",
        kind: Kind::Scalar,
        allowed: PORT,
        help: "Port of the HTTP server.",
        set: |c, s| put(&mut c.server.http.port, port(s)),
        get: |c| Some(c.server.http.port.to_string()),
    },
    Key {
        path: "server.http.metrics_path",
        kind: Kind::Scalar,
        allowed: "a path such as /metrics, of letters, digits and -._~, other than /, /health and what is under /api/v1",
        help: "Path of the Prometheus metrics.",
        set: |c, s| put(&mut c.server.http.metrics_path, metrics_path(s)),
        get: |c| Some(c.server.http.metrics_path.clone()),
    },
    Key {
        path: "server.http.hosts",
        kind: Kind::List,
        allowed: "a list of host names or addresses without ports, each once",
        help: "Names under which / and /api may be asked (Host header), beside localhost, addresses and this host's own name.",
        set: |c, s| put(&mut c.server.http.hosts, names(s, host)),
        get: |c| (!c.server.http.hosts.is_empty()).then(|| c.server.http.hosts.join(",")),
    },
    Key {
        path: "server.http.web_config",
        kind: Kind::Scalar,
        allowed: "the path of a YAML file as exporters of Prometheus have it for --web.config.file",
        help: "TLS, passwords and headers of the HTTP server; without it, plain HTTP for everybody.",
        set: |c, s| put(&mut c.server.http.web_config, file(s).map(Some)),
        get: |c| c.server.http.web_config.as_deref().map(show_path),
    },
    Key {
        path: "server.allow_configure",
        kind: Kind::Scalar,
        allowed: "off, loopback, mtls or any",
        help: "Who may enable, disable and change modules: nobody, this host, gRPC clients with a certificate, anybody.",
        set: |c, s| put(&mut c.server.allow_configure, named(&AllowConfigure::NAMES, s)),
        get: |c| name_of(&AllowConfigure::NAMES, c.server.allow_configure),
    },
    Key {
        path: "collector.interval",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time between collections; percentages are over one interval.",
        set: |c, s| put(&mut c.collector.interval, duration(s)),
        get: |c| Some(show_duration(c.collector.interval)),
    },
    Key {
        path: "collector.history",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "How long collections are kept for requests with a time range, in at most 4 MiB of memory.",
        set: |c, s| put(&mut c.collector.history, duration(s)),
        get: |c| Some(show_duration(c.collector.history)),
    },
    Key {
        path: "collector.modules",
        kind: Kind::List,
        allowed: "a list of modules, each once: iomonitor",
        help: "Modules to run; iomonitor has fadvise, page cache and reclaim.",
        set: |c, s| put(&mut c.collector.modules, modules(s)),
        get: |c| {
            let names: Vec<_> = c.collector.modules.iter().map(|m| m.as_str()).collect();
            Some(names.join(","))
        },
    },
    Key {
        path: "collector.scope.cgroup",
        kind: Kind::Scalar,
        allowed: "the absolute path of a cgroup v2 directory, such as /sys/fs/cgroup/system.slice",
        help: "Counts only the processes of this cgroup and of all below it.",
        set: |c, s| put(&mut c.collector.scope, cgroup(s).map(Scope::Cgroup)),
        get: |c| match &c.collector.scope {
            Scope::Cgroup(path) => Some(show_path(path)),
            _ => None,
        },
    },
    Key {
        path: "collector.scope.comm",
        kind: Kind::Scalar,
        allowed: "a process name of 1 to 15 bytes: the kernel keeps no more of it",
        help: "Counts only the processes with this name, as ps -o comm shows it.",
        set: |c, s| put(&mut c.collector.scope, comm(s).map(Scope::Comm)),
        get: |c| match &c.collector.scope {
            Scope::Comm(comm) => Some(comm.clone()),
            _ => None,
        },
    },
    Key {
        path: "collector.scope.pod_uid",
        kind: Kind::Scalar,
        allowed: "auto, or the uid of a pod on this node, such as metadata.uid of the downward API gives it",
        help: "Counts only the processes of this Kubernetes pod; auto: the own one, or the host if there is none.",
        set: |c, s| put(&mut c.collector.pod, pod(s).map(Some)),
        get: |c| {
            c.collector.pod.as_ref().map(|pod| match pod {
                Pod::Auto => "auto".into(),
                Pod::Uid(uid) => uid.clone(),
            })
        },
    },
    Key {
        path: "collector.probes",
        kind: Kind::List,
        allowed: "a list of probes, each once: fadvise, read_latency, io_wait, cache_read, cache_fill, \
                  cache_evict, reclaim_scan, direct_reclaim, memcg_reclaim, kswapd",
        help: "Probes to attach; the metrics of the others are absent.",
        set: |c, s| put(&mut c.collector.probes, probes(s)),
        get: |c| Some(c.collector.probes.join(",")),
    },
    Key {
        path: "collector.by",
        kind: Kind::List,
        allowed: "a list of process and container, each once, or none",
        help: "What reads, fills and waits are told apart by, beside their sums; with none of it they cost the least.",
        set: |c, s| put(&mut c.collector.by, by(s)),
        get: |c| Some(c.collector.by.to_string()),
    },
    Key {
        path: "collector.read_latency",
        kind: Kind::Scalar,
        allowed: "auto, on or off",
        help: "Whether to time buffered reads that wait for I/O; auto: where the kernel has fentry and is not preemptible, else absent.",
        set: |c, s| put(&mut c.collector.read_latency, named(&Switch::NAMES, s)),
        get: |c| name_of(&Switch::NAMES, c.collector.read_latency),
    },
    Key {
        path: "collector.ebpf.attach",
        kind: Kind::Scalar,
        allowed: "auto, fentry, kprobe or tracepoint",
        help: "How to attach where there is a choice; auto takes the first that works, in this order, and on a preemptible kernel one that misses nothing before one that does.",
        set: |c, s| put(&mut c.collector.ebpf.attach, named(&AttachMode::NAMES, s)),
        get: |c| name_of(&AttachMode::NAMES, c.collector.ebpf.attach),
    },
    Key {
        path: "collector.ebpf.btf",
        kind: Kind::Scalar,
        allowed: "auto, on or off",
        help: "Whether to use the kernel's BTF; auto: where there is one. Without, the agent finds the kernel's fields \
               by itself when it starts.",
        set: |c, s| put(&mut c.collector.ebpf.btf, named(&Switch::NAMES, s)),
        get: |c| name_of(&Switch::NAMES, c.collector.ebpf.btf),
    },
    Key {
        path: "collector.files.enabled",
        kind: Kind::Scalar,
        allowed: BOOL,
        help: "Whether fills, evictions and waits are counted by file; needs Linux 5.8 and its BTF.",
        set: |c, s| put(&mut c.collector.files.enabled, boolean(s)),
        get: |c| Some(c.collector.files.enabled.to_string()),
    },
    Key {
        path: "collector.files.groups",
        kind: Kind::List,
        allowed: "a list of patterns of paths, each once and without commas, such as data/{table}/{}.{kind}",
        help: "Groups of files: the first pattern that takes the end of a file's path gives the group its labels.",
        set: |c, s| put(&mut c.collector.files.groups, names(s, |pattern| Ok(pattern.to_owned()))),
        get: |c| (!c.collector.files.groups.is_empty()).then(|| c.collector.files.groups.join(",")),
    },
    Key {
        path: "collector.files.preset",
        kind: Kind::Scalar,
        allowed: "auto, none, banyandb, postgresql, elasticsearch, kafka, victoriametrics, prometheus, clickhouse, etcd \
                  or rocksdb",
        help: "Patterns of a database's files, behind those of groups; auto: of each of these databases.",
        set: |c, s| put(&mut c.collector.files.preset, preset(s)),
        get: |c| Some(c.collector.files.preset.clone()),
    },
    Key {
        path: "collector.confine",
        kind: Kind::Scalar,
        allowed: "auto, on or off",
        help: "Whether the agent, once started, gives up capabilities, system calls and files that it does not need; \
               auto: as far as the kernel can, on: or it does not start.",
        set: |c, s| put(&mut c.collector.confine, named(&Switch::NAMES, s)),
        get: |c| name_of(&Switch::NAMES, c.collector.confine),
    },
    Key {
        path: "export.type",
        kind: Kind::OneOrMore,
        allowed: "prometheus, banyandb, otlp, or a list of them, each once",
        help: "Where the metrics go: fetched by Prometheus, as they always can be, and sent to BanyanDB or by OTLP as well.",
        set: |c, s| put(&mut c.export.kinds, names(s, |name| named(&ExportKind::NAMES, name))),
        get: |c| {
            let names: Option<Vec<String>> = c.export.kinds.iter().map(|k| name_of(&ExportKind::NAMES, *k)).collect();
            names.map(|names| names.join(","))
        },
    },
    Key {
        path: "export.banyandb.endpoint",
        kind: Kind::Scalar,
        allowed: "host:port, or several with commas in between, IPv6 addresses in brackets, ports from 1 to 65535",
        help: "gRPC address of BanyanDB.",
        set: |c, s| put(&mut c.export.banyandb.endpoint, endpoint(s)),
        get: |c| Some(c.export.banyandb.endpoint.clone()),
    },
    Key {
        path: "export.banyandb.group",
        kind: Kind::Scalar,
        allowed: "a name of 1 to 255 letters, digits and -._",
        help: "BanyanDB group that holds the measures.",
        set: |c, s| put(&mut c.export.banyandb.group, group(s)),
        get: |c| Some(c.export.banyandb.group.clone()),
    },
    Key {
        path: "export.banyandb.timeout",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time limit of one request to BanyanDB.",
        set: |c, s| put(&mut c.export.banyandb.timeout, duration(s)),
        get: |c| Some(show_duration(c.export.banyandb.timeout)),
    },
    Key {
        path: "export.banyandb.batch_size",
        kind: Kind::Scalar,
        allowed: "a number from 1 to 10000",
        help: "Points that are sent together.",
        set: |c, s| put(&mut c.export.banyandb.batch_size, number(s, 1, 10_000)),
        get: |c| Some(c.export.banyandb.batch_size.to_string()),
    },
    Key {
        path: "export.banyandb.flush_interval",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time after which a point is sent although its batch is not full.",
        set: |c, s| put(&mut c.export.banyandb.flush_interval, duration(s)),
        get: |c| Some(show_duration(c.export.banyandb.flush_interval)),
    },
    Key {
        path: "export.banyandb.queue_limit",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "How long points are kept while BanyanDB cannot be reached; older ones are dropped, and counted.",
        set: |c, s| put(&mut c.export.banyandb.queue_limit, duration(s)),
        get: |c| Some(show_duration(c.export.banyandb.queue_limit)),
    },
    Key {
        path: "export.banyandb.queue_bytes",
        kind: Kind::Scalar,
        allowed: "a number from 1048576 to 1073741824",
        help: "Bytes of memory for them; the oldest are dropped beyond, and counted.",
        set: |c, s| put(&mut c.export.banyandb.queue_bytes, number(s, 1 << 20, 1 << 30)),
        get: |c| Some(c.export.banyandb.queue_bytes.to_string()),
    },
    Key {
        path: "export.banyandb.resend_window",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Points acknowledged so shortly before a lost connection are sent again: the server may not have stored them.",
        set: |c, s| put(&mut c.export.banyandb.resend_window, duration(s)),
        get: |c| Some(show_duration(c.export.banyandb.resend_window)),
    },
    Key {
        path: "export.banyandb.unhealthy_after",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time of trying in vain to send after which the agent's health is degraded.",
        set: |c, s| put(&mut c.export.banyandb.unhealthy_after, duration(s)),
        get: |c| Some(show_duration(c.export.banyandb.unhealthy_after)),
    },
    Key {
        path: "export.banyandb.node",
        kind: Kind::Scalar,
        allowed: "a name of 1 to 255 letters, digits and -._:",
        help: "Value of the tag node; without it the host's name, which in a Kubernetes pod is the pod's.",
        set: |c, s| put(&mut c.export.banyandb.node, node(s).map(Some)),
        get: |c| c.export.banyandb.node.clone(),
    },
    Key {
        path: "export.banyandb.shards",
        kind: Kind::Scalar,
        allowed: "a number from 1 to 1024",
        help: "Shards of the group, when the agent creates it.",
        set: |c, s| put(&mut c.export.banyandb.shards, small(s, 1024)),
        get: |c| Some(c.export.banyandb.shards.to_string()),
    },
    Key {
        path: "export.banyandb.segment_interval",
        kind: Kind::Scalar,
        allowed: SPAN,
        help: "Length of the group's segments, when the agent creates it.",
        set: |c, s| put(&mut c.export.banyandb.segment_interval, span(s)),
        get: |c| Some(show_span(c.export.banyandb.segment_interval)),
    },
    Key {
        path: "export.banyandb.ttl",
        kind: Kind::Scalar,
        allowed: SPAN,
        help: "How long the group keeps its points, when the agent creates it.",
        set: |c, s| put(&mut c.export.banyandb.ttl, span(s)),
        get: |c| Some(show_span(c.export.banyandb.ttl)),
    },
    Key {
        path: "export.banyandb.username",
        kind: Kind::Scalar,
        allowed: CREDENTIAL,
        help: "User to log in as, where the server asks for one.",
        set: |c, s| put(&mut c.export.banyandb.username, credential(s).map(Some)),
        get: |c| c.export.banyandb.username.clone(),
    },
    Key {
        path: "export.banyandb.password",
        kind: Kind::Secret,
        allowed: CREDENTIAL,
        help: "Password of that user.",
        set: |c, s| put(&mut c.export.banyandb.password, credential(s).map(|p| Some(Secret(p)))),
        get: |c| c.export.banyandb.password.as_ref().map(|p| p.0.clone()),
    },
    Key {
        path: "export.banyandb.password_file",
        kind: Kind::Scalar,
        allowed: "the path of a file with the password alone",
        help: "The same from a file, which is read for each batch: a new password needs no restart.",
        set: |c, s| put(&mut c.export.banyandb.password_file, file(s).map(Some)),
        get: |c| c.export.banyandb.password_file.as_deref().map(show_path),
    },
    Key {
        path: "export.banyandb.tls.enabled",
        kind: Kind::Scalar,
        allowed: BOOL,
        help: "Whether to speak TLS with BanyanDB.",
        set: |c, s| put(&mut c.export.banyandb.tls.enabled, boolean(s)),
        get: |c| Some(c.export.banyandb.tls.enabled.to_string()),
    },
    Key {
        path: "export.banyandb.tls.ca_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Authorities that sign BanyanDB's certificate; without it, those of the system.",
        set: |c, s| put(&mut c.export.banyandb.tls.ca_file, file(s).map(Some)),
        get: |c| c.export.banyandb.tls.ca_file.as_deref().map(show_path),
    },
    Key {
        path: "export.banyandb.tls.cert_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Certificate chain of the agent, where the server asks for one.",
        set: |c, s| put(&mut c.export.banyandb.tls.cert_file, file(s).map(Some)),
        get: |c| c.export.banyandb.tls.cert_file.as_deref().map(show_path),
    },
    Key {
        path: "export.banyandb.tls.key_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Private key that belongs to it.",
        set: |c, s| put(&mut c.export.banyandb.tls.key_file, file(s).map(Some)),
        get: |c| c.export.banyandb.tls.key_file.as_deref().map(show_path),
    },
    Key {
        path: "export.otlp.endpoint",
        kind: Kind::Scalar,
        allowed: "host:port, or several with commas in between, IPv6 addresses in brackets, ports from 1 to 65535",
        help: "Address of the receiver of OTLP; the usual ports are 4317 for gRPC and 4318 for HTTP.",
        set: |c, s| put(&mut c.export.otlp.endpoint, endpoint(s)),
        get: |c| Some(c.export.otlp.endpoint.clone()),
    },
    Key {
        path: "export.otlp.protocol",
        kind: Kind::Scalar,
        allowed: "grpc or http",
        help: "By what OTLP goes: gRPC, or HTTP with protobuf.",
        set: |c, s| put(&mut c.export.otlp.protocol, named(&Protocol::NAMES, s)),
        get: |c| name_of(&Protocol::NAMES, c.export.otlp.protocol),
    },
    Key {
        path: "export.otlp.path",
        kind: Kind::Scalar,
        allowed: "a path of letters, digits and -._~ between slashes",
        help: "Where metrics go on an HTTP server; for Prometheus it is /api/v1/otlp/v1/metrics.",
        set: |c, s| put(&mut c.export.otlp.path, path(s)),
        get: |c| Some(c.export.otlp.path.clone()),
    },
    Key {
        path: "export.otlp.headers",
        kind: Kind::Secret,
        allowed: HEADERS,
        help: "Headers of each request, such as authorization=Bearer TOKEN.",
        set: |c, s| put(&mut c.export.otlp.headers, headers(s).map(|_| Some(Secret(s.into())))),
        get: |c| c.export.otlp.headers.as_ref().map(|h| h.0.clone()),
    },
    Key {
        path: "export.otlp.headers_file",
        kind: Kind::Scalar,
        allowed: "the path of a file with the headers alone, in one line",
        help: "The same from a file, which is read for each batch: a new token needs no restart.",
        set: |c, s| put(&mut c.export.otlp.headers_file, file(s).map(Some)),
        get: |c| c.export.otlp.headers_file.as_deref().map(show_path),
    },
    Key {
        path: "export.otlp.compression",
        kind: Kind::Scalar,
        allowed: "none or gzip",
        help: "Whether requests are compressed.",
        set: |c, s| put(&mut c.export.otlp.compression, named(&Compression::NAMES, s)),
        get: |c| name_of(&Compression::NAMES, c.export.otlp.compression),
    },
    Key {
        path: "export.otlp.resource",
        kind: Kind::List,
        allowed: "a list of name=value, each name once, without commas",
        help: "Attributes of the resource beside service.name, service.version, service.instance.id, host.name, and those of K8S_POD_NAME and the like and of OTEL_RESOURCE_ATTRIBUTES; they go before these.",
        set: |c, s| put(&mut c.export.otlp.resource, resource(s)),
        get: |c| show_resource(&c.export.otlp.resource),
    },
    Key {
        path: "export.otlp.timeout",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time limit of one request.",
        set: |c, s| put(&mut c.export.otlp.timeout, duration(s)),
        get: |c| Some(show_duration(c.export.otlp.timeout)),
    },
    Key {
        path: "export.otlp.batch_size",
        kind: Kind::Scalar,
        allowed: "a number from 1 to 10000",
        help: "Points that are sent together.",
        set: |c, s| put(&mut c.export.otlp.batch_size, number(s, 1, 10_000)),
        get: |c| Some(c.export.otlp.batch_size.to_string()),
    },
    Key {
        path: "export.otlp.flush_interval",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time after which a point is sent although its batch is not full.",
        set: |c, s| put(&mut c.export.otlp.flush_interval, duration(s)),
        get: |c| Some(show_duration(c.export.otlp.flush_interval)),
    },
    Key {
        path: "export.otlp.queue_limit",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "How long points are kept while the receiver cannot be reached; older ones are dropped, and counted.",
        set: |c, s| put(&mut c.export.otlp.queue_limit, duration(s)),
        get: |c| Some(show_duration(c.export.otlp.queue_limit)),
    },
    Key {
        path: "export.otlp.queue_bytes",
        kind: Kind::Scalar,
        allowed: "a number from 1048576 to 1073741824",
        help: "Bytes of memory for them; the oldest are dropped beyond, and counted.",
        set: |c, s| put(&mut c.export.otlp.queue_bytes, number(s, 1 << 20, 1 << 30)),
        get: |c| Some(c.export.otlp.queue_bytes.to_string()),
    },
    Key {
        path: "export.otlp.unhealthy_after",
        kind: Kind::Scalar,
        allowed: DURATION,
        help: "Time of trying in vain to send after which the agent's health is degraded.",
        set: |c, s| put(&mut c.export.otlp.unhealthy_after, duration(s)),
        get: |c| Some(show_duration(c.export.otlp.unhealthy_after)),
    },
    Key {
        path: "export.otlp.tls.enabled",
        kind: Kind::Scalar,
        allowed: BOOL,
        help: "Whether to speak TLS with the receiver.",
        set: |c, s| put(&mut c.export.otlp.tls.enabled, boolean(s)),
        get: |c| Some(c.export.otlp.tls.enabled.to_string()),
    },
    Key {
        path: "export.otlp.tls.ca_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Authorities that sign its certificate; without it, those of the system.",
        set: |c, s| put(&mut c.export.otlp.tls.ca_file, file(s).map(Some)),
        get: |c| c.export.otlp.tls.ca_file.as_deref().map(show_path),
    },
    Key {
        path: "export.otlp.tls.cert_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Certificate chain of the agent, where the receiver asks for one.",
        set: |c, s| put(&mut c.export.otlp.tls.cert_file, file(s).map(Some)),
        get: |c| c.export.otlp.tls.cert_file.as_deref().map(show_path),
    },
    Key {
        path: "export.otlp.tls.key_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Private key that belongs to it.",
        set: |c, s| put(&mut c.export.otlp.tls.key_file, file(s).map(Some)),
        get: |c| c.export.otlp.tls.key_file.as_deref().map(show_path),
    },
    Key {
        path: "client.ca_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Authorities whose signature `health` and `top` want; without it, they know the servers' certificates from this configuration.",
        set: |c, s| put(&mut c.client.ca_file, file(s).map(Some)),
        get: |c| c.client.ca_file.as_deref().map(show_path),
    },
    Key {
        path: "client.cert_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Certificate chain of `health` and `top`, where a server asks for one.",
        set: |c, s| put(&mut c.client.cert_file, file(s).map(Some)),
        get: |c| c.client.cert_file.as_deref().map(show_path),
    },
    Key {
        path: "client.key_file",
        kind: Kind::Scalar,
        allowed: FILE,
        help: "Private key that belongs to it.",
        set: |c, s| put(&mut c.client.key_file, file(s).map(Some)),
        get: |c| c.client.key_file.as_deref().map(show_path),
    },
    Key {
        path: "client.username",
        kind: Kind::Scalar,
        allowed: USER,
        help: "User as whom `health` asks, of the basic_auth_users of `server.http.web_config`.",
        set: |c, s| put(&mut c.client.username, user(s).map(Some)),
        get: |c| c.client.username.clone(),
    },
    Key {
        path: "client.password_file",
        kind: Kind::Scalar,
        allowed: "the path of a file with the password alone",
        help: "The user's password.",
        set: |c, s| put(&mut c.client.password_file, file(s).map(Some)),
        get: |c| c.client.password_file.as_deref().map(show_path),
    },
    Key {
        path: "client.token_file",
        kind: Kind::Scalar,
        allowed: "the path of a file with the token alone",
        help: "Token with which `top` asks; without it, that of `server.grpc.auth.token_file`.",
        set: |c, s| put(&mut c.client.token_file, file(s).map(Some)),
        get: |c| c.client.token_file.as_deref().map(show_path),
    },
    Key {
        path: "log.level",
        kind: Kind::Scalar,
        allowed: "off, error, warn, info, debug or trace",
        help: "What is written to the log, on stderr; `--log-level` goes before it.",
        set: |c, s| put(&mut c.log.level, s.parse().map_err(|_| None)),
        get: |c| Some(c.log.level.as_str().to_lowercase()),
    },
];

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The names that may stand in the section with this path (empty for the root), each once; none if there is no
/// such section.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS
        .iter()
        .filter_map(|k| match section {
            "" => Some(k.path),
            _ => k.path.strip_prefix(section)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.dedup();
    names
}

fn put<T>(field: &mut T, value: Parsed<T>) -> Result<(), Why> {
    *field = value?;
    Ok(())
}

fn address(s: &str) -> Parsed<IpAddr> {
    s.parse().map_err(|_| None)
}

fn port(s: &str) -> Parsed<u16> {
    number(s, 1, u16::MAX.into()).and_then(|n| u16::try_from(n).map_err(|_| None))
}

fn number(s: &str, min: usize, max: usize) -> Parsed<usize> {
    // parse() alone would take "+80".
    let digits = s.bytes().all(|b| b.is_ascii_digit());
    s.parse().ok().filter(|n| digits && (min..=max).contains(n)).ok_or(None)
}

fn boolean(s: &str) -> Parsed<bool> {
    s.parse().map_err(|_| None)
}

fn file(s: &str) -> Parsed<PathBuf> {
    if s.is_empty() || s.contains('\0') {
        return Err(None);
    }
    Ok(s.into())
}

fn cgroup(s: &str) -> Parsed<PathBuf> {
    file(s).and_then(|p| if p.is_absolute() { Ok(p) } else { Err(Some("not absolute")) })
}

fn show_path(path: &Path) -> String {
    path.display().to_string()
}

/// Whether `s` has 1 to 255 characters, all of them letters, digits or among `others`.
fn plain(s: &str, others: &str) -> bool {
    (1..=255).contains(&s.len()) && s.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn metrics_path(s: &str) -> Parsed<String> {
    const TAKEN: [&str; 3] = ["/", "/health", "/api/v1"];
    if TAKEN.contains(&s) || s.starts_with("/api/v1/") {
        return Err(Some("the agent serves something else there"));
    }
    let rest = s.strip_prefix('/').ok_or(Some("it must start with /"))?;
    if rest.split('/').any(|part| !plain(part, "-._~") || part == "." || part == "..") || s.len() > 255 {
        return Err(None);
    }
    Ok(s.into())
}

/// A path of an HTTP server.
fn path(s: &str) -> Parsed<String> {
    let rest = s.strip_prefix('/').ok_or(Some("it must start with /"))?;
    let good = rest.is_empty() || rest.split('/').all(|part| plain(part, "-._~") && part != "." && part != "..");
    if good && s.len() <= 255 { Ok(s.into()) } else { Err(None) }
}

/// Headers of requests: names in lower case, each once, and what belongs to them.
pub(crate) fn headers(s: &str) -> Parsed<Vec<(String, String)>> {
    // What the request is made of by itself.
    const OWN: [&str; 8] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "user-agent",
    ];
    if s.len() > 4096 {
        return Err(None);
    }
    let mut all: Vec<(String, String)> = Vec::new();
    for one in s.split(',') {
        let (name, value) = one.split_once('=').ok_or(Some("= is missing"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if !plain(&name, "-_.") || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(None);
        }
        if OWN.contains(&name.as_str()) || name.starts_with("grpc-") || name.ends_with("-bin") {
            return Err(Some("the agent sets such headers itself"));
        }
        if all.iter().any(|(n, _)| *n == name) {
            return Err(Some("given twice"));
        }
        all.push((name, value.to_owned()));
    }
    Ok(all)
}

/// Attributes: `name=value`.
fn resource(s: &str) -> Parsed<Vec<(String, String)>> {
    let attribute = |one: &str| match one.split_once('=') {
        Some((name, value)) if plain(name, "-._/") && value.len() <= 255 && !value.chars().any(char::is_control) => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(None),
    };
    let all = names(s, attribute)?;
    let twice = |(i, (name, _)): (usize, &(String, String))| all[..i].iter().any(|(n, _)| n == name);
    if all.iter().enumerate().any(twice) { Err(Some("given twice")) } else { Ok(all) }
}

fn show_resource(all: &[(String, String)]) -> Option<String> {
    let all: Vec<String> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
    (!all.is_empty()).then(|| all.join(","))
}

/// A list of names, each known to `find` and given once.
fn names<T: PartialEq>(s: &str, find: impl Fn(&str) -> Parsed<T>) -> Parsed<Vec<T>> {
    let mut all = Vec::new();
    for name in s.split(',').map(str::trim) {
        if name.is_empty() {
            return Err(Some("a name is missing"));
        }
        let one = find(name)?;
        if all.contains(&one) {
            return Err(Some("given twice"));
        }
        all.push(one);
    }
    Ok(all)
}

fn modules(s: &str) -> Parsed<Vec<ModuleName>> {
    names(s, |name| match name {
        "iomonitor" => Ok(ModuleName::IoMonitor),
        "fadvise" | "memory" | "cache" => {
            Err(Some("iomonitor has all of the former modules fadvise, memory and cache"))
        }
        _ => Err(Some("no such module")),
    })
}

fn probes(s: &str) -> Parsed<Vec<&'static str>> {
    names(s, |name| PROBES.iter().copied().find(|p| *p == name).ok_or(Some("no such probe")))
}

fn preset(s: &str) -> Parsed<String> {
    Groups::new(&[], s).map(|_| s.to_owned()).map_err(|_| None)
}

fn by(s: &str) -> Parsed<By> {
    if s.is_empty() || s == By::NONE {
        return Ok(By { process: false, container: false });
    }
    let names = names(s, |name| By::NAMES.into_iter().find(|known| *known == name).ok_or(None))?;
    let [process, container] = By::NAMES.map(|name| names.contains(&name));
    Ok(By { process, container })
}

fn pod(s: &str) -> Parsed<Pod> {
    match s {
        "auto" => Ok(Pod::Auto),
        _ if plain(s, "-") => Ok(Pod::Uid(s.into())),
        _ => Err(None),
    }
}

fn comm(s: &str) -> Parsed<String> {
    if !(1..=15).contains(&s.len()) || s.contains('\0') {
        return Err(None);
    }
    Ok(s.into())
}

/// The value of a choice that has this name.
fn named<T: Copy>(names: &[(T, &str)], s: &str) -> Parsed<T> {
    names.iter().find(|(_, name)| *name == s).map(|(value, _)| *value).ok_or(None)
}

fn name_of<T: PartialEq>(names: &[(T, &str)], value: T) -> Option<String> {
    names.iter().find(|(v, _)| *v == value).map(|(_, name)| (*name).to_owned())
}

fn endpoint(s: &str) -> Parsed<String> {
    if s.contains("://") {
        return Err(Some("no scheme stands before the host"));
    }
    for one in s.split(',') {
        let (host, p) = one.rsplit_once(':').ok_or(None)?;
        port(p)?;
        let valid = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => plain(host, "-._"),
        };
        if !valid {
            return Err(None);
        }
    }
    Ok(s.into())
}

fn host(s: &str) -> Parsed<String> {
    if plain(s, "-._") || s.parse::<Ipv6Addr>().is_ok() { Ok(s.to_ascii_lowercase()) } else { Err(None) }
}

/// A name for basic authentication, which a colon ends.
fn user(s: &str) -> Parsed<String> {
    let plain = s.chars().all(|c| !c.is_control() && c != ':');
    if plain && (1..=255).contains(&s.len()) { Ok(s.into()) } else { Err(None) }
}

fn group(s: &str) -> Parsed<String> {
    if plain(s, "-._") { Ok(s.into()) } else { Err(None) }
}

fn node(s: &str) -> Parsed<String> {
    if plain(s, "-._:") { Ok(s.into()) } else { Err(None) }
}

/// A number from 1 to `max`.
fn small(s: &str, max: u32) -> Parsed<u32> {
    number(s, 1, max as usize).and_then(|n| u32::try_from(n).map_err(|_| None))
}

fn span(s: &str) -> Parsed<Span> {
    match (s.strip_suffix('h'), s.strip_suffix('d')) {
        (Some(n), _) => small(n, 8760).map(Span::Hours),
        (_, Some(n)) => small(n, 3650).map(Span::Days),
        _ => Err(None),
    }
}

fn show_span(span: Span) -> String {
    match span {
        Span::Hours(n) => format!("{n}h"),
        Span::Days(n) => format!("{n}d"),
    }
}

/// A text that can go into the head of a request.
pub(crate) fn credential(s: &str) -> Parsed<String> {
    let printable = s.bytes().all(|b| (b' '..=b'~').contains(&b));
    if printable && (1..=255).contains(&s.len()) { Ok(s.into()) } else { Err(None) }
}

/// Units of durations with their milliseconds, in the order in which they may follow each other.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

fn duration(s: &str) -> Parsed<Duration> {
    if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Some("a number alone has no unit"));
    }
    match millis(s) {
        Some(ms @ 10..=3_600_000) => Ok(Duration::from_millis(ms)),
        _ => Err(None),
    }
}

/// A duration of the same form and range, for files of other formats.
pub(super) fn duration_text(s: &str) -> Option<Duration> {
    duration(s).ok()
}

fn unless_off(s: &str) -> Parsed<Option<Duration>> {
    if s == "off" { Ok(None) } else { duration(s).map(Some) }
}

fn millis(s: &str) -> Option<u64> {
    let digit = |c: char| c.is_ascii_digit();
    let (mut rest, mut total) = (s, 0u64);
    // Used up from the left: each unit once, the larger ones first.
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !digit(c))?);
        let (unit, tail) = tail.split_at(tail.find(digit).unwrap_or(tail.len()));
        let (_, ms) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*ms)?)?;
        rest = tail;
    }
    Some(total)
}

fn show_duration(d: Duration) -> String {
    let mut ms = d.as_millis();
    let mut text = String::new();
    for (name, unit) in UNITS {
        let n = ms / u128::from(unit);
        if n > 0 {
            text += &format!("{n}{name}");
        }
        ms %= u128::from(unit);
    }
    text
}
