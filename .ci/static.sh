#!/bin/sh
# Builds the fully static binary, target/static/ARCH/ebpf-sidecar: static.sh [x86_64|aarch64], for this machine if it is
# not said. The same commit gives the same bytes in whatever folder, if made by the same compilers. On Alpine they are
# Alpine's. Elsewhere zig brings a C++ compiler with musl for every architecture; Rust's library is rustup's, or where
# rustup has no network, built from the sources in Debian's rustc-web.
#   static.sh test OPTION...    cargo test with those options, against musl, with the gRPC and OpenSSL of that build
# TEST_ARCH=aarch64 has the tests made for another machine. To compile gRPC for it takes longer than all of those tests:
# without a static binary for it, they and their agent are linked without gRPC and OpenSSL, and end where one is called.
# Exit status 3 if a tool cannot be installed.
set -eu
cd "$(dirname "$0")/.."
if [ "${1-}" = test ]; then
    command=test arch=${TEST_ARCH:-$(uname -m)}
    shift
else
    command=build arch=${1:-$(uname -m)}
fi
case $arch in
x86_64 | aarch64) ;;
*) echo "usage: $0 [x86_64|aarch64] | test OPTION..." >&2 && exit 2 ;;
esac
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
made=$target/static/$arch # folder of what is made
build=$target/static/build
triple=$arch-unknown-linux-musl
# As it is in the names of variables.
name=${arch}_unknown_linux_musl

# Times and folders leave no trace. Of these OpenSSL keeps two, under the names that its Makefile has for them.
# The time is that of the commit; C sources have a constant one, since they are compiled again when it changes.
EBPF_SIDECAR_TIME=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
SOURCE_DATE_EPOCH=0
GNUMAKEFLAGS="MODULESDIR=/usr/local/lib/ossl-modules ENGINESDIR=/usr/local/lib/engines-3"
export EBPF_SIDECAR_TIME SOURCE_DATE_EPOCH GNUMAKEFLAGS
# musl hides the *64 names, which libelf uses. Nothing unwinds through C or C++: the callbacks that gRPC has of ours catch
# their panics, and gRPC throws nothing itself. Abseil, in gRPC, throws: where it cannot open /dev/urandom, which an empty
# root does not have, unless it is told to ask the kernel, as it does by itself with glibc.
c="-Os -g0 -fomit-frame-pointer -fno-exceptions -fno-unwind-tables -fno-asynchronous-unwind-tables -D_LARGEFILE64_SOURCE"
cxx="-DABSL_RANDOM_USE_GET_ENTROPY=1 -Wno-missing-template-arg-list-after-template-kw"
rust="" paths=""
for map in "$PWD=/src" "$build=/target" "${CARGO_HOME:-$HOME/.cargo}=/cargo"; do
    rust="$rust --remap-path-prefix=$map"
    paths="$paths -ffile-prefix-map=$map"
done

has_library() { # of Rust, for this target
    [ -d "$(rustc --print target-libdir --target "$triple" 2>/dev/null)" ]
}

std=""
if [ -e /etc/alpine-release ]; then
    triple=$(rustc -vV | sed -n 's/^host: //p')
    [ "${triple%%-*}" = "$arch" ] || { echo "on Alpine only for its own architecture" >&2 && exit 3; }
    name=$(echo "$triple" | tr - _)
    rust="$rust -C target-feature=+crt-static"
    cargo=cargo
else
    sh .ci/deps.sh static || exit 3
    tools=$target/static/venv
    # The last zig whose libc is musl but for memcpy and memmove: later ones replace more of it (posix_fadvise of 0.17
    # returns -1 for EBADF). No -Os when linking, which is when zig builds both: they would copy byte by byte.
    [ -x "$tools/bin/cargo-zigbuild" ] || {
        python3 -m venv "$tools" &&
            "$tools/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements/static.txt
    } || exit 3
    export PATH="$tools/bin:$PATH"
    # It would start zig through Python, some 2,500 times.
    CARGO_ZIGBUILD_ZIG_PATH=$(echo "$tools"/lib/python3*/site-packages/ziglang/zig)
    export CARGO_ZIGBUILD_ZIG_PATH CARGO_ZIGBUILD_PYTHON_PATH=false
    cargo=cargo-zigbuild
    if ! has_library; then
        rustup target add "$triple" 2>/dev/null || :
    fi
    if ! has_library; then
        sh .ci/deps.sh std || exit 3
        export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
        rust="$rust -C link-self-contained=no"
        std=-Zbuild-std=std,panic_unwind
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
    # OpenSSL keeps the compiler's name and flags in the library: what has a path in it is in commands of our own.
    mkdir -p "$target/static/bin"
    for language in cc c++; do
        cat >"$target/static/bin/$triple-$language" <<END
