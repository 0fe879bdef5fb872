//! The system calls that std does not offer: signals, mounts, perf events, and what the kernel tells of
//! itself.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, Read, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// 0, or the errno of the call that returned -1.
fn check(code: libc::c_int) -> io::Result<libc::c_int> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

/// The same for a call that returns nothing else.
pub(super) fn checked(code: libc::c_long) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// ---- signals ----

/// A signal that the agent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: stop.
    Terminate = libc::SIGTERM as isize,
    /// SIGINT: stop.
    Interrupt = libc::SIGINT as isize,
    /// SIGHUP: read the configuration again.
    Hangup = libc::SIGHUP as isize,
}

impl Signal {
    const ALL: [(Signal, &'static str); 3] =
        [(Signal::Terminate, "SIGTERM"), (Signal::Interrupt, "SIGINT"), (Signal::Hangup, "SIGHUP")];
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(signal, _)| signal == self).map_or("", |(_, name)| name))
    }
}

/// The signals of [`Signal`], taken out of the ordinary delivery.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them for this thread and all that it starts: to be called before the first one is.
    pub fn block() -> io::Result<Self> {
        // SAFETY: sigemptyset makes the set valid before it is used; the others only read or change it. The action is the
        // default, no function.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            for (signal, _) in Signal::ALL {
                libc::sigaddset(&mut set, signal as libc::c_int);
                // nohup, and a shell that starts it in the background, have them ignored: then no signal would end it.
                libc::signal(signal as libc::c_int, libc::SIG_DFL);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
                0 => Ok(Self(set)),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }

    /// Waits for one of them, for no longer than `limit`; `None` if none came.
    pub fn wait_for(&self, limit: Duration) -> io::Result<Option<Signal>> {
        // SAFETY: all-zero is a valid timespec.
        let mut time: libc::timespec = unsafe { mem::zeroed() };
        time.tv_sec = limit.as_secs().try_into().unwrap_or(i64::MAX);
        time.tv_nsec = limit.subsec_nanos() as _; // below 10^9: fits
        // SAFETY: the set was made by block(); no siginfo is asked for; the time is live.
        let signal = unsafe { libc::sigtimedwait(&self.0, ptr::null_mut(), &time) };
        match check(signal) {
            Ok(number) => Ok(Signal::ALL.into_iter().map(|(signal, _)| signal).find(|s| *s as libc::c_int == number)),
            // Interrupted: stopped and continued, for one.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Ends the process at once, as `signal` does where nobody waits for it.
    pub fn die_of(&self, signal: Signal) -> ! {
        // SAFETY: the set was made by block(); raise() sends a signal to this thread, whose action is the default; nothing is
        // run at the end, while other threads go on.
        unsafe {
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &self.0, ptr::null_mut());
            libc::raise(signal as libc::c_int);
            libc::_exit(128 + signal as libc::c_int)
        }
    }
}

/// Microseconds of the clock that systemd compares with (CLOCK_MONOTONIC).
pub fn monotonic_micros() -> u64 {
    // SAFETY: all-zero is a valid timespec; the call writes to a live one.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

// ---- tracefs ----

/// Where tracefs may be mounted; the second is its place of old.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The mounted tracefs, if there is one that this process may read.
pub fn tracefs() -> Option<PathBuf> {
    TRACEFS.iter().map(PathBuf::from).find(|p| p.join("events").is_dir())
}

/// Why [`tracefs`] finds none, and what to do.
fn no_tracefs() -> io::Error {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().any(|l| l.split(' ').nth(2) == Some("tracefs"));
    let refused =
        |p: &str| fs::metadata(Path::new(p).join("events")).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
    let (kind, words) = match mounted && TRACEFS.into_iter().any(refused) {
        _ if is_confidential() => (io::ErrorKind::PermissionDenied, "lockdown=confidentiality forbids to read tracefs"),
        true => (io::ErrorKind::PermissionDenied, "it may not be read: that takes root, or CAP_DAC_READ_SEARCH"),
        false => (io::ErrorKind::NotFound, "it is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)"),
    };
    io::Error::new(kind, words)
}

/// A mount of tracefs that nobody else has.
static OWN_TRACEFS: OnceLock<OwnedFd> = OnceLock::new();

/// Sees to it that tracefs can be read where it is not mounted: by a mount of this process alone, which nothing shows on
/// the host and which goes with the process. From 5.2 on it has no place; before, it is in a mount namespace of this
/// process: so it is to be called before the first thread is started. `Ok(false)`: it was there already.
pub fn mount_tracefs_privately() -> io::Result<bool> {
    if tracefs().is_some() {
        return Ok(false);
    }
    if OWN_TRACEFS.get().is_some() {
        return Ok(true);
    }
    let why = no_tracefs();
    // With confidentiality nothing in it may be read, and 6.12 dies of mounting it.
    if why.kind() == io::ErrorKind::PermissionDenied {
        return Err(why);
    }
    let mounted = detached_mount(c"tracefs").and_then(|mount| open_at(&mount, "events", libc::O_PATH).map(|_| mount));
    match mounted {
        Ok(mount) => drop(OWN_TRACEFS.set(mount)), // another one is as good
        Err(e) => {
            log::debug!("tracefs cannot be mounted without a place: {e}");
            mount_tracefs().map_err(|e| {
                log::debug!("tracefs cannot be mounted in a namespace: {e}");
                io::Error::new(e.kind(), format!("{why}, nor can the agent mount it: {}", e.kind()))
            })?;
        }
    }
    Ok(true)
}

fn has_tracefs() -> bool {
    tracefs().is_some() || OWN_TRACEFS.get().is_some()
}

/// Opens what lies at `path` below an open folder.
fn open_at(folder: &OwnedFd, path: &str, flags: libc::c_int) -> io::Result<fs::File> {
    let path = CString::new(path)?;
    // SAFETY: a live descriptor and a C string; nothing is created.
    let fd = check(unsafe { libc::openat(folder.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: a fresh descriptor, ours alone.
    Ok(unsafe { fs::File::from_raw_fd(fd) })
}

/// The root of that mount, if there is one without a place.
pub fn own_tracefs() -> Option<BorrowedFd<'static>> {
    OWN_TRACEFS.get().map(AsFd::as_fd)
}

/// Opens a file of tracefs, wherever that is: to be read, or to have lines added.
fn open_in_tracefs(path: &str, adds: bool) -> io::Result<fs::File> {
    let (opened, name) = match (tracefs(), OWN_TRACEFS.get()) {
        (Some(mounted), _) => {
            let path = mounted.join(path);
            (fs::OpenOptions::new().read(!adds).append(adds).open(&path), path.display().to_string())
        }
        (None, Some(own)) => {
            let flags = if adds { libc::O_WRONLY | libc::O_APPEND } else { libc::O_RDONLY };
            (open_at(own, path, flags), format!("tracefs: {path}"))
        }
        (None, None) => {
            let why = no_tracefs();
            return Err(io::Error::new(why.kind(), format!("no tracefs: {why}")));
        }
    };
    opened.map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied if is_confidential() => no_tracefs(),
        kind => io::Error::new(kind, format!("{name}: {e}")),
    })
}

fn mount_tracefs() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // Slave, not private: later mounts of the host (a disk, say) still show here.
    // SAFETY: C strings; source, type and data are not used when only the propagation changes.
    check(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_SLAVE | libc::MS_REC, ptr::null()) })?;
    // SAFETY: C strings; tracefs needs no data.
    check(unsafe {
        libc::mount(
            c"tracefs".as_ptr(),
            c"/sys/kernel/tracing".as_ptr(),
            c"tracefs".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            ptr::null(),
        )
    })?;
    Ok(())
}

