//! Where the fields lie that the programs look into, on a kernel that does not describe its types (no BTF).
//!
//! Found out by looking, through bpf/peek.bpf.c, at the kernel's objects of one thread and two files of our own, of
//! which we know what is in them: a name, ids, sizes, the system call that the thread is in. What was found for the
//! first file has to hold for the second. The fields of tracepoints are those of tracefs (`events/…/format`). All
//! of it is then written as BTF, for libbpf to take where it would take the kernel's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;

use super::abi::{COMM_LEN, Peek, Plain};
use super::object::{Aligned, Error, Link, Map, Object, Program};
use super::os;

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/peek.bpf.o")));

/// The compiled programs.
pub fn elf() -> &'static [u8] {
    &OBJECT.0
}

/// What is known of the kernel's structs.
#[derive(Debug)]
pub struct Layout {
    structs: BTreeMap<&'static str, Struct>,
    /// Where the registers lie, in a task's stack, that were saved when the task's system call entered the kernel.
    pub regs_offset: u64,
    /// See [`Layout::vmemmap`].
    frames: Result<u64, Error>,
}

/// A struct as far as it is known.
#[derive(Debug, Default)]
struct Struct {
    size: usize,
    fields: BTreeMap<&'static str, (usize, Kind)>,
}

/// What a field is. libbpf wants that to agree with what the programs take it for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An integer of so many bytes.
    Int(usize),
    Pointer,
    /// An array of so many integers of so many bytes.
    Array(usize, usize),
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Kind::Int(size) => size,
            Kind::Pointer => 8,
            Kind::Array(n, size) => n * size,
        }
    }
}

/// The structs that tracepoints hand over, by the kernel's name for them: a tracepoint that does, and the fields used.
const RECORDS: &[(&str, (&str, &str), &[&str])] = &[
    ("trace_event_raw_mm_filemap_op_page_cache", ("filemap", "mm_filemap_add_to_page_cache"), &["pfn", "order"]),
    (
        "trace_event_raw_mm_vmscan_lru_shrink_inactive",
        ("vmscan", "mm_vmscan_lru_shrink_inactive"),
        &["nr_scanned", "nr_reclaimed"],
    ),
    (
        "trace_event_raw_mm_vmscan_direct_reclaim_end_template",
        ("vmscan", "mm_vmscan_direct_reclaim_end"),
        &["nr_reclaimed"],
    ),
];

/// The registers saved at the entry of a system call: part of the kernel's interface (asm/ptrace.h).
#[cfg(target_arch = "x86_64")]
mod regs {
    use super::Kind;

    pub const SIZE: usize = 21 * 8;
    pub const FIELDS: &[(&str, usize, Kind)] = &[
        ("bp", 4 * 8, Kind::Int(8)),
        ("r10", 7 * 8, Kind::Int(8)),
        ("ax", 10 * 8, Kind::Int(8)),
        ("cx", 11 * 8, Kind::Int(8)),
        ("dx", 12 * 8, Kind::Int(8)),
        ("si", 13 * 8, Kind::Int(8)),
        ("di", 14 * 8, Kind::Int(8)),
        ("orig_ax", 15 * 8, Kind::Int(8)),
    ];
    /// Words with the system call's number and its first two arguments.
    pub const CALL: [usize; 3] = [15, 14, 13];
}
#[cfg(target_arch = "aarch64")]
mod regs {
    use super::Kind;

    pub const SIZE: usize = 36 * 8;
    pub const FIELDS: &[(&str, usize, Kind)] =
        &[("regs", 0, Kind::Array(31, 8)), ("orig_x0", 34 * 8, Kind::Int(8)), ("syscallno", 35 * 8, Kind::Int(4))];
    pub const CALL: [usize; 3] = [8, 34, 1];
}

/// Bytes of a `task_struct` that are looked through; it is longer, but what matters is not at its end.
const TASK: usize = 8192;
/// Sizes that the stack of a task has on some machine.
const STACKS: [usize; 4] = [16 << 10, 32 << 10, 64 << 10, 8 << 10];
/// Bytes at its top among which the saved registers are looked for.
const TOP: usize = 512;
/// `PR_SET_NAME`.
const SET_NAME: u64 = libc::PR_SET_NAME as u64;
const TMPFS_MAGIC: u64 = 0x0102_1994;

impl Default for Layout {
    /// Nothing is known yet.
    fn default() -> Self {
        Self { structs: BTreeMap::new(), regs_offset: 0, frames: Err(not_found("page frame")) }
    }
}

