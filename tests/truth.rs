//! Known work against the real kernel, and whether the agent's counters say the same. Each test puts this
//! process into the scope of an agent of its own, so that counts are exact.

mod common;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::ebpf::{layout::Layout, os};

use common::btf::Btf;
use common::sys::{self, Mapping, PAGE};
use common::{
    Agent, Cgroup, Delta, MIB, Metrics, Random, Scoped, TempDir, TestFile, alone, assert_near, read_all, text,
};

/// Bytes of the file that most reads go over.
fn file_size() -> usize {
    common::sized(64 * MIB, 16 * MIB)
}

/// Its pages.
fn file_pages() -> f64 {
    (file_size() / PAGE) as f64
}

// ---- reads ----

#[test]
fn cold_and_warm_reads() {
    need_bpf!("cold_and_warm_reads");
    let s = Scoped::start(&[]);
    let bytes = common::sized(64 * MIB, 8 * MIB);
    let pages = (bytes / PAGE) as f64;
    for block in [PAGE, 64 * 1024, MIB] {
        let f = TestFile::cold("cold", bytes);
        let (d, _) = s.agent.during(|| assert_eq!(read_all(&f.reopen(), block), bytes as u64));
        assert_near("attempts, cold", d.attempts(pages), pages, 1.0, &d);
        assert_near("misses, cold", d.misses(), pages, 3.0, &d);
        assert!(d.miss_rate(pages) >= 98.0, "{} % missed;{}", d.miss_rate(pages), d.moved());
        assert_eq!(d.misses(), d.adds("read"));

        let (d, _) = s.agent.during(|| read_all(&f.reopen(), block));
        assert_near("attempts, warm", d.attempts(pages), pages, 1.0, &d);
        assert!(d.miss_rate(pages) <= 1.0, "{} % missed;{}", d.miss_rate(pages), d.moved());
    }
}

#[test]
fn the_rate_gauges_are_of_the_last_interval() {
    need_bpf!("the_rate_gauges_are_of_the_last_interval");
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "1s")]);
    let f = TestFile::cold("gauge", file_size());
    let idle = s.agent.settled();
    if !idle.0.contains_key("ebpf_cache_hits_total") {
        return common::skipped("the_rate_gauges_are_of_the_last_interval", "this kernel has no read attempts");
    }
    assert!(idle.get("ebpf_cache_miss_rate_percent").is_nan(), "nothing was read");
    read_all(&f.file, MIB);
    let m = s.agent.wait(|m| m.get("ebpf_cache_read_attempts_total") > idle.get("ebpf_cache_read_attempts_total"));
    assert!(m.get("ebpf_cache_miss_rate_percent") >= 98.0);
    assert!(m.get("ebpf_cache_hit_rate_percent") <= 2.0);
    let m = s.agent.settled();
    assert!(m.get("ebpf_cache_hit_rate_percent").is_nan(), "the interval is over");
}

#[test]
fn random_reads_of_a_half_cached_file() {
    need_bpf!("random_reads_of_a_half_cached_file");
    let s = Scoped::start(&[]);
    let (bytes, picked) = (file_size(), common::sized(4000, 1000));
    let f = TestFile::cold("half", bytes);
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let pages = bytes / PAGE;
    let mut random = Random(42);
    let mut buf = [0u8; PAGE];
    for _ in 0..pages * 7 / 10 {
        f.file.read_at(&mut buf, (random.below(pages) * PAGE) as u64).unwrap();
    }
    let resident = Mapping::of(&f.file).resident();
    let cached = resident.iter().filter(|r| **r).count();
    assert!((pages * 4 / 10..pages * 6 / 10).contains(&cached), "{cached} of {pages} pages are cached");

    let mut picks = HashSet::new();
    while picks.len() < picked {
        picks.insert(random.below(pages));
    }
    let missing = picks.iter().filter(|p| !resident[**p]).count() as f64;
    let (d, _) = s.agent.during(|| {
        for page in &picks {
            f.file.read_at(&mut buf, (page * PAGE) as u64).unwrap();
        }
    });
    let picked = picked as f64;
    assert_eq!(d.attempts(picked), picked, "{}", d.moved());
    let truth = 100.0 * missing / picked;
    let rate = d.miss_rate(picked);
    assert!((rate - truth).abs() <= 2.0, "{rate} %, not {truth} %;{}", d.moved());
}

