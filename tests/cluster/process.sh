# shellcheck shell=bash
# Processes that outlive the command that started them. Each is identified by pid and start time, so that a process to
# which the kernel gave the same pid meanwhile is never ended.

# Prints the 22nd field of /proc/PID/stat. Prints nothing for a zombie: it has ended, even if it was not reaped yet.
start_time() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'; }

# start NAME CMD...: in a session of its own, with a log. The process writes its own record before it becomes CMD, so
# that there is none without one, whenever this command is killed. Descriptor 9 is the cluster's lock.
start() {
  local name=$1
  shift
  rm -f "$STATE/pid/$name"
  # shellcheck disable=SC2016
  setsid -f bash -c 'echo $$ "$(sed "s/^.*) //" /proc/$$/stat | cut -d" " -f20)" > "$0.new"; mv "$0.new" "$0"; exec "$@"' \
    "$STATE/pid/$name" "$@" > "$STATE/log/$name.log" 2>&1 < /dev/null 9>&-
}

# pid_of NAME: prints the pid of a process that start() started and that still runs.
pid_of() {
  local pid started
  read -r pid started 2>/dev/null < "$STATE/pid/$1" || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

# stop NAME: kills the process at once. No process needs time to save its state, because all state is removed afterwards.
stop() {
  local pid
  if pid=$(pid_of "$1"); then
    kill -KILL "$pid" 2>/dev/null || :
    for _ in $(seq 300); do pid_of "$1" > /dev/null || break; sleep 0.1; done
    ! pid_of "$1" > /dev/null || fail "$1 (pid $pid) does not end after SIGKILL; look at /proc/$pid/stack"
  fi
  rm -f "$STATE/pid/$1"
}

# kill_process NAME: at once, and leaves the record, so that `status` tells of it.
kill_process() { local pid; pid=$(pid_of "$1") || fail "$1 does not run"; kill -KILL "$pid"; }

# await SECONDS WHAT CMD...: tries until CMD succeeds; says every few seconds what it waits for.
await() {
  local seconds=$1 what=$2 begin=$SECONDS said=$SECONDS
  shift 2
  until "$@" > "$STATE/log/await.log" 2>&1; do
    if [ $((SECONDS - begin)) -ge "$seconds" ]; then
      echo "last answer:" >&2
      tail -n 5 "$STATE/log/await.log" >&2
      fail "gave up on $what after $seconds s; the logs are in $STATE/log"
    fi
    if [ $((SECONDS - said)) -ge 5 ]; then said=$SECONDS; echo "  waiting for $what ($((SECONDS - begin)) s)" >&2; fi
    sleep 0.1
  done
}