impl Layout {
    /// Finds it. Takes some milliseconds, and tracefs.
    pub fn find() -> Result<Self, Error> {
        let look = || {
            let kernel = Kernel::new(Object::prepare("peek", elf(), None, None)?)?;
            let known = [KnownFile::new(1234, false).map_err(failed)?, KnownFile::new(2345, true).map_err(failed)?];
            let mut layout = Self::default();
            let explored = layout.explore(&kernel, &known);
            explored.map_err(not_found)?;
            // Only kprobes need what this adds.
            if let Err(e) = kernel.read_arguments(&mut layout) {
                log::debug!("struct kiocb and struct iov_iter stay unknown: {e}");
            }
            // And only rows of cgroups what this does.
            if layout.explore_cgroups(&kernel).is_none() {
                log::debug!("the cgroup of a task stays unknown");
            }
            Ok(layout)
        };
        // In a thread of its own, since it takes other names.
        let mut layout = thread::scope(|scope| {
            let looking = thread::Builder::new().spawn_scoped(scope, look).map_err(failed)?;
            looking.join().unwrap_or_else(|_| Err(failed(io::Error::other("it panicked"))))
        })?;
        for &(name, offset, kind) in regs::FIELDS {
            layout.add("pt_regs", name, offset, kind);
        }
        layout.structs.entry("pt_regs").or_default().size = regs::SIZE;
        // What precedes the status on x86: one word of flags, from 5.11 on two.
        let status = if os::kernel_version() < (5, 11) { 8 } else { 16 };
        layout.add("thread_info", "flags", 0, Kind::Int(8));
        layout.add("thread_info", "status", status, Kind::Int(4));
        for &(record, (category, name), fields) in RECORDS {
            // Without it, the programs that read it are refused, and the others are not.
            let format = os::tracepoint_fields(category, name).unwrap_or_default();
            for &field in fields {
                if let Some(f) = format.iter().find(|f| f.name == field) {
                    layout.add(record, field, f.offset, Kind::Int(f.size));
                }
            }
        }
        layout.place_order();
        layout.place_workers(os::kernel_version());
        Ok(layout)
    }

    /// Tells whether a kernel has PF_USER_WORKER, which before 5.17 meant something else.
    fn place_workers(&mut self, kernel: (u32, u32)) {
        if kernel >= (6, 4) {
            self.structs.entry("has_user_workers").or_default().size = 1;
        } else {
            self.structs.remove("has_user_workers");
        }
    }

    /// Tells the place of `order` (see bpf/kernel.h), if this kernel tells the order.
    fn place_order(&mut self) {
        if let Some(place) = self.offset(RECORDS[0].0, "order") {
            self.structs.entry("place_of_order").or_default().size = place;
        }
    }

    /// Where a field lies in its struct, in bytes; `None` if it is not known.
    pub fn offset(&self, of: &str, field: &str) -> Option<usize> {
        self.structs.get(of)?.fields.get(field).map(|(offset, _)| *offset)
    }

    /// What the programs are told of a place by the size of a struct of this name (bpf/kernel.h).
    pub fn place(&self, name: &str) -> Option<usize> {
        self.structs.get(name).map(|s| s.size)
    }

