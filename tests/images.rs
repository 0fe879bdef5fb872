//! Dockerfiles, docker-compose.yml and the image: each is checked by the tools that people use, and the image is made
//! from nothing but the static binary, as its Dockerfile says, and run with the privileges that the documents name.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use common::{Agent, Delta, Killed, MIB, TempDir, TestFile, read_all, skipped, sys, text, wait_for};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What a program prints, if it succeeds.
fn run(command: &mut Command) -> Result<String, String> {
    let o = command.current_dir(root()).output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if o.status.success() { Ok(said(&o.stdout)) } else { Err(said(&[o.stdout, o.stderr].concat())) }
}

// ---- Dockerfiles ----

const DOCKERFILES: [&str; 2] = ["Dockerfile", "Dockerfile.alpine"];

#[test]
fn hadolint_has_nothing_against_the_dockerfiles() {
    let program = common::tool("hadolint");
    if run(Command::new(&program).arg("--version")).is_err() {
        let why = "hadolint is not installed (make deps-test)";
        return skipped("hadolint_has_nothing_against_the_dockerfiles", why);
    }
    run(Command::new(program).args(DOCKERFILES)).unwrap();
}

/// The stages of a Dockerfile: what each begins with, and its instructions.
fn stages(name: &str) -> Vec<(String, String)> {
    let text = read(name);
    let stages = text.split("\nFROM ").skip(1).map(|s| s.split_once('\n').unwrap());
    stages.map(|(from, rest)| (from.to_owned(), rest.trim().to_owned())).collect()
}

/// The images differ in what is beside the agent, not in the agent.
#[test]
fn the_images_hold_the_same() {
    let all: Vec<_> = DOCKERFILES.into_iter().flat_map(stages).collect();
    let images: Vec<_> = all.iter().filter(|(from, _)| !from.ends_with(" AS build")).collect();
    let from: Vec<&str> = images.iter().map(|(from, _)| from.as_str()).collect();
    assert_eq!(from, ["debian:${DEBIAN}-slim", "alpine:${ALPINE} AS alpine", "scratch"]);
    assert!(images.iter().all(|image| image.1 == images[0].1), "{images:?}");

    // The ports of the configuration in it.
    let config: Yaml = serde_yaml::from_str(&read("configs/config.yaml")).unwrap();
    let port = |server: &str| config["server"][server]["port"].as_u64().unwrap();
    assert!(images[0].1.contains(&format!("\nEXPOSE {} {}\n", port("http"), port("grpc"))));
}

/// Rust that is new enough to build it.
#[test]
fn the_images_have_the_rust_that_is_needed() {
    let version = |text: &str| text.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
    let needed =
        read("Cargo.toml").lines().find_map(|l| Some(version(l.strip_prefix("rust-version = ")?.trim_matches('"'))));
    for name in DOCKERFILES {
        let found = read(name).lines().find_map(|l| Some(version(l.strip_prefix("ARG RUST=")?)));
        assert!(found.is_some() && found >= needed, "{name}: {found:?}, {needed:?}");
    }
}

// ---- docker-compose.yml ----

/// Docker Compose's own reading of the file: by Compose, or by the library that Compose is made of.
fn composed() -> Result<Json, String> {
    let json = |text: String| serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"));
    if run(Command::new("docker").args(["compose", "version"])).is_ok() {
        return json(run(Command::new("docker").args(["compose", "config", "--format", "json"])).unwrap());
    }
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compose");
    let program = tools.join("cmd");
    if !program.exists() {
        let mut go = Command::new("go");
        go.env("GOBIN", &tools).args(["install", "github.com/compose-spec/compose-go/v2/cmd@v2.10.0"]);
        run(&mut go).map_err(|e| format!("neither docker compose nor compose-go: {e}"))?;
    }
    json(run(Command::new(program).args(["-format", "json", "docker-compose.yml"])).unwrap())
}

