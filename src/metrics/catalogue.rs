//! Every metric, declared once: name, type, unit, help and labels. All outputs render from here. To add a
//! metric: declare it here, add it to [`CATALOGUE`], and fill it where its data lies (for kernel data
//! `monitor/iomonitor.rs`, for the agent itself `collector.rs`).

use super::export::{DROPS, FAILURES};
use super::snapshot::{ADVICES, EVICTION_CAUSES, FILL_CAUSES, RECLAIMERS};

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Monotonic since the start of the agent.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Durations in power-of-two buckets.
    Histogram,
}

/// Declaration of a metric.
#[derive(Debug)]
pub struct Metric {
    /// Full Prometheus name; counters end in `_total`.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Unit of its values, as words for the documentation.
    pub unit: &'static str,
    /// One line of help, with what the number does not include where that could surprise.
    pub help: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// The values of each of those labels; an empty list where they are open (versions, names of probes).
    pub label_values: &'static [&'static [&'static str]],
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal $(in $values:ident)?),*] $unit:literal: $help:literal;)*) => {
        $(#[doc = $help] pub static $id: Metric = Metric {
            name: $name, kind: Kind::$kind, unit: $unit, help: $help, labels: &[$($label),*],
            label_values: &[$(label_values!($($values)?)),*],
        };)*
        /// All metrics, in the order in which the outputs show them.
        pub static CATALOGUE: &[&Metric] = &[$(&$id),*];
    };
}

/// What becomes of a gRPC call.
const CALL_RESULTS: [&str; 3] = ["ok", "failed", "refused"];

macro_rules! label_values {
    () => {
        &[]
    };
    ($values:ident) => {
        &$values
    };
}

