//! Decodes conntrack's messages about TCP connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::codec::{Message, attributes, dump_request};
use crate::capture::fallback::socket::Endpoint;

/// `NFNL_SUBSYS_CTNETLINK << 8` and `IPCTNL_MSG_CT_*`.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// `NLM_F_CREATE`: distinguishes the first message of an entry from those of its changes.
const CREATED: u16 = 0x400;

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// `enum ctattr_type`.
mod attribute {
    pub(in crate::capture::fallback) const ORIGINAL: u16 = 1;
    pub(in crate::capture::fallback) const REPLY: u16 = 2;
    pub(in crate::capture::fallback) const STATUS: u16 = 3;
    pub(in crate::capture::fallback) const PROTOCOL_INFO: u16 = 4;
    pub(in crate::capture::fallback) const ORIGINAL_COUNTERS: u16 = 9;
    pub(in crate::capture::fallback) const REPLY_COUNTERS: u16 = 10;
    pub(in crate::capture::fallback) const ID: u16 = 12;
}

/// `enum tcp_conntrack`.
pub(in crate::capture::fallback) mod tcp_state {
    pub(in crate::capture::fallback) const SYN_SENT: u8 = 1;
    pub(in crate::capture::fallback) const SYN_RECEIVED: u8 = 2;
    pub(in crate::capture::fallback) const ESTABLISHED: u8 = 3;
    pub(in crate::capture::fallback) const TIME_WAIT: u8 = 7;
    pub(in crate::capture::fallback) const CLOSE: u8 = 8;
}

/// `IPS_ASSURED`: the handshake was completed.
const ASSURED: u32 = 1 << 2;

const TCP: u8 = 6;

/// From whom to whom, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::capture::fallback) struct Direction {
    pub(in crate::capture::fallback) from: Endpoint,
    pub(in crate::capture::fallback) to: Endpoint,
}

/// Packets and bytes, headers of IP and TCP included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::capture::fallback) struct Carried {
    pub(in crate::capture::fallback) packets: u64,
    pub(in crate::capture::fallback) bytes: u64,
}

/// Kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum Change {
    /// The first packet.
    New,
    /// Something of it, or an entry of a list.
    Is,
    /// The entry is gone.
    Gone,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) struct ConntrackMessage {
    pub(in crate::capture::fallback) change: Change,
    pub(in crate::capture::fallback) id: u32,
    /// As the client sent it.
    pub(in crate::capture::fallback) original: Direction,
    /// As the server answers it: what a translation has made of it.
    pub(in crate::capture::fallback) reply: Direction,
    /// See [`tcp_state`]; absent in some last messages.
    pub(in crate::capture::fallback) state: Option<u8>,
    /// True if the handshake is known to be complete.
    pub(in crate::capture::fallback) assured: bool,
    /// Traffic in both directions, if accounting is on.
    pub(in crate::capture::fallback) carried: Option<[Carried; 2]>,
}

/// The request to list everything.
pub(in crate::capture::fallback) fn list_request() -> Vec<u8> {
    // Any family.
    dump_request(GET, &[0; HEADER])
}

/// The entry of a message, if it is about TCP.
pub(in crate::capture::fallback) fn parse(message: &Message<'_>) -> Option<ConntrackMessage> {
    let Message::Data { kind, flags, body } = *message else { return None };
    let change = match kind {
        NEW if flags & CREATED != 0 => Change::New,
        NEW => Change::Is,
        DELETE => Change::Gone,
        _ => return None,
    };
    entry(change, body)
}

/// The entry of a list's message.
pub(in crate::capture::fallback) fn parse_listed(body: &[u8]) -> Option<ConntrackMessage> {
    entry(Change::Is, body)
}

fn entry(change: Change, body: &[u8]) -> Option<ConntrackMessage> {
    let (mut original, mut reply, mut id) = (None, None, None);
    let (mut state, mut assured) = (None, false);
    let (mut there, mut back) = (None, None);
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            // First in each message: what is not TCP costs no more.
            attribute::ORIGINAL => original = Some(direction(value)?),
            attribute::REPLY => reply = Some(direction(value)?),
            attribute::STATUS => assured = be32(value)? & ASSURED != 0,
            attribute::PROTOCOL_INFO => state = tcp_info_state(value),
            attribute::ORIGINAL_COUNTERS => there = carried(value),
            attribute::REPLY_COUNTERS => back = carried(value),
            attribute::ID => id = be32(value),
            _ => {}
        }
    }
    Some(ConntrackMessage {
        change,
        id: id?,
        original: original?,
        reply: reply?,
        state,
        assured,
        carried: there.zip(back).map(|(there, back)| [there, back]),
    })
}

fn direction(tuple: &[u8]) -> Option<Direction> {
    let (mut addresses, mut ports) = (None, None);
    for (kind, value) in attributes(tuple) {
        match kind {
            1 => addresses = both_addresses(value),
            2 => ports = both_ports(value),
            _ => {}
        }
    }
    let ((from, to), (from_port, to_port)) = (addresses?, ports?);
    Some(Direction { from: (from, from_port), to: (to, to_port) })
}

