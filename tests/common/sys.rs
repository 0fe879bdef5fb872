//! The system calls that the tests need and std does not offer. The only unsafe code of the tests.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::LazyLock;

use libbpf_sys as bpf;

/// Bytes of a page.
pub fn page() -> usize {
    static PAGE: LazyLock<usize> = LazyLock::new(|| ebpf_sidecar::ebpf::os::page_size() as usize);
    *PAGE
}

/// Pages of so many bytes.
pub fn pages(bytes: usize) -> f64 {
    bytes.div_ceil(page()) as f64
}

/// How often this thread has slept of its own accord.
pub fn voluntary_switches() -> i64 {
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a live struct.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) }, 0);
    usage.ru_nvcsw
}

/// posix_fadvise; the errno on failure, as the call returns it.
pub fn fadvise(fd: RawFd, offset: i64, len: i64, advice: i32) -> Result<(), i32> {
    // SAFETY: no pointers.
    match unsafe { libc::posix_fadvise(fd, offset, len, advice) } {
        0 => Ok(()),
        e => Err(e),
    }
}

pub fn mkfifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// A read-only shared mapping of a file.
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn of(file: &File) -> Self {
        let len = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self { base: base.cast(), len }
    }

    pub fn advise(&self, advice: i32) {
        // SAFETY: our own mapping.
        assert_eq!(unsafe { libc::madvise(self.base.cast(), self.len, advice) }, 0);
    }

    /// Has all of it read, and kept in the page cache whatever the kernel reclaims meanwhile: until this is dropped.
    pub fn locked(self) -> Self {
        // SAFETY: our own mapping.
        assert_eq!(unsafe { libc::mlock(self.base.cast(), self.len) }, 0, "mlock: {}", io::Error::last_os_error());
        self
    }

    /// Which pages are in the page cache.
    pub fn resident(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(page())];
        // SAFETY: our own mapping, and a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(self.base.cast(), self.len, pages.as_mut_ptr()) }, 0);
        pages.iter().map(|b| b & 1 == 1).collect()
    }

    pub fn touch(&self, page: usize) -> u8 {
        assert!(page * self::page() < self.len);
        // SAFETY: within the mapping; the file does not shrink while a test has it mapped.
        unsafe { ptr::read_volatile(self.base.add(page * self::page())) }
    }

    /// The mapped bytes, as a buffer to write from.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as the borrow; nobody writes to the file meanwhile.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Pages of a file in the page cache, those that are being filled too, and pages that the kernel has taken from it since and
/// that are not back (cachestat, 6.5+); `None` where the kernel does not tell.
pub fn cachestat(file: &File) -> Option<(usize, usize)> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let whole = [0u64; 2]; // offset and length
    let mut stat = [0u64; 5]; // cached, dirty, under writeback, evicted, recently evicted
    // SAFETY: two live structs, of two and five numbers.
    let code = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), whole.as_ptr(), stat.as_mut_ptr(), 0) };
    (code == 0).then_some((stat[0] as usize, stat[3] as usize))
}

/// sendfile from the start of `input`; returns what was sent.
pub fn sendfile(output: RawFd, input: &File, offset: i64, len: usize) -> usize {
    let mut offset = offset;
    // SAFETY: the offset is a live integer.
    let n = unsafe { libc::sendfile(output, input.as_raw_fd(), &mut offset, len) };
    usize::try_from(n).unwrap_or_else(|_| panic!("sendfile: {}", io::Error::last_os_error()))
}

/// A call that copies from file to file or pipe, where both stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Copying {
    Sendfile,
    Range,
    Splice,
}

