//! The metrics of the agent itself. To add one: an entry here, and its value where it is counted (`Collector::own_families`,
//! or the other files of this folder).

use super::diagnosis::PATTERNS;
use super::metric::{Kind, Metric, label_values};

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal $(in $values:ident)?),*] $unit:literal: $help:literal;)*) => {
        $(#[doc = $help] pub static $id: Metric = Metric {
            name: $name, kind: Kind::$kind, unit: $unit, help: $help, labels: &[$($label),*],
            label_values: &[$(label_values!($($values)?)),*], json: None,
        };)*
        /// All of them, in the order of the documentation.
        pub static OWN: &[&Metric] = &[$(&$id),*];
    };
}

/// States of health, as in `ebpf_sidecar_health{state}`.
const STATES: [&str; 3] = ["healthy", "degraded", "unhealthy"];

/// What becomes of a gRPC call.
const CALL_RESULTS: [&str; 3] = ["ok", "failed", "refused"];

/// By what the agent is confined once it has started, as in `ebpf_sidecar_confined{by}`.
pub const MEANS: [&str; 4] = ["capabilities", "no_new_privs", "landlock", "seccomp"];

/// To what the agent sends, as in `ebpf_sidecar_export_points_sent_total{exporter}`.
const EXPORTERS: [&str; 2] = ["banyandb", "otlp"];

/// Why a point has to be sent again, as in `ebpf_sidecar_export_points_failed_total{reason}`.
pub const FAILURES: [&str; 10] = [
    "connection",
    "no_answer",
    "not_found",
    "expired_schema",
    "schema_not_applied",
    "disk_full",
    "internal_error",
    "version_deprecated",
    "stream_ended",
    "try_again",
];
/// Why a point is given up, as in `ebpf_sidecar_export_points_dropped_total{reason}`.
pub const DROPS: [&str; 7] = ["queue_limit", "queue_bytes", "overrun", "schema", "refused", "panic", "stopped"];

