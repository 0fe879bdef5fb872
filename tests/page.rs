//! The page at `/`, in a real Chromium: with the real agent, and with one that says whatever a test wants. Pictures of it
//! are kept in target/tmp/page.

mod common;
#[path = "common/identity.rs"]
mod identity;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::export::json;
use ebpf_sidecar::metrics::cell::SnapshotCell;
use ebpf_sidecar::metrics::histogram::Histogram;
use ebpf_sidecar::metrics::snapshot::{ProbeStatus, Snapshot, Value as Metric};
use ebpf_sidecar::monitor::example;
use ebpf_sidecar::server::http::access::Access;
use ebpf_sidecar::server::http::{self, HttpServer, Page, Render};
use serde_json::{Value, json};

use common::browser::{Browser, END, ENTER, LEFT, SPACE, TAB};
use common::{Agent, MIB, TempDir, TestFile, alone, command, free_ports, read_all, skipped, sys, text};
use identity::{Identity, YEAR};

/// A browser, or the end of the test with the reason.
macro_rules! browser {
    ($test:literal) => {
        match Browser::start() {
            Ok(browser) => browser,
            Err(why) => return skipped($test, &why),
        }
    };
}

// ---- an agent that says what it is told ----

type Said = Arc<Mutex<Option<[String; 2]>>>;

struct Fake {
    cell: SnapshotCell,
    /// What it says in place of the snapshot: statistics and health.
    said: Said,
    server: HttpServer,
}

impl Fake {
    fn start(first: Snapshot) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), first, None)
    }

    fn start_at(address: SocketAddr, first: Snapshot, web_config: Option<&Path>) -> Self {
        let (cell, said) = (SnapshotCell::new(first), Said::default());
        let access = Access::new(web_config).unwrap();
        let server = http::start(address, "/metrics", cell.clone(), render(&said), None, access).unwrap();
        Self { cell, said, server }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.server.address())
    }

    /// From now on it says this, as snapshot `sequence`.
    fn say(&self, sequence: u64, stats: &Value, health: &Value) {
        *self.said.lock().unwrap() = Some([stats.to_string(), health.to_string()]);
        self.cell.store(snapshot(sequence)); // the page is rendered once per snapshot
    }
}

fn render(said: &Said) -> Render {
    let said = Arc::clone(said);
    Box::new(move |page, snapshot| {
        let said = said.lock().unwrap();
        match (page, &*said) {
            (Page::Stats, Some([stats, _])) => stats.clone().into(),
            (Page::Health, Some([_, health])) => health.clone().into(),
            (Page::Stats, None) => json::stats(snapshot).into(),
            (Page::Health, None) => json::health(snapshot, Instant::now()).1.into(),
            _ => String::new().into(),
        }
    })
}

/// Snapshot `n` of an agent that adds the same each ten seconds.
fn snapshot(n: u64) -> Snapshot {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let mut s = example::snapshot();
    s.sequence = n;
    s.collected_at += Duration::from_secs(10) * n as u32;
    s.started = *STARTED.get_or_init(Instant::now);
    s.say("ebpf_page_cache_adds_total", &[50 * n, 20 * n, 0, 10 * n, 0]);
    s.say("ebpf_cache_misses_total", &[50 * n]);
    s.say("ebpf_cache_read_attempts_total", &[1000 * n]);
    let mut waits = Histogram { sum_ns: 987_654_321, ..Default::default() };
    waits.buckets[10] = 90 * n; // 524 µs < t <= 1.05 ms
    waits.buckets[14] = 10 * n; // 8.4 ms < t <= 16.8 ms
    s.family_mut("ebpf_read_wait_seconds").series[0].value = Metric::Histogram(waits);
    s
}

// ---- what the page shows ----

#[derive(Debug, Default)]
struct Row {
    text: String,
    /// The exact number behind it.
    value: Option<f64>,
    total: String,
}

