# shellcheck shell=bash disable=SC2034
# Names and places of the kernel matrix; sourced by scripts/kernels and by the cluster whose nodes are guests.

CACHE=${SCOPEPROBE_CACHE:-$HOME/.cache/scopeprobe}
KERNELS=$CACHE/kernels
DEBS=$KERNELS/debs
KERNEL_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LOCK_FILE=$KERNEL_SCRIPTS/kernels.lock

# Debian's archive or a mirror of it, the folder in which `debian` and `debian-security` are: where this machine's own
# packages come from, if nothing else is said.
debian_archive() {
  local uri
  [ -z "${DEBIAN_ARCHIVE-}" ] || { echo "$DEBIAN_ARCHIVE"; return; }
  uri=$(APT_CONFIG='' apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/*$') ||
    fail "apt here knows no archive of Debian: set DEBIAN_ARCHIVE to one (the folder in which debian and debian-security are)"
  uri=${uri%/}
  echo "${uri%/debian}"
}

# Where each kernel comes from: KERNEL SUITE ARCHIVE. The newest of the suite is what `scripts/kernels update` locks.
kernel_sources() {
  cat <<X
5.10 bullseye-security debian-security
6.1 bookworm-security debian-security
6.12 trixie-security debian-security
7.x forky debian
6.12-arm64 trixie-security debian-security
X
}

# Those for amd64, which are tested if no kernel is named; and all.
all_kernels() { every_kernel | grep -v -- '-arm64$'; }
every_kernel() { kernel_sources | cut -d' ' -f1; }

# architecture_of KERNEL: by Debian's name
architecture_of() { case $1 in *-arm64) echo arm64 ;; *) echo amd64 ;; esac; }

# source_of KERNEL: prints SUITE ARCHIVE
source_of() { kernel_sources | sed -n "s/^${1//./\\.} //p" | grep . || fail "there is no kernel '$1', only: $(every_kernel | xargs)"; }

# The nodes of the cluster of kernels, as scripts/cluster takes them: one that is old, one without BTF, one locked down, one
# that is new.
KERNEL_NODES=(5.10 6.1:no-btf 6.12:lockdown 7.x)

# A folder of a prepared kernel: vmlinux, release, lib/modules/RELEASE, locked (what it was made of).
kernel_folder() { echo "$KERNELS/$1"; }
