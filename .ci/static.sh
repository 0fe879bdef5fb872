#!/bin/sh
# Builds the fully static binary, target/static/ARCH/ebpf-sidecar: static.sh [x86_64|aarch64], for this machine if it is
# not said. The same commit gives the same bytes in whatever folder, if made by the same compilers. On Alpine they are
# Alpine's. Elsewhere zig brings a C++ compiler with musl for every architecture; Rust's library is rustup's, or where
# rustup has no network, built from the sources in Debian's rustc-web.
set -eu
cd "$(dirname "$0")/.."
arch=${1:-$(uname -m)}
case $arch in
x86_64 | aarch64) ;;
*) echo "usage: $0 [x86_64|aarch64]" >&2 && exit 2 ;;
esac
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR="$target/static/build"
triple=$arch-unknown-linux-musl
# As it is in the names of variables.
name=${arch}_unknown_linux_musl

# Times and folders leave no trace. Of these OpenSSL keeps two, under the names that its Makefile has for them.
# The time is that of the commit; C sources have a constant one, since they are compiled again when it changes.
EBPF_SIDECAR_TIME=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
SOURCE_DATE_EPOCH=0
GNUMAKEFLAGS="MODULESDIR=/usr/local/lib/ossl-modules ENGINESDIR=/usr/local/lib/engines-3"
export EBPF_SIDECAR_TIME SOURCE_DATE_EPOCH GNUMAKEFLAGS
rust="" c="-Os -D_LARGEFILE64_SOURCE" # musl hides the *64 names, which libelf uses
for map in "$PWD=/src" "$CARGO_TARGET_DIR=/target" "${CARGO_HOME:-$HOME/.cargo}=/cargo"; do
    rust="$rust --remap-path-prefix=$map"
    c="$c -ffile-prefix-map=$map"
done

has_library() { # of Rust, for this target
    [ -d "$(rustc --print target-libdir --target "$triple" 2>/dev/null)" ]
}

if [ -e /etc/alpine-release ]; then
    triple=$(rustc -vV | sed -n 's/^host: //p')
    [ "${triple%%-*}" = "$arch" ] || { echo "on Alpine only for its own architecture" >&2 && exit 1; }
    name=$(echo "$triple" | tr - _)
    rust="$rust -C target-feature=+crt-static"
    cargo=build
else
    sh .ci/deps.sh static
    tools=$target/static/venv
    [ -x "$tools/bin/cargo-zigbuild" ] || {
        python3 -m venv "$tools"
        "$tools/bin/pip" install --quiet --disable-pip-version-check ziglang==0.17.1 cargo-zigbuild==0.24.0
    }
    export PATH="$tools/bin:$PATH"
    cargo=zigbuild
    if ! has_library; then
        rustup target add "$triple" 2>/dev/null || :
    fi
    if ! has_library; then
        sh .ci/deps.sh std
        export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
        rust="$rust -C link-self-contained=no"
        cargo="zigbuild -Zbuild-std=std,panic_unwind"
    fi
    # libelf's configure asks for three libraries that musl has not, and its neighbours declare things of the first's
    # header; nothing that is linked uses them.
    export ac_cv_search_argp_parse="none required" ac_cv_search_fts_close="none required" \
        ac_cv_search__obstack_free="none required"
    mkdir -p "$target/static/include"
    cat >"$target/static/include/argp.h" <<'END'
#include <errno.h>
#include <stdio.h>
typedef int error_t;
struct argp_state { const char *name; };
struct argp_option { const char *name; int key; const char *arg; int flags; const char *doc; int group; };
struct argp {
    const struct argp_option *options;
    error_t (*parser)(int, char *, struct argp_state *);
    const char *args_doc, *doc;
    const void *children, *help_filter;
    const char *domain;
};
#define OPTION_ARG_OPTIONAL 1
#define ARGP_HELP_SEE 4
#define ARGP_ERR_UNKNOWN E2BIG
void argp_help(const struct argp *, FILE *, unsigned, char *);
END
    c="$c -idirafter $target/static/include"
fi

export RUSTFLAGS="$rust" "CFLAGS_$name=$c" "CXXFLAGS_$name=$c -Wno-missing-template-arg-list-after-template-kw"
# shellcheck disable=SC2086 # a command and its option
cargo $cargo --locked --profile static --bin ebpf-sidecar --target "$triple"

made=$target/static/$arch/ebpf-sidecar
mkdir -p "$(dirname "$made")"
cp "$CARGO_TARGET_DIR/$triple/static/ebpf-sidecar" "$made"
echo "$made: $(stat -c %s "$made") bytes, sha256 $(sha256sum "$made" | cut -d ' ' -f 1)"