metrics! {
    FADVISE_CALLS = Counter "ebpf_fadvise_calls_total" [] "calls":
        "fadvise64 calls that have returned.";
    FADVISE_SUCCESS = Counter "ebpf_fadvise_success_total" [] "calls":
        "fadvise64 calls that returned 0.";
    FADVISE_FAILED = Counter "ebpf_fadvise_failed_total" [] "calls":
        "fadvise64 calls that returned an error.";
    FADVISE_ADVICE = Counter "ebpf_fadvise_advice_total" ["advice" in ADVICES] "calls":
        "fadvise64 calls by advice, failed ones included.";
    FADVISE_SUCCESS_RATE = Gauge "ebpf_fadvise_success_rate_percent" [] "percent":
        "fadvise64 calls that returned 0, per hundred calls of the last interval.";
    CACHE_READ_ATTEMPTS = Counter "ebpf_cache_read_attempts_total" [] "pages":
        "Pages that buffered reads of regular files touched, cached or not; pages past the end of the file do not count.";
    CACHE_HITS = Counter "ebpf_cache_hits_total" [] "pages":
        "Pages read without having to be filled: attempts beyond the misses, of which those of readahead are waited for at most 30 s.";
    CACHE_MISSES = Counter "ebpf_cache_misses_total" [] "pages":
        "Pages of regular files filled on behalf of reads, readahead included, so it can run ahead of the attempts.";
    CACHE_HIT_RATE = Gauge "ebpf_cache_hit_rate_percent" [] "percent":
        "100 - ebpf_cache_miss_rate_percent.";
    CACHE_MISS_RATE = Gauge "ebpf_cache_miss_rate_percent" [] "percent":
        "Misses of the last interval per hundred of its attempts (or misses, if readahead made those more).";
    CACHE_READ_BYTES = Counter "ebpf_cache_read_bytes_total" [] "bytes":
        "Bytes that buffered reads of regular files copied to their readers.";
    READ_WAIT_SECONDS = Histogram "ebpf_read_wait_seconds" [] "seconds":
        "How long buffered reads of regular files that had to wait for I/O took, from the beginning of the wait to their end, sendfile and splice included; reads from the page cache alone and those of io_uring are not in it.";
    PAGE_CACHE_ADDS = Counter "ebpf_page_cache_adds_total" ["cause" in FILL_CAUSES] "pages":
        "Pages added to the page cache, by what the task was doing; other is file system metadata, and what cannot be told. The memory of tmpfs and of huge pages is no page cache.";
    PAGE_CACHE_EVICTIONS = Counter "ebpf_page_cache_evictions_total" ["cause" in EVICTION_CAUSES] "pages":
        "Pages removed from the page cache; other is unlink, truncate and the like. kswapd has no owner: its share of reclaim is host-wide even in a scope.";
    LRU_PAGES_SCANNED = Counter "ebpf_memory_lru_pages_scanned_total" ["reclaimer" in RECLAIMERS] "pages":
        "Pages of inactive LRU lists scanned by reclaim. kswapd has no owner: it is host-wide even in a scope.";
    PAGES_RECLAIMED = Counter "ebpf_memory_pages_reclaimed_total" ["reclaimer" in RECLAIMERS] "pages":
        "Pages freed by those scans. kswapd has no owner: it is host-wide even in a scope.";
    RECLAIM_EFFICIENCY = Gauge "ebpf_memory_reclaim_efficiency_percent" [] "percent":
        "Pages reclaimed per hundred scanned in the last interval.";
    DIRECT_RECLAIM_PROCESSES = Gauge "ebpf_memory_direct_reclaim_processes" [] "processes":
        "Distinct processes with a thread that was stalled by direct or memcg reclaim at some time of the last interval.";
    DIRECT_RECLAIM_SECONDS = Histogram "ebpf_memory_direct_reclaim_seconds" [] "seconds":
        "How long each direct or memcg reclaim stalled the thread that had to do it for an allocation of its own: above memory.high it is, by a write to memory.reclaim, memory.force_empty or a limit it is not.";
    KSWAPD_WAKEUPS = Counter "ebpf_memory_kswapd_wakeups_total" [] "rounds":
        "Rounds of background reclaim that kswapd began; host-wide even in a scope.";

    BUILD_INFO = Gauge "ebpf_sidecar_build_info" ["version", "commit", "libbpf"] "":
        "Constant 1; the labels tell what runs.";
    PROBE_ATTACHED = Gauge "ebpf_sidecar_probe_attached" ["probe", "mode"] "":
        "1 if the probe is attached, in that mode; 0 with mode none if it could not be: its metrics are absent then.";
    SNAPSHOT_SEQUENCE = Gauge "ebpf_sidecar_snapshot_sequence" [] "":
        "Number of the snapshot that this output shows, growing by 1 with each collection.";
    SNAPSHOT_TIMESTAMP = Gauge "ebpf_sidecar_snapshot_timestamp_seconds" [] "seconds since 1970":
        "When the kernel's counters were read.";
    COLLECT_SECONDS = Histogram "ebpf_sidecar_collect_duration_seconds" [] "seconds":
        "How long each collection took, without the time asleep until the kernel had switched maps.";
    COLLECT_ERRORS = Counter "ebpf_sidecar_collect_errors_total" [] "collections":
        "Collections that failed.";
    PROCESS_ROWS = Gauge "ebpf_sidecar_process_rows" [] "processes":
        "Processes that the agent keeps a row for.";
    EVENTS_MISSED = Counter "ebpf_sidecar_events_missed_total" ["probe"] "events":
        "Events at which the kernel skipped a program because it had not finished on the same CPU: interrupted there, or its thread preempted; absent for a probe with kprobes or classic tracepoints before Linux 6.7, which does not count those.";
    EVENTS_LOST = Counter "ebpf_sidecar_events_lost_total" ["map"] "events":
        "Events without a place in a full kernel map: those of processes are in the overflow row, those of stalls and reads are missing from their histograms, as are stalls whose end was missed.";

    GRPC_CALLS = Counter "ebpf_sidecar_grpc_calls_total" ["result" in CALL_RESULTS] "calls":
        "gRPC calls that were answered, and streams that were opened; refused are those above a limit.";
    CERTIFICATES_REFUSED = Counter "ebpf_sidecar_grpc_certificates_refused_total" [] "changes":
        "Changes of the gRPC server's certificate files that could not be used: the certificates before stay in use.";

    EXPORT_SENT = Counter "ebpf_sidecar_export_points_sent_total" [] "points":
        "Points that BanyanDB has acknowledged, each counted once; with export.type banyandb, as all of these.";
    EXPORT_FAILED = Counter "ebpf_sidecar_export_points_failed_total" ["reason" in FAILURES] "points":
        "Times that a point was sent in vain and has to be sent again.";
    EXPORT_DROPPED = Counter "ebpf_sidecar_export_points_dropped_total" ["reason" in DROPS] "points":
        "Points given up: too old or too many while BanyanDB could not be reached or did not take them (queue_limit, queue_bytes), missed by a starved exporter (overrun), of a measure whose schema differs, refused for good, in a batch at which the exporter panicked, left at the stop.";
    EXPORT_QUEUE_POINTS = Gauge "ebpf_sidecar_export_queue_points" [] "points":
        "Points that wait for BanyanDB's acknowledgement.";
    EXPORT_QUEUE_BYTES = Gauge "ebpf_sidecar_export_queue_bytes" [] "bytes":
        "Memory of those points, and of those kept to be sent again.";
    EXPORT_LAST_SUCCESS = Gauge "ebpf_sidecar_export_last_success_timestamp_seconds" [] "seconds since 1970":
        "When BanyanDB last acknowledged a whole batch; absent before.";
    EXPORT_BATCH_SECONDS = Histogram "ebpf_sidecar_export_batch_seconds" [] "seconds":
        "How long each batch took until all of it was acknowledged, with what had to be sent again.";

    PROCESS_CPU = Counter "process_cpu_seconds_total" [] "seconds":
        "User and system CPU time of the agent.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" [] "bytes":
        "Resident memory of the agent.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" [] "bytes":
        "Virtual memory of the agent.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" [] "descriptors":
        "Open file descriptors of the agent.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" [] "descriptors":
        "Limit of its file descriptors.";
    PROCESS_THREADS = Gauge "process_threads" [] "threads":
        "Threads of the agent.";
    PROCESS_START = Gauge "process_start_time_seconds" [] "seconds since 1970":
        "When the agent was started.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = HashSet::new();
        for m in CATALOGUE {
            assert!(seen.insert(m.name), "{} is declared twice", m.name);
            assert_eq!(m.name.ends_with("_total"), m.kind == Kind::Counter, "{}", m.name);
            assert!(m.help.ends_with('.'), "{}: help is a sentence", m.name);
            assert!(!m.help.contains(['\n', '\\']), "{}: help is one plain line", m.name);
        }
    }
}
