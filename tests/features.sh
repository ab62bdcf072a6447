# shellcheck shell=bash disable=SC2034
# The features that enable every test. One set for all scripts, so that nothing is built twice.
TEST_FEATURES=kubectl-scopeprobe/page-tests,scopeprobe-agent/kernel-tests,scopeprobe-operator/control-plane-tests,scopeprobe-tests/cluster-tests