/// The number by which perf knows a tracepoint.
pub fn tracepoint_id(category: &str, name: &str) -> io::Result<u64> {
    let text = tracepoint_file(category, name, "id")?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("id of {category}:{name}: {text:?}"));
    text.trim().parse().map_err(|_| bad())
}

fn tracepoint_file(category: &str, name: &str, file: &str) -> io::Result<String> {
    read_tracefs(&format!("events/{category}/{name}/{file}"))
}

fn read_tracefs(path: &str) -> io::Result<String> {
    let mut text = String::new();
    open_in_tracefs(path, false)?.read_to_string(&mut text)?;
    Ok(text)
}

/// A field of what a tracepoint hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracepointField {
    /// Its name.
    pub name: String,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
}

/// The fields of a tracepoint, as this kernel describes them.
pub fn tracepoint_fields(category: &str, name: &str) -> io::Result<Vec<TracepointField>> {
    tracepoint_file(category, name, "format").map(|text| fields_of(&text))
}

/// The fields in a `format` file of tracefs: `field:unsigned char order; offset:36; size:1; signed:0;`, a line each.
fn fields_of(format: &str) -> Vec<TracepointField> {
    let field = |line: &str| {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        let number = |part: Option<&str>, name: &str| part?.strip_prefix(name)?.parse().ok();
        let (offset, size) = (number(parts.next(), "offset:")?, number(parts.next(), "size:")?);
        let name = declaration.split(|c: char| c.is_whitespace() || c == '*').next_back()?.split('[').next()?;
        Some(TracepointField { name: name.to_owned(), offset, size })
    };
    format.lines().filter_map(field).collect()
}

/// Runs the loaded program `prog` at the tracepoint with this id, until the descriptor is closed.
pub fn perf_tracepoint(id: u64, prog: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ = libbpf_sys::PERF_TYPE_TRACEPOINT;
    attr.config = id;
    perf_event(attr, prog)
}

/// perf's number for kprobes, which is not in its fixed list.
const KPROBE_TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Whether perf knows kprobes by itself (4.17+): before, they are events of tracefs.
pub fn perf_has_kprobes() -> bool {
    Path::new(KPROBE_TYPE).exists()
}

/// Runs `prog` when the kernel function `name` is entered, until the descriptor is closed.
pub fn perf_kprobe(name: &CStr, prog: &OwnedFd) -> io::Result<OwnedFd> {
    let kind = KPROBE_TYPE;
    let text = fs::read_to_string(kind)?;
    // SAFETY: all-zero is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ =
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{kind}: {text:?}")))?;
    attr.__bindgen_anon_3.kprobe_func = name.as_ptr() as u64;
    perf_event(attr, prog)
}

/// An event at the entry or at the return of a kernel function, defined in tracefs. The definition goes when this is
/// dropped; what a killed agent left behind costs nothing, and the next one clears it.
///
/// tracefs is one for all agents of a host, whose process ids may be the same (1, in most containers): so the names are
/// random. The kernel refuses to remove an event that somebody has opened, which tells what is in use from what was left.
pub struct FunctionEvent {
    name: String,
    /// The list, open for writing: by the time that the event is to go the agent may not open it any more.
    list: fs::File,
}

