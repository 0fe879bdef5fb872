//! What happened to single files: too much for series.

use std::ops::{Add, AddAssign};
use std::time::Duration;

/// What happened to a file's pages, or those of several files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages that came, by cause.
    pub fills: [u64; 5],
    /// Pages that left, by cause.
    pub evictions: [u64; 3],
    /// Reads that waited.
    pub waits: u64,
    /// How long, together.
    pub wait_ns: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.fills.iter_mut().zip(more.fills).for_each(|(n, more)| *n += more);
        self.evictions.iter_mut().zip(more.evictions).for_each(|(n, more)| *n += more);
        self.waits += more.waits;
        self.wait_ns += more.wait_ns;
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, more: Self) -> Self {
        self += more;
        self
    }
}

impl Counts {
    /// What is left of it without a part of it.
    pub fn without(self, part: Self) -> Self {
        Self {
            fills: std::array::from_fn(|i| self.fills[i].saturating_sub(part.fills[i])),
            evictions: std::array::from_fn(|i| self.evictions[i].saturating_sub(part.evictions[i])),
            waits: self.waits.saturating_sub(part.waits),
            wait_ns: self.wait_ns.saturating_sub(part.wait_ns),
        }
    }

    /// How long reads waited, together.
    pub fn wait_seconds(&self) -> f64 {
        Duration::from_nanos(self.wait_ns).as_secs_f64()
    }

    /// All pages that came.
    pub fn filled(&self) -> u64 {
        self.fills.iter().sum()
    }

    /// All that left.
    pub fn evicted(&self) -> u64 {
        self.evictions.iter().sum()
    }
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileKind {
    /// A regular one.
    #[default]
    Regular,
    /// A disk: what file systems keep on it beside the contents of files.
    BlockDevice,
    /// A folder, on file systems that keep its pages with it.
    Directory,
    /// Anything else, or not known.
    Other,
}

impl FileKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::BlockDevice => "block device",
            Self::Directory => "directory",
            Self::Other => "other",
        }
    }
}

/// A file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileRow {
    /// Major and minor number of its file system's device, or if it is one, its own.
    pub device: (u32, u32),
    /// Its number there.
    pub inode: u64,
    /// Tells apart files that had this number one after the other.
    pub generation: u32,
    /// What it is.
    pub kind: FileKind,
    /// Its path in its file system, the last components; from the root if it begins with a slash. Empty if it is not known.
    pub path: String,
    /// Its place among [`Files::groups`], if it has one.
    pub group: Option<usize>,
    /// What happened to it since it is known.
    pub counts: Counts,
}

/// Files that a pattern takes, with the same labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileGroup {
    /// Whose pattern it is; empty: the configuration's.
    pub preset: &'static str,
    /// What the pattern's names stand for, in its order.
    pub labels: Vec<(String, String)>,
    /// What happened to its files.
    pub counts: Counts,
}

/// What is known of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// How many files are told apart.
    pub known: usize,
    /// All that happened: to those at the top and to all others.
    pub total: Counts,
    /// Those with the most pages filled, in this order; of the same number those that waited longest.
    pub top: Vec<FileRow>,
    /// All groups, in the order in which they were found.
    pub groups: Vec<FileGroup>,
    /// What happened to files without a group.
    pub other: Counts,
    /// Whether fills are counted.
    pub has_fills: bool,
    /// Whether evictions are.
    pub has_evictions: bool,
    /// Whether reads that wait are timed.
    pub has_waits: bool,
}

impl Files {
    /// The first `n` files of the top, and what happened to all others.
    pub fn first(&self, n: usize) -> (&[FileRow], Counts) {
        let top = &self.top[..self.top.len().min(n)];
        let shown = top.iter().fold(Counts::default(), |sum, file| sum + file.counts);
        (top, self.total.without(shown))
    }

    /// The group of a file.
    pub fn group_of(&self, file: &FileRow) -> Option<&FileGroup> {
        self.groups.get(file.group?)
    }
}
