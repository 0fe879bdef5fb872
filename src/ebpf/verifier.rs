//! What a user can make of the verifier's log, which is written for those who write programs.

/// Words of the verifier (in lower case), and what they mean with what to do. The first that occurs is taken.
const MEANINGS: &[(&[&str], &str)] = &[
    // What libbpf puts in the place of an access to a field that it does not find.
    (&["#195896080"], "it reads a field that this kernel does not have, or that could not be found without BTF"),
    (
        &["unknown func", "invalid func", "kernel function", "not found in kernel", "program of this type cannot use"],
        "this kernel lacks what the program uses: nothing to do if the probe is attached in another way, \
         else it takes a newer kernel",
    ),
    (
        &["too large", "too complex", "too many"],
        "the program is larger than this kernel's verifier follows: it takes a newer kernel; please report it",
    ),
    (
        &["back-edge", "infinite loop"],
        "the kernel sees a loop that may not end: a bug of the agent or of the kernel; please report it",
    ),
    (
        &[
            "invalid mem access",
            "invalid access",
            "context access",
            "allowed memory",
            "unbounded",
            "min value",
            "max value",
            "misaligned",
            "from stack",
            "to stack",
            "stack off",
            "type=",
            "!read_ok",
        ],
        "the kernel could not prove an access of the program to be safe: a bug of the agent or of the kernel; \
         please report it",
    ),
];
const OTHERWISE: &str = "a bug of the agent or of the kernel; please report it";

/// What its refusal of a helper means where the kernel's memory may not be read.
const CONFIDENTIAL: &str = "lockdown=confidentiality forbids programs to read the kernel's memory";

/// The verifier's own reason in a few words; and one line with it, the line of our source, what it means and what to do.
pub fn explain(log: &str, confidential: bool) -> (String, String) {
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    let Some(last) = lines.iter().rposition(|l| is_reason(l)) else {
        let words = "the kernel's verifier refused it without a word: see the kernel's log (dmesg)";
        return (words.into(), words.into());
    };
    // Some reasons take two lines.
    let first = last - usize::from(last > 0 && is_reason(lines[last - 1]));
    let reason = lines[first..=last].join("; ");
    let source = lines[..first].iter().rev().find_map(|l| l.strip_prefix(';'));
    let at = source.map(|s| format!(" at `{}`", s.trim())).unwrap_or_default();
    let lower = reason.to_lowercase();
    let hides_memory =
        confidential && ["bpf_probe_read", "bpf_get_stack", "unknown func"].iter().any(|w| lower.contains(w));
    let meaning = match MEANINGS.iter().find(|(words, _)| words.iter().any(|w| lower.contains(w))) {
        _ if hides_memory => CONFIDENTIAL,
        found => found.map_or(OTHERWISE, |(_, m)| m),
    };
    let short = if hides_memory { CONFIDENTIAL.to_owned() } else { format!("refused by the verifier: {reason}") };
    (short, format!("the kernel's verifier refused it: {reason}{at}: {meaning}"))
}

