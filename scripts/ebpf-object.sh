#!/usr/bin/env bash
# Rebuilds the committed object of node-agent-ebpf, and the note beside it that says what it was built from and by.
#   scripts/ebpf-object.sh           rebuilds both
#   scripts/ebpf-object.sh --check   rebuilds elsewhere and compares byte for byte; skips where the toolchain is missing
#                                    or another one than that of the committed object, unless SCOPEPROBE_REQUIRE forbids it
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

object=node-agent/ebpf-object/scopeprobe.o
note=node-agent/ebpf-object/scopeprobe.txt
# shellcheck source=tests/steps.sh
. tests/steps.sh
say() { echo "ebpf-object: $*" >&2; }

# The same files in the same order as node-agent/ebpf_sources.rs.
sources() {
  {
    find node-agent-ebpf/src node-agent-common/src -type f
    printf '%s\n' node-agent-ebpf/{.cargo/config.toml,Cargo.lock,Cargo.toml,rust-toolchain.toml} node-agent-common/Cargo.toml
  } | LC_ALL=C sort
}
hash_of_sources() {
  while read -r file; do printf '%s %s\n' "$(sha256sum <"$file" | cut -d' ' -f1)" "$file"; done < <(sources) |
    sha256sum | cut -d' ' -f1
}
toolchain() {
  echo "rustc $(rustup run nightly rustc --version | cut -d' ' -f2-)"
  bpf-linker --version
}
# The names of functions in the object depend on where the sources are: they are always built at the same place.
PLACE=/tmp/scopeprobe-ebpf-object
build() { # TARGET-FOLDER -> path of the object
  exec 9> "$PLACE.lock"
  flock 9
  rm -rf "$PLACE"
  mkdir "$PLACE"
  sources | xargs cp --parents --target-directory="$PLACE" Cargo.toml
  # What a surrounding cargo or the user has set for the host is not meant for the kernel.
  (cd "$PLACE/node-agent-ebpf" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTUP_TOOLCHAIN CARGO_TARGET_DIR="$1" \
    rustup run nightly cargo build --release --locked --quiet)
  rm -rf "$PLACE"
  echo "$1/bpfel-unknown-none/release/scopeprobe"
}

if ! scripts/ebpf-toolchain.sh --check; then
  [ "${1:-}" = --check ] && { skip ebpf-toolchain "the committed object is not compared with its sources: scripts/ebpf-toolchain.sh"; exit 0; }
  exit 1
fi

if [ "${1:-}" = --check ]; then
  if [ "$(sed -n 's/^sources //p' $note)" != "$(hash_of_sources)" ]; then
    say "$object is older than its sources: run scripts/ebpf-object.sh and commit what it writes"
    exit 1
  fi
  if [ "$(grep -v '^sources ' $note)" != "$(toolchain)" ]; then
    diff <(grep -v '^sources ' $note) <(toolchain) >&2 || true
    skip ebpf-toolchain "another toolchain than this machine's built the committed object"
    exit 0
  fi
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  built=$(build "$scratch")
  if ! cmp "$built" $object; then
    say "$object is not what its sources make: run scripts/ebpf-object.sh and commit what it writes"
    exit 1
  fi
  say "the committed object is what its sources make"
  exit 0
fi

built=$(build "$PWD/node-agent-ebpf/target")
cp "$built" $object
{ echo "sources $(hash_of_sources)"; toolchain; } >$note
say "wrote $object"
