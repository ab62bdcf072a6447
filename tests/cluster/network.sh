# shellcheck shell=bash
# The fabric: a bridge in the control plane's network namespace and one veth pair to each node's.

make_fabric() {
  ip netns add "$CONTROL_NS"
  ip -n "$CONTROL_NS" link set lo up
  ip -n "$CONTROL_NS" link add fabric type bridge
  ip -n "$CONTROL_NS" addr add "$CONTROL_V4/24" dev fabric
  ip -n "$CONTROL_NS" addr add "$CONTROL_V6/64" dev fabric nodad
  ip -n "$CONTROL_NS" link set fabric up
}

# connect_node I OF-N
connect_node() {
  local i=$1 n=$2 ns j
  ns=$(node_ns "$i")
  ip netns add "$ns"
  ip -n "$ns" link set lo up
  ip -n "$CONTROL_NS" link add "to-$i" type veth peer name eth0 netns "$ns"
  ip -n "$CONTROL_NS" link set "to-$i" master fabric up
  ip -n "$ns" addr add "$(node_v4 "$i")/24" dev eth0
  ip -n "$ns" addr add "$(node_v6 "$i")/64" dev eth0 nodad
  ip -n "$ns" link set eth0 up
  # A connection to a Service's address needs a route before kube-proxy rewrites it; the fabric leads nowhere else.
  ip -n "$ns" route add default via "$CONTROL_V4"
  ip -n "$ns" -6 route add default via "$CONTROL_V6"
  route_to_pods "$i"
  for j in $(seq "$n"); do
    [ "$j" != "$i" ] || continue
    ip -n "$ns" route add "$(pods_v4 "$j")" via "$(node_v4 "$j")"
    ip -n "$ns" -6 route add "$(pods_v6 "$j")" via "$(node_v6 "$j")"
  done
}

# Pods talk to the API server from their own addresses.
route_to_pods() {
  ip -n "$CONTROL_NS" route add "$(pods_v4 "$1")" via "$(node_v4 "$1")"
  ip -n "$CONTROL_NS" -6 route add "$(pods_v6 "$1")" via "$(node_v6 "$1")"
}

# Prints a port of the machine's loopback without a listener, from 16443 on.
free_port() {
  local port
  # Clusters that start at the same time do not take the same port: nothing listens there until an API server is up.
  exec 6> "$CACHE/clusters/ports.lock"
  flock 6
  for port in $(seq 16443 16643); do
    [ -z "$(ss -Hltn "sport = :$port")" ] && ! grep -qsx "$port" "$CACHE"/clusters/*/port || continue
    echo "$port" | tee "$STATE/port"
    return
  done
  fail "no free port between 16443 and 16643 for the API server"
}
