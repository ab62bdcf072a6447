//! All ways of seeing side by side: the same connections, made once by processes that count for themselves, and what
//! each capture has made of them. Prints a table.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]

mod figures;
#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the tests of each capture")]
#[path = "../capture_kernel/lab/mod.rs"]
mod lab;
mod methods;
mod oracle;
mod witness;

use std::sync::{Mutex, PoisonError};

use figures::{Figures, Table};
use lab::{Node, node_or_skip, routed::Routed, run_scripted_process, storm_size};
use methods::{Method, all, by_ebpf};
use oracle::Oracle;
use prerequisites::{Prerequisite, skip};
use witness::Witness;

/// Not a test: what [`lab::Process`] starts.
#[test]
#[ignore = "the process that other tests start"]
fn scripted_process() {
    run_scripted_process();
}

/// They share the machine's processors, and the rate is a part of the workload.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn long_and_short_connections_by_every_method() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let node = node_or_skip!();
    between_pods(&node, false);
}

#[test]
fn long_and_short_connections_by_every_method_with_steering() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let node = node_or_skip!();
    if has_one_processor() {
        skip(Prerequisite::TwoProcessors, "with one processor there is nowhere to steer to");
        return;
    }
    between_pods(&node, true);
}

#[test]
fn connections_at_full_speed_by_each_way_to_attach_with_steering() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let node = node_or_skip!();
    if has_one_processor() {
        skip(Prerequisite::TwoProcessors, "with one processor there is nowhere to steer to");
        return;
    }
    let mut storm = node.process_in_own_netns("storm", true);
    compare(&by_ebpf(), &node, storm.pid(), true, || oracle::storm(&mut storm, 4, storm_size(16_000)));
}

fn has_one_processor() -> bool {
    std::thread::available_parallelism().unwrap().get() == 1
}

fn between_pods(node: &Node, steering: bool) {
    let mut lab = Routed::new(node, ["long-client", "long-server", "short-client", "short-server"]);
    if steering {
        lab.steer();
    }
    compare(&all(), node, lab.host.pid(), steering, || oracle::between_pods(&mut lab.pods));
}

/// Runs the workload while all methods capture it; then prints and checks the results of each.
fn compare(methods: &[Method], node: &Node, host_pid: u32, steering: bool, make: impl FnOnce() -> Oracle) {
    let witnesses: Vec<_> =
        methods.iter().map(|method| (method, Witness::start(method, node.root(), host_pid))).collect();
    let oracle = make();
    let table = Table::new(&format!("{}/s{}", oracle.rate, if steering { ", RPS" } else { "" }));
    let mut complaints = Vec::new();
    // All are stopped before the first result is awaited.
    for (_, witness) in &witnesses {
        if let Ok(witness) = witness {
            witness.end();
        }
    }
    for (method, witness) in witnesses {
        match witness.map(Witness::testimony) {
            Err(reason) => {
                table.absent(method.name, &reason);
                match method.prerequisite {
                    Some(prerequisite) => skip(prerequisite, &format!("{}: {reason}", method.name)),
                    None => complaints.push(format!("{} cannot be had: {reason}", method.name)),
                }
            }
            Ok(testimony) => {
                let figures = Figures::new(&oracle, &testimony);
                table.row(method.name, &figures);
                complaints.extend(figures.complaints(method.name, method.promise));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
