# Makes the table of tests/vm/run.sh from the consoles of its machines, KERNEL-MODE.log in the order of the columns:
# case by kernel and mode, then what was skipped and why, and the words of what failed.
# Exit status 1 if anything failed or did not run.

function mark(test, what) {
    if (!(test in seen)) { seen[test]; cases[tests++] = test }
    if (result[test, column] != "--") result[test, column] = what
    ran[column]++
}

function fail(words) {
    failures[failed++] = columns[column] ": " words
}

# Lines of several kernels; those that say the same in one.
function together(of, title, c, k, who) {
    for (c = 1; c <= n; c++) {
        if (!(c in of) || of[c] in told) continue
        who = ""
        for (k = c; k <= n; k++) if (k in of && of[k] == of[c]) who = who " " kernel[k]
        print title of[c] " (" substr(who, 2) ")"
        told[of[c]]
    }
}

FNR == 1 {
    column = ++n
    name = FILENAME
    gsub(/^.*\/|\.log$/, "", name)
    columns[n] = name
    kernel[n] = mode[n] = name
    sub(/-.*/, "", kernel[n])
    sub(/^[^-]*-/, "", mode[n])
    pending = ""; words = 0; ended[n] = 0
}

# A message of the kernel can stand between a name and its result.
pending != "" && /^(ok|FAILED)$/ { mark(pending, $1); pending = "" }
/^test [a-z_0-9:]+ \.\.\. / {
    sub(/^.*::/, "", $2)
    if ($NF == "ok" || $NF == "FAILED") { mark($2, $NF); pending = "" }
    else { mark($2, "??"); pending = $2 }
}
/^SKIPPED / {
    why = $0
    sub(/^SKIPPED /, "", why)
    test = why
    sub(/:.*/, "", test)
    mark(test, "--")
    if (!((why) in skips)) { skips[why] = ""; reasons[skipped++] = why }
    skips[why] = skips[why] " " columns[column]
}
/^CAPABILITIES / { capabilities[column] = substr($0, 14) }
/panicked at/ { words = 14 }
/^note: run with `RUST_BACKTRACE|^---- |^$/ { words = 0 }
words > 0 { fail($0); words-- }
/Kernel panic|^VM-TIMEOUT|^NOT STARTED|^BUG: / { fail($0) }
/reboot: Power down/ && match($0, /[0-9]+\./) { took[column] = substr($0, RSTART, RLENGTH - 1) }
/^VM-EXIT / { ended[column] = 1; if ($2 != 0) bad[column] }
{ last[column] = $0 == "" ? last[column] : $0 }

END {
    short["fentry"] = "fe"; short["kprobe"] = "kp"; short["tracepoint"] = "tp"; short["auto"] = "au"
    short["lru_gen"] = "lr"; short["nobtf"] = "nb"; short["static"] = "st"
    print "fe fentry, kp kprobe, tp tracepoint, nb no BTF, st static binary, lr lru_gen=7, au auto: defaults and privileges; 6.12a 6.12 on arm64"
    head = sprintf("%-42s", "")
    for (c = 1; c <= n; c++) {
        if (kernel[c] != kernel[c - 1]) {
            head = head "  "
            label = kernel[c]
            sub(/:arm64$/, "a", label)
            top = sprintf("%-*s%s", length(head), top, label)
        }
        head = head sprintf("%-4s", short[mode[c]])
    }
    print top
    print head
    for (t = 0; t < tests; t++) {
        printf "%-42s", (length(cases[t]) > 41 ? substr(cases[t], 1, 40) "~" : cases[t])
        for (c = 1; c <= n; c++) {
            r = result[cases[t], c]
            if (r == "FAILED") r = "!!"
            if (r == "!!" || r == "??") status = 1
            if (r == "ok" || r == "--") counted[r]++
            printf "%s%-4s", kernel[c] == kernel[c - 1] ? "" : "  ", r
        }
        print ""
    }
    printf "%-42s", "seconds"
    for (c = 1; c <= n; c++) printf "%s%-4s", kernel[c] == kernel[c - 1] ? "" : "  ", took[c]
    print "\n"
    for (i = 0; i < skipped; i++) print "--" skips[reasons[i]] ": " reasons[i]
    together(capabilities, "fewest capabilities of a user other than root: ")
    for (i = 0; i < failed; i++) print failures[i]
    for (c = 1; c <= n; c++) {
        if (c in bad) status = 1
        if (!ended[c]) { status = 1; print columns[c] ": the machine did not end by itself; its last line: " last[c] }
        else if (!ran[c]) { status = 1; print columns[c] ": no test ran" }
    }
    printf "%d ok, %d skipped, %s\n", counted["ok"], counted["--"], status ? "FAILED" : "0 failed"
    exit status
}
