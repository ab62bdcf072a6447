//! Conversations whose addresses were replaced on the way and of which one end was not seen: who is there is what the
//! connection tracking of the other end's node knows.

use std::net::IpAddr;

use super::{
    address::{Called, Scope},
    address_reuse::window,
    candidates::Candidates,
    join::Join,
    key::{Key, ServiceKey},
    names::PeerId,
    observed::{ClientFlow, Fresh, ServerFlow, Span},
};
use crate::{count, directory::Owner, edge::EdgeCounters, nat_peer::NatPeer};

impl<'a> Join<'a> {
    /// Assigns connections to the backends that conntrack reported where no agent observes them, out of those that no
    /// server flow explains. `service` is `None` if the client called no known Service.
    pub(super) fn divide_by_nat_peers(
        &mut self,
        client_flow: &ClientFlow<'a>,
        service: Option<ServiceKey>,
        left: &mut EdgeCounters,
    ) {
        let window = window(client_flow.parts, client_flow.span);
        let mut fresh = Fresh::of_parts(client_flow.parts, self.options.settled());
        for (far, count) in client_flow.nat_peers.iter() {
            let opened = count.min(left.opened);
            let Some(owner) = self.unseen_owner(far.ip, window).filter(|_| opened > 0) else { continue };
            let share = left.share(opened);
            *left = left.without(&share);
            let Some(share) = self.settled_share(&owner, &share, &mut fresh) else { continue };
            let end = self.ends.server_of(&nat_peers_address(&far, client_flow), &owner, window.until);
            let key = Key {
                client: self.ends.peer_of(client_flow.end),
                server: self.ends.peer_of(end),
                service,
                port: Some(far.port),
                protocol: client_flow.tuple.protocol,
            };
            self.add_from_client(client_flow, key, &share);
            let sum = self.sums.at(key);
            sum.server_tracked = true;
            sum.add_server(end, share.opened, 0);
        }
    }

    /// Names the pods of the only candidate workload that a client reached where no agent observes them, for
    /// connections that no server flow explains.
    pub(super) fn name_nat_peers(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        mut unexplained: u64,
    ) {
        let Some(key) = self.key_of_only(client_flow, candidates) else { return };
        let window = window(client_flow.parts, client_flow.span);
        let mut fresh = Fresh::of_parts(client_flow.parts, self.options.settled());
        for (far, count) in client_flow.nat_peers.iter() {
            let opened = count.min(unexplained);
            let Some(owner) = self.unseen_owner(far.ip, window).filter(|_| opened > 0) else { continue };
            let end = self.ends.server_of(&nat_peers_address(&far, client_flow), &owner, window.until);
            if self.ends.peer_of(end) == key.server {
                unexplained -= opened;
                let named = opened - self.wait_for_names(&owner, opened, &mut fresh);
                if named > 0 {
                    let sum = self.sums.at(key);
                    sum.server_tracked = true;
                    sum.add_server(end, named, 0);
                }
            }
        }
    }

    /// Names clients behind a rewritten address, for servers' connections where no agent observes these clients.
    pub(super) fn divide_by_callers(&mut self, server_flow: &mut ServerFlow<'a>) {
        let window = window(&server_flow.parts(), server_flow.span);
        let mut fresh = Fresh::of_parts(&server_flow.parts(), self.options.settled());
        for (far, count) in server_flow.nat_peers.iter() {
            let opened = count.min(server_flow.left.opened);
            let Some(owner) = self.unseen_owner(far.ip, window).filter(|_| opened > 0) else { continue };
            let share = server_flow.take(opened, None).counters;
            let Some(share) = self.settled_share(&owner, &share, &mut fresh) else { continue };
            let client = self.ends.client_of(far.ip, &owner, Scope::Cluster);
            let live = self.is_live(server_flow.live, server_flow.span, &share);
            let server: PeerId = self.ends.peer_of(server_flow.end);
            self.add_part_from_server(server_flow, client, &share, live);
            let (port, protocol) = (server_flow.port, server_flow.tuple.protocol);
            let key = Key { client: self.ends.peer_of(client), server, service: None, port: Some(port), protocol };
            self.sums.at(key).client_tracked = true;
        }
    }

    /// Takes the part of a share that need not wait for news of the address's owner, if any.
    fn settled_share(&mut self, owner: &Owner<'a>, share: &EdgeCounters, fresh: &mut Fresh) -> Option<EdgeCounters> {
        let waiting = self.wait_for_names(owner, share.opened, fresh);
        self.unsettled = count::add(self.unsettled, waiting);
        Some(share.without(&share.share(waiting))).filter(|rest| rest.opened > 0)
    }

    /// Returns how many of these connections must wait for news of an address's owner. Any of a flow's fresh ones may
    /// be among them, each once.
    fn wait_for_names(&mut self, owner: &Owner<'a>, opened: u64, fresh: &mut Fresh) -> u64 {
        let waiting = if owner.may_change() { opened.min(fresh.opened) } else { 0 };
        fresh.opened -= waiting;
        if let Some(since) = fresh.since.filter(|_| waiting > 0) {
            self.waits(since);
        }
        waiting
    }

    /// Returns the owner of the address, if it is known and no agent reports from there. Observed owners are reported
    /// by their agents.
    fn unseen_owner(&self, ip: IpAddr, window: Span) -> Option<Owner<'a>> {
        let owner = self.directory.owner_between(ip, window.from, window.until);
        let node = owner.pod().map(|pod| pod.node.as_str()).or_else(|| self.ends.nodes.of(ip));
        let is_seen = node.is_some_and(|node| self.ledger.observes(node, self.options.now));
        let is_known = matches!(owner, Owner::Pod(_) | Owner::NoPod);
        (is_known && !is_seen).then_some(owner)
    }
}

/// Returns the address and port that a client reached behind those that it called.
fn nat_peers_address<'a>(peer: &NatPeer, client_flow: &ClientFlow<'a>) -> Called<'a> {
    Called { scope: Scope::Cluster, ip: peer.ip, port: peer.port, protocol: client_flow.tuple.protocol }
}
