//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};
use log::LevelFilter;

use crate::config::nearest;

/// One command.
pub(crate) struct CommandInfo {
    pub command: Command,
    pub name: &'static str,
    /// What its argument may be; empty if it takes none.
    pub argument: &'static [&'static str],
    /// What it does, in one line that fits into the help.
    pub help: &'static str,
}

/// Every command, in the order in which the help shows them.
pub(crate) const COMMANDS: &[CommandInfo] = &[
    command(Command::Run, "run", "Run the agent until SIGTERM or SIGINT; the default"),
    command(Command::Check, "check", "Tell whether this host can run it, and how each probe would attach"),
    command(Command::Health, "health", "Ask the running agent: exit 0 if it is healthy or degraded, else 1"),
    command(Command::Diagnose, "diagnose", "Watch for a while, without a server, and say what goes on"),
    command(Command::Top, "top", "Show what the running agent counts, every 2 seconds"),
    command(Command::Config, "config", "Print the effective configuration, secrets masked"),
    command(Command::Version, "version", "Print version, commit, build time and libbpf version"),
    CommandInfo {
        command: Command::Completions,
        name: "completions",
        argument: &SHELLS,
        help: "Print the completion script of a shell: bash, zsh or fish",
    },
    command(Command::Man, "man", "Print the manual page"),
    command(Command::Help, "help", "Print this help"),
];

/// The shells that there are completions for.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

const fn command(command: Command, name: &'static str, help: &'static str) -> CommandInfo {
    CommandInfo { command, name, argument: &[], help }
}

/// One option.
pub(crate) struct OptionInfo {
    pub short: Option<char>,
    pub long: &'static str,
    /// What its value is called; `None` if it takes none.
    pub value: Option<&'static str>,
    /// What its value may be; empty if that is no list.
    pub values: &'static [&'static str],
    /// What it does, in lines that fit into the help.
    pub help: &'static [&'static str],
}

/// Every option, in the order in which the help shows them.
pub(crate) const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        short: Some('c'),
        long: "config",
        value: Some("FILE"),
        values: &[],
        help: &["Configuration, else /etc/ebpf-sidecar/config.yaml if", "present, else the defaults"],
    },
    OptionInfo {
        short: None,
        long: "log-level",
        value: Some("LEVEL"),
        values: &LEVELS,
        help: &[
            "off, error, warn, info (the default), debug or trace;",
            "check: debug has the kernel's reasons at length",
        ],
    },
    OptionInfo {
        short: None,
        long: "address",
        value: Some("IP:PORT"),
        values: &[],
        help: &[
            "health, top: whom to ask, else the HTTP or gRPC server",
            "of the configuration, on loopback if it has every one",
        ],
    },
    OptionInfo {
        short: None,
        long: "once",
        value: None,
        values: &[],
        help: &["top: end after one table, over two collections"],
    },
    OptionInfo { short: None, long: "files", value: None, values: &[], help: &["top: files instead of processes"] },
    OptionInfo {
        short: None,
        long: "for",
        value: Some("TIME"),
        values: &[],
        help: &["diagnose: how long to watch, 10s to 1h; else 60s"],
    },
    OptionInfo { short: Some('h'), long: "help", value: None, values: &[], help: &["Print this help"] },
    OptionInfo {
        short: Some('V'),
        long: "version",
        value: None,
        values: &[],
        help: &["The same as the command version"],
    },
];

/// What the agent does, in one sentence.
pub(crate) const SUMMARY: &str = "Shows what the kernel does with a database's I/O: page cache, fadvise, reclaim.";

const TAIL: &str = "
Environment:
  EBPF_SIDECAR_<KEY>      Overrides a key of the configuration, upper case with
                          _ for . : EBPF_SIDECAR_SERVER_HTTP_PORT=9000

Exit codes: 0 ok, 1 failed, 2 bad usage or configuration
";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080";

