//! Pages filled on behalf of something other than a read.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;

use crate::common::sys::{self, Mapping, page, pages};
use crate::common::{MIB, Scoped, TestFile, assert_near};
use crate::{file_pages, file_size};

#[test]
fn writing_a_new_file() {
    need_bpf!("writing_a_new_file");
    let s = Scoped::start(&[]);
    let (d, f) = s.agent.during(|| TestFile::new("written", file_size()));
    assert!(d.misses() <= file_pages() * 0.005, "{} misses;{}", d.misses(), d.moved());
    assert_near("adds by writing", d.adds_of("write", file_pages()), file_pages(), 1.0, &d);
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
    let truth = f.filled() as f64;
    assert!(truth > 0.0);
    assert_near("adds by WILLNEED", d.adds_of("prefetch", truth), truth, 3.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());

    f.drop_cache();
    let (d, _) = s.agent.during(|| sys::readahead(&f.file, 0, MIB));
    let truth = f.filled() as f64;
    assert_near("adds by readahead()", d.adds_of("prefetch", truth), truth, 3.0, &d);
    f.drop_cache();
    let (d, _) = s.agent.during(|| Mapping::of(&f.file).advise(libc::MADV_WILLNEED));
    let truth = f.filled() as f64;
    assert_near("adds by madvise", d.adds_of("prefetch", truth), truth, 3.0, &d);
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
    let mut buf = vec![0u8; page()];
    let (d, _) = s.agent.during(|| {
        for i in 0..touched as usize {
            map.touch(i * 16);
            warm.file.read_at(&mut buf, (i % 256 * page()) as u64).unwrap();
        }
    });
    assert_near("adds by faults", d.adds_of("fault", touched), touched, 2.0, &d);
    assert_eq!((d.misses_of(0.0), d.attempts(touched)), (0.0, touched), "{}", d.moved());
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
    assert_near("adds by writing", d.adds_of("write", pages(MIB)), pages(MIB), 1.0, &d);
    assert_near("adds by faults", d.adds_of("fault", pages(MIB)), pages(MIB), 2.0, &d);
    assert_eq!(d.misses(), 0.0, "{}", d.moved());

    let (mut near, mut far) = UnixStream::pair().unwrap();
    drop(map); // what is mapped stays
    from.drop_cache();
    let remapped = Mapping::of(&from.file);
    remapped.advise(libc::MADV_RANDOM);
    let sink = thread::spawn(move || near.read_to_end(&mut Vec::new()).unwrap());
    let (d, _) = s.agent.during(|| {
        far.write_all(remapped.bytes()).unwrap();
        drop(far);
    });
    assert_eq!(sink.join().unwrap(), MIB);
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
    let mut buf = vec![7u8; page()];
    let (d, _) = s.agent.during(|| {
        for i in 0..reads as usize {
            cold.file.read_at(&mut buf, (i * 8 * page()) as u64).unwrap();
            log.file.write_all_at(&buf, (i * page()) as u64).unwrap();
        }
    });
    assert_eq!(d.adds_of("write", reads), reads, "{}", d.moved());
    assert_eq!((d.attempts(reads), d.misses_of(reads)), (reads, reads), "{}", d.moved());
}
