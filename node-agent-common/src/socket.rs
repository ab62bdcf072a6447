//! Open sockets, as the iterator over all tasks' files lists them.

use crate::{FlowKey, plain_data};

/// One file descriptor of one process that is a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// The id of the cgroup that the socket was made in.
    pub cgroup: u64,
    /// The socket's own number, never used again.
    pub cookie: u64,
    /// Payload sent so far, without retransmissions.
    pub sent: u64,
    /// Payload received so far.
    pub received: u64,
    /// Segments sent again so far.
    pub retransmits: u32,
    /// Its smoothed round-trip time, in microseconds; 0 where none was measured.
    pub srtt: u32,
    /// The inode number of its network namespace.
    pub netns: u32,
    /// The process, as the initial pid namespace numbers it.
    pub pid: u32,
    /// The local port, as a number.
    pub local_port: u16,
    /// The remote port, as a number.
    pub remote_port: u16,
    /// See [`state`].
    pub state: u8,
    /// See [`callback`].
    pub callbacks: u8,
    /// 1 where the cgroup is below the node's root.
    pub own: u8,
    /// See [`crate::Origin`].
    pub origin: u8,
    /// The kernel's address of it, which another socket may have after it.
    pub address: u64,
    /// In network order, IPv4 addresses as IPv4-mapped (the unspecified one of an IPv6 socket is `::`).
    pub local: [u8; 16],
    /// As `local`.
    pub remote: [u8; 16],
}
const _: () = assert!(size_of::<SocketRecord>() == 4 * 8 + 4 * 4 + 2 * 2 + 4 + 8 + 2 * 16);
plain_data!(SocketRecord);

/// A socket that is followed from change to change of its state, because it has no callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FollowedSocket {
    /// Its flow; all zeros until it is established.
    pub flow: FlowKey,
    /// Time of the note by the kernel's clock. Together with the address it identifies the socket.
    pub since: u64,
    /// The port of the end that dialled, as a number.
    pub client_port: u16,
    /// 1 when it is established; 0 while it dials.
    pub established: u16,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FollowedSocket>() == size_of::<FlowKey>() + 8 + 2 + 2 + 4);
plain_data!(FollowedSocket);

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

/// A socket's callback flags (`BPF_SOCK_OPS_*_CB_FLAG` of `include/uapi/linux/bpf.h`), which tell us more than they are
/// made for: they live and die with the socket, and outlive the agent that has set them.
pub mod callback {
    use crate::Role;

    /// The program is called at each change of state: the socket's end will be counted.
    pub const STATE: u8 = 4;
    /// The program is called at each retransmission: the mark of a client, from its first SYN on.
    pub const CLIENT: u8 = 2;
    /// The program is called at each timeout of a retransmission: the mark of a server.
    pub const SERVER: u8 = 1;

    /// The flags of a socket of this role, from the moment at which the role is known.
    #[inline]
    #[must_use]
    pub const fn of(role: Role) -> u8 {
        match role {
            Role::Client => STATE | CLIENT,
            Role::Server => STATE | SERVER,
        }
    }

    /// Returns whether the end of the socket's connection was counted: a mark remains, and no event follows. A socket
    /// that is used again without any agent keeps this.
    #[inline]
    #[must_use]
    pub const fn is_counted(flags: u8) -> bool {
        flags & STATE == 0 && flags & (CLIENT | SERVER) != 0
    }

    /// The flags of a socket whose end is counted now. The marks stay, for a second program that is called after this one.
    #[inline]
    #[must_use]
    pub const fn counted(flags: u8) -> u8 {
        let marks = flags & (CLIENT | SERVER);
        flags & !STATE | if marks == 0 { SERVER } else { marks }
    }
}
