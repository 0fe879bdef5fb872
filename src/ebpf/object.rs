//! Safe wrapper over libbpf: open an object, load its programs one by one, attach them, read and write its
//! maps.
//!
//! libbpf's own `bpf_object__load` is all or nothing: one program that the kernel refuses takes the others
//! with it. So the object is only prepared (maps created, relocations applied), and each program is loaded
//! by itself, with an error of its own. Everything is held as file descriptors; dropping them undoes it.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;

use libbpf_sys as sys;

use super::abi::Plain;
use super::{os, verifier};

/// Bytes of the verifier's log that a failed load is asked for: the most that kernels before 5.2 give. The interesting
/// lines are the last ones; only what is written of it becomes memory.
const VERIFIER_LOG: usize = (1 << 24) - 1;
/// Lines of it that are logged, for those who report it.
const VERIFIER_LINES: usize = 40;
/// So many entries of a hash are taken out one by one. A batch walks through all of it, and meanwhile the kernel lets no
/// program at a perf event run on that CPU: where the agent is preempted in that, they miss events.
const FEW: usize = 64;
/// Steps of a walk through a hash that changes meanwhile.
const MAX_WALK: usize = 65536;

/// An operation on BPF that failed.
#[derive(Debug)]
pub struct Error {
    /// What was tried, for example `load program raw_read`.
    pub what: String,
    /// The kernel's answer.
    pub cause: io::Error,
    /// What it means and what to do, the verifier's reason, or libbpf's own words; may be empty.
    pub log: String,
    /// All of it in a few words; empty where the first line is no more.
    pub short: String,
}

/// Most characters of [`Error::brief`].
const BRIEF: usize = 84; // with a time, a probe and a way before it, a line has 160

impl Clone for Error {
    /// The cause keeps its errno or kind, and its words.
    fn clone(&self) -> Self {
        let cause = match self.cause.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.cause.kind(), self.cause.to_string()),
        };
        Self { what: self.what.clone(), cause, log: self.log.clone(), short: self.short.clone() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)?;
        if !self.log.is_empty() {
            write!(f, ": {}", self.log)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl Error {
    /// What was tried, and why it failed.
    pub fn new(what: impl Into<String>, cause: io::Error) -> Self {
        Self { what: what.into(), cause, log: String::new(), short: String::new() }
    }

    /// The same with what it means.
    pub fn because(self, log: impl Into<String>) -> Self {
        Self { log: log.into(), ..self }
    }

    /// The same with all of it in a few words.
    pub fn in_short(self, short: impl Into<String>) -> Self {
        Self { short: short.into(), ..self }
    }

    /// It in one short line, for where many of them stand together.
    pub fn brief(&self) -> String {
        let whole = self.to_string();
        let text = if self.short.is_empty() { &whole } else { &self.short };
        let line = text.lines().next().unwrap_or_default();
        match line.char_indices().nth(BRIEF) {
            None => line.to_owned(),
            Some(_) => line.chars().take(BRIEF - 1).chain(['…']).collect(),
        }
    }
}

/// The same for what the kernel was asked to do with a program: with its release, and what the answer means.
fn refusal(what: &str, cause: io::Error) -> Error {
    let words = match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let by = os::what_forbids();
            let log = format!("what may forbid it: {by}");
            return on_this_kernel(what, cause).because(log).in_short(format!("not permitted: {by}"));
        }
        Some(libc::ENOSYS) => return on_this_kernel(what, cause).because(NO_CALL).in_short(NO_CALL),
        Some(libc::ENOENT) => "this kernel does not have it",
        Some(libc::EEXIST) => {
            let by = match os::program_holders().join(", ") {
                none if none.is_empty() => String::new(),
                some => format!(" (programs are loaded by {some})"),
            };
            let short = format!("another tracer's program is there{by}");
            let log = format!("{short}: before Linux 4.15 a tracepoint has room for one");
            return on_this_kernel(what, cause).because(log).in_short(short);
        }
        Some(libc::EBUSY) => "something else holds this place: another tracer, or live patching",
        Some(libc::ENOTSUP | ENOTSUPP) => "this kernel cannot attach programs in this way",
        Some(libc::ENOMEM) => "the kernel has no memory for it",
        _ => "",
    };
    let short = if words.is_empty() { cause.to_string() } else { words.to_owned() };
    on_this_kernel(what, cause).because(words).in_short(short)
}

fn on_this_kernel(what: &str, cause: io::Error) -> Error {
    Error::new(format!("{what} on Linux {}", os::kernel_release()), cause)
}

/// What it means that a call is not there which every kernel of ours has.
const NO_CALL: &str = "a seccomp filter or a sandbox, such as gVisor or Fargate, leaves this call out";

/// The kernel's own errno for what is not supported; it has no name in user space.
const ENOTSUPP: i32 = 524;

/// libbpf returns a negative errno.
fn errno(code: c_int) -> io::Error {
    io::Error::from_raw_os_error(-code)
}

fn c_string(s: &str) -> Result<CString, Error> {
    CString::new(s).map_err(|_| Error::new(format!("name {s:?}"), io::ErrorKind::InvalidInput.into()))
}

// ---- libbpf's messages ----

thread_local! {
    /// What libbpf has warned of on this thread since the last `take_warnings`.
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" {
    fn vsnprintf(buf: *mut c_char, size: usize, format: *const c_char, args: *mut sys::__va_list_tag) -> c_int;
}

/// libbpf would write to stderr: its words go to the log instead, warnings into the error they explain.
unsafe extern "C" fn print(
    level: sys::libbpf_print_level,
    format: *const c_char,
    args: *mut sys::__va_list_tag,
) -> c_int {
    let mut buf = [0u8; 512];
    // SAFETY: libbpf passes a format and its arguments; the buffer's size is given, and what is written ends
    // in NUL.
    let line = unsafe {
        vsnprintf(buf.as_mut_ptr().cast(), buf.len(), format, args);
        CStr::from_ptr(buf.as_ptr().cast())
    };
    let line = line.to_string_lossy().trim_end().to_owned();
    log::trace!("{line}");
    if level == sys::LIBBPF_WARN {
        WARNINGS.with_borrow_mut(|w| w.push(line));
    }
    0
}

fn take_warnings() -> String {
    WARNINGS.take().join("; ")
}

/// Version of the libbpf that is linked in.
pub fn libbpf_version() -> String {
    // SAFETY: no arguments, no state.
    let (major, minor) = unsafe { (sys::libbpf_major_version(), sys::libbpf_minor_version()) };
    format!("{major}.{minor}")
}

/// CPUs that the kernel keeps per-CPU values for.
pub fn possible_cpus() -> Result<usize, Error> {
    // SAFETY: no arguments; reads /sys.
    let n = unsafe { sys::libbpf_num_possible_cpus() };
    usize::try_from(n).map_err(|_| {
        Error::new("count the possible CPUs", errno(n))
            .because("/sys/devices/system/cpu/possible tells them: /sys has to be mounted")
    })
}

// ---- objects and programs ----

/// An ELF image, which libelf reads in place and wants aligned.
#[repr(C, align(8))]
pub struct Aligned<T: ?Sized>(pub T);

/// A member of a struct of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it lies, with what is unused behind it.
    pub bytes: Range<usize>,
}

/// An object whose maps exist and whose programs are ready to be loaded. Dropping it frees libbpf's memory;
/// maps, programs and links taken from it live on.
pub struct Object {
    raw: NonNull<sys::bpf_object>,
    /// Whether programs are loaded with what quotes our source; not where the kernel knows nothing of that.
    quotes: Cell<bool>,
}

