//! One line for each direction: clients of a workload, and servers that it calls.

use std::net::IpAddr;

use topology::{
    edge::{Edge, EdgeKey, Peer},
    entity::ServicePortRef,
    flow::Protocol,
};

/// Approximate width of a column, in characters.
const COLUMN: usize = 36;

/// Port of name servers.
const DNS: u16 = 53;

/// Parts of names that monitoring systems have, in the name of a workload or its namespace.
const MONITORING: [&str; 8] =
    ["datadog", "fluent", "grafana", "metrics", "monitor", "observability", "prometheus", "telemetry"];

/// Returns the servers of egress edges, `catalog:80, kube-system/kube-dns:53/UDP`, or `-`: by Service name and port where a
/// Service was called.
pub(super) fn to<'a>(namespace: &str, egress: impl Iterator<Item = &'a Edge>) -> String {
    line(egress.map(|edge| server(namespace, &edge.key)))
}

/// Returns the clients of ingress edges, each with the port that it calls, `frontend→8080`, or `-`.
pub(super) fn from<'a>(namespace: &str, ingress: impl Iterator<Item = &'a Edge>) -> String {
    line(ingress.map(|edge| client(namespace, &edge.key)))
}

/// Sorted, each name once, as many as fit; at least one, cut where it has to be.
fn line(names: impl Iterator<Item = (Place, String)>) -> String {
    let mut names: Vec<(Place, String)> = names.collect();
    names.sort();
    names.dedup();
    let Some((_, first)) = names.first() else { return "-".to_owned() };
    let others = if names.len() > 1 { format!(", +{} more", names.len() - 1).len() } else { 0 };
    let mut line = cut(first, COLUMN - others);
    for (index, (_, name)) in names.iter().enumerate().skip(1) {
        let rest = names.len() - index;
        let reserve = if rest > 1 { format!(", +{} more", rest - 1).len() } else { 0 };
        if line.chars().count() + 2 + name.chars().count() + reserve > COLUMN {
            return format!("{line}, +{rest} more");
        }
        line.push_str(", ");
        line.push_str(name);
    }
    line
}

fn cut(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// Place of a peer in a line: what was deployed comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Deployed,
    UnknownPod,
    ExternalGroup,
    DnsName,
    Address,
    OtherExternal,
    ApiServer,
    Monitoring,
    HostProcess,
    Node,
    NameServer,
}

/// A name with what follows it after a port: whose it is, where the name does not say so.
struct ShortName {
    place: Place,
    name: String,
    remark: &'static str,
}

fn server(namespace: &str, key: &EdgeKey) -> (Place, String) {
    let port = key.service.as_ref().map(|of| of.port).or(key.port);
    let mut of = short_name(namespace, &key.server, port.is_some());
    if let (Peer::Workload(_), Some(ServicePortRef { service, .. })) = (&key.server, &key.service) {
        of.name = local(namespace, &service.namespace, &service.name);
    }
    in_line(of, key, port.map(|port| format!(":{port}")))
}

fn client(namespace: &str, key: &EdgeKey) -> (Place, String) {
    in_line(short_name(namespace, &key.client, false), key, key.port.map(|port| format!("→{port}")))
}

fn in_line(of: ShortName, key: &EdgeKey, port: Option<String>) -> (Place, String) {
    let ShortName { place, name, remark } = of;
    let port = port.map_or_else(String::new, |port| match key.protocol {
        Protocol::Tcp => port,
        Protocol::Udp => port + "/UDP",
    });
    let is_dns = key.port == Some(DNS) || key.service.as_ref().is_some_and(|of| of.port == DNS);
    (if is_dns { Place::NameServer } else { place }, format!("{name}{port}{remark}"))
}

