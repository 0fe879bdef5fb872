//! Reclaim, against what the kernel says of it.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::sys::pages;
use crate::common::{self, Agent, Cgroup, Delta, MIB, Scoped, TempDir, TestFile, alone, assert_near, text};

#[test]
fn reclaim_in_a_memory_cgroup() {
    need_bpf!("reclaim_in_a_memory_cgroup");
    let _alone = alone();
    let (limit_bytes, file_bytes) = (common::sized(64, 16) * MIB, common::sized(512, 64) * MIB);
    let Some(limit) = Cgroup::with_memory(limit_bytes) else {
        return common::skipped("reclaim_in_a_memory_cgroup", "needs the memory controller");
    };
    let big = TestFile::cold("big", file_bytes);
    // The scope: the limited cgroup itself if it is of version 2, else another with the same process.
    let of_v2 =
        limit.path.starts_with(common::cgroup_root().unwrap()) && !limit.path.starts_with("/sys/fs/cgroup/memory");
    let separate = (!of_v2).then(Cgroup::new);
    let scope = separate.as_ref().unwrap_or(&limit);
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&scope.path))]);

    let before = agent.settled();
    let begun = Instant::now();
    // Four readers, each of its quarter: with one, on one CPU, the agent hardly ever runs while it is in reclaim.
    let script = "echo $$ > $1/cgroup.procs; echo $$ > $2/cgroup.procs; \
                  i=0; while [ $i -lt $4 ] || [ ! -e $5 ]; do \
                  for q in 0 1 2 3; do dd if=$3 of=/dev/null bs=64k count=$6 skip=$((q*$6)) 2>/dev/null & done; \
                  wait; i=$((i+1)); done";
    let dir = TempDir::new("reclaim");
    let seen = dir.path.join("seen");
    let mut child = Command::new("sh")
        .args(["-c", script, "sh", text(&limit.path), text(&scope.path), text(&big.path)])
        .args([common::sized("3", "1"), text(&seen), &(file_bytes / 4 / (64 << 10)).to_string()])
        .spawn()
        .unwrap();
    let scanned = "ebpf_memory_lru_pages_scanned_total{reclaimer=\"memcg\"}";
    let scans = before.0.contains_key(scanned);
    let mut most = 0f64;
    let mut efficiency = Vec::new();
    while child.try_wait().unwrap().is_none() {
        let m = agent.metrics();
        most = most.max(m.get("ebpf_memory_direct_reclaim_processes"));
        efficiency.extend(m.0.get("ebpf_memory_reclaim_efficiency_percent").copied().filter(|e| !e.is_nan()));
        // It goes on until it was seen in what was collected meanwhile, however fast it is.
        if most >= 1.0 && !(scans && efficiency.is_empty()) || begun.elapsed() > Duration::from_secs(120) {
            fs::write(&seen, "").unwrap();
        }
        thread::sleep(Duration::from_millis(common::sized(20, 100)));
    }
    let wall = begun.elapsed().as_secs_f64();
    let after = agent.settled();
    let d = Delta { before, after };
    let reclaimed = d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"memcg\"}");
    assert!(reclaimed > 0.0, "{}", d.moved());
    // A kernel that does not tell what it scans has neither scans nor an efficiency.
    assert_eq!(scans, d.after.0.contains_key(scanned));
    assert_eq!(scans, d.after.0.contains_key("ebpf_memory_reclaim_efficiency_percent"));
    if scans {
        assert!(d.of(scanned) >= reclaimed, "{}", d.moved());
        assert!(!efficiency.is_empty() && efficiency.iter().all(|e| (0.0..=100.0).contains(e)), "{efficiency:?}");
    }
    assert!(most >= 1.0, "no process was seen in reclaim;{}", d.moved());
    // What does not fit into the limit must have been evicted by the reader's own reclaim.
    let evicted = d.evictions("reclaim");
    let at_least = pages(file_bytes - limit_bytes);
    assert!(evicted >= at_least, "{evicted} pages evicted, at least {at_least};{}", d.moved());
    assert_near("reclaimed and evicted", reclaimed, evicted, 3.0, &d);
    let stalls = d.of("ebpf_memory_direct_reclaim_seconds_count");
    let seconds = d.of("ebpf_memory_direct_reclaim_seconds_sum");
    assert!(
        stalls > 0.0 && seconds > 0.0 && seconds < 4.0 * wall,
        "{stalls} stalls of {seconds} s in {wall} s of four"
    );
    // The first interval that is settled may have begun before the end.
    assert_eq!(agent.settled().get("ebpf_memory_direct_reclaim_processes"), 0.0, "intervals after");
    assert_eq!(d.after.get("ebpf_sidecar_events_lost_total{map=\"stalls\"}"), 0.0);
}

const STALLS: &str = "ebpf_memory_direct_reclaim_seconds_count";

/// Has a process of this cgroup read the whole file, whose pages are then the cgroup's.
fn read_in(cgroup: &[&Cgroup], f: &TestFile) {
    f.drop_cache();
    let script = "for procs in \"$@\"; do echo $$ >$procs || exit 1; done; exec cat $0 >/dev/null";
    let mut sh = Command::new("sh");
    sh.args(["-c", script, text(&f.path)]).args(cgroup.iter().map(|c| c.path.join("cgroup.procs")));
    assert!(sh.status().unwrap().success());
}

