#!/bin/bash
# Fetches Debian's cloud kernels into the cache, `kernels.sh 5.10 6.1 6.12 7.2`, and prints the image of each.
# Modules are not needed: these kernels have ext4 and NVMe built in. The mirror is the one of this machine's own
# apt, which may stand still at a date; apt keeps a state of its own, so that nothing of the machine changes.
set -euo pipefail

cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ebpf-sidecar-vm}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Release of Debian and pattern of the package that has a kernel of this version.
package_of() {
    case $1 in
    5.10) echo bullseye 'linux-image-5\.10\.0-[0-9]+-cloud-amd64' ;;
    6.1) echo bookworm 'linux-image-6\.1\.0-[0-9]+-cloud-amd64' ;;
    6.12) echo trixie 'linux-image-6\.12\.[0-9+.a-z]*-cloud-amd64' ;;
    7.2) echo sid 'linux-binary-7\.2\.[0-9+.a-z~-]*-cloud-amd64' ;;
    *) echo "no kernel $1: 5.10, 6.1, 6.12 and 7.2 are known" >&2 && return 1 ;;
    esac
}

prepare_apt() {
    [ -n "${apt:-}" ] && return
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | head -n 1)
    [ -n "$mirror" ] || { echo "apt has no mirror: run apt-get update" >&2 && return 1; }
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    for release in bullseye bookworm trixie sid; do
        echo "deb [signed-by=$keyring] $mirror $release main"
    done >"$cache/apt/sources.list"
    apt="-oDir::Etc::sourcelist=$cache/apt/sources.list -oDir::Etc::sourceparts=/dev/null
        -oDir::State::lists=$cache/apt/lists -oDir::Cache=$cache/apt/cache -oAPT::Architecture=amd64
        -oAcquire::Languages=none -oAcquire::Check-Valid-Until=false -oAPT::Sandbox::User=root -oDir::State::status=/dev/null"
    apt-get $apt update -qq >&2
}

for version in "$@"; do
    image=$cache/vmlinuz-$version
    if [ ! -e "$image" ]; then
        read -r _ pattern <<<"$(package_of "$version")"
        prepare_apt
        name=$(apt-cache $apt pkgnames | grep -xE "$pattern" | grep -v unsigned | sort -V | tail -n 1)
        [ -n "$name" ] || { echo "the mirror has no package $pattern" >&2 && exit 1; }
        echo "fetching $name" >&2
        work=$cache/work
        rm -rf "$work" && mkdir -p "$work/unpacked"
        (cd "$work" && apt-get $apt download -qq "$name" >&2 && dpkg -x ./*.deb unpacked)
        mv "$(find "$work/unpacked" -name 'vmlinuz*' -type f | head -n 1)" "$image"
        rm -rf "$work"
    fi
    echo "$image"
done
rm -rf "$cache/apt" # the lists of four releases take 250 MB
