//! The TCP sockets of one network namespace, by `sock_diag`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use nix::{errno::Errno, sys::socket::SockProtocol};
use node_agent_common::state;
use topology::rtt::RttBucket;

use super::{
    codec::{attributes, dump_request, u32_at, u64_at},
    socket::{Buffer, Netlink},
};
use crate::capture::{
    fallback::socket::{Dump, Endpoints, Listener, Socket, SocketId},
    traffic::Traffic,
};

/// `TCPDIAG_GETSOCK`: the older request, which lists IPv4 and IPv6 in one walk through the kernel's table.
const BOTH_FAMILIES: u16 = 18;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `1 << (INET_DIAG_INFO - 1)`: with `struct tcp_info`.
const WITH_TCP_INFO: u8 = 1 << 1;

/// Attributes.
const INFO: u16 = 2;
const CGROUP_ID: u16 = 21;

/// `struct inet_diag_sockid`, which leaves out nothing where it is zero.
const SOCKET_ID: usize = 48;
/// `struct inet_diag_msg`.
const HEADER: usize = 72;

/// Established or not yet over, attempts, and listeners.
const STATES: u32 = 1 << state::ESTABLISHED
    | 1 << state::SYN_SENT
    | 1 << state::FIN_WAIT1
    | 1 << state::FIN_WAIT2
    | 1 << state::CLOSE_WAIT
    | 1 << state::LAST_ACK
    | LISTENING
    | 1 << state::CLOSING;
/// Without others, the kernel does not walk through its table of connections.
const LISTENING: u32 = 1 << state::LISTEN;

/// Asks one network namespace.
#[derive(Debug)]
pub(in crate::capture::fallback) struct SockDiag {
    netlink: Netlink,
    both_families: bool,
}

impl SockDiag {
    /// Of the network namespace at this path.
    pub(in crate::capture::fallback) fn open_in(namespace: &Path) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open_in(namespace, SockProtocol::NetlinkSockDiag, 0)?, both_families: true })
    }

    /// Lists everything that is open.
    pub(in crate::capture::fallback) fn dump(&mut self, buffer: &mut Buffer) -> io::Result<Dump> {
        self.list(STATES, buffer)
    }

    /// Lists what listens.
    pub(in crate::capture::fallback) fn listeners(&mut self, buffer: &mut Buffer) -> io::Result<Vec<Listener>> {
        Ok(self.list(LISTENING, buffer)?.listeners)
    }

    fn list(&mut self, states: u32, buffer: &mut Buffer) -> io::Result<Dump> {
        let mut dump = Dump::default();
        if self.both_families {
            match self.netlink.dump(&request_for_both(states), buffer, |body| take(body, &mut dump)) {
                Ok(_) => return Ok(dump),
                // A kernel that has dropped the older request.
                Err(error) if [Errno::EINVAL, Errno::ENOENT, Errno::EOPNOTSUPP].contains(&errno(&error)) => {
                    self.both_families = false;
                    dump = Dump::default();
                }
                Err(error) => return Err(error),
            }
        }
        self.netlink.dump(&request_for(AF_INET, states), buffer, |body| take(body, &mut dump))?;
        match self.netlink.dump(&request_for(AF_INET6, states), buffer, |body| take(body, &mut dump)) {
            // Without IPv6.
            Err(error) if errno(&error) == Errno::ENOENT => {}
            other => drop(other?),
        }
        Ok(dump)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// `struct inet_diag_req`.
fn request_for_both(states: u32) -> Vec<u8> {
    let mut body = vec![AF_INET, 0, 0, WITH_TCP_INFO];
    body.extend([0; SOCKET_ID]);
    body.extend(states.to_ne_bytes());
    body.extend([0; 4]);
    dump_request(BOTH_FAMILIES, &body)
}

/// `struct inet_diag_req_v2`.
fn request_for(family: u8, states: u32) -> Vec<u8> {
    let mut body = vec![family, IPPROTO_TCP, WITH_TCP_INFO, 0];
    body.extend(states.to_ne_bytes());
    body.extend([0; SOCKET_ID]);
    dump_request(BY_FAMILY, &body)
}

fn take(body: &[u8], dump: &mut Dump) {
    match parse(body) {
        Some(DiagEntry::Socket(socket)) => dump.sockets.push(socket),
        Some(DiagEntry::Listener(listener)) => dump.listeners.push(listener),
        None => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiagEntry {
    Socket(Socket),
    Listener(Listener),
}

/// One `struct inet_diag_msg` and its attributes.
fn parse(body: &[u8]) -> Option<DiagEntry> {
    let &[family, state, ..] = body else { return None };
    let port = |at| body.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let (local_port, remote_port) = (port(4)?, port(6)?);
    let (local, remote) = (address(family, body.get(8..24)?)?, address(family, body.get(24..40)?)?);
    let cookie = u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32;
    let (mut cgroup, mut bytes) = (None, None);
    let (mut rtt, mut is_final) = (None, false);
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            CGROUP_ID => cgroup = u64_at(value, 0),
            INFO => {
                (bytes, is_final) = payload(value, state);
                rtt = round_trip_time(value);
            }
            _ => {}
        }
    }
    if state == state::LISTEN {
        let address = (!local.is_unspecified()).then_some(local);
        return Some(DiagEntry::Listener(Listener { address, port: local_port, cgroup, inode: None }));
    }
    Some(DiagEntry::Socket(Socket {
        id: SocketId(cookie),
        ends: Endpoints { local: (local, local_port), remote: (remote, remote_port) },
        state,
        cgroup,
        bytes,
        rtt,
        is_final,
    }))
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => bytes.first_chunk::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes))),
        AF_INET6 => bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).to_canonical()),
        _ => None,
    }
}

