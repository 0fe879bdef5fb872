//! `ebpf-sidecar top`: what the running agent counts, as a table that is drawn again every few seconds. A client of its
//! gRPC API like any other.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use grpcio::{CallOption, ChannelBuilder, Client, EnvBuilder, MetadataBuilder, MethodType};
use protobuf::Message;

use super::client::Grpc;
use crate::api::proto::metrics::{FileStats, Metric};
use crate::api::proto::rpc;
use crate::host::logging::clean;
use crate::server::grpc::stubs::{called, name};

/// Time between two tables.
const PERIOD: Duration = Duration::from_secs(2);
/// Time for the agent to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Processes shown, or files.
const ROWS: usize = 10;
/// Files asked for: what is added to a file shows if it is one of those to which most has been added since the start.
const FILES: u32 = 100;
/// Clears the screen and the lines scrolled off, and goes to the first.
const CLEAR: &str = "\x1b[2J\x1b[3J\x1b[H";

/// Shows the agent at `address` until it is interrupted; with `once`, or where stdout is no terminal, one table after
/// two collections; with `files`, these instead of processes. An error: the agent does not answer.
pub fn run(address: SocketAddr, how: Grpc, once: bool, files: bool) -> Result<(), String> {
    let agent = Agent::connect(address, how);
    let terminal = io::stdout().is_terminal() && !once;
    let mut before = agent.sample(files)?;
    loop {
        thread::sleep(PERIOD);
        let now = agent.sample(files)?;
        // Between two collections nothing is new.
        if now.sequence == before.sequence {
            continue;
        }
        let table = table(&before, &now);
        let text = if terminal { format!("{CLEAR}{table}\nevery collection; Ctrl-C ends it\n") } else { table };
        // A reader that has gone (`| head`) is no failure worth words.
        if io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() || !terminal {
            return Ok(());
        }
        before = now;
    }
}

struct Agent {
    client: Client,
    address: SocketAddr,
    token: Option<String>,
}

impl Agent {
    fn connect(address: SocketAddr, how: Grpc) -> Self {
        let environment = Arc::new(EnvBuilder::new().cq_count(1).name_prefix("grpc").build());
        let mut builder = ChannelBuilder::new(environment);
        if let Some((credentials, name)) = how.tls {
            builder = builder.set_credentials(credentials);
            if let Some(name) = name {
                builder = builder.override_ssl_target(name);
            }
        }
        Self { client: Client::new(builder.connect(&address.to_string())), address, token: how.token }
    }

    fn call<Q: Message, R: Message + Unpin>(&self, name: &'static str, request: &Q) -> Result<R, String> {
        let mut option = CallOption::default().timeout(LIMIT);
        if let Some(token) = &self.token {
            let mut metadata = MetadataBuilder::new();
            let added = metadata.add_str("authorization", &format!("Bearer {token}"));
            added.map_err(|_| "client.token_file: the token cannot be sent: allowed: printable ASCII".to_owned())?;
            option = option.headers(metadata.build());
        }
        let answer = self.client.unary_call(&called(MethodType::Unary, name), request, option);
        answer.map_err(|e| format!("the agent at {} does not answer: {}", self.address, clean(e)))
    }

    fn sample(&self, files: bool) -> Result<Sample, String> {
        let metrics: rpc::GetMetricsResponse = self.call(name::GET_METRICS, &rpc::GetMetricsRequest::default())?;
        let files = if files { FILES } else { 0 };
        let request = rpc::GetIOStatsRequest { include_process_stats: files == 0, files, ..Default::default() };
        let io: rpc::GetIOStatsResponse = self.call(name::GET_IO_STATS, &request)?;
        let health: rpc::GetHealthResponse = self.call(name::GET_HEALTH, &rpc::GetHealthRequest::default())?;
        if files > 0 && io.stats.files.is_none() {
            return Err(format!(
                "the agent at {} does not tell files apart: collector.files.enabled, in its configuration",
                self.address
            ));
        }
        // An agent of an earlier version has none.
        let diagnosis = self.call(name::GET_DIAGNOSIS, &rpc::GetDiagnosisRequest::default()).unwrap_or_default();
        Ok(Sample::new(metrics, io, health, diagnosis))
    }
}

