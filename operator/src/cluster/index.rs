//! Cluster index: the state of the cluster's objects, updated by each event of a watch.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use topology::{
    clock::NodeClock,
    directory::{Directory, RecordedPod},
    entity::{Node, Pod, ServicePortRef, ServiceRef, Workload},
    external::ExternalGroups,
    flow::Protocol,
};

use super::{
    api_versions::ApiVersions,
    listed::Listed,
    namespaces::{NamespaceFacts, Namespaces},
    owners::{self, OwnerFacts, Owners, Reference},
    pods::PodFacts,
    profile::{PodProfile, Profile, Profiles},
    referenced::{OwnerIdentity, Referenced},
    services::{self, ServiceFacts, SliceFacts},
    steps::Step,
    workload_facts::{self, WorkloadFacts},
};

/// A change of one of the kinds.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of a pod.
    Pod(Box<Step<PodFacts>>),
    /// Of a Service.
    Service(Step<ServiceFacts>),
    /// Of an EndpointSlice.
    Slice(Step<SliceFacts>),
    /// Of a node.
    Node(Step<Node>),
    /// Of a Namespace.
    Namespace(Step<NamespaceFacts>),
    /// Of an owner of this kind and API version.
    Owner(&'static str, &'static str, Step<OwnerFacts>),
}

/// Change, and the kind of which all objects are listed with it.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) change: Change,
    pub(super) listed: Option<&'static str>,
}

/// All names, and the workloads they lead to.
#[derive(Clone, Debug, Default)]
pub struct Index {
    directory: Directory,
    owners: Owners,
    /// Controller of each pod that is there, by the pod's UID.
    controllers: HashMap<String, Reference>,
    /// Pods (by UID) by each owner of their chain: they change when the owner does.
    pods_below: HashMap<Workload, HashSet<String>>,
    referenced: Referenced,
    /// Profiles of existing pods, by UID.
    profiles: HashMap<String, PodProfile>,
    /// Last profiles of workloads without pods.
    last_profiles: HashMap<Workload, Arc<Profile>>,
    shared_profiles: Profiles,
    api_versions: ApiVersions,
    namespaces: Namespaces,
    services: HashMap<ServiceRef, ServiceFacts>,
    slices: HashMap<ServiceRef, BTreeMap<String, SliceFacts>>,
    slice_services: HashMap<ServiceRef, ServiceRef>,
    listed_pods: Listed<String>,
    listed_services: Listed<ServiceRef>,
    listed_slices: Listed<ServiceRef>,
    listed_nodes: Listed<String>,
    listed_owners: HashMap<&'static str, Listed<Workload>>,
    /// Kinds without a first list; `None` before the watches began.
    unlisted: Option<HashSet<&'static str>>,
    gone_nodes: Vec<String>,
    has_restored_pods: bool,
    revision: u64,
}

impl Index {
    /// Returns a number that changes with everything that is said of workloads, Services and pods.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the fields of an ownerReference to a workload; `None` if the workload does not exist (any more).
    #[must_use]
    pub fn owner_identity(&self, workload: &Workload) -> Option<OwnerIdentity> {
        if let Some(facts) = self.owners.existing(workload) {
            return Some(OwnerIdentity { api_version: facts.api_version.clone(), uid: facts.uid.clone() });
        }
        self.referenced.identity(workload).cloned()
    }

    /// Returns the facts of a workload by its pods, the newest first. If no pod exists, those of the last one count.
    #[must_use]
    pub fn facts_of(&self, workload: &Workload) -> WorkloadFacts {
        let pods = self.pods_of(workload).filter_map(|uid| Some((self.profiles.get(uid)?, uid)));
        let mut pods: Vec<(&PodProfile, &String)> = pods.collect();
        pods.sort_unstable_by(|(one, uid), (other, other_uid)| (other.created, other_uid).cmp(&(one.created, uid)));
        let mut profiles: Vec<&Arc<Profile>> = pods.into_iter().map(|(pod, _)| &pod.profile).collect();
        profiles.dedup_by(|one, other| Arc::ptr_eq(one, other));
        if profiles.is_empty() {
            profiles.extend(self.last_profiles.get(workload));
        }
        let selector = self.owners.existing(workload).and_then(|owner| owner.selector.as_deref());
        workload_facts::of(self.api_version_of(workload), selector, profiles.into_iter().map(Arc::as_ref))
    }

