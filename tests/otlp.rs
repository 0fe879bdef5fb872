//! The exporter of OTLP, by gRPC and by HTTP, against a receiver that fails as it is told (tests/common/otlp.rs) and against
//! real ones where they are installed: nothing may be lost that the receiver does not refuse for good.

mod common;
#[path = "common/export.rs"]
mod export;
#[path = "common/identity.rs"]
mod identity;
#[path = "common/otlp.rs"]
mod server;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ebpf_sidecar::config::{ClientTls, Compression, Config, Otlp as Settings, Protocol, Secret};
use ebpf_sidecar::export::{otlp, prometheus};
use ebpf_sidecar::metrics::export::OTLP as STATE;
use ebpf_sidecar::metrics::snapshot::Snapshot;
use ebpf_sidecar::monitor::file_groups;

use common::{Agent, Killed, Metrics, TempDir, sys};
use export::{LIMIT, Random, collection, seed};
use identity::{Identity, YEAR};
use server::{Fault, Key, Otlp, as_number};

fn wait_until(what: &str, done: impl FnMut() -> bool) {
    export::wait_until(&STATE, what, done);
}

fn settings(protocol: Protocol, endpoint: &str) -> Settings {
    Settings {
        endpoint: endpoint.into(),
        protocol,
        timeout: Duration::from_secs(2),
        batch_size: 500,
        flush_interval: Duration::from_millis(50),
        ..Config::default().export.otlp
    }
}

fn start(protocol: Protocol, tls: Option<&Identity>) -> Otlp {
    match protocol {
        Protocol::Grpc => Otlp::grpc(tls),
        Protocol::Http => Otlp::http(tls),
    }
}

/// The points that a collection is, from what Prometheus would be shown.
fn points_of(snapshot: &Snapshot) -> BTreeMap<Key, f64> {
    let since = snapshot.collected_at.duration_since(std::time::UNIX_EPOCH).unwrap();
    let all = Metrics::parse(&prometheus::text(snapshot)).0.into_iter();
    all.map(|(series, value)| ((as_number(&series), since.as_nanos() as u64), value)).collect()
}

/// Points of a collection, as the protocol counts them: a histogram is one.
fn count_of(snapshot: &Snapshot) -> usize {
    let of_files = snapshot.files.as_deref().map_or(0, file_groups::series);
    of_files + snapshot.families.iter().map(|f| f.series.len()).sum::<usize>()
}

