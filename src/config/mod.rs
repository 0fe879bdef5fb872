//! The configuration: one YAML file, then the environment, into one validated [`Config`].
//!
//! The table in `keys.rs` drives everything: the reader, the names in the environment, suggestions, the printout and
//! docs/configuration.md. To add a key: a field here, with its default in [`Config::default`], and an entry
//! there; the tests then ask for its line in configs/config.yaml and for new docs (`UPDATE_DOCS=1 cargo test`).

mod docs;
pub mod groups;
mod keys;
#[cfg(test)]
mod tests;
pub mod web;
mod yaml;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use docs::{KeyReference, markdown, reference};
use groups::Groups;
use keys::{KEYS, Key, Kind, Why};

pub(crate) use keys::{credential, headers};

pub use crate::ebpf::attach::AttachMode;

/// Where the configuration lies when the command line names no file.
pub const DEFAULT_PATH: &str = "/etc/ebpf-sidecar/config.yaml";

/// What every environment variable of the agent starts with.
pub const ENV_PREFIX: &str = "EBPF_SIDECAR_";

/// More than any configuration needs. Bounds memory (`--config /dev/zero`) and libyaml's time, which is quadratic
/// in the nesting.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The whole configuration. [`load`] makes it, and what it returns is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its log.
    pub log: Log,
    /// What the agent serves.
    pub server: Server,
    /// What it collects.
    pub collector: Collector,
    /// Where it sends its metrics.
    pub export: Export,
    /// How `health` and `top` ask it.
    pub client: Client,
}

/// What the commands `health` and `top` need where the servers ask for TLS or a password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// Authorities that sign the servers' certificates; `None`: the certificates of the configuration themselves are known.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain, for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// User of the HTTP server.
    pub username: Option<String>,
    /// File with the user's password.
    pub password_file: Option<PathBuf>,
    /// File with the token of the gRPC server; `None`: the server's own.
    pub token_file: Option<PathBuf>,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What is written, unless the command line says otherwise.
    pub level: log::LevelFilter,
}

/// What the agent serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The gRPC server.
    pub grpc: Grpc,
    /// The HTTP server.
    pub http: Http,
    /// Who may change the running agent.
    pub allow_configure: AllowConfigure,
}

/// Who may change the running agent (ConfigureModule).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowConfigure {
    /// Nobody.
    Off,
    /// Clients on this host (in this network namespace).
    Loopback,
    /// gRPC clients with a certificate that the configured CA has signed.
    Mtls,
    /// Everybody who reaches a port.
    Any,
}

impl AllowConfigure {
    /// All values, with their names in the configuration.
    pub const NAMES: [(AllowConfigure, &'static str); 4] = [
        (AllowConfigure::Off, "off"),
        (AllowConfigure::Loopback, "loopback"),
        (AllowConfigure::Mtls, "mtls"),
        (AllowConfigure::Any, "any"),
    ];
}

/// The gRPC server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grpc {
    /// Whether it runs.
    pub enabled: bool,
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on, never 0.
    pub port: u16,
    /// Encryption.
    pub tls: Tls,
    /// File with the token that clients have to send; `None`: they need none.
    pub token_file: Option<PathBuf>,
    /// What clients may take.
    pub limits: Limits,
}

impl Grpc {
    /// The file with its certificate, if it has TLS.
    pub fn cert_file_in_use(&self) -> Option<&Path> {
        self.tls.cert_file.as_deref().filter(|_| self.enabled && self.tls.enabled)
    }
}

/// What the clients of the gRPC server may take, all together unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open StreamMetrics and Watch streams.
    pub streams: usize,
    /// Other calls that are being answered.
    pub calls: usize,
    /// Bytes of one request.
    pub message_bytes: usize,
    /// Bytes that gRPC holds for connections and calls; it refuses and drops beyond.
    pub memory_bytes: usize,
    /// Bytes of answers that clients have not taken yet.
    pub answer_bytes: usize,
    /// Time after which a connection without calls is closed.
    pub connection_idle: Duration,
    /// Time after which any connection is closed, with a minute for its calls to end; `None`: never.
    pub connection_age: Option<Duration>,
    /// Time without a sign of life after which a connection is probed.
    pub keepalive: Duration,
}