    /// Returns the API version of a workload's kind.
    #[must_use]
    pub fn api_version_of(&self, workload: &Workload) -> String {
        self.api_versions.of(workload)
    }

    /// Returns the name of a Service's port; `None` where there is none.
    #[must_use]
    pub fn port_name(&self, of: &ServicePortRef, protocol: Protocol) -> Option<&str> {
        self.services.get(&of.service)?.port_name(of.port, protocol)
    }

    /// Returns the labels of a Namespace; `None` if it is not known.
    #[must_use]
    pub fn labels_of_namespace(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.labels_of(name)
    }

    /// Notes by which API version an earlier operator has referred to a kind.
    pub(super) fn note_api_version(&mut self, api_version: &str, kind: &str) {
        self.api_versions.note(api_version, kind);
        self.revision += 1;
    }

    /// Returns the UIDs of a workload's present pods.
    pub fn pods_of(&self, workload: &Workload) -> impl Iterator<Item = &String> {
        let controlled = self.pods_below.get(workload).into_iter().flatten();
        self.referenced.pods(workload).chain(controlled)
    }

    /// The nodes on which a workload's pods are.
    #[must_use]
    pub fn nodes_of(&self, workload: &Workload) -> BTreeSet<&str> {
        let pods = self.pods_of(workload).filter_map(|uid| self.directory.pod(uid));
        pods.filter(|pod| !pod.ended && !pod.node.is_empty()).map(|pod| pod.node.as_str()).collect()
    }

    /// Returns whether a name changed.
    pub(super) fn name_external_groups(&mut self, groups: ExternalGroups) -> bool {
        let is_news = self.directory.name_external_groups(groups);
        self.revision += u64::from(is_news);
        is_news
    }

    /// Is complete when each of these kinds has been listed.
    pub(super) fn await_lists(&mut self, kinds: impl IntoIterator<Item = &'static str>) {
        self.unlisted = Some(kinds.into_iter().collect());
    }

