//! What `make dist` makes: packages that are installed, upgraded and removed, and images that are loaded, where there are any
//! in target/dist (`make test-packages` makes them first).

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value as Json;

use common::{Killed, TempDir, Tree, skipped, text, wait_for};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The folder, if something was made.
fn dist() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dist");
    folder.join("SHA256SUMS").exists().then_some(folder)
}

/// Skips a test where nothing was made.
macro_rules! need_dist {
    ($test:expr) => {
        match dist() {
            Some(folder) => folder,
            None => return skipped($test, "nothing is in target/dist (make test-packages)"),
        }
    };
}

/// What a program prints, if it succeeds.
fn run(command: &mut Command) -> Result<String, String> {
    let o = command.output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if o.status.success() { Ok(said(&o.stdout)) } else { Err(said(&[o.stdout, o.stderr].concat())) }
}

fn there(program: &str) -> bool {
    run(Command::new(program).arg("--version")).is_ok()
}

/// Architectures that were made, as the kernel calls them and as Debian does.
fn made(dist: &Path) -> Vec<(&'static str, &'static str)> {
    let all = [("x86_64", "amd64"), ("aarch64", "arm64")];
    let tarball = |arch: &str| dist.join(format!("ebpf-sidecar-{VERSION}-linux-{arch}.tar.gz")).exists();
    all.into_iter().filter(|(arch, _)| tarball(arch)).collect()
}

fn deb(dist: &Path, arch: &str) -> PathBuf {
    dist.join(format!("ebpf-sidecar_{VERSION}_{arch}.deb"))
}

/// Files of a package: where they lie, and their modes.
const FILES: [(&str, &str); 8] = [
    ("/etc/ebpf-sidecar/config.yaml", "rw-r-----"),
    ("/usr/bin/ebpf-sidecar", "rwxr-xr-x"),
    ("/usr/lib/systemd/system/ebpf-sidecar.service", "rw-r--r--"),
    ("/usr/share/bash-completion/completions/ebpf-sidecar", "rw-r--r--"),
    ("/usr/share/doc/ebpf-sidecar/LICENSE", "rw-r--r--"),
    ("/usr/share/doc/ebpf-sidecar/sbom.cdx.json", "rw-r--r--"),
    ("/usr/share/fish/vendor_completions.d/ebpf-sidecar.fish", "rw-r--r--"),
    ("/usr/share/man/man8/ebpf-sidecar.8", "rw-r--r--"),
];

#[test]
fn what_packages_run_is_shell() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/packages");
    let mut scripts = 0;
    for kind in ["deb", "rpm"] {
        for script in fs::read_dir(folder.join(kind)).unwrap() {
            run(Command::new("sh").arg("-n").arg(script.unwrap().path())).unwrap();
            scripts += 1;
        }
    }
    assert_eq!(scripts, 6);
}

#[test]
fn the_sums_are_those_of_the_files() {
    let dist = need_dist!("the_sums_are_those_of_the_files");
    run(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&dist)).unwrap();
    let sums = fs::read_to_string(dist.join("SHA256SUMS")).unwrap();
    let of = made(&dist).len();
    assert!(of > 0 && sums.lines().count() == 5 * of + 1, "{sums}");
}

#[test]
fn dpkg_reads_the_package_for_debian() {
    const TEST: &str = "dpkg_reads_the_package_for_debian";
    let dist = need_dist!(TEST);
    if !there("dpkg-deb") {
        return skipped(TEST, "no dpkg-deb");
    }
    for (_, arch) in made(&dist) {
        let deb = deb(&dist, arch);
        let dpkg = |args: &[&str]| run(Command::new("dpkg-deb").args(args).arg(&deb)).unwrap();
        let field = |name: &str| run(Command::new("dpkg-deb").arg("-f").arg(&deb).arg(name)).unwrap();
        assert_eq!(field("Package"), "ebpf-sidecar");
        assert_eq!(field("Architecture"), arch);
        let listed = dpkg(&["-c"]);
        let modes: BTreeMap<&str, &str> = listed
            .lines()
            .filter(|l| l.starts_with('-'))
            .map(|l| (l.rsplit_once(" ./").unwrap().1, &l[1..10]))
            .collect();
        for (file, mode) in FILES {
            // dpkg has manuals compressed.
            let file = file.trim_start_matches('/');
            let found = modes.get(file).or_else(|| modes.get(format!("{file}.gz").as_str()));
            assert_eq!(found, Some(&mode), "{file}: {listed}");
        }
        assert!(listed.lines().all(|l| l.contains(" root/root ") || l.contains(" 0/0 ")), "{listed}");
        let control = TempDir::new("deb");
        run(Command::new("dpkg-deb").arg("-e").arg(&deb).arg(&control.path)).unwrap();
        let conffiles = fs::read_to_string(control.path.join("conffiles")).unwrap();
        assert_eq!(conffiles.trim(), "/etc/ebpf-sidecar/config.yaml");
    }
}