/// What the agent says at one time.
#[derive(Debug, Default)]
struct Sample {
    sequence: u64,
    /// Seconds since 1970.
    at: f64,
    health: String,
    /// What goes on, in one sentence; empty if it is not said.
    diagnosis: String,
    /// Sums over the labels.
    values: HashMap<String, f64>,
    /// By name without `_bucket`: bounds in seconds, and events up to each.
    histograms: HashMap<String, Vec<(f64, f64)>>,
    /// Calls of fadvise by process.
    processes: HashMap<(u32, String), u64>,
    /// Where they were asked for: by device, inode and generation.
    files: Option<HashMap<(String, u64, u32), File>>,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct File {
    /// Its path, or its inode's number.
    name: String,
    /// Pages added and evicted, and seconds waited.
    counts: [Option<f64>; 3],
}

impl Sample {
    /// Nothing that an agent says reaches the terminal as it is: see [`clean`].
    fn new(
        metrics: rpc::GetMetricsResponse,
        io: rpc::GetIOStatsResponse,
        health: rpc::GetHealthResponse,
        diagnosis: rpc::GetDiagnosisResponse,
    ) -> Self {
        let sequence = metrics.metric_sets.iter().map(|s| s.sequence).max().unwrap_or(0);
        let at = metrics.timestamp.as_ref().map_or(0.0, |t| t.seconds as f64 + f64::from(t.nanos) / 1e9);
        let (health, diagnosis) = (clean(health.message), clean(diagnosis.headline));
        let mut sample = Sample { sequence, at, health, diagnosis, ..Default::default() };
        for metric in metrics.metric_sets.into_iter().flat_map(|s| s.metrics) {
            sample.add(metric);
        }
        for row in &io.stats.fadvise.process_stats {
            sample.processes.insert((row.pid, clean(&row.comm)), row.call_count);
        }
        let file = |row: &FileStats| {
            let name = if row.path.is_empty() { format!("inode {}", row.inode) } else { clean(&row.path) };
            let pages = [row.counts.pages_added, row.counts.pages_evicted].map(|n| n.map(|n| n as f64));
            let counts = [pages[0], pages[1], row.counts.wait_seconds];
            ((row.device.clone(), row.inode, row.generation), File { name, counts })
        };
        sample.files = io.stats.files.as_ref().map(|files| files.top.iter().map(file).collect());
        sample
    }

    fn add(&mut self, metric: Metric) {
        let bound = metric.labels.get("le").and_then(|le| le.parse().ok());
        match (metric.name.strip_suffix("_bucket"), bound) {
            (Some(name), Some(bound)) => {
                self.histograms.entry(clean(name)).or_default().push((bound, metric.value));
            }
            _ => *self.values.entry(metric.name).or_default() += metric.value,
        }
    }
}

/// The table of what happened from one sample to a later one.
fn table(before: &Sample, now: &Sample) -> String {
    let seconds = now.at - before.at;
    // A clock that was set back meanwhile leaves no rate to tell.
    let per_second = |growth: f64| (seconds > 0.0).then(|| growth.max(0.0) / seconds);
    let rate = |name: &str| per_second(now.values.get(name)? - before.values.get(name)?);
    let mut text = if now.diagnosis.is_empty() { String::new() } else { format!("{}\n", now.diagnosis) };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "ebpf-sidecar, snapshot {}, over {seconds:.1} s: {}\n", now.sequence, now.health);
    let mut line = |what: &str, value: Option<f64>, unit: &str| {
        // Writing to a String cannot fail.
        let _ = match value.filter(|v| v.is_finite()) {
            Some(v) => writeln!(text, "{what:28} {v:>12.1} {unit}"),
            None => writeln!(text, "{what:28} {:>12} {unit}", "-"),
        };
    };
    line("pages read", rate("ebpf_cache_read_attempts_total"), "/s");
    line("  of them not in the cache", rate("ebpf_cache_misses_total"), "/s");
    line("  hit rate", now.values.get("ebpf_cache_hit_rate_percent").copied(), "%");
    line("pages added to the cache", rate("ebpf_page_cache_adds_total"), "/s");
    line("pages evicted", rate("ebpf_page_cache_evictions_total"), "/s");
    line("pages scanned by reclaim", rate("ebpf_memory_lru_pages_scanned_total"), "/s");
    line("pages reclaimed", rate("ebpf_memory_pages_reclaimed_total"), "/s");
    line("kswapd rounds", rate("ebpf_memory_kswapd_wakeups_total"), "/s");
    line("fadvise calls", rate("ebpf_fadvise_calls_total"), "/s");
    line("  of them failed", rate("ebpf_fadvise_failed_total"), "/s");

