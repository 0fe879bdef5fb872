//! What goes on, in words: the verdict on the last minutes, which `src/diagnosis/` reaches and every output shows.

use std::time::{Duration, SystemTime};

/// Something that is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Nothing of what follows that is more than information.
    AllIsWell,
    /// Data is read that was not in memory, and was not thrown out before.
    ColdData,
    /// fadvise drops pages; whether they are read again is not seen.
    PolicyEviction,
    /// It drops what is read again.
    PolicyEvictionHurts,
    /// It drops what nobody misses.
    PolicyEvictionHarmless,
    /// The host's memory is short.
    MemoryPressureHost,
    /// A cgroup is at its limit.
    MemoryPressureCgroup,
    /// More memory would serve more reads.
    CacheTooSmall,
    /// Readahead fills what nobody reads.
    ReadaheadInVain,
    /// Writers wait for what is written to reach the disk.
    WriteThrottling,
    /// Threads wait for fsync more than for all else.
    SyncBound,
    /// A merge pushes out what is read.
    CompactionHurts,
    /// A merge that does not.
    CompactionHarmless,
    /// Too little is seen to judge.
    Blind,
}

/// How sure a verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// The numbers fit, and others could too.
    Possible,
    /// What else would look the same is rare.
    Likely,
    /// It is counted itself.
    Certain,
}

/// A number behind a verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Number {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// A pattern that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Which.
    pub pattern: Pattern,
    /// Since when it has been seen.
    pub since: SystemTime,
    /// How sure that is.
    pub confidence: Confidence,
    /// One sentence.
    pub summary: String,
    /// The numbers behind it.
    pub numbers: Vec<Number>,
    /// Seconds that threads wait for it, per second; `None`: that is not seen.
    pub waited: Option<f64>,
    /// Bytes that are read again for it, per second; `None`: that is not seen.
    pub read_again: Option<f64>,
}

/// A pattern that could be there unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    /// Which.
    pub pattern: Pattern,
    /// What it takes to see it.
    pub needs: &'static str,
}

/// The verdict on the last minutes.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// When they ended.
    pub at: SystemTime,
    /// How long they were; zero: nothing can be said yet.
    pub window: Duration,
    /// What is there, the worst first. One at least, once something can be said.
    pub verdicts: Vec<Verdict>,
    /// What cannot be seen.
    pub unseen: Vec<Unseen>,
}

/// What is said of each pattern wherever it is shown.
struct About {
    pattern: Pattern,
    name: &'static str,
    title: &'static str,
    hurts: bool,
    advice: &'static str,
    see: &'static str,
}

const fn about(
    (pattern, name, title): (Pattern, &'static str, &'static str),
    hurts: bool,
    see: &'static str,
    advice: &'static str,
) -> About {
    About { pattern, name, title, hurts, advice, see }
}

/// All of them, the worst first.
static ABOUT: [About; PATTERNS.len()] = [
    about(
        (Pattern::MemoryPressureCgroup, PATTERNS[0], "memory pressure: the limit of a cgroup"),
        true,
        "memory-pressure",
        "Raise the memory limit of the container, or make the caches inside of the database smaller: the page cache gives the same memory to the same data.",
    ),
    about(
        (Pattern::MemoryPressureHost, PATTERNS[1], "memory pressure: the host"),
        true,
        "memory-pressure",
        "Give the host more memory, or let less run beside the database.",
    ),
    about(
        (Pattern::PolicyEvictionHurts, PATTERNS[2], "fadvise drops what is read again"),
        true,
        "policy-eviction",
        "No POSIX_FADV_DONTNEED on files that queries read; fadvise.process_stats of /api/v1/stats says who calls it.",
    ),
    about(
        (Pattern::CompactionHurts, PATTERNS[3], "a merge pushes out what is read"),
        true,
        "harmless-compaction",
        "Have the merge call POSIX_FADV_DONTNEED on its input and output files, or run it with less memory of its own.",
    ),
    about(
        (Pattern::CacheTooSmall, PATTERNS[4], "the cache is too small"),
        true,
        "memory-pressure",
        "More memory for the page cache: the numbers say how much serves how many of the reads.",
    ),
    about(
        (Pattern::ReadaheadInVain, PATTERNS[5], "readahead in vain"),
        true,
        "readahead-too-large",
        "A smaller read_ahead_kb of the device (/sys/block/…/queue/read_ahead_kb), or POSIX_FADV_RANDOM on files that are read at random.",
    ),
    about(
        (Pattern::WriteThrottling, PATTERNS[6], "writers are throttled"),
        true,
        "write-throttling",
        "The disk takes less than is written: spread the writes, give it a faster disk, or look at vm.dirty_bytes and the limits of the cgroup.",
    ),
    about(
        (Pattern::SyncBound, PATTERNS[7], "bound by fsync"),
        true,
        "sync-bound",
        "Fewer, larger commits (group commit), or a disk that acknowledges faster.",
    ),
    about(
        (Pattern::Blind, PATTERNS[8], "blind"),
        true,
        "before-trusting-any-of-it",
        "What is missing stands beside it; ebpf-sidecar check tells why probes are not attached.",
    ),
    about(
        (Pattern::ColdData, PATTERNS[9], "cold data is read"),
        false,
        "cold-data",
        "It passes by itself when the same data is read again; if it does not pass, look at what is read.",
    ),
    about(
        (Pattern::PolicyEviction, PATTERNS[10], "fadvise drops pages"),
        false,
        "policy-eviction",
        "Whether it hurts is not seen here: compare the misses with and without the calls to POSIX_FADV_DONTNEED.",
    ),
    about(
        (Pattern::PolicyEvictionHarmless, PATTERNS[11], "fadvise drops what nobody misses"),
        false,
        "policy-eviction",
        "Nothing.",
    ),
    about((Pattern::CompactionHarmless, PATTERNS[12], "a merge, harmless"), false, "harmless-compaction", "Nothing."),
    about((Pattern::AllIsWell, PATTERNS[13], "all is well"), false, "all-is-well", "Nothing."),
];

