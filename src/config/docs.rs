//! docs/configuration.md, made from the table of keys.

use super::{Config, DEFAULT_PATH, env_name, keys::KEYS};

const HEAD: &str = "\
# Configuration

<!-- Made from src/config/keys.rs: UPDATE_DOCS=1 cargo test writes it. -->

`ebpf-sidecar config` prints what is in effect. [configs/config.yaml](../configs/config.yaml) is a complete file with every
key at its default.

## Sources

Later ones win:

1. The defaults.
2. The file that `--config` names, or else `{default_path}` if there is one.
3. Environment variables: `EBPF_SIDECAR_` and the key, upper case with `_` for `.`; lists with commas.

A key with nothing after it (null in YAML, an empty environment variable) is at its default, whatever an earlier source
says. An unknown key or variable, a key given twice or a value that is not allowed ends the start with exit code 2 and a message
with file and line (or the variable), key, value and what is allowed.

## Keys

| key | default | allowed | environment |
|---|---|---|---|
";

const TAIL: &str = "
Durations are numbers with units, larger ones first: `500ms`, `10s`, `1m30s`, `1h`. A number alone is an error.

The two servers cannot share a port at the same address. `server.grpc.tls.enabled: true` needs both files, and
`server.allow_configure: mtls` needs TLS with a `client_ca_file`. `server.grpc.auth.token_file` needs TLS too, unless the gRPC server
listens on a loopback address.

With `export.type: banyandb`, a username needs a password or a `password_file`, and with `tls.enabled: true` a `cert_file` needs a
`key_file`, and the other way round. A password without TLS to another host is sent as it is, with a warning.

## A running agent

SIGHUP, or `systemctl reload ebpf-sidecar`, has it read the configuration again (the file; its environment stays as it was at the
start). These keys take effect: {reloaded}. The log tells each key that changed, from what to what, and which of the others
take a restart. A configuration that cannot be used is told in the log, and the one in use stays. Certificates, keys and passwords
in files need no signal: they are looked at with each connection, call or batch, once a second at most. What ConfigureModule has changed meanwhile stays, unless that key
changed.

Confined (`collector.confine`), the agent reads files in the folders that its configuration named when it started, and attaches
nothing any more unless `server.allow_configure` let somebody ask for it then. So a file elsewhere, `collector.read_latency`, and
`server.allow_configure` other than `off` take a restart, and the log says so ([how it is confined](confinement.md)).

A first SIGTERM or SIGINT stops the agent, which may take up to `export.banyandb.timeout` to send what is left; a second one ends
it at once.

## TLS and passwords of the HTTP server

`server.http.web_config` names a file in the format that the exporters of Prometheus share, such as
[configs/web.yml](../configs/web.yml):

| section | keys |
|---|---|
| `tls_server_config` | `cert_file`, `key_file`, `client_ca_file`, or their text in `cert`, `key`, `client_ca`; `client_auth_type`: `NoClientCert`, `RequestClientCert`, `RequireAnyClientCert`, `VerifyClientCertIfGiven`, `RequireAndVerifyClientCert`; `client_allowed_sans`; `min_version`, `max_version`: `TLS12`, `TLS13`; `cipher_suites`, `prefer_server_cipher_suites`, `curve_preferences` |
| `basic_auth_users` | names, and bcrypt hashes of their passwords (`htpasswd -nBC 10 NAME`), of cost 4 to 14 |
| `http_server_config` | `headers`: `Content-Security-Policy` and the four others that exporters take, added to answers without such a one; `http2`, which has no effect: HTTP/1.1 is spoken |
| `rate_limit` | `interval`, `burst`: of all requests together |

Relative paths start at the folder of the file. Changes of it and of the files that it names are in use from the next connection or
request on, a second after the last one at the latest; what cannot be used is told in the log, counted, and changes nothing. Differences to the exporters:
TLS 1.0 and 1.1 are refused, and so are hashes of a cost above 14, which take seconds to check. No path is exempt from passwords.