/// Payload and what was sent again by `struct tcp_info`, as far as this kernel has it (`tcpi_bytes_sent` since 4.19), and
/// whether no more can come.
fn payload(info: &[u8], state: u8) -> (Option<Traffic>, bool) {
    const SEGMENTS_SENT_AGAIN: usize = 100;
    const RECEIVED: usize = 128;
    const NOT_SENT: usize = 144;
    const SENT: usize = 200;
    const SENT_AGAIN: usize = 208;
    let (Some(segments), Some(received), Some(sent), Some(again)) =
        (u32_at(info, SEGMENTS_SENT_AGAIN), u64_at(info, RECEIVED), u64_at(info, SENT), u64_at(info, SENT_AGAIN))
    else {
        return (None, false);
    };
    // The kernel counts the other end's FIN as a byte.
    let fin_received = matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING);
    let bytes = Traffic {
        sent: sent.saturating_sub(again),
        received: received.saturating_sub(u64::from(fin_received)),
        retransmits: segments.into(),
    };
    let all_sent = u32_at(info, NOT_SENT) == Some(0);
    (Some(bytes), all_sent && matches!(state, state::LAST_ACK | state::CLOSING))
}

/// By `struct tcp_info`; 0 stands for none.
fn round_trip_time(info: &[u8]) -> Option<RttBucket> {
    const RTT: usize = 68;
    u32_at(info, RTT).filter(|microseconds| *microseconds > 0).map(RttBucket::of)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::fallback::netlink::codec::{tests::attribute, u16_at};

    /// As `linux/inet_diag.h` lays it out.
    fn answer(family: u8, state: u8, ports: (u16, u16), addresses: [[u8; 16]; 2], attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![family, state, 0, 0];
        body.extend(ports.0.to_be_bytes());
        body.extend(ports.1.to_be_bytes());
        body.extend(addresses[0]);
        body.extend(addresses[1]);
        body.extend(7_u32.to_ne_bytes());
        body.extend(0x0102_0304_u32.to_ne_bytes());
        body.extend(0x0506_0708_u32.to_ne_bytes());
        body.extend([0; 20]);
        assert_eq!(body.len(), HEADER);
        body.extend(attributes.concat());
        body
    }

    fn v4(last: u8) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[10, 0, 0, last]);
        bytes
    }

    fn mapped(last: u8) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
    }

    fn info(sent: u64, again: u64, received: u64, not_sent: u32) -> Vec<u8> {
        let mut info = vec![0; 280];
        info[68..72].copy_from_slice(&300_u32.to_ne_bytes());
        info[100..104].copy_from_slice(&6_u32.to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info[144..148].copy_from_slice(&not_sent.to_ne_bytes());
        info[200..208].copy_from_slice(&sent.to_ne_bytes());
        info[208..216].copy_from_slice(&again.to_ne_bytes());
        attribute(INFO, &info)
    }

    fn socket(body: &[u8]) -> Socket {
        match parse(body) {
            Some(DiagEntry::Socket(socket)) => socket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_socket_is_read_with_its_cgroup_and_its_payload() {
        let attributes = [info(500, 20, 301, 0), attribute(CGROUP_ID, &77_u64.to_ne_bytes())];
        let found = socket(&answer(AF_INET, state::CLOSE_WAIT, (80, 4000), [v4(1), v4(2)], &attributes));
        let expected = Socket {
            id: SocketId(0x0506_0708_0102_0304),
            ends: Endpoints { local: (IpAddr::from([10, 0, 0, 1]), 80), remote: (IpAddr::from([10, 0, 0, 2]), 4000) },
            state: state::CLOSE_WAIT,
            cgroup: Some(77),
            bytes: Some(Traffic { sent: 480, received: 300, retransmits: 6 }),
            rtt: Some(RttBucket::of(300)),
            is_final: false,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn mapped_addresses_are_ipv4_and_listeners_for_any_have_none() {
        let found = socket(&answer(AF_INET6, state::ESTABLISHED, (1, 2), [mapped(1), mapped(2)], &[]));
        assert_eq!(found.ends.local.0, IpAddr::from([10, 0, 0, 1]));
        assert_eq!((found.bytes, found.rtt, found.cgroup), (None, None, None));
        for (family, any) in [(AF_INET, [0; 16]), (AF_INET6, [0; 16])] {
            let listener = parse(&answer(family, state::LISTEN, (80, 0), [any, any], &[]));
            assert_eq!(
                listener,
                Some(DiagEntry::Listener(Listener { address: None, port: 80, cgroup: None, inode: None }))
            );
        }
    }

    #[test]
    fn nothing_more_comes_when_both_have_ended_and_all_is_sent() {
        let last = |state, not_sent| {
            socket(&answer(AF_INET, state, (1, 2), [v4(1), v4(2)], &[info(9, 0, 9, not_sent)])).is_final
        };
        assert!(last(state::LAST_ACK, 0) && last(state::CLOSING, 0));
        assert!(!last(state::LAST_ACK, 5) && !last(state::FIN_WAIT2, 0) && !last(state::CLOSE_WAIT, 0));
    }

    #[test]
    fn a_kernel_without_the_count_of_what_was_sent_tells_no_payload() {
        let short = attribute(INFO, &[1; 192]);
        assert_eq!(socket(&answer(AF_INET, state::ESTABLISHED, (1, 2), [v4(1), v4(2)], &[short])).bytes, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&body);
        }

        /// Bytes that look like a message get deeper into the parser.
        #[test]
        fn damaged_messages_are_read(at in 0_usize..400, value in any::<u8>(), cut in 0_usize..400) {
            let attributes = [attribute(CGROUP_ID, &7_u64.to_ne_bytes()), attribute(INFO, &[1; 232])];
            let mut damaged = answer(AF_INET, state::ESTABLISHED, (1, 2), [v4(1), v4(2)], &attributes);
            let length = damaged.len();
            damaged[at % length] = value;
            damaged.truncate(length - cut % length);
            let _ = parse(&damaged);
        }

        #[test]
        fn parser_rejects_truncated_message(length in 0..HEADER) {
            let whole = answer(AF_INET, state::ESTABLISHED, (1, 2), [v4(1), v4(2)], &[]);
            prop_assert_eq!(parse(&whole[..length]), None);
        }
    }

    #[test]
    fn ports_are_in_network_order() {
        let body = answer(AF_INET, state::ESTABLISHED, (0x1234, 0x5678), [v4(1), v4(2)], &[]);
        assert_eq!(u16_at(&body, 4), Some(u16::from_ne_bytes([0x12, 0x34])));
        assert_eq!(socket(&body).ends.remote.1, 0x5678);
    }
}
