//! Who a cgroup is: the pod, container or service whose processes are in it, by the name of its directory alone, and by
//! the names of logs that kubelet keeps on its node. No API is asked.
//!
//! Directories of containers end in `<runtime>-<id>.scope` where systemd makes them (containerd, cri-o, Docker, Podman,
//! with `/container` and the like below), and are the bare id below the pod's or the runtime's own where not. Those of
//! pods: [`pod`](super::pod).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::pod;

/// Where kubelet has one log for each container: `<pod>_<namespace>_<container>-<id>.log`.
const CONTAINER_LOGS: &str = "/var/log/containers";
/// And a folder for each pod: `<namespace>_<pod>_<uid>`, with one for each of its containers in it.
const POD_LOGS: &str = "/var/log/pods";

/// Digits of a container's id in its short name, as Docker and Podman show it.
const SHORT: usize = 12;
/// Digits of a whole id.
const ID: usize = 64;
/// Names in a folder that are looked at; a node has a few hundred.
const MAX_ENTRIES: usize = 16_384;

/// The names of a container, as cAdvisor's labels have them; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Name {
    /// Of the pod; empty as well while no log tells it: ask again in the next tick.
    pub namespace: String,
    /// The pod's name, or its uid while no log tells it.
    pub pod: String,
    /// The container's name in its pod, or what it is called where there is none: `nginx.service`, an id of 12 digits.
    pub container: String,
}

/// What the path of a cgroup tells.
#[derive(Debug, Default, PartialEq, Eq)]
struct Identity {
    pod_uid: Option<String>,
    container_id: Option<String>,
    /// What those call it who have no pods: the container's short id, the unit, the machine.
    short: String,
}

/// Reads a path from its end: the innermost thing that has a name is what the cgroup belongs to.
fn identify(path: &str) -> Identity {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let pod_uid = names.iter().rev().find_map(|name| pod::uid_in(name).filter(|uid| pod::is_uid(uid)));
    for (i, name) in names.iter().enumerate().rev() {
        if let Some(id) = id_in(name) {
            // The monitor of a container is none of its processes.
            let short = match monitors(name) {
                true => (*name).to_owned(),
                false => id[..SHORT].to_owned(),
            };
            let container_id = (!monitors(name)).then(|| id.to_owned());
            return Identity { pod_uid, container_id, short };
        }
        if let Some(short) = machine(name, names.get(i.wrapping_sub(1)).copied()) {
            return Identity { pod_uid, container_id: None, short };
        }
        if name.ends_with(".service") || name.ends_with(".scope") || name.ends_with(".slice") {
            // Of a session and the like the user says more.
            let session = name.starts_with("session-") && name.ends_with(".scope");
            let short = if session && i > 0 { names[i - 1] } else { name };
            return Identity { pod_uid, container_id: None, short: unescaped(short) };
        }
    }
    Identity { pod_uid, container_id: None, short: names.last().copied().unwrap_or_default().to_owned() }
}

/// The id of a container in the name of its cgroup: `<id>`, or `<runtime>-<id>.scope`, or `libpod-<id>`.
fn id_in(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    let whole = id.len() == ID && id.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    whole.then_some(id)
}

/// Whether a cgroup of this name holds what watches over a container: crio-conmon-<id>.scope, libpod-conmon-<id>.scope.
fn monitors(name: &str) -> bool {
    name.contains("-conmon-")
}

/// The name of a virtual machine or a container that has one instead of an id: of LXC, systemd-nspawn or machined.
fn machine(name: &str, above: Option<&str>) -> Option<String> {
    let found = if above == Some("lxc") {
        Some(name)
    } else if let Some(name) = name.strip_prefix("lxc.payload.") {
        Some(name)
    } else if let Some(name) = name.strip_prefix("systemd-nspawn@") {
        name.strip_suffix(".service")
    } else {
        name.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"))
    };
    found.map(unescaped)
}

