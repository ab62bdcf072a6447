# shellcheck shell=bash
# A node that is a virtual machine with another kernel than this machine's, by QEMU without KVM.

# split_guest KERNEL[:VARIANT]: sets kernel and variant
split_guest() {
  kernel=${1%%:*} variant=
  [ "$kernel" = "$1" ] || variant=${1#*:}
  source_of "$kernel" > /dev/null
  case $variant in '' | no-btf | lockdown) ;; *) fail "there is no variant '$variant' of a node, only no-btf and lockdown" ;; esac
}

# Old kernels cannot do what kube-proxy asks of nftables.
guest_proxy_mode() { if [ "$PROXY_MODE" = ipvs ]; then echo ipvs; else echo iptables; fi; }

# connect_guest I: its end of the fabric
connect_guest() {
  ip -n "$CONTROL_NS" tuntap add "to-$1" mode tap
  ip -n "$CONTROL_NS" link set "to-$1" master fabric up
  route_to_pods "$1"
}

# start_guest I OF-N KERNEL[:VARIANT]
start_guest() {
  local i=$1 kernel variant arguments="console=ttyS0 quiet panic=-1 mitigations=off nokaslr damon_stat.enabled=N" dir=$STATE/node-$1
  split_guest "$3"
  [ "$variant" != lockdown ] || arguments+=" lockdown=confidentiality"
  mkdir -p "$dir"
  echo "$3" > "$dir/guest"
  write_kubelet_config "$i" "$dir"
  PROXY_MODE=$(guest_proxy_mode) write_kube_proxy_config "$i" "$dir"
  write_containerd_config "$dir"
  pack_node "$i" "$2" "$variant" > "$dir/node.cpio"
  cat "$NODE_IMAGE/base.cpio" "$NODE_IMAGE/$kernel.cpio" "$dir/node.cpio" > "$dir/initrd"
  # One processor: with two, this emulation and the kernels' patching of their own code do not agree.
  start_control "node-$i" nice -n "${NICE:-0}" qemu-system-x86_64 -M pc -accel tcg,thread=multi,tb-size=512 \
    -cpu qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq -smp 1 -m 1024M -nodefaults -no-user-config -display none -no-reboot \
    -serial "file:$dir/console.log" -chardev "socket,id=shell,path=$dir/shell.sock,server=on,wait=off" -serial chardev:shell \
    -drive "if=none,id=disk,file=$NODE_IMAGE/root.img,format=raw,snapshot=on,cache=unsafe,aio=threads" -device virtio-blk-pci,drive=disk \
    -netdev "tap,id=net,ifname=to-$i,script=no,downscript=no" \
    -device "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:0$i" \
    -kernel "$(kernel_folder "$kernel")/vmlinux" -initrd "$dir/initrd" -append "$arguments"
}

