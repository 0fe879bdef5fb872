//! What the running agent shows, on real data: each output says the same, and a real Prometheus takes it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use common::prometheus::{Prometheus, promtool};
use common::{Agent, MIB, Metrics, Scoped, TestFile, read_all, request, sys};

/// Some of everything: cold and warm reads, a file written, fadvise calls that succeed and fail.
fn some_work(file: &TestFile) {
    file.drop_cache();
    read_all(&file.file, MIB);
    read_all(&file.file, 4096);
    TestFile::new("written", 64 * 1024);
    for advice in [libc::POSIX_FADV_NORMAL, libc::POSIX_FADV_RANDOM, libc::POSIX_FADV_NOREUSE] {
        sys::fadvise(file.file.as_raw_fd(), 0, 0, advice).unwrap();
    }
    sys::fadvise(-1, 0, 0, 0).unwrap_err();
}

// ---- the outputs of one snapshot ----

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

fn get(agent: &Agent, path: &str, accept: &str) -> common::Response {
    request(agent.port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"))
        .unwrap()
}

/// The statistics as the metrics would say them: JSON pointer, name of the metric, and the label that an object's
/// keys stand for.
const FIELDS: &[(&str, &str, &str)] = &[
    ("/sequence", "ebpf_sidecar_snapshot_sequence", ""),
    ("/fadvise/total_calls", "ebpf_fadvise_calls_total", ""),
    ("/fadvise/success_calls", "ebpf_fadvise_success_total", ""),
    ("/fadvise/failed_calls", "ebpf_fadvise_failed_total", ""),
    ("/fadvise/success_rate_percent", "ebpf_fadvise_success_rate_percent", ""),
    ("/fadvise/advice_counts", "ebpf_fadvise_advice_total", "advice"),
    ("/cache/read_attempts", "ebpf_cache_read_attempts_total", ""),
    ("/cache/hits", "ebpf_cache_hits_total", ""),
    ("/cache/misses", "ebpf_cache_misses_total", ""),
    ("/cache/hit_rate_percent", "ebpf_cache_hit_rate_percent", ""),
    ("/cache/miss_rate_percent", "ebpf_cache_miss_rate_percent", ""),
    ("/cache/read_bytes", "ebpf_cache_read_bytes_total", ""),
    ("/cache/pages_added_by_cause", "ebpf_page_cache_adds_total", "cause"),
    ("/cache/pages_evicted_by_cause", "ebpf_page_cache_evictions_total", "cause"),
    ("/memory/lru_pages_scanned_by_reclaimer", "ebpf_memory_lru_pages_scanned_total", "reclaimer"),
    ("/memory/pages_reclaimed_by_reclaimer", "ebpf_memory_pages_reclaimed_total", "reclaimer"),
    ("/memory/reclaim_efficiency_percent", "ebpf_memory_reclaim_efficiency_percent", ""),
    ("/memory/direct_reclaim_processes", "ebpf_memory_direct_reclaim_processes", ""),
    ("/memory/direct_reclaim_seconds/count", "ebpf_memory_direct_reclaim_seconds_count", ""),
    ("/memory/direct_reclaim_seconds/sum", "ebpf_memory_direct_reclaim_seconds_sum", ""),
    ("/memory/direct_reclaim_seconds/buckets", "ebpf_memory_direct_reclaim_seconds_bucket", "le"),
    ("/memory/kswapd_wakeups", "ebpf_memory_kswapd_wakeups_total", ""),
];

/// Fields that are sums of others, or say what the metrics do not.
const NOT_IN_METRICS: &[&str] = &[
    "/status",
    "/scope",
    "/collected_at",
    "/total_modules",
    "/total_metrics",
    "/modules",
    "/fadvise/process_stats",
    "/processes",
    "/cache/pages_added",
    "/cache/pages_evicted",
    "/memory/lru_pages_scanned",
    "/memory/pages_reclaimed",
];

/// A number as Prometheus has it: null is NaN. Texts, so that NaN equals itself.
fn number(v: &Value) -> String {
    v.as_f64().unwrap_or(f64::NAN).to_string()
}

#[test]
fn the_outputs_of_a_snapshot_agree() {
    need_bpf!("the_outputs_of_a_snapshot_agree");
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "300ms")]);
    let f = TestFile::new("agree", MIB);
    let mut compared = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while compared < 5 {
        assert!(Instant::now() < deadline, "the outputs never were of the same snapshot");
        some_work(&f);
        let sequence = s.agent.metrics().get("ebpf_sidecar_snapshot_sequence");
        s.agent.wait(|m| m.get("ebpf_sidecar_snapshot_sequence") > sequence);
        let plain = get(&s.agent, "/metrics", "text/plain");
        let stats: Value = serde_json::from_str(&s.agent.get("/api/v1/stats").body).unwrap();
        let open = get(&s.agent, "/metrics", OPEN_METRICS);
        assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
        assert!(open.body.ends_with("# EOF\n") && !plain.body.contains("# EOF"));
        let samples = |text: &str| -> BTreeMap<String, String> {
            Metrics::parse(text).0.into_iter().map(|(name, v)| (name, v.to_string())).collect()
        };
        let (plain, open) = (samples(&plain.body), samples(&open.body));
        let name = "ebpf_sidecar_snapshot_sequence";
        if plain[name] != open[name] || plain[name] != number(&stats["sequence"]) {
            continue;
        }
        assert_eq!(plain, open);
        compare(&plain, &stats);
        compared += 1;
    }
}