/// The rows of all panels as `panel/row`, and the line that says of which snapshot they are, all at one time.
fn rows(browser: &Browser) -> (String, BTreeMap<String, Row>) {
    let shown = browser.eval(
        "const rows = [];
         for (const tr of document.querySelectorAll('.charts tbody tr')) {
           const [data, total] = [tr.querySelector('data'), tr.querySelector('small')];
           const name = tr.closest('section').querySelector('h2').textContent + '/' + tr.querySelector('th').textContent;
           rows.push([name, data.textContent, data.getAttribute('value'), total.textContent]);
         }
         return [document.getElementById('shown').textContent, rows];",
    );
    let string = |v: &Value| v.as_str().unwrap().to_owned();
    let row = |r: &Value| {
        let value = r[2].as_str().map(|v| v.parse().unwrap());
        (string(&r[0]), Row { text: string(&r[1]), value, total: string(&r[3]) })
    };
    (string(&shown[0]), shown[1].as_array().unwrap().iter().map(row).collect())
}

fn wait_for_snapshot(browser: &Browser, n: u64) -> BTreeMap<String, Row> {
    browser.wait(&format!("return document.getElementById('shown').textContent.includes(', snapshot {n},')"));
    rows(browser).1
}

fn wait_for_status(browser: &Browser, status: &str) {
    browser.wait(&format!("return document.getElementById('status').textContent.endsWith('{status}')"));
}

/// What the console has got, without what Chromium itself says of connections that fail.
fn complaints(browser: &Browser) -> Vec<String> {
    let mut said = browser.console();
    said.retain(|line| !line.contains("net::ERR_CONNECTION_REFUSED"));
    said
}

const NOTHING: &[String] = &[];

fn pictures() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&dir).unwrap();
    dir
}

// ---- with the real agent ----

/// Time for the page to show three snapshots.
const PATIENCE: Duration = Duration::from_secs(180);

/// The statistics of every snapshot of an agent, until it is told to end.
fn recorded(agent: &Agent, until: &AtomicBool) -> BTreeMap<u64, Value> {
    let (begin, mut all) = (Instant::now(), BTreeMap::new());
    while !until.load(Ordering::Relaxed) && begin.elapsed() < 2 * PATIENCE {
        let stats = agent.stats();
        all.insert(stats["sequence"].as_u64().unwrap(), stats);
        thread::sleep(Duration::from_millis(50));
    }
    all
}

