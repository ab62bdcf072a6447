//! Connections that only conntrack has observed. They count when it is certain that no scan will show them. Pure.

use std::{collections::HashMap, net::IpAddr};

use topology::flow::{FlowKey, Methods, Role};

use super::{
    accounts::{Evidence, FlowAccounts},
    conntrack_entry::{ConntrackEntry, Side},
    conntrack_table::Settling,
    namespace::{NamespaceState, key},
};
use crate::capture::{fallback::netlink::conntrack_message::Carried, traffic::Traffic};

/// Counts what only conntrack has seen.
pub(in crate::capture::fallback) struct ConntrackOnly<'a> {
    pub(in crate::capture::fallback) namespaces: &'a mut HashMap<u32, NamespaceState>,
    pub(in crate::capture::fallback) accounts: &'a mut FlowAccounts,
}

impl Settling for ConntrackOnly<'_> {
    fn decide(&mut self, track: &ConntrackEntry, role: Role) -> Side {
        let undecided = track.side(role);
        let Some(netns) = track.namespace(role) else { return undecided };
        let Some(namespace) = self.namespaces.get_mut(&netns) else { return Side::Nobodys };
        let ends = track.ends(role);
        let scanned_since = |when: u64| namespace.scanned_at.is_some_and(|scanned_at| scanned_at >= when);
        if track.is_old() {
            // Its socket, if it has one here, has been shown.
            return if namespace.scanned_at.is_some() { Side::Nobodys } else { undecided };
        }
        if track.is_unknown() || track.may_be_older() && namespace.ended.contains(&ends) {
            return Side::Nobodys;
        }
        let Some(since) = track.established.or(track.over) else { return undecided };
        if track.over.is_none() && !scanned_since(since) {
            return undecided;
        }
        let cgroup = match role {
            Role::Client => track.attempted_by.or(namespace.default_owner),
            Role::Server if track.has_failed() => None,
            Role::Server => match namespace.listens(ends.local) {
                Some(listening) => listening.cgroup,
                // The listener may be newer than the last scan.
                None if !scanned_since(since) => return undecided,
                None => namespace.default_owner,
            },
        };
        if namespace.scanned_at.is_none() {
            return undecided;
        }
        let Some(cgroup) = cgroup else { return Side::Nobodys };
        let key = key(netns, cgroup, role, &ends);
        let evidence = Evidence { methods: Methods::CONNTRACK, inferred: false, without_bytes: true };
        namespace.counted.count(role);
        if track.has_failed() {
            namespace.counted.failed += 1;
            self.accounts.fail(key, evidence);
            return Side::Nobodys;
        }
        if !self.accounts.open(key, evidence) {
            return Side::Nobodys;
        }
        self.accounts.lead(key, track.nat_peer(role));
        Side::Counted(cgroup, false)
    }

    fn close(&mut self, key: FlowKey, track: &ConntrackEntry, role: Role) {
        let bytes = track.carried.map_or(Traffic::default(), |carried| payload(carried, role, key.remote));
        self.accounts.transfer(key, bytes);
        self.accounts.close(key, bytes, false);
    }
}

/// Returns the lower bound of the payload of this role's end, from the traffic in both directions.
pub(in crate::capture::fallback) fn payload([there, back]: [Carried; 2], role: Role, remote: IpAddr) -> Traffic {
    let [there, back] = [there, back].map(|carried| carried.least_payload(remote));
    match role {
        Role::Client => Traffic { sent: there, received: back, retransmits: 0 },
        Role::Server => Traffic { sent: back, received: there, retransmits: 0 },
    }
}
