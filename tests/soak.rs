//! Everything that happens to an agent in months, in hours: load, a scoped cgroup that goes and comes again, certificates that
//! change, a BanyanDB that is away, a module switched off and on, reloads. What it uses stays flat, no counter falls, and no
//! collection is left out that /health does not tell. `TEST_SOAK_SECONDS` is for how long.

mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/identity.rs"]
mod identity;
#[path = "common/banyandb.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::api::proto::rpc;
use ebpf_sidecar::server::grpc::stubs::name;
use grpcio::ChannelCredentialsBuilder;

use common::sys::page;
use common::{Agent, Cgroup, Metrics, TempDir, TestFile, bpf, status_field, sys, text};
use grpc::Client;
use identity::{Identity, YEAR};
use server::BanyanDb;

/// What the agent holds.
#[derive(Debug, Clone, Copy)]
struct Used {
    own_kib: u64,
    fds: u64,
    threads: u64,
    objects: u64,
}

impl Used {
    fn of(pid: u32) -> Self {
        Self {
            own_kib: status_field(pid, "RssAnon:"),
            fds: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64,
            threads: status_field(pid, "Threads:"),
            objects: bpf::held_by(pid).len() as u64,
        }
    }

    /// The least of each: what is held for a moment is not in it.
    fn least(all: &[Self]) -> Self {
        let least = |of: fn(&Self) -> u64| all.iter().map(of).min().unwrap();
        Self {
            own_kib: least(|u| u.own_kib),
            fds: least(|u| u.fds),
            threads: least(|u| u.threads),
            objects: least(|u| u.objects),
        }
    }
}

fn is_counter(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end))
}

