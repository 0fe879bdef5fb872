//! Pages that leave the cache, by cause.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::common::sys::{self, page, pages};
use crate::common::{self, Delta, MIB, Scoped, TestFile, assert_near};

#[test]
fn evictions_by_cause() {
    need_bpf!("evictions_by_cause");
    let s = Scoped::start(&[]);
    let len = common::sized(48 * MIB, 12 * MIB);
    let f = TestFile::new("dontneed", len);
    // The machine may take some back by itself.
    let pages = f.resident() as f64;
    let (d, _) = s.agent.during(|| f.drop_cache());
    assert_near("evictions by fadvise", d.evictions_of("fadvise", pages), pages, 1.0, &d);
    assert_eq!(d.evictions("other"), 0.0, "{}", d.moved());

    let f = TestFile::new("unlinked", len);
    let pages = f.resident() as f64;
    let other = TestFile::new("kept", page());
    let (d, _) = s.agent.during(|| {
        drop(f);
        sys::fadvise(other.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
    });
    assert_near("evictions by unlink", d.evictions_of("other", pages), pages, 1.0, &d);
    assert_eq!(d.evictions("fadvise"), 0.0, "{}", d.moved());

    let f = TestFile::new("truncated", len);
    let pages = f.resident() as f64;
    let (d, _) = s.agent.during(|| f.file.set_len(len as u64 / 2).unwrap());
    assert_near("evictions by truncate", d.evictions_of("other", pages / 2.0), pages / 2.0, 1.0, &d);
}

/// Reads that leave nothing behind (6.14+): the pages go in the read call, so they are the reader's.
#[test]
fn what_is_read_without_being_kept_is_evicted_for_another_reason() {
    const RWF_DONTCACHE: i32 = 0x80;
    need_bpf!("what_is_read_without_being_kept_is_evicted_for_another_reason");
    let s = Scoped::start(&[]);
    let len = common::sized(16 * MIB, 4 * MIB);
    let f = TestFile::cold("dontcache", len);
    let mut block = vec![0u8; MIB];
    let (d, read) = s.agent.during(|| {
        (0..len / MIB)
            .try_for_each(|n| sys::preadv2_flags(&f.file, &mut block, (n * MIB) as i64, RWF_DONTCACHE).map(drop))
    });
    if let Err(e) = read {
        let name = "what_is_read_without_being_kept_is_evicted_for_another_reason";
        return common::skipped(name, &format!("this kernel or file system has no RWF_DONTCACHE: {e}"));
    }
    let pages = pages(len);
    assert_eq!((d.evictions_of("other", pages), d.evictions("fadvise")), (pages, 0.0), "{}", d.moved());
    assert_eq!(f.resident(), 0);
}

/// Who writes to drop_caches evicts. It takes the whole machine's page cache: in emulated machines alone.
#[test]
fn dropped_caches_are_evicted_for_another_reason_by_who_asks() {
    const NAME: &str = "dropped_caches_are_evicted_for_another_reason_by_who_asks";
    need_bpf!("dropped_caches_are_evicted_for_another_reason_by_who_asks");
    if common::sized(true, false) && std::env::var_os("TEST_DROP_CACHES").is_none() {
        return common::skipped(NAME, "it empties the machine's page cache: set TEST_DROP_CACHES");
    }
    let s = Scoped::start(&[]);
    let f = TestFile::new("dropped", 4 * MIB);
    let (d, ()) = s.agent.during(|| fs::write("/proc/sys/vm/drop_caches", "1").unwrap());
    let pages = pages(4 * MIB);
    assert!(d.evictions_of("other", pages) >= pages, "{}", d.moved());
    assert_eq!(d.evictions("fadvise"), 0.0, "{}", d.moved());
    assert_eq!(f.resident(), 0);
    // Another's pages too; and asked for by somebody outside of the scope, nothing.
    let f = TestFile::new("dropped", 4 * MIB);
    s.cgroup.leave();
    let (d, ()) = s.agent.during(|| fs::write("/proc/sys/vm/drop_caches", "1").unwrap());
    s.cgroup.enter();
    assert_eq!(f.resident(), 0);
    assert_eq!((d.evictions("other"), d.evictions("fadvise")), (0.0, 0.0), "{}", d.moved());
}

/// Memory is no page cache, although its pages come or go by the same events: neither counts.
#[test]
fn memory_counts_nothing() {
    need_bpf!("memory_counts_nothing");
    let s = Scoped::start(&[]);
    // What kswapd evicts has no owner.
    let counted = |d: &Delta| -> f64 {
        let added: f64 = ["read", "write", "fault", "prefetch", "other"].iter().map(|c| d.adds(c)).sum();
        added + d.evictions("fadvise") + d.evictions("other")
    };
    let path = PathBuf::from(format!("/dev/shm/ebpf-sidecar-test-{}", std::process::id()));
    let (d, written) = s.agent.during(|| fs::write(&path, vec![1u8; MIB]).and_then(|()| fs::remove_file(&path)));
    match written {
        Ok(()) => assert_eq!(counted(&d), 0.0, "tmpfs: {}", d.moved()),
        Err(_) => common::skipped("memory_counts_nothing", "tmpfs: needs /dev/shm"),
    }
    // Huge pages of 2 MiB, as a database's shared memory has them.
    let pool = "/proc/sys/vm/nr_hugepages";
    let Ok(old) = fs::read_to_string(pool) else {
        return common::skipped("memory_counts_nothing", "hugetlbfs: not in this kernel");
    };
    let had: usize = old.trim().parse().unwrap();
    let restore = crate::reclaim::Restore(pool, old);
    let wanted = common::sized(8, 2);
    let got = fs::write(pool, (had + wanted).to_string()).and_then(|()| fs::read_to_string(pool));
    if got.is_ok_and(|n| n.trim().parse::<usize>().unwrap() == had + wanted) {
        let (d, touched) = s.agent.during(|| sys::touch_huge_pages(wanted * 2 * MIB));
        if touched {
            assert_eq!(counted(&d), 0.0, "hugetlbfs: {}", d.moved());
        }
    } else {
        common::skipped("memory_counts_nothing", "hugetlbfs: no memory in one piece");
    }
    drop(restore);
}
