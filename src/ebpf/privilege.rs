//! What a thread gives up for good once the agent has started: its capabilities, and system calls, each refusal of which
//! is counted. What is given up is decided in `host::confine`.

use std::fs;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::os;

fn set(effective: u64, permitted: u64) -> io::Result<()> {
    let half = |shift: u32| [(effective >> shift) as u32, (permitted >> shift) as u32, 0];
    let data = [half(0), half(32)];
    // SAFETY: of this version, it reads the header and two sets of three words, all of them live.
    os::checked(unsafe { libc::syscall(libc::SYS_capset, os::OWN_CAPABILITIES.as_ptr(), &data) })
}

/// Leaves this thread, and those that it starts, with no more than these capabilities: effective, permitted, and
/// none to inherit.
pub fn keep(capabilities: u64) -> io::Result<()> {
    let kept = os::capabilities() & capabilities;
    set(kept, kept)
}

/// Runs `f` with no capability in effect but these, which come back after it.
pub fn without<T>(capabilities: u64, f: impl FnOnce() -> T) -> io::Result<T> {
    let all = os::capabilities();
    set(all & capabilities, all)?;
    let result = f();
    set(all, all)?;
    Ok(result)
}

/// Whether the kernel refuses to this thread, as it is, what reading a map takes. It looks before it looks for the map.
pub fn maps_are_refused() -> bool {
    const MAP_LOOKUP_ELEM: libc::c_int = 1;
    let mut attr = [0u8; 32];
    attr[..4].copy_from_slice(&(-1i32).to_ne_bytes()); // no descriptor
    // SAFETY: a live struct of the size that is said: the descriptor, and two addresses that are not looked at.
    let code = unsafe { libc::syscall(libc::SYS_bpf, MAP_LOOKUP_ELEM, attr.as_ptr(), attr.len()) };
    code < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Has nothing that this thread executes give it more than it has.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    os::checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// Whether the kernel has filters of system calls that tell of what they refuse.
pub fn has_filters() -> bool {
    const GET_ACTION_AVAIL: libc::c_int = 2;
    const TRAP: u32 = 0x0003_0000;
    // SAFETY: a live number.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &TRAP) == 0 }
}

/// System calls whose refusals are counted one by one: more than there are numbers. What is above counts as the last.
const CALLS: usize = 1024;

/// How often each was refused.
static REFUSED: [AtomicU64; CALLS] = [const { AtomicU64::new(0) }; CALLS];
/// The first argument of the last of them.
static ARGUMENT: [AtomicU64; CALLS] = [const { AtomicU64::new(0) }; CALLS];

/// A system call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its number.
    pub number: usize,
    /// Its first argument, of the last time.
    pub argument: u64,
    /// How often, since the start.
    pub times: u64,
}

/// Those that were refused since the start.
pub fn refused() -> impl Iterator<Item = Refused> {
    let of = |number: usize| {
        let (times, argument) = (REFUSED[number].load(Ordering::Relaxed), ARGUMENT[number].load(Ordering::Relaxed));
        (times > 0).then_some(Refused { number, argument, times })
    };
    (0..CALLS).filter_map(of)
}

/// Has system calls that a filter traps fail with EPERM, and be counted.
pub fn count_refusals() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction; the handler has the type that SA_SIGINFO wants, and calls nothing: it stores
    // into atomics and into the registers that its thread goes on with. SA_ONSTACK: where a thread has a stack for that.
    let code = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_refusal as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut())
    };
    os::checked(code.into())
}

extern "C" fn on_refusal(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const SYS_SECCOMP: libc::c_int = 1;
    /// siginfo of SIGSYS: the address of the call lies at 16, its number behind it.
    const NUMBER: usize = 24;
    // SAFETY: the kernel passes a siginfo and the registers of the interrupted thread, both live until the handler is
    // done. Only a filter's trap has a call's number, and has left the registers as before the call.
    unsafe {
        if (*info).si_code != SYS_SECCOMP {
            return;
        }
        let number = info.cast::<u8>().add(NUMBER).cast::<libc::c_int>().read();
        let context = &mut *context.cast::<libc::ucontext_t>();
        let failed = -i64::from(libc::EPERM);
        #[cfg(target_arch = "x86_64")]
        let argument = {
            let registers = &mut context.uc_mcontext.gregs;
            registers[libc::REG_RAX as usize] = failed;
            registers[libc::REG_RDI as usize] as u64
        };
        #[cfg(target_arch = "aarch64")]
        let argument = std::mem::replace(&mut context.uc_mcontext.regs[0], failed as _);
        let slot = usize::try_from(number).unwrap_or(CALLS).min(CALLS - 1);
        ARGUMENT[slot].store(argument, Ordering::Relaxed);
        REFUSED[slot].fetch_add(1, Ordering::Relaxed);
    }
}

/// One line of what the kernel says of each thread of this process, such as `CapEff`.
pub fn of_threads(line: &str) -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let status = threads.filter_map(|t| fs::read_to_string(t.path().join("status")).ok());
    let value =
        |text: String| Some(text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))?.trim().to_owned());
    status.filter_map(value).collect()
}