#[test]
fn overlapping_reads_that_end_at_the_same_page() {
    need_bpf!("overlapping_reads_that_end_at_the_same_page");
    let s = Scoped::start(&[]);
    let f = TestFile::new("overlap", MIB);
    let mut buf = vec![0u8; MIB];
    let (d, _) = s.agent.during(|| {
        f.file.read_at(&mut buf, 0).unwrap();
        f.file.read_at(&mut buf[..MIB / 2], MIB as u64 / 2).unwrap();
    });
    assert_eq!(d.attempts(384.0), 384.0, "{}", d.moved());
    f.drop_cache();
    let (d, _) = s.agent.during(|| {
        f.file.read_at(&mut buf, 0).unwrap();
        f.file.read_at(&mut buf[..MIB / 2], MIB as u64 / 2).unwrap();
    });
    assert_eq!(d.attempts(384.0), 384.0, "cold: {}", d.moved());
    assert_eq!(d.misses(), 256.0, "{}", d.moved());
}

/// Threads that are preempted and moved between the CPUs in the middle of reads of many batches.
#[test]
fn reads_of_any_size_from_more_threads_than_cpus() {
    need_bpf!("reads_of_any_size_from_more_threads_than_cpus");
    let s = Scoped::start(&[]);
    let bytes = file_size();
    let f = TestFile::cold("sizes", bytes);
    let pass = || {
        f.drop_cache();
        let truth = AtomicU64::new(0);
        let (d, _) = s.agent.during(|| {
            thread::scope(|scope| {
                for seed in 1..=8 {
                    let (file, truth) = (f.reopen(), &truth);
                    scope.spawn(move || {
                        let mut random = Random(seed);
                        let mut buf = vec![0u8; 2 * MIB];
                        for _ in 0..common::sized(400, 40) {
                            let at = random.below(bytes - 1);
                            let most = [100, 10_000, 2 * MIB][random.below(3)];
                            let len = (1 + random.below(most)).min(bytes - at);
                            let n = file.read_at(&mut buf[..len], at as u64).unwrap();
                            let pages = (at + n - 1) / PAGE - at / PAGE + 1;
                            truth.fetch_add(pages as u64, Ordering::Relaxed);
                        }
                    });
                }
            });
        });
        // Batches end at folios that another thread is just filling: neither the rest nor the beginning of such a
        // read may count twice, or not at all.
        let truth = truth.into_inner() as f64;
        assert_eq!(d.attempts(truth), truth, "{} reads missed; {}", d.missed("cache_read"), d.moved());
        (f.resident() as f64, d)
    };
    let (mut filled, mut d) = pass();
    // Pages that the host has taken back meanwhile are no longer there: DAMON takes some in every other pass where much is
    // cached.
    for _ in 0..9 {
        if d.misses() > filled {
            println!("{} pages counted, {filled} there: once more", d.misses());
            (filled, d) = pass();
        }
    }
    // A fill event is of a folio, of at most 512 pages.
    let least = filled - d.missed("cache_fill") * 512.0;
    assert!((least..=filled).contains(&d.misses()), "{filled} pages filled; {}", d.moved());
}

#[test]
fn opening_many_cold_files() {
    need_bpf!("opening_many_cold_files");
    let s = Scoped::start(&[]);
    let n = common::sized(300, 30);
    let files: Vec<_> = (0..n).map(|i| TestFile::cold(&format!("many{i}"), 64 * 1024)).collect();
    // Absent where read attempts are.
    let count = |m: &Metrics| m.0.get("ebpf_cache_hits_total").copied().unwrap_or_default() as u64;
    let hits = AtomicU64::new(count(&s.agent.settled()));
    let (d, _) = s.agent.during(|| {
        let mut buf = [0u8; PAGE];
        for f in &files {
            f.reopen().read_exact_at(&mut buf, 0).unwrap();
            let now = count(&s.agent.metrics());
            assert!(hits.swap(now, Ordering::Relaxed) <= now, "the hits fell");
        }
    });
    let filled = common::resident(&files);
    assert_eq!(d.attempts(n as f64), n as f64, "{}", d.moved());
    assert_eq!(d.misses(), filled as f64, "{}", d.moved());
}

