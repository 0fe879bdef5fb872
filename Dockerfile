# The image on Debian, linked dynamically. Dockerfile.alpine makes the smaller ones.
#   docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD) -t banyandb/ebpf-sidecar:debian .
ARG DEBIAN=bookworm
ARG RUST=1.91

FROM rust:${RUST}-${DEBIAN} AS build
WORKDIR /src
# Apart from the sources, so that a change of them does not install the packages again.
COPY Cargo.toml ./
COPY .ci/deps.sh .ci/
RUN sh .ci/deps.sh build
COPY . .
# The tree has no .git here.
ARG COMMIT=unknown
ARG SOURCE_DATE_EPOCH
RUN EBPF_SIDECAR_COMMIT="$COMMIT" SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" cargo build --release --locked \
    && sh .ci/rootfs.sh target/release/ebpf-sidecar /image

FROM debian:${DEBIAN}-slim
LABEL org.opencontainers.image.title="ebpf-sidecar" \
    org.opencontainers.image.description="Kernel-level I/O observability for a database" \
    org.opencontainers.image.vendor="BanyanDB" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
EXPOSE 8080 9090
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/usr/bin/ebpf-sidecar", "health"]
ENTRYPOINT ["/usr/bin/ebpf-sidecar"]
