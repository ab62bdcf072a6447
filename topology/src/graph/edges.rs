//! Adds conversations up into edges.

use std::collections::{BTreeMap, HashMap};

use super::{
    ends::{EndId, Ends, PeerId},
    observed::Measured,
};
use crate::{
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Identity, Seen},
    entity::ServiceRef,
    flow::{Methods, Protocol},
    rtt::RttHistogram,
};

/// An edge's key, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key<'a> {
    pub client: PeerId,
    pub server: PeerId,
    pub service: Option<&'a ServiceRef>,
    pub port: u16,
    pub protocol: Protocol,
}

/// Connections and failed attempts of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    opened: u64,
    failed: u64,
}

/// An edge in the making.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub(super) struct Sum {
    pub counters: EdgeCounters,
    /// The part of it that no client's flow has counted.
    pub from_servers: EdgeCounters,
    /// Both ends of at least one of the conversations were seen.
    pub both_seen: bool,
    pub client_seen: bool,
    pub server_seen: bool,
    /// At least one of the conversations tells the server for certain.
    pub server_certain: bool,
    /// Something of it is not over yet, or not for long.
    pub live: bool,
    /// How its conversations were observed.
    pub methods: Methods,
    knows_retransmits: bool,
    rtt_by_clients: RttHistogram,
    rtt_by_servers: RttHistogram,
    clients: BTreeMap<EndId, Part>,
    servers: BTreeMap<EndId, Part>,
}

impl Sum {
    pub(super) fn add_methods(&mut self, methods: Methods) {
        self.methods = self.methods.union(methods);
    }

    /// What a client has measured whose flow leads nowhere else.
    pub(super) fn add_measured_by_client(&mut self, measured: &Measured) {
        self.knows_retransmits |= measured.knows_retransmits;
        self.rtt_by_clients = self.rtt_by_clients.plus(&measured.rtt);
    }

    /// What a client has measured whose flow leads to others as well: its round trips are not these.
    pub(super) fn add_measured_by_client_of_many(&mut self, measured: &Measured) {
        self.knows_retransmits |= measured.knows_retransmits;
    }

    pub(super) fn add_measured_by_server(&mut self, measured: &Measured) {
        self.knows_retransmits |= measured.knows_retransmits;
        self.rtt_by_servers = self.rtt_by_servers.plus(&measured.rtt);
    }

    pub(super) fn add_client(&mut self, end: EndId, opened: u64, failed: u64) {
        add(&mut self.clients, end, opened, failed);
    }

    pub(super) fn add_server(&mut self, end: EndId, opened: u64, failed: u64) {
        add(&mut self.servers, end, opened, failed);
    }

    fn seen(&self) -> Seen {
        match (self.both_seen, self.client_seen, self.server_seen) {
            (true, _, _) | (_, true, true) => Seen::Both,
            (_, true, false) => Seen::Client,
            _ => Seen::Server,
        }
    }
}

fn add(parts: &mut BTreeMap<EndId, Part>, end: EndId, opened: u64, failed: u64) {
    let part = parts.entry(end).or_default();
    part.opened += opened;
    part.failed += failed;
}

/// All edges in the making.
#[derive(Debug, Default)]
pub(super) struct Sums<'a> {
    sums: HashMap<Key<'a>, Sum>,
}

impl<'a> Sums<'a> {
    pub(super) fn at(&mut self, key: Key<'a>) -> &mut Sum {
        self.sums.entry(key).or_default()
    }

    /// The edges that live, by key.
    pub(super) fn into_edges(self, ends: &Ends<'_>) -> Vec<Edge> {
        let mut edges: Vec<Edge> = self
            .sums
            .into_iter()
            .filter(|(_, sum)| sum.live && sum.counters != EdgeCounters::default())
            .map(|(key, sum)| edge(key, &sum, ends))
            .collect();
        edges.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        edges
    }
}

fn edge(key: Key<'_>, sum: &Sum, ends: &Ends<'_>) -> Edge {
    let certain = |is: bool| if is { Identity::Cgroup } else { Identity::Ip };
    Edge {
        key: EdgeKey {
            client: ends.peer(key.client).clone(),
            server: ends.peer(key.server).clone(),
            service: key.service.cloned(),
            port: key.port,
            protocol: key.protocol,
        },
        counters: sum.counters,
        from_servers: sum.from_servers,
        clients: endpoints(&sum.clients, ends),
        servers: endpoints(&sum.servers, ends),
        seen: sum.seen(),
        client_identity: certain(sum.client_seen || sum.both_seen),
        server_identity: certain(sum.server_certain),
        methods: sum.methods,
        dns_names: Vec::new(),
        addresses: 0,
        knows_retransmits: sum.knows_retransmits,
        rtt: sum.rtt_by_clients.median().or_else(|| sum.rtt_by_servers.median()),
    }
}

/// By name; what has the same name is added up.
fn endpoints(parts: &BTreeMap<EndId, Part>, ends: &Ends<'_>) -> Vec<Endpoint> {
    let mut by_name: BTreeMap<(&str, &str), Part> = BTreeMap::new();
    for (id, part) in parts {
        let end = ends.end(*id);
        let named = by_name.entry((end.pod, end.container)).or_default();
        named.opened += part.opened;
        named.failed += part.failed;
    }
    by_name
        .into_iter()
        .map(|((pod, container), part)| Endpoint {
            pod: pod.to_owned(),
            container: container.to_owned(),
            opened: part.opened,
            failed: part.failed,
        })
        .collect()
}