/// Names of the patterns, as in `ebpf_diagnosis_active{pattern}`; the worst first.
pub const PATTERNS: [&str; 14] = [
    "memory_pressure_cgroup",
    "memory_pressure_host",
    "policy_eviction_hurts",
    "compaction_hurts",
    "cache_too_small",
    "readahead_in_vain",
    "write_throttling",
    "sync_bound",
    "blind",
    "cold_data",
    "policy_eviction",
    "policy_eviction_harmless",
    "compaction_harmless",
    "all_is_well",
];

impl Pattern {
    /// All of them, the worst first.
    pub fn all() -> impl Iterator<Item = Pattern> {
        ABOUT.iter().map(|about| about.pattern)
    }

    fn about(self) -> &'static About {
        // Each has an entry: a test looks.
        ABOUT.iter().find(|about| about.pattern == self).unwrap_or(&ABOUT[ABOUT.len() - 1])
    }

    /// Its place among all, from the worst on.
    pub fn rank(self) -> usize {
        ABOUT.iter().position(|about| about.pattern == self).unwrap_or(ABOUT.len())
    }

    /// Its name in the outputs.
    pub fn name(self) -> &'static str {
        self.about().name
    }

    /// The same for people.
    pub fn title(self) -> &'static str {
        self.about().title
    }

    /// Whether something is to be done about it.
    pub fn hurts(self) -> bool {
        self.about().hurts
    }

    /// Whether all is well in spite of it.
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::AllIsWell | Self::PolicyEvictionHarmless | Self::CompactionHarmless)
    }

    /// What to do.
    pub fn advice(self) -> &'static str {
        self.about().advice
    }

    /// Where more is said of it.
    pub fn see(self) -> String {
        format!("docs/interpretation.md#{}", self.about().see)
    }
}

impl Confidence {
    /// Its name in the outputs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

impl Diagnosis {
    /// The whole in one line: the worst of it, and how much more there is.
    pub fn headline(&self) -> String {
        let Some(worst) = self.verdicts.first() else { return "Nothing can be said yet".into() };
        let others = self.verdicts.iter().skip(1).filter(|v| v.pattern.hurts()).count();
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let well =
            if worst.pattern.is_harmless() && worst.pattern != Pattern::AllIsWell { "All is well: " } else { "" };
        format!("{well}{}{more}", worst.summary)
    }

    /// Whether a pattern is there; `None`: that cannot be seen.
    pub fn active(&self, pattern: Pattern) -> Option<bool> {
        let there = self.verdicts.iter().any(|v| v.pattern == pattern);
        (there || self.unseen.iter().all(|u| u.pattern != pattern)).then_some(there)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_pattern_is_told_of_under_its_name_and_somewhere_in_the_docs() {
        let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/interpretation.md")).unwrap();
        let headings: Vec<String> = docs.lines().filter_map(|l| l.strip_prefix("## ")).map(anchor).collect();
        for (place, pattern) in Pattern::all().enumerate() {
            assert_eq!((pattern.name(), pattern.rank()), (PATTERNS[place], place));
            let see = pattern.see();
            assert!(headings.contains(&see.rsplit_once('#').unwrap().1.to_owned()), "{see}");
            assert!(pattern.advice().ends_with('.') && !(pattern.hurts() && pattern.is_harmless()));
        }
        assert_eq!(Pattern::ALL_DECLARED, Pattern::all().count());
    }

    fn anchor(heading: &str) -> String {
        heading.to_lowercase().replace(' ', "-")
    }

    impl Pattern {
        /// The last of the enum is the number of all before it.
        const ALL_DECLARED: usize = Self::Blind as usize + 1;
    }
}
