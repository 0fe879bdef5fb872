#!/bin/sh
# Makes what is released, in target/dist: for each architecture named (x86_64 and aarch64, if none is; on Alpine this machine's)
# a tarball, a .deb, an .rpm, an image and a bill of materials, of the static binary and what `make install` lays beside it; an
# image of all of them together; and SHA256SUMS. The same commit gives the same bytes. No daemon is asked for the images.
set -eu
cd "$(dirname "$0")/.."
[ "$#" -gt 0 ] || set -- x86_64 aarch64
sh .ci/deps.sh dist
own=$(uname -m)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=$PWD/target/dist stage=$PWD/target/dist/stage # where Cargo.toml looks for what goes into packages
# Times of files are the commit's, and so is what the manual page says.
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
umask 022

# The programs that make packages, compiled once.
for tool in cargo-deb@3.8.0 cargo-generate-rpm@0.21.1; do
    [ -x "$target/tools/$tool/bin/${tool%@*}" ] ||
        CARGO_TARGET_DIR="$target/tools/build" cargo install --quiet --locked --root "$target/tools/$tool" "$tool"
    PATH="$target/tools/$tool/bin:$PATH"
done
export PATH

# The manual page and the completions are made by a binary that runs here.
sh .ci/static.sh
for arch in "$@"; do
    [ "$arch" = "$own" ] || sh .ci/static.sh "$arch"
done

rm -rf "$out"
for arch in "$@"; do
    binary=$target/static/$arch/ebpf-sidecar
    name=ebpf-sidecar-$version-linux-$arch
    rm -rf "$stage"
    make --no-print-directory install DESTDIR="$stage" PREFIX=/usr BINARY="$binary" MAKER="$target/static/$own/ebpf-sidecar"
    install -D -m 644 LICENSE "$stage/usr/share/doc/ebpf-sidecar/LICENSE"
    sh .ci/sbom.sh "$arch" >"$out/$name.cdx.json"
    install -m 644 "$out/$name.cdx.json" "$stage/usr/share/doc/ebpf-sidecar/sbom.cdx.json"
    find "$stage" -exec touch --no-dereference --date="@$time" {} +

    cp -a "$stage" "$out/$name"
    (cd "$out/$name" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
    tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner --format=ustar -C "$out" -cf - "$name" |
        gzip -9n >"$out/$name.tar.gz"
    rm -rf "${out:?}/$name"

    triple=$arch-unknown-linux-musl
    case $arch in x86_64) debian=amd64 ;; *) debian=arm64 ;; esac
    SOURCE_DATE_EPOCH=$time cargo-deb --quiet --no-build --no-strip --target "$triple" \
        --output "$out/ebpf-sidecar_${version}_$debian.deb"
    cargo-generate-rpm --target "$triple" --arch "$arch" --source-date "$time" --payload-compress gzip \
        --output "$out/ebpf-sidecar-$version.$arch.rpm"
    rm -rf "$stage"
done
# shellcheck disable=SC2086 # one word each
sh .ci/oci.sh "$out" "$version" "$time" "$@"
(cd "$out" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >SHA256SUMS && cat SHA256SUMS)
