//! What the tests share: a running agent, its metrics, cgroups to count in, files with a known state in the
//! page cache.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod bpf;
pub mod browser;
pub mod btf;
pub mod prometheus;
pub mod sys;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::ebpf::os;
use ebpf_sidecar::monitor::catalogue;
use ebpf_sidecar::monitor::processes::in_initial_pid_namespace;

pub const MIB: usize = 1 << 20;

// ---- skipping ----

/// What keeps this machine from running tests that load BPF programs.
pub fn missing_for_bpf() -> Option<&'static str> {
    if !sys::is_root() {
        return Some("needs root");
    }
    if cgroup_root().is_none() {
        return Some("needs a mounted cgroup v2 hierarchy");
    }
    None
}

/// The command for a program that `make deps-test` puts into the target folder, or else that of the host. Tests built for
/// another target than the host's have a folder of their own below it.
pub fn tool(name: &str) -> PathBuf {
    let targets = Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().skip(1).take(2);
    targets.map(|t| t.join("venv/bin").join(name)).find(|p| p.exists()).unwrap_or_else(|| name.into())
}

/// Says that a test did not run, where `make test` collects it.
pub fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
}

/// How much work a test does: `usual`, or `emulated` in a virtual machine without KVM, where all takes some ten times
/// as long. What is asserted is the same.
pub fn sized<T>(usual: T, emulated: T) -> T {
    if std::env::var_os("TEST_EMULATED").is_some() { emulated } else { usual }
}

/// Ends the test here if BPF cannot be loaded at all.
#[macro_export]
macro_rules! need_bpf {
    ($test:literal) => {
        if let Some(why) = $crate::common::missing_for_bpf() {
            $crate::common::skipped($test, why);
            return;
        }
    };
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Tests whose counts would mix hold this: they run one after the other, whatever the number of threads.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner())
}

// ---- the agent ----

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("TEST_AGENT").map_or_else(|| env!("CARGO_BIN_EXE_ebpf-sidecar").into(), PathBuf::from)
}

/// A command that runs the binary with nothing of the caller's environment that configures it.
pub fn command() -> Command {
    command_of(binary())
}

/// The same for another program: another build, or one that runs the binary.
pub fn command_of(program: impl AsRef<OsStr>) -> Command {
    let mut c = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EBPF_SIDECAR_") {
            c.env_remove(name);
        }
    }
    c
}

/// What the binary does with these arguments and environment variables (without their prefix), if it ends by
/// itself.
pub fn output(args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut c = command();
    c.args(args);
    output_of(c, settings)
}