/// Encryption of a server. When enabled, both files are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whether it is on.
    pub enabled: bool,
    /// Certificate chain.
    pub cert_file: Option<PathBuf>,
    /// Private key.
    pub key_file: Option<PathBuf>,
    /// Authorities whose signature a client's certificate needs; without it clients need none.
    pub client_ca_file: Option<PathBuf>,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on, never 0.
    pub port: u16,
    /// Path of the Prometheus metrics; none of the paths with a meaning of their own.
    pub metrics_path: String,
    /// Names beside loopback's that a request to change the agent may be addressed to.
    pub hosts: Vec<String>,
    /// File with TLS, passwords and headers, as exporters of Prometheus have it.
    pub web_config: Option<PathBuf>,
}

/// What the agent collects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Time between collections.
    pub interval: Duration,
    /// How long collections are kept, for requests with a time range.
    pub history: Duration,
    /// The modules to run: at least one, each once.
    pub modules: Vec<ModuleName>,
    /// Whose I/O is counted.
    pub scope: Scope,
    /// The pod that is counted, if one was asked for. [`load_for_host`] makes it the scope.
    pub pod: Option<Pod>,
    /// Names of the probes to attach, of [`PROBES`]: at least one, each once.
    pub probes: Vec<&'static str>,
    /// What counts are told apart by.
    pub by: By,
    /// Whether reads are timed.
    pub read_latency: Switch,
    /// The BPF programs.
    pub ebpf: Ebpf,
    /// What is told of files.
    pub files: Files,
    /// Whether the agent is confined once it has started.
    pub confine: Switch,
}

/// What is told of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Whether they are told apart.
    pub enabled: bool,
    /// Patterns of groups of them.
    pub groups: Vec<String>,
    /// Whose patterns come behind these: the name of a preset, auto or none.
    pub preset: String,
}

impl Files {
    /// The patterns; an error in words.
    pub fn patterns(&self) -> Result<Groups, String> {
        Groups::new(&self.groups, &self.preset)
    }
}

/// Names of all probes.
pub const PROBES: &[&str] = &[
    "fadvise",
    "read_latency",
    "io_wait",
    "cache_read",
    "cache_fill",
    "cache_evict",
    "reclaim_scan",
    "direct_reclaim",
    "memcg_reclaim",
    "kswapd",
];

/// What reads, fills and waits are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By {
    /// Processes.
    pub process: bool,
    /// Containers, as their cgroups.
    pub container: bool,
}

impl By {
    /// Names of the two.
    pub const NAMES: [&str; 2] = ["process", "container"];
    /// And of neither.
    pub const NONE: &str = "none";
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = Self::NAMES.into_iter().zip([self.process, self.container]).filter(|(_, wanted)| *wanted);
        let names: Vec<_> = wanted.map(|(name, _)| name).collect();
        if names.is_empty() { f.write_str(Self::NONE) } else { f.write_str(&names.join(",")) }
    }
}

/// The BPF programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ebpf {
    /// How they are attached.
    pub attach: AttachMode,
    /// Whether the kernel's BTF is used.
    pub btf: Switch,
}

/// Whether something is done that not every kernel can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Where it can be.
    Auto,
    /// Yes; where it cannot be, the agent is degraded.
    On,
    /// No.
    Off,
}

impl Switch {
    /// All values, with their names in the configuration.
    pub const NAMES: [(Switch, &'static str); 3] = [(Switch::Auto, "auto"), (Switch::On, "on"), (Switch::Off, "off")];
}

/// A module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleName {
    /// fadvise, page cache, reclaim.
    IoMonitor,
}

impl ModuleName {
    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ModuleName::IoMonitor => "iomonitor",
        }
    }
}

/// Whose I/O is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every process of the host.
    Host,
    /// The processes of a cgroup and of all below it. The path is absolute; whether it is a cgroup is
    /// known only to [`load_for_host`].
    Cgroup(PathBuf),
    /// The processes with this name, of 1 to 15 bytes.
    Comm(String),
}

/// A Kubernetes pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pod {
    /// The one that the agent runs in; the host, if there is none.
    Auto,
    /// The one with this uid.
    Uid(String),
}

/// As the outputs show it: `host`, `cgroup:<path>` or `comm:<name>`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Host => f.write_str("host"),
            Scope::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Scope::Comm(name) => write!(f, "comm:{name}"),
        }
    }
}