/// Copies up to `len` bytes; returns how many.
pub fn copy(call: Copying, from: RawFd, to: RawFd, len: usize) -> usize {
    let null = std::ptr::null_mut::<i64>();
    // SAFETY: both positions are those of the files.
    let n = unsafe {
        match call {
            Copying::Sendfile => libc::sendfile(to, from, null, len),
            Copying::Range => libc::syscall(libc::SYS_copy_file_range, from, null, to, null, len, 0) as isize,
            Copying::Splice => libc::splice(from, null, to, null, len, 0),
        }
    };
    usize::try_from(n).unwrap_or_else(|_| panic!("{call:?}: {}", io::Error::last_os_error()))
}

pub fn readahead(file: &File, offset: i64, len: usize) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::readahead(file.as_raw_fd(), offset, len) }, 0);
}

/// preadv of two buffers, one read call.
pub fn preadv2_buffers(file: &File, a: &mut [u8], b: &mut [u8], offset: i64) -> usize {
    let iov = [
        libc::iovec { iov_base: a.as_mut_ptr().cast(), iov_len: a.len() },
        libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() },
    ];
    // SAFETY: the buffers are live and as long as said.
    let n = unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), 2, offset) };
    usize::try_from(n).unwrap()
}

/// preadv2 of one buffer with these flags.
pub fn preadv2_flags(file: &File, buffer: &mut [u8], offset: i64, flags: i32) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the buffer is live and as long as said. The offset's upper half is for 32 bits.
    let n = unsafe { libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), &iov, 1, offset, 0, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A page-aligned buffer, as O_DIRECT wants it.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let bytes = vec![0u8; len + page()];
        let start = bytes.as_ptr().align_offset(page());
        Self { bytes, start, len }
    }

    pub fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

// ---- BPF objects ----

/// A kind of BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Program,
    Map,
    Link,
}

/// The ids of all objects of a kind in the kernel.
pub fn bpf_ids(kind: Kind) -> Vec<u32> {
    let (mut ids, mut id) = (Vec::new(), 0);
    loop {
        // SAFETY: the next id is written to a live integer.
        let code = unsafe {
            match kind {
                Kind::Program => bpf::bpf_prog_get_next_id(id, &mut id),
                Kind::Map => bpf::bpf_map_get_next_id(id, &mut id),
                Kind::Link => bpf::bpf_link_get_next_id(id, &mut id),
            }
        };
        if code != 0 {
            return ids;
        }
        ids.push(id);
    }
}

/// A descriptor of an object, unless it has gone.
fn bpf_open(kind: Kind, id: u32) -> Option<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe {
        match kind {
            Kind::Program => bpf::bpf_prog_get_fd_by_id(id),
            Kind::Map => bpf::bpf_map_get_fd_by_id(id),
            Kind::Link => bpf::bpf_link_get_fd_by_id(id),
        }
    };
    // SAFETY: a fresh descriptor, ours alone.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The name of a program or map, which the kernel has cut at 15 bytes.
pub fn bpf_name(kind: Kind, id: u32) -> Option<String> {
    let fd = bpf_open(kind, id)?;
    let (mut program, mut map) = (bpf::bpf_prog_info::default(), bpf::bpf_map_info::default());
    // SAFETY: the structs are live and as long as said; their pointers are null.
    let (code, name) = unsafe {
        match kind {
            Kind::Program => {
                let mut len = size_of_val(&program) as u32;
                (bpf::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut program, &mut len), program.name)
            }
            _ => {
                let mut len = size_of_val(&map) as u32;
                (bpf::bpf_map_get_info_by_fd(fd.as_raw_fd(), &mut map, &mut len), map.name)
            }
        }
    };
    let bytes = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    (code == 0).then(|| String::from_utf8(bytes).unwrap())
}

/// The maps that a program uses.
pub fn bpf_maps_of(program: u32) -> Vec<u32> {
    let Some(fd) = bpf_open(Kind::Program, program) else { return Vec::new() };
    let mut maps = vec![0u32; 64];
    let mut info =
        bpf::bpf_prog_info { nr_map_ids: maps.len() as u32, map_ids: maps.as_mut_ptr() as u64, ..Default::default() };
    let mut len = size_of_val(&info) as u32;
    // SAFETY: the struct is live and as long as said, and has room for the ids it says.
    let code = unsafe { bpf::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) };
    maps.truncate(if code == 0 { info.nr_map_ids as usize } else { 0 });
    maps
}

