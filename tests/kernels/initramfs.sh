# shellcheck shell=bash
# What a guest boots into: cpio archives that the kernel unpacks one after the other.

# pack FOLDER: its content as an archive, to standard output. The kernel wants each to begin at a multiple of four.
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --create --format=newc --owner=0:0 --quiet) | dd bs=4 conv=sync status=none; }

# install_busybox FOLDER: and all of its programs by name
install_busybox() {
  local program
  mkdir -p "$1"/{bin,sbin,proc,sys,dev,run,tmp,etc,root,mnt}
  cp /bin/busybox "$1/bin/"
  for program in $(/bin/busybox --list); do [ "$program" = busybox ] || ln -s busybox "$1/bin/$program"; done
}

# install_packages_of ARCHITECTURE FOLDER: the same as Debian's packages for another architecture have it. Apt checks their
# signatures.
install_packages_of() {
  local cache=$KERNELS/packages-$1 file packages=(busybox-static dash iproute2 nftables procps util-linux)
  update_suites "trixie-$1" "$1" trixie:debian
  mkdir -p "$cache/archives/partial" "$2"/{proc,sys,dev,run,tmp,etc,root,mnt,usr/{bin,sbin,lib}}
  apt-get -qq install --download-only --yes --no-install-recommends -o "Dir::Cache=$cache" "${packages[@]}" > "$cache/log" 2>&1 ||
    { cat "$cache/log" >&2; fail "cannot download ${packages[*]} for $1"; }
  for file in bin sbin lib; do ln -s "usr/$file" "$2/$file"; done
  for file in "$cache"/archives/*.deb; do
    # What only scripts of packages need.
    case $(basename "$file") in perl* | libperl* | dpkg_* | debconf_*) continue ;; esac
    dpkg-deb --fsys-tarfile "$file" | tar --extract --directory "$2" --keep-directory-symlink --exclude './usr/share/*'
  done
  for file in $(/bin/busybox --list); do
    [ -e "$2/usr/bin/$file" ] || [ -e "$2/usr/sbin/$file" ] || ln -s busybox "$2/usr/bin/$file"
  done
  ln -sf dash "$2/usr/bin/sh"
}

# install_program FILE TARGET ROOT: a program and the libraries that it is linked to
install_program() {
  local library
  install -D "$1" "$3$2"
  for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
    [ -e "$3$library" ] || install -D "$library" "$3$library"
  done
}

# install_modules KERNEL FOLDER MODULE...: into FOLDER/modules, with what they depend on, and a file that says in which order
install_modules() {
  local folder name file
  folder=$(kernel_folder "$1") name=$2
  shift 2
  mkdir -p "$name/modules"
  for module in "$@"; do
    # One that is no module here is built in, or this kernel has none.
    /sbin/modprobe --dirname "$folder" --set-version "$(cat "$folder/release")" --show-depends "$module" 2>/dev/null || :
  done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
    cp "$file" "$name/modules/"
    basename "$file"
  done > "$name/modules/order"
}
