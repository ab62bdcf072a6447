//! Who is who: pods, Services and nodes by what a flow shows of them.
//!
//! What is removed is remembered for a while, so that a pod that lived for a second keeps its name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crate::{
    entity::{Backend, Node, Pod, Service, ServicePort, ServiceRef},
    flow::Protocol,
};

/// The most removed pods that are remembered; beyond that the oldest go first.
const MAX_REMOVED_PODS: usize = 50_000;

/// Everything the cluster says of itself that matters to the graph.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    pods: HashMap<String, PodRecord>,
    pod_by_container: HashMap<String, String>,
    /// Static pods: the UID of their object by the one that their node knows them by.
    pod_by_node_uid: HashMap<String, String>,
    pods_by_ip: HashMap<IpAddr, BTreeSet<String>>,
    /// Removed pods by the time of their removal, for the bound.
    removed_pods: BTreeSet<(SystemTime, String)>,
    services: BTreeMap<ServiceRef, ServiceRecord>,
    services_by_address: HashMap<(IpAddr, PortKey), BTreeSet<ServiceRef>>,
    services_by_node_port: HashMap<PortKey, BTreeSet<ServiceRef>>,
    nodes: BTreeMap<String, Node>,
    node_by_ip: HashMap<IpAddr, String>,
}

/// A Service's port: one number may be there for each protocol.
type PortKey = (u16, Protocol);

#[derive(Clone, Debug)]
struct PodRecord {
    pod: Pod,
    /// Of a static pod: the UID that its node knows it by.
    node_uid: Option<String>,
    /// When the directory first knew the pod.
    since: SystemTime,
    removed: Option<SystemTime>,
}

impl PodRecord {
    fn owns_addresses(&self) -> bool {
        self.removed.is_none() && !self.pod.ended
    }
}

#[derive(Clone, Debug)]
struct ServiceRecord {
    service: Service,
    /// When the directory first knew the Service.
    since: SystemTime,
    removed: Option<SystemTime>,
    /// Backends that were there once, by the Service's port: their connections are still in the account.
    former_backends: BTreeMap<(PortKey, Backend), SystemTime>,
}

/// A port of a Service that an address leads to.
#[derive(Clone, Debug)]
pub struct Dialled<'a> {
    /// The Service.
    pub service: &'a ServiceRef,
    /// Where it leads, or led until a short while ago; sorted, each once.
    pub backends: Vec<&'a Backend>,
}

impl Directory {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pod is there, or has changed; whether that is news.
    pub fn upsert_pod(&mut self, mut pod: Pod, now: SystemTime) -> bool {
        let (since, node_uid) = match self.pods.get(&pod.uid) {
            Some(known) => {
                // A pod's status can lose addresses and containers when it ends; its flows are still in the account.
                if pod.ips.is_empty() {
                    pod.ips.clone_from(&known.pod.ips);
                }
                for (id, name) in &known.pod.containers {
                    pod.containers.entry(id.clone()).or_insert_with(|| name.clone());
                }
                if known.pod == pod && known.removed.is_none() {
                    return false;
                }
                (known.since, known.node_uid.clone())
            }
            None => (now, None),
        };
        self.forget_pod(&pod.uid.clone());
        for id in pod.containers.keys() {
            self.pod_by_container.insert(id.clone(), pod.uid.clone());
        }
        if !pod.host_network {
            for ip in &pod.ips {
                self.pods_by_ip.entry(*ip).or_default().insert(pod.uid.clone());
            }
        }
        if let Some(node_uid) = &node_uid {
            self.pod_by_node_uid.insert(node_uid.clone(), pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), PodRecord { pod, node_uid, since, removed: None });
        true
    }

    /// A static pod is known to its node by another UID than that of its object, which has to be there; whether that is
    /// news.
    pub fn name_static_pod(&mut self, uid: &str, node_uid: &str) -> bool {
        let Some(record) = self.pods.get_mut(uid) else { return false };
        if record.node_uid.as_deref() == Some(node_uid) {
            return false;
        }
        if let Some(former) = record.node_uid.replace(node_uid.to_owned()) {
            self.pod_by_node_uid.remove(&former);
        }
        self.pod_by_node_uid.insert(node_uid.to_owned(), uid.to_owned());
        true
    }