/// The same for a command that starts it.
pub fn output_of(mut command: Command, settings: &[(&str, &str)]) -> Output {
    command.envs(settings.iter().map(|(name, value)| (format!("EBPF_SIDECAR_{name}"), value)));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What it writes fits into a pipe.
    let status = wait_for(&mut child, patience());
    let output = child.wait_with_output().unwrap();
    assert!(status.is_some(), "it does not end: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A process that does not outlive the test.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a process that ends by itself; kills it and returns `None` if it does not.
pub fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A port of loopback that nobody listens on.
pub fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// Different ones.
pub fn free_ports<const N: usize>() -> [u16; N] {
    // Held until all are known.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|l| l.local_addr().unwrap().port())
}

/// A running agent; killed when dropped.
pub struct Agent {
    pub child: Child,
    pub port: u16,
    pub grpc_port: u16,
    log: PathBuf,
}

/// How long an agent may take to start, and to collect twice. It is there so that what hangs ends, not to judge it: on a busy
/// host an emulated machine once needed a minute.
pub fn patience() -> Duration {
    Duration::from_secs(sized(120, 600))
}

static AGENTS: AtomicU32 = AtomicU32::new(0);

impl Agent {
    /// Starts it on loopback with these environment variables (without their prefix), and waits until it
    /// serves.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(command(), settings)
    }

    pub fn start_with(command: Command, settings: &[(&str, &str)]) -> Self {
        Self::start_at(free_ports(), command, settings)
    }

    /// The same at these ports of HTTP and gRPC.
    pub fn start_at(ports: [u16; 2], command: Command, settings: &[(&str, &str)]) -> Self {
        Self::start_when(ports, command, settings, |agent| agent.try_get("/health").is_some())
    }

    /// The same for one whose HTTP server is not for everybody: `serves` tells whether it answers.
    pub fn start_asked(command: Command, settings: &[(&str, &str)], serves: impl Fn(&Self) -> bool) -> Self {
        Self::start_when(free_ports(), command, settings, serves)
    }

    fn start_when(
        [port, grpc_port]: [u16; 2],
        mut command: Command,
        settings: &[(&str, &str)],
        serves: impl Fn(&Self) -> bool,
    ) -> Self {
        let n = AGENTS.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("ebpf-sidecar-test-{}-{n}.log", std::process::id()));
        command
            .env("EBPF_SIDECAR_SERVER_HTTP_ADDRESS", "127.0.0.1")
            .env("EBPF_SIDECAR_SERVER_HTTP_PORT", port.to_string())
            .env("EBPF_SIDECAR_SERVER_GRPC_ADDRESS", "127.0.0.1")
            .env("EBPF_SIDECAR_SERVER_GRPC_PORT", grpc_port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        // The same tests run in every mode that a kernel has.
        for (test, key) in [
            ("TEST_ATTACH", "COLLECTOR_EBPF_ATTACH"),
            ("TEST_BTF", "COLLECTOR_EBPF_BTF"),
            ("TEST_GRPC", "SERVER_GRPC_ENABLED"),
        ] {
            if let Some(mode) = std::env::var_os(test) {
                command.env(format!("EBPF_SIDECAR_{key}"), mode);
            }
        }
        for (name, value) in settings {
            command.env(format!("EBPF_SIDECAR_{name}"), value);
        }
        let mut agent = Self { child: command.spawn().unwrap(), port, grpc_port, log };
        let deadline = Instant::now() + patience();
        // gRPC comes last.
        let with_grpc = std::env::var_os("TEST_GRPC").is_none_or(|v| v != "false");
        let serves_grpc = |agent: &Self| TcpStream::connect(("127.0.0.1", agent.grpc_port)).is_ok();
        while !serves(&agent) || with_grpc && !serves_grpc(&agent) {
            if let Some(status) = agent.child.try_wait().unwrap() {
                panic!("the agent ended with {status}:\n{}", agent.log());
            }
            assert!(Instant::now() < deadline, "the agent does not serve:\n{}", agent.log());
            thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn try_get(&self, path: &str) -> Option<Response> {
        request(self.port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).ok()
    }

    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|| panic!("GET {path} failed; agent's log:\n{}", self.log()))
    }

    /// The metrics now.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").body)
    }

    /// The metrics of a collection that began after this call: two ticks on, since one may be under way.
    pub fn settled(&self) -> Metrics {
        let now = self.metrics().get("ebpf_sidecar_snapshot_sequence");
        // Where asking costs more than waiting.
        thread::sleep(Duration::from_millis(sized(0, 50)));
        let mut m = self.wait(|m| m.get("ebpf_sidecar_snapshot_sequence") >= now + 2.0);
        m.0.insert(REFAULTS.to_owned(), refaults());
        m
    }

    /// The first metrics for which `done` holds.
    pub fn wait(&self, done: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = Instant::now() + patience();
        loop {
            let m = self.metrics();
            if done(&m) {
                return m;
            }
            assert!(Instant::now() < deadline, "waited in vain; agent's log:\n{}", self.log());
            thread::sleep(Duration::from_millis(sized(10, 50)));
        }
    }

    /// What `work` adds to the counters.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> (Delta, T) {
        let before = self.settled();
        let result = work();
        (Delta { before, after: self.settled() }, result)
    }

    pub fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/api/v1/stats").body).unwrap()
    }

    pub fn rss_kib(&self) -> u64 {
        status_field(self.child.id(), "VmRSS:")
    }

    /// What is resident and no page of its file: of how many of these a fault maps, kernel and file system decide.
    pub fn own_kib(&self) -> u64 {
        status_field(self.child.id(), "RssAnon:")
    }
}

