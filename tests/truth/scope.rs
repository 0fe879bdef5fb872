//! What belongs to a scope and what does not.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ebpf_sidecar::ebpf::object::Object;
use ebpf_sidecar::ebpf::os;
use ebpf_sidecar::monitor::iomonitor;
use ebpf_sidecar::monitor::scope::CgroupScope;

use crate::common::sys::{self, Mapping, page, pages};
use crate::common::{self, Agent, Cgroup, Delta, MIB, Scoped, TempDir, TestFile, alone, read_all, text};
use crate::processes::rows_of;

#[test]
fn host_wide_counts_are_never_too_small() {
    need_bpf!("host_wide_counts_are_never_too_small");
    let _alone = alone();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms")]);
    let f = TestFile::cold("host", 4 * MIB);
    agent.settled();
    let me = common::kernel_pid(&agent);
    let before = rows_of(&agent, me);
    let (d, _) = agent.during(|| {
        for _ in 0..500 {
            sys::fadvise(f.file.as_raw_fd(), 0, 4096, libc::POSIX_FADV_NOREUSE).unwrap();
        }
        read_all(&f.file, MIB);
    });
    let after = rows_of(&agent, me);
    let (calls, success) = (after.0 - before.0, after.1 - before.1);
    let read = pages(4 * MIB);
    // The rows of one process are exact.
    assert!(calls <= 500 && calls as f64 + d.missed("fadvise") >= 500.0, "{calls};{}", d.moved());
    assert_eq!(calls, success);
    assert!(d.of("ebpf_fadvise_calls_total") >= calls as f64);
    assert!(d.attempts(read) >= read && d.misses_of(read) >= read, "{}", d.moved());
}

/// A bit of everything that counts.
fn some_of_everything() {
    let f = TestFile::cold("everything", 8 * MIB);
    read_all(&f.file, 64 * 1024);
    f.drop_cache();
    let map = Mapping::of(&f.file);
    for page in 0..100 {
        map.touch(page * 16);
    }
    drop(map);
    f.drop_cache();
    sys::readahead(&f.file, 0, MIB);
}

/// Names of the counters that nothing outside the scope may move: kswapd has no owner.
fn scoped_counters(d: &Delta) -> Vec<(&String, f64)> {
    let owned = |name: &&String| {
        name.starts_with("ebpf_")
            && !name.starts_with("ebpf_sidecar")
            && !name.contains("kswapd")
            && !name.contains("reclaim")
            && !name.contains("percent")
    };
    d.after.0.keys().filter(owned).map(|n| (n, d.of(n))).collect()
}

#[test]
fn work_outside_the_scope_moves_nothing() {
    need_bpf!("work_outside_the_scope_moves_nothing");
    let s = Scoped::start(&[]);
    let (d, _) = s.agent.during(some_of_everything);
    for cause in ["read", "fault", "prefetch", "write"] {
        assert!(d.adds(cause) > 0.0, "inside, {cause} counts;{}", d.moved());
    }
    s.cgroup.leave();
    let (d, _) = s.agent.during(some_of_everything);
    let moved: Vec<_> = scoped_counters(&d).into_iter().filter(|(_, by)| *by != 0.0).collect();
    assert!(moved.is_empty(), "{moved:?}");

    let below = s.cgroup.child("below");
    below.enter();
    let (d, _) = s.agent.during(some_of_everything);
    assert!(d.attempts(2048.0) >= 2048.0, "a cgroup below the scope belongs to it;{}", d.moved());
}

#[test]
fn scope_of_a_process_name() {
    need_bpf!("scope_of_a_process_name");
    let _alone = alone();
    let f = TestFile::new("named", MIB);
    // The name of the process is that of its main thread, whatever this thread is called.
    let comm = format!("/proc/{}/comm", std::process::id());
    let own = fs::read_to_string(&comm).unwrap();
    // Around the eight bytes of a word, and the longest.
    for (name, longer) in [("db", "db-"), ("eight-by", "eight-byt"), ("fifteen-bytes-x", "fifteen-bytes-y")] {
        let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_COMM", name)]);
        let run = |name: &str| {
            f.drop_cache();
            // Most kernels before 6.0 leave the end of an earlier name behind the NUL of a shorter one.
            fs::write(&comm, "an-earlier-name").unwrap();
            fs::write(&comm, name).unwrap();
            let (d, _) = agent.during(|| {
                sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
                read_all(&f.file, page())
            });
            fs::write(&comm, &own).unwrap();
            d
        };
        let inside = run(name);
        assert_eq!(
            (inside.attempts(pages(MIB)), inside.misses_of(pages(MIB))),
            (pages(MIB), pages(MIB)),
            "{name}: {}",
            inside.moved()
        );
        let stats = agent.stats();
        let rows = stats["fadvise"]["process_stats"].as_array().unwrap();
        assert!(rows.iter().all(|r| r["comm"] == name) && rows.len() == 1, "{name}: {rows:?}");
        // The whole name must match, whichever of the two is longer.
        for other in [&name[..name.len() - 1], longer] {
            let outside = run(other);
            let moved: Vec<_> = scoped_counters(&outside).into_iter().filter(|(_, by)| *by != 0.0).collect();
            assert!(moved.is_empty(), "{other} for {name}: {moved:?}");
        }
    }
}

