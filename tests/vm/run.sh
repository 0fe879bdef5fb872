#!/bin/bash
# The tests of the kernel on other kernels, in emulated machines, and one table of them:
#   run.sh [KERNEL...]        5.10, 6.1, 6.12 and 7.2 without arguments, and 5.10:arm64 and 6.12:arm64
# VM_ARM64 names the arm64 kernels instead (none: ""; 6.12+16k has pages of 16 KiB), whose tests are linked without gRPC
# (.ci/static.sh).
# KERNEL_IMAGE=path boots that kernel instead of all those, with KERNEL_MODULES=path, its lib/modules/RELEASE, if the disk
# needs modules (NVMe, ext4); VM_ARCH=arm64 if it is one.
# TEST_STATIC names the static binary (make static): it is then the agent in all of them, and those in VM_STATIC (5.10 and
# 7.2) run it in an empty root with the defaults, in the place of the way that these choose.
# Each kernel boots once for each mode (see modes_of), three machines at a time or VM_PARALLEL, since they wait now and
# then. VM_MODES="kprobe auto" runs only those; VM_OVERHEAD names the kernels whose overhead is checked beside
# (tests/vm/overhead.sh). The table goes to stdout and to target/vm/table.txt, the consoles to target/vm/KERNEL-MODE.log.
# What the kernels let the agent attach goes to target/vm/results.txt; where tests/vm/results.txt says otherwise, it is told.
# Exit status 1 if anything failed; what cannot be done on this machine is said in a line that begins with SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PATH:/usr/sbin:/sbin # mkfs.ext4
arm64=${VM_ARM64-5.10 6.12}
kernels=$*
if [ -z "$kernels" ]; then
    # Those that take longest first.
    for kernel in $arm64; do kernels+="$kernel:arm64 "; done
    kernels+="5.10 6.1 6.12 7.2"