fn both_addresses(value: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |value: &[u8]| value.first_chunk::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes)));
    let v6 = |value: &[u8]| value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).to_canonical());
    let (mut from, mut to) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => from = v4(value),
            2 => to = v4(value),
            3 => from = v6(value),
            4 => to = v6(value),
            _ => {}
        }
    }
    from.zip(to)
}

fn both_ports(value: &[u8]) -> Option<(u16, u16)> {
    let (mut from, mut to, mut tcp) = (None, None, false);
    for (kind, value) in attributes(value) {
        match kind {
            1 => tcp = value == [TCP],
            2 => from = be16(value),
            3 => to = be16(value),
            _ => {}
        }
    }
    from.zip(to).filter(|_| tcp)
}

fn tcp_info_state(value: &[u8]) -> Option<u8> {
    let (_, tcp) = attributes(value).find(|(kind, _)| *kind == 1)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == 1)?;
    state.first().copied()
}

fn carried(value: &[u8]) -> Option<Carried> {
    let (mut packets, mut bytes) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => packets = be64(value),
            2 => bytes = be64(value),
            _ => {}
        }
    }
    Some(Carried { packets: packets?, bytes: bytes? })
}

impl Carried {
    /// Returns the lower bound of its payload: all packets are assumed to have the longest headers.
    pub(in crate::capture::fallback) fn least_payload(self, of: IpAddr) -> u64 {
        const TCP_AT_MOST: u64 = 60;
        let ip = if of.is_ipv4() { 20 } else { 40 };
        self.bytes.saturating_sub(self.packets.saturating_mul(ip + TCP_AT_MOST))
    }
}

fn be16(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(value: &[u8]) -> Option<u64> {
    value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::fallback::netlink::codec::{
        messages,
        tests::{attribute as nested, message},
    };

    fn tuple(kind: u16, protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let addresses = [nested(1, &from.0), nested(2, &to.0)].concat();
        let ports = [nested(1, &[protocol]), nested(2, &from.1.to_be_bytes()), nested(3, &to.1.to_be_bytes())].concat();
        nested(kind, &[nested(1, &addresses), nested(2, &ports)].concat())
    }

    fn counters(kind: u16, packets: u64, bytes: u64) -> Vec<u8> {
        nested(kind, &[nested(1, &packets.to_be_bytes()), nested(2, &bytes.to_be_bytes())].concat())
    }

    fn body(protocol: u8) -> Vec<u8> {
        let (client, service, pod) = (([10, 0, 0, 1], 40_000), ([10, 96, 0, 1], 80), ([10, 0, 0, 9], 8080));
        [
            vec![2, 0, 0, 0],
            tuple(attribute::ORIGINAL, protocol, client, service),
            tuple(attribute::REPLY, protocol, pod, client),
            nested(attribute::STATUS, &0xe_u32.to_be_bytes()),
            nested(attribute::PROTOCOL_INFO, &nested(1, &nested(1, &[tcp_state::ESTABLISHED]))),
            counters(attribute::ORIGINAL_COUNTERS, 5, 1000),
            counters(attribute::REPLY_COUNTERS, 4, 300),
            nested(attribute::ID, &99_u32.to_be_bytes()),
        ]
        .concat()
    }

    #[test]
    fn a_translated_connection_is_read_from_both_sides() {
        let at = |last: [u8; 4], port| (IpAddr::from(last), port);
        let client = at([10, 0, 0, 1], 40_000);
        let expected = ConntrackMessage {
            change: Change::New,
            id: 99,
            original: Direction { from: client, to: at([10, 96, 0, 1], 80) },
            reply: Direction { from: at([10, 0, 0, 9], 8080), to: client },
            state: Some(tcp_state::ESTABLISHED),
            assured: true,
            carried: Some([Carried { packets: 5, bytes: 1000 }, Carried { packets: 4, bytes: 300 }]),
        };
        for (kind, flags, change) in [(NEW, CREATED, Change::New), (NEW, 0, Change::Is), (DELETE, 0, Change::Gone)] {
            let datagram = message(kind, flags, &body(TCP));
            let found: Vec<_> = messages(&datagram).map(|message| parse(&message)).collect();
            assert_eq!(found, [Some(ConntrackMessage { change, ..expected })]);
        }
        assert_eq!(parse_listed(&body(TCP)), Some(ConntrackMessage { change: Change::Is, ..expected }));
    }

    #[test]
    fn what_is_not_tcp_is_left_out() {
        assert_eq!(parse_listed(&body(17)), None);
    }

    #[test]
    fn payload_is_never_more_than_what_was_carried() {
        let v4 = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(Carried { packets: 5, bytes: 1000 }.least_payload(v4), 600);
        assert_eq!(Carried { packets: 6, bytes: 320 }.least_payload(v4), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_listed(&body);
        }

        /// Bytes that look like a message get deeper into the parser.
        #[test]
        fn damaged_messages_are_read(at in 0_usize..240, value in any::<u8>(), cut in 0_usize..240) {
            let mut damaged = body(TCP);
            let length = damaged.len();
            damaged[at % length] = value;
            damaged.truncate(length - cut % length);
            let _ = parse_listed(&damaged);
        }
    }
}
