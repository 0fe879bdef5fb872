//! What attaching makes in the kernel beside the agent's own descriptors, and what becomes of it.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::thread;

use ebpf_sidecar::ebpf::os;

use crate::common::sys::{self, page};
use crate::common::{self, Agent, Scoped, TestFile, alone};

/// Names of agents' events in tracefs.
fn events() -> BTreeSet<String> {
    os::FunctionEvent::names().unwrap().into_iter().collect()
}

/// An agent in a pid namespace of its own, where its id is 1, as in most containers.
fn start_in_pid_namespace() -> Agent {
    let started = thread::spawn(|| {
        sys::new_pid_namespace();
        Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_EBPF_ATTACH", "kprobe")])
    });
    started.join().unwrap()
}

/// The definitions of kretprobes lie in tracefs, which all agents of a host share, and which outlives them.
#[test]
fn agents_of_the_same_id_and_those_killed_do_not_get_in_the_way() {
    let name = "agents_of_the_same_id_and_those_killed_do_not_get_in_the_way";
    need_bpf!("agents_of_the_same_id_and_those_killed_do_not_get_in_the_way");
    let _alone = alone();
    os::mount_tracefs_privately().unwrap();
    if os::FunctionEvent::names().is_err() {
        return common::skipped(name, "this kernel has no kprobes");
    }
    let others = events();
    let counts = |agent: &Agent| {
        let f = TestFile::new("probed", page());
        let (d, _) = agent.during(|| {
            (0..10).for_each(|_| sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap());
        });
        assert_eq!(d.after.get("ebpf_sidecar_probe_attached{probe=\"fadvise\",mode=\"kprobe\"}"), 1.0);
        assert!(d.of("ebpf_fadvise_calls_total") >= 10.0, "{}", d.moved());
    };
    let living = start_in_pid_namespace();
    let of_living = &events() - &others;
    let mut killed = start_in_pid_namespace();
    counts(&living);
    counts(&killed);
    let of_killed = &(&events() - &others) - &of_living;
    // Where perf knows no kprobes (before 4.17), a function's entry has one beside that of its return.
    assert!(!of_living.is_empty() && of_living.len() == of_killed.len(), "{of_living:?} {of_killed:?}");

    sys::kill(killed.child.id(), libc::SIGKILL);
    killed.child.wait().unwrap();
    assert!(events().is_superset(&of_killed), "nobody was there to remove them");
    let next = start_in_pid_namespace();
    counts(&next);
    counts(&living);
    let now = events();
    assert!(now.is_superset(&of_living) && now.is_disjoint(&of_killed), "{now:?}");
    for mut agent in [living, next] {
        sys::kill(agent.child.id(), libc::SIGTERM);
        assert!(common::wait_for(&mut agent.child, common::patience()).is_some_and(|s| s.success()));
    }
    assert!(events().is_subset(&others), "{:?}", events());
}

/// A zero where nothing is counted would be a lie.
#[test]
fn what_the_kernel_does_not_count_as_missed_is_absent() {
    need_bpf!("what_the_kernel_does_not_count_as_missed_is_absent");
    let metrics = Scoped::start(&[]).agent.metrics();
    common::tell_attached(&metrics);
    let counts = os::kernel_version() >= (6, 7);
    let mut attached = 0;
    for (name, _) in metrics.0.iter().filter(|(_, value)| **value == 1.0) {
        let Some(labels) = name.strip_prefix("ebpf_sidecar_probe_attached{probe=\"") else { continue };
        let (probe, mode) = labels.trim_end_matches("\"}").split_once("\",mode=\"").unwrap();
        let told = metrics.0.contains_key(&format!("ebpf_sidecar_events_missed_total{{probe=\"{probe}\"}}"));
        assert_eq!(told, counts || ["fexit", "raw_tracepoint"].contains(&mode), "{probe} by {mode}");
        attached += 1;
    }
    assert!(attached >= 6, "{attached} probes");
}
