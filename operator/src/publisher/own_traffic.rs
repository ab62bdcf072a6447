//! ScopeProbe's own traffic, which the map leaves out unless `spec.topology.includeSelf` is true.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use topology::{
    edge::{Edge, EdgeKey, Peer},
    entity::Workload,
};

use crate::cluster::Index;

/// Workloads of this installation. They are identified by what only the owner of its namespace can choose.
#[derive(Clone, Debug, Default)]
pub struct OwnWorkloads {
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's Deployment.
    pub deployment: Option<String>,
    /// ServiceAccount of the agents' pods.
    pub agent_account: String,
    /// Ports that kubelets probe, of operator and agents.
    pub probed_ports: Vec<u16>,
    /// DaemonSets of agents that were recognized: their edges stay for a while after them.
    pub recognized: Arc<Mutex<HashSet<Workload>>>,
}

/// Traffic that the map leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Number of edges.
    pub edges: u64,
    /// Connections of these edges that were established.
    pub connections: u64,
}

impl OwnWorkloads {
    /// Removes ScopeProbe's own edges.
    pub(super) fn leave_out(&self, edges: &mut Vec<Arc<Edge>>, index: &Index) -> LeftOut {
        let mut known: HashMap<Workload, bool> = HashMap::new();
        let mut is_own = |workload: &Workload| {
            // Most workloads are of other namespaces.
            workload.namespace == self.namespace
                && *known.entry(workload.clone()).or_insert_with(|| self.contain(workload, index))
        };
        let mut left_out = LeftOut::default();
        edges.retain(|edge| {
            let is_own_traffic = self.has_own_traffic(&edge.key, &mut is_own);
            if is_own_traffic {
                left_out.edges += 1;
                left_out.connections = left_out.connections.saturating_add(edge.counters.opened);
            }
            !is_own_traffic
        });
        left_out
    }

    fn contain(&self, workload: &Workload, index: &Index) -> bool {
        if workload.namespace != self.namespace || workload.group != "apps" {
            return false;
        }
        match workload.kind.as_str() {
            "Deployment" => Some(&workload.name) == self.deployment.as_ref(),
            "DaemonSet" => {
                let mut recognized = self.recognized.lock().unwrap_or_else(PoisonError::into_inner);
                let is_own = index.facts_of(workload).service_accounts.iter().eq([&self.agent_account]);
                if is_own && !recognized.contains(workload) {
                    recognized.insert(workload.clone());
                }
                is_own || recognized.contains(workload)
            }
            _ => false,
        }
    }

    /// Returns whether this is a call of an own workload, or of a kubelet that probes one. What others call is shown: a pod
    /// has no business at the collector's port.
    fn has_own_traffic(&self, key: &EdgeKey, mut is_own: impl FnMut(&Workload) -> bool) -> bool {
        let mut is_own_peer = |peer: &Peer| matches!(peer, Peer::Workload(workload) if is_own(workload));
        let is_node = matches!(key.client, Peer::HostProcess { .. } | Peer::Node { .. });
        let is_probe = is_node && key.port.is_some_and(|port| self.probed_ports.contains(&port));
        is_own_peer(&key.client) || is_probe && is_own_peer(&key.server)
    }
}

#[cfg(test)]
mod tests {
    use topology::flow::Protocol;

    use super::*;

    fn workload(namespace: &str, name: &str) -> Peer {
        let [namespace, kind, name, group] = [namespace, "Deployment", name, "apps"].map(str::to_owned);
        Peer::Workload(Workload { namespace, kind, name, group })
    }

    #[test]
    fn own_calls_and_probes_are_left_out_and_calls_of_others_are_not() {
        let own = OwnWorkloads {
            namespace: "system".to_owned(),
            deployment: Some("operator".to_owned()),
            agent_account: "agent".to_owned(),
            probed_ports: vec![8080, 9464],
            recognized: Arc::default(),
        };
        let index = Index::default();
        let operator = || workload("system", "operator");
        let kubelet = || Peer::HostProcess { node: "n".to_owned(), name: "kubelet.service".to_owned() };
        for (client, server, port, is_left_out) in [
            (operator(), Peer::ApiServer, 6443, true),
            (operator(), workload("kube-system", "coredns"), 53, true),
            (kubelet(), operator(), 8080, true),
            (Peer::Node { node: "n".to_owned() }, operator(), 8080, true),
            (kubelet(), operator(), 9463, false),
            (workload("monitoring", "prometheus"), operator(), 8080, false),
            (workload("shop", "operator"), operator(), 9463, false),
            (workload("system", "theirs"), operator(), 9463, false),
            (workload("shop", "operator"), Peer::ApiServer, 6443, false),
            (kubelet(), workload("system", "theirs"), 8080, false),
            (Peer::External { ip: [192, 0, 2, 1].into() }, operator(), 8080, false),
        ] {
            let key = EdgeKey { client, server, service: None, port: Some(port), protocol: Protocol::Tcp };
            assert_eq!(own.has_own_traffic(&key, |it| own.contain(it, &index)), is_left_out, "{key:?}");
        }
    }
}
