# shellcheck shell=bash
# Debian's archive through apt with a state of its own: signatures are checked as always, the system's packages and
# sources are neither asked nor changed.

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# use_suites NAME ARCHITECTURES SUITE:ARCHIVE...: makes apt work on these suites alone, in the current shell. The first of the
# architectures is what a package is if it says nothing.
use_suites() {
  local architectures=$2 state=$KERNELS/apt/$1 uri suite list=''
  shift 2
  uri=$(debian_archive)
  for suite in "$@"; do list+="deb [signed-by=$KEYRING arch=${architectures// /,}] $uri/${suite#*:} ${suite%:*} main"$'\n'; done
  mkdir -p "$state"/{etc/preferences.d,etc/apt.conf.d,lists/partial,cache/archives/partial}
  : > "$state/status"
  printf %s "$list" > "$state/sources.list"
  # What is taken is fixed by the lock file's hashes, so that an index that has expired does no harm; a testing suite's
  # often has where a mirror is updated seldom.
  cat > "$state/apt.conf" <<X
Dir::Etc "$state/etc";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
APT::Architecture "${architectures%% *}";
APT::Architectures { $(for one in $architectures; do printf '"%s"; ' "$one"; done)};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
X
  export APT_CONFIG=$state/apt.conf
}

# update_suites NAME ARCHITECTURES SUITE:ARCHIVE...: the same, with a new index; once in a run
update_suites() {
  local state=$KERNELS/apt/$1
  use_suites "$@"
  [ "$(cat "$state/updated-by" 2>/dev/null)" != $$ ] || return 0
  apt-get -qq update > "$state/log" 2>&1 || { cat "$state/log" >&2; fail "cannot read the index of ${*:3}"; }
  echo $$ > "$state/updated-by"
}

# update_suite KERNEL SUITE ARCHIVE: that of a kernel
update_suite() {
  local architecture
  architecture=$(architecture_of "$1")
  update_suites "$2-$architecture" "$architecture" "$2:$3"
}

# described PACKAGE[=VERSION]: prints PACKAGE VERSION SHA256; fails where the suite has no such package
described() {
  apt-cache show "$1" 2>/dev/null |
    awk -v RS= -F'\n' 'NR == 1 {for (i = 1; i <= NF; i++) {split($i, pair, ": "); v[pair[1]] = pair[2]}
      print v["Package"], v["Version"], v["SHA256"]}' | grep .
}

dependencies() {
  apt-cache show "$1" | awk -F': ' 'NF == 0 {exit} /^(Pre-)?Depends:/ {print $2}' | tr ',' '\n' | sed 's/(.*//; s/ //g'
}

# newest_packages KERNEL SUITE ARCHIVE: a line of the lock file for each package that the suite's newest kernel is made of
newest_packages() {
  local image package
  update_suite "$@"
  image=$(dependencies "linux-image-cloud-$(architecture_of "$1")" | grep -m1 '^linux-image-[0-9]') || fail "no kernel in $2"
  # Since 7.x the kernel and its modules are packages of their own.
  for package in "$image" $(dependencies "$image" | grep -E '^linux-(binary|modules)-[0-9]' || :); do
    echo "$1 $2 $(described "$package")"
  done
}

# download KERNEL SUITE ARCHIVE PACKAGE VERSION SHA256: into $DEBS; fails quietly where the archive has that version no more
download() {
  local suite=$2 package=$4 version=$5 sum=$6 folder
  update_suite "$1" "$2" "$3"
  described "$package=$version" > /dev/null || return 1
  folder=$(mktemp -d -p "$DEBS")
  (cd "$folder" && apt-get -qq download "$package=$version") > "${APT_CONFIG%/*}/log" 2>&1 ||
    { cat "${APT_CONFIG%/*}/log" >&2; rm -rf "$folder"; fail "cannot download $package $version"; }
  echo "$sum  $(echo "$folder"/*.deb)" | sha256sum --check --status ||
    { rm -rf "$folder"; fail "$package $version of $suite is not what the lock file says: its hash differs"; }
  mv "$folder"/*.deb "$DEBS/$sum.deb"
  rmdir "$folder"
}