/// Where in a function.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// When it is called.
    Entry,
    /// When it is done. perf's own event has room for as many calls under way as there are CPUs, and misses the others
    /// in silence: only in tracefs can room be asked for.
    Return,
}

/// Group of our events in tracefs.
const EVENT_GROUP: &str = "ebpf_sidecar";
/// Calls of one function that may be under way.
const CALLS_UNDER_WAY: u32 = 1024;
/// Times that an event is defined again which went before it was in use.
const TRIES: u32 = 5;

impl FunctionEvent {
    /// Defines it for the function `function`, and runs `prog` at it until the descriptor is closed.
    pub fn attach(function: &str, place: Place, prog: &OwnedFd) -> io::Result<(Self, OwnedFd)> {
        // Between the two steps another agent that starts may take it for one that was left behind.
        let mut tries = 0;
        loop {
            let event = Self::define(function, place)?;
            let opened = tracepoint_id(EVENT_GROUP, &event.name).and_then(|id| perf_tracepoint(id, prog));
            match opened {
                Ok(fd) => return Ok((event, fd)),
                Err(e) if tries == TRIES || event.is_there() => return Err(e),
                Err(_) => tries += 1,
            }
        }
    }

    fn define(function: &str, place: Place) -> io::Result<Self> {
        let (kind, letter) = match place {
            Place::Entry => ("p".to_owned(), 'p'),
            Place::Return => (format!("r{CALLS_UNDER_WAY}"), 'r'),
        };
        // A random number that std makes for each of these.
        let random = RandomState::new().hash_one(0);
        let name = format!("{letter}_{function}_{random:016x}").replace('.', "_");
        let mut list = Self::open()?;
        list.write_all(format!("{kind}:{EVENT_GROUP}/{name} {function}").as_bytes())?;
        Ok(Self { name, list })
    }

    fn is_there(&self) -> bool {
        Self::names().is_ok_and(|names| names.contains(&self.name))
    }

    /// Those of all agents; an error where there is no such list.
    pub fn names() -> io::Result<Vec<String>> {
        let list = read_tracefs(Self::LIST)?;
        // `r1024:ebpf_sidecar/r_NAME_NUMBER FUNCTION`
        let group = format!(":{EVENT_GROUP}/");
        Ok(list.lines().filter_map(|l| l.split_once(&group)?.1.split(' ').next()).map(str::to_owned).collect())
    }

    /// Removes those that killed agents left behind.
    pub fn clear_left_behind() {
        for name in Self::names().unwrap_or_default() {
            // Refused (EBUSY) for one that is in use.
            let _ = Self::open().and_then(|mut list| Self::remove(&mut list, &name));
        }
    }

    const LIST: &str = "kprobe_events";

    fn remove(list: &mut fs::File, name: &str) -> io::Result<()> {
        list.write_all(format!("-:{EVENT_GROUP}/{name}").as_bytes())
    }

    fn open() -> io::Result<fs::File> {
        open_in_tracefs(Self::LIST, true).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound if has_tracefs() => {
                let none = "no kprobes in this kernel: neither perf nor tracefs (kprobe_events) has them";
                io::Error::new(io::ErrorKind::Unsupported, none)
            }
            io::ErrorKind::PermissionDenied if has_tracefs() && !is_confidential() => {
                io::Error::new(e.kind(), "kprobe_events may not be written: that takes root, or CAP_DAC_OVERRIDE")
            }
            _ => e,
        })
    }
}

impl Drop for FunctionEvent {
    fn drop(&mut self) {
        if let Err(e) = Self::remove(&mut self.list, &self.name)
            && self.is_there()
        {
            log::warn!("the event {EVENT_GROUP}/{} stays in tracefs: {e}", self.name);
        }
    }
}

/// The answer of perf_event_open() with what it means, where a setting of the kernel is behind it.
fn forbidden(e: io::Error) -> io::Error {
    const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
    let level = fs::read_to_string(PARANOID).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0);
    // From 3 on, in the kernels of Debian and Ubuntu, CAP_PERFMON is not enough. With CAP_SYS_ADMIN something else forbids it.
    if e.kind() != io::ErrorKind::PermissionDenied || level < 3 || capabilities() & cap::SYS_ADMIN != 0 {
        return e;
    }
    let words = "it takes CAP_SYS_ADMIN, or 2 there and CAP_PERFMON";
    io::Error::new(e.kind(), format!("kernel.perf_event_paranoid is {level}: {words}"))
}

/// Opens an event and hangs a program on it.
fn perf_event(mut attr: libbpf_sys::perf_event_attr, prog: &OwnedFd) -> io::Result<OwnedFd> {
    attr.size = size_of::<libbpf_sys::perf_event_attr>() as _;
    // One event on one CPU is enough: the program hangs at the place itself, and runs on all of them.
    let cpu = first_cpu(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default());
    let flags = libbpf_sys::PERF_FLAG_FD_CLOEXEC as libc::c_ulong;
    // SAFETY: the attributes are live and as long as they say, and so is the name they may point to.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attr, -1, cpu, -1, flags) };
    check(fd as libc::c_int).map_err(forbidden)?;
    // SAFETY: a fresh descriptor, ours alone.
    let event = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    // _IOW('$', 8, u32) and _IO('$', 0) of linux/perf_event.h, the same on x86-64 and arm64.
    const SET_BPF: u32 = 0x4004_2408;
    const ENABLE: u32 = 0x2400;
    // SAFETY: both take an integer, on a perf event.
    check(unsafe { libc::ioctl(event.as_raw_fd(), SET_BPF as _, prog.as_raw_fd()) })?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(event.as_raw_fd(), ENABLE as _, 0) })?;
    Ok(event)
}

