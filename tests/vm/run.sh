#!/bin/bash
# The ground truth tests (tests/truth.rs) on other kernels, in every mode of attaching that each has:
#   run.sh [KERNEL...]        5.10, 6.1, 6.12 and 7.2 without arguments
# Boots each kernel once in an emulated machine, two at a time, and prints one table: kernel and mode by test.
set -euo pipefail
cd "$(dirname "$0")/../.."
kernels=${*:-5.10 6.1 6.12 7.2}
out=${CARGO_TARGET_DIR:-target}/vm
mkdir -p "$out"

for tool in qemu-system-x86_64 busybox cpio mkfs.ext4 dpkg apt-get; do
    command -v $tool >/dev/null || { echo "SKIPPED tests/vm: $tool is missing (make deps-vm)" && exit 0; }
done

built=$(cargo test --no-run --test truth --message-format json 2>/dev/null | grep -o '"executable":"[^"]*"' | cut -d '"' -f 4)
[ -n "$built" ] || { cargo test --no-run --test truth; exit 1; }
export VM_PROGRAMS=$built

cat >"$out/job" <<'JOB'
export TEST_AGENT=/bin/ebpf-sidecar TEST_DISK=/disk RUST_BACKTRACE=0 TEST_EMULATED=1
status=0
for mode in fentry kprobe tracepoint; do
    echo "MODE $mode"
    TEST_ATTACH=$mode truth --test-threads=1 --show-output || status=1
done
# Before 6.7 the multi-generational LRU, off in this kernel unless switched on, does not tell what it scans.
case $(uname -r) in
6.1.*)
    echo "MODE lru_gen"
    echo 7 >/sys/kernel/mm/lru_gen/enabled
    TEST_ATTACH=auto truth --test-threads=1 --show-output reclaim kswapd evictions || status=1
    ;;
esac
exit $status
JOB

run_one() {
    local image
    image=$(bash tests/vm/kernels.sh "$1") || return 1
    bash tests/vm/boot.sh "$image" "$out/job" -nic none >"$out/$1.log" 2>&1
}

status=0
bash tests/vm/kernels.sh $kernels >/dev/null # one after the other: they share the cache
running=()
for kernel in $kernels; do
    run_one "$kernel" &
    running+=($!)
    if [ ${#running[@]} = 2 ]; then
        wait "${running[0]}" || status=1
        running=("${running[@]:1}")
    fi
done
for pid in "${running[@]}"; do wait "$pid" || status=1; done

for kernel in $kernels; do
    awk -v kernel="$kernel" '
        /^MODE / { mode = $2 }
        # A kernel message can stand between a name and its result.
        /^test [a-z_0-9]+ \.\.\. / { test = $2; if ($NF == "ok" || $NF == "FAILED") result[test, mode] = $NF; else result[test, mode] = "?"; names[test] }
        /^SKIPPED / { test = $2; sub(/:$/, "", test); why = $0; sub(/^SKIPPED [^:]*: /, "", why); result[test, mode] = "skip"; reasons[test ": " why] }
        /^VM-EXIT/ { ended = 1 }
        END {
            printf "\n%-6s %-50s %8s %8s %10s %8s\n", kernel, "", "fentry", "kprobe", "tracepoint", "lru_gen"
            n = 0
            for (t in names) sorted[n++] = t
            for (i = 0; i < n; i++) for (j = i + 1; j < n; j++) if (sorted[j] < sorted[i]) { x = sorted[i]; sorted[i] = sorted[j]; sorted[j] = x }
            for (i = 0; i < n; i++) { t = sorted[i]; printf "%-6s %-50s %8s %8s %10s %8s\n", kernel, t, result[t, "fentry"], result[t, "kprobe"], result[t, "tracepoint"], result[t, "lru_gen"] }
            for (r in reasons) print "       skipped " r
            if (!ended) print "       the machine ended early: see the log"
        }' "$out/$kernel.log"
done
# What went wrong, in its own words.
for kernel in $kernels; do
    grep -aE "panicked at|^VM-EXIT [^0]|Kernel panic" -A 3 "$out/$kernel.log" | head -n 60 | sed "s/^/$kernel: /" || :
done
echo "logs: $out/*.log"
exit $status
