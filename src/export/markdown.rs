//! docs/metrics.md, from the catalogue. Rewrite it with `UPDATE_DOCS=1 cargo test --lib markdown`.

use std::fmt::Write;

use crate::metrics::metric::Metric;
use crate::monitor::catalogue::CATALOGUE;
use crate::monitor::file_groups;

const INTRODUCTION: &str = "\
<!-- Made from src/monitor/ and src/metrics/own.rs by `UPDATE_DOCS=1 cargo test --lib markdown`: edit there. -->
# Metrics

Counters grow from the start of the agent and are never reset. Percentages are over the last interval; with
nothing to divide by they are NaN here and `null` in JSON. A metric whose probe could not be attached is absent,
not 0: `ebpf_sidecar_probe_attached` and `/health` tell which probe and why. A page is of the base page size,
4 KiB on x86-64.
";

const GROUPS: &str = "Groups of files, where files are told apart";

fn markdown() -> String {
    let mut out = INTRODUCTION.to_string();
    let (kernel, agent): (Vec<&Metric>, Vec<&Metric>) = CATALOGUE.iter().copied().partition(|m| m.json.is_some());
    let groups = file_groups::METRICS.to_vec();
    for (title, metrics) in [("What the kernel does", kernel), (GROUPS, groups), ("The agent itself", agent)] {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n## {title}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
        let more = if title == GROUPS { "; the names in its pattern" } else { "" };
        for m in metrics {
            let kind = format!("{:?}", m.kind).to_lowercase();
            let labels: Vec<String> = m.labels.iter().zip(m.label_values).map(|(l, v)| label(l, v)).collect();
            let (unit, labels, help) = (m.unit, labels.join("; ") + more, m.help.replace('|', "\\|"));
            let _ = writeln!(out, "| `{}` | {kind} | {unit} | {labels} | {help} |", m.name);
        }
    }
    out
}

fn label(name: &str, values: &[&str]) -> String {
    if values.is_empty() { format!("`{name}`") } else { format!("`{name}`: {}", values.join(", ")) }
}

#[test]
fn the_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == markdown(), "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test --lib markdown");
}