#[test]
fn rpm_reads_installs_and_removes_its_package() {
    const TEST: &str = "rpm_reads_installs_and_removes_its_package";
    let dist = need_dist!(TEST);
    if !there("rpm") {
        return skipped(TEST, "no rpm");
    }
    for (arch, _) in made(&dist) {
        let file = dist.join(format!("ebpf-sidecar-{VERSION}.{arch}.rpm"));
        let root = TempDir::new("rpm");
        let rpm = |args: &[&str]| {
            let of_root = ["--root", text(&root.path), "--nodeps", "--noscripts", "--ignorearch"];
            let of_root = &of_root[..if args[0] == "-i" { 5 } else { 2 }];
            run(Command::new("rpm").args(args).args(of_root))
        };
        run(Command::new("rpm").args(["-K", "--nosignature"]).arg(&file)).unwrap();
        let query = |args: &[&str]| run(Command::new("rpm").arg("-qp").args(args).arg(&file)).unwrap();
        assert_eq!(
            query(&["--queryformat", "%{NAME} %{VERSION} %{ARCH} %{LICENSE}"]),
            format!("ebpf-sidecar {VERSION} {arch} Apache-2.0")
        );
        assert_eq!(query(&["-c"]), "/etc/ebpf-sidecar/config.yaml");
        let requires = query(&["--requires"]);
        let own = ["rpmlib(", "/bin/sh", "config(ebpf-sidecar)"];
        assert!(requires.lines().all(|l| own.iter().any(|own| l.starts_with(own))), "{requires}");
        let modes = query(&["--queryformat", "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME}\n]"]);
        for (path, mode) in FILES {
            assert!(modes.lines().any(|l| l == format!("{path} -{mode} root:root")), "{path}: {modes}");
        }
        // Its scripts are shell, for this shell too.
        for script in ["%{POSTIN}", "%{PREUN}", "%{POSTUN}"] {
            let body = query(&["--queryformat", script]);
            assert!(body.contains("systemctl"), "{script}: {body}");
            run(Command::new("sh").args(["-n", "-c", &body])).unwrap();
        }
        rpm(&["-i", text(&file)]).unwrap();
        let binary = root.path.join("usr/bin/ebpf-sidecar");
        if arch == std::env::consts::ARCH {
            assert!(run(Command::new(&binary).arg("version")).unwrap().contains(VERSION));
        }
        let config = root.path.join("etc/ebpf-sidecar/config.yaml");
        fs::write(&config, "log: {level: debug}\n").unwrap();
        let changed = rpm(&["-V", "--nodeps", "ebpf-sidecar"]).unwrap_err();
        assert!(changed.lines().all(|l| l.ends_with(" c /etc/ebpf-sidecar/config.yaml")), "{changed}");
        let of_root = ["--root", text(&root.path)];
        run(Command::new("rpm").args(["-e", "--noscripts", "ebpf-sidecar"]).args(of_root)).unwrap();
        assert!(!binary.exists() && !config.exists());
        assert!(config.with_file_name("config.yaml.rpmsave").exists(), "a changed configuration is kept");
    }
}

