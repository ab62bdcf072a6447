//! Resolves observations to pods, Services and nodes.
//!
//! Removed entries are kept for a while, so that a pod that lived for a second keeps its name.

mod changes;
mod own_networks;
mod pod_networks;
mod recorded_pods;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use self::{
    changes::Changes,
    pod_networks::PodNetworks,
    services::{Services, remove_from},
};
pub(crate) use self::{
    changes::{Change, Revision},
    own_networks::is_special,
};
pub use self::{
    own_networks::OwnNetworks,
    recorded_pods::{BackendPort, BackendsByPod, RecordedPod},
    services::CalledService,
};
use crate::{
    clock::NodeClock,
    entity::{HostPort, Node, Pod, PodLifetime, Service, ServiceRef},
    external::ExternalGroups,
    flow::Protocol,
    hash::HashMap,
    history::Part,
    ownership::{Owned, Ownership},
};

/// Maximum number of removed pods that are kept; beyond it, the ones removed first are dropped.
const MAX_REMOVED_PODS: usize = 50_000;

/// Pods, Services, nodes and external groups by which the graph resolves observations.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    pods: HashMap<String, PodRecord>,
    pod_by_container: HashMap<String, String>,
    /// Static pods: the UIDs of their objects by node, by the UID that the kubelets use for them. A manifest with a UID of its
    /// own may be on several nodes.
    pod_by_node_uid: HashMap<String, BTreeMap<String, String>>,
    /// UIDs of the pods with a port of their node.
    pods_by_host_port: HashMap<(String, u16, Protocol), BTreeSet<String>>,
    ownership: Ownership,
    clocks: HashMap<String, NodeClock>,
    /// Removed pods by the time of their removal, for the bound.
    removed_pods: BTreeSet<(SystemTime, String)>,
    services: Services,
    nodes: BTreeMap<String, Node>,
    pod_networks: PodNetworks,
    node_by_ip: HashMap<IpAddr, String>,
    external_groups: ExternalGroups,
    changes: Changes,
}

#[derive(Clone, Debug)]
struct PodRecord {
    pod: Pod,
    /// UID that the kubelet uses for a static pod.
    node_uid: Option<String>,
    removed: Option<SystemTime>,
}

/// Owner of an address at some time.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// This pod owned the address, if any pod did: no other known pod can have held it.
    Pod(&'a Pod),
    /// Several pods can have owned the address then.
    Contested,
    /// No known pod owned the address then; at other times a pod did.
    Unknown,
    /// No known pod ever owned the address.
    NoPod,
}

impl<'a> Owner<'a> {
    /// Returns the pod, if it is the only candidate.
    #[must_use]
    pub fn pod(&self) -> Option<&'a Pod> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Contested | Self::Unknown | Self::NoPod => None,
        }
    }

    /// Returns whether later pod events can change this result, because pods have held this address.
    #[must_use]
    pub fn may_change(&self) -> bool {
        !matches!(self, Self::NoPod)
    }

    /// Returns whether both name the same pod, or no pod for the same reason.
    #[must_use]
    pub fn is_the_same(&self, other: &Self) -> bool {
        match (self.pod(), other.pod()) {
            (Some(one), Some(other)) => one.uid == other.uid,
            (None, None) => std::mem::discriminant(self) == std::mem::discriminant(other),
            _ => false,
        }
    }
}

