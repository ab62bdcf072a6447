//! Whose connections were, as the capture before has known: where sockets do not tell it now, they go on as theirs.

use std::{collections::HashMap, net::IpAddr};

use topology::flow::{FlowKey, Role};

use super::socket::Endpoints;

/// What all sockets of a flow have in common but their cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Conversation {
    netns: u32,
    role: Role,
    local: IpAddr,
    remote: IpAddr,
    port: u16,
}

/// Flows of the capture before: each one's cgroup, and how many of its connections were open and have not been found again.
#[derive(Debug, Default)]
pub(super) struct Earlier(HashMap<Conversation, Vec<(u64, u64)>>);

impl Earlier {
    /// Flows with the number of their open connections.
    pub(super) fn new(flows: &[(FlowKey, u64)]) -> Self {
        let mut conversations: HashMap<_, Vec<(u64, u64)>> = HashMap::new();
        for (key, open) in flows {
            let FlowKey { cgroup_id, netns, role, local, remote, port } = *key;
            let conversation = Conversation { netns, role, local, remote, port };
            conversations.entry(conversation).or_default().push((cgroup_id, *open));
        }
        for cgroups in conversations.values_mut() {
            cgroups.sort_unstable();
        }
        Self(conversations)
    }

    /// Whose a socket is: one's of those who had such connections, as many as they had. A new one is the first's.
    pub(super) fn whose(&mut self, netns: u32, role: Role, ends: &Endpoints) -> Option<u64> {
        let cgroups = self.0.get_mut(&conversation(netns, role, ends))?;
        match cgroups.iter_mut().find(|(_, open)| *open > 0) {
            Some((cgroup, open)) => {
                *open -= 1;
                Some(*cgroup)
            }
            None => cgroups.first().map(|(cgroup, _)| *cgroup),
        }
    }

    /// Which end a socket was, if it was known as one only.
    pub(super) fn role(&self, netns: u32, ends: &Endpoints) -> Option<Role> {
        let was = |role| self.0.contains_key(&conversation(netns, role, ends));
        match (was(Role::Client), was(Role::Server)) {
            (true, false) => Some(Role::Client),
            (false, true) => Some(Role::Server),
            _ => None,
        }
    }
}

fn conversation(netns: u32, role: Role, ends: &Endpoints) -> Conversation {
    let port = match role {
        Role::Client => ends.remote.1,
        Role::Server => ends.local.1,
    };
    Conversation { netns, role, local: ends.local.0, remote: ends.remote.0, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_on_as_those_that_had_them() {
        let (here, there) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let flow =
            |cgroup_id| FlowKey { cgroup_id, netns: 1, role: Role::Client, local: here, remote: there, port: 80 };
        let mut earlier = Earlier::new(&[(flow(8), 1), (flow(7), 2)]);
        let ends = Endpoints { local: (here, 40_000), remote: (there, 80) };
        let whose: Vec<_> = (0..4).map(|_| earlier.whose(1, Role::Client, &ends)).collect();
        assert_eq!(whose, [Some(7), Some(7), Some(8), Some(7)]);
        assert_eq!((earlier.role(1, &ends), earlier.role(2, &ends)), (Some(Role::Client), None));
        assert_eq!(earlier.whose(1, Role::Server, &ends), None);
    }
}
