# What there is to do here. The work is in scripts/; each says at its top what it does and what it can be told.

.DEFAULT_GOAL := help
.PHONY: help setup build images demo demo-kernels manifest check test test-long test-kernels test-address-reuse fuzz lint fmt deny crds generated ebpf web bench-fallback bench-latency bench-check bench-node bench-scale bench-scale-check bench-view cluster-up cluster-down

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing: Debian packages, the cluster's programs and Helm (compiled into the cache)
	scripts/setup all test

build: ## build everything
	cargo build --workspace --locked

images: ## write dist/*.tar: container images of the static release programs, without a container engine
	cargo xtask images

demo: ## a sample shop and its topology, until Ctrl-C (ONCE=1: print once), on KUBECONFIG's cluster, else on a new one
	scripts/demo

demo-kernels: ## the same on a new cluster of four nodes with kernels from 5.10 to 7.x, one without BTF, one locked down (ONCE=1 too)
	scripts/demo kernels

check: ## lints, unit tests and generated files; no root, no Go, no cluster; 2 to 5 minutes once dependencies are compiled
	scripts/check

test: ## all that has to pass before a change lands, on two clusters and two kernels; needs root
	scripts/test

test-long: ## the longer forms of the tests, on all kernels; needs root, hours
	scripts/test-long

test-kernels: ## the agent's tests on kernels 5.10, 6.1, 6.12 and 7.x in QEMU guests, then clusters of such nodes, one with IPVS
	scripts/test-long kernels nodes ipvs

test-address-reuse: ## 200 addresses that pods reuse within milliseconds, for three minutes under load; needs root
	scripts/test-long reuse

fuzz: ## what reads other programs' words, with ten million inputs each (CASES=n: another number)
	scripts/fuzz

lint: fmt deny ## formatting, clippy, licences and sources of dependencies
	. tests/features.sh && cargo clippy --workspace --all-targets --features "$$TEST_FEATURES" --locked -- --deny warnings

fmt:
	cargo fmt --all --check

deny:
	scripts/setup lint
	PATH="$${SCOPEPROBE_CACHE:-$$HOME/.cache/scopeprobe}/bin:$$PATH" cargo deny --locked check --hide-inclusion-graph bans licenses sources

crds: ## write the manifests and the reference of the kinds again, after a change in crds/
	cargo xtask crds

manifest: ## write deploy/scopeprobe.yaml again, after a change in charts/
	scripts/manifest

generated: ## the same, and what follows from operator/src/rollout/privileges.rs
	cargo xtask generated

ebpf: ## build the programs for the kernel and the committed object again, after a change in node-agent-ebpf/
	cargo xtask ebpf-object

web: ## build the bundle of the live view again, after a change in kubectl-scopeprobe/web; needs Node.js
	scripts/web

bench-latency: images ## how long a new edge takes from connect() to the Topology object
	cargo run --locked --package scopeprobe-tests --bin bench-latency

bench-node: ## what the kernel programs cost, beside empty programs of the same hooks: docs/performance.*; needs root, some minutes
	cargo xtask performance

bench-check: ## the same, and fails if a ratio is worse by more than a tenth than the committed one
	cargo xtask performance --check

bench-scale: ## what the operator costs with NODES=100 simulated nodes, in phases of SECONDS=180 or less: docs/scale.*, docs/performance.md
	cargo xtask scale $(if $(NODES),--nodes $(NODES)) $(if $(SECONDS),--seconds $(SECONDS))

bench-scale-check: ## the same in the committed size, and fails if a ratio is worse by more than a tenth than the committed one
	cargo xtask scale --check

bench-fallback: ## what a pass of the fallback capture costs on a large node, and whether it stays within its budget
	cargo bench --locked --package scopeprobe-agent --bench fallback

bench-view: ## times, memory and pictures per second of the live view with 5,000 workloads and 20,000 edges in Chromium (RUNS=5): docs/view.md
	scripts/setup web
	scripts/web --bench

cluster-up: ## a cluster of two nodes to look around in
	scripts/cluster up

cluster-down: ## end it
	scripts/cluster down