// ---- a cgroup that is made anew ----

/// What /health says of a scope that is not there; `None` if it is.
fn scope_trouble(agent: &Agent) -> Option<String> {
    let health: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
    let message = health["message"].as_str().unwrap();
    let said = message.contains("the scope's cgroup");
    assert!(!said || health["status"] == "degraded", "{health}");
    said.then(|| message.to_owned())
}

/// Reads what is not cached and drops it: as many misses and evictions as 4 MiB have pages.
fn work(f: &TestFile) {
    read_all(&f.file, 64 * 1024);
    f.drop_cache();
}

#[track_caller]
fn assert_counted(d: &Delta, times: f64) {
    let pages = times * pages(4 * MIB);
    assert_eq!((d.misses_of(pages), d.evictions_of("fadvise", pages)), (pages, pages), "{}", d.moved());
    assert_eq!(d.attempts(pages), pages, "{}", d.moved());
    assert_eq!(d.of("ebpf_fadvise_calls_total") + d.missed("fadvise"), times, "{}", d.moved());
}

#[test]
fn a_scope_that_is_made_anew_is_counted_on() {
    need_bpf!("a_scope_that_is_made_anew_is_counted_on");
    let _alone = alone();
    let outer = Cgroup::new();
    let slice = outer.path.join("db.slice");
    let path = slice.join("db.service");
    // It is not there when the agent starts, nor is what it lies in.
    let settings = [("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&path))];
    let agent = Agent::start(&settings);
    let f = TestFile::cold("anew", 4 * MIB);
    let start = agent.settled();
    let told = |what: &str| agent.log().matches(what).count();
    let mut counted = 0.0;
    for _ in 0..3 {
        // While it is gone it is said, once, and nothing is counted.
        agent.settled();
        let why = scope_trouble(&agent).expect("it is not there");
        assert!(why.contains(&format!("{}: it does not exist, only {} does", text(&path), text(&outer.path))), "{why}");
        let warnings = told("it does not exist");
        assert!(warnings > 0, "{}", agent.log());
        let (outside, ()) = agent.during(|| work(&f));
        assert_counted(&outside, 0.0);
        assert_eq!(told("it does not exist"), warnings, "{}", agent.log());

        let slice = Cgroup::at(slice.clone());
        let service = Cgroup::at(path.clone());
        agent.settled();
        assert_eq!(scope_trouble(&agent), None);
        service.enter();
        let (inside, ()) = agent.during(|| work(&f));
        assert_counted(&inside, 1.0);
        service.leave();
        drop(service);

        // Made anew before it is missed; the process is in a cgroup below it.
        for _ in 0..3 {
            let service = Cgroup::at(path.clone());
            let below = service.child("worker");
            agent.settled();
            below.enter();
            let (inside, ()) = agent.during(|| work(&f));
            assert_counted(&inside, 1.0);
        }
        counted += 4.0;
        drop(slice);
    }
    let all = Delta { before: start, after: agent.settled() };
    assert_counted(&all, counted);
    assert!(told("was made anew") >= 3, "{}", agent.log());
}

#[test]
fn a_scope_is_made_anew_under_load() {
    need_bpf!("a_scope_is_made_anew_under_load");
    let _alone = alone();
    let outer = Cgroup::new();
    let path = outer.path.join("db.service");
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&path))]);
    let f = TestFile::new("load", page());
    let (calls, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let now = || calls.load(Ordering::SeqCst) as f64;
    thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                calls.fetch_add(1, Ordering::SeqCst);
                sys::fadvise(f.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL).unwrap();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                let scope = Cgroup::at(path.clone());
                agent.settled();
                scope.enter();
                // Inside all the time: the calls between two moments lie between those of the two collections before
                // and after them.
                let first = now();
                let before = agent.settled();
                let begin = now();
                agent.settled();
                let end = now();
                let d = Delta { before, after: agent.settled() };
                let last = now();
                let got = d.of("ebpf_fadvise_calls_total") + d.missed("fadvise");
                assert!((end - begin..=last - first).contains(&got), "{got}, not {}..{}", end - begin, last - first);
                drop(scope);
                // Outside nothing counts, whether the agent has seen it or not.
                let d = Delta { before: agent.settled(), after: agent.settled() };
                assert_eq!(d.of("ebpf_fadvise_calls_total"), 0.0, "{}", d.moved());
            }
        }));
        stop.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
}