impl Object {
    /// Opens the ELF image `elf`, creates its maps and applies the relocations for the running kernel: for its
    /// types as its own BTF describes them, or as `btf` does. `constants` are a section of constants, by name, and what
    /// stands in it.
    pub fn prepare(
        name: &str,
        elf: &[u8],
        btf: Option<&File>,
        constants: Option<(&str, &[u8])>,
    ) -> Result<Self, Error> {
        Self::prepare_without(name, elf, btf, constants, &[])
    }

    /// The same without some of its maps. The programs must not come to what uses them, as the constants have it: the
    /// verifier refuses that.
    pub fn prepare_without(
        name: &str,
        elf: &[u8],
        btf: Option<&File>,
        constants: Option<(&str, &[u8])>,
        without: &[&str],
    ) -> Result<Self, Error> {
        // Kernels from 5.15 to 6.2 want the map inside of a map of maps described by BTF, as libbpf does it; those from 4.15
        // to 5.1 refuse libbpf's name for it.
        let prepare = |own_names| {
            let object = Self::open(name, elf, btf)?;
            if let Some((section, value)) = constants {
                object.set_constants(section, value)?;
            }
            for map in without {
                let map = object.find_map(map)?;
                // SAFETY: the map belongs to the live object, which is not yet prepared.
                unsafe { sys::bpf_map__set_autocreate(map, false) };
            }
            object.prepared(name, own_names)
        };
        prepare(false).or_else(|why| prepare(true).map_err(|_| why))
    }

    /// Sets what a section of constants holds, before the kernel has it.
    fn set_constants(&self, section: &str, value: &[u8]) -> Result<(), Error> {
        let map = self.find_map(section)?;
        // SAFETY: the map belongs to the live object, which is not yet prepared; as many bytes as said are copied.
        let code = unsafe { sys::bpf_map__set_initial_value(map, value.as_ptr().cast(), value.len() as _) };
        if code == 0 { Ok(()) } else { Err(Error::new(format!("set the constants of {section}"), errno(code))) }
    }

    fn find_map(&self, name: &str) -> Result<*mut sys::bpf_map, Error> {
        let c_name = c_string(name)?;
        // SAFETY: the object is live, the name is a C string.
        let map = unsafe { sys::bpf_object__find_map_by_name(self.raw.as_ptr(), c_name.as_ptr()) };
        if map.is_null() {
            return Err(Error::new(format!("find map {name}"), io::ErrorKind::NotFound.into()));
        }
        Ok(map)
    }

