#!/bin/bash
# Boots a kernel with the agent and test programs, and runs a job in it:
#   boot.sh IMAGE JOB [QEMU-OPTION...]
# JOB is a shell script; it finds /bin/ebpf-sidecar, the programs named in VM_PROGRAMS in /bin, and 2 GB of ext4
# in /disk. The console goes to stdout, the exit status is the job's. VM_CPUS, VM_MEMORY, VM_TIMEOUT in seconds and
# VM_APPEND to the kernel's command line change the machine. KVM is not needed. One host thread for all CPUs: with
# two, QEMU 7.2 does not survive the kernel's rewriting of its own code. No cmpxchg16b either: with it, 6.12 now and
# then dies in the slab allocator, which is built on that instruction, with a piece of a pointer in EFLAGS.
# VM_DISK is added to the options of the disk: "throttling.iops-total=200" makes it a slow one.
# VM_ARCH=arm64 is a machine of that architecture, VM_BUSYBOX its shell; VM_MODULES a folder of modules, lib/modules/RELEASE of
# a kernel, of which init loads those that the disk needs.
# Pages are not cleared when they are allocated, and copies from and to programs not checked: that took a fifth of the time.
# A machine that hangs is ended after VM_TIMEOUT, and when this script is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
image=$1 job=$2
shift 2
work=$(mktemp -d)
finish() {
    [ ! -e "$work/pid" ] || kill "$(cat "$work/pid")" 2>/dev/null || :
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

root=$work/root
mkdir -p "$root/bin"
cp "$here/init" "$root/"
cp "${VM_BUSYBOX:-/bin/busybox}" "$root/bin/busybox"
cp "$job" "$root/job"
strip=strip
[ -z "${VM_ARCH:-}" ] || strip=${LLVM_STRIP:-llvm-strip}
for program in $VM_PROGRAMS; do
    name=$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')
    "$strip" -o "$root/bin/$name" "$program"
    # What it links dynamically comes along.
    { ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || :; } | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -Ln "$library" "$root$library"
    done
done
if [ -n "${VM_MODULES:-}" ]; then
    mkdir -p "$root/lib/modules"
    cp -r "$VM_MODULES" "$root/lib/modules/"
fi
# Not compressed, since it would be unpacked by emulation.
(cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initrd"

truncate -s 2G "$work/disk"
mkfs.ext4 -q -O ^has_journal "$work/disk"

limit=${VM_TIMEOUT:-1800}
if [ "${VM_ARCH:-}" = arm64 ]; then
    # Signed pointers are made in a way that costs less to emulate.
    set -- qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -accel tcg,thread=single "$@"
    console=ttyAMA0
else
    set -- qemu-system-x86_64 -accel tcg,thread=single -cpu max,-cx16 "$@"
    console=ttyS0
fi
machine() {
    timeout -k 5 "$limit" "$@" -m "${VM_MEMORY:-512M}" \
        -smp "${VM_CPUS:-2}" -nographic -no-reboot -kernel "$image" -initrd "$work/initrd" -pidfile "$work/pid" \
        -append "console=$console panic=-1 quiet init_on_alloc=0 hardened_usercopy=off ${VM_APPEND:-}" \
        -drive "file=$work/disk,if=none,id=disk,format=raw,cache=unsafe${VM_DISK:+,$VM_DISK}" -device nvme,drive=disk,serial=1 \
        </dev/null || [ $? != 124 ] || echo "VM-TIMEOUT after $limit s"
}
# In the background, since a trap waits for what runs in the foreground.
machine "$@" | sed -u 's/\r//g' | tee "$work/console" &
wait $!
grep -q '^VM-EXIT 0$' "$work/console"
