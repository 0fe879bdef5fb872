//! The manual page and the completion scripts of shells, made from the tables of commands, options and keys.

use std::time::{Duration, SystemTime};

use crate::commands::cli::{COMMANDS, OPTIONS, OptionInfo, SUMMARY};
use crate::config::{self, DEFAULT_PATH};
use crate::host::time::rfc3339;
use crate::host::version;

/// The completion script of a shell; empty for one that there is none for.
pub fn completions(shell: &str) -> String {
    match shell {
        "bash" => bash(),
        "zsh" => zsh(),
        "fish" => fish(),
        _ => String::new(),
    }
}

// ---- completion ----

/// Both names of an option as they are typed.
fn spellings(option: &OptionInfo) -> Vec<String> {
    option.short.map(|s| format!("-{s}")).into_iter().chain([format!("--{}", option.long)]).collect()
}

fn command_names() -> String {
    COMMANDS.iter().map(|c| c.name).collect::<Vec<_>>().join(" ")
}

fn bash() -> String {
    let mut after = String::new();
    for option in OPTIONS.iter().filter(|o| o.value.is_some()) {
        let names = spellings(option).join("|");
        after += &format!("    {names}) words='{}'", option.values.join(" "));
        if option.value == Some("FILE") {
            after += " files=1";
        }
        after += " ;;\n";
    }
    let mut arguments = String::new();
    for command in COMMANDS.iter().filter(|c| !c.argument.is_empty()) {
        arguments += &format!("        {}) words='{}' ;;\n", command.name, command.argument.join(" "));
    }
    let options: Vec<String> = OPTIONS.iter().flat_map(spellings).collect();
    format!(
        r#"# bash completion for ebpf-sidecar; made by: ebpf-sidecar completions bash
_ebpf_sidecar() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} word words files= commands='{commands}'
    COMPREPLY=()
    # bash takes --option=value for three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    words="$commands {options}"
    # After a command there are only its arguments and options.
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word && " $commands " == *" $word "* ]] && words='{options}'
    done
    case $prev in
{after}    *)
        case $prev in
{arguments}        esac ;;
    esac
    if [[ $files ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}}
complete -F _ebpf_sidecar ebpf-sidecar
"#,
        commands = command_names(),
        options = options.join(" "),
    )
}

fn zsh() -> String {
    // Inside of single quotes; : and ] end the parts of a specification.
    let escape = |text: &str| text.replace('\'', "'\\''").replace(']', "\\]").replace(':', "\\:");
    let mut text = "#compdef ebpf-sidecar\n# made by: ebpf-sidecar completions zsh\n\n_arguments -S \\\n".to_owned();
    for option in OPTIONS {
        let value = match (option.value, option.values) {
            (None, _) => String::new(),
            (Some("FILE"), _) => ":file:_files".into(),
            (Some(_), []) => format!(":{}: ", option.long),
            (Some(_), values) => format!(":{}:({})", option.long, values.join(" ")),
        };
        let names = spellings(option);
        let equals = if option.value.is_some() { "=" } else { "" };
        let help = escape(&option.help.join(" "));
        for name in &names {
            // Only a long one may be followed by =.
            let equals = if name.starts_with("--") { equals } else { "" };
            text += &format!("  '({}){name}{equals}[{help}]{value}' \\\n", names.join(" "));
        }
    }
    let commands: Vec<String> = COMMANDS.iter().map(|c| format!("{}\\:\"{}\"", c.name, escape(c.help))).collect();
    text += &format!("  '1:command:(({}))' \\\n", commands.join(" "));
    // `words` holds what was typed.
    let arguments = COMMANDS.iter().filter(|c| !c.argument.is_empty());
    let arguments: Vec<String> =
        arguments.map(|c| format!("(( $words[(Ie){}] )) && compadd {}", c.name, c.argument.join(" "))).collect();
    text + &format!("  '2:argument:{{ {} }}'\n", arguments.join("; "))
}

