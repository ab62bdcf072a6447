# shellcheck shell=bash
# The disk of nodes that are virtual machines: one for all kernels and clusters, with the node's programs, the modules of
# every kernel, and the images, which are unpacked here rather than in a slow guest. Each guest writes to a copy of its own.

NODE_IMAGE=$KERNELS/node-image
# What kube-proxy's and kubelet's iptables rules use.
IPTABLES_EXTENSIONS="comment mark conntrack standard tcp udp multiport statistic recent addrtype nfacct limit set MASQUERADE DNAT
  SNAT REJECT MARK NFLOG physdev ipvs"

# The archives that are baked in: pause, and what `make images` has written.
image_archives() {
  echo "$CACHE/images/pause.tar"
  find "$CLUSTER_SCRIPTS/../../dist" -name 'scopeprobe-*.tar' 2>/dev/null | sort
}

# What the disk is made of; where this has changed it is made again.
image_inputs() {
  local kernel
  for kernel in $(all_kernels); do cat "$(kernel_folder "$kernel")/locked"; done
  # shellcheck disable=SC2046
  stat --format='%n %s %Y' $(image_archives) "$BIN"/{kubelet,kube-proxy,containerd,ctr} "$CLUSTER_SCRIPTS"/guest-*
}

# make_node_image: nothing where it is there already
make_node_image() {
  local inputs root work
  (
    flock 9
    inputs=$(image_inputs)
    [ "$(cat "$NODE_IMAGE/inputs" 2>/dev/null)" != "$inputs" ] || exit 0
    echo "making the disk of the nodes"
    work=$(mktemp -d -p "$KERNELS" node-image.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    root=$work/root
    install_busybox "$root"
    install_node_programs "$root"
    install_node_files "$root"
    import_images "$root" "$work"
    truncate --size=2G "$work/root.img"
    mke2fs -q -t ext4 -m 0 -O '^has_journal,^metadata_csum,^64bit,^resize_inode' -E lazy_itable_init=1,root_owner=0:0 \
      -d "$root" "$work/root.img"
    make_initrds "$work"
    rm -rf "$root"
    echo "$inputs" > "$work/inputs"
    rm -rf "$NODE_IMAGE"
    mv "$work" "$NODE_IMAGE"
    trap - EXIT
  ) 9> "$KERNELS/node-image.lock"
}

install_node_programs() {
  local root=$1 program extension file libraries=/usr/lib/x86_64-linux-gnu/xtables
  mkdir -p "$root"/usr/{bin,sbin,local/bin,lib/cni}
  for program in kubelet kube-proxy containerd containerd-shim-runc-v2 ctr; do cp "$BIN/$program" "$root/usr/local/bin/"; done
  for program in runc nft conntrack ipset nice; do
    install_program "$(command -v "$program")" "/usr/bin/$program" "$root"
  done
  # busybox's know fewer options than are used.
  rm "$root"/bin/{ip,mount,umount,modprobe,insmod,lsmod,rmmod,depmod,modinfo}
  install_program "$(command -v ip)" /bin/ip "$root"
  install_program /bin/mount /bin/mount "$root"
  install_program /bin/umount /bin/umount "$root"
  install_program /bin/kmod /bin/kmod "$root"
  for program in modprobe insmod lsmod rmmod modinfo; do ln -s /bin/kmod "$root/sbin/$program"; done
  install_program /usr/sbin/xtables-nft-multi /usr/sbin/xtables-nft-multi "$root"
  for program in {iptables,ip6tables}{,-save,-restore}; do ln -s xtables-nft-multi "$root/usr/sbin/$program"; done
  for extension in $IPTABLES_EXTENSIONS; do
    for file in "$libraries"/lib{xt,ipt,ip6t}_"$extension".so; do
      [ ! -e "$file" ] || install_program "$file" "$file" "$root"
    done
  done
  for program in host-local loopback ptp; do cp "/usr/lib/cni/$program" "$root/usr/lib/cni/"; done
}

install_node_files() {
  local root=$1 kernel
  mkdir -p "$root"/{etc/cni/net.d,lib/modules,var/lib/kubelet,var/lib/containerd,var/log/pods,var/log/containers}
  ln -s /run "$root/var/run"
  ln -s /tmp "$root/var/tmp"
  for kernel in $(all_kernels); do cp -a "$(kernel_folder "$kernel")"/lib/modules/* "$root/lib/modules/"; done
  cp /etc/protocols /etc/services "$root/etc/"
  echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
  echo 'root:x:0:' > "$root/etc/group"
  echo '127.0.0.1 localhost' > "$root/etc/hosts"
  : > "$root/etc/resolv.conf"
  printf 'PRETTY_NAME="ScopeProbe test node"\nID=scopeprobe-test\n' > "$root/etc/os-release"
  install -m 755 "$CLUSTER_SCRIPTS/guest-node-init" "$root/sbin/node-init"
}

# A containerd of this machine whose root becomes that of the guests.
import_images() {
  local root=$1 work=$2 pid archive
  cat > "$work/import.toml" <<X
version = 3
root = "$root/var/lib/containerd"
state = "$work/import"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$work/import.sock"
X
  "$BIN/containerd" --config "$work/import.toml" > "$work/import.log" 2>&1 &
  pid=$!
  for _ in $(seq 300); do [ ! -S "$work/import.sock" ] || break; sleep 0.1; done
  for archive in $(image_archives); do
    "$BIN/ctr" -a "$work/import.sock" -n k8s.io images import --snapshotter overlayfs \
      --label io.cri-containerd.image=managed "$archive" > /dev/null 2>> "$work/import.log" || { cat "$work/import.log" >&2; fail "cannot import $archive"; }
  done
  kill "$pid"
  wait "$pid" || :
  rm -rf "$work/import" "$work/import.toml"
}

# What finds the disk: a base for all, and each kernel's virtio.
make_initrds() {
  local folder kernel
  folder=$(mktemp -d -p "$1")
  install_busybox "$folder"
  install -m 755 "$CLUSTER_SCRIPTS/guest-initrd" "$folder/init"
  mknod "$folder/dev/console" c 5 1
  pack "$folder" > "$1/base.cpio"
  for kernel in $(all_kernels); do
    folder=$(mktemp -d -p "$1")
    install_modules "$kernel" "$folder" virtio_pci virtio_blk virtio_net
    pack "$folder" > "$1/$kernel.cpio"
  done
}
