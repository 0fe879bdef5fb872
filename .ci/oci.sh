#!/bin/sh
# Writes the image of the static binary, as the last stage of Dockerfile.alpine has it, into archives: oci.sh FOLDER VERSION TIME
# ARCH... makes ebpf-sidecar-VERSION-image-ARCH.tar of each, which Docker, podman and skopeo load, and ebpf-sidecar-VERSION-image.tar of
# all, an index from which podman, skopeo, and Docker with containerd's store take their own.
set -eu
cd "$(dirname "$0")/.."
out=$1 version=$2 time=$3
shift 3
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
name=banyandb/ebpf-sidecar
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
created=$(date -u -d "@$time" +%Y-%m-%dT%H:%M:%SZ)

pack() { # FOLDER ARCHIVE
    (cd "$1" && tar --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner --format=ustar -cf "$2" -- *)
}
# Puts FILE among the blobs of LAYOUT: prints its descriptor, of this MEDIA TYPE.
blob() { # LAYOUT FILE MEDIATYPE
    digest=$(sha256sum "$2" | cut -d ' ' -f 1)
    mkdir -p "$1/blobs/sha256"
    cp "$2" "$1/blobs/sha256/$digest"
    jq -cn --arg type "$3" --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$2")" \
        '{mediaType: $type, digest: $digest, size: $size}'
}
# The layout's own files; DESCRIPTOR is what it is of.
layout() { # LAYOUT DESCRIPTOR
    printf '{"imageLayoutVersion":"1.0.0"}' >"$1/oci-layout"
    jq -cn --argjson of "$2" --arg name "docker.io/$name:$version" --arg version "$version" '{schemaVersion: 2,
        mediaType: "application/vnd.oci.image.index.v1+json", manifests: [$of + {annotations:
        {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $version}}]}' >"$1/index.json"
}
# What the Dockerfile says of the image, as one object.
said=$(awk '/^FROM scratch/ { on = 1 } on' Dockerfile.alpine | awk '
    { line = line $0 } /\\$/ { sub(/\\$/, "", line); next }
    { print line; line = "" }' | jq -R -s 'split("\n") | map(select(. != "")) | {
        Labels: ([.[] | select(startswith("LABEL ")) | scan("([a-z.]+)=\"([^\"]*)\"") | {key: .[0], value: .[1]}] | from_entries),
        ExposedPorts: ([.[] | select(startswith("EXPOSE ")) | scan("[0-9]+") | {key: "\(.)/tcp", value: {}}] | from_entries),
        Entrypoint: (.[] | select(startswith("ENTRYPOINT ")) | ltrimstr("ENTRYPOINT ") | fromjson),
        Healthcheck: (.[] | select(startswith("HEALTHCHECK ")) | {
            Test: (["CMD"] + (capture("CMD (?<c>.*)$").c | fromjson)),
            Interval: (capture("--interval=(?<n>[0-9]+)s").n | tonumber * 1000000000),
            Timeout: (capture("--timeout=(?<n>[0-9]+)s").n | tonumber * 1000000000),
            StartPeriod: (capture("--start-period=(?<n>[0-9]+)s").n | tonumber * 1000000000)})}')

all=$work/all manifests=""
mkdir "$all"
for arch in "$@"; do
    case $arch in x86_64) goarch=amd64 ;; *) goarch=arm64 ;; esac
    root=$work/$arch.root one=$work/$arch
    mkdir "$root" "$one"
    sh .ci/rootfs.sh "$target/static/$arch/ebpf-sidecar" "$root"
    pack "$root" "$work/layer.tar"
    gzip -9n <"$work/layer.tar" >"$work/layer.tar.gz"
    jq -cn --argjson said "$said" --arg arch $goarch --arg created "$created" --arg version "$version" \
        --arg diff "sha256:$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)" '{created: $created, architecture: $arch, os: "linux",
        config: ($said + {Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
        | .Labels["org.opencontainers.image.version"] = $version),
        rootfs: {type: "layers", diff_ids: [$diff]}, history: [{created: $created, created_by: ".ci/oci.sh"}]}' >"$work/config.json"
    for layout in "$one" "$all"; do
        layer=$(blob "$layout" "$work/layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)
        config=$(blob "$layout" "$work/config.json" application/vnd.oci.image.config.v1+json)
        jq -cn --argjson config "$config" --argjson layer "$layer" '{schemaVersion: 2,
            mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}' >"$work/manifest.json"
        manifest=$(blob "$layout" "$work/manifest.json" application/vnd.oci.image.manifest.v1+json)
    done
    manifest=$(printf '%s' "$manifest" | jq -c --arg arch $goarch '. + {platform: {architecture: $arch, os: "linux"}}')
    layout "$one" "$manifest"
    # For a Docker that knows no layouts.
    jq -cn --argjson config "$config" --argjson layer "$layer" --arg tag "$name:$version" '
        def file: "blobs/sha256/" + ltrimstr("sha256:");
        [{Config: ($config.digest | file), RepoTags: [$tag], Layers: [$layer.digest | file]}]' >"$one/manifest.json"
    pack "$one" "$out/ebpf-sidecar-$version-image-$arch.tar"
    manifests="$manifests $manifest"
done
printf '%s' "$manifests" | jq -cs '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: .}' >"$work/index.json"
layout "$all" "$(blob "$all" "$work/index.json" application/vnd.oci.image.index.v1+json)"
pack "$all" "$out/ebpf-sidecar-$version-image.tar"
