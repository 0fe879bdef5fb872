//! What happens to the machine while it counts: CPUs go and come back, one comes after its start, the clock is set.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::sys::{self, page};
use crate::common::{self, Scoped, TestFile};

/// A CPU that is switched off and on; on again at the end.
struct Cpu(PathBuf);

impl Cpu {
    /// This one, if the kernel lets go of it.
    fn new(number: usize) -> Option<Self> {
        let online = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}/online"));
        fs::read_to_string(&online).is_ok_and(|on| on.trim() == "1").then_some(Self(online))
    }

    fn switch(&self, on: bool) {
        // Another may be using the lock for a moment.
        let busy = (0..100).all(|_| match fs::write(&self.0, if on { "1" } else { "0" }) {
            Ok(()) => false,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EBUSY), "{}: {e}", self.0.display());
                thread::yield_now();
                true
            }
        });
        assert!(!busy, "{} stays busy", self.0.display());
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "1");
    }
}

/// Reads a page that is in memory and gives advice, `times` times or as long as `more`. Returns how often.
fn work(f: &TestFile, times: usize, more: &AtomicBool) -> usize {
    let mut buf = vec![0u8; page()];
    let mut done = 0;
    while done < times || more.load(Ordering::Relaxed) {
        f.file.read_at(&mut buf, 0).unwrap();
        sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
        done += 1;
    }
    done
}

fn assert_counted(d: &common::Delta, done: usize) {
    let done = done as f64;
    assert_eq!(d.of("ebpf_fadvise_calls_total") + d.missed("fadvise"), done, "{}", d.moved());
    if d.knows_reads() {
        assert_eq!(d.of("ebpf_cache_read_attempts_total") + d.missed("cache_read"), done, "{}", d.moved());
    }
}

#[test]
fn cpus_come_and_go_and_nothing_is_lost() {
    let name = "cpus_come_and_go_and_nothing_is_lost";
    need_bpf!("cpus_come_and_go_and_nothing_is_lost");
    if !common::sized(false, true) {
        return common::skipped(name, "no CPU of this host is switched off: only those of emulated machines");
    }
    // Events of perf stand on the first one, where it can be switched off.
    let cpus: Vec<Cpu> = (0..2).filter_map(Cpu::new).collect();
    if cpus.is_empty() || !Path::new("/sys/devices/system/cpu/cpu1").exists() {
        return common::skipped(name, "this kernel lets go of no CPU");
    }
    let f = TestFile::new("hotplug", page());
    let never = AtomicBool::new(false);
    {
        let s = Scoped::start(&[]);
        let (d, done) = s.agent.during(|| {
            let more = AtomicBool::new(true);
            thread::scope(|scope| {
                let workers = [(); 2].map(|()| scope.spawn(|| work(&f, 100, &more)));
                for _ in 0..2 {
                    for cpu in &cpus {
                        cpu.switch(false);
                        // It collects while that is off.
                        let before = s.agent.metrics().get("ebpf_sidecar_snapshot_sequence");
                        s.agent.wait(|m| m.get("ebpf_sidecar_snapshot_sequence") > before);
                        cpu.switch(true);
                    }
                }
                more.store(false, Ordering::Relaxed);
                workers.into_iter().map(|w| w.join().unwrap()).sum::<usize>()
            })
        });
        assert_counted(&d, done);
        // On each of them.
        for number in 0..2 {
            let (d, done) = s.agent.during(|| {
                thread::scope(|scope| {
                    let worker = scope.spawn(|| {
                        sys::run_on(number);
                        work(&f, 500, &never)
                    });
                    worker.join().unwrap()
                })
            });
            assert_counted(&d, done);
        }
    }
    // One that was off when it started.
    let cpu = cpus.last().unwrap();
    cpu.switch(false);
    let s = Scoped::start(&[("COLLECTOR_INTERVAL", "150ms")]);
    cpu.switch(true);
    let (d, done) = s.agent.during(|| {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                sys::run_on(1);
                work(&f, 500, &never)
            });
            worker.join().unwrap()
        })
    });
    assert_counted(&d, done);
}

#[test]
fn a_clock_that_is_set_takes_nothing_away() {
    let name = "a_clock_that_is_set_takes_nothing_away";
    need_bpf!("a_clock_that_is_set_takes_nothing_away");
    if !common::sized(false, true) {
        return common::skipped(name, "the clock of this host stays: only those of emulated machines are set");
    }
    let s = Scoped::start(&[]);
    let status = || serde_json::from_str::<serde_json::Value>(&s.agent.get("/health").body).unwrap()["status"].clone();
    let before = status();
    let f = TestFile::new("clock", page());
    let never = AtomicBool::new(false);
    for hours in [1, -2, 1] {
        let (d, done) = s.agent.during(|| {
            let first = work(&f, 200, &never);
            sys::set_clock(hours * 3600);
            first + work(&f, 200, &never)
        });
        assert_counted(&d, done);
        for (series, value) in d.before.0.iter().filter(|(series, _)| series.contains("_total")) {
            assert!(d.after.get(series) >= *value, "{hours} h: {series}");
        }
        assert_eq!(status(), before, "{hours} h");
    }
}
