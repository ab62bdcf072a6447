# shellcheck shell=bash
# Ends a cluster and removes what it, or a run of it that was killed, has left: processes by their records, then the
# namespaces and cgroups that carry its name.

remove_cgroups() {
  local hierarchy own
  for hierarchy in $(hierarchies); do
    own=$hierarchy/$(node_ns "$1")
    [ -d "$own" ] || continue
    end_processes_below "$own"
    for _ in $(seq 50); do
      find "$own" -depth -type d -exec rmdir {} \; 2>/dev/null || :
      [ -d "$own" ] || break
      sleep 0.1
    done
    [ ! -d "$own" ] || echo "cluster $CLUSTER: cannot remove $own: something still runs in it" >&2
  done
}

# Each process in a node's cgroup was started by the node, also if its record is lost.
end_processes_below() {
  local pid
  find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | while read -r pid; do
    [ "$pid" = 0 ] || kill -KILL "$pid" 2>/dev/null || :
  done
}

# As with cgroups, each process in the cluster's network namespaces belongs to the cluster.
remove_namespace() {
  local pid
  [ -e "/run/netns/$1" ] || return 0
  for pid in $(ip netns pids "$1" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || :; done
  ip netns del "$1" 2>/dev/null || rm -f "/run/netns/$1"
}

take_down() {
  local record i
  for record in "$STATE"/pid/node-* "$STATE"/pid/*; do
    [ ! -f "$record" ] || stop "$(basename "$record" .new)"
  done
  for i in $(seq "$MAX_NODES"); do
    remove_cgroups "$i"
    remove_namespace "$(node_ns "$i")"
  done
  remove_namespace "$CONTROL_NS"
  rm -rf --one-file-system "$STATE"
}
