//! Flows as rows: who, in which direction, with whom, how much. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde::Serialize;
use topology::{
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Protocol, Role},
};

/// All connections of one owner in one role with one peer at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Owner of this end.
    pub owner: CgroupOwner,
    /// Observed end.
    pub role: Role,
    /// The other end's address as this end sees it.
    pub remote: IpAddr,
    /// The server's port as this end sees it.
    pub port: u16,
    /// Transport protocol at that port.
    pub protocol: Protocol,
    /// Owners of the other end, if that end is on this machine as well.
    pub peers: BTreeSet<CgroupOwner>,
    /// Connections opened since the start.
    pub opened: u64,
    /// Connections that were open at the start.
    pub preexisting: u64,
    /// Connections open now.
    pub active: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that are pending now.
    pub pending: u64,
    /// Payload sent by this end.
    pub bytes_sent: u64,
    /// Payload received by this end.
    pub bytes_received: u64,
}

/// A conversation, as both ends see it if nothing translates addresses between them. An address of the loopback
/// network means another machine in each network namespace.
type Conversation = (IpAddr, IpAddr, u16, Protocol, Option<u32>);

fn conversation(key: &FlowKey) -> Conversation {
    let namespace = key.local.is_loopback().then_some(key.netns);
    match key.role {
        Role::Client => (key.local, key.remote, key.port, key.protocol, namespace),
        Role::Server => (key.remote, key.local, key.port, key.protocol, namespace),
    }
}

fn other(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

/// The rows, sorted by owner, direction, peer and port.
pub fn rows(
    flows: impl Iterator<Item = (FlowKey, FlowCounters)>,
    mut owner: impl FnMut(u64) -> CgroupOwner,
) -> Vec<Row> {
    let flows: Vec<_> = flows.collect();
    let mut ends = HashMap::<(Conversation, Role), BTreeSet<u64>>::new();
    for (key, _) in &flows {
        ends.entry((conversation(key), key.role)).or_default().insert(key.cgroup_id);
    }
    let mut rows = BTreeMap::<_, Row>::new();
    for (key, counters) in flows {
        let whose = owner(key.cgroup_id);
        let row = rows.entry((whose.clone(), key.role, key.remote, key.port, key.protocol)).or_insert_with(|| Row {
            owner: whose,
            role: key.role,
            remote: key.remote,
            port: key.port,
            protocol: key.protocol,
            peers: BTreeSet::new(),
            opened: 0,
            preexisting: 0,
            active: 0,
            failed: 0,
            pending: 0,
            bytes_sent: 0,
            bytes_received: 0,
        });
        row.opened += counters.opened;
        row.preexisting += counters.preexisting;
        row.active += counters.active();
        row.failed += counters.failed;
        row.pending += counters.pending();
        row.bytes_sent += counters.bytes_sent;
        row.bytes_received += counters.bytes_received;
        let peers = ends.get(&(conversation(&key), other(key.role))).into_iter().flatten();
        row.peers.extend(peers.map(|cgroup| owner(*cgroup)));
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cgroup_id: u64, netns: u32, role: Role, local: &str, remote: &str, port: u16) -> FlowKey {
        FlowKey {
            cgroup_id,
            netns,
            role,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            port,
            protocol: Protocol::Tcp,
        }
    }

    fn host(cgroup: u64) -> CgroupOwner {
        CgroupOwner::HostProcess { name: format!("process {cgroup}") }
    }

    fn counters(opened: u64) -> FlowCounters {
        FlowCounters { opened, bytes_sent: 10 * opened, ..FlowCounters::default() }
    }

    #[test]
    fn both_ends_on_one_machine_name_each_other() {
        let flows = [
            (key(1, 7, Role::Client, "10.0.0.1", "10.0.0.2", 80), counters(3)),
            (key(2, 8, Role::Server, "10.0.0.2", "10.0.0.1", 80), counters(3)),
            (key(3, 7, Role::Client, "10.0.0.1", "10.9.9.9", 80), counters(1)),
        ];
        let rows = rows(flows.into_iter(), host);
        let peers: Vec<_> = rows.iter().map(|row| (row.owner.clone(), row.peers.iter().cloned().collect())).collect();
        assert_eq!(peers, [(host(1), vec![host(2)]), (host(2), vec![host(1)]), (host(3), vec![])]);
    }

    #[test]
    fn loopback_is_another_machine_in_each_namespace() {
        let flows = [
            (key(1, 7, Role::Client, "127.0.0.1", "127.0.0.1", 80), counters(1)),
            (key(2, 8, Role::Server, "127.0.0.1", "127.0.0.1", 80), counters(1)),
        ];
        let rows = rows(flows.into_iter(), host);
        assert!(rows.iter().all(|row| row.peers.is_empty()), "{rows:?}");
    }

    #[test]
    fn flows_that_differ_only_in_the_own_address_are_one_row() {
        let flows = [
            (key(1, 7, Role::Client, "10.0.0.1", "10.9.9.9", 80), counters(1)),
            (key(1, 7, Role::Client, "10.0.0.5", "10.9.9.9", 80), counters(2)),
        ];
        let rows = rows(flows.into_iter(), host);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].opened, rows[0].bytes_sent), (3, 30));
    }
}
