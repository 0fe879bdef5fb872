//! Wiring of the agent: command line, configuration, collector, servers, signals. Every failure is printed
//! here, once, and the exit code is chosen here: 0 ok, 1 failed, 2 bad usage or configuration.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ebpf_sidecar::api::Api;
use ebpf_sidecar::collector::Collector;
use ebpf_sidecar::commands::cli::{self, Cli, Command};
use ebpf_sidecar::commands::{check as preflight, health as healthcheck, man as manual, top};
use ebpf_sidecar::config::{self, Config, ExportKind, ModuleName};
use ebpf_sidecar::ebpf::{object, os};
use ebpf_sidecar::export::{banyandb, json, prometheus};
use ebpf_sidecar::host::systemd::{Pulse, Systemd};
use ebpf_sidecar::host::time::rfc3339;
use ebpf_sidecar::host::{logging, pod, version};
use ebpf_sidecar::metrics::health::Status;
use ebpf_sidecar::metrics::snapshot::{Snapshot, SnapshotCell};
use ebpf_sidecar::monitor::Module;
use ebpf_sidecar::monitor::iomonitor::IoMonitor;
use ebpf_sidecar::server::grpc;
use ebpf_sidecar::server::http::gateway::Gateway;
use ebpf_sidecar::server::http::{self, Page, Rendered};

/// How long `health` waits: less than probes of containers usually do.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => ExitCode::from(code),
    }
}

/// Prints why the agent ends, and gives its exit code.
fn fail(code: u8, why: impl Display) -> u8 {
    eprintln!("ebpf-sidecar: {why}");
    code
}

fn dispatch() -> Result<(), u8> {
    let cli = cli::parse(std::env::args_os().skip(1)).map_err(|e| fail(BAD_USAGE, e))?;
    match cli.command {
        Command::Help => say(&cli::help()),
        // The parser lets no other shell through.
        Command::Completions => say(&manual::completions(cli.argument.unwrap_or_default())),
        Command::Man => say(&manual::page()),
        Command::Version => say(&version_text()),
        Command::Config => {
            let config = load_config(&cli)?;
            say(&config::print(&config))
        }
        Command::Health => {
            let address = match cli.address {
                Some(address) => address,
                None => {
                    let http = load_config(&cli)?.server.http;
                    healthcheck::local(http.address, http.port)
                }
            };
            let line = healthcheck::ask(address, HEALTH_LIMIT).map_err(|e| fail(FAILED, e))?;
            say(&format!("{line}\n"))
        }
        Command::Top => {
            let address = match cli.address {
                Some(address) => address,
                None => {
                    let grpc = load_config(&cli)?.server.grpc;
                    if !grpc.enabled {
                        return Err(fail(FAILED, "top asks over gRPC, which server.grpc.enabled switches off"));
                    }
                    if grpc.tls.enabled {
                        return Err(fail(FAILED, "top speaks no TLS, which server.grpc.tls.enabled asks for"));
                    }
                    healthcheck::local(grpc.address, grpc.port)
                }
            };
            top::run(address, cli.once).map_err(|e| fail(FAILED, e))
        }
        Command::Check => {
            let (report, would_run) = preflight::check(&load(&cli)?);
            say(&report)?;
            if would_run { Ok(()) } else { Err(FAILED) }
        }
        Command::Run => run(&load(&cli)?, cli.log_level.unwrap_or(log::LevelFilter::Info)),
    }
}

fn load_config(cli: &Cli) -> Result<Config, u8> {
    config::load(cli.config.as_deref()).map_err(|e| fail(BAD_USAGE, e))
}

/// The configuration, checked against this host as well.
fn load(cli: &Cli) -> Result<Config, u8> {
    config::load_for_host(cli.config.as_deref(), preflight::no_cgroup, pod::scope).map_err(|e| fail(BAD_USAGE, e))
}

/// Writes to stdout; a reader that has gone (`| head`) is no failure worth words.
fn say(text: &str) -> Result<(), u8> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|_| FAILED)
}

fn version_text() -> String {
    let built = version::BUILD_TIME.parse().unwrap_or(0);
    format!(
        "ebpf-sidecar {}\ncommit {}\nbuilt {}\nlibbpf {}\n",
        version::VERSION,
        version::COMMIT,
        rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(built)),
        object::libbpf_version()
    )
}

