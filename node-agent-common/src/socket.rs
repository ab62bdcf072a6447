//! Records of open sockets and of tracked sockets; states and callback flags of sockets.

use crate::{FlowKey, plain_data};

/// One file descriptor of one process that is a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// ID of the cgroup in which the socket was created.
    pub cgroup: u64,
    /// Socket cookie: a number that the kernel never reuses.
    pub cookie: u64,
    /// Payload sent so far, without retransmissions.
    pub sent: u64,
    /// Payload received so far.
    pub received: u64,
    /// Segments retransmitted so far.
    pub retransmits: u32,
    /// Smoothed round-trip time, in microseconds; 0 if none was measured.
    pub srtt: u32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Process ID in the initial PID namespace.
    pub pid: u32,
    /// The local port, as a number.
    pub local_port: u16,
    /// The remote port, as a number.
    pub remote_port: u16,
    /// See [`state`].
    pub state: u8,
    /// See [`callback`].
    pub callbacks: u8,
    /// 1 if the cgroup is below the node's root.
    pub own: u8,
    /// See [`crate::Origin`].
    pub origin: u8,
    /// Kernel address of the socket. After its end, another socket may have the address.
    pub address: u64,
    /// Local address in network order, IPv4 as IPv4-mapped (the unspecified address of an IPv6 socket is `::`).
    pub local: [u8; 16],
    /// Remote address, in the format of `local`. With its port, the original destination of a client behind a load balancer at
    /// the sockets.
    pub remote: [u8; 16],
    /// 1 if the socket is in a map of sockets, by which its payload may go past TCP.
    pub in_sockmap: u64,
}
const _: () = assert!(size_of::<SocketRecord>() == 4 * 8 + 4 * 4 + 2 * 2 + 4 + 8 + 2 * 16 + 8);
plain_data!(SocketRecord);

/// Tracked socket: an entry that programs keep from state change to state change, because the socket has no callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TrackedSocket {
    /// Flow of the connection; all zeros until it is established.
    pub flow: FlowKey,
    /// Time of the entry by the kernel's clock. Together with the address it identifies the socket.
    pub since: u64,
    /// The client's port, as a number.
    pub client_port: u16,
    /// 1 if the connection is established; 0 during the handshake.
    pub established: u16,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<TrackedSocket>() == size_of::<FlowKey>() + 8 + 2 + 2 + 4);
plain_data!(TrackedSocket);

/// States of a TCP socket (`include/net/tcp_states.h`).
#[expect(missing_docs, reason = "the names are TCP's own (RFC 9293) or the kernel's")]
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Callback flags of a socket (`BPF_SOCK_OPS_*_CB_FLAG` of `include/uapi/linux/bpf.h`). They also store the socket's
/// role: the flags exist as long as the socket, and remain when the agent that set them ends.
pub mod callback {
    use crate::Role;

    /// Calls the program at each state change. It marks a socket whose end will be counted.
    pub const STATE: u8 = 4;
    /// Calls the program at each retransmission, which shows pending attempts. It marks a client, from its first SYN on.
    pub const CLIENT: u8 = 2;
    /// Calls the program at each retransmission timeout. It marks a server.
    pub const SERVER: u8 = 1;

    /// Returns the flags of a socket whose role is known.
    #[inline]
    #[must_use]
    pub const fn of(role: Role) -> u8 {
        match role {
            Role::Client => STATE | CLIENT,
            Role::Server => STATE | SERVER,
        }
    }

    /// Returns whether the end of the socket's connection was counted: a role's mark remains, but no callback follows.
    /// A socket that is reused while no agent runs keeps the mark.
    #[inline]
    #[must_use]
    pub const fn is_counted(flags: u8) -> bool {
        flags & STATE == 0 && flags & (CLIENT | SERVER) != 0
    }

    /// Returns the flags of a socket whose end is counted now. The role's mark stays, for a second program that is
    /// called afterwards.
    #[inline]
    #[must_use]
    pub const fn counted(flags: u8) -> u8 {
        let marks = flags & (CLIENT | SERVER);
        flags & !STATE | if marks == 0 { SERVER } else { marks }
    }
}