fn fish() -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut text = "# made by: ebpf-sidecar completions fish\ncomplete -c ebpf-sidecar -f\n".to_owned();
    for option in OPTIONS {
        let short = option.short.map_or(String::new(), |s| format!(" -s {s}"));
        let value = match (option.value, option.values) {
            (None, _) => String::new(),
            (Some("FILE"), _) => " -r -F".into(),
            (Some(_), values) => format!(" -x -a {}", quote(&values.join(" "))),
        };
        let help = quote(&option.help.join(" "));
        text += &format!("complete -c ebpf-sidecar{short} -l {}{value} -d {help}\n", option.long);
    }
    let none_yet = quote(&format!("not __fish_seen_subcommand_from {}", command_names()));
    for command in COMMANDS {
        text += &format!("complete -c ebpf-sidecar -n {none_yet} -a {} -d {}\n", command.name, quote(command.help));
        for argument in command.argument {
            let seen = quote(&format!("__fish_seen_subcommand_from {}", command.name));
            text += &format!("complete -c ebpf-sidecar -n {seen} -a {argument}\n");
        }
    }
    text
}

// ---- the manual page ----

/// The manual page, in the man macros.
pub fn page() -> String {
    let built = SystemTime::UNIX_EPOCH + Duration::from_secs(version::BUILD_TIME.parse().unwrap_or(0));
    let (date, version) = (rfc3339(built), version::VERSION);
    let day = date.split('T').next().unwrap_or_default();
    let mut text = format!(
        ".TH EBPF\\-SIDECAR 8 \"{day}\" \"ebpf\\-sidecar {version}\"\n.ad l\n.nh\n.SH NAME\nebpf\\-sidecar \\- \
         page cache, fadvise and reclaim of a database, seen from the kernel\n.SH SYNOPSIS\n.B ebpf\\-sidecar\n\
         [\\fIOPTIONS\\fR] [\\fICOMMAND\\fR]\n.SH DESCRIPTION\n{}\n\
         Prometheus fetches the metrics over HTTP; /health tells whether they can be trusted.\n.SH COMMANDS\n",
        roff(SUMMARY)
    );
    for c in COMMANDS {
        let argument = if c.argument.is_empty() { String::new() } else { format!(" \\fI{}\\fR", c.argument.join("|")) };
        text += &format!(".TP\n\\fB{}\\fR{argument}\n{}.\n", roff(c.name), roff(c.help));
    }
    text += ".SH OPTIONS\n";
    for o in OPTIONS {
        let names: Vec<String> = spellings(o).iter().map(|s| format!("\\fB{}\\fR", roff(s))).collect();
        let value = o.value.map_or(String::new(), |v| format!(" \\fI{}\\fR", roff(v)));
        text += &format!(".TP\n{}{value}\n{}.\n", names.join(", "), roff(&o.help.join(" ")));
    }
    text += ".SH CONFIGURATION\nA YAML file, whose keys the environment overrides. Each key with its variable, its \
             meaning, what is allowed and the default:\n";
    for key in config::reference() {
        let default = key.default.as_deref().unwrap_or("none");
        text += &format!(
            ".TP\n\\fB{}\\fR, \\fB{}\\fR\n{}\nAllowed: {}. Default: {}.\n",
            roff(key.path),
            roff(&key.variable),
            roff(key.help),
            roff(key.allowed),
            roff(default).replace(',', ",\\:") // where a long list may be broken
        );
    }
    text + &format!(
        ".SH FILES\n.TP\n.I {}\nThe configuration, if \\-\\-config names no other.\n.SH EXIT STATUS\n\
         0 ok, 1 failed, 2 bad usage or configuration.\n.SH SIGNALS\nSIGTERM and SIGINT end it: everything that was \
         attached is detached.\n.SH SEE ALSO\n.BR bpftool (8),\n.BR systemd (1)\n",
        roff(DEFAULT_PATH)
    )
}

/// Text that is no markup: nothing in it is a request or an escape, and - is the ASCII one.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_option_and_key() {
        let page = page();
        for c in COMMANDS {
            assert!(page.contains(&format!("\n\\fB{}\\fR", c.name)), "{}", c.name);
        }
        for o in OPTIONS {
            assert!(page.contains(&format!("\\fB\\-\\-{}\\fR", roff(o.long))), "{}", o.long);
        }
        for key in config::reference() {
            assert!(page.contains(&format!(".TP\n\\fB{}\\fR, \\fBEBPF_SIDECAR_", key.path)), "{}", key.path);
        }
        assert!(page.lines().all(|l| l.is_ascii() && !l.is_empty() && !l.ends_with("..")), "{page}");
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(roff(".SH a\\fB-b"), "\\&.SH a\\efB\\-b");
    }
}