    /// Every struct and field that is known, with its offset in bytes.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &'static str, usize)> {
        self.structs.iter().flat_map(|(name, s)| s.fields.iter().map(|(field, (offset, _))| (*name, *field, *offset)))
    }

    fn add(&mut self, of: &'static str, field: &'static str, offset: usize, kind: Kind) {
        let s = self.structs.entry(of).or_default();
        s.size = s.size.max(offset + kind.size());
        s.fields.insert(field, (offset, kind));
    }

    /// Looks at the current thread and at two files; says what it could not find.
    fn explore(&mut self, kernel: &Kernel, known: &[KnownFile; 2]) -> Result<(), &'static str> {
        let me = kernel.ask(0).ok_or("the current task")?;
        let task = kernel.read(me.task, TASK).ok_or("the current task")?;
        let (tgid, tid) = ((me.thread >> 32) as u32, me.thread as u32);
        let ids = |tid: u32| [tid.to_ne_bytes(), tgid.to_ne_bytes()].concat();
        let comm = task.place(kernel.name.to_bytes_with_nul(), 1).ok_or("task_struct.comm")?;

        // The main thread is its own leader.
        let leads = |pid, place, leader| {
            kernel.read(at(leader, pid), 8).is_some_and(|b| b.bytes == ids(tgid))
                && kernel.word(at(leader, place)) == Some(leader)
        };
        let leader_after = |pid| {
            let (place, leader) = task.pointers(pid..comm).find(|&(place, p)| leads(pid, place, p))?;
            Some((pid, place, leader))
        };
        let (pid, group_leader, leader) =
            task.places(&ids(tid), 4).find_map(leader_after).ok_or("task_struct.group_leader")?;

        // In hundredths of a second; of the two clocks with the same time the later one goes on in suspend.
        let start: u64 =
            stat_field("/proc/self/stat", 22).ok_or("/proc/self/stat, for which /proc has to be mounted,")?;
        let leader = kernel.read(leader, TASK).ok_or("the main task")?;
        let started = leader.words(pid..comm).filter(|(_, ns)| ns / 10_000_000 == start).last();
        let (start, _) = started.ok_or("task_struct.start_boottime")?;

        let (stack, regs_offset) = task
            .pointers(0..256)
            .find_map(|(place, p)| Some((place, kernel.saved_regs(p)?)))
            .ok_or("task_struct.stack")?;
        self.regs_offset = regs_offset;
        // They change: looked at once more.
        let flags: u32 = stat_field("/proc/thread-self/stat", 9).ok_or("the thread's flags")?;
        let after = stack + 8;
        let flags = kernel.read(at(me.task, after), 32).and_then(|m| m.place(&flags.to_ne_bytes(), 4));
        let flags = after + flags.ok_or("task_struct.flags")?;

        for (name, offset, kind) in [
            ("comm", comm, Kind::Array(COMM_LEN, 1)),
            ("pid", pid, Kind::Int(4)),
            ("tgid", pid + 4, Kind::Int(4)),
            ("group_leader", group_leader, Kind::Pointer),
            ("start_boottime", start, Kind::Int(8)),
            ("stack", stack, Kind::Pointer),
            ("flags", flags, Kind::Int(4)),
        ] {
            self.add("task_struct", name, offset, kind);
        }
        self.explore_files(kernel, &task.range(comm..comm + 512), comm, known)
    }

    /// From a part of the current task, which begins at `begin` in it, to the pages of two files.
    fn explore_files(
        &mut self,
        kernel: &Kernel,
        task: &Memory,
        begin: usize,
        known: &[KnownFile; 2],
    ) -> Result<(), &'static str> {
        // Constant as long as these structs exist: the descriptors' number and their table, the mode, the owner.
        for (of, field, offset, kind) in [
            ("fdtable", "max_fds", 0, Kind::Int(4)),
            ("fdtable", "fd", 8, Kind::Pointer),
            ("inode", "i_mode", 0, Kind::Int(2)),
            ("address_space", "host", 0, Kind::Pointer),
        ] {
            self.add(of, field, offset, kind);
        }
        let found = kernel.descriptors(task, known).ok_or("task_struct.files")?;
        self.add("task_struct", "files", begin + found.task, Kind::Pointer);
        self.add("files_struct", "fdt", found.fdt, Kind::Pointer);
        self.add("file", "f_inode", found.inode, Kind::Pointer);
        let [file, file2] = found.files;
        let [(inode, memory), (inode2, memory2)] = found.inodes;
        let flags = [known[0].flags.to_ne_bytes(), known[1].flags.to_ne_bytes()];
        let flags = place_in_both([&file, &file2], flags).ok_or("file.f_flags")?;
        self.add("file", "f_flags", flags, Kind::Int(4));

        let sizes = [known[0].size.to_ne_bytes(), known[1].size.to_ne_bytes()];
        let size = place_in_both([&memory, &memory2], sizes).ok_or("inode.i_size")?;
        self.add("inode", "i_size", size, Kind::Int(8));

        let magic = |sb| kernel.read(sb, 256)?.place(&TMPFS_MAGIC.to_ne_bytes(), 8);
        let (sb, magic) =
            memory.pointers(0..256).find_map(|(place, p)| Some((place, magic(p)?))).ok_or("super_block.s_magic")?;
        self.add("inode", "i_sb", sb, Kind::Pointer);
        self.add("super_block", "s_magic", magic, Kind::Int(8));

        // A file of one page: its mapping has, near its beginning, the address of that page, which has its own.
        let page_of = |inode: u64, memory: &Memory| {
            let is_mapping = |p| kernel.word(p) == Some(inode);
            let (place, mapping) = memory.pointers(0..256).find(|&(_, p)| is_mapping(p))?;
            let pages = kernel.read(mapping, 64)?;
            let found = pages.pointers(8..64).find_map(|(_, page)| {
                let memory = kernel.read(page, 64)?;
                Some((page, memory.place(&mapping.to_ne_bytes(), 8)?))
            });
            found.map(|(page, mapping_at)| (place, page, mapping_at))
        };
        let (place, page, mapping) = page_of(inode, &memory).ok_or("page.mapping")?;
        let second = page_of(inode2, &memory2).filter(|p| (p.0, p.2) == (place, mapping)).ok_or("page.mapping")?;
        self.add("page", "mapping", mapping, Kind::Pointer);
        self.frames = kernel.frames(known).and_then(|[frame, frame2]| {
            // Two frames tell the size of one description.
            let (pages, frames) = (second.1.wrapping_sub(page) as i64, frame2.wrapping_sub(frame) as i64);
            let size = pages.checked_div(frames).filter(|size| (32..=256).contains(size) && size * frames == pages);
            let size = size.ok_or_else(|| not_found("size of struct page"))? as usize;
            self.structs.entry("page").or_default().size = size;
            Ok(page.wrapping_sub(frame.wrapping_mul(size as u64)))
        });
        Ok(())
    }

    /// From a task to the number of its cgroup of version 2, which is known of our own. A set of cgroups (`css_set`) holds its
    /// own address (`dom_cset`), right before that of the cgroup (`dfl_cgrp`); the node of a cgroup's directory (`kn`) holds
    /// that of the cgroup (`priv`), right behind its number or, on older kernels, before it.
    fn explore_cgroups(&mut self, kernel: &Kernel) -> Option<()> {
        let number = os::own_cgroup()?;
        let is_number = |word: u64| match os::kernel_version() < (5, 5) {
            true => u64::from(word as u32) == number, // the upper half is a generation
            false => word == number,
        };
        let task = kernel.read(kernel.ask(0)?.task, TASK)?;
        let comm = self.offset("task_struct", "comm")?;
        let place_in_node = |node: u64, cgroup: u64| {
            let memory = kernel.read(node, 192)?;
            let private = memory.place(&cgroup.to_ne_bytes(), 8)?;
            let around = [private.checked_sub(8), Some(private + 8)].into_iter().flatten();
            around.into_iter().find(|at| memory.word(*at).is_some_and(is_number))
        };
        let (cgroups, dfl_cgrp, kn, id) = task.pointers(comm..TASK).find_map(|(place, set)| {
            let memory = kernel.read(set, 256)?;
            let (own, _) = memory.words(8..240).find(|(_, word)| *word == set)?;
            let (dfl_cgrp, cgroup) = memory.pointers(own + 8..own + 16).next()?;
            let found = kernel
                .read(cgroup, 1024)?
                .pointers(0..1024)
                .find_map(|(kn, node)| Some((kn, place_in_node(node, cgroup)?)));
            found.map(|(kn, id)| (place, dfl_cgrp, kn, id))
        })?;
        let places =
            [("place_of_cgroups", cgroups), ("place_of_dfl_cgrp", dfl_cgrp), ("place_of_kn", kn), ("place_of_id", id)];
        for (name, place) in places {
            self.structs.entry(name).or_default().size = place;
        }
        Some(())
    }

    /// Address of the `struct page` of page frame 0, or why it could not be found: all but the programs that are told
    /// of a page by its frame does without.
    pub fn vmemmap(&self) -> Result<u64, Error> {
        self.frames.clone()
    }

    /// Whether programs find the cgroup of a task.
    pub fn knows_cgroups(&self) -> bool {
        self.structs.contains_key("place_of_id")
    }

    /// As BTF, in a file that lives as long as its descriptor: see Documentation/bpf/btf.rst in the kernel's tree.
    pub fn btf(&self) -> Result<File, Error> {
        let write = || {
            let mut file = os::memory_file(c"ebpf-sidecar-btf")?;
            file.write_all(&Btf::encode(self.structs.iter()))?;
            Ok(file)
        };
        write().map_err(|e| Error::new("write BTF", e))
    }
}

