//! The agent itself: starts in order (collector, HTTP, gRPC, exporter), waits for a signal, stops in reverse.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::api::Api;
use crate::collector::Collector;
use crate::commands::check;
use crate::commands::reload::{Read, Reload};
use crate::config::{Config, ExportKind, ModuleName};
use crate::ebpf::os::{self, Signal, Signals};
use crate::export::engine::{Ending, Exporter};
use crate::export::{banyandb, diagnosis, json, otlp, prometheus};
use crate::host::systemd::Systemd;
use crate::host::{confine, logging, scope, version};
use crate::metrics::cell::SnapshotCell;
use crate::metrics::health::{self, Status};
use crate::metrics::snapshot::Snapshot;
use crate::monitor::Module;
use crate::monitor::iomonitor::IoMonitor;
use crate::server::grpc;
use crate::server::http::access::Access;
use crate::server::http::gateway::Gateway;
use crate::server::http::hosts::Hosts;
use crate::server::http::{self, Page, Rendered};

/// Runs the agent until a signal stops it. Its configuration is from `file`, or from where it usually is; `read` reads its configuration again when SIGHUP asks for that; `level` is the
/// command line's. An error is why it ends, in words for the user.
pub fn run(config: &Config, file: Option<&Path>, read: Read, level: Option<log::LevelFilter>) -> Result<(), String> {
    logging::start(level.unwrap_or(config.log.level));
    // Both belong to the first thread: the others inherit the blocked signals and the mount namespace.
    let signals = Signals::block().map_err(|e| format!("cannot block signals: {e}"))?;
    match os::mount_tracefs_privately() {
        Ok(true) => log::info!("tracefs was not mounted: mounted it for this process alone"),
        Ok(false) => {}
        Err(e) => log::warn!("no tracefs: {e}"),
    }
    os::raise_descriptors()?;
    os::raise_memlock();
    os::share_heap();
    log::info!("ebpf-sidecar {} ({}), Linux {}", version::VERSION, version::COMMIT, os::kernel_release());

    confine::plan(config, file)?;
    log::info!("counting {} every {:?}", scope::words(&config.collector), config.collector.interval);
    let (interval, history) = (config.collector.interval, config.collector.history);
    let collector =
        Collector::start(modules(config), interval, config.collector.scope.to_string(), history).map_err(|e| {
            let hint = check::missing_privilege(false).map(|h| format!("\n{h}")).unwrap_or_default();
            format!("{e}{hint}")
        })?;
    // What loading took is gone before gRPC takes its own.
    os::unmap_start();
    let api = Arc::new(Api::new(collector.snapshots(), collector.control(), config.server.allow_configure));
    let address = SocketAddr::new(config.server.http.address, config.server.http.port);
    let path = &config.server.http.metrics_path;
    let hosts = Hosts::new(config.server.http.hosts.clone());
    let gateway = Gateway::new(Arc::clone(&api), hosts.clone());
    let access = Access::new(config.server.http.web_config.as_deref())?;
    let scheme = if access.current().tls.is_some() { "https" } else { "http" };
    let http = http::start(address, path, collector.snapshots(), Box::new(render), Some(gateway), access.clone())
        .map_err(|e| e.to_string())?;
    let address = http.address();
    log::info!("HTTP: {scheme}://{address}/ {} /health /api/v1/stats", config.server.http.metrics_path);
    let grpc = match &config.server.grpc {
        config if config.enabled => {
            let grpc = grpc::start(config, Arc::clone(&api)).map_err(|e| e.to_string())?;
            log::info!("gRPC: {} {}", grpc.address(), if config.tls.enabled { "with TLS" } else { "without TLS" });
            Some(grpc)
        }
        _ => None,
    };
    let exporters = exporters(config, &collector.snapshots())?;

    os::unmap_start();
    confine::verify()?;
    if let Some(words) = confine::words() {
        log::info!("{words}");
    }
    let systemd = Systemd::from_env();
    let mut reload = Reload { read, in_use: config.clone(), level, control: collector.control(), api, hosts, access };
    let signal = loop {
        systemd.ready(&format!("counting {}; {scheme}://{address}", reload.in_use.collector.scope));
        match wait(&signals, &systemd, &collector.snapshots()).map_err(|e| format!("cannot wait for signals: {e}"))? {
            Signal::Hangup => {
                systemd.reloading();
                log::info!("{}: reading the configuration again", Signal::Hangup);
                reload.reload(grpc.as_ref());
            }
            signal => break signal,
        }
    };
    log::info!("{signal}: stopping");
    systemd.stopping();
    end_at_the_next(signals);
    // Each has the same time to send what is left: not one after the other.
    let ended: Vec<Ending> = exporters.into_iter().map(Exporter::end).collect();
    ended.into_iter().for_each(Ending::wait);
    drop(grpc);
    http.stop();
    let stopped = collector.stop().map_err(|e| format!("the collector had failed: {e}"));
    tell_refused();
    stopped
}