/// The id that the kernel has for this process, which counts in the scope of this agent. In a pid namespace it is not the
/// process's own, and learned from the agent: by a call to fadvise, and by the name.
pub fn kernel_pid(agent: &Agent) -> u32 {
    if in_initial_pid_namespace() {
        return std::process::id();
    }
    let f = TestFile::new("asked", 1);
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
    agent.settled();
    let (stats, own) = (agent.stats(), fs::read_to_string("/proc/self/comm").unwrap());
    let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
    let row = rows.iter().find(|r| r["comm"] == own.trim_end()).unwrap_or_else(|| panic!("no row of {own}: {rows:?}"));
    row["pid"].as_u64().unwrap() as u32
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

/// A number of /proc/PID/status.
pub fn status_field(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

// ---- HTTP ----

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends `head` and reads until the server closes.
pub fn request(port: u16, head: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(head.as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let bad = || std::io::Error::other(format!("no HTTP response: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}

/// The queries in a file of BydbQL, without comments.
pub fn bydbql(file: &str) -> Vec<String> {
    let lines: Vec<&str> = file.lines().filter(|l| !l.trim_start().starts_with("--")).collect();
    lines.join(" ").split(';').map(|q| q.trim().to_owned()).filter(|q| !q.is_empty()).collect()
}

// ---- metrics ----

/// Samples of a Prometheus text: `name` or `name{labels}` to value.
#[derive(Clone, Debug)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(|l| {
            let (name, value) = l.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {l}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {l}")))
        });
        Self(samples.collect())
    }

    pub fn get(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("{name} is not there"))
    }
}

/// The most that a folio has.
const FOLIO_PAGES: f64 = 512.0;

/// Beside an agent's metrics: see [`refaults`].
const REFAULTS: &str = "workingset_refault_file";

/// Pages of any files that this machine has filled anew after it had taken them back, as the kernel counts them.
fn refaults() -> f64 {
    // Has the CPUs add up what they have counted.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let of = |name: &str| vmstat.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    of("workingset_refault_file ").or_else(|| of("workingset_refault ")).unwrap_or(0.0)
}

/// Metrics before and after some work.
pub struct Delta {
    pub before: Metrics,
    pub after: Metrics,
}

impl Delta {
    /// Growth of one counter.
    pub fn of(&self, name: &str) -> f64 {
        self.after.get(name) - self.before.get(name)
    }

    pub fn adds(&self, cause: &str) -> f64 {
        self.of(&format!("ebpf_page_cache_adds_total{{cause=\"{cause}\"}}"))
    }

    pub fn evictions(&self, cause: &str) -> f64 {
        self.of(&format!("ebpf_page_cache_evictions_total{{cause=\"{cause}\"}}"))
    }

    /// Events that programs of `probe` did not see, as the kernel tells: on a preemptible kernel it skips a program in
    /// which another thread of the CPU was preempted. 0 wherever that cannot be, or is not counted.
    pub fn missed(&self, probe: &str) -> f64 {
        let name = format!("ebpf_sidecar_events_missed_total{{probe=\"{probe}\"}}");
        if self.after.0.contains_key(&name) { self.of(&name) } else { 0.0 }
    }

    /// Read attempts, which should be `truth`: returned as well if what is wanting is no more than the reads that the
    /// kernel tells of as missed, of 2 MiB at most each. Where this kernel has no way to count reads the metric is
    /// absent and the probe says so; then the truth is returned, and the rest of a test goes on.
    pub fn attempts(&self, truth: f64) -> f64 {
        if self.knows_reads() {
            let got = self.of("ebpf_cache_read_attempts_total");
            return self.or_missed(got, "cache_read", (2 * MIB / sys::page() + 1) as f64, truth);
        }
        let m = &self.after;
        assert_eq!(m.get("ebpf_sidecar_probe_attached{probe=\"cache_read\",mode=\"none\"}"), 0.0);
        for absent in ["read_attempts_total", "read_bytes_total", "hits_total", "hit_rate_percent", "miss_rate_percent"]
        {
            assert!(!m.0.contains_key(&format!("ebpf_cache_{absent}")), "{absent} is there without its probe");
        }
        truth
    }

    /// Whether reads are counted at all.
    pub fn knows_reads(&self) -> bool {
        self.after.0.contains_key("ebpf_cache_read_attempts_total")
    }

    pub fn misses(&self) -> f64 {
        self.of("ebpf_cache_misses_total")
    }

    /// Misses, which should be `truth`: returned as well if what is wanting is no more than the fills that the kernel tells
    /// of as missed, and what is too much no more than the pages that this machine took back at the wrong moment and had to
    /// fill anew. On many virtual machines DAMON takes what lies in memory that has not been used for a while.
    pub fn misses_of(&self, truth: f64) -> f64 {
        let (got, refaults) = (self.misses(), self.of(REFAULTS));
        if (truth..=truth + refaults).contains(&got) {
            truth
        } else {
            self.or_missed(got, "cache_fill", FOLIO_PAGES, truth)
        }
    }

    /// The same of what [`Delta::adds`] tells.
    pub fn adds_of(&self, cause: &str, truth: f64) -> f64 {
        self.or_missed(self.adds(cause), "cache_fill", FOLIO_PAGES, truth)
    }

    /// The same of what [`Delta::evictions`] tells.
    pub fn evictions_of(&self, cause: &str, truth: f64) -> f64 {
        self.or_missed(self.evictions(cause), "cache_evict", FOLIO_PAGES, truth)
    }

    /// `truth` if what `got` lacks of it is no more than the missed events of `probe`, of so many pages at most each.
    fn or_missed(&self, got: f64, probe: &str, each: f64, truth: f64) -> f64 {
        if (got..=got + self.missed(probe) * each).contains(&truth) { truth } else { got }
    }

    /// Misses per hundred of `attempts` over the whole work.
    pub fn miss_rate(&self, attempts: f64) -> f64 {
        100.0 * self.misses() / self.attempts(attempts).max(self.misses())
    }

    /// All counters that moved, for the message of a failed assertion.
    pub fn moved(&self) -> String {
        let moved = self.after.0.iter().filter(|(k, _)| k.starts_with("ebpf_") && !k.starts_with("ebpf_sidecar"));
        moved
            .filter_map(|(k, v)| Some((k, v - self.before.0.get(k)?)))
            .filter(|(_, d)| *d != 0.0)
            .map(|(k, d)| format!("\n  {k} {d:+}"))
            .collect()
    }
}

/// `got` is `want`, give or take `percent` of it.
#[track_caller]
pub fn assert_near(what: &str, got: f64, want: f64, percent: f64, delta: &Delta) {
    let slack = want.abs() * percent / 100.0;
    assert!((got - want).abs() <= slack, "{what}: {got}, not {want} +- {percent} %; moved:{}", delta.moved());
}

/// Prints what this kernel lets the agent attach, and which metrics it lacks then: a line of tests/vm/results.txt, whose last
/// word tells that no message of the kernel broke it off.
pub fn tell_attached(metrics: &Metrics) {
    let mode = match (std::env::var("TEST_ATTACH"), std::env::var("TEST_BTF")) {
        (Ok(mode), _) => mode,
        (_, Ok(btf)) if btf == "off" => "nobtf".into(),
        _ => "auto".into(),
    };
    let of_probe = |name: &str| {
        let labels = name.strip_prefix("ebpf_sidecar_probe_attached{probe=\"")?;
        Some(labels.strip_suffix("\"}")?.replace("\",mode=\"", "="))
    };
    let probes: Vec<_> = metrics.0.keys().filter_map(|name| of_probe(name)).collect();
    let is_there = |metric: &str| {
        metrics.0.keys().any(|k| k.strip_prefix(metric).is_some_and(|r| r.is_empty() || r.starts_with(['{', '_'])))
    };
    let absent = catalogue::stats().map(|s| s.metric.name).filter(|m| !is_there(m)).collect::<Vec<_>>();
    let ((major, minor), kib) = (os::kernel_version(), sys::page() >> 10);
    let (arch, absent) = (std::env::consts::ARCH, if absent.is_empty() { "nothing".into() } else { absent.join(" ") });
    println!("ATTACHED {major}.{minor} {arch} {kib}K {mode}: {} lacks {absent} .", probes.join(" "));
}

// ---- cgroups ----

/// Where cgroup v2 is mounted.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f[2] == "cgroup2").map(|f| f[1].into())
}