fn failed(cause: io::Error) -> Error {
    Error::new("find the fields of the kernel's structs without BTF", cause)
}

fn not_found(what: &str) -> Error {
    failed(io::Error::other(format!("{what} not found")))
}

// ---- looking ----

/// A way into the kernel's memory.
struct Kernel {
    object: Object,
    questions: Map,
    name: CString,
    /// Where its half of the address space begins.
    half: u64,
    _looking: (Program, Link),
}

impl Kernel {
    fn new(object: Object) -> Result<Self, Error> {
        // A random number that std makes for each of these, in as many digits as a name has.
        let random = RandomState::new().hash_one(0);
        let name = CString::new(&format!("{random:016x}")[1..]).unwrap_or_default();
        let program = object.load("peek_memory", None)?;
        let link = program.attach_tracepoint("task", "task_rename")?;
        let questions = object.map("questions")?;
        let mut kernel = Self { questions, object, name, half: u64::MAX, _looking: (program, link) };
        // The first call gives the thread the name by which the second is known.
        kernel.ask(0);
        kernel.half = kernel.ask(0).map_or(u64::MAX, |a| kernel_half(a.task));
        Ok(kernel)
    }

    /// What the kernel answers; `None` if it did not.
    fn ask(&self, address: u64) -> Option<Peek> {
        self.question(address)?;
        os::rename_thread(&self.name).ok()?;
        self.answer()
    }

