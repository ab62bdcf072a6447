//! The open TCP sockets of the node, as the kernel's iterator lists them.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
};

use node_agent_common::{FlowKey, Role, SocketRecord, callback, state};
use topology::rtt::RttBucket;

use super::traffic::Traffic;

/// One listing: every socket once, however many processes and file descriptors hold it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The node's own connections, by cookie.
    pub(super) connections: HashMap<u64, Connection>,
    /// Ports at which somebody listens, by network namespace; `None` for any address.
    listeners: HashSet<(u32, u16, Option<[u8; 16]>)>,
    /// The node's own attempts to connect that are under way, by network namespace.
    pub(super) dialling: HashMap<u32, u64>,
    /// Where in the kernel's memory sockets are, if somebody wants to know.
    present: HashSet<u64>,
}

/// One open connection's own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) flow: FlowKey,
    pub(super) traffic: Traffic,
    /// `None` where none was measured.
    pub(super) rtt: Option<RttBucket>,
    /// Whether its end will be counted by the callbacks that it has asked for, under an agent now or earlier.
    pub(super) has_callbacks: bool,
}

impl Listing {
    /// Reads a listing to its end.
    pub(super) fn read(mut from: File, with_addresses: bool) -> io::Result<Self> {
        const RECORD: usize = size_of::<SocketRecord>();
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let records = bytes.as_chunks::<RECORD>().0;
        let mut listing = Self::of(records.iter().map(record));
        if with_addresses {
            listing.present = records.iter().map(|bytes| record(bytes).address).collect();
        }
        Ok(listing)
    }

    /// Whether a socket is listed at this address.
    pub(super) fn is_present(&self, address: u64) -> bool {
        self.present.contains(&address)
    }

    fn of(records: impl Iterator<Item = SocketRecord>) -> Self {
        let mut listing = Self::default();
        let mut connections = Vec::new();
        let mut dialling = HashSet::new();
        for record in records {
            if record.state == state::LISTEN {
                let any = Listing::is_any(&record.local);
                listing.listeners.insert((record.netns, record.local_port, (!any).then_some(record.local)));
            } else if record.own == 1 && is_open(&record) {
                connections.push(record);
            } else if record.own == 1 && record.state == state::SYN_SENT && dialling.insert(record.cookie) {
                *listing.dialling.entry(record.netns).or_default() += 1;
            }
        }
        for record in connections {
            let connection = listing.connection(&record);
            listing.connections.entry(record.cookie).or_insert(connection);
        }
        listing
    }

    fn connection(&self, record: &SocketRecord) -> Connection {
        let role = self.role(record);
        let port = match role {
            Role::Client => record.remote_port,
            Role::Server => record.local_port,
        };
        Connection {
            flow: FlowKey::new(record.cgroup, record.netns, role, port, record.local, record.remote),
            traffic: Traffic { sent: record.sent, received: record.received, retransmits: record.retransmits.into() },
            rtt: (record.srtt != 0).then(|| RttBucket::of(record.srtt)),
            has_callbacks: record.callbacks & callback::STATE != 0,
        }
    }

    /// By its callbacks; without, by whether somebody listens where it is. An old server's connection whose listener is
    /// gone is taken for a client's: nothing is left that would tell.
    fn role(&self, record: &SocketRecord) -> Role {
        let is_client = if record.callbacks & callback::STATE != 0 {
            record.callbacks & callback::RETRANSMISSION != 0
        } else {
            let listens = |at| self.listeners.contains(&(record.netns, record.local_port, at));
            !listens(None) && !listens(Some(record.local))
        };
        if is_client { Role::Client } else { Role::Server }
    }

    fn is_any(address: &[u8; 16]) -> bool {
        const ANY_V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        *address == [0; 16] || *address == ANY_V4
    }
}

/// Established, not over, and not counted as over.
fn is_open(record: &SocketRecord) -> bool {
    let counted = record.callbacks & callback::STATE == 0 && record.callbacks & callback::TIMEOUT != 0;
    !counted
        && matches!(
            record.state,
            state::ESTABLISHED
                | state::FIN_WAIT1
                | state::FIN_WAIT2
                | state::CLOSE_WAIT
                | state::LAST_ACK
                | state::CLOSING
        )
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
            reserved: 0,
            address: 0,
            local: local.0,
            remote: THERE,
        }
    }

    fn roles(records: &[SocketRecord]) -> Vec<(u64, Option<Role>, u16)> {
        let listing = Listing::of(records.iter().copied());
        let mut roles: Vec<_> =
            listing.connections.iter().map(|(cookie, found)| (*cookie, found.flow.role(), found.flow.port())).collect();
        roles.sort_by_key(|role| role.0);
        roles
    }

    #[test]
    fn an_old_connection_is_a_servers_where_somebody_listens() {
        let records = [
            socket(1, state::ESTABLISHED, (HERE, 40_000), 50_000),
            socket(2, state::ESTABLISHED, (HERE, 50_000), 40_000),
            socket(3, state::LISTEN, (ANY, 40_000), 0),
        ];
        assert_eq!(roles(&records), [(1, Some(Role::Server), 40_000), (2, Some(Role::Client), 40_000)]);
    }

    #[test]
    fn a_listener_elsewhere_says_nothing() {
        let elsewhere = SocketRecord { netns: 2, ..socket(2, state::LISTEN, (ANY, 80), 0) };
        let other_address = socket(3, state::LISTEN, (THERE, 80), 0);
        let records = [socket(1, state::ESTABLISHED, (HERE, 80), 9), elsewhere, other_address];
        assert_eq!(roles(&records), [(1, Some(Role::Client), 9)]);
    }

    #[test]
    fn callbacks_say_it_better_than_listeners() {
        let client = callback::STATE | callback::RETRANSMISSION;
        let records = [
            SocketRecord { callbacks: client, ..socket(1, state::ESTABLISHED, (HERE, 80), 9) },
            socket(2, state::LISTEN, (ANY, 80), 0),
        ];
        assert_eq!(roles(&records), [(1, Some(Role::Client), 9)]);
    }

    #[test]
    fn sockets_are_listed_once_and_only_while_open() {
        let records = [
            socket(1, state::CLOSE_WAIT, (HERE, 5), 9),
            socket(1, state::CLOSE_WAIT, (HERE, 5), 9),
            socket(2, state::CLOSE, (HERE, 5), 9),
            socket(3, state::SYN_SENT, (HERE, 5), 9),
            SocketRecord { callbacks: callback::TIMEOUT, ..socket(4, state::ESTABLISHED, (HERE, 5), 9) },
            SocketRecord { own: 0, ..socket(5, state::ESTABLISHED, (HERE, 5), 9) },
        ];
        assert_eq!(roles(&records), [(1, Some(Role::Client), 9)]);
    }
}