/// Any text in the place of what the kernel writes.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for field in fields_of(&text) {
        assert!(!field.name.contains(char::is_whitespace), "{field:?}");
    }
    // What is in memory is read without an error.
    for (start, length) in functions_in(data, &["vfs_read", "x"]).unwrap_or_default().into_iter().flatten() {
        assert!(start > 0 && length > 0 && start.checked_add(length).is_some());
    }
    assert!(first_cpu(&text) >= 0);
    version_of(&text);
    stat_field::<u64>(&text, 22);
    preemptible(&text, &text, (6, 12), &text);
}

/// The first of a list of CPUs such as `2-3,5`; 0 where nothing is told.
fn first_cpu(list: &str) -> libc::c_int {
    list.split(['-', ',']).next().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// The kernel's symbol for the function `name`: itself, or with a suffix of the compiler's (`.isra.0`,
/// `.constprop.0`), never a `.cold` part.
pub fn kernel_symbol(name: &str) -> io::Result<Option<String>> {
    let file = fs::File::open("/proc/kallsyms")?;
    for line in io::BufReader::new(file).lines() {
        let line = line?;
        let symbol = line.split_ascii_whitespace().nth(2).unwrap_or_default();
        let of_function = symbol
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(".isra.") || rest.starts_with(".constprop."));
        if of_function && !symbol.contains(".cold") {
            return Ok(Some(symbol.to_owned()));
        }
    }
    Ok(None)
}

/// Where the functions of these names lie in the kernel: address and length in bytes; `None` where it has no such
/// function. An empty list if it does not tell addresses: that takes CAP_SYSLOG, or
/// kernel.kptr_restrict=0 and kernel.perf_event_paranoid=1.
pub fn kernel_functions<const N: usize>(names: &[&str; N]) -> io::Result<Vec<Option<(u64, u64)>>> {
    functions_in(io::BufReader::with_capacity(1 << 16, fs::File::open("/proc/kallsyms")?), names)
}

/// The same from lines `ADDRESS TYPE NAME [MODULE]`, in the order of addresses but for the modules' at the end. A function
/// ends where the next symbol begins.
fn functions_in(mut lines: impl BufRead, names: &[&str]) -> io::Result<Vec<Option<(u64, u64)>>> {
    let mut found = vec![None; names.len()];
    // Of the last symbol that was found: its index and address.
    let mut open: Option<(usize, u64)> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let mut words = line.split(u8::is_ascii_whitespace);
        let (Some(address), _, Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        let named = names.iter().position(|n| n.as_bytes() == name);
        if open.is_none() && named.is_none() {
            continue;
        }
        let address = std::str::from_utf8(address).ok().and_then(|a| u64::from_str_radix(a, 16).ok()).unwrap_or(0);
        if address == 0 {
            return Ok(Vec::new());
        }
        if let Some((index, start)) = open
            && address != start
        {
            if let Some(slot) = found.get_mut(index)
                && address > start
            {
                *slot = Some((start, address - start));
            }
            open = None;
        }
        if open.is_none() {
            open = named.map(|index| (index, address));
        }
    }
    Ok(found)
}

// ---- what may forbid ----

/// How far the kernel is locked down: `none`, `integrity` or `confidentiality`. `None` where it does not tell: it has no
/// lockdown, or /sys/kernel/security is not mounted and may not be by this process.
pub fn lockdown() -> Option<String> {
    /// Where it is not mounted; open from the first look on, since later the agent may not mount it any more.
    static OWN: OnceLock<Option<fs::File>> = OnceLock::new();
    let open = || open_at(&detached_mount(c"securityfs").ok()?, "lockdown", libc::O_RDONLY).ok();
    let read_own = || {
        let (file, mut bytes) = (OWN.get_or_init(open).as_ref()?, [0; 256]);
        let n = file.read_at(&mut bytes, 0).ok()?;
        Some(String::from_utf8_lossy(&bytes[..n]).into_owned())
    };
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok().or_else(read_own)?;
    mode_of(&text)
}

/// Looks at what [`what_forbids`] tells while the agent still can, and before it forbids itself what it does not need.
pub fn look_what_forbids() {
    lockdown();
    has_seccomp_filter();
}

/// Whether the kernel's memory may not be read, by BPF programs either.
pub fn is_confidential() -> bool {
    lockdown().as_deref() == Some("confidentiality")
}

