//! A generic way of attaching: the hooks of the kernel that a program can hang at, the ways in which one thing can be
//! observed, which of them are tried on this kernel and in which order. Nothing here knows what is observed.

use std::cell::LazyCell;
use std::fs::File;
use std::io;

use super::object::{Error, KernelBtf, Link, Object, Program};
use super::os;

/// Ways not taken, each with the reason in one short line; the long one is logged at debug level.
pub type Failures = Vec<(&'static str, String)>;

/// How programs are attached, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the first way that works, cheapest first: fentry, kprobe, tracepoint. On a preemptible kernel the exact ones
    /// come before those that miss events.
    Auto,
    /// At functions, through the kernel's BTF trampolines.
    Fentry,
    /// At functions, through kprobes.
    Kprobe,
    /// At tracepoints.
    Tracepoint,
}

impl AttachMode {
    /// All modes, with their names in the configuration.
    pub const NAMES: [(AttachMode, &'static str); 4] = [
        (AttachMode::Auto, "auto"),
        (AttachMode::Fentry, "fentry"),
        (AttachMode::Kprobe, "kprobe"),
        (AttachMode::Tracepoint, "tracepoint"),
    ];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }
}

/// All its programs are attached, in order, or none.
#[derive(Debug)]
pub struct Way {
    /// How it is called in the outputs.
    pub mode: &'static str,
    /// Which value of `collector.ebpf.attach` asks for it; `None`: every one.
    pub choice: Option<AttachMode>,
    /// Names of programs, and where they hang.
    pub programs: &'static [(&'static str, Hook)],
    /// Why it would attach on this kernel and yet tell nothing.
    pub ruled_out: fn() -> Option<&'static str>,
    /// What makes its programs run, to prove that they do.
    pub proof: Option<Act>,
}

/// Something that the agent can do itself.
#[derive(Debug, Clone, Copy)]
pub struct Act {
    /// Makes a file of its own ready for it; an error if there can be none here.
    pub prepare: fn() -> io::Result<File>,
    /// Does it.
    pub act: fn(&mut File) -> io::Result<()>,
}

impl Way {
    /// A way that nothing rules out.
    pub const fn new(
        mode: &'static str,
        choice: Option<AttachMode>,
        programs: &'static [(&'static str, Hook)],
    ) -> Self {
        Self { mode, choice, programs, ruled_out: || None, proof: None }
    }

    fn misses_events(&self, kernel: Kernel) -> bool {
        self.programs.iter().any(|(_, hook)| hook.misses_events(kernel))
    }
}

/// What decides whether programs miss events.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Its release.
    pub version: (u32, u32),
    /// Whether threads can be preempted in it.
    pub preemptible: bool,
}

impl Kernel {
    /// The one that runs.
    pub fn running() -> Self {
        Self { version: os::kernel_version(), preemptible: os::is_preemptible() }
    }
}