/// A machine of its own, whose root is this one's with whatever is changed in memory: namespaces of mounts, processes, cgroups and
/// network, in which systemd (the second argument) is the first process, and runs trial.service of the folder (the first).
const BOOT: &str = r#"
set -e
mount --make-rprivate /
ip link set lo up
mount -t tmpfs tmpfs "$1/layer"
mkdir "$1/layer/upper" "$1/layer/work" "$1/layer/root"
root=$1/layer/root
mount -t overlay -o "lowerdir=/,upperdir=$1/layer/upper,workdir=$1/layer/work" overlay "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tracefs tracefs "$root/sys/kernel/tracing"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/run"
mount --bind "$1" "$root/mnt"
mkdir -p "$root/run/systemd/system/ebpf-sidecar.service.d" "$root/run/lock"
rm -f "$root"/usr/sbin/policy-rc.d
cp "$1/trial.service" "$root/run/systemd/system/"
# Nothing of the host's own boot.
printf '[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/mnt/agent.log\nStandardError=inherit\n' >"$root/run/systemd/system/ebpf-sidecar.service.d/alone.conf"
export container=test
exec chroot "$root" "$2" --system --unit=trial.service --log-target=console --show-status=no
"#;

const UNIT: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n\
    ExecStart=/bin/sh -c 'if sh -eux /mnt/trial.sh >/mnt/trial.log 2>&1; then echo ok >/mnt/end; else echo failed >/mnt/end; fi'\n";

/// What an administrator does with the package.
const TRIAL: &str = r#"
export DEBIAN_FRONTEND=noninteractive
config=/etc/ebpf-sidecar/config.yaml
unit=ebpf-sidecar.service
links() { find /etc/systemd/system -name $unit; }
healthy() { ebpf-sidecar health || { systemctl status $unit --no-pager -l; false; }; }
test ! -e $config
# Installed: it runs, now and after the next boot.
dpkg -i /mnt/first.deb
systemctl is-active $unit
systemctl is-enabled $unit
healthy
test "$(stat -c %a $config)" = 640
man -w ebpf-sidecar
zsh=/usr/share/zsh/vendor-completions/_ebpf-sidecar
test -e $zsh -a -e /usr/share/bash-completion/completions/ebpf-sidecar
first=$(systemctl show $unit -p MainPID --value)
# Upgraded: what was changed stays, and the new one runs.
echo '# mine' >>$config
dpkg -i /mnt/second.deb
test "$(dpkg-query -W -f '${Version}' ebpf-sidecar)" = SECOND
tail -n 1 $config | grep -x '# mine'
systemctl is-active $unit
healthy
test "$(systemctl show $unit -p MainPID --value)" != "$first"
# Disabled and upgraded: it stays so.
systemctl disable --now $unit
dpkg -i /mnt/first.deb
test "$(systemctl is-enabled $unit || :)" = disabled
systemctl enable --now $unit
# Removed: the configuration stays.
dpkg -r ebpf-sidecar
! systemctl is-active $unit
test ! -e /usr/bin/ebpf-sidecar -a -e $config
# Purged: nothing does.
dpkg -P ebpf-sidecar
test ! -e /etc/ebpf-sidecar
test -z "$(links)"
test -z "$(find / -xdev -path /mnt -prune -o -path '*deb-systemd-helper*ebpf-sidecar*' -print)"
"#;