#[test]
fn sendfile_and_vectored_reads() {
    need_bpf!("sendfile_and_vectored_reads");
    let s = Scoped::start(&[]);
    let len = 4 * MIB;
    for cold in [false, true] {
        let f = TestFile::new("sendfile", len);
        if cold {
            f.drop_cache();
        } else {
            read_all(&f.file, MIB);
        }
        let (d, _) = s.agent.during(|| {
            let (mut near, far) = UnixStream::pair().unwrap();
            let reader = thread::spawn(move || {
                let mut sink = vec![0u8; MIB];
                while near.read(&mut sink).unwrap() > 0 {}
            });
            let mut sent = 0;
            while sent < len {
                sent += sys::sendfile(far.as_raw_fd(), &f.file, sent as i64, len - sent);
            }
            drop(far);
            reader.join().unwrap();
        });
        assert_near("attempts of sendfile", d.attempts(1024.0), 1024.0, 2.0, &d);
        assert_eq!(d.misses(), if cold { 1024.0 } else { 0.0 }, "{}", d.moved());
    }
    let f = TestFile::cold("preadv", MIB);
    let (mut a, mut b) = (vec![0u8; 10 * PAGE], vec![0u8; 30 * PAGE]);
    let (d, n) = s.agent.during(|| sys::preadv2_buffers(&f.file, &mut a, &mut b, 0));
    assert_eq!((n, d.attempts(40.0)), (40 * PAGE, 40.0), "{}", d.moved());
    assert_eq!(d.misses(), f.resident() as f64, "{}", d.moved());
}

#[test]
fn the_end_of_a_file_and_holes() {
    need_bpf!("the_end_of_a_file_and_holes");
    let s = Scoped::start(&[]);
    let f = TestFile::new("end", 10 * PAGE + 1);
    let mut buf = vec![0u8; MIB];
    let (d, _) = s.agent.during(|| {
        f.file.read_at(&mut buf, 0).unwrap();
    });
    assert_eq!(d.attempts(11.0), 11.0, "a read longer than the file;{}", d.moved());
    let (d, _) = s.agent.during(|| {
        for at in [11 * PAGE, MIB, 1 << 40] {
            assert_eq!(f.file.read_at(&mut buf, at as u64).unwrap(), 0);
        }
    });
    assert_eq!(d.attempts(0.0), 0.0, "reads past the end;{}", d.moved());

    let hole = TestFile::new("hole", 0);
    hole.file.set_len(file_size() as u64).unwrap();
    let (d, _) = s.agent.during(|| read_all(&hole.file, MIB));
    assert_near("attempts in a hole", d.attempts(file_pages()), file_pages(), 1.0, &d);
}

#[test]
fn what_is_no_buffered_read_counts_nothing() {
    need_bpf!("what_is_no_buffered_read_counts_nothing");
    let s = Scoped::start(&[]);
    let f = TestFile::cold("direct", 4 * MIB);
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&f.path).unwrap();
    let mut buf = sys::Aligned::new(MIB);
    let (d, _) = s.agent.during(|| {
        for i in 0..4 {
            assert_eq!(direct.read_at(buf.get(), (i * MIB) as u64).unwrap(), MIB);
        }
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let (mut from, mut to) = std::io::pipe().unwrap();
        let mut small = [0u8; 4096];
        for _ in 0..100 {
            a.write_all(&small).unwrap();
            b.read_exact(&mut small).unwrap();
            to.write_all(&small).unwrap();
            from.read_exact(&mut small).unwrap();
            fs::read("/proc/self/maps").unwrap();
            File::open("/dev/zero").unwrap().read_exact(&mut small).unwrap();
        }
    });
    assert_eq!((d.attempts(0.0), d.misses()), (0.0, 0.0), "{}", d.moved());
}

/// Containers read through overlayfs, where the file of the descriptor is not the one with the pages.
#[test]
fn reads_through_overlayfs() {
    need_bpf!("reads_through_overlayfs");
    let s = Scoped::start(&[]);
    let base = common::disk().join("overlay");
    for d in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(base.join(d)).unwrap();
    }
    let lower = TestFile::new("overlaid", file_size());
    fs::rename(&lower.path, base.join("lower/file")).unwrap();
    let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", text(&base));
    let merged = base.join("merged");
    let mount = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).output().unwrap();
    let _cleanup = Unmount(&base);
    if !mount.status.success() {
        common::skipped("reads_through_overlayfs", String::from_utf8_lossy(&mount.stderr).trim());
        return;
    }
    let file = File::open(merged.join("file")).unwrap();
    lower.drop_cache();
    let (d, _) = s.agent.during(|| read_all(&file, 64 * 1024));
    assert_near("attempts", d.attempts(file_pages()), file_pages(), 1.0, &d);
    assert_near("misses", d.misses(), file_pages(), 3.0, &d);

    let new = merged.join("new");
    let (d, _) = s.agent.during(|| fs::write(&new, vec![1u8; 4 * MIB]).unwrap());
    assert_near("written", d.adds("write"), 1024.0, 1.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.join("merged")).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(self.0);
    }
}

