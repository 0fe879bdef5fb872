//! What happened to each file's pages (bpf/files.h), and to groups of files.
//!
//! A file is known by device, inode and generation, and called as the kernel calls it. What has no room, and what happened
//! to files since forgotten, stays in the sums: nothing is lost.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::counters::Counters;
use super::halves::Halves;
use super::probes::{CACHE_EVICT, CACHE_FILL, READ_LATENCY};
use super::stat::View;
use crate::config::groups::{Group, Groups, MAX_COMPONENTS};
use crate::ebpf::abi::{FILE_SLOTS, FileName, FileRow as Row, FileSlot, Plain, TOLD_SLOTS};
use crate::ebpf::object::{Error, Map, Object, Ring, Shared};
use crate::metrics::files::{Counts, FileGroup, FileKind, FileRow, Files as Known};

/// Files told apart.
pub const MAX_FILES: usize = 20_000;
/// Those that an output can show.
pub const MAX_TOP: usize = 100;
/// Groups told apart.
pub const MAX_GROUPS: usize = 256;

/// Maps that are there for files alone: without them, the programs do not count files.
pub const MAPS: [&str; 7] = ["file_slots", "files_a", "files_b", "files", "file_names", "files_told", "file_path"];

/// Whether the kernel can: without BTF nobody knows where the name of a file lies, and before 5.8 there is no ring buffer.
pub fn what_lacks(has_btf: bool, release: (u32, u32)) -> Option<&'static str> {
    match (has_btf, release < (5, 8)) {
        (false, _) => Some("that needs the kernel's BTF"),
        (_, true) => Some("that needs Linux 5.8"),
        _ => None,
    }
}

/// Which file: its inode's number, and device << 32 | generation.
type Key = (u64, u64);

/// What a file is called, and is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Name {
    key: Key,
    mode: u32,
    rdev: u32,
    /// Whether its first component is in the root.
    whole: bool,
    /// Its components, the last one first, with a NUL behind each.
    path: Box<[u8]>,
}

impl Name {
    /// One as the programs send it.
    fn read(record: &[u8]) -> Option<Self> {
        let head = FileName::read(record)?;
        let path = record.get(size_of::<FileName>()..)?;
        let path = path.get(..usize::try_from(head.len).ok()?)?;
        Some(Self {
            key: (head.ino, head.id),
            mode: head.mode,
            rdev: head.rdev,
            whole: head.whole == 1,
            path: path.into(),
        })
    }

    fn components(&self) -> Vec<&[u8]> {
        let mut all: Vec<&[u8]> = self.path.split(|byte| *byte == 0).collect();
        all.pop(); // behind the last NUL
        all.truncate(MAX_COMPONENTS);
        all
    }

    /// As text: what is no UTF-8 is replaced, as is a slash inside of a name, which no sound one has.
    fn text(&self) -> String {
        let names = self.components();
        let mut text = String::new();
        for (i, name) in names.iter().rev().enumerate() {
            if i > 0 || self.whole {
                text.push('/');
            }
            text += &String::from_utf8_lossy(name).replace('/', "\u{fffd}");
        }
        text
    }

    fn kind(&self) -> FileKind {
        match self.mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFBLK => FileKind::BlockDevice,
            libc::S_IFDIR => FileKind::Directory,
            _ => FileKind::Other,
        }
    }
}

/// What the kernel told of an interval.
#[derive(Debug, Default)]
pub struct Interval {
    rows: Vec<Row>,
    names: Vec<Name>,
}

/// The kernel's maps of files.
pub struct Maps {
    slots: Shared<FileSlot>,
    /// Tells the programs which half of the slots is in use.
    half: Map,
    in_use: usize,
    halves: Halves,
    names: Ring,
    told: Map,
}

impl Maps {
    /// Those of the object.
    pub fn new(object: &Object) -> Result<Self, Error> {
        Ok(Self {
            slots: object.map("file_slots")?.shared(2 * FILE_SLOTS)?,
            half: object.map(".data.file_half")?,
            in_use: 0,
            halves: Halves::new(object, "files", ["files_a", "files_b"])?,
            names: object.map("file_names")?.ring()?,
            told: object.map("files_told")?,
        })
    }

    /// Has the programs write to the other halves.
    pub fn swap(&mut self) -> Result<(), Error> {
        let other = FILE_SLOTS - self.in_use;
        self.half.update(&0u32.to_ne_bytes(), (other as u64).bytes())?;
        self.in_use = other;
        // It waits for those that still write to the former half, of the slots as well.
        self.halves.swap()
    }

