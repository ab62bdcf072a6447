//! Pods that hand their addresses on within milliseconds, under load: real sockets in network namespaces and cgroups, seen
//! by the real capture, told by the agent's own messages, joined by the real graph. A half of the pods is on a node
//! without an agent, so that addresses are all that is known of them. Every connection that an edge has between two pods
//! is one that these two have had, by their own word; no address makes anybody else of them.
//!
//! `SCOPEPROBE_HANDED_ON_SECONDS=180 cargo test -p scopeprobe-agent --test handed_on -- --nocapture` goes on for three
//! minutes and prints what it found.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]

#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the tests of the captures")]
#[path = "../capture_kernel/lab/mod.rs"]
mod lab;
mod operator;
mod player;
mod stage;
mod truth;

use std::time::{Duration, Instant};

use lab::node_or_skip;
use operator::Operator;
use stage::Stage;

/// How many addresses there are, each with a pod at any time.
const ADDRESSES: usize = 200;
/// How long it goes on, unless told otherwise.
const USUAL: Duration = Duration::from_secs(20);
/// Between two graphs.
const LOOK_AT_GRAPH: Duration = Duration::from_secs(10);

/// Not a test: what [`lab::Process`] starts.
#[test]
#[ignore = "the process that other tests start"]
fn obedient_process() {
    if std::env::var_os("SCOPEPROBE_LAB_PROCESS").is_some() {
        player::play();
    }
}

fn lasting() -> Duration {
    let told = std::env::var("SCOPEPROBE_HANDED_ON_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    told.map_or(USUAL, Duration::from_secs)
}

#[test]
fn no_edge_names_a_pod_that_did_not_own_the_address_then() {
    let node = node_or_skip!();
    let elsewhere = lab::Node::new();
    let stage = Stage::set(&node, &elsewhere, ADDRESSES);
    let mut operator = Operator::new(&node);
    let mut shown = Vec::new();
    let truth = stage.play(lasting(), |events| {
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