// ---- read latency ----

const WAITS: &str = "ebpf_read_wait_seconds";

fn timed_reads(d: &Delta) -> f64 {
    d.of(&format!("{WAITS}_count"))
}

fn is_latency(name: &str) -> bool {
    name.starts_with(WAITS)
}

/// Whether the agent times reads: it must where functions can be attached to, and is skipped elsewhere.
fn times_reads(agent: &Agent, test: &str) -> bool {
    let has = agent.metrics().0.keys().any(|name| is_latency(name));
    if !has {
        assert_ne!(std::env::var("TEST_ATTACH").as_deref(), Ok("fentry"), "not timed; agent's log:\n{}", agent.log());
        common::skipped(test, "needs fentry, and a kernel that is not preemptible");
    }
    has
}

/// Reads of a thread. The truth is the kernel's count of voluntary sleeps, and what was not cached: a read that sleeps
/// has waited, and one that finds all it wants has not. Between the two is a wait that was over as it began.
#[derive(Default)]
struct Reads {
    slept: u64,
    seconds: f64,
}

impl Reads {
    fn time(&mut self, read: impl FnOnce()) {
        let (sleeps, begun) = (sys::voluntary_switches(), Instant::now());
        read();
        self.slept += u64::from(sys::voluntary_switches() > sleeps);
        self.seconds += begun.elapsed().as_secs_f64();
    }
}

#[test]
fn reads_that_wait_are_timed_once_and_others_not() {
    need_bpf!("reads_that_wait_are_timed_once_and_others_not");
    let s = Scoped::start(&[]);
    if !times_reads(&s.agent, "reads_that_wait_are_timed_once_and_others_not") {
        return;
    }
    let f = TestFile::cold("timed", 8 * MIB);
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&f.path).unwrap();
    let mut aligned = sys::Aligned::new(PAGE);
    let mut buf = [7u8; PAGE];
    for uncached in [1000.0, 0.0] {
        let mut reads = Reads::default();
        let (d, _) = s.agent.during(|| {
            for i in 0..1000 {
                reads.time(|| assert_eq!(f.file.read_at(&mut buf, (i * 2 * PAGE) as u64).unwrap(), PAGE));
                // This one waits, but not for the page cache.
                assert_eq!(direct.read_at(aligned.get(), ((i * 2 + 1) * PAGE) as u64).unwrap(), PAGE);
            }
        });
        assert_eq!(d.misses(), uncached, "{}", d.moved());
        let timed = timed_reads(&d);
        println!("{uncached} of 1000 reads not cached, {} slept, {timed} timed", reads.slept);
        let least = reads.slept as f64 - d.missed("read_latency");
        assert!((least..=uncached).contains(&timed), "{timed} timed, {} slept;{}", reads.slept, d.moved());
        let sum = d.of("ebpf_read_wait_seconds_sum");
        assert!((sum > 0.0) == (timed > 0.0) && sum <= reads.seconds, "{sum} s in {} s", reads.seconds);
        assert_eq!(d.of("ebpf_read_wait_seconds_bucket{le=\"+Inf\"}"), timed);
    }

    f.drop_cache();
    let mut reads = Reads::default();
    let (d, _) = s.agent.during(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        for i in 0..20 {
            let at = (i * 100 * PAGE) as i64;
            reads.time(|| assert_eq!(sys::sendfile(near.as_raw_fd(), &f.file, at, PAGE), PAGE));
        }
    });
    let least = reads.slept as f64 - d.missed("read_latency");
    assert!((least..=20.0).contains(&timed_reads(&d)), "sendfile: {} slept;{}", reads.slept, d.moved());
}