/// Where the metrics go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Who gets them (`export.type`): at least one, each once.
    pub kinds: Vec<ExportKind>,
    /// The BanyanDB server, used when `kinds` says so.
    pub banyandb: BanyanDb,
    /// The receiver of OTLP, likewise.
    pub otlp: Otlp,
}

impl Export {
    /// What is used of the TLS of each server to send to, with where it stands, and the server's address.
    pub fn clients(&self) -> Vec<(&'static str, &ClientTls, &str)> {
        let all = [
            (ExportKind::BanyanDb, "export.banyandb.tls", &self.banyandb.tls, self.banyandb.endpoint.as_str()),
            (ExportKind::Otlp, "export.otlp.tls", &self.otlp.tls, self.otlp.endpoint.as_str()),
        ];
        let used = all.into_iter().filter(|(kind, ..)| self.kinds.contains(kind));
        used.map(|(_, key, tls, endpoint)| (key, tls, endpoint)).collect()
    }
}

/// Who gets the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportKind {
    /// Nothing is sent: Prometheus fetches, as it always can.
    Prometheus,
    /// Sent to BanyanDB.
    BanyanDb,
    /// Sent by OTLP, the protocol of OpenTelemetry.
    Otlp,
}

impl ExportKind {
    /// All values, with their names in the configuration.
    pub const NAMES: [(ExportKind, &'static str); 3] =
        [(ExportKind::Prometheus, "prometheus"), (ExportKind::BanyanDb, "banyandb"), (ExportKind::Otlp, "otlp")];
}

/// A receiver of OTLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// `host:port`, or several of them with commas in between; IPv6 addresses in brackets.
    pub endpoint: String,
    /// By what the requests go.
    pub protocol: Protocol,
    /// Where they go on an HTTP server.
    pub path: String,
    /// Headers of each request, unless they are in a file.
    pub headers: Option<Secret>,
    /// File with them.
    pub headers_file: Option<PathBuf>,
    /// Whether requests are compressed.
    pub compression: Compression,
    /// Attributes of the resource, beside those that the agent knows.
    pub resource: Vec<(String, String)>,
    /// Time limit of one request, and of sending what is left when the agent stops.
    pub timeout: Duration,
    /// Points of one request.
    pub batch_size: usize,
    /// How long a point may wait for others to fill its batch.
    pub flush_interval: Duration,
    /// How long points are kept for a server that cannot be reached.
    pub queue_limit: Duration,
    /// Bytes of memory that they may take.
    pub queue_bytes: usize,
    /// Time without success after which the agent is degraded.
    pub unhealthy_after: Duration,
    /// Encryption.
    pub tls: ClientTls,
}

/// By what OTLP goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP with protobuf in its body.
    Http,
}

