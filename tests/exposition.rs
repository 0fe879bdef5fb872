//! The exposition of a snapshot with every metric, judged by Prometheus's own linter.

mod common;

use ebpf_sidecar::export::prometheus;
use ebpf_sidecar::monitor::catalogue::CATALOGUE;
use ebpf_sidecar::monitor::example;

#[test]
fn promtool_has_nothing_to_say() {
    let text = prometheus::text(&example::snapshot());
    for metric in CATALOGUE.iter() {
        assert!(text.contains(&format!("# TYPE {} ", metric.name)), "{} is not in the example", metric.name);
    }
    match common::prometheus::promtool(&text) {
        Some(said) => assert_eq!(said, ""),
        None => {
            common::skipped("promtool_has_nothing_to_say", "promtool is not installed (apt-get install prometheus)")
        }
    }
}
