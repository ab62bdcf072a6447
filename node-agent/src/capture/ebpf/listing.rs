//! The open TCP sockets of the node, as the kernel's iterator lists them.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, ErrorKind, Read},
};

use node_agent_common::{FlowKey, Origin, Role, SocketRecord, callback, state};
use topology::rtt::RttBucket;

use crate::capture::traffic::Traffic;

const RECORD: usize = size_of::<SocketRecord>();

/// Records that are read at a time: a listing of a large node is never in memory as a whole.
const RECORDS_AT_A_TIME: usize = 512;

/// One listing: every socket once, however many processes and file descriptors hold it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The node's own connections, by cookie.
    pub(super) connections: HashMap<u64, Connection>,
    /// The node's own attempts to connect that are under way, by cookie.
    pub(super) attempts: HashMap<u64, Attempt>,
    /// Number of these by network namespace.
    pub(super) dialling: HashMap<u32, u64>,
    /// Kernel addresses of the listed sockets, if requested.
    present: HashSet<u64>,
}

/// One open connection's own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) flow: FlowKey,
    pub(super) traffic: Traffic,
    /// `None` where none was measured.
    pub(super) rtt: Option<RttBucket>,
    /// True if its role is a guess.
    pub(super) is_inferred: bool,
    pub(super) end: EndObserver,
    /// True if its payload may go past TCP.
    pub(super) is_past_tcp: bool,
}

/// One attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) flow: FlowKey,
    /// True if its failure will be counted by callbacks.
    pub(super) has_callbacks: bool,
    /// True if its SYN was retransmitted.
    pub(super) is_retransmitted: bool,
}

/// Observer of a connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndObserver {
    /// By the callbacks that it has asked for, under an agent now or earlier.
    Callbacks,
    /// By nothing: no agent has seen it open.
    Unseen,
    /// It has been counted, and shows in a moment; or that was an earlier connection of the same socket, which was used
    /// again while no agent was there.
    Counted,
}

impl Listing {
    /// Reads a listing to its end.
    pub(super) fn read(from: File, with_addresses: bool) -> io::Result<Self> {
        let mut reader = Reader { with_addresses, ..Reader::default() };
        for_each_record(from, |record| reader.take(record))?;
        Ok(reader.end())
    }

    /// Returns whether a socket is listed at this address.
    pub(super) fn is_present(&self, address: u64) -> bool {
        self.present.contains(&address)
    }
}

/// A listing that is being read.
#[derive(Debug, Default)]
struct Reader {
    listing: Listing,
    with_addresses: bool,
    /// Ports of listeners without a backlog, by network namespace; `None` for any address. Other listeners pass their
    /// backlog on to the sockets that they accept.
    listeners: HashSet<(u32, u16, Option<[u8; 16]>)>,
    /// Connections that do not show their role.
    undecided: Vec<SocketRecord>,
}

impl Reader {
    fn take(&mut self, record: &SocketRecord) {
        let origin = Origin::of(record.origin);
        if self.with_addresses {
            self.listing.present.insert(record.address);
        }
        if record.state == state::LISTEN && origin == Origin::Unknown {
            let address = (!is_any(&record.local)).then_some(record.local);
            self.listeners.insert((record.netns, record.local_port, address));
        } else if record.own == 1 && record.state == state::SYN_SENT {
            self.take_attempt(record);
        } else if record.own == 1 && is_open(record) {
            match Role::shown(record.callbacks, origin) {
                Some(role) => self.insert(record, role, false),
                None => self.undecided.push(*record),
            }
        }
    }

    fn take_attempt(&mut self, record: &SocketRecord) {
        let has_callbacks = record.callbacks & callback::STATE != 0;
        let is_retransmitted = record.retransmits > 0;
        let attempt = Attempt { flow: flow(record, Role::Client), has_callbacks, is_retransmitted };
        if self.listing.attempts.insert(record.cookie, attempt).is_none() {
            *self.listing.dialling.entry(record.netns).or_default() += 1;
        }
    }

    fn insert(&mut self, record: &SocketRecord, role: Role, is_inferred: bool) {
        self.listing.connections.entry(record.cookie).or_insert_with(|| Connection {
            flow: flow(record, role),
            traffic: Traffic { sent: record.sent, received: record.received, retransmits: record.retransmits.into() },
            rtt: (record.srtt != 0).then(|| RttBucket::of(record.srtt)),
            is_inferred,
            end: end(record),
            is_past_tcp: record.in_sockmap != 0,
        });
    }

    /// Decides the roles that the sockets themselves do not show. A socket at a listening port is a server's. Otherwise
    /// the role is a guess, the programs' own if these will count its end.
    fn end(mut self) -> Listing {
        for record in std::mem::take(&mut self.undecided) {
            let listens = |at| self.listeners.contains(&(record.netns, record.local_port, at));
            let is_listened_at = listens(None) || listens(Some(record.local));
            let role = match end(&record) {
                EndObserver::Callbacks => Role::guessed(record.callbacks),
                EndObserver::Unseen | EndObserver::Counted if is_listened_at => Role::Server,
                EndObserver::Unseen | EndObserver::Counted => Role::Client,
            };
            self.insert(&record, role, role == Role::Client || !is_listened_at);
        }
        self.listing
    }
}

