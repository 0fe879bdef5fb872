//! The system calls that the tests need and std does not offer. The only unsafe code of the tests.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

pub const PAGE: usize = 4096;

/// posix_fadvise; the errno on failure, as the call returns it.
pub fn fadvise(fd: RawFd, offset: i64, len: i64, advice: i32) -> Result<(), i32> {
    // SAFETY: no pointers.
    match unsafe { libc::posix_fadvise(fd, offset, len, advice) } {
        0 => Ok(()),
        e => Err(e),
    }
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

    /// Which pages are in the page cache.
    pub fn resident(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(PAGE)];
        // SAFETY: our own mapping, and a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(self.base.cast(), self.len, pages.as_mut_ptr()) }, 0);
        pages.iter().map(|b| b & 1 == 1).collect()
    }

    pub fn touch(&self, page: usize) -> u8 {
        assert!(page * PAGE < self.len);
        // SAFETY: within the mapping; the file does not shrink while a test has it mapped.
        unsafe { ptr::read_volatile(self.base.add(page * PAGE)) }
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

/// sendfile from the start of `input`; returns what was sent.
pub fn sendfile(output: RawFd, input: &File, offset: i64, len: usize) -> usize {
    let mut offset = offset;
    // SAFETY: the offset is a live integer.
    let n = unsafe { libc::sendfile(output, input.as_raw_fd(), &mut offset, len) };
    usize::try_from(n).unwrap_or_else(|_| panic!("sendfile: {}", io::Error::last_os_error()))
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

/// A page-aligned buffer, as O_DIRECT wants it.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let bytes = vec![0u8; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, start, len }
    }

    pub fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

pub fn kill(pid: u32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid as i32, signal) };
}

pub fn is_root() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::geteuid() == 0 }
}

/// A child that makes one fadvise call on `fd` and ends: no exec, so thousands take a second.
pub fn fork_one_fadvise(fd: RawFd) -> libc::pid_t {
    // SAFETY: the child of a program with threads may only make async-signal-safe calls, and makes two
    // system calls.
    match unsafe { libc::fork() } {
        0 => unsafe {
            libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_NORMAL);
            libc::_exit(0)
        },
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        pid => pid,
    }
}

pub fn wait_for(pid: libc::pid_t) {
    // SAFETY: a null status is allowed.
    assert_eq!(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) }, pid);
}
