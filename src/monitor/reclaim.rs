//! Memory reclaim: what is scanned and freed and by whom, who has to wait for it, kswapd (bpf/reclaim.h).

use std::collections::HashSet;

use super::probes::{DIRECT_RECLAIM, KSWAPD, MEMCG_RECLAIM, RECLAIM_SCAN};
use super::stat::{Grown, How, Needs, Subject, View, by_label, number, percent, stats};
use crate::ebpf::abi::ProcKey;
use crate::metrics::snapshot::Series;

/// Who reclaims, as `enum reclaimer` has them.
pub const RECLAIMERS: [&str; 3] = ["kswapd", "direct", "memcg"];

/// The subject.
pub static SUBJECT: Subject = Subject {
    panel: (
        "Reclaim",
        "Memory that the kernel took back: in the background (kswapd), or in threads that had to wait for it.",
    ),
    stats: STATS,
};

stats! {
    LRU_PAGES_SCANNED = Counter "ebpf_memory_lru_pages_scanned_total" ["reclaimer" in RECLAIMERS] "pages":
        "Pages of inactive LRU lists scanned by reclaim. kswapd has no owner: it is host-wide even in a scope.",
        How::each("scanned").needs(&[RECLAIM_SCAN])
            .json_sum_and_by("memory", "lru_pages_scanned", "lru_pages_scanned_by_reclaimer").row("scanned").named();
    PAGES_RECLAIMED = Counter "ebpf_memory_pages_reclaimed_total" ["reclaimer" in RECLAIMERS] "pages":
        "Pages freed by those scans. kswapd has no owner: it is host-wide even in a scope.",
        How::other(reclaimed).needs_one_of(&[RECLAIM_SCAN, DIRECT_RECLAIM, MEMCG_RECLAIM])
            .json_sum_and_by("memory", "pages_reclaimed", "pages_reclaimed_by_reclaimer").row_at(0, "freed").named();
    RECLAIM_EFFICIENCY = Gauge "ebpf_memory_reclaim_efficiency_percent" [] "percent":
        "Pages reclaimed per hundred scanned in the last interval.",
        How::percent(efficiency).needs(&[RECLAIM_SCAN])
            .json("memory", "reclaim_efficiency_percent").row("freed of scanned");
    DIRECT_RECLAIM_PROCESSES = Gauge "ebpf_memory_direct_reclaim_processes" [] "processes":
        "Distinct processes with a thread that was stalled by direct or memcg reclaim at some time of the last interval.",
        How::other(|view| number(view.stalled)).needs_one_of(&[DIRECT_RECLAIM, MEMCG_RECLAIM])
            .json("memory", "direct_reclaim_processes").row("processes stalled");
    DIRECT_RECLAIM_SECONDS = Histogram "ebpf_memory_direct_reclaim_seconds" [] "seconds":
        "How long each direct or memcg reclaim stalled the thread that had to do it for an allocation of its own: above memory.high it is, by a write to memory.reclaim, memory.force_empty or a limit it is not.",
        How::durations("stall_buckets", "stall_ns").needs_one_of(&[DIRECT_RECLAIM, MEMCG_RECLAIM])
            .json("memory", "direct_reclaim_seconds").row("stalls");
    KSWAPD_WAKEUPS = Counter "ebpf_memory_kswapd_wakeups_total" [] "rounds":
        "Rounds of background reclaim that kswapd began; host-wide even in a scope.",
        How::sum(&["kswapd_wakeups"]).needs(&[KSWAPD])
            .json("memory", "kswapd_wakeups").row_at(3, "kswapd rounds");
}

/// Where scans are not told of, the ends of direct and memcg reclaim say what they freed.
fn reclaimed(view: &View) -> Option<Vec<Series>> {
    let by_scans = view.has(Needs::All(&[RECLAIM_SCAN]));
    let known = |reclaimer: &&str| match *reclaimer {
        _ if by_scans => true,
        "direct" => view.mode(DIRECT_RECLAIM).is_some(),
        "memcg" => view.mode(MEMCG_RECLAIM).is_some(),
        _ => false,
    };
    let pages = view.counters.each(if by_scans { "reclaimed" } else { "ended" });
    Some(by_label(RECLAIMERS.into_iter().zip(pages.iter().copied()).filter(|(reclaimer, _)| known(reclaimer))))
}

fn efficiency(grown: &Grown) -> Option<f64> {
    percent(grown(&PAGES_RECLAIMED), grown(&LRU_PAGES_SCANNED))
}

/// How many processes stalled in an interval, from what its rows say and from those that are in a stall now.
pub(super) fn stalled<'a>(interval: impl Iterator<Item = &'a ProcKey>, now: &'a [ProcKey]) -> u64 {
    interval.chain(now).collect::<HashSet<&ProcKey>>().len() as u64
}
