#!/bin/sh
# Builds an OpenTelemetry Collector, by its own builder, and a Prometheus that takes OTLP, into target/otel/bin, with Go.
set -eu
cd "$(dirname "$0")/.."
otel=$(realpath -m "${CARGO_TARGET_DIR:-target}")/otel
mkdir -p "$otel/bin" "$otel/prometheus"
cd "$otel"
version=v0.130.0
[ -x bin/otelcol ] || {
    GOBIN=$otel/bin go install "go.opentelemetry.io/collector/cmd/builder@$version"
    cat >builder.yaml <<END
dist: {name: otelcol, output_path: ./collector}
receivers: [{gomod: go.opentelemetry.io/collector/receiver/otlpreceiver $version}]
exporters: [{gomod: go.opentelemetry.io/collector/exporter/otlphttpexporter $version}]
END
    bin/builder --config builder.yaml
    cp collector/otelcol bin
}
[ -x bin/prometheus ] || {
    cd prometheus
    printf 'module prometheus\ngo 1.24\n' >go.mod
    printf '//go:build tools\npackage prometheus\nimport _ "github.com/prometheus/prometheus/cmd/prometheus"\n' >tools.go
    go get github.com/prometheus/prometheus@v0.304.2
    go mod tidy
    go build -o ../bin/prometheus github.com/prometheus/prometheus/cmd/prometheus
}