fn short_name(namespace: &str, peer: &Peer, has_port: bool) -> ShortName {
    let of = |place: Place, name: String, remark: &'static str| ShortName { place, name, remark };
    let deployed = |of_it: &str, name: &str| {
        let is_monitoring = |text: &str| MONITORING.iter().any(|part| text.contains(part));
        let place = if is_monitoring(of_it) || is_monitoring(name) { Place::Monitoring } else { Place::Deployed };
        of(place, local(namespace, of_it, name), "")
    };
    match peer {
        Peer::Workload(workload) => deployed(&workload.namespace, &workload.name),
        Peer::Service(service) => deployed(&service.namespace, &service.name),
        Peer::UnknownPod { uid } => of(Place::UnknownPod, format!("pod {uid}"), " (unknown)"),
        Peer::SomePod { ip } => of(Place::UnknownPod, address(*ip, has_port), " (unknown pod)"),
        Peer::HostProcess { node, name } => of(Place::HostProcess, format!("{node}/{name}"), " (host)"),
        Peer::Node { node } => of(Place::Node, node.clone(), " (node)"),
        Peer::ApiServer => of(Place::ApiServer, "kubernetes-api".to_owned(), ""),
        Peer::ExternalGroup { name } => of(Place::ExternalGroup, name.clone(), " (external)"),
        Peer::ExternalName { name } => of(Place::DnsName, name.clone(), ""),
        Peer::External { ip } => of(Place::Address, address(*ip, has_port), " (external)"),
        Peer::BehindNode { node } => of(Place::Address, format!("external via {node}"), ""),
        Peer::OtherExternal => of(Place::OtherExternal, "others".to_owned(), " (external)"),
    }
}

fn local(namespace: &str, of: &str, name: &str) -> String {
    if of == namespace { name.to_owned() } else { format!("{of}/{name}") }
}

/// An address as it is written, before a port where one follows.
fn address(ip: IpAddr, has_port: bool) -> String {
    if ip.is_ipv6() && has_port { format!("[{ip}]") } else { ip.to_string() }
}

#[cfg(test)]
mod tests {
    use topology::entity::{ServiceRef, Workload};

    use super::*;

    fn workload(namespace: &str, name: &str) -> Peer {
        let (namespace, kind, name, group) =
            (namespace.to_owned(), "Deployment".to_owned(), name.to_owned(), "apps".to_owned());
        Peer::Workload(Workload { namespace, kind, name, group })
    }

