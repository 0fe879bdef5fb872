//! The system calls that the bench needs and std does not offer. The only unsafe code of the bench.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;

/// Has this thread, and what it starts from now on, run on one CPU only.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: all-zero is an empty set; the set lives through the call, and its size is the true one.
    let code = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn getppid() -> libc::pid_t {
    // SAFETY: no arguments; not cached by libc.
    unsafe { libc::getppid() }
}

/// Processes that each call fadvise on `fd` again and again, spread evenly over `period`; they end when this
/// is dropped, or with the thread that made them.
pub struct Callers(Vec<libc::pid_t>);

impl Callers {
    pub fn start(count: usize, fd: RawFd, period: Duration) -> Self {
        Self((0..count).map(|i| caller(fd, period, period * i as u32 / count as u32)).collect())
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // SAFETY: no pointers; a child of ours that nobody else waits for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        for &pid in &self.0 {
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        }
    }
}

fn caller(fd: RawFd, period: Duration, offset: Duration) -> libc::pid_t {
    let spec = |d: Duration| libc::timespec { tv_sec: d.as_secs() as _, tv_nsec: d.subsec_nanos().into() };
    let (period, offset) = (spec(period), spec(offset));
    // SAFETY: the child of a program with threads may only make async-signal-safe calls, and makes system
    // calls alone, on live structs.
    match unsafe { libc::fork() } {
        0 => unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::nanosleep(&offset, ptr::null_mut());
            loop {
                libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_NORMAL);
                libc::nanosleep(&period, ptr::null_mut());
            }
        },
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        pid => pid,
    }
}
