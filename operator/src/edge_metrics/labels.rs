//! Labels of an edge's series, as text.

use std::fmt::Write as _;

use topology::{
    edge::{EdgeKey, Peer},
    flow::Protocol,
};

use crate::settings::EdgeMetricsLevel;

/// Labels of the series that sums all edges without an own series.
pub(super) const OTHER: &str = "source_kind=\"other\",destination_kind=\"other\"";

/// Values of one end's labels; empty where there is nothing to name.
struct EndLabels<'a> {
    namespace: &'a str,
    kind: &'a str,
    workload: String,
}

/// Returns the labels of an edge, as they are between braces. Labels without a value are left out.
pub(super) fn of(key: &EdgeKey, level: EdgeMetricsLevel) -> String {
    let is_detailed = level == EdgeMetricsLevel::Workload;
    let end = if is_detailed { workload_labels } else { namespace_labels };
    let (source, destination) = (end(&key.client), end(&key.server));
    let service = key.service.as_ref().filter(|_| is_detailed).map(|of| {
        let service = &of.service;
        if service.namespace == destination.namespace {
            service.name.clone()
        } else {
            format!("{}.{}", service.name, service.namespace)
        }
    });
    let port = key.port.filter(|_| is_detailed).map(|port| port.to_string());
    let protocol = match key.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let mut text = String::new();
    for (name, value) in [
        ("source_namespace", source.namespace),
        ("source_kind", source.kind),
        ("source_workload", &source.workload),
        ("destination_namespace", destination.namespace),
        ("destination_kind", destination.kind),
        ("destination_workload", &destination.workload),
        ("destination_service", service.as_deref().unwrap_or_default()),
        ("destination_port", port.as_deref().unwrap_or_default()),
        ("protocol", protocol),
    ] {
        add(&mut text, name, value);
    }
    text
}

/// Adds a label unless its value is empty, which is the same to Prometheus.
fn add(text: &mut String, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    if !text.is_empty() {
        text.push(',');
    }
    // Writing to a String does not fail.
    let _ = write!(text, "{name}=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
}

/// Returns an end by itself, with the kinds of the API. What would make new series without end has no name: addresses and
/// UIDs of unknown pods, and the nodes of equal processes.
fn workload_labels(peer: &Peer) -> EndLabels<'_> {
    let named = |kind, name: &str| EndLabels { namespace: "", kind, workload: name.to_owned() };
    match peer {
        Peer::Workload(workload) => {
            EndLabels { namespace: &workload.namespace, ..named(&workload.kind, &workload.name) }
        }
        Peer::Service(service) => EndLabels { namespace: &service.namespace, ..named("Service", &service.name) },
        Peer::Node { node } => named("Node", node),
        Peer::HostProcess { name, .. } => named("HostProcess", name),
        Peer::ApiServer => named("APIServer", ""),
        Peer::ExternalGroup { name } => named("ExternalGroup", name),
        Peer::ExternalName { name } => named("DNSName", name),
        Peer::External { ip } => named("IP", &ip.to_string()),
        Peer::BehindNode { .. } => named("External", ""),
        Peer::OtherExternal => named("OtherExternal", ""),
        Peer::UnknownPod { .. } | Peer::SomePod { .. } => named("UnknownPod", ""),
    }
}

/// Returns the group of an end: its namespace, or what it is outside of all namespaces.
fn namespace_labels(peer: &Peer) -> EndLabels<'_> {
    let (namespace, kind) = match peer {
        Peer::Workload(workload) => (workload.namespace.as_str(), "Namespace"),
        Peer::Service(service) => (service.namespace.as_str(), "Namespace"),
        Peer::Node { .. } | Peer::HostProcess { .. } => ("", "Node"),
        Peer::ApiServer => ("", "APIServer"),
        Peer::UnknownPod { .. } | Peer::SomePod { .. } => ("", "UnknownPod"),
        Peer::External { .. }
        | Peer::BehindNode { .. }
        | Peer::ExternalGroup { .. }
        | Peer::ExternalName { .. }
        | Peer::OtherExternal => ("", "External"),
    };
    EndLabels { namespace, kind, workload: String::new() }
}

#[cfg(test)]
mod tests {
    use topology::entity::{ServicePortRef, ServiceRef, Workload};

    use super::*;

    fn key(client: Peer, server: Peer) -> EdgeKey {
        EdgeKey { client, server, service: None, port: Some(6379), protocol: Protocol::Tcp }
    }

    fn workload(namespace: &str, name: &str) -> Peer {
        let [namespace, kind, name, group] = [namespace, "Deployment", name, "apps"].map(str::to_owned);
        Peer::Workload(Workload { namespace, kind, name, group })
    }

    fn with_service(key: EdgeKey, namespace: &str) -> EdgeKey {
        let service = ServiceRef { namespace: namespace.to_owned(), name: "redis".to_owned() };
        EdgeKey { service: Some(ServicePortRef { service, port: 80 }), ..key }
    }

    #[test]
    fn labels_name_both_ends_of_an_edge() {
        let edge = with_service(key(workload("shop", "cart"), workload("data", "redis")), "data");
        assert_eq!(
            of(&edge, EdgeMetricsLevel::Workload),
            "source_namespace=\"shop\",source_kind=\"Deployment\",source_workload=\"cart\",destination_namespace=\"data\",\
             destination_kind=\"Deployment\",destination_workload=\"redis\",destination_service=\"redis\",\
             destination_port=\"6379\",protocol=\"TCP\""
        );
        assert_eq!(
            of(&edge, EdgeMetricsLevel::Namespace),
            "source_namespace=\"shop\",source_kind=\"Namespace\",destination_namespace=\"data\",\
             destination_kind=\"Namespace\",protocol=\"TCP\""
        );
    }

    #[test]
    fn service_of_another_namespace_keeps_it() {
        let edge = with_service(key(workload("shop", "cart"), Peer::External { ip: [192, 0, 2, 1].into() }), "shop");
        let labels = of(&edge, EdgeMetricsLevel::Workload);
        assert!(labels.contains("destination_kind=\"IP\",destination_workload=\"192.0.2.1\""), "{labels}");
        assert!(labels.contains("destination_service=\"redis.shop\""), "{labels}");
    }

    #[test]
    fn values_are_escaped() {
        let process = Peer::HostProcess { node: "n".to_owned(), name: "a\"b\\c\nx".to_owned() };
        let labels = of(&key(process, Peer::ApiServer), EdgeMetricsLevel::Workload);
        assert!(labels.starts_with("source_kind=\"HostProcess\",source_workload=\"a\\\"b\\\\c\\nx\","), "{labels}");
    }
}