/// What is no cgroup any more; a FIFO, where opening it would wait for a writer; and another cgroup.
#[test]
fn a_scope_that_becomes_something_else_is_said() {
    need_bpf!("a_scope_that_becomes_something_else_is_said");
    let _alone = alone();
    let dir = TempDir::new("link");
    let path = dir.path.join("scope");
    // In a root of its own it would not find the link.
    let elsewhere = Agent::start(&[]);
    if !Path::new(&format!("/proc/{}/root{}", elsewhere.child.id(), text(&dir.path))).exists() {
        return common::skipped("a_scope_that_becomes_something_else_is_said", "the agent has another root");
    }
    drop(elsewhere);
    let (one, other) = (Cgroup::new(), Cgroup::new());
    symlink(&one.path, &path).unwrap();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&path))]);
    let f = TestFile::cold("else", 4 * MIB);
    let inside = |cgroup: &Cgroup| {
        cgroup.enter();
        let (d, ()) = agent.during(|| work(&f));
        cgroup.leave();
        d
    };
    assert_counted(&inside(&one), 1.0);
    let replace = |make: &dyn Fn(&Path)| {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        make(&path);
        agent.settled();
        scope_trouble(&agent)
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let cases: [(Make, &str); 4] = [
        (&|p| fs::write(p, "").unwrap(), "it is no directory"),
        (&sys::mkfifo, "it is no directory"),
        (&|p| fs::create_dir(p).unwrap(), "it is no cgroup v2"),
        (&|_| {}, "No such file or directory"),
    ];
    for (make, why) in cases {
        let said = replace(make).expect("it is no cgroup");
        assert!(said.contains(why), "{said}");
        assert_counted(&inside(&one), 0.0);
    }
    assert_eq!(replace(&|p| symlink(&other.path, p).unwrap()), None);
    assert_counted(&inside(&other), 1.0);
    assert_counted(&inside(&one), 0.0);
}

/// A pod's cgroup comes back in another class, or under another driver of kubelet.
#[test]
fn a_pod_is_found_where_it_has_moved() {
    need_bpf!("a_pod_is_found_where_it_has_moved");
    let _alone = alone();
    let uid = format!("0b1c2d3e-aaaa-bbbb-dddd-{:012x}", std::process::id());
    let (root, own) = (Cgroup::new(), uid.replace('-', "_"));
    let f = TestFile::cold("moved", 4 * MIB);
    let burstable = root.child(&format!("kubepods-burstable-pod{own}.slice"));
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_POD_UID", &uid)]);
    let count = |pod: &Cgroup| {
        agent.settled();
        assert_eq!(scope_trouble(&agent), None);
        pod.enter();
        let (d, ()) = agent.during(|| work(&f));
        assert_counted(&d, 1.0);
        assert_eq!(agent.stats()["scope"], format!("cgroup:{}", text(&pod.path)));
        pod.leave();
    };
    count(&burstable);
    drop(burstable);
    agent.settled();
    scope_trouble(&agent).expect("the pod is gone");
    let class = root.child("besteffort");
    let pod = class.child(&format!("pod{uid}"));
    agent.wait(|_| scope_trouble(&agent).is_none());
    count(&pod);
}

/// Once it has started the agent may give up what it does not need any more.
#[test]
fn a_scope_is_followed_without_privileges() {
    const TEST: &str = "a_scope_is_followed_without_privileges";
    need_bpf!("a_scope_is_followed_without_privileges");
    if !os::has_btf() {
        return common::skipped(TEST, "the programs as they are here need BTF");
    }
    // From 5.19 on a descriptor is enough.
    let kept = match os::kernel_version() {
        v if v >= (5, 19) => 0,
        v if v >= (5, 8) => 1 << 39, // CAP_BPF
        _ => 1 << 21,                // CAP_SYS_ADMIN
    };
    let object = Object::prepare("scope", iomonitor::elf(), None, None).unwrap();
    let cgroup = Cgroup::new();
    let path = cgroup.path.clone();
    let mut scope = CgroupScope::new(object.map("scope_cgroup").unwrap(), &path);
    assert_eq!(scope.trouble(), None);
    let (told, asked) = std::sync::mpsc::channel();
    let (ask, to_do) = std::sync::mpsc::channel::<()>();
    let unprivileged = thread::spawn(move || {
        sys::keep_capabilities(kept);
        while to_do.recv().is_ok() {
            scope.follow();
            told.send(scope.trouble().map(str::to_owned)).unwrap();
        }
    });
    let follow = || {
        ask.send(()).unwrap();
        asked.recv().unwrap()
    };
    assert_eq!(follow(), None);
    drop(cgroup);
    assert!(follow().is_some_and(|why| why.contains("it does not exist")));
    let _cgroup = Cgroup::at(path);
    assert_eq!(follow(), None);
    drop(ask);
    unprivileged.join().unwrap();
}
