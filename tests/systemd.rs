//! The agent under systemd: what it tells the manager, the unit under a real systemd, and `make install`.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Agent, Cgroup, Killed, MIB, Metrics, TempDir, TestFile, Tree, alone, binary, command, free_port, request, skipped,
    sys, text, wait_for,
};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

// ---- the protocol ----

/// The next datagram; none within half a minute is a failure.
fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let n = socket.recv(&mut buffer).expect("systemd would have been told something by now");
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

/// Runs the agent with this socket from its start to its end, and checks what it says there.
fn speaks_to(socket: &UnixDatagram, name: &str) {
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut c = command();
    c.env("NOTIFY_SOCKET", name).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    // The interval is far longer than the watchdog's: what counts is that the collector is not overdue.
    let mut agent = Agent::start_with(c, &[("COLLECTOR_INTERVAL", "1m")]);
    let ready = next(socket);
    let status = format!("READY=1\nSTATUS=counting host; http://127.0.0.1:{}", agent.port);
    assert_eq!(ready, status, "{}", agent.log());
    for _ in 0..5 {
        assert_eq!(next(socket), "WATCHDOG=1");
    }
    sys::kill(agent.child.id(), libc::SIGHUP);
    let told = || std::iter::repeat_with(|| next(socket)).find(|message| message != "WATCHDOG=1").unwrap();
    let reloading = told();
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|n| n.parse::<u64>().ok());
    assert!(micros.is_some_and(|n| n > 0), "{reloading}");
    assert_eq!(told(), status, "{}", agent.log());
    sys::kill(agent.child.id(), libc::SIGTERM);
    let mut last = next(socket);
    while last == "WATCHDOG=1" {
        last = next(socket);
    }
    assert_eq!(last, "STOPPING=1");
    assert!(wait_for(&mut agent.child, Duration::from_secs(30)).is_some_and(|s| s.success()), "{}", agent.log());
}

#[test]
fn the_manager_is_told_that_it_is_ready_alive_and_stopping() {
    need_bpf!("the_manager_is_told_that_it_is_ready_alive_and_stopping");
    let dir = TempDir::new("notify");
    let path = dir.path.join("socket");
    speaks_to(&UnixDatagram::bind(&path).unwrap(), text(&path));
    let name = format!("ebpf-sidecar-notify-{}", std::process::id());
    let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    speaks_to(&hidden, &format!("@{name}"));
}

#[test]
fn the_watchdog_starves_while_the_collector_hangs() {
    const TEST: &str = "the_watchdog_starves_while_the_collector_hangs";
    need_bpf!("the_watchdog_starves_while_the_collector_hangs");
    let dir = TempDir::new("notify");
    let path = dir.path.join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut c = command();
    c.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let agent = Agent::start_with(c, &[("COLLECTOR_INTERVAL", "100ms")]);
    // A thread names itself, which can be after HTTP answers.
    let threads = PathBuf::from(format!("/proc/{}/task", agent.child.id()));
    let named = |t: &PathBuf| fs::read_to_string(t.join("comm")).is_ok_and(|c| c == "collector\n");
    let deadline = Instant::now() + Duration::from_secs(60);
    let collector = loop {
        if let Some(found) = fs::read_dir(&threads).unwrap().map(|t| t.unwrap().path()).find(named) {
            break found;
        }
        assert!(Instant::now() < deadline, "no thread is called collector");
        thread::sleep(Duration::from_millis(10));
    };
    let tid = collector.file_name().unwrap().to_str().unwrap().parse().unwrap();

    // Only this one thread: the main thread lives and could go on feeding.
    let Some(frozen) = sys::Frozen::thread(tid) else { return skipped(TEST, "this machine lets nobody trace") };
    let deadline = Instant::now() + Duration::from_secs(60);
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    while socket.recv(&mut [0; 1024]).is_ok() {
        assert!(Instant::now() < deadline, "it is still fed");
    }
    let asked = common::output(&["health", "--address", &format!("127.0.0.1:{}", agent.port)], &[]);
    assert_eq!(asked.status.code(), Some(1), "{}", String::from_utf8_lossy(&asked.stdout));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("unhealthy: the last good collection was"));
    drop(frozen);
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(next(&socket), "WATCHDOG=1");
}

