//! Selects the pods that the checkpoint of each object records, and merges the pods of all objects after a restart.
//!
//! An object records pods of its workload, and pods of peers that have no object.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use topology::{
    directory::{BackendsByPod, RecordedPod},
    edge::{Endpoint, Peer},
    entity::{Pod, Workload},
};

use super::adjacency::Edges;
use crate::cluster::Index;

/// Pods by workload, in one state of the index.
pub(super) struct PodRecords<'a> {
    index: &'a Index,
    backends: BackendsByPod<'a>,
    /// Removed pods by workload, the one removed last first.
    removed: HashMap<&'a Workload, Vec<&'a Pod>>,
    /// Workloads with edges that have no object.
    without_object: HashSet<&'a Workload>,
}

impl<'a> PodRecords<'a> {
    pub(super) fn new(index: &'a Index, without_object: impl IntoIterator<Item = &'a Workload>) -> Self {
        let directory = index.directory();
        let mut removed: HashMap<&Workload, Vec<&Pod>> = HashMap::new();
        for pod in directory.removed_pods() {
            removed.entry(&pod.workload).or_default().push(pod);
        }
        let (backends, without_object) = (directory.backends_by_pod(), without_object.into_iter().collect());
        Self { index, backends, removed, without_object }
    }

    /// Returns the pods that a workload's object records: present pods, and removed pods with a part in its edges. Removed
    /// pods come first, since no other source has their names. Of peers without an object, pods with a part count.
    pub(super) fn of(&self, workload: &Workload, edges: &Edges<'_>) -> Vec<RecordedPod<'a>> {
        let mut names: BTreeMap<&Workload, HashSet<&str>> = BTreeMap::new();
        let has_removed = self.removed.contains_key(workload);
        for (edges, is_egress) in [(&edges.egress, true), (&edges.ingress, false)] {
            for edge in edges {
                let clients = (&edge.key.client, &edge.clients);
                let servers = (&edge.key.server, &edge.servers);
                let ((_, own), (peer, others)) = if is_egress { (clients, servers) } else { (servers, clients) };
                if has_removed {
                    note(&mut names, workload, own);
                }
                if let Peer::Workload(peer) = peer
                    && peer != workload
                    && self.without_object.contains(peer)
                {
                    note(&mut names, peer, others);
                }
            }
        }
        let removed = names.iter().flat_map(|(workload, names)| {
            let removed = self.removed.get(workload).into_iter().flatten();
            removed.copied().filter(|pod| names.contains(pod.name.as_str()))
        });
        let own = self.present(workload).into_iter();
        let peers = names
            .iter()
            .filter(|(peer, _)| **peer != workload)
            .flat_map(|(peer, names)| self.present(peer).into_iter().filter(|pod| names.contains(pod.name.as_str())));
        let pods = removed.chain(own).chain(peers);
        pods.filter_map(|pod| self.index.directory().recorded(&pod.uid, &self.backends)).collect()
    }

    /// Returns the present pods of a workload, the newest first.
    fn present(&self, workload: &Workload) -> Vec<&'a Pod> {
        let pods = self.index.pods_of(workload).filter_map(|uid| self.index.directory().pod(uid));
        let mut pods: Vec<&Pod> = pods.collect();
        pods.sort_unstable_by_key(|pod| (Reverse(pod.life.created), &pod.uid));
        pods
    }
}

fn note<'e>(names: &mut BTreeMap<&'e Workload, HashSet<&'e str>>, workload: &'e Workload, ends: &'e [Endpoint]) {
    let ends = ends.iter().map(|end| end.pod.as_str()).filter(|pod| !pod.is_empty());
    names.entry(workload).or_default().extend(ends);
}

/// Merges the pods of all objects, each with the workload of its object. Returns each pod once, the newest first, and the
/// number of pods that two objects claim: their owner is not known, and they are left out.
pub(super) fn merge(
    recorded: impl IntoIterator<Item = (Workload, RecordedPod<'static>)>,
) -> (Vec<RecordedPod<'static>>, usize) {
    let mut claims: BTreeMap<String, Vec<(bool, RecordedPod<'static>)>> = BTreeMap::new();
    for (own, recorded) in recorded {
        let is_own = recorded.pod.workload == own;
        claims.entry(recorded.pod.uid.clone()).or_default().push((is_own, recorded));
    }
    let (mut merged, mut contested) = (Vec::new(), 0);
    for mut claims in claims.into_values() {
        // The object of a pod's workload decides. The claim that reports the end of the pod is the newer one.
        let gone = |recorded: &RecordedPod<'_>| recorded.observed.and_then(|times| times.gone);
        claims.sort_by_key(|(is_own, recorded)| (!is_own, Reverse(gone(recorded))));
        let is_owned = claims.first().is_some_and(|(is_own, _)| *is_own);
        claims.retain(|(is_own, _)| *is_own == is_owned);
        let mut claims = claims.into_iter().map(|(_, recorded)| recorded);
        let Some(first) = claims.next() else { continue };
        let name = |recorded: &RecordedPod<'_>| (recorded.pod.workload.clone(), recorded.pod.name.clone());
        if claims.all(|other| name(&other) == name(&first)) {
            merged.push(first);
        } else {
            contested += 1;
        }
    }
    merged.sort_by(|one, other| (other.pod.life.created, &one.pod.uid).cmp(&(one.pod.life.created, &other.pod.uid)));
    (merged, contested)
}

#[cfg(test)]
pub(super) mod tests;
