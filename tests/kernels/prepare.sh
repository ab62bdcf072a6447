# shellcheck shell=bash
# From packages to what QEMU boots: the kernel as an ELF file, and its modules, decompressed, without those that no guest
# of ours has a device for.

# locked KERNEL: the lock file's lines about it
locked() { grep "^$1 " "$LOCK_FILE" || fail "$LOCK_FILE says nothing about $1; scripts/kernels update writes it"; }

# prepare KERNEL: nothing where it is there already
prepare() {
  local kernel=$1 folder wanted archive
  folder=$(kernel_folder "$kernel")
  wanted=$(locked "$kernel")
  [ "$(cat "$folder/locked" 2>/dev/null)" != "$wanted" ] || return 0
  archive=$(source_of "$kernel" | cut -d' ' -f2)
  mkdir -p "$DEBS"
  if ! fetch_all "$wanted" "$archive"; then
    # shellcheck disable=SC2046
    wanted=$(newest_packages "$kernel" $(source_of "$kernel"))
    echo "kernels: the locked $kernel is in Debian's archive no more; taking the newest, $(version_of "$wanted")." >&2
    echo "         \`scripts/kernels update\` writes that into the lock file." >&2
    [ "$(cat "$folder/locked" 2>/dev/null)" != "$wanted" ] || return 0
    fetch_all "$wanted" "$archive" || fail "Debian's archive offers a kernel $kernel that it does not have"
  fi
  unpack "$wanted" "$folder"
  echo "kernels: $kernel is $(version_of "$wanted")"
}

version_of() { head -n 1 <<< "$1" | cut -d' ' -f4; }

# fetch_all LOCKED ARCHIVE
fetch_all() {
  local kernel suite package version sum
  while read -r kernel suite package version sum; do
    # A hash that is right needs no archive.
    ! echo "$sum  $DEBS/$sum.deb" | sha256sum --check --status 2>/dev/null || continue
    download "$kernel" "$suite" "$2" "$package" "$version" "$sum" || return 1
  done <<< "$1"
}

# unpack LOCKED FOLDER
unpack() {
  local tree=$2.new sum release modules
  rm -rf "$tree"
  mkdir -p "$tree/boot"
  while read -r _ _ _ _ sum; do
    dpkg-deb --fsys-tarfile "$DEBS/$sum.deb" | tar --extract --directory "$tree"
  done <<< "$1"
  [ -d "$tree/lib" ] || ln -s usr/lib "$tree/lib"
  release=$(ls "$tree/lib/modules")
  modules=$tree/lib/modules/$release
  extract_kernel "$(find "$tree/boot" "$modules" -maxdepth 1 -name 'vmlinuz*' | head -n 1)" "$tree/vmlinux"
  prune "$modules"
  /sbin/depmod --basedir "$tree" "$release" 2>/dev/null || :
  echo "$release" > "$tree/release"
  echo "$1" > "$tree/locked"
  rm -rf "$2" "${tree:?}/usr/share" "${tree:?}/boot"
  mv "$tree" "$2"
}

# A guest needs the network, a few file systems and virtio: a tenth of what there is.
prune() {
  local only=(! -name virtio ! -name net ! -name block ! -name char)
  rm -rf "$1"/{build,source,vmlinuz,config,System.map} "$1/kernel/sound"
  find "$1/kernel/drivers" -mindepth 1 -maxdepth 1 -type d "${only[@]}" -exec rm -rf {} +
  find "$1/kernel/drivers/net" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
  only=(! -name ext4 ! -name jbd2 ! -name overlayfs ! -name fuse ! -name nls)
  find "$1/kernel/fs" -mindepth 1 -maxdepth 1 -type d "${only[@]}" -exec rm -rf {} +
  find "$1/kernel" -name '*.ko.xz' -exec xz --decompress {} +
  find "$1/kernel" -name '*.ko.zst' -exec zstd --quiet --decompress --rm {} +
}

# number FILE OFFSET BYTES: a little-endian number of a file
number() { od --address-radix=n --endian=little --skip-bytes="$2" --read-bytes="$3" --format="u$3" "$1" | tr -d ' '; }

# extract_kernel FILE VMLINUX: QEMU boots the file itself where it is an image for arm64, which begins with a header
extract_kernel() {
  if [ "$(number "$1" $((0x38)) 4)" = $((0x644d5241)) ]; then cp "$1" "$2"; else extract_vmlinux "$1" "$2"; fi
}

# extract_vmlinux BZIMAGE VMLINUX: the kernel proper, of which the image's header says where it is. Decompressed here, it
# need not be in a guest without hardware acceleration: a second or two less for each start.
extract_vmlinux() {
  local setup begin length payload=$2.payload
  setup=$(number "$1" $((0x1f1)) 1)
  begin=$(((setup + 1) * 512 + $(number "$1" $((0x248)) 4)))
  length=$(number "$1" $((0x24c)) 4)
  head --bytes=$((begin + length)) "$1" | tail --bytes="$length" > "$payload"
  # Four bytes with the size follow the compressed data, at which some of these complain after all is done.
  case $(od --address-radix=n --read-bytes=2 --format=x1 "$payload" | tr -d ' ') in
    1f8b) gzip --decompress --stdout ;;
    fd37) xz --decompress --stdout ;;
    28b5) zstd --decompress --stdout --quiet ;;
    0221) lz4 -d -c ;;
    *) fail "$1 is compressed in a way that this script does not know" ;;
  esac < "$payload" > "$2" 2>/dev/null || :
  rm "$payload"
  [ "$(number "$2" 0 4)" = $((0x464c457f)) ] || fail "cannot decompress $1"
}