fn compare(metrics: &BTreeMap<String, String>, stats: &Value) {
    let mut said = BTreeMap::new();
    for (pointer, name, label) in FIELDS {
        match stats.pointer(pointer) {
            None => {}
            Some(Value::Object(map)) => {
                said.extend(map.iter().map(|(k, v)| (format!("{name}{{{label}=\"{k}\"}}"), number(v))));
            }
            Some(v) => {
                said.insert((*name).to_owned(), number(v));
            }
        }
    }
    // Both ways: nothing in the statistics that the metrics lack, nor the other way round.
    let beside = ["ebpf_sidecar_", "ebpf_diagnosis_", "process_"];
    let of_io = |name: &str| !beside.iter().any(|begin| name.starts_with(begin));
    let shown: BTreeMap<_, _> = metrics
        .iter()
        .filter(|(n, _)| of_io(n) || *n == "ebpf_sidecar_snapshot_sequence")
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    assert_eq!(said, shown);
    assert!(shown["ebpf_fadvise_calls_total"] != "0" && shown["ebpf_cache_misses_total"] != "0");

    // And no field is forgotten here.
    for (section, value) in stats.as_object().unwrap() {
        let fields: Vec<String> = match value {
            Value::Object(map) if section != "modules" => map.keys().map(|k| format!("/{section}/{k}")).collect(),
            _ => vec![format!("/{section}")],
        };
        for field in fields {
            let known = FIELDS.iter().any(|(p, ..)| *p == field || p.starts_with(&format!("{field}/")));
            assert!(known || NOT_IN_METRICS.contains(&field.as_str()), "{field} is not compared");
        }
    }
    for (sum, parts) in [
        ("/cache/pages_added", "/cache/pages_added_by_cause"),
        ("/cache/pages_evicted", "/cache/pages_evicted_by_cause"),
        ("/memory/lru_pages_scanned", "/memory/lru_pages_scanned_by_reclaimer"),
        ("/memory/pages_reclaimed", "/memory/pages_reclaimed_by_reclaimer"),
        ("/fadvise/total_calls", "/fadvise/advice_counts"),
    ] {
        if let Some(Value::Object(parts)) = stats.pointer(parts) {
            let total: u64 = parts.values().map(|v| v.as_u64().unwrap()).sum();
            assert_eq!(stats.pointer(sum).unwrap().as_u64(), Some(total), "{sum}");
        }
    }
    let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
    let calls: u64 = rows.iter().map(|r| r["call_count"].as_u64().unwrap()).sum();
    assert_eq!(stats["fadvise"]["total_calls"], calls, "the rows are all there is");
    for what in ["read_attempts", "misses"] {
        let rows = stats["processes"].as_array().unwrap();
        let sum: Option<u64> = rows.iter().map(|r| r[what].as_u64()).sum();
        assert_eq!(stats["cache"][what].as_u64(), sum, "{what}: the rows are all there is");
    }
}

// ---- Prometheus ----

#[test]
fn promtool_accepts_the_live_exposition() {
    need_bpf!("promtool_accepts_the_live_exposition");
    let s = Scoped::start(&[]);
    // Before anything was counted, with rates of nothing, and after.
    let idle = s.agent.get("/metrics").body;
    some_work(&TestFile::new("promtool", MIB));
    s.agent.settled();
    for exposition in [idle, s.agent.get("/metrics").body] {
        match promtool(&exposition) {
            Some(said) => assert_eq!(said, "", "{exposition}"),
            None => common::skipped(
                "promtool_accepts_the_live_exposition",
                "promtool is not installed (apt-get install prometheus)",
            ),
        }
    }
}

/// Passes requests on without their Accept header, so that the answer is the older text format. Returns its port,
/// and the Accept headers it has seen.
fn without_accept(agent: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, seen) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
    let accepts = Arc::clone(&seen);
    let pass_on = move |client: TcpStream| -> std::io::Result<()> {
        let mut head = String::from("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        for line in BufReader::new(&client).lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            accepts.lock().unwrap().extend(line.strip_prefix("Accept: ").map(str::to_owned));
        }
        let mut server = TcpStream::connect(("127.0.0.1", agent))?;
        server.write_all(head.as_bytes())?;
        head.clear();
        server.read_to_string(&mut head)?;
        (&client).write_all(head.as_bytes())
    };
    // Ends with the test's process.
    thread::spawn(move || listener.incoming().for_each(|c| drop(c.and_then(&pass_on))));
    (port, seen)
}