/// The one in brackets of `none [integrity] confidentiality`.
fn mode_of(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// What may be behind a call that was refused with EPERM, as far as this process can tell, in a few words.
pub fn what_forbids() -> String {
    let have = capabilities();
    let lacking = cap::names(cap::for_tracing(have, kernel_version()) & !have, "CAP_");
    if !lacking.is_empty() {
        return format!("{} missing", lacking.join(" and "));
    }
    if is_in_user_namespace() {
        return "a user namespace, whose capabilities are none of the host's".into();
    }
    let mut found = Vec::new();
    match lockdown() {
        Some(mode) if mode == "none" => {}
        Some(mode) => found.push(format!("lockdown={mode}")),
        None => found.push("lockdown".into()), // it may be there unseen
    }
    found.push(if has_seccomp_filter() { "a seccomp filter" } else { "a sandbox" }.into());
    found.join(" or ")
}

/// Whether this process is in a user namespace other than the first; false where /proc does not tell.
pub fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // Every id is itself, unless they are mapped to others.
    !map.is_empty() && !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a seccomp filter of somebody else decides what the agent may call.
fn has_seccomp_filter() -> bool {
    static IS_FILTERED: OnceLock<bool> = OnceLock::new();
    // SAFETY: no pointers.
    *IS_FILTERED.get_or_init(|| unsafe { libc::prctl(libc::PR_GET_SECCOMP) == 2 })
}

// ---- the kernel and this process ----

/// Time of `CLOCK_MONOTONIC` in nanoseconds, as the programs read it.
pub fn monotonic_ns() -> u64 {
    // SAFETY: all-zero is a valid timespec.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: a live struct; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Bytes of a page.
pub fn page_size() -> u64 {
    // SAFETY: no pointers.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// One of the texts of uname(2), which needs no /proc.
fn uname(field: fn(&libc::utsname) -> &[libc::c_char]) -> String {
    // SAFETY: all-zero is a valid utsname, and the call writes to a live one; a failure leaves it empty.
    let names = unsafe {
        let mut names: libc::utsname = mem::zeroed();
        libc::uname(&mut names);
        names
    };
    let bytes: Vec<u8> = field(&names).iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `uname -r`.
pub fn kernel_release() -> String {
    uname(|names| &names.release)
}

/// `uname -n`; empty where there is no name.
pub fn host_name() -> String {
    uname(|names| &names.nodename)
}

/// Major and minor number of a release such as `6.12.3-amd64`; zeros for what is not a number.
pub fn version_of(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Major and minor number of the running kernel.
pub fn kernel_version() -> (u32, u32) {
    version_of(&kernel_release())
}

/// A field of the text of a `/proc/PID/stat`, counted from 1 as in proc(5): one of those behind the name, from 3 on.
pub fn stat_field<T: FromStr>(stat: &str, number: usize) -> Option<T> {
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Whether reclaim scans without telling: the multi-generational LRU does, before 6.7.
pub fn scans_are_silent() -> bool {
    // Bits of features in use, in hexadecimal; the lowest is the LRU itself.
    let enabled = fs::read_to_string("/sys/kernel/mm/lru_gen/enabled").unwrap_or_default();
    let bits = u32::from_str_radix(enabled.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    bits & 1 == 1 && kernel_version() < (6, 7)
}

/// Whether a thread can be preempted while it runs in the kernel.
pub fn is_preemptible() -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    preemptible(
        &read("/sys/kernel/debug/sched/preempt"),
        &uname(|names| &names.version),
        kernel_version(),
        &read("/proc/cmdline"),
    )
}

/// The same, from the models that the scheduler offers with the one in use in parentheses (debugfs may be out of
/// reach: then empty), `uname -v`, the release and the kernel's command line.
fn preemptible(models: &str, build: &str, release: (u32, u32), cmdline: &str) -> bool {
    if let Some((model, _)) = models.split_once('(').and_then(|(_, rest)| rest.split_once(')')) {
        return matches!(model, "full" | "lazy");
    }
    let built = |word| build.split_ascii_whitespace().any(|w| w == word);
    if !built("PREEMPT_DYNAMIC") {
        return built("PREEMPT") || built("PREEMPT_LAZY") || built("PREEMPT_RT");
    }
    // Chosen at boot. From 7.0 on x86-64 and arm64 have no other models; before, voluntary is the usual default.
    let asked = cmdline.split_ascii_whitespace().take_while(|w| *w != "--").filter_map(|w| w.strip_prefix("preempt="));
    release >= (7, 0) || asked.last().is_some_and(|model| matches!(model, "full" | "lazy"))
}

/// Whether the kernel describes its types.
pub fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// The inode number of the directory of our own cgroup of version 2; `None` where that is mounted nowhere.
pub fn own_cgroup() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let mount = fields.next()?;
        (fields.next()? == "cgroup2").then(|| Path::new(mount).join(path))
    });
    // In a container that has the host's as well, the path is below one of them.
    mounts.filter_map(|directory| fs::metadata(directory).ok()).map(|m| m.ino()).next()
}

/// Whether `path` lies in a cgroup v2 hierarchy.
pub fn is_on_cgroup2(path: &Path) -> io::Result<bool> {
    const CGROUP2_SUPER_MAGIC: u32 = 0x6367_7270;
    Ok(magic_of(path)? == CGROUP2_SUPER_MAGIC)
}

/// The number of the kind of file system that `path` lies in.
fn magic_of(path: &Path) -> io::Result<u32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statfs.
    let mut fs: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: a C string and a live struct.
    check(unsafe { libc::statfs(path.as_ptr(), &mut fs) })?;
    Ok(fs.f_type as u32) // its type differs between C libraries
}

/// Whether BPF maps count against RLIMIT_MEMLOCK on this kernel, and it is neither lifted nor can be.
pub fn memlock_is_limited() -> bool {
    raise_memlock();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct.
    let code = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    kernel_version() < (5, 11) && code == 0 && limit.rlim_cur != libc::RLIM_INFINITY
}

/// Whether tracefs is mounted and this process may not read it.
pub fn tracefs_is_refused() -> bool {
    !has_tracefs() && !is_confidential() && no_tracefs().kind() == io::ErrorKind::PermissionDenied
}

/// Lets this process lock as much memory as BPF maps take; before 5.11 they count against the limit. A
/// refusal matters only there, and shows when the maps are made.
pub fn raise_memlock() {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a live struct.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &all) };
}

