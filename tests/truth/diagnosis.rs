//! Known loads, and what they are called. What a verdict takes is a rate, so a load goes on until it is reached; a machine that
//! cannot reach it skips.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::sys::{self, page};
use crate::common::{self, Agent, Cgroup, MIB, Scoped, TestFile, read_all};
use crate::reclaim::Restore;

fn diagnosis(agent: &Agent) -> Value {
    serde_json::from_str(&agent.get("/api/v1/diagnosis").body).unwrap()
}

/// Patterns that are there: those that hurt, and the others.
fn patterns(diagnosis: &Value) -> (Vec<String>, Vec<String>) {
    let of = |hurts: bool| {
        let all = diagnosis["verdicts"].as_array().unwrap().iter().filter(move |v| v["hurts"] == hurts);
        all.map(|v| v["pattern"].as_str().unwrap().to_owned()).collect()
    };
    (of(true), of(false))
}

fn is_unseen(diagnosis: &Value, pattern: &str) -> bool {
    diagnosis["unseen"].as_array().unwrap().iter().any(|u| u["pattern"] == pattern)
}

/// Waits until there is one.
fn wait_for_one(agent: &Agent) {
    agent.wait(|m| m.0.keys().any(|name| name.starts_with("ebpf_diagnosis_active")));
}

/// Whether a kernel lets too little be seen for a verdict but that.
fn is_blind(agent: &Agent, test: &str) -> bool {
    let blind = !agent.metrics().0.contains_key("ebpf_cache_read_attempts_total");
    if blind {
        wait_for_one(agent);
        let (hurts, _) = patterns(&diagnosis(agent));
        assert_eq!(hurts, ["blind"]);
        common::skipped(test, "this kernel has no read attempts: the agent says that it is blind");
    }
    blind
}

/// Works until `pattern` is seen: nothing else that hurts may be seen meanwhile. `None`: the machine is too slow.
fn until(agent: &Agent, pattern: &str, mut work: impl FnMut()) -> Option<Value> {
    let begun = Instant::now();
    loop {
        work();
        let d = diagnosis(agent);
        let (hurts, others) = patterns(&d);
        assert!(hurts.iter().all(|p| p == pattern), "{pattern}: {d:#}");
        if hurts.iter().chain(&others).any(|p| p == pattern) {
            println!("{pattern} after {:?}: {}", begun.elapsed(), d["headline"]);
            let metric = format!("ebpf_diagnosis_active{{pattern=\"{pattern}\"}}");
            agent.wait(|m| m.0.get(&metric) == Some(&1.0));
            return Some(d);
        }
        if begun.elapsed() > Duration::from_secs(common::sized(30, 60)) {
            println!("{d:#}");
            return None;
        }
    }
}

fn too_slow(test: &str) {
    common::skipped(test, "this machine is too slow, or too busy, to make such a load");
}

const SETTINGS: &[(&str, &str)] = &[("COLLECTOR_INTERVAL", "200ms")];

#[test]
fn nothing_and_warm_reads_are_well() {
    let name = "nothing_and_warm_reads_are_well";
    need_bpf!("nothing_and_warm_reads_are_well");
    let f = TestFile::new("well", 4 * MIB);
    read_all(&f.file, MIB);
    let s = Scoped::start(SETTINGS);
    if is_blind(&s.agent, name) {
        return;
    }
    wait_for_one(&s.agent);
    let d = diagnosis(&s.agent);
    assert_eq!(patterns(&d), (vec![], vec!["all_is_well".to_owned()]), "{d:#}");
    assert_eq!(d["headline"], "All is well");
    for _ in 0..20 {
        read_all(&f.file, 64 << 10);
    }
    s.agent.settled();
    let (hurts, _) = patterns(&diagnosis(&s.agent));
    assert!(hurts.is_empty(), "{hurts:?}");
}

#[test]
fn cold_data_is_told_from_what_fadvise_drops() {
    let name = "cold_data_is_told_from_what_fadvise_drops";
    need_bpf!("cold_data_is_told_from_what_fadvise_drops");
    // What is made before is nobody's.
    let f = TestFile::cold("diagnosed", common::sized(64, 16) * MIB);
    let s = Scoped::start(SETTINGS);
    if is_blind(&s.agent, name) {
        return;
    }
    let seen = until(&s.agent, "cold_data", || {
        // By somebody else.
        s.cgroup.leave();
        f.drop_cache();
        s.cgroup.enter();
        read_all(&f.file, MIB);
    });
    let Some(d) = seen else { return too_slow(name) };
    let (hurts, others) = patterns(&d);
    assert_eq!((hurts, others), (vec![], vec!["cold_data".to_owned()]), "{d:#}");
    drop(s);

    let s = Scoped::start(SETTINGS);
    f.drop_cache();
    let d = until(&s.agent, "policy_eviction", || {
        read_all(&f.file, MIB);
        sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED).unwrap();
    });
    let Some(d) = d else { return too_slow(name) };
    assert!(is_unseen(&d, "policy_eviction_hurts"), "{d:#}");
    drop(s);

    // What nobody reads is dropped.
    let (warm, written) = (TestFile::new("warm", 4 * MIB), TestFile::new("dropped", 8 * MIB));
    read_all(&warm.file, MIB);
    let s = Scoped::start(SETTINGS);
    let buf = vec![7u8; MIB];
    let d = until(&s.agent, "policy_eviction_harmless", || {
        (0..8).for_each(|i| written.file.write_all_at(&buf, i * MIB as u64).unwrap());
        s.cgroup.leave(); // whoever waits for fsync is told of that
        written.file.sync_data().unwrap();
        s.cgroup.enter();
        sys::fadvise(written.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED).unwrap();
        (0..16).for_each(|_| assert_eq!(read_all(&warm.file, MIB), 4 * MIB as u64));
    });
    let Some(d) = d else { return too_slow(name) };
    let (hurts, others) = patterns(&d);
    assert!(hurts.is_empty() && others.contains(&"all_is_well".to_owned()), "{d:#}");
}

