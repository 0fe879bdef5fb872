//! The least that the agent can do with once it has started. What it reads is open by then, so each thread gives up its
//! capabilities and whatever executing something could give it (no_new_privs), may open few files, and none for writing
//! (Landlock), and may make no system calls but those of its role (seccomp). One that it makes all the same fails with
//! EPERM, is counted, and told in the log.
//!
//! What a thread gives up, those have given up that it starts. The first thread and the collector's enter by themselves;
//! all others come of the first, and only narrow its filter to that of their role.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::config::{AllowConfigure, Config, DEFAULT_PATH, Switch};
use crate::ebpf::os::{self, cap};
use crate::ebpf::privilege;
use crate::host::cgroup;
use crate::metrics::own::MEANS;

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The first thread, which starts the others: what any of them needs, but the maps.
    Main,
    /// Reads the maps; no network.
    Collector,
    /// Answers HTTP: no sockets but those that it accepts, and those to itself.
    Http,
    /// Threads of gRPC and of its core, which serve, resolve names and connect.
    Grpc,
    /// Sends.
    Exporter,
}

/// What the agent is left with.
#[derive(Debug)]
struct Plan {
    /// Whether it may not run with less.
    required: bool,
    /// Whether modules may be attached anew.
    attaches: bool,
    /// Capabilities of the collector, and of everything else.
    collector: u64,
    others: u64,
    /// Files, and folders with all below them, that may be read.
    readable: BTreeSet<PathBuf>,
    /// Files that the collector may write.
    writable: Vec<PathBuf>,
}

static PLAN: OnceLock<Plan> = OnceLock::new();
/// Whether each of [`MEANS`] is in force, as far as the first thread and the collector's know.
static DONE: [AtomicBool; MEANS.len()] = [const { AtomicBool::new(true) }; MEANS.len()];
/// Whether each of them is in force.
static IN_FORCE: [AtomicBool; MEANS.len()] = [const { AtomicBool::new(false) }; MEANS.len()];

const CAPABILITIES: usize = 0;
const NO_NEW_PRIVS: usize = 1;
const LANDLOCK: usize = 2;
const SECCOMP: usize = 3;

/// Decides what the agent with this configuration, which was read from this file, is left with once it has started. An
/// error: that is to be had, and this kernel does not have it.
pub fn plan(config: &Config, file: Option<&Path>) -> Result<(), String> {
    if config.collector.confine == Switch::Off {
        return Ok(());
    }
    let missing: Vec<String> = missing().into_iter().map(|(what, why)| format!("{what} ({why})")).collect();
    let required = config.collector.confine == Switch::On;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        if required {
            return Err(format!("collector.confine is on, and here is no {missing}"));
        }
        log::warn!("the agent is confined less than it could be: here is no {missing}");
    }
    os::look_what_forbids();
    // A second one, in a test, finds the first.
    PLAN.get_or_init(|| Plan::new(config, file, required));
    Ok(())
}

/// What this kernel lacks, each with why.
pub fn missing() -> Vec<(&'static str, &'static str)> {
    let landlock = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create);
    let mut missing = Vec::new();
    if landlock.is_err() {
        missing.push((MEANS[LANDLOCK], "from Linux 5.13 on, if the parameter lsm= names it"));
    }
    if !privilege::has_filters() {
        missing.push((MEANS[SECCOMP], "CONFIG_SECCOMP_FILTER, from Linux 4.14 on"));
    }
    missing
}

