#!/bin/sh
# Lays out what the images hold: rootfs.sh BINARY FOLDER
set -eu
cd "$(dirname "$0")/.."
install -D -m 755 "$1" "$2/usr/bin/ebpf-sidecar"
ln -sf ebpf-sidecar "$2/usr/bin/sidecar"
install -D -m 644 configs/config.yaml "$2/etc/ebpf-sidecar/config.yaml"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$2/etc/ssl/certs/ca-certificates.crt"
