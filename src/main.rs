//! From arguments to a command. Every failure is printed here, once, and the exit code is chosen here: 0 ok,
//! 1 failed, 2 bad usage or configuration.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use ebpf_sidecar::commands::cli::{self, Cli, Command};
use ebpf_sidecar::commands::{check, client, diagnose, health, man, run, top};
use ebpf_sidecar::config::{self, Config};
use ebpf_sidecar::ebpf::object;
use ebpf_sidecar::host::time::rfc3339;
use ebpf_sidecar::host::{logging, scope, version};

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
        Command::Completions => say(&man::completions(cli.argument.unwrap_or_default())),
        Command::Man => say(&man::page()),
        Command::Version => say(&version_text()),
        Command::Config => {
            let config = load_config(&cli)?;
            say(&config::print(&config))
        }
        Command::Health => {
            let config = load_config(&cli)?;
            let http = &config.server.http;
            let address = cli.address.unwrap_or_else(|| health::local(http.address, http.port));
            let how = client::http(&config).map_err(|e| fail(FAILED, e))?;
            let line = health::ask(address, &how, HEALTH_LIMIT).map_err(|e| fail(FAILED, e))?;
            say(&format!("{line}\n"))
        }
        Command::Top => {
            let config = load_config(&cli)?;
            let grpc = &config.server.grpc;
            if !grpc.enabled && cli.address.is_none() {
                return Err(fail(FAILED, "top asks over gRPC, which server.grpc.enabled switches off"));
            }
            let address = cli.address.unwrap_or_else(|| health::local(grpc.address, grpc.port));
            let how = client::grpc(&config, address.ip()).map_err(|e| fail(FAILED, e))?;
            top::run(address, how, cli.once, cli.files).map_err(|e| fail(FAILED, e))
        }
        Command::Diagnose => {
            let report = diagnose::run(&load(&cli)?, cli.watch, cli.log_level).map_err(|e| fail(FAILED, e))?;
            say(&report)
        }
        Command::Check => {
            // At debug level it tells the long reasons too.
            if let Some(level) = cli.log_level {
                logging::start(level);
            }
            let (report, would_run) = check::check(&load(&cli)?);
            say(&report)?;
            if would_run { Ok(()) } else { Err(FAILED) }
        }
        Command::Run => {
            let read = || config::load_for_host(cli.config.as_deref(), scope::fit);
            run::run(&load(&cli)?, cli.config.as_deref(), &read, cli.log_level).map_err(|e| fail(FAILED, e))
        }
    }
}

fn load_config(cli: &Cli) -> Result<Config, u8> {
    config::load(cli.config.as_deref()).map_err(|e| fail(BAD_USAGE, e))
}

/// The configuration, checked against this host as well.
fn load(cli: &Cli) -> Result<Config, u8> {
    config::load_for_host(cli.config.as_deref(), scope::fit).map_err(|e| fail(BAD_USAGE, e))
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
