#!/usr/bin/env bash
# count-connections.sh: inside a node, what the kernel itself has counted in each of the node's network namespaces since
# their beginning. A line each: the UID of a pod whose namespace it is, or -; connections that were attempted, and whose
# outcome is known; connections that were accepted; UDP datagrams that were sent or received; attempts that are under way.
set -euo pipefail
declare -A known

# Reads sockets before the counters: an attempt that begins in between is not left out. Column 4 of a socket is its state,
# 02 for SYN-SENT. Columns of the second line Tcp: in snmp are ActiveOpens (6) and PassiveOpens (7); of Udp: InDatagrams (2),
# NoPorts (3), InErrors (4) and OutDatagrams (5), for IPv4 alone.
count() {
  awk '
    FILENAME ~ /tcp6?$/ { if ($4 == "02") pending++ }
    $1 == "Tcp:" && $2 ~ /^[0-9]/ { active = $6; passive = $7 }
    $1 == "Udp:" && $2 ~ /^[0-9]/ { datagrams += $2 + $3 + $4 + $5 }
    $1 ~ /^Udp6(InDatagrams|NoPorts|InErrors|OutDatagrams)$/ { datagrams += $2 }
    END { if (active != "") print active - pending, passive, datagrams + 0, pending + 0 }
  ' "$@" 2> /dev/null
}

# Processes come and go meanwhile.
while read -r namespace link; do
  process=${link%/ns/net}
  [ -z "${known[$namespace]-}" ] || continue
  # A kernel may lack IPv6.
  v6=$process/net/snmp6
  [ -e "$v6" ] || v6=/dev/null
  sockets=$process/net/tcp6
  [ -e "$sockets" ] || sockets=/dev/null
  counts=$(count "$process/net/tcp" "$sockets" "$process/net/snmp" "$v6") || continue
  cgroup=$(cat "$process/cgroup" 2> /dev/null) || continue
  [ -n "$counts" ] || continue
  known[$namespace]=yes
  uid=-
  [[ ! $cgroup =~ pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}) ]] || uid=${BASH_REMATCH[1]//_/-}
  echo "$uid $counts"
done < <(stat --dereference --format='%i %n' /proc/[0-9]*/ns/net 2> /dev/null || true)