/// A cgroup of the test's own; removed when dropped.
pub struct Cgroup {
    pub path: PathBuf,
    /// Where this process was before [`Cgroup::enter`].
    home: Mutex<Option<PathBuf>>,
}

static CGROUPS: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    pub fn new() -> Self {
        let n = CGROUPS.fetch_add(1, Ordering::Relaxed);
        Self::at(cgroup_root().unwrap().join(format!("ebpf-sidecar-test-{}-{n}", std::process::id())))
    }

    /// One with a limit of memory, of whichever version has the memory controller; `None` if none has.
    pub fn with_memory(bytes: usize) -> Option<Self> {
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let name = format!("ebpf-sidecar-test-memory-{}", std::process::id());
        if v1.join("memory.limit_in_bytes").exists() {
            let cgroup = Self::at(v1.join(name));
            fs::write(cgroup.path.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
            return Some(cgroup);
        }
        let root = cgroup_root()?;
        fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
        let cgroup = Self::at(root.join(name));
        fs::write(cgroup.path.join("memory.max"), bytes.to_string()).ok()?;
        Some(cgroup)
    }

    pub fn child(&self, name: &str) -> Self {
        Self::at(self.path.join(name))
    }

    pub fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path, home: Mutex::default() }
    }

    pub fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Moves this process into it, until it is dropped.
    pub fn enter(&self) {
        let mine = fs::read_to_string("/proc/self/cgroup").unwrap();
        let home = mine.lines().find_map(|l| l.strip_prefix("0::/")).unwrap();
        *self.home.lock().unwrap() = Some(cgroup_root().unwrap().join(home));
        self.add(std::process::id());
    }

    pub fn leave(&self) {
        if let Some(home) = self.home.lock().unwrap().take() {
            fs::write(home.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.leave();
        // A process that was just killed is still leaving.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.path.display());
    }
}

/// An agent that counts this process alone, which is in the agent's scope as long as this lives.
pub struct Scoped {
    pub agent: Arc<Agent>,
    pub cgroup: Arc<Cgroup>,
    _alone: MutexGuard<'static, ()>,
}

/// In an emulated machine starting an agent takes more than a second: there the tests without settings have the same one.
static SHARED: Mutex<Option<(Arc<Agent>, Arc<Cgroup>)>> = Mutex::new(None);

impl Scoped {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let alone = alone();
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        let share = settings.is_empty() && sized(false, true);
        let (agent, cgroup) = if share {
            let (agent, cgroup) = shared.get_or_insert_with(|| Self::alone_in_scope(settings));
            (Arc::clone(agent), Arc::clone(cgroup))
        } else {
            Self::alone_in_scope(settings)
        };
        cgroup.enter();
        Self { agent, cgroup, _alone: alone }
    }

    /// An agent, and the empty cgroup that is its scope.
    fn alone_in_scope(settings: &[(&str, &str)]) -> (Arc<Agent>, Arc<Cgroup>) {
        let cgroup = Cgroup::new();
        let path = cgroup.path.to_str().unwrap().to_owned();
        let interval = sized("100ms", "30ms");
        let mut all = vec![("COLLECTOR_INTERVAL", interval), ("COLLECTOR_SCOPE_CGROUP", path.as_str())];
        all.extend(settings);
        let agent = Agent::start(&all);
        (Arc::new(agent), Arc::new(cgroup))
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        self.cgroup.leave();
    }
}

