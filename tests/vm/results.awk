# Makes README's table from lines that begin with ATTACHED, which tests print (tests/common/mod.rs): of tests/vm/results.txt, or
# of consoles.

/^ATTACHED .* lacks .* \.$/ {
    version = $2
    if ($4 != "4K") version = version ", pages of " substr($4, 1, length($4) - 1) " KiB"
    row = ($3 == "x86_64" ? "x86-64" : "arm64") SUBSEP version
    mode = $5
    sub(/:$/, "", mode)
    if (!(row in known)) { known[row]; rows[++n] = row }
    lacks = $0
    sub(/^.* lacks /, "", lacks)
    reads = lacks ~ /ebpf_cache_read_attempts_total/
    bytes = lacks ~ /ebpf_cache_read_bytes_total/
    waits = lacks ~ /ebpf_read_wait_seconds/
    fadvise = lacks ~ /ebpf_fadvise_calls_total/
    gsub(/ebpf_(fadvise_[a-z_]*|cache_(read_(attempts_total|bytes_total)|hits_total|(hit|miss)_rate_percent)|read_wait_seconds|io_wait_seconds)/, "", lacks)
    gsub(/nothing|[ .]/, "", lacks)
    what = reads ? "no reads" : bytes ? "no bytes, waits" : waits ? "no waits" : "all"
    if (fadvise) what = what == "all" ? "no fadvise" : what ", fadvise"
    cell[row, mode] = lacks == "" ? what : "no " lacks
}
END {
    print "| Linux | | default | fentry | kprobe | tracepoint | no BTF |"
    print "|---|---|---|---|---|---|---|"
    split("auto fentry kprobe tracepoint nobtf", modes, " ")
    for (i = 1; i <= n; i++) {
        split(rows[i], name, SUBSEP)
        line = "| " name[2] " | " name[1] " |"
        for (m = 1; m <= 5; m++) line = line " " ((rows[i], modes[m]) in cell ? cell[rows[i], modes[m]] : "–") " |"
        print line
    }
}
