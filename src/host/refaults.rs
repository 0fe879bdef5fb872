//! Pages of files that the kernel had taken back and was asked for again, as it counts them itself: the proof that memory is
//! short. It knows them by what reclaim leaves in a page's place; what fadvise drops leaves nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Their names: since 5.9, and before.
const NAMES: [&str; 2] = ["workingset_refault_file ", "workingset_refault "];
/// Bytes of /proc/vmstat, which has some 200 lines.
const ROOM: usize = 16 << 10;

/// Where they are counted; kept open for the host.
#[derive(Debug, Default)]
pub struct Refaults {
    host: Option<File>,
}

impl Refaults {
    /// Those of the whole host.
    pub fn of_host(&mut self) -> Option<u64> {
        if self.host.is_none() {
            self.host = File::open("/proc/vmstat").ok();
        }
        let mut bytes = vec![0; ROOM];
        let n = self.host.as_ref()?.read_at(&mut bytes, 0).ok()?;
        find(&String::from_utf8_lossy(&bytes[..n]))
    }

    /// Those of a cgroup and all below it; `None` if it has no memory controller.
    pub fn of_cgroup(path: &Path) -> Option<u64> {
        find(&fs::read_to_string(path.join("memory.stat")).ok()?)
    }
}

fn find(text: &str) -> Option<u64> {
    NAMES.iter().find_map(|name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_under_either_name() {
        assert_eq!(find("nr_free 1\nworkingset_refault_anon 2\nworkingset_refault_file 3\n"), Some(3));
        assert_eq!(find("workingset_refault 4\nworkingset_activate 5\n"), Some(4));
        assert_eq!(find("workingset_nodes 4\n"), None);
    }

    #[test]
    fn the_host_has_them_and_what_is_no_cgroup_has_not() {
        let mut refaults = Refaults::default();
        let first = refaults.of_host();
        assert!(first.is_some() && refaults.of_host() >= first);
        assert_eq!(Refaults::of_cgroup(Path::new("/nowhere")), None);
    }
}