/// The program behind a perf event that another process holds.
pub fn bpf_program_of(pid: i32, fd: RawFd) -> Option<u32> {
    let (mut len, mut program, mut kind, mut offset, mut address) = (0, 0, 0, 0, 0);
    // SAFETY: no buffer, and live integers for the rest.
    let code = unsafe {
        bpf::bpf_task_fd_query(
            pid,
            fd,
            0,
            ptr::null_mut(),
            &mut len,
            &mut program,
            &mut kind,
            &mut offset,
            &mut address,
        )
    };
    (code == 0).then_some(program)
}

// ---- calls that a test answers ----

/// A call of bpf() or perf_event_open() that another process makes.
pub struct Call {
    pub number: i64,
    pub args: [u64; 6],
    thread: u32,
}

impl Call {
    /// Memory of that process.
    pub fn memory(&self, address: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let read = File::open(format!("/proc/{}/mem", self.thread)).and_then(|m| m.read_exact_at(&mut bytes, address));
        // One that was killed meanwhile.
        if read.is_err() {
            bytes.fill(0);
        }
        bytes
    }
}

/// What the kernel and we pass on about a call (linux/seccomp.h).
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Has `judge` decide on those calls of what `command` runs: `None` lets the kernel answer, else the call fails with this
/// errno. So does a process on another kernel, or in a sandbox. False if this kernel cannot do that.
pub fn judge(command: &mut Command, judge: impl Fn(&Call) -> Option<i32> + Send + 'static) -> bool {
    const NOTIFY: u32 = 0x7fc0_0000;
    const ALLOW: u32 = 0x7fff_0000;
    // SAFETY: null asks whether there is such an action.
    let code = unsafe {
        libc::syscall(libc::SYS_seccomp, 2 /* GET_ACTION_AVAIL */, 0, &NOTIFY)
    };
    if code != 0 {
        return false;
    }
    let op = |code: u32, k: u32, jt| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    // Load the number of the call; return what is to be done.
    let filter = [
        op(0x20, 0, 0),
        op(0x15, libc::SYS_bpf as u32, 2),
        op(0x15, libc::SYS_perf_event_open as u32, 1),
        op(0x06, ALLOW, 0),
        op(0x06, NOTIFY, 0),
    ];
    let (from, to) = io::pipe().unwrap();
    let install = move || {
        let mut filter = filter;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: a live filter of that length; a number that is written, of this process, to a live pipe.
        unsafe {
            let fd =
                libc::syscall(libc::SYS_seccomp, 1 /* SET_MODE_FILTER */, 8 /* NEW_LISTENER */, &program);
            // Kept over execve, so that it can be fetched.
            if fd < 0 || libc::fcntl(fd as RawFd, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            let told = [libc::getpid(), fd as i32];
            match libc::write(to.as_raw_fd(), told.as_ptr().cast(), 8) {
                8 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    };
    // SAFETY: between fork and exec it makes system calls alone, and allocates nothing.
    unsafe { command.pre_exec(install) };
    std::thread::spawn(move || {
        let mut told = [0u8; 8];
        let mut from = from;
        if from.read_exact(&mut told).is_err() {
            return;
        }
        let of = |at: usize| i32::from_ne_bytes(told[at..at + 4].try_into().unwrap());
        // SAFETY: no pointers; fresh descriptors, ours alone.
        let listener = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, of(0), 0);
            assert!(process >= 0, "{}", io::Error::last_os_error());
            let process = OwnedFd::from_raw_fd(process as RawFd);
            let fd = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), of(4), 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as RawFd)
        };
        loop {
            let mut notice = Notice::default();
            // SAFETY: a live struct of the size that is in the number of the request.
            if unsafe { libc::ioctl(listener.as_raw_fd(), 0xc050_2100u32 as _, &mut notice) } != 0 {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR | libc::ENOENT) => continue,
                    _ => return,
                }
            }
            let call = Call { number: notice.nr.into(), args: notice.args, thread: notice.pid };
            let refused = judge(&call);
            let mut answer = Answer {
                id: notice.id,
                value: 0,
                error: -refused.unwrap_or(0),
                flags: u32::from(refused.is_none()), // CONTINUE
            };
            // SAFETY: as above.
            unsafe { libc::ioctl(listener.as_raw_fd(), 0xc018_2101u32 as _, &mut answer) };
        }
    });
    true
}