/// Whether a line is the verifier's own words, rather than an instruction, the state of registers, our source or
/// statistics.
fn is_reason(line: &str) -> bool {
    const NOISE: &[&str] = &[
        ";",
        "from ",
        "processed ",
        "verification time",
        "stack depth",
        "func#",
        "arg#",
        "last_idx",
        "first_idx",
        "regs=",
        "cur state",
        "old state",
        "mark_precise",
        "parent ",
        "propagating ",
        "caller",
        "callee",
        "returning from ",
        "Validating ",
        "Func#",
        "reg type unsupported",
        "frame",
        "fp-",
    ];
    // `12: (85) call bpf_x#1`, `12: R0=ctx() fp-8=0`
    let numbered = line.split_once(':').is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    // `R1_w=ctx()`, not `R1 type=scalar`
    let register = line.strip_prefix('R').is_some_and(|rest| {
        let word = rest.split(' ').next().unwrap_or_default();
        rest.starts_with(|c: char| c.is_ascii_digit()) && word.contains('=')
    });
    !line.is_empty() && !numbered && !register && !NOISE.iter().any(|n| line.starts_with(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs as kernels wrote them, and the lines made of them.
    const LOGS: [(&str, &str, &str); 4] = [
        (
            // 6.1, the tracepoint of reads
            "; space = bpf_rdonly_cast((void *)mapping, bpf_core_type_id_kernel(struct address_space));\n\
             20: (bf) r1 = r7                      ; R1_w=scalar(id=2) R7=scalar(id=2)\n\
             21: (18) r2 = 0x18f                   ; R2_w=399\n\
             23: (85) call unknown#2002000000\n\
             invalid func unknown#2002000000\n\
             processed 23 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 1\n",
            "invalid func unknown#2002000000 at `space = bpf_rdonly_cast((void *)mapping, \
             bpf_core_type_id_kernel(struct address_space));`",
            "it takes a newer kernel",
        ),
        (
            // 5.10
            "0: (b7) r1 = 1\n1: (79) r0 = *(u64 *)(r1 +0)\nR1 invalid mem access 'inv'\n\
             processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n",
            "R1 invalid mem access 'inv'",
            "to be safe",
        ),
        (
            // 5.10
            "0: (b7) r0 = 0\n1: (15) if r1 == 0x0 goto pc+1\n R0_w=inv0 R1=ctx(id=0,off=0,imm=0) R10=fp0\n\
             2: (05) goto pc-1\n2: (05) goto pc-1\ninfinite loop detected at insn 2\n",
            "infinite loop detected at insn 2",
            "a loop that may not end",
        ),
        (
            // 6.18
            "2: (05) goto pc-1\ninfinite loop detected at insn 2\ncur state: R0=0 R1=ctx() R10=fp0\n\
             old state: R0=0 R1=ctx() R10=fp0\n",
            "infinite loop detected at insn 2",
            "a loop that may not end",
        ),
    ];

    #[test]
    fn a_log_becomes_its_reason_and_a_meaning() {
        for (log, reason, meaning) in LOGS {
            let (short, said) = explain(log, false);
            assert_eq!(short, format!("refused by the verifier: {}", reason.split(" at `").next().unwrap()));
            let begin = format!("the kernel's verifier refused it: {reason}: ");
            assert!(said.starts_with(&begin) && said.contains(meaning), "{said}");
        }
    }

    #[test]
    fn where_memory_is_hidden_a_newer_kernel_is_no_help() {
        for helper in [
            "unknown func bpf_probe_read_kernel#113",
            "program of this type cannot use helper bpf_probe_read_kernel#113",
        ] {
            let log = format!("; read\n7: (85) call bpf_probe_read_kernel#113\n{helper}\nprocessed 8 insns\n");
            let (short, said) = explain(&log, true);
            assert!(short == CONFIDENTIAL && said.ends_with(CONFIDENTIAL) && said.contains(helper), "{said}");
            assert!(explain(&log, false).1.contains("a newer kernel"));
        }
        let (_, said) = explain("R1 invalid mem access 'inv'\n", true);
        assert!(said.contains("to be safe"), "{said}");
    }

    #[test]
    fn a_reason_in_two_lines_and_none_at_all() {
        let log = "; counters->pages += n;\n9: (79) r1 = *(u64 *)(r0 +64)\n R0=map_value(ks=4,vs=64)\n\
                   invalid access to map value, value_size=64 off=64 size=8\n\
                   R0 max value is outside of the allowed memory range\nprocessed 9 insns\n";
        let (_, said) = explain(log, false);
        let reason = "invalid access to map value, value_size=64 off=64 size=8; R0 max value is outside of the allowed \
                      memory range at `counters->pages += n;`: ";
        assert!(said.contains(reason) && said.contains("to be safe"), "{said}");
        for log in ["", "0: (95) exit\nprocessed 1 insns\n"] {
            assert!(explain(log, false).1.ends_with("without a word: see the kernel's log (dmesg)"));
        }
        assert!(
            explain("never seen before", false)
                .1
                .ends_with("never seen before: a bug of the agent or of the kernel; please report it")
        );
    }
}
