//! Model of a kernel, in which connections come and go in any order between scans and events. Each end of each
//! connection must count once, in any order.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
};

use node_agent_common::state;
use proptest::prelude::*;
use topology::{
    flow::{FlowCounters, FlowKey, Methods, Role},
    nat_peer::NatPeer,
    rtt::RttBucket,
};

use super::{connections::Connections, namespace::Scan};
use crate::capture::{
    fallback::{
        netlink::conntrack_message::{Change, ConntrackMessage, Direction, tcp_state},
        socket::{Dump, Endpoint, Endpoints, Listener, Socket, SocketId},
    },
    traffic::Traffic,
};

const CLIENT: (u32, u64) = (1, 11);
const SERVER: (u32, u64) = (2, 12);
const PORTS: [u16; 2] = [40_000, 40_001];

fn client_at(port: u16) -> Endpoint {
    (IpAddr::from([10, 0, 0, 1]), port)
}

/// Original destination, and its translation.
const SERVICE: Endpoint = (IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)), 80);
const BACKEND: Endpoint = (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 8080);

/// One port of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Attempting,
    Established,
    /// The client has ended its half.
    HalfClosed,
    /// Both have; the server's socket waits for the last acknowledgement.
    Lingering,
}

#[derive(Debug)]
struct Line {
    port: u16,
    stage: Stage,
    cookies: [u64; 2],
    /// Of the entry that conntrack still has.
    entry: Option<u32>,
    /// The entry's state, and whether the handshake was completed.
    state: (u8, bool),
    /// The entry can begin anew, as the kernel lets it after a client's reset.
    reopens: bool,
}

#[derive(Debug)]
struct Kernel {
    lines: Vec<Line>,
    events: VecDeque<ConntrackMessage>,
    next: u32,
    opened: u64,
    failed: u64,
}

impl Kernel {
    fn new() -> Self {
        let line =
            |port| Line { port, stage: Stage::Idle, cookies: [0; 2], entry: None, state: (0, false), reopens: false };
        Self { lines: PORTS.map(line).into(), events: VecDeque::new(), next: 1, opened: 0, failed: 0 }
    }

    fn tell(&mut self, line: usize, change: Change, state: Option<u8>) {
        if let Some(state) = state {
            let assured = match state {
                tcp_state::SYN_SENT => false,
                tcp_state::ESTABLISHED => true,
                _ => self.lines[line].state.1,
            };
            self.lines[line].state = (state, assured);
        }
        self.events.extend(self.entry(line, change, state));
    }

    fn entry(&self, line: usize, change: Change, state: Option<u8>) -> Option<ConntrackMessage> {
        let client = client_at(self.lines[line].port);
        Some(ConntrackMessage {
            change,
            id: self.lines[line].entry?,
            original: Direction { from: client, to: SERVICE },
            reply: Direction { from: BACKEND, to: client },
            state,
            assured: self.lines[line].state.1,
            carried: None,
        })
    }

    /// Everything that conntrack has.
    fn list(&self) -> Vec<ConntrackMessage> {
        let entry = |line| self.entry(line, Change::Is, Some(self.lines[line].state.0));
        (0..self.lines.len()).filter_map(entry).collect()
    }

