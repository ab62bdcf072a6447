# shellcheck shell=bash
# Steps of scripts/check and scripts/test: their durations, and what had to be skipped.

CACHE=${SCOPEPROBE_CACHE:-$HOME/.cache/scopeprobe}
BIN=$CACHE/bin
# shellcheck source=tests/features.sh
. tests/features.sh
# What `make test` and CI require: a container's root often lacks SYS_RESOURCE, which the guests of test-long have.
# shellcheck disable=SC2034
REQUIRED=all,-sys-resource
STEP_TIMES=()
# Tests append to it, too (tests/prerequisites), as do scripts that another one runs.
SCOPEPROBE_SKIPPED=${SCOPEPROBE_SKIPPED:-$(mktemp)}
export SCOPEPROBE_SKIPPED

# step NAME CMD...: runs a step, with its name before and its duration after
step() {
  local name=$1 begin=$SECONDS
  shift
  echo "==> $name"
  "$@"
  STEP_TIMES+=("$(printf '%5d s  %s' $((SECONDS - begin)) "$name")")
}

# requires NAME: whether SCOPEPROBE_REQUIRE requires a prerequisite, as in tests/prerequisites
requires() {
  local word required=1
  for word in $(tr ',' ' ' <<< "${SCOPEPROBE_REQUIRE-}"); do
    case $word in
      all | "$1") required=0 ;;
      -all | "-$1") required=1 ;;
    esac
  done
  return "$required"
}

# skip NAME REASON: records what cannot be done here; fails where the prerequisite is required
skip() {
  if requires "$1"; then
    echo "SCOPEPROBE_REQUIRE=$SCOPEPROBE_REQUIRE requires $1, but this machine lacks it: $2" >&2
    exit 1
  fi
  echo "skipped: $2 ($1)"
  echo "$(basename "$0"): $2 ($1)" >> "$SCOPEPROBE_SKIPPED"
}

# summarize: prints the steps' durations and all that was skipped
summarize() {
  echo
  [ "${#STEP_TIMES[@]}" = 0 ] || printf '%s\n' "${STEP_TIMES[@]}"
  if [ -s "$SCOPEPROBE_SKIPPED" ]; then
    echo "skipped:"
    sort --unique "$SCOPEPROBE_SKIPPED" | sed 's/^/  /'
  else
    echo "skipped: nothing"
  fi
  rm -f "$SCOPEPROBE_SKIPPED"
}

check_shell() {
  command -v shellcheck > /dev/null || { skip shellcheck "shellcheck is not installed: apt-get install shellcheck"; return; }
  shell_scripts | xargs shellcheck --external-sources --severity=warning
}

check_spelling() {
  command -v codespell > /dev/null || { skip codespell "codespell is not installed: apt-get install codespell"; return; }
  git ls-files -z -- ':!*.lock' ':!*.o' ':!*.png' ':!LICENSE' ':!kubectl-scopeprobe/web/dist' ':!*/package-lock.json' | xargs --null codespell --ignore-words-list crate,crates,keypair
}

# Every tracked script, by its name or its first line.
shell_scripts() {
  local file first
  git ls-files | while read -r file; do
    [ -f "$file" ] && read -r first < "$file" || continue
    case $file/$first in *.sh/* | */'#!'*sh) echo "$file" ;; esac
  done
}

check_chart() {
  local helm
  helm=$(PATH=$BIN:$PATH command -v helm) || { skip helm "the chart is not rendered: Helm is not installed (\`scripts/setup helm\` builds it)"; return; }
  "$helm" lint --quiet charts/scopeprobe
  "$helm" template scopeprobe charts/scopeprobe --namespace scopeprobe-system > /dev/null
  scripts/manifest --check
}

lint() {
  step "formatting" cargo fmt --all --check
  step "clippy" cargo clippy --workspace --all-targets --features "$TEST_FEATURES" --locked -- --deny warnings
  step "shellcheck" check_shell
  step "spelling" check_spelling
  step "chart" check_chart
}
