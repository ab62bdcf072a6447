//! Role of a UDP socket in a conversation of which the kernel's table remembers nothing.
//!
//! By definition, the end that sent the first datagram is the client. The first *observed* datagram may come after a
//! silence, and then the server may have sent it. Facts about the socket show where this is possible.

use crate::Role;

/// Facts about a socket, as bits of a value in the kernel's table of socket histories.
pub mod history {
    /// The socket is older than the capture.
    pub const PREEXISTING: u32 = 1;
    /// A datagram of another end began a conversation, and the process had chosen the socket's port.
    pub const CALLED: u32 = 2;
    /// A datagram of another end began a conversation, and the kernel had chosen the socket's port.
    pub const CALLED_AT_ANY_PORT: u32 = 4;
}

/// Ports from here on are those that the kernel chooses, unless it is configured otherwise.
const CHOSEN_BY_KERNEL: u16 = 32_768;

/// Role of a socket in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgedRole {
    /// The role.
    pub role: Role,
    /// True if the other role is possible.
    pub is_guess: bool,
}

impl JudgedRole {
    const fn certain(role: Role) -> Self {
        Self { role, is_guess: false }
    }
}

/// First observed datagram of a conversation, and the socket's part in it.
#[derive(Clone, Copy, Debug)]
pub struct FirstDatagram {
    /// True if the socket sent it.
    pub is_sent: bool,
    /// True if the socket is connected.
    pub is_connected: bool,
    /// Port of the socket.
    pub local_port: u16,
    /// Port of the other end.
    pub remote_port: u16,
}

impl FirstDatagram {
    /// Returns the role if the socket's [`history`] determines it. `is_complete`: whether the table has all conversations
    /// since the capture began.
    #[inline]
    #[must_use]
    pub const fn role_by_history(self, history: u32, is_complete: bool) -> Option<Role> {
        let is_by_definition = is_complete && history & history::PREEXISTING == 0;
        if self.is_sent {
            if is_by_definition || history == 0 { Some(Role::Client) } else { None }
        } else if history & history::CALLED != 0 {
            Some(Role::Server)
        } else {
            None
        }
    }

    /// Returns the role of a socket whose history does not determine it, and the facts to add to its history.
    /// `has_named_port`: whether the process chose the socket's port.
    #[inline]
    #[must_use]
    pub const fn judge(self, history: u32, is_complete: bool, has_named_port: bool) -> (JudgedRole, u32) {
        let is_by_definition = is_complete && history & history::PREEXISTING == 0;
        if self.is_connected && !has_named_port && !is_by_definition {
            // Only `connect()` can have had a reason to choose this remote address.
            return (JudgedRole::certain(Role::Client), 0);
        }
        if self.is_sent {
            return (self.guess(), 0);
        }
        if has_named_port && (is_by_definition || self.remote_port >= CHOSEN_BY_KERNEL) {
            return (JudgedRole::certain(Role::Server), history::CALLED);
        }
        let fact = if has_named_port { 0 } else { history::CALLED_AT_ANY_PORT };
        (if is_by_definition { JudgedRole::certain(Role::Server) } else { self.guess() }, fact)
    }

    /// Takes an end whose port the kernel may not have chosen for the server. If that is both ends, or none, the sender of
    /// the datagram is the client.
    const fn guess(self) -> JudgedRole {
        let role = match (self.local_port < CHOSEN_BY_KERNEL, self.remote_port < CHOSEN_BY_KERNEL) {
            (true, false) => Role::Server,
            (false, true) => Role::Client,
            _ if self.is_sent => Role::Client,
            _ => Role::Server,
        };
        JudgedRole { role, is_guess: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u32 = 0;
    const ALL: [u32; 4] = [NONE, history::PREEXISTING, history::CALLED, history::CALLED_AT_ANY_PORT];
    const CLIENT: JudgedRole = JudgedRole::certain(Role::Client);
    const SERVER: JudgedRole = JudgedRole::certain(Role::Server);

    fn datagram(is_sent: bool, is_connected: bool, ports: [u16; 2]) -> FirstDatagram {
        let [local_port, remote_port] = ports;
        FirstDatagram { is_sent, is_connected, local_port, remote_port }
    }

    fn judged(first: FirstDatagram, history: u32, is_complete: bool, has_named_port: bool) -> JudgedRole {
        let certain = first.role_by_history(history, is_complete).map(JudgedRole::certain);
        certain.unwrap_or_else(|| first.judge(history, is_complete, has_named_port).0)
    }

    fn guess(role: Role) -> JudgedRole {
        JudgedRole { role, is_guess: true }
    }

    #[test]
    fn first_sender_is_the_client_while_nothing_is_forgotten() {
        for history in ALL.into_iter().filter(|history| *history != history::PREEXISTING) {
            for (has_named_port, is_connected) in [(false, false), (false, true), (true, false), (true, true)] {
                let of = |is_sent| datagram(is_sent, is_connected, [4000, 5000]);
                assert_eq!(judged(of(true), history, true, has_named_port), CLIENT);
                assert_eq!(judged(of(false), history, true, has_named_port), SERVER);
            }
        }
    }

    #[test]
    fn usual_ends_are_certain_after_something_was_forgotten() {
        for is_connected in [false, true] {
            let client = datagram(true, is_connected, [40_000, 53]);
            assert_eq!(judged(client, NONE, false, false), CLIENT);
            assert_eq!(judged(client, NONE, false, true), CLIENT, "a resolver that chooses its ports");
        }
        let server = datagram(false, false, [53, 40_000]);
        assert_eq!(server.judge(NONE, false, true), (SERVER, history::CALLED));
        let behind_nat = datagram(false, false, [53, 1500]);
        assert_eq!(judged(behind_nat, history::CALLED, false, true), SERVER);
    }

    #[test]
    fn server_that_speaks_first_is_never_certain_to_be_the_client() {
        let (server, connected, unconnected) = (
            datagram(true, false, [5000, 40_000]),
            datagram(false, true, [40_000, 5000]),
            datagram(false, false, [40_000, 5000]),
        );
        for is_complete in [false, true] {
            assert_eq!(judged(server, history::PREEXISTING, is_complete, true), guess(Role::Server));
            assert_eq!(judged(connected, history::PREEXISTING, is_complete, false), CLIENT);
            assert_eq!(judged(unconnected, history::PREEXISTING, is_complete, false), guess(Role::Client));
        }
        assert_eq!(judged(server, history::CALLED, false, true), guess(Role::Server));
        assert_eq!(judged(connected, NONE, false, false), CLIENT);
        assert_eq!(judged(unconnected, NONE, false, false), guess(Role::Client));
        // Between two chosen ports, or two of the kernel's choice, the first sender is taken.
        for ports in [[5000, 4000], [40_000, 50_000]] {
            assert_eq!(judged(datagram(true, false, ports), history::CALLED, false, true), guess(Role::Client));
            assert_eq!(judged(datagram(false, false, ports), NONE, false, false), guess(Role::Server));
        }
    }

    #[test]
    fn call_of_an_unknown_kind_of_peer_makes_no_server() {
        let peer = datagram(false, false, [1194, 1194]);
        assert_eq!(peer.judge(NONE, false, true), (guess(Role::Server), 0));
    }
}
