//! The second choice and the third: what they miss, and that they say so.

use kernel_support::KernelFeature;
use prerequisites::{Prerequisite, skip};
use scopeprobe_agent::capture::{Attach, Losses, Settings};
use topology::flow::{FlowCounters, Role};

use crate::lab::{self, Watched, node_or_skip, short, storm_size};

/// With steering, softirqs come to a processor while it runs a program, whose next run they need. Every opening and every
/// end that is missing then was a run that the kernel counted as skipped.
fn what_a_tracepoint_misses_is_counted_as_lost(attach: Attach) {
    const THREADS: u64 = 4;
    let times = storm_size(16_000);
    let node = node_or_skip!();
    let mut watched = node.capture(attach);
    let mut storm = node.process_in_own_netns("storm", true);
    storm.serve_and_call("127.0.0.1:0", THREADS, short(times, 20, 30));
    watched.read();
    let sum = |field: fn(&FlowCounters) -> u64| watched.flows.values().map(field).sum::<u64>();
    let all = 2 * THREADS * times;
    let (opened, closed) = (sum(|counters| counters.opened), sum(|counters| counters.closed));
    let missed = watched.losses.missed_runs;
    println!("{attach:?}: of {all} ends {opened} opened, {closed} closed; {missed} runs skipped");
    assert!(opened <= all && closed <= all, "nothing is made up");
    assert!(all - opened <= missed && all - closed <= missed, "{:?}", watched.losses);
    assert_eq!(
        watched.losses,
        Losses { missed_runs: missed, closes_unseen: watched.losses.closes_unseen, ..Losses::default() }
    );
    assert_eq!(sum(|counters| counters.without_bytes), watched.losses.closes_unseen);
    for (key, counters) in &watched.flows {
        let (sent, received) = if key.role == Role::Client { (20, 30) } else { (30, 20) };
        let known = counters.closed - counters.without_bytes;
        assert_eq!((counters.bytes_sent, counters.bytes_received), (sent * known, received * known), "{counters:?}");
    }
}

#[test]
fn what_the_btf_tracepoint_misses_is_counted_as_lost() {
    what_a_tracepoint_misses_is_counted_as_lost(Attach::TpBtf);
}

#[test]
fn what_the_classic_tracepoint_misses_is_counted_as_lost() {
    if let Some(reason) = lab::no_classic_tracepoint() {
        skip(Prerequisite::ClassicTracepoint, &reason);
    } else if !lab::kernel_has(KernelFeature::ClassicTracepointMissCount) {
        skip(
            Prerequisite::SkippedRuns,
            "this kernel does not count the skipped runs of a classic tracepoint's program",
        );
    } else {
        what_a_tracepoint_misses_is_counted_as_lost(Attach::Tracepoint);
    }
}

/// Sockets that cannot be tracked for lack of room count once, at their start and at their end.
#[test]
fn connections_that_find_no_room_to_be_followed_are_counted() {
    let node = node_or_skip!();
    let mut watched = Watched::start(&Settings { max_tracked_sockets: 4, ..node.settings(Attach::TpBtf) });
    let mut client = node.process("client");
    let port = client.listen("l", "127.0.0.1:0");
    for name in ["a", "b", "c", "d", "e"] {
        client.connect(name, format_args!("127.0.0.1:{port}"));
        client.accept(format_args!("{name}s"), "l");
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    loop {
        watched.read();
        let opened: u64 = watched.flows.values().map(|counters| counters.opened).sum();
        let (lost, missed) = (watched.losses.opened, watched.losses.missed_runs);
        assert!(opened + lost <= 10, "{:?}", watched.losses);
        if opened + lost + missed >= 10 {
            assert!(lost > 0 && lost == watched.losses.closed, "{:?}", watched.losses);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{opened} {:?}", watched.losses);
    }
}