/// Each of the means, and whether it is in force.
pub fn in_force() -> [(&'static str, bool); MEANS.len()] {
    std::array::from_fn(|i| (MEANS[i], IN_FORCE[i].load(Ordering::Relaxed)))
}

/// Whether modules can still be attached anew.
pub fn can_attach() -> bool {
    PLAN.get().is_none_or(|plan| plan.attaches)
}

/// Whether `path` may not be read because the configuration did not name it when the agent started.
pub fn is_outside(path: &Path) -> bool {
    IN_FORCE[LANDLOCK].load(Ordering::Relaxed) && fs::File::open(path).is_err_and(|e| is_refusal(&e))
}

/// Why a file cannot be read, in words, with what may be meant by a refusal.
pub fn explained(e: io::Error) -> String {
    match is_refusal(&e) && IN_FORCE[LANDLOCK].load(Ordering::Relaxed) {
        true => format!("{e}; {OUTSIDE}"),
        false => e.to_string(),
    }
}

/// What a refusal means for a file that [`is_outside`].
pub const OUTSIDE: &str = "confined (collector.confine), the agent reads in folders that its configuration named when it \
                           started: another one takes a restart";

/// Gives up all that this thread does not need in `role`. What cannot be given up is told, and shows in [`in_force`].
pub fn enter(role: Role) {
    let Some(plan) = PLAN.get() else { return };
    let done = |what: usize, result: Result<(), String>| {
        if let Err(why) = result {
            log::warn!("{role:?} threads are not confined by {}: {why}", MEANS[what]);
            DONE[what].store(false, Ordering::Relaxed);
        }
    };
    let words = |e: io::Error| e.to_string();
    if matches!(role, Role::Main | Role::Collector) {
        done(NO_NEW_PRIVS, privilege::no_new_privileges().map_err(words));
        done(LANDLOCK, plan.restrict(role));
        let kept = if role == Role::Collector { plan.collector } else { plan.others };
        done(CAPABILITIES, privilege::keep(kept).map_err(words));
        done(SECCOMP, privilege::count_refusals().map_err(words));
    }
    done(SECCOMP, filter(role, plan.attaches).and_then(|filters| apply(&filters)));
    os::make_no_files();
}

/// Looks at every thread whether all that was wanted is in force. An error: it is not, and has to be.
pub fn verify() -> Result<(), String> {
    let Some(plan) = PLAN.get() else { return Ok(()) };
    let all = |line: &str, is: &dyn Fn(&str) -> bool| {
        let values = privilege::of_threads(line);
        !values.is_empty() && values.iter().all(|value| is(value))
    };
    let kept = plan.collector | plan.others;
    let seen = [
        all("CapEff", &|v| u64::from_str_radix(v, 16).is_ok_and(|bits| bits & !kept == 0)),
        all("NoNewPrivs", &|v| v == "1"),
        true, // no file tells
        all("Seccomp", &|v| v == "2"),
    ];
    for (i, seen) in seen.into_iter().enumerate() {
        IN_FORCE[i].store(seen && DONE[i].load(Ordering::Relaxed), Ordering::Relaxed);
    }
    let (having, lacking): (Vec<_>, Vec<_>) = in_force().into_iter().partition(|(_, is)| *is);
    let names = |of: &[(&'static str, bool)]| of.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if !lacking.is_empty() && plan.required {
        return Err(format!("collector.confine is on, and the agent could not be confined by {}", names(&lacking)));
    }
    log::debug!("confined by {}", names(&having));
    Ok(())
}

/// What is left, in words.
pub fn words() -> Option<String> {
    let plan = PLAN.get()?;
    let named = |bits: u64| match cap::names(bits, "CAP_") {
        none if none.is_empty() => "none".to_owned(),
        names => names.join(" "),
    };
    let in_force: Vec<&str> = in_force().into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
    Some(format!(
        "confined by {}; capabilities kept: {} by the collector, {} by the others",
        in_force.join(", "),
        named(plan.collector),
        named(plan.others)
    ))
}

/// System calls that were refused since this was called last, a line each. To be called now and then.
pub fn newly_refused() -> Vec<String> {
    static TOLD: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let new = privilege::refused().filter_map(|call| {
        let before = told.insert(call.number, call.times).unwrap_or(0);
        let times = call.times.saturating_sub(before);
        let name = TELLING.iter().find(|(number, _)| *number == call.number as i64).map_or("", |(_, name)| *name);
        let name = name.trim_start_matches("SYS_");
        (times > 0).then(|| {
            format!(
                "refused: system call {} {name}, {times} times, its first argument {:#x}: none that the agent makes by itself",
                call.number, call.argument
            )
        })
    });
    new.collect()
}

/// How many system calls were refused since the start.
pub fn refusals() -> u64 {
    privilege::refused().map(|call| call.times).sum()
}

impl Plan {
    fn new(config: &Config, file: Option<&Path>, required: bool) -> Self {
        let have = os::capabilities();
        let attaches = config.server.allow_configure != AllowConfigure::Off;
        let files = named_files(config, file);
        Self {
            required,
            attaches,
            collector: have & (for_maps(have) | if attaches { for_attaching(have) } else { 0 }),
            others: have & (for_ports(config) | for_files(have, &files)),
            readable: readable(config, &files),
            writable: match attaches {
                true => os::tracefs().map(|path| path.join("kprobe_events")).into_iter().collect(),
                false => Vec::new(),
            },
        }
    }

    /// Has this thread open nothing but what it may read.
    fn restrict(&self, role: Role) -> Result<(), String> {
        let status = self.try_restrict(role).map_err(|e| e.to_string())?;
        match status {
            RulesetStatus::NotEnforced => Err("this kernel has none".into()),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }

    fn try_restrict(&self, role: Role) -> Result<RulesetStatus, landlock::RulesetError> {
        let mut rules = Ruleset::default().handle_access(AccessFs::from_all(ABI::V5))?.create()?;
        for path in &self.readable {
            // What is not there cannot be read either.
            let Ok(fd) = PathFd::new(path) else { continue };
            let read = match path.is_dir() {
                true => AccessFs::ReadFile | AccessFs::ReadDir,
                false => AccessFs::ReadFile.into(),
            };
            rules = rules.add_rule(PathBeneath::new(fd, read))?;
        }
        for path in self.writable.iter().filter(|_| role == Role::Collector) {
            if let Ok(fd) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(fd, AccessFs::ReadFile | AccessFs::WriteFile))?;
            }
        }
        if let Some(tracefs) = os::own_tracefs().filter(|_| role == Role::Collector && self.attaches) {
            let used = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile;
            rules = rules.add_rule(PathBeneath::new(tracefs, used))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    }
}

/// For reading and changing maps. From 5.19 on a descriptor is enough; before, it is not where the sysctl
/// `unprivileged_bpf_disabled` is set, which can be done at any time.
fn for_maps(have: u64) -> u64 {
    let refused = privilege::without(0, privilege::maps_are_refused).unwrap_or(true);
    match os::kernel_version() {
        version if version >= (5, 19) && !refused => 0,
        version if version >= (5, 8) && have & cap::BPF != 0 => cap::BPF,
        _ => cap::SYS_ADMIN,
    }
}

/// For attaching a module anew.
fn for_attaching(have: u64) -> u64 {
    let split = os::kernel_version() >= (5, 8) && have & cap::BPF != 0 && have & cap::PERFMON != 0;
    // Debian's and Ubuntu's third level.
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let paranoid = level.trim().parse().is_ok_and(|level: i32| level > 2);
    let admin = if split && !paranoid { 0 } else { cap::SYS_ADMIN };
    // tracefs is root's.
    let root = fs::metadata("/proc/thread-self").is_ok_and(|m| m.uid() == 0);
    let dac = if root { 0 } else { cap::DAC_READ_SEARCH | cap::DAC_OVERRIDE };
    cap::BPF | cap::PERFMON | cap::SYSLOG | cap::SYS_RESOURCE | dac | admin
}

/// For reading files that are read again and again, if it takes one.
fn for_files(have: u64, files: &[PathBuf]) -> u64 {
    let wanted = [cap::DAC_READ_SEARCH, cap::DAC_OVERRIDE].into_iter().find(|bit| have & bit != 0).unwrap_or(0);
    let refused = |path: &PathBuf| fs::metadata(path).and_then(|_| fs::File::open(path)).is_err_and(|e| is_refusal(&e));
    match privilege::without(0, || files.iter().any(refused)) {
        Ok(false) => 0,
        Ok(true) | Err(_) => wanted,
    }
}

fn is_refusal(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied
}

/// For ports below those that anybody may listen on: with TLS it is gRPC that listens, when its threads are there.
fn for_ports(config: &Config) -> u64 {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let first: u16 = first.trim().parse().unwrap_or(1024);
    let grpc = Some(config.server.grpc.port).filter(|_| config.server.grpc.enabled);
    match grpc.into_iter().chain([config.server.http.port]).any(|port| port < first) {
        true => cap::NET_BIND_SERVICE,
        false => 0,
    }
}

/// Files that the configuration names, and its own.
fn named_files(config: &Config, file: Option<&Path>) -> Vec<PathBuf> {
    let own = file.unwrap_or(Path::new(DEFAULT_PATH));
    config.files().into_iter().chain([own.to_owned()]).collect()
}

/// What may be read.
fn readable(config: &Config, files: &[PathBuf]) -> BTreeSet<PathBuf> {
    // c-ares asks for random bytes there; symbols of a backtrace are in the program itself.
    let mut readable: BTreeSet<PathBuf> = ["/proc", "/sys", "/dev/urandom", "/dev/random"].map(PathBuf::from).into();
    readable.extend(std::env::current_exe());
    readable.extend(cgroup::mounts());
    files.iter().for_each(|file| readable.extend(places(file)));
    for (_, tls, endpoint) in config.export.clients() {
        let is_name = |endpoint: &str| {
            let host = endpoint.trim().rsplit_once(':').map_or(endpoint, |(host, _)| host);
            host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
        };
        if endpoint.split(',').any(is_name) {
            // The resolver's files are replaced by others of the same name, so it takes their folder.
            for file in ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"] {
                readable.extend(places(Path::new(file)));
            }
        }
        if tls.enabled && tls.ca_file.is_none() {
            let authorities =
                ["/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"];
            readable.extend(authorities.map(PathBuf::from));
            // Where gRPC is told to look.
            let told = ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "GRPC_SYSTEM_SSL_ROOTS_DIR"];
            readable.extend(told.into_iter().filter_map(std::env::var_os).map(PathBuf::from));
        }
    }
    // glibc loads libraries when it is asked for a name, or a thread ends.
    if cfg!(target_env = "gnu") {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let objects = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
        let libraries = objects.filter(|path| path.to_string_lossy().contains(".so"));
        readable.extend(libraries.filter_map(Path::parent).map(Path::to_owned));
        readable.insert("/etc/ld.so.cache".into());
    }
    readable.remove(Path::new("/"));
    readable
}

