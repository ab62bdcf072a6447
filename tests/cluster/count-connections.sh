#!/usr/bin/env bash
# count-connections.sh: inside a node, what the kernel itself has counted in each of the node's network namespaces since
# their beginning. A line each: the UID of a pod whose namespace it is, or -; connections that were attempted, and whose
# outcome is known; connections that were accepted.
set -euo pipefail
declare -A known
for process in /proc/[0-9]*; do
  # Processes come and go meanwhile.
  namespace=$(readlink "$process/ns/net" 2> /dev/null) || continue
  [ -z "${known[$namespace]-}" ] || continue
  # Sockets in SYN-SENT (02). They are counted before all attempts are, so that one that begins meanwhile is not left out.
  # A kernel may lack IPv6.
  pending=$({ cat "$process/net/tcp" "$process/net/tcp6" 2> /dev/null || true; } | awk '$4 == "02"' | wc -l)
  counts=$(sed -n 's/^Tcp: \([0-9].*\)/\1/p' "$process/net/snmp" 2> /dev/null) || continue
  cgroup=$(< "$process/cgroup") || continue
  [ -n "$counts" ] || continue
  known[$namespace]=yes
  uid=-
  [[ ! $cgroup =~ pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}) ]] || uid=${BASH_REMATCH[1]//_/-}
  # RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens …
  read -r _ _ _ _ active passive _ <<< "$counts"
  echo "$uid $((active - pending)) $passive"
done
