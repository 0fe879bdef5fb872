//! Where cgroup v2 is on this host, and whether a path is one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ebpf::os;

/// Why `path` cannot be a scope, if it cannot: it is no cgroup v2 directory.
pub fn no_cgroup(path: &Path) -> Option<String> {
    match fs::metadata(path).and_then(|m| Ok((m.is_dir(), os::is_on_cgroup2(path)?))) {
        Ok((true, true)) => None,
        Ok((false, _)) => Some("it is no directory".into()),
        Ok((true, false)) => Some(match root() {
            Some(root) => format!("it is no cgroup v2; those of this host are under {}", root.display()),
            None => "it is no cgroup v2, and this host has none mounted: use collector.scope.comm".into(),
        }),
        Err(e) => Some(e.to_string()),
    }
}

/// Where cgroup v2 is mounted.
pub fn root() -> Option<PathBuf> {
    mounts().into_iter().next()
}

/// Where cgroup v2 is mounted; in a container that has the host's as well, in several places.
pub fn mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then(|| path.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_cgroup_v2_is_a_cgroup() {
        assert_eq!(no_cgroup(Path::new("/proc/self/mounts")).unwrap(), "it is no directory");
        assert!(no_cgroup(Path::new("/proc/self")).unwrap().contains("no cgroup v2"));
        assert!(no_cgroup(Path::new("/proc/self/none")).unwrap().contains("No such file"));
        if let Some(root) = root() {
            assert_eq!(no_cgroup(&root), None);
        }
    }
}
