//! Buffered reads: attempts, misses and rates; what readers of every kind touch, and what is no read.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::sys::{self, Mapping, page, pages};
use crate::common::{self, MIB, Metrics, Random, Scoped, TestFile, assert_near, read_all, text};
use crate::{file_pages, file_size};

#[test]
fn cold_and_warm_reads() {
    need_bpf!("cold_and_warm_reads");
    let s = Scoped::start(&[]);
    let bytes = common::sized(64 * MIB, 8 * MIB);
    let pages = pages(bytes);
    for block in [page(), 64 * 1024, MIB] {
        let f = TestFile::cold("cold", bytes);
        let (d, _) = s.agent.during(|| assert_eq!(read_all(&f.reopen(), block), bytes as u64));
        assert_near("attempts, cold", d.attempts(pages), pages, 1.0, &d);
        let missed = d.misses_of(pages);
        assert_near("misses, cold", missed, pages, 3.0, &d);
        let rate = 100.0 * missed / d.attempts(pages).max(missed);
        assert!(rate >= 98.0, "{rate} % missed;{}", d.moved());
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
    let pages = bytes / page();
    let mut random = Random(42);
    let mut buf = vec![0u8; page()];
    for _ in 0..pages * 7 / 10 {
        f.file.read_at(&mut buf, (random.below(pages) * page()) as u64).unwrap();
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
        for pick in &picks {
            f.file.read_at(&mut buf, (pick * page()) as u64).unwrap();
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
    assert_eq!(d.attempts(pages(MIB + MIB / 2)), pages(MIB + MIB / 2), "{}", d.moved());
    f.drop_cache();
    let (d, _) = s.agent.during(|| {
        f.file.read_at(&mut buf, 0).unwrap();
        f.file.read_at(&mut buf[..MIB / 2], MIB as u64 / 2).unwrap();
    });
    assert_eq!(d.attempts(pages(MIB + MIB / 2)), pages(MIB + MIB / 2), "cold: {}", d.moved());
    assert_eq!(d.misses_of(pages(MIB)), pages(MIB), "{}", d.moved());
}

/// Threads that are preempted and moved between the CPUs in the middle of reads of many batches.
#[test]
fn reads_of_any_size_from_more_threads_than_cpus() {
    need_bpf!("reads_of_any_size_from_more_threads_than_cpus");
    let s = Scoped::start(&[]);
    let bytes = file_size();
    let f = TestFile::cold("sizes", bytes);
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
                        let pages = (at + n - 1) / page() - at / page() + 1;
                        truth.fetch_add(pages as u64, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    // Batches end at folios that another thread is just filling: neither the rest nor the beginning of such a
    // read may count twice, or not at all.
    let (truth, filled) = (truth.into_inner() as f64, f.filled() as f64);
    assert_eq!(d.attempts(truth), truth, "{} reads missed; {}", d.missed("cache_read"), d.moved());
    assert_eq!(d.misses_of(filled), filled, "{}", d.moved());
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
        let mut buf = vec![0u8; page()];
        for f in &files {
            f.reopen().read_exact_at(&mut buf, 0).unwrap();
            let now = count(&s.agent.metrics());
            assert!(hits.swap(now, Ordering::Relaxed) <= now, "the hits fell");
        }
    });
    let filled = files.iter().map(TestFile::filled).sum::<usize>() as f64;
    assert_eq!(d.attempts(n as f64), n as f64, "{}", d.moved());
    assert_eq!(d.misses_of(filled), filled, "{}", d.moved());
}

/// What readahead fills and nobody reads is a miss for good, and no hit of others has to make up for it.
#[test]
fn readahead_in_vain_takes_no_hits_away() {
    let name = "readahead_in_vain_takes_no_hits_away";
    need_bpf!("readahead_in_vain_takes_no_hits_away");
    let s = Scoped::start(&[]);
    const HITS: &str = "ebpf_cache_hits_total";
    if !s.agent.metrics().0.contains_key(HITS) {
        return common::skipped(name, "this kernel has no read attempts");
    }
    let files: Vec<_> = (0..common::sized(300, 50)).map(|i| TestFile::cold(&format!("vain{i}"), 64 * 1024)).collect();
    let warm = TestFile::new("warm", MIB);
    read_all(&warm.file, MIB);
    let (d, _) = s.agent.during(|| {
        files.iter().for_each(|f| f.reopen().read_exact_at(&mut vec![0u8; page()], 0).unwrap());
    });
    let vain = d.misses() - files.len() as f64;
    assert!(vain > files.len() as f64, "readahead fills more than was read;{}", d.moved());
    assert_eq!(d.of(HITS), 0.0, "{}", d.moved());
    // Longer than pages filled ahead are waited for.
    thread::sleep(Duration::from_secs(32));
    let mut buf = vec![0u8; page()];
    let reads = 256;
    let (d, _) = s.agent.during(|| {
        (0..reads).for_each(|i| warm.file.read_exact_at(&mut buf, (i * page()) as u64).unwrap());
    });
    let (attempts, hits) = (d.of("ebpf_cache_read_attempts_total"), d.of(HITS));
    assert_eq!((d.attempts(reads as f64), d.misses_of(0.0)), (reads as f64, 0.0), "{}", d.moved());
    assert_eq!(hits, attempts, "{vain} pages were filled in vain;{}", d.moved());
    // A cold read has none, although readahead runs ahead of it.
    let cold = TestFile::cold("cold", 8 * MIB);
    let (d, _) = s.agent.during(|| read_all(&cold.reopen(), page()));
    assert!(d.of(HITS) <= 20.0, "{}", d.moved());
}

#[test]
fn sendfile_and_vectored_reads() {
    need_bpf!("sendfile_and_vectored_reads");
    let s = Scoped::start(&[]);
    let len = 4 * MIB;
    let wanted = pages(len);
    // From the middle of a page on, what is asked for is one page more than a pipe takes.
    for (cold, start) in [(false, 0), (false, 100), (true, 0)] {
        let f = if cold { TestFile::cold("sendfile", len) } else { TestFile::new("sendfile", len) };
        let (d, _) = s.agent.during(|| {
            let (mut near, far) = UnixStream::pair().unwrap();
            let reader = thread::spawn(move || {
                let mut sink = vec![0u8; MIB];
                while near.read(&mut sink).unwrap() > 0 {}
            });
            let mut sent = start;
            while sent < len {
                sent += sys::sendfile(far.as_raw_fd(), &f.file, sent as i64, len - sent);
            }
            drop(far);
            reader.join().unwrap();
        });
        assert_eq!(d.attempts(wanted), wanted, "cold: {cold}, from {start} on;{}", d.moved());
        let missed = if cold { wanted } else { 0.0 };
        assert_eq!(d.misses_of(missed), missed, "{}", d.moved());
    }
    let f = TestFile::cold("preadv", MIB);
    let (mut a, mut b) = (vec![0u8; 10 * page()], vec![0u8; 30 * page()]);
    let (d, n) = s.agent.during(|| sys::preadv2_buffers(&f.file, &mut a, &mut b, 0));
    assert_eq!((n, d.attempts(40.0)), (40 * page(), 40.0), "{}", d.moved());
    let filled = f.filled() as f64;
    assert_eq!(d.misses_of(filled), filled, "{}", d.moved());
}

/// Cold reads by threads that fill for each other: batches end at folios that are just being filled, and of those the
/// kernel's tracepoint does not tell. `read(file, seed, at, most)` returns the bytes of one read.
fn cold_reads_are_whole(what: &str, read: impl Fn(&File, u64, usize, usize) -> usize + Sync) {
    let s = Scoped::start(&[]);
    let bytes = file_size();
    let f = TestFile::cold("whole", bytes);
    let truth = AtomicU64::new(0);
    let (d, _) = s.agent.during(|| {
        thread::scope(|scope| {
            for seed in 1..=8 {
                let (file, truth, read) = (f.reopen(), &truth, &read);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..common::sized(400, 15) {
                        let at = random.below(bytes - 1);
                        let n = read(&file, seed, at, [10_000, 64 * 1024, 2 * MIB][random.below(3)]);
                        let pages = (at + n - 1) / page() - at / page() + 1;
                        truth.fetch_add(pages as u64, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    let truth = truth.into_inner() as f64;
    assert_eq!(d.attempts(truth), truth, "{what};{}", d.moved());
}

#[test]
fn vectored_cold_reads_are_whole() {
    need_bpf!("vectored_cold_reads_are_whole");
    let buffers = || (vec![0u8; 300 * 1024], vec![0u8; 2 * MIB - 300 * 1024]);
    cold_reads_are_whole("preadv", |file, _, at, _| {
        let (mut a, mut b) = buffers();
        sys::preadv2_buffers(file, &mut a, &mut b, at as i64)
    });
    cold_reads_are_whole("readv", |mut file, _, at, _| {
        let (mut a, mut b) = buffers();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap()
    });
}

/// The same by calls that copy, from the middle of pages, to where all is taken.
#[test]
fn copied_cold_reads_are_whole() {
    need_bpf!("copied_cold_reads_are_whole");
    let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
    cold_reads_are_whole("sendfile", |file, _, at, most| sys::sendfile(null.as_raw_fd(), file, at as i64, most));
    cold_reads_are_whole("sendfile from the file's position", |mut file, _, at, most| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        sys::copy(sys::Copying::Sendfile, file.as_raw_fd(), null.as_raw_fd(), most)
    });
    let targets: Vec<_> = (0..8).map(|i| TestFile::new(&format!("whole-target{i}"), 0)).collect();
    cold_reads_are_whole("copy_file_range", |mut file, seed, at, most| {
        let mut target = &targets[seed as usize - 1].file;
        target.rewind().unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        sys::copy_file_range(file, target, most)
    });
    // Into a pipe with something in it.
    cold_reads_are_whole("splice", |file, _, at, most| {
        let (_out, mut into) = std::io::pipe().unwrap();
        into.write_all(b"before").unwrap();
        sys::splice(file, at as i64, into.as_raw_fd(), most.min(14 * page()))
    });
}

/// A read that may not wait returns what is cached up to the first page that is not.
#[test]
fn a_read_that_returns_less_counts_what_it_returns_where_that_is_known() {
    const NAME: &str = "a_read_that_returns_less_counts_what_it_returns_where_that_is_known";
    need_bpf!("a_read_that_returns_less_counts_what_it_returns_where_that_is_known");
    let s = Scoped::start(&[]);
    let chunk = 16 * page();
    let f = TestFile::cold("partial", file_size());
    sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let mut buf = vec![0u8; chunk];
    let chunks = || (0..file_size()).step_by(chunk).map(|at| at as i64);
    for at in chunks() {
        f.file.read_at(&mut buf[..4 * page()], at as u64).unwrap();
    }
    let (d, read) = s.agent.during(|| {
        let mut bytes = 0;
        for at in chunks() {
            match sys::preadv2_flags(&f.file, &mut buf, at, libc::RWF_NOWAIT) {
                Ok(n) => bytes += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(bytes)
    });
    let returned = match read {
        Ok(bytes) => bytes.div_ceil(page()) as f64,
        Err(e) => return common::skipped(NAME, &format!("RWF_NOWAIT: {e}")),
    };
    let exact = d.after.0.contains_key("ebpf_sidecar_probe_attached{probe=\"cache_read\",mode=\"fexit\"}");
    let attempts = d.attempts(returned);
    println!("{returned} pages of {} were returned, {attempts} counted", file_pages());
    match exact {
        true => assert_eq!(attempts, returned, "{}", d.moved()),
        // What was asked for.
        false => assert!((returned..=file_pages()).contains(&attempts), "{returned} returned;{}", d.moved()),
    }
}

#[test]
fn the_end_of_a_file_and_holes() {
    need_bpf!("the_end_of_a_file_and_holes");
    let s = Scoped::start(&[]);
    let f = TestFile::new("end", 10 * page() + 1);
    let mut buf = vec![0u8; MIB];
    let (d, _) = s.agent.during(|| {
        f.file.read_at(&mut buf, 0).unwrap();
    });
    assert_eq!(d.attempts(11.0), 11.0, "a read longer than the file;{}", d.moved());
    let (d, _) = s.agent.during(|| {
        for at in [11 * page(), MIB, 1 << 40] {
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
    assert_near("misses", d.misses_of(file_pages()), file_pages(), 3.0, &d);

    let new = merged.join("new");
    let (d, _) = s.agent.during(|| fs::write(&new, vec![1u8; 4 * MIB]).unwrap());
    assert_near("written", d.adds_of("write", pages(4 * MIB)), pages(4 * MIB), 1.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.join("merged")).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(self.0);
    }
}