fi
[ -z "${KERNEL_IMAGE:-}" ] || kernels=own${VM_ARCH:+:$VM_ARCH}
out=${CARGO_TARGET_DIR:-target}/vm
last_start=${VM_LAST_START:-2400}    # seconds after which no machine is started any more
export VM_TIMEOUT=${VM_TIMEOUT:-900} # and that each may take: a machine that hangs, not one that is slow
rm -rf "$out/bin" "$out/table.txt" "$out"/*.first
mkdir -p "$out/bin"

for tool in qemu-system-x86_64 busybox cpio mkfs.ext4 depmod dpkg apt-get setpriv; do
    command -v $tool >/dev/null || { echo "SKIPPED tests/vm: $tool is missing (make deps-vm)" && exit 0; }
done

overhead_of=${VM_OVERHEAD:-}
if [[ $kernels$overhead_of = *:arm64* ]]; then
    code=0
    said=$(bash tests/vm/arm64.sh) || code=$?
    case $code in
    0) export VM_ARM64_MADE=1 ;;
    3)
        echo "SKIPPED tests/vm arm64: $said"
        # shellcheck disable=SC2086
        overhead_of=$(printf '%s\n' $overhead_of | grep -v :arm64) || :
        # shellcheck disable=SC2086
        kernels=$(printf '%s\n' $kernels | grep -v :arm64) || exit 0
        ;;
    *) echo "$said" >&2 && exit 1 ;;
    esac
fi

tests="--lib --test truth --test agent --test grpc --test standalone --test hosts"
# shellcheck disable=SC2086
built=$(${CARGO_TEST:-cargo test} --no-run $tests --message-format json 2>/dev/null |
    grep -o '"executable":"[^"]*"' | cut -d '"' -f 4 | sort -u) || built=
# shellcheck disable=SC2086
[ -n "$built" ] || { ${CARGO_TEST:-cargo test} --no-run $tests; exit 1; }
# Copies, so that a build meanwhile does not change what is tested.
for program in $built $(command -v setpriv mkfs.ext4); do
    strip -o "$out/bin/$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')" "$program"
done
[ -z "${TEST_STATIC:-}" ] || cp "$TEST_STATIC" "$out/bin/ebpf-sidecar"

# What a kernel is booted for. fentry, kprobe, tracepoint: the ground truth with that way of attaching alone, and the
# module disabled and enabled. nobtf: the ground truth with the kernel's BTF ignored, on the oldest unless VM_MODES names
# it. static: the same by the static binary, with the defaults. slow: sleeps for I/O on a disk that takes 50 ms for each
# request, where VM_FULL or VM_MODES ask for it. auto: what the agent does by default and with few privileges. lru_gen:
# reclaim under the multi-generational LRU, which is on in Debian's later kernels anyway.
modes_of() {
    local modes="fentry kprobe tracepoint auto" mode
    case $1 in
    # All of them if VM_FULL is set, else one way each. arm64 has fentry from about 6.4 on.
    5.10:arm64) modes="kprobe${VM_FULL:+ tracepoint nobtf}" ;;
    6.1:arm64) modes="kprobe${VM_FULL:+ tracepoint}" ;;
    *:arm64) modes="fentry${VM_FULL:+ kprobe tracepoint}" ;;
    own) modes="${VM_MODES:-kprobe tracepoint auto nobtf}" ;;
    esac
    case $1 in *:arm64 | own)
        for mode in ${VM_MODES:-$modes}; do echo "$mode"; done
        return
        ;;
    esac
    [[ $1 != 5.10 && " ${VM_MODES:-} " != *" nobtf "* ]] || modes+=" nobtf"
    [[ -z ${VM_FULL:-} && " ${VM_MODES:-} " != *" slow "* ]] || modes+=" slow"
    [ "$1" != 6.1 ] || modes+=" lru_gen"
    if [[ -n ${TEST_STATIC:-} && " ${VM_STATIC:-5.10 7.2} " = *" $1 "* ]]; then
        case $1 in
        7.2) modes=${modes/kprobe/static} ;;
        *) modes=${modes/fentry/static} ;;
        esac
    fi
    for mode in $modes; do
        [[ " ${VM_MODES:-$modes} " != *" $mode "* ]] || echo "$mode"
    done
}

# Tests of the ground truth that say the same however the agent is attached, by parts of their names: they run in the
# machine of the mode auto alone. If VM_FULL is set, these are few.
once="attaching::agents_of_the_same_id layout:: preemption:: reads::readahead_in_vain"
[ -n "${VM_FULL:-}" ] || once+=" old:: overlay loop_mount processes:: reads::the_rate_gauges reclaim:: scope::a_ scope::host_wide scope::scope_of_a_process"

# Whether a kernel's other machines go without: not where VM_MODES leaves auto out. arm64 has no such machine, for the time
# that it would take, and runs them only if VM_FULL is set.
are_once() { # KERNEL
    case $1 in
    *:arm64) [ -z "${VM_FULL:-}" ] ;;
    *) [[ " ${VM_MODES:-auto} " = *" auto "* ]] ;;
    esac
}

disable() {
    echo 'killall ebpf-sidecar # which the tests shared'
    echo 'TEST_GRPC=true grpc --show-output disabled_it_costs_nothing_and_enabled_it_goes_on_counting || failed=1'
}

# The job for a mode, to be run in the machine: job_of KERNEL MODE.
job_of() {
    local skips= grpc=1 kernel=$1
    if are_once "$1"; then
        # shellcheck disable=SC2086
        skips=$(printf ' --skip %s' $once)
        [ -n "${VM_FULL:-}" ] || [ "$2" = auto ] || grpc=
    fi
    [[ $1 != *:arm64 ]] || grpc=
    shift
    # Starting gRPC's C core takes half a second of emulated CPU.
    echo 'export TEST_AGENT=/bin/ebpf-sidecar TEST_DISK=/disk TEST_EMULATED=1 TEST_GRPC=false RUST_BACKTRACE=0'
    [ -z "${VM_FULL:-}" ] || echo 'export TEST_FULL=1'
    case $1 in
    auto)
        echo 'agent --test-threads=1 --show-output --exact by_default_it_attaches_in_the_best_way' \
            'check_examines_everything_and_leaves_nothing without_privilege_it_says_which_and_how' \
            'the_fewest_capabilities a_refused_program_is_explained_wherever_one_looks' \
            'without_btf_it_says_why_not_in_a_better_way every_thread_gives_up_what_it_does_not_need' \
            'what_a_confined_thread_tries_is_refused_and_told' \
            'a_confined_agent_says_what_a_reload_cannot_give_it || failed=1'
        echo 'ebpf_sidecar --test-threads=1 --show-output refusals_of_this_kernel || failed=1'
        echo "truth --test-threads=1 --show-output $once || failed=1"
        # How tracefs is had, on the oldest kernel alone.
        [ "$kernel" != 5.10 ] ||
            echo 'hosts --test-threads=1 --show-output tracefs_is_had_where_it_can_be || failed=1'
        disable
        echo '[ -z "$failed" ]'
        ;;
    slow) echo "TEST_SLOW_DISK=50 truth --test-threads=1 --show-output sleeps::" ;;
    lru_gen)
        echo 'echo 7 >/sys/kernel/mm/lru_gen/enabled || exit 1'
        echo 'truth --test-threads=1 --show-output reclaim:: evictions_by_cause'
        ;;
    static)
        cat <<'END'
mkdir /empty && mount -t tmpfs empty /empty && cp /bin/ebpf-sidecar /empty || exit 1
for d in proc sys; do mkdir /empty/$d && mount -o rbind /$d /empty/$d || exit 1; done
printf '#!/bin/sh\nexec chroot /empty /ebpf-sidecar "$@"\n' >/bin/confined
chmod 755 /bin/confined
export TEST_STATIC=/bin/ebpf-sidecar TEST_AGENT=/bin/confined TEST_GRPC=true
standalone --test-threads=1 --show-output it_counts || failed=1
END
        echo "truth --test-threads=1 --show-output$skips || failed=1"
        [ -z "$grpc" ] || disable
        echo '[ -z "$failed" ]'
        ;;
    nobtf) echo "TEST_BTF=off truth --test-threads=1 --show-output$skips" ;;
    *)
        echo "export TEST_ATTACH=$1"
        echo "truth --test-threads=1 --show-output$skips || failed=1"
        [ -z "$grpc" ] || disable
        echo '[ -z "$failed" ]'
        ;;
    esac
}

# The programs in a machine: no more than its job needs, since it has to unpack them.
programs_of() { # KERNEL MODE
    [[ $1 != *:arm64 ]] || { echo "$out"/bin/arm64/{truth,ebpf-sidecar} && return; }
    case $2 in
    auto) echo "$out"/bin/{agent,truth,grpc,hosts,ebpf_sidecar,ebpf-sidecar,setpriv,mkfs.ext4} ;;
    static) echo "$out"/bin/{truth,grpc,standalone,ebpf-sidecar,mkfs.ext4} ;;
    *) echo "$out"/bin/{truth,grpc,ebpf-sidecar,mkfs.ext4} ;;
    esac
}

image_of() { # KERNEL
    case $1 in
    own*) ls "$KERNEL_IMAGE" ;;
    *) bash tests/vm/kernels.sh "$1" ;;
    esac
}
# The images one after the other, since they share the cache.
found=
for kernel in $kernels; do
    if said=$(image_of "$kernel" 2>&1 >/dev/null); then
        found+=" $kernel"
    else
        echo "SKIPPED tests/vm $kernel: no image: $(tail -n 1 <<<"$said")"
    fi
done

# What fails has a second machine, since an emulated one on a busy host now and then misses a moment: the table tells.
boot() {
    local log=$out/$1-$2.log image
    local options="-nic none"
    VM_PROGRAMS=$(programs_of "$1" "$2")
    VM_ARCH=${VM_ARCH:-}
    # Without the host's own instructions all takes twice as long.
    [[ $1 != *:arm64 ]] || VM_ARCH=arm64 VM_BUSYBOX=$out/bin/arm64/busybox VM_TIMEOUT=$((2 * VM_TIMEOUT))
    # Without it, old kernels have no random numbers for minutes.
    VM_MODULES=
    [[ $1 != own* ]] || { options+=" -device virtio-rng-pci" VM_MODULES=${KERNEL_MODULES:-}; }
    VM_DISK=
    [ "$2" != slow ] || VM_DISK=throttling.iops-total=20
    export VM_PROGRAMS VM_ARCH VM_BUSYBOX VM_MODULES VM_DISK
    image=$(image_of "$1")
    [[ $1 = own* ]] || VM_MODULES=$(ls -d "${image/vmlinuz-/modules-}"/*)
    job_of "$1" "$2" >"$out/$1-$2.job"
    # shellcheck disable=SC2086
    bash tests/vm/boot.sh "$image" "$out/$1-$2.job" $options >"$log" 2>&1 || :
    if [ $SECONDS -lt $last_start ] && ! awk -f tests/vm/table.awk "$log" >/dev/null; then
        mv "$log" "$out/$1-$2.first"
        # shellcheck disable=SC2086
        bash tests/vm/boot.sh "$image" "$out/$1-$2.job" $options >"$log" 2>&1 || :
    fi
}

# Each job is a process group, which is ended as a whole; boot.sh then ends its machine.
set -m
trap 'for job in $(jobs -p); do kill -- -"$job" 2>/dev/null || :; done' EXIT
trap 'exit 1' INT TERM
# begin NAME COMMAND...: waits for a place. How it went is judged by its log.
begin() {
    while [ "$(jobs -rp | wc -l)" -ge "${VM_PARALLEL:-3}" ]; do wait -n || :; done
    if [ $SECONDS -gt $last_start ]; then
        echo "NOT STARTED: out of time" >"$out/$1.log"
        return
    fi
    shift
    "$@" &
}
overhead() {
    local code=0
    bash tests/vm/overhead.sh "$1" || code=$?
    echo "exit $code"
}
for kernel in $overhead_of; do
    begin "overhead-table-$kernel" overhead "$kernel" >"$out/overhead-table-$kernel.log" 2>&1
done
# Those of the mode auto first, which take longest.
for pass in auto others; do
    for kernel in $found; do
        for mode in $(modes_of "$kernel"); do
            case $mode-$pass in auto-others) continue ;; auto-auto | *-others) ;; *) continue ;; esac
            begin "$kernel-$mode" boot "$kernel" "$mode"
        done
    done
done
wait

status=0 logs=
for kernel in $found; do
    for mode in $(modes_of "$kernel"); do logs+=" $out/$kernel-$mode.log"; done
done
{
    # shellcheck disable=SC2086
    [ -z "$logs" ] || awk -f tests/vm/table.awk $logs || status=1
    for kernel in $overhead_of; do
        log=$out/overhead-table-$kernel.log
        echo
        grep -vE ' ok$| ok \(|^exit ' "$log" || :
        echo "overhead on $kernel: $(grep -cE ' ok$| ok \(' "$log" || :) costs within tests/vm/overhead-budget.txt ($log)"
        grep -q '^exit 0$' "$log" || status=1
    done
    # shellcheck disable=SC2086
    if cat $logs /dev/null | grep -a '^ATTACHED .* \.$' | sort -V | uniq >"$out/results.txt"; then
        awk -f tests/vm/results.awk "$out/results.txt"
        # A line is known by the kernel, its architecture, its pages and the mode.
        awk 'NR == FNR { said[$2, $3, $4, $5] = $0; next }
            ($2, $3, $4, $5) in said && said[$2, $3, $4, $5] != $0 {
                print "tests/vm/results.txt and README say otherwise (make results): " $0
            }' tests/vm/results.txt "$out/results.txt"
    fi
    for first in "$out"/*.first; do
        [ -e "$first" ] || continue
        echo "a second machine after a failure in the first ($first):"
        # Indented, for it to be no result.
        { grep -aE '^test .*FAILED|panicked at' -A 6 "$first" | head -n 20 || tail -n 3 "$first"; } | sed 's/^/    /'
    done
    echo "$(wc -w <<<"$logs") machines in $((SECONDS / 60)) min $((SECONDS % 60)) s; consoles: $out/KERNEL-MODE.log"
    [ $status = 0 ] || echo "tests/vm: FAILED"
} >"$out/table.txt"
cat "$out/table.txt"
exit $status