#[test]
fn the_package_for_debian_is_installed_upgraded_removed_and_purged() {
    const TEST: &str = "the_package_for_debian_is_installed_upgraded_removed_and_purged";
    let dist = need_dist!(TEST);
    need_bpf!("the_package_for_debian_is_installed_upgraded_removed_and_purged");
    let Some((_, arch)) = made(&dist).into_iter().find(|(arch, _)| *arch == std::env::consts::ARCH) else {
        return skipped(TEST, "no package for this machine");
    };
    let systemd = ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"].into_iter().find(|p| Path::new(p).exists());
    let (Some(systemd), true) = (systemd, there("dpkg-deb")) else {
        return skipped(TEST, "no systemd, or no dpkg");
    };
    let dir = TempDir::new("package");
    let path = |name: &str| dir.path.join(name);
    fs::create_dir(path("layer")).unwrap();
    fs::copy(deb(&dist, arch), path("first.deb")).unwrap();
    // The same as a later version.
    run(Command::new("dpkg-deb").arg("-R").args([path("first.deb"), path("unpacked")])).unwrap();
    let control = path("unpacked/DEBIAN/control");
    let later = fs::read_to_string(&control).unwrap().replacen("Version: ", "Version: 9:", 1);
    let version = later.lines().find_map(|l| l.strip_prefix("Version: ")).unwrap().to_owned();
    fs::write(&control, &later).unwrap();
    let mut build = Command::new("dpkg-deb");
    run(build.args(["-b", "--root-owner-group"]).args([path("unpacked"), path("second.deb")])).unwrap();
    fs::write(path("trial.sh"), TRIAL.replace("SECOND", &format!("'{version}'"))).unwrap();
    fs::write(path("trial.service"), UNIT).unwrap();
    let log = fs::File::create(path("systemd.log")).unwrap();
    let tree = Tree(common::Cgroup::new());
    let script = "echo $$ >$1/cgroup.procs; shift; exec unshare --mount --pid --ipc --cgroup --net --fork --kill-child sh -c \"$@\"";
    let process = Command::new("sh")
        .args(["-c", script, "sh", text(&tree.0.path), BOOT, "sh", text(&dir.path), systemd])
        .env_remove("LD_LIBRARY_PATH") // of the tests
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let mut process = Killed(process.unwrap());
    let said = |name: &str| fs::read_to_string(path(name)).unwrap_or_default();
    let deadline = std::time::Instant::now() + Duration::from_secs(240);
    while said("end").is_empty() {
        if process.0.try_wait().unwrap().is_some() {
            return skipped(TEST, &format!("no systemd in namespaces here: {}", said("systemd.log").trim()));
        }
        assert!(std::time::Instant::now() < deadline, "in vain\n{}\n{}", said("systemd.log"), said("trial.log"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = process.0.kill();
    wait_for(&mut process.0, Duration::from_secs(30));
    let why = ["trial.log", "agent.log", "systemd.log"].map(said).join("\n");
    assert_eq!(said("end"), "ok\n", "{why}");
}

#[test]
fn images_are_read_by_those_who_load_them() {
    const TEST: &str = "images_are_read_by_those_who_load_them";
    let dist = need_dist!(TEST);
    let made = made(&dist);
    let file = |part: &str| dist.join(format!("ebpf-sidecar-{VERSION}-image{part}.tar"));
    // What an image says of itself is what its Dockerfile does.
    let config = |archive: &Path| -> Json {
        let blob = |name: &str| run(Command::new("tar").arg("-xOf").args([text(archive), name])).unwrap();
        let manifest: Json = serde_json::from_str(&blob("manifest.json")).unwrap();
        serde_json::from_str(&blob(manifest[0]["Config"].as_str().unwrap())).unwrap()
    };
    for (arch, goarch) in &made {
        let all = config(&file(&format!("-{arch}")));
        assert_eq!((all["architecture"].as_str(), all["os"].as_str()), (Some(*goarch), Some("linux")));
        let config = &all["config"];
        assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/ebpf-sidecar"]));
        assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD", "/usr/bin/ebpf-sidecar", "health"]));
        assert_eq!(config["ExposedPorts"], serde_json::json!({"8080/tcp": {}, "9090/tcp": {}}));
        assert_eq!(config["Labels"]["org.opencontainers.image.title"], "ebpf-sidecar");
    }
    if !there("skopeo") {
        return skipped(TEST, "no skopeo");
    }
    let skopeo = |args: &[&str], of: String| run(Command::new("skopeo").args(args).arg(of));
    let raw: Json =
        serde_json::from_str(&skopeo(&["inspect", "--raw"], format!("oci-archive:{}", text(&file("")))).unwrap())
            .unwrap();
    let platforms: Vec<_> =
        raw["manifests"].as_array().unwrap().iter().map(|m| m["platform"]["architecture"].clone()).collect();
    assert_eq!(platforms, made.iter().map(|(_, goarch)| Json::from(*goarch)).collect::<Vec<_>>());
    for (arch, _) in made {
        for transport in ["oci-archive", "docker-archive"] {
            let said = skopeo(&["inspect"], format!("{transport}:{}", text(&file(&format!("-{arch}"))))).unwrap();
            assert!(said.contains("\"Layers\""), "{said}");
        }
    }
}