// ---- files ----

/// Where test files are made: a disk file system, whose reads go through the page cache.
pub fn disk() -> PathBuf {
    let dir = std::env::var_os("TEST_DISK").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    fs::create_dir_all(&dir).unwrap();
    dir
}

static DIRECTORIES: AtomicU32 = AtomicU32::new(0);

/// A directory that everybody may read; removed with what is in it when dropped.
pub struct TempDir {
    pub path: PathBuf,
}

impl TempDir {
    pub fn new(name: &str) -> Self {
        let n = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ebpf-sidecar-{name}-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A file on disk; removed when dropped.
pub struct TestFile {
    pub path: PathBuf,
    pub file: File,
}

impl TestFile {
    /// `len` bytes that are no hole, written and on the disk.
    pub fn new(name: &str, len: usize) -> Self {
        let path = disk().join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        let block = vec![0xa5u8; MIB.min(len.max(1))];
        let mut at = 0;
        while at < len {
            let n = block.len().min(len - at);
            file.write_all_at(&block[..n], at as u64).unwrap();
            at += n;
        }
        file.sync_all().unwrap();
        Self { path, file }
    }

    /// The same, and none of it in the page cache.
    pub fn cold(name: &str, len: usize) -> Self {
        let f = Self::new(name, len);
        f.drop_cache();
        f
    }

    /// Takes all of it out of the page cache. A page that somebody else is just looking at (writeback that ends, reclaim)
    /// stays, and is asked for again.
    pub fn drop_cache(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.file.sync_all().unwrap();
            sys::fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED).unwrap();
            let left = self.resident();
            if left == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{left} pages of {} stay in the page cache", self.path.display());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Pages in the page cache, those under way too.
    pub fn resident(&self) -> usize {
        self.pages().0
    }

    /// Pages filled since it was cold, each counted once: those in the page cache, and those that the machine has taken
    /// back since.
    pub fn filled(&self) -> usize {
        let (there, taken) = self.pages();
        there + taken
    }

    fn pages(&self) -> (usize, usize) {
        sys::cachestat(&self.file).unwrap_or_else(|| (self.arrived(), 0))
    }

    /// The same by mincore(), which leaves out pages that readahead has added and the disk not yet filled: it is asked
    /// until the disk has nothing under way and its answer stays the same.
    fn arrived(&self) -> usize {
        let now = || match self.file.metadata().unwrap().len() {
            0 => 0, // cannot be mapped
            _ => sys::Mapping::of(&self.file).resident().iter().filter(|r| **r).count(),
        };
        let device = self.file.metadata().unwrap().dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let reading = || {
            let inflight = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/inflight")).unwrap_or_default();
            inflight.split_ascii_whitespace().next().is_some_and(|reads| reads != "0")
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut last, mut same) = (now(), 0);
        while same < 10 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            let (busy, now) = (reading(), now());
            same = if now == last && !busy { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// A descriptor with a readahead state of its own.
    pub fn reopen(&self) -> File {
        File::open(&self.path).unwrap()
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Reads `file` from start to end with preads of `block` bytes; returns the bytes read. Stops at the end without
/// asking for more: before 5.12 the kernel fills a page past the end for such a read.
pub fn read_all(file: &File, block: usize) -> u64 {
    let len = file.metadata().unwrap().len();
    let mut buf = vec![0u8; block];
    let mut at = 0;
    while at < len {
        let want = buf.len().min((len - at) as usize);
        at += file.read_at(&mut buf[..want], at).unwrap() as u64;
    }
    at
}

/// A small generator of numbers, the same in each run (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

/// The documents of a YAML text.
pub fn documents(text: &str) -> Vec<serde_yaml::Value> {
    let all = serde_yaml::Deserializer::from_str(text);
    all.map(|document| serde::Deserialize::deserialize(document).unwrap()).collect()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A cgroup that others make cgroups in; removed with them when dropped.
pub struct Tree(pub Cgroup);

impl Drop for Tree {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
                remove(&entry.path());
                // Processes that were just killed are still leaving.
                for _ in 0..100 {
                    if fs::remove_dir(entry.path()).is_ok() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        remove(&self.0.path);
    }
}
