#!/bin/bash
# What the agent costs the programs beside it: instructions added per call (tests/vm/measure.c), by kernel and way of
# attaching, against the limits in tests/vm/overhead-budget.txt. Exit status 1 when one is exceeded.
#   overhead.sh [KERNEL...]        5.10, 6.1, 6.12 and 7.2 without arguments; 6.12:arm64 too, which has no limits yet
# The emulator counts: with -icount shift=0 a nanosecond of the guest's clock is one instruction, so that the numbers
# are the same on every machine and in every run, to a few instructions (the column `spread` has the difference of
# the least and the most of three runs, bare and with the agent together).
set -euo pipefail
cd "$(dirname "$0")/../.."
kernels=${*:-5.10 6.1 6.12 7.2}
out=${CARGO_TARGET_DIR:-target}/vm
mkdir -p "$out"

for tool in qemu-system-x86_64 busybox cpio mkfs.ext4 dpkg apt-get cc; do
    command -v $tool >/dev/null || { echo "SKIPPED bench-overhead: $tool is missing" && exit 0; }
done

# What counts runs in the kernel, and is the same in every build.
agent=${TEST_STATIC:-${CARGO_TARGET_DIR:-target}/debug/ebpf-sidecar}
[ -n "${TEST_STATIC:-}" ] || cargo build --quiet --bin ebpf-sidecar
cc -static -O2 -o "$out/measure" tests/vm/measure.c
native="$agent $out/measure" arm64=$out/bin/arm64
if [[ $kernels = *:arm64* ]]; then
    [ -n "${VM_ARM64_MADE:-}" ] || bash tests/vm/arm64.sh
    "${CARGO_TARGET_DIR:-target}"/static/venv/lib/python3*/site-packages/ziglang/zig cc -target aarch64-linux-musl -static -O2 \
        -o "$arm64/measure" tests/vm/measure.c
fi
export VM_CPUS=1

# Prints lines `cost MODE OPERATION HUNDREDTHS`, and `probe MODE PROBE HOW`.
cat >"$out/overhead-job" <<'JOB'
echo # the firmware's line ends here
others=/sys/fs/cgroup/others # nobody is in it
mkdir $others

costs() {
    for run in 1 2 3; do
        measure /disk/file | sed "s/^/cost $1 /"
    done
}

# with_agent MODE VARIABLE=VALUE...: the names without what all variables begin with.
with_agent() {
    local mode=$1 agent
    shift
    env EBPF_SIDECAR_SERVER_GRPC_ENABLED=false $(for v in "$@"; do echo "EBPF_SIDECAR_COLLECTOR_$v"; done) ebpf-sidecar >/tmp/agent 2>&1 &
    agent=$!
    for i in $(seq 100); do
        wget -qO /tmp/metrics http://127.0.0.1:8080/metrics 2>/dev/null && break
        kill -0 $agent 2>/dev/null || { cat /tmp/agent; return 1; }
        sleep 0.2
    done
    sed -n 's/^ebpf_sidecar_probe_attached{probe="\([^"]*\)",mode="\([^"]*\)"} 1$/probe '"$mode"' \1 \2/p' /tmp/metrics
    costs $mode
    kill $agent
    wait $agent
}

measure /disk/file >/dev/null # makes the file
costs bare
for mode in fentry kprobe tracepoint; do
    with_agent $mode EBPF_ATTACH=$mode READ_LATENCY=off || exit 1
    with_agent $mode-excluded EBPF_ATTACH=$mode READ_LATENCY=off SCOPE_CGROUP=$others || exit 1
done
with_agent fentry-files EBPF_ATTACH=fentry READ_LATENCY=off FILES_ENABLED=true || exit 1
with_agent fentry-timed EBPF_ATTACH=fentry READ_LATENCY=on || exit 1
with_agent fentry-timed-excl EBPF_ATTACH=fentry READ_LATENCY=on SCOPE_CGROUP=$others || exit 1
with_agent tracepoint-no-fadvise EBPF_ATTACH=tracepoint \
    PROBES=cache_read,cache_fill,cache_evict,reclaim_scan,direct_reclaim,memcg_reclaim,kswapd || exit 1
costs bare # again: nothing of the agent is left
JOB

status=0
printf '%-10s %-22s %-9s %8s %8s %8s %8s %8s\n' kernel mode operation bare agent added budget spread
for kernel in $kernels; do
    log=$out/overhead-$kernel.log
    image=$(bash tests/vm/kernels.sh "$kernel")
    VM_PROGRAMS=$native VM_ARCH= VM_BUSYBOX=
    [[ $kernel != *:arm64 ]] || VM_PROGRAMS="$arm64/ebpf-sidecar $arm64/measure" VM_ARCH=arm64 VM_BUSYBOX=$arm64/busybox
    export VM_PROGRAMS VM_ARCH VM_BUSYBOX
    bash tests/vm/boot.sh "$image" "$out/overhead-job" -icount shift=0,sleep=off -nic none >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "$kernel: the measurement failed; see $log" >&2
        status=1
        continue
    }
    awk -v kernel="$kernel" '
        function whole(hundredths) { return int((hundredths + 50) / 100) }
        FILENAME ~ /budget/ { if ($1 == kernel) limit[$2, $3] = $4; next }
        $1 == "probe" { probe[$2, $3] = $4 }
        $1 == "cost" {
            if (!($2 in seen)) { modes[m++] = $2; seen[$2] }
            if (!($3 in known)) { operations[o++] = $3; known[$3] }
            if (!(($2, $3) in least) || $4 < least[$2, $3]) least[$2, $3] = $4
            if ($4 > most[$2, $3]) most[$2, $3] = $4
        }
        END {
            for (i = 0; i < m; i++) {
                mode = modes[i]
                if (mode == "bare") continue
                for (j = 0; j < o; j++) {
                    op = operations[j]
                    bare = whole(least["bare", op])
                    with = whole(least[mode, op])
                    spread = whole(most["bare", op] - least["bare", op] + most[mode, op] - least[mode, op])
                    budget = (mode, op) in limit ? limit[mode, op] : "none"
                    verdict = "ok"
                    # What fills and drops pages is the same in every mode, and has limits in some.
                    if (budget == "none" && op ~ /^(append|dontneed|cold)$/) verdict = "ok (no limit)"
                    else if (budget == "none" || with - bare > budget + 0) { verdict = "OVER"; bad = 1 }
                    # Nothing was measured where nothing is attached: only reads by tracepoints are missing before 6.12.
                    if (op == "pread" && !((mode, "cache_read") in probe)) {
                        if (mode ~ /^tracepoint/ && kernel ~ /^(5\.10|6\.1)$/) verdict = verdict " (no read probe)"
                        else { verdict = "NOT ATTACHED"; bad = 1 }
                    }
                    if (op == "fadvise" && mode !~ /no-fadvise/ && !((mode, "fadvise") in probe)) { verdict = "NOT ATTACHED"; bad = 1 }
                    printf "%-10s %-22s %-9s %8d %8d %+8d %8s %8d  %s\n", kernel, mode, op, bare, with, with - bare, budget, spread, verdict
                }
            }
            exit bad
        }' tests/vm/overhead-budget.txt "$log" || status=1
done
exit $status
