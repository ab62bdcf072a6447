//! Damaged messages: each is refused or taken in, and leaves numbers that the API can show. `scripts/fuzz` gives ten million.

use futures::FutureExt as _;
use proptest::prelude::*;
use prost::Message as _;
use report::{
    codec::Bounded as _,
    v1alpha1::{self as wire, AgentReport},
};

use super::{
    CollectorInputs, decode,
    session::{Session, Sessions},
};
use crate::{observation::Observations, shared_ledger::SharedLedger};

fn address(last: u8) -> Vec<u8> {
    vec![10, 0, 0, last]
}

fn flow(role: wire::Role, port: u32) -> wire::Flow {
    let nat_port = if role == wire::Role::Client { 80 } else { 0 };
    wire::Flow {
        cgroup_id: 5,
        netns: 9,
        role: role.into(),
        local_ip: address(1),
        remote_ip: address(2),
        port,
        counters: Some(wire::Counters {
            opened: 300,
            closed: 299,
            failed: 2,
            bytes_sent: 1 << 40,
            bytes_received: 7,
            rtt: vec![0, 2, 1],
            retransmits: Some(3),
            methods: 1,
            ..wire::Counters::default()
        }),
        run: 2,
        remote_names: vec!["example.com".to_owned()],
        nat_peers: vec![wire::NatPeer { ip: address(7), port: nat_port, opened: 2 }],
        first_seen_age_ms: 9_000,
        news_age_ms: 2_000,
        changed_age_ms: 500,
        ..wire::Flow::default()
    }
}

/// A message with all fields, as an agent sends it.
fn message() -> AgentReport {
    let owner = wire::PodContainer { pod_uid: "1-2-3".to_owned(), container_id: "c".to_owned() };
    AgentReport {
        node: "node-1".to_owned(),
        epoch: vec![7; 16],
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: Some(wire::CaptureState {
            mode: wire::Mode::Ebpf.into(),
            reason: wire::Reason::Supported.into(),
            message: "it works".to_owned(),
            attach: "SockOps".to_owned(),
            kernel: "6.1.0".to_owned(),
            attached_age_ms: 60_000,
            seen: 600,
            ..wire::CaptureState::default()
        }),
        identities: vec![wire::Identity {
            cgroup_id: 5,
            cgroup_path: "/kubepods/pod1-2-3/c".to_owned(),
            owner: Some(wire::identity::Owner::PodContainer(owner)),
        }],
        flows: vec![flow(wire::Role::Client, 443), flow(wire::Role::Server, 8080)],
        node_addresses: vec![address(9)],
        origin_epoch: vec![7; 16],
        sent_unix_ms: 1_700_000_000_000,
    }
}

/// Change of the bytes of a message.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Flip(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Insert(usize, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let length = 1..40_usize;
    let place = || 0..1_usize << 16;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (place(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (place(), length.clone()).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (place(), length).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        // The largest numbers that a field can have.
        place().prop_map(|at| Mutation::Insert(at, vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
        (place(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: Mutation) {
    let size = bytes.len();
    if size == 0 {
        return;
    }
    match mutation {
        Mutation::Set(at, byte) => bytes[at % size] = byte,
        Mutation::Flip(at, bit) => bytes[at % size] ^= 1 << bit,
        Mutation::Remove(at, length) => drop(bytes.drain(at % size..(at % size + length).min(size))),
        Mutation::Repeat(at, length) => {
            let piece = bytes[at % size..(at % size + length).min(size)].to_vec();
            bytes.splice(at % size..at % size, piece);
        }
        Mutation::Insert(at, inserted) => drop(bytes.splice(at % size..at % size, inserted)),
    }
}

/// Returns the result of a future that waits for nothing.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing is waited for")
}

/// Returns the message's content, if it is one that the collector accepts.
fn received(bytes: &[u8]) -> Option<decode::Report> {
    AgentReport::check(bytes).ok()?;
    decode::decode(AgentReport::decode(bytes).ok()?).ok()
}

proptest! {
    #[test]
    fn damaged_messages_are_refused_or_taken_in(messages in prop::collection::vec(prop::collection::vec(mutation(), 0..4), 1..4)) {
        let inputs = CollectorInputs::open(SharedLedger::default(), Observations::default());
        let sessions = Sessions::new(&inputs);
        let mut session = None;
        for (sequence, mutations) in (1..).zip(messages) {
            let mut bytes = AgentReport { sequence, ..message() }.encode_to_vec();
            for mutation in mutations {
                apply(&mut bytes, mutation);
            }
            let Some(report) = received(&bytes) else { continue };
            let opened = session.take().map_or_else(|| Session::open(sessions.clone(), &report), Ok);
            let Ok(mut open) = opened else { continue };
            // A stream ends with the first message that is refused.
            session = at_once(open.take_in(report)).is_ok().then_some(open);
        }
        drop(session);
        let ledger = at_once(inputs.shared_ledger.ledger().lock());
        for flow in ledger.flows() {
            let totals = flow.totals;
            for number in [totals.opened, totals.failed, totals.active, totals.bytes_sent, totals.bytes_received] {
                prop_assert!(i64::try_from(number).is_ok(), "{totals:?}");
            }
        }
        for node in inputs.observations.all().values() {
            prop_assert!(i64::try_from(node.total_seen()).is_ok());
        }
    }
}

#[test]
fn message_without_damage_is_taken_in() {
    let inputs = CollectorInputs::open(SharedLedger::default(), Observations::default());
    let sessions = Sessions::new(&inputs);
    decode::decode(message()).expect("it is valid");
    let report = received(&message().encode_to_vec()).expect("it is whole");
    let mut session = Session::open(sessions.clone(), &report).expect("it begins a snapshot");
    at_once(session.take_in(report)).expect("it is in order");
    let ledger = at_once(inputs.shared_ledger.ledger().lock());
    assert_eq!(ledger.flows().map(|flow| flow.totals.opened).collect::<Vec<_>>(), [300, 300]);
}