    /// Returns the number of latest events that describe at most one connection per port. Ports are not reused within
    /// the milliseconds that events wait beside a list.
    fn events_of_one_life(&self) -> usize {
        let mut lives = HashSet::new();
        let is_another = |entry: &ConntrackMessage| {
            let begins = entry.state == Some(tcp_state::SYN_SENT);
            entry.change == Change::Gone || begins && !lives.insert(entry.original.from.1)
        };
        self.events.iter().rev().position(is_another).unwrap_or(self.events.len())
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn step(&mut self, line: usize, choice: u8) {
        match (self.lines[line].stage, choice % 4) {
            (Stage::Idle, 3) => self.expire(line),
            (Stage::Idle, _) => self.attempt(line),
            (Stage::Attempting, 0) => {
                self.tell(line, Change::Is, Some(tcp_state::CLOSE));
                self.lines[line].stage = Stage::Idle;
                self.failed += 1;
            }
            (Stage::Attempting, _) => {
                self.tell(line, Change::Is, Some(tcp_state::SYN_RECEIVED));
                self.tell(line, Change::Is, Some(tcp_state::ESTABLISHED));
                let cookie = u64::from(self.number());
                self.lines[line].cookies[1] = cookie;
                self.lines[line].stage = Stage::Established;
                self.opened += 1;
            }
            (Stage::Established, 0) => {
                // The client resets.
                self.tell(line, Change::Is, Some(tcp_state::CLOSE));
                self.lines[line].stage = Stage::Idle;
                self.lines[line].reopens = true;
            }
            (Stage::Established, _) => {
                self.tell(line, Change::Is, Some(4));
                self.lines[line].stage = Stage::HalfClosed;
            }
            (Stage::HalfClosed, _) => {
                self.tell(line, Change::Is, Some(tcp_state::TIME_WAIT));
                self.lines[line].stage = Stage::Lingering;
            }
            (Stage::Lingering, _) => self.lines[line].stage = Stage::Idle,
        }
    }

    fn attempt(&mut self, line: usize) {
        if self.lines[line].entry.is_some() && self.lines[line].reopens {
            self.tell(line, Change::Is, Some(tcp_state::SYN_SENT));
        } else {
            self.expire(line);
            let id = self.number();
            self.lines[line].entry = Some(id);
            self.tell(line, Change::New, Some(tcp_state::SYN_SENT));
        }
        self.lines[line].reopens = false;
        let cookie = u64::from(self.number());
        self.lines[line].cookies[0] = cookie;
        self.lines[line].stage = Stage::Attempting;
    }

    fn expire(&mut self, line: usize) {
        self.tell(line, Change::Gone, None);
        self.lines[line].entry = None;
    }

    fn sockets(&self, role: Role) -> Dump {
        let mut dump = Dump::default();
        for line in &self.lines {
            let state = match (role, line.stage) {
                (Role::Client, Stage::Attempting) => state::SYN_SENT,
                (_, Stage::Established) => state::ESTABLISHED,
                (Role::Client, Stage::HalfClosed) => state::FIN_WAIT2,
                (Role::Server, Stage::HalfClosed) => state::CLOSE_WAIT,
                (Role::Server, Stage::Lingering) => state::LAST_ACK,
                _ => continue,
            };
            let client = client_at(line.port);
            let (ends, cookie, cgroup) = match role {
                Role::Client => (Endpoints { local: client, remote: SERVICE }, line.cookies[0], CLIENT.1),
                Role::Server => (Endpoints { local: BACKEND, remote: client }, line.cookies[1], SERVER.1),
            };
            dump.sockets.push(Socket {
                id: SocketId(cookie),
                ends,
                state,
                cgroup: Some(cgroup),
                bytes: Some(Traffic::default()),
                rtt: Some(RttBucket::of(300)),
                is_final: state == state::LAST_ACK,
            });
        }
        // As a table does that is read in parts, while something moves.
        dump.sockets.extend_from_within(..dump.sockets.len().min(1));
        if role == Role::Server {
            let listener = Listener { address: None, port: BACKEND.1, cgroup: Some(SERVER.1), inode: None };
            dump.listeners.push(listener);
        }
        dump
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(u8, u8),
    Hear,
    /// A part of what is to be heard is lost, and noticed as such; so many of the latest events are heard after the list,
    /// which knew better.
    Overflow(u8),
    /// A scan, and what happens after it began and after it ended.
    Scan(bool, Option<(u8, u8)>, Option<(u8, u8)>),
    Settle,
}

fn action(overflows: u32) -> impl Strategy<Value = Action> {
    let step = || (0..2_u8, any::<u8>());
    prop_oneof![
        6 => step().prop_map(|(line, choice)| Action::Step(line, choice)),
        1 => Just(Action::Hear),
        2 => (any::<bool>(), prop::option::of(step()), prop::option::of(step()))
            .prop_map(|(client, during, after)| Action::Scan(client, during, after)),
        1 => Just(Action::Settle),
        overflows => any::<u8>().prop_map(Action::Overflow),
    ]
}

struct Harness {
    kernel: Kernel,
    connections: Connections,
    flows: HashMap<FlowKey, FlowCounters>,
}

impl Harness {
    fn new() -> Self {
        Self::with(Connections::new(1000))
    }

    fn with(mut connections: Connections) -> Self {
        connections.record_namespace(CLIENT.0, Some(CLIENT.1), vec![client_at(0).0]);
        connections.record_namespace(SERVER.0, Some(SERVER.1), vec![BACKEND.0]);
        Self { kernel: Kernel::new(), connections, flows: HashMap::new() }
    }

    fn record_heartbeat(&mut self) {
        for entry in self.kernel.events.drain(..) {
            self.connections.track(&entry, false);
        }
        self.connections.caught_up();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Step(line, choice) => self.kernel.step(line.into(), choice),
            Action::Hear => self.record_heartbeat(),
            Action::Overflow(late) => {
                let most = self.kernel.events_of_one_life();
                let lost = self.kernel.events.len() - usize::from(late) % (most + 1);
                self.kernel.events.drain(..lost);
                let entries = self.kernel.list();
                self.connections.begin_list();
                for entry in &entries {
                    self.connections.track(entry, false);
                }
                self.connections.end_list(true);
            }
            Action::Settle => {
                self.record_heartbeat();
                self.connections.settle(true);
            }
            Action::Scan(at_client, during, after) => {
                self.record_heartbeat();
                let began = self.connections.now();
                if let Some((line, choice)) = during {
                    self.kernel.step(line.into(), choice);
                }
                let role = if at_client { Role::Client } else { Role::Server };
                let dump = self.kernel.sockets(role);
                if let Some((line, choice)) = after {
                    self.kernel.step(line.into(), choice);
                }
                self.record_heartbeat();
                let (netns, default_owner) = if at_client { CLIENT } else { SERVER };
                self.connections.scan(&Scan {
                    netns,
                    dump: &dump,
                    methods: Methods::SOCK_DIAG,
                    began,
                    finds_old: false,
                    default_owner: Some(default_owner),
                    is_ours: &|_| true,
                    counts: None,
                });
            }
        }
        for (key, counters) in self.connections.accounts.report(usize::MAX).flows {
            let before = self.flows.insert(key, counters).unwrap_or_default();
            assert!(before.opened <= counters.opened && before.closed <= counters.closed);
            assert!(counters.closed <= counters.opened, "{counters:?}");
            assert!(counters.rtt.connections() <= counters.opened, "{counters:?}");
        }
    }

    /// Lets everything end and be seen.
    fn finish(&mut self) {
        for line in 0..2 {
            while self.kernel.lines[usize::from(line)].stage != Stage::Idle {
                self.act(Action::Step(line, 1));
            }
            self.act(Action::Step(line, 3));
        }
        for at_client in [true, false, true, false] {
            self.act(Action::Scan(at_client, None, None));
            self.act(Action::Settle);
        }
    }

    fn counts(&self, role: Role) -> (u64, u64, u64) {
        let flows = self.flows.iter().filter(|(key, _)| key.role == role).map(|(_, counters)| counters);
        flows.fold((0, 0, 0), |sum, counters| {
            (sum.0 + counters.opened, sum.1 + counters.closed, sum.2 + counters.failed)
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn each_end_of_each_connection_counts_once(actions in prop::collection::vec(action(0), 0..60)) {
        let mut observer = Harness::new();
        for action in actions {
            observer.act(action);
        }
        observer.finish();
        let (opened, failed) = (observer.kernel.opened, observer.kernel.failed);
        prop_assert_eq!(observer.counts(Role::Client), (opened, opened, failed));
        prop_assert_eq!(observer.counts(Role::Server), (opened, opened, 0));
        let keys_are_right = observer.flows.iter().all(|(key, counters)| {
            counters.inferred == 0
                && match key.role {
                    Role::Client => (key.netns, key.cgroup_id) == CLIENT && (key.remote, key.port) == SERVICE,
                    Role::Server => (key.netns, key.cgroup_id) == SERVER && key.port == BACKEND.1,
                }
        });
        prop_assert!(keys_are_right, "{:?}", observer.flows);
        // The client sees the Service; the server sees the client as it is.
        for (key, counters) in &observer.flows {
            let known = observer.connections.accounts.nat_peers(key);
            let backend = [(NatPeer { ip: BACKEND.0, port: BACKEND.1 }, counters.opened)];
            let expected = (key.role == Role::Client && counters.opened > 0).then_some(backend.as_slice());
            prop_assert_eq!(known, expected, "{:?}", key);
        }
    }

    /// If the table is full, connections may be missing; none is invented.
    #[test]
    fn nothing_counts_twice_where_there_is_no_room(
        actions in prop::collection::vec(action(1), 0..60),
        most_tracks in 1_usize..4,
    ) {
        let mut observer = Harness::with(Connections::with_room(1000, most_tracks));
        for action in actions {
            observer.act(action);
            prop_assert!(observer.connections.tracked() <= most_tracks);
        }
        observer.finish();
        for role in [Role::Client, Role::Server] {
            let (opened, closed, failed) = observer.counts(role);
            prop_assert!(opened <= observer.kernel.opened, "{role:?} {opened} of {}", observer.kernel.opened);
            prop_assert_eq!(closed, opened);
            // Of an attempt that only looks have shown it is a guess what came of it.
            let all = observer.kernel.opened + observer.kernel.failed;
            prop_assert!(opened + failed <= all, "{opened} + {failed} of {all}");
        }
    }

    /// Lost events may hide connections, but never add any.
    #[test]
    fn nothing_counts_twice_where_events_were_lost(actions in prop::collection::vec(action(1), 0..60)) {
        let mut observer = Harness::new();
        for action in actions {
            observer.act(action);
        }
        observer.finish();
        for role in [Role::Client, Role::Server] {
            let (opened, closed, failed) = observer.counts(role);
            prop_assert!(opened <= observer.kernel.opened, "{role:?} {opened} of {}", observer.kernel.opened);
            prop_assert_eq!(closed, opened);
            prop_assert!(failed <= observer.kernel.failed, "{failed} of {}", observer.kernel.failed);
        }
    }
}

/// The first scan of a connection may come between its first message and the answer, of which no counter of the
/// namespace tells.
#[test]
fn namespace_with_new_connection_is_scanned_again() {
    for scanned_as_attempt in [false, true] {
        let mut observer = Harness::new();
        let scan = Action::Scan(true, None, None);
        observer.act(Action::Step(0, 1));
        if scanned_as_attempt {
            observer.act(scan);
            assert!(observer.connections.is_in_motion(CLIENT.0));
        }
        observer.act(Action::Step(0, 1));
        observer.act(scan);
        assert!(observer.connections.is_in_motion(CLIENT.0));
        observer.act(scan);
        assert!(!observer.connections.is_in_motion(CLIENT.0));
    }
}