/// Where a program hangs. Of several functions the first that this kernel has is taken.
#[derive(Debug)]
pub enum Hook {
    /// fentry, at one of these functions.
    FunctionEntry(&'static [&'static str]),
    /// fexit.
    FunctionExit(&'static [&'static str]),
    /// kprobe.
    Kprobe(&'static [&'static str]),
    /// kretprobe.
    Kretprobe(&'static [&'static str]),
    /// Raw tracepoint of this name.
    RawTracepoint(&'static str),
    /// Tracepoint: its category and name.
    Tracepoint(&'static str, &'static str),
    /// As the other, but left out where the kernel has no such function.
    IfThere(&'static Hook),
    /// As the first, but another program and hook where the kernel has no such function.
    Else(&'static Hook, &'static str, &'static Hook),
}

impl Hook {
    /// Whether a thread can be preempted inside a program here: the kernel then skips that program for the other
    /// threads of the CPU until the first goes on.
    fn misses_events(&self, kernel: Kernel) -> bool {
        let since = match self {
            Self::FunctionEntry(_) | Self::FunctionExit(_) => (5, 12),
            Self::RawTracepoint(_) | Self::Tracepoint("syscalls", _) => (7, 0),
            Self::Kprobe(_) | Self::Kretprobe(_) | Self::Tracepoint(..) => return false,
            Self::IfThere(hook) | Self::Else(hook, ..) => return hook.misses_events(kernel),
        };
        kernel.preemptible && kernel.version >= since
    }
}

/// Those of these ways that are to be tried, in order, and those passed over with the reason: best first, as they
/// stand, but those that miss events on this kernel last, unless the configuration names them. What is there
/// only if it can be (`optional`) is not worth a miss.
pub fn ladder(
    ways: &'static [Way],
    optional: bool,
    choice: AttachMode,
    kernel: Kernel,
) -> (Vec<&'static Way>, Failures) {
    let asked = |w: &&Way| choice == AttachMode::Auto || w.choice.is_none_or(|c| c == choice);
    let (mut ways, others): (Vec<&Way>, Vec<&Way>) = ways.iter().partition(asked);
    if ways.is_empty() {
        let mut others: Failures =
            others.iter().map(|w| (w.mode, "collector.ebpf.attach rules it out".into())).collect();
        others.dedup_by_key(|(mode, _)| *mode);
        return (ways, others);
    }
    let misses = |w: &Way| w.choice != Some(choice) && w.misses_events(kernel);
    let passed_over = ways.iter().filter(|w| misses(w)).map(|w| {
        let force = w.choice.map_or("".into(), |c| format!(" (collector.ebpf.attach: {} forces it)", c.name()));
        (w.mode, format!("this kernel is preemptible: events would be missed{force}"))
    });
    let mut passed_over: Failures = passed_over.collect();
    passed_over.dedup_by_key(|(mode, _)| *mode);
    ways.sort_by_key(|w| misses(w));
    if optional {
        ways.retain(|w| !misses(w));
    }
    (ways, passed_over)
}

/// Attaches programs of one object.
pub struct Loader<'a> {
    object: &'a Object,
    /// Why the kernel's own description of its types is not used, if it is not.
    no_btf: Option<&'static str>,
    btf: LazyCell<Result<KernelBtf, Error>>,
    before: &'a dyn Fn(&Hook) -> Result<(), Error>,
    prove: &'a dyn Fn(&Way) -> Result<(), Error>,
}

impl<'a> Loader<'a> {
    /// A loader for `object`; `no_btf` tells why it was made without the kernel's BTF, if it was. `before` is called for
    /// each hook before its program is loaded, and `prove` for each way that is attached: an error passes it over.
    pub fn new(
        object: &'a Object,
        no_btf: Option<&'static str>,
        before: &'a dyn Fn(&Hook) -> Result<(), Error>,
        prove: &'a dyn Fn(&Way) -> Result<(), Error>,
    ) -> Self {
        os::FunctionEvent::clear_left_behind();
        Self { object, no_btf, btf: LazyCell::new(KernelBtf::load), before, prove }
    }

    /// Attaches the programs of the first way that works, and says which it was; `failures` has the ways passed over
    /// before, and gets those that fail.
    pub fn attach_first(&self, ways: &[&Way], failures: &mut Failures) -> Option<(&'static str, Vec<(Program, Link)>)> {
        let mut passed_over = std::mem::take(failures);
        let found = ways.iter().find_map(|way| {
            // Tried after all.
            passed_over.retain(|(mode, _)| *mode != way.mode);
            if let Some(why) = (way.ruled_out)() {
                failures.push((way.mode, why.into()));
                return None;
            }
            match self.attach(way).and_then(|attached| (self.prove)(way).map(|()| attached)) {
                Ok(attached) => Some((way.mode, attached)),
                Err(e) => {
                    log::debug!("not by {}: {e}", way.mode);
                    // Of two of a kind the better one's reason.
                    if failures.iter().all(|(mode, _)| *mode != way.mode) {
                        failures.push((way.mode, e.brief()));
                    }
                    None
                }
            }
        });
        failures.splice(0..0, passed_over);
        found
    }

    fn attach(&self, way: &Way) -> Result<Vec<(Program, Link)>, Error> {
        let all = way.programs.iter().map(|(name, hook)| self.attach_one(name, hook));
        all.filter_map(Result::transpose).collect()
    }

    fn attach_one(&self, name: &str, hook: &Hook) -> Result<Option<(Program, Link)>, Error> {
        if let Some(why) = self.no_btf
            && !self.object.has_program(name)
        {
            let log = format!("it needs the kernel's BTF: {why}");
            let error = Error::new(format!("load program {name}"), io::ErrorKind::Unsupported.into());
            return Err(error.in_short(&log).because(log));
        }
        (self.before)(hook)?;
        let at_symbol = |functions: &[&str], attach: fn(&Program, &str) -> Result<Link, Error>| {
            let program = self.object.load(name, None)?;
            // In the words of perf, and of tracefs.
            let kinds = [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput];
            let absent = |r: &Result<Link, Error>| r.as_ref().is_err_and(|e| kinds.contains(&e.cause.kind()));
            let by_name = functions.iter().map(|f| attach(&program, f)).find(|r| !absent(r));
            // Reading all symbols takes a while: only for one that the compiler has given a suffix, or that is not there.
            let link = match by_name {
                Some(link) => link?,
                None => attach(&program, &kernel_function(functions)?)?,
            };
            Ok((program, link))
        };
        let attached = match hook {
            Hook::FunctionEntry(functions) | Hook::FunctionExit(functions) => {
                let btf = self.btf.as_ref().map_err(Error::clone)?;
                let function = functions.iter().find_map(|f| btf.function(f)).ok_or_else(|| no_function(functions))?;
                let program = self.object.load(name, Some(function))?;
                let link = program.attach_function()?;
                (program, link)
            }
            Hook::Kprobe(functions) => match self.at_one_of(name, functions) {
                Ok(attached) => attached,
                Err(e) => {
                    log::debug!("perf's kprobe is taken for {name}: {e}");
                    at_symbol(functions, Program::attach_kprobe)?
                }
            },
            Hook::Kretprobe(functions) => at_symbol(functions, Program::attach_kretprobe)?,
            Hook::RawTracepoint(tracepoint) => {
                let program = self.object.load(name, None)?;
                let link = program.attach_raw_tracepoint(tracepoint)?;
                (program, link)
            }
            Hook::Tracepoint(category, tracepoint) => {
                let program = self.object.load(name, None)?;
                let link = program.attach_tracepoint(category, tracepoint)?;
                (program, link)
            }
            Hook::Else(hook, other, or) => {
                return match self.attach_one(name, hook) {
                    Err(e) if e.cause.kind() == io::ErrorKind::NotFound => self.attach_one(other, or),
                    first => first,
                };
            }
            Hook::IfThere(hook) => {
                return match self.attach_one(name, hook) {
                    Err(e) if e.cause.kind() == io::ErrorKind::NotFound => Ok(None),
                    other => other,
                };
            }
        };
        Ok(Some(attached))
    }

    /// A kprobe as the tracer of functions has it, which is the cheaper one.
    fn at_one_of(&self, name: &str, functions: &[&str]) -> Result<(Program, Link), Error> {
        if os::kernel_version() < (5, 18) {
            return Err(Error::new("attach by kprobe_multi before Linux 5.18", io::ErrorKind::Unsupported.into()));
        }
        let program = self.object.load_multi_kprobe(name)?;
        let mut failure = no_function(functions);
        for function in functions {
            match program.attach_multi_kprobe(function) {
                Ok(link) => return Ok((program, link)),
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }
}

fn no_function(functions: &[&str]) -> Error {
    let error = Error::new(format!("find function {}", functions.join(" or ")), io::ErrorKind::NotFound.into());
    let short = format!("no function {}, or it is inlined", functions.join(" or "));
    error.because("this kernel does not have it, or has inlined it").in_short(short)
}

/// Symbol of the first of these functions that the kernel has.
fn kernel_function(functions: &[&str]) -> Result<String, Error> {
    for name in functions {
        let found = os::kernel_symbol(name);
        let found = found.map_err(|cause| Error::new("read /proc/kallsyms", cause))?;
        if let Some(symbol) = found {
            return Ok(symbol);
        }
    }
    Err(no_function(functions))
}
