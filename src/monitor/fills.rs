//! Pages that come into the page cache, by cause (bpf/fills.h).

use super::probes::CACHE_FILL;
use super::stat::{How, Subject, stats};

/// The causes, as `enum fill_cause` has them.
pub const FILL_CAUSES: [&str; 5] = ["read", "write", "fault", "prefetch", "other"];

/// The subject.
pub static SUBJECT: Subject =
    Subject { panel: ("Fills by cause", "Pages that came into the page cache."), stats: STATS };

stats! {
    PAGE_CACHE_ADDS = Counter "ebpf_page_cache_adds_total" ["cause" in FILL_CAUSES] "pages":
        "Pages added to the page cache, by what the task was doing; other is file system metadata, and what cannot be told. The memory of tmpfs and of huge pages is no page cache.",
        How::each("fills").needs(&[CACHE_FILL])
            .json_sum_and_by("cache", "pages_added", "pages_added_by_cause").row("pages");
}
