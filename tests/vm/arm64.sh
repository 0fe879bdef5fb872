#!/bin/bash
# Builds what goes into the machines of arm64: tests, the agent and their shell, in target/vm/bin/arm64. The
# agent is TEST_STATIC_ARM64, or else that of the tests, which are linked without gRPC and OpenSSL (.ci/static.sh).
# Exit status 3, with the reason in one line, if this machine cannot.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${CARGO_TARGET_DIR:-target}/vm
made=$out/bin/arm64
mkdir -p "$made"

command -v qemu-system-aarch64 >/dev/null || { echo "qemu-system-aarch64 is missing (make deps-vm)" && exit 3; }
shell=$(bash tests/vm/kernels.sh busybox:arm64 2>"$out/arm64.log") || { tail -n 1 "$out/arm64.log" && exit 3; }
code=0
built=$(TEST_ARCH=aarch64 sh .ci/static.sh test --no-run --lib --test truth --message-format json 2>"$out/arm64.log") || code=$?
# One line for what is skipped.
[ $code = 0 ] || { tail -n $((code == 3 ? 1 : 20)) "$out/arm64.log" && exit $code; }
for program in $(grep -o '"executable":"[^"]*"' <<<"$built" | cut -d '"' -f 4 | sort -u); do
    cp "$program" "$made/$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')"
done
[ -z "${TEST_STATIC_ARM64:-}" ] || cp "$TEST_STATIC_ARM64" "$made/ebpf-sidecar"
cp "$shell" "$made/busybox"