/// Descriptors that the agent needs: some 60 by itself, and a few for clients. With too few gRPC's core aborts.
const DESCRIPTORS_MIN: u64 = 128;

/// Lets this process have as many descriptors as it may, up to 4096: full of clients, the servers take nearly 1024, which is
/// where most systems begin. An error if they are too few, which says how there are more.
pub fn raise_descriptors() -> Result<(), String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= 4096 {
        return Ok(());
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max.min(4096);
    // SAFETY: a live struct; a refusal leaves what there was.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0;
    let now = if raised { limit.rlim_cur } else { before };
    if now >= DESCRIPTORS_MIN {
        return Ok(());
    }
    Err(format!(
        "the limit of open files (RLIMIT_NOFILE) is {now}, and the agent needs {DESCRIPTORS_MIN}: start it with \
         `ulimit -n 1024`, LimitNOFILE=1024 in its systemd unit, or --ulimit nofile=1024 of its container"
    ))
}

/// Has glibc's allocator keep one heap for all threads: with one for each, what clients have freed stays in many places.
/// To be called before there are threads. Other allocators are left as they are.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Unmaps the pages of the program and its libraries, most of which only starting needed. They stay in the page cache, and
/// come back one by one where they are run or read again.
pub fn unmap_start() {
    unsafe extern "C" fn unmap(object: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the C library passes a loaded object, whose headers stay as they are.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
        };
        let page = page_size();
        for part in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let begin = base + part.p_vaddr;
            let first = begin.next_multiple_of(page);
            let len = (begin + part.p_filesz).saturating_sub(first) / page * page;
            // SAFETY: whole pages of a mapping that nobody could write since the file was mapped: the kernel reads the
            // same from the file again.
            unsafe { libc::madvise(first as *mut libc::c_void, len as usize, libc::MADV_DONTNEED) };
        }
        0
    }
    // SAFETY: a function of the type that is wanted, which keeps no pointer.
    unsafe { libc::dl_iterate_phdr(Some(unmap), ptr::null_mut()) };
}

