#!/bin/sh
# Runs every test and lists at the end what was skipped and why. A test that this machine cannot run prints
# `SKIPPED reason` and passes. The output is kept in test.log in the target folder. First the static binary is built,
# which some tests look at, and whose gRPC and OpenSSL the tests are then linked with: compiling these takes a quarter of
# an hour. STATIC=off leaves it out. Last come the tests on other kernels (tests/vm/run.sh), where an emulator and kernels
# can be had; VM=off leaves them out.
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
        # Without it, run.sh says what is left out.
        [ -z "${VM_ARM64-all}" ] || sh .ci/deps.sh vm-arm64 >>"$target/deps-vm.log" 2>&1 || :
        VM_OVERHEAD=${VM_OVERHEAD-6.12} bash tests/vm/run.sh
    fi
}

# Sets TEST_STATIC to the binary and CARGO_TEST to what tests are run with.
build_static() {
    CARGO_TEST="cargo test"
    if [ "${STATIC-}" = off ]; then
        echo "SKIPPED the static binary: STATIC=off"
        return
    fi
    built=0
    sh .ci/static.sh || built=$?
    case $built in
    0)
        TEST_STATIC=$(realpath "$target")/static/$(uname -m)/ebpf-sidecar
        [ -e /etc/alpine-release ] || CARGO_TEST="sh .ci/static.sh test"
        export TEST_STATIC CARGO_TEST
        ;;
    3) echo "SKIPPED the static binary: what builds it cannot be installed here" ;;
    *) code=$built ;;
    esac
}

# One after the other, since they count what the whole kernel does. Their status goes through a file because
# POSIX sh has no pipefail.
{
    code=0
    build_static
    $CARGO_TEST --no-fail-fast "$@" -- --test-threads=1 --show-output || code=$?
    rm -f "$target/vm/table.txt"
    vm_tests || code=$?
    echo "$code" >"$status"
} 2>&1 | tee "$log"

awk '
    /^test result: / { passed += $4; failed += $6 }
    /^test .* FAILED$/ { bad[$2] }
    /^---- .* stdout ----$/ { test = $2; counted = 0 }
    /^SKIPPED (tests\/vm|the static)/ { sub(/^SKIPPED /, ""); line[n++] = $0; next }
    /^SKIPPED / {
        sub(/^SKIPPED /, "")
        name = test
        sub(/^.*::/, "", name)
        line[n++] = index($0, name ": ") == 1 ? $0 : test ": " $0
        passed -= !counted && !(test in bad)
        counted = 1
    }
    /^test .* \.\.\. ignored/ { test = $2; sub(/^.* \.\.\. /, ""); line[n++] = test ": " $0 }
    END {
        printf "\n== %d passed, %d failed, skipped: %d\n", passed, failed, n
        for (i = 0; i < n; i++) print "   " line[i]
    }' "$log"
exit "$(cat "$status")"