/// Has these calls of what `command` runs fail: their numbers, the first argument for which alone (or `None`), and the
/// errno. As a sandbox does it, or a kernel that does not know them.
pub fn refuse(command: &mut Command, calls: &[(i64, Option<i32>, i32)]) {
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let op = |code: u16, k: u32, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = vec![];
    for (number, first, errno) in calls {
        // The number; if it is this one, the lower half of the first argument.
        filter.push(op(0x20, 0, 0, 0));
        filter.push(op(0x15, *number as u32, 0, if first.is_some() { 3 } else { 1 }));
        if let Some(first) = first {
            filter.push(op(0x20, 16, 0, 0));
            filter.push(op(0x15, *first as u32, 0, 1));
        }
        filter.push(op(0x06, ERRNO | *errno as u32, 0, 0));
    }
    filter.push(op(0x06, ALLOW, 0, 0));
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: a live filter of that length; the kernel reads it only.
        match unsafe {
            libc::syscall(libc::SYS_seccomp, 1 /* SET_MODE_FILTER */, 0, &program)
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(install) };
}

// ---- processes ----

/// Sets the clock of the machine forth, or back.
pub fn set_clock(seconds: i64) {
    // SAFETY: all-zero is a valid timespec; both calls take a live one.
    let code = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_REALTIME, &mut now);
        now.tv_sec += seconds;
        libc::clock_settime(libc::CLOCK_REALTIME, &now)
    };
    assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
}

/// Keeps this thread on one CPU.
pub fn run_on(cpu: usize) {
    // SAFETY: all-zero is an empty set; the call reads a live one of the size that is given.
    let code = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(code, 0, "CPU {cpu}: {}", std::io::Error::last_os_error());
}

/// Connects from an address of this host.
pub fn connect_from(to: std::net::SocketAddr, from: std::net::Ipv4Addr) -> io::Result<std::net::TcpStream> {
    let address = |ip: std::net::Ipv4Addr, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    let std::net::IpAddr::V4(ip) = to.ip() else { panic!("{to} is not of IPv4") };
    let (from, to, len) = (address(from, 0), address(ip, to.port()), size_of::<libc::sockaddr_in>() as u32);
    // SAFETY: a new socket that nobody else has; both addresses live through the calls, which only read them.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let stream = std::net::TcpStream::from_raw_fd(fd);
        if libc::bind(fd, (&raw const from).cast(), len) != 0 || libc::connect(fd, (&raw const to).cast(), len) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stream)
    }
}

/// CPU time of this process.
pub fn cpu_time() -> std::time::Duration {
    // SAFETY: zeroes are a valid rusage, which lives through the call that fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|t| std::time::Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000))
        .sum()
}

pub fn kill(pid: u32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Leaves this thread, and no other, with these capabilities (a bit each).
pub fn keep_capabilities(kept: u64) {
    #[repr(C)]
    struct Header(u32, i32);
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header(VERSION_3, 0);
    let half = |bits: u64| [bits as u32, bits as u32, 0]; // effective, permitted, inheritable
    let data = [half(kept), half(kept >> 32)];
    // SAFETY: version 3 reads the header and two sets of three words.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &header, &data) }, 0);
}

/// Makes a system call with these arguments: what it returned, or the errno.
pub fn attempt(number: i64, arguments: [u64; 3]) -> Result<i64, i32> {
    let [a, b, c] = arguments;
    // SAFETY: for calls that are refused before they look at anything, and those without pointers.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        value => Ok(value),
    }
}

