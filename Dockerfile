# One final stage per program: tsp (the last one, and so the default), tsp-broker, tsp-logdriver.
#
#   docker build -t tsp .                           podman build and buildah build take the same
#   docker build -t tsp-broker --target tsp-broker .
#
# To pin a base by content, give the argument with a digest: --build-arg RUNTIME_BASE=…@sha256:…
# With the same bases, SOURCE_DATE_EPOCH and --timestamp (or BuildKit's rewrite-timestamp=true) two builds are the same bytes.
# docs/operations.md tells how they are run; deploy/image-test.sh builds and tries them with bases made of Debian packages.

ARG BUILD_BASE=docker.io/library/rust:1.95.0-slim-bookworm
# C library, libgcc, certificates, a user, and neither shell nor package manager.
ARG RUNTIME_BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_BASE} AS build
# A C compiler comes with the base; nng's C library wants cmake, aws-lc wants make.
RUN command -v cmake >/dev/null && command -v make >/dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends cmake make && rm -rf /var/lib/apt/lists/*; }
# glommio's build script runs git, without a need: the C sources come with the crate.
RUN command -v git >/dev/null || ln -s /bin/true /usr/local/bin/git
WORKDIR /src
COPY . .
# `dev` builds quicker programs for a test of this file.
ARG PROFILE=release
# `true` where the registry's folder is mounted from outside.
ARG CARGO_NET_OFFLINE=false
ARG SOURCE_DATE_EPOCH=0
# The folders of a volume, as it is first mounted, are copied from these: owned by the user that the programs run as.
RUN --mount=type=cache,target=/src/target \
    CARGO_INCREMENTAL=0 cargo build --locked --profile "$PROFILE" -p tsp -p tsp-broker -p tsp-logdriver \
    && mkdir -p /out/data \
    && for program in tsp tsp-broker tsp-logdriver; do \
        strip --strip-debug -o "/out/$program" "target/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")/$program"; done \
    && touch -d "@$SOURCE_DATE_EPOCH" /out/* /out

FROM ${RUNTIME_BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.vendor="Tenant Security Proxy"
# Any other does as well: no program looks its user up, and none writes outside the folders that it is told.
USER 65532:65532
STOPSIGNAL SIGTERM

FROM runtime AS tsp-broker
LABEL org.opencontainers.image.title="tsp-broker" \
      org.opencontainers.image.description="Configuration broker: keeps tenants' configurations sealed"
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/tsp-broker /usr/local/bin/
ENV BROKER_LISTEN=0.0.0.0:3000 BROKER_DATABASE_URL=sqlite:///data/broker.db BROKER_PROFILE=/data/admin.json
EXPOSE 3000
VOLUME /data
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s CMD ["/usr/local/bin/tsp-broker", "health"]
ENTRYPOINT ["/usr/local/bin/tsp-broker"]
CMD ["serve"]

FROM runtime AS tsp-logdriver
LABEL org.opencontainers.image.title="tsp-logdriver" \
      org.opencontainers.image.description="Takes security events from proxies to the tenants' log systems"
COPY --from=build --chown=65532:65532 /out/data /logdriver
COPY --from=build /out/tsp-logdriver /usr/local/bin/
EXPOSE 9001
VOLUME /logdriver
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["/usr/local/bin/tsp-logdriver", "health"]
ENTRYPOINT ["/usr/local/bin/tsp-logdriver"]

FROM runtime AS tsp
LABEL org.opencontainers.image.title="tsp" \
      org.opencontainers.image.description="Tenant Security Proxy: wraps and unwraps document keys with each tenant's own KMS"
COPY --from=build /out/tsp /usr/local/bin/
# Client API, health and metrics, security events.
EXPOSE 7777 9000 5555
# Ready in minutes at worst, where a broker has ten thousands of tenants: until then a failure does not count.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s CMD ["/usr/local/bin/tsp", "health"]
ENTRYPOINT ["/usr/local/bin/tsp"]