    fn question(&self, address: u64) -> Option<()> {
        let mut question = Peek { address, ..Default::default() };
        let name = self.name.to_bytes();
        question.name.get_mut(..name.len())?.copy_from_slice(name);
        self.questions.update(&0u32.to_ne_bytes(), question.bytes()).ok()
    }

    fn answer(&self) -> Option<Peek> {
        let mut answer = Vec::new();
        self.questions.lookup(&0u32.to_ne_bytes(), &mut answer).ok()?;
        Peek::read(&answer).filter(|a| a.task != 0 || a.answered != 0)
    }

    /// The memory from `address` on: `len` bytes, or fewer if the rest cannot be read; `None` if none can.
    fn read(&self, address: u64, len: usize) -> Option<Memory> {
        let mut memory = Memory { bytes: Vec::with_capacity(len), kernel: self.half };
        while memory.bytes.len() < len {
            let Some(part) = self.ask(at(address, memory.bytes.len())).filter(|a| a.answered == 1) else {
                break;
            };
            memory.bytes.extend(self.memory(&part.memory).bytes);
        }
        memory.bytes.truncate(len);
        Some(memory).filter(|m| !m.bytes.is_empty())
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.read(address, 8)?.word(0)
    }

    /// The way from a part of the current task to the inodes of two open files.
    fn descriptors(&self, task: &Memory, known: &[KnownFile; 2]) -> Option<Descriptors> {
        let is = |known: &KnownFile, inode| Some((inode, self.read(inode, 256).filter(|m| known.is_inode(m))?));
        for (files, p) in task.pointers(0..task.bytes.len()) {
            let Some(memory) = self.read(p, 128) else { continue };
            for (fdt, p) in memory.pointers(0..memory.bytes.len()) {
                let open = |known: &KnownFile| self.read(self.file(p, known.fd())?, 256);
                let (Some(first), Some(second)) = (open(&known[0]), open(&known[1])) else { continue };
                let found = first.pointers(0..first.bytes.len()).find_map(|(inode, address)| {
                    let inodes = [is(&known[0], address)?, is(&known[1], second.word(inode)?)?];
                    Some((inode, inodes))
                });
                if let Some((inode, inodes)) = found {
                    return Some(Descriptors { task: files, fdt, inode, files: [first, second], inodes });
                }
            }
        }
        None
    }

    /// The open file behind a descriptor, if `fdt` is the table of descriptors.
    fn file(&self, fdt: u64, fd: u32) -> Option<u64> {
        let table = self.read(fdt, 16)?;
        let max = table.word(0)? as u32;
        // A table has room for a multiple of 64.
        if !max.is_multiple_of(64) || fd >= max || !is_pointer(table.word(8)?, self.half) {
            return None;
        }
        self.word(at(table.word(8)?, fd as usize * 8)).filter(|f| is_pointer(*f, self.half))
    }

    /// Where, in the stack at this address, the registers lie that were saved at our own call; `None` if it is not
    /// the stack.
    fn saved_regs(&self, stack: u64) -> Option<u64> {
        if !stack.is_multiple_of(4096) {
            return None;
        }
        let call = [libc::SYS_prctl as u64, SET_NAME, self.name.as_ptr() as u64];
        STACKS.iter().find_map(|size| {
            let begin = size - TOP;
            let top = self.read(at(stack, begin), TOP)?;
            let is_call = |place: &usize| regs::CALL.iter().zip(call).all(|(i, w)| top.word(place + i * 8) == Some(w));
            (0..=TOP - regs::SIZE).step_by(8).find(is_call).map(|place| (begin + place) as u64)
        })
    }