#[test]
fn waiting_reads_of_many_threads_are_timed() {
    need_bpf!("waiting_reads_of_many_threads_are_timed");
    let s = Scoped::start(&[]);
    if !times_reads(&s.agent, "waiting_reads_of_many_threads_are_timed") {
        return;
    }
    let (bytes, each) = (file_size(), common::sized(250, 100));
    let total = f64::from(16 * each);
    let f = TestFile::cold("timed-threads", bytes);
    let pass = || {
        let (slept, ns) = (AtomicU64::new(0), AtomicU64::new(0));
        let (d, _) = s.agent.during(|| {
            thread::scope(|scope| {
                for seed in 1..=16 {
                    let (file, slept, ns) = (f.reopen(), &slept, &ns);
                    scope.spawn(move || {
                        let mut random = Random(seed);
                        let mut buf = vec![7u8; 64 * 1024];
                        let mut reads = Reads::default();
                        for _ in 0..each {
                            let (len, at) = (1 + random.below(buf.len()), random.below(bytes - 1));
                            reads.time(|| {
                                file.read_at(&mut buf[..len], at as u64).unwrap();
                            });
                        }
                        slept.fetch_add(reads.slept, Ordering::Relaxed);
                        ns.fetch_add((reads.seconds * 1e9) as u64, Ordering::Relaxed);
                    });
                }
            });
        });
        (d, slept.into_inner() as f64, ns.into_inner() as f64 / 1e9)
    };
    let (d, slept, seconds) = pass();
    let (lost, missed) = (d.of("ebpf_sidecar_events_lost_total{map=\"reads\"}"), d.missed("read_latency"));
    println!("{slept} of {total} reads slept, {} timed, {lost} lost, {missed} missed", timed_reads(&d));
    // Now and then a thread sleeps for a lock.
    let least = slept * 0.98 - 2.0 - lost - missed;
    assert!((least..=total).contains(&timed_reads(&d)), "{slept} slept;{}", d.moved());
    let sum = d.of("ebpf_read_wait_seconds_sum");
    assert!(sum > 0.0 && sum <= seconds, "{sum} s of reads in {seconds} s of the threads");
    // What was read has been filled, all of it.
    let (d, ..) = pass();
    assert_eq!((d.misses(), timed_reads(&d)), (0.0, 0.0), "cached reads do not wait;{}", d.moved());
}

#[test]
fn latency_is_absent_when_off_and_reported_where_it_cannot_be_had() {
    need_bpf!("latency_is_absent_when_off_and_reported_where_it_cannot_be_had");
    // Reads are timed where that is cheap: "auto" is the default.
    let s = Scoped::start(&[]);
    let probe = |agent: &Agent| {
        let health: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
        let probes = health["modules"][0]["probes"].as_array().unwrap().clone();
        (health["status"].clone(), probes.into_iter().find(|p| p["name"] == "read_latency"))
    };
    let has = |agent: &Agent| agent.metrics().0.keys().any(|name| is_latency(name));
    let by_itself = has(&s.agent);
    assert_eq!(probe(&s.agent).1.is_some(), by_itself, "listed where it is there");

    let agent = Agent::start(&[("COLLECTOR_READ_LATENCY", "off")]);
    assert!(!has(&agent) && probe(&agent).1.is_none());
    drop(agent);

    let agent = Agent::start(&[("COLLECTOR_READ_LATENCY", "on")]);
    let (status, listed) = probe(&agent);
    let listed = listed.unwrap();
    let possible = has(&agent);
    assert_eq!(listed["attached"], possible);
    assert!(possible || !by_itself);
    if !possible {
        assert_eq!(status, "degraded");
        assert!(!listed["failures"][0]["reason"].as_str().unwrap().is_empty(), "{listed}");
    }
}

// ---- fills that are no misses ----

#[test]
fn writing_a_new_file() {
    need_bpf!("writing_a_new_file");
    let s = Scoped::start(&[]);
    let (d, f) = s.agent.during(|| TestFile::new("written", file_size()));
    assert!(d.misses() <= file_pages() * 0.005, "{} misses;{}", d.misses(), d.moved());
    assert_near("adds by writing", d.adds("write"), file_pages(), 1.0, &d);
    drop(f);
}

#[test]
fn willneed_and_readahead() {
    need_bpf!("willneed_and_readahead");
    let s = Scoped::start(&[]);
    let f = TestFile::cold("willneed", 16 * MIB);
    let (d, _) = s.agent.during(|| {
        for i in 0..16 {
            let at = (i * MIB) as i64;
            sys::fadvise(f.file.as_raw_fd(), at, MIB as i64, libc::POSIX_FADV_WILLNEED).unwrap();
        }
    });
    let truth = f.resident() as f64;
    assert!(truth > 0.0);
    assert_near("adds by WILLNEED", d.adds("prefetch"), truth, 3.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());

    f.drop_cache();
    let (d, _) = s.agent.during(|| sys::readahead(&f.file, 0, MIB));
    assert_near("adds by readahead()", d.adds("prefetch"), f.resident() as f64, 3.0, &d);
    f.drop_cache();
    let (d, _) = s.agent.during(|| Mapping::of(&f.file).advise(libc::MADV_WILLNEED));
    assert_near("adds by madvise", d.adds("prefetch"), f.resident() as f64, 3.0, &d);
}

