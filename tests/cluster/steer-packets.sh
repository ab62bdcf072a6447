#!/usr/bin/env bash
# steer-packets.sh MASK < POD-UIDS: inside a node, writes the receive packet steering mask of the pods' interfaces.
set -euo pipefail
mask=$1
# A network namespace's interfaces show in a sysfs that was mounted in it. There is one superblock for each, which the
# container runtime has made read-only; the containers' mounts of it stay so.
# shellcheck disable=SC2016
steer='mount -t sysfs sysfs /sys
mount -o remount,rw /sys
for queue in /sys/class/net/*/queues/rx-0/rps_cpus; do echo "$1" > "$queue"; done'
while read -r uid; do
  [ -n "$uid" ] || continue
  # Of grep's exit code nothing follows: it is an error where any process has ended meanwhile, and where head has enough.
  file=$(grep -l --no-messages "pod$uid" /proc/[0-9]*/cgroup | head -n 1) || true
  [ -n "$file" ] || { echo "no process of pod $uid here" >&2; exit 1; }
  pid=${file#/proc/}
  nsenter --target "${pid%/cgroup}" --net -- unshare --mount -- sh -ec "$steer" steer "$mask"
done
for queue in /sys/class/net/veth*/queues/rx-0/rps_cpus /sys/class/net/eth0/queues/rx-0/rps_cpus; do
  [ ! -e "$queue" ] || echo "$mask" > "$queue"
done