fn run(config: &Config, level: log::LevelFilter) -> Result<(), u8> {
    logging::start(level);
    // Both belong to the first thread: the others inherit the blocked signals and the mount namespace.
    let signals = os::StopSignals::block().map_err(|e| fail(FAILED, format!("cannot block signals: {e}")))?;
    match os::mount_tracefs_privately() {
        Ok(true) => log::info!("tracefs was not mounted: mounted it for this process alone"),
        Ok(false) => {}
        Err(e) => log::warn!("no tracefs: {e}"),
    }
    os::raise_memlock();
    os::share_heap();
    log::info!("ebpf-sidecar {} ({}), Linux {}", version::VERSION, version::COMMIT, os::kernel_release());

    let scope = config.collector.scope.to_string();
    log::info!("counting {} every {:?}", preflight::scope_words(&config.collector), config.collector.interval);
    let (interval, history) = (config.collector.interval, config.collector.history);
    let collector = Collector::start(modules(config), interval, scope.clone(), history).map_err(|e| {
        let hint = preflight::missing_privilege(false).map(|h| format!("\n{h}")).unwrap_or_default();
        fail(FAILED, format!("{e}{hint}"))
    })?;
    // What loading took is gone before gRPC takes its own.
    os::unmap_start();
    let api = Arc::new(Api::new(collector.snapshots(), collector.control(), config.server.allow_configure));
    let address = SocketAddr::new(config.server.http.address, config.server.http.port);
    let path = &config.server.http.metrics_path;
    let gateway = Gateway::new(Arc::clone(&api), config.server.http.hosts.clone());
    let http = http::start(address, path, collector.snapshots(), Box::new(render), Some(gateway))
        .map_err(|e| fail(FAILED, e))?;
    log::info!("HTTP: http://{address}/ {} /health /api/v1/stats", config.server.http.metrics_path);
    let grpc = match &config.server.grpc {
        config if config.enabled => {
            let grpc = grpc::start(config, api).map_err(|e| fail(FAILED, e))?;
            log::info!("gRPC: {} {}", grpc.address(), if config.tls.enabled { "with TLS" } else { "without TLS" });
            Some(grpc)
        }
        _ => None,
    };
    let exporter = match config.export.kind {
        ExportKind::Prometheus => None,
        ExportKind::BanyanDb => {
            let banyandb = &config.export.banyandb;
            log::info!("BanyanDB: sending to {}, group {}", banyandb.endpoint, banyandb.group);
            let started = banyandb::start(banyandb, &collector.snapshots());
            Some(started.map_err(|e| fail(FAILED, format!("cannot start the exporter to BanyanDB: {e}")))?)
        }
    };

    os::unmap_start();
    let systemd = Systemd::from_env();
    systemd.ready(&format!("counting {scope}; http://{address}"));
    let signal = wait(&signals, &systemd, &collector.snapshots())
        .map_err(|e| fail(FAILED, format!("cannot wait for signals: {e}")))?;
    log::info!("{signal}: stopping");
    systemd.stopping();
    if let Some(exporter) = exporter {
        exporter.stop();
    }
    drop(grpc);
    http.stop();
    collector.stop().map_err(|e| fail(FAILED, format!("the collector had failed: {e}")))
}

/// Waits for a signal to stop. Feeds the watchdog meanwhile, as long as the collector publishes.
fn wait(signals: &os::StopSignals, systemd: &Systemd, snapshots: &SnapshotCell) -> io::Result<&'static str> {
    let Some(period) = systemd.period() else { return signals.wait() };
    let mut pulse = Pulse::new(&snapshots.load(), Instant::now());
    loop {
        if pulse.beats(&snapshots.load(), Instant::now()) {
            systemd.alive();
        }
        if let Some(signal) = signals.wait_for(period)? {
            return Ok(signal);
        }
    }
}

fn modules(config: &Config) -> Vec<Box<dyn Module>> {
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
        Page::Health => {
            let (health, body) = json::health(snapshot, Instant::now());
            Rendered { status: if health.status == Status::Unhealthy { 503 } else { 200 }, body }
        }
    }
}
