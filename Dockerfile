# syntax=docker/dockerfile:1
# `docker build -t eastway .`; `make image` makes the same without Docker.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc g++ cmake make perl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p eastway && install -D -m 755 target/release/eastway /out/eastway

# glibc, libgcc and certificates; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/eastway /usr/bin/eastway
USER 65532:65532
ENTRYPOINT ["/usr/bin/eastway"]
