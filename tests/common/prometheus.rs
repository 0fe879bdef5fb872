//! A real Prometheus, and its promtool.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Killed, Response, TempDir, free_port, request, text};

/// Has `promtool check metrics` judge an exposition: its complaints, empty if there are none; `None` without
/// promtool.
pub fn promtool(exposition: &str) -> Option<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    promtool.stdin.take().unwrap().write_all(exposition.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}

/// A real Prometheus in a directory of its own.
pub struct Prometheus {
    process: Killed,
    port: u16,
    dir: TempDir,
}

impl Prometheus {
    /// Scrapes these targets (job and port) every second, with these files of rules; `None` if it is not installed.
    pub fn start(targets: &[(&str, u16)], rules: &[&Path]) -> Option<Self> {
        let job = |(job, port): &(&str, u16)| {
            format!("{{job_name: {job}, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}")
        };
        Self::start_jobs(&targets.iter().map(job).collect::<Vec<_>>(), rules)
    }

    /// The same with jobs as its configuration has them.
    pub fn start_jobs(jobs: &[String], rules: &[&Path]) -> Option<Self> {
        let dir = TempDir::new("prometheus");
        let mut config =
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files:\n".to_owned();
        for file in rules {
            config += &format!("- {}\n", text(file));
        }
        config += "scrape_configs:\n";
        for job in jobs {
            config += &format!("- {job}\n");
        }
        let (file, port) = (dir.path.join("prometheus.yml"), free_port());
        fs::write(&file, config).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", text(&file)))
            .arg(format!("--storage.tsdb.path={}", text(&dir.path.join("data"))))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(&dir.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path.join("log")).unwrap())
            .spawn()
            .ok()?;
        let mut prometheus = Self { process: Killed(process), port, dir };
        prometheus.wait("it is ready", |p| p.get("/-/ready").is_some_and(|r| r.status == 200));
        Some(prometheus)
    }

    fn get(&self, path: &str) -> Option<Response> {
        // HTTP/1.0: no answer in chunks.
        request(self.port, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")).ok()
    }

    /// Waits until `done`.
    pub fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            let log = || fs::read_to_string(self.dir.path.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "Prometheus: {what}: in vain\n{}", log());
            assert!(self.process.0.try_wait().unwrap().is_none(), "Prometheus ended\n{}", log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The answer of a query: each series' labels, and its value or values.
    pub fn query(&self, query: &str, range: &str) -> Vec<(Value, Vec<String>)> {
        let escaped: String = query.bytes().map(|b| format!("%{b:02x}")).collect();
        let kind = if range.is_empty() { "query" } else { "query_range" };
        let body = self.get(&format!("/api/v1/{kind}?query={escaped}{range}")).unwrap().body;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {body}");
        let series = answer["data"]["result"].as_array().unwrap();
        let text = |pair: &Value| pair[1].as_str().unwrap().to_owned();
        series
            .iter()
            .map(|s| {
                let values = s["values"].as_array().map(|v| v.iter().map(text).collect());
                (s["metric"].clone(), values.unwrap_or_else(|| vec![text(&s["value"])]))
            })
            .collect()
    }
}
