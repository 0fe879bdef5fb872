//! The cgroup whose processes are counted. One that is made anew under the same path (systemd does so at each restart of
//! a service) is another one for the kernel: what the programs compare with is put right at each collection.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::ebpf::object::Map;
use crate::host::cgroup::{self, Id, NoCgroup};
use crate::host::pod;

/// Looking for a pod walks through the hierarchy: it takes at most one part in so many of the time.
const SEARCH_SHARE: u32 = 20;

/// A cgroup that the programs count in, as long as there is one at its path.
pub struct CgroupScope {
    /// Of one slot: what it holds stays alive for the kernel, even if it has been removed.
    map: Map,
    path: PathBuf,
    /// The one in the map.
    counted: Option<Id>,
    trouble: Option<String>,
    /// When a pod may be looked for again.
    search: Instant,
}

impl CgroupScope {
    /// Has the programs count in the cgroup at `path` from now on, or once it is there.
    pub fn new(map: Map, path: &Path) -> Self {
        let mut scope = Self { map, path: path.to_owned(), counted: None, trouble: None, search: Instant::now() };
        scope.put_right();
        if let Some(why) = &scope.trouble {
            log::warn!("{why}");
        }
        scope
    }

    /// Where the cgroup is, or is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why nothing is counted, if that is so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Puts right what the programs compare with: one stat() if nothing has changed.
    pub fn follow(&mut self) {
        let (was, had) = (self.trouble.take(), self.counted);
        self.put_right();
        match &self.trouble {
            Some(why) if was.is_none() => log::warn!("{why}"),
            Some(_) => {}
            None if had != self.counted => {
                log::info!("the cgroup {} was made anew: counting goes on in it", self.path.display());
            }
            None => {}
        }
    }

    fn put_right(&mut self) {
        let mut found = cgroup::find(&self.path);
        if matches!(found, Err(NoCgroup::Absent(_)))
            && let Some(path) = self.find_pod()
        {
            log::info!("the cgroup of the pod has moved from {} to {}", self.path.display(), path.display());
            found = cgroup::find(&path);
            self.path = path;
        }
        if found.as_ref().ok() == self.counted.as_ref() && self.counted.is_some() {
            return;
        }
        match found.map_err(|e| e.to_string()).and_then(|_| self.count().map_err(|e| e.to_string())) {
            Ok(id) => self.counted = Some(id),
            Err(why) => {
                self.trouble = Some(format!("nothing is counted in the scope's cgroup {}: {why}", self.path.display()));
                // The kernel lets go of a removed one. Where this is refused no process is left in it anyway.
                if self.counted.take().is_some() {
                    let _ = self.map.delete(&0u32.to_ne_bytes());
                }
            }
        }
    }

    /// Puts what is at the path into the map. It may be another one than a moment before: the directory opened decides.
    fn count(&self) -> io::Result<Id> {
        let directory: File = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&self.path)?;
        self.map.set_fd(directory.as_fd()).map_err(|e| e.cause)?;
        Ok(Id::of(&directory.metadata()?))
    }

    /// Where the pod is now whose cgroup was at the path, if it was one's.
    fn find_pod(&mut self) -> Option<PathBuf> {
        let begin = Instant::now();
        if begin < self.search {
            return None;
        }
        let found = pod::moved(&self.path);
        self.search = begin + begin.elapsed().saturating_mul(SEARCH_SHARE);
        found
    }
}
