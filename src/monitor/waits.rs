//! How long reads that wait for I/O take (bpf/waits.h).

use super::probes::READ_LATENCY;
use super::stat::{How, Subject, stats};

/// The subject.
pub static SUBJECT: Subject = Subject {
    panel: ("Reads that waited for I/O", "How long they took. Those that memory alone could serve are not among them."),
    stats: STATS,
};

stats! {
    READ_WAIT_SECONDS = Histogram "ebpf_read_wait_seconds" [] "seconds":
        "How long buffered reads of regular files that had to wait for I/O took, from the beginning of the wait to their end, sendfile and splice included; reads from the page cache alone and those of io_uring are not in it.",
        How::durations("wait_buckets", "wait_ns").needs(&[READ_LATENCY])
            .json("cache", "read_wait_seconds").row("reads");
}
