//! Rust mirror of bpf/shared.h and bpf/peek.h, but for the counters (`struct totals`), which are looked up by name. A test
//! compares size and offsets with the objects' BTF.

/// Length of a task's name with its final NUL (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;
/// Rows of a map of processes.
pub const MAX_PROCS: usize = 5120;
/// Rows of a map of files.
pub const MAX_FILES: usize = 8192;
/// Slots before them.
pub const FILE_SLOTS: usize = 2048;
/// Slots for files whose path has been told.
pub const TOLD_SLOTS: usize = 16384;
/// What is counted for each process in each cgroup (`enum activity`).
pub const ACTIVITIES: usize = DID_FILL + FILL_CAUSES;
/// fadvise calls.
pub const DID_FADVISE: usize = 0;
/// Of those, successful.
pub const DID_FADVISE_SUCCESS: usize = 1;
/// Pages that buffered reads touched.
pub const DID_READ_PAGES: usize = 2;
/// Bytes that they copied.
pub const DID_READ_BYTES: usize = 3;
/// Reads that waited for I/O.
pub const DID_WAITS: usize = 4;
/// And for how long.
pub const DID_WAIT_NS: usize = 5;
/// Pages filled, by cause.
pub const DID_FILL: usize = 6;
/// Causes of fills.
pub const FILL_CAUSES: usize = 5;
/// Causes of evictions.
pub const EVICTION_CAUSES: usize = 3;
/// Functions that [`Settings`] has room for.
pub const FUNCTIONS: usize = 16;
/// A process's start time is in units of two to this power of nanoseconds.
pub const START_SHIFT: u32 = 20;

/// A struct that is nothing but fixed-size integers and byte arrays without padding, so that every bit
/// pattern is a value and every value has defined bytes.
///
/// # Safety
/// Implement it only for `#[repr(C)]` structs of which that is true.
pub unsafe trait Plain: Copy + Default {
    /// Its bytes, as the kernel reads them.
    fn bytes(&self) -> &[u8] {
        // SAFETY: self is a live value of size_of::<Self>() bytes without padding (trait contract).
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value whose bytes begin `bytes`; `None` if there are too few.
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        // SAFETY: as many bytes as the type has, any pattern is valid (trait contract), alignment not needed.
        Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

// SAFETY: an integer.
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $c:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
            pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

            // SAFETY: repr(C), integers and arrays of them only; that the sizes of the fields add up to the
            // size of the struct (no padding) is checked here at compile time.
            unsafe impl Plain for $name {}
            const _: () = assert!(0 $(+ size_of::<$ty>())* == size_of::<$name>());
        )*

        /// Each mirrored struct: its C name, size, and fields with their offsets.
        #[cfg(test)]
        pub(crate) fn layouts() -> Vec<(&'static str, usize, Vec<(&'static str, usize)>)> {
            vec![$(($c, size_of::<$name>(),
                vec![$((stringify!($field), std::mem::offset_of!($name, $field)),)*]),)*]
        }
    };
}