#[test]
fn faults_between_warm_reads() {
    need_bpf!("faults_between_warm_reads");
    let s = Scoped::start(&[]);
    let touched = file_pages() / 16.0;
    let mapped = TestFile::cold("mapped", file_size());
    let warm = TestFile::new("warm", MIB);
    let map = Mapping::of(&mapped.file);
    map.advise(libc::MADV_RANDOM);
    let mut buf = [0u8; PAGE];
    let (d, _) = s.agent.during(|| {
        for i in 0..touched as usize {
            map.touch(i * 16);
            warm.file.read_at(&mut buf, (i % 256 * PAGE) as u64).unwrap();
        }
    });
    assert_near("adds by faults", d.adds("fault"), touched, 2.0, &d);
    assert_eq!((d.misses(), d.attempts(touched)), (0.0, touched), "{}", d.moved());
}

/// A fault in the middle of a write: the pages of the mapped file belong to the fault, those of the written
/// one to the write.
#[test]
fn faults_inside_a_copy() {
    need_bpf!("faults_inside_a_copy");
    let s = Scoped::start(&[]);
    let from = TestFile::cold("copied", MIB);
    let to = TestFile::new("copy", 0);
    let map = Mapping::of(&from.file);
    map.advise(libc::MADV_RANDOM);
    let (d, _) = s.agent.during(|| to.file.write_all_at(map.bytes(), 0).unwrap());
    assert_near("adds by writing", d.adds("write"), 256.0, 1.0, &d);
    assert_near("adds by faults", d.adds("fault"), 256.0, 2.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());

    let (mut near, mut far) = UnixStream::pair().unwrap();
    from.drop_cache();
    let remapped = Mapping::of(&from.file);
    remapped.advise(libc::MADV_RANDOM);
    let sink = thread::spawn(move || near.read_to_end(&mut Vec::new()).unwrap());
    let (d, _) = s.agent.during(|| {
        far.write_all(remapped.bytes()).unwrap();
        drop(far);
    });
    assert_eq!(sink.join().unwrap(), MIB);
    drop(map);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());
}

#[test]
fn alternating_cold_reads_and_appends() {
    need_bpf!("alternating_cold_reads_and_appends");
    let s = Scoped::start(&[]);
    let reads = file_pages() / 8.0;
    let cold = TestFile::cold("read", file_size());
    sys::fadvise(cold.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let log = TestFile::new("appended", 0);
    let mut buf = [7u8; PAGE];
    let (d, _) = s.agent.during(|| {
        for i in 0..reads as usize {
            cold.file.read_at(&mut buf, (i * 8 * PAGE) as u64).unwrap();
            log.file.write_all_at(&buf, (i * PAGE) as u64).unwrap();
        }
    });
    assert_eq!((d.adds("read"), d.adds("write")), (reads, reads), "{}", d.moved());
    assert_eq!((d.attempts(reads), d.misses()), (reads, reads), "{}", d.moved());
}

// ---- evictions ----

#[test]
fn evictions_by_cause() {
    need_bpf!("evictions_by_cause");
    let s = Scoped::start(&[]);
    let len = common::sized(48 * MIB, 12 * MIB);
    let pages = (len / PAGE) as f64;
    let f = TestFile::new("dontneed", len);
    let (d, _) = s.agent.during(|| f.drop_cache());
    assert_near("evictions by fadvise", d.evictions("fadvise"), pages, 1.0, &d);
    assert_eq!(d.evictions("other"), 0.0, "{}", d.moved());

    let f = TestFile::new("unlinked", len);
    let other = TestFile::new("kept", PAGE);
    let (d, _) = s.agent.during(|| {
        drop(f);
        sys::fadvise(other.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
    });
    assert_near("evictions by unlink", d.evictions("other"), pages, 1.0, &d);
    assert_eq!(d.evictions("fadvise"), 0.0, "{}", d.moved());

    let f = TestFile::new("truncated", len);
    let (d, _) = s.agent.during(|| f.file.set_len(len as u64 / 2).unwrap());
    assert_near("evictions by truncate", d.evictions("other"), pages / 2.0, 1.0, &d);
}

/// tmpfs tells of pages that go and not of those that come: neither counts.
#[test]
fn tmpfs_counts_nothing() {
    need_bpf!("tmpfs_counts_nothing");
    let s = Scoped::start(&[]);
    let path = PathBuf::from(format!("/dev/shm/ebpf-sidecar-test-{}", std::process::id()));
    let (d, written) = s.agent.during(|| fs::write(&path, vec![1u8; MIB]).and_then(|()| fs::remove_file(&path)));
    if written.is_err() {
        return common::skipped("tmpfs_counts_nothing", "needs /dev/shm");
    }
    let all: f64 = ["reclaim", "fadvise", "other"].iter().map(|c| d.evictions(c)).sum();
    assert_eq!(all, 0.0, "{}", d.moved());
}

// ---- fadvise ----

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

/// Calls and successful calls in the rows of one process.
fn rows_of(agent: &Agent, pid: u32) -> (u64, u64) {
    let stats = agent.stats();
    let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
    let of = |key| rows.iter().filter(|r| r["pid"] == pid).map(|r| r[key].as_u64().unwrap()).sum();
    (of("call_count"), of("success_count"))
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

#[test]
fn draining_loses_nothing() {
    need_bpf!("draining_loses_nothing");
    let s = Scoped::start(common::sized(&[("COLLECTOR_INTERVAL", "20ms")], &[]));
    let f = TestFile::new("million", PAGE);
    let calls: u64 = common::sized(1_000_000, 50_000);
    s.agent.settled();
    let me = common::kernel_pid(&s.agent);
    let before = rows_of(&s.agent, me);
    let (d, _) = s.agent.during(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..calls / 2 {
                        sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
                    }
                });
            }
        });
    });
    assert!(d.of("ebpf_sidecar_snapshot_sequence") > 5.0, "it was drained while the calls were made");
    // Each call is counted, or told of as missed.
    let missed = d.missed("fadvise");
    assert_eq!(d.of("ebpf_fadvise_calls_total") + missed, calls as f64);
    assert_eq!(d.of("ebpf_fadvise_success_total") + missed, calls as f64);
    let made = calls - missed as u64;
    let after = rows_of(&s.agent, me);
    assert_eq!((after.0 - before.0, after.1 - before.1), (made, made));
}