# pack_node I OF-N VARIANT: this node's own files, each where it is on this machine
pack_node() {
  local i=$1 root file
  root=$(mktemp -d -p "$STATE")
  for file in "$STATE/node-$i"/*.{toml,yaml} "$STATE/node-$i/resolv.conf" "$PKI/ca.crt" "$PKI/kubelet-$i".{crt,key} "$STATE/node-$i.kubeconfig" \
    "$STATE/proxy.kubeconfig"; do
    install -D --mode=600 "$file" "$root/node$file"
  done
  mkdir -p "$root/node/etc/cni/net.d"
  write_guest_cni_config "$i" > "$root/node/etc/cni/net.d/10-scopeprobe.conflist"
  describe_node "$@" > "$root/node/etc/node"
  [ "$3" != no-btf ] || hide_btf "$root/node$STATE/node-$i/containerd.toml" "$root/node/etc/base-spec.json"
  pack "$root"
  rm -rf "$root"
}

describe_node() {
  local i=$1 j
  echo "NAME=node-$i DIR=$STATE/node-$i KUBECONFIG=$STATE/node-$i.kubeconfig VARIANT=$3"
  echo "V4=$(node_v4 "$i") V6=$(node_v6 "$i") GATEWAY_V4=$CONTROL_V4 GATEWAY_V6=$CONTROL_V6"
  echo "set_routes() { :"
  for j in $(seq "$2"); do
    [ "$j" != "$i" ] || continue
    echo "ip route add $(pods_v4 "$j") via $(node_v4 "$j")"
    echo "ip -6 route add $(pods_v6 "$j") via $(node_v6 "$j")"
  done
  echo "}"
}

# ptp needs less of the kernel than a bridge, and is quicker here.
write_guest_cni_config() {
  cat <<X
{"cniVersion": "1.0.0", "name": "scopeprobe", "plugins": [
  {"type": "ptp",
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods_v4 "$1")"}], [{"subnet": "$(pods_v6 "$1")"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}
X
}

# hide_btf CONTAINERD-TOML BASE-SPEC: containers have a sysfs of their own; theirs gets the empty directory, too, after it
hide_btf() {
  local empty='{"destination": "/sys/kernel/btf", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev"]}'
  "$BIN/ctr" oci spec |
    awk -v empty="$empty" '/^    "mounts": / {mounts = 1} mounts && /^    \]/ {print "        ," empty; mounts = 0} {print}' > "$2"
  grep -q /sys/kernel/btf "$2" || fail "cannot hide BTF: containerd's default specification has no mounts"
  cat >> "$1" <<X
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "/etc/base-spec.json"
X
}

is_guest() { [ -f "$STATE/node-$1/guest" ]; }

# on_guest I CMD...: through the shell at the guest's serial port, as a terminal shows it
on_guest() {
  local command line code=1
  command=$(printf '%q ' "${@:2}")
  coproc socat STDIO "UNIX-CONNECT:$STATE/node-$1/shell.sock"
  # The words are put together in the guest, so that their echo is not taken for them.
  echo "stty -echo; echo; echo OUT''PUT; { $command; } < /dev/null; code=\$?; echo; echo END''OF-\$code" >&"${COPROC[1]}"
  while read -r -t "${PATIENCE:-60}" line && [[ $line != *OUTPUT$'\r' ]]; do :; done <&"${COPROC[0]}"
  while IFS= read -r -t "${PATIENCE:-60}" line; do
    line=${line%$'\r'}
    if [[ $line = ENDOF-* ]]; then code=${line#ENDOF-}; break; fi
    echo "$line"
  done <&"${COPROC[0]}"
  kill "$COPROC_PID"
  return "$code"
}

# A guest that has ended, or says that one of its programs has, will never be ready.
guest_is_well() {
  pid_of "node-$1" > /dev/null || { tail -n 20 "$STATE/node-$1/console.log" "$STATE/log/node-$1.log" >&2; fail "node-$1 has ended"; }
  ! grep -s -A5 'has ended\|no disk' "$STATE/node-$1/console.log" >&2 || fail "node-$1 will not be ready"
}

# The node is Ready, and its kube-proxy has written its rules.
guest_is_ready() {
  local ready
  ready=$(k get node "node-$1" --output 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2> /dev/null) || return 1
  [ "$ready" = True ] && nsenter --net="/run/netns/$CONTROL_NS" -- bash -c \
    'exec 3<> "/dev/tcp/$0/10256" && printf "GET /healthz HTTP/1.0\r\n\r\n" >&3 && timeout 5 grep -q " 200 " <&3' "$(node_v4 "$1")" 2> /dev/null
}

# await_guests SECONDS N
await_guests() {
  local begin=$SECONDS said=$SECONDS i missing
  while :; do
    missing=
    for i in $(seq "$2"); do
      guest_is_well "$i"
      guest_is_ready "$i" || missing+=" node-$i"
    done
    [ -n "$missing" ] || return 0
    [ $((SECONDS - begin)) -lt "$1" ] || fail "gave up after $1 s on$missing; the consoles are $STATE/node-*/console.log"
    [ $((SECONDS - said)) -lt 10 ] || { said=$SECONDS; echo "  waiting for$missing ($((SECONDS - begin)) s)" >&2; }
    sleep 0.5
  done
}
