//! Roles of sockets, and their determination from the kernel's structures and callback flags.

use crate::callback;

/// Role of a socket: the end of the connection that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The socket called `connect()`.
    Client = 1,
    /// A listening socket accepted it.
    Server = 2,
}

/// Origin of a socket according to the kernel's structures. Most sockets show it, also if no agent observed their
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// Unknown: the socket was bound before `connect()`, or its listener has a backlog of 0.
    Unknown = 0,
    /// `connect()` chose the port.
    Connect = 1,
    /// The socket has a backlog: it is a listener, or inherited the backlog from one.
    Listener = 2,
}

impl Origin {
    /// Converts a record's byte.
    #[must_use]
    pub const fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Connect,
            2 => Self::Listener,
            _ => Self::Unknown,
        }
    }

    /// Returns the origin of a socket whose role is known.
    #[inline]
    #[must_use]
    pub const fn of_role(role: Role) -> Self {
        match role {
            Role::Client => Self::Connect,
            Role::Server => Self::Listener,
        }
    }
}

impl Role {
    /// Returns the role of a socket; `None` if neither its origin nor its flags determine it. The origin takes
    /// precedence over callback flags, which other programs may set as well.
    #[inline]
    #[must_use]
    pub const fn shown(callbacks: u8, origin: Origin) -> Option<Self> {
        const CLIENT: u8 = callback::of(Role::Client);
        const SERVER: u8 = callback::of(Role::Server);
        match origin {
            Origin::Connect => Some(Self::Client),
            Origin::Listener => Some(Self::Server),
            Origin::Unknown => match callbacks & (CLIENT | SERVER) {
                CLIENT => Some(Self::Client),
                SERVER => Some(Self::Server),
                _ => None,
            },
        }
    }

    /// Guesses the role of a socket with callbacks for which [`Role::shown`] returns none.
    #[inline]
    #[must_use]
    pub const fn guessed(callbacks: u8) -> Self {
        if callbacks & callback::CLIENT != 0 { Self::Client } else { Self::Server }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callback::{CLIENT, SERVER, STATE};

    #[test]
    fn a_socket_shows_its_role_by_its_marks() {
        for role in [Role::Client, Role::Server] {
            assert_eq!(Role::shown(callback::of(role), Origin::Unknown), Some(role));
            assert_eq!(Role::guessed(callback::of(role)), role);
        }
    }

    #[test]
    fn flags_that_no_agent_sets_so_show_no_role() {
        for callbacks in [0, STATE, CLIENT, SERVER, CLIENT | SERVER, STATE | CLIENT | SERVER] {
            assert_eq!(Role::shown(callbacks, Origin::Unknown), None, "{callbacks}");
        }
    }

    #[test]
    fn the_kernel_knows_better_than_flags() {
        for callbacks in 0..8 {
            assert_eq!(Role::shown(callbacks, Origin::Connect), Some(Role::Client));
            assert_eq!(Role::shown(callbacks, Origin::Listener), Some(Role::Server));
        }
    }

    #[test]
    fn a_second_program_sees_the_role_of_what_the_first_one_has_counted() {
        for role in [Role::Client, Role::Server] {
            let after = callback::counted(callback::of(role));
            assert!(callback::is_counted(after) && !callback::is_counted(callback::of(role)));
            assert_eq!(Role::shown(after | STATE, Origin::Unknown), Some(role));
        }
        assert!(callback::is_counted(callback::counted(STATE)));
        assert!(!callback::is_counted(0));
    }
}