#[test]
fn a_cgroup_at_its_limit_is_memory_pressure_of_a_cgroup() {
    let name = "a_cgroup_at_its_limit_is_memory_pressure_of_a_cgroup";
    need_bpf!("a_cgroup_at_its_limit_is_memory_pressure_of_a_cgroup");
    let _alone = common::alone();
    let (limit, size) = (common::sized(32, 12) * MIB, common::sized(64, 24) * MIB);
    let limited = Cgroup::with_memory(limit)
        .filter(|c| c.path.join("memory.stat").exists() && c.path.join("memory.max").exists());
    let Some(limited) = limited else {
        return common::skipped(name, "needs the memory controller of cgroup v2");
    };
    let agent =
        Agent::start(&[("COLLECTOR_INTERVAL", "200ms"), ("COLLECTOR_SCOPE_CGROUP", common::text(&limited.path))]);
    if is_blind(&agent, name) {
        return;
    }
    let f = TestFile::cold("pressed", size);
    // In a process of its own, since memory is charged to whom it was charged first.
    let script = "echo $$ > $1/cgroup.procs; exec dd if=$2 of=/dev/null bs=64k 2>/dev/null";
    let d = until(&agent, "memory_pressure_cgroup", || {
        let read = std::process::Command::new("sh").args(["-c", script, "sh"]).arg(&limited.path).arg(&f.path).status();
        assert!(read.unwrap().success());
    });
    let Some(d) = d else { return too_slow(name) };
    let (hurts, _) = patterns(&d);
    assert_eq!(hurts, ["memory_pressure_cgroup"]);
}

#[test]
fn writers_that_wait_are_throttled_and_those_for_fsync_bound() {
    let name = "writers_that_wait_are_throttled_and_those_for_fsync_bound";
    need_bpf!("writers_that_wait_are_throttled_and_those_for_fsync_bound");
    let s = Scoped::start(SETTINGS);
    if is_blind(&s.agent, name) {
        return;
    }
    if !s.agent.metrics().0.keys().any(|k| k.starts_with("ebpf_io_wait_seconds")) {
        wait_for_one(&s.agent);
        let d = diagnosis(&s.agent);
        assert!(is_unseen(&d, "write_throttling") && is_unseen(&d, "sync_bound"), "{d:#}");
        return common::skipped(name, "sleeps are not timed here, and the agent says so");
    }
    let ratio = "/proc/sys/vm/dirty_ratio";
    let restore = Restore(ratio, fs::read_to_string(ratio).unwrap());
    if fs::write("/proc/sys/vm/dirty_bytes", "262144").is_err() {
        return common::skipped(name, "needs to write vm.dirty_bytes");
    }
    let (f, buf) = (TestFile::new("throttled", 4 * MIB), vec![9u8; MIB]);
    let throttled = until(&s.agent, "write_throttling", || {
        (0..4).for_each(|i| f.file.write_all_at(&buf, i * MIB as u64).unwrap());
    });
    drop(restore);
    drop(s);
    let s = Scoped::start(SETTINGS);
    let bound = until(&s.agent, "sync_bound", || {
        for i in 0..32 {
            f.file.write_all_at(&buf[..page()], (i * page()) as u64).unwrap();
            f.file.sync_data().unwrap();
        }
    });
    if throttled.is_none() || bound.is_none() {
        too_slow(name);
    }
}

#[test]
fn readahead_that_nobody_reads_is_in_vain() {
    let name = "readahead_that_nobody_reads_is_in_vain";
    need_bpf!("readahead_that_nobody_reads_is_in_vain");
    let f = TestFile::cold("vain", common::sized(64, 16) * MIB);
    let s = Scoped::start(SETTINGS);
    if is_blind(&s.agent, name) {
        return;
    }
    let len = f.file.metadata().unwrap().len();
    let mut buf = vec![0u8; page()];
    let d = until(&s.agent, "readahead_in_vain", || {
        s.cgroup.leave();
        f.drop_cache();
        s.cgroup.enter();
        let file = f.reopen();
        // As from the start of a file: a page, and readahead has more.
        sys::fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL).unwrap();
        for at in (0..len).step_by(MIB / 4) {
            for i in 0..4 {
                file.read_exact_at(&mut buf, at + i * page() as u64).unwrap();
            }
        }
    });
    if d.is_none() {
        too_slow(name);
    }
}