    /// What happened until the last swap, since the last call.
    pub fn take(&mut self) -> Result<Interval, Error> {
        let mut rows = Vec::new();
        if self.halves.drain(|_: u64, row: Row| rows.push(row))? {
            let idle = FILE_SLOTS - self.in_use;
            let taken = (idle..idle + FILE_SLOTS).filter_map(|place| self.slots.take(place));
            // Of two files that wanted one, neither may have it.
            rows.extend(taken.map(|slot| slot.row).filter(|row| row.id != 0));
        }
        let mut names = Vec::new();
        self.names.read(|record| names.extend(Name::read(record)))?;
        Ok(Interval { rows, names })
    }

    /// Has the programs tell the name of a file once more, with its next row.
    pub fn ask_again(&self, keys: &[Key]) -> Result<(), Error> {
        for (ino, id) in keys {
            // As in bpf/files.h.
            let number = (ino ^ (id << 32)).wrapping_add((id >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let slot = number as u32 & (TOLD_SLOTS as u32 - 1);
            self.told.update(&slot.to_ne_bytes(), 0u64.bytes())?;
        }
        Ok(())
    }
}

struct File {
    counts: Counts,
    /// What happens before it comes is in no group.
    name: Option<Name>,
    group: Option<usize>,
    /// Number of the collection in which something last happened to it.
    last: u64,
}

/// The files.
pub struct Files {
    patterns: Groups,
    files: HashMap<Key, File>,
    /// What happened to files that have been forgotten.
    forgotten: Counts,
    groups: Vec<(Group, Counts)>,
    places: HashMap<Group, usize>,
    /// What happened to files that are in no group.
    other: Counts,
    /// Names whose rows have not come yet.
    early: HashMap<Key, Name>,
    collections: u64,
    limit: usize,
}

impl Files {
    /// None, in groups by these patterns.
    pub fn new(patterns: Groups) -> Self {
        Self {
            patterns,
            files: HashMap::new(),
            forgotten: Counts::default(),
            groups: Vec::new(),
            places: HashMap::new(),
            other: Counts::default(),
            early: HashMap::new(),
            collections: 0,
            limit: MAX_FILES,
        }
    }

    /// Adds what happened in an interval. Returns files whose names did not come.
    pub fn absorb(&mut self, interval: Interval) -> Vec<Key> {
        self.collections += 1;
        let mut names = std::mem::take(&mut self.early);
        names.extend(interval.names.into_iter().map(|name| (name.key, name)));
        let mut nameless = Vec::new();
        self.make_room(interval.rows.len());
        for row in interval.rows {
            let key = (row.ino, row.id);
            let new = Counts { fills: row.fills, evictions: row.evictions, waits: row.waits, wait_ns: row.wait_ns };
            let name = names.remove(&key);
            let file = match self.files.entry(key) {
                Entry::Occupied(e) => e.into_mut(),
                Entry::Vacant(e) => e.insert(File { counts: Counts::default(), name: None, group: None, last: 0 }),
            };
            file.last = self.collections;
            // A file that has just been deleted has no name any more.
            let known = |name: &Name| file.name.as_ref().is_some_and(|now| now == name || name.path.is_empty());
            if let Some(name) = name.filter(|name| !known(name)) {
                file.group = group_of(&self.patterns, &mut self.places, &mut self.groups, &name);
                file.name = Some(name);
            }
            file.counts += new;
            if file.name.is_none() {
                nameless.push(key);
            }
            match file.group.and_then(|place| self.groups.get_mut(place)) {
                Some((_, sum)) => *sum += new,
                None => self.other += new,
            }
        }
        // Those of the next interval's rows; what comes later than that is asked for again.
        self.early = names;
        nameless
    }

    /// Forgets those to which nothing has happened for longest, if there are to be so many more.
    fn make_room(&mut self, more: usize) {
        let Some(excess) = (self.files.len() + more).checked_sub(self.limit).filter(|n| *n > 0) else { return };
        // Some more at once, so that not each collection looks at all.
        let excess = (excess + self.limit / 16).min(self.files.len());
        let mut by_age: Vec<(u64, Key)> = self.files.iter().map(|(key, file)| (file.last, *key)).collect();
        if excess < by_age.len() {
            by_age.select_nth_unstable(excess);
        }
        for (_, key) in by_age.into_iter().take(excess) {
            let Some(file) = self.files.remove(&key) else { continue };
            self.forgotten += file.counts;
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What is known of them, with what the kernel had no room for.
    pub(super) fn known(&self, view: &View) -> Known {
        let overflow = overflow(view.counters);
        let mut order: Vec<(&Key, &File)> = self.files.iter().collect();
        let by = |(key, file): &(&Key, &File)| {
            std::cmp::Reverse((file.counts.filled(), file.counts.wait_ns, file.counts.evicted(), **key))
        };
        if order.len() > MAX_TOP {
            order.select_nth_unstable_by_key(MAX_TOP, by);
            order.truncate(MAX_TOP);
        }
        order.sort_unstable_by_key(by);
        let has = |probe| view.mode(probe).is_some();
        Known {
            known: self.files.len(),
            total: self.files.values().fold(self.forgotten + overflow, |sum, file| sum + file.counts),
            top: order.into_iter().map(|(key, file)| row(*key, file)).collect(),
            groups: self
                .groups
                .iter()
                .map(|(group, counts)| FileGroup {
                    preset: group.preset,
                    labels: group.labels.clone(),
                    counts: *counts,
                })
                .collect(),
            other: self.other + overflow,
            has_fills: has(CACHE_FILL),
            has_evictions: has(CACHE_EVICT),
            has_waits: has(READ_LATENCY),
        }
    }
}

/// The group of a file of this name, which is made if there is room for one.
fn group_of(
    patterns: &Groups,
    places: &mut HashMap<Group, usize>,
    groups: &mut Vec<(Group, Counts)>,
    name: &Name,
) -> Option<usize> {
    let group = patterns.of(&name.components())?;
    if let Some(place) = places.get(&group) {
        return Some(*place);
    }
    if groups.len() == MAX_GROUPS {
        return None;
    }
    groups.push((group.clone(), Counts::default()));
    places.insert(group, groups.len() - 1);
    Some(groups.len() - 1)
}

/// What found no room in the kernel.
fn overflow(counters: &Counters) -> Counts {
    Counts {
        fills: std::array::from_fn(|i| counters.nth("no_file_fills", i)),
        evictions: std::array::from_fn(|i| counters.nth("no_file_evictions", i)),
        waits: counters.sum("no_file_waits"),
        wait_ns: counters.sum("no_file_wait_ns"),
    }
}

/// As kernels write a device's numbers (include/linux/kdev_t.h).
fn device(number: u32) -> (u32, u32) {
    (number >> 20, number & 0xf_ffff)
}

fn row((inode, id): Key, file: &File) -> FileRow {
    let name = file.name.as_ref();
    let kind = name.map(Name::kind).unwrap_or_default();
    let of_disk = name.filter(|_| kind == FileKind::BlockDevice).map(|name| name.rdev);
    FileRow {
        device: device(of_disk.unwrap_or((id >> 32) as u32)),
        inode,
        generation: id as u32,
        kind,
        path: name.map(Name::text).unwrap_or_default(),
        group: file.group,
        counts: file.counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the programs send it.
    fn record(ino: u64, mode: u32, whole: bool, components: &[&[u8]]) -> Vec<u8> {
        let path: Vec<u8> = components.iter().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
        let head = FileName { ino, id: 7, mode, rdev: 8 << 20 | 1, whole: u32::from(whole), len: path.len() as u32 };
        [head.bytes(), &path].concat()
    }

    fn name(ino: u64, components: &[&[u8]]) -> Name {
        Name::read(&record(ino, libc::S_IFREG | 0o644, true, components)).unwrap()
    }

    fn row(ino: u64, pages: u64) -> Row {
        Row { ino, id: 7, fills: [pages, 0, 0, 0, 0], waits: 1, ..Default::default() }
    }

    fn files() -> Files {
        Files::new(Groups::new(&["{table}/*.idx".into()], "none").unwrap())
    }

    fn known(files: &Files) -> Known {
        let counters = Counters::default();
        files.known(&View { counters: &counters, probes: &[], hits: 0, stalled: 0 })
    }

    /// Pages of each group and of none, and of all files.
    fn pages(files: &Files) -> (Vec<u64>, u64, u64) {
        let known = known(files);
        (known.groups.iter().map(|g| g.counts.filled()).collect(), known.other.filled(), known.total.filled())
    }

    #[test]
    fn names_of_any_bytes_are_text() {
        let text = |components: &[&[u8]]| name(1, components).text();
        assert_eq!(text(&[b"c", b"b", b"a"]), "/a/b/c");
        assert_eq!(text(&[b"\xff\n\"", b"a/b"]), "/a\u{fffd}b/\u{fffd}\n\"");
        assert_eq!(text(&[]), "");
        assert_eq!(text(&[&b"x"[..]; 12]).matches('x').count(), MAX_COMPONENTS);
        let partial = Name::read(&record(1, libc::S_IFDIR, false, &[b"b", b"a"])).unwrap();
        assert_eq!((partial.text(), partial.kind()), ("a/b".into(), FileKind::Directory));
        // Cut off, or longer than it is.
        let whole = record(1, 0, true, &[b"abc"]);
        for len in 0..whole.len() {
            assert_eq!(Name::read(&whole[..len]), None, "{len}");
        }
        assert_eq!(Name::read(&[&whole[..], b"more"].concat()), Name::read(&whole));
    }

    #[test]
    fn groups_begin_with_the_names_of_their_files() {
        let mut files = files();
        let nameless = files.absorb(Interval { rows: vec![row(1, 10), row(2, 5)], names: vec![] });
        assert_eq!(nameless, [(1, 7), (2, 7)]);
        assert_eq!(pages(&files), (vec![], 15, 15));
        // One name comes with a row, one before it.
        let names = vec![name(1, &[b"a.idx", b"t"]), name(2, &[b"a.log", b"t"]), name(3, &[b"b.idx", b"t"])];
        assert!(files.absorb(Interval { rows: vec![row(1, 1)], names }).is_empty());
        assert!(files.absorb(Interval { rows: vec![row(2, 1), row(3, 1)], names: vec![] }).is_empty());
        assert_eq!(pages(&files), (vec![2], 16, 18));
        // Another name: what happened stays where it was.
        let names = vec![name(1, &[b"a.idx", b"u"])];
        files.absorb(Interval { rows: vec![row(1, 1)], names });
        assert_eq!(pages(&files), (vec![2, 1], 16, 19));
        // And none any more.
        files.absorb(Interval { rows: vec![row(1, 1)], names: vec![name(1, &[])] });
        assert_eq!(pages(&files), (vec![2, 2], 16, 20));
        let known = known(&files);
        assert_eq!(known.groups[1].labels, [("table".to_owned(), "u".to_owned())]);
        assert_eq!((known.top[0].path.as_str(), known.top[0].group), ("/u/a.idx", Some(1)));
    }

    #[test]
    fn files_are_bounded_and_nothing_is_lost() {
        let mut files = files();
        files.limit = 100;
        let mut all = 0;
        for n in 0..30u64 {
            let rows: Vec<_> = (n * 50..n * 50 + 60).map(|ino| row(ino, 2)).collect();
            all += 2 * rows.len() as u64;
            // A third of them never has a name.
            let names = rows.iter().filter(|r| !r.ino.is_multiple_of(3)).map(|r| name(r.ino, &[b"a.idx", b"t"]));
            let names = names.collect();
            files.absorb(Interval { rows, names });
            assert!(files.len() <= 110, "{}", files.len());
            let (groups, other, total) = pages(&files);
            assert_eq!((groups.iter().sum::<u64>() + other, total), (all, all));
        }
        assert!(known(&files).top.len() <= MAX_TOP);
        // All of them go.
        files.limit = 1;
        files.absorb(Interval { rows: vec![], names: vec![] });
        files.make_room(1000);
        assert!(files.is_empty());
        let (groups, other, total) = pages(&files);
        assert_eq!((groups.iter().sum::<u64>() + other, total), (all, all));
    }

    #[test]
    fn groups_are_bounded() {
        let mut files = files();
        let rows: Vec<_> = (0..300).map(|ino| row(ino, 1)).collect();
        let names = (0..300).map(|ino| name(ino, &[b"a.idx", ino.to_string().as_bytes()])).collect();
        files.absorb(Interval { rows, names });
        let (groups, other, total) = pages(&files);
        assert_eq!((groups.len(), other, total), (MAX_GROUPS, 300 - MAX_GROUPS as u64, 300));
    }

    #[test]
    fn what_lacks_is_told() {
        assert_eq!(what_lacks(true, (5, 8)), None);
        assert_eq!(what_lacks(true, (5, 7)), Some("that needs Linux 5.8"));
        assert_eq!(what_lacks(false, (6, 12)), Some("that needs the kernel's BTF"));
        assert_eq!(device(8 << 20 | 17), (8, 17));
    }
}