fn flow(record: &SocketRecord, role: Role) -> FlowKey {
    let port = match role {
        Role::Client => record.remote_port,
        Role::Server => record.local_port,
    };
    FlowKey::new(record.cgroup, record.netns, role, port, record.local, record.remote)
}

fn is_any(address: &[u8; 16]) -> bool {
    const ANY_V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    *address == [0; 16] || *address == ANY_V4
}

/// Established, and not over.
fn is_open(record: &SocketRecord) -> bool {
    matches!(
        record.state,
        state::ESTABLISHED | state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING
    )
}

fn end(record: &SocketRecord) -> EndObserver {
    if record.callbacks & callback::STATE != 0 {
        EndObserver::Callbacks
    } else if callback::is_counted(record.callbacks) {
        EndObserver::Counted
    } else {
        EndObserver::Unseen
    }
}

/// Reads to the end.
fn for_each_record(mut from: impl Read, mut take: impl FnMut(&SocketRecord)) -> io::Result<()> {
    let mut buffer = vec![0; RECORDS_AT_A_TIME * RECORD];
    let mut filled = 0;
    loop {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(read) => filled += read,
            // The kernel has walked over a million files without finding a socket, and goes on from there.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        }
        let (records, rest) = buffer[..filled].as_chunks::<RECORD>();
        for bytes in records {
            take(&record(bytes));
        }
        let begun = filled - rest.len();
        buffer.copy_within(begun..filled, 0);
        filled -= begun;
    }
}