impl Protocol {
    /// All values, with their names in the configuration.
    pub const NAMES: [(Protocol, &'static str); 2] = [(Protocol::Grpc, "grpc"), (Protocol::Http, "http")];
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// By gzip.
    Gzip,
}

impl Compression {
    /// All values, with their names in the configuration.
    pub const NAMES: [(Compression, &'static str); 2] = [(Compression::None, "none"), (Compression::Gzip, "gzip")];
}

/// A BanyanDB server to send to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BanyanDb {
    /// `host:port`, or several of them with commas in between; IPv6 addresses in brackets.
    pub endpoint: String,
    /// The group that holds the measures.
    pub group: String,
    /// Time limit of one request, and of sending what is left when the agent stops.
    pub timeout: Duration,
    /// Points of one Write stream.
    pub batch_size: usize,
    /// How long a point may wait for others to fill its batch.
    pub flush_interval: Duration,
    /// How long points are kept for a server that cannot be reached.
    pub queue_limit: Duration,
    /// Bytes of memory that they may take.
    pub queue_bytes: usize,
    /// For how long acknowledged points are kept, to send them again after a lost connection.
    pub resend_window: Duration,
    /// Time without success after which the agent is degraded.
    pub unhealthy_after: Duration,
    /// How this agent is called in the tag `node`; `None`: the name of the host.
    pub node: Option<String>,
    /// Shards of the group, if it has to be created.
    pub shards: u32,
    /// Length of its segments.
    pub segment_interval: Span,
    /// How long it keeps its points.
    pub ttl: Span,
    /// User to log in as; with it, a password is given.
    pub username: Option<String>,
    /// Password, unless it is in a file.
    pub password: Option<Secret>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Encryption.
    pub tls: ClientTls,
}

/// A time as BanyanDB has it for groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// So many hours.
    Hours(u32),
    /// So many days.
    Days(u32),
}

/// A text that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Encryption of a connection that the agent opens. A certificate and its key are given both or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Whether it is on.
    pub enabled: bool,
    /// Authorities that sign the server's certificate; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain of the agent, for servers that ask for one.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        // Of both families, as `::` is.
        let all_interfaces = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Config {
            log: Log { level: log::LevelFilter::Info },
            server: Server {
                grpc: Grpc {
                    enabled: true,
                    address: all_interfaces,
                    port: 9090,
                    tls: Tls { enabled: false, cert_file: None, key_file: None, client_ca_file: None },
                    token_file: None,
                    limits: Limits {
                        streams: 1024,
                        calls: 512,
                        message_bytes: 1 << 20,
                        memory_bytes: 64 << 20,
                        answer_bytes: 32 << 20,
                        connection_idle: Duration::from_secs(300),
                        connection_age: Some(Duration::from_secs(3600)),
                        keepalive: Duration::from_secs(60),
                    },
                },
                http: Http {
                    address: all_interfaces,
                    port: 8080,
                    metrics_path: "/metrics".into(),
                    hosts: Vec::new(),
                    web_config: None,
                },
                allow_configure: AllowConfigure::Off,
            },
            collector: Collector {
                interval: Duration::from_secs(10),
                history: Duration::from_secs(15 * 60),
                modules: vec![ModuleName::IoMonitor],
                scope: Scope::Host,
                pod: None,
                probes: PROBES.to_vec(),
                by: By { process: true, container: true },
                read_latency: Switch::Auto,
                ebpf: Ebpf { attach: AttachMode::Auto, btf: Switch::Auto },
                files: Files { enabled: false, groups: Vec::new(), preset: "auto".into() },
                confine: Switch::Auto,
            },
            export: Export {
                kinds: vec![ExportKind::Prometheus],
                banyandb: BanyanDb {
                    endpoint: "localhost:17912".into(),
                    group: "ebpf-metrics".into(),
                    timeout: Duration::from_secs(30),
                    batch_size: 1000,
                    flush_interval: Duration::from_secs(10),
                    queue_limit: Duration::from_secs(3600),
                    queue_bytes: 8 << 20,
                    resend_window: Duration::from_secs(30),
                    unhealthy_after: Duration::from_secs(60),
                    node: None,
                    shards: 1,
                    segment_interval: Span::Days(1),
                    ttl: Span::Days(7),
                    username: None,
                    password: None,
                    password_file: None,
                    tls: ClientTls::default(),
                },
                otlp: Otlp {
                    endpoint: "localhost:4317".into(),
                    protocol: Protocol::Grpc,
                    path: "/v1/metrics".into(),
                    headers: None,
                    headers_file: None,
                    compression: Compression::None,
                    resource: Vec::new(),
                    timeout: Duration::from_secs(10),
                    batch_size: 1000,
                    flush_interval: Duration::from_secs(10),
                    queue_limit: Duration::from_secs(3600),
                    queue_bytes: 8 << 20,
                    unhealthy_after: Duration::from_secs(60),
                    tls: ClientTls::default(),
                },
            },
            client: Client::default(),
        }
    }
}

impl Config {
    /// The files that a running agent reads because this names them, and those that `server.http.web_config` names as it
    /// is now. What `client` names the commands read.
    pub fn files(&self) -> Vec<PathBuf> {
        let (server, banyandb, otlp) = (&self.server.grpc.tls, &self.export.banyandb.tls, &self.export.otlp.tls);
        let web = &self.server.http.web_config;
        // What is wrong with it is told by those who use it.
        let named = web.as_deref().and_then(|path| web::read(path).ok()).map(|config| config.files());
        let files = [
            web,
            &self.server.grpc.token_file,
            &server.cert_file,
            &server.key_file,
            &server.client_ca_file,
            &banyandb.ca_file,
            &banyandb.cert_file,
            &banyandb.key_file,
            &self.export.banyandb.password_file,
            &otlp.ca_file,
            &otlp.cert_file,
            &otlp.key_file,
            &self.export.otlp.headers_file,
        ];
        files.into_iter().flatten().cloned().chain(named.unwrap_or_default()).collect()
    }