/// What this thread starts from now on is in a pid namespace of its own, the first as process 1.
pub fn new_pid_namespace() {
    // SAFETY: no pointers.
    let code = unsafe { libc::unshare(libc::CLONE_NEWPID) };
    assert_eq!(code, 0, "unshare: {}", std::io::Error::last_os_error());
}

/// This thread, and what it starts from now on, has mounts of its own; false where that cannot be.
pub fn new_mounts() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::unshare(libc::CLONE_NEWNS) == 0 }
}

/// This thread, and what it starts from now on, has a network of its own with nothing but loopback; false where that
/// cannot be.
pub fn new_network() -> bool {
    // SAFETY: no pointers; a zeroed request with a name that is shorter than its room; the socket is live.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            return false;
        }
        let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return false };
        let mut request: libc::ifreq = std::mem::zeroed();
        (request.ifr_name[0], request.ifr_name[1]) = (b'l' as _, b'o' as _);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as _;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) == 0
    }
}

pub fn is_root() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::geteuid() == 0 }
}

/// A process that makes one fadvise call on `fd` and ends.
pub fn fork_one_fadvise(fd: RawFd) -> libc::pid_t {
    extern "C" fn advise(fd: *mut libc::c_void) -> libc::c_int {
        // SAFETY: no pointers.
        unsafe { libc::posix_fadvise(fd as RawFd, 0, 0, libc::POSIX_FADV_NORMAL) }
    }
    fork_borrowing(advise, fd as usize as *mut libc::c_void)
}

/// A process that reads the first pages of a file, each by one call, and ends.
pub fn fork_reads(fd: RawFd, pages: usize) -> libc::pid_t {
    struct Work {
        fd: RawFd,
        pages: usize,
        page: Vec<u8>,
    }
    extern "C" fn read(work: *mut libc::c_void) -> libc::c_int {
        // SAFETY: its parent waits with it, and does nothing else meanwhile; the buffer is as long as said.
        unsafe {
            let work = &mut *work.cast::<Work>();
            for i in 0..work.pages {
                let len = work.page.len();
                if libc::pread(work.fd, work.page.as_mut_ptr().cast(), len, (i * len) as i64) != len as isize {
                    return 1;
                }
            }
        }
        0
    }
    let mut work = Work { fd, pages, page: vec![0; page()] };
    fork_borrowing(read, (&raw mut work).cast())
}

/// A process that borrows this one's memory, as after vfork: no pages are copied and nothing is executed, so thousands
/// take a second.
fn fork_borrowing(work: extern "C" fn(*mut libc::c_void) -> libc::c_int, with: *mut libc::c_void) -> libc::pid_t {
    let mut stack = [0u128; 4096];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, which lives longer than it: CLONE_VFORK has this thread wait for its
    // end. It makes system calls alone and allocates nothing.
    let pid = unsafe { libc::clone(work, stack.as_mut_ptr_range().end.cast(), flags, with) };
    assert_ne!(pid, -1, "clone: {}", io::Error::last_os_error());
    pid
}

pub fn wait_for(pid: libc::pid_t) {
    // SAFETY: a null status is allowed.
    assert_eq!(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) }, pid);
}

/// One thread of another process that does not run until this is dropped, while the others do.
pub struct Frozen(libc::pid_t);

impl Frozen {
    /// `None` if this machine lets nobody trace.
    pub fn thread(tid: libc::pid_t) -> Option<Self> {
        let nothing = ptr::null_mut::<libc::c_void>();
        // SAFETY: seizing and interrupting a thread take no pointers.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, nothing, nothing) } != 0 {
            return None;
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, nothing, nothing) }, 0);
        // SAFETY: a null status is allowed.
        assert_eq!(unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) }, tid);
        Some(Self(tid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let nothing = ptr::null_mut::<libc::c_void>();
        // SAFETY: no pointers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, nothing, nothing) };
    }
}

