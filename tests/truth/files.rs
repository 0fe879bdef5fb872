//! What is told of single files: as much of each as happened to it, by its right name, and of all together what the
//! counters say.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::sys::{self, Mapping, page};
use crate::common::{self, Agent, MIB, Scoped, TestFile, read_all};

/// An agent of the test's own: it has seen no other files.
const OWN: &[(&str, &str)] = &[ON, ("COLLECTOR_HISTORY", "10ms")];
const ON: (&str, &str) = ("COLLECTOR_FILES_ENABLED", "true");

const FILLS: [&str; 5] = ["read", "write", "fault", "prefetch", "other"];

/// Whether files are told apart here; else why the test does not run.
fn tells_files(s: &Scoped, test: &str) -> bool {
    s.agent.settled();
    let told = s.agent.stats().get("files").is_some();
    let why = s.agent.log().lines().find_map(|l| Some(l.split_once("files are not told apart: ")?.1.to_owned()));
    assert_eq!(told, why.is_none(), "{why:?}");
    if let Some(why) = why {
        common::skipped(test, &why);
    }
    told
}

/// The row of a file.
fn row_of(stats: &Value, inode: u64) -> Value {
    let top = stats["files"]["top"].as_array().unwrap();
    let of: Vec<_> = top.iter().filter(|row| row["inode"] == inode).collect();
    assert_eq!(of.len(), 1, "inode {inode}: {top:#?}");
    of[0].clone()
}

fn inode(f: &File) -> u64 {
    f.metadata().unwrap().ino()
}

fn number(of: &Value) -> u64 {
    of.as_u64().unwrap_or_else(|| panic!("{of}"))
}

/// The sum over these objects of what stands there.
fn sum(of: &Value, rest: &Value, key: &str, cause: Option<&str>) -> u64 {
    let value = |counts: &Value| match cause {
        Some(cause) => number(&counts[key][cause]),
        None => number(&counts[key]),
    };
    of.as_array().unwrap().iter().map(value).sum::<u64>() + value(rest)
}

/// Nothing is lost: the files and what is no file's are what the counters have, and so are groups and what is in none.
fn check_sums(agent: &Agent) -> Value {
    agent.settled();
    let stats = agent.stats();
    let (files, cache) = (&stats["files"], &stats["cache"]);
    for (each, rest) in [("top", "rest"), ("groups", "other")] {
        let told = |key: &str, cause: &str| sum(&files[each], &files[rest], key, Some(cause));
        for cause in FILLS {
            assert_eq!(told("pages_added_by_cause", cause), number(&cache["pages_added_by_cause"][cause]), "{stats:#}");
        }
        // Reclaim is also kswapd's, which goes on between looks at the two.
        for cause in ["fadvise", "other"] {
            let all = number(&cache["pages_evicted_by_cause"][cause]);
            assert_eq!(told("pages_evicted_by_cause", cause), all, "{stats:#}");
        }
        // How often a read waits, the disk decides: what is asked is that each wait is some file's.
        if let Some(waits) = cache.get("read_wait_seconds") {
            assert_eq!(sum(&files[each], &files[rest], "waits", None), number(&waits["count"]), "{stats:#}");
        }
    }
    stats
}

/// Pages that should be so many: as many, or no fewer than the kernel tells of as missed, a folio each at most.
#[track_caller]
fn check_pages(agent: &Agent, probe: &str, got: u64, want: u64) {
    let m = agent.metrics();
    let missed = m.0.get(&format!("ebpf_sidecar_events_missed_total{{probe=\"{probe}\"}}")).map_or(0.0, |n| *n);
    assert!((got..=got + missed as u64 * 512).contains(&want), "{got} pages instead of {want}, {missed} missed");
}

/// What of a file's row has grown since an earlier one.
fn grown(before: &Value, after: &Value, key: &str, cause: &str) -> u64 {
    number(&after[key][cause]) - before[key][cause].as_u64().unwrap_or(0)
}