#!/bin/sh
exec "$tools/bin/cargo-zigbuild" zig $language -- -target $arch-linux-musl -fno-sanitize=all $paths \\
    -idirafter "$target/static/include" "\$@"
END
        chmod 755 "$target/static/bin/$triple-$language"
    done
    export PATH="$target/static/bin:$PATH" "CC_$name=$triple-cc" "CXX_$name=$triple-c++" \
        "CMAKE_TOOLCHAIN_FILE_$name=$PWD/.cargo/grpc.cmake"
    paths=""
fi
c="$c $paths"

export RUSTFLAGS="$rust" "CFLAGS_$name=$c" "CXXFLAGS_$name=$c $cxx"
if [ $command = test ] && [ ! -e "$made/reuse.env" ] && [ "$arch" != "$(uname -m)" ]; then
    # rustc's own linker, for it has the switch; with it come musl and what begins a program, from rustup.
    [ -z "$std" ] || { echo "rustup has no library for $triple" >&2 && exit 3; }
    own=$target/static/$(uname -m) # whose headers do
    [ -e "$own/reuse.env" ] || { echo "no static binary was built, whose headers of gRPC and OpenSSL are wanted" >&2 && exit 3; }
    none=$made/none
    mkdir -p "$none/lib"
    openssl=$(sed -n "s/^OPENSSL_DIR='\(.*\)'/\1/p" "$own/reuse.env")
    ln -sfn "$openssl/include" "$none/include"
    for library in ssl crypto; do printf '!<arch>\n' >"$none/lib/lib$library.a"; done
    # All that is called nevertheless: for the policy of the page, which says nothing then.
    echo 'int EVP_EncodeBlock(void) { return 0; } void *SHA256(void) { return 0; }' >"$none/none.c"
    "$triple-cc" -c -o "$none/none.o" "$none/none.c"
    rm -f "$none/lib/libc++.a"
    llvm-ar rc "$none/lib/libc++.a" "$none/none.o"
    sed 's/^Libs:.*/Libs:/' "$own/pkgconfig/grpc.pc" >"$none/lib/grpc.pc"
    export GRPCIO_SYS_USE_PKG_CONFIG=1 PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_ALL_STATIC=1 PKG_CONFIG_LIBDIR="$none/lib" \
        OPENSSL_NO_VENDOR=1 OPENSSL_STATIC=1 OPENSSL_DIR="$none"
    export RUSTFLAGS="$rust -C linker=rust-lld -C linker-flavor=ld.lld -C link-arg=--unresolved-symbols=ignore-all"
    exec cargo test --locked --target "$triple" "$@"
fi
if [ $command = test ]; then
    set -a
    # shellcheck disable=SC1091 # made below
    . "$made/reuse.env"
    set +a
    # shellcheck disable=SC2086 # an option or none
    exec $cargo test ${std:+$std,test} --locked --target "$triple" "$@"
fi
# shellcheck disable=SC2086
CARGO_TARGET_DIR=$build $cargo rustc $std --locked --profile static --bin ebpf-sidecar --target "$triple"

mkdir -p "$made/pkgconfig"
cp "$build/$triple/static/ebpf-sidecar" "$made"
# Where the libraries of this build are, as pkg-config says it. The newest folder is the one in use.
newest() { # FILE under the folder of a crate's build script
    ls -td "$build/$triple/static/build"/$1 | head -n 1
}
output=$(newest 'grpcio-sys-*/output')
sources=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "${output%/*}/out/build/CMakeCache.txt")
{
    echo "Name: grpc"
    echo "Description: gRPC's core, as $0 built it"
    echo "Version: $(sed -n 's/^set(PACKAGE_VERSION "\(.*\)")$/\1/p' "${output%/*}/out/build/gRPCConfigVersion.cmake")"
    echo "Cflags: -I$sources/include"
    echo "Libs: $(sed -n 's/^cargo:rustc-link-search=native=/-L/p; s/^cargo:rustc-link-lib=static=/-l/p' "$output" |
        grep -v '^-lgrpc_wrap$' | tr '\n' ' ')"
} >"$made/pkgconfig/grpc.pc"
cat >"$made/reuse.env" <<END
GRPCIO_SYS_USE_PKG_CONFIG=1
PKG_CONFIG_ALLOW_CROSS=1
PKG_CONFIG_ALL_STATIC=1
PKG_CONFIG_LIBDIR='$made/pkgconfig'
OPENSSL_NO_VENDOR=1
OPENSSL_STATIC=1
OPENSSL_DIR='$(newest 'openssl-sys-*/out/openssl-build/install')'
END
binary=$made/ebpf-sidecar
echo "$binary: $(stat -c %s "$binary") bytes, sha256 $(sha256sum "$binary" | cut -d ' ' -f 1)"