    fn prepared(self, name: &str, own_names: bool) -> Result<Self, Error> {
        let object = self;
        let _templates = if own_names { object.name_inner_maps()? } else { Vec::new() };
        // SAFETY: the object is open and not yet prepared.
        let code = unsafe { sys::bpf_object__prepare(object.raw.as_ptr()) };
        if code == 0 {
            return Ok(object);
        }
        let (what, cause, words) = (format!("prepare BPF object {name}"), errno(code), take_warnings());
        match cause.raw_os_error() {
            // libbpf blames RLIMIT_MEMLOCK for all of these.
            Some(libc::EPERM) if os::memlock_is_limited() && !os::is_in_user_namespace() => {
                Err(Error::new(what, cause).because(words))
            }
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
                log::debug!("{what}: {words}");
                Err(refusal(&what, cause))
            }
            _ => Err(Error::new(what, cause).because(words)),
        }
    }

    /// Opens the ELF image `elf`; its maps and programs are not there yet.
    pub fn open(name: &str, elf: &[u8], btf: Option<&File>) -> Result<Self, Error> {
        let c_name = c_string(name)?;
        // libbpf opens it by itself, when the object is prepared.
        let btf = btf.map(|f| c_string(&format!("/proc/self/fd/{}", f.as_raw_fd()))).transpose()?;
        let opts = sys::bpf_object_open_opts {
            sz: size_of::<sys::bpf_object_open_opts>() as _,
            object_name: c_name.as_ptr(),
            btf_custom_path: btf.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
            ..Default::default()
        };
        take_warnings();
        // SAFETY: the callback has the type libbpf wants and is a function, hence there for good.
        unsafe { sys::libbpf_set_print(Some(print)) };
        // SAFETY: image and options are live for the call; libbpf copies what it keeps.
        let raw = unsafe { sys::bpf_object__open_mem(elf.as_ptr().cast(), elf.len() as _, &opts) };
        NonNull::new(raw).map(|raw| Self { raw, quotes: Cell::new(true) }).ok_or_else(|| {
            Error::new(format!("open BPF object {name}"), io::Error::last_os_error()).because(take_warnings())
        })
    }

    /// Gives the maps that stand for those in a map of maps names of ours: libbpf would call them `NAME.inner`, and kernels
    /// from 4.15 to 5.1 refuse a dot. Returns what has to live until the object is prepared.
    fn name_inner_maps(&self) -> Result<Vec<OwnedFd>, Error> {
        let mut templates = Vec::new();
        // SAFETY: the object is live; a null map starts the walk, each next one belongs to the object.
        let next = |map| unsafe { sys::bpf_object__next_map(self.raw.as_ptr(), map) };
        let all =
            std::iter::successors(Some(next(ptr::null())), |map| Some(next(*map))).take_while(|map| !map.is_null());
        for map in all {
            // SAFETY: the map belongs to the live object, and so does the map inside of its description.
            let inner = unsafe { sys::bpf_map__inner_map(map) };
            if inner.is_null() {
                continue;
            }
            // SAFETY: both are live; the options have the size they say, and name and options live for the call.
            let (fd, name) = unsafe {
                let name = CStr::from_ptr(sys::bpf_map__name(map)).to_string_lossy().into_owned() + "_in";
                let opts = sys::bpf_map_create_opts {
                    sz: size_of::<sys::bpf_map_create_opts>() as _,
                    map_flags: sys::bpf_map__map_flags(inner),
                    ..Default::default()
                };
                let c_name = c_string(&name)?;
                let fd = sys::bpf_map_create(
                    sys::bpf_map__type(inner),
                    c_name.as_ptr(),
                    sys::bpf_map__key_size(inner),
                    sys::bpf_map__value_size(inner),
                    sys::bpf_map__max_entries(inner),
                    &opts,
                );
                (fd, name)
            };
            if fd < 0 {
                return Err(refusal(&format!("create map {name}"), errno(fd)));
            }
            // SAFETY: a fresh descriptor, ours alone.
            templates.push(unsafe { OwnedFd::from_raw_fd(fd) });
            // SAFETY: the object is not yet prepared; libbpf frees its own description of the inner map.
            let code = unsafe { sys::bpf_map__set_inner_map_fd(map, fd) };
            if code != 0 {
                return Err(Error::new(format!("describe what map {name} stands for"), errno(code)));
            }
        }
        Ok(templates)
    }

    /// Whether it has a program of this name.
    pub fn has_program(&self, name: &str) -> bool {
        // SAFETY: the object is live, the name is a C string.
        c_string(name)
            .is_ok_and(|n| unsafe { !sys::bpf_object__find_program_by_name(self.raw.as_ptr(), n.as_ptr()).is_null() })
    }

    /// A handle of the map `name`.
    pub fn map(&self, name: &str) -> Result<Map, Error> {
        let what = || format!("find map {name}");
        let map = self.find_map(name)?;
        // SAFETY: the map belongs to the live object; these only read it.
        let (fd, kind, key_size, value_size) = unsafe {
            (sys::bpf_map__fd(map), sys::bpf_map__type(map), sys::bpf_map__key_size(map), sys::bpf_map__value_size(map))
        };
        if fd < 0 {
            return Err(Error::new(what(), errno(fd)));
        }
        // SAFETY: the descriptor is open as long as the object lives, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(|e| Error::new(what(), e))?;
        let per_cpu = kind == sys::BPF_MAP_TYPE_PERCPU_ARRAY || kind == sys::BPF_MAP_TYPE_PERCPU_HASH;
        let (value_size, copies) = match per_cpu {
            // The kernel copies one value a possible CPU, each rounded up to 8 bytes.
            true => ((value_size as usize).next_multiple_of(8), possible_cpus()?),
            false => (value_size as usize, 1),
        };
        Ok(Map { name: name.to_owned(), fd, key_size: key_size as usize, value_size, copies })
    }

    /// The members of a struct of the programs, in order, as the object's BTF describes them.
    pub fn members(&self, name: &str) -> Result<Vec<Member>, Error> {
        let unknown = || Error::new(format!("find struct {name} of the programs"), io::ErrorKind::NotFound.into());
        let c_name = c_string(name)?;
        // SAFETY: the BTF belongs to the live object; a struct's members follow its btf_type, as many as the
        // low 16 bits of info say; names are C strings of the BTF.
        unsafe {
            let btf = sys::bpf_object__btf(self.raw.as_ptr());
            let id = sys::btf__find_by_name_kind(btf, c_name.as_ptr(), sys::BTF_KIND_STRUCT);
            let ty = sys::btf__type_by_id(btf, u32::try_from(id).map_err(|_| unknown())?);
            let size = (*ty).__bindgen_anon_1.size as usize;
            let all = slice::from_raw_parts(ty.add(1).cast::<sys::btf_member>(), ((*ty).info & 0xffff) as usize);
            let offset = |m: &sys::btf_member| m.offset as usize / 8;
            let ends = all.iter().skip(1).map(offset).chain([size]);
            let member = |(m, end): (&sys::btf_member, usize)| Member {
                name: CStr::from_ptr(sys::btf__name_by_offset(btf, m.name_off)).to_string_lossy().into_owned(),
                bytes: offset(m)..end,
            };
            Ok(all.iter().zip(ends).map(member).collect())
        }
    }

    /// Has the kernel verify and load the program `name`; one that hangs at a function (fexit) needs its
    /// number in the kernel's BTF.
    pub fn load(&self, name: &str, function: Option<FunctionId>) -> Result<Program, Error> {
        self.load_for(name, function, None)
    }

    /// The same for a program that is to hang at a function by [`Program::attach_multi_kprobe`].
    pub fn load_multi_kprobe(&self, name: &str) -> Result<Program, Error> {
        self.load_for(name, None, Some(sys::BPF_TRACE_KPROBE_MULTI))
    }

    fn load_for(
        &self,
        name: &str,
        function: Option<FunctionId>,
        place: Option<sys::bpf_attach_type>,
    ) -> Result<Program, Error> {
        let what = || format!("load program {name}");
        let c_name = c_string(name)?;
        // SAFETY: the object is live, the name is a C string.
        let prog = unsafe { sys::bpf_object__find_program_by_name(self.raw.as_ptr(), c_name.as_ptr()) };
        if prog.is_null() {
            return Err(Error::new(what(), io::ErrorKind::NotFound.into()));
        }
        // SAFETY: the program belongs to the live, prepared object, whose instructions and BTF stay put.
        let (kind, insns, count, mut opts) = unsafe {
            let mut opts = sys::bpf_prog_load_opts {
                sz: size_of::<sys::bpf_prog_load_opts>() as _,
                expected_attach_type: place.unwrap_or_else(|| sys::bpf_program__expected_attach_type(prog)),
                attach_btf_id: function.map_or(0, |f| f.0),
                kern_version: sys::bpf_object__kversion(self.raw.as_ptr()), // kprobes before 5.0 ask for it
                ..Default::default()
            };
            let btf = sys::bpf_object__btf_fd(self.raw.as_ptr());
            if btf >= 0 && self.quotes.get() {
                // With these the verifier's log quotes our source.
                opts.prog_btf_fd = btf as _;
                opts.func_info = sys::bpf_program__func_info(prog).cast();
                opts.func_info_cnt = sys::bpf_program__func_info_cnt(prog);
                opts.func_info_rec_size = size_of::<sys::bpf_func_info>() as _;
                opts.line_info = sys::bpf_program__line_info(prog).cast();
                opts.line_info_cnt = sys::bpf_program__line_info_cnt(prog);
                opts.line_info_rec_size = size_of::<sys::bpf_line_info>() as _;
            }
            (sys::bpf_program__type(prog), sys::bpf_program__insns(prog), sys::bpf_program__insn_cnt(prog), opts)
        };
        let license = c"Dual BSD/GPL";
        let load = |opts: &mut sys::bpf_prog_load_opts| {
            // SAFETY: instructions, names and options are live for the call; lengths are the true ones.
            unsafe { sys::bpf_prog_load(kind, c_name.as_ptr(), license.as_ptr(), insns, count, opts) }
        };
        let mut code = load(&mut opts);
        if errno(code).raw_os_error() == Some(libc::E2BIG) && opts.prog_btf_fd != 0 {
            // 4.18 to 4.20 take BTF, but not what connects a program with it, and say so of any attribute they do not know.
            opts = sys::bpf_prog_load_opts {
                prog_btf_fd: 0,
                func_info: ptr::null(),
                func_info_cnt: 0,
                func_info_rec_size: 0,
                line_info: ptr::null(),
                line_info_cnt: 0,
                line_info_rec_size: 0,
                ..opts
            };
            code = load(&mut opts);
            self.quotes.set(code < 0 && errno(code).raw_os_error() == Some(libc::E2BIG));
        }
        if code >= 0 {
            // SAFETY: a fresh descriptor, ours alone.
            return Ok(Program { name: name.to_owned(), fd: unsafe { OwnedFd::from_raw_fd(code) } });
        }
        if errno(code).raw_os_error() == Some(libc::EPERM) {
            // Refused before the verifier saw it (which says EACCES or EINVAL): there are no words to ask for.
            return Err(refusal(&what(), errno(code)));
        }
        // Once more, for the verifier's words; the log costs too much to ask for it at once.
        let mut log = vec![0u8; VERIFIER_LOG];
        opts.log_level = 1;
        opts.log_buf = log.as_mut_ptr().cast();
        opts.log_size = log.len() as _;
        let again = load(&mut opts);
        if again >= 0 {
            // SAFETY: as above. The first refusal was a passing one (EAGAIN).
            return Ok(Program { name: name.to_owned(), fd: unsafe { OwnedFd::from_raw_fd(again) } });
        }
        let log = String::from_utf8_lossy(&log[..log.iter().position(|b| *b == 0).unwrap_or(log.len())]).into_owned();
        log::debug!("the verifier's log of {name} ends:");
        last_lines(&log).for_each(|line| log::debug!("  {line}"));
        let (short, explained) = verifier::explain(&log, os::is_confidential());
        Err(on_this_kernel(&what(), errno(code)).because(explained).in_short(short))
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { sys::bpf_object__close(self.raw.as_ptr()) };
    }
}

/// The last lines of a verifier's log.
fn last_lines(log: &str) -> impl Iterator<Item = &str> {
    log.lines().skip(log.lines().count().saturating_sub(VERIFIER_LINES))
}

/// The kernel's own description of its types and functions.
pub struct KernelBtf(NonNull<sys::btf>);

/// Number of a kernel function in [`KernelBtf`].
#[derive(Debug, Clone, Copy)]
pub struct FunctionId(u32);

impl KernelBtf {
    /// Reads it from /sys/kernel/btf/vmlinux: some milliseconds, and megabytes until it is dropped.
    pub fn load() -> Result<Self, Error> {
        take_warnings();
        // SAFETY: no arguments.
        let btf = unsafe { sys::btf__load_vmlinux_btf() };
        NonNull::new(btf)
            .map(Self)
            .ok_or_else(|| Error::new("read the kernel's BTF", io::Error::last_os_error()).because(take_warnings()))
    }