impl Directory {
    /// Returns an empty directory.
    ///
    /// Invariant: no address has an owner, no port a Service.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or updates a pod. Returns whether anything changed.
    ///
    /// Invariant: containers stay known, and so do the addresses of a pod whose object no longer lists any.
    pub fn upsert_pod(&mut self, mut pod: Pod, now: SystemTime) -> bool {
        let mut has_new_host_ports = !pod.host_ports.is_empty();
        let node_uid = match self.pods.get(&pod.uid) {
            Some(known) => {
                // A pod's status can lose addresses and containers when it ends; its flows are still in the account.
                if pod.ips.is_empty() {
                    pod.ips.clone_from(&known.pod.ips);
                }
                for (id, name) in known.pod.containers.iter().filter(|(id, _)| !id.is_empty()) {
                    pod.containers.entry(id.clone()).or_insert_with(|| name.clone());
                }
                if known.pod == pod && known.removed.is_none() {
                    return false;
                }
                let known_ports = (&known.pod.host_ports, &known.pod.ips, &known.pod.node);
                has_new_host_ports = known_ports != (&pod.host_ports, &pod.ips, &pod.node);
                known.node_uid.clone()
            }
            None => None,
        };
        self.note_pod(&pod);
        if has_new_host_ports {
            self.note_host_ports(&pod);
        }
        self.observe(&pod, now);
        self.unindex_pod(&pod.uid.clone());
        for id in pod.containers.keys() {
            self.pod_by_container.insert(id.clone(), pod.uid.clone());
        }
        if let Some(node_uid) = &node_uid {
            self.place_static_pod(node_uid, &pod);
        }
        for port in &pod.host_ports {
            let at = (pod.node.clone(), port.port, port.protocol);
            self.pods_by_host_port.entry(at).or_default().insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), PodRecord { pod, node_uid, removed: None });
        true
    }

    /// Records the UID that the kubelet uses for a static pod whose object is present. Returns whether it changed.
    pub fn name_static_pod(&mut self, uid: &str, node_uid: &str) -> bool {
        let Some(record) = self.pods.get_mut(uid) else { return false };
        if record.node_uid.as_deref() == Some(node_uid) {
            return false;
        }
        let (former, pod) = (record.node_uid.replace(node_uid.to_owned()), record.pod.clone());
        if let Some(former) = former {
            self.displace_static_pod(&former, &pod);
        }
        self.place_static_pod(node_uid, &pod);
        self.changes.note(Change::Pod(uid.to_owned()));
        self.changes.note(Change::Pod(node_uid.to_owned()));
        true
    }

    fn place_static_pod(&mut self, node_uid: &str, pod: &Pod) {
        let by_node = self.pod_by_node_uid.entry(node_uid.to_owned()).or_default();
        by_node.insert(pod.node.clone(), pod.uid.clone());
    }

    /// Removes a static pod's UID on its node, unless another pod has it there.
    fn displace_static_pod(&mut self, node_uid: &str, pod: &Pod) {
        let Some(by_node) = self.pod_by_node_uid.get_mut(node_uid) else { return };
        if by_node.get(&pod.node).is_some_and(|uid| *uid == pod.uid) {
            by_node.remove(&pod.node);
        }
        if by_node.is_empty() {
            self.pod_by_node_uid.remove(node_uid);
        }
    }

    /// Records the lifetime that a pod's object last reported, and whether the pod ended. Ignores unknown pods.
    ///
    /// Invariant: no name changes.
    pub fn note_life(&mut self, uid: &str, life: PodLifetime, ended: bool, now: SystemTime) {
        if let Some(record) = self.pods.get_mut(uid) {
            (record.pod.life, record.pod.ended) = (life, ended);
            let pod = record.pod.clone();
            self.observe(&pod, now);
        }
    }

    /// Records that a pod has its addresses at `now`.
    fn observe(&mut self, pod: &Pod, now: SystemTime) {
        if self.ownership.observe(pod, now) {
            self.changes.note(Change::Everything);
        }
        self.note_addresses(&pod.uid);
    }

    /// Notes that the directory says something else of a pod and its addresses than before.
    fn note_pod(&mut self, pod: &Pod) {
        for id in pod.containers.keys().chain([&pod.uid]) {
            self.changes.note(Change::Pod(id.clone()));
        }
        self.note_addresses(&pod.uid);
    }

    /// Notes that ports of a node lead to a pod, or led there and are forgotten. They lead there after its removal, too.
    fn note_host_ports(&mut self, pod: &Pod) {
        for port in &pod.host_ports {
            self.changes.note(Change::NodePort(port.port, port.protocol));
        }
    }

    fn note_addresses(&mut self, uid: &str) {
        for ip in self.ownership.addresses_of(uid) {
            self.changes.note(Change::Address(*ip));
        }
    }

    /// Removes a pod. It keeps its name and, until another pod has them, its addresses. Returns whether it was present.
    ///
    /// Invariants: it is removed once only; at most the 50,000 pods that were removed last are kept.
    pub fn remove_pod(&mut self, uid: &str, now: SystemTime) -> bool {
        let Some(record) = self.pods.get_mut(uid) else { return false };
        if record.removed.is_some() {
            return false;
        }
        record.removed = Some(now);
        let pod = record.pod.clone();
        self.ownership.remove(uid, now);
        self.note_pod(&pod);
        self.removed_pods.insert((now, uid.to_owned()));
        self.bound_removed_pods();
        true
    }

    fn bound_removed_pods(&mut self) {
        while self.removed_pods.len() > MAX_REMOVED_PODS {
            let Some((_, oldest)) = self.removed_pods.first().cloned() else { break };
            self.forget_pod(&oldest);
        }
    }

    fn forget_pod(&mut self, uid: &str) {
        if let Some(record) = self.unindex_pod(uid) {
            self.note_pod(&record.pod);
            self.note_host_ports(&record.pod);
            if let Some(node_uid) = record.node_uid {
                self.changes.note(Change::Pod(node_uid));
            }
        }
        self.ownership.forget(uid);
    }

    fn unindex_pod(&mut self, uid: &str) -> Option<PodRecord> {
        let record = self.pods.remove(uid)?;
        if let Some(removed) = record.removed {
            self.removed_pods.remove(&(removed, uid.to_owned()));
        }
        if let Some(node_uid) = &record.node_uid {
            self.displace_static_pod(node_uid, &record.pod);
        }
        for port in &record.pod.host_ports {
            let at = (record.pod.node.clone(), port.port, port.protocol);
            remove_from(&mut self.pods_by_host_port, &at, uid);
        }
        for id in record.pod.containers.keys() {
            if self.pod_by_container.get(id).is_some_and(|owner| owner == uid) {
                self.pod_by_container.remove(id);
            }
        }
        Some(record)
    }

    /// Adds or updates a Service and its endpoints. Returns whether anything changed.
    ///
    /// Invariant: a removed backend stays known as a former one.
    pub fn upsert_service(&mut self, service: Service, now: SystemTime) -> bool {
        let name = service.name.clone();
        let before = self.services.changes_of(&name);
        let is_news = self.services.upsert(service, now);
        if is_news {
            self.note_all(before);
            self.note_all(self.services.changes_of(&name));
        }
        is_news
    }

    /// Removes a Service. Its addresses lead to it until another Service has them. Returns whether it was present.
    ///
    /// Invariant: it is removed once only.
    pub fn remove_service(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        self.note_all(self.services.changes_of(name));
        self.services.remove(name, now)
    }

    /// Adds or updates a node. Returns whether anything changed.
    pub fn upsert_node(&mut self, node: Node) -> bool {
        if self.nodes.get(&node.name) == Some(&node) {
            return false;
        }
        self.remove_node(&node.name.clone());
        self.changes.note(Change::Everything);
        for ip in &node.ips {
            self.node_by_ip.insert(*ip, node.name.clone());
        }
        self.pod_networks.insert(&node);
        self.nodes.insert(node.name.clone(), node);
        true
    }

    /// Removes a node. Returns whether it was present.
    ///
    /// Invariant: it is removed once only; none of its addresses leads to it any more.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.remove(name) else { return false };
        self.changes.note(Change::Everything);
        self.clocks.remove(name);
        self.pod_networks.remove(&node);
        for ip in &node.ips {
            if self.node_by_ip.get(ip).is_some_and(|owner| owner == name) {
                self.node_by_ip.remove(ip);
            }
        }
        true
    }

    /// Drops pods, Services and backends that were removed at least `retention` ago. Returns whether there were any.
    ///
    /// Invariant: present ones stay.
    pub fn forget_removed(&mut self, now: SystemTime, retention: Duration) -> bool {
        let before = self.revision().clone();
        let expired = |removed: SystemTime| now.duration_since(removed).unwrap_or_default() >= retention;
        while let Some((removed, uid)) = self.removed_pods.first().cloned() {
            if !expired(removed) {
                break;
            }
            self.forget_pod(&uid);
        }
        let changes = self.services.forget_removed(expired);
        self.note_all(changes);
        *self.revision() != before
    }

    fn note_all(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.changes.note(change);
        }
    }

    /// Returns the present revision, for [`Self::changes_since`].
    pub(crate) fn revision(&self) -> &Revision {
        self.changes.revision()
    }

    /// Returns what the directory says differently since a revision; `None` if that is not known.
    ///
    /// Invariant: questions about other pods, addresses and ports have the same answers as then.
    pub(crate) fn changes_since(&self, revision: &Revision) -> Option<impl Iterator<Item = &Change>> {
        self.changes.since(revision)
    }

    /// Returns all pods that are known to have held an address at any time.
    pub(crate) fn holders(&self, ip: IpAddr) -> impl Iterator<Item = &Pod> {
        self.ownership.holders(ip).filter_map(|uid| self.pods.get(uid)).map(|record| &record.pod)
    }

    /// Returns whether a pod of a node has or had an address.
    pub(crate) fn is_pods_address_on(&self, node: &str, ip: IpAddr) -> bool {
        self.holders(ip).any(|pod| pod.node == node)
    }

    /// Returns all Services to which an address and port lead or led.
    pub(crate) fn services_at(&self, ip: IpAddr, port: (u16, Protocol)) -> Vec<CalledService<'_>> {
        self.services.all_at(ip, || self.is_nodes_address(ip) || ip.is_loopback(), port)
    }

    /// Returns the pods to which a port of a node's address leads or led, by UID, each with the port of its container.
    pub(crate) fn pods_at_host_port(
        &self,
        node: &str,
        ip: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> impl Iterator<Item = (&Pod, u16)> + use<'_> {
        // Many clusters have none.
        let has_any = !self.pods_by_host_port.is_empty();
        let uids = has_any.then(|| self.pods_by_host_port.get(&(node.to_owned(), port, protocol))).flatten();
        let pods = uids.into_iter().flatten().filter_map(|uid| self.pods.get(uid)).map(|record| &record.pod);
        let leads_there = move |of: &&HostPort| {
            (of.port, of.protocol) == (port, protocol) && of.ip.is_none_or(|address| address == ip)
        };
        pods.filter_map(move |pod| Some((pod, pod.host_ports.iter().find(leads_there)?.container_port)))
    }

    /// Returns whether a Node object has an address.
    pub(crate) fn is_nodes_address(&self, ip: IpAddr) -> bool {
        self.node_by_ip.contains_key(&ip)
    }

    /// Returns the Service that has or had an address, at any port.
    pub(crate) fn service_with_address(&self, ip: IpAddr) -> Option<&ServiceRef> {
        self.services.with_address(ip)
    }

    /// Returns the first moment after `now` at which the answer of [`Self::owner_between`] for the present, or for a time
    /// that ends with it, may change without a further event.
    ///
    /// Invariant: it is later than `now`.
    pub(crate) fn next_change_of_owner(&self, ip: IpAddr, now: SystemTime) -> Option<SystemTime> {
        self.ownership.next_change(ip, now, self.clock())
    }

    /// Returns whether removed entries are still kept.
    ///
    /// Invariant: false after all of them were dropped.
    #[must_use]
    pub fn has_removed(&self) -> bool {
        !self.removed_pods.is_empty() || self.services.has_removed()
    }

    /// Returns all pods, removed ones included, by each UID that an agent may report of it.
    pub fn pods_by_uid(&self) -> impl Iterator<Item = (&str, &Pod)> {
        self.pods.iter().flat_map(|(uid, record)| {
            let uids = [Some(uid.as_str()), record.node_uid.as_deref()];
            uids.into_iter().flatten().map(move |uid| (uid, &record.pod))
        })
    }

    /// Returns the pod with this UID, or the static pod for which the kubelet uses it, even if it was removed.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        let on_any_node = || self.pod_by_node_uid.get(uid)?.values().next();
        self.pods.get(uid).or_else(|| self.pods.get(on_any_node()?)).map(|record| &record.pod)
    }

    /// Returns the pod of a container on a node, by the UID and the container's ID that the node has for it.
    ///
    /// The ID of a container is unique. The UID of a static pod is its manifest's, so that pods of several nodes can have it,
    /// and their objects have others.
    ///
    /// Invariant: the pod is on no other node. An agent that names one of another node resolves to nothing.
    #[must_use]
    pub fn pod_on(&self, node: &str, uid: &str, container_id: &str) -> Option<&Pod> {
        let by_uid = self.pods.get(uid).map(|record| &record.pod);
        if let Some(pod) = by_uid.filter(|pod| pod.node == node) {
            // Nearly always: the other lookups are for static pods and for pods without a node yet.
            return Some(pod);
        }
        let candidates = [by_uid, self.pod_of_container(container_id), self.static_pod_on(node, uid), self.pod(uid)];
        let mut candidates = candidates.into_iter().flatten();
        let mut on_node = candidates.clone().filter(|pod| pod.node == node);
        on_node.next().or_else(|| candidates.find(|pod| pod.node.is_empty()))
    }

    /// Returns the pod with this UID or container, if it is on another node than this one.
    #[must_use]
    pub fn pod_elsewhere(&self, node: &str, uid: &str, container_id: &str) -> Option<&Pod> {
        let by_uid = self.pods.get(uid).map(|record| &record.pod);
        let is_elsewhere = |pod: &&Pod| !pod.node.is_empty() && pod.node != node;
        by_uid.filter(is_elsewhere).or_else(|| self.pod_of_container(container_id).filter(is_elsewhere))
    }

    fn static_pod_on(&self, node: &str, node_uid: &str) -> Option<&Pod> {
        let uid = self.pod_by_node_uid.get(node_uid)?.get(node)?;
        self.pods.get(uid).map(|record| &record.pod)
    }

    /// Returns the pod that has or had this container, even if it was removed.
    #[must_use]
    pub fn pod_of_container(&self, container_id: &str) -> Option<&Pod> {
        self.pod_by_container.get(container_id).and_then(|uid| self.pod(uid))
    }

    /// Stores estimates of nodes' clocks, which their pods' times are converted with.
    ///
    /// Invariant: [`Self::has_clock`] is true of them then.
    pub fn set_clocks(&mut self, clocks: &BTreeMap<&str, NodeClock>) {
        for ip in self.ownership.addresses_on(|node| clocks.contains_key(node)) {
            self.changes.note(Change::Address(ip));
        }
        self.clocks.extend(clocks.iter().map(|(node, clock)| ((*node).to_owned(), *clock)));
    }

    /// Returns whether the stored estimate of a node's clock is about the same.
    #[must_use]
    pub fn has_clock(&self, node: &str, clock: &NodeClock) -> bool {
        self.clocks.get(node).copied().unwrap_or_default().agrees_with(clock)
    }

    /// Returns whether two parts of a flow need not be kept apart, because the same pod, or no pod, held the address in
    /// both, and a server answered in both or in neither. Always false for recent parts, since pod events may arrive later.
    #[must_use]
    pub fn are_one(&self, ip: IpAddr, one: &Part, next: &Part, now: SystemTime) -> bool {
        const LATE: Duration = Duration::from_secs(30);
        if now.duration_since(next.until).unwrap_or_default() < LATE {
            return false;
        }
        if !self.is_pods_address(ip) && (one.counted.opened == 0) != (next.counted.opened == 0) {
            // Failed attempts may be from before a server listened there.
            return false;
        }
        let both = one.with(next);
        let [whole, one, next] = [&both, one, next].map(|part| self.owner_between(ip, part.since, part.until));
        whole.is_the_same(&one) && whole.is_the_same(&next)
    }

    /// Returns the owner of `ip` at the time `at`, by the rules of [`Self::owner_between`].
    #[must_use]
    pub fn owner_of(&self, ip: IpAddr, at: SystemTime) -> Option<&Pod> {
        self.owner_between(ip, at, at).pod()
    }

    /// Returns the owner of `ip` between `since` and `until`. Never returns a pod with host network, nor a pod if
    /// another pod of a different name can have held the address.
    #[must_use]
    pub fn owner_between(&self, ip: IpAddr, since: SystemTime, until: SystemTime) -> Owner<'_> {
        if !self.ownership.knows(ip) {
            return Owner::NoPod;
        }
        let pod = |uid: &str| self.pods.get(uid).map(|record| &record.pod);
        match self.ownership.owner(ip, since, until, self.clock()) {
            Owned::By(uid) => pod(uid).map_or(Owner::Unknown, Owner::Pod),
            Owned::ByNobody => Owner::Unknown,
            Owned::Contested => {
                let pods = self.possible_owners(ip, since, until);
                let name = |pod: &Pod| (pod.namespace.clone(), pod.name.clone(), pod.workload.clone());
                match pods.split_last() {
                    // The same pod made anew, of a StatefulSet for example: by name it is one.
                    Some((last, others)) if others.iter().all(|other| name(other) == name(last)) => Owner::Pod(last),
                    _ => Owner::Contested,
                }
            }
        }
    }

    /// Returns the pods that can have held the address at any time between `since` and `until`, in the order of their
    /// times.
    ///
    /// Invariant: the result of [`Self::owner_between`] is among them.
    #[must_use]
    pub fn possible_owners(&self, ip: IpAddr, since: SystemTime, until: SystemTime) -> Vec<&Pod> {
        let uids = self.ownership.possible(ip, since, until, self.clock());
        uids.into_iter().filter_map(|uid| self.pods.get(uid)).map(|record| &record.pod).collect()
    }

    /// Returns whether a pod is known to have held this address at any time.
    ///
    /// Invariant: if not, [`Self::owner_between`] always returns [`Owner::NoPod`], otherwise never.
    #[must_use]
    pub fn is_pods_address(&self, ip: IpAddr) -> bool {
        self.ownership.knows(ip)
    }

    /// Returns whether several pods are known to have held this address.
    pub(crate) fn is_reused(&self, ip: IpAddr) -> bool {
        self.ownership.holders(ip).nth(1).is_some()
    }

    /// Returns the time range in which a pod can have held an address; the end is `None` while it is open. `None` if it
    /// never held it.
    ///
    /// Invariant: the beginning is not after the end.
    #[must_use]
    pub fn time_with(&self, uid: &str, ip: IpAddr) -> Option<(SystemTime, Option<SystemTime>)> {
        self.ownership.time_of(uid, ip, self.clock())
    }

    fn clock(&self) -> impl Fn(&str) -> NodeClock {
        |node| self.clocks.get(node).copied().unwrap_or_default()
    }

    /// Returns the node with the address `ip`. A bridge's address counts only if no pod has held it.
    ///
    /// Invariant: an address of a Node object is that node's.
    #[must_use]
    pub fn node_of(&self, ip: IpAddr) -> Option<&Node> {
        if let Some(name) = self.node_by_ip.get(&ip) {
            return self.nodes.get(name);
        }
        if self.ownership.knows(ip) {
            return None;
        }
        self.nodes.get(self.pod_networks.node_of(ip)?)
    }

    /// Returns whether a Node object other than this node's has the address, and nothing else says that it is on this node: its
    /// Node object, its network for pods, or one of its pods. A kubelet writes the addresses of its own Node object, and must
    /// not take those of others' pods by it.
    #[must_use]
    pub fn is_another_nodes(&self, node: &str, ip: IpAddr) -> bool {
        self.is_of_another_node_object(node, ip)
            && self.pod_networks.node_of(ip) != Some(node)
            && !self.holders(ip).any(|pod| pod.node == node)
    }

    /// Returns whether a Node object other than this node's has the address, and this node's has not.
    pub(crate) fn is_of_another_node_object(&self, node: &str, ip: IpAddr) -> bool {
        self.node_by_ip.get(&ip).is_some_and(|of| of != node)
            && !self.nodes.get(node).is_some_and(|of| of.ips.contains(&ip))
    }

    /// Returns all nodes, by name.
    ///
    /// Invariant: each once.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Sets the names of external addresses. Returns whether they changed.
    pub fn name_external_groups(&mut self, groups: ExternalGroups) -> bool {
        let is_news = self.external_groups != groups;
        if is_news {
            self.changes.note(Change::Everything);
        }
        self.external_groups = groups;
        is_news
    }

    /// Returns the names of external addresses. The caller must have checked that an address is external.
    #[must_use]
    pub fn external_groups(&self) -> &ExternalGroups {
        &self.external_groups
    }

    /// Returns the current and recent endpoints of the API servers: the backends of the Service `default/kubernetes`.
    #[must_use]
    pub fn api_servers(&self) -> BTreeSet<(IpAddr, u16)> {
        let (namespace, name) = services::API_SERVER;
        let name = ServiceRef { namespace: namespace.to_owned(), name: name.to_owned() };
        let backends = self.services.backends(&name);
        backends.map(|backend| (backend.ip, backend.port)).collect()
    }

    /// Returns the Service that answered at an address and port at the time `at`: its own addresses, or a node's
    /// address and a node port. Of several candidates, one that existed at `at` comes first, then an earlier one, then
    /// the current or latest one.
    #[must_use]
    pub fn service_at(&self, ip: IpAddr, port: (u16, Protocol), at: SystemTime) -> Option<CalledService<'_>> {
        self.services.at(ip, || self.is_nodes_address(ip) || ip.is_loopback(), port, at)
    }
}