fn some_work(file: &TestFile) {
    file.drop_cache();
    read_all(&file.file, MIB);
    sys::fadvise(file.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    sys::fadvise(-1, 0, 0, 0).unwrap_err();
}

/// Seconds from one collection to a later one of the same day.
fn seconds_between(before: &Value, after: &Value) -> f64 {
    let millis = |stats: &Value| {
        let time = stats["collected_at"].as_str().unwrap().split_once('T').unwrap().1;
        let n = |range: std::ops::Range<usize>| time[range].parse::<i64>().unwrap();
        ((n(0..2) * 60 + n(3..5)) * 60 + n(6..8)) * 1000 + n(9..12)
    };
    (millis(after) - millis(before)).rem_euclid(86_400_000) as f64 / 1000.0
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn shows_what_the_agent_counts() {
    need_bpf!("shows_what_the_agent_counts");
    let browser = browser!("shows_what_the_agent_counts");
    let _alone = alone();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "3s")]);
    let (file, done) = (TestFile::new("page", 4 * MIB), AtomicBool::new(false));
    let (shown, history) = thread::scope(|scope| {
        let recorder = scope.spawn(|| recorded(&agent, &done));
        browser.open(&format!("http://127.0.0.1:{}/", agent.port));
        wait_for_status(&browser, agent.stats()["status"].as_str().unwrap());
        let mut shown = Vec::new();
        let begin = Instant::now();
        // What was counted in the last interval, three times.
        while shown.len() < 3 && begin.elapsed() < PATIENCE {
            some_work(&file);
            let now = rows(&browser);
            if now.0.contains(", over ") && shown.last().is_none_or(|(line, _)| *line != now.0) {
                shown.push(now);
            }
        }
        done.store(true, Ordering::Relaxed);
        (shown, recorder.join().unwrap())
    });
    assert_eq!(shown.len(), 3, "the page shows no new snapshots");

    let mut compared = 0;
    for (line, rows) in &shown {
        let (_, rest) = line.split_once("snapshot ").unwrap();
        let (sequence, over) = rest.split_once(", over ").unwrap();
        let sequence: u64 = sequence.parse().unwrap();
        let now = &history[&sequence];
        // The one that it was compared with.
        let over: f64 = over.trim_end_matches(" s").parse().unwrap();
        let before = history.values().find(|s| (seconds_between(s, now) - over).abs() < 0.06).unwrap();
        let mut same = |row: String, path: &str| {
            let Some(total) = now.pointer(path).and_then(Value::as_u64) else {
                assert_eq!(rows[&row].text, "not known", "{row}");
                return;
            };
            let rate = (total - before.pointer(path).unwrap().as_u64().unwrap()) as f64 / seconds_between(before, now);
            let got = &rows[&row];
            assert!((got.value.unwrap() - rate).abs() <= rate * 1e-9, "{row}: {got:?}, not {rate}");
            assert_eq!(got.total.replace(',', ""), total.to_string(), "{row}");
            compared += 1;
        };
        same("Page cache/pages read".into(), "/cache/read_attempts");
        same("Page cache/pages missed".into(), "/cache/misses");
        same("Page cache/bytes read".into(), "/cache/read_bytes");
        same("fadvise by advice/failed".into(), "/fadvise/failed_calls");
        same("Reclaim/kswapd rounds".into(), "/memory/kswapd_wakeups");
        for (panel, path) in [
            ("Fills by cause/", "/cache/pages_added_by_cause"),
            ("Evictions by cause/", "/cache/pages_evicted_by_cause"),
            ("fadvise by advice/", "/fadvise/advice_counts"),
            ("Reclaim/scanned, ", "/memory/lru_pages_scanned_by_reclaimer"),
            ("Reclaim/freed, ", "/memory/pages_reclaimed_by_reclaimer"),
        ] {
            for name in now.pointer(path).and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
                same(format!("{panel}{name}"), &format!("{path}/{name}"));
            }
        }
        let hit_rate = &now["cache"]["hit_rate_percent"];
        let shown = rows["Page cache/hit rate"].value;
        // serde_json reads numbers to the last digit but one.
        let near = shown.zip(hit_rate.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= 1e-9);
        assert!(near || shown.is_none() && !hit_rate.is_f64(), "{shown:?}, not {hit_rate}");
    }
    // This very work was counted: the file was dropped, calls failed.
    for row in ["fadvise by advice/dontneed", "fadvise by advice/failed", "Evictions by cause/fadvise"] {
        let moved = |rows: &BTreeMap<String, Row>| rows.get(row).is_none_or(|r| r.value > Some(0.0));
        assert!(shown.iter().any(|(_, rows)| moved(rows)), "{row} did not move: {shown:?}");
    }
    assert!(compared >= 3 * 10, "{compared} values compared");

    // The probes, as the health has them.
    let health: Value = serde_json::from_str(&agent.get("/health").body).unwrap();
    let probes = browser
        .eval("return [...document.querySelectorAll('section:last-of-type tbody tr')].map((tr) => tr.textContent)");
    let expected = health["modules"][0]["probes"].as_array().unwrap();
    assert_eq!(probes.as_array().unwrap().len(), expected.len());
    for (row, probe) in probes.as_array().unwrap().iter().zip(expected) {
        let row = row.as_str().unwrap();
        let (name, mode) = (probe["name"].as_str().unwrap(), probe["mode"].as_str().unwrap_or("✕ not attached"));
        assert!(row.starts_with(name) && row.contains(mode), "{row}: {probe}");
    }
    assert_eq!(browser.console(), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn finds_an_agent_that_was_started_again() {
    need_bpf!("finds_an_agent_that_was_started_again");
    let browser = browser!("finds_an_agent_that_was_started_again");
    let ports = free_ports();
    let start = |interval| Agent::start_at(ports, command(), &[("COLLECTOR_INTERVAL", interval)]);
    let agent = start("500ms");
    let status = agent.stats()["status"].as_str().unwrap().to_owned();
    browser.open(&format!("http://127.0.0.1:{}/", agent.port));
    wait_for_status(&browser, &status);
    browser.wait("return document.getElementById('shown').textContent.includes(', over ')");
    drop(agent);
    wait_for_status(&browser, "unreachable");
    let message = browser.eval("return document.getElementById('message').textContent");
    assert!(message.as_str().unwrap().starts_with("agent unreachable since "), "{message}");
    // What was known stays to be read.
    assert!(rows(&browser).0.contains(", over "));

    let _agent = start("1h");
    wait_for_status(&browser, &status);
    assert!(rows(&browser).0.contains(", snapshot 1, rates come with the next"), "{}", rows(&browser).0);
    assert_eq!(complaints(&browser), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn a_process_with_a_hostile_name_is_text() {
    need_bpf!("a_process_with_a_hostile_name_is_text");
    let browser = browser!("a_process_with_a_hostile_name_is_text");
    // As long as the kernel lets a name be.
    let (name, dir) = ("<img onerror=1>", common::TempDir::new("hostile"));
    let (dd, file) = (dir.path.join(name), TestFile::new("hostile", MIB));
    fs::copy("/bin/dd", &dd).unwrap();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "200ms")]);
    let input = format!("if={}", text(&file.path));
    let o = Command::new(&dd).args([&input, "of=/dev/null", "iflag=nocache", "status=none"]).output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let known = |agent: &Agent| {
        let rows = agent.stats()["fadvise"]["process_stats"].as_array().cloned().unwrap_or_default();
        rows.iter().any(|r| r["comm"] == name)
    };
    if agent.stats()["fadvise"].is_null() {
        return skipped("a_process_with_a_hostile_name_is_text", "this kernel does not tell of fadvise");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !known(&agent) {
        assert!(Instant::now() < deadline, "dd's calls are not counted");
        thread::sleep(Duration::from_millis(50));
    }
    browser.open(&format!("http://127.0.0.1:{}/", agent.port));
    browser.wait(&format!(
        "return [...document.querySelectorAll('tbody th')].some((th) => th.textContent === {})",
        json!(name)
    ));
    assert_eq!(browser.eval("return document.images.length"), 0);
    assert_eq!(browser.console(), NOTHING);
}

// ---- with an invented one ----

#[test]
#[ignore = "needs Chromium: make test-full"]
fn rates_are_of_one_run_of_the_agent() {
    let browser = browser!("rates_are_of_one_run_of_the_agent");
    let fake = Fake::start(snapshot(100));
    browser.open(&fake.url());
    let rows = wait_for_snapshot(&browser, 100);
    let fills = "Fills by cause/read";
    assert_eq!((rows[fills].text.as_str(), rows[fills].total.as_str()), ("…", "5,000"));
    assert_eq!(rows["Page cache/hit rate"].text, "97.7 %");
    fake.cell.store(snapshot(101));
    let rows = wait_for_snapshot(&browser, 101);
    assert_eq!((rows[fills].text.as_str(), rows[fills].value), ("5 /s", Some(5.0)));
    assert_eq!(rows["Page cache/pages read"].value, Some(100.0));
    // 100 reads of which 90 within 1.05 ms.
    let waits = |row: &str| rows[&format!("Reads that waited for I/O/{row}")].text.clone();
    assert_eq!((waits("reads"), waits("half of them within")), ("10 /s".into(), "1.05 ms".into()));
    assert_eq!((waits("90 % within"), waits("99 % within")), ("1.05 ms".into(), "16.8 ms".into()));
    // Two snapshots passed between two looks: twice the time.
    fake.cell.store(snapshot(103));
    let rows = wait_for_snapshot(&browser, 103);
    assert_eq!(rows[fills].value, Some(5.0));

    // A collection that failed is no new measurement.
    let failed = Snapshot { sequence: 104, last_error: Some("map totals: EINVAL".into()), ..snapshot(103) };
    fake.cell.store(failed);
    wait_for_status(&browser, "degraded");
    let error = browser.wait("return document.getElementById('error').textContent");
    assert_eq!(error, "last error: map totals: EINVAL");
    assert_eq!(self::rows(&browser).1[fills].value, Some(5.0));

    // Started again, with the counters from zero, and with larger ones than before. Its age is told in whole seconds.
    let mut started = snapshot(1).started;
    for first in [1, 500] {
        thread::sleep((started + Duration::from_secs(6)).saturating_duration_since(Instant::now()));
        started = Instant::now();
        let of_this_run = |n: u64| {
            let s = snapshot(n);
            Snapshot { started, collected_at: s.collected_at + Duration::from_secs(10_000), ..s }
        };
        fake.cell.store(of_this_run(first));
        assert_eq!(wait_for_snapshot(&browser, first)[fills].text, "…", "after {first}");
        fake.cell.store(of_this_run(first + 1));
        assert_eq!(wait_for_snapshot(&browser, first + 1)[fills].value, Some(5.0), "after {first}");
    }
    assert_eq!(browser.console(), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn what_is_not_known_is_said() {
    let browser = browser!("what_is_not_known_is_said");
    let mut first = snapshot(1);
    for name in ["read_wait_seconds", "cache_read_attempts_total", "cache_hits_total", "cache_hit_rate_percent"] {
        first.forget(&format!("ebpf_{name}"));
    }
    let failures = vec![("fexit", "no BTF".into()), ("raw_tracepoint", "no such tracepoint\nthe log".into())];
    first.modules[0].probes.push(ProbeStatus { name: "cache_read", mode: None, failures });
    let fake = Fake::start(first);
    browser.open(&fake.url());
    let rows = wait_for_snapshot(&browser, 1);
    for row in ["Page cache/hit rate", "Page cache/pages read", "Reads that waited for I/O/reads"] {
        assert_eq!((rows[row].text.as_str(), rows[row].value), ("not known", None), "{row}");
    }
    let note = |panel: &str| {
        let script = "return [...document.querySelectorAll('section')].find((s) => s.firstChild.textContent === ";
        browser.eval(&format!("{script}{}).querySelector('.note').textContent", json!(panel)))
    };
    assert_eq!(
        note("Page cache"),
        "Not known: hit rate, pages read (probe cache_read is not attached, raw_tracepoint: no such tracepoint)."
    );
    assert_eq!(
        note("Reads that waited for I/O"),
        "Not known: reads (probe read_latency is left out, by the configuration or because this kernel cannot do it)."
    );
    assert_eq!(note("Fills by cause"), "");

    assert_eq!(browser.console(), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn whatever_an_agent_of_another_version_says_is_taken() {
    let browser = browser!("whatever_an_agent_of_another_version_says_is_taken");
    let fake = Fake::start(snapshot(1));
    browser.open(&fake.url());
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let stats = parse(&json::stats(&snapshot(1)));
    let health = parse(&json::health(&snapshot(1), Instant::now()).1);
    let mut sequence = 1;
    for odd in [json!(null), json!("<b>"), json!(-1.5), json!([]), json!({"a": null}), json!([{"failures": [null, 7]}])]
    {
        let (mut sections, mut fields) = (stats.clone(), stats.clone());
        for section in ["fadvise", "cache", "memory", "scope"] {
            sections[section] = odd.clone();
            let values = fields[section].as_object_mut().into_iter().flat_map(|fields| fields.values_mut());
            values.for_each(|value| *value = odd.clone());
        }
        for mut stats in [fields, sections] {
            sequence += 1;
            (stats["sequence"], stats["collected_at"]) =
                (json!(sequence), json!(format!("2023-11-14T22:13:{sequence:02}.000Z")));
            let mut health = health.clone();
            (health["sequence"], health["message"]) = (json!(sequence), odd.clone());
            health["modules"] = json!([{"probes": odd}]);
            fake.say(sequence, &stats, &health);
            wait_for_snapshot(&browser, sequence);
            wait_for_status(&browser, "healthy");
            let number = |row: &Row| row.value.is_none_or(f64::is_finite) && !row.text.contains("NaN");
            let rows = rows(&browser).1;
            assert!(rows.values().all(number), "{odd}: {rows:?}");
        }
    }
    // And an answer that is none at all is said.
    fake.say(sequence + 1, &stats, &json!("healthy"));
    wait_for_status(&browser, "unreachable");
    assert_eq!(browser.console(), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn text_of_the_agent_is_never_markup() {
    let browser = browser!("text_of_the_agent_is_never_markup");
    let hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;\u{202e}";
    let mut first = snapshot(1);
    first.scope = hostile.into();
    first.last_error = Some(hostile.into());
    first.processes.as_mut().unwrap()[0].comm = hostile.into();
    first.modules[0].probes[0].failures = vec![("fexit", hostile.into())];
    let fake = Fake::start(first);
    browser.open(&fake.url());
    wait_for_snapshot(&browser, 1);
    browser.wait("return document.querySelectorAll('dd').length > 3");
    let content = browser.eval("return document.body.textContent");
    // Scope, message, error, process, reason.
    assert!(content.as_str().unwrap().matches(hostile).count() >= 5, "{content}");
    assert_eq!(browser.eval("return [document.images.length, document.scripts.length]"), json!([0, 1]));
    let title = browser.eval("return document.title");
    assert!(title.as_str().unwrap().ends_with("ebpf-sidecar"), "{title}");
    assert_eq!(browser.console(), NOTHING);

    // And the policy would stop what got through: nothing is fetched, run or sent.
    let blocked = browser.eval(
        "const blocked = [];
         document.addEventListener('securitypolicyviolation', (e) => blocked.push(e.effectiveDirective));
         const attempt = (f) => { try { f(); } catch (e) { blocked.push(e.name); } };
         attempt(() => { document.body.innerHTML = '<b>x</b>'; });
         attempt(() => { const s = document.createElement('style'); s.textContent = 'p{}'; document.head.append(s); });
         attempt(() => { const i = new Image(); i.src = location.origin + '/metrics'; });
         attempt(() => { const f = document.createElement('iframe'); f.src = '/health'; document.body.append(f); });
         return fetch('http://127.0.0.2:9/').catch((e) => blocked.push(e.name))
           .then(() => new Promise((done) => setTimeout(done, 1000))).then(() => blocked.sort());",
    );
    let blocked: Vec<&str> = blocked.as_array().unwrap().iter().map(|b| b.as_str().unwrap()).collect();
    for directive in ["TypeError", "connect-src", "frame-src", "img-src", "require-trusted-types-for", "style-src-elem"]
    {
        assert!(blocked.contains(&directive), "{directive} is not among {blocked:?}");
    }
    assert_eq!(browser.eval("return document.querySelectorAll('section').length > 3"), true);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn is_used_with_the_keyboard_alone() {
    let browser = browser!("is_used_with_the_keyboard_alone");
    let mut first = snapshot(1);
    first.modules[0].probes[0].failures = vec![("fexit", "no BTF".into())];
    let fake = Fake::start(first);
    browser.open(&fake.url());
    for n in 1..=4 {
        fake.cell.store(snapshot(n));
        wait_for_snapshot(&browser, n);
    }
    fake.cell.store(Snapshot { modules: fake_modules(), ..snapshot(5) });
    wait_for_snapshot(&browser, 5);
    let shown = || rows(&browser).0;
    let focus = || browser.eval("return document.activeElement.id || document.activeElement.localName");
    // Whoever has the focus shows it.
    let outlined = || {
        let style = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + ' ' + s.outlineWidth";
        browser.eval(style) == "solid 3px"
    };

    browser.press(TAB);
    assert_eq!((focus(), outlined()), (json!("pause"), true));
    browser.press(SPACE);
    assert_eq!(browser.eval("return document.activeElement.textContent"), "Resume");
    assert!(shown().starts_with("paused: "), "{}", shown());
    // What is new is known of, and waits.
    let next = |n: u64| fake.cell.store(Snapshot { modules: fake_modules(), ..snapshot(n) });
    next(6);
    browser.wait("return [...document.querySelectorAll('dd')].some((dd) => dd.textContent === '6')");
    assert!(shown().contains(", snapshot 5,"), "{}", shown());
    browser.press(ENTER);
    assert!(shown().starts_with("live: "), "{}", shown());
    wait_for_snapshot(&browser, 6);

    browser.press(TAB);
    assert_eq!((focus(), outlined()), (json!("back"), true));
    let value = || browser.eval("return document.activeElement.getAttribute('aria-valuetext')");
    browser.press(LEFT);
    browser.press(LEFT);
    assert!(shown().starts_with("earlier: ") && shown().contains(", snapshot 4,"), "{}", shown());
    assert!(value().as_str().unwrap().starts_with("earlier, "), "{}", value());
    // The next snapshot does not move the time looked at.
    next(7);
    browser.wait("return document.getElementById('back').max === '6'");
    assert!(shown().contains(", snapshot 4,"), "{}", shown());
    browser.press(END);
    assert!(shown().starts_with("live: ") && shown().contains(", snapshot 7,"), "{}", shown());

    // The columns of tables, each of which orders its rows.
    browser.press(TAB);
    let order = "return document.activeElement.parentElement.getAttribute('aria-sort')";
    assert_eq!((focus(), outlined(), browser.eval(order)), (json!("button"), true, json!("none")));
    browser.press(ENTER);
    assert_eq!(browser.eval(order), "ascending");
    let columns = "return document.querySelectorAll('section:not([hidden]) th button').length";
    for _ in 0..browser.eval(columns).as_u64().unwrap() {
        browser.press(TAB);
    }
    assert_eq!((focus(), outlined()), (json!("summary"), true));
    browser.press(ENTER);
    assert_eq!(browser.eval("return document.activeElement.parentElement.open"), true);
    // What was opened stays open, and keeps the focus, when the next snapshot comes.
    next(8);
    wait_for_snapshot(&browser, 8);
    assert_eq!(
        (focus(), browser.eval("return document.activeElement.parentElement.open")),
        (json!("summary"), true.into())
    );

    // What assistive technology is told: every table and control has a name, changes of state are announced.
    let nameless = browser.eval(
        "return [...document.querySelectorAll('section, table')]
           .filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))?.textContent).length",
    );
    assert_eq!(nameless, 0);
    assert_eq!(browser.eval("return document.getElementById('back').labels[0].textContent.trim()"), "Look back");
    assert_eq!(browser.eval("return document.getElementById('status').getAttribute('role')"), "status");
    assert_eq!(browser.console(), NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn a_pointer_on_a_chart_shows_that_time() {
    let browser = browser!("a_pointer_on_a_chart_shows_that_time");
    let fake = Fake::start(snapshot(1));
    browser.resize(1280, 900, false);
    browser.open(&fake.url());
    for n in 1..=9 {
        fake.cell.store(snapshot(n));
        wait_for_snapshot(&browser, n);
    }
    let place =
        browser.eval("const b = document.querySelector('svg').getBoundingClientRect(); return [b.x, b.y, b.width]");
    let [x, y, width] = [0, 1, 2].map(|i| place[i].as_f64().unwrap());
    // Eighty seconds from side to side, of which the third snapshot has those from 10 to 20.
    for (part, expected) in [(0.2, ", snapshot 3, over 10.0 s"), (0.99, ", snapshot 9, over 10.0 s")] {
        let to = json!({"type": "mouseMoved", "x": x + part * width, "y": y + 5.0});
        browser.devtools("Input.dispatchMouseEvent", to);
        let shown = rows(&browser).0;
        assert!(shown.ends_with(expected), "{shown}");
    }
    browser.devtools("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": x + 0.2 * width, "y": y + 5.0}));
    browser.devtools("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": 5, "y": 5}));
    assert!(rows(&browser).0.starts_with("live: "));
    assert_eq!(browser.console(), NOTHING);
}

fn fake_modules() -> Vec<ebpf_sidecar::metrics::snapshot::ModuleStatus> {
    let mut modules = snapshot(1).modules;
    modules[0].probes[0].failures = vec![("fexit", "no BTF".into())];
    modules
}

/// Texts whose contrast to what is behind them is below 4.5 (WCAG AA), with the contrast.
const FAINT: &str = "
    const channels = (c) => c.match(/[\\d.]+/g).map(Number);
    const luminance = (c) => {
      const [r, g, b] = channels(c).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
      for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if ((channels(c)[3] ?? 1) === 1) return c;
      }
      return 'rgb(255, 255, 255)';
    };
    const faint = [];
    for (const e of document.querySelectorAll('body *')) {
      if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
      const [a, b] = [getComputedStyle(e).color, behind(e)].map(luminance).sort((a, b) => b - a);
      const contrast = (a + 0.05) / (b + 0.05);
      if (contrast < 4.5) faint.push([e.textContent, contrast]);
    }
    return faint;";

/// What is not known without the scans.
const SCANS: [&str; 2] = ["ebpf_memory_lru_pages_scanned_total", "ebpf_memory_reclaim_efficiency_percent"];

#[test]
#[ignore = "needs Chromium: make test-full"]
fn works_over_tls_with_a_password() {
    let browser = browser!("works_over_tls_with_a_password");
    let dir = TempDir::new("page");
    let server = Identity::new(2, Some(&Identity::new(1, None, YEAR)), YEAR);
    fs::write(dir.path.join("tls.crt"), server.cert_pem()).unwrap();
    fs::write(dir.path.join("tls.key"), server.key_pem()).unwrap();
    let config = dir.path.join("web.yml");
    let tls = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}";
    fs::write(&config, format!("{tls}\nbasic_auth_users: {{ann: {}}}\n", bcrypt::hash("right", 4).unwrap())).unwrap();
    let fake = Fake::start_at("127.0.0.1:0".parse().unwrap(), snapshot(1), Some(&config));
    browser.devtools("Security.setIgnoreCertificateErrors", json!({ "ignore": true }));
    let at = fake.server.address();
    // As who has typed the password: it is not in the address of the page then.
    browser.open(&format!("https://ann:right@{at}/health"));
    browser.open(&format!("https://{at}/"));
    wait_for_snapshot(&browser, 1);
    fake.cell.store(snapshot(2));
    wait_for_snapshot(&browser, 2);
    // Of /health, which is no page, the browser asks for an icon.
    let said: Vec<String> = browser.console().into_iter().filter(|line| !line.contains("/favicon.ico")).collect();
    assert_eq!(said, NOTHING);
}

#[test]
#[ignore = "needs Chromium: make test-full"]
fn fits_a_phone_and_is_readable_in_dark_and_light() {
    let browser = browser!("fits_a_phone_and_is_readable_in_dark_and_light");
    let mut first = snapshot(1);
    let long = format!("cgroup:/sys/fs/cgroup/kubepods.slice/{}", "pod0b1c2d3e".repeat(20));
    first.scope = long.clone();
    first.processes.as_mut().unwrap()[0].comm = "a_name_of_15_by".into();
    first.say("ebpf_page_cache_adds_total", &[u64::MAX >> 11, 1, 2, 3, 4]);
    for name in SCANS {
        first.forget(name);
    }
    let fake = Fake::start(first);
    browser.resize(360, 740, true);
    browser.open(&fake.url());
    wait_for_snapshot(&browser, 1);
    let mut n = 1;
    let mut backgrounds = Vec::new();
    for (scheme, width) in [("light", 360), ("dark", 360), ("dark", 1280), ("light", 1280)] {
        browser.resize(width, 740, width < 500);
        browser.prefer("prefers-color-scheme", scheme);
        n += 1;
        let mut next = snapshot(n);
        next.scope = long.clone();
        let failures = vec![("raw_tracepoint", format!("load program raw_fill: {}", "verifier_log ".repeat(200)))];
        next.modules[0].probes.push(ProbeStatus { name: "reclaim_scan", mode: None, failures });
        for name in SCANS {
            next.forget(name);
        }
        fake.cell.store(next);
        wait_for_snapshot(&browser, n);
        browser.eval("document.querySelectorAll('details').forEach((d) => { d.open = true; })");
        let scrolls = "const { scrollWidth, clientWidth } = document.documentElement; return scrollWidth > clientWidth";
        assert_eq!(browser.eval(scrolls), false, "{scheme} {width}");
        let wide = "return [...document.querySelectorAll('body *')].filter((e) =>
            e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('thead')).map((e) => e.outerHTML)";
        assert_eq!(browser.eval(wide), json!([]), "{scheme} {width}");
        assert_eq!(browser.eval(FAINT), json!([]), "{scheme} {width}");
        let small = "return [...document.querySelectorAll('body *')].filter((e) =>
            parseFloat(getComputedStyle(e).fontSize) < 12).map((e) => e.outerHTML)";
        assert_eq!(browser.eval(small), json!([]), "too small to read");
        backgrounds.push(browser.eval("return getComputedStyle(document.body).backgroundColor"));
        browser.picture(&pictures().join(format!("invented-{scheme}-{width}.png")));
        assert_eq!(browser.eval("return document.getAnimations().length"), 0, "nothing moves by itself");
    }
    assert!(backgrounds[0] != backgrounds[1] && backgrounds[0] == backgrounds[3], "{backgrounds:?}");
    assert_eq!(browser.console(), NOTHING);
}
