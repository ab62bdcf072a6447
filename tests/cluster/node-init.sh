#!/usr/bin/env bash
# node-init.sh I: process 1 of node I. Mounts what makes it a node of its own, then runs containerd, kubelet and
# kube-proxy in it. Everything here happens in the node's own namespaces and is gone with it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/cluster/settings.sh
. "$here/settings.sh"
# shellcheck source=tests/cluster/process.sh
. "$here/process.sh"
# shellcheck source=tests/cluster/node-config.sh
. "$here/node-config.sh"
i=$1
DIR=$STATE/node-$i

mount_system() {
  mount --make-rprivate /
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mkdir -p /sys/kernel/tracing && mount -t tracefs tracefs /sys/kernel/tracing
  mount -t bpf bpf /sys/fs/bpf
  hostname "node-$i"
}

# The cgroup hierarchies as this node's cgroup namespace shows them: its own subtree is the root.
mount_cgroups() {
  local memberships controllers dir type options
  memberships=$(cat /proc/self/cgroup)
  if [ "$(wc -l <<< "$memberships")" = 1 ]; then mount_cgroup_v2; return; fi
  mount -t tmpfs tmpfs "$CGROUPS"
  while IFS=: read -r _ controllers _; do
    case $controllers in
      '') dir=unified type=cgroup2 options=rw ;;
      name=*) dir=${controllers#name=} type=cgroup options=none,$controllers ;;
      *) dir=$controllers type=cgroup options=$controllers ;;
    esac
    mkdir -p "$CGROUPS/$dir"
    mount -t "$type" -o "$options" cgroup "$CGROUPS/$dir"
  done <<< "$memberships"
}

# cgroup v2 lets a cgroup have either processes or children with controllers: ours go into a child of their own.
mount_cgroup_v2() {
  mount -t cgroup2 cgroup2 "$CGROUPS"
  mkdir -p "$CGROUPS/init"
  echo $$ > "$CGROUPS/init/cgroup.procs"
  hand_down_controllers "$CGROUPS"
}

# Default paths, and hostPath volumes with them, mean what they mean on a machine that is a node.
mount_directories() {
  local dir
  for dir in /var/lib/containerd /var/lib/kubelet /var/lib/cni /etc/cni /opt/cni /var/log/pods /var/log/containers; do
    mkdir -p "$dir" "$DIR$dir"
    mount --bind "$DIR$dir" "$dir"
  done
  mount -t tmpfs tmpfs /run
  mkdir -p /run/netns /etc/cni/net.d
}

# Values that kubelet insists on, shown to it without changing the machine's own.
mount_kernel_values() {
  local value file
  for value in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$DIR/$(basename "${value%=*}")
    echo "${value#*=}" > "$file"
    mount --bind "$file" "/proc/sys/${value%=*}"
  done
}

# These belong to the node's network namespace.
set_network_values() {
  echo 1 > /proc/sys/net/ipv4/ip_forward
  echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
  [ ! -d /proc/sys/net/bridge ] || {
    echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
    echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables; }
}

# in_unit NAME CMD...: runs a program in a cgroup v2 like that of its systemd unit, as on machines that have systemd.
in_unit() {
  local unit=system.slice/$1.service hierarchy
  shift
  for hierarchy in "$CGROUPS" "$CGROUPS/unified"; do
    [ ! -f "$hierarchy/cgroup.controllers" ] || {
      mkdir -p "$hierarchy/$unit" && echo "$BASHPID" > "$hierarchy/$unit/cgroup.procs"; }
  done
  exec "$@"
}

run_programs() {
  export PATH=$BIN:$PATH
  in_unit containerd containerd --config "$DIR/containerd.toml" > "$STATE/log/containerd-$i.log" 2>&1 &
  await 60 "containerd of node-$i" ctr version
  ctr -n k8s.io images import "$CACHE/images/pause.tar" > /dev/null
  in_unit kubelet kubelet --config="$DIR/kubelet.yaml" --kubeconfig="$STATE/node-$i.kubeconfig" --hostname-override="node-$i" \
    --node-ip="$(node_v4 "$i"),$(node_v6 "$i")" > "$STATE/log/kubelet-$i.log" 2>&1 &
  in_unit kube-proxy kube-proxy --config="$DIR/kube-proxy.yaml" > "$STATE/log/kube-proxy-$i.log" 2>&1 &
}

mount_system
mount_cgroups
mount_directories
mount_kernel_values
set_network_values
mount --make-rshared /
write_node_config "$i" "$DIR"
run_programs
trap 'exit 0' TERM
while :; do sleep infinity & wait $! || :; done