    /// This configuration with what a running agent can take over from `new`; the rest needs a restart, as does what
    /// modules would have to be attached anew for, unless it `can_attach`.
    pub fn taking_over(&self, new: &Config, can_attach: bool) -> Config {
        let mut taken = self.clone();
        taken.log.level = new.log.level;
        if can_attach || new.server.allow_configure == AllowConfigure::Off {
            taken.server.allow_configure = new.server.allow_configure;
        }
        taken.server.http.hosts.clone_from(&new.server.http.hosts);
        taken.server.http.web_config.clone_from(&new.server.http.web_config);
        taken.server.grpc.limits.streams = new.server.grpc.limits.streams;
        taken.server.grpc.limits.calls = new.server.grpc.limits.calls;
        taken.server.grpc.token_file.clone_from(&new.server.grpc.token_file);
        taken.client.clone_from(&new.client); // of the commands, which read it themselves
        taken.collector.interval = new.collector.interval;
        taken.collector.scope.clone_from(&new.collector.scope);
        taken.collector.pod.clone_from(&new.collector.pod);
        if can_attach {
            taken.collector.read_latency = new.collector.read_latency;
        }
        taken
    }

    /// What differs in `new`, a line for each key: `key: before → after`, secrets masked.
    pub fn differences(&self, new: &Config) -> Vec<String> {
        let shown = |key: &Key, config: &Config| match ((key.get)(config), key.kind) {
            (None, _) => "none".to_owned(),
            (Some(_), Kind::Secret) => MASK.to_owned(),
            (Some(text), _) => format!("{:?}", shorten(&text, 80)),
        };
        let differs = |key: &&Key| (key.get)(self) != (key.get)(new);
        let line = |key: &Key| format!("{}: {} → {}", key.path, shown(key, self), shown(key, new));
        KEYS.iter().filter(differs).map(line).collect()
    }
}

/// What is wrong with the configuration, in one line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Reads the configuration: `path`, or else [`DEFAULT_PATH`] if there is one, then the environment.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    load_with(path, Path::new(DEFAULT_PATH), std::env::vars_os(), |_| Ok(()))
}

/// The same, for use on this host, which `fit` makes it fit.
pub fn load_for_host(path: Option<&Path>, fit: impl Fn(&mut Collector) -> FitResult) -> Result<Config, ConfigError> {
    load_with(path, Path::new(DEFAULT_PATH), std::env::vars_os(), fit)
}

/// Sets the key with this path to what `text` says.
pub(crate) fn set(config: &mut Config, path: &str, text: &str) -> Result<(), String> {
    let key = keys::find(path).ok_or_else(|| format!("{path}: no such key"))?;
    (key.set)(config, text).map_err(|why| format!("{path}: {}", not_allowed(key, text, why)))
}

/// What is collected fits the host, or which key cannot be had on it, and why.
pub type FitResult = Result<(), (&'static str, String)>;

fn load_with(
    path: Option<&Path>,
    default_path: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    fit: impl Fn(&mut Collector) -> FitResult,
) -> Result<Config, ConfigError> {
    let read_path = path.unwrap_or(default_path);
    let bytes = match read(read_path) {
        Ok(bytes) => Some(bytes),
        Err(e) if path.is_none() && e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let message = format!("{}: cannot read the configuration: {e}", read_path.display());
            return Err(ConfigError(message));
        }
    };
    let (mut config, sources) = read_sources(bytes.as_deref().map(|b| (read_path, b)), env)?;
    fit(&mut config.collector).map_err(|(path, why)| sources.unfit(path, &why))?;
    Ok(config)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_file(path, MAX_FILE_BYTES)
}

/// What a file that the configuration names holds: at most so many bytes of it, and never waiting for somebody to write them.
pub(crate) fn read_file(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::other("it is a pipe or a socket, not a file"));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("larger than {} KiB", max >> 10)));
    }
    Ok(bytes)
}

/// The configuration that a file (its path, for messages, and its content) and environment variables give.
pub fn from_sources(
    file: Option<(&Path, &[u8])>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    read_sources(file, env).map(|(config, _)| config)
}