#[test]
fn short_lived_processes_stay_bounded() {
    need_bpf!("short_lived_processes_stay_bounded");
    // More than there are rows, 4096.
    let processes = common::sized(20_000, 4_200);
    // One interval holds them all, then a short one.
    for interval in common::sized(&["5s", "50ms"][..], &["2s"]) {
        // The history has a bound of its own.
        let s = Scoped::start(&[("COLLECTOR_INTERVAL", interval), ("COLLECTOR_HISTORY", "10ms")]);
        let f = TestFile::new("forked", PAGE);
        let rss = s.agent.rss_kib();
        // Nothing was in the scope before.
        let before = s.agent.metrics();
        for _ in 0..processes / 100 {
            let children: Vec<_> = (0..100).map(|_| sys::fork_one_fadvise(f.file.as_raw_fd())).collect();
            children.into_iter().for_each(sys::wait_for);
        }
        let d = Delta { before, after: s.agent.settled() };
        let calls = d.of("ebpf_fadvise_calls_total") + d.missed("fadvise");
        assert_eq!(calls, f64::from(processes), "{interval};{}", d.moved());
        let stats = s.agent.stats();
        let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
        let sum: u64 = rows.iter().map(|r| r["call_count"].as_u64().unwrap()).sum();
        assert_eq!(stats["fadvise"]["total_calls"], sum, "{interval}: rows + overflow = total");
        assert!(rows.len() <= 4097, "{interval}: {} rows", rows.len());
        let overflow = rows.iter().find(|r| r["pid"] == 0).expect("an overflow row");
        assert_eq!(overflow["comm"], "overflow");
        let grown = s.agent.rss_kib().saturating_sub(rss);
        assert!(grown < 8 * 1024, "{interval}: resident memory grew by {grown} KiB");
    }
}

