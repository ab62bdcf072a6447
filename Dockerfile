# The images by a container engine, for amd64 and arm64. `cargo xtask images` writes the same programs without one
# (docs/images.md). The programs for arm64 are cross-compiled: nothing is emulated.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --target operator --tag registry.example.com/scopeprobe/operator:0.1.0 --push .
#   docker buildx build --platform linux/amd64,linux/arm64 --target agent --tag registry.example.com/scopeprobe/agent:0.1.0 --push .
ARG RUST_VERSION=1.95.0
FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-trixie AS build
WORKDIR /source
COPY . .
ARG TARGETPLATFORM
RUN if [ "$TARGETPLATFORM" = linux/arm64 ]; then scripts/setup arm64; fi && \
    cargo xtask images operator agent --platform "$TARGETPLATFORM" && \
    for image in operator agent; do \
        mkdir -p "/image/$image" && \
        tar --extract --to-stdout --wildcards --file "$(find dist -name "scopeprobe-$image.tar")" '*/layer.tar' | tar --extract --directory "/image/$image"; \
    done

FROM scratch AS operator
LABEL org.opencontainers.image.title="scopeprobe-operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/operator/ /
USER 65532:65532
ENTRYPOINT ["/scopeprobe-operator"]

# Root without capabilities but those of its DaemonSet (docs/privileges.md).
FROM scratch AS agent
LABEL org.opencontainers.image.title="scopeprobe-agent" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/agent/ /
USER 0:0
ENTRYPOINT ["/scopeprobe-agent"]