/// What `--help` shows.
pub fn help() -> String {
    let mut text = format!("{SUMMARY}\n\nUsage: ebpf-sidecar [OPTIONS] [COMMAND]\n\nCommands:\n");
    for c in COMMANDS {
        text += &format!("  {:11} {}\n", c.name, c.help);
    }
    text += "\nOptions:\n";
    for o in OPTIONS {
        let short = o.short.map_or("    ".into(), |s| format!("-{s}, "));
        let value = o.value.map_or(String::new(), |v| format!(" {v}"));
        let mut name = format!("{short}--{}{value}", o.long);
        for line in o.help {
            text += &format!("  {name:23} {line}\n");
            name.clear();
        }
    }
    text + TAIL
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Run the agent.
    Run,
    /// Print the version.
    Version,
    /// Look whether the host can run the agent.
    Check,
    /// Ask a running agent for its health.
    Health,
    /// Watch for a while and say what goes on.
    Diagnose,
    /// Show what a running agent counts.
    Top,
    /// Print the effective configuration.
    Config,
    /// Print the completion script of a shell.
    Completions,
    /// Print the manual page.
    Man,
    /// Print [`help`].
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
    /// Whom to ask, if named; only with [`Command::Health`] and [`Command::Top`].
    pub address: Option<SocketAddr>,
    /// One table is enough; only with [`Command::Top`].
    pub once: bool,
    /// Files are shown instead of processes; only with [`Command::Top`].
    pub files: bool,
    /// How long to watch, if named; only with [`Command::Diagnose`].
    pub watch: Option<Duration>,
    /// The argument of the command: one of those that it takes, or `None` if it takes none.
    pub argument: Option<&'static str>,
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
    let (mut command, mut argument, mut config, mut log_level, mut address) = (None, None, None, None, None);
    let (mut once, mut files, mut watch) = (false, false, None);
    while let Some(arg) = parser.next()? {
        let end = match arg {
            Short('h') | Long("help") => Some(Command::Help),
            Short('V') | Long("version") => Some(Command::Version),
            _ => None,
        };
        if let Some(command) = end {
            return Ok(Cli { command, config, log_level, address, once, files, watch, argument });
        }
        match arg {
            Short('c') | Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("log-level") => log_level = Some(parse_level(&parser.value()?.to_string_lossy())?),
            Long("address") => address = Some(parse_address(&parser.value()?.to_string_lossy())?),
            Long("once") => once = true,
            Long("files") => files = true,
            Long("for") => watch = Some(parse_time(&parser.value()?.to_string_lossy())?),
            Value(text) => match (command, argument) {
                (None, _) => command = Some(parse_command(&text.to_string_lossy())?),
                (Some(c), None) if !c.argument.is_empty() => {
                    argument = Some(parse_argument(c, &text.to_string_lossy())?)
                }
                _ => return Err(CliError(format!("unexpected argument {text:?}; allowed: one command"))),
            },
            Long(name) => {
                let known: Vec<String> = OPTIONS.iter().map(|o| format!("--{}", o.long)).collect();
                return Err(unknown("option", &format!("--{name}"), &known));
            }
            Short(letter) => {
                let known: Vec<String> = OPTIONS.iter().filter_map(|o| Some(format!("-{}", o.short?))).collect();
                let (letter, known) = (letter.escape_debug(), known.join(", "));
                return Err(CliError(format!("unknown option \"-{letter}\"; allowed: {known}")));
            }
        }
    }
    if let (Some(c), None) = (command, argument)
        && !c.argument.is_empty()
    {
        return Err(CliError(format!("{} needs an argument; allowed: {}", c.name, c.argument.join(", "))));
    }
    let command = command.map_or(Command::Run, |c| c.command);
    for (given, option) in [(once, "--once"), (files, "--files")] {
        if given && command != Command::Top {
            return Err(CliError(format!("{option} goes with the command top only")));
        }
    }
    if watch.is_some() && command != Command::Diagnose {
        return Err(CliError("--for goes with the command diagnose only".into()));
    }
    if address.is_some() && command != Command::Health && command != Command::Top {
        return Err(CliError(
            "--address goes with the commands health and top only; a server's address is a key of the \
            configuration: EBPF_SIDECAR_SERVER_HTTP_ADDRESS"
                .into(),
        ));
    }
    Ok(Cli { command, config, log_level, address, once, files, watch, argument })
}

fn parse_command(name: &str) -> Result<&'static CommandInfo, CliError> {
    let known = || COMMANDS.iter().map(|c| c.name.to_owned()).collect::<Vec<_>>();
    COMMANDS.iter().find(|c| c.name == name).ok_or_else(|| unknown("command", name, &known()))
}