    /// A pod is gone; it keeps its name and, until another pod has them, its addresses. Whether it was there.
    pub fn remove_pod(&mut self, uid: &str, now: SystemTime) -> bool {
        let Some(record) = self.pods.get_mut(uid) else { return false };
        if record.removed.is_some() {
            return false;
        }
        record.removed = Some(now);
        self.removed_pods.insert((now, uid.to_owned()));
        while self.removed_pods.len() > MAX_REMOVED_PODS {
            let Some((_, oldest)) = self.removed_pods.first().cloned() else { break };
            self.forget_pod(&oldest);
        }
        true
    }

    fn forget_pod(&mut self, uid: &str) {
        let Some(record) = self.pods.remove(uid) else { return };
        if let Some(removed) = record.removed {
            self.removed_pods.remove(&(removed, uid.to_owned()));
        }
        if let Some(node_uid) = &record.node_uid
            && self.pod_by_node_uid.get(node_uid).is_some_and(|owner| owner == uid)
        {
            self.pod_by_node_uid.remove(node_uid);
        }
        for id in record.pod.containers.keys() {
            if self.pod_by_container.get(id).is_some_and(|owner| owner == uid) {
                self.pod_by_container.remove(id);
            }
        }
        for ip in &record.pod.ips {
            if let Some(owners) = self.pods_by_ip.get_mut(ip) {
                owners.remove(uid);
                if owners.is_empty() {
                    self.pods_by_ip.remove(ip);
                }
            }
        }
    }

    /// A Service is there, or it or its endpoints have changed; whether that is news.
    pub fn upsert_service(&mut self, service: Service, now: SystemTime) -> bool {
        let name = service.name.clone();
        let (since, mut former_backends) = match self.services.get(&name) {
            Some(known) if known.service == service && known.removed.is_none() => return false,
            Some(known) => {
                let since = known.since;
                (since, self.take_service(&name).map(|known| known.former_backends_at(now)).unwrap_or_default())
            }
            None => (now, BTreeMap::new()),
        };
        for port in &service.ports {
            for backend in &port.backends {
                former_backends.remove(&(key_of(port), backend.clone()));
            }
        }
        for port in &service.ports {
            for address in &service.addresses {
                self.services_by_address.entry((*address, key_of(port))).or_default().insert(name.clone());
            }
            if let Some(node_port) = port.node_port {
                self.services_by_node_port.entry((node_port, port.protocol)).or_default().insert(name.clone());
            }
        }
        self.services.insert(name, ServiceRecord { service, since, removed: None, former_backends });
        true
    }

    /// A Service is gone; its addresses lead to it until another Service has them. Whether it was there.
    pub fn remove_service(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        match self.services.get_mut(name) {
            Some(record) if record.removed.is_none() => {
                record.removed = Some(now);
                true
            }
            _ => false,
        }
    }

    fn take_service(&mut self, name: &ServiceRef) -> Option<ServiceRecord> {
        let record = self.services.remove(name)?;
        for port in &record.service.ports {
            for address in &record.service.addresses {
                remove_from(&mut self.services_by_address, &(*address, key_of(port)), name);
            }
            if let Some(node_port) = port.node_port {
                remove_from(&mut self.services_by_node_port, &(node_port, port.protocol), name);
            }
        }
        Some(record)
    }

    /// A node is there, or has changed; whether that is news.
    pub fn upsert_node(&mut self, node: Node) -> bool {
        if self.nodes.get(&node.name) == Some(&node) {
            return false;
        }
        self.remove_node(&node.name.clone());
        for ip in &node.ips {
            self.node_by_ip.insert(*ip, node.name.clone());
        }
        self.nodes.insert(node.name.clone(), node);
        true
    }

