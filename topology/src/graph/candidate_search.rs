//! Finds the servers that a client's flow may have reached behind the address that it called.

use std::{net::IpAddr, rc::Rc, time::SystemTime};

use super::{
    address::{Called, Scope},
    candidates::{Candidates, Target},
    join::Join,
    key::ServiceKey,
    names::PeerId,
    nodes::At,
    observed::{ClientFlow, INEXACT, Tuple},
};
use crate::{
    directory::CalledService,
    entity::Pod,
    hash::{HashMap, HashSet},
};

impl<'a> Join<'a> {
    /// Returns the possible targets of a client flow whose address no server observes, if it called a Service with
    /// backends, or an address and port at which a server observes other clients.
    pub(super) fn candidates_of(&mut self, client_flow: &ClientFlow<'a>) -> Option<Rc<Candidates<'a>>> {
        let called = client_flow.tuple.called();
        let service = self.service_called(client_flow);
        let service_key =
            service.as_ref().map(|it| ServiceKey { service: self.ends.service_id(it.service), port: it.port });
        if service.is_none() && !self.may_be_rewritten(&called) {
            return None;
        }
        let Some((service, key)) = service.zip(service_key) else {
            let targets = self.targets_of(&called, client_flow.span.until);
            return Some(Rc::new(self.resolve(None, &targets, called)));
        };
        if let Some(known) = self.candidates.get(&(called, key)) {
            return Some(Rc::clone(known));
        }
        let backends: Vec<Target<'a>> = service.backends.iter().map(|backend| Target::from(*backend)).collect();
        let found = Rc::new(self.resolve(Some(key), &backends, called));
        self.candidates.insert((called, key), Rc::clone(&found));
        Some(found)
    }

    /// Returns the Service that a client flow called, if it did.
    pub(super) fn service_called(&self, client_flow: &ClientFlow<'a>) -> Option<CalledService<'a>> {
        let Tuple { server, port, protocol, .. } = client_flow.tuple;
        // Node ports are the node's: a pod's loopback leads to the pod alone.
        let is_pods = server.is_loopback() && self.own_pod(client_flow.end).is_some();
        if is_pods { None } else { self.directory.service_at(server, (port, protocol), client_flow.at) }
    }

    /// Returns whether an address of no Service may lead to servers that observe other addresses.
    fn may_be_rewritten(&self, called: &Called<'a>) -> bool {
        !called.scope.is_loopback()
            && (self.servers.contains(called)
                || self.pods_at_host_port(called).next().is_some()
                || self.redirected.contains_key(&called.ip))
    }

    /// Returns the pods to which a port of a node leads or led, each with the port of its container.
    fn pods_at_host_port(&self, called: &Called<'a>) -> impl Iterator<Item = (&'a Pod, u16)> + use<'a> {
        let node = match (called.scope, self.ends.nodes.at(called.ip)) {
            (Scope::Cluster, Some(At::Node(node))) => Some(node),
            _ => None,
        };
        let (directory, Called { ip, port, protocol, .. }) = (self.directory, *called);
        node.into_iter().flat_map(move |node| directory.pods_at_host_port(node, ip, port, protocol))
    }

    /// Returns where an address and port of no Service lead: to the pods with this port of the node that existed by `until`.
    /// Leads to the address itself if servers were observed there, or if there is no such pod.
    fn targets_of(&self, called: &Called<'a>, until: SystemTime) -> Vec<Target<'a>> {
        let directory = self.directory;
        let mut targets: Vec<Target<'a>> = Vec::new();
        for (pod, port) in self.pods_at_host_port(called) {
            let of_family = pod.ips.iter().filter(|ip| ip.is_ipv4() == called.ip.is_ipv4());
            let had_begun =
                |ip: &&IpAddr| directory.time_with(&pod.uid, **ip).is_some_and(|(begin, _)| begin <= until + INEXACT);
            targets.extend(of_family.filter(had_begun).map(|ip| Target { ip: *ip, port, pod: Some(&pod.uid) }));
        }
        if targets.is_empty() || self.servers.contains(called) {
            targets.push(Target { ip: called.ip, port: called.port, pod: None });
        }
        targets
    }

    fn resolve(&mut self, service: Option<ServiceKey>, targets: &[Target<'a>], called: Called<'a>) -> Candidates<'a> {
        let directory = self.directory;
        let mut peers: HashSet<(PeerId, u16)> = HashSet::default();
        let (mut observed, mut heard) = (true, None);
        let mut backends: HashMap<(IpAddr, u16), Vec<Option<&'a str>>> = HashMap::default();
        for target in targets {
            for port in self.ports_of(target) {
                backends.entry((target.ip, port)).or_default().push(target.pod);
            }
            let pod = target.pod.and_then(|uid| directory.pod(uid));
            let (end, node) = if let Some(pod) = pod {
                (self.ends.pod_address(pod), Some(pod.node.as_str()))
            } else {
                let node = self.ends.nodes.of(target.ip);
                let change = directory.next_change_of_owner(target.ip, self.options.now);
                self.names_change_at = [self.names_change_at, change].into_iter().flatten().min();
                let at = Called { ip: target.ip, port: target.port, ..called.in_cluster() };
                (self.ends.server_at(&at, self.options.now), node)
            };
            observed &= node.is_some_and(|node| self.ledger.observes(node, self.options.now));
            let spoken = node.and_then(|node| self.ledger.heard(node));
            heard = [heard, spoken].into_iter().flatten().min();
            peers.insert((self.ends.peer_of(end), target.port));
        }
        // An address may have had several owners and listeners.
        let is_named = service.is_some()
            || targets.iter().any(|target| target.pod.is_some())
            || self.redirected.contains_key(&called.ip);
        let only = if peers.len() == 1 && is_named { peers.into_iter().next() } else { None };
        Candidates { called, service, backends, only, observed, heard }
    }

    /// Returns the ports at which connections to a target are accepted: its own, and those to which it is redirected.
    fn ports_of(&self, target: &Target<'a>) -> Vec<u16> {
        let redirected = self.redirected.get(&target.ip).filter(|it| !it.listened.contains(&target.port));
        let redirected = redirected.into_iter().flat_map(|it| it.ports.iter().copied());
        std::iter::once(target.port).chain(redirected).collect()
    }

    /// Returns whether a server flow is a backend's: at its address, and not of another pod that held the address
    /// before or after.
    pub(super) fn is_backend(&self, index: usize, candidates: &Candidates<'_>) -> bool {
        let server_flow = &self.server_flows[index];
        let Some(pods) = candidates.backends.get(&(server_flow.tuple.server, server_flow.tuple.port)) else {
            return false;
        };
        self.ends
            .end(server_flow.end)
            .pod_uid()
            .is_none_or(|uid| pods.iter().any(|pod| pod.is_none_or(|pod| pod == uid)))
    }

    /// The servers' flows that saw the client's address and belong to the Service's backends, in order.
    pub(super) fn server_flows_of(&self, client_flow: &ClientFlow<'a>, candidates: &Candidates<'a>) -> Vec<usize> {
        let client = client_flow.tuple.client;
        let Some(of_client) = self.by_client.get(&client) else { return Vec::new() };
        let of_service = |index: &usize| {
            let tuple = &self.server_flows[*index].tuple;
            tuple.called() == candidates.at(tuple.server, tuple.port) && self.is_backend(*index, candidates)
        };
        if of_client.len() <= candidates.backends.len() {
            return of_client.clone().filter(of_service).collect();
        }
        let protocol = client_flow.tuple.protocol;
        let tuple = |(server, port): &(IpAddr, u16)| {
            let scope = candidates.at(*server, *port).scope;
            Tuple { scope, client, server: *server, port: *port, protocol }
        };
        let mut found: Vec<usize> = candidates
            .backends
            .keys()
            .filter_map(|address| self.by_tuple.get(&tuple(address)).cloned())
            .flatten()
            .filter(|index| self.is_backend(*index, candidates))
            .collect();
        found.sort_unstable();
        found
    }
}