    /// The function `name`, if the kernel has it (and has not inlined every call of it).
    pub fn function(&self, name: &str) -> Option<FunctionId> {
        let name = CString::new(name).ok()?;
        // SAFETY: live BTF, a C string.
        let id = unsafe { sys::btf__find_by_name_kind(self.0.as_ptr(), name.as_ptr(), sys::BTF_KIND_FUNC) };
        u32::try_from(id).ok().map(FunctionId)
    }
}

impl Drop for KernelBtf {
    fn drop(&mut self) {
        // SAFETY: loaded by us, freed once.
        unsafe { sys::btf__free(self.0.as_ptr()) };
    }
}

/// A program that the kernel has accepted.
pub struct Program {
    name: String,
    fd: OwnedFd,
}

impl Program {
    /// Its name in the object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches it to the raw tracepoint `name` (4.17+).
    pub fn attach_raw_tracepoint(&self, name: &str) -> Result<Link, Error> {
        let c_name = c_string(name)?;
        self.raw_link(c_name.as_ptr(), || format!("attach {} to raw tracepoint {name}", self.name))
    }

    /// Attaches it to the function that it was loaded for.
    pub fn attach_function(&self) -> Result<Link, Error> {
        self.raw_link(ptr::null(), || format!("attach {}", self.name))
    }

    fn raw_link(&self, name: *const c_char, what: impl Fn() -> String) -> Result<Link, Error> {
        // SAFETY: null or a C string that lives for the call; the descriptor is a loaded program.
        let fd = unsafe { sys::bpf_raw_tracepoint_open(name, self.fd.as_raw_fd()) };
        if fd < 0 {
            return Err(refusal(&what(), errno(fd)));
        }
        // SAFETY: a fresh descriptor, ours alone.
        Ok(Link::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it to the tracepoint `category`:`name`, whose id tracefs has.
    pub fn attach_tracepoint(&self, category: &str, name: &str) -> Result<Link, Error> {
        let what = || format!("attach {} to tracepoint {category}:{name}", self.name);
        let id = os::tracepoint_id(category, name).map_err(|e| refusal(&what(), e))?;
        os::perf_tracepoint(id, &self.fd).map(Link::from).map_err(|e| refusal(&what(), e))
    }

    /// Attaches it to the entry of the kernel function `name`.
    pub fn attach_kprobe(&self, name: &str) -> Result<Link, Error> {
        if !os::perf_has_kprobes() {
            return self.attach_event(name, os::Place::Entry);
        }
        let c_name = c_string(name)?;
        os::perf_kprobe(&c_name, &self.fd)
            .map(Link::from)
            .map_err(|e| refusal(&format!("attach {} to function {name}", self.name), e))
    }

    /// Attaches it to the entry of the kernel function `name` through the tracer of functions alone, which costs less than
    /// perf's events (5.18+).
    pub fn attach_multi_kprobe(&self, name: &str) -> Result<Link, Error> {
        let c_name = c_string(name)?;
        let mut names = [c_name.as_ptr()];
        let mut opts =
            sys::bpf_link_create_opts { sz: size_of::<sys::bpf_link_create_opts>() as _, ..Default::default() };
        opts.__bindgen_anon_1.kprobe_multi = sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_2 {
            cnt: 1,
            syms: names.as_mut_ptr(),
            ..Default::default()
        };
        // SAFETY: the descriptor is a loaded program; the options have the size they say, and their list has one name,
        // all live for the call.
        let fd = unsafe { sys::bpf_link_create(self.fd.as_raw_fd(), 0, sys::BPF_TRACE_KPROBE_MULTI, &opts) };
        if fd < 0 {
            return Err(refusal(&format!("attach {} to function {name} by kprobe_multi", self.name), errno(fd)));
        }
        // SAFETY: a fresh descriptor, ours alone.
        Ok(Link { fd: unsafe { OwnedFd::from_raw_fd(fd) }, event: None, is_multi: true })
    }

    /// Attaches it to the return of the kernel function `name`.
    pub fn attach_kretprobe(&self, name: &str) -> Result<Link, Error> {
        self.attach_event(name, os::Place::Return)
    }

    fn attach_event(&self, name: &str, place: os::Place) -> Result<Link, Error> {
        let attach = || {
            let (event, fd) = os::FunctionEvent::attach(name, place, &self.fd)?;
            Ok(Link { fd, event: Some(event), is_multi: false })
        };
        let at = match place {
            os::Place::Entry => "",
            os::Place::Return => "the return of ",
        };
        attach().map_err(|e| refusal(&format!("attach {} to {at}function {name}", self.name), e))
    }

    /// Events at which it did not run, because it would have interrupted itself on the same CPU; `None` where the kernel
    /// does not count them.
    pub fn missed(&self) -> Result<Option<u64>, Error> {
        let mut info = sys::bpf_prog_info::default();
        let mut len = size_of_val(&info) as u32;
        // SAFETY: a live struct, and its length.
        let code = unsafe { sys::bpf_prog_get_info_by_fd(self.fd.as_raw_fd(), &mut info, &mut len) };
        if code != 0 {
            return Err(Error::new(format!("read what program {} missed", self.name), errno(code)));
        }
        Ok(counts_misses(info.type_, os::kernel_version()).then_some(info.recursion_misses))
    }
}

/// Whether a kernel counts the events at which it skips programs of this kind. It does not skip those of functions before
/// 5.12, nor those at raw tracepoints before 6.2, and counts them since; those at kprobes and classic tracepoints it has
/// always skipped, and counts them from 6.7 on.
fn counts_misses(kind: sys::bpf_prog_type, kernel: (u32, u32)) -> bool {
    kernel >= (6, 7) || ![sys::BPF_PROG_TYPE_KPROBE, sys::BPF_PROG_TYPE_TRACEPOINT].contains(&kind)
}

/// An attached program: detached when dropped, and then the event that it hung at is removed.
pub struct Link {
    fd: OwnedFd,
    /// Held for its `Drop`.
    #[expect(dead_code)]
    event: Option<os::FunctionEvent>,
    /// Whether it is one of [`Program::attach_multi_kprobe`].
    is_multi: bool,
}

impl Link {
    /// Events at which the tracer of functions, being in use on that CPU already, did not even come to the program; what
    /// kernels before 6.7 do not count is 0.
    pub fn missed(&self) -> Result<u64, Error> {
        if !self.is_multi {
            return Ok(0);
        }
        let mut info = sys::bpf_link_info::default();
        let mut len = size_of_val(&info) as u32;
        // SAFETY: a live struct, and its length.
        let code = unsafe { sys::bpf_link_get_info_by_fd(self.fd.as_raw_fd(), &mut info, &mut len) };
        if code != 0 {
            return Err(Error::new("read what a kprobe missed", errno(code)));
        }
        // SAFETY: a link of this type fills that member; what the kernel does not know of it stays 0.
        Ok(unsafe { info.__bindgen_anon_1.kprobe_multi.missed })
    }
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, event: None, is_multi: false }
    }
}

// ---- maps ----

/// A call of libbpf for many entries of a map at once.
type Batch = unsafe extern "C" fn(
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut u32,
    *const sys::bpf_map_batch_opts,
) -> c_int;

/// A map in the kernel.
pub struct Map {
    name: String,
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    /// Values that one lookup returns: possible CPUs for a per-CPU map, else 1.
    copies: usize,
}

impl Map {
    fn what(&self, verb: &str) -> String {
        format!("{verb} map {}", self.name)
    }

