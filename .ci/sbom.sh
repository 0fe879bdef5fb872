#!/bin/sh
# Prints the bill of materials of the static binary: sbom.sh [x86_64|aarch64]. What is not Rust has its version from the
# sources that it was compiled from.
set -eu
cd "$(dirname "$0")/.."
arch=${1:-$(uname -m)}
triple=$arch-unknown-linux-musl
metadata=$(cargo metadata --locked --format-version 1 --filter-platform "$triple")
of() { # CRATE: where its sources are
    printf '%s' "$metadata" | jq -r --arg name "$1" '.packages[] | select(.name == $name).manifest_path | rtrimstr("/Cargo.toml")'
}
grpc=$(of grpcio-sys)/grpc bpf=$(of libbpf-sys)
first() { # EXPRESSION FILE: what sed finds of it
    found=$(sed -n "s/$1/\1/p;" "$2" | head -n 1)
    [ -n "$found" ] || { echo "$2: no version in it" >&2; exit 1; }
    echo "$found"
}
component() { # NAME VERSION LICENCE IN
    jq -n --arg name "$1" --arg version "$2" --arg licence "$3" --arg in "$4" '{
        type: "library", "bom-ref": "pkg:generic/\($name)@\($version)", name: $name, version: $version,
        purl: "pkg:generic/\($name)@\($version)", licenses: [{expression: $licence}],
        properties: [{name: "compiled by", value: $in}]}'
}
absl=$grpc/third_party/abseil-cpp/absl/base/config.h
libbpf=$bpf/libbpf/src/libbpf_version.h
openssl=$(of openssl-src)/openssl/VERSION.dat
components=$(
    component grpc "$(first '^set(PACKAGE_VERSION  *"\(.*\)")' "$grpc/CMakeLists.txt")" Apache-2.0 grpcio-sys
    component abseil-cpp "$(first '^#define ABSL_LTS_RELEASE_VERSION \([0-9]*\)$' "$absl").$(
        first '^#define ABSL_LTS_RELEASE_PATCH_LEVEL \([0-9]*\)$' "$absl")" Apache-2.0 grpcio-sys
    # Its header still says 1.19.0; its notes and its sources are those of the release after it.
    component c-ares "$(first '^c-ares version \([0-9.]*\)$' "$grpc/third_party/cares/cares/RELEASE-NOTES")" MIT grpcio-sys
    component re2 "$(first '.*strip_prefix = "re2-\([0-9-]*\)".*' "$grpc/bazel/grpc_deps.bzl")" BSD-3-Clause grpcio-sys
    component upb "$(first '.*strip_prefix = "upb-\([0-9a-f]*\)".*' "$grpc/bazel/grpc_deps.bzl")" BSD-3-Clause grpcio-sys
    component openssl "$(first '^MAJOR=\(.*\)' "$openssl").$(first '^MINOR=\(.*\)' "$openssl").$(
        first '^PATCH=\(.*\)' "$openssl")" Apache-2.0 openssl-src
    component libbpf "$(first '^#define LIBBPF_MAJOR_VERSION \(.*\)' "$libbpf").$(
        first '^#define LIBBPF_MINOR_VERSION \(.*\)' "$libbpf")" "LGPL-2.1-only OR BSD-2-Clause" libbpf-sys
    component libelf "$(first '^AC_INIT(\[elfutils\],\[\([0-9.]*\)\].*' "$bpf/elfutils/configure.ac")" \
        "GPL-2.0-or-later OR LGPL-3.0-or-later" libbpf-sys
    component zlib "$(first '^#define ZLIB_VERSION "\(.*\)"' "$(of libz-sys)/src/zlib/zlib.h")" Zlib libz-sys
    component zlib "$(first '^#define ZLIB_VERSION "\(.*\)"' "$bpf/zlib/zlib.h")" Zlib libbpf-sys
    if [ -e /etc/alpine-release ]; then
        component musl "$(apk info -e -v musl | sed 's/^musl-//')" MIT alpine
    else
        zig=$(echo "$(realpath -m "${CARGO_TARGET_DIR:-target}")"/static/venv/lib/python3*/site-packages/ziglang/lib)
        component musl "$(first '^#define VERSION "\(.*\)"' "$zig/libc/musl/src/internal/version.h")" MIT zig
        cxx=$(first '^# *define _LIBCPP_VERSION \([0-9]*\)' "$zig/libcxx/include/__config")
        component libc++ "$((cxx / 10000)).$((cxx / 100 % 100)).$((cxx % 100))" "Apache-2.0 WITH LLVM-exception" zig
    fi
    component rust-std "$(rustc --version | cut -d ' ' -f 2)" "MIT OR Apache-2.0" rustc
)
linked=$(cargo tree --locked --edges normal,no-proc-macro --target "$triple" --prefix none --format '{p}' |
    awk '{ print $1 "@" substr($2, 2) }' | sort -u | jq -R -s 'split("\n") - [""]')
checksums=$(awk -F '"' '/^name = /{n=$2} /^version = /{v=$2} /^checksum = /{printf "%s@%s %s\n", n, v, $2}' Cargo.lock |
    jq -R -s '[split("\n")[] | select(. != "") | split(" ") | {key: .[0], value: .[1]}] | from_entries')
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
printf '%s' "$metadata" | jq -f .ci/sbom.jq --argjson c "$(printf '%s' "$components" | jq -s .)" --argjson checksums "$checksums" \
    --argjson linked "$linked"     --arg time "$(date -u -d "@$time" +%Y-%m-%dT%H:%M:%SZ)" --arg target "$triple" \
    --arg commit "${EBPF_SIDECAR_COMMIT:-$(git rev-parse --short=12 HEAD)}"