// ---- readers of other kinds ----

/// What a system call returned, if it is no error.
fn returned(name: &str, code: i64) -> usize {
    usize::try_from(code).unwrap_or_else(|_| panic!("{name}: {}", io::Error::last_os_error()))
}

pub fn readv(file: &File, buf: &mut [u8]) -> usize {
    let (a, b) = buf.split_at_mut(buf.len() / 2);
    let iov = [
        libc::iovec { iov_base: a.as_mut_ptr().cast(), iov_len: a.len() },
        libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() },
    ];
    // SAFETY: the buffers are live and as long as said.
    returned("readv", unsafe { libc::readv(file.as_raw_fd(), iov.as_ptr(), 2) } as i64)
}

/// splice from a file to a pipe.
pub fn splice(input: &File, mut offset: i64, pipe: RawFd, len: usize) -> usize {
    // SAFETY: the offset is a live integer.
    let n = unsafe { libc::splice(input.as_raw_fd(), &mut offset, pipe, ptr::null_mut(), len, 0) };
    returned("splice", n as i64)
}

/// copy_file_range between the positions of two files.
pub fn copy_file_range(input: &File, output: &File, len: usize) -> usize {
    let (from, to) = (input.as_raw_fd(), output.as_raw_fd());
    let none = ptr::null_mut::<i64>();
    // SAFETY: no offsets are given.
    let n = unsafe { libc::syscall(libc::SYS_copy_file_range, from, none, to, none, len, 0) };
    returned("copy_file_range", n as i64)
}

/// Whether the file system can have one file share the blocks of another, and did: then what copies files copies no page.
pub fn clone_file(input: &File, output: &File) -> bool {
    const FICLONE: u32 = 0x4004_9409;
    // SAFETY: the argument is a descriptor.
    unsafe { libc::ioctl(output.as_raw_fd(), FICLONE as _, input.as_raw_fd()) == 0 }
}

/// sendto on a connected socket.
pub fn send(socket: RawFd, bytes: &[u8]) -> usize {
    // SAFETY: the buffer is live and as long as said.
    let n = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) };
    returned("send", n as i64)
}

/// Wakes nobody at a futex in memory that may be shared: the kernel looks up the page.
pub fn futex_wake(word: &[u8]) {
    assert!(word.len() >= 4 && word.as_ptr().addr().is_multiple_of(4));
    // SAFETY: the word is live; the call reads nothing from it.
    returned("futex", unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), 1, 1) } as i64);
}

/// Linux AIO.
pub struct Aio(u64);

impl Aio {
    /// `None` if this kernel has none.
    pub fn new() -> Option<Self> {
        let mut context = 0u64;
        // SAFETY: the context is a live integer.
        let code = unsafe { libc::syscall(libc::SYS_io_setup, 16, &mut context) };
        (code == 0).then_some(Self(context))
    }

    /// pread.
    pub fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> usize {
        // struct iocb: data; key and flags; opcode (0: PREAD), priority and descriptor; buffer; bytes; offset; rest.
        let iocb = [0, 0, (file.as_raw_fd() as u64) << 32, buf.as_mut_ptr() as u64, buf.len() as u64, offset, 0, 0u64];
        let list = [iocb.as_ptr()];
        let mut event = [0i64; 4];
        // SAFETY: request, buffer and event live until the read is done, for which the second call waits.
        unsafe {
            assert_eq!(returned("io_submit", libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_ptr()) as i64), 1);
            let none = ptr::null::<u8>();
            let n = libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, event.as_mut_ptr(), none);
            assert_eq!(returned("io_getevents", n as i64), 1);
        }
        returned("AIO", event[2])
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: our own context, destroyed once.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A ring of io_uring, by bare system calls.
pub struct Uring {
    fd: OwnedFd,
    params: [u32; 30],
    /// Rings of requests and of their results, and the requests.
    areas: [*mut u8; 3],
}

