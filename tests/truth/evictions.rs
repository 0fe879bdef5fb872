//! Pages that leave the cache, by cause.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::common::sys::{self, PAGE};
use crate::common::{self, MIB, Scoped, TestFile, assert_near};

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
