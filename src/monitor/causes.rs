//! The functions of the kernel that tell why a page is filled: where the number of a task's system call does not, the
//! programs look for them in its stack (bpf/callers.h). The innermost decides.

use std::array;

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

/// What calls the function of reads before 5.12, or has it inlined, as 4.14 does, and some builds of later ones.
const INLINED: &str = "generic_file_read_iter";

/// Tells the programs where they lie. Takes as long as the kernel needs to list its symbols: some tens of milliseconds.
pub fn tell(settings: &mut Settings) {
    let names: [&str; FUNCTIONS + 1] = array::from_fn(|i| DECIDING.get(i).map_or(INLINED, |(name, _)| *name));
    let found = os::kernel_functions(&names).unwrap_or_else(|e| {
        log::debug!("/proc/kallsyms: {e}");
        Vec::new()
    });
    put(&found, settings);
    if settings.functions_known == 0 {
        log::info!("/proc/kallsyms does not tell where functions lie (that takes CAP_SYSLOG): some reads are left out");
        log::debug!("those by threads of the kernel, io_uring and AIO, of programs being executed and in 32-bit calls");
    }
}

/// Puts them where programs look, as they were found: those that decide, and the one in which a read may be inlined.
fn put(found: &[Option<(u64, u64)>], settings: &mut Settings) {
    let mut found = found.to_vec();
    if let (Some(inlined), [None, None, ..]) = (found.get(DECIDING.len()).copied(), &found[..]) {
        found[1] = inlined;
    }
    for ((place, (_, cause)), slot) in found.iter().zip(DECIDING).zip(&mut settings.functions) {
        if let Some((start, len)) = *place {
            *slot = Function { start, len, cause };
            settings.functions_known += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fills::FILL_CAUSES;

    /// As on 4.14 and on a 4.19 that was built by hand.
    #[test]
    fn a_read_is_known_by_its_caller_where_it_is_inlined() {
        let told = |reads: [Option<(u64, u64)>; 2]| {
            let mut found = vec![None; DECIDING.len() + 1];
            found[..2].copy_from_slice(&reads);
            *found.last_mut().unwrap() = Some((1000, 10));
            let mut settings = Settings::default();
            put(&found, &mut settings);
            let known = settings.functions.iter().filter(|f| f.len > 0).map(|f| (f.start, f.cause)).collect::<Vec<_>>();
            assert_eq!(known.len() as u64, settings.functions_known);
            known
        };
        assert_eq!(told([None, None]), [(1000, READ)]);
        assert_eq!(told([Some((1, 1)), None]), [(1, READ)]);
        assert_eq!(told([None, Some((2, 1))]), [(2, READ)]);
        let mut settings = Settings::default();
        put(&[], &mut settings);
        assert_eq!(settings.functions_known, 0);
    }

    #[test]
    fn causes_have_their_names() {
        let names = [READ, WRITE, FAULT, PREFETCH].map(|cause| FILL_CAUSES[cause as usize]);
        assert_eq!(names, ["read", "write", "fault", "prefetch"]);
    }
}
