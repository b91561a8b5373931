# docker build -t raptor . && docker run -p 6001:6001 -v $PWD/raptor.toml:/etc/raptor/raptor.toml:ro raptor
FROM rust:1-slim-trixie AS build
# SQLite, which keeps webhooks, and the allocator are C.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home raptor
COPY --from=build /src/target/release/raptor /usr/bin/raptor
USER 10001
EXPOSE 6001
ENTRYPOINT ["/usr/bin/raptor"]
CMD ["serve", "--config", "/etc/raptor/raptor.toml"]
