//! What is watched, and how, where programs can be preempted.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::common::sys::{self, page};
use crate::common::{self, MIB, Scoped, TempDir, TestFile};
use crate::waits::is_latency;

/// Whether this kernel is preemptible, as its scheduler says; `None` where that cannot be read.
fn is_preemptible() -> Option<bool> {
    let debugfs = TempDir::new("debugfs");
    let mount = Command::new("mount").args(["-t", "debugfs", "debugfs"]).arg(&debugfs.path).output().unwrap();
    let models = fs::read_to_string(debugfs.path.join("sched/preempt")).ok();
    if mount.status.success() {
        Command::new("umount").arg(&debugfs.path).status().unwrap();
    }
    models.map(|m| m.contains("(full)") || m.contains("(lazy)"))
}

/// Threads that are preempted in the middle of everything, watched as the agent does by default.
#[test]
fn by_default_what_misses_least_watches_a_preemptible_kernel() {
    need_bpf!("by_default_what_misses_least_watches_a_preemptible_kernel");
    let preemptible = is_preemptible();
    let s = Scoped::start(&[("COLLECTOR_EBPF_ATTACH", "auto")]);
    let f = TestFile::new("preempted", MIB);
    let each = common::sized(1000, 400);
    let made = (16 * each) as f64;
    let (d, _) = s.agent.during(|| {
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut buf = vec![0u8; page()];
                    for i in 0..each {
                        f.file.read_at(&mut buf, (i % 256 * page()) as u64).unwrap();
                        sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
                    }
                });
            }
        });
    });
    // Even kprobes miss what happens while the agent itself is preempted in a system call on a map.
    assert_eq!(d.of("ebpf_fadvise_calls_total") + d.missed("fadvise"), made, "{}", d.moved());
    if d.knows_reads() {
        let reads = d.of("ebpf_cache_read_attempts_total") + d.missed("cache_read");
        assert_eq!(reads, made, "{}", d.moved());
    }
    let Some(preemptible) = preemptible else {
        return common::skipped(
            "by_default_what_misses_least_watches_a_preemptible_kernel",
            "the rest needs sched/preempt of debugfs",
        );
    };
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
    let health: serde_json::Value = serde_json::from_str(&s.agent.get("/health").body).unwrap();
    for probe in health["modules"][0]["probes"].as_array().unwrap() {
        let reasons = probe["failures"].to_string();
        let name = probe["name"].as_str().unwrap();
        if preemptible && kprobes && ["fadvise", "cache_read"].contains(&name) {
            assert!(probe["mode"] == "kprobe" && reasons.contains("this kernel is preemptible"), "{probe}");
        }
        assert!(preemptible || !reasons.contains("preemptible"), "{probe}");
    }
    assert!(
        !preemptible || d.after.0.keys().all(|name| !is_latency(name)),
        "reads are timed, although some are missed"
    );
}
