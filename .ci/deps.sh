#!/bin/sh
# Installs the packages that are missing: `deps.sh build` those for building, `deps.sh test` those that the
# tests need besides, `deps.sh vm` and `deps.sh vm-arm64` those for the tests on other kernels, `deps.sh browser` those for
# the page's, `deps.sh image` those for the image's, `deps.sh static` and `deps.sh std` what .ci/static.sh asks for,
# `deps.sh fuzz` and `deps.sh dist` what .ci/fuzz.sh and .ci/dist.sh do. Quiet when nothing is missing.
set -eu

fail() {
    echo "$*" >&2
    exit 1
}

case "${1-}" in
build) # libelf, inside libbpf-sys, is built with the autotools; clang and llvm-strip make the BPF object; gRPC is built
    # with cmake and g++, OpenSSL with perl
    debian="clang llvm make cmake gcc g++ perl pkg-config autoconf automake libtool flex bison gawk gettext autopoint"
    alpine="clang llvm make cmake gcc g++ perl pkgconf autoconf automake libtool flex bison gawk gettext gettext-dev
        musl-dev linux-headers argp-standalone musl-fts-dev musl-obstack-dev"
    ;;
test) # promtool and a Prometheus to scrape with; file systems on loop devices; what units, completions and manual are for;
    # a gRPC client that is not ours; what adds up the answers of BanyanDB
    debian="prometheus e2fsprogs util-linux curl jq systemd zsh fish man-db python3 python3-venv"
    alpine="prometheus e2fsprogs util-linux curl jq bash zsh fish man-db python3"
    ;;
vm) # an emulator, what goes into the machine, and what finds the modules of its kernel
    debian="qemu-system-x86 busybox-static cpio e2fsprogs util-linux kmod debian-archive-keyring"
    alpine="qemu-system-x86_64 busybox-static cpio e2fsprogs kmod"
    ;;
vm-arm64) # the emulator of the other architecture
    debian="qemu-system-arm"
    alpine="qemu-system-aarch64"
    ;;
static) # zig comes from Python's registry
    debian="python3 python3-venv"
    alpine=""
    ;;
image) # a container without a daemon; crun, podman's usual runtime, refuses hosts with both versions of cgroups
    debian="podman runc"
    alpine="podman runc"
    ;;
std) # Rust's library as source, and the compiler that it belongs to
    debian="rustc-web rust-web-src"
    alpine=""
    ;;
fuzz) # an OpenSSL for the fuzz targets to be linked with, a loader of wheels, and what reads cargo's answers
    debian="libssl-dev python3 python3-venv jq"
    alpine="openssl-dev python3 jq"
    ;;
dist) # what reads cargo's answers, and a tar that sorts
    debian="jq tar gzip"
    alpine="jq tar gzip"
    ;;
browser) # Chromium, what drives it, and letters for its pictures
    debian="chromium chromium-driver fonts-dejavu-core"
    alpine="chromium chromium-chromedriver font-dejavu"
    ;;
*) fail "usage: $0 build|test|vm|vm-arm64|fuzz|dist|browser|image|static|std" ;;
esac

check_rust() {
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        fail "cargo or rustc is missing: install Rust $needed or newer with rustup, then try again"
    found=$(rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] ||
        fail "rustc is $found, $needed or newer is needed: rustup update, or install it with rustup"
}

# Prints those of the packages given that are not installed, with `$installed PACKAGE` to tell.
missing() {
    for package in "$@"; do
        $installed "$package" || printf ' %s' "$package"
    done
}

dpkg_has() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

apk_has() {
    apk info -e "$1" >/dev/null
}

apt_install() {
    # The packages of services start them; this is how Debian lets a host refuse.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        trap 'exit 1' INT TERM
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
    case " $* " in
    *" prometheus "*) systemctl disable --quiet prometheus 2>/dev/null || : ;; # nor at the next boot
    esac
}

[ "${2-}" = as-root ] || check_rust

if command -v apt-get >/dev/null; then
    wanted=$debian installed=dpkg_has install=apt_install by_hand="apt-get install"
elif command -v apk >/dev/null; then
    wanted=$alpine installed=apk_has install="apk add" by_hand="apk add"
else
    echo "neither apt-get nor apk: taking these, as Debian calls them, to be installed: $debian" >&2
    exit 0
fi

packages=$(missing $wanted)
if [ -z "$packages" ]; then
    exit 0
elif [ "$(id -u)" = 0 ]; then
    echo "installing$packages"
    $install $packages
elif command -v sudo >/dev/null; then
    sudo sh "$0" "$1" as-root
else
    fail "packages are missing and there is no sudo; as root: $by_hand$packages"
fi
