//! Proof that what is attached runs. A function that the kernel lists can be inlined where it is called: a program
//! attaches to it, and never runs. So at start the agent does itself what is observed, on files of its own, and looks
//! whether the program ran. Until all is attached nothing counts, so none of it does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::ebpf::abi::{Plain, SCOPE_PROOF, State};
use crate::ebpf::attach::{Act, Way};
use crate::ebpf::object::{Error, Map};
use crate::ebpf::os;

/// A program can be skipped while another of its kind is preempted on the CPU.
const ATTEMPTS: u32 = 5;

/// What was found out about ways, by where their programs stand in memory.
static FOUND: Mutex<BTreeMap<usize, Result<(), Error>>> = Mutex::new(BTreeMap::new());

/// Proves ways of attaching.
pub struct Prover {
    map: Map,
    state: Cell<State>,
    /// What comes after the proof.
    scope: u64,
    name: CString,
}

impl Prover {
    /// One whose programs have this state in this map; until its [`end`](Self::end), none of them counts.
    pub fn new(map: Map, state: State) -> Result<Self, Error> {
        // A random number that std makes for each of these, in as many digits as a name has.
        let random = RandomState::new().hash_one(0);
        let name = CString::new(&format!("{random:016x}")[1..]).unwrap_or_default();
        let mut new = State { scope: SCOPE_PROOF, ..state };
        new.prover[..name.as_bytes().len()].copy_from_slice(name.as_bytes());
        let prover = Self { map, state: Cell::new(new), scope: state.scope, name };
        prover.set(new)?;
        Ok(prover)
    }

    /// The programs' state, as it was set last.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Sets it.
    pub fn set(&self, state: State) -> Result<(), Error> {
        self.map.update(&0u32.to_ne_bytes(), state.bytes())?;
        self.state.set(state);
        Ok(())
    }

    /// From here on what programs see in their scope counts.
    pub fn end(&self) -> Result<(), Error> {
        self.set(State { scope: self.scope, ..self.state() })
    }

    /// Whether the programs of a way that was attached run; the error is that they do not. The kernel stays the same, so
    /// it is found out once: later the agent may no longer be able to do what it takes.
    pub fn prove(&self, way: &Way) -> Result<(), Error> {
        let Some(proof) = way.proof else { return Ok(()) };
        // A panic leaves it as it was.
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        found.entry(way.programs.as_ptr() as usize).or_insert_with(|| self.find_out(way, &proof)).clone()
    }

    fn find_out(&self, way: &Way, proof: &Act) -> Result<(), Error> {
        let (before, name) = (self.proved()?, &self.name);
        for _ in 0..ATTEMPTS {
            let done = (proof.prepare)().and_then(|mut file| {
                // In a thread of its own, since it takes another name.
                let act = || os::rename_thread(name).and_then(|()| (proof.act)(&mut file));
                thread::scope(|scope| {
                    let acting = thread::Builder::new().spawn_scoped(scope, act)?;
                    acting.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
                })
            });
            if let Err(e) = done {
                log::debug!("{} is not proved to run: {e}", way.programs.first().map_or("", |(name, _)| name));
                return Ok(());
            }
            if self.proved()? > before {
                return Ok(());
            }
        }
        let programs: Vec<&str> = way.programs.iter().map(|(name, _)| *name).collect();
        let error = Error::new(
            format!("see {} run", programs.join(" or ")),
            io::Error::new(io::ErrorKind::NotFound, "it never ran"),
        );
        let meaning = "this kernel has inlined the function";
        Err(error
            .because(format!("it was attached, and what the agent did itself did not come there: {meaning}"))
            .in_short(format!("it never ran when the agent tried: {meaning}")))
    }

    fn proved(&self) -> Result<u64, Error> {
        let mut value = Vec::new();
        self.map.lookup(&0u32.to_ne_bytes(), &mut value)?;
        Ok(State::read(&value).map_or(0, |s| s.proved))
    }
}

// What makes programs run.

/// A call of fadvise.
pub const ADVISE: Act =
    Act { prepare: || os::memory_file(c"ebpf-sidecar-proof"), act: |file| os::advise_nothing(file) };

/// A buffered read.
pub const READ: Act =
    Act { prepare: || page_filled().or_else(|_| own_program()), act: |file| file.read_at(&mut [0; 64], 0).map(drop) };

/// A page that comes into the page cache.
pub const FILL: Act = Act { prepare: os::cached_file, act: |file| file.write_all(&[1; 64]) };

/// One that leaves it.
pub const EVICT: Act = Act { prepare: page_filled, act: |file| file.set_len(0) };

fn page_filled() -> io::Result<File> {
    let mut file = os::cached_file()?;
    file.write_all(&[1; 64])?;
    Ok(file)
}

fn own_program() -> io::Result<File> {
    let path = Path::new("/proc/self/exe");
    if os::is_in_memory(path)? { Err(io::ErrorKind::Unsupported.into()) } else { File::open(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::attach::{Hook, Loader};
    use crate::ebpf::object::Object;
    use crate::monitor::iomonitor::{elf, state_map};

    #[test]
    fn a_program_at_what_never_happens_is_passed_over() {
        const fn at(tracepoint: &'static [(&'static str, Hook)]) -> Way {
            Way { proof: Some(FILL), ..Way::new("raw_tracepoint", None, tracepoint) }
        }
        static WAYS: [Way; 2] = [
            at(&[("raw_fill", Hook::RawTracepoint("mm_vmscan_kswapd_sleep"))]),
            at(&[("raw_fill", Hook::RawTracepoint("mm_filemap_add_to_page_cache"))]),
        ];
        let skipped = |why: String| println!("SKIPPED a_program_at_what_never_happens_is_passed_over: {why}");
        if !os::has_btf() {
            return skipped("needs BTF".into());
        }
        let object = match Object::prepare("proof", elf(), None, None) {
            Ok(object) => object,
            Err(e) => return skipped(e.to_string()),
        };
        if let Err(e) = os::cached_file() {
            return skipped(e.to_string());
        }
        let prover = Prover::new(state_map(&object).unwrap(), State::default()).unwrap();
        let (before, prove) = (|_: &Hook| Ok(()), |way: &Way| prover.prove(way));
        let loader = Loader::new(&object, None, &before, &prove);
        let mut failures = Vec::new();
        let attached = loader.attach_first(&[&WAYS[0], &WAYS[1]], &mut failures);
        let Some((_, programs)) = attached else { return skipped(failures[0].1.clone()) };
        assert_eq!((programs.len(), failures.len()), (1, 1), "{failures:?}");
        assert!(failures[0].1.starts_with("it never ran"), "{failures:?}");
        let (totals, mut value) = (object.map("totals").unwrap(), Vec::new());
        totals.lookup(&0u32.to_ne_bytes(), &mut value).unwrap();
        assert!(value.iter().all(|byte| *byte == 0), "none of that counts");
        drop(programs);
        assert_eq!(loader.attach_first(&[&WAYS[0]], &mut failures).map(|(mode, _)| mode), None);
    }
}
