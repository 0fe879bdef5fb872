//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};
use log::LevelFilter;

use crate::config::nearest;

/// What `--help` shows.
pub const HELP: &str = "\
Shows what the kernel does with a database's I/O: page cache, fadvise, reclaim.

Usage: ebpf-sidecar [OPTIONS] [COMMAND]

Commands:
  run       Run the agent until SIGTERM or SIGINT; the default
  check     Tell whether this host can run it, and how each probe would attach
  config    Print the effective configuration, secrets masked
  version   Print version, commit, build time and libbpf version
  help      Print this help

Options:
  -c, --config FILE       Configuration, else /etc/ebpf-sidecar/config.yaml if
                          present, else the defaults
      --log-level LEVEL   off, error, warn, info (the default), debug or trace
  -h, --help              Print this help
  -V, --version           The same as the command version

Environment:
  EBPF_SIDECAR_<KEY>      Overrides a key of the configuration, upper case with
                          _ for . : EBPF_SIDECAR_SERVER_HTTP_PORT=9000

Exit codes: 0 ok, 1 failed, 2 bad usage or configuration
";

const COMMANDS: [&str; 5] = ["run", "check", "config", "version", "help"];
const OPTIONS: [&str; 4] = ["--config", "--log-level", "--help", "--version"];
const LEVELS: &str = "off, error, warn, info, debug, trace";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Run the agent.
    Run,
    /// Print the version.
    Version,
    /// Look whether the host can run the agent.
    Check,
    /// Print the effective configuration.
    Config,
    /// Print [`HELP`].
    Help,
}

/// The command line, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cli {
    /// What to do.
    pub command: Command,
    /// The configuration file, if named.
    pub config: Option<PathBuf>,
    /// How much to log, if named.
    pub log_level: Option<LevelFilter>,
}

/// What is wrong with the command line, in one line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError(String);

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CliError {}

impl From<lexopt::Error> for CliError {
    fn from(e: lexopt::Error) -> Self {
        CliError(e.to_string())
    }
}

/// Parses the arguments that follow the program's name. A request for help or the version ends it there.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, CliError> {
    let mut parser = lexopt::Parser::from_args(args);
    let (mut command, mut config, mut log_level) = (None, None, None);
    while let Some(arg) = parser.next()? {
        let end = match arg {
            Short('h') | Long("help") => Some(Command::Help),
            Short('V') | Long("version") => Some(Command::Version),
            _ => None,
        };
        if let Some(command) = end {
            return Ok(Cli { command, config, log_level });
        }
        match arg {
            Short('c') | Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("log-level") => log_level = Some(parse_level(&parser.value()?.to_string_lossy())?),
            Value(name) if command.is_none() => command = Some(parse_command(&name.to_string_lossy())?),
            Value(extra) => {
                return Err(CliError(format!("unexpected argument {extra:?}; allowed: one command")));
            }
            Long(name) => return Err(unknown("option", &format!("--{name}"), &OPTIONS)),
            Short(letter) => {
                return Err(CliError(format!("unknown option \"-{}\"; allowed: -c, -h, -V", letter.escape_debug())));
            }
        }
    }
    Ok(Cli { command: command.unwrap_or(Command::Run), config, log_level })
}

fn parse_command(name: &str) -> Result<Command, CliError> {
    Ok(match name {
        "run" => Command::Run,
        "check" => Command::Check,
        "config" => Command::Config,
        "version" => Command::Version,
        "help" => Command::Help,
        _ => return Err(unknown("command", name, &COMMANDS)),
    })
}

fn parse_level(level: &str) -> Result<LevelFilter, CliError> {
    level.parse().map_err(|_| CliError(format!("--log-level: {level:?} is not allowed; allowed: {LEVELS}")))
}

fn unknown(what: &str, given: &str, known: &[&str]) -> CliError {
    let nearest = nearest(given, known.iter().copied());
    CliError(format!("unknown {what} {given:?}; the nearest is {nearest}; allowed: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Cli, CliError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn commands_and_options_in_any_order() {
        let cli =
            |command, config: Option<&str>, log_level| Cli { command, config: config.map(PathBuf::from), log_level };
        for (line, expected) in [
            ("", cli(Command::Run, None, None)),
            ("run", cli(Command::Run, None, None)),
            ("version", cli(Command::Version, None, None)),
            ("-V", cli(Command::Version, None, None)),
            ("--version", cli(Command::Version, None, None)),
            ("help", cli(Command::Help, None, None)),
            ("check -h", cli(Command::Help, None, None)),
            ("--help --bogus", cli(Command::Help, None, None)),
            ("-c a.yaml check", cli(Command::Check, Some("a.yaml"), None)),
            ("check --config=a.yaml", cli(Command::Check, Some("a.yaml"), None)),
            ("--log-level debug config -ca.yaml", cli(Command::Config, Some("a.yaml"), Some(LevelFilter::Debug))),
            ("--log-level=off", cli(Command::Run, None, Some(LevelFilter::Off))),
        ] {
            assert_eq!(parse_words(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong_and_what_is_allowed() {
        for (line, parts) in [
            ("chekc", ["\"chekc\"", "nearest is check", "run, check"]),
            ("--confg x", ["\"--confg\"", "nearest is --config", "--log-level"]),
            ("-x", ["\"-x\"", "allowed", "-c"]),
            ("check run", ["\"run\"", "allowed", "one command"]),
            ("--config", ["--config", "missing", "argument"]),
            ("--log-level loud", ["--log-level", "\"loud\"", "off, error, warn, info, debug, trace"]),
        ] {
            let message = parse_words(line).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{line}: {message}");
            }
        }
    }

    #[test]
    fn arguments_need_not_be_utf8() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(b"\xff".to_vec());
        assert_eq!(parse(["-c".into(), odd()]).unwrap().config, Some(PathBuf::from(odd())));
        assert!(parse([odd()]).is_err());
        assert!(parse(["--log-level".into(), odd()]).is_err());
    }

    #[test]
    fn help_names_every_command_and_option() {
        for name in COMMANDS.iter().chain(&OPTIONS) {
            assert!(HELP.contains(name), "{name}");
        }
        assert!(HELP.lines().all(|l| l.len() <= 80));
    }
}
