# `make help` lists what there is. Nothing here needs root but the Debian packages of `make deps`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
ARGS ?=
QUICK ?=
CASES ?=
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
TOOLS := $(TARGET)/tools/bin
COREDNS_VERSION := v1.15.0
HELM_VERSION := v3.22.0
export EASTWAY_TOOLS := $(TOOLS)

.PHONY: help demo build image image-sidecar test unit model system demo-check e2e e2e-build e2e-clusters e2e-documents e2e-istio e2e-istio-build e2e-istio-clusters soak bed check fmt clippy doc deny deps deps-e2e deps-istio bench bench-micro bench-dns bench-xds bench-sidecar sabotage
.PHONY: regenerate

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: ## Three clouds on this machine, Bookinfo spread over them (ARGS="--once -o json" for one scripted run, ARGS=--no-envoy without Envoys)
	@$(CARGO) build --release --locked -q -p eastway
	@exec ./tests/tools/demo $(TARGET)/release/eastway $(TOOLS) $(ARGS)

build: ## Build the release binary
	$(CARGO) build --release --locked -p eastway

image: ## The container image, without Docker: target/image/eastway.tar (an OCI archive)
	@$(CARGO) build --release --locked -q -p eastway
	@mkdir -p $(TARGET)/image
	@$(CARGO) run --locked -q -p eastway-tests --example image -- $(TARGET)/release/eastway $(TARGET)/image/eastway.tar $(ARGS)

image-sidecar: deps ## The container image of sidecars, likewise: target/image/eastway-sidecar.tar, with an Envoy and this machine's nft
	@$(CARGO) build --release --locked -q -p eastway
	@mkdir -p $(TARGET)/image
	@$(CARGO) run --locked -q -p eastway-tests --example image -- $(TARGET)/release/eastway $(TARGET)/image/eastway-sidecar.tar --envoy $(TOOLS)/envoy-1.40.0 --name ghcr.io/eastway-dev/eastway-sidecar:dev $(ARGS)

test: deps ## Install what the tests need, then run all of them
	@./tests/tools/run-steps unit model system demo-check sabotage

unit: ## Unit, property, snapshot and virtual-time tests, and the fuzz corpora
	$(CARGO) test --locked --workspace --exclude eastway-tests -q

model: ## The federation simulator: 10,000 seeds of at least 300 events
	$(CARGO) test --locked --release -q -p eastway-federation --test model -- --nocapture

SYSTEM := --test system --test xds_envoy --test grpc_xds --test documents --test dns_coredns --test chart --test image --example budgets
# Tests that count bytes, delays or failures by the clock, or that take all there is: each has the machine for itself, and
# a second try, which is printed.
ALONE := chosen:: f2_ f7_ f8_ f9_ f10_ f23_ f24_ f27_replicas f31_ f38_where f38_udp f38_a_private demo:: flood:: flows:: hbone:: hostile:: scarce:: soak:: uplinks:: bench_measures iperf_ ten_thousand
# The whole workspace is selected so that features are those of `make unit`, and nothing is built twice.
system: ## Clouds as network namespaces, real CoreDNS, Envoys and gRPC libraries, the demo and the documents as a user runs them
	$(CARGO) build --release --locked -q -p eastway
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace $(SYSTEM) -- --test-threads=2 $(ALONE:%=--skip %)
	EASTWAY_BIN=$(TARGET)/release/eastway ./tests/tools/once-more $(CARGO) test --locked -q --workspace --no-fail-fast $(SYSTEM) -- --test-threads=1 for $(ALONE)
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace --test envoy -- --test-threads=2
	$(CARGO) test --locked -q --workspace --lib -- relay:: load::

demo-check: ## The demo's script, as a user without privileges, in real namespaces
	$(CARGO) build --release --locked -q -p eastway
	./tests/tools/demo-unprivileged $(TARGET)/release/eastway $(TOOLS)

e2e: ## Two real Kubernetes clusters, as root; figures go to target/e2e/summary.json (ARGS="name" for some tests)
	@./tests/tools/run-steps deps-e2e e2e-build e2e-clusters e2e-documents || { ./tests/tools/e2e-logs $(TARGET)/e2e; exit 1; }

# The whole workspace is selected for the same reason as in `make system`.
e2e-build:
	$(CARGO) build --release --locked -q -p eastway
	$(CARGO) test --locked -q --workspace --lib -- kube::
	$(CARGO) test --locked -q --workspace --test e2e --test e2e_documents --no-run

e2e-clusters:
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace --test e2e -- $(ARGS)

# Clusters of its own: it begins where a reader of docs/install.md begins.
e2e-documents:
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace --test e2e_documents -- $(ARGS)