/// systemd writes bytes that cannot stand in the name of a unit as `\x2d`.
fn unescaped(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
                Some(digit(*high) << 4 | digit(*low))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[4..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The names of containers, by the paths of their cgroups. Of pods they are learned from kubelet's logs, which are read
/// again when something is asked for that is not known.
#[derive(Debug)]
pub struct Names {
    containers: PathBuf,
    pods: PathBuf,
    by_id: HashMap<String, Name>,
    by_uid: HashMap<String, Name>,
    /// Whether the logs were read since [`refresh`](Self::refresh).
    fresh: bool,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(Path::new(CONTAINER_LOGS), Path::new(POD_LOGS))
    }
}

impl Names {
    fn new(containers: &Path, pods: &Path) -> Self {
        Self {
            containers: containers.to_owned(),
            pods: pods.to_owned(),
            by_id: HashMap::new(),
            by_uid: HashMap::new(),
            fresh: false,
        }
    }

    /// A new tick: the logs may be read once more.
    pub fn refresh(&mut self) {
        self.fresh = false;
    }

    /// The name of the cgroup at `path`, below where cgroups are mounted.
    pub fn of(&mut self, path: &str) -> Name {
        let identity = identify(path);
        let Some(uid) = &identity.pod_uid else {
            return Name { container: identity.short, ..Name::default() };
        };
        let id = identity.container_id.as_deref();
        if let Some(name) = self.known(uid, id).or_else(|| self.read().then(|| self.known(uid, id)).flatten()) {
            return name;
        }
        // What is known of it: the pod's uid in the place of its name, with the short id.
        let container = id.map(|_| identity.short).unwrap_or_default();
        self.by_uid.get(uid).map_or_else(
            || Name { namespace: String::new(), pod: uid.clone(), container: container.clone() },
            |pod| Name { container: container.clone(), ..pod.clone() },
        )
    }

    /// What the logs say of this container, or of this pod if it is not one of its containers.
    fn known(&self, uid: &str, id: Option<&str>) -> Option<Name> {
        match id {
            Some(id) => self.by_id.get(id).cloned(),
            None => self.by_uid.get(uid).cloned(),
        }
    }

    /// Reads the logs' names, unless that was done in this tick.
    fn read(&mut self) -> bool {
        if std::mem::replace(&mut self.fresh, true) {
            return false;
        }
        self.by_id = entries(&self.containers).filter_map(|name| of_log(&name)).collect();
        self.by_uid = entries(&self.pods).filter_map(|name| of_folder(&name)).collect();
        true
    }
}

/// The names in a folder; none if it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// `<pod>_<namespace>_<container>-<id>.log`: neither of the names has a `_` in it.
fn of_log(name: &str) -> Option<(String, Name)> {
    let mut fields = name.strip_suffix(".log")?.splitn(3, '_');
    let (pod, namespace, rest) = (fields.next()?, fields.next()?, fields.next()?);
    let (container, id) = rest.rsplit_once('-')?;
    let name = Name { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() };
    Some((id_in(id)?.to_owned(), name))
}

/// `<namespace>_<pod>_<uid>`
fn of_folder(name: &str) -> Option<(String, Name)> {
    let mut fields = name.splitn(3, '_');
    let (namespace, pod, uid) = (fields.next()?, fields.next()?, fields.next()?);
    let name = Name { namespace: namespace.to_owned(), pod: pod.to_owned(), container: String::new() };
    pod::is_uid(uid).then(|| (uid.to_owned(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b1c2d3e-aaaa-bbbb-cccc-001122334455";
    const SAFE_UID: &str = "0b1c2d3e_aaaa_bbbb_cccc_001122334455";
    const STATIC_UID: &str = "8a9e2b4c6d8e0f1a2b3c4d5e6f708192";
    const ID: &str = "5f1d0c9b8a7e6d5c4b3a29181716151413121110fedcba98765432100a1b2c3d";
    const SHORT: &str = "5f1d0c9b8a7e";

    #[track_caller]
    fn is(path: &str, pod: Option<&str>, id: Option<&str>, short: &str) {
        let want = Identity { pod_uid: pod.map(Into::into), container_id: id.map(Into::into), short: short.into() };
        assert_eq!(identify(path), want, "{path}");
    }

    #[test]
    fn containers_of_pods_by_every_runtime_and_driver() {
        let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SAFE_UID}.slice");
        for path in [
            format!("{slice}/cri-containerd-{ID}.scope"),
            format!("{slice}/crio-{ID}.scope"),
            format!("{slice}/crio-{ID}.scope/container"),
            format!("{slice}/docker-{ID}.scope"),
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}/init.scope-not-of-it"),
            // k3s, and a cluster in containers.
            format!("/kubepods.slice/kubepods-pod{SAFE_UID}.slice/cri-containerd-{ID}.scope/nested"),
            format!("/docker/{}/kubelet/kubepods/besteffort/pod{UID}/{ID}", "0".repeat(64)),
            format!(
                "/system.slice/docker-{}.scope/kubelet.slice/kubelet-kubepods-pod{SAFE_UID}.slice/cri-containerd-{ID}.scope",
                "0".repeat(64)
            ),
        ] {
            is(&path, Some(UID), Some(ID), SHORT);
        }
        is(&slice, Some(UID), None, &format!("kubepods-burstable-pod{SAFE_UID}.slice"));
        is(&format!("/kubepods/pod{STATIC_UID}/{ID}"), Some(STATIC_UID), Some(ID), SHORT);
        // The monitor belongs to the pod, and is no container.
        is(&format!("{slice}/crio-conmon-{ID}.scope"), Some(UID), None, &format!("crio-conmon-{ID}.scope"));
    }

    #[test]
    fn what_is_no_pod_has_its_usual_name() {
        for (path, id, short) in [
            (format!("/docker/{ID}"), true, SHORT),
            (format!("/system.slice/docker-{ID}.scope"), true, SHORT),
            (format!("/machine.slice/libpod-{ID}.scope/container"), true, SHORT),
            (format!("/libpod_parent/libpod-{ID}"), true, SHORT),
            (format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"), true, SHORT),
            (format!("/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope"), true, SHORT),
            (format!("/system.slice/nerdctl-{ID}.scope"), true, SHORT),
            (format!("/default/{ID}"), true, SHORT),
            ("/system.slice/postgresql@15-main.service".into(), false, "postgresql@15-main.service"),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service".into(),
                false,
                "postgresql@15-main.service",
            ),
            ("/system.slice/foo.service/worker".into(), false, "foo.service"),
            (r"/system.slice/dev\x2dstore.service".into(), false, "dev-store.service"),
            ("/user.slice/user-1000.slice/session-3.scope".into(), false, "user-1000.slice"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-editor.service".into(),
                false,
                "app-editor.service",
            ),
            ("/lxc/web".into(), false, "web"),
            ("/lxc.payload.web/system.slice".into(), false, "system.slice"),
            ("/lxc.payload.web".into(), false, "web"),
            ("/machine.slice/systemd-nspawn@web.service/payload".into(), false, "web"),
            (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope".into(), false, "qemu-1-vm"),
            ("/init.scope".into(), false, "init.scope"),
            ("/mine".into(), false, "mine"),
            ("/".into(), false, ""),
            (String::new(), false, ""),
        ] {
            is(&path, None, id.then_some(ID), short);
        }
    }

    #[test]
    fn odd_names_are_harmless() {
        for path in ["///", "/pod", "/pod.slice", "/-.slice", r"/\x2", r"/a\xzz.service", "/é-🦀.scope", "/lxc", "/-"]
        {
            identify(path);
        }
        assert_eq!(unescaped(r"a\x2db\x2"), r"a-b\x2");
        assert_eq!(unescaped(r"\xff"), "\u{fffd}");
        // Of another length, or in capitals: no id.
        assert_eq!(id_in(&ID[1..]), None);
        assert_eq!(id_in(&ID.to_uppercase()), None);
        for log in ["", ".log", "a_b.log", "a_b_c.log", &format!("a_b_{ID}.log"), &format!("a_b_c-{}.log", &ID[1..])] {
            assert_eq!(of_log(log), None, "{log}");
        }
        for folder in ["", "a_b", "a_b_pod", "_"] {
            assert_eq!(of_folder(folder), None, "{folder}");
        }
    }

    fn name(namespace: &str, pod: &str, container: &str) -> Name {
        Name { namespace: namespace.into(), pod: pod.into(), container: container.into() }
    }

    #[test]
    fn pods_have_the_names_that_their_logs_have() {
        let root = std::env::temp_dir().join(format!("ebpf-sidecar-logs-{}", std::process::id()));
        let (containers, pods) = (root.join("containers"), root.join("pods"));
        fs::create_dir_all(&containers).unwrap();
        let mut names = Names::new(&containers, &pods);
        let pod = format!("/kubepods/burstable/pod{UID}");
        let path = format!("{pod}/{ID}");

        // Nothing is known yet but what the path says.
        assert_eq!(names.of(&path), name("", UID, SHORT));
        assert_eq!(names.of(&pod), name("", UID, ""));

        fs::create_dir_all(pods.join(format!("default_db-0_{UID}"))).unwrap();
        // In the same tick the logs are not read again.
        assert_eq!(names.of(&path), name("", UID, SHORT));
        names.refresh();
        assert_eq!(names.of(&path), name("default", "db-0", SHORT));
        assert_eq!(names.of(&pod), name("default", "db-0", ""));

        fs::write(containers.join(format!("db-0_default_banyan-db-{ID}.log")), "").unwrap();
        names.refresh();
        assert_eq!(names.of(&path), name("default", "db-0", "banyan-db"));
        // What is known stays so, whatever is asked for.
        assert_eq!(names.of("/system.slice/foo.service"), name("", "", "foo.service"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(names.of(&path), name("default", "db-0", "banyan-db"));
    }
}