const URING_AREA: usize = 1 << 16;
/// Requests under way at one time.
pub const URING_DEPTH: usize = 16;

/// Has a worker do it (`IOSQE_ASYNC`).
pub const URING_ASYNC: u8 = 1 << 4;

impl Uring {
    /// `None` if this kernel has none, or forbids it.
    pub fn new() -> Option<Self> {
        let mut params = [0u32; 30];
        // SAFETY: struct io_uring_params has 120 bytes.
        let fd = unsafe { libc::syscall(425, URING_DEPTH, params.as_mut_ptr()) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a fresh descriptor, ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let areas = [(0, URING_AREA), (0x800_0000, URING_AREA), (0x1000_0000, URING_DEPTH * 64)].map(|(at, most)| {
            // The rings are mapped as long as they are.
            let len = match at {
                0 => params[16] as usize + URING_DEPTH * 4,
                0x800_0000 => params[25] as usize + params[1] as usize * 16,
                _ => most,
            };
            assert!(len <= most);
            // SAFETY: new mappings of the ring at addresses that the kernel chooses.
            let area = unsafe { libc::mmap(ptr::null_mut(), len, access, shared, fd.as_raw_fd(), at) };
            assert_ne!(area, libc::MAP_FAILED, "mmap of a ring: {}", io::Error::last_os_error());
            area.cast::<u8>()
        });
        Some(Self { fd, params, areas })
    }

    /// Reads pieces of `piece` bytes, and waits for all.
    pub fn read(&mut self, flags: u8, file: &File, buf: &mut [u8], piece: usize, offset: u64) {
        let pieces = buf.chunks_mut(piece).map(|c| (c.as_mut_ptr() as u64, c.len())).collect();
        self.run(22, flags, file, pieces, offset); // IORING_OP_READ
    }

    /// The same for writing.
    pub fn write(&mut self, flags: u8, file: &File, buf: &[u8], piece: usize, offset: u64) {
        let pieces = buf.chunks(piece).map(|c| (c.as_ptr() as u64, c.len())).collect();
        self.run(23, flags, file, pieces, offset); // IORING_OP_WRITE
    }

    /// The pieces, address and bytes, follow each other in the file.
    fn run(&mut self, operation: u8, flags: u8, file: &File, pieces: Vec<(u64, usize)>, mut offset: u64) {
        assert!(pieces.len() <= URING_DEPTH);
        let [requests, results, entries] = self.areas;
        let p = &self.params;
        // SAFETY: the offsets are those that the kernel gave for the areas; only this thread uses the ring; buffers and
        // requests live until all are done, which is waited for.
        unsafe {
            let word = |area: *mut u8, at: u32| area.add(at as usize).cast::<u32>();
            let (tail, mask) = (word(requests, p[11]), *word(requests, p[12]));
            for (i, &(address, len)) in pieces.iter().enumerate() {
                let slot = (*tail).wrapping_add(i as u32) & mask;
                let entry = entries.add(slot as usize * 64).cast::<u64>();
                ptr::write_bytes(entry, 0, 8);
                *entry = u64::from(operation) | u64::from(flags) << 8 | (file.as_raw_fd() as u64) << 32;
                *entry.add(1) = offset;
                *entry.add(2) = address;
                *entry.add(3) = len as u64;
                *entry.add(4) = len as u64; // comes back with the result
                offset += len as u64;
                *word(requests, p[16]).add(slot as usize) = slot;
            }
            std::sync::atomic::AtomicU32::from_ptr(tail)
                .fetch_add(pieces.len() as u32, std::sync::atomic::Ordering::Release);
            let (n, none) = (pieces.len(), ptr::null::<u8>());
            let submitted = libc::syscall(426, self.fd.as_raw_fd(), n, n, 1, none, 0);
            assert_eq!(returned("io_uring_enter", submitted as i64), n);
            let (head, tail) = (word(results, p[20]), word(results, p[21]));
            let mask = *word(results, p[22]);
            for _ in 0..n {
                // The call can be interrupted, by its own work for one.
                let tail = std::sync::atomic::AtomicU32::from_ptr(tail);
                while tail.load(std::sync::atomic::Ordering::Acquire) == *head {
                    libc::syscall(426, self.fd.as_raw_fd(), 0, 1, 1, none, 0);
                }
                let result = results.add(p[25] as usize + ((*head & mask) as usize) * 16);
                let (wanted, code) = (*result.cast::<u64>(), *result.add(8).cast::<i32>());
                assert_eq!(i64::from(code), wanted as i64, "a request of io_uring");
                std::sync::atomic::AtomicU32::from_ptr(head).fetch_add(1, std::sync::atomic::Ordering::Release);
            }
        }
    }
}

/// System calls as a 32-bit program makes them.
#[cfg(target_arch = "x86_64")]
pub mod compat {
    use std::arch::asm;

