# A bill of materials (CycloneDX 1.5) of the static binary, from `cargo metadata`. $linked are the crates in it, as
# name@version: what only builds it, and macros, which run in the compiler, are not. $c are the components in C and C++,
# $checksums those of Cargo.lock.
(.packages | map(select(IN("\(.name)@\(.version)"; $linked[])) | {key: .id, value: .}) | from_entries) as $packages
| .resolve.root as $root
| def reference: $packages[.] | "pkg:cargo/\(.name)@\(.version | @uri)";
  {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      timestamp: $time,
      component: {
        type: "application",
        "bom-ref": ($root | reference),
        name: $packages[$root].name,
        version: $packages[$root].version,
        licenses: [{expression: $packages[$root].license}],
        properties: [{name: "commit", value: $commit}, {name: "target", value: $target}]
      }
    },
    components: (
      [$packages[] | select(.id != $root) | {
        type: "library",
        "bom-ref": (.id | reference),
        name,
        version,
        purl: (.id | reference),
        licenses: [{expression: (.license | gsub("/"; " OR "))}],
        hashes: [{alg: "SHA-256", content: $checksums["\(.name)@\(.version)"]}]
      }] + $c | sort_by(."bom-ref")),
    dependencies: [
      .resolve.nodes[] | select($packages[.id]) | {
        ref: (.id | reference),
        dependsOn: ([.deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg | select($packages[.]) | reference] | sort)
      }] | sort_by(.ref)
  }
