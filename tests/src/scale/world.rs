//! Simulated cluster: nodes, workloads, pods, and the calls between workloads. Pure: the same size gives the same world.

use std::{collections::HashSet, net::Ipv4Addr};

use crate::{Error, Result};

/// Number of pods on a node.
pub const PODS_PER_NODE: usize = 20;
/// Number of pods of a workload.
pub const REPLICAS: usize = 5;
/// Number of workloads that call one popular workload.
const CALLERS_OF_POPULAR: usize = 40;
/// Number of Services of one workload that each workload calls; the first belongs to a popular workload.
const SERVICE_CALLS: usize = 7;
/// Number of workloads in a namespace. Even, so that both workloads of a pair share one.
const WORKLOADS_PER_NAMESPACE: usize = 50;
/// Port at which all pods listen.
pub const SERVER_PORT: u16 = 8080;
/// Port of all Services.
pub const SERVICE_PORT: u16 = 80;
/// Number of addresses of a node's pod network that pods use, one after the other.
const POD_ADDRESSES: u32 = 250;
/// Bounds of the number of nodes: fewer have too few workloads to call, more exceed the networks.
const NODES: std::ops::RangeInclusive<usize> = 10..=5000;

/// Way from a client to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// To the address of a pod.
    Direct,
    /// Through the Service of the server's workload.
    Service,
    /// Through the Service of a pair: workloads 2 n and 2 n + 1.
    Pair,
}

/// Edge of the simulated cluster, by the numbers of its workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// Workload that calls.
    pub client: usize,
    /// Workload that is called.
    pub server: usize,
    /// Way to it.
    pub route: Route,
}

/// Pod of a workload. A replacement has the same number and node, and another name and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Number of its workload.
    pub workload: usize,
    /// Number of its node.
    pub node: usize,
    /// Number of pods that were on the node before.
    pub serial: u32,
    /// Object name.
    pub name: String,
    /// Address.
    pub ip: Ipv4Addr,
    /// `metadata.uid`, which the API server chooses. Empty before.
    pub uid: String,
}

impl Pod {
    /// Identifier of its only container, without the runtime's prefix.
    #[must_use]
    pub fn container_id(&self) -> String {
        format!("{:032x}{:032x}", u32::from(self.ip), self.serial)
    }
}

/// The simulated cluster.
#[derive(Clone, Debug)]
pub struct World {
    /// Number of nodes.
    pub nodes: usize,
    /// Pods: those of workload `w` are `w * REPLICAS..`.
    pub pods: Vec<Pod>,
    /// Calls of the start.
    pub calls: Vec<Call>,
    /// Number of pods that each node has had.
    serials: Vec<u32>,
}

impl World {
    /// Makes a cluster of so many nodes.
    ///
    /// # Errors
    /// Returns an error if the number is out of bounds.
    pub fn new(nodes: usize) -> Result<Self> {
        if !NODES.contains(&nodes) {
            return Err(Error::Unexpected(format!("{nodes} nodes; use {} to {}", NODES.start(), NODES.end())));
        }
        let mut world = Self { nodes, pods: Vec::new(), calls: Vec::new(), serials: vec![0; nodes] };
        for workload in 0..world.workloads() {
            for replica in 0..REPLICAS {
                let node = (workload + replica * nodes.div_ceil(REPLICAS)) % nodes;
                let pod = world.new_pod(workload, node);
                world.pods.push(pod);
            }
        }
        world.calls = (0..world.workloads()).flat_map(|client| world.calls_of(client)).collect();
        Ok(world)
    }

    /// Number of workloads.
    #[must_use]
    pub fn workloads(&self) -> usize {
        self.nodes * PODS_PER_NODE / REPLICAS
    }

    /// Returns a pod that takes the place of a pod, and leaves the place to the caller to fill.
    pub fn replacement(&mut self, pod: usize) -> Pod {
        let (workload, node) = (self.pods[pod].workload, self.pods[pod].node);
        self.new_pod(workload, node)
    }

    fn new_pod(&mut self, workload: usize, node: usize) -> Pod {
        let serial = self.serials[node];
        self.serials[node] += 1;
        let name = format!("{}-{node}-{serial}", replica_set_name(workload));
        let ip = pod_network(node) + 2 + serial % POD_ADDRESSES;
        Pod { workload, node, serial, name, ip: ip.into(), uid: String::new() }
    }

    /// Edges of a workload as a client: one to a popular workload, others through Services of one workload, two through the
    /// Service of a pair, and a direct one.
    fn calls_of(&self, client: usize) -> Vec<Call> {
        let workloads = self.workloads();
        let popular = workloads.div_ceil(CALLERS_OF_POPULAR);
        let spread = |number: usize| client + 1 + number * workloads / (SERVICE_CALLS + 2);
        let of_pair = spread(SERVICE_CALLS) % workloads / 2 * 2;
        let pair = if of_pair == client / 2 * 2 { (of_pair + 2) % workloads } else { of_pair };
        // Each server is called in one way only: its own counts cannot tell two ways of one client apart.
        let mut servers = HashSet::from([client, pair, pair + 1]);
        let mut free = |wish: usize| {
            let server = (0..workloads).map(|offset| (wish + offset) % workloads).find(|it| servers.insert(*it));
            server.unwrap_or(client)
        };
        let mut calls = vec![Call { client, server: free(client % popular), route: Route::Service }];
        for number in 1..SERVICE_CALLS {
            calls.push(Call { client, server: free(spread(number)), route: Route::Service });
        }
        calls.extend([pair, pair + 1].map(|server| Call { client, server, route: Route::Pair }));
        calls.push(Call { client, server: free(spread(SERVICE_CALLS + 1)), route: Route::Direct });
        calls
    }

