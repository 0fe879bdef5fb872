//! What the agent can observe. A module owns its programs and maps; the collector asks it for a sample each
//! interval.

pub mod catalogue;
mod causes;
mod counters;
pub mod curve;
pub mod evictions;
#[doc(hidden)]
pub mod example;
pub mod fadvise;
pub mod file_groups;
pub mod files;
pub mod fills;
mod halves;
mod hits;
pub mod iomonitor;
pub mod ledger;
pub mod probes;
pub mod processes;
pub mod proof;
pub mod reads;
pub mod reclaim;
pub mod rows;
pub mod scope;
pub mod sleeps;
pub mod stalls;
pub mod stat;
pub mod waits;

use crate::config::{Scope, Switch};
use crate::ebpf::object::Error;
use crate::metrics::files::Files;
use crate::metrics::snapshot::{Family, Knows, ProbeStatus, ProcessRow};

/// A source of metrics.
pub trait Module: Send {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// Loads and attaches. An error means that nothing could be attached; a probe that could not be, beside
    /// others that were, shows in [`Module::probes`].
    fn start(&mut self) -> Result<(), Error>;

    /// Detaches everything. Counters go on from where they were if it is started again.
    fn stop(&mut self);

    /// Takes settings for the next start, and returns those that they replace.
    fn configure(&mut self, settings: &ModuleSettings) -> ModuleSettings;

    /// Takes these settings as it runs, all of them; false if it has to be started again for them, and nothing has
    /// changed.
    fn adjust(&mut self, _: &ModuleSettings) -> bool {
        false
    }

    /// Gets ready for [`Module::collect`]; may sleep until the kernel is, and is not counted as collecting.
    fn prepare(&mut self) -> Result<(), Error>;

    /// Reads the kernel's counters.
    fn collect(&mut self) -> Result<Sample, Error>;

    /// Each probe, attached or not; empty before the first start.
    fn probes(&self) -> Vec<ProbeStatus>;

    /// Whose I/O is counted, if it can be another one than what was configured.
    fn scope(&self) -> Option<Scope> {
        None
    }

    /// Why what it counts is not all that it should, although it runs.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// ModuleSettings of a module that can change while the agent runs; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleSettings {
    /// Whose I/O is counted.
    pub scope: Option<Scope>,
    /// Whether reads are timed.
    pub read_latency: Option<Switch>,
}

/// What one collection of a module found.
#[derive(Debug, Default)]
pub struct Sample {
    /// The module's metrics, in catalogue order; those whose probe is not attached are not among them.
    pub families: Vec<Family>,
    /// What single processes did, from the module that knows.
    pub processes: Option<Vec<ProcessRow>>,
    /// What happened to single files, likewise.
    pub files: Option<Files>,
    /// And what that tells of beside fadvise calls.
    pub knows: Knows,
}
