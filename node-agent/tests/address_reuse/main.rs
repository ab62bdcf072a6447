//! Tests address reuse within milliseconds, under load: real sockets in network namespaces and cgroups, the real
//! capture, the agent's own messages, the real graph. Half of the pods are on a node without an agent, so that only
//! their addresses are known. Each connection of an edge between two pods must be one that these two made, by their own
//! counts.
//!
//! `scripts/test-long reuse` goes on for three minutes and prints what it found.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]

#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the tests of the captures")]
#[path = "../capture_kernel/lab/mod.rs"]
mod lab;
mod operator;
mod pod_process;
mod testbed;
mod truth;

use std::time::{Duration, Instant};

use lab::node_or_skip;
use operator::Operator;
use testbed::Testbed;

/// Number of addresses, each held by one pod at any time.
const ADDRESSES: usize = 200;
/// Default duration.
const USUAL: Duration = Duration::from_secs(20);
/// Between two graphs.
const LOOK_AT_GRAPH: Duration = Duration::from_secs(10);

/// Not a test: what [`lab::Process`] starts.
#[test]
#[ignore = "the process that other tests start"]
fn scripted_process() {
    pod_process::run_pods();
}

fn lasting() -> Duration {
    let told = std::env::var("SCOPEPROBE_ADDRESS_REUSE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    told.map_or(USUAL, Duration::from_secs)
}

#[test]
fn no_edge_names_a_pod_that_did_not_own_the_address_then() {
    let node = node_or_skip!();
    let elsewhere = lab::Node::new();
    let testbed = Testbed::new(&node, &elsewhere, ADDRESSES);
    let mut operator = Operator::new(&node);
    let mut shown = Vec::new();
    let truth = testbed.run(lasting(), |events| {
        let mut graph_at = Instant::now() + Duration::from_secs(5);
        let mut housekeeping_at = graph_at;
        while !events.is_over() {
            operator.listen();
            operator.learn(events);
            if Instant::now() >= graph_at {
                shown.push(operator.graph());
                graph_at = Instant::now() + LOOK_AT_GRAPH;
            }
            if Instant::now() >= housekeeping_at {
                operator.keep_house();
                housekeeping_at = Instant::now() + Duration::from_secs(10);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    shown.push(operator.settled(&truth));
    for graph in &shown {
        truth.check_names(graph);
    }
    let last = shown.last().unwrap();
    println!("{}", truth.summary(last));
    truth.check_totals(last);
}