fn read_sources<'a>(
    file: Option<(&'a Path, &'a [u8])>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Config, Sources<'a>), ConfigError> {
    let mut sources = Sources { file, given: BTreeMap::new() };
    if let Some((path, bytes)) = file {
        for (key, text) in yaml::read(path, bytes)? {
            sources.given.insert(key.path, (Origin::File, text));
        }
    }
    for (name, value) in env {
        let Some(key) = env_key(&name)? else { continue };
        let Some(text) = value.to_str() else {
            let shown = bad_value(key, &value.to_string_lossy());
            return Err(sources.error(
                Origin::Env,
                key,
                &format!("{shown} is not UTF-8 text; allowed: {}", key.allowed),
            ));
        };
        if text.is_empty() {
            // The counterpart of null in YAML, and the only way to take back what the file sets.
            sources.given.remove(key.path);
        } else {
            sources.given.insert(key.path, (Origin::Env, text.into()));
        }
    }

    let mut config = Config::default();
    for key in KEYS {
        if let Some((origin, text)) = sources.given.get(key.path) {
            (key.set)(&mut config, text).map_err(|why| sources.error(*origin, key, &not_allowed(key, text, why)))?;
        }
    }
    sources.check(&config)?;
    Ok((config, sources))
}

/// What the sources give.
struct Sources<'a> {
    file: Option<(&'a Path, &'a [u8])>,
    /// Text by path. Only the last source of each key is kept: the others are no longer in effect.
    given: BTreeMap<&'static str, (Origin, String)>,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Default,
    File,
    Env,
}

