//! Finds the cgroup of a Kubernetes pod, for `collector.scope.pod_uid`.
//!
//! kubelet names it after the pod's uid, by either of its two cgroup drivers:
//! `kubepods/burstable/pod<uid>` (cgroupfs), and
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _ for ->.slice` (systemd).
//! Above it other cgroups may stand (kubelet's `--cgroup-root`, a cluster in containers), so the name alone decides.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroup;

/// How deep below the root a pod may lie: four with the systemd driver, and some for what stands above.
const MAX_DEPTH: usize = 8;

/// The cgroup of the pod with this uid, or why it is not here.
pub fn of_uid(uid: &str) -> Result<PathBuf, String> {
    find(&cgroup::mounts(), uid)
}

/// The cgroup of the pod that this process is in, or why it is not known.
pub fn own() -> Result<PathBuf, String> {
    let read = |name| fs::read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default();
    let uid = own_uid(&read("mountinfo"), &read("cgroup")).ok_or("this is no Kubernetes pod")?;
    find(&cgroup::mounts(), &uid)
}

/// The cgroup of the pod in one of the mounted hierarchies.
fn find(mounts: &[PathBuf], uid: &str) -> Result<PathBuf, String> {
    if mounts.is_empty() {
        return Err("this host has no cgroup v2 mounted: use collector.scope.comm".into());
    }
    let found = mounts.iter().find_map(|root| find_below(root, uid));
    let names: Vec<_> = mounts.iter().map(|m| m.display().to_string()).collect();
    found.ok_or_else(|| {
        let names = names.join(", ");
        format!("no cgroup of pod {uid} under {names}; in a container, mount the host's /sys/fs/cgroup somewhere")
    })
}

/// The nearest cgroup below `root` that is the pod's: level by level, since a host has many.
fn find_below(root: &Path, uid: &str) -> Option<PathBuf> {
    let mut level = vec![root.to_owned()];
    for _ in 0..MAX_DEPTH {
        // A cgroup that has gone meanwhile, or may not be read, is not it.
        let entries = level.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().filter_map(io::Result::ok);
        level = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        let is_it = |path: &&PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| is_of(n, uid));
        if let Some(path) = level.iter().find(is_it) {
            return Some(path.clone());
        }
    }
    None
}

/// Whether a cgroup of this name is the pod's.
fn is_of(name: &str, uid: &str) -> bool {
    uid_in(name).is_some_and(|found| found == uid)
}

/// The uid of the pod whose cgroup has this name.
pub(super) fn uid_in(name: &str) -> Option<String> {
    match name.strip_suffix(".slice") {
        // In the names of slices, - separates the levels.
        Some(slice) => Some(slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-")),
        None => Some(name.strip_prefix("pod")?.to_owned()),
    }
}

/// The uid of the own pod: of the files that kubelet mounts into each container, and else of the own cgroup, which
/// shows only without a cgroup namespace.
pub(crate) fn own_uid(mountinfo: &str, cgroup: &str) -> Option<String> {
    // `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …`, ROOT being `/var/lib/kubelet/pods/<uid>/etc-hosts` or the like
    let mounted = mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let (_, below) =
            root.rsplit_once("/pods/").filter(|_| matches!(point, "/etc/hosts" | "/dev/termination-log"))?;
        Some(below.split_once('/')?.0.to_owned())
    });
    let mut names = cgroup.lines().flat_map(|line| line.splitn(3, ':').nth(2).unwrap_or_default().split('/'));
    mounted.or_else(|| names.find_map(|name| uid_in(name).filter(|uid| is_uid(uid))))
}

/// Other cgroups may be called pods or podman.
pub(super) fn is_uid(uid: &str) -> bool {
    uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// Where the cgroup of a pod is now that was at `path`; `None` if that was no pod's, or it is nowhere.
pub fn moved(path: &Path) -> Option<PathBuf> {
    let uid = path.file_name().and_then(|name| uid_in(name.to_str()?)).filter(|uid| is_uid(uid))?;
    cgroup::mounts().iter().find_map(|root| find_below(root, &uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b1c2d3e-aaaa-bbbb-cccc-001122334455";
    const OTHER: &str = "ffffffff-aaaa-bbbb-cccc-001122334455";

    /// A folder with these folders in it; removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, folders: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("ebpf-sidecar-pod-{name}-{}", std::process::id()));
            for folder in folders {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_pod_is_found_with_either_driver_in_every_class() {
        let uid = UID.replace('-', "_");
        let other = OTHER.replace('-', "_");
        for (i, path) in [
            format!("kubepods/pod{UID}"),
            format!("kubepods/burstable/pod{UID}"),
            format!("kubepods/besteffort/pod{UID}"),
            format!("kubepods.slice/kubepods-pod{uid}.slice"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice"),
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice"),
            // A cluster in containers.
            format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid}.slice"),
            format!("docker/0123/kubelet/kubepods/burstable/pod{UID}"),
        ]
        .iter()
        .enumerate()
        {
            let tree = Tree::new(
                &i.to_string(),
                &[
                    &format!("kubepods/burstable/pod{OTHER}/crio-1"),
                    &format!("kubepods.slice/kubepods-pod{other}.slice/cri-containerd-{UID}.scope"),
                    &format!("{path}/cri-containerd-0123.scope"),
                    "system.slice/pods",
                ],
            );
            assert_eq!(find(&[Path::new("/proc/nowhere").into(), tree.0.clone()], UID), Ok(tree.0.join(path)));
        }
    }

    #[test]
    fn a_pod_that_is_not_there_is_an_error_that_says_where_was_looked() {
        let tree = Tree::new("none", &[&format!("kubepods/pod{OTHER}"), &format!("kubepods/pod{UID}x")]);
        let message = find(std::slice::from_ref(&tree.0), UID).unwrap_err();
        assert!(message.contains(UID) && message.contains(tree.0.to_str().unwrap()), "{message}");
        assert!(find(&[], UID).unwrap_err().contains("collector.scope.comm"));
    }

    #[test]
    fn the_own_pod_is_known_by_its_mounts_or_its_cgroup() {
        let hosts =
            |root: &str, point: &str| format!("12 10 0:1 / /proc rw - proc proc rw\n1 2 259:1 {root} {point} rw -");
        let of = |mounts: &str, cgroup: &str| own_uid(mounts, cgroup);
        let uid = Some(UID.to_owned());
        assert_eq!(of(&hosts(&format!("/var/lib/kubelet/pods/{UID}/etc-hosts"), "/etc/hosts"), "0::/\n"), uid);
        assert_eq!(of(&hosts(&format!("/pods/{UID}/containers/a/1f"), "/dev/termination-log"), "0::/\n"), uid);
        // A volume of another pod, as an agent for backups may have it.
        assert_eq!(of(&hosts(&format!("/var/lib/kubelet/pods/{OTHER}/volumes"), "/backup"), "0::/\n"), None);
        assert_eq!(of(&hosts("/etc/hosts", "/etc/hosts"), "0::/system.slice/podman.service/pods\n"), None);
        let slice = format!("kubepods.slice/kubepods-pod{}.slice/cri-containerd-1.scope", UID.replace('-', "_"));
        assert_eq!(of("", &format!("1:name=systemd:/\n0::/{slice}\n")), uid);
        assert_eq!(of("", &format!("4:memory:/kubepods/burstable/pod{UID}/0123\n")), uid);
        // A pod of a static manifest has a hash for a uid.
        assert_eq!(of("", "0::/kubepods/pod0123456789abcdef0123456789abcdef/1\n").unwrap().len(), 32);
    }
}