#[test]
fn one_that_cannot_start_is_never_ready() {
    let dir = TempDir::new("notify");
    let path = dir.path.join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut c = command();
    c.env("NOTIFY_SOCKET", &path);
    let o = common::output_of(c, &[("SERVER_HTTP_PORT", "0")]);
    assert_eq!(o.status.code(), Some(2));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err(), "something was said");
}

// ---- the unit ----

/// The unit with this binary, and with the drop-in for root if asked for.
fn unit(binary: &Path, as_root: bool) -> String {
    let unit = fs::read_to_string(configs().join("systemd/ebpf-sidecar.service")).unwrap();
    let with_binary = unit.replace("ExecStart=/usr/local/bin/ebpf-sidecar ", &format!("ExecStart={} ", text(binary)));
    assert_ne!(unit, with_binary, "no ExecStart");
    // What stands later in a unit is as if it stood in a drop-in.
    let root = fs::read_to_string(configs().join("systemd/root.conf")).unwrap();
    with_binary + if as_root { &root } else { "" }
}

#[test]
fn systemd_has_nothing_against_the_unit() {
    const TEST: &str = "systemd_has_nothing_against_the_unit";
    let dir = TempDir::new("unit");
    for as_root in [false, true] {
        let file = dir.path.join("ebpf-sidecar.service");
        fs::write(&file, unit(&binary(), as_root)).unwrap();
        let analyze = |args: &[&str]| Command::new("systemd-analyze").args(args).arg(&file).output();
        let Ok(verified) = analyze(&["verify", "--man=no"]) else {
            return skipped(TEST, "systemd-analyze is not installed");
        };
        let said = String::from_utf8_lossy(&[verified.stdout, verified.stderr].concat()).into_owned();
        // Other units of this machine may have complaints of their own.
        let about_ours: Vec<&str> = said.lines().filter(|l| l.contains("ebpf-sidecar")).collect();
        assert_eq!(about_ours, Vec::<&str>::new());
        // In tenths: exposure of at most 3.0.
        let judged = analyze(&["security", "--offline=true", "--threshold=30"]).unwrap();
        let said = String::from_utf8_lossy(&judged.stdout).into_owned();
        if said.is_empty() {
            return skipped(TEST, "this systemd-analyze cannot judge a file (before 250)");
        }
        let level = said.lines().last().unwrap_or_default();
        assert!(judged.status.success(), "{said}");
        println!("{}: {level}", if as_root { "root.conf" } else { "ebpf-sidecar.service" });
    }
}