/// Where a file may be by this name, also after it was replaced: the folder that it is in, those of the links by which it
/// is found, and where a link leads to a neighbour, that with both (as Kubernetes and releases have it). A file in the root
/// is itself alone.
fn places(file: &Path) -> BTreeSet<PathBuf> {
    const LINKS: usize = 40; // as many as the kernel follows
    let mut path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mut found = BTreeSet::new();
    for _ in 0..LINKS {
        let Some(folder) = path.parent().map(Path::to_owned) else { break };
        for link in folder.ancestors() {
            let to_neighbour = |to: PathBuf| to.is_relative() && !to.starts_with("..");
            if fs::read_link(link).is_ok_and(to_neighbour) {
                found.extend(link.parent().map(Path::to_owned));
            }
        }
        found.insert(if folder == Path::new("/") { path.clone() } else { folder.clone() });
        match fs::read_link(&path) {
            Ok(to) => path = folder.join(to),
            Err(_) => break,
        }
    }
    found.remove(Path::new("/"));
    found
}

// ---- system calls ----

/// Rules by number; none for a number: whatever its arguments.
#[derive(Default)]
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

type Condition = (u8, SeccompCmpOp, u64);

impl Rules {
    fn allow(&mut self, calls: &[i64]) {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
    }

    /// Allows it also if all of these hold.
    fn allow_if(&mut self, call: i64, conditions: &[Condition]) -> Result<(), String> {
        let condition = |(argument, op, value): &Condition| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value)
        };
        let conditions: Result<Vec<_>, _> = conditions.iter().map(condition).collect();
        let rule = conditions.and_then(SeccompRule::new).map_err(|e| e.to_string())?;
        self.0.entry(call).or_default().push(rule);
        Ok(())
    }

    fn program(self, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, String> {
        let arch = std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
        let filter = SeccompFilter::new(self.0, otherwise, matched, arch).map_err(|e| e.to_string())?;
        filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())
    }
}

