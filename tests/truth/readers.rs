//! One population: whoever reads, and however, what counts as an attempt has its fills counted as misses, and nothing
//! else has. Hits are attempts − misses: all of a warm read's, none of a cold one's.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use crate::common::sys::{self, Aio, Mapping, URING_ASYNC, URING_DEPTH, Uring, page, pages};
use crate::common::{self, Agent, MIB, Scoped, TestFile, alone, assert_near, read_all, text};

fn bytes() -> usize {
    common::sized(8 * MIB, 2 * MIB)
}

fn file_pages() -> f64 {
    pages(bytes())
}

/// Pages of the file system's own that come along: directories, lists of blocks.
const METADATA: f64 = 16.0;

/// Has a file read as a whole, cold and then warm, once for its pages.
fn check(s: &Scoped, name: &str, read: &mut dyn FnMut(&File)) {
    let f = TestFile::cold("reader", bytes());
    for (state, missed) in [("cold", file_pages()), ("warm", 0.0)] {
        let file = f.reopen();
        let _warm = (state == "warm").then(|| Mapping::of(&file).locked());
        let (d, ()) = s.agent.during(|| read(&file));
        let what = format!("{name}, {state}");
        assert_near(&format!("attempts of {what}"), d.attempts(file_pages()), file_pages(), 3.0, &d);
        assert_near(&format!("misses of {what}"), d.misses_of(missed), missed, 3.0, &d);
        assert!(d.adds("other") <= METADATA, "{what}: {}", d.moved());
    }
}

#[test]
fn every_kind_of_reader_has_its_misses() {
    need_bpf!("every_kind_of_reader_has_its_misses");
    let s = Scoped::start(&[]);
    let (page, whole) = (page(), bytes());
    let mut buf = vec![0u8; 16 * page];
    let each = |step: usize| (0..whole).step_by(step).map(|at| at as u64);

    check(&s, "read", &mut |mut f| while f.read(&mut buf[..page]).unwrap() > 0 {});
    check(&s, "pread", &mut |f| assert_eq!(read_all(f, page), whole as u64));
    check(&s, "readv", &mut |f| while sys::readv(f, &mut buf) > 0 {});
    check(&s, "preadv", &mut |f| {
        let (a, b) = buf.split_at_mut(8 * page);
        each(16 * page).for_each(|at| assert_eq!(sys::preadv2_buffers(f, a, b, at as i64), 16 * page));
    });
    check(&s, "sendfile", &mut |f| {
        let (mut near, far) = UnixStream::pair().unwrap();
        let sink = thread::spawn(move || while near.read(&mut vec![0u8; MIB]).unwrap() > 0 {});
        each(8 * page).for_each(|at| assert_eq!(sys::sendfile(far.as_raw_fd(), f, at as i64, 8 * page), 8 * page));
        drop(far);
        sink.join().unwrap();
    });
    check(&s, "splice", &mut |f| {
        let (mut out, into) = std::io::pipe().unwrap();
        for at in each(8 * page) {
            assert_eq!(sys::splice(f, at as i64, into.as_raw_fd(), 8 * page), 8 * page);
            out.read_exact(&mut buf[..8 * page]).unwrap();
        }
    });
    match Aio::new() {
        Some(aio) => check(&s, "AIO", &mut |f| {
            each(page).for_each(|at| assert_eq!(aio.read(f, &mut buf[..page], at), page));
        }),
        None => common::skipped("every_kind_of_reader_has_its_misses", "this kernel has no AIO"),
    }
    match Uring::new() {
        Some(mut ring) => {
            for (name, flags) in [("io_uring", 0), ("io_uring by workers", URING_ASYNC)] {
                check(&s, name, &mut |f| {
                    each(URING_DEPTH * page).for_each(|at| ring.read(flags, f, &mut buf, page, at));
                });
            }
        }
        None => common::skipped("every_kind_of_reader_has_its_misses", "this kernel has no io_uring"),
    }
}

/// As XFS and btrfs do.
const CLONES: &str = "a copy shares the blocks of its source on this file system, and no page is copied";

