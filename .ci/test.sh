#!/bin/sh
# Runs every test and lists at the end what was skipped and why. A test that this machine cannot run prints
# `SKIPPED reason` and passes. The output is kept in test.log in the target folder. Then the tests on other kernels
# (tests/vm/run.sh), where an emulator and kernels can be had; VM=off leaves them out.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
log=$target/test.log status=$target/test.status
mkdir -p "$target"
rm -f "$status"

# The tests of the kernel need root: only the tests then run under sudo, not cargo.
set --
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -v; then
        set -- --config "target.'cfg(unix)'.runner='sudo -E'"
    else
        echo "neither root nor sudo: the tests of the kernel will be skipped" >&2
    fi
fi

# The emulator and what belongs to it, if they can be installed.
vm_tests() {
    if [ "${VM-}" = off ]; then
        echo "SKIPPED tests/vm: VM=off"
    elif [ "$(uname -m)" != x86_64 ] || ! command -v apt-get >/dev/null; then
        echo "SKIPPED tests/vm: needs x86-64, and apt-get for Debian's kernels"
    elif ! sh .ci/deps.sh vm >"$target/deps-vm.log" 2>&1; then
        echo "SKIPPED tests/vm: the emulator cannot be installed: $(tail -n 1 "$target/deps-vm.log")"
    else
        VM_OVERHEAD=${VM_OVERHEAD-6.12} bash tests/vm/run.sh
    fi
}

# One after the other, since they count what the whole kernel does. Their status goes through a file because
# POSIX sh has no pipefail.
{
    code=0
    cargo test --no-fail-fast "$@" -- --test-threads=1 --show-output || code=$?
    rm -f "$target/vm/table.txt"
    vm_tests || code=$?
    echo "$code" >"$status"
} 2>&1 | tee "$log"

awk '
    /^test result: / { passed += $4; failed += $6 }
    /^test .* FAILED$/ { bad[$2] }
    /^---- .* stdout ----$/ { test = $2; counted = 0 }
    /^SKIPPED tests\/vm/ { sub(/^SKIPPED /, ""); line[n++] = $0; next }
    /^SKIPPED / {
        sub(/^SKIPPED /, "")
        line[n++] = index($0, test ": ") == 1 ? $0 : test ": " $0
        passed -= !counted && !(test in bad)
        counted = 1
    }
    /^test .* \.\.\. ignored/ { test = $2; sub(/^.* \.\.\. /, ""); line[n++] = test ": " $0 }
    END {
        printf "\n== %d passed, %d failed, skipped: %d\n", passed, failed, n
        for (i = 0; i < n; i++) print "   " line[i]
    }' "$log"
exit "$(cat "$status")"