    fn key_ptr(&self, key: &[u8]) -> Result<*const c_void, Error> {
        if key.len() != self.key_size {
            return Err(Error::new(self.what("use a key of a wrong size on"), io::ErrorKind::InvalidInput.into()));
        }
        Ok(key.as_ptr().cast())
    }

    /// The value of `key` into `value`, which becomes as long as needed (all CPUs' values for a per-CPU
    /// map); false if the key is not there.
    pub fn lookup(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, Error> {
        let key = self.key_ptr(key)?;
        value.resize(self.value_size * self.copies, 0);
        // SAFETY: key and value have the map's sizes, for all CPUs where it is per CPU.
        let code = unsafe { sys::bpf_map_lookup_elem(self.fd.as_raw_fd(), key, value.as_mut_ptr().cast()) };
        match -code {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            _ => Err(Error::new(self.what("read"), errno(code))),
        }
    }

    /// Splits what [`Map::lookup`] read into one value a CPU.
    pub fn per_cpu<'a>(&self, value: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        value.chunks_exact(self.value_size)
    }

    /// Sets `key` to `value`. Of a per-CPU map only the copy of all CPUs can be set.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let key = self.key_ptr(key)?;
        if value.len() != self.value_size * self.copies {
            return Err(Error::new(self.what("use a value of a wrong size on"), io::ErrorKind::InvalidInput.into()));
        }
        // SAFETY: key and value have the map's sizes.
        let code = unsafe { sys::bpf_map_update_elem(self.fd.as_raw_fd(), key, value.as_ptr().cast(), 0) };
        if code == 0 { Ok(()) } else { Err(Error::new(self.what("write"), errno(code))) }
    }

    /// The same map by another descriptor.
    pub fn try_clone(&self) -> Result<Map, Error> {
        let fd = self.fd.try_clone().map_err(|e| Error::new(self.what("duplicate the descriptor of"), e))?;
        Ok(Map { name: self.name.clone(), fd, ..*self })
    }

    /// Puts a descriptor into slot 0 of a map of descriptors (maps, cgroups). For a map of maps the kernel
    /// returns only when no program works on the map that was there before (4.20+).
    pub fn set_fd(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.update(&0u32.to_ne_bytes(), &fd.as_raw_fd().to_ne_bytes())
    }

    /// Deletes `key`; a key that is not there is fine.
    pub fn delete(&self, key: &[u8]) -> Result<(), Error> {
        let key = self.key_ptr(key)?;
        // SAFETY: the key has the map's size.
        let code = unsafe { sys::bpf_map_delete_elem(self.fd.as_raw_fd(), key) };
        match -code {
            0 | libc::ENOENT => Ok(()),
            _ => Err(Error::new(self.what("delete from"), errno(code))),
        }
    }

    /// Takes every entry out of a hash that no program writes to at the moment.
    pub fn drain<K: Plain, V: Plain>(&self, mut each: impl FnMut(K, V)) -> Result<(), Error> {
        self.check_types::<K, V>()?;
        let some = self.keys(FEW + 1)?;
        if some.len() <= FEW {
            return self.take(&some, &mut each);
        }
        match self.batches(sys::bpf_map_lookup_and_delete_batch, "drain", &mut each)? {
            true => Ok(()),
            false => self.drain_singly(&mut each),
        }
    }

    /// Shows each entry of a hash that programs may be writing to, like [`Map::for_each`] but faster where it can be.
    pub fn show<K: Plain, V: Plain>(&self, mut each: impl FnMut(K, V)) -> Result<(), Error> {
        self.check_types::<K, V>()?;
        // As in `drain`: a batch keeps other programs from running for longer than that many looks.
        if self.keys(FEW + 1)?.len() <= FEW {
            return self.for_each(each);
        }
        match self.batches(sys::bpf_map_lookup_batch, "read", &mut each)? {
            true => Ok(()),
            false => self.for_each(each),
        }
    }

    /// Has the kernel hand over many entries at a time; false if it cannot.
    fn batches<K: Plain, V: Plain>(&self, batch: Batch, verb: &str, mut each: impl FnMut(K, V)) -> Result<bool, Error> {
        let mut room = 256usize;
        let mut position = 0u32; // of a hash: the index of a bucket
        let mut first = true;
        loop {
            let mut keys = vec![0u8; room * self.key_size];
            let mut values = vec![0u8; room * self.value_size];
            let mut count = room as u32;
            let to = ptr::from_mut(&mut position).cast();
            let from = if first { ptr::null_mut() } else { to };
            // SAFETY: the buffers hold `count` keys and values of the map's sizes; the kernel reads the
            // position before it writes it.
            let code = unsafe {
                batch(
                    self.fd.as_raw_fd(),
                    from,
                    to,
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    ptr::null(),
                )
            };
            match -code {
                // A bucket with more entries than there was room for.
                libc::ENOSPC if count == 0 => {
                    room *= 2;
                    continue;
                }
                libc::EINVAL if first => return Ok(false),
                0 | libc::ENOENT | libc::ENOSPC => {}
                _ => return Err(Error::new(self.what(verb), errno(code))),
            }
            let pairs = keys.chunks_exact(self.key_size).zip(values.chunks_exact(self.value_size));
            for (k, v) in pairs.take(count as usize) {
                if let (Some(k), Some(v)) = (K::read(k), V::read(v)) {
                    each(k, v);
                }
            }
            if code == -libc::ENOENT {
                return Ok(true);
            }
            first = false;
        }
    }

    /// The same before 5.6, which has no batches.
    fn drain_singly<K: Plain, V: Plain>(&self, each: &mut impl FnMut(K, V)) -> Result<(), Error> {
        loop {
            let some = self.keys(FEW)?;
            if some.is_empty() {
                return Ok(());
            }
            self.take(&some, each)?;
        }
    }

    /// Takes these entries out.
    fn take<K: Plain, V: Plain>(&self, keys: &[Vec<u8>], each: &mut impl FnMut(K, V)) -> Result<(), Error> {
        let mut value = Vec::new();
        for key in keys {
            if self.lookup(key, &mut value)?
                && let (Some(k), Some(v)) = (K::read(key), V::read(&value))
            {
                each(k, v);
            }
            self.delete(key)?;
        }
        Ok(())
    }

    /// The keys of a hash that no program writes to at the moment, up to so many.
    fn keys(&self, most: usize) -> Result<Vec<Vec<u8>>, Error> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while keys.len() < most
            && let Some(key) = self.next_key(keys.last().map(Vec::as_slice))?
        {
            keys.push(key);
        }
        Ok(keys)
    }

    /// Has an array of so many elements, which is mappable (5.5+), in the agent's own memory.
    pub fn shared<V: Plain>(&self, elements: usize) -> Result<Shared<V>, Error> {
        self.check_types::<u32, V>()?;
        // The kernel rounds each up to 8 bytes.
        let bytes = (size_of::<V>().next_multiple_of(8) == size_of::<V>()).then_some(elements * size_of::<V>());
        let bytes = bytes.ok_or_else(|| Error::new(self.what("map"), io::ErrorKind::InvalidInput.into()))?;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, self.fd.as_raw_fd());
        // SAFETY: a new mapping, of a live descriptor; the kernel refuses more than the array has, but for the rest of a page.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(first) => Ok(Shared { first, elements }),
            None => Err(Error::new(self.what("map"), io::Error::last_os_error())),
        }
    }

    /// Reads it, a ring buffer, from here on.
    pub fn ring(self) -> Result<Ring, Error> {
        Ring::new(self)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool, Error> {
        self.next_key(None).map(|k| k.is_none())
    }

    /// Shows each entry of a hash that programs may be writing to: one that comes or goes meanwhile may be
    /// missed, or shown twice.
    pub fn for_each<K: Plain, V: Plain>(&self, mut each: impl FnMut(K, V)) -> Result<(), Error> {
        self.check_types::<K, V>()?;
        let (mut value, mut key) = (Vec::new(), None);
        // A deleted key sends the walk back to the start: bounded all the same.
        for _ in 0..MAX_WALK {
            let Some(next) = self.next_key(key.as_deref())? else { break };
            if self.lookup(&next, &mut value)?
                && let (Some(k), Some(v)) = (K::read(&next), V::read(&value))
            {
                each(k, v);
            }
            key = Some(next);
        }
        Ok(())
    }

    fn next_key(&self, key: Option<&[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let from = key.map_or(Ok(ptr::null()), |k| self.key_ptr(k))?;
        let mut next = vec![0u8; self.key_size];
        // SAFETY: both keys have the map's size.
        let code = unsafe { sys::bpf_map_get_next_key(self.fd.as_raw_fd(), from, next.as_mut_ptr().cast()) };
        match -code {
            0 => Ok(Some(next)),
            libc::ENOENT => Ok(None),
            _ => Err(Error::new(self.what("walk"), errno(code))),
        }
    }

    fn check_types<K, V>(&self) -> Result<(), Error> {
        if (size_of::<K>(), size_of::<V>()) == (self.key_size, self.value_size) {
            return Ok(());
        }
        Err(Error::new(self.what("use wrong types on"), io::ErrorKind::InvalidInput.into()))
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The elements of an array, shared with the programs.
pub struct Shared<V: Plain> {
    first: NonNull<V>,
    elements: usize,
}

impl<V: Plain> Shared<V> {
    /// The element at this place, if there is one and it is other than zero, which it becomes. Nothing is lost if no program
    /// writes to it meanwhile.
    pub fn take(&mut self, place: usize) -> Option<V> {
        let at = (place < self.elements).then(|| self.first.as_ptr().wrapping_add(place))?;
        // SAFETY: within the mapping, which has as many elements and begins at a page. Programs may write to it: hence
        // volatile, and any bytes are a value (trait contract).
        let value = unsafe { at.read_volatile() };
        if value.bytes().iter().all(|byte| *byte == 0) {
            return None;
        }
        // SAFETY: as above.
        unsafe { at.write_volatile(V::default()) };
        Some(value)
    }
}

impl<V: Plain> Drop for Shared<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and of this length.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.elements * size_of::<V>()) };
    }
}

