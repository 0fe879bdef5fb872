#!/bin/sh
# Checks the formatting and that README's table of kernels is that of the results, and runs clippy with warnings as errors. clippy links nothing: where gRPC and OpenSSL were built
# for the static binary alone, it takes those instead of building them again.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
cargo fmt --check
sh tests/vm/results.sh check
reuse=$target/static/$(uname -m)/reuse.env
if [ -e "$reuse" ] && ! ls "$target"/debug/build/grpcio-sys-*/out/build/libgrpc.a >/dev/null 2>&1; then
    set -a
    # shellcheck disable=SC1090 # made by static.sh
    . "$(realpath "$reuse")"
    set +a
fi
exec cargo clippy --all-targets -- -D warnings