    /// Numbers of the page frames in which two files lie: told when they lose their pages.
    fn frames(&self, known: &[KnownFile; 2]) -> Result<[u64; 2], Error> {
        let (category, name) = ("filemap", "mm_filemap_delete_from_page_cache");
        let format = os::tracepoint_fields(category, name).map_err(failed)?;
        let pfn = format.iter().find(|f| f.name == "pfn" && f.size == 8).ok_or_else(|| not_found("pfn of a page"))?;
        let program = self.object.load("peek_record", None)?;
        let _link = program.attach_tracepoint(category, name)?;
        let frame = |known: &KnownFile| {
            self.question(0)?;
            known.file.set_len(0).ok()?;
            self.memory(&self.answer()?.memory).word(pfn.offset)
        };
        let frames = (frame(&known[0]), frame(&known[1]));
        let (Some(first), Some(second)) = frames else { return Err(not_found("page frame")) };
        Ok([first, second])
    }

    fn memory(&self, words: &[u64]) -> Memory {
        Memory { bytes: words.iter().flat_map(|w| w.to_ne_bytes()).collect(), kernel: self.half }
    }

    /// Finds what a read passes on, at a function that every kernel calls for a file in memory.
    fn read_arguments(&self, layout: &mut Layout) -> Result<(), Error> {
        let program = self.object.load("peek_arguments", None)?;
        let _link = program.attach_kprobe("shmem_file_read_iter")?;
        let known = KnownFile::new(3456, false).map_err(failed)?;
        let (pos, len) = (567u64, 321usize);
        let answer = self.question(0).and_then(|()| {
            known.file.read_at(&mut vec![0; len], pos).ok()?;
            self.answer()
        });
        let nothing = || Error::new("look at a read of a file in memory", io::ErrorKind::NotFound.into());
        let memory = answer.ok_or_else(nothing)?.memory;
        let (iocb, iter) = (self.memory(&memory[..16]), self.memory(&memory[16..]));
        let is_file = |p: u64| {
            self.read(self.word(at(p, layout.offset("file", "f_inode")?))?, 256).map(|inode| known.is_inode(&inode))
        };
        let file = iocb.pointers(0..64).find(|&(_, p)| is_file(p) == Some(true));
        let found = file.and_then(|(file, _)| {
            Some((file, iocb.place(&pos.to_ne_bytes(), 8)?, iter.range(0..64).place(&len.to_ne_bytes(), 8)?))
        });
        let (file, pos, count) = found.ok_or_else(nothing)?;
        layout.add("kiocb", "ki_filp", file, Kind::Pointer);
        layout.add("kiocb", "ki_pos", pos, Kind::Int(8));
        layout.add("kiocb", "ki_flags", pos + 24, Kind::Int(4)); // behind a function and its argument
        layout.add("iov_iter", "count", count, Kind::Int(8));
        Ok(())
    }
}

/// Where two open files are found.
struct Descriptors {
    /// In the part of the task, its files; in these, their table; in a file, its inode.
    task: usize,
    fdt: usize,
    inode: usize,
    files: [Memory; 2],
    /// Addresses and memory of the inodes.
    inodes: [(u64, Memory); 2],
}

/// The address `offset` bytes after another.
fn at(address: u64, offset: usize) -> u64 {
    address.wrapping_add(offset as u64)
}

/// A piece of the kernel's memory.
struct Memory {
    bytes: Vec<u8>,
    /// Where the kernel's half of the address space begins.
    kernel: u64,
}

impl Memory {
    fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_ne_bytes)
    }

    /// A part of it; what is not there is left out.
    fn range(&self, range: Range<usize>) -> Memory {
        let end = range.end.min(self.bytes.len());
        Memory { bytes: self.bytes.get(range.start..end).unwrap_or_default().to_vec(), kernel: self.kernel }
    }

    /// Its aligned words with their places.
    fn words(&self, range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
        let from = range.start.next_multiple_of(8);
        (from..range.end).step_by(8).filter_map(|at| Some((at, self.word(at)?)))
    }

    /// Those of them that can be addresses in the kernel.
    fn pointers(&self, range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
        self.words(range).filter(|(_, word)| is_pointer(*word, self.kernel))
    }

    /// Where these bytes stand, among the multiples of `step`.
    fn places(&self, bytes: &[u8], step: usize) -> impl Iterator<Item = usize> {
        (0..self.bytes.len()).step_by(step).filter(move |at| self.bytes[*at..].starts_with(bytes))
    }

    /// The first of those places.
    fn place(&self, bytes: &[u8], step: usize) -> Option<usize> {
        self.places(bytes, step).next()
    }
}

