//! Sleeps for I/O, by what a thread was doing.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::common::sys::{self, Mapping, page};
use crate::common::{self, Agent, Delta, MIB, Scoped, TestFile, read_all};
use crate::reclaim::Restore;

const SLEEPS: &str = "ebpf_io_wait_seconds";
const OPS: [&str; 5] = ["read", "fault", "write", "sync", "other"];

/// Sleeps of each kind, in the order of [`OPS`].
fn counts(d: &Delta) -> [f64; 5] {
    OPS.map(|op| d.of(&format!("{SLEEPS}_count{{op=\"{op}\"}}")))
}

fn seconds(d: &Delta, op: &str) -> f64 {
    d.of(&format!("{SLEEPS}_sum{{op=\"{op}\"}}"))
}

/// Whether sleeps are timed: they must be where functions can be attached to, and the test is skipped elsewhere.
fn times_sleeps(agent: &Agent, test: &str) -> bool {
    let has = agent.metrics().0.keys().any(|name| name.starts_with(SLEEPS));
    if !has {
        assert_ne!(std::env::var("TEST_ATTACH").as_deref(), Ok("kprobe"), "not timed; agent's log:\n{}", agent.log());
        assert!(!agent.metrics().0.keys().any(|name| name.contains("probe=\"io_wait\"")));
        common::skipped(test, "needs kprobes, or fentry from 5.12 on");
    }
    has
}

/// Milliseconds that the machine's disk takes for each request, if it was made to.
fn slow_disk() -> Option<f64> {
    std::env::var("TEST_SLOW_DISK").ok()?.parse().ok()
}

/// What some work of this thread was: times asleep for whatever reason, and seconds.
struct Work {
    slept: f64,
    seconds: f64,
}

fn observe(s: &Scoped, work: impl FnOnce()) -> (Delta, Work) {
    s.agent.during(|| {
        let (before, begun) = (sys::voluntary_switches(), Instant::now());
        work();
        Work { slept: (sys::voluntary_switches() - before) as f64, seconds: begun.elapsed().as_secs_f64() }
    })
}

/// So many sleeps at least, and nothing but `op`: now and then a thread sleeps for a lock.
#[track_caller]
fn assert_only(op: &str, least: f64, most: f64, d: &Delta, work: &Work) {
    let got = counts(d);
    println!("{op}: {got:?}, slept {} times, {} of {} s", work.slept, seconds(d, op), work.seconds);
    for (kind, n) in OPS.iter().zip(got) {
        if *kind != op {
            assert_eq!(n, 0.0, "{kind} while there was {op} alone;{}", d.moved());
            continue;
        }
        let missed = d.missed("io_wait") + d.of("ebpf_sidecar_events_lost_total{map=\"sleeps\"}");
        assert!((least - missed..=most).contains(&n), "{n} sleeps, not {least} to {most};{}", d.moved());
        assert!(seconds(d, op) <= work.seconds, "{} s of {}", seconds(d, op), work.seconds);
        if let (Some(ms), true) = (slow_disk(), n > 0.0) {
            assert!(seconds(d, op) > 0.75 * work.seconds, "a slow disk is all that there is to wait for;{}", d.moved());
            // For a fsync there are shorter sleeps too, in which its write is made.
            let short = d.of(&format!("{SLEEPS}_bucket{{op=\"{op}\",le=\"0.016777216\"}}"));
            assert!(op == "sync" || short < 0.2 * n, "{short} of {n} sleeps short, on a disk that takes {ms} ms");
        }
    }
}