#[test]
fn what_happens_to_each_file() {
    need_bpf!("what_happens_to_each_file");
    let s = Scoped::start(OWN);
    if !tells_files(&s, "what_happens_to_each_file") {
        return;
    }
    let len = common::sized(8 * MIB, 2 * MIB);
    let pages = (len / page()) as u64;
    let evicted = |row: &Value, cause: &str| number(&row["pages_evicted_by_cause"][cause]);
    let filled = |row: &Value, cause: &str| number(&row["pages_added_by_cause"][cause]);

    // Written by this process and by another, and read again by each.
    let mine = TestFile::new("mine", len);
    let others = TestFile::new("others", 0);
    let copy = |from: &Path, to: Stdio| {
        // What reads until nothing comes fills a page behind the end, before 5.12.
        let (from, blocks) = (format!("if={}", common::text(from)), format!("count={}", len >> 16));
        let dd = ["bs=64k", &blocks, &from];
        let done = Command::new("dd").args(dd).stdout(to).stderr(Stdio::null()).status().unwrap();
        assert!(done.success());
    };
    copy(&mine.path, OpenOptions::new().append(true).open(&others.path).unwrap().into());
    let stats = check_sums(&s.agent);
    for f in [&mine, &others] {
        let row = row_of(&stats, inode(&f.file));
        check_pages(&s.agent, "cache_fill", filled(&row, "write"), pages);
        assert_eq!(filled(&row, "read"), 0, "{row:#}");
        assert!(row["path"].as_str().unwrap().ends_with(f.path.file_name().unwrap().to_str().unwrap()), "{row:#}");
        assert_eq!(row["type"], "file");
        f.drop_cache();
    }
    read_all(&mine.reopen(), 16 * page());
    copy(&others.path, Stdio::null());
    let stats = check_sums(&s.agent);
    for f in [&mine, &others] {
        let row = row_of(&stats, inode(&f.file));
        check_pages(&s.agent, "cache_fill", filled(&row, "read"), pages);
        // Some may have been taken back before.
        check_pages(&s.agent, "cache_evict", evicted(&row, "fadvise") + evicted(&row, "reclaim"), pages);
    }

    // Prefetched; faulted in; cut; and gone.
    let before = stats;
    let since = |stats: &Value, f: &TestFile, key: &str, cause: &str| {
        grown(&row_of(&before, inode(&f.file)), &row_of(stats, inode(&f.file)), key, cause)
    };
    mine.drop_cache();
    others.drop_cache();
    sys::fadvise(mine.file.as_raw_fd(), 0, MIB as i64, libc::POSIX_FADV_WILLNEED).unwrap();
    let map = Mapping::of(&others.file);
    map.advise(libc::MADV_RANDOM);
    for i in 0..pages as usize / 16 {
        map.touch(i * 16);
    }
    let (prefetched, faulted) = (mine.filled() as u64, others.filled() as u64);
    assert!(prefetched > 0 && faulted > 0);
    let stats = check_sums(&s.agent);
    check_pages(&s.agent, "cache_fill", since(&stats, &mine, "pages_added_by_cause", "prefetch"), prefetched);
    check_pages(&s.agent, "cache_fill", since(&stats, &others, "pages_added_by_cause", "fault"), faulted);
    drop(map);
    let there = others.resident() as u64;
    others.file.set_len(0).unwrap();
    let (number, left) = (inode(&mine.file), mine.resident() as u64);
    drop(mine);
    let stats = check_sums(&s.agent);
    check_pages(&s.agent, "cache_evict", since(&stats, &others, "pages_evicted_by_cause", "other"), there);
    let row = row_of(&stats, number);
    let gone = grown(&row_of(&before, number), &row, "pages_evicted_by_cause", "other");
    check_pages(&s.agent, "cache_evict", gone, left);
    assert!(row["path"].as_str().unwrap().contains("mine"), "{row:#}");
}