impl Sources<'_> {
    fn error(&self, origin: Origin, key: &Key, problem: &str) -> ConfigError {
        ConfigError(format!("{}: {}: {problem}", self.place(origin, key.path), key.path))
    }

    /// An origin as messages name it.
    fn place(&self, origin: Origin, path: &str) -> String {
        match (origin, self.file) {
            (Origin::Env, _) => format!("environment variable {}", env_name(path)),
            (Origin::File, Some((file, bytes))) => yaml::place(file, yaml::line_of(bytes, path)),
            _ => "built-in default".into(),
        }
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.given.get(path).map(|(_, text)| text.as_str())
    }

    /// Checks what no single key can tell.
    fn check(&self, config: &Config) -> Result<(), ConfigError> {
        let Server { grpc, http, allow_configure } = &config.server;
        if grpc.enabled && grpc.port == http.port && overlap(grpc.address, http.address) {
            // A key that was given comes first: it is the one to change.
            let (mut a, mut b) = ("server.http.port", "server.grpc.port");
            if self.text(a).is_none() {
                (a, b) = (b, a);
            }
            let port = http.port.to_string();
            let allowed = "different ports, or different addresses";
            return Err(self.conflict((a, &port), "is taken at the same address by", (b, &port), allowed));
        }
        for (path, file) in
            [("server.grpc.tls.cert_file", &grpc.tls.cert_file), ("server.grpc.tls.key_file", &grpc.tls.key_file)]
        {
            if grpc.tls.enabled && file.is_none() {
                let enabled = ("server.grpc.tls.enabled", "true");
                let allowed = "true with both cert_file and key_file, or false";
                return Err(self.conflict(enabled, "needs", (path, ""), allowed));
            }
        }
        if let Some(file) = grpc.token_file.as_ref().filter(|_| grpc.enabled && !grpc.tls.enabled)
            && !grpc.address.to_canonical().is_loopback()
        {
            let given = file.display().to_string();
            let token = ("server.grpc.auth.token_file", given.as_str());
            let allowed = "a token with TLS, or on a loopback address: whoever is on the way could read it";
            return Err(self.conflict(token, "cannot be had with", ("server.grpc.tls.enabled", "false"), allowed));
        }
        let missing = match (grpc.enabled, grpc.tls.enabled, &grpc.tls.client_ca_file) {
            (false, ..) => Some(("server.grpc.enabled", "false")),
            (_, false, _) => Some(("server.grpc.tls.enabled", "false")),
            (.., None) => Some(("server.grpc.tls.client_ca_file", "")),
            _ => None,
        };
        if let (AllowConfigure::Mtls, Some(missing)) = (*allow_configure, missing) {
            let allowed = "mtls with a gRPC server, tls.enabled: true and a client_ca_file, or another value";
            return Err(self.conflict(("server.allow_configure", "mtls"), "cannot be had with", missing, allowed));
        }
        if let Err(why) = config.collector.files.patterns() {
            return Err(self.unfit("collector.files.groups", &why));
        }
        if config.export.kinds.contains(&ExportKind::BanyanDb) {
            self.check_banyandb(&config.export.banyandb)?;
        }
        if let (true, Some(_), Some(file)) = (
            config.export.kinds.contains(&ExportKind::Otlp),
            &config.export.otlp.headers,
            self.text("export.otlp.headers_file"),
        ) {
            let headers = ("export.otlp.headers", MASK);
            return Err(self.conflict(
                headers,
                "cannot be combined with",
                ("export.otlp.headers_file", file),
                "one of them",
            ));
        }
        for (key, tls, _) in config.export.clients() {
            self.check_client(key, tls)?;
        }
        let scopes = ["collector.scope.comm", "collector.scope.cgroup", "collector.scope.pod_uid"];
        let mut given = scopes.into_iter().filter_map(|path| Some((path, self.text(path)?)));
        if let (Some(a), Some(b)) = (given.next(), given.next()) {
            return Err(self.conflict(a, "cannot be combined with", b, "at most one of them"));
        }
        Ok(())
    }

    fn check_banyandb(&self, banyandb: &BanyanDb) -> Result<(), ConfigError> {
        const USERNAME: &str = "export.banyandb.username";
        const PASSWORD: &str = "export.banyandb.password";
        const PASSWORD_FILE: &str = "export.banyandb.password_file";
        let given = |path| self.text(path).unwrap_or_default();
        let file = given(PASSWORD_FILE);
        let (password, allowed) = match (&banyandb.password, &banyandb.password_file) {
            (Some(_), Some(_)) => {
                let file = (PASSWORD_FILE, file);
                return Err(self.conflict((PASSWORD, MASK), "cannot be combined with", file, "one of them"));
            }
            (Some(_), None) => ((PASSWORD, MASK), "a username with a password or a password_file"),
            _ => ((PASSWORD_FILE, file), "a username with a password or a password_file"),
        };
        let has_password = banyandb.password.is_some() || banyandb.password_file.is_some();
        match &banyandb.username {
            Some(name) if !has_password => {
                return Err(self.conflict((USERNAME, name), "needs", (PASSWORD, ""), allowed));
            }
            None if has_password => return Err(self.conflict(password, "needs", (USERNAME, ""), allowed)),
            _ => {}
        }
        Ok(())
    }

    /// Checks the TLS that stands under `key`.
    fn check_client(&self, key: &str, tls: &ClientTls) -> Result<(), ConfigError> {
        let (cert, key) = (format!("{key}.cert_file"), format!("{key}.key_file"));
        let (a, b) = if tls.cert_file.is_some() { (&cert, &key) } else { (&key, &cert) };
        if tls.enabled && tls.cert_file.is_some() != tls.key_file.is_some() {
            let given = self.text(a).unwrap_or_default();
            return Err(self.conflict((a, given), "needs", (b, ""), "both files or neither"));
        }
        Ok(())
    }

    /// What is said of a value that cannot be had on this host.
    fn unfit(&self, path: &str, why: &str) -> ConfigError {
        let given = keys::find(path).and_then(|key| Some((key, self.given.get(path)?)));
        let Some((key, (origin, text))) = given else { return ConfigError(format!("{path}: {why}")) };
        let problem = format!("{} is not allowed: {why}; allowed: {}", bad_value(key, text), key.allowed);
        self.error(*origin, key, &problem)
    }

    /// An error between two keys, each with its value.
    fn conflict(&self, a: (&str, &str), what: &str, b: (&str, &str), allowed: &str) -> ConfigError {
        let origin = |path: &str| {
            let origin = self.given.get(path).map_or(Origin::Default, |(origin, _)| *origin);
            self.place(origin, path)
        };
        ConfigError(format!(
            "{}: {}: {:?} {what} {}: {:?} ({}); allowed: {allowed}",
            origin(a.0),
            a.0,
            shorten(a.1, 80),
            b.0,
            shorten(b.1, 80),
            origin(b.0),
        ))
    }
}

/// Whether two servers on the same port would meet. Every interface is that of both families.
fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    a == b || a.is_unspecified() || b.is_unspecified()
}

/// The environment variable of the key with this path. Names are made from the table and looked up in it,
/// never taken apart: keys contain `_` themselves.
fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.to_ascii_uppercase().replace('.', "_"))
}