metrics! {
    BUILD_INFO = Gauge "ebpf_sidecar_build_info" ["version", "commit", "libbpf"] "":
        "Constant 1; the labels tell what runs.";
    SCOPE_INFO = Gauge "ebpf_sidecar_scope_info" ["scope"] "":
        "Constant 1; the label tells whose I/O is counted: host, cgroup:PATH or comm:NAME.";
    INTERVAL = Gauge "ebpf_sidecar_collect_interval_seconds" [] "seconds":
        "Time between collections.";
    PAGE_SIZE = Gauge "ebpf_sidecar_page_size_bytes" [] "bytes":
        "Size of the pages that are counted.";
    HEALTH = Gauge "ebpf_sidecar_health" ["state" in STATES] "":
        "1 for the state in which the last collection left the agent, 0 for the others; /health tells why.";
    DIAGNOSIS_ACTIVE = Gauge "ebpf_diagnosis_active" ["pattern" in PATTERNS] "":
        "1 for what the numbers of the last minute show, 0 for what they do not; absent for what cannot be seen. /api/v1/diagnosis has the reasons.";
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
    COLLECTIONS_MISSED = Counter "ebpf_sidecar_collections_missed_total" [] "collections":
        "Collections that were due and not made, since the one before took longer than the interval, a module was being changed, or the agent was not run; what they would have read is in the next.";
    PROCESS_ROWS = Gauge "ebpf_sidecar_process_rows" [] "processes":
        "Processes that the agent keeps a row for.";
    FILES = Gauge "ebpf_sidecar_files" [] "files":
        "Files that the agent tells apart; those to which nothing has happened for longest go when there are 20000.";
    EVENTS_MISSED = Counter "ebpf_sidecar_events_missed_total" ["probe"] "events":
        "Events at which the kernel skipped a program because it had not finished on the same CPU: interrupted there, or its thread preempted; absent for a probe with kprobes or classic tracepoints before Linux 6.7, which does not count those.";
    EVENTS_LOST = Counter "ebpf_sidecar_events_lost_total" ["map"] "events":
        "Events without a place in a full kernel map: those of processes (calls, and pages read or filled) are in the overflow row, those of stalls, reads and sleeps are missing from their histograms, as are stalls and sleeps whose end was missed; those of files are pages and waits that no file has.";

    GRPC_CALLS = Counter "ebpf_sidecar_grpc_calls_total" ["result" in CALL_RESULTS] "calls":
        "gRPC calls that were answered, and streams that were opened; refused are those above a limit.";
    CERTIFICATES_REFUSED = Counter "ebpf_sidecar_grpc_certificates_refused_total" [] "changes":
        "Changes of the gRPC server's certificate files that could not be used: the certificates before stay in use.";
    CERTIFICATE_EXPIRES = Gauge "ebpf_sidecar_grpc_certificate_expiry_timestamp_seconds" [] "seconds since 1970":
        "When the certificate that the gRPC server uses expires; absent without TLS. Changed files are looked at with each connection, once a second at most.";

    HTTP_LOGINS_FAILED = Counter "ebpf_sidecar_http_logins_failed_total" [] "requests":
        "HTTP requests with a user name or password that is not one of server.http.web_config; without any they are not counted.";
    HTTP_CONFIG_REFUSED = Counter "ebpf_sidecar_http_web_config_refused_total" [] "changes":
        "Changes of server.http.web_config, or of the files that it names, that could not be used: what was before stays in use.";
    HTTP_CERTIFICATE_EXPIRES = Gauge "ebpf_sidecar_http_certificate_expiry_timestamp_seconds" [] "seconds since 1970":
        "When the certificate that the HTTP server uses expires; absent without TLS. Changed files are looked at with each connection, once a second at most.";

    EXPORT_SENT = Counter "ebpf_sidecar_export_points_sent_total" ["exporter" in EXPORTERS] "points":
        "Points that the server has acknowledged, each counted once; for each exporter that export.type names, as all of these.";
    EXPORT_FAILED = Counter "ebpf_sidecar_export_points_failed_total" ["exporter" in EXPORTERS, "reason" in FAILURES] "points":
        "Times that a point was sent in vain and has to be sent again.";
    EXPORT_DROPPED = Counter "ebpf_sidecar_export_points_dropped_total" ["exporter" in EXPORTERS, "reason" in DROPS] "points":
        "Points given up: too old or too many while the server could not be reached or did not take them (queue_limit, queue_bytes), missed by a starved exporter (overrun), of a measure whose schema differs, refused for good, in a batch at which the exporter panicked, left at the stop.";
    EXPORT_QUEUE_POINTS = Gauge "ebpf_sidecar_export_queue_points" ["exporter" in EXPORTERS] "points":
        "Points that wait for the server's acknowledgement.";
    EXPORT_QUEUE_BYTES = Gauge "ebpf_sidecar_export_queue_bytes" ["exporter" in EXPORTERS] "bytes":
        "Memory of those points, and of those kept to be sent again.";
    EXPORT_LAST_SUCCESS = Gauge "ebpf_sidecar_export_last_success_timestamp_seconds" ["exporter" in EXPORTERS] "seconds since 1970":
        "When the server last acknowledged a whole batch; absent before.";
    EXPORT_BATCH_SECONDS = Histogram "ebpf_sidecar_export_batch_seconds" ["exporter" in EXPORTERS] "seconds":
        "How long each batch took until all of it was acknowledged, with what had to be sent again.";

    CONFINED = Gauge "ebpf_sidecar_confined" ["by" in MEANS] "":
        "1 for each means by which all threads of the agent are confined since it has started, 0 for one that this kernel lacks, or that collector.confine leaves out.";
    CALLS_REFUSED = Counter "ebpf_sidecar_system_calls_refused_total" [] "calls":
        "System calls of the agent that its own filter refused, and the log tells of: none is made as long as it does what it is made for.";

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