#[expect(unsafe_code, reason = "the kernel's record as it comes")]
fn record(bytes: &[u8; size_of::<SocketRecord>()]) -> SocketRecord {
    // SAFETY: plain data of exactly this size, for which any bytes are a value; read without asking for alignment.
    unsafe { bytes.as_ptr().cast::<SocketRecord>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: [u8; 16] = [0; 16];
    const HERE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    const THERE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];

    fn socket(cookie: u64, state: u8, local: ([u8; 16], u16), remote_port: u16) -> SocketRecord {
        SocketRecord {
            cgroup: 7,
            cookie,
            sent: 5,
            received: 6,
            retransmits: 0,
            srtt: 0,
            netns: 1,
            pid: 1,
            local_port: local.1,
            remote_port,
            state,
            callbacks: 0,
            own: 1,
            origin: 0,
            address: 0,
            local: local.0,
            remote: THERE,
            in_sockmap: 0,
        }
    }

    fn listed(records: &[SocketRecord]) -> Listing {
        let mut reader = Reader::default();
        for record in records {
            reader.take(record);
        }
        reader.end()
    }

    /// By cookie: the role, the server's port, whether that is a guess.
    fn roles(records: &[SocketRecord]) -> Vec<(u64, Role, u16, bool)> {
        let mut roles: Vec<_> = listed(records)
            .connections
            .iter()
            .map(|(cookie, found)| (*cookie, found.flow.role().unwrap(), found.flow.port(), found.is_inferred))
            .collect();
        roles.sort_by_key(|role| role.0);
        roles
    }

    #[test]
    fn where_the_kernel_knows_the_origin_nothing_is_guessed() {
        let from = |cookie, origin: Origin, ports: (u16, u16)| SocketRecord {
            origin: origin as u8,
            ..socket(cookie, state::ESTABLISHED, (HERE, ports.0), ports.1)
        };
        let records = [
            from(1, Origin::Listener, (40_000, 50_000)),
            from(2, Origin::Connect, (50_000, 40_000)),
            // Another program's flags, and an older agent's of a client whose handshake was completed without it.
            SocketRecord { callbacks: callback::of(Role::Client), ..from(3, Origin::Listener, (80, 9)) },
            SocketRecord { callbacks: callback::STATE, ..from(4, Origin::Connect, (50_000, 80)) },
        ];
        let expected =
            [(1, Role::Server, 40_000), (2, Role::Client, 40_000), (3, Role::Server, 80), (4, Role::Client, 80)];
        assert_eq!(roles(&records), expected.map(|(cookie, role, port)| (cookie, role, port, false)));
    }

    #[test]
    fn marks_say_it_better_than_listeners() {
        let marked = |cookie, role| SocketRecord {
            callbacks: callback::of(role),
            ..socket(cookie, state::ESTABLISHED, (HERE, 80), 9)
        };
        let records = [marked(1, Role::Client), marked(2, Role::Server), socket(3, state::LISTEN, (ANY, 80), 0)];
        assert_eq!(roles(&records), [(1, Role::Client, 9, false), (2, Role::Server, 80, false)]);
    }

    #[test]
    fn listing_assigns_server_role_at_port_of_listener_without_backlog() {
        let records = [
            socket(1, state::ESTABLISHED, (HERE, 40_000), 50_000),
            socket(2, state::ESTABLISHED, (HERE, 50_000), 40_000),
            socket(3, state::LISTEN, (ANY, 40_000), 0),
        ];
        assert_eq!(roles(&records), [(1, Role::Server, 40_000, false), (2, Role::Client, 40_000, true)]);
    }

    #[test]
    fn a_listener_elsewhere_or_with_room_says_nothing() {
        let elsewhere = SocketRecord { netns: 2, ..socket(2, state::LISTEN, (ANY, 80), 0) };
        let other_address = socket(3, state::LISTEN, (THERE, 80), 0);
        let with_room = SocketRecord { origin: Origin::Listener as u8, ..socket(4, state::LISTEN, (ANY, 80), 0) };
        let records = [socket(1, state::ESTABLISHED, (HERE, 80), 9), elsewhere, other_address, with_room];
        assert_eq!(roles(&records), [(1, Role::Client, 9, true)]);
    }

    #[test]
    fn of_flags_without_a_mark_the_guess_is_the_programs() {
        let with = |cookie, callbacks| SocketRecord { callbacks, ..socket(cookie, state::ESTABLISHED, (HERE, 80), 9) };
        let both = callback::of(Role::Client) | callback::of(Role::Server);
        let records = [with(1, callback::STATE), with(2, both)];
        assert_eq!(roles(&records), [(1, Role::Server, 80, true), (2, Role::Client, 9, true)]);
        let listener = socket(3, state::LISTEN, (HERE, 80), 0);
        let records = [records[0], records[1], listener];
        assert_eq!(roles(&records), [(1, Role::Server, 80, false), (2, Role::Client, 9, true)]);
    }

    #[test]
    fn sockets_are_listed_once_and_only_while_open() {
        let records = [
            socket(1, state::CLOSE_WAIT, (HERE, 5), 9),
            socket(1, state::CLOSE_WAIT, (HERE, 5), 9),
            socket(2, state::CLOSE, (HERE, 5), 9),
            socket(3, state::SYN_SENT, (HERE, 5), 9),
            SocketRecord { own: 0, ..socket(5, state::ESTABLISHED, (HERE, 5), 9) },
        ];
        assert_eq!(roles(&records), [(1, Role::Client, 9, true)]);
    }

    #[test]
    fn how_an_end_will_be_seen_is_in_the_flags() {
        for (callbacks, expected) in [
            (0, EndObserver::Unseen),
            (callback::of(Role::Client), EndObserver::Callbacks),
            (callback::of(Role::Server), EndObserver::Callbacks),
            (callback::STATE, EndObserver::Callbacks),
            (callback::counted(callback::of(Role::Client)), EndObserver::Counted),
            (callback::counted(callback::STATE), EndObserver::Counted),
        ] {
            let records = [SocketRecord { callbacks, ..socket(1, state::ESTABLISHED, (HERE, 5), 9) }];
            assert_eq!(listed(&records).connections[&1].end, expected, "{callbacks}");
        }
    }

    #[test]
    fn attempts_count_once() {
        let with = |cookie, callbacks| SocketRecord { callbacks, ..socket(cookie, state::SYN_SENT, (HERE, 5), 80) };
        let again = SocketRecord { retransmits: 1, ..with(1, callback::of(Role::Client)) };
        let records = [again, with(2, 0), with(2, 0)];
        let listing = listed(&records);
        assert_eq!(listing.dialling, HashMap::from([(1, 2)]));
        let flow = flow(&records[0], Role::Client);
        let attempt = |is_first| Attempt { flow, has_callbacks: is_first, is_retransmitted: is_first };
        assert_eq!(listing.attempts, HashMap::from([(1, attempt(true)), (2, attempt(false))]));
    }

    /// Gives a listing in pieces of any size, and now and then nothing yet.
    struct Pieces(Vec<u8>, usize, bool);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let length = self.1.min(into.len()).min(self.0.len());
            into[..length].copy_from_slice(&self.0[..length]);
            self.0.drain(..length);
            Ok(length)
        }
    }

    #[test]
    fn listing_joins_records_split_across_reads() {
        let all: Vec<u8> = (0..1500_u64)
            .flat_map(|cookie| {
                let mut bytes = [0; RECORD];
                bytes[8..16].copy_from_slice(&cookie.to_ne_bytes());
                bytes
            })
            .collect();
        for piece in [1, RECORD - 1, RECORD, 4096, usize::MAX] {
            let mut cookies = Vec::new();
            for_each_record(Pieces(all.clone(), piece, false), |record| cookies.push(record.cookie)).unwrap();
            assert!(cookies.iter().copied().eq(0..1500), "pieces of {piece}");
        }
    }
}
