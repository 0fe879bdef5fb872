//! fadvise calls: by outcome and by advice (bpf/fadvise.h). Those of single processes are in [`super::processes`].

use super::probes::FADVISE;
use super::stat::{Grown, How, Subject, View, by_label, percent, stats};
use crate::metrics::snapshot::Series;

/// The advices, as `enum advice` has them.
pub const ADVICES: [&str; 7] = ["normal", "random", "sequential", "willneed", "dontneed", "noreuse", "invalid"];

/// The subject.
pub static SUBJECT: Subject = Subject { panel: ("fadvise by advice", "Calls, failed ones included."), stats: STATS };

stats! {
    FADVISE_CALLS = Counter "ebpf_fadvise_calls_total" [] "calls":
        "fadvise64 calls that have returned.",
        How::sum(&["fadvise_success", "fadvise_failed"]).needs(&[FADVISE])
            .json("fadvise", "total_calls").no_row("the sum of the advices");
    FADVISE_SUCCESS = Counter "ebpf_fadvise_success_total" [] "calls":
        "fadvise64 calls that returned 0.",
        How::sum(&["fadvise_success"]).needs(&[FADVISE])
            .json("fadvise", "success_calls").no_row("the rest of the failed ones");
    FADVISE_FAILED = Counter "ebpf_fadvise_failed_total" [] "calls":
        "fadvise64 calls that returned an error.",
        How::sum(&["fadvise_failed"]).needs(&[FADVISE])
            .json("fadvise", "failed_calls").row("failed");
    FADVISE_ADVICE = Counter "ebpf_fadvise_advice_total" ["advice" in ADVICES] "calls":
        "fadvise64 calls by advice, failed ones included.",
        How::other(by_advice).needs(&[FADVISE])
            .json_by("fadvise", "advice_counts").row_at(0, "calls");
    FADVISE_SUCCESS_RATE = Gauge "ebpf_fadvise_success_rate_percent" [] "percent":
        "fadvise64 calls that returned 0, per hundred calls of the last interval.",
        How::percent(success_rate).needs(&[FADVISE])
            .json("fadvise", "success_rate_percent").row("successful");
}

fn by_advice(view: &View) -> Option<Vec<Series>> {
    let (success, failed) = (view.counters.each("fadvise_success"), view.counters.each("fadvise_failed"));
    let calls = success.iter().zip(failed).map(|(a, b)| a + b);
    Some(by_label(ADVICES.into_iter().zip(calls)))
}

fn success_rate(grown: &Grown) -> Option<f64> {
    percent(grown(&FADVISE_SUCCESS), grown(&FADVISE_CALLS))
}
