//! Pages that buffered reads touch, and those of them that were cached (bpf/reads.h, [`super::hits`]).

use super::probes::{CACHE_FILL, CACHE_READ};
use super::stat::{Grown, How, Subject, View, number, percent, stats};
use crate::metrics::snapshot::Series;

/// The subject.
pub static SUBJECT: Subject = Subject {
    panel: ("Page cache", "Pages that buffered reads of files touched, and those of them that were not in memory."),
    stats: STATS,
};

stats! {
    CACHE_READ_ATTEMPTS = Counter "ebpf_cache_read_attempts_total" [] "pages":
        "Pages that buffered reads of regular files touched, cached or not; pages past the end of the file do not count.",
        How::sum(&["read_pages"]).needs(&[CACHE_READ])
            .json("cache", "read_attempts").row("pages read");
    CACHE_HITS = Counter "ebpf_cache_hits_total" [] "pages":
        "Pages read without having to be filled: attempts beyond the misses, of which those of readahead are waited for at most 30 s.",
        How::other(|view| number(view.hits)).needs(&[CACHE_READ, CACHE_FILL])
            .json("cache", "hits").no_row("the rest of the pages missed");
    CACHE_MISSES = Counter "ebpf_cache_misses_total" [] "pages":
        "Pages of regular files filled on behalf of reads, readahead included, so it can run ahead of the attempts.",
        How::nth("fills", FILL_READ).needs(&[CACHE_FILL])
            .json("cache", "misses").row("pages missed");
    CACHE_HIT_RATE = Gauge "ebpf_cache_hit_rate_percent" [] "percent":
        "100 - ebpf_cache_miss_rate_percent.",
        How::percent(|grown| miss_rate(grown).map(|rate| 100.0 - rate)).needs(&[CACHE_READ, CACHE_FILL])
            .json("cache", "hit_rate_percent").row_at(0, "hit rate").tall();
    CACHE_MISS_RATE = Gauge "ebpf_cache_miss_rate_percent" [] "percent":
        "Misses of the last interval per hundred of its attempts (or misses, if readahead made those more).",
        How::percent(miss_rate).needs(&[CACHE_READ, CACHE_FILL])
            .json("cache", "miss_rate_percent").no_row("the rest of the hit rate");
    CACHE_READ_BYTES = Counter "ebpf_cache_read_bytes_total" [] "bytes":
        "Bytes that buffered reads of regular files copied to their readers.",
        How::other(read_bytes).needs(&[CACHE_READ])
            .json("cache", "read_bytes").row("bytes read");
}

/// Pages filled for reads are the first of `enum fill_cause`.
pub(super) const FILL_READ: usize = 0;

/// Readahead can fill more pages than were read.
fn miss_rate(grown: &Grown) -> Option<f64> {
    let (attempts, misses) = (grown(&CACHE_READ_ATTEMPTS), grown(&CACHE_MISSES));
    percent(misses, attempts.max(misses))
}

fn read_bytes(view: &View) -> Option<Vec<Series>> {
    knows_bytes(view).then(|| number(view.counters.sum("read_bytes"))).flatten()
}

/// The tracepoint does not tell what was copied.
pub(super) fn knows_bytes(view: &View) -> bool {
    view.mode(CACHE_READ).is_some_and(|mode| mode != "raw_tracepoint")
}
