FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# rust-toolchain.toml stays outside (see .dockerignore): it would have rustup fetch a second compiler.
COPY . .
# The caches outlive the build but not the step, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin sluicegate \
    && cp target/release/sluicegate /usr/local/bin/sluicegate

FROM debian:bookworm-slim
# Upstream certificates are checked against the system's authorities; pinning their version would only age them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sluicegate \
    && install -d -o sluicegate -g sluicegate -m 0750 /data
COPY --from=build /usr/local/bin/sluicegate /usr/local/bin/sluicegate

# Inside the container loopback reaches nobody. Beyond it the gateway starts only with API keys, or with
# SLUICEGATE__AUTH__ALLOW_ANONYMOUS=true from someone who knows who can reach the port.
ENV SLUICEGATE__SERVER__LISTEN=0.0.0.0:8080 \
    SLUICEGATE__STORE__URL=sqlite:///data/sluicegate.db

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
# The only place that is written to: the root file system may be read-only.
VOLUME /data
EXPOSE 8080
# Open streams get their last event on SIGTERM; give it 30 s before SIGKILL.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["sluicegate", "healthcheck"]
ENTRYPOINT ["sluicegate"]
CMD ["serve"]