/// Who has pages reclaimed by writing to a file of a cgroup frees them for no allocation of its own, and waits for nothing.
#[test]
fn an_administrator_who_has_pages_reclaimed_is_not_stalled() {
    let name = "an_administrator_who_has_pages_reclaimed_is_not_stalled";
    need_bpf!("an_administrator_who_has_pages_reclaimed_is_not_stalled");
    let s = Scoped::start(&[]);
    let Some(victim) = Cgroup::with_memory(256 * MIB) else {
        return common::skipped(name, "needs the memory controller");
    };
    let f = TestFile::new("victims", 16 * MIB);
    let before = s.agent.settled();
    let mut ways = Vec::new();
    for (file, value) in [
        ("memory.force_empty", "0"),
        ("memory.limit_in_bytes", "4194304"),
        ("memory.reclaim", "8388608"),
        ("memory.high", "4194304"),
        ("memory.max", "2097152"),
    ] {
        if !victim.path.join(file).exists() {
            continue;
        }
        read_in(&[&victim], &f);
        let (d, done) = s.agent.during(|| fs::write(victim.path.join(file), value));
        println!("{file}: {done:?};{}", d.moved());
        let freed = d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"memcg\"}");
        assert!(freed > 0.0 && d.evictions("reclaim") > 0.0, "{file} freed {freed} pages;{}", d.moved());
        assert_eq!(d.of(STALLS), 0.0, "{file};{}", d.moved());
        assert_eq!(d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"direct\"}"), 0.0, "{file};{}", d.moved());
        if file == "memory.high" {
            fs::write(victim.path.join(file), "max").unwrap();
        }
        ways.push(file);
    }
    assert!(ways.len() >= 2, "{ways:?}");
    let d = Delta { before, after: s.agent.settled() };
    assert_eq!(d.after.get("ebpf_memory_direct_reclaim_processes"), 0.0);
}

/// Above memory.high the thread that charged the pages has to reclaim on its way back to user space: it is stalled.
#[test]
fn a_thread_above_memory_high_is_stalled() {
    let name = "a_thread_above_memory_high_is_stalled";
    need_bpf!("a_thread_above_memory_high_is_stalled");
    let _alone = alone();
    let limited = Cgroup::with_memory(256 * MIB).filter(|c| c.path.join("memory.high").exists());
    let Some(limited) = limited else {
        return common::skipped(name, "needs the memory controller of cgroup v2");
    };
    fs::write(limited.path.join("memory.high"), "8388608").unwrap();
    let f = TestFile::new("above-high", 32 * MIB);
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&limited.path))]);
    let (d, _) = agent.during(|| read_in(&[&limited], &f));
    assert!(d.of(STALLS) > 0.0 && d.evictions("reclaim") > 0.0, "{}", d.moved());
}

/// kswapd's rounds and pages, against the kernel's own counters.
#[test]
fn kswapd_as_vmstat_says() {
    need_bpf!("kswapd_as_vmstat_says");
    // kswapd has no owner: it counts whatever the scope.
    let s = Scoped::start(&[]);
    let vmstat = |name: &str| -> f64 {
        let text = fs::read_to_string("/proc/vmstat").unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    };
    let names = ["pageoutrun", "pgscan_kswapd", "pgsteal_kswapd"];
    let before: Vec<f64> = names.map(vmstat).into();
    let first = s.agent.settled();
    if !first.0.contains_key("ebpf_memory_lru_pages_scanned_total{reclaimer=\"kswapd\"}") {
        return common::skipped("kswapd_as_vmstat_says", "this kernel does not tell what it scans");
    }
    // Raising the watermarks above what is free makes kswapd run at the next allocation.
    let watermark = "/proc/sys/vm/min_free_kbytes";
    let old = fs::read_to_string(watermark).unwrap();
    let _filler = TestFile::new("filler", common::sized(512, 128) * MIB);
    let free = |name: &str| -> u64 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        text.lines().find_map(|l| l.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok()).unwrap()
    };
    let want = (free("MemFree:") + 256 * 1024).min(free("MemTotal:") / 2);
    let restore = Restore(watermark, old);
    if fs::write(watermark, want.to_string()).is_err() {
        return common::skipped("kswapd_as_vmstat_says", "needs to write vm.min_free_kbytes");
    }
    for _ in 0..50 {
        drop(TestFile::new("small", 16 * MIB));
        if vmstat(names[0]) > before[0] {
            break;
        }
    }
    drop(restore);
    // Until it has gone back to sleep: the kernel's counters are the same before and after the agent's were read.
    let deadline = Instant::now() + common::patience();
    let (after, now) = loop {
        let (vmstat_then, m) = (names.map(vmstat), s.agent.settled());
        if vmstat_then == names.map(vmstat) || Instant::now() > deadline {
            break (m, vmstat_then);
        }
    };
    let d = Delta { before: first, after };
    let truth: Vec<f64> = now.iter().zip(before).map(|(a, b)| a - b).collect();
    if truth[0] == 0.0 {
        assert!(common::sized(true, false), "kswapd did not run, in a machine with as much memory as we gave it");
        return common::skipped("kswapd_as_vmstat_says", "kswapd did not run: too much memory is free");
    }
    assert_eq!(d.of("ebpf_memory_kswapd_wakeups_total"), truth[0], "rounds; {truth:?}{}", d.moved());
    assert_near("scanned", d.of("ebpf_memory_lru_pages_scanned_total{reclaimer=\"kswapd\"}"), truth[1], 1.0, &d);
    assert_near("reclaimed", d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"kswapd\"}"), truth[2], 1.0, &d);
}

/// A setting of the kernel, and what it is put back to.
pub struct Restore(pub &'static str, pub String);

impl Drop for Restore {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).unwrap();
    }
}
