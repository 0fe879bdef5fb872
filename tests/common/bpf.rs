//! What BPF objects of the agent are in the kernel, and who holds them. Other agents may run meanwhile: an
//! object counts as left behind if it has a name of ours and no process holds it.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::ebpf::layout;
use ebpf_sidecar::monitor::iomonitor;

use super::sys::{self, Kind};

/// An object in the kernel. Links have no name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: Kind,
    pub id: u32,
}

pub type Objects = BTreeSet<Object>;

/// Every program and map with a name of the agent's, and every link.
pub fn existing() -> Objects {
    let all = [Kind::Program, Kind::Map, Kind::Link].map(|kind| {
        sys::bpf_ids(kind)
            .into_iter()
            .filter(move |id| kind == Kind::Link || sys::bpf_name(kind, *id).is_some_and(ours))
            .map(move |id| Object { kind, id })
    });
    all.into_iter().flatten().collect()
}

/// Whether the agent has an object of this name, which the kernel has cut at 15 bytes.
fn ours(name: String) -> bool {
    let symbol = [b"\0", name.as_bytes()].concat();
    let objects = [iomonitor::elf(), iomonitor::elf_no_btf(), layout::elf()];
    !name.is_empty() && objects.iter().any(|elf| elf.windows(symbol.len()).any(|w| w == symbol))
}

/// What the process holds: through its descriptors, and the maps of its programs.
pub fn held_by(pid: u32) -> Objects {
    let mut held = Objects::new();
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return held };
    for fd in fds.flatten() {
        for line in fs::read_to_string(fd.path()).unwrap_or_default().lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let kind = match key {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            held.extend(value.trim().parse().ok().map(|id| Object { kind, id }));
        }
        // fdinfo says nothing of the program behind a perf event.
        let is_event = fs::read_link(format!("/proc/{pid}/fd/{}", fd.file_name().to_string_lossy()))
            .is_ok_and(|to| to.to_string_lossy().contains("perf_event"));
        if is_event && let Ok(fd) = fd.file_name().to_string_lossy().parse() {
            held.extend(sys::bpf_program_of(pid as i32, fd).map(|id| Object { kind: Kind::Program, id }));
        }
    }
    let programs: Vec<u32> = held.iter().filter(|o| o.kind == Kind::Program).map(|o| o.id).collect();
    held.extend(programs.into_iter().flat_map(sys::bpf_maps_of).map(|id| Object { kind: Kind::Map, id }));
    held
}

fn held_by_anyone() -> Objects {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_string_lossy().parse().ok());
    pids.flat_map(held_by).collect()
}

/// Sees that nothing came since `before` that nobody holds. The kernel frees some time after the last holder
/// has gone.
#[track_caller]
pub fn assert_nothing_left_since(before: &Objects) {
    assert_vanish(|| {
        // A link has no name, but would keep a program that has.
        let new: Objects = existing().difference(before).filter(|o| o.kind != Kind::Link).cloned().collect();
        if new.is_empty() { new } else { new.difference(&held_by_anyone()).cloned().collect() }
    });
}

/// Sees that none of these is in the kernel any more.
#[track_caller]
pub fn assert_gone(objects: &Objects) {
    assert_vanish(|| existing().intersection(objects).cloned().collect());
}

#[track_caller]
fn assert_vanish(left: impl Fn() -> Objects) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left in the kernel: {left:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