`ebpf-sidecar health` reads the same configuration: it speaks TLS where the server does, knows its certificate from `cert_file`
whatever name is in it (or checks it with `client.ca_file`), and asks as `client.username` with the password in
`client.password_file`. A probe of a container is therefore `ebpf-sidecar health`, not an HTTP request. `ebpf-sidecar top` does
the same over gRPC, with the token of `server.grpc.auth.token_file`.

## Scope

Without a scope the agent counts the I/O of the whole host. `collector.scope.cgroup` narrows it to one cgroup v2 directory with
everything below it (a pod, a systemd unit), `collector.scope.comm` to the processes with one name,
`collector.scope.pod_uid` to one Kubernetes pod; at most one of them. The filter runs in the kernel, so that what is outside costs almost nothing. What belongs to no process, such as kswapd's reclaim,
stays host-wide; the help text of each such metric says so.

A cgroup that does not exist, because its service is stopped or not yet started, is waited for: the agent is degraded meanwhile,
and counts again at the first collection after it was made. A path that can be no cgroup ends the start.

To go back from a scope of the file to another one by environment, empty the first:
`EBPF_SIDECAR_COLLECTOR_SCOPE_CGROUP= EBPF_SIDECAR_COLLECTOR_SCOPE_COMM=banyand`.

## Kubernetes

`collector.scope.pod_uid` finds the cgroup of a pod by its uid, for both cgroup drivers of kubelet, in every cgroup v2 hierarchy that
is mounted. In a container with a cgroup namespace (the rule), `/sys/fs/cgroup` shows the own container alone: mount the host's
besides, as [configs/kubernetes/](../configs/kubernetes/) does. A uid that is not found ends the start: a pod has its uid from the beginning, so it is on another node, or mistyped. A pod that moves to another place in the hierarchy is found there. `auto` takes the own pod, known by the
files that kubelet mounts into a container, and else the host; the log and `check` say which, and why.

For a Service called `ebpf-sidecar`, Kubernetes sets `EBPF_SIDECAR_SERVICE_HOST`, `EBPF_SIDECAR_PORT`,
`EBPF_SIDECAR_PORT_9090_TCP_ADDR` and the like in every pod of its namespace; the agent ignores them. For a Service whose name only
begins with `ebpf-sidecar-`, set `enableServiceLinks: false` in the pod's spec: its variables look like mistyped keys.
";

/// Keys that a running agent takes over.
pub(super) const RELOADED: [&str; 12] = [
    "server.grpc.auth.token_file",
    "server.grpc.limits.streams",
    "server.grpc.limits.calls",
    "server.http.hosts",
    "server.http.web_config",
    "server.allow_configure",
    "collector.interval",
    "collector.scope.cgroup",
    "collector.scope.comm",
    "collector.scope.pod_uid",
    "collector.read_latency",
    "log.level",
];

/// What documentation says of a key.
pub struct KeyReference {
    /// Its place in the file, sections separated by dots.
    pub path: &'static str,
    /// The environment variable that sets it.
    pub variable: String,
    /// What it is for, in one sentence.
    pub help: &'static str,
    /// What is allowed.
    pub allowed: &'static str,
    /// Its default; `None` if it is unset.
    pub default: Option<String>,
}

/// Every key, in the order of the file.
pub fn reference() -> impl Iterator<Item = KeyReference> {
    KEYS.iter().map(|key| KeyReference {
        path: key.path,
        variable: env_name(key.path),
        help: key.help,
        allowed: key.allowed,
        default: (key.get)(&Config::default()),
    })
}

/// docs/configuration.md as the table of keys has it.
pub fn markdown() -> String {
    let mut text = HEAD.replace("{default_path}", DEFAULT_PATH);
    for KeyReference { path, variable, help, allowed, default } in reference() {
        let default = default.map_or("none".into(), |d| format!("`{d}`"));
        text += &format!("| `{path}`<br>{help} | {default} | {allowed} | `{variable}` |\n");
    }
    text + &TAIL.replace("{reloaded}", &RELOADED.map(|key| format!("`{key}`")).join(", "))
}