e2e-istio: ## Istio, unmodified, in real clusters: a real istiod in each and real sidecars, as root; figures go to target/e2e/summary-istio.json
	@./tests/tools/run-steps deps-istio e2e-istio-build e2e-istio-clusters || { ./tests/tools/e2e-logs $(TARGET)/e2e; exit 1; }

e2e-istio-build:
	$(CARGO) build --release --locked -q -p eastway
	$(CARGO) test --locked -q --workspace --test e2e_istio --test e2e_istio_roots --test e2e_istio_remote --no-run

e2e-istio-clusters:
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace --no-fail-fast --test e2e_istio --test e2e_istio_roots --test e2e_istio_remote -- $(ARGS)

soak: deps-e2e ## What the tests do for a minute, at its full length, as root: a flood at the link port, 1,000 reloads under load, half an hour without an API server, half an hour of load and faults in which nothing may grow (figures go to bench/soak.json)
	$(CARGO) build --release --locked -q -p eastway
	EASTWAY_TEST_FLOOD_SECONDS=60 EASTWAY_BIN=$(TARGET)/release/eastway \
		$(CARGO) test --locked -q --workspace --test system -- flood:: --nocapture --test-threads=1
	EASTWAY_TEST_RELOADS=1000 EASTWAY_BIN=$(TARGET)/release/eastway \
		$(CARGO) test --locked -q --workspace --test envoy -- f31_ --nocapture --test-threads=1
	EASTWAY_BIN=$(TARGET)/release/eastway $(CARGO) test --locked -q --workspace --test e2e -- --ignored half_an_hour
	cp $(TARGET)/e2e/summary.json bench/soak.json
	EASTWAY_TEST_STILL_SECONDS=20 EASTWAY_BIN=$(TARGET)/release/eastway \
		$(CARGO) test --locked -q --workspace --test system -- f24_ --nocapture --test-threads=1
	EASTWAY_TEST_SOAK_SECONDS=1800 EASTWAY_TEST_SOAK_FIGURES=$(CURDIR)/bench/soak.json EASTWAY_BIN=$(TARGET)/release/eastway \
		$(CARGO) test --locked -q --workspace --test system -- soak:: --nocapture --test-threads=1

bed: deps-e2e ## The two clusters of `make e2e`, as root, to try things on until Ctrl-C (ARGS=--help)
	$(CARGO) build --locked -q -p eastway-tests --example bed
	@exec $(TARGET)/debug/examples/bed $(ARGS)

sabotage: ## Break the code on purpose, one patch at a time: each must turn its test red
	./tests/sabotage/run

check: fmt clippy doc deny ## The lint gate

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps -q

deny: ## Bans, licences, sources and crate arrows, from cargo metadata
	$(CARGO) test --locked -q --workspace --test workspace

bench: deps ## The tunnel beside others, as root, three quarters of an hour; figures go to bench/results/latest.json (QUICK=1: five minutes, CASES="G1 G6": some goals)
	@./bench/run $(if $(QUICK),--quick) $(if $(CASES),--cases "$(CASES)") $(ARGS)

bench-micro: ## Micro-benchmarks, and the budgets beside what is measured (ARGS="-o json")
	@./bench/micro/run $(ARGS)

bench-dns: deps ## DNS against CoreDNS on the same names in one run
	./bench/dns/run

bench-xds: ## Pushes to 1,000 sidecars beside go-control-plane's snapshot cache (needs Go and jq; figures go to bench/results/xds.json)
	@./bench/xds/run

bench-sidecar: deps ## A change until Envoy has it, and a request's way through both gateways beside Envoys on a flat network (figures go to bench/results/sidecar.json)
	@./bench/sidecar/run $(ARGS)

deps: ## What the tests need beside the Rust toolchain
	@./tests/tools/install $(TOOLS) $(COREDNS_VERSION) $(HELM_VERSION)
	@./tests/tools/install-grpc $(TOOLS)

deps-e2e: deps ## What `make e2e` needs beside: containerd and others from Debian, Kubernetes, etcd and Helm from their Go modules
	@./tests/tools/install-e2e $(TOOLS)

deps-istio: deps-e2e ## What `make e2e-istio` needs beside: istiod and pilot-agent from Istio's Go module
	@./tests/tools/install-istio $(TOOLS)

regenerate: ## Write generated code and schemas anew
	EASTWAY_REGENERATE=1 $(CARGO) test -q -p eastway-proto --test bootstrap --test schema
	EASTWAY_REGENERATE=1 $(CARGO) test -q -p eastway --lib schema
	EASTWAY_REGENERATE=1 $(CARGO) test -q -p eastway --test docs
	EASTWAY_REGENERATE=1 $(CARGO) test -q -p eastway-tests --test chart schema_
	EASTWAY_REGENERATE=1 $(CARGO) test -q -p eastway-tests --test chart
