#!/bin/bash
# Fetches Debian's cloud kernels into the cache, `kernels.sh 5.10 6.1 6.12 7.2 6.12:arm64`, and prints the image of each.
# `kernels.sh busybox:arm64` is the shell of that architecture's machines.
# These have ext4 and NVMe built in; `6.12+16k:arm64`, with pages of 16 KiB, is no cloud kernel and has not. What is needed of
# a kernel's modules lies beside its image, in modules-NAME/RELEASE. The mirror is the one of this machine's own apt, which may
# stand still at a date; apt keeps a state of its own, so that nothing of the machine changes.
set -euo pipefail

cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ebpf-sidecar-vm}
apt_state=$cache/apt.$$ work=$cache/work.$$
trap 'rm -rf "$apt_state" "$work"' EXIT # the lists of four releases take 250 MB
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Pattern of the package that has a kernel of this version, for this architecture.
package_of() {
    case $1 in
    5.10) echo "linux-image-5\.10\.0-[0-9]+-cloud-$2" ;;
    6.1) echo "linux-image-6\.1\.0-[0-9]+-cloud-$2" ;;
    6.12) echo "linux-image-6\.12\.[0-9+.a-z]*-cloud-$2" ;;
    7.2) echo "linux-binary-7\.2\.[0-9+.a-z~-]*-cloud-$2" ;;
    6.12+16k) echo "linux-image-6\.12\.[0-9+.a-z]*-$2-16k" ;;
    busybox) echo busybox-static ;;
    *) echo "no kernel $1: 5.10, 6.1, 6.12, 6.12+16k and 7.2 are known" >&2 && return 1 ;;
    esac
}

prepare_apt() { # ARCHITECTURE
    [ "${prepared:-}" = "$1" ] && return
    prepared=$1
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | head -n 1)
    [ -n "$mirror" ] || { echo "apt has no mirror: run apt-get update" >&2 && return 1; }
    rm -rf "$apt_state"
    mkdir -p "$apt_state/lists/partial" "$apt_state/cache/archives/partial"
    for release in bullseye bookworm trixie sid; do
        echo "deb [signed-by=$keyring] $mirror $release main"
    done >"$apt_state/sources.list"
    apt="-oDir::Etc::sourcelist=$apt_state/sources.list -oDir::Etc::sourceparts=/dev/null
        -oDir::State::lists=$apt_state/lists -oDir::Cache=$apt_state/cache -oAPT::Architecture=$1 -oAPT::Architectures=$1
        -oAcquire::Languages=none -oAcquire::Check-Valid-Until=false -oAPT::Sandbox::User=root -oDir::State::status=/dev/null"
    apt-get $apt update -qq >&2
}

# Of the modules unpacked, these and what they need.
modules() { # FOLDER MODULE...
    local tree=$work/unpacked/usr folder=$1 release file
    shift
    [ -d "$tree/lib/modules" ] || tree=$work/unpacked
    release=$(ls "$tree/lib/modules")
    depmod -b "$tree" "$release" 2>/dev/null # some packages have no list of what is built in
    rm -rf "$folder"
    modprobe -d "$tree" -S "$release" --show-depends -a "$@" | sed -n 's/^insmod //p' | sort -u |
        while read -r file _; do
            mkdir -p "$work/few${file%/*}"
            cp "$file" "$work/few${file%/*}"
        done
    tree=$work/few$tree
    cp "${tree#"$work/few"}/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$tree/lib/modules/$release" 2>/dev/null || :
    depmod -b "$tree" "$release" 2>/dev/null
    mv "$tree/lib/modules" "$folder"
}

for kernel in "$@"; do
    version=${kernel%:*} architecture=amd64 suffix=
    case $kernel in *:*) architecture=${kernel#*:} suffix=-$architecture ;; esac
    image=$cache/vmlinuz-$version$suffix
    folder=$cache/modules-$version$suffix
    [ "$version" != busybox ] || image=$cache/busybox$suffix folder=$cache
    if [ ! -e "$image" ] || [ ! -d "$folder" ]; then
        pattern=$(package_of "$version" "$architecture")
        prepare_apt "$architecture"
        name=$(apt-cache $apt pkgnames | grep -xE "$pattern" | grep -v unsigned | sort -V | tail -n 1)
        [ -n "$name" ] || { echo "the mirror has no package $pattern" >&2 && exit 1; }
        echo "fetching $name" >&2
        rm -rf "$work" && mkdir -p "$work/unpacked"
        # Debian's newest kernels have their modules in a package of their own.
        more=
        [[ $name != linux-binary-* ]] || more=linux-modules-${name#linux-binary-}
        # shellcheck disable=SC2086
        (cd "$work" && apt-get $apt download -qq "$name" $more >&2 && for deb in *.deb; do dpkg -x "$deb" unpacked; done)
        case $version in
        busybox) ;;
        *+16k) modules "$folder" nvme ext4 loop overlay ;;
        *) modules "$folder" loop overlay ;;
        esac
        mv "$(find "$work/unpacked" \( -name 'vmlinuz*' -o -path '*/bin/busybox' \) -type f | head -n 1)" "$image"
        rm -rf "$work"
    fi
    echo "$image"
done