    /// Pairs of pods that converse for a call: client and server by number, with so many backends for each client, and two
    /// or more without a Service.
    #[must_use]
    pub fn conversations(&self, call: &Call, backends: usize) -> Vec<(usize, usize)> {
        let side = call.server % 2;
        // Clients that dial pods dial several.
        let reached = backends.clamp(if call.route == Route::Direct { 2 } else { 1 }, REPLICAS);
        let mut pairs = Vec::new();
        for replica in 0..REPLICAS {
            // Of a pair, each workload serves every other client.
            if call.route == Route::Pair && replica % 2 != side {
                continue;
            }
            for backend in 0..reached {
                let server = (replica + call.client + backend) % REPLICAS;
                pairs.push((call.client * REPLICAS + replica, call.server * REPLICAS + server));
            }
        }
        pairs
    }

    /// Returns the address that a client dials on a route to a pod.
    #[must_use]
    pub fn dialled(&self, route: Route, server: &Pod) -> (Ipv4Addr, u16) {
        match route {
            Route::Direct => (server.ip, SERVER_PORT),
            Route::Service => (service_ip(server.workload), SERVICE_PORT),
            Route::Pair => (pair_ip(server.workload / 2), SERVICE_PORT),
        }
    }
}

/// Name of a node.
#[must_use]
pub fn node_name(node: usize) -> String {
    format!("node-{node:05}")
}

/// Address of a node.
#[must_use]
pub fn node_ip(node: usize) -> Ipv4Addr {
    (u32::from(Ipv4Addr::new(172, 20, 0, 0)) + 1 + number(node)).into()
}

/// First address of a node's pod network, which has 256.
fn pod_network(node: usize) -> u32 {
    u32::from(Ipv4Addr::new(10, 128, 0, 0)) + 256 * number(node)
}

/// Pod network of a node in CIDR notation.
#[must_use]
pub fn pod_cidr(node: usize) -> String {
    format!("{}/24", Ipv4Addr::from(pod_network(node)))
}

/// Namespace of a workload.
#[must_use]
pub fn namespace(workload: usize) -> String {
    format!("shop-{}", workload / WORKLOADS_PER_NAMESPACE)
}

/// Name of a workload's Deployment and of its Service.
#[must_use]
pub fn workload_name(workload: usize) -> String {
    format!("app-{workload:05}")
}

/// Name of a workload's `ReplicaSet`.
#[must_use]
pub fn replica_set_name(workload: usize) -> String {
    format!("app-{workload:05}-5f6d7c8b9")
}

/// Name of the Service of a pair.
#[must_use]
pub fn pair_name(pair: usize) -> String {
    format!("pair-{pair:05}")
}

/// Address of a workload's Service.
#[must_use]
pub fn service_ip(workload: usize) -> Ipv4Addr {
    (u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number(workload)).into()
}

/// Address of the Service of a pair.
#[must_use]
pub fn pair_ip(pair: usize) -> Ipv4Addr {
    (u32::from(Ipv4Addr::new(10, 96, 128, 0)) + number(pair)).into()
}

/// The number of nodes is bounded, so that all numbers fit.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn world_has_the_same_load_for_each_node() {
        for nodes in [10, 20, 100, 300] {
            let world = World::new(nodes).unwrap();
            let (workloads, per_node) = (world.workloads(), PODS_PER_NODE);
            assert_eq!((world.pods.len(), workloads), (nodes * per_node, nodes * 4));
            let mut on_node = HashMap::<usize, usize>::new();
            world.pods.iter().for_each(|pod| *on_node.entry(pod.node).or_default() += 1);
            assert!(on_node.values().all(|count| *count == per_node), "{nodes} nodes");
            let addresses: HashSet<_> = world.pods.iter().map(|pod| pod.ip).collect();
            assert_eq!(addresses.len(), world.pods.len());
        }
    }

    #[test]
    fn world_has_forty_edges_and_about_390_flows_for_each_node() {
        let world = World::new(100).unwrap();
        let calls: HashSet<Call> = world.calls.iter().copied().collect();
        assert_eq!((calls.len(), world.calls.len()), (4_000, 4_000));
        assert!(calls.iter().all(|call| call.client != call.server));
        let (mut clients, mut servers) = (HashSet::new(), HashSet::new());
        for call in &calls {
            for (client, server) in world.conversations(call, 1) {
                let (client, server) = (&world.pods[client], &world.pods[server]);
                clients.insert((client.ip, world.dialled(call.route, server)));
                servers.insert((client.ip, server.ip));
            }
        }
        let flows = clients.len() + servers.len();
        assert!((39_000..=40_000).contains(&flows), "{flows}");
    }

    #[test]
    fn few_workloads_are_called_by_many() {
        let world = World::new(100).unwrap();
        let mut callers = HashMap::<usize, usize>::new();
        world.calls.iter().for_each(|call| *callers.entry(call.server).or_default() += 1);
        assert!(callers[&0] >= CALLERS_OF_POPULAR && callers[&0] < 100, "{}", callers[&0]);
        assert!(callers[&200] < 20, "{}", callers[&200]);
    }

    #[test]
    fn pod_in_the_place_of_another_has_another_name_and_address() {
        let mut world = World::new(10).unwrap();
        let before = world.pods[7].clone();
        let after = world.replacement(7);
        assert_eq!((before.node, before.workload), (after.node, after.workload));
        assert!(before.name != after.name && before.ip != after.ip && before.container_id() != after.container_id());
    }

    #[test]
    fn size_is_bounded() {
        assert!(World::new(9).is_err() && World::new(5001).is_err());
        assert_eq!(pair_ip(9_999), Ipv4Addr::new(10, 96, 167, 15));
        assert_eq!(service_ip(19_999), Ipv4Addr::new(10, 96, 79, 31));
    }
}
