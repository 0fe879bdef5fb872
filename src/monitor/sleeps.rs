//! How long threads sleep for I/O, by what they were doing (bpf/sleeps.h).

use super::probes::IO_WAIT;
use super::stat::{How, Subject, stats};

/// What a thread does that sleeps for I/O, as in `ebpf_io_wait_seconds{op}`; the order of `enum io_op`.
pub const OPS: [&str; 5] = ["read", "fault", "write", "sync", "other"];

/// The subject.
pub static SUBJECT: Subject = Subject {
    panel: (
        "Threads that sleep for I/O",
        "Seconds asleep per second, all threads together. What finds all in memory does not sleep.",
    ),
    stats: STATS,
};

stats! {
    IO_WAIT_SECONDS = Histogram "ebpf_io_wait_seconds" ["op" in OPS] "seconds":
        "How long each sleep for I/O took (io_schedule), by what the thread was doing: reading a file, in a page fault, writing (throttled writers included), fsync and its kin, anything else (direct I/O, folders, threads of the kernel). A journal's commit is waited for in another way, and is not in it.",
        How::durations_each("sleep_buckets", "sleep_ns").needs(&[IO_WAIT])
            .json_by("waits", "io_wait_seconds_by_op").row("asleep");
}
