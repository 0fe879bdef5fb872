//! What belongs to a scope and what does not.

use std::fs;
use std::os::fd::AsRawFd;

use crate::common::sys::{self, Mapping, PAGE};
use crate::common::{self, Agent, Delta, MIB, Scoped, TestFile, alone, read_all};
use crate::processes::rows_of;

#[test]
fn host_wide_counts_are_never_too_small() {
    need_bpf!("host_wide_counts_are_never_too_small");
    let _alone = alone();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms")]);
    let f = TestFile::cold("host", 4 * MIB);
    agent.settled();
    let me = common::kernel_pid(&agent);
    let before = rows_of(&agent, me);
    let (d, _) = agent.during(|| {
        for _ in 0..500 {
            sys::fadvise(f.file.as_raw_fd(), 0, 4096, libc::POSIX_FADV_NOREUSE).unwrap();
        }
        read_all(&f.file, MIB);
    });
    let after = rows_of(&agent, me);
    let (calls, success) = (after.0 - before.0, after.1 - before.1);
    // The rows of one process are exact.
    assert!(calls <= 500 && calls as f64 + d.missed("fadvise") >= 500.0, "{calls};{}", d.moved());
    assert_eq!(calls, success);
    assert!(d.of("ebpf_fadvise_calls_total") >= calls as f64);
    assert!(d.attempts(1024.0) >= 1024.0 && d.misses() >= 1024.0, "{}", d.moved());
}

/// A bit of everything that counts.
fn some_of_everything() {
    let f = TestFile::cold("everything", 8 * MIB);
    read_all(&f.file, 64 * 1024);
    f.drop_cache();
    let map = Mapping::of(&f.file);
    for page in 0..100 {
        map.touch(page * 16);
    }
    drop(map);
    f.drop_cache();
    sys::readahead(&f.file, 0, MIB);
}

/// Names of the counters that nothing outside the scope may move: kswapd has no owner.
fn scoped_counters(d: &Delta) -> Vec<(&String, f64)> {
    let owned = |name: &&String| {
        name.starts_with("ebpf_")
            && !name.starts_with("ebpf_sidecar")
            && !name.contains("kswapd")
            && !name.contains("reclaim")
            && !name.contains("percent")
    };
    d.after.0.keys().filter(owned).map(|n| (n, d.of(n))).collect()
}

#[test]
fn work_outside_the_scope_moves_nothing() {
    need_bpf!("work_outside_the_scope_moves_nothing");
    let s = Scoped::start(&[]);
    let (d, _) = s.agent.during(some_of_everything);
    for cause in ["read", "fault", "prefetch", "write"] {
        assert!(d.adds(cause) > 0.0, "inside, {cause} counts;{}", d.moved());
    }
    s.cgroup.leave();
    let (d, _) = s.agent.during(some_of_everything);
    let moved: Vec<_> = scoped_counters(&d).into_iter().filter(|(_, by)| *by != 0.0).collect();
    assert!(moved.is_empty(), "{moved:?}");

    let below = s.cgroup.child("below");
    below.enter();
    let (d, _) = s.agent.during(some_of_everything);
    assert!(d.attempts(2048.0) >= 2048.0, "a cgroup below the scope belongs to it;{}", d.moved());
}

#[test]
fn scope_of_a_process_name() {
    need_bpf!("scope_of_a_process_name");
    let _alone = alone();
    let f = TestFile::new("named", 4 * MIB);
    // The name of the process is that of its main thread, whatever this thread is called.
    let comm = format!("/proc/{}/comm", std::process::id());
    let own = fs::read_to_string(&comm).unwrap();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_COMM", "sidecar-testdb")]);
    let run = |name: &str| {
        f.drop_cache();
        fs::write(&comm, name).unwrap();
        let (d, _) = agent.during(|| read_all(&f.file, PAGE));
        fs::write(&comm, &own).unwrap();
        d
    };
    let inside = run("sidecar-testdb");
    assert_eq!((inside.attempts(1024.0), inside.misses()), (1024.0, 1024.0), "{}", inside.moved());
    // Two names that begin alike: the whole name must match.
    let outside = run("sidecar-test");
    let moved: Vec<_> = scoped_counters(&outside).into_iter().filter(|(_, by)| *by != 0.0).collect();
    assert!(moved.is_empty(), "{moved:?}");
}
