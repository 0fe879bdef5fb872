//! Reads that wait for I/O, timed.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::common::sys::{self, page};
use crate::common::{self, Agent, Delta, MIB, Random, Scoped, TestFile, read_all};
use crate::file_size;
use crate::reclaim::Restore;

const WAITS: &str = "ebpf_read_wait_seconds";

fn timed_reads(d: &Delta) -> f64 {
    d.of(&format!("{WAITS}_count"))
}

pub fn is_latency(name: &str) -> bool {
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
    let f = TestFile::cold("timed", 2048 * page());
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&f.path).unwrap();
    let mut aligned = sys::Aligned::new(page());
    let mut buf = vec![7u8; page()];
    for uncached in [1000.0, 0.0] {
        let mut reads = Reads::default();
        let (d, _) = s.agent.during(|| {
            for i in 0..1000 {
                reads.time(|| assert_eq!(f.file.read_at(&mut buf, (i * 2 * page()) as u64).unwrap(), page()));
                // This one waits, but not for the page cache.
                assert_eq!(direct.read_at(aligned.get(), ((i * 2 + 1) * page()) as u64).unwrap(), page());
            }
        });
        assert_eq!(d.misses_of(uncached), uncached, "{}", d.moved());
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
            let at = (i * 100 * page()) as i64;
            reads.time(|| assert_eq!(sys::sendfile(near.as_raw_fd(), &f.file, at, page()), page()));
        }
    });
    let least = reads.slept as f64 - d.missed("read_latency");
    assert!((least..=20.0).contains(&timed_reads(&d)), "sendfile: {} slept;{}", reads.slept, d.moved());
}

/// What copies from file to file waits for its writes by the same functions as for its reads.
#[test]
fn a_copy_that_waits_for_its_writes_alone_is_no_waiting_read() {
    let name = "a_copy_that_waits_for_its_writes_alone_is_no_waiting_read";
    need_bpf!("a_copy_that_waits_for_its_writes_alone_is_no_waiting_read");
    let s = Scoped::start(&[]);
    if !times_reads(&s.agent, name) {
        return;
    }
    let from = TestFile::new("copied-cached", 4 * MIB);
    read_all(&from.file, MIB);
    // A writer has to wait as soon as a few pages are dirty. Writing the ratio undoes the bytes.
    let ratio = "/proc/sys/vm/dirty_ratio";
    let _restore = Restore(ratio, fs::read_to_string(ratio).unwrap());
    if fs::write("/proc/sys/vm/dirty_bytes", "262144").is_err() {
        return common::skipped(name, "needs to write vm.dirty_bytes");
    }
    for call in [sys::Copying::Sendfile, sys::Copying::Range, sys::Copying::Splice] {
        let (mut passes, mut slept) = (0, 0);
        let (d, _) = s.agent.during(|| {
            while slept == 0 {
                passes += 1;
                assert!(passes < 50, "the writer never waits");
                let (input, to) = (from.reopen(), TestFile::new("copy-throttled", 0));
                let (out_of, into) = std::io::pipe().unwrap();
                let before = sys::voluntary_switches();
                let mut left = 4 * MIB;
                while left > 0 {
                    let (fd, out) = (input.as_raw_fd(), to.file.as_raw_fd());
                    left -= match call {
                        sys::Copying::Splice => {
                            let n = sys::copy(call, fd, into.as_raw_fd(), 64 * 1024);
                            let mut moved = 0;
                            while moved < n {
                                moved += sys::copy(call, out_of.as_raw_fd(), out, n - moved);
                            }
                            n
                        }
                        _ => sys::copy(call, fd, out, left),
                    };
                }
                slept += sys::voluntary_switches() - before;
            }
        });
        println!("{call:?}: slept {slept} times in {passes} passes, {} timed", timed_reads(&d));
        assert_eq!((d.misses(), timed_reads(&d)), (0.0, 0.0), "{call:?}, slept {slept} times;{}", d.moved());
        assert_eq!(d.of("ebpf_read_wait_seconds_sum"), 0.0);
    }
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
