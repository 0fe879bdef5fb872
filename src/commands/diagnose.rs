//! `ebpf-sidecar diagnose`: watches for a while, without a server, says what goes on, and ends. For whoever was just called.

use std::time::Duration;

use log::LevelFilter;

use super::{check, run};
use crate::collector::Collector;
use crate::config::Config;
use crate::ebpf::os::{self, Signals};
use crate::export::diagnosis;
use crate::host::{confine, logging, scope};

/// How long, if it is not said.
const USUAL: Duration = Duration::from_secs(60);
/// Collections in that time: enough for the window to have an inside.
const COLLECTIONS: u32 = 12;

/// The report after this time, or when a signal asks for it earlier. An error is why there is none.
pub fn run(config: &Config, watch: Option<Duration>, level: Option<LevelFilter>) -> Result<String, String> {
    let watch = watch.unwrap_or(USUAL);
    logging::start(level.unwrap_or(LevelFilter::Warn));
    let signals = Signals::block().map_err(|e| format!("cannot block signals: {e}"))?;
    if let Err(e) = os::mount_tracefs_privately() {
        log::warn!("no tracefs: {e}");
    }
    os::raise_memlock();
    confine::plan(config, None)?;
    let interval = (watch / COLLECTIONS).clamp(Duration::from_millis(500), Duration::from_secs(10));
    let scope = config.collector.scope.to_string();
    let collector = Collector::start(run::modules(config), interval, scope, Duration::ZERO).map_err(|e| {
        let hint = check::missing_privilege(false).map(|h| format!("\n{h}")).unwrap_or_default();
        format!("{e}{hint}")
    })?;
    eprintln!("watching {} for {watch:?}; Ctrl-C ends it sooner", scope::words(&config.collector));
    // A signal is a wish for the report.
    signals.wait_for(watch).map_err(|e| format!("cannot wait: {e}"))?;
    let snapshot = collector.snapshots().load();
    let report = match &snapshot.diagnosis {
        Some(found) => diagnosis::report(found, &snapshot.scope),
        None => "Nothing can be said yet\n".into(),
    };
    collector.stop().map_err(|e| format!("the collector had failed: {e}"))?;
    Ok(report)
}