/// Starts whatever sends the metrics to somebody.
fn exporters(config: &Config, snapshots: &SnapshotCell) -> Result<Vec<Exporter>, String> {
    let start = |kind: &ExportKind| match kind {
        ExportKind::Prometheus => None,
        ExportKind::BanyanDb => {
            let banyandb = &config.export.banyandb;
            log::info!("BanyanDB: sending to {}, group {}", banyandb.endpoint, banyandb.group);
            let started = banyandb::start(banyandb, snapshots);
            Some(started.map_err(|e| format!("cannot start the exporter to BanyanDB: {e}")))
        }
        ExportKind::Otlp => {
            let otlp = &config.export.otlp;
            log::info!("OTLP: sending to {}", otlp::words(otlp));
            Some(otlp::start(otlp, snapshots).map_err(|e| format!("cannot start the exporter of OTLP: {e}")))
        }
    };
    config.export.kinds.iter().filter_map(start).collect()
}

fn tell_refused() {
    for line in confine::newly_refused() {
        log::error!("{line}");
    }
}

/// From now on a signal to stop ends the process at once, whatever still waits to be sent.
fn end_at_the_next(signals: Signals) {
    let wait = move || loop {
        match signals.wait_for(logging::PERIOD) {
            Ok(Some(Signal::Hangup) | None) => {}
            Ok(Some(signal)) => {
                log::warn!("{signal} once more: ending at once, what was not sent is lost");
                signals.die_of(signal);
            }
            Err(_) => return,
        }
    };
    if let Err(e) = thread::Builder::new().name("signals".into()).spawn(wait) {
        log::warn!("a second signal will not end it sooner: {e}");
    }
}

/// Waits for a signal. Feeds the watchdog meanwhile, as long as the collector publishes.
fn wait(signals: &Signals, systemd: &Systemd, snapshots: &SnapshotCell) -> io::Result<Signal> {
    let period = systemd.period().unwrap_or(logging::PERIOD).min(logging::PERIOD);
    let mut pulse = Pulse::new(&snapshots.load(), Instant::now());
    loop {
        if pulse.beats(&snapshots.load(), Instant::now()) {
            systemd.alive();
        }
        tell_refused();
        logging::tell_left_out();
        if let Some(signal) = signals.wait_for(period)? {
            return Ok(signal);
        }
    }
}

/// Whether the collector still publishes. A collection that fails is published too: that the kernel refuses something
/// is no reason to be restarted, a collector that hangs is one.
#[derive(Debug)]
struct Pulse {
    sequence: u64,
    since: Instant,
}

impl Pulse {
    /// Begins to watch with `snapshot` being the newest at `now`.
    fn new(snapshot: &Snapshot, now: Instant) -> Self {
        Self { sequence: snapshot.sequence, since: now }
    }

    /// Whether there was a new snapshot lately, `snapshot` being the newest at `now`.
    fn beats(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        if snapshot.sequence != self.sequence {
            *self = Self::new(snapshot, now);
        }
        now.saturating_duration_since(self.since) <= health::stale_after(snapshot.interval)
    }
}

/// What the configuration has observed.
pub(super) fn modules(config: &Config) -> Vec<Box<dyn Module>> {
    let module = |name: &ModuleName| -> Box<dyn Module> {
        match name {
            ModuleName::IoMonitor => Box::new(IoMonitor::new(&config.collector)),
        }
    };
    config.collector.modules.iter().map(module).collect()
}

fn render(page: Page, snapshot: &Snapshot) -> Rendered {
    match page {
        Page::Prometheus => prometheus::text(snapshot).into(),
        Page::OpenMetrics => prometheus::openmetrics(snapshot).into(),
        Page::Stats => json::stats(snapshot).into(),
        Page::Diagnosis => diagnosis::json(snapshot).into(),
        Page::Health => {
            let (health, body) = json::health(snapshot, Instant::now());
            Rendered { status: if health.status == Status::Unhealthy { 503 } else { 200 }, body }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::example;
    use std::time::Duration;

    #[test]
    fn a_collector_that_publishes_nothing_has_no_pulse() {
        let mut snapshot = example::snapshot(); // interval 10 s, so 35 s
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        let mut pulse = Pulse::new(&snapshot, start);
        assert!(pulse.beats(&snapshot, after(35)));
        assert!(!pulse.beats(&snapshot, after(36)));
        // One that failed leaves the time of the data as it was, and has a number of its own.
        snapshot.sequence += 1;
        snapshot.last_error = Some("EINVAL".into());
        assert!(pulse.beats(&snapshot, after(50)));
        assert!(pulse.beats(&snapshot, after(85)));
        assert!(!pulse.beats(&snapshot, after(86)));
    }
}