/// Where the first value stands in the first and the second in the second: one alone may well stand somewhere else too, as
/// a number of an inode that is as large as the file.
fn place_in_both<const N: usize>([first, second]: [&Memory; 2], [a, b]: [[u8; N]; 2]) -> Option<usize> {
    first.places(&a, N).find(|place| second.range(*place..*place + N).bytes == b)
}

/// Whether `word` can be the address of an object in the kernel, whose half of the address space begins at `kernel`,
/// and is no error number.
fn is_pointer(word: u64, kernel: u64) -> bool {
    (kernel..u64::MAX - 4095).contains(&word)
}

/// Where the kernel's half of the address space begins, of which this is an address: that depends on the levels of its
/// page tables. What lies in no half is not even asked for, since some kernels warn of that.
fn kernel_half(address: u64) -> u64 {
    match cfg!(target_arch = "x86_64") {
        true if address >= 0xffff << 48 => 0x1_ffff << 47,
        true => 0xff << 56,
        false => 0xfff << 52,
    }
}

/// Field `number`, from 1 on, of a stat file in /proc; only after the name of the task, which may hold anything.
fn stat_field<T: std::str::FromStr>(path: &str, number: usize) -> Option<T> {
    os::stat_field(&fs::read_to_string(path).ok()?, number)
}

/// A file in memory, of one page.
struct KnownFile {
    file: File,
    mode: u16,
    ino: u64,
    size: u64,
    flags: u32,
}

impl KnownFile {
    fn new(size: usize, nonblocking: bool) -> io::Result<Self> {
        let mut file = os::memory_file(c"ebpf-sidecar-known")?;
        file.write_all(&vec![1; size])?;
        if nonblocking {
            os::set_nonblocking(&file)?;
        }
        let (m, flags) = (file.metadata()?, os::file_flags(&file)?);
        Ok(Self { mode: m.mode() as u16, ino: m.ino(), size: m.size(), flags, file })
    }

    fn fd(&self) -> u32 {
        self.file.as_raw_fd() as u32
    }

    /// Whether this is the memory of its inode.
    fn is_inode(&self, memory: &Memory) -> bool {
        memory.bytes.starts_with(&self.mode.to_ne_bytes())
            && [self.ino, self.size].iter().all(|w| memory.place(&w.to_ne_bytes(), 8).is_some())
    }
}

// ---- BTF ----

/// Types and their names, encoded.
#[derive(Default)]
struct Btf {
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
}

impl Btf {
    const MAGIC: u16 = 0xeb9f;
    const HEADER: u32 = 24;
    const INT: u32 = 1;
    const PTR: u32 = 2;
    const ARRAY: u32 = 3;
    const STRUCT: u32 = 4;

    fn encode<'a>(structs: impl Iterator<Item = (&'a &'static str, &'a Struct)>) -> Vec<u8> {
        let mut btf = Self { strings: vec![0], ..Default::default() };
        let pointer = btf.add("", Self::PTR, 0, 0, &[]);
        let ints: BTreeMap<usize, u32> = [1, 2, 4, 8]
            .map(|size| (size, btf.add(&format!("u{}", size * 8), Self::INT, 0, size as u32, &[size as u32 * 8])))
            .into();
        for (name, s) in structs {
            let mut members = Vec::new();
            for (field, (offset, kind)) in &s.fields {
                let int = |size| ints.get(size).copied();
                let id = match kind {
                    Kind::Pointer => Some(pointer),
                    Kind::Int(size) => int(size),
                    Kind::Array(n, size) => {
                        int(size).map(|of| btf.add("", Self::ARRAY, 0, 0, &[of, ints[&4], *n as u32]))
                    }
                };
                // One of an unheard-of size has no type, and is left out.
                let Some(id) = id else { continue };
                members.extend([btf.string(field), id, *offset as u32 * 8]);
            }
            btf.add(name, Self::STRUCT, members.len() as u32 / 3, s.size as u32, &members);
        }
        let (types, strings) = (btf.types.len() as u32, btf.strings.len() as u32);
        let mut bytes = Self::MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]); // version, flags
        bytes.extend([Self::HEADER, 0, types, types, strings].iter().flat_map(|w| w.to_ne_bytes()));
        bytes.extend(btf.types);
        bytes.extend(btf.strings);
        bytes
    }

    /// Adds a type with `n` members, and returns its number.
    fn add(&mut self, name: &str, kind: u32, n: u32, size: u32, rest: &[u32]) -> u32 {
        let head = [self.string(name), kind << 24 | n, size];
        self.types.extend(head.iter().chain(rest).flat_map(|w| w.to_ne_bytes()));
        self.count += 1;
        self.count
    }

    fn string(&mut self, s: &str) -> u32 {
        if s.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(s.bytes().chain([0]));
        at
    }
}

