#!/bin/sh
# Checks what the agent depends on, as .ci/deny.toml says. Advisories need their database, which is fetched or was before; where
# it cannot be had this is said, and the rest is checked.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=.ci/tools.sh
. .ci/tools.sh
tool deny cargo-deny || {
    echo "SKIPPED deny: cargo-deny cannot be installed"
    exit 0
}
cargo-deny --offline --locked --config .ci/deny.toml check licenses bans sources
if cargo-deny --config .ci/deny.toml fetch db >/dev/null 2>&1; then
    cargo-deny --locked --config .ci/deny.toml check advisories
else
    echo "SKIPPED deny advisories: their database cannot be fetched here"
fi