/// A folder of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = common::disk().join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file of one page in it.
    fn file(&self, name: impl AsRef<Path>) -> File {
        let path = self.0.join(name);
        let f = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        f.write_all_at(&vec![1; page()], 0).unwrap();
        f
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_are_called_as_they_are() {
    need_bpf!("files_are_called_as_they_are");
    let s = Scoped::start(OWN);
    if !tells_files(&s, "files_are_called_as_they_are") {
        return;
    }
    let folder = Folder::new("names");
    let own = folder.0.file_name().unwrap().to_str().unwrap().to_owned();
    let path = |f: &File| row_of(&check_sums(&s.agent), inode(f))["path"].as_str().unwrap().to_owned();

    // Any bytes but a slash and NUL.
    let long = "l".repeat(255);
    let mut kept = Vec::new();
    for (name, shown) in [
        (OsString::from("with spaces"), "with spaces"),
        (
            OsString::from("\"quoted\" \\ and\nbroken\u{7f}\t\r\u{1b}[31m"),
            "\"quoted\" \\ and\nbroken\u{7f}\t\r\u{1b}[31m",
        ),
        (OsString::from_vec(b"\xff\xfe-\xc3".to_vec()), "\u{fffd}\u{fffd}-\u{fffd}"),
        (OsString::from("ünï"), "ünï"),
        (OsString::from(&long), long.as_str()),
    ] {
        let f = folder.file(&name);
        assert!(path(&f).ends_with(&format!("/{own}/{shown}")), "{name:?}: {:?}", path(&f));
        kept.push(f);
    }

    // The last eight components of more.
    let deep: PathBuf = (1..=10).map(|n| format!("d{n}")).collect();
    fs::create_dir_all(folder.0.join(&deep)).unwrap();
    let f = folder.file(deep.join("file"));
    assert_eq!(path(&f), "d4/d5/d6/d7/d8/d9/d10/file");

    // Another name; two names; none any more.
    let f = folder.file("before");
    assert!(path(&f).ends_with("/before"));
    fs::rename(folder.0.join("before"), folder.0.join("after")).unwrap();
    f.write_all_at(&vec![1; page()], page() as u64).unwrap();
    assert!(path(&f).ends_with("/after"), "{}", path(&f));
    fs::hard_link(folder.0.join("after"), folder.0.join("linked")).unwrap();
    File::open(folder.0.join("linked")).unwrap();
    f.write_all_at(&vec![1; page()], 2 * page() as u64).unwrap();
    let either = path(&f);
    assert!(either.ends_with("/after") || either.ends_with("/linked"), "{either}");
    let f = folder.file("removed");
    fs::remove_file(folder.0.join("removed")).unwrap();
    f.write_all_at(&vec![1; page()], page() as u64).unwrap();
    assert!(path(&f).ends_with("/removed"), "{}", path(&f));
    assert_eq!(row_of(&s.agent.stats(), inode(&f))["pages_added"], 2);
}

#[test]
fn groups_of_files() {
    need_bpf!("groups_of_files");
    let pattern = "grouped-{}/{table}/{:digits}.{kind=idx|log}";
    let s = Scoped::start(&[ON, ("COLLECTOR_FILES_GROUPS", pattern), ("COLLECTOR_FILES_PRESET", "none")]);
    if !tells_files(&s, "groups_of_files") {
        return;
    }
    let folder = Folder::new("grouped");
    for table in ["a", "b"] {
        fs::create_dir(folder.0.join(table)).unwrap();
    }
    let files = ["a/1.idx", "a/2.idx", "a/1.log", "b/7.idx", "b/x.idx"].map(|name| folder.file(name));
    let stats = check_sums(&s.agent);
    let groups = stats["files"]["groups"].as_array().unwrap();
    let of = |table: &str, kind: &str| {
        let found = groups
            .iter()
            .find(|g| g["labels"] == serde_json::json!({ "preset": "custom", "table": table, "kind": kind }));
        number(&found.unwrap_or_else(|| panic!("{groups:#?}"))["pages_added_by_cause"]["write"])
    };
    assert_eq!((of("a", "idx"), of("a", "log"), of("b", "idx"), groups.len()), (2, 1, 1, 3), "{groups:#?}");
    let metrics = s.agent.metrics();
    let series = |labels: &str| {
        metrics.get(&format!("ebpf_file_group_page_cache_adds_total{{preset={labels},cause=\"write\"}}"))
    };
    let ours = [r#""custom",table="a",kind="idx""#, r#""custom",table="b",kind="idx""#].map(series);
    assert_eq!(
        (ours, series("\"other\"")),
        ([2.0, 1.0], number(&stats["files"]["other"]["pages_added_by_cause"]["write"]) as f64)
    );
    assert_eq!(row_of(&stats, inode(&files[1]))["group"]["table"], "a");
    assert_eq!(row_of(&stats, inode(&files[4])).get("group"), None);
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// The pages are the lower file's, and so is the name; another mount of a file system changes nothing.
#[test]
fn files_on_overlayfs_and_bind_mounts() {
    const NAME: &str = "files_on_overlayfs_and_bind_mounts";
    need_bpf!("files_on_overlayfs_and_bind_mounts");
    let s = Scoped::start(OWN);
    if !tells_files(&s, NAME) {
        return;
    }
    let folder = Folder::new("mounts");
    let [lower, upper, work, merged, bound] = ["lower", "upper", "work", "merged", "bound"].map(|d| folder.0.join(d));
    [&lower, &upper, &work, &merged, &bound].into_iter().for_each(|d| fs::create_dir(d).unwrap());
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mount = |args: &[&OsStr], at: &Path| Command::new("mount").args(args).arg(at).output().unwrap();
    let overlay = ["-t", "overlay", "overlay", "-o", &options].map(OsStr::new);
    // Not removed meanwhile: the next file would have the same inode number.
    for (name, args, at) in
        [("a", &overlay[..], &merged), ("b", &[OsStr::new("--bind"), lower.as_os_str()][..], &bound)]
    {
        let f = folder.file(format!("lower/{name}"));
        f.sync_all().unwrap();
        sys::fadvise(f.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED).unwrap();
        let done = mount(args, at);
        if !done.status.success() {
            common::skipped(NAME, &format!("{args:?}: {}", OsStr::from_bytes(&done.stderr).display()));
        } else {
            let mounted = Mounted(at);
            // Not up to its end and beyond, where Linux 5.10 takes a page for what is not there.
            let read = File::open(at.join(name)).unwrap().read_at(&mut vec![0; page()], 0);
            assert_eq!(read.unwrap(), page());
            let stats = check_sums(&s.agent);
            drop(mounted);
            let row = row_of(&stats, inode(&f));
            assert!(row["path"].as_str().unwrap().ends_with(&format!("/lower/{name}")), "{row:#}");
            assert_eq!(row["pages_added_by_cause"]["read"], 1, "{row:#}");
        }
    }
}

/// More than there is room for: in slots (2048) and rows (8192) of an interval, and in the agent (20,000).
#[test]
fn however_many_files_the_sums_are_right() {
    need_bpf!("however_many_files_the_sums_are_right");
    for (interval, files) in common::sized(&[("5s", 12_000), ("100ms", 21_000)][..], &[("2s", 2_500)]) {
        let s = Scoped::start(&[ON, ("COLLECTOR_INTERVAL", interval), ("COLLECTOR_HISTORY", "10ms")]);
        if !tells_files(&s, "however_many_files_the_sums_are_right") {
            return;
        }
        let folder = Folder::new("many");
        (0..*files).for_each(|n| drop(folder.file(n.to_string())));
        let stats = check_sums(&s.agent);
        let (known, all) = (number(&stats["files"]["known"]), number(&stats["cache"]["pages_added_by_cause"]["write"]));
        check_pages(&s.agent, "cache_fill", all.min(*files), *files);
        assert!(known <= 20_000, "{known} files");
        drop(folder);
        check_sums(&s.agent);
    }
}

#[test]
fn files_are_not_told_apart_where_that_is_off() {
    need_bpf!("files_are_not_told_apart_where_that_is_off");
    let s = Scoped::start(&[]);
    s.agent.settled();
    assert_eq!(s.agent.stats().get("files"), None);
    let f = TestFile::new("untold", MIB);
    let (d, ()) = s.agent.during(|| f.drop_cache());
    assert_eq!(d.evictions("fadvise"), (MIB / page()) as f64, "{}", d.moved());
}
