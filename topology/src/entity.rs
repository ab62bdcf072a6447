//! Entities at the ends of connections: workloads with pods and containers, Services, nodes, external peers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::flow::Protocol;

/// Object that a user deployed: the topmost controller of a pod (Pod → ReplicaSet → Deployment, Pod → Job → CronJob),
/// or the pod itself if it has no controller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Namespace of the workload and of its pods.
    pub namespace: String,
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `CronJob`, `Job`, `Pod`, or the kind of a custom owner.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// API group of `kind`; empty for the core group.
    pub group: String,
}

/// A Service, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortRef {
    /// The Service.
    pub service: ServiceRef,
    /// `spec.ports[].port`.
    pub port: u16,
}

/// Properties of a pod, from its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: String,
    /// `spec.hostNetwork`: the pod's addresses are the node's and identify no pod.
    pub host_network: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// True if the pod has ended (`status.phase` Succeeded or Failed); another pod may hold its addresses.
    pub ended: bool,
    /// Its topmost known owner.
    pub workload: Workload,
    /// Container id (without the runtime's prefix) → container name; init and ephemeral containers too. From a checkpoint, the
    /// first characters of the id; none if all containers have one name.
    pub containers: BTreeMap<String, String>,
    /// Ports of its node that lead to it; none in the node's network.
    pub host_ports: Vec<HostPort>,
    /// Lifetime, from its object.
    pub life: PodLifetime,
}

/// Port of a node that leads to a container's (`spec.containers[].ports[].hostPort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The one address of the node that has it; `None` if all have.
    pub ip: Option<IpAddr>,
    /// Port of the node.
    pub port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// Transport protocol at both.
    pub protocol: Protocol,
}

impl Pod {
    /// Returns the name of the container with this ID; empty if it is not known.
    #[must_use]
    pub fn container_name(&self, id: &str) -> &str {
        // An empty ID is the pod's own cgroup.
        let is_recorded = |(known, _): &(&String, &String)| !id.is_empty() && id.starts_with(known.as_str());
        let recorded = || self.containers.iter().rfind(is_recorded).map(|(_, name)| name);
        self.containers.get(id).filter(|_| !id.is_empty()).or_else(recorded).map_or("", String::as_str)
    }
}

/// Lifetime of a pod, from its object. Times have a resolution of one second: an event may have happened up to a second
/// later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLifetime {
    /// `metadata.creationTimestamp`, by the API server's clock: it had no address before.
    pub created: Option<SystemTime>,
    /// `status.startTime`, by its node's clock: the kubelet knew of it, and it had no address before.
    pub started: Option<SystemTime>,
    /// The earliest `startedAt` of its containers, by its node's clock: it had its addresses by then.
    pub ran: Option<SystemTime>,
    /// `metadata.deletionTimestamp` without the grace period, by the API server's clock: the time of the request to
    /// delete.
    pub deleted: Option<SystemTime>,
    /// The latest `finishedAt` of its containers, by its node's clock, if all have finished for good: it does nothing
    /// with its addresses after that.
    pub finished: Option<SystemTime>,
}

/// Properties of a Service and its `EndpointSlices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceRef,
    /// `spec.clusterIPs` without `None`, load-balancer and external addresses.
    pub addresses: Vec<IpAddr>,
    /// Its TCP and UDP ports; a number may be there once for each.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `spec.ports[].port`.
    pub port: u16,
    /// `spec.ports[].protocol`.
    pub protocol: Protocol,
    /// `spec.ports[].nodePort`.
    pub node_port: Option<u16>,
    /// The address and port of each backend, ready or not: established connections outlive readiness.
    pub backends: Vec<Backend>,
}

/// Target of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// The port at that address.
    pub port: u16,
    /// `targetRef.uid`, where the endpoint is a pod.
    pub pod_uid: Option<String>,
}

/// A node, by what its own processes are reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses` that are IP addresses.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs`: what is in them and no pod's may be the node's own (a bridge's address, for example).
    pub pod_networks: Vec<Network>,
}

impl Node {
    /// Returns whether an address is the node's own: from its object, or the first one of a pod network.
    ///
    /// Invariant: every address in `ips` is.
    #[must_use]
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip) || self.pod_networks.iter().any(|network| network.is_gateway(ip))
    }
}

/// A range of addresses in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// Any address of the range.
    pub address: IpAddr,
    /// Number of leading bits that its addresses share: at most 32 for IPv4, 128 for IPv6.
    pub prefix: u8,
}

impl Network {
    /// Reads `10.244.1.0/24` or `fd00::/64`; `None` if it is anything else.
    ///
    /// Invariant: the prefix is no longer than the address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        Self::new(address.parse().ok()?, prefix.parse().ok()?)
    }

    /// The range of addresses that share so many leading bits with this one; `None` if an address has fewer bits.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = Self { address, prefix };
        (u32::from(prefix) <= network.bits()).then_some(network)
    }

    /// The same range, by its first address.
    ///
    /// Invariant: it contains the same addresses.
    #[must_use]
    pub fn trimmed(&self) -> Self {
        let others = self.bits().saturating_sub(u32::from(self.prefix));
        let address = match self.address {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(others).unwrap_or(0)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(others).unwrap_or(0)).into(),
        };
        Self { address, prefix: self.prefix }
    }

    /// Returns whether `ip` is the first address of the range. Network plugins give it to the node's bridge by default
    /// (the reference plugin `host-local` does).
    ///
    /// Invariant: the range contains it then.
    #[must_use]
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        let first = match self.trimmed().address {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() | 1).into(),
            IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits() | 1)),
        };
        first == ip && self.contains(ip)
    }

    /// Returns whether `ip` is in the range; false for an address of the other family.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shared = self.bits().saturating_sub(u32::from(self.prefix));
        let differing = match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()),
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differing.checked_shr(shared).unwrap_or(0) == 0
    }

    /// Returns whether the whole of another range is in this one.
    ///
    /// Invariant: this one contains each address of the other then.
    #[must_use]
    pub fn contains_network(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// Returns the range whose halves are these two; `None` if they are no halves of one range.
    ///
    /// Invariant: it contains exactly the addresses of both.
    #[must_use]
    pub fn joined_with(&self, other: &Self) -> Option<Self> {
        let whole = Self { address: self.address, prefix: self.prefix.checked_sub(1)? };
        let are_halves = self.prefix == other.prefix && whole.contains(other.address) && !self.contains(other.address);
        are_halves.then(|| whole.trimmed())
    }

    fn bits(&self) -> u32 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// Owner of a cgroup, derived from its path by the node's agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CgroupOwner {
    /// A container of a pod.
    PodContainer {
        /// `metadata.uid` of the pod.
        pod_uid: String,
        /// Without the runtime's prefix; empty for the pod's own cgroup.
        container_id: String,
    },
    /// A process outside of all pods.
    HostProcess {
        /// Its unit or command.
        name: String,
    },
}