fn apply(filters: &[BpfProgram]) -> Result<(), String> {
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter).map_err(|e| e.to_string()))
}

/// The filters of a role: of several the strictest answer counts, a trap before an error.
fn filter(role: Role, attaches: bool) -> Result<Vec<BpfProgram>, String> {
    let mut filters = Vec::new();
    let mut rules = Rules::default();
    if cfg!(target_env = "gnu") {
        // It asks for both where it makes a thread and sorts the addresses of a name, and does without: a clone3's flags
        // cannot be looked at, and of the host's addresses nobody here needs to know.
        let mut absent = Rules::default();
        for rules in [&mut absent, &mut rules] {
            rules.allow(&[libc::SYS_clone3]);
            rules.allow_if(libc::SYS_socket, &[(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)])?;
        }
        filters.push(absent.program(SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?);
    }
    common(&mut rules)?;
    files(&mut rules)?;
    match role {
        Role::Collector => maps(&mut rules, attaches)?,
        Role::Http => network(&mut rules, &[libc::AF_UNIX])?,
        Role::Main | Role::Grpc | Role::Exporter => {
            network(&mut rules, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6])?;
        }
    }
    filters.push(rules.program(SeccompAction::Trap, SeccompAction::Allow)?);
    Ok(filters)
}

/// Memory, threads, time, and what is done with open descriptors.
fn common(rules: &mut Rules) -> Result<(), String> {
    rules.allow(&[
        libc::SYS_brk,
        libc::SYS_capget,
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_futex,
        libc::SYS_get_robust_list,
        libc::SYS_getcpu,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_gettid,
        libc::SYS_gettimeofday,
        libc::SYS_getuid,
        libc::SYS_lseek,
        libc::SYS_madvise,
        libc::SYS_membarrier,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_nanosleep,
        libc::SYS_pipe2,
        libc::SYS_ppoll,
        libc::SYS_pread64,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigpending,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_getparam,
        libc::SYS_sched_getscheduler,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        libc::SYS_sigaltstack,
        libc::SYS_sysinfo,
        libc::SYS_uname,
        libc::SYS_write,
        libc::SYS_writev,
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.allow(&[
        libc::SYS_arch_prctl,
        libc::SYS_dup2,
        libc::SYS_epoll_wait,
        libc::SYS_getrlimit,
        libc::SYS_pipe,
        libc::SYS_poll,
        libc::SYS_select,
        libc::SYS_time,
    ]);
    let thread = libc::CLONE_THREAD as u64;
    rules.allow_if(libc::SYS_clone, &[(0, SeccompCmpOp::MaskedEq(thread), thread)])?;
    // Signals for itself alone: abort(), and the last of those to stop.
    let own = u64::from(std::process::id());
    rules.allow_if(libc::SYS_tgkill, &[(0, SeccompCmpOp::Eq, own)])?;
    rules.allow(if cfg!(target_env = "musl") { &[libc::SYS_tkill] } else { &[] });
    // glibc's libraries have code; musl's static programs have all of it from the start.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        match cfg!(target_env = "musl") {
            true => rules.allow_if(call, &[(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)])?,
            false => rules.allow(&[call]),
        }
    }
    for limits_of in [0, own] {
        rules.allow_if(libc::SYS_prlimit64, &[(0, SeccompCmpOp::Eq, limits_of)])?;
    }
    const PR_SET_VMA: libc::c_int = 0x5356_4d41; // glibc names its memory
    for option in [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_NO_NEW_PRIVS, PR_SET_VMA] {
        rules.allow_if(libc::SYS_prctl, &[(0, SeccompCmpOp::Eq, option as u64)])?;
    }
    // Further filters.
    rules.allow_if(libc::SYS_seccomp, &[(0, SeccompCmpOp::Eq, libc::SECCOMP_SET_MODE_FILTER.into())])?;
    for request in [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS, libc::TIOCGWINSZ] {
        rules.allow_if(libc::SYS_ioctl, &[(1, SeccompCmpOp::Eq, request as u32 as u64)])?;
    }
    Ok(())
}