// SAFETY: memory that the kernel has too, and no thread owns; who has the mapping has it alone.
unsafe impl<V: Plain + Send> Send for Shared<V> {}

// ---- ring buffers ----

/// A ring buffer in the kernel (5.8+). It is mapped only while it is read: the mapping has its pages twice, which would all
/// count as the agent's memory.
pub struct Ring {
    map: Map,
}

/// Records one behind the other, and where each ends.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Bytes that one read takes at most, however fast programs write.
const MAX_READ: usize = 4 << 20;

/// Called by libbpf for each record.
unsafe extern "C" fn take_record(records: *mut c_void, data: *mut c_void, size: sys::size_t) -> c_int {
    // SAFETY: `records` is that of `Ring::read`, which does not touch it while libbpf reads; the record has that size.
    let (records, data) =
        unsafe { (&mut *records.cast::<Records>(), slice::from_raw_parts(data.cast::<u8>(), size as usize)) };
    records.bytes.extend_from_slice(data);
    records.ends.push(records.bytes.len());
    if records.bytes.len() < MAX_READ { 0 } else { -libc::ENOBUFS }
}

impl Ring {
    fn new(map: Map) -> Result<Self, Error> {
        let mut ring = Self { map };
        ring.read(|_| ())?;
        Ok(ring)
    }

    /// Shows each record that programs have written since the last time.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        take_warnings();
        let mut records = Records::default();
        let (fd, context) = (self.map.fd.as_raw_fd(), (&raw mut records).cast());
        // SAFETY: the descriptor is an open map's, which libbpf checks to be a ring buffer; the callback is a function, and
        // what it gets outlives the ring, which is freed below.
        let raw = unsafe { sys::ring_buffer__new(fd, Some(take_record), context, ptr::null()) };
        let Some(raw) = NonNull::new(raw) else {
            let e = Error::new(self.map.what("read ring buffer"), io::Error::last_os_error());
            return Err(e.because(take_warnings()));
        };
        // SAFETY: the ring was made above, is read here alone, and freed once.
        let code = unsafe {
            let code = sys::ring_buffer__consume(raw.as_ptr());
            sys::ring_buffer__free(raw.as_ptr());
            code
        };
        let mut begin = 0;
        for end in records.ends {
            each(&records.bytes[begin..end]);
            begin = end;
        }
        match -code {
            libc::ENOBUFS => Ok(()),
            e if e > 0 => Err(Error::new(self.map.what("read"), errno(code))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::abi;
    use crate::ebpf::layout::Layout;
    use crate::ebpf::old_verifier;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn rust_mirrors_the_structs_of_the_programs() {
        let object = Object::open("iomonitor", crate::monitor::iomonitor::elf(), None).unwrap();
        let peek = Object::open("peek", crate::ebpf::layout::elf(), None).unwrap();
        for (name, size, fields) in abi::layouts() {
            let members = object.members(name).or_else(|_| peek.members(name)).unwrap();
            assert_eq!(members.last().map(|m| m.bytes.end), Some(size), "size of {name}");
            let members: Vec<_> = members.iter().map(|m| (m.name.as_str(), m.bytes.start)).collect();
            assert_eq!(fields, members, "fields of {name}");
        }
    }

    fn maps(object: &Object) -> Vec<*mut sys::bpf_map> {
        // SAFETY: the object is live; a null map starts the walk, each next one belongs to the object.
        let next = |map| unsafe { sys::bpf_object__next_map(object.raw.as_ptr(), map) };
        let first = next(ptr::null());
        std::iter::successors(Some(first), |map| Some(next(*map))).take_while(|map| !map.is_null()).collect()
    }

    /// Programs of an object, before they are relocated for a kernel.
    fn programs(object: &Object) -> Vec<(String, u32, &[sys::bpf_insn])> {
        let mut all = Vec::new();
        let mut prog = ptr::null_mut();
        loop {
            // SAFETY: the object is live; a null program starts the walk. Name and instructions belong to it.
            unsafe {
                prog = sys::bpf_object__next_program(object.raw.as_ptr(), prog);
                if prog.is_null() {
                    return all;
                }
                let name = CStr::from_ptr(sys::bpf_program__name(prog)).to_str().unwrap().to_owned();
                let count = sys::bpf_program__insn_cnt(prog) as usize;
                all.push((
                    name,
                    sys::bpf_program__type(prog),
                    slice::from_raw_parts(sys::bpf_program__insns(prog), count),
                ));
            }
        }
    }

    /// The instructions that can follow one, whatever registers hold.
    fn targets(insns: &[sys::bpf_insn], at: usize) -> Vec<usize> {
        let insn = &insns[at];
        let (class, operation) = (u32::from(insn.code) & 7, u32::from(insn.code) & 0xf0);
        let next = at + if class == sys::BPF_LD { 2 } else { 1 };
        let jump = next.wrapping_add_signed(insn.off.into());
        match (class, operation) {
            (sys::BPF_JMP, sys::BPF_EXIT) => vec![],
            (sys::BPF_JMP, sys::BPF_JA) => vec![jump],
            (sys::BPF_JMP, sys::BPF_CALL) => vec![next],
            (sys::BPF_JMP, _) => vec![next, jump],
            _ => vec![next],
        }
    }

    /// Whether an instruction can be reached from itself.
    fn has_loop(insns: &[sys::bpf_insn]) -> bool {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            OnPath,
            Done,
        }
        let mut states = vec![State::New; insns.len()];
        let mut path = vec![(0, targets(insns, 0))];
        states[0] = State::OnPath;
        while let Some((at, left)) = path.last_mut() {
            match left.pop() {
                None => {
                    states[*at] = State::Done;
                    path.pop();
                }
                Some(next) if states[next] == State::OnPath => return true,
                Some(next) if states[next] == State::New => {
                    states[next] = State::OnPath;
                    path.push((next, targets(insns, next)));
                }
                Some(_) => {}
            }
        }
        false
    }

    /// Whether the verifiers before 4.19, which walk both sides of a branch on a constant, come to an access that libbpf
    /// has replaced because the field is not there.
    fn comes_to_poison(insns: &[sys::bpf_insn]) -> bool {
        let (mut seen, mut left) = (vec![false; insns.len()], vec![0]);
        while let Some(at) = left.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            if u32::from(insns[at].code) == sys::BPF_JMP | sys::BPF_CALL && insns[at].imm == 195_896_080 {
                return true;
            }
            left.extend(targets(insns, at));
        }
        false
    }