/// The same numbers; none is like none.
fn same(a: &BTreeMap<Key, f64>, b: &BTreeMap<Key, f64>) -> bool {
    let equal = |(a, b): ((&Key, &f64), (&Key, &f64))| a.0 == b.0 && (a.1 == b.1 || a.1.is_nan() && b.1.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(equal)
}

type Setup = export::Setup<Key>;

impl Setup {
    fn start(settings: &Settings) -> Self {
        Self::of(&STATE, "otlp", settings.unhealthy_after, points_of, |cell| otlp::start(settings, cell))
    }

    fn dropped(&self, reason: &str) -> usize {
        self.grown_for("points_dropped_total", reason)
    }

    /// Waits until the server has all that it should have.
    #[track_caller]
    fn arrived(&self, server: &Otlp) {
        let deadline = Instant::now() + LIMIT;
        while !same(&server.store().points, &self.truth) {
            if Instant::now() > deadline {
                let store = server.store();
                let lost: Vec<_> = self.truth.iter().filter(|(k, _)| !store.points.contains_key(*k)).take(5).collect();
                let more: Vec<_> = store.points.iter().filter(|(k, _)| !self.truth.contains_key(*k)).take(5).collect();
                let trouble = STATE.trouble(Instant::now());
                panic!(
                    "{} of {}; lost: {lost:?}; too many: {more:?}; {trouble:?}",
                    store.points.len(),
                    self.truth.len()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(server.store().violations, [""; 0]);
    }
}

#[test]
fn every_sample_arrives_as_a_point_of_its_kind() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut bytes = Vec::new();
        for compression in [Compression::None, Compression::Gzip] {
            let server = start(protocol, None);
            let settings = Settings {
                compression,
                resource: vec![("k8s.pod.name".into(), "db-0".into())],
                ..settings(protocol, &server.endpoint())
            };
            let mut setup = Setup::start(&settings);
            for _ in 0..20 {
                setup.collect();
            }
            setup.arrived(&server);
            let all = 21 * count_of(&collection(1));
            wait_until("all to be counted", || setup.grown("points_sent_total", "") == all);
            let store = server.store();
            assert_eq!(store.requests.iter().sum::<usize>(), all);
            assert!(store.requests.iter().all(|points| *points <= 500), "{:?}", store.requests);
            bytes.push(store.bytes);
            assert_eq!(store.starts.len(), 1, "one start, that of the agent: {:?}", store.starts);
            let resource = |name: &str| store.resource.get(name).cloned().unwrap_or_default();
            assert_eq!((resource("service.name"), resource("k8s.pod.name")), ("ebpf-sidecar".into(), "db-0".into()));
            assert!(!resource("host.name").is_empty() && !resource("service.instance.id").is_empty());
            drop(store);
            if protocol == Protocol::Http {
                assert_eq!(server.store().connections, 1, "the connection is kept");
            }
            setup.exporter.stop();
            assert!(STATE.families().is_empty(), "no metrics without an exporter");
        }
        println!("{protocol:?}: 21 collections in {} bytes, {} compressed", bytes[0], bytes[1]);
        assert!(bytes[1] * 4 < bytes[0]);
    }
}

/// What a receiver may do that loses nothing. gRPC knows codes, HTTP statuses.
fn faults(protocol: Protocol) -> Vec<Fault> {
    let wait = Duration::from_secs(1);
    let mut faults = vec![Fault::Unanswered, Fault::Hang, Fault::Warning];
    match protocol {
        // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss; resource exhausted with a time.
        Protocol::Grpc => {
            faults.extend([1, 4, 10, 11, 14, 15].map(Fault::Code));
            faults.extend([8, 14].map(|code| Fault::Wait(code, wait)));
        }
        Protocol::Http => {
            faults.extend([429, 502, 503, 504].map(Fault::Code));
            faults.extend([429, 503].map(|code| Fault::Wait(code, wait)));
            faults.push(Fault::Garbage);
        }
    }
    faults
}

#[test]
fn no_point_is_lost_through_what_asks_to_be_sent_again() {
    let mut random = Random(seed());
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let server = start(protocol, None);
        let settings = Settings { timeout: Duration::from_secs(1), ..settings(protocol, &server.endpoint()) };
        let mut setup = Setup::start(&settings);
        for fault in faults(protocol) {
            server.store().fault = Some(fault);
            for _ in 0..1 + random.below(3) {
                setup.collect();
            }
            wait_until(&format!("{fault:?} to happen"), || server.store().fault.is_none());
        }
        setup.collect();
        setup.arrived(&server);
        for reason in ["queue_limit", "queue_bytes", "overrun", "refused", "panic", "stopped"] {
            assert_eq!(setup.dropped(reason), 0, "{reason}");
        }
        for reason in ["connection", "try_again"] {
            assert!(setup.grown_for("points_failed_total", reason) > 0, "{reason}");
        }
        wait_until("each point to be counted once", || {
            setup.grown("points_sent_total", "") == setup.made as usize * count_of(&collection(1))
        });
        setup.exporter.stop();
    }
}

/// The time that a receiver asks for passes before it is asked again.
#[test]
fn who_asks_for_time_gets_it() {
    for (protocol, code) in [(Protocol::Grpc, 8), (Protocol::Http, 503)] {
        let server = start(protocol, None);
        let mut setup = Setup::start(&settings(protocol, &server.endpoint()));
        setup.arrived(&server);
        let wait = Duration::from_secs(3);
        server.store().fault = Some(Fault::Wait(code, wait));
        let before = server.store().arrived.len();
        setup.collect();
        wait_until("two requests", || server.store().arrived.len() >= before + 2);
        let times = server.store().arrived.clone();
        let between = times[before + 1] - times[before];
        assert!(between >= wait, "{protocol:?}: after {between:?}");
        setup.arrived(&server);
        setup.exporter.stop();
    }
}

#[test]
fn what_is_refused_for_good_is_dropped_counted_and_told() {
    for (protocol, codes) in [
        // Unknown, invalid argument, permission denied, unimplemented, internal; resource exhausted without a time.
        (Protocol::Grpc, &[2, 3, 7, 12, 13, 8][..]),
        (Protocol::Http, &[400, 403, 404, 413, 500, 501]),
    ] {
        let server = start(protocol, None);
        let settings = Settings { unhealthy_after: Duration::ZERO, ..settings(protocol, &server.endpoint()) };
        let mut setup = Setup::start(&settings);
        setup.arrived(&server);
        let mut given_up = 0;
        for code in codes {
            server.store().fault = Some(Fault::Code(*code));
            setup.made += 1;
            setup.cell.store(collection(setup.made));
            given_up += count_of(&collection(1));
            wait_until(&format!("{code} to be counted"), || setup.dropped("refused") == given_up);
            let trouble = || STATE.trouble(Instant::now()).unwrap_or_default();
            wait_until("trouble", || trouble().contains("refuses a batch for good") && trouble().contains("told so"));
            setup.collect();
            setup.arrived(&server);
            wait_until("health", || STATE.trouble(Instant::now()).is_none());
        }
        // In part: the rest is taken.
        server.store().fault = Some(Fault::Partly(7));
        setup.collect();
        setup.arrived(&server);
        wait_until("what is refused in part", || setup.dropped("refused") == given_up + 7);
        assert_eq!(STATE.trouble(Instant::now() + LIMIT), None);
        let all = setup.made as usize * count_of(&collection(1));
        wait_until("all to be counted", || setup.grown("points_sent_total", "") == all - given_up - 7);
        setup.exporter.stop();
    }
}

#[test]
fn certificates_and_headers_are_sent_and_checked() {
    let dir = TempDir::new("otlp");
    let ca = Identity::new(1, None, YEAR);
    let (id, other) = (Identity::new(2, Some(&ca), YEAR), Identity::new(3, None, YEAR));
    let (ca_file, other_file) = (dir.path.join("ca.pem"), dir.path.join("other.pem"));
    std::fs::write(&ca_file, ca.cert_pem()).unwrap();
    std::fs::write(&other_file, other.cert_pem()).unwrap();
    let headers_file = dir.path.join("headers");
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let server = start(protocol, Some(&id));
        server.store().asks_for = Some(("authorization".into(), "Bearer good".into()));
        let with =
            |file: &std::path::Path| ClientTls { enabled: true, ca_file: Some(file.into()), ..Default::default() };
        let endpoint = format!("localhost:{}", server.port);
        let mut settings = Settings {
            tls: with(&other_file),
            unhealthy_after: Duration::from_millis(10),
            headers: Some(Secret("Authorization=Bearer good,x-scope=1".into())),
            ..settings(protocol, &endpoint)
        };
        let setup = Setup::start(&settings);
        wait_until("the wrong authority", || {
            STATE.trouble(Instant::now()).is_some_and(|t| t.to_lowercase().contains("certificate verify failed"))
        });
        setup.exporter.stop();
        settings.tls = with(&ca_file);
        let setup = Setup::start(&settings);
        setup.arrived(&server);
        setup.exporter.stop();
        // From a file, which may change.
        std::fs::write(&headers_file, "authorization=Bearer bad\n").unwrap();
        settings.headers = None;
        settings.headers_file = Some(headers_file.clone());
        let mut setup = Setup::start(&settings);
        let code = if protocol == Protocol::Grpc { "UNAUTHENTICATED" } else { "HTTP 401" };
        wait_until(code, || STATE.trouble(Instant::now()).is_some_and(|t| t.contains(code)));
        std::fs::write(&headers_file, "authorization=Bearer good\n").unwrap();
        let first = points_of(&collection(1));
        setup.truth.clear();
        setup.collect();
        setup.truth.extend(first);
        setup.arrived(&server);
        setup.exporter.stop();
    }
}