    fn called(server: &Peer, service: Option<(&str, u16)>, port: Option<u16>) -> EdgeKey {
        let name = |name: &str| ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() };
        EdgeKey {
            client: workload("shop", "frontend"),
            server: server.clone(),
            service: service.map(|(of, port)| ServicePortRef { service: name(of), port }),
            port,
            protocol: Protocol::Tcp,
        }
    }

    fn to_line(keys: &[EdgeKey]) -> String {
        line(keys.iter().map(|key| server("shop", key)))
    }

    fn to_peers(peers: &[Peer], port: Option<u16>) -> String {
        to_line(&peers.iter().map(|peer| called(peer, None, port)).collect::<Vec<_>>())
    }

    fn from_line(clients: &[Peer], port: Option<u16>) -> String {
        let own = workload("shop", "own");
        let keys = clients.iter().map(|peer| EdgeKey { client: peer.clone(), ..called(&own, Some(("own", 80)), port) });
        line(keys.map(|key| client("shop", &key)))
    }

    #[test]
    fn each_type_of_peer_is_recognisable() {
        let outside = Peer::External { ip: "10.1.2.3".parse().expect("an address") };
        assert_eq!(to_peers(std::slice::from_ref(&outside), Some(80)), "10.1.2.3:80 (external)");
        assert_eq!(from_line(&[outside], Some(80)), "10.1.2.3→80 (external)");
        let ipv6 = Peer::External { ip: "fd00::1".parse().expect("an address") };
        assert_eq!(to_peers(std::slice::from_ref(&ipv6), Some(1)), "[fd00::1]:1 (external)");
        assert_eq!(from_line(&[ipv6], Some(1)), "fd00::1→1 (external)");
        let behind = Peer::BehindNode { node: "node-1".to_owned() };
        assert_eq!(from_line(&[behind], Some(80)), "external via node-1→80");
        let some_pod = Peer::SomePod { ip: "10.244.1.7".parse().expect("an address") };
        assert_eq!(to_peers(&[some_pod], Some(80)), "10.244.1.7:80 (unknown pod)");
        let group = Peer::ExternalGroup { name: "payments".to_owned() };
        let name = Peer::ExternalName { name: "api.example.com".to_owned() };
        assert_eq!(to_peers(&[name.clone(), group.clone()], Some(443)), "payments:443 (external), +1 more");
        assert_eq!(from_line(&[group], None), "payments (external)");
        assert_eq!(to_peers(&[name], Some(443)), "api.example.com:443");
        assert_eq!(to_peers(&[Peer::ApiServer], Some(6443)), "kubernetes-api:6443");
        assert_eq!(to_peers(&[Peer::OtherExternal], Some(443)), "others:443 (external)");
        assert_eq!(to_peers(&[Peer::OtherExternal], None), "others (external)");
        assert_eq!(to_peers(&[], None), "-");
    }

    #[test]
    fn name_and_port_are_the_services_where_one_was_called() {
        let server = workload("shop", "apples-v2");
        assert_eq!(to_line(&[called(&server, Some(("apples", 80)), Some(50051))]), "apples:80");
        assert_eq!(to_line(&[called(&server, None, Some(50051))]), "apples-v2:50051");
        let service = ServiceRef { namespace: "shop".to_owned(), name: "apples".to_owned() };
        let no_backend = called(&Peer::Service(service), Some(("apples", 80)), None);
        assert_eq!(to_line(&[no_backend, called(&server, Some(("apples", 80)), Some(50051))]), "apples:80");
        assert_eq!(to_line(&[called(&Peer::ApiServer, Some(("kubernetes", 443)), Some(6443))]), "kubernetes-api:443");
        let clients = [workload("web", "ui"), workload("shop", "cart")];
        assert_eq!(from_line(&clients, Some(50051)), "cart→50051, web/ui→50051");
    }

    #[test]
    fn udp_is_named_and_tcp_goes_without_saying() {
        let dns = workload("kube-system", "dns");
        let udp = EdgeKey { protocol: Protocol::Udp, ..called(&dns, None, Some(53)) };
        assert_eq!(to_line(&[udp.clone(), called(&dns, None, Some(53))]), "kube-system/dns:53, +1 more");
        assert_eq!(server("kube-system", &udp).1, "dns:53/UDP");
        assert_eq!(client("shop", &udp).1, "frontend→53/UDP");
    }

    #[test]
    fn dns_monitoring_and_nodes_come_last() {
        let node = Peer::Node { node: "a-node".to_owned() };
        let process = Peer::HostProcess { node: "a-node".to_owned(), name: "kubelet".to_owned() };
        let mut peers = [
            called(&workload("shop", "a-dns"), Some(("a-dns", 53)), Some(5353)),
            called(&node, None, Some(10250)),
            called(&process, None, Some(80)),
            called(&workload("monitoring", "a"), None, Some(80)),
            called(&workload("shop", "prometheus-agent"), None, Some(80)),
            called(&Peer::ApiServer, None, Some(6443)),
            called(&Peer::External { ip: "10.1.2.3".parse().expect("an address") }, None, Some(80)),
            called(&workload("shop", "zebra"), None, Some(80)),
        ];
        let places = |keys: &[EdgeKey]| {
            let mut names: Vec<_> = keys.iter().map(|key| server("shop", key)).collect();
            names.sort();
            names.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
        };
        let wanted = [
            "zebra:80",
            "10.1.2.3:80 (external)",
            "kubernetes-api:6443",
            "monitoring/a:80",
            "prometheus-agent:80",
            "a-node/kubelet:80 (host)",
            "a-node:10250 (node)",
            "a-dns:53",
        ];
        assert_eq!(places(&peers), wanted);
        peers.reverse();
        assert_eq!(places(&peers), wanted);
    }

    #[test]
    fn a_long_line_says_how_many_are_missing() {
        let peers: Vec<Peer> = (10..40).map(|number| workload("shop", &format!("service-{number}"))).collect();
        assert_eq!(to_peers(&peers, None), "service-10, service-11, +28 more");
        let long = workload("shop", &"x".repeat(90));
        assert_eq!(to_peers(std::slice::from_ref(&long), None), format!("{}…", "x".repeat(35)));
        assert_eq!(to_peers(&[long, workload("shop", "yy")], None), format!("{}…, yy", "x".repeat(26)));
    }
}
