# shellcheck shell=bash
# One guest: made of a kernel, the modules that the tests need, and the programs to run; it runs them and switches off.

# conntrack and what it needs to be asked about; sock_diag; what tests make networks of.
GUEST_MODULES="nf_conntrack nf_conntrack_netlink nf_tables nft_ct nft_chain_nat nft_nat nft_masq nft_counter nft_fib_inet inet_diag tcp_diag udp_diag veth bridge dummy"

# make_base: the archive that all guests share
make_base() {
  local root program
  root=$(mktemp -d -p "$WORK")
  install_busybox "$root"
  # busybox's versions have fewer options, and those that start other programs use busybox's own regardless of the path.
  for program in ip nft nsenter setpriv sysctl unshare; do
    rm -f "$root/bin/$program"
    install_program "$(command -v "$program")" "/bin/$program" "$root"
  done
  rm "$root/bin/sh"
  install_program /bin/dash /bin/sh "$root"
  install -m 755 "$KERNEL_SCRIPTS/guest-init" "$root/init"
  mknod "$root/dev/console" c 5 1
  pack "$root" > "$WORK/base.cpio"
}

# make_programs FILE...: those to be tested, as /tests/NAME without their debugging information
make_programs() {
  local root program name
  root=$(mktemp -d -p "$WORK")
  mkdir -p "$root/tests"
  for program in "$@"; do
    # Without the hash that cargo gives to tests.
    name=$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')
    strip --strip-debug -o "$root/tests/$name" "$program"
  done
  install -m 755 "$KERNEL_SCRIPTS"/guest-{tests,conditions} "$root/"
  pack "$root" > "$WORK/programs.cpio"
}

make_modules() {
  local root
  root=$(mktemp -d -p "$WORK")
  # shellcheck disable=SC2086
  install_modules "$1" "$root" $GUEST_MODULES
  pack "$root" > "$WORK/modules-$1.cpio"
}

# No unprivileged user may write to the root; tests with few capabilities make cgroups below it.
CGROUP_V2='mount -t cgroup2 cgroup2 /sys/fs/cgroup && chmod 755 /sys/fs/cgroup'

# boot NAME KERNEL SECONDS SCRIPT [KERNEL-ARGUMENTS [CGROUPS]]: runs SCRIPT in a guest; its console goes to
# $WORK/NAME.console. SCRIPT's exit code is the last line there: without that line the guest has panicked, hung, or was
# out of time. CGROUPS is a script that mounts them; without, it is cgroup v2 alone.
boot() {
  local name=$1 kernel=$2 seconds=$3 root
  root=$(mktemp -d -p "$WORK")
  printf '#!/bin/sh\n%s\n' "$4" > "$root/run-in-guest"
  echo "${6-$CGROUP_V2}" > "$root/mount-cgroups"
  chmod 755 "$root/run-in-guest"
  pack "$root" | cat "$WORK/base.cpio" "$WORK/modules-$kernel.cpio" "$WORK/programs.cpio" - > "$WORK/$name.cpio"
  timeout --kill-after=5 "$seconds" nice -n "${NICE:-0}" qemu-system-x86_64 -M pc -accel tcg,thread=multi,tb-size=256 -cpu max -smp 1 \
    -m 768M -nodefaults -no-user-config -display none -nic none -no-reboot -serial "file:$WORK/$name.console" \
    -kernel "$(kernel_folder "$kernel")/vmlinux" -initrd "$WORK/$name.cpio" \
    -append "console=ttyS0 quiet panic=-1 ${5-}" < /dev/null > "$WORK/$name.qemu" 2>&1 || :
  sed -i 's/\r//g' "$WORK/$name.console"
  cat "$WORK/$name.qemu" >> "$WORK/$name.console"
  rm -f "$WORK/$name.cpio"
  [ "$(exit_code "$name")" = 0 ]
}

# exit_code NAME: of the script, nothing where the guest did not come to its end
exit_code() { sed -n 's/^guest: exit //p' "$WORK/$1.console" | tail -n 1; }
