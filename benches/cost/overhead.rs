//! What the agent costs those it watches: nanoseconds of a system call without and with it, taken in turns in
//! one run, so that the machine's moods meet both alike.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::common::{self, Agent, Cgroup, MIB, Random, TestFile};
use crate::{Table, other_agents, sys};

/// Turns of all the settings.
const ROUNDS: usize = 8;
/// Batches of each operation in each turn.
const BATCHES: usize = 25;
const PAGE: usize = 4096;

/// The files that are read and written.
struct Files {
    warm: TestFile,
    cold: TestFile,
    /// A descriptor of `cold` without readahead.
    cold_random: File,
    sequential: File,
    random: Random,
    buffer: Vec<u8>,
}

struct Operation {
    name: &'static str,
    /// Most that the minimum may be, as a multiple of the one without the agent.
    target: Option<f64>,
    batches: usize,
    /// Calls in a batch.
    calls: usize,
    prepare: fn(&mut Files),
    /// One batch.
    run: fn(&mut Files, usize),
}

fn nothing(_: &mut Files) {}

static OPERATIONS: &[Operation] = &[
    Operation {
        name: "cached 4 KiB pread",
        target: Some(1.25),
        batches: BATCHES,
        calls: 2000,
        prepare: nothing,
        run: |f, n| preads(f, n, PAGE),
    },
    Operation {
        name: "cached 64 KiB pread",
        target: None,
        batches: BATCHES,
        calls: 200,
        prepare: nothing,
        run: |f, n| preads(f, n, 16 * PAGE),
    },
    Operation {
        name: "cached 4 KiB read, in sequence",
        target: None,
        batches: BATCHES,
        calls: 2000,
        prepare: |f| f.sequential.rewind().unwrap(),
        run: |f, n| (0..n).for_each(|_| f.sequential.read_exact(&mut f.buffer[..PAGE]).unwrap()),
    },
    Operation {
        name: "cold 4 KiB pread, random",
        target: None,
        batches: 2,
        calls: 1000,
        prepare: |f| f.cold.drop_cache(),
        run: |f, n| {
            for i in 0..n {
                // Each page of the first 1021 once, far from its neighbours.
                f.cold_random.read_exact_at(&mut f.buffer[..PAGE], (i * 389 % 1021 * PAGE) as u64).unwrap();
            }
        },
    },
    Operation {
        name: "4 KiB pwrite to cached pages",
        target: None,
        batches: BATCHES,
        calls: 1000,
        prepare: nothing,
        run: |f, n| {
            for _ in 0..n {
                let at = (f.random.below(256) * PAGE) as u64;
                f.warm.file.write_all_at(&f.buffer[..PAGE], at).unwrap();
            }
        },
    },
    Operation {
        name: "getppid",
        target: None,
        batches: BATCHES,
        calls: 10_000,
        prepare: nothing,
        run: |_, n| {
            for _ in 0..n {
                black_box(sys::getppid());
            }
        },
    },
    Operation {
        name: "fadvise",
        target: None,
        batches: BATCHES,
        calls: 5000,
        prepare: nothing,
        run: |f, n| {
            for _ in 0..n {
                common::sys::fadvise(f.warm.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            }
        },
    },
];

fn preads(f: &mut Files, calls: usize, block: usize) {
    for _ in 0..calls {
        let at = (f.random.below(f.buffer.len() / block) * block) as u64;
        f.warm.file.read_exact_at(&mut f.buffer[..block], at).unwrap();
    }
}

/// One way of being watched; the first is not at all.
struct Setting {
    name: String,
    agent: Option<(PathBuf, Vec<(&'static str, String)>)>,
    /// Of each operation: nanoseconds per call of each batch.
    batches: Vec<Vec<f64>>,
}

impl Setting {
    fn new(name: &str, agent: Option<(&Path, &[(&'static str, &str)])>) -> Self {
        let own = |(binary, settings): (&Path, &[(&'static str, &str)])| {
            (binary.to_owned(), settings.iter().map(|(k, v)| (*k, (*v).to_owned())).collect())
        };
        Self { name: name.to_owned(), agent: agent.map(own), batches: vec![Vec::new(); OPERATIONS.len()] }
    }

    fn agent(&self) -> Option<Agent> {
        let (binary, settings) = self.agent.as_ref()?;
        let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
        Some(Agent::start_with(common::command_of(binary), &settings))
    }

    fn measure(&mut self, files: &mut Files) {
        for (operation, batches) in OPERATIONS.iter().zip(&mut self.batches) {
            for _ in 0..operation.batches {
                (operation.prepare)(files);
                let begin = Instant::now();
                (operation.run)(files, operation.calls);
                batches.push(begin.elapsed().as_nanos() as f64 / operation.calls as f64);
            }
        }
    }
}

pub fn rows(table: &mut Table) {
    let elsewhere = Cgroup::new();
    let cgroup = elsewhere.path.to_str().unwrap();
    let binary = common::binary();
    let baselines = std::env::var_os("BENCH_BASELINE").unwrap_or_default();
    let mut settings = vec![
        Setting::new("", None),
        Setting::new("agent", Some((&binary, &[]))),
        Setting::new("scope: another cgroup", Some((&binary, &[("COLLECTOR_SCOPE_CGROUP", cgroup)]))),
        Setting::new("scope: another comm", Some((&binary, &[("COLLECTOR_SCOPE_COMM", "nobody")]))),
    ];
    for path in std::env::split_paths(&baselines).filter(|p| p.is_file()) {
        settings.push(Setting::new(&path.to_string_lossy(), Some((&path, &[]))));
    }
    let warm = TestFile::new("warm", MIB);
    let cold = TestFile::new("cold", 4 * MIB);
    let cold_random = cold.reopen();
    common::sys::fadvise(cold_random.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
    let long = TestFile::new("sequential", 2000 * PAGE);
    let mut files =
        Files { sequential: long.reopen(), warm, cold, cold_random, random: Random(1), buffer: vec![1; MIB] };
    common::read_all(&files.warm.file, MIB);

    let mut disturbed = 0;
    for _ in 0..ROUNDS {
        for setting in &mut settings {
            let before = other_agents();
            let agent = setting.agent();
            // On one CPU, and only while measuring: the agents shall run where they like.
            std::thread::scope(|s| {
                s.spawn(|| {
                    let _ = sys::pin(0);
                    setting.measure(&mut files);
                });
            });
            disturbed += usize::from(before || other_agents());
            drop(agent);
        }
    }

    if disturbed > 0 {
        let turns = ROUNDS * settings.len();
        table.row(
            "another agent ran on this machine",
            format!("in {disturbed} of {turns} turns: take the minima"),
            None,
        );
    }
    for (i, operation) in OPERATIONS.iter().enumerate() {
        let (bare, watched) = settings.split_first_mut().unwrap();
        let (bare_min, bare_median) = min_median(&mut bare.batches[i]);
        for setting in watched {
            let (min, median) = min_median(&mut setting.batches[i]);
            let ratio = min / bare_min;
            table.row(
                format!("{}: {}", operation.name, setting.name),
                format!(
                    "{bare_min:.0} -> {min:.0} ns, {ratio:.2} x; median {bare_median:.0} -> {median:.0} ns, {:.2} x",
                    median / bare_median
                ),
                operation.target.filter(|_| setting.name == "agent").map(|t| (format!("<= {t} x"), ratio <= t)),
            );
        }
    }
}

fn min_median(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2])
}
