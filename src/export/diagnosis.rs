//! What the numbers mean, as JSON (`GET /api/v1/diagnosis`) and as a report for people.

use std::fmt::Write;

use serde::Serialize;

use crate::diagnosis::rules::bytes;
use crate::host::time::rfc3339;
use crate::metrics::diagnosis::{Diagnosis, Verdict};
use crate::metrics::snapshot::Snapshot;

/// As JSON.
pub fn json(snapshot: &Snapshot) -> String {
    // Fails only for a map whose keys are not strings: there is none here.
    serde_json::to_string(&DiagnosisJson::of(snapshot)).unwrap_or_default()
}

#[derive(Serialize)]
struct DiagnosisJson<'a> {
    headline: String,
    sequence: u64,
    scope: &'a str,
    at: String,
    /// 0: nothing can be said yet.
    window_seconds: f64,
    /// The worst first.
    verdicts: Vec<VerdictJson<'a>>,
    unseen: Vec<UnseenJson<'a>>,
}

#[derive(Serialize)]
struct VerdictJson<'a> {
    pattern: &'a str,
    title: &'a str,
    hurts: bool,
    since: String,
    confidence: &'a str,
    summary: &'a str,
    numbers: Vec<NumberJson<'a>>,
    cost: CostJson,
    advice: &'a str,
    see: String,
}

#[derive(Serialize)]
struct NumberJson<'a> {
    name: &'a str,
    value: f64,
    unit: &'a str,
}

/// Per second; null where it is not seen.
#[derive(Serialize)]
struct CostJson {
    waited_seconds: Option<f64>,
    read_again_bytes: Option<f64>,
}

#[derive(Serialize)]
struct UnseenJson<'a> {
    pattern: &'a str,
    needs: &'a str,
}

impl<'a> DiagnosisJson<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let diagnosis = snapshot.diagnosis.as_deref();
        Self {
            headline: diagnosis.map_or_else(|| "Nothing can be said yet".to_owned(), Diagnosis::headline),
            sequence: snapshot.sequence,
            scope: &snapshot.scope,
            at: rfc3339(diagnosis.map_or(snapshot.collected_at, |d| d.at)),
            window_seconds: diagnosis.map_or(0.0, |d| d.window.as_secs_f64()),
            verdicts: diagnosis.iter().flat_map(|d| &d.verdicts).map(VerdictJson::from).collect(),
            unseen: (diagnosis.iter().flat_map(|d| &d.unseen))
                .map(|u| UnseenJson { pattern: u.pattern.name(), needs: u.needs })
                .collect(),
        }
    }
}

impl<'a> From<&'a Verdict> for VerdictJson<'a> {
    fn from(v: &'a Verdict) -> Self {
        Self {
            pattern: v.pattern.name(),
            title: v.pattern.title(),
            hurts: v.pattern.hurts(),
            since: rfc3339(v.since),
            confidence: v.confidence.name(),
            summary: &v.summary,
            numbers: (v.numbers.iter()).map(|n| NumberJson { name: n.name, value: n.value, unit: n.unit }).collect(),
            cost: CostJson { waited_seconds: v.waited, read_again_bytes: v.read_again },
            advice: v.pattern.advice(),
            see: v.pattern.see(),
        }
    }
}

/// As a report.
pub fn report(diagnosis: &Diagnosis, scope: &str) -> String {
    let mut text = format!("{}\n", diagnosis.headline());
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\nSeen for {:.0} s, of {scope}.", diagnosis.window.as_secs_f64());
    for v in &diagnosis.verdicts {
        let _ = writeln!(text, "\n* {} ({}, since {})", v.pattern.title(), v.confidence.name(), rfc3339(v.since));
        let _ = writeln!(text, "  {}", v.summary);
        for n in &v.numbers {
            let value = if n.unit == "bytes/s" { bytes(n.value) } else { format!("{:.2} {}", n.value, n.unit) };
            let _ = writeln!(text, "    {:22} {value}", n.name.replace('_', " "));
        }
        if v.pattern.hurts() {
            let waited = v.waited.map_or("not seen".into(), |w| format!("{w:.2} s waited per second"));
            let again = v.read_again.map_or("not seen".into(), |b| format!("{} read again", bytes(b)));
            let _ = writeln!(text, "    {:22} {waited}; {again}", "costs");
            let _ = writeln!(text, "    {:22} {}", "what to do", v.pattern.advice());
        }
        let _ = writeln!(text, "    {:22} {}", "more", v.pattern.see());
    }
    if !diagnosis.unseen.is_empty() {
        text += "\nNot seen here:\n";
    }
    for u in &diagnosis.unseen {
        let _ = writeln!(text, "* {}: it takes {}", u.pattern.title(), u.needs);
    }
    text
}