/// The key that an environment variable sets; `None` for one that is not the agent's.
fn env_key(name: &OsStr) -> Result<Option<&'static Key>, ConfigError> {
    let name = name.to_string_lossy();
    let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
        return Ok(None);
    };
    if let Some(key) = KEYS.iter().find(|k| env_name(k.path) == name) {
        return Ok(Some(key));
    }
    if injected_by_kubernetes(rest) {
        return Ok(None);
    }
    let names: Vec<String> = KEYS.iter().map(|k| env_name(k.path)).collect();
    Err(ConfigError(format!(
        "environment variable {}: no such key; the nearest is {}; \
         allowed: {ENV_PREFIX} and the path of a key, upper case with _ for .",
        shorten(&name, 120).escape_debug(),
        nearest(&name, names.iter().map(String::as_str)),
    )))
}

/// Whether Kubernetes sets this variable (without the prefix) in every pod because a Service is called
/// ebpf-sidecar.
fn injected_by_kubernetes(rest: &str) -> bool {
    if matches!(rest, "SERVICE_HOST" | "SERVICE_PORT" | "PORT") || rest.starts_with("SERVICE_PORT_") {
        return true;
    }
    let mut parts = rest.split('_');
    parts.next() == Some("PORT")
        && parts.next().is_some_and(|n| n.parse::<u16>().is_ok())
        && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
        && matches!(parts.next(), None | Some("ADDR" | "PORT" | "PROTO"))
        && parts.next().is_none()
}

/// What a message says about a text that `key` does not take.
fn not_allowed(key: &Key, text: &str, why: Why) -> String {
    let why = why.map_or(String::new(), |w| format!(": {w}"));
    format!("{} is not allowed{why}; allowed: {}", bad_value(key, text), key.allowed)
}

/// A value as messages show it: quoted, of bounded length, and never a secret.
fn bad_value(key: &Key, text: &str) -> String {
    match key.kind {
        Kind::Secret => MASK.into(),
        Kind::Scalar | Kind::List | Kind::OneOrMore => format!("{:?}", shorten(text, 80)),
    }
}

/// The text without its middle if it has more than `max` characters.
fn shorten(text: &str, max: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= max {
        return text.into();
    }
    let (head, tail) = (&chars[..max / 2], &chars[chars.len() - max / 2..]);
    head.iter().chain(&['…']).chain(tail).collect()
}

/// Stands for a secret.
const MASK: &str = "***";

/// The configuration as YAML that loads again to the same [`Config`], except that secrets are masked.
pub fn print(config: &Config) -> String {
    print_keys(KEYS, config)
}

fn print_keys(keys: &[Key], config: &Config) -> String {
    use serde_yaml::{Mapping, Value};

    // Every value is read as text, so that quoting decides only how it looks.
    let scalar = |text: &str| match text.parse::<u64>() {
        Ok(n) if n.to_string() == text => Value::from(n),
        _ => text.parse::<bool>().map_or_else(|_| Value::from(text), Value::from),
    };
    let mut root = Mapping::new();
    for key in keys {
        let value = match ((key.get)(config), key.kind) {
            (None, _) => Value::Null,
            (Some(_), Kind::Secret) => Value::from(MASK),
            (Some(text), Kind::List) => text.split(',').map(scalar).collect(),
            (Some(text), Kind::OneOrMore) if text.contains(',') => text.split(',').map(scalar).collect(),
            (Some(text), Kind::Scalar | Kind::OneOrMore) => scalar(&text),
        };
        let mut parts: Vec<&str> = key.path.split('.').collect();
        let name = parts.pop().unwrap_or_default();
        let mut section = Some(&mut root);
        for part in parts {
            section =
                section.and_then(|s| s.entry(part.into()).or_insert_with(|| Mapping::new().into()).as_mapping_mut());
        }
        if let Some(section) = section {
            section.insert(name.into(), value);
        }
    }
    serde_yaml::to_string(&root).unwrap_or_else(|e| format!("# cannot be shown: {e}\n"))
}

/// The candidate with the fewest edits from `word`; empty without candidates.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    candidates.min_by_key(|c| edits(word, c)).unwrap_or_default()
}

/// Levenshtein distance, looking at no more of `a` than a long name has.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().take(100).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}