    let mut histograms: Vec<&String> = now.histograms.keys().collect();
    histograms.sort();
    for name in histograms {
        let growth = growth(before.histograms.get(name).map_or(&[], Vec::as_slice), &now.histograms[name]);
        let events = growth.last().map_or(0.0, |(_, n)| *n);
        let _ = write!(text, "\n{name}: {events} events");
        for (quantile, shown) in [(0.5, "50"), (0.99, "99"), (0.999, "99.9")] {
            if let Some(bound) = quantile_bound(&growth, quantile) {
                let _ = write!(text, ", {shown} % within {}", time(bound));
            }
        }
    }

    if let Some(files) = &now.files {
        add_files(&mut text, before.files.as_ref(), files, &per_second);
        return text;
    }
    let mut rows: Vec<(&(u32, String), f64)> = now
        .processes
        .iter()
        .map(|(who, calls)| (who, calls.saturating_sub(*before.processes.get(who).unwrap_or(&0)) as f64))
        .filter(|(_, calls)| *calls > 0.0)
        .collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    text += "\n\n    PID COMMAND              fadvise/s\n";
    for ((pid, comm), calls) in rows.into_iter().take(ROWS) {
        let _ = match per_second(calls) {
            Some(rate) => writeln!(text, "{pid:>7} {comm:16} {rate:>13.1}"),
            None => writeln!(text, "{pid:>7} {comm:16} {:>13}", "-"),
        };
    }
    text
}

/// A line for each file to which most was added, evicted, or for which reads waited longest, in this order.
fn add_files(
    text: &mut String,
    before: Option<&HashMap<(String, u64, u32), File>>,
    now: &HashMap<(String, u64, u32), File>,
    per_second: &dyn Fn(f64) -> Option<f64>,
) {
    let grown = |key: &(String, u64, u32), file: &File| -> [Option<f64>; 3] {
        let old = before.and_then(|before| before.get(key));
        std::array::from_fn(|i| Some(file.counts[i]? - old.and_then(|old| old.counts[i]).unwrap_or(0.0)))
    };
    let mut rows: Vec<(&File, [Option<f64>; 3])> = now
        .iter()
        // One that was not among them before has been there before.
        .filter(|(key, _)| before.is_some_and(|before| before.contains_key(*key)))
        .map(|(key, file)| (file, grown(key, file)))
        .filter(|(_, counts)| counts.iter().flatten().any(|n| *n > 0.0))
        .collect();
    // Whatever an agent says has an order.
    let by = |n: usize| move |row: &(&File, [Option<f64>; 3])| row.1[n].unwrap_or(0.0);
    rows.sort_by(|a, b| {
        let numbers = [by(0), by(1), by(2)].map(|of| of(b).total_cmp(&of(a)));
        numbers.into_iter().fold(Ordering::Equal, Ordering::then).then(a.0.name.cmp(&b.0.name))
    });
    *text += "\n\n  added/s evicted/s waiting FILE\n";
    for (file, counts) in rows.into_iter().take(ROWS) {
        let [added, evicted, waited] = counts.map(|n| n.and_then(per_second).filter(|n| n.is_finite()));
        let pages = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.1}"));
        let waited = waited.map_or("-".into(), |n| format!("{n:.2}"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:>9} {:>9} {waited:>7} {}", pages(added), pages(evicted), file.name);
    }
}

