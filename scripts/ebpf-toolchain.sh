#!/usr/bin/env bash
# Installs what building node-agent-ebpf from source takes: a nightly Rust with the sources of `core`, and bpf-linker.
# Does nothing where all of it is there. Without it the agent is built with the committed object.
#   scripts/ebpf-toolchain.sh           installs what is missing
#   scripts/ebpf-toolchain.sh --check   only says what is missing; exit code 1 if anything is
set -euo pipefail

say() { echo "ebpf-toolchain: $*" >&2; }

has_nightly() { rustup run nightly rustc --version >/dev/null 2>&1; }
has_core() { [ -f "$(rustup run nightly rustc --print sysroot)/lib/rustlib/src/rust/library/core/Cargo.toml" ]; }
has_linker() { command -v bpf-linker >/dev/null && bpf-linker --version >/dev/null 2>&1; }

if ! command -v rustup >/dev/null; then
  say "rustup is missing: install it from https://rustup.rs, or go on with the committed object"
  exit 1
fi

missing=()
has_nightly || missing+=("a nightly toolchain")
{ has_nightly && has_core; } || missing+=("rust-src for it")
has_linker || missing+=("bpf-linker")
if [ ${#missing[@]} -eq 0 ]; then
  say "everything is there"
  exit 0
fi
say "missing: $(IFS=,; echo "${missing[*]}")"
[ "${1:-}" = --check ] && exit 1

if ! has_nightly || ! has_core; then
  rustup toolchain install nightly --profile minimal --component rust-src ||
    { say "rustup could not install nightly with rust-src; see above"; exit 1; }
fi
if ! has_linker; then
  # Built by the nightly that it will link for: both have to speak the same LLVM.
  cargo +nightly install --locked bpf-linker ||
    { say "bpf-linker could not be built; its README says which LLVM it needs: https://github.com/aya-rs/bpf-linker"; exit 1; }
fi
say "installed"
