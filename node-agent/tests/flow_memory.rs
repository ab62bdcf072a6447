//! Tests the memory that the agent's flows take, with an allocator that counts bytes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use counting_allocator::{Counting, IN_USE, MOST};
use scopeprobe_agent::flow_store::{Bounds, FlowStore};
use topology::{
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    rtt::{RttBucket, RttHistogram},
};

mod counting_allocator;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Number of flows that fills a hash table exactly. The allocator would count reserved room, which takes no memory
/// before it is used.
const FLOWS: u32 = 131_072 / 8 * 7;

fn key(number: u32) -> FlowKey {
    let [local, remote] = [1, number].map(|address| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + address)));
    FlowKey { cgroup_id: 7, netns: 1, role: Role::Client, local, remote, port: 443, protocol: Protocol::Tcp }
}

fn counters(number: u32) -> FlowCounters {
    let mut rtt = RttHistogram::default();
    rtt.add(RttBucket::of(number % 100_000));
    let bytes = u64::from(number) * 100;
    let (methods, retransmits) = (Methods::EBPF, Some(0));
    FlowCounters {
        opened: 1,
        closed: 1,
        bytes_sent: bytes,
        bytes_received: bytes,
        methods,
        retransmits,
        rtt,
        ..FlowCounters::default()
    }
}

/// The only test of this binary: the allocator would also count the memory of other tests' threads.
#[test]
fn flows_take_few_bytes_and_return_them_after_a_peak() {
    let now = Instant::now();
    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut store = FlowStore::new(Bounds { flows: FLOWS as usize, retention: Duration::from_hours(1) });
    for number in 0..FLOWS {
        assert!(store.record(key(number), counters(number), now));
    }
    let most = MOST.load(Ordering::Relaxed) - before;
    println!("{} bytes for each flow with news, at most", most / FLOWS as usize);
    assert!(most <= 230 * FLOWS as usize, "{most}");

    let mut snapshot = store.begin_snapshot();
    while !snapshot.is_complete() {
        let some = store.take_of_snapshot(&mut snapshot, 1000);
        store.acknowledge(&some);
    }
    let told = IN_USE.load(Ordering::Relaxed) - before;
    println!("{} bytes for each flow that the operator knows", told / FLOWS as usize);
    assert!(told <= 170 * FLOWS as usize, "{told}");

    let all_but_one: Vec<_> = (1..FLOWS).map(key).collect();
    store.drop_flows(&all_but_one, now, |_| true);
    drop(all_but_one);
    assert_eq!((store.len(), store.evicted_unreported().flows), (1, 0));
    assert!(store.shrink(), "a table of one flow is small");
    let left = IN_USE.load(Ordering::Relaxed) - before;
    println!("{left} bytes for one flow after the peak");
    assert!(left <= 64 << 10, "{left}");
}