    #[test]
    fn no_side_of_any_branch_reads_what_is_not_there() {
        for order in [true, false] {
            let Some(layout) = Layout::for_tests(order) else {
                println!("SKIPPED no_side_of_any_branch_reads_what_is_not_there: needs root and tracefs");
                return;
            };
            let elf = crate::monitor::iomonitor::elf_no_btf();
            let object = Object::prepare("old", elf, Some(&layout.btf().unwrap()), None).unwrap();
            let poisoned: Vec<_> =
                programs(&object).into_iter().filter(|(_, _, insns)| comes_to_poison(insns)).map(|p| p.0).collect();
            assert!(poisoned.is_empty(), "with the order of folios told ({order}): {poisoned:?}");
        }
    }

    /// Sizes of an object's maps by their descriptors; of those inside of maps, of which libbpf knows only until the maps
    /// are made, by the complement of the outer one's.
    fn sizes(object: &Object, opened: &Object) -> BTreeMap<i32, old_verifier::Map> {
        let mut sizes = BTreeMap::new();
        for (map, before) in maps(object).into_iter().zip(maps(opened)) {
            // SAFETY: a map of the live object, and the description of one inside of it, if there is one.
            unsafe {
                let (fd, inner) = (sys::bpf_map__fd(map), sys::bpf_map__inner_map(before));
                let of = |map, of_maps| old_verifier::Map {
                    key: sys::bpf_map__key_size(map),
                    value: sys::bpf_map__value_size(map),
                    of_maps,
                };
                sizes.insert(fd, of(map, !inner.is_null()));
                if !inner.is_null() {
                    sizes.insert(!fd, of(inner, false));
                }
            }
        }
        sizes
    }

    #[test]
    fn linux_4_14_would_verify_the_programs_without_btf() {
        for order in [true, false] {
            let Some(layout) = Layout::for_tests(order) else {
                println!("SKIPPED linux_4_14_would_verify_the_programs_without_btf: needs root and tracefs");
                return;
            };
            let (elf, btf) = (crate::monitor::iomonitor::elf_no_btf(), layout.btf().unwrap());
            let mut masks = BTreeSet::new();
            for (elf, btf) in [(elf, Some(&btf)), (crate::ebpf::layout::elf(), None)] {
                let object = Object::prepare("old", elf, btf, None).unwrap();
                let maps = sizes(&object, &Object::open("old", elf, btf).unwrap());
                for (name, kind, insns) in programs(&object) {
                    // A tracepoint's record, whose first eight bytes are the kernel's own; else registers.
                    let context = if kind == sys::BPF_PROG_TYPE_TRACEPOINT { (8, 2048) } else { (0, 168) };
                    let walk = old_verifier::walk(insns, context, &maps).unwrap_or_else(|e| panic!("{name}: {e}"));
                    println!("{name}: {} instructions, of which it follows {}", insns.len(), walk.followed);
                    masks.extend(walk.masks);
                }
            }
            // The flags of threads that are in no system call. Before 5.17 PF_USER_WORKER (0x4000) was another flag, which
            // init may have left to every thread.
            assert!(masks.contains(&0x20_0010), "{masks:x?}");
            assert_eq!(masks.contains(&0x20_4010), order, "{masks:x?}");
        }
    }

    /// The kernel's own, but with all it needs for it to be ambiguous, are refused, and nothing else.
    #[test]
    fn structs_that_are_there_twice_are_an_error_that_says_so() {
        let Some(layout) = Layout::for_tests(false) else {
            println!("SKIPPED structs_that_are_there_twice_are_an_error_that_says_so: needs root and tracefs");
            return;
        };
        let twins = layout.btf_of_twins().unwrap();
        let e = Object::prepare("twice", crate::monitor::iomonitor::elf(), Some(&twins), None).err().unwrap();
        assert!(e.log.contains("ambiguity"), "{e}");
        // Where no type's number is asked for, two of the same are as good as one.
        Object::prepare("twice", crate::monitor::iomonitor::elf_no_btf(), Some(&twins), None).unwrap();
    }

    #[test]
    fn no_name_has_a_dot() {
        let object = Object::open("names", crate::monitor::iomonitor::elf_no_btf(), None).unwrap();
        let inner = |map| {
            // SAFETY: a map of the live object.
            unsafe { !sys::bpf_map__inner_map(map).is_null() }
        };
        assert!(maps(&object).into_iter().any(inner), "a map of maps");
        if let Err(e) = object.name_inner_maps() {
            println!("SKIPPED no_name_has_a_dot: {e}");
            return;
        }
        // libbpf would name those.
        assert!(!maps(&object).into_iter().any(inner));
        for map in maps(&object) {
            // SAFETY: the name of a map of the live object.
            let name = unsafe { CStr::from_ptr(sys::bpf_map__name(map)) }.to_str().unwrap();
            assert!(!name.contains('.'), "{name}");
        }
    }

    #[test]
    fn a_loop_is_not_just_a_jump_back() {
        let insn = |code, off| sys::bpf_insn { code, off, ..Default::default() };
        let [ja, jeq, exit] = [sys::BPF_JA, sys::BPF_JEQ, sys::BPF_EXIT].map(|op| (sys::BPF_JMP | op) as u8);
        assert!(!has_loop(&[insn(ja, 1), insn(exit, 0), insn(jeq, -2), insn(exit, 0)]));
        assert!(has_loop(&[insn(ja, 1), insn(exit, 0), insn(jeq, -3), insn(exit, 0)]));
    }

