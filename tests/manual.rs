//! The manual page and the completion scripts, judged by the programs that they are for.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{TempDir, output, skipped, text, wait_for};

/// What the binary prints, in a file.
fn made(dir: &TempDir, name: &str, args: &[&str]) -> PathBuf {
    let o = output(args, &[]);
    assert!(o.status.success() && o.stderr.is_empty() && !o.stdout.is_empty(), "{o:?}");
    let file = dir.path.join(name);
    fs::write(&file, o.stdout).unwrap();
    file
}

/// Runs a program that ends by itself; `None` if it is not installed.
fn run(command: &mut Command) -> Option<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let status = wait_for(&mut child, Duration::from_secs(60));
    let o = child.wait_with_output().unwrap();
    assert!(status.is_some(), "it does not end: {}", String::from_utf8_lossy(&o.stdout));
    Some(o)
}

/// Its lines, if it has nothing to complain of.
fn lines(o: &Output) -> Vec<String> {
    assert!(o.status.success() && o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
    String::from_utf8(o.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

const COMMANDS: [&str; 10] =
    ["run", "check", "health", "diagnose", "top", "config", "version", "completions", "man", "help"];

#[test]
fn man_shows_the_page_without_a_warning() {
    const TEST: &str = "man_shows_the_page_without_a_warning";
    let dir = TempDir::new("man");
    let page = made(&dir, "ebpf-sidecar.8", &["man"]);
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-l", text(&page)]).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
    let Some(shown) = run(&mut man) else { return skipped(TEST, "man is not installed") };
    let shown = lines(&shown);
    if shown.iter().all(|l| l.trim().is_empty()) || shown.iter().any(|l| l.contains("minimized")) {
        return skipped(TEST, "the man of this machine shows no pages");
    }
    for command in COMMANDS {
        let begins = |l: &String| l.trim_start().split(' ').next() == Some(command);
        assert!(shown.iter().any(begins), "{command} is not in\n{}", shown.join("\n"));
    }
    let all = shown.join("\n");
    for part in ["-c, --config FILE", "collector.scope.pod_uid, EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID", "EXIT STATUS"] {
        assert!(all.contains(part), "{part} is not in\n{all}");
    }
}

#[test]
fn bash_completes() {
    let dir = TempDir::new("bash");
    let script = made(&dir, "completions", &["completions", "bash"]);
    // As bash calls it: the words so far, of which the last is being typed. compopt works only in bash's own call.
    let complete = |words: &[&str]| {
        let call = r#". "$1"; shift; compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ebpf_sidecar
                      printf '%s\n' "${COMPREPLY[@]}""#;
        run(Command::new("bash").args(["-uc", call, "bash", text(&script), "ebpf-sidecar"]).args(words))
    };
    let Some(first) = complete(&[""]) else { return skipped("bash_completes", "bash is not installed") };
    let first = lines(&first);
    assert_eq!(first[..COMMANDS.len()], COMMANDS);
    assert!(first.contains(&"--log-level".to_owned()), "{first:?}");
    let of = |words: &[&str]| lines(&complete(words).unwrap());
    assert_eq!(of(&["ch"]), ["check"]);
    assert_eq!(of(&["check", "--co"]), ["--config"]);
    assert_eq!(of(&["check", "r"]), [""]);
    assert_eq!(of(&["--log-level", "d"]), ["debug"]);
    assert_eq!(of(&["--log-level", "="]), ["off", "error", "warn", "info", "debug", "trace"]);
    assert_eq!(of(&["--log-level", "=", "t"]), ["trace"]);
    assert_eq!(of(&["completions", ""]), ["bash", "zsh", "fish"]);
    assert_eq!(of(&["-c", text(&script)]), [text(&script)]);
    assert_eq!(of(&["health", "--address", ""]), [""]);
}

#[test]
fn fish_completes() {
    let dir = TempDir::new("fish");
    let script = made(&dir, "completions", &["completions", "fish"]);
    let complete = |line: &str| {
        let call = format!("source {}; complete -C '{line}'", text(&script));
        run(Command::new("fish").args(["--no-config", "-c", &call]).env("HOME", &dir.path))
    };
    let Some(first) = complete("ebpf-sidecar ") else { return skipped("fish_completes", "fish is not installed") };
    // The word, a tab, the description.
    let words = |o: &Output| -> Vec<String> {
        let mut words: Vec<String> = lines(o).iter().map(|l| l.split('\t').next().unwrap().to_owned()).collect();
        words.sort();
        words
    };
    let mut commands = COMMANDS.map(str::to_owned);
    commands.sort();
    assert_eq!(words(&first), commands);
    let of = |line: &str| words(&complete(line).unwrap());
    assert_eq!(of("ebpf-sidecar completions "), ["bash", "fish", "zsh"]);
    assert_eq!(of("ebpf-sidecar check --lo"), ["--log-level"]);
    assert_eq!(of("ebpf-sidecar --log-level d"), ["debug"]);
}

#[test]
fn zsh_completes() {
    let dir = TempDir::new("zsh");
    made(&dir, "_ebpf-sidecar", &["completions", "zsh"]);
    // Only a terminal has completion: a second zsh in one, which is typed to. What it shows is printed.
    let terminal = r#"
        zmodload zsh/zpty
        zpty z zsh -f -i
        zpty -w z "PS1=; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; print RE''ADY"
        zpty -r -m z shown '*READY*'
        for typed expected in \
            'hea' 'health' '--log-level wa' 'warn' '--log-level=tr' 'trace' 'completions fi' 'fish'
        do
            zpty -w -n z "ebpf-sidecar $typed"$'\t'
            zpty -r -m z shown "*ebpf-sidecar*$expected*"
            zpty -w -n z $'\C-u'
            print -r - "$expected"
        done
        zpty -d z"#;
    let mut zsh = Command::new("zsh");
    zsh.args(["-f", "-c", terminal, "zsh", text(&dir.path)]).env("HOME", &dir.path).env("TERM", "dumb");
    match run(&mut zsh) {
        Some(o) => assert_eq!(lines(&o), ["health", "warn", "trace", "fish"]),
        None => skipped("zsh_completes", "zsh is not installed"),
    }
}