fn parse_argument(command: &CommandInfo, text: &str) -> Result<&'static str, CliError> {
    let allowed = || format!("{}: {text:?} is not allowed; allowed: {}", command.name, command.argument.join(", "));
    command.argument.iter().find(|a| **a == text).copied().ok_or_else(|| CliError(allowed()))
}

fn parse_address(address: &str) -> Result<SocketAddr, CliError> {
    address.parse().map_err(|_| CliError(format!("--address: {address:?} is not allowed; allowed: {ADDRESS}")))
}

fn parse_time(time: &str) -> Result<Duration, CliError> {
    let seconds = |number: &str, unit| number.parse::<u64>().ok()?.checked_mul(unit);
    let known = match time.trim_end_matches(|c: char| !c.is_ascii_digit()) {
        number if time.ends_with('s') && time.len() == number.len() + 1 => seconds(number, 1),
        number if time.ends_with('m') && time.len() == number.len() + 1 => seconds(number, 60),
        number if time.ends_with('h') && time.len() == number.len() + 1 => seconds(number, 3600),
        _ => None,
    };
    let allowed = || CliError(format!("--for: {time:?} is not allowed; allowed: 10s to 1h, such as 60s or 5m"));
    known.filter(|s| (10..=3600).contains(s)).map(Duration::from_secs).ok_or_else(allowed)
}

fn parse_level(level: &str) -> Result<LevelFilter, CliError> {
    level
        .parse()
        .map_err(|_| CliError(format!("--log-level: {level:?} is not allowed; allowed: {}", LEVELS.join(", "))))
}

fn unknown(what: &str, given: &str, known: &[String]) -> CliError {
    let nearest = nearest(given, known.iter().map(String::as_str));
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
        let cli = |command, config: Option<&str>, log_level| Cli {
            command,
            config: config.map(PathBuf::from),
            log_level,
            address: None,
            once: false,
            files: false,
            watch: None,
            argument: None,
        };
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
        let fish = parse_words("completions --log-level=off fish").unwrap();
        assert_eq!((fish.command, fish.argument), (Command::Completions, Some("fish")));
        let health = parse_words("health --address [::1]:80").unwrap();
        assert_eq!((health.command, health.address), (Command::Health, Some("[::1]:80".parse().unwrap())));
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
            ("completions", ["completions", "needs an argument", "bash, zsh, fish"]),
            ("completions csh", ["completions", "\"csh\"", "bash, zsh, fish"]),
            ("completions bash zsh", ["unexpected", "\"zsh\"", "one command"]),
            ("diagnose --for 60", ["--for", "\"60\"", "10s to 1h"]),
            ("diagnose --for 9s", ["--for", "\"9s\"", "10s to 1h"]),
            ("top --for 60s", ["--for", "diagnose only", ""]),
            ("health --once", ["--once", "top only", ""]),
            ("--files", ["--files", "top only", ""]),
            ("health --address localhost", ["--address", "\"localhost\"", "allowed: an IP address and a port"]),
            ("--address 127.0.0.1:80", ["--address", "health and top only", "EBPF_SIDECAR_SERVER_HTTP_ADDRESS"]),
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
    fn help_is_as_wide_as_a_terminal_and_every_option_in_it_is_taken() {
        let help = help();
        assert!(help.lines().all(|l| l.len() <= 80 && l.trim_end() == l), "{help}");
        for o in OPTIONS {
            let value = match o.long {
                "log-level" => Some("info"),
                "address" => Some("127.0.0.1:1"),
                "for" => Some("5m"),
                _ => o.value,
            };
            for option in o.short.map(|s| format!("-{s}")).into_iter().chain([format!("--{}", o.long)]) {
                assert!(help.contains(&option), "{option}");
                let command = match o.long {
                    "once" | "files" => "top",
                    "for" => "diagnose",
                    _ => "health",
                };
                let words = [command, &option].into_iter().chain(value).map(OsString::from);
                assert!(parse(words).is_ok(), "{option}");
            }
        }
        for c in COMMANDS {
            assert!(help.contains(&format!("\n  {} ", c.name)), "{}", c.name);
            let line = format!("{} {}", c.name, c.argument.first().unwrap_or(&""));
            assert_eq!(parse_words(&line).unwrap().command, c.command);
        }
    }
}