/// Files, to be read.
fn files(rules: &mut Rules) -> Result<(), String> {
    rules.allow(&[
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fstatfs,
        libc::SYS_getcwd,
        libc::SYS_getdents64,
        libc::SYS_newfstatat,
        libc::SYS_readlinkat,
        libc::SYS_statfs,
        libc::SYS_statx,
    ]);
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    rules.allow_if(libc::SYS_openat, &[(2, SeccompCmpOp::MaskedEq(writes), 0)])?;
    #[cfg(target_arch = "x86_64")]
    {
        rules.allow(&[libc::SYS_access, libc::SYS_lstat, libc::SYS_readlink, libc::SYS_stat]);
        rules.allow_if(libc::SYS_open, &[(1, SeccompCmpOp::MaskedEq(writes), 0)])?;
    }
    Ok(())
}

/// Sockets of these families.
fn network(rules: &mut Rules, families: &[libc::c_int]) -> Result<(), String> {
    rules.allow(&[
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_listen,
        libc::SYS_recvfrom,
        libc::SYS_recvmmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
    ]);
    for family in families {
        rules.allow_if(libc::SYS_socket, &[(0, SeccompCmpOp::Eq, *family as u64)])?;
    }
    rules.allow_if(libc::SYS_socketpair, &[(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)])
}

