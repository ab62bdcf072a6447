//! Properties of Services and their `EndpointSlices` that are kept, and their combination.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{core::v1::Service as Object, discovery::v1::EndpointSlice};
use topology::{
    entity::{Backend, Service, ServicePort, ServiceRef},
    flow::Protocol,
};

/// The label by which an EndpointSlice names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A Service without its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    pub(super) name: ServiceRef,
    addresses: Vec<IpAddr>,
    ports: Vec<PortFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PortFacts {
    name: String,
    port: u16,
    protocol: Protocol,
    node_port: Option<u16>,
}

impl ServiceFacts {
    /// Returns the name of a port; `None` where the Service has no such port, or the port no name.
    pub(super) fn port_name(&self, number: u16, protocol: Protocol) -> Option<&str> {
        let port = self.ports.iter().find(|port| (port.port, port.protocol) == (number, protocol))?;
        Some(port.name.as_str()).filter(|name| !name.is_empty())
    }
}

/// An EndpointSlice: backends by the name of the Service's port and its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    pub(super) name: ServiceRef,
    pub(super) service: ServiceRef,
    backends: Vec<(String, Protocol, Backend)>,
}

pub(super) fn service(object: Object) -> Option<ServiceFacts> {
    let name = ServiceRef { namespace: object.metadata.namespace?, name: object.metadata.name? };
    let spec = object.spec.unwrap_or_default();
    let ingress = object.status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
    let addresses: BTreeSet<IpAddr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(spec.cluster_ip.iter())
        .chain(spec.external_ips.iter().flatten())
        .chain(ingress.iter().flatten().filter_map(|ingress| ingress.ip.as_ref()))
        .filter_map(|address| address.parse().ok())
        .collect();
    let ports = spec.ports.unwrap_or_default().into_iter();
    Some(ServiceFacts {
        name,
        addresses: addresses.into_iter().collect(),
        ports: ports
            .filter_map(|port| {
                Some(PortFacts {
                    name: port.name.unwrap_or_default(),
                    port: u16::try_from(port.port).ok()?,
                    protocol: protocol(port.protocol.as_deref())?,
                    node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
                })
            })
            .collect(),
    })
}

/// A slice that belongs to no Service is of no use, and one of names instead of addresses neither: both have no backends.
pub(super) fn slice(object: EndpointSlice) -> Option<SliceFacts> {
    let namespace = object.metadata.namespace?;
    let name = ServiceRef { namespace: namespace.clone(), name: object.metadata.name? };
    let of = object.metadata.labels.unwrap_or_default().remove(SERVICE_NAME_LABEL).unwrap_or_default();
    let ports = object.ports.unwrap_or_default();
    let mut backends = Vec::new();
    for port in &ports {
        let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
        let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &object.endpoints {
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
            for ip in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                let pod_uid = target.and_then(|target| target.uid.clone());
                let name = port.name.clone().unwrap_or_default();
                backends.push((name, protocol, Backend { ip, port: number, pod_uid }));
            }
        }
    }
    Some(SliceFacts { name, service: ServiceRef { namespace, name: of }, backends })
}

/// A Service with the backends of its slices.
pub(super) fn join<'a>(facts: &ServiceFacts, slices: &(impl Iterator<Item = &'a SliceFacts> + Clone)) -> Service {
    let backends_of = |of: &PortFacts| {
        let backends: BTreeSet<Backend> = slices
            .clone()
            .flat_map(|slice| &slice.backends)
            .filter(|(name, protocol, _)| *name == of.name && *protocol == of.protocol)
            .map(|(_, _, backend)| backend.clone())
            .collect();
        backends.into_iter().collect()
    };
    Service {
        name: facts.name.clone(),
        addresses: facts.addresses.clone(),
        ports: facts
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.port,
                protocol: port.protocol,
                node_port: port.node_port,
                backends: backends_of(port),
            })
            .collect(),
    }
}

/// Returns the protocol of a Service port; TCP by default, and `None` for those that agents do not observe (SCTP).
fn protocol(named: Option<&str>) -> Option<Protocol> {
    match named {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}
