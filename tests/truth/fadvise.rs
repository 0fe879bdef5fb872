//! Calls of fadvise, by outcome and advice.

use std::fs;
use std::os::fd::AsRawFd;
use std::thread;

use crate::common::sys;
use crate::common::{self, Delta, MIB, Scoped, TestFile};
use crate::processes::rows_of;

const ADVICES: [(&str, i32); 6] = [
    ("normal", libc::POSIX_FADV_NORMAL),
    ("random", libc::POSIX_FADV_RANDOM),
    ("sequential", libc::POSIX_FADV_SEQUENTIAL),
    ("willneed", libc::POSIX_FADV_WILLNEED),
    ("dontneed", libc::POSIX_FADV_DONTNEED),
    ("noreuse", libc::POSIX_FADV_NOREUSE),
];

fn fadvise_calls(d: &Delta, advice: &str) -> f64 {
    d.of(&format!("ebpf_fadvise_advice_total{{advice=\"{advice}\"}}"))
}

#[test]
fn fadvise_calls_from_four_threads() {
    need_bpf!("fadvise_calls_from_four_threads");
    let s = Scoped::start(&[]);
    let f = TestFile::new("advised", MIB);
    let (pipe, _other) = std::io::pipe().unwrap();
    s.agent.settled();
    let me = common::kernel_pid(&s.agent);
    let before = rows_of(&s.agent, me);
    let (d, _) = s.agent.during(|| {
        thread::scope(|scope| {
            for t in 0..4 {
                let (fd, pipe) = (f.file.as_raw_fd(), pipe.as_raw_fd());
                scope.spawn(move || {
                    for i in 0..600 {
                        // Each thread in another order, so that calls in flight differ.
                        let (_, advice) = ADVICES[(i + t) % 6];
                        sys::fadvise(fd, 0, 4096, advice).unwrap();
                    }
                    for _ in 0..50 {
                        assert_eq!(sys::fadvise(9999, 0, 0, libc::POSIX_FADV_RANDOM), Err(libc::EBADF));
                        assert_eq!(sys::fadvise(pipe, 0, 0, libc::POSIX_FADV_WILLNEED), Err(libc::ESPIPE));
                        assert_eq!(sys::fadvise(fd, 0, 0, 99), Err(libc::EINVAL));
                        assert_eq!(sys::fadvise(fd, 0, 0, -1), Err(libc::EINVAL));
                    }
                });
            }
        });
    });
    // Each call is counted, or told of as missed.
    let missed = d.missed("fadvise");
    let of = |name: &str| d.of(&format!("ebpf_fadvise_{name}_total"));
    assert_eq!(of("calls") + missed, 3200.0, "{missed} missed;{}", d.moved());
    assert_eq!(of("success") + of("failed"), of("calls"), "{}", d.moved());
    let check = |what: &str, got: f64, truth: f64| {
        assert!((truth - missed..=truth).contains(&got), "{what}: {got}, not {truth}, {missed} missed;{}", d.moved());
    };
    check("success", of("success"), 2400.0);
    check("failed", of("failed"), 800.0);
    for (name, _) in ADVICES {
        let failing = if ["random", "willneed"].contains(&name) { 200.0 } else { 0.0 };
        check(name, fadvise_calls(&d, name), 400.0 + failing);
    }
    check("invalid", fadvise_calls(&d, "invalid"), 400.0);
    let after = rows_of(&s.agent, me);
    assert_eq!(((after.0 - before.0) as f64, (after.1 - before.1) as f64), (of("calls"), of("success")));
    let stats = s.agent.stats();
    let mine = stats["fadvise"]["process_stats"].as_array().unwrap().iter().find(|r| r["pid"] == me);
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(mine.unwrap()["comm"], comm.trim_end());
}