    /// There is no such kernel to boot here, so that its rules are checked by hand: linux/bpf.h of 4.14, and its
    /// verifier, which knows no loops.
    #[test]
    fn linux_4_14_knows_all_that_the_programs_without_btf_use() {
        const KINDS: [u32; 2] = [sys::BPF_PROG_TYPE_KPROBE, sys::BPF_PROG_TYPE_TRACEPOINT];
        const HELPERS: [u32; 10] = [
            sys::BPF_FUNC_map_lookup_elem,
            sys::BPF_FUNC_map_update_elem,
            sys::BPF_FUNC_map_delete_elem,
            sys::BPF_FUNC_probe_read,
            sys::BPF_FUNC_probe_read_kernel, // before 5.5 libbpf puts the former in its place
            sys::BPF_FUNC_ktime_get_ns,
            sys::BPF_FUNC_get_current_pid_tgid,
            sys::BPF_FUNC_get_current_comm,
            sys::BPF_FUNC_get_current_task,
            sys::BPF_FUNC_current_task_under_cgroup,
        ];
        let objects = [crate::monitor::iomonitor::elf_no_btf(), crate::ebpf::layout::elf()];
        for object in objects.map(|elf| Object::open("old", elf, None).unwrap()) {
            let all = programs(&object);
            assert!(!all.is_empty());
            for (name, kind, insns) in all {
                assert!(KINDS.contains(&kind), "{name} is of type {kind}");
                assert!(insns.len() <= 4096, "{name} has {} instructions", insns.len());
                assert!(!has_loop(insns), "{name} has a loop");
                // This one has another that stands in for it before 4.18.
                let helper = |id| HELPERS.contains(&id) || name == "tp_fill" && id == sys::BPF_FUNC_get_stack;
                let mut at = 0;
                while let Some(insn) = insns.get(at) {
                    let (code, source) = (u32::from(insn.code), insn.src_reg());
                    let (class, operation, mode) = (code & 7, code & 0xf0, code & 0xe0);
                    let known = match class {
                        // A constant of 64 bits, which takes the room of two; a map's address when relocated.
                        sys::BPF_LD => code == sys::BPF_LD | sys::BPF_IMM | sys::BPF_DW && source == 0,
                        sys::BPF_LDX | sys::BPF_ST => mode == sys::BPF_MEM,
                        // Of the atomic operations only the addition.
                        sys::BPF_STX => mode == sys::BPF_MEM || mode == sys::BPF_ATOMIC && insn.imm == 0,
                        sys::BPF_ALU | sys::BPF_ALU64 => insn.off == 0 && operation <= sys::BPF_END,
                        sys::BPF_JMP if operation == sys::BPF_CALL => source == 0 && helper(insn.imm as u32),
                        sys::BPF_JMP => operation <= sys::BPF_JSLE,
                        _ => false, // jumps on 32 bits
                    };
                    assert!(known, "instruction {at} of {name}: {code:#x}, {source}, {}, {}", insn.off, insn.imm);
                    at += if class == sys::BPF_LD { 2 } else { 1 };
                }
            }
            for map in maps(&object) {
                // SAFETY: a map of the live object.
                let kind = unsafe { sys::bpf_map__type(map) };
                assert!(kind <= sys::BPF_MAP_TYPE_HASH_OF_MAPS, "a map of type {kind}");
            }
        }
    }

    #[test]
    fn a_map_is_emptied_with_batches_and_without() {
        if os::capabilities() & os::cap::SYS_ADMIN == 0 || !os::has_btf() {
            println!("SKIPPED a_map_is_emptied_with_batches_and_without: needs root and BTF");
            return;
        }
        let object = Object::prepare("drain", crate::monitor::iomonitor::elf(), None, None).unwrap();
        let map = object.map("procs_a").unwrap();
        let mut shown = 0;
        for batches in [true, false] {
            for tgid in 0..1000 {
                let row = abi::ProcRow { stalls: tgid.into(), ..Default::default() };
                let proc = abi::ProcKey { tgid, start: 7 };
                map.update(abi::RowKey { proc, cgroup: 1 }.bytes(), row.bytes()).unwrap();
            }
            map.show(|_: abi::RowKey, row: abi::ProcRow| shown += row.stalls).unwrap();
            let mut sum = (0, 0);
            let each = |_: abi::RowKey, row: abi::ProcRow| sum = (sum.0 + 1, sum.1 + row.stalls);
            if batches { map.drain(each) } else { map.drain_singly(&mut { each }) }.unwrap();
            assert_eq!((sum, map.is_empty().unwrap()), ((1000, 499_500), true));
        }
        assert_eq!(shown, 2 * 499_500);
    }

    #[test]
    fn what_the_kernel_does_not_count_is_not_known() {
        use sys::{BPF_PROG_TYPE_KPROBE as KPROBE, BPF_PROG_TYPE_RAW_TRACEPOINT as RAW};
        use sys::{BPF_PROG_TYPE_TRACEPOINT as TRACEPOINT, BPF_PROG_TYPE_TRACING as TRACING};
        for (kind, kernel, counts) in [
            (KPROBE, (6, 6), false),
            (TRACEPOINT, (5, 10), false),
            (KPROBE, (6, 7), true),
            (TRACEPOINT, (7, 2), true),
            (TRACING, (5, 10), true),
            (RAW, (4, 17), true),
        ] {
            assert_eq!(counts_misses(kind, kernel), counts, "{kind} on {kernel:?}");
        }
    }

    #[test]
    fn what_is_no_object_is_an_error_with_libbpfs_words() {
        let e = Object::prepare("junk", b"this is no ELF file", None, None).err().unwrap();
        assert!(e.to_string().starts_with("open BPF object junk"), "{e}");
        assert!(!e.log.is_empty());
    }

    /// Has the kernel verify instructions at a raw tracepoint; the log of a refusal. Each instruction is code,
    /// registers (source << 4 | destination), offset and immediate value.
    fn verify(instructions: &[(u8, u8, i16, i32)]) -> io::Result<String> {
        let bytes: Vec<u64> = instructions
            .iter()
            .map(|i| u64::from(i.0) | u64::from(i.1) << 8 | (i.2 as u16 as u64) << 16 | (i.3 as u32 as u64) << 32)
            .collect();
        let mut log = vec![0u8; 1 << 16];
        let mut opts = sys::bpf_prog_load_opts {
            sz: size_of::<sys::bpf_prog_load_opts>() as _,
            log_level: 1,
            log_buf: log.as_mut_ptr().cast(),
            log_size: log.len() as _,
            ..Default::default()
        };
        // SAFETY: an instruction has 8 bytes, in this order on little-endian machines; all buffers are live and as
        // long as said.
        let code = unsafe {
            let (kind, count) = (sys::BPF_PROG_TYPE_RAW_TRACEPOINT, bytes.len() as _);
            sys::bpf_prog_load(kind, c"bad".as_ptr(), c"GPL".as_ptr(), bytes.as_ptr().cast(), count, &mut opts)
        };
        assert!(code < 0, "accepted");
        let log = CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned();
        if log.is_empty() { Err(errno(code)) } else { Ok(log) }
    }

    #[test]
    fn the_refusals_of_this_kernel_are_explained() {
        const EXIT: (u8, u8, i16, i32) = (0x95, 0, 0, 0);
        for (program, reasons, meaning) in [
            // r0 = *(u64 *)(r1 + 9999): beyond the arguments
            (&[(0x79, 0x10, 9999, 0), EXIT][..], &["invalid bpf_context access off=9999"][..], "to be safe"),
            // exit without a result
            (&[EXIT], &["R0 !read_ok"], "to be safe"),
            // r1 = 1; r0 = *(u64 *)r1
            (&[(0xb7, 1, 0, 1), (0x79, 0x10, 0, 0), EXIT], &["R1 invalid mem access"], "to be safe"),
            // call helper 99999
            (&[(0x85, 0, 0, 99_999), EXIT], &["invalid func unknown#99999"], "a newer kernel"),
            // r0 = 0; if (r1) for (;;);
            (&[(0xb7, 0, 0, 0), (0x15, 1, 1, 0), (0x05, 0, -1, 0), EXIT], &["infinite loop", "back-edge"], "a loop"),
        ] {
            let log = match verify(program) {
                Ok(log) => log,
                Err(e) => return println!("SKIPPED the_refusals_of_this_kernel_are_explained: needs CAP_BPF: {e}"),
            };
            println!("{log}");
            let (_, said) = verifier::explain(&log, false);
            println!("=> {said}\n");
            assert!(reasons.iter().any(|r| said.contains(r)) && said.contains(meaning), "{said}");
            assert!(!said.contains("R10=") && !said.contains("processed") && !said.contains('\n'), "{said}");
        }
    }
}