plain! {
    /// Set before a program is loaded, and never changed.
    Settings = "settings" {
        /// It stays zero: the programs use it as a key.
        zero: u64,
        /// log2 of the page size.
        page_shift: u64,
        /// Where the saved registers lie in a task's stack; 0: not known.
        regs_offset: u64,
        /// 1: there are rows of files.
        files: u64,
        /// 1: reads, fills and waits are counted in rows of processes and cgroups.
        rows: u64,
        /// Of the functions, those whose place is known.
        functions_known: u64,
        /// What tells from a task's stack why a page is filled.
        functions: [Function; FUNCTIONS],
    }

    /// What changes, or is found out, while programs are attached.
    State = "state" {
        /// One of the `SCOPE_` constants.
        scope: u64,
        /// How often a program ran for the thread of a name, under [`SCOPE_PROOF`].
        proved: u64,
        /// And that name, NUL-padded.
        prover: [u8; COMM_LEN],
        /// Name to match under [`SCOPE_COMM`], NUL-padded.
        comm: [u8; COMM_LEN],
        /// All bits of the bytes that are compared: the name and its NUL.
        comm_mask: [u8; COMM_LEN],
        /// Address of the `struct page` of page frame 0; 0: not known.
        vmemmap: u64,
        /// Where the saved registers lie in a task's stack; 0: the programs fill it in.
        regs_offset: u64,
        /// Bytes of a task's stack; 0: the programs fill it in, where stacks are aligned to their size.
        stack_size: u64,
        /// Address of this struct itself; 0: the programs fill it in.
        address: u64,
    }

    /// A function of the kernel, and what it is for that a page is filled below it.
    Function = "function" {
        /// Its address; 0: not known.
        start: u64,
        /// Its length in bytes; 0: not known.
        len: u64,
        /// One of `enum fill_cause`.
        cause: u64,
    }

    /// A process: thread-group ids are reused, so the start time belongs to the key.
    ProcKey = "proc_key" {
        /// Thread-group id in the initial pid namespace.
        tgid: u32,
        /// Start of its main thread since boot, in units of 2^[`START_SHIFT`] ns; the low bits.
        start: u32,
    }

    /// A process in a cgroup.
    RowKey = "row_key" {
        /// None in a map of cgroups.
        proc: ProcKey,
        /// Inode number of the cgroup's directory; 0: not known.
        cgroup: u64,
    }

    /// What it did in one interval, beside what CPUs hold.
    ProcRow = "proc_row" {
        /// By `enum activity`.
        did: [u64; ACTIVITIES],
        /// Begins and ends of direct or memcg reclaim.
        stalls: u64,
        /// Name of the main thread, NUL-padded.
        comm: [u8; COMM_LEN],
    }

    /// What happened to a file's pages in one interval.
    FileRow = "file_row" {
        /// Its inode's number.
        ino: u64,
        /// Its device << 32 | its inode's generation.
        id: u64,
        /// Pages that came, by `enum fill_cause`.
        fills: [u64; FILL_CAUSES],
        /// Pages that left, by `enum eviction_cause`.
        evictions: [u64; EVICTION_CAUSES],
        /// Reads that waited.
        waits: u64,
        /// And how long, together.
        wait_ns: u64,
    }

    /// A row in its slot.
    FileSlot = "file_slot" {
        /// Files that wanted it; 0: it is nobody's.
        claims: u64,
        /// Of one that was alone.
        row: FileRow,
    }

    /// What stands before a file's path.
    FileName = "file_name" {
        /// Its inode's number.
        ino: u64,
        /// Its device << 32 | its inode's generation.
        id: u64,
        /// What kind of file it is, and who may do what with it.
        mode: u32,
        /// If it is a device: which one.
        rdev: u32,
        /// 1: the path begins at the root of its file system; 0: there is more of it.
        whole: u32,
        /// Bytes of the path: its components, the last one first, with a NUL behind each. 0: the kernel remembers none.
        len: u32,
    }

    /// A row that a CPU holds.
    HeldRow = "held_row" {
        /// How often its place was taken: equal to the last word if nobody is just taking it.
        settled: u64,
        /// What the programs know its owner by, beside the key.
        since: u64,
        /// And its cgroup.
        cgroup_nr: u64,
        /// Whose it is.
        key: RowKey,
        /// Name of the main thread, NUL-padded.
        comm: [u8; COMM_LEN],
        /// By `enum activity`.
        did: [u64; ACTIVITIES],
        /// How often its place has begun to be taken.
        taken: u64,
    }

    /// A thread in direct or memcg reclaim.
    Stall = "stall" {
        /// Since when, `CLOCK_MONOTONIC`.
        since_ns: u64,
        /// Its process.
        proc: ProcKey,
        /// 1 direct, 2 memcg.
        reclaimer: u32,
        /// 1: not for an allocation of its own, and no stall.
        proactive: u32,
    }

    /// A question of [`super::layout`], and its answer.
    Peek = "peek" {
        /// Name of the thread that asks, NUL-padded.
        name: [u8; COMM_LEN],
        /// Address of the memory asked for.
        address: u64,
        /// 1: what follows is the answer.
        answered: u64,
        /// Ids of the thread in the initial pid namespace: process << 32 | thread.
        thread: u64,
        /// Address of its `task_struct`.
        task: u64,
        /// What lies at the address.
        memory: [u64; 32],
    }
}

/// [`State::scope`]: everything on the host.
pub const SCOPE_HOST: u64 = 0;
/// [`State::scope`]: tasks in the cgroup of the map `scope_cgroup`, or below it.
pub const SCOPE_CGROUP: u64 = 1;
/// [`State::scope`]: processes with a given name.
pub const SCOPE_COMM: u64 = 2;
/// [`State::scope`]: nobody; a program only tells that it ran for the thread of a name.
pub const SCOPE_PROOF: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_bytes_are_no_value() {
        assert_eq!(ProcKey::read(&[0; 7]), None);
        assert!(ProcKey::read(&[0; 9]).is_some());
    }
}