#[test]
fn a_receiver_that_comes_later_gets_all_of_it_by_the_next_endpoint() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let free = common::free_port();
        let server = start(protocol, None);
        let endpoints = format!("127.0.0.1:{free},{}", server.endpoint());
        let mut setup = Setup::start(&settings(protocol, &endpoints));
        for _ in 0..5 {
            setup.collect();
        }
        setup.arrived(&server);
        setup.exporter.stop();
    }
}

// ---- the agent as a whole ----

const SEQUENCE: &str = "ebpf_sidecar_snapshot_sequence";

#[test]
fn the_receiver_agrees_with_prometheus_beside_another_exporter() {
    need_bpf!("the_receiver_agrees_with_prometheus_beside_another_exporter");
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let server = start(protocol, None);
        let (endpoint, name) = (server.endpoint(), if protocol == Protocol::Grpc { "grpc" } else { "http" });
        let nobody = format!("127.0.0.1:{}", common::free_port());
        let mut agent = Agent::start(&[
            ("EXPORT_TYPE", "otlp,banyandb"),
            ("EXPORT_OTLP_ENDPOINT", endpoint.as_str()),
            ("EXPORT_OTLP_PROTOCOL", name),
            ("EXPORT_OTLP_COMPRESSION", "gzip"),
            ("EXPORT_OTLP_TIMEOUT", "5s"),
            ("EXPORT_OTLP_FLUSH_INTERVAL", "200ms"),
            ("EXPORT_BANYANDB_ENDPOINT", nobody.as_str()),
            ("EXPORT_BANYANDB_TIMEOUT", "100ms"),
            ("COLLECTOR_INTERVAL", "100ms"),
        ]);
        let sent = "ebpf_sidecar_export_points_sent_total{exporter=\"otlp\"}";
        let metrics = agent.wait(|m| m.get(SEQUENCE) > 5.0 && m.0.get(sent).is_some_and(|sent| *sent > 0.0));
        assert_eq!(metrics.get("ebpf_sidecar_system_calls_refused_total"), 0.0);
        let last = agent.metrics().get(SEQUENCE);
        sys::kill(agent.child.id(), libc::SIGTERM);
        let status = common::wait_for(&mut agent.child, LIMIT).expect("it does not stop");
        assert!(status.success(), "{}", agent.log());
        let store = server.store();
        assert_eq!(store.violations, [""; 0]);
        // The time of the snapshot, which is shown in milliseconds.
        let at = (metrics.get("ebpf_sidecar_snapshot_timestamp_seconds") * 1e3).round() as u64;
        let times: Vec<u64> = store.points.keys().filter(|(s, _)| s == SEQUENCE).map(|(_, t)| *t).collect();
        let time = times.iter().find(|t| *t / 1_000_000 == at).expect("this collection was sent");
        let mut compared = 0;
        for (series, value) in &metrics.0 {
            let got = store.points.get(&(as_number(series), *time));
            assert!(
                got.is_some_and(|got| got == value || got.is_nan() && value.is_nan()),
                "{series}: {got:?}, {value}"
            );
            compared += 1;
        }
        assert!(compared > 100, "{compared} compared");
        // Every collection from when the exporter has started up to the stop, each once.
        let sequences: Vec<f64> = times.iter().map(|t| store.points[&(SEQUENCE.to_owned(), *t)]).collect();
        assert!(sequences.windows(2).all(|two| two[0] + 1.0 == two[1]), "{sequences:?}");
        assert!(sequences.last().is_some_and(|n| *n >= last), "{sequences:?} up to {last} or more");
    }
}