#[test]
fn reads_and_faults_that_sleep_are_told_apart_and_cached_ones_do_not() {
    let name = "reads_and_faults_that_sleep_are_told_apart_and_cached_ones_do_not";
    need_bpf!("reads_and_faults_that_sleep_are_told_apart_and_cached_ones_do_not");
    let s = Scoped::start(&[]);
    if !times_sleeps(&s.agent, name) {
        return;
    }
    let n = if slow_disk().is_some() { 40 } else { common::sized(500, 200) };
    let f = TestFile::cold("slept", 2 * n * page());
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let mut buf = vec![7u8; page()];
    let mut read =
        || (0..n).for_each(|i| assert_eq!(f.file.read_at(&mut buf, (i * 2 * page()) as u64).unwrap(), page()));
    let (d, work) = observe(&s, &mut read);
    // A block of the file system's own may have to be read too.
    let most = n as f64 * 2.0;
    assert_only("read", work.slept * 0.98 - 2.0, most, &d, &work);
    let (d, work) = observe(&s, &mut read);
    if d.misses() == 0.0 {
        assert_only("read", 0.0, 0.0, &d, &work);
    }

    let map = Mapping::of(&f.file);
    map.advise(libc::MADV_RANDOM);
    let touch = || (0..n).for_each(|i| assert_eq!(map.touch(i * 2 + 1), 0xa5));
    let (d, work) = observe(&s, touch);
    assert_only("fault", work.slept * 0.98 - 2.0, most, &d, &work);
    let (d, work) = observe(&s, touch);
    if d.adds("fault") == 0.0 {
        assert_only("fault", 0.0, 0.0, &d, &work);
    }
}

#[test]
fn an_fsync_sleeps_by_its_name() {
    need_bpf!("an_fsync_sleeps_by_its_name");
    let s = Scoped::start(&[]);
    if !times_sleeps(&s.agent, "an_fsync_sleeps_by_its_name") {
        return;
    }
    let n = if slow_disk().is_some() { 10 } else { 50 };
    let f = TestFile::new("synced", n * page());
    let buf = vec![9u8; page()];
    let (d, work) = observe(&s, || {
        for i in 0..n {
            // It is there, and all of it is written: nothing to read, nothing to allocate.
            f.file.write_all_at(&buf, (i * page()) as u64).unwrap();
            f.file.sync_data().unwrap();
        }
    });
    // A file system with a journal waits for the most of it in another way, and a fast disk is done before one sleeps.
    let least = if slow_disk().is_some() { n as f64 } else { 0.0 };
    assert_only("sync", least, n as f64 * 10.0, &d, &work);
}

#[test]
fn a_throttled_writer_sleeps_in_write() {
    let name = "a_throttled_writer_sleeps_in_write";
    need_bpf!("a_throttled_writer_sleeps_in_write");
    let s = Scoped::start(&[]);
    if !times_sleeps(&s.agent, name) {
        return;
    }
    let from = TestFile::new("throttled-from", MIB);
    read_all(&from.file, MIB);
    // As soon as a few pages are dirty. Writing the ratio undoes the bytes.
    let ratio = "/proc/sys/vm/dirty_ratio";
    let _restore = Restore(ratio, fs::read_to_string(ratio).unwrap());
    if fs::write("/proc/sys/vm/dirty_bytes", "262144").is_err() {
        return common::skipped(name, "needs to write vm.dirty_bytes");
    }
    let buf = vec![9u8; 64 << 10];
    for copies in [false, true] {
        let (mut passes, mut slept) = (0, 0.0);
        while slept == 0.0 {
            passes += 1;
            assert!(passes < 50, "the writer never waits");
            let to = TestFile::new("throttled", 0);
            let (d, _) = observe(&s, || {
                if copies {
                    let input = from.reopen();
                    let mut left = MIB;
                    while left > 0 {
                        left -= sys::copy(sys::Copying::Sendfile, input.as_raw_fd(), to.file.as_raw_fd(), left);
                    }
                } else {
                    (0..16).for_each(|i| to.file.write_all_at(&buf, (i * buf.len()) as u64).unwrap());
                }
            });
            let [read, fault, write, sync, other] = counts(&d);
            println!("copies {copies}: {:?}, {} s", counts(&d), seconds(&d, "write"));
            assert_eq!((read, fault, sync, other), (0.0, 0.0, 0.0, 0.0), "{}", d.moved());
            slept = write;
        }
    }
}