/// `published port on address: port of the container`, of a service.
fn ports(service: &Json) -> BTreeSet<String> {
    let ports = service["ports"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let word = |v: &Json| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    ports.map(|p| format!("{}:{}:{}", word(&p["host_ip"]), word(&p["published"]), word(&p["target"]))).collect()
}

#[test]
fn compose_reads_its_file() {
    let model = match composed() {
        Ok(model) => model,
        Err(why) => return skipped("compose_reads_its_file", &why),
    };
    let services = model["services"].as_object().unwrap();
    let expected = [
        ("banyandb", &["127.0.0.1:17912:17912", "127.0.0.1:17913:17913"][..]),
        ("ebpf-sidecar-banyandb", &["127.0.0.1:8081:8080", "127.0.0.1:9091:9090"]),
        ("ebpf-sidecar-prometheus", &["127.0.0.1:8080:8080", "127.0.0.1:9090:9090"]),
        ("grafana", &["127.0.0.1:3000:3000"]),
        ("prometheus", &["127.0.0.1:9092:9090"]),
    ];
    assert_eq!(
        services.keys().collect::<BTreeSet<_>>(),
        expected.iter().map(|e| e.0.to_owned()).collect::<Vec<_>>().iter().collect()
    );
    for (name, published) in expected {
        assert_eq!(ports(&services[name]), published.iter().map(|p| (*p).to_owned()).collect(), "{name}");
    }

    // What is mounted from here is here, and read only.
    for (name, service) in services {
        for volume in service["volumes"].as_array().unwrap().iter().filter(|v| v["type"] == "bind") {
            let source = Path::new(volume["source"].as_str().unwrap());
            let ours = source.starts_with(root());
            assert!(source.exists() && (ours || source.starts_with("/sys")), "{name}: {volume}");
            assert_eq!(volume["read_only"], true, "{name}: {volume}");
        }
    }

    // The agents take their variables.
    for name in ["ebpf-sidecar-prometheus", "ebpf-sidecar-banyandb"] {
        let service = &services[name];
        let mut command = common::command();
        command.arg("config");
        for (key, value) in service["environment"].as_object().into_iter().flatten() {
            assert!(key.starts_with("EBPF_SIDECAR_"), "{key}");
            command.env(key, value.as_str().unwrap());
        }
        let config: Yaml = serde_yaml::from_str(&run(&mut command).unwrap()).unwrap();
        let port = |server: &str| config["server"][server]["port"].as_u64().unwrap();
        for server in ["http", "grpc"] {
            let end = format!(":{}", port(server));
            assert!(ports(service).iter().any(|p| p.ends_with(&end)), "{name} publishes no {server}");
        }
        let kind = if name == "ebpf-sidecar-banyandb" { "banyandb" } else { "prometheus" };
        assert_eq!(config["export"]["type"], kind);
        assert!(
            Path::new(service["build"]["context"].as_str().unwrap())
                .join(service["build"]["dockerfile"].as_str().unwrap())
                .exists()
        );
    }

    // Who is asked by its name is there, on that port.
    let listens = |address: &str| {
        let (host, port) = address.split_once(':').unwrap();
        ports(&services[host]).iter().any(|p| p.ends_with(&format!(":{port}")))
    };
    let prometheus: Yaml = serde_yaml::from_str(&read("configs/prometheus/compose.yml")).unwrap();
    let targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"].as_sequence().unwrap();
    assert_eq!(targets.len(), 2);
    assert!(targets.iter().all(|t| listens(t.as_str().unwrap())), "{targets:?}");
    let source: Yaml = serde_yaml::from_str(&read("configs/grafana/provisioning/datasources/prometheus.yml")).unwrap();
    let url = source["datasources"][0]["url"].as_str().unwrap();
    assert!(listens(url.strip_prefix("http://").unwrap()), "{url}");
    let endpoint = &services["ebpf-sidecar-banyandb"]["environment"]["EBPF_SIDECAR_EXPORT_BANYANDB_ENDPOINT"];
    assert!(listens(endpoint.as_str().unwrap()), "{endpoint}");
    assert_eq!(services["ebpf-sidecar-banyandb"]["environment"]["EBPF_SIDECAR_EXPORT_BANYANDB_NODE"], "compose");
}

// ---- the image ----

/// Podman with a storage of its own, in a mount namespace of its own that has tracefs, as hosts with systemd do.
struct Podman {
    namespace: Killed,
    dir: TempDir,
}

impl Podman {
    /// `Err` says why there is none.
    fn new() -> Result<Self, String> {
        let dir = TempDir::new("podman");
        let script = "mount -t tmpfs none /sys/kernel/debug; mount -t tracefs tracefs /sys/kernel/tracing || \
             test -d /sys/kernel/tracing/events && touch $0/ready && exec sleep 3600";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", script, text(&dir.path)]);
        let namespace = Killed(unshare.spawn().map_err(|e| format!("unshare: {e}"))?);
        let podman = Self { namespace, dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !podman.dir.path.join("ready").exists() {
            if Instant::now() > deadline {
                return Err("no mount namespace with tracefs".to_owned());
            }
            thread::sleep(Duration::from_millis(10));
        }
        run(podman.command().arg("info")).map_err(|e| format!("podman (make deps-image): {e}"))?;
        Ok(podman)
    }

    fn command(&self) -> Command {
        let mut command = common::command_of("nsenter");
        // The root as well, for where this runs in a chroot.
        let process = format!("/proc/{}", self.namespace.0.id());
        command.args([format!("--mount={process}/ns/mnt"), format!("--root={process}/root")]).arg("podman");
        // crun knows no host with both versions of cgroups.
        if Path::new("/usr/sbin/runc").exists() || Path::new("/usr/bin/runc").exists() {
            command.args(["--runtime", "runc"]);
        }
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--root").arg(self.dir.path.join("root")).arg("--runroot").arg(self.dir.path.join("run"));
        command
    }

    /// An agent in a container called `name`, in the network of the host, without timers of systemd.
    fn start(&self, name: &str, options: &[&str]) -> Agent {
        let mut command = self.command();
        command.args(["run", "--rm", "--name", name, "--network", "host", "--env", "EBPF_SIDECAR_*"]);
        command.args(LIMITS).arg("--no-healthcheck").args(options).arg(IMAGE);
        Agent::start_with(command, &[("COLLECTOR_INTERVAL", "100ms")])
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = run(self.command().args(["rm", "--force", "--all", "--time", "0"]));
    }
}

const IMAGE: &str = "localhost/ebpf-sidecar-test";

/// What podman would set differently by itself, and may not everywhere.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// How its probes are attached.
fn modes(agent: &Agent) -> Vec<(String, Option<String>)> {
    let health: Json = serde_json::from_str(&agent.get("/health").body).unwrap();
    let probes = health["modules"][0]["probes"].as_array().unwrap().iter();
    probes.map(|p| (p["name"].to_string(), p["mode"].as_str().map(str::to_owned))).collect()
}

/// It stops within the time that `docker stop` gives it.
fn stop(mut agent: Agent) {
    sys::kill(agent.child.id(), libc::SIGTERM);
    let status = wait_for(&mut agent.child, Duration::from_secs(10));
    assert!(status.is_some_and(|s| s.success()), "{status:?}: {}", agent.log());
}

#[test]
fn the_image_of_nothing_but_the_binary_works() {
    const TEST: &str = "the_image_of_nothing_but_the_binary_works";
    need_bpf!("the_image_of_nothing_but_the_binary_works");
    let Some(binary) = std::env::var_os("TEST_STATIC") else {
        return skipped(TEST, "TEST_STATIC names no static binary (make test-static)");
    };
    let podman = match Podman::new() {
        Ok(podman) => podman,
        Err(why) => return skipped(TEST, &why),
    };

    // The last stage of the Dockerfile; what the stage before it would hold comes from here.
    let context = podman.dir.path.join("context");
    run(Command::new("sh").arg(".ci/rootfs.sh").arg(binary).arg(context.join("image"))).unwrap();
    let (from, stage) = stages("Dockerfile.alpine").pop().unwrap();
    let stage = stage.replace("COPY --from=build /image/ /", "COPY image/ /");
    fs::write(context.join("Dockerfile"), format!("FROM {from}\n{stage}\n")).unwrap();
    // Without --format docker there is no HEALTHCHECK.
    run(podman.command().args(["build", "--quiet", "--format", "docker", "--tag", IMAGE]).arg(&context)).unwrap();
    let shown = run(podman.command().args(["image", "inspect", IMAGE])).unwrap();
    let image: Json = serde_json::from_str::<Json>(&shown).unwrap()[0].take();
    assert_eq!(image["Config"]["Labels"]["org.opencontainers.image.title"], "ebpf-sidecar");
    assert_eq!(image["Healthcheck"]["Test"], serde_json::json!(["CMD", "/usr/bin/ebpf-sidecar", "health"]));

    let outside = Agent::start(&[]);
    let truth = modes(&outside);
    drop(outside);

    // As the README has them. perf_event_open takes CAP_SYS_ADMIN as well in podman's own seccomp profile before 2026.
    let least = [
        "--pid=host",
        "--read-only",
        "--security-opt=no-new-privileges",
        "--security-opt=seccomp=unconfined",
        "--cap-drop=all",
        "--cap-add=BPF,PERFMON,SYSLOG",
        "--volume=/sys/kernel/tracing:/sys/kernel/tracing:ro",
    ];
    let privileged = ["--privileged", "--pid=host"];
    let mounts = ["/sys:/sys", "/proc:/proc", "/lib/modules:/lib/modules:ro"];
    // Docker makes a folder that is not there, podman does not.
    let mounts = mounts.iter().filter(|m| m.split(':').next().is_some_and(|path| Path::new(path).exists()));
    let mounts: Vec<String> = mounts.map(|m| format!("--volume={m}")).collect();
    let mounts: Vec<&str> = mounts.iter().map(String::as_str).collect();
    for (name, options) in [
        ("least", least.to_vec()),
        ("privileged", privileged.to_vec()),
        ("mounts", [&privileged[..], &mounts[..]].concat()),
    ] {
        let agent = podman.start(name, &options);
        assert_eq!(modes(&agent), truth, "{name}: {}", agent.log());
        // A container has a /sys of its own, without tracefs.
        assert_eq!(agent.log().contains("mounted it for this process alone"), name == "privileged", "{}", agent.log());

        let file = TestFile::cold("image", 8 * MIB);
        let pages = (8 * MIB / sys::page()) as f64;
        let (delta, _) = agent.during(|| read_all(&file.file, 64 << 10));
        // The whole host is counted, so others may add to it.
        assert!(delta.misses_of(pages) >= pages, "{name}: {}", delta.moved());

        // The health check of the image, and the second name.
        let address = format!("127.0.0.1:{}", agent.port);
        for program in ["/usr/bin/ebpf-sidecar", "sidecar"] {
            let mut exec = podman.command();
            let said = run(exec.args(["exec", name, program, "health", "--address", &address])).unwrap();
            assert!(said.starts_with("healthy: ") || said.starts_with("degraded: "), "{said}");
        }
        stop(agent);
    }
}

// ---- a container as the scope ----

const SERVICE: &str = "localhost/ebpf-sidecar-test-service";

/// Makes an image of nothing but a shell.
fn build_service(podman: &Podman) -> Result<(), String> {
    let context = podman.dir.path.join("service");
    fs::create_dir(&context).unwrap();
    fs::copy("/bin/busybox", context.join("busybox")).map_err(|e| format!("/bin/busybox (make deps-vm): {e}"))?;
    let alone = run(Command::new("chroot").arg(&context).args(["/busybox", "true"]));
    alone.map_err(|e| format!("/bin/busybox is not linked statically (make deps-vm): {e}"))?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY busybox /busybox\n").unwrap();
    run(podman.command().args(["build", "--quiet", "--tag", SERVICE]).arg(&context)).map(drop)
}

/// The runtime removes a container's cgroup when it stops, and makes another one in its place when it starts.
#[test]
fn a_container_that_is_restarted_is_counted_on() {
    const TEST: &str = "a_container_that_is_restarted_is_counted_on";
    need_bpf!("a_container_that_is_restarted_is_counted_on");
    let podman = match Podman::new().and_then(|podman| build_service(&podman).map(|()| podman)) {
        Ok(podman) => podman,
        Err(why) => return skipped(TEST, &why),
    };
    let do_it = |args: &[&str]| run(podman.command().args(args)).unwrap();
    let file = TestFile::new("container", 8 * MIB);
    let pages = (8 * MIB / sys::page()) as f64;
    let data = format!("--volume={}:/data:ro", text(&file.path));
    let sleep = ["--network=none", &data, SERVICE, "/busybox", "sleep", "3600"];
    do_it(&[&["run", "--detach", "--name", "service"], &LIMITS[..], &sleep].concat());
    let pid = do_it(&["inspect", "--format", "{{.State.Pid}}", "service"]);
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let Some(path) = cgroups.lines().find_map(|l| l.strip_prefix("0::/")).filter(|path| path.contains("libpod")) else {
        return skipped(TEST, &format!("containers have no cgroup v2 of their own here: {cgroups}"));
    };
    let cgroup = common::cgroup_root().unwrap().join(path);
    let first = fs::metadata(&cgroup).unwrap().ino();

    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "100ms"), ("COLLECTOR_SCOPE_CGROUP", text(&cgroup))]);
    let is_missing = || {
        let health: Json = serde_json::from_str(&agent.get("/health").body).unwrap();
        health["status"] == "degraded" && health["message"].to_string().contains("the scope's cgroup")
    };
    let reads = || {
        file.drop_cache();
        let (delta, _) = agent.during(|| do_it(&["exec", "service", "/busybox", "wc", "-c", "/data"]));
        // Beside what the runtime itself reads in it.
        assert!(delta.misses_of(pages) >= pages && delta.attempts(pages) >= pages, "{}{}", delta.moved(), agent.log());
        delta.after
    };
    let mut before = reads();
    for _ in 0..2 {
        assert!(!is_missing(), "{}", agent.log());
        do_it(&["stop", "--time", "0", "service"]);
        agent.settled();
        assert!(!cgroup.exists() && is_missing(), "{}", agent.log());
        do_it(&["start", "service"]);
        assert_ne!(fs::metadata(&cgroup).unwrap().ino(), first);
        agent.settled();
        let after = reads();
        assert!(Delta { before, after: after.clone() }.misses_of(pages) >= pages);
        before = after;
    }
}
