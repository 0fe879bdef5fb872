//! Known work against the real kernel, and whether the agent's counters say the same. Each test puts this
//! process into the scope of an agent of its own, so that counts are exact. One file a subject, as in src/monitor.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;
mod attaching;
mod diagnosis;
mod evictions;
mod fadvise;
mod files;
mod fills;
mod layout;
mod machine;
mod old;
mod preemption;
mod processes;
mod readers;
mod reads;
mod reclaim;
mod scope;
mod sleeps;
mod waits;

use common::MIB;
use common::sys::pages;

/// Bytes of the file that most reads go over.
fn file_size() -> usize {
    common::sized(64 * MIB, 16 * MIB)
}

/// Its pages.
fn file_pages() -> f64 {
    pages(file_size())
}