    /// A node is gone; whether it was there.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.remove(name) else { return false };
        for ip in &node.ips {
            if self.node_by_ip.get(ip).is_some_and(|owner| owner == name) {
                self.node_by_ip.remove(ip);
            }
        }
        true
    }

    /// Forgets pods, Services and backends that have been gone for `retention`.
    pub fn forget_removed(&mut self, now: SystemTime, retention: Duration) {
        let expired = |removed: SystemTime| now.duration_since(removed).unwrap_or_default() >= retention;
        while let Some((removed, uid)) = self.removed_pods.first().cloned() {
            if !expired(removed) {
                break;
            }
            self.forget_pod(&uid);
        }
        let gone: Vec<ServiceRef> = self
            .services
            .iter()
            .filter(|(_, record)| record.removed.is_some_and(expired))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.take_service(&name);
        }
        for record in self.services.values_mut() {
            record.former_backends.retain(|_, removed| !expired(*removed));
        }
    }

    /// Whether anything is remembered that is gone.
    #[must_use]
    pub fn has_removed(&self) -> bool {
        let changed = |record: &ServiceRecord| record.removed.is_some() || !record.former_backends.is_empty();
        !self.removed_pods.is_empty() || self.services.values().any(changed)
    }

    /// A pod by its UID, or by the one that its node knows it by, even if it is gone.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        let record = self.pods.get(uid).or_else(|| self.pods.get(self.pod_by_node_uid.get(uid)?));
        record.map(|record| &record.pod)
    }

    /// A pod by the id of one of its containers, even if it is gone.
    #[must_use]
    pub fn pod_of_container(&self, container_id: &str) -> Option<&Pod> {
        self.pod_by_container.get(container_id).and_then(|uid| self.pod(uid))
    }

    /// Whose address `ip` was at the time `at`: the pod that has it, or else the one that had it last. Never a pod in
    /// its node's network.
    ///
    /// Of the time only this much is regarded so far: a pod that the directory did not know yet at `at` comes after
    /// those that it knew.
    #[must_use]
    pub fn owner_of(&self, ip: IpAddr, at: SystemTime) -> Option<&Pod> {
        self.pods_by_ip
            .get(&ip)?
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .max_by_key(|record| (record.since <= at, record.owns_addresses(), record.since, record.removed))
            .map(|record| &record.pod)
    }

    /// The node that `ip` is an address of, its bridges' addresses included, which have to be no pod's.
    #[must_use]
    pub fn node_of(&self, ip: IpAddr) -> Option<&Node> {
        if let Some(name) = self.node_by_ip.get(&ip) {
            return self.nodes.get(name);
        }
        if self.pods_by_ip.contains_key(&ip) {
            return None;
        }
        self.nodes.values().find(|node| node.pod_networks.iter().any(|network| network.contains(ip)))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service that was reached at an address and port at the time `at`: its own addresses, or a node's address and a
    /// node port. Of several that have or had them, one that was there at `at`, as far as the directory knew it, comes
    /// first, then the one that is there now or was there last.
    #[must_use]
    pub fn service_at(&self, ip: IpAddr, port: (u16, Protocol), at: SystemTime) -> Option<Dialled<'_>> {
        if let Some(record) = self.best_service(self.services_by_address.get(&(ip, port)), at) {
            return record.dialled(|candidate| key_of(candidate) == port);
        }
        let record = self.best_service(self.services_by_node_port.get(&port), at)?;
        if !self.node_by_ip.contains_key(&ip) && !ip.is_loopback() {
            return None;
        }
        let (number, protocol) = port;
        record.dialled(|candidate| candidate.node_port == Some(number) && candidate.protocol == protocol)
    }

    fn best_service(&self, names: Option<&BTreeSet<ServiceRef>>, at: SystemTime) -> Option<&ServiceRecord> {
        let was_there =
            |record: &ServiceRecord| record.since <= at && record.removed.is_none_or(|removed| removed > at);
        names?
            .iter()
            .filter_map(|name| self.services.get(name))
            .max_by_key(|record| (was_there(record), record.removed.is_none(), record.removed))
    }
}

impl ServiceRecord {
    /// The backends that are former ones if the Service changes at `now`.
    fn former_backends_at(self, now: SystemTime) -> BTreeMap<(PortKey, Backend), SystemTime> {
        let mut former = self.former_backends;
        for port in self.service.ports {
            let key = key_of(&port);
            for backend in port.backends {
                former.entry((key, backend)).or_insert(now);
            }
        }
        former
    }

    fn dialled(&self, is_it: impl Fn(&ServicePort) -> bool) -> Option<Dialled<'_>> {
        let port = self.service.ports.iter().find(|port| is_it(port))?;
        let former = self.former_backends.keys().filter(|(of, _)| *of == key_of(port)).map(|(_, backend)| backend);
        let mut backends: Vec<&Backend> = port.backends.iter().chain(former).collect();
        backends.sort_unstable();
        backends.dedup();
        Some(Dialled { service: &self.service.name, backends })
    }
}

fn key_of(port: &ServicePort) -> PortKey {
    (port.port, port.protocol)
}

fn remove_from<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<ServiceRef>>, key: &K, name: &ServiceRef) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
