//! More connections at a time than there is room for: the tables stay within their bounds, and what found no room is
//! missing in the counts exactly as far as the namespace's own counts tell.

use std::net::{IpAddr, Ipv4Addr};

use topology::flow::Methods;

use super::{connections::Connections, namespace::Scan};
use crate::capture::{
    fallback::{
        netlink::conntrack_message::{Change, ConntrackMessage, Direction, tcp_state},
        socket::Dump,
    },
    proc::tcp_counters::TcpCounts,
};

const NETNS: u32 = 7;
const CGROUP: u64 = 70;
const TRACKS: usize = 1000;
/// For each of them an entry is heard.
const CONNECTIONS: u32 = 20_000;

fn entry(number: u32, change: Change, state: Option<u8>) -> ConntrackMessage {
    // Ports of several addresses, as one has not enough.
    let [high, low] = [number / 50_000, number % 50_000];
    let client = (IpAddr::from(Ipv4Addr::from(0x0a00_0001 + high)), 10_000 + u16::try_from(low).unwrap());
    let server = (IpAddr::from([192, 0, 2, 1]), 80);
    let original = Direction { from: client, to: server };
    let reply = Direction { from: server, to: client };
    ConntrackMessage {
        change,
        id: number,
        original,
        reply,
        state,
        assured: state != Some(tcp_state::SYN_SENT),
        carried: None,
    }
}

fn connections() -> Connections {
    let mut connections = Connections::with_room(10, TRACKS);
    connections.record_namespace(NETNS, Some(CGROUP), vec![IpAddr::from([10, 0, 0, 1])]);
    scan(&mut connections, 0);
    connections
}

/// A scan that shows no socket of a namespace that has opened so many connections.
fn scan(connections: &mut Connections, opened: u32) {
    let counts = TcpCounts { active_opens: opened.into(), ..TcpCounts::default() };
    connections.scan(&Scan {
        netns: NETNS,
        dump: &Dump::default(),
        methods: Methods::SOCK_DIAG,
        began: connections.now(),
        finds_old: opened == 0,
        default_owner: Some(CGROUP),
        is_ours: &|_| true,
        counts: Some([counts, counts]),
    });
    connections.settle(true);
}

#[test]
fn tables_stay_bounded_and_what_finds_no_room_is_counted_as_missed() {
    let mut connections = connections();
    for number in 0..CONNECTIONS {
        connections.track(&entry(number, Change::New, Some(tcp_state::SYN_SENT)), false);
        assert!(connections.tracked() <= TRACKS);
    }
    for number in 0..CONNECTIONS {
        connections.track(&entry(number, Change::Is, Some(tcp_state::ESTABLISHED)), false);
    }
    assert_eq!(connections.untracked(), u64::from(CONNECTIONS) - TRACKS as u64);
    for number in 0..CONNECTIONS {
        connections.track(&entry(number, Change::Is, Some(tcp_state::TIME_WAIT)), false);
        connections.track(&entry(number, Change::Gone, None), false);
    }
    // Until it is certain that the servers are not of this node.
    for _ in 0..12 {
        scan(&mut connections, CONNECTIONS);
    }
    assert_eq!(connections.accounts.seen(), TRACKS as u64);
    assert_eq!(connections.accounts.seen() + connections.missed().opened, u64::from(CONNECTIONS), "exact");
    assert_eq!(connections.tracked(), 0, "nothing stays behind");

    // There is room again.
    connections.track(&entry(CONNECTIONS, Change::New, Some(tcp_state::SYN_SENT)), false);
    connections.track(&entry(CONNECTIONS, Change::Is, Some(tcp_state::ESTABLISHED)), false);
    connections.track(&entry(CONNECTIONS, Change::Gone, None), false);
    scan(&mut connections, CONNECTIONS + 1);
    assert_eq!(connections.accounts.seen(), TRACKS as u64 + 1);
}

/// One after the other there is room for any number.
#[test]
fn connections_that_end_make_room() {
    let mut connections = connections();
    for number in 0..CONNECTIONS {
        connections.track(&entry(number, Change::New, Some(tcp_state::SYN_SENT)), false);
        connections.track(&entry(number, Change::Is, Some(tcp_state::ESTABLISHED)), false);
        connections.track(&entry(number, Change::Is, Some(tcp_state::TIME_WAIT)), false);
        if number % 100 == 99 {
            scan(&mut connections, number + 1);
            scan(&mut connections, number + 1);
        }
    }
    assert_eq!(connections.untracked() + connections.accounts.seen(), u64::from(CONNECTIONS));
    assert_eq!(connections.accounts.seen() + connections.missed().opened, u64::from(CONNECTIONS));
    assert!(connections.accounts.seen() >= u64::from(CONNECTIONS) * 9 / 10, "{}", connections.untracked());
}
