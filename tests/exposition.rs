//! The exposition of a snapshot with every metric, judged by Prometheus's own linter.

use std::io::Write;
use std::process::{Command, Stdio};

use ebpf_sidecar::export::prometheus;
use ebpf_sidecar::metrics::{catalogue::CATALOGUE, example};

#[test]
fn promtool_has_nothing_to_say() {
    let text = prometheus::text(&example::snapshot());
    for metric in CATALOGUE {
        assert!(text.contains(&format!("# TYPE {} ", metric.name)), "{} is not in the example", metric.name);
    }
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("SKIPPED promtool is not installed (apt-get install prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
