//! Expected results with an agent on one of two nodes.

use std::collections::{BTreeMap, BTreeSet};

use crds::{IdentitySource, SeenEnds as Seen, Topology};
use kube::{Api, api::ListParams};
use scopeprobe_tests::{
    Error, Result,
    oracle::{EdgeName, Edges, Workload, observed},
};

use crate::{
    paths::Case,
    testbed::{Testbed, node_of},
};

/// The node with an agent.
pub const NODE: &str = "node-1";

/// Use of the node's conntrack by the agent's capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    Heard,
    Unheard,
}

pub fn spec(tracking: Tracking) -> String {
    let mode =
        if tracking == Tracking::Heard { "mode: Fallback, capture: {fallback: {cpuBudget: 500m}}, " } else { "" };
    let topology = "{counterInterval: 1s, maxEdges: 500, pods: 10}";
    format!("{{{mode}nodeSelector: {{kubernetes.io/hostname: {NODE}}}, topology: {topology}}}")
}

/// Counters of an edge, and the observed ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Sight {
    seen: Seen,
    opened: u64,
    sent: u64,
    received: u64,
}

/// Returns the observable part of what happened.
pub fn visible(happened: &[(Case, Edges)], tracking: Tracking) -> BTreeMap<EdgeName, Sight> {
    let mut visible: BTreeMap<EdgeName, Sight> = BTreeMap::new();
    for (case, edges) in happened {
        for (name, counts) in edges {
            let Some((name, seen)) = seen(case, name, tracking) else { continue };
            let sight = visible.entry(name).or_insert(Sight { seen, opened: 0, sent: 0, received: 0 });
            sight.opened += counts.opened;
            sight.sent += counts.sent;
            sight.received += counts.received;
        }
    }
    visible
}

fn seen(case: &Case, name: &EdgeName, tracking: Tracking) -> Option<(EdgeName, Seen)> {
    let has_agent = |(_, pod): &Workload| node_of(pod) == NODE;
    match (has_agent(&name.client), has_agent(&name.server)) {
        (true, true) => Some((name.clone(), Seen::Both)),
        (true, false) if case.path.servers.len() == 1 || tracking == Tracking::Heard => {
            Some((name.clone(), Seen::Client))
        }
        // No agent observed which of the Service's backends answered.
        (true, false) => {
            let server = ("Service".to_owned(), case.path.name.to_owned());
            Some((EdgeName { server, port: None, ..name.clone() }, Seen::Client))
        }
        // A server does not observe which Service its client called.
        (false, true) => Some((EdgeName { service: None, ..name.clone() }, Seen::Server)),
        (false, false) => None,
    }
}

/// Returns the servers that the clients' objects name from conntrack only, for Services with several backends.
fn known_by_tracking(objects: &[Topology]) -> BTreeSet<String> {
    let edges = objects.iter().filter_map(|object| object.status.as_ref()).flat_map(|status| &status.egress);
    let tracked = edges.filter(|edge| edge.identity == IdentitySource::Conntrack);
    tracked.filter_map(|edge| edge.peer.name.clone()).collect()
}

/// Returns the published edges, without those of the readiness probes ([`Testbed::leads`]), and the servers that only
/// conntrack names, of one moment.
pub async fn shown(testbed: &Testbed) -> Result<(BTreeMap<EdgeName, Sight>, BTreeSet<String>)> {
    let api: Api<Topology> = testbed.namespace.api();
    let objects = api.list(&ListParams::default()).await.map_err(Error::api("list Topologies"))?.items;
    let mut shown = BTreeMap::new();
    for object in &objects {
        let Some(status) = &object.status else { continue };
        let own = (status.workload.kind.clone(), status.workload.name.clone());
        let both_ways = [(&status.egress, false), (&status.ingress, true)];
        for (edge, ingress) in both_ways.into_iter().flat_map(|(list, ingress)| list.iter().map(move |e| (e, ingress)))
        {
            let service = observed::service_name(edge);
            let ports = edge.port.into_iter().chain(service.iter().map(|(_, port)| *port));
            if ports.into_iter().any(|port| testbed.leads().contains(&port)) {
                continue;
            }
            let peer = observed::peer_name(&edge.peer);
            let (client, server) = if ingress { (peer, own.clone()) } else { (own.clone(), peer) };
            let name = EdgeName { client, server, service, port: edge.port };
            let (ours, theirs) = (edge.bytes_sent.unwrap_or_default(), edge.bytes_received.unwrap_or_default());
            let (sent, received) = if ingress { (theirs, ours) } else { (ours, theirs) };
            let sight = Sight { seen: edge.seen, opened: edge.opened, sent, received };
            match shown.get(&name) {
                Some(twin) if *twin != sight => {
                    return Err(Error::Unexpected(format!("{name:?}: {twin:?} at one end, {sight:?} at the other")));
                }
                _ => shown.insert(name, sight),
            };
        }
    }
    Ok((shown, known_by_tracking(&objects)))
}