#[test]
fn what_is_copied_is_read_and_written() {
    need_bpf!("what_is_copied_is_read_and_written");
    let s = Scoped::start(&[]);
    let target = TestFile::new("copy-target", 0);
    let copies = |name: &str, copy: &mut dyn FnMut(&File)| {
        let mut with_target = |f: &File| {
            target.file.set_len(0).unwrap();
            copy(f);
        };
        check(&s, name, &mut with_target);
        target.file.set_len(0).unwrap();
        let f = TestFile::new("copied-warm", bytes());
        let _warm = Mapping::of(&f.file).locked();
        let (d, ()) = s.agent.during(|| with_target(&f.reopen()));
        assert_near(&format!("written by {name}"), d.adds_of("write", file_pages()), file_pages(), 1.0, &d);
    };
    let position = |mut f: &File| std::io::Seek::rewind(&mut f).unwrap();
    match sys::clone_file(&TestFile::new("cloned", page()).file, &target.file) {
        true => common::skipped("what_is_copied_is_read_and_written", CLONES),
        false => copies("copy_file_range", &mut |f| {
            position(&target.file);
            while sys::copy_file_range(f, &target.file, bytes()) > 0 {}
        }),
    }
    copies("sendfile to a file", &mut |f| {
        position(&target.file);
        let mut at = 0;
        while at < bytes() {
            at += sys::sendfile(target.file.as_raw_fd(), f, at as i64, bytes() - at);
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bit_programs() {
    use common::sys::compat::{self, Low};

    need_bpf!("calls_of_32_bit_programs");
    if !compat::is_there() {
        return common::skipped("calls_of_32_bit_programs", "this kernel runs none");
    }
    let s = Scoped::start(&[]);
    let (low, page) = (Low::new(), page() as u32);
    check(&s, "read in 32 bits", &mut |f| {
        let fd = f.as_raw_fd() as u32;
        while compat::call(compat::READ, [fd, low.address(), page, 0, 0, 0]) > 0 {}
    });
    check(&s, "pread64 in 32 bits", &mut |f| {
        let fd = f.as_raw_fd() as u32;
        for at in (0..bytes() as u32).step_by(page as usize) {
            assert_eq!(compat::call(compat::PREAD64, [fd, low.address(), page, at, 0, 0]), page as i32);
        }
    });

    let f = TestFile::new("advised-32", MIB);
    let fd = f.file.as_raw_fd() as u32;
    let (noreuse, dontneed) = (libc::POSIX_FADV_NOREUSE as u32, libc::POSIX_FADV_DONTNEED as u32);
    // The same advice in other places: the wrong register would tell another one.
    let (d, ()) = s.agent.during(|| {
        assert_eq!(compat::call(compat::FADVISE64, [fd, 0, 0, page, noreuse, 3]), 0);
        assert_eq!(compat::call(compat::FADVISE64_64, [fd, 0, 0, page, 0, noreuse]), 0);
        assert_eq!(compat::call(compat::FADVISE64_64, [9999, 0, 0, page, 0, noreuse]), -libc::EBADF);
    });
    // The tracepoint of one system call, the last of the ways, does not tell of them.
    let blind = d.after.0.contains_key("ebpf_sidecar_probe_attached{probe=\"fadvise\",mode=\"tracepoint\"}");
    if !blind && d.after.0.contains_key("ebpf_fadvise_calls_total") {
        let of = |name: &str| d.of(&format!("ebpf_fadvise_{name}")) as u64;
        let counted = (of("calls_total"), of("failed_total"), of("advice_total{advice=\"noreuse\"}"));
        assert_eq!(counted, (3, 1, 3), "{}", d.moved());
    }
    let other = TestFile::new("advised-64-32", MIB);
    let (d, ()) = s.agent.during(|| {
        assert_eq!(compat::call(compat::FADVISE64, [fd, 0, 0, 0, dontneed, noreuse]), 0);
        let fd = other.file.as_raw_fd() as u32;
        assert_eq!(compat::call(compat::FADVISE64_64, [fd, 0, 0, 0, 0, dontneed]), 0);
    });
    assert_near("evictions", d.evictions_of("fadvise", pages(2 * MIB)), pages(2 * MIB), 1.0, &d);
    assert_eq!(d.evictions("other"), 0.0, "{}", d.moved());
}

/// Of a program that is executed, the kernel reads the beginning; its own faults, too, are faults.
#[test]
fn a_cold_program_is_executed_by_faults() {
    need_bpf!("a_cold_program_is_executed_by_faults");
    let s = Scoped::start(&[]);
    let (shell, arguments) = match fs::exists("/bin/bash").unwrap() {
        true => ("/bin/bash", ["-c", ":"].as_slice()),
        false => ("/bin/busybox", &["true"][..]),
    };
    // busybox goes by its name.
    let path = common::disk().join("busybox");
    fs::copy(shell, &path).unwrap();
    // It cannot be executed while it is open for writing.
    let program = TestFile { file: File::open(&path).unwrap(), path: path.clone() };
    program.drop_cache();
    let run = || assert!(Command::new(&path).args(arguments).status().unwrap().success());
    let (d, ()) = s.agent.during(run);
    let filled = program.filled() as f64;
    println!(
        "{} pages, {filled} filled: {} read, {} by faults",
        program.file.metadata().unwrap().len() / page() as u64,
        d.misses(),
        d.adds("fault")
    );
    // Readahead for the first page takes four at least.
    assert!(d.misses() <= filled / 4.0, "{filled} filled;{}", d.moved());
    assert!(d.adds("fault") >= filled / 2.0, "{filled} filled;{}", d.moved());
    assert!(d.adds("other") <= METADATA, "{}", d.moved());
    let (d, ()) = s.agent.during(run);
    assert_eq!((d.misses(), d.adds("fault")), (0.0, 0.0), "warm;{}", d.moved());
}

#[test]
fn faults_inside_other_calls() {
    need_bpf!("faults_inside_other_calls");
    let s = Scoped::start(&[]);
    let f = TestFile::cold("faulted", MIB);
    let check = |name: &str, written: f64, work: &mut dyn FnMut(&Mapping)| {
        f.drop_cache();
        let map = Mapping::of(&f.file);
        map.advise(libc::MADV_RANDOM);
        let (d, ()) = s.agent.during(|| work(&map));
        assert_near(&format!("faults in {name}"), d.adds_of("fault", pages(MIB)), pages(MIB), 2.0, &d);
        assert_near(&format!("writes of {name}"), d.adds_of("write", written), written, 2.0, &d);
        assert!(d.misses() == 0.0 && d.adds("other") <= METADATA, "{name}: {}", d.moved());
    };
    check("sendto", 0.0, &mut |map| {
        let (mut near, far) = UnixStream::pair().unwrap();
        let sink = thread::spawn(move || near.read_to_end(&mut Vec::new()).unwrap());
        let mut at = 0;
        while at < MIB {
            at += sys::send(far.as_raw_fd(), &map.bytes()[at..MIB.min(at + 8 * page())]);
        }
        drop(far);
        assert_eq!(sink.join().unwrap(), MIB);
    });
    check("futex", 0.0, &mut |map| map.bytes().chunks(page()).for_each(sys::futex_wake));
    if let Some(mut ring) = Uring::new() {
        let to = TestFile::new("ring-written", 0);
        for flags in [0, URING_ASYNC] {
            to.file.set_len(0).unwrap();
            check("io_uring", pages(MIB), &mut |map| {
                for at in (0..MIB).step_by(16 * page()) {
                    ring.write(flags, &to.file, &map.bytes()[at..at + 16 * page()], page(), at as u64);
                }
            });
        }
    }
}

/// An overlay file system on the disk; unmounted and removed when dropped.
struct Overlay {
    base: PathBuf,
}

impl Overlay {
    /// `None` if this machine has none.
    fn mount(test: &str) -> Option<Self> {
        let base = common::disk().join(format!("overlay-{test}"));
        let _ = fs::remove_dir_all(&base);
        for d in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(base.join(d)).unwrap();
        }
        let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", text(&base));
        let mounted = Self { base };
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(mounted.merged("")).output().unwrap();
        if !mount.status.success() {
            common::skipped(test, String::from_utf8_lossy(&mount.stderr).trim());
            return None;
        }
        Some(mounted)
    }

    fn merged(&self, name: &str) -> PathBuf {
        self.base.join("merged").join(name)
    }

    /// Whether what is copied between its layers has its blocks shared instead.
    fn clones(&self) -> bool {
        let file = |layer: &str| File::create(self.base.join(layer).join("clone")).unwrap();
        let cloned = sys::clone_file(&file("lower"), &file("upper"));
        ["lower", "upper"].iter().for_each(|layer| fs::remove_file(self.base.join(layer).join("clone")).unwrap());
        cloned
    }

    /// Puts a file into its lower layer.
    fn lower(&self, name: &str) -> TestFile {
        let mut f = TestFile::cold(name, bytes());
        let path = self.base.join("lower").join(name);
        fs::rename(&f.path, &path).unwrap();
        f.path = path;
        f
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.merged("")).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// As in every container: both files are of the same overlay.
#[test]
fn copies_inside_an_overlay() {
    need_bpf!("copies_inside_an_overlay");
    let s = Scoped::start(&[]);
    let Some(overlay) = Overlay::mount("copies_inside_an_overlay") else { return };
    let lower = overlay.lower("source");
    let from = File::open(overlay.merged("source")).unwrap();
    type Copy = fn(&File, &File);
    let ways: [(&str, Copy); 2] = [
        ("copy_file_range", |from, to| {
            let mut from = from;
            std::io::Seek::rewind(&mut from).unwrap();
            while sys::copy_file_range(from, to, bytes()) > 0 {}
        }),
        ("sendfile", |from, to| {
            let mut at = 0;
            while at < bytes() {
                at += sys::sendfile(to.as_raw_fd(), from, at as i64, bytes() - at);
            }
        }),
    ];
    for (name, copy) in ways {
        if name == "copy_file_range" && overlay.clones() {
            common::skipped("copies_inside_an_overlay", CLONES);
            continue;
        }
        lower.drop_cache();
        for (state, missed) in [("cold", file_pages()), ("warm", 0.0)] {
            let to = File::create(overlay.merged("copy")).unwrap();
            let _warm = (state == "warm").then(|| Mapping::of(&lower.file).locked());
            let (d, ()) = s.agent.during(|| copy(&from, &to));
            let what = format!("{name}, {state}");
            assert_near(&format!("misses of {what}"), d.misses_of(missed), missed, 3.0, &d);
            assert_near(&format!("attempts of {what}"), d.attempts(file_pages()), file_pages(), 3.0, &d);
            assert_near(&format!("writes of {what}"), d.adds_of("write", file_pages()), file_pages(), 1.0, &d);
        }
    }
}

/// Opening a lower file for writing has the kernel copy it as a whole.
#[test]
fn copying_up_in_an_overlay() {
    need_bpf!("copying_up_in_an_overlay");
    let s = Scoped::start(&[]);
    let Some(overlay) = Overlay::mount("copying_up_in_an_overlay") else { return };
    if overlay.clones() {
        return common::skipped("copying_up_in_an_overlay", CLONES);
    }
    for (state, missed) in [("cold", file_pages()), ("warm", 0.0)] {
        let lower = overlay.lower(state);
        let _warm = (state == "warm").then(|| Mapping::of(&lower.file).locked());
        let open = || OpenOptions::new().read(true).write(true).open(overlay.merged(state)).unwrap();
        let (d, _) = s.agent.during(open);
        assert_near(&format!("misses, {state}"), d.misses_of(missed), missed, 3.0, &d);
        assert_near(&format!("attempts, {state}"), d.attempts(file_pages()), file_pages(), 3.0, &d);
        assert_near(&format!("writes, {state}"), d.adds_of("write", file_pages()), file_pages(), 1.0, &d);
        assert!(d.adds("other") <= METADATA, "{}", d.moved());
    }
}

/// A file system in a file: what its reader does not find there, a thread of the kernel reads from that file.
#[test]
fn a_loop_mount_is_read_by_a_thread_of_the_kernel() {
    need_bpf!("a_loop_mount_is_read_by_a_thread_of_the_kernel");
    let _alone = alone();
    let image = TestFile::new("loop-image", 0);
    image.file.set_len(4 * bytes() as u64 + 16 * MIB as u64).unwrap();
    // With smaller blocks a page of the image is read in pieces, of which each counts.
    let block = page().to_string();
    let made =
        Command::new("mkfs.ext4").args(["-q", "-F", "-b", &block, "-O", "^has_journal"]).arg(&image.path).output();
    if !made.is_ok_and(|o| o.status.success()) {
        return common::skipped("a_loop_mount_is_read_by_a_thread_of_the_kernel", "needs mkfs.ext4");
    }
    let at = Mounted(common::TempDir::new("loop"));
    let mount = Command::new("mount").args(["-o", "loop"]).arg(&image.path).arg(&at.0.path).output().unwrap();
    if !mount.status.success() {
        return common::skipped(
            "a_loop_mount_is_read_by_a_thread_of_the_kernel",
            String::from_utf8_lossy(&mount.stderr).trim(),
        );
    }
    let path = at.0.path.join("file");
    fs::write(&path, vec![1u8; bytes()]).unwrap();
    let file = File::open(&path).unwrap();
    let inner = TestFile { file, path };
    inner.drop_cache();
    image.drop_cache();
    // The thread is in no scope but the host's, where others may read meanwhile.
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms")]);
    let (d, _) = agent.during(|| read_all(&inner.file, 64 * 1024));
    let both = 2.0 * file_pages();
    assert!(d.misses_of(both) >= both * 0.97, "{}", d.moved());
    if d.knows_reads() && common::sized(false, true) {
        assert_near("attempts", d.attempts(both), both, 3.0, &d);
    }
    assert!(d.adds("other") < file_pages() / 2.0, "{}", d.moved());
}

struct Mounted(common::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0.path).stderr(Stdio::null()).status();
    }
}