/// Starts the units of a folder (the first argument) as if on a machine of their own: namespaces of mounts, processes
/// and cgroups, in which systemd (the second) is the first process.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/lock
cp /mnt/units/* /run/systemd/system/
mount -t tmpfs tmpfs /etc/systemd/system
umount -l /sys/fs/cgroup 2>/dev/null || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
export container=test
exec "$2" --system --unit=test.target --log-target=console --show-status=no
"#;

/// Nothing of the host's own boot.
const ALONE: &str = "[Unit]\nDefaultDependencies=no\n";

/// Writes down what systemd and the kernel know of a service that is ready and has been through some rounds of its
/// watchdog.
const WITNESS: &str = "
[Unit]
DefaultDependencies=no
Requires=NAME.service
After=NAME.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sleep 5; exec >/mnt/NAME.tmp; \
    systemctl show NAME.service -p ActiveState,SubState,StatusText,NRestarts,WatchdogUSec; \
    grep -E \"^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):\" /proc/$$(systemctl show NAME.service -p MainPID --value)/status; \
    mv /mnt/NAME.tmp /mnt/NAME.state'
";

fn systemd() -> Option<&'static str> {
    ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"].into_iter().find(|p| Path::new(p).exists())
}

/// A systemd that runs the units in a folder; ended when dropped.
struct Machine {
    process: Killed,
    // After the process, which holds its cgroups.
    _tree: Tree,
    dir: TempDir,
}

impl Machine {
    fn boot(dir: TempDir, systemd: &str) -> Self {
        let log = fs::File::create(dir.path.join("systemd.log")).unwrap();
        let tree = Tree(Cgroup::new());
        let script = "echo $$ >$1/cgroup.procs; shift; exec unshare --mount --pid --ipc --cgroup --fork --mount-proc \
                      --kill-child sh -c \"$@\"";
        let process = Command::new("sh")
            .args(["-c", script, "sh", text(&tree.0.path), BOOT, "sh", text(&dir.path), systemd])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self { process: Killed(process.unwrap()), _tree: tree, dir }
    }

    /// What is in a file of the folder.
    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path.join(name)).unwrap_or_default()
    }

    /// Waits until something holds; `log` tells why it does not. An error: systemd does not run here.
    fn wait(&mut self, log: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !done(self) {
            if self.process.0.try_wait().unwrap().is_some() {
                return Err(format!("no systemd in namespaces here: {}", self.said("systemd.log").trim()));
            }
            assert!(Instant::now() < deadline, "in vain\n{}\n{}", self.said("systemd.log"), self.said(log));
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// How each probe of the agent at this port is attached.
fn modes(port: u16) -> Vec<(String, Option<String>)> {
    let body = request(port, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap().body;
    let health: serde_json::Value = serde_json::from_str(&body).unwrap();
    let probes = health["modules"][0]["probes"].as_array().unwrap();
    probes.iter().map(|p| (p["name"].as_str().unwrap().to_owned(), p["mode"].as_str().map(str::to_owned))).collect()
}

#[test]
fn it_works_under_a_real_systemd() {
    const TEST: &str = "it_works_under_a_real_systemd";
    need_bpf!("it_works_under_a_real_systemd");
    let Some(systemd) = systemd() else { return skipped(TEST, "systemd is not installed") };
    let _alone = alone();
    let dir = TempDir::new("systemd");
    fs::copy(binary(), dir.path.join("ebpf-sidecar")).unwrap();
    fs::create_dir(dir.path.join("units")).unwrap();
    let write = |name: &str, unit: &str| fs::write(dir.path.join("units").join(name), unit).unwrap();

    let mut target = ALONE.to_owned();
    let mut services = Vec::new();
    for (name, as_root) in [("plain", false), ("root", true)] {
        let (http, grpc) = (free_port(), free_port());
        let settings = format!(
            "{ALONE}[Service]\nWatchdogSec=2s\nStandardError=file:/mnt/{name}.log\nEnvironment=\
             EBPF_SIDECAR_SERVER_HTTP_ADDRESS=127.0.0.1 EBPF_SIDECAR_SERVER_HTTP_PORT={http} \
             EBPF_SIDECAR_SERVER_GRPC_PORT={grpc} EBPF_SIDECAR_COLLECTOR_INTERVAL=200ms\n"
        );
        write(&format!("{name}.service"), &(unit(Path::new("/mnt/ebpf-sidecar"), as_root) + &settings));
        write(&format!("{name}-witness.service"), &WITNESS.replace("NAME", name));
        target += &format!("Wants={name}-witness.service\n");
        services.push((name, http));
    }
    write("test.target", &target);

    let mut machine = Machine::boot(dir, systemd);
    for (name, http) in &services {
        let state = format!("{name}.state");
        if let Err(why) = machine.wait(&format!("{name}.log"), |m| m.dir.path.join(&state).exists()) {
            return skipped(TEST, &why);
        }
        let (state, log) = (machine.said(&state), machine.said(&format!("{name}.log")));
        let has = |line: &str| assert!(state.lines().any(|l| l == line), "{name}: no {line} in\n{state}\n{log}");
        has("ActiveState=active");
        has("SubState=running");
        has("NRestarts=0");
        has("WatchdogUSec=2s");
        has(&format!("StatusText=counting host; http://127.0.0.1:{http}"));
        has("NoNewPrivs:\t1");
        has("Seccomp:\t2"); // with a filter
        has("CapEff:\t0000000000000000"); // given up once it had started
        match *name {
            "root" => {
                has("Uid:\t0\t0\t0\t0");
                has("CapBnd:\t0000000000200000"); // SYS_ADMIN
            }
            _ => {
                let uid = state.lines().find_map(|l| l.strip_prefix("Uid:\t")?.split('\t').next()?.parse::<u32>().ok());
                assert!(uid.is_some_and(|u| (61184..65520).contains(&u)), "no user of its own:\n{state}");
                has("CapBnd:\t000000c400000004"); // BPF, PERFMON, SYSLOG, DAC_READ_SEARCH
            }
        }
        // With the sandbox around it, it attaches what it attaches without.
        assert_eq!(modes(*http), modes(Agent::start(&[]).port), "{name}\n{log}");
    }
}

/// A database: reads what it is given, each time that it is told to.
const DATABASE: &str = "
[Service]
ExecStart=/bin/sh -c 'until rm /mnt/read 2>/dev/null; do sleep 0.1; done; \
    dd if=/mnt/data of=/dev/null bs=64k 2>/dev/null; touch /mnt/done; exec sleep infinity'
";

/// Restarts it when it is told to.
const RESTARTER: &str = "
[Service]
ExecStart=/bin/sh -c 'while :; do until rm /mnt/restart 2>/dev/null; do sleep 0.1; done; \
    systemctl restart db.service; touch /mnt/restarted; done'
";

#[test]
fn a_service_is_counted_on_after_its_restart() {
    const TEST: &str = "a_service_is_counted_on_after_its_restart";
    need_bpf!("a_service_is_counted_on_after_its_restart");
    let Some(systemd) = systemd() else { return skipped(TEST, "systemd is not installed") };
    let _alone = alone();
    let dir = TempDir::new("restart");
    fs::copy(binary(), dir.path.join("ebpf-sidecar")).unwrap();
    fs::create_dir(dir.path.join("units")).unwrap();
    let write = |name: &str, unit: &str| fs::write(dir.path.join("units").join(name), unit).unwrap();
    let (http, grpc) = (free_port(), free_port());
    let settings = format!(
        "{ALONE}[Service]\nStandardError=file:/mnt/agent.log\nEnvironment=\
         EBPF_SIDECAR_SERVER_HTTP_ADDRESS=127.0.0.1 EBPF_SIDECAR_SERVER_HTTP_PORT={http} \
         EBPF_SIDECAR_SERVER_GRPC_PORT={grpc} EBPF_SIDECAR_COLLECTOR_INTERVAL=200ms \
         EBPF_SIDECAR_COLLECTOR_SCOPE_CGROUP=/sys/fs/cgroup/system.slice/db.service\n"
    );
    // The agent is ready before the database starts.
    write("agent.service", &(unit(Path::new("/mnt/ebpf-sidecar"), false) + &settings));
    write("db.service", &format!("{ALONE}Requires=agent.service\nAfter=agent.service\n{DATABASE}"));
    write("restarter.service", &format!("{ALONE}Wants=db.service\nAfter=db.service\n{RESTARTER}"));
    write("test.target", &format!("{ALONE}Wants=restarter.service\n"));
    // On a file system whose reads go through the page cache.
    let data = TestFile::new("database", 8 * MIB);
    let file = dir.path.join("data");
    std::os::unix::fs::symlink(&data.path, &file).unwrap();
    let pages = (8 * MIB / sys::page()) as f64;

    let mut machine = Machine::boot(dir, systemd);
    let log = "agent.log";
    let get = |path: &str| request(http, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    let metrics = || get("/metrics").ok().map(|r| Metrics::parse(&r.body));
    let healthy = || get("/health").is_ok_and(|r| r.status == 200 && !r.body.contains("nothing is counted"));
    let sequence = || metrics().map_or(0.0, |m| m.get("ebpf_sidecar_snapshot_sequence"));
    if let Err(why) = machine.wait(log, |m| m.said(log).contains("nothing is counted") && healthy()) {
        return skipped(TEST, &why);
    }
    let mut read = 0.0;
    for round in 0..4 {
        if round > 0 {
            fs::write(machine.dir.path.join("restart"), "").unwrap();
            machine.wait(log, |m| fs::remove_file(m.dir.path.join("restarted")).is_ok()).unwrap();
        }
        // Two collections on it is counted again, and one tick may be under way.
        let now = sequence();
        machine.wait(log, |_| sequence() >= now + 3.0).unwrap();
        assert!(healthy(), "{}", machine.said(log));
        data.drop_cache();
        fs::write(machine.dir.path.join("read"), "").unwrap();
        machine.wait(log, |m| fs::remove_file(m.dir.path.join("done")).is_ok()).unwrap();
        read += pages;
        let now = sequence();
        machine.wait(log, |_| sequence() >= now + 2.0).unwrap();
        // Starting dd reads some of it too, unless it is cached.
        let misses = metrics().unwrap().get("ebpf_cache_misses_total");
        assert!((read..=read * 1.1).contains(&misses), "{misses} after {} restarts\n{}", round, machine.said(log));
    }
    let log = machine.said(log);
    assert!(log.matches("was made anew").count() >= 4, "{log}");
}

// ---- make install ----

/// The files below `dir`.
fn files(dir: &Path) -> BTreeSet<String> {
    let found = Command::new("find").args([".", "-type", "f"]).current_dir(dir).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(|l| l[1..].to_owned()).collect()
}

#[test]
fn make_installs_and_uninstalls() {
    let dir = TempDir::new("dest dir");
    let make = |goal: &str| {
        let settings = [
            format!("BINARY={}", text(&binary())),
            format!("DESTDIR={}", text(&dir.path)),
            "PREFIX=/opt/agent".to_owned(),
        ];
        let o = Command::new("make").arg(goal).args(settings).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        assert!(o.status.success(), "{goal}: {}", String::from_utf8_lossy(&o.stderr));
        Some(String::from_utf8(o.stdout).unwrap())
    };
    if make("install").is_none() {
        return skipped("make_installs_and_uninstalls", "make is not installed");
    }
    let (program, unit, config) = (
        "/opt/agent/bin/ebpf-sidecar",
        "/opt/agent/lib/systemd/system/ebpf-sidecar.service",
        "/etc/ebpf-sidecar/config.yaml",
    );
    let generated = [
        ("/opt/agent/share/man/man8/ebpf-sidecar.8", &["man"][..]),
        ("/opt/agent/share/bash-completion/completions/ebpf-sidecar", &["completions", "bash"]),
        ("/opt/agent/share/zsh/site-functions/_ebpf-sidecar", &["completions", "zsh"]),
        ("/opt/agent/share/fish/vendor_completions.d/ebpf-sidecar.fish", &["completions", "fish"]),
    ];
    let inside = |path: &str| dir.path.join(&path[1..]);
    let mode = |path: &str| fs::metadata(inside(path)).unwrap().permissions().mode() & 0o777;
    let expected = [program, unit, config].into_iter().chain(generated.map(|(path, _)| path));
    assert_eq!(files(&dir.path), expected.map(str::to_owned).collect());
    for (path, args) in generated {
        assert_eq!(fs::read(inside(path)).unwrap(), common::output(args, &[]).stdout, "{path}");
    }
    assert_eq!((mode(program), mode(unit), mode(config)), (0o755, 0o644, 0o640));
    assert_eq!(fs::read(inside(program)).unwrap(), fs::read(binary()).unwrap());
    let installed = fs::read_to_string(inside(unit)).unwrap();
    assert!(installed.lines().any(|l| l == format!("ExecStart={program} run")), "{installed}");
    assert_eq!(installed.lines().count(), self::unit(&binary(), false).lines().count());

    // What an operator changed is neither overwritten nor removed.
    let changed = "server:\n";
    fs::write(inside(config), changed).unwrap();
    make("install");
    assert_eq!(fs::read_to_string(inside(config)).unwrap(), changed);
    assert!(make("uninstall").unwrap().contains(config));
    assert_eq!(files(&dir.path), [config.to_owned()].into());

    fs::remove_file(inside(config)).unwrap();
    make("install");
    make("uninstall");
    assert_eq!(files(&dir.path), BTreeSet::new());
    make("uninstall");
}
