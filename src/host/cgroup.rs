//! Cgroups of version 2, as directories.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ebpf::os;

/// Which cgroup a directory is: one that is made anew under the same path is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    /// Of a directory of the hierarchy.
    pub fn of(directory: &fs::Metadata) -> Self {
        Self { device: directory.dev(), inode: directory.ino() }
    }
}

/// Why a path is no cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCgroup {
    /// There is nothing yet, or no longer, below this cgroup.
    Absent(PathBuf),
    /// It is something else, or lies where no cgroup can.
    Wrong(String),
}

impl fmt::Display for NoCgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(above) => write!(f, "it does not exist, only {} does", above.display()),
            Self::Wrong(why) => f.write_str(why),
        }
    }
}

/// The cgroup at this path.
pub fn find(path: &Path) -> Result<Id, NoCgroup> {
    let on_cgroup2 = |path: &Path| os::is_on_cgroup2(path).map_err(|e| NoCgroup::Wrong(e.to_string()));
    match fs::metadata(path) {
        Ok(m) if !m.is_dir() => Err(NoCgroup::Wrong("it is no directory".into())),
        Ok(m) => match (on_cgroup2(path)?, root()) {
            (true, _) => Ok(Id::of(&m)),
            (false, Some(root)) => {
                let words = format!("it is no cgroup v2; those of this host are under {}", root.display());
                Err(NoCgroup::Wrong(words))
            }
            (false, None) => {
                let words = "it is no cgroup v2, and this host has none mounted: use collector.scope.comm";
                Err(NoCgroup::Wrong(words.into()))
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => match path.ancestors().skip(1).find(|p| p.exists()) {
            Some(above) if on_cgroup2(above)? => Err(NoCgroup::Absent(above.to_owned())),
            _ => Err(NoCgroup::Wrong(e.to_string())),
        },
        Err(e) => Err(NoCgroup::Wrong(e.to_string())),
    }
}

/// Why `path` cannot be a scope, if it cannot. One that is not there yet may come.
pub fn no_scope(path: &Path) -> Option<String> {
    match find(path) {
        Err(NoCgroup::Wrong(why)) => Some(why),
        Ok(_) | Err(NoCgroup::Absent(_)) => None,
    }
}

/// Whether the kernel has cgroups at all.
pub fn tells() -> bool {
    Path::new("/proc/self/cgroup").exists()
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

    fn wrong(path: &str) -> String {
        match find(Path::new(path)) {
            Err(NoCgroup::Wrong(why)) => why,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn only_a_directory_of_cgroup_v2_is_a_cgroup() {
        assert_eq!(wrong("/proc/self/mounts"), "it is no directory");
        assert!(wrong("/proc/self").contains("no cgroup v2"));
        assert!(wrong("/proc/self/none").contains("No such file"));
        assert!(wrong("/proc/self/mounts/none").contains("Not a directory"));
        let Some(root) = root() else { return };
        assert_eq!(find(&root), find(&root.join(".")));
        assert!(find(&root).is_ok());
        let none = root.join("ebpf-sidecar-none/below");
        assert_eq!(find(&none), Err(NoCgroup::Absent(root.clone())));
        assert_eq!((no_scope(&root), no_scope(&none)), (None, None));
        assert!(no_scope(&root.join("cgroup.procs/none")).is_some());
    }
}
