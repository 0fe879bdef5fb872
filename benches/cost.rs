//! `make bench`: what the agent costs, and how fast it is, measured on the real kernel with the release binary
//! and printed as one table. Nothing fails here: a busy machine makes a number large, not wrong.
//!
//! `cargo bench --bench cost -- start cpu` runs those parts alone (start, cpu, collect, scrape, grpc, overhead).
//! BENCH_MINUTES (0.5) is how long the agent runs under load before its memory is read. BENCH_BASELINE may
//! name other builds of the agent (separated by colons): the overhead is then measured with these as well.

#[path = "../tests/common/grpc.rs"]
mod client;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "cost/grpc.rs"]
mod grpc;
#[path = "cost/overhead.rs"]
mod overhead;
#[path = "cost/sys.rs"]
mod sys;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Agent, MIB, Random, TestFile};
use sys::Callers;

/// Processes that call fadvise.
const PROCESSES: usize = 1000;
/// Starts of which the median is taken.
const STARTS: usize = 10;
/// Ticks over which the collector is watched, at one a second.
const TICKS: usize = 12;
/// Keep-alive connections of the scraping client.
const CONNECTIONS: usize = 8;

/// Measures something and adds its rows.
type Part = fn(&mut Table);

const PARTS: &[(&str, Part)] = &[
    ("start", start_rows),
    ("cpu", cpu_and_memory_rows),
    ("collect", collection_rows),
    ("scrape", scrape_rows),
    ("grpc", grpc::rows),
    ("overhead", overhead::rows),
];

fn main() {
    if let Some(why) = common::missing_for_bpf() {
        return common::skipped("cost", why);
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut table = Table::default();
    for (name, part) in PARTS.iter().filter(|(n, _)| asked.is_empty() || asked.iter().any(|a| a == n)) {
        eprintln!("measuring: {name}");
        part(&mut table);
    }
}

// ---- the table ----

/// What was measured, line by line; printed when dropped, so also if a part of the bench panics.
#[derive(Default)]
pub struct Table(Vec<[String; 4]>);

impl Table {
    /// Adds a line; a target has its text and whether it was met.
    pub fn row(&mut self, what: impl Into<String>, measured: impl Into<String>, target: Option<(String, bool)>) {
        let (target, verdict) = target.map_or_else(Default::default, |(t, met)| (t, if met { "ok" } else { "over" }));
        self.0.push([what.into(), measured.into(), target, verdict.into()]);
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let head = ["what", "measured", "target", ""].map(String::from);
        let width = |i: usize| self.0.iter().chain([&head]).map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        println!();
        for r in [&head].into_iter().chain(&self.0) {
            let line = format!("{:3$}  {:4$}  {:5$}  ", r[0], r[1], r[2], widths[0], widths[1], widths[2]) + &r[3];
            println!("{}", line.trim_end());
        }
    }
}

fn at_most(limit: f64, unit: &str, value: f64) -> Option<(String, bool)> {
    Some((format!("<= {limit} {unit}"), value <= limit))
}

// ---- the agent from outside ----

fn agent(settings: &[(&str, &str)]) -> Agent {
    let mut command = common::command();
    command.args(["--log-level", "debug"]);
    Agent::start_with(command, settings)
}

/// Nanoseconds that the threads of a process whose names begin with `name` have run.
fn cpu_ns(pid: u32, name: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|t| t.path());
    let named = tasks.filter(|t| fs::read_to_string(t.join("comm")).is_ok_and(|c| c.starts_with(name)));
    let run = |stat: String| stat.split(' ').next()?.parse::<u64>().ok();
    named.filter_map(|t| run(fs::read_to_string(t.join("schedstat")).ok()?)).sum()
}

/// The seconds after `name` in each line of the log that has them, as milliseconds.
fn logged_ms(log: &str, name: &str) -> Vec<f64> {
    let seconds = |l: &str| l.split_once(name)?.1.split_whitespace().next()?.parse::<f64>().ok();
    log.lines().filter_map(seconds).map(|s| s * 1e3).collect()
}

/// Whether another agent runs on this machine: its probes cost the calls that are measured too.
pub fn other_agents() -> bool {
    let mine = std::process::id();
    let status = |e: fs::DirEntry| fs::read_to_string(e.path().join("status")).ok();
    let is_other = |s: &String| s.starts_with("Name:\tebpf-sidecar\n") && !s.contains(&format!("\nPPid:\t{mine}\n"));
    fs::read_dir("/proc").unwrap().flatten().filter_map(status).any(|s| is_other(&s))
}

fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

// ---- start ----

fn start_rows(table: &mut Table) {
    let (mut first, mut prepare, mut attach, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let port = common::free_port();
        let begin = Instant::now();
        let mut child = spawn_logging(port);
        while common::request(port, "GET /metrics HTTP/1.0\r\n\r\n").map_or(true, |r| r.status != 200) {
            thread::sleep(Duration::from_micros(200));
        }
        first.push(begin.elapsed().as_secs_f64() * 1e3);
        cpu.push(cpu_ns(child.id(), "") as f64 / 1e6);
        child.kill().unwrap();
        let log = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        prepare.extend(logged_ms(&log, "BPF object prepared in"));
        attach.extend(logged_ms(&log, "programs loaded and attached in"));
    }
    let total = median(&first);
    table.row(
        format!("start to first /metrics (median of {STARTS})"),
        format!("{total:.0} ms ({:.0} ms of CPU)", median(&cpu)),
        at_most(500.0, "ms", total),
    );
    table.row("  of which libbpf's open and relocation, maps", format!("{:.0} ms", median(&prepare)), None);
    table.row("  of which loading and attaching programs", format!("{:.0} ms", median(&attach)), None);
}

fn spawn_logging(port: u16) -> Child {
    common::command()
        .args(["--log-level", "debug"])
        .env("EBPF_SIDECAR_SERVER_HTTP_ADDRESS", "127.0.0.1")
        .env("EBPF_SIDECAR_SERVER_HTTP_PORT", port.to_string())
        .env("EBPF_SIDECAR_SERVER_GRPC_PORT", common::free_port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

// ---- CPU and memory ----

fn cpu_and_memory_rows(table: &mut Table) {
    let minutes = std::env::var("BENCH_MINUTES").ok().and_then(|m| m.parse().ok()).unwrap_or(0.5f64);
    let rss = |agent: &Agent| agent.rss_kib() as f64 / 1024.0;
    let agent = agent(&[]);
    thread::sleep(Duration::from_secs(1));
    let after_start = rss(&agent);
    table.row("resident memory after start", format!("{after_start:.1} MiB"), at_most(12.0, "MiB", after_start));

    let idle = share(&agent, Duration::from_secs(30));
    table.row("CPU, idle, interval 10 s", format!("{idle:.3} % of a core"), at_most(0.2, "%", idle));

    let file = TestFile::new("callers", MIB);
    let callers = Callers::start(PROCESSES, file.file.as_raw_fd(), Duration::from_secs(2));
    let stop = AtomicBool::new(false);
    let busy = thread::scope(|s| {
        s.spawn(|| read_until(&stop));
        let busy = share(&agent, Duration::from_secs_f64((60.0 * minutes).max(20.0)));
        stop.store(true, Ordering::Relaxed);
        busy
    });
    let after_load = rss(&agent);
    let rows = agent.metrics().get("ebpf_sidecar_process_rows");
    agent.get("/api/v1/stats"); // the largest page
    let after_stats = rss(&agent);
    drop(callers);
    table.row(
        format!("CPU, {rows} processes calling fadvise, a reader, scrapes"),
        format!("{busy:.3} % of a core"),
        at_most(0.2, "%", busy),
    );
    table.row(
        format!("resident memory after {minutes} min of that"),
        format!("{after_load:.1} MiB, after /api/v1/stats {after_stats:.1} MiB"),
        at_most(12.0, "MiB", after_load.max(after_stats)),
    );
}

/// CPU time of the agent per hundred of real time, while it is scraped every 10 s.
fn share(agent: &Agent, time: Duration) -> f64 {
    let (begin, cpu) = (Instant::now(), cpu_ns(agent.child.id(), ""));
    while begin.elapsed() < time {
        thread::sleep(Duration::from_secs(10).min(time.saturating_sub(begin.elapsed())));
        agent.metrics();
    }
    100.0 * (cpu_ns(agent.child.id(), "") - cpu) as f64 / begin.elapsed().as_nanos() as f64
}

/// Reads random pages, half of them cold, with pauses that leave the machine to others.
fn read_until(stop: &AtomicBool) {
    let file = TestFile::new("reader", 16 * MIB);
    let (mut random, mut page) = (Random(1), [0; 4096]);
    while !stop.load(Ordering::Relaxed) {
        file.drop_cache();
        for _ in 0..4096 {
            file.file.read_exact_at(&mut page, random.below(4096) as u64 * 4096).unwrap();
        }
        thread::sleep(Duration::from_millis(200));
    }
}

// ---- one collection ----

fn collection_rows(table: &mut Table) {
    let file = TestFile::new("callers", MIB);
    let _callers = Callers::start(PROCESSES, file.file.as_raw_fd(), Duration::from_millis(500));
    let agent = agent(&[("COLLECTOR_INTERVAL", "1s")]);
    let collecting = || cpu_ns(agent.child.id(), "collector");
    let first = agent.wait(|m| m.get("ebpf_sidecar_process_rows") >= PROCESSES as f64);
    let (log, cpu) = (agent.log().len(), collecting());
    let wanted = first.get("ebpf_sidecar_snapshot_sequence") + TICKS as f64;
    let last = agent.wait(|m| m.get("ebpf_sidecar_snapshot_sequence") >= wanted);
    let cpu = (collecting() - cpu) as f64 / 1e6;
    let log = &agent.log()[log..];

    let grown = |name: &str| last.get(name) - first.get(name);
    let ticks = grown("ebpf_sidecar_collect_duration_seconds_count");
    let mean = grown("ebpf_sidecar_collect_duration_seconds_sum") / ticks * 1e3;
    let rows = last.get("ebpf_sidecar_process_rows");
    let took = logged_ms(log, "collected in");
    table.row(
        format!("one collection, {rows} processes that called (median of {ticks})"),
        format!("{:.2} ms, mean {mean:.2}, longest {:.2}", median(&took), max(&took)),
        at_most(1.0, "ms", median(&took)),
    );
    let waits = logged_ms(log, "maps ready in");
    let wait = format!("{:.1} ms, longest {:.1}, asleep", median(&waits), max(&waits));
    table.row("  before it, the wait for the kernel to let go of a map", wait, None);
    table.row("  CPU of the collector's thread, both together", format!("{:.2} ms a tick", cpu / ticks), None);
}

// ---- scrapes ----

fn scrape_rows(table: &mut Table) {
    let mut command = common::command_of("taskset");
    command.args(["-c", "0"]).arg(common::binary()).args(["--log-level", "debug"]);
    let agent = Agent::start_with(command, &[("COLLECTOR_INTERVAL", "1s")]);
    let late = |time: Duration| {
        let log = agent.log().len();
        thread::sleep(time);
        logged_ms(&agent.log()[log..], "late by")
    };
    let time = Duration::from_secs(TICKS as u64);
    let idle = late(time);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (scrapes, busy) = thread::scope(|s| {
        for _ in 0..CONNECTIONS {
            s.spawn(|| scrape_until(agent.port, &stop, &count));
        }
        thread::sleep(Duration::from_millis(500));
        let (begin, before) = (Instant::now(), count.load(Ordering::Relaxed));
        let busy = late(time);
        let scrapes = (count.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (scrapes, busy)
    });
    table.row(
        format!("/metrics on one core, {CONNECTIONS} connections kept alive"),
        format!("{scrapes:.0} scrapes/s"),
        Some((">= 5000 /s".into(), scrapes >= 5000.0)),
    );
    let both = |v: &[f64]| format!("{:.2} ms, at worst {:.2}", median(v), max(v));
    table.row(
        "  the collector's tick comes late by",
        format!("idle {}; meanwhile {} ({:.1} x)", both(&idle), both(&busy), median(&busy) / median(&idle)),
        None,
    );
}

/// Scrapes over one connection.
fn scrape_until(port: u16, stop: &AtomicBool, count: &AtomicU64) {
    // The agent has CPU 0; on a machine with one CPU they share it.
    let _ = sys::pin(1);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answers = BufReader::with_capacity(64 << 10, stream.try_clone().unwrap());
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        skip_answer(&mut answers).unwrap();
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn skip_answer(answers: &mut impl BufRead) -> io::Result<()> {
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if answers.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(n) = line.strip_prefix("Content-Length: ") {
            length = n.trim().parse().map_err(io::Error::other)?;
        }
    }
    io::copy(&mut io::Read::take(answers, length), &mut io::sink()).map(drop)
}
