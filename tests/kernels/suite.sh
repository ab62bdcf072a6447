# shellcheck shell=bash
# What is run in the guests. `cargo xtask kernel-report` judges the results.
# shellcheck source=tests/features.sh
. "$KERNEL_SCRIPTS/../features.sh"

# The agent's tests that need nothing but a kernel.
SUITE="capture_kernel fallback_kernel"
# All captures side by side, each of which takes its own capabilities; half a minute, so not part of --quick.
COMPARISON=parity
# Left out by --quick: what takes longest there, as it is the way to attach that --quick is about, not each case ...
LONG_TESTS="in_a_storm slots_come_back tp_btf:: misses:: refusals:: a_hundred_short"
# ... and what the agent's own memory decides, or conntrack, which is the same on all kernels.
LONG_TESTS+=" forgotten_flows more_conversations silent_for_long many_clients captures_of_a_node a_node_without_ipv6"
LONG_TESTS+=" conversation_does_not bytes_that_conntrack events_that_do_not_fit what_happened_before what_nothing_has"
# ... and roles and silences of UDP, and rows of external addresses, which the programs decide alike on all kernels.
LONG_TESTS+=" udp_roles:: busy_conversation displaced_conversation external_addresses_share in_which_they_began"
LONG_TESTS+=" networks_of_the_cluster"

# Packages with unit tests that also run on arm64.
UNIT_TESTS="scopeprobe-agent scopeprobe-kernel-support scopeprobe-node-agent-common scopeprobe-report scopeprobe-topology"

# Kernel tests on arm64: counts of TCP and UDP by sock_ops, and Services behind a load balancer at the sockets.
ARM64_TESTS="sock_ops:: udp:: balancers::"

# mode_of PROGRAM KERNEL: the mode of the DaemonSet whose agent does what the program tests
mode_of() {
  case $1/$2 in
    fallback_kernel/*) echo fallback ;;
    */5.10) echo ebpf-memlock ;;
    *) echo ebpf ;;
  esac
}

# capabilities_of MODE: those of its DaemonSet; the operator's code generates the file
capabilities_of() {
  sed -n "s/^$1 //p" "$KERNEL_SCRIPTS/capabilities.txt" | grep . || fail "tests/kernels/capabilities.txt has no mode $1"
}

# required_of KERNEL: the prerequisites that a guest must meet (tests/prerequisites), each but those its kernel lacks
required_of() {
  local lacks=two-processors
  case $1 in
    5.10) lacks+=" socket-listing classic-tracepoint skipped-runs mptcp" ;;
    6.1) lacks+=" skipped-runs" ;;
  esac
  printf all
  # shellcheck disable=SC2086
  printf ',-%s' $lacks
}

# suite_script KERNEL QUICK: what a guest runs; it ends with a failure where one of its parts does
suite_script() {
  [ "$(architecture_of "$1")" = amd64 ] || { arm64_script "$1"; return; }
  local program skip='' word
  [ -z "$2" ] || for word in $LONG_TESTS; do skip+=" --skip $word"; done
  echo 'export SCOPEPROBE_LAB_STORM=400'
  echo "export SCOPEPROBE_REQUIRE=$(required_of "$1")"
  echo 'code=0'
  echo '/tests/scopeprobe-agent check || code=1'
  for program in $SUITE; do
    [ -n "$2" ] || echo "/guest-tests $program root '' || code=1"
    # Debian's kernels want SYS_ADMIN for the classic tracepoint, which no DaemonSet of ours has.
    echo "/guest-tests $program daemonset $(capabilities_of "$(mode_of "$program" "$1")")$skip --skip classic:: --skip misses::what_the_classic || code=1"
  done
  if [ -z "$2" ]; then
    echo "/guest-tests $COMPARISON root '' || code=1"
    conditions_script
  fi
  echo 'exit $code'
}

# conditions_script [no-ipv6]
# shellcheck disable=SC2120 # scripts/kernels gives the argument
conditions_script() {
  echo 'echo "guest-tests: begin conditions root"'
  echo "/guest-conditions ${1-} || code=1"
  echo 'echo "guest-tests: end conditions root"'
  [ $# = 0 ] || echo 'exit ${code-0}'
}

# arm64_script KERNEL: the same for arm64, without what takes long and does not depend on the processor.
arm64_script() {
  local package skip='' word
  for word in $LONG_TESTS; do skip+=" --skip $word"; done
  echo "export SCOPEPROBE_REQUIRE=$(required_of "$1")"
  echo 'code=0'
  echo '/tests/scopeprobe-agent check || code=1'
  for package in $UNIT_TESTS; do echo "/guest-tests ${package//-/_} root '' || code=1"; done
  echo "/guest-tests capture_kernel daemonset $(capabilities_of ebpf) $ARM64_TESTS$skip || code=1"
  echo 'exit $code'
}

# build_suite ARCHITECTURE: prints the paths of the programs that go into the guests
build_suite() {
  local test package arguments=()
  if [ "$1" = amd64 ]; then
    arguments=(--workspace)
    for test in $SUITE $COMPARISON; do arguments+=(--test "$test"); done
    # With the features of all tests: otherwise the agent's dependencies would be compiled again.
    build_tests cargo test --features "$TEST_FEATURES" "${arguments[@]}"
    echo "${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/debug/scopeprobe-agent"
  else
    for package in $UNIT_TESTS; do arguments+=(--package "$package"); done
    build_tests cargo xtask cargo --platform linux/arm64 test --features scopeprobe-agent/kernel-tests "${arguments[@]}" --lib --test capture_kernel
    echo "${CARGO_TARGET_DIR:-target}/aarch64-unknown-linux-gnu/debug/scopeprobe-agent"
  fi
}

# build_tests COMMAND...: prints the paths of the tests. It builds the agent as well.
build_tests() {
  "$@" --locked --no-run 2> "$WORK/cargo.log" || { cat "$WORK/cargo.log" >&2; fail "the tests cannot be built"; }
  sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$WORK/cargo.log"
}
