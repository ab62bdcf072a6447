# shellcheck shell=bash disable=SC2034
# Names, places and addresses of one cluster; sourced by scripts/cluster and by what runs inside a node.
# CLUSTER names it (several run side by side); SCOPEPROBE_CACHE is where tools and state live, outside of the repository.

CACHE=${SCOPEPROBE_CACHE:-$HOME/.cache/scopeprobe}
BIN=$CACHE/bin
CLUSTER=${CLUSTER:-scopeprobe}
STATE=$CACHE/clusters/$CLUSTER
PKI=$STATE/pki
CGROUPS=/sys/fs/cgroup
CONTROL_NS=$CLUSTER-control
PROXY_MODE=${PROXY_MODE:-nftables}
MAX_NODES=9

PAUSE_IMAGE=scopeprobe/pause:dev

# The fabric is a bridge in the control plane's network namespace; no link leaves the machine.
CONTROL_V4=10.99.0.1 CONTROL_V6=fd99::1
SERVICES_V4=10.96.0.0/16 SERVICES_V6=fd96::/108
PODS_V4=10.244.0.0/16 PODS_V6=fd44::/48
node_v4() { echo "10.99.0.1$1"; }
node_v6() { echo "fd99::1$1"; }
pods_v4() { echo "10.244.$1.0/24"; }
pods_v6() { echo "fd44:0:0:$1::/64"; }
node_ns() { echo "$CLUSTER-node-$1"; }

# The mount points of all cgroup hierarchies: one on a pure cgroup v2 machine, several on others.
hierarchies() {
  local dir
  if [ -f "$CGROUPS/cgroup.procs" ]; then echo "$CGROUPS"; return; fi
  for dir in "$CGROUPS"/*; do [ ! -f "$dir/cgroup.procs" ] || [ -L "$dir" ] || echo "$dir"; done
}

# hand_down_controllers CGROUP: lets the children of a cgroup v2 have all controllers that it has itself.
hand_down_controllers() {
  local controller
  for controller in $(cat "$1/cgroup.controllers"); do
    grep -qw "$controller" "$1/cgroup.subtree_control" || echo "+$controller" > "$1/cgroup.subtree_control" ||
      echo "cannot hand the controller $controller down from $1: do processes run in it?" >&2
  done
}

fail() { echo "cluster $CLUSTER: $*" >&2; exit 1; }
