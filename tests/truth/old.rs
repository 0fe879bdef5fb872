//! Rules of kernels before 5.10, of which there is none here: this one's answers are replaced by theirs.

use std::os::fd::AsRawFd;

use ebpf_sidecar::ebpf::os;

use crate::common::sys::{self, Call, page, pages};
use crate::common::{self, Agent, Cgroup, MIB, TestFile, alone, read_all, text};

/// What bpf() refuses on Linux 4.18, which knows BTF but hardly anything that came with it; names with a dot are refused
/// from 4.15 to 5.1.
fn as_linux_4_18(call: &Call) -> Option<i32> {
    const MAP_CREATE: u64 = 0;
    const PROG_LOAD: u64 = 5;
    const TASK_FD_QUERY: u64 = 20;
    const SK_REUSEPORT: u8 = 21;
    if call.number != libc::SYS_bpf {
        return None;
    }
    let attributes = call.memory(call.args[1], call.args[2]);
    let word = |at: usize| attributes.get(at).copied().unwrap_or(0);
    // Of these nothing but libbpf's map can be in a map of maps, and its name has a dot.
    let takes_dots = ((5, 15)..(6, 3)).contains(&os::kernel_version());
    // Whether a name has a dot, and whether something is set behind what is known.
    let refused = |name: usize, known: usize| {
        let has_dot = (name..name + 16).any(|at| word(at) == b'.');
        let dot = (has_dot && !takes_dots).then_some(libc::EINVAL);
        let more = (known..attributes.len()).any(|at| word(at) != 0).then_some(libc::E2BIG);
        more.or(dot)
    };
    match call.args[0] {
        MAP_CREATE => refused(28, 60),
        PROG_LOAD => refused(48, 72).or((word(0) > SK_REUSEPORT).then_some(libc::EINVAL)),
        newer if newer > TASK_FD_QUERY => Some(libc::EINVAL),
        _ => None,
    }
}

#[test]
fn it_counts_where_bpf_is_that_of_4_18() {
    need_bpf!("it_counts_where_bpf_is_that_of_4_18");
    let _alone = alone();
    let cgroup = Cgroup::new();
    let mut command = common::command();
    if !sys::judge(&mut command, as_linux_4_18) {
        return common::skipped("it_counts_where_bpf_is_that_of_4_18", "needs seccomp's notifications");
    }
    let scope = text(&cgroup.path);
    // In whatever way there is without BTF, which fentry is not.
    let settings = [
        ("COLLECTOR_INTERVAL", "100ms"),
        ("COLLECTOR_SCOPE_CGROUP", scope),
        ("COLLECTOR_EBPF_BTF", "off"),
        ("COLLECTOR_EBPF_ATTACH", "auto"),
    ];
    let agent = Agent::start_with(command, &settings);
    cgroup.enter();
    let f = TestFile::cold("old", MIB);
    let (d, _) = agent.during(|| {
        read_all(&f.file, 16 * page());
        for _ in 0..100 {
            sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
        }
    });
    cgroup.leave();
    assert_eq!(
        (d.attempts(pages(MIB)), d.misses_of(pages(MIB))),
        (pages(MIB), pages(MIB)),
        "{}{}",
        d.moved(),
        agent.log()
    );
    assert_eq!(d.of("ebpf_fadvise_calls_total"), 100.0, "{}{}", d.moved(), agent.log());
}

/// Before 4.15 a tracepoint has room for one program. Here that of another is at the one by which the agent finds out,
/// where it has no BTF, how page frames are described.
#[test]
fn a_tracepoint_that_another_holds_is_named_and_gone_without() {
    const TEST: &str = "a_tracepoint_that_another_holds_is_named_and_gone_without";
    need_bpf!("a_tracepoint_that_another_holds_is_named_and_gone_without");
    let _alone = alone();
    os::mount_tracefs_privately().unwrap();
    let held = os::tracepoint_id("filemap", "mm_filemap_delete_from_page_cache").unwrap();
    let mut command = common::command();
    let other_is_there = move |call: &Call| {
        let attributes = (call.number == libc::SYS_perf_event_open).then(|| call.memory(call.args[0], 16))?;
        let of_tracepoint = attributes[..4] == 2u32.to_ne_bytes() && attributes[8..] == held.to_ne_bytes();
        of_tracepoint.then_some(libc::EEXIST)
    };
    if !sys::judge(&mut command, other_is_there) {
        return common::skipped(TEST, "needs seccomp's notifications");
    }
    let agent = Agent::start_with(command, &[("COLLECTOR_EBPF_BTF", "off")]);
    let health: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
    assert_eq!(health["status"], "degraded", "{health}");
    for probe in health["modules"][0]["probes"].as_array().unwrap() {
        let of_pages = ["cache_fill", "cache_evict"].contains(&probe["name"].as_str().unwrap());
        let said = probe["failures"].to_string().contains("another tracer's program is there");
        assert_eq!(of_pages, said, "{probe}");
        assert!(!of_pages || probe["attached"] == false, "{probe}");
    }
}