/// Events up to each bound from one time to another.
fn growth(before: &[(f64, f64)], now: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let old = |bound: f64| before.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, n)| *n);
    let mut all: Vec<(f64, f64)> = now.iter().map(|&(bound, n)| (bound, (n - old(bound)).max(0.0))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// The bound within which this part of the events lies.
fn quantile_bound(cumulative: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let events = cumulative.last().map(|(_, n)| *n).filter(|n| *n > 0.0)?;
    cumulative.iter().find(|(_, n)| *n >= events * quantile).map(|(bound, _)| *bound)
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "more than 17 s".into(),
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// Whatever two agents answer, one after the other: a table of lines that a terminal only shows.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let mut answers = data.split(|b| *b == 0xff);
    let mut sample = || {
        // One that cannot be read at all is an error before.
        fn read<M: Message>(bytes: Option<&[u8]>) -> M {
            M::parse_from_bytes(bytes.unwrap_or_default()).unwrap_or_default()
        }
        Sample::new(read(answers.next()), read(answers.next()), read(answers.next()), read(answers.next()))
    };
    let (first, second) = (sample(), sample());
    for table in [table(&first, &second), table(&second, &first), table(&first, &first)] {
        assert!(!table.chars().any(|c| c.is_control() && c != '\n'), "{table:?}");
        let lines = 16 + ROWS + first.histograms.len().max(second.histograms.len());
        assert!(table.lines().count() <= lines, "{table}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sequence: u64, at: f64, reads: f64, buckets: [f64; 3], calls: u64) -> Sample {
        let bounds = [1.024e-6, 0.001, f64::INFINITY];
        Sample {
            sequence,
            at,
            health: "fine".into(),
            diagnosis: "All is well".into(),
            values: [("ebpf_cache_read_attempts_total", reads), ("ebpf_cache_hit_rate_percent", f64::NAN)]
                .map(|(n, v)| (n.to_owned(), v))
                .into(),
            histograms: [("x_seconds".to_owned(), bounds.into_iter().zip(buckets).collect())].into(),
            processes: [((7, "db".to_owned()), calls)].into(),
            files: None,
        }
    }

    #[test]
    fn files_are_shown_by_what_was_added() {
        let with = |at, files: &[(u64, [Option<f64>; 3])]| {
            let file = |(inode, counts): &(u64, [Option<f64>; 3])| {
                (("8:1".to_owned(), *inode, 0), File { name: format!("/f{inode}"), counts: *counts })
            };
            Sample { files: Some(files.iter().map(file).collect()), ..sample(1, at, 0.0, [0.0; 3], 0) }
        };
        let before = with(100.0, &[(1, [Some(10.0), Some(0.0), None]), (2, [Some(0.0), Some(0.0), Some(1.0)])]);
        let now = with(
            102.0,
            &[
                (1, [Some(30.0), Some(2.0), None]),
                (2, [Some(40.0), Some(0.0), Some(1.5)]),
                // Nobody knows what it had before.
                (3, [Some(1e6), Some(0.0), None]),
            ],
        );
        let text = table(&before, &now);
        let rows = text.split("FILE\n").nth(1).unwrap();
        assert_eq!(rows, "     20.0       0.0    0.25 /f2\n     10.0       1.0       - /f1\n", "{text}");
    }

    #[test]
    fn shows_what_grew_from_one_sample_to_the_next() {
        let text =
            table(&sample(1, 100.0, 1000.0, [5.0, 5.0, 5.0], 10), &sample(3, 104.0, 3000.0, [55.0, 104.0, 105.0], 50));
        assert!(text.starts_with("All is well\nebpf-sidecar, snapshot 3, over 4.0 s: fine\n"), "{text}");
        assert!(text.contains("pages read                          500.0 /s"), "{text}");
        assert!(text.contains("  hit rate                              - %"), "{text}");
        assert!(text.contains("fadvise calls                           - /s"), "{text}");
        assert!(
            text.contains("x_seconds: 100 events, 50 % within 1 µs, 99 % within 1.0 ms, 99.9 % within more than 17 s"),
            "{text}"
        );
        assert!(text.contains("      7 db                        10.0\n"), "{text}");
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_no_rate() {
        for at in [100.0, 99.0, -3500.0] {
            let text = table(&sample(1, 100.0, 1000.0, [5.0; 3], 10), &sample(2, at, 2000.0, [5.0; 3], 20));
            assert!(text.contains("pages read                              - /s\n"), "{text}");
            assert!(text.contains("      7 db                           -\n") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn what_an_agent_says_does_not_reach_the_terminal_as_it_is() {
        let mut sample = Sample::default();
        let labels = [("le".to_owned(), "1".to_owned())].into();
        sample.add(Metric { name: "x\x1b[2J\n_bucket".into(), labels, value: 1.0, ..Default::default() });
        let text = table(&Sample::default(), &sample);
        assert!(text.contains("x\\u{1b}[2J\\n: 1 events") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn nothing_happened() {
        let text = table(&sample(1, 100.0, 1000.0, [5.0; 3], 10), &sample(2, 100.0, 1000.0, [5.0; 3], 10));
        assert!(text.contains("x_seconds: 0 events\n") && !text.contains("db"), "{text}");
    }
}