#[test]
#[ignore = "takes two hours, or TEST_SOAK_SECONDS: make soak"]
fn months_in_hours() {
    need_bpf!("months_in_hours");
    let length: u64 = std::env::var("TEST_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(7200);
    let _alone = common::alone();
    let ca = Identity::new(1, None, YEAR);
    let first = Identity::new(100, Some(&ca), YEAR);
    let dir = TempDir::new("soak");
    let [cert, key] = ["tls.crt", "tls.key"].map(|n| dir.path.join(n));
    fs::write(&cert, first.cert_pem()).unwrap();
    fs::write(&key, first.key_pem()).unwrap();
    let banyandb = BanyanDb::start();
    let endpoint = banyandb.endpoint();
    let mut cgroup = Some(Cgroup::new());
    let scope = cgroup.as_ref().unwrap().path.clone();
    let agent = Agent::start(&[
        ("COLLECTOR_INTERVAL", "1s"),
        ("COLLECTOR_HISTORY", "20s"),
        ("COLLECTOR_SCOPE_CGROUP", text(&scope)),
        ("SERVER_ALLOW_CONFIGURE", "loopback"),
        ("SERVER_GRPC_TLS_ENABLED", "true"),
        ("SERVER_GRPC_TLS_CERT_FILE", text(&cert)),
        ("SERVER_GRPC_TLS_KEY_FILE", text(&key)),
        ("EXPORT_TYPE", "banyandb"),
        ("EXPORT_BANYANDB_ENDPOINT", &endpoint),
        ("EXPORT_BANYANDB_FLUSH_INTERVAL", "1s"),
        ("EXPORT_BANYANDB_TIMEOUT", "2s"),
    ]);
    let pid = agent.child.id();
    let client = || {
        let trust = ChannelCredentialsBuilder::new().root_cert(ca.cert_pem()).build();
        Client::with(agent.grpc_port, Some(trust))
    };
    let switch = |enabled: bool| {
        let request = rpc::ConfigureModuleRequest { module: "iomonitor".into(), enabled, ..Default::default() };
        let answer: rpc::ConfigureModuleResponse = client().call(name::CONFIGURE_MODULE, &request);
        assert!(answer.success, "{answer}");
    };

    let stop = AtomicBool::new(false);
    let f = TestFile::new("soak", 64 * page());
    let mut used = Vec::new();
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    let (mut sequence, mut told, mut faults) = (None::<(f64, Instant)>, 0u32, BTreeMap::<&str, u32>::new());
    // Collections made and missed, and by when.
    let ticks = |m: &Metrics| {
        let all = m.get("ebpf_sidecar_snapshot_sequence") + m.get("ebpf_sidecar_collections_missed_total");
        (all, m.get("ebpf_sidecar_snapshot_timestamp_seconds"))
    };
    let mut first_ticks = None;
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let (mut buf, bytes) = (vec![0u8; page()], page());
                for page in (0..64).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    f.file.read_at(&mut buf, (page * bytes) as u64).unwrap();
                    let advice = if page == 0 { libc::POSIX_FADV_DONTNEED } else { libc::POSIX_FADV_NORMAL };
                    sys::fadvise(f.file.as_raw_fd(), 0, 0, advice).unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // Ends them also if something fails.
        let _stop = SetAtEnd(&stop);
        cgroup.as_ref().unwrap().enter();
        let begun = Instant::now();
        let (mut serial, mut second) = (100, 0);
        while begun.elapsed() < Duration::from_secs(length) {
            second += 1;
            let mut fault = |what| *faults.entry(what).or_default() += 1;
            match second % 60 {
                5 => {
                    // The service is started again.
                    drop(cgroup.take());
                    fault("cgroup");
                }
                8 => cgroup.insert(Cgroup::at(scope.clone())).enter(),
                15 | 45 => {
                    serial += 1;
                    let next = Identity::new(serial, Some(&ca), YEAR);
                    for (path, pem) in [(&cert, next.cert_pem()), (&key, next.key_pem())] {
                        let new = dir.path.join("new");
                        fs::write(&new, pem).unwrap();
                        fs::rename(new, path).unwrap();
                    }
                    let answer: rpc::GetHealthResponse =
                        client().call(name::GET_HEALTH, &rpc::GetHealthRequest::default());
                    assert!(!answer.version.is_empty());
                    fault("certificates");
                }
                20 => {
                    banyandb.refuse(Duration::from_secs(10));
                    fault("BanyanDB");
                }
                35 => banyandb.kill(),
                40 => {
                    switch(false);
                    fault("module");
                }
                43 => switch(true),
                50 => {
                    sys::kill(pid, libc::SIGHUP);
                    fault("reload");
                }
                _ => {}
            }

            let health: serde_json::Value = serde_json::from_str(&agent.get("/health").body).unwrap();
            let m = agent.metrics();
            for (series, value) in m.0.iter().filter(|(series, _)| is_counter(series)) {
                let before = last.insert(series.clone(), *value);
                assert!(before.is_none_or(|b| b <= *value), "{series}: {value} after {before:?}");
            }
            let (number, now) = (m.get("ebpf_sidecar_snapshot_sequence"), Instant::now());
            first_ticks.get_or_insert_with(|| ticks(&m));
            match sequence {
                Some((before, _)) if number > before => sequence = Some((number, now)),
                None => sequence = Some((number, now)),
                // As long as numbers may be old without a word.
                Some((_, since)) if since.elapsed() > Duration::from_secs(9) => {
                    assert_ne!(health["status"], "healthy", "nothing new for {:?}: {health}", since.elapsed());
                    told += 1;
                }
                Some(_) => {}
            }
            // At rest: nothing is away or off.
            if (55..60).contains(&(second % 60)) && begun.elapsed() > Duration::from_secs(60) {
                used.push(Used::of(pid));
            }
            thread::sleep((begun + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        }
    });
    drop(cgroup);
    // The rest goes out.
    let m = agent.wait(|m| m.get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") == 0.0);
    let third = (used.len() / 3).max(1);
    let (before, after) = (Used::least(&used[..third]), Used::least(&used[used.len() - third..]));
    println!(
        "{length} s: {faults:?}; {} collections, {} failed, {} missed, /health told of a silence {told} times; {} points sent\n\
         first third at least {before:?}\nlast third at least {after:?}",
        m.get("ebpf_sidecar_snapshot_sequence"),
        m.get("ebpf_sidecar_collect_errors_total"),
        m.get("ebpf_sidecar_collections_missed_total"),
        m.get("ebpf_sidecar_export_points_sent_total{exporter=\"banyandb\"}"),
    );
    let ((first, since), (all, until)) = (first_ticks.unwrap(), ticks(&m));
    assert!(all - first + 2.0 >= until - since, "{} collections in {} s are told of", all - first, until - since);
    assert!(after.own_kib <= before.own_kib + 1024, "memory grows");
    assert!(after.fds <= before.fds && after.objects <= before.objects, "descriptors or objects grow");
    // The pool of gRPC's core has a thread more where the machine is busy, and fewer later.
    assert!(after.threads <= before.threads + 4, "threads grow");
    let dropped: f64 =
        m.0.iter().filter(|(n, _)| n.starts_with("ebpf_sidecar_export_points_dropped_total")).map(|(_, v)| v).sum();
    assert_eq!(dropped, 0.0, "{}", agent.log());
    assert!(banyandb.store().violations.is_empty(), "{:?}", banyandb.store().violations);
    assert!(!agent.log().contains("panic"), "{}", agent.log());
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