    pub const READ: u32 = 3;
    pub const PREAD64: u32 = 180;
    pub const FADVISE64: u32 = 250;
    pub const FADVISE64_64: u32 = 272;

    /// Whether this kernel has them: tried by a process that may end for it.
    pub fn is_there() -> bool {
        let mut status = 0;
        // SAFETY: the child makes two system calls and allocates nothing; the status is a live integer.
        unsafe {
            match libc::fork() {
                0 => libc::_exit((call(20, [0; 6]) <= 0).into()), // getpid
                pid => assert_eq!(libc::waitpid(pid, &mut status, 0), pid),
            }
        }
        status == 0
    }

    /// `buf` of [`Low::new`] and numbers alone; the negative errno of a failure.
    pub fn call(number: u32, arguments: [u32; 6]) -> i32 {
        let all = [number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]];
        let mut result: u64;
        // SAFETY: what the calls here write to are buffers in low memory, which live as long as their owner; the two
        // registers that must not be named are saved; the kernel may clear the others named.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "mov eax, [r12]",
                "mov ebx, [r12 + 4]",
                "mov ecx, [r12 + 8]",
                "mov edx, [r12 + 12]",
                "mov esi, [r12 + 16]",
                "mov edi, [r12 + 20]",
                "mov ebp, [r12 + 24]",
                "int 0x80",
                "pop rbp",
                "pop rbx",
                in("r12") all.as_ptr(),
                out("rax") result,
                out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result as i32
    }

    /// A page in the lowest 4 GiB.
    pub struct Low(*mut u8);

    impl Low {
        pub fn new() -> Self {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping at an address that the kernel chooses.
            let page =
                unsafe { libc::mmap(std::ptr::null_mut(), super::page(), access, flags | libc::MAP_32BIT, -1, 0) };
            assert_ne!(page, libc::MAP_FAILED);
            Self(page.cast())
        }

        pub fn address(&self) -> u32 {
            u32::try_from(self.0.addr()).unwrap()
        }
    }

    impl Drop for Low {
        fn drop(&mut self) {
            // SAFETY: our own mapping, unmapped once.
            unsafe { libc::munmap(self.0.cast(), super::page()) };
        }
    }
}

/// Maps so many bytes of huge pages of 2 MiB, writes to each and gives them back; false if there are none.
pub fn touch_huge_pages(len: usize) -> bool {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address that the kernel chooses, written to within its bounds and unmapped once.
    unsafe {
        let base = libc::mmap(ptr::null_mut(), len, access, flags | libc::MAP_HUGETLB, -1, 0);
        if base == libc::MAP_FAILED {
            return false;
        }
        for at in (0..len).step_by(page()) {
            base.cast::<u8>().add(at).write_volatile(1);
        }
        libc::munmap(base, len);
    }
    true
}
