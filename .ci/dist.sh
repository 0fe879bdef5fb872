#!/bin/sh
# Makes what is released, target/dist/ebpf-sidecar-VERSION-linux-ARCH.tar.gz and its SHA256SUMS: the static binary, and what
# `make install` lays beside it, the licence and a bill of materials. The same commit gives the same bytes.
set -eu
cd "$(dirname "$0")/.."
sh .ci/deps.sh dist
sh .ci/static.sh
arch=$(uname -m)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
binary=$target/static/$arch/ebpf-sidecar
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=ebpf-sidecar-$version-linux-$arch
out=$target/dist
rm -rf "$out"
mkdir -p "$out/$name"
# Times of files are the commit's, and so is what the manual page says.
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
umask 022
make --no-print-directory install DESTDIR="$out/$name" PREFIX=/usr BINARY="$binary"
install -D -m 644 LICENSE "$out/$name/usr/share/doc/ebpf-sidecar/LICENSE"
sh .ci/sbom.sh >"$out/$name/usr/share/doc/ebpf-sidecar/sbom.cdx.json"
(cd "$out/$name" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner --format=ustar -C "$out" -cf - "$name" |
    gzip -9n >"$out/$name.tar.gz"
cp "$out/$name/usr/share/doc/ebpf-sidecar/sbom.cdx.json" "$out/$name.cdx.json"
rm -rf "${out:?}/$name"
(cd "$out" && sha256sum "$name.tar.gz" "$name.cdx.json" >SHA256SUMS && cat SHA256SUMS)
