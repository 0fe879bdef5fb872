#!/bin/sh
# Fuzzes everything that takes bytes of others: fuzz.sh [TARGET...], SECONDS_EACH seconds each (30). Targets are linked with
# neither gRPC nor our OpenSSL: none of them calls gRPC, and Debian's OpenSSL does. What is found lies in
# target/fuzz/artifacts, what leads further in target/fuzz/corpus; the corpus that is kept is in tests/fuzz/corpus.
# Where a tool cannot be installed it says so and is no failure.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
skipped() {
    echo "SKIPPED fuzz: $1"
    exit 0
}
[ ! -e /etc/alpine-release ] || skipped "Rust has no AddressSanitizer for musl"
sh .ci/deps.sh fuzz || skipped "packages cannot be installed"
# shellcheck source=.ci/tools.sh
. .ci/tools.sh
tool fuzz cargo-fuzz || skipped "cargo-fuzz cannot be installed"

# The versions of the agent's own dependencies.
cp Cargo.lock tests/fuzz/Cargo.lock
mkdir -p "$target/none" "$target/artifacts"
core=$(cargo metadata --locked --format-version 1 |
    jq -r '.packages[] | select(.name == "grpcio-sys") | .manifest_path | rtrimstr("Cargo.toml")')
cat >"$target/none/grpc.pc" <<PC
Name: grpc
Description: its headers
Version: 1.56.2
Cflags: -I${core}grpc/include
PC
# A sanitizer is an unstable option of a stable compiler.
export RUSTC_BOOTSTRAP=1 GRPCIO_SYS_USE_PKG_CONFIG=1 PKG_CONFIG_PATH="$target/none" OPENSSL_NO_VENDOR=1
export RUSTFLAGS="-C link-arg=-Wl,--unresolved-symbols=ignore-all"
fuzz() { # COMMAND OPTION...
    command=$1
    shift
    cargo-fuzz "$command" --fuzz-dir tests/fuzz --target-dir "$target" "$@"
}
fuzz build
[ $# -gt 0 ] || set -- $(ls tests/fuzz/corpus)
failed=""
for name in "$@"; do
    mkdir -p "$target/corpus/$name"
    log=$target/$name.log
    fuzz run "$name" "$target/corpus/$name" "$root/tests/fuzz/corpus/$name" -- -max_total_time="${SECONDS_EACH:-30}" \
        -max_len=4096 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$target/artifacts/$name-" \
        -print_final_stats=1 >"$log" 2>&1 || failed="$failed $name"
    awk -v name="$name" '
        /^#/ && / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
        /^stat::number_of_executed_units/ { runs = $2 } /^stat::peak_rss_mb/ { rss = $2 }
        END { printf "fuzz %-14s %9d runs, %6d edges, at most %d MiB\n", name, runs, cov, rss }' "$log"
done
[ -z "$failed" ] || { echo "found by$failed: target/fuzz/*.log and artifacts" >&2; exit 1; }