/// How many file descriptors this process may have; `None` if there is no limit.
pub fn max_fds() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct.
    let code = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (code == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// An open directory, whose entries can be counted again and again without another descriptor.
#[derive(Debug)]
pub struct Directory(NonNull<libc::DIR>);

// SAFETY: the stream belongs to the value alone, and no thread owns a part of it.
unsafe impl Send for Directory {}

impl Directory {
    /// Opens it.
    pub fn open(path: &CStr) -> io::Result<Self> {
        // SAFETY: a C string.
        NonNull::new(unsafe { libc::opendir(path.as_ptr()) }).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Its entries now, without itself and the one above.
    pub fn count(&mut self) -> io::Result<u64> {
        let mut entries = 0u64;
        // SAFETY: the stream is open; an entry is not used after the next call. Errno tells an error from the end.
        unsafe {
            libc::rewinddir(self.0.as_ptr());
            *libc::__errno_location() = 0;
            while !libc::readdir(self.0.as_ptr()).is_null() {
                entries += 1;
            }
            match *libc::__errno_location() {
                0 => Ok(entries.saturating_sub(2)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

/// Bits of capabilities (linux/capability.h).
pub mod cap {
    /// Reads files whatever their mode, and writes them.
    pub const DAC_OVERRIDE: u64 = 1 << 1;
    /// Reads files whatever their mode.
    pub const DAC_READ_SEARCH: u64 = 1 << 2;
    /// Ports below 1024.
    pub const NET_BIND_SERVICE: u64 = 1 << 10;
    /// Before 5.8 all of BPF and perf, for which it still stands.
    pub const SYS_ADMIN: u64 = 1 << 21;
    /// Lifts limits.
    pub const SYS_RESOURCE: u64 = 1 << 24;
    /// Addresses of the kernel's functions.
    pub const SYSLOG: u64 = 1 << 34;
    /// Programs that trace, and perf events.
    pub const PERFMON: u64 = 1 << 38;
    /// BPF.
    pub const BPF: u64 = 1 << 39;

    const NAMES: [(u64, &str); 8] = [
        (SYS_ADMIN, "SYS_ADMIN"),
        (BPF, "BPF"),
        (PERFMON, "PERFMON"),
        (DAC_READ_SEARCH, "DAC_READ_SEARCH"),
        (DAC_OVERRIDE, "DAC_OVERRIDE"),
        (SYS_RESOURCE, "SYS_RESOURCE"),
        (SYSLOG, "SYSLOG"),
        (NET_BIND_SERVICE, "NET_BIND_SERVICE"),
    ];

    /// The names of these, each behind `prefix`, which is often `CAP_`.
    pub fn names(bits: u64, prefix: &str) -> Vec<String> {
        NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| format!("{prefix}{name}")).collect()
    }

    /// Those that a kernel of this version wants for programs that trace, from who has `have`.
    pub fn for_tracing(have: u64, version: (u32, u32)) -> u64 {
        if version < (5, 8) || have & SYS_ADMIN != 0 { SYS_ADMIN } else { BPF | PERFMON }
    }
}

/// The version of capget(2) and capset(2) for a thread, 0 being the caller, and two sets of three words: effective, permitted
/// and inheritable bits (`_LINUX_CAPABILITY_VERSION_3`).
pub(super) const OWN_CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// Effective capabilities of this thread, as bits of [`cap`]; none where the kernel does not tell.
pub fn capabilities() -> u64 {
    let mut sets = [0u32; 6];
    // SAFETY: both are live, of the sizes that this version has.
    let code = unsafe { libc::syscall(libc::SYS_capget, OWN_CAPABILITIES.as_ptr(), sets.as_mut_ptr()) };
    if code == 0 { u64::from(sets[3]) << 32 | u64::from(sets[0]) } else { 0 }
}

/// Other processes that hold a BPF program, as `NAME (PID)`: the first few that this one sees.
pub fn program_holders() -> Vec<String> {
    let own = std::process::id().to_string();
    let holds = |process: &Path| {
        let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to == Path::new("anon_inode:bpf-prog"))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|p| p.path());
    let found = processes.filter_map(|process| {
        let pid = process.file_name()?.to_str()?.to_owned();
        let other = pid.bytes().all(|b| b.is_ascii_digit()) && pid != own;
        let name = fs::read_to_string(process.join("comm")).ok().filter(|_| other && holds(&process))?;
        Some(format!("{} ({pid})", name.trim_end()))
    });
    found.take(5).collect()
}

/// A file that lies in memory alone, and goes with its last descriptor.
pub fn memory_file(name: &CStr) -> io::Result<fs::File> {
    // SAFETY: a C string.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: a fresh descriptor, ours alone.
    Ok(unsafe { fs::File::from_raw_fd(fd) })
}

/// Whether the agent may make files no more.
static NO_FILES: AtomicBool = AtomicBool::new(false);

/// From now on [`cached_file`] does not try.
pub fn make_no_files() {
    NO_FILES.store(true, Ordering::Relaxed);
}

/// A file in the page cache, with no name and on no disk if the kernel lets us (from 5.2 on, with CAP_SYS_ADMIN), else in a
/// folder for such files. Unlike those in memory it is read, filled and emptied as every other.
pub fn cached_file() -> io::Result<fs::File> {
    if NO_FILES.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "confined, the agent makes no files"));
    }
    if let Ok(mount) = detached_mount(c"ramfs") {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        // SAFETY: a live descriptor and a C string.
        let fd = check(unsafe { libc::openat(mount.as_raw_fd(), c"file".as_ptr(), flags, 0o600) })?;
        // SAFETY: a fresh descriptor, ours alone.
        return Ok(unsafe { fs::File::from_raw_fd(fd) });
    }
    let in_folder = |path: &str| {
        if is_in_memory(Path::new(path))? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(path)
    };
    let first = ["/tmp", "/var/tmp", "."].into_iter().find_map(|path| in_folder(path).ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no folder for a file of the agent's own"))
}

/// Whether files at `path` bypass the page cache's ways, as those of tmpfs do.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    Ok(magic_of(path)? == TMPFS_MAGIC)
}

/// A file system of this kind that is mounted nowhere, and goes with its last descriptor: 5.2+.
pub fn detached_mount(kind: &CStr) -> io::Result<OwnedFd> {
    // The same numbers on all architectures, and constants of linux/mount.h.
    const FSOPEN: libc::c_long = 430;
    const FSCONFIG: libc::c_long = 431;
    const FSMOUNT: libc::c_long = 432;
    const CLOEXEC: libc::c_int = 1;
    const CREATE: libc::c_int = 6;
    const NOSUID_NODEV_NOEXEC: libc::c_int = 2 | 4 | 8;
    let opened = |code: libc::c_long| {
        let fd = check(code as libc::c_int)?;
        // SAFETY: a fresh descriptor, ours alone.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: a C string.
    let context = opened(unsafe { libc::syscall(FSOPEN, kind.as_ptr(), CLOEXEC) })?;
    let nothing = ptr::null::<libc::c_char>();
    // SAFETY: a live descriptor; no key and no value for this command.
    let code = unsafe { libc::syscall(FSCONFIG, context.as_raw_fd(), CREATE, nothing, nothing, 0) };
    check(code as libc::c_int)?;
    // SAFETY: a live descriptor.
    opened(unsafe { libc::syscall(FSMOUNT, context.as_raw_fd(), CLOEXEC, NOSUID_NODEV_NOEXEC) })
}

/// Tells the kernel nothing about the use of a file (POSIX_FADV_NORMAL).
pub fn advise_nothing(file: &fs::File) -> io::Result<()> {
    // SAFETY: no pointers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_NORMAL) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Flags of an open file, as open(2) takes them.
pub fn file_flags(file: &fs::File) -> io::Result<u32> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }).map(|flags| flags as u32)
}

/// Adds O_NONBLOCK to them.
pub fn set_nonblocking(file: &fs::File) -> io::Result<()> {
    let flags = file_flags(file)? as libc::c_int | libc::O_NONBLOCK;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Gives the current thread another name.
pub fn rename_thread(name: &CStr) -> io::Result<()> {
    // SAFETY: a C string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

/// Gives memory that was freed back to the kernel. glibc keeps the high-water mark of loading otherwise.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_known() {
        assert!(kernel_release().contains('.'));
        assert!(page_size().is_power_of_two());
        for (file, said) in [("osrelease", kernel_release()), ("hostname", host_name())] {
            assert_eq!(fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap().trim_end(), said);
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
        assert_eq!(capabilities(), u64::from_str_radix(effective.trim(), 16).unwrap());
    }

    #[test]
    fn functions_end_where_the_next_symbol_begins() {
        let lines = "ffffffff81000000 T _stext\nffffffff81000100 T read\nffffffff81000100 T alias\n\
            ffffffff81000180 t __pfx_fault\nffffffff81000190 t fault\nffffffff81000200 t write\nffffffff81000300 T more\n\
            ffffffffc0000000 t last\t[module]\n";
        let found = functions_in(lines.as_bytes(), &["write", "none", "read", "fault", "last"]).unwrap();
        let at = |start: u64, len: u64| Some((0xffff_ffff_8100_0000 + start, len));
        assert_eq!(found, [at(0x200, 0x100), None, at(0x100, 0x80), at(0x190, 0x70), None]);
        // Where it is not told.
        let hidden = "0000000000000000 T _stext\n0000000000000000 T read\n0000000000000000 T more\n";
        assert_eq!(functions_in(hidden.as_bytes(), &["read"]).unwrap(), []);
    }

    #[test]
    fn events_are_opened_on_a_cpu_that_is_there() {
        for (list, cpu) in [("0-3\n", 0), ("2-3,5\n", 2), ("1\n", 1), ("7,9-11\n", 7), ("", 0), ("\n", 0)] {
            assert_eq!(first_cpu(list), cpu, "{list:?}");
        }
    }

    #[test]
    fn what_is_unmapped_comes_back() {
        let of_files = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        static WORDS: &str = include_str!("os.rs");
        let (before, sum) = (of_files(), WORDS.bytes().map(u64::from).sum::<u64>());
        unmap_start();
        assert!(of_files() < before, "{before} KiB stay");
        assert_eq!(WORDS.bytes().map(u64::from).sum::<u64>(), sum);
    }

    #[test]
    fn preemption_is_as_the_kernel_says_or_was_built() {
        let (debian, arch) = ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-08-29)", "#1 SMP PREEMPT Mon");
        for (models, build, release, cmdline, expected) in [
            // Where debugfs is readable, it alone decides.
            ("none (voluntary) full \n", debian, (6, 12), "preempt=full", false),
            ("(none) voluntary full lazy \n", debian, (6, 13), "", false),
            ("none voluntary (full) \n", debian, (6, 1), "", true),
            ("full (lazy) \n", debian, (7, 2), "", true),
            // A fixed model.
            ("", "#1 SMP Debian 5.10.223-1 (2024-08-10)", (5, 10), "preempt=full", false),
            ("", arch, (5, 10), "", true),
            ("", "#1 SMP PREEMPT_RT Debian 6.1.176-1", (6, 1), "", true),
            ("", "#1 SMP PREEMPT_LAZY", (6, 14), "", true),
            // One chosen at boot.
            ("", debian, (6, 12), "quiet", false),
            ("", debian, (6, 12), "preempt=none preempt=full quiet", true),
            ("", debian, (6, 12), "preempt=full preempt=voluntary", false),
            ("", debian, (6, 14), "preempt=lazy", true),
            ("", debian, (6, 12), "quiet -- preempt=full", false),
            ("", debian, (7, 2), "preempt=none", true),
            // Nothing known, or nonsense.
            ("", "", (0, 0), "", false),
            ("undefined", "", (6, 12), "", false),
            ("(", "()", (6, 12), "preempt=", false),
        ] {
            assert_eq!(preemptible(models, build, release, cmdline), expected, "{models:?} {build} {cmdline:?}");
        }
    }

    #[test]
    fn fields_of_tracepoints_are_read() {
        let format = "name: mm_filemap_add_to_page_cache\nID: 600\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;\n\
            \tfield:char oldcomm[16];\toffset:12;\tsize:16;\tsigned:0;\n\
            \tfield:const char * name;\toffset:40;\tsize:8;\tsigned:0;\n\
            \tfield:odd;\toffset:x;\n\
            \nprint fmt: \"dev %d:%d\", ((unsigned int) ((REC->s_dev) >> 20))\n";
        let field = |name: &str, offset, size| TracepointField { name: name.into(), offset, size };
        let expected = [field("common_type", 0, 2), field("pfn", 8, 8), field("oldcomm", 12, 16), field("name", 40, 8)];
        assert_eq!(fields_of(format), expected);
    }

    #[test]
    fn a_missing_tracepoint_is_an_error_with_its_path() {
        if !has_tracefs() {
            let e = tracepoint_id("syscalls", "none").unwrap_err();
            assert!(e.to_string().contains("mount -t tracefs"), "{e}");
        } else {
            let e = tracepoint_id("syscalls", "none").unwrap_err();
            assert!(e.to_string().contains("syscalls/none/id"), "{e}");
        }
    }
}