#[cfg(test)]
impl Layout {
    /// What would be found on a kernel that has kprobes and tells the order of a folio, as 6.4 does, or does not, as 5.16;
    /// `None` where nothing can be found.
    pub(crate) fn for_tests(order: bool) -> Option<Self> {
        let mut layout = os::mount_tracefs_privately().ok().and_then(|_| Self::find().ok())?;
        for (of, field, offset, kind) in [
            ("kiocb", "ki_filp", 0, Kind::Pointer),
            ("kiocb", "ki_pos", 8, Kind::Int(8)),
            ("kiocb", "ki_flags", 32, Kind::Int(4)),
            ("iov_iter", "count", 16, Kind::Int(8)),
            (RECORDS[0].0, "order", 32, Kind::Int(1)),
        ] {
            if layout.offset(of, field).is_none() {
                layout.add(of, field, offset, kind);
            }
        }
        layout.place_order();
        layout.place_workers(if order { (6, 4) } else { (5, 16) });
        if !order {
            layout.structs.remove("place_of_order");
            layout.structs.get_mut(RECORDS[0].0)?.fields.remove("order");
        }
        Some(layout)
    }

    /// As BTF that has every struct twice, as that of 5.4 has most.
    pub(crate) fn btf_of_twins(&self) -> io::Result<File> {
        let mut file = os::memory_file(c"ebpf-sidecar-btf")?;
        file.write_all(&Btf::encode(self.structs.iter().chain(self.structs.iter())))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn addresses_of_either_number_of_levels() {
        let of = |task| move |word| is_pointer(word, kernel_half(task));
        let four = of(0xffff_8881_0023_4000);
        assert!(four(0xffff_8000_0000_0000) && four(0xffff_ffff_8100_0000));
        assert!(!four(0xff2c_7a59_829e_0000), "no address at all there");
        let five = of(0xff2c_7a59_829e_0000);
        assert!(five(0xff11_0000_0000_0000) && five(0xffff_ffff_8100_0000));
        for no_address in [0, 0x7fff_ffff_f000, u64::MAX, -14i64 as u64] {
            assert!(!four(no_address) && !five(no_address), "{no_address:x}");
        }
    }

    #[test]
    fn bytes_are_found_in_memory() {
        let memory = Memory { bytes: (0..20).chain(0..20).collect(), kernel: 0 };
        assert_eq!(memory.places(&[4, 5], 4).collect::<Vec<_>>(), [4, 24]);
        assert_eq!(memory.place(&[5], 4), None);
        assert_eq!(memory.place(&[19, 1], 1), None);
        assert_eq!(memory.word(33), None);
        assert_eq!(memory.range(36..80).bytes, [16, 17, 18, 19]);
        assert_eq!(memory.words(1..24).map(|(place, _)| place).collect::<Vec<_>>(), [8, 16]);
    }

    #[test]
    fn a_value_that_stands_elsewhere_too_is_told_by_the_second_object() {
        let inode = |ino: u64, size: u64| {
            let bytes = [7, ino, size, 7].iter().flat_map(|w| w.to_ne_bytes()).collect();
            Memory { bytes, kernel: 0 }
        };
        let (first, second) = (inode(1234, 1234), inode(1235, 2345));
        let places = |a: u64, b: u64| place_in_both([&first, &second], [a.to_ne_bytes(), b.to_ne_bytes()]);
        assert_eq!(places(1234, 2345), Some(16));
        assert_eq!(places(1234, 1235), Some(8));
        assert_eq!((places(1234, 7), places(1234, 1)), (None, None));
    }

    #[test]
    fn fields_of_stat_files_are_counted_from_the_name_on() {
        assert_eq!(stat_field("/proc/self/stat", 4), Some(std::os::unix::process::parent_id()));
        assert_eq!(stat_field::<u64>("/proc/self/stat", 999), None);
        assert_eq!(stat_field::<u64>("/proc/self/none", 4), None);
    }
}