/// Reading maps, and attaching anew if that may be asked for.
fn maps(rules: &mut Rules, attaches: bool) -> Result<(), String> {
    if attaches {
        rules.allow(&[libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_memfd_create, libc::SYS_ftruncate]);
        rules.allow(&[libc::SYS_fadvise64, libc::SYS_ioctl]);
        // An event of tracefs, which can be appended to a list.
        let kind = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;
        let appends = (libc::O_WRONLY | libc::O_APPEND) as u64;
        rules.allow_if(libc::SYS_openat, &[(2, SeccompCmpOp::MaskedEq(kind), appends)])?;
        #[cfg(target_arch = "x86_64")]
        rules.allow_if(libc::SYS_open, &[(1, SeccompCmpOp::MaskedEq(kind), appends)])?;
        return Ok(());
    }
    // linux/bpf.h: elements, one by one and in batches, and what is known of a descriptor.
    const COMMANDS: [u64; 10] = [1, 2, 3, 4, 15, 21, 24, 25, 26, 27];
    COMMANDS.iter().try_for_each(|command| rules.allow_if(libc::SYS_bpf, &[(0, SeccompCmpOp::Eq, *command)]))
}

/// System calls as they are called in the log; others are numbers.
macro_rules! telling {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

static TELLING: &[(i64, &str)] = telling![
    SYS_bind SYS_bpf SYS_capset SYS_chdir SYS_chroot SYS_clone SYS_connect SYS_delete_module SYS_execve SYS_execveat
    SYS_fallocate SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_finit_module SYS_fsopen SYS_ftruncate SYS_init_module
    SYS_io_uring_setup SYS_ioctl SYS_kexec_load SYS_keyctl SYS_kill SYS_linkat SYS_memfd_create SYS_mkdirat SYS_mknodat
    SYS_mmap SYS_mount SYS_move_mount SYS_mprotect SYS_open_by_handle_at SYS_openat SYS_openat2 SYS_perf_event_open
    SYS_pidfd_open SYS_pivot_root SYS_prctl SYS_prlimit64 SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_pwrite64
    SYS_renameat2 SYS_seccomp SYS_setns SYS_setuid SYS_socket SYS_socketpair SYS_symlinkat SYS_tgkill SYS_tkill SYS_umount2
    SYS_unlinkat SYS_unshare SYS_userfaultfd SYS_utimensat
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExportKind;
    use std::os::unix::fs::symlink;

    /// The folders below `root` that are granted for what is there under this name.
    fn granted(root: &Path, file: &str) -> Vec<String> {
        let found = places(&root.join(file));
        found.iter().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_file_that_is_replaced_is_found_where_it_may_be_then() {
        let root = std::env::temp_dir().join(format!("ebpf-sidecar-places-{}", std::process::id()));
        for folder in ["plain", "kubernetes/..1", "live/db", "archive/db", "app/releases/5"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (link, to) in [
            ("kubernetes/..data", "..1"),
            ("kubernetes/tls.crt", "..data/tls.crt"),
            ("live/db/cert.pem", "../../archive/db/cert3.pem"),
            ("app/current", "releases/5"),
            ("plain/self", "self"),
        ] {
            symlink(to, root.join(link)).unwrap();
        }
        assert_eq!(granted(&root, "plain/key.pem"), ["plain"]);
        assert_eq!(granted(&root, "kubernetes/tls.crt"), ["kubernetes", "kubernetes/..data"]);
        assert_eq!(granted(&root, "live/db/cert.pem"), ["live/db", "live/db/../../archive/db"]);
        assert_eq!(granted(&root, "app/current/key.pem"), ["app", "app/current"]);
        assert_eq!(granted(&root, "plain/self"), ["plain"], "a link to itself");
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            places(Path::new("/ebpf-sidecar-none")),
            ["/ebpf-sidecar-none".into()].into(),
            "not all of the root"
        );
    }

    #[test]
    fn the_resolver_is_granted_its_files_for_a_name_alone() {
        let mut config = Config::default();
        let reads = |config: &Config, path: &str| readable(config, &[]).contains(Path::new(path));
        assert!(!reads(&config, "/etc"));
        config.export.kinds = vec![ExportKind::BanyanDb];
        for (endpoint, etc) in [("db:1", true), ("10.0.0.1:1,[::1]:2", false), ("10.0.0.1:1,db.example:2", true)] {
            config.export.banyandb.endpoint = endpoint.into();
            assert_eq!(reads(&config, "/etc"), etc, "{endpoint}");
        }
        assert!(!reads(&config, "/etc/ssl"));
        config.export.banyandb.tls.enabled = true;
        assert!(reads(&config, "/etc/ssl") && !reads(&config, "/"));
        config.export.kinds = vec![ExportKind::Prometheus, ExportKind::Otlp];
        assert!(reads(&config, "/etc") && !reads(&config, "/etc/ssl"), "localhost is a name");
        config.export.otlp.tls.enabled = true;
        assert!(reads(&config, "/etc/ssl"));
    }

    #[test]
    fn what_the_web_configuration_names_may_be_read_and_what_only_commands_need_not() {
        let root = std::env::temp_dir().join(format!("ebpf-sidecar-web-{}", std::process::id()));
        fs::create_dir_all(root.join("web")).unwrap();
        let tls = "{cert_file: ../certs/tls.crt, key_file: /keys/tls.key, client_ca_file: ca.crt, client_auth_type: \
                   RequireAndVerifyClientCert}";
        fs::write(root.join("web/web.yml"), format!("tls_server_config: {tls}")).unwrap();
        let mut config = Config::default();
        config.server.http.web_config = Some(root.join("web/web.yml"));
        config.server.grpc.token_file = Some("/tokens/a".into());
        config.client.token_file = Some("/mine/b".into());
        let readable = readable(&config, &named_files(&config, Some(Path::new("/own/config.yaml"))));
        for folder in [root.join("web"), root.join("web/../certs"), "/keys".into(), "/tokens".into(), "/own".into()] {
            assert!(readable.contains(&folder), "{}: {readable:?}", folder.display());
        }
        assert!(!readable.contains(Path::new("/mine")));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn every_role_has_a_filter() {
        for role in [Role::Main, Role::Collector, Role::Http, Role::Grpc, Role::Exporter] {
            for attaches in [false, true] {
                let filters = filter(role, attaches).unwrap();
                assert!(filters.iter().all(|filter| filter.len() < 1000), "{role:?}");
            }
        }
    }
}
