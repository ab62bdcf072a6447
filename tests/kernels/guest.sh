# shellcheck shell=bash
# One guest: made of a kernel, the modules that the tests need, and the programs to run; it runs them and switches off.

# conntrack and what it needs to be asked about; sock_diag; what tests make networks of.
GUEST_MODULES="nf_conntrack nf_conntrack_netlink nf_tables nft_ct nft_chain_nat nft_nat nft_masq nft_counter nft_fib_inet inet_diag tcp_diag udp_diag veth bridge dummy"

# Programs with options that busybox's versions lack. Those of busybox that start others use its own regardless of the path.
GUEST_PROGRAMS="ip nft nsenter setpriv sysctl unshare"

# make_base ARCHITECTURE: the archive that all guests of an architecture share
make_base() {
  local root program
  root=$(mktemp -d -p "$WORK")
  if [ "$1" = amd64 ]; then
    install_busybox "$root"
    for program in $GUEST_PROGRAMS; do
      rm -f "$root/bin/$program"
      install_program "$(command -v "$program")" "/bin/$program" "$root"
    done
    rm "$root/bin/sh"
    install_program /bin/dash /bin/sh "$root"
  else
    install_packages_of "$1" "$root"
  fi
  install -m 755 "$KERNEL_SCRIPTS/guest-init" "$root/init"
  mknod "$root/dev/console" c 5 1
  pack "$root" > "$WORK/base-$1.cpio"
}

# make_programs ARCHITECTURE FILE...: those to be tested, as /tests/NAME without their debugging information
make_programs() {
  local root program name strip=strip
  root=$(mktemp -d -p "$WORK")
  [ "$1" = amd64 ] || strip=aarch64-linux-gnu-strip
  mkdir -p "$root/tests"
  for program in "${@:2}"; do
    # Without the hash that cargo gives to tests.
    name=$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')
    $strip --strip-debug -o "$root/tests/$name" "$program"
  done
  install -m 755 "$KERNEL_SCRIPTS"/guest-{tests,conditions} "$root/"
  pack "$root" > "$WORK/programs-$1.cpio"
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
  local name=$1 kernel=$2 seconds=$3 root architecture machine console
  architecture=$(architecture_of "$kernel")
  case $architecture in
    amd64) machine='qemu-system-x86_64 -M pc -cpu max -m 768M' console=ttyS0 ;;
    # Without the processor's signed pointers, which cost an emulator most of its time.
    arm64) machine='qemu-system-aarch64 -M virt -cpu cortex-a72 -m 1024M' console=ttyAMA0 ;;
  esac
  root=$(mktemp -d -p "$WORK")
  printf '#!/bin/sh\n%s\n' "$4" > "$root/run-in-guest"
  echo "${6-$CGROUP_V2}" > "$root/mount-cgroups"
  chmod 755 "$root/run-in-guest"
  pack "$root" | cat "$WORK/base-$architecture.cpio" "$WORK/modules-$kernel.cpio" "$WORK/programs-$architecture.cpio" - > "$WORK/$name.cpio"
  # shellcheck disable=SC2086
  timeout --kill-after=5 "$seconds" nice -n "${NICE:-0}" $machine -accel tcg,thread=multi,tb-size=256 -smp 1 \
    -nodefaults -no-user-config -display none -nic none -no-reboot -serial "file:$WORK/$name.console" \
    -kernel "$(kernel_folder "$kernel")/vmlinux" -initrd "$WORK/$name.cpio" \
    -append "console=$console quiet panic=-1 ${5-}" < /dev/null > "$WORK/$name.qemu" 2>&1 || :
  sed -i 's/\r//g' "$WORK/$name.console"
  cat "$WORK/$name.qemu" >> "$WORK/$name.console"
  rm -f "$WORK/$name.cpio"
  [ "$(exit_code "$name")" = 0 ]
}

# exit_code NAME: of the script, nothing where the guest did not come to its end
exit_code() { sed -n 's/^guest: exit //p' "$WORK/$1.console" | tail -n 1; }
