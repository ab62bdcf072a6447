# shellcheck shell=bash
# A node from the outside: its network, a cgroup of its own in every hierarchy, and its namespaces. What runs inside
# is node-init.sh, the node's process 1: when that ends, the kernel ends all of the node.

start_node() {
  local i=$1 ns
  ns=$(node_ns "$i")
  mkdir -p "$STATE/node-$i"
  make_cgroups "$ns"
  export CACHE CLUSTER STATE PROXY_MODE
  # Into the cgroups first: they become the roots of the node's cgroup namespace.
  # shellcheck disable=SC2016
  start "node-$i" bash -ec 'for procs in $1; do echo $$ > "$procs"; done; shift; exec "$@"' enter-cgroups \
    "$(hierarchies | sed "s|\$|/$ns/cgroup.procs|")" \
    nsenter --net="/run/netns/$ns" -- \
    unshare --mount --pid --uts --ipc --cgroup --fork --kill-child -- "$CLUSTER_SCRIPTS/node-init.sh" "$i"
}

make_cgroups() {
  local hierarchy own
  for hierarchy in $(hierarchies); do
    own=$hierarchy/$1
    # cgroup v2: what the machine's root hands down, this one may hand on.
    [ ! -f "$hierarchy/cgroup.controllers" ] || hand_down_controllers "$hierarchy"
    mkdir -p "$own"
    # cgroup v1: a new cpuset is empty, and nothing can run in it.
    [ -f "$own/cgroup.controllers" ] || [ ! -f "$own/cpuset.cpus" ] || {
      cat "$hierarchy/cpuset.cpus" > "$own/cpuset.cpus"
      cat "$hierarchy/cpuset.mems" > "$own/cpuset.mems"
    }
  done
}

# The pid, in the machine's namespace, of the node's process 1: the first descendant in another pid namespace.
node_init_pid() {
  local pid children
  pid=$(pid_of "node-$1") || fail "node-$1 does not run; scripts/cluster status"
  while [ "$(readlink "/proc/$pid/ns/pid")" = "$(readlink /proc/self/ns/pid)" ]; do
    children=$(cat "/proc/$pid/task/$pid/children")
    [ -n "$children" ] || fail "node-$1 has not started yet; see $STATE/log/node-$1.log"
    pid=${children%% *}
  done
  echo "$pid"
}

on_node() {
  local pid
  pid=$(node_init_pid "$1")
  shift
  PATH=$BIN:$PATH nsenter --target "$pid" --all -- "$@"
}

node_numbers() { local dir; for dir in "$STATE"/node-*/; do [ -d "$dir" ] || continue; dir=${dir%/}; echo "${dir##*-}"; done; }

# Through standard input: the node sees other files than we do below /run and /var/lib.
load_images() {
  local tar i
  for tar in "$@"; do
    [ -f "$tar" ] || fail "no image archive at $tar; \`make images\` writes them to dist/"
    for i in $(node_numbers); do
      ! is_guest "$i" || fail "node-$i is a virtual machine and has its images from the start; take the cluster down and up"
      on_node "$i" ctr -n k8s.io images import - < "$tar" > /dev/null || fail "node-$i refused the image archive $tar"
      echo "loaded $tar into node-$i"
    done
  done
}

# receive_packet_steering MASK NAMESPACE: lets the CPUs of the (hex) mask process packets for the namespace's pods, in
# interrupts of any process there. It applies to both ends of each pod's veth pair and to its loopback; 0 switches it off.
receive_packet_steering() {
  local mask=$1 namespace=$2 i
  for i in $(node_numbers); do
    k get pods --namespace "$namespace" --field-selector "spec.nodeName=node-$i,spec.hostNetwork=false" \
      --output 'jsonpath={range .items[*]}{.metadata.uid}{"\n"}{end}' |
      on_node "$i" "$CLUSTER_SCRIPTS/steer-packets.sh" "$mask" || fail "cannot set receive packet steering on node-$i"
  done
}
