//! The functions of the kernel that tell why a page is filled: where the number of a task's system call does not, the
//! programs look for them in its stack (bpf/callers.h). The innermost decides.

use crate::ebpf::abi::{FUNCTIONS, Function, Settings};
use crate::ebpf::os;

/// Indexes in [`FILL_CAUSES`](super::fills::FILL_CAUSES).
const READ: u64 = 0;
const WRITE: u64 = 1;
const FAULT: u64 = 2;
const PREFETCH: u64 = 3;

/// Each with what it is for. Reads are those whose calls count as attempts: `READ_FUNCTIONS` and `SPLICE_FUNCTIONS` of
/// probes.rs.
const DECIDING: [(&str, u64); FUNCTIONS] = [
    ("filemap_read", READ),
    ("generic_file_buffered_read", READ), // its name before 5.12
    ("filemap_splice_read", READ),
    ("filemap_fault", FAULT),
    ("handle_mm_fault", FAULT),
    // The common parts of file systems first, then what all writes go through.
    ("generic_perform_write", WRITE),
    ("iomap_file_buffered_write", WRITE),
    ("btrfs_buffered_write", WRITE),
    ("vfs_write", WRITE),
    ("vfs_iter_write", WRITE),
    ("iter_file_splice_write", WRITE),
    // These zero the rest of a page.
    ("vfs_fallocate", WRITE),
    ("notify_change", WRITE),
    // WILLNEED by whatever call.
    ("generic_fadvise", PREFETCH),
    ("vfs_fadvise", PREFETCH),
    ("ksys_fadvise64_64", PREFETCH),
];

/// Tells the programs where they lie. Takes as long as the kernel needs to list its symbols: some tens of milliseconds.
pub fn tell(settings: &mut Settings) {
    let found = os::kernel_functions(&DECIDING.map(|(name, _)| name)).unwrap_or_else(|e| {
        log::debug!("/proc/kallsyms: {e}");
        Vec::new()
    });
    for ((place, (_, cause)), slot) in found.iter().zip(DECIDING).zip(&mut settings.functions) {
        if let Some((start, len)) = *place {
            *slot = Function { start, len, cause };
            settings.functions_known += 1;
        }
    }
    if settings.functions_known == 0 {
        log::info!("/proc/kallsyms does not tell where functions lie (that takes CAP_SYSLOG): some reads are left out");
        log::debug!("those by threads of the kernel, io_uring and AIO, of programs being executed and in 32-bit calls");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fills::FILL_CAUSES;

    #[test]
    fn causes_have_their_names() {
        let names = [READ, WRITE, FAULT, PREFETCH].map(|cause| FILL_CAUSES[cause as usize]);
        assert_eq!(names, ["read", "write", "fault", "prefetch"]);
    }
}
