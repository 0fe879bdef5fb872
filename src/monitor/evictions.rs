//! Pages that leave the page cache, by cause (bpf/evictions.h).

use super::probes::CACHE_EVICT;
use super::stat::{How, Subject, stats};

/// The causes, as `enum eviction_cause` has them.
pub const EVICTION_CAUSES: [&str; 3] = ["reclaim", "fadvise", "other"];

/// The subject.
pub static SUBJECT: Subject =
    Subject { panel: ("Evictions by cause", "Pages that left it. Other: unlink, truncate."), stats: STATS };

stats! {
    PAGE_CACHE_EVICTIONS = Counter "ebpf_page_cache_evictions_total" ["cause" in EVICTION_CAUSES] "pages":
        "Pages removed from the page cache; other is unlink, truncate, drop_caches, RWF_DONTCACHE and the like. kswapd has no owner: its share of reclaim is host-wide even in a scope.",
        How::each("evictions").needs(&[CACHE_EVICT])
            .json_sum_and_by("cache", "pages_evicted", "pages_evicted_by_cause").row("pages");
}