    /// Notes that all objects of a kind have been listed.
    pub(super) fn note_list(&mut self, kind: &'static str) {
        if let Some(unlisted) = &mut self.unlisted {
            unlisted.remove(kind);
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.unlisted.as_ref().is_some_and(HashSet::is_empty)
    }

    pub(super) fn take_gone_nodes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone_nodes)
    }

    pub(super) fn set_clocks(&mut self, clocks: &BTreeMap<&str, NodeClock>) {
        self.directory.set_clocks(clocks);
    }

    pub(super) fn forget_removed(&mut self, now: SystemTime, retention: Duration) {
        let is_expired = |removed: SystemTime| now.duration_since(removed).unwrap_or_default() >= retention;
        let has_forgotten = self.directory.forget_removed(now, retention) | self.owners.forget_removed(is_expired);
        let (owners, referenced, profiles) = (&self.owners, &self.referenced, self.last_profiles.len());
        self.last_profiles
            .retain(|workload, _| owners.existing(workload).is_some() || referenced.identity(workload).is_some());
        self.shared_profiles.drop_unused();
        self.revision += u64::from(has_forgotten || self.last_profiles.len() != profiles);
    }

    /// Adds pods from checkpoints as removed ones. Only the first call has an effect.
    pub fn restore_pods(&mut self, pods: Vec<RecordedPod<'static>>, now: SystemTime) {
        if std::mem::replace(&mut self.has_restored_pods, true) {
            return;
        }
        for recorded in pods {
            self.directory.restore_pod(recorded, now);
        }
        self.revision += 1;
    }

    /// Returns whether a name changed.
    pub(super) fn apply(&mut self, change: Change, now: SystemTime) -> bool {
        let is_news = match change {
            Change::Pod(step) => self.apply_pod(*step, now),
            Change::Service(step) => self.apply_service(step, now),
            Change::Slice(step) => self.apply_slice(step, now),
            Change::Node(step) => self.apply_node(step),
            Change::Namespace(step) => self.apply_namespace(step),
            Change::Owner(kind, api_version, step) => self.apply_owner(kind, api_version, step, now),
        };
        self.revision += u64::from(is_news);
        is_news
    }

    fn apply_pod(&mut self, step: Step<PodFacts>, now: SystemTime) -> bool {
        match step {
            Step::Begin => {
                self.listed_pods.begin();
                false
            }
            Step::Upsert(facts) => {
                self.listed_pods.upsert(facts.pod.uid.clone());
                self.upsert_pod(facts, now)
            }
            Step::Remove(facts) => {
                let uid = facts.pod.uid.clone();
                self.listed_pods.remove(&uid);
                // Its last state has the time at which it finished.
                self.directory.note_life(&uid, facts.pod.life, facts.pod.ended, now);
                self.remove_pod(&uid, now)
            }
            Step::Complete => {
                let gone = self.listed_pods.complete();
                gone.iter().fold(true, |_, uid| self.remove_pod(uid, now))
            }
        }
    }

    fn upsert_pod(&mut self, facts: PodFacts, now: SystemTime) -> bool {
        let PodFacts { pod, controller, node_uid, mut profile } = facts;
        let uid = pod.uid.clone();
        profile.profile = self.shared_profiles.shared(&profile.profile);
        let has_other_profile = self.profiles.get(&uid) != Some(&profile);
        self.profiles.insert(uid.clone(), profile);
        let is_news = self.place_pod(pod, controller, now) || has_other_profile;
        node_uid.is_some_and(|node_uid| self.directory.name_static_pod(&uid, &node_uid)) || is_news
    }

    /// Returns whether a name changed.
    fn place_pod(&mut self, mut pod: Pod, controller: Option<Reference>, now: SystemTime) -> bool {
        let below = self.resolve(&pod.namespace, &pod.uid, controller.as_ref(), &mut pod.workload);
        for owner in below {
            self.pods_below.entry(owner).or_default().insert(pod.uid.clone());
        }
        if let Some(controller) = controller {
            self.controllers.insert(pod.uid.clone(), controller);
        }
        self.directory.upsert_pod(pod, now)
    }

    /// Finds the pod's workload, and returns the owners on the way up.
    fn resolve(
        &mut self,
        namespace: &str,
        uid: &str,
        controller: Option<&Reference>,
        workload: &mut Workload,
    ) -> Vec<Workload> {
        let Some(controller) = controller else {
            self.api_versions.note("v1", &workload.kind);
            let identity = OwnerIdentity { api_version: "v1".to_owned(), uid: uid.to_owned() };
            self.referenced.note(workload.clone(), identity, uid);
            return Vec::new();
        };
        let (topmost, reference) = self.owners.topmost(namespace, controller);
        self.api_versions.note(&reference.api_version, &reference.kind);
        if !self.owners.watches(&reference) {
            let identity = OwnerIdentity { api_version: reference.api_version, uid: reference.uid };
            self.referenced.note(topmost.clone(), identity, uid);
        }
        let below = vec![owners::workload(namespace, controller), topmost.clone()];
        *workload = topmost;
        below
    }

    fn remove_pod(&mut self, uid: &str, now: SystemTime) -> bool {
        if let Some((last, pod)) = self.profiles.remove(uid).zip(self.directory.pod(uid)) {
            let workload = pod.workload.clone();
            if !self.pods_of(&workload).any(|other| self.profiles.contains_key(other)) {
                self.last_profiles.insert(workload, last.profile);
            }
        }
        let controller = self.controllers.remove(uid);
        if let Some(pod) = self.directory.pod(uid) {
            let direct = controller.map(|controller| owners::workload(&pod.namespace, &controller));
            for owner in direct.into_iter().chain([pod.workload.clone()]) {
                if let Some(pods) = self.pods_below.get_mut(&owner) {
                    pods.remove(uid);
                    if pods.is_empty() {
                        self.pods_below.remove(&owner);
                    }
                }
                self.referenced.forget(&owner, uid);
            }
        }
        self.directory.remove_pod(uid, now)
    }

    fn apply_owner(
        &mut self,
        kind: &'static str,
        api_version: &'static str,
        step: Step<OwnerFacts>,
        now: SystemTime,
    ) -> bool {
        let named = |facts: &OwnerFacts| facts.workload(kind);
        let listed = self.listed_owners.entry(kind).or_default();
        match step {
            Step::Begin => {
                self.owners.watch(kind, api_version);
                listed.begin();
                false
            }
            Step::Upsert(facts) => {
                let workload = named(&facts);
                listed.upsert(workload.clone());
                let news = self.owners.upsert(kind, facts);
                if news {
                    self.resolve_below(&workload, now);
                }
                news
            }
            Step::Remove(facts) => {
                let workload = named(&facts);
                listed.remove(&workload);
                self.owners.remove(&workload, now)
            }
            Step::Complete => {
                let gone = listed.complete();
                for workload in gone {
                    self.owners.remove(&workload, now);
                }
                true
            }
        }
    }

    /// An owner has come or has another owner: the pods below may belong to another workload.
    fn resolve_below(&mut self, owner: &Workload, now: SystemTime) {
        let uids: Vec<String> = self.pods_below.get(owner).into_iter().flatten().cloned().collect();
        for uid in uids {
            let (Some(pod), Some(controller)) = (self.directory.pod(&uid), self.controllers.get(&uid)) else {
                continue;
            };
            let (pod, controller) = (pod.clone(), controller.clone());
            self.place_pod(pod, Some(controller), now);
        }
    }

    fn apply_service(&mut self, step: Step<ServiceFacts>, now: SystemTime) -> bool {
        match step {
            Step::Begin => {
                self.listed_services.begin();
                false
            }
            Step::Upsert(facts) => {
                let name = facts.name.clone();
                self.listed_services.upsert(name.clone());
                self.services.insert(name.clone(), facts);
                self.join_service(&name, now)
            }
            Step::Remove(facts) => {
                self.listed_services.remove(&facts.name);
                self.remove_service(&facts.name, now)
            }
            Step::Complete => {
                let gone = self.listed_services.complete();
                gone.iter().fold(true, |_, name| self.remove_service(name, now))
            }
        }
    }

    fn remove_service(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        self.services.remove(name);
        self.directory.remove_service(name, now)
    }

    fn join_service(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        let Some(facts) = self.services.get(name) else { return false };
        let slices = self.slices.get(name).into_iter().flat_map(BTreeMap::values);
        let service = services::join(facts, &slices);
        self.directory.upsert_service(service, now)
    }

    fn apply_slice(&mut self, step: Step<SliceFacts>, now: SystemTime) -> bool {
        match step {
            Step::Begin => {
                self.listed_slices.begin();
                false
            }
            Step::Upsert(facts) => {
                let (name, service) = (facts.name.clone(), facts.service.clone());
                self.listed_slices.upsert(name.clone());
                let moved =
                    self.slice_services.insert(name.clone(), service.clone()).filter(|former| *former != service);
                let left = moved.is_some_and(|former| self.take_slice(&name, &former, now));
                self.slices.entry(service.clone()).or_default().insert(name.name, facts);
                self.join_service(&service, now) || left
            }
            Step::Remove(facts) => {
                self.listed_slices.remove(&facts.name);
                self.remove_slice(&facts.name, now)
            }
            Step::Complete => {
                let gone = self.listed_slices.complete();
                gone.iter().fold(true, |_, name| self.remove_slice(name, now))
            }
        }
    }

    fn remove_slice(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        let Some(service) = self.slice_services.remove(name) else { return false };
        self.take_slice(name, &service, now)
    }

    fn take_slice(&mut self, name: &ServiceRef, service: &ServiceRef, now: SystemTime) -> bool {
        if let Some(slices) = self.slices.get_mut(service) {
            slices.remove(&name.name);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        self.join_service(service, now)
    }

    fn apply_node(&mut self, step: Step<Node>) -> bool {
        match step {
            Step::Begin => {
                self.listed_nodes.begin();
                false
            }
            Step::Upsert(node) => {
                self.listed_nodes.upsert(node.name.clone());
                self.directory.upsert_node(node)
            }
            Step::Remove(node) => {
                self.listed_nodes.remove(&node.name);
                self.remove_node(node.name)
            }
            Step::Complete => {
                let gone = self.listed_nodes.complete();
                gone.into_iter().fold(true, |_, name| self.remove_node(name))
            }
        }
    }

    fn apply_namespace(&mut self, step: Step<NamespaceFacts>) -> bool {
        self.namespaces.apply(step)
    }

    fn remove_node(&mut self, name: String) -> bool {
        let was_there = self.directory.remove_node(&name);
        self.gone_nodes.push(name);
        was_there
    }
}

#[cfg(test)]
mod tests;
