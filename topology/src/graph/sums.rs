//! Sums of conversations, which become edges.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, hash_map::Entry},
};

use super::{key::Key, names::EndpointId, observed::Measured};
use crate::{
    count,
    edge::{EdgeCounters, Seen, Side, Times},
    flow::Methods,
    hash::HashMap,
    rtt::RttHistogram,
};

/// Connections and failed attempts of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EndpointSum {
    pub(super) opened: u64,
    pub(super) failed: u64,
}

/// An edge in the making.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub(super) struct Sum {
    pub counters: EdgeCounters,
    /// The part of it that no client's flow has counted.
    pub from_servers: EdgeCounters,
    /// Both ends of at least one of the conversations were seen.
    pub both_seen: bool,
    pub client_seen: bool,
    pub server_seen: bool,
    /// No agent saw the client, and yet it is certain: by the server's own network namespace.
    pub client_certain: bool,
    /// True if at least one of the conversations identifies the server for certain.
    pub server_certain: bool,
    /// The client, or the server, of at least one of them is known by connection tracking.
    pub client_tracked: bool,
    pub server_tracked: bool,
    /// Something of it is not over yet, or not for long.
    pub live: bool,
    /// Capture methods of its conversations.
    pub methods: Methods,
    pub(super) times: Option<Times>,
    pub(super) knows_retransmits: bool,
    pub(super) rtt_by_clients: RttHistogram,
    pub(super) rtt_by_servers: RttHistogram,
    /// Transparent proxies between the two ends.
    pub(super) via: BTreeSet<(Side, EndpointId)>,
    /// DNS names that led to the server's address, where there were several.
    pub dns_names: BTreeSet<String>,
    pub(super) clients: BTreeMap<EndpointId, EndpointSum>,
    pub(super) servers: BTreeMap<EndpointId, EndpointSum>,
    pub(super) clients_from_servers: BTreeMap<EndpointId, EndpointSum>,
    pub(super) servers_from_servers: BTreeMap<EndpointId, EndpointSum>,
}

impl Sum {
    pub(super) fn add_methods(&mut self, methods: Methods) {
        self.methods = self.methods.union(methods);
    }

    /// Adds the client's measurements if its flow leads to one server only.
    pub(super) fn add_measured_by_client(&mut self, measured: &Measured) {
        self.add_measured_by_client_of_many(measured);
        self.rtt_by_clients = self.rtt_by_clients.plus(&measured.rtt);
    }

    /// Adds the client's measurements if its flow leads to several servers; its round-trip times are then not this
    /// edge's.
    pub(super) fn add_measured_by_client_of_many(&mut self, measured: &Measured) {
        self.knows_retransmits |= measured.knows_retransmits;
        self.times = Times::of_both(self.times, Some(measured.times));
    }

    pub(super) fn add_measured_by_server(&mut self, measured: &Measured) {
        self.add_measured_by_client_of_many(measured);
        self.rtt_by_servers = self.rtt_by_servers.plus(&measured.rtt);
    }

    /// Adds the transparent proxies of a client's flow and of a server's.
    pub(super) fn add_via(&mut self, client: Option<(Side, EndpointId)>, server: Option<EndpointId>) {
        self.via.extend(client);
        self.via.extend(server.map(|proxy| (Side::Server, proxy)));
    }

    pub(super) fn add_client(&mut self, end: EndpointId, opened: u64, failed: u64) {
        add_part(&mut self.clients, end, opened, failed);
    }

    pub(super) fn add_server(&mut self, end: EndpointId, opened: u64, failed: u64) {
        add_part(&mut self.servers, end, opened, failed);
    }

    /// Adds what only a server has counted, with both ends.
    pub(super) fn add_from_server(&mut self, client: EndpointId, server: EndpointId, part: &EdgeCounters) {
        self.counters.add(part);
        self.from_servers.add(part);
        for clients in [&mut self.clients, &mut self.clients_from_servers] {
            add_part(clients, client, part.opened, part.failed);
        }
        for servers in [&mut self.servers, &mut self.servers_from_servers] {
            add_part(servers, server, part.opened, part.failed);
        }
    }

    /// All that the servers have done is done by this one.
    pub(super) fn merge_servers_to(&mut self, end: EndpointId) {
        merge_to(&mut self.servers, end);
        merge_to(&mut self.servers_from_servers, end);
    }

    /// All that the clients have done is done by this one.
    pub(super) fn merge_clients_to(&mut self, end: EndpointId) {
        merge_to(&mut self.clients, end);
        merge_to(&mut self.clients_from_servers, end);
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        self.from_servers.add(&other.from_servers);
        self.both_seen |= other.both_seen;
        self.client_seen |= other.client_seen;
        self.server_seen |= other.server_seen;
        self.client_certain |= other.client_certain;
        self.server_certain |= other.server_certain;
        self.live |= other.live;
        self.add_methods(other.methods);
        self.client_tracked |= other.client_tracked;
        self.server_tracked |= other.server_tracked;
        self.times = Times::of_both(self.times, other.times);
        self.knows_retransmits |= other.knows_retransmits;
        self.rtt_by_clients = self.rtt_by_clients.plus(&other.rtt_by_clients);
        self.rtt_by_servers = self.rtt_by_servers.plus(&other.rtt_by_servers);
        self.via.extend(&other.via);
        self.dns_names.extend(other.dns_names.iter().cloned());
        merge(&mut self.clients, &other.clients);
        merge(&mut self.servers, &other.servers);
        merge(&mut self.clients_from_servers, &other.clients_from_servers);
        merge(&mut self.servers_from_servers, &other.servers_from_servers);
    }

    /// Returns the ends that an agent observed.
    pub(super) fn seen(&self) -> Seen {
        match (self.both_seen, self.client_seen, self.server_seen) {
            (true, _, _) | (_, true, true) => Seen::Both,
            (_, true, false) => Seen::Client,
            _ => Seen::Server,
        }
    }
}

fn add_part(parts: &mut BTreeMap<EndpointId, EndpointSum>, end: EndpointId, opened: u64, failed: u64) {
    let part = parts.entry(end).or_default();
    part.opened = count::add(part.opened, opened);
    part.failed = count::add(part.failed, failed);
}

fn merge(parts: &mut BTreeMap<EndpointId, EndpointSum>, others: &BTreeMap<EndpointId, EndpointSum>) {
    for (end, part) in others {
        add_part(parts, *end, part.opened, part.failed);
    }
}

fn merge_to(parts: &mut BTreeMap<EndpointId, EndpointSum>, end: EndpointId) {
    for (_, part) in std::mem::take(parts) {
        add_part(parts, end, part.opened, part.failed);
    }
}

/// Adds a sum to those of its edge.
pub(super) fn add<'s>(sums: &mut HashMap<Key, Cow<'s, Sum>>, key: Key, sum: Cow<'s, Sum>) {
    match sums.entry(key) {
        Entry::Vacant(vacant) => _ = vacant.insert(sum),
        Entry::Occupied(mut known) => known.get_mut().to_mut().merge(&sum),
    }
}

/// All edges in the making.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) by_key: HashMap<Key, Sum>,
}

impl Sums {
    pub(super) fn at(&mut self, key: Key) -> &mut Sum {
        self.by_key.entry(key).or_default()
    }
}