// ---- preemption ----

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
                    let mut buf = [0u8; PAGE];
                    for i in 0..each {
                        f.file.read_at(&mut buf, (i % 256 * PAGE) as u64).unwrap();
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

// ---- reclaim ----

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
    let script = "echo $$ > $1/cgroup.procs; echo $$ > $2/cgroup.procs; \
                  i=0; while [ $i -lt $4 ]; do dd if=$3 of=/dev/null bs=64k 2>/dev/null; i=$((i+1)); done";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh", text(&limit.path), text(&scope.path), text(&big.path)])
        .arg(common::sized("3", "1"))
        .spawn()
        .unwrap();
    let mut most = 0f64;
    let mut efficiency = Vec::new();
    while child.try_wait().unwrap().is_none() {
        let m = agent.metrics();
        most = most.max(m.get("ebpf_memory_direct_reclaim_processes"));
        efficiency.extend(m.0.get("ebpf_memory_reclaim_efficiency_percent").copied().filter(|e| !e.is_nan()));
        thread::sleep(Duration::from_millis(common::sized(20, 100)));
    }
    let wall = begun.elapsed().as_secs_f64();
    let after = agent.settled();
    let d = Delta { before, after };
    let scanned = "ebpf_memory_lru_pages_scanned_total{reclaimer=\"memcg\"}";
    let reclaimed = d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"memcg\"}");
    assert!(reclaimed > 0.0, "{}", d.moved());
    // A kernel that does not tell what it scans has neither scans nor an efficiency.
    let scans = d.after.0.contains_key(scanned);
    assert_eq!(scans, d.after.0.contains_key("ebpf_memory_reclaim_efficiency_percent"));
    if scans {
        assert!(d.of(scanned) >= reclaimed, "{}", d.moved());
        assert!(!efficiency.is_empty() && efficiency.iter().all(|e| (0.0..=100.0).contains(e)), "{efficiency:?}");
    }
    assert!(most >= 1.0, "no process was seen in reclaim;{}", d.moved());
    // What does not fit into the limit must have been evicted by the reader's own reclaim.
    let evicted = d.evictions("reclaim");
    let at_least = ((file_bytes - limit_bytes) / PAGE) as f64;
    assert!(evicted >= at_least, "{evicted} pages evicted, at least {at_least};{}", d.moved());
    assert_near("reclaimed and evicted", reclaimed, evicted, 3.0, &d);
    let stalls = d.of("ebpf_memory_direct_reclaim_seconds_count");
    let seconds = d.of("ebpf_memory_direct_reclaim_seconds_sum");
    assert!(stalls > 0.0 && seconds > 0.0 && seconds < wall, "{stalls} stalls of {seconds} s in {wall} s");
    // The first interval that is settled may have begun before the end.
    assert_eq!(agent.settled().get("ebpf_memory_direct_reclaim_processes"), 0.0, "intervals after");
    assert_eq!(d.after.get("ebpf_sidecar_events_lost_total{map=\"stalls\"}"), 0.0);
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
    let _restore = Restore(watermark, old);
    if fs::write(watermark, want.to_string()).is_err() {
        return common::skipped("kswapd_as_vmstat_says", "needs to write vm.min_free_kbytes");
    }
    let small = TestFile::new("small", 16 * MIB);
    drop(small);
    thread::sleep(Duration::from_millis(500));
    drop(_restore);
    thread::sleep(Duration::from_millis(300));
    let d = Delta { before: first, after: s.agent.settled() };
    let truth: Vec<f64> = names.map(vmstat).iter().zip(before).map(|(a, b)| a - b).collect();
    if truth[0] == 0.0 {
        assert!(common::sized(true, false), "kswapd did not run, in a machine with as much memory as we gave it");
        return common::skipped("kswapd_as_vmstat_says", "kswapd did not run: too much memory is free");
    }
    assert_eq!(d.of("ebpf_memory_kswapd_wakeups_total"), truth[0], "rounds; {truth:?}{}", d.moved());
    assert_near("scanned", d.of("ebpf_memory_lru_pages_scanned_total{reclaimer=\"kswapd\"}"), truth[1], 1.0, &d);
    assert_near("reclaimed", d.of("ebpf_memory_pages_reclaimed_total{reclaimer=\"kswapd\"}"), truth[2], 1.0, &d);
}

struct Restore(&'static str, String);

impl Drop for Restore {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).unwrap();
    }
}

// ---- scope ----

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

// ---- without BTF ----

/// What the agent finds out about the kernel's structs where it is told nothing, on a kernel that tells.
#[test]
fn fields_found_without_btf_are_those_of_btf() {
    need_bpf!("fields_found_without_btf_are_those_of_btf");
    let Some(btf) = Btf::of_kernel() else {
        return common::skipped("fields_found_without_btf_are_those_of_btf", "this kernel has no BTF");
    };
    os::mount_tracefs_privately().unwrap();
    let layout = Layout::find().unwrap();
    for (of, field, offset) in layout.fields() {
        assert_eq!(Some(offset), btf.offset(of, field), "{of}.{field}");
    }
    for (of, field) in [("page_cache", "pfn"), ("lru_shrink_inactive", "nr_scanned"), ("end_template", "nr_reclaimed")]
    {
        assert!(layout.fields().any(|f| f.0.ends_with(of) && f.1 == field), "{of}.{field} is not known");
    }
    assert_eq!(layout.offset("iov_iter", "count").is_some(), os::perf_has_kprobes());
}