// ---- real receivers ----

/// A program named by a variable, or the reason why there is none.
fn real(variable: &str) -> Result<String, String> {
    std::env::var(variable).map_err(|_| format!("{variable} names no program (make test-otlp)"))
}

/// Starts a program and waits until something answers at its port.
fn serving(program: &str, args: &[&str], dir: &TempDir, port: u16) -> Killed {
    let log = std::fs::File::create(dir.path.join("log")).unwrap();
    let process = Command::new(program)
        .args(args)
        .current_dir(&dir.path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let mut process = Killed(process.unwrap());
    let deadline = Instant::now() + LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let said = std::fs::read_to_string(dir.path.join("log")).unwrap_or_default();
        assert!(process.0.try_wait().unwrap().is_none() && Instant::now() < deadline, "{program}: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
    process
}

/// What Prometheus has at this time, in milliseconds, of an instance.
fn stored(port: u16, instance: &str, time: u64) -> BTreeMap<String, f64> {
    let query: String = format!("{{instance=\"{instance}\"}}").bytes().map(|b| format!("%{b:02x}")).collect();
    let path = format!("/api/v1/query?query={query}&time={}.{:03}", time / 1000, time % 1000);
    let body = common::request(port, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")).unwrap().body;
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let series = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{body}"));
    let own = ["__name__", "job", "instance", "service_name", "otel_scope_name", "otel_scope_version"];
    let one = |s: &serde_json::Value| {
        let metric = s["metric"].as_object().unwrap();
        // In any order.
        let labels: BTreeMap<&str, &str> = metric
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let value = s["value"][1].as_str().unwrap().parse().unwrap();
        (format!("{}{labels:?}", metric["__name__"].as_str().unwrap()), value)
    };
    series.iter().map(one).collect()
}

/// The same name for a series of /metrics; bounds of buckets as numbers.
fn sorted(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.trim_end_matches('}').split("\",").filter_map(|l| l.split_once("=\""));
    let labels: BTreeMap<&str, &str> = labels.map(|(n, v)| (n, v.trim_end_matches('"'))).collect();
    format!("{name}{labels:?}")
}

/// What a Prometheus stores of an agent, whichever way it came, is what that agent has shown.
#[test]
fn a_real_collector_and_a_real_prometheus_agree_with_the_agent() {
    const TEST: &str = "a_real_collector_and_a_real_prometheus_agree_with_the_agent";
    need_bpf!("a_real_collector_and_a_real_prometheus_agree_with_the_agent");
    let (collector, prometheus) = match (real("TEST_OTELCOL"), real("TEST_PROMETHEUS_OTLP")) {
        (Ok(collector), Ok(prometheus)) => (collector, prometheus),
        (Err(why), _) | (_, Err(why)) => return common::skipped(TEST, &why),
    };
    let (of_prometheus, of_collector) = (TempDir::new("otlp-prometheus"), TempDir::new("otlp-collector"));
    let [port, grpc, http] = [common::free_port(), common::free_port(), common::free_port()];
    let config = "otlp: {translation_strategy: UnderscoreEscapingWithSuffixes}\nstorage: {tsdb: {out_of_order_time_window: 30m}}\n";
    std::fs::write(of_prometheus.path.join("prometheus.yml"), config).unwrap();
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    let flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.enable-otlp-receiver", &listen];
    let _prometheus = serving(&prometheus, &flags, &of_prometheus, port);
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{grpc}'}}, http: {{endpoint: '127.0.0.1:{http}'}}}}}}}}\n\
         exporters: {{otlphttp: {{endpoint: 'http://127.0.0.1:{port}/api/v1/otlp'}}}}\n\
         service: {{telemetry: {{metrics: {{level: none}}}}, pipelines: {{metrics: {{receivers: [otlp], exporters: [otlphttp]}}}}}}\n"
    );
    std::fs::write(of_collector.path.join("config.yaml"), config).unwrap();
    let _collector = serving(&collector, &["--config=config.yaml"], &of_collector, grpc);
    let said = |dir: &TempDir| std::fs::read_to_string(dir.path.join("log")).unwrap_or_default();
    wait_until("the collector's second port", || TcpStream::connect(("127.0.0.1", http)).is_ok());

    for (instance, protocol, to, path) in [
        ("by-grpc", "grpc", grpc, "/v1/metrics"),
        ("by-http", "http", http, "/v1/metrics"),
        ("directly", "http", port, "/api/v1/otlp/v1/metrics"),
    ] {
        let (endpoint, resource) = (format!("127.0.0.1:{to}"), format!("service.instance.id={instance}"));
        let agent = Agent::start(&[
            ("EXPORT_TYPE", "otlp"),
            ("EXPORT_OTLP_ENDPOINT", endpoint.as_str()),
            ("EXPORT_OTLP_PROTOCOL", protocol),
            ("EXPORT_OTLP_PATH", path),
            ("EXPORT_OTLP_COMPRESSION", "gzip"),
            ("EXPORT_OTLP_RESOURCE", resource.as_str()),
            ("EXPORT_OTLP_FLUSH_INTERVAL", "200ms"),
            ("COLLECTOR_INTERVAL", "500ms"),
        ]);
        let sent = "ebpf_sidecar_export_points_sent_total{exporter=\"otlp\"}";
        let metrics = agent.wait(|m| m.get(SEQUENCE) > 5.0 && m.0.get(sent).is_some_and(|sent| *sent > 0.0));
        let time = (metrics.get("ebpf_sidecar_snapshot_timestamp_seconds") * 1e3).round() as u64;
        let number = BTreeMap::from([(sorted(SEQUENCE), metrics.get(SEQUENCE))]);
        let deadline = Instant::now() + LIMIT;
        let found = loop {
            let found = stored(port, instance, time);
            if number.iter().all(|(name, value)| found.get(name) == Some(value)) {
                break found;
            }
            let why = || format!("{instance}: {}\n{}\n{}", said(&of_collector), said(&of_prometheus), agent.log());
            assert!(Instant::now() < deadline, "{}", why());
            std::thread::sleep(Duration::from_millis(200));
        };
        let found: BTreeMap<String, f64> = found.into_iter().map(|(name, value)| (bounds(&name), value)).collect();
        let mut compared = 0;
        for (series, value) in &metrics.0 {
            let (name, found) = (bounds(&sorted(series)), |name: &str| found.get(name).copied());
            // What has no value is marked as stale, which no query shows.
            assert_eq!(found(&name), Some(*value).filter(|v| !v.is_nan()), "{instance}: {name}");
            compared += usize::from(!value.is_nan());
        }
        println!("{instance}: {compared} values equal to /metrics of collection {}", number[&sorted(SEQUENCE)]);
        assert!(compared > 100);
    }
}

/// With the bound of a bucket as a number, however it is written.
fn bounds(series: &str) -> String {
    let Some((head, le)) = series.split_once("\"le\": \"") else { return series.to_owned() };
    let (bound, rest) = le.split_once('"').unwrap();
    let bound: f64 = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
    format!("{head}\"le\": {bound:?}{rest}")
}