/// Everything that is a counter or a part of a histogram.
const GROWING: &str = r#"{__name__=~".+_(total|count|sum|bucket)",job=~"agent|text"}"#;

#[test]
fn a_real_prometheus_scrapes_it_for_a_minute() {
    need_bpf!("a_real_prometheus_scrapes_it_for_a_minute");
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "500ms")]);
    let (proxy, accepts) = without_accept(s.agent.port);
    s.cgroup.leave(); // what Prometheus does is not the work
    let Some(mut prometheus) = Prometheus::start(&[("agent", s.agent.port), ("text", proxy)], &[]) else {
        common::skipped("a_real_prometheus_scrapes_it_for_a_minute", "no prometheus (apt-get install prometheus)");
        return;
    };
    s.cgroup.enter();
    prometheus.wait("both are scraped", |p| p.query("up == 1", "").len() == 2);

    let f = TestFile::new("minute", 4 * MIB);
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (begun, from) = (Instant::now(), now());
    while begun.elapsed() < Duration::from_secs(60) {
        some_work(&f);
        thread::sleep(Duration::from_millis(50));
    }
    let range = format!("&start={from}&end={}&step=1", now());

    let up = prometheus.query("up", &range);
    assert_eq!(up.len(), 2, "{up:?}");
    for (job, values) in &up {
        assert!(values.len() >= 60 && values.iter().all(|v| v == "1"), "{job}: {values:?}");
    }

    // As they were stored: counters only grow, and the ones that the work moves do.
    let down = prometheus.query("up[1m]", "").into_iter().find(|(_, values)| values.iter().any(|v| v != "1"));
    assert_eq!(down, None);
    let counters = prometheus.query(&format!("{GROWING}[1m]"), "");
    assert!(counters.len() >= 2 * 30, "{} counters", counters.len());
    let mut grown = BTreeSet::new();
    for (series, values) in &counters {
        let values: Vec<f64> = values.iter().map(|v| v.parse().unwrap()).collect();
        assert!(values.is_sorted(), "{series}: {values:?}");
        assert!(values.len() >= 30, "{series}: {} samples", values.len());
        if values[values.len() - 1] > values[0] {
            grown.insert((series["__name__"].as_str().unwrap(), series["job"].as_str().unwrap()));
        }
    }
    for name in [
        "ebpf_fadvise_failed_total",
        "ebpf_cache_hits_total",
        "ebpf_cache_misses_total",
        "ebpf_page_cache_adds_total",
        "ebpf_page_cache_evictions_total",
        "process_cpu_seconds_total",
    ] {
        let resets = prometheus.query(&format!("resets({name}[2m])"), "");
        assert!(resets.len() >= 2 && resets.iter().all(|(_, v)| v[0] == "0"), "{name}: {resets:?}");
        assert!(grown.contains(&(name, "agent")) && grown.contains(&(name, "text")), "{name} did not grow");
    }

    // What it has at the end is what the agent says, in both formats.
    let of_work =
        |name: &str| (name.starts_with("ebpf_fadvise") || name.starts_with("ebpf_cache")) && name.contains("_total");
    let truth: BTreeMap<String, f64> = s.agent.settled().0.into_iter().filter(|(n, _)| of_work(n)).collect();
    assert!(truth["ebpf_cache_misses_total"] > 0.0);
    for job in ["agent", "text"] {
        let query = format!("{{__name__=~\"ebpf_(fadvise|cache)_.*_total\",job=\"{job}\"}}");
        let shown = |p: &Prometheus| -> BTreeMap<String, f64> {
            let named = |m: &Value| match m["advice"].as_str() {
                Some(advice) => format!("{}{{advice=\"{advice}\"}}", m["__name__"].as_str().unwrap()),
                None => m["__name__"].as_str().unwrap().to_owned(),
            };
            p.query(&query, "").iter().map(|(m, v)| (named(m), v[0].parse().unwrap())).collect()
        };
        prometheus.wait(&format!("{job} shows {truth:?}"), |p| shown(p) == truth);
    }

    let accept = accepts.lock().unwrap().first().cloned().unwrap();
    let open = get(&s.agent, "/metrics", &accept).head.contains("application/openmetrics-text");
    assert_eq!(open, accept.contains("application/openmetrics-text"), "{accept}");
    println!(
        "{} counters; it asks for {accept}, and gets {}",
        counters.len() / 2,
        if open { "OpenMetrics" } else { "text" }
    );
}
