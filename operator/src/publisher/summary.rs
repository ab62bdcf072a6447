//! One line for people: whom a workload calls, and who calls it.

use std::net::IpAddr;

use topology::{
    edge::{Edge, Peer},
    flow::Protocol,
};

/// About how many characters fit into a column.
const COLUMN: usize = 36;

/// `catalog:8080, kube-system/kube-dns:53/UDP`, or `-`.
pub(super) fn to<'a>(namespace: &str, egress: impl Iterator<Item = &'a Edge>) -> String {
    line(egress.map(|edge| named(namespace, &edge.key.server, Some((edge.key.port, edge.key.protocol)))))
}

/// `ingress`, or `-`.
pub(super) fn from<'a>(namespace: &str, ingress: impl Iterator<Item = &'a Edge>) -> String {
    line(ingress.map(|edge| named(namespace, &edge.key.client, None)))
}

/// Sorted, each name once, as many as fit; at least one, cut where it has to be.
fn line(names: impl Iterator<Item = (u8, String)>) -> String {
    let mut names: Vec<(u8, String)> = names.collect();
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

/// A peer's short name, and its place: what was deployed comes before nodes and the outside.
fn named(namespace: &str, peer: &Peer, port: Option<(u16, Protocol)>) -> (u8, String) {
    let local = |of: &str, name: &str| if of == namespace { name.to_owned() } else { format!("{of}/{name}") };
    let (place, name, remark) = match peer {
        Peer::Workload(workload) => (0, local(&workload.namespace, &workload.name), None),
        Peer::Service(service) => (1, local(&service.namespace, &service.name), Some("service")),
        Peer::UnknownPod { uid } => (3, format!("pod {uid}"), Some("unknown")),
        Peer::SomePod { ip } => (3, address(*ip, port.is_some()), Some("unknown pod")),
        Peer::HostProcess { node, name } => (4, format!("{node}/{name}"), Some("host")),
        Peer::Node { node } => (5, node.clone(), Some("node")),
        Peer::ApiServer => (2, "kubernetes-api".to_owned(), None),
        Peer::ExternalGroup { name } => (6, name.clone(), Some("external")),
        Peer::ExternalName { name } => (7, name.clone(), None),
        Peer::External { ip } => (8, address(*ip, port.is_some()), Some("external")),
        Peer::OtherExternal => (9, "others".to_owned(), Some("external")),
    };
    let port = match port.filter(|(port, _)| *port > 0) {
        None => String::new(),
        Some((port, Protocol::Tcp)) => format!(":{port}"),
        Some((port, Protocol::Udp)) => format!(":{port}/UDP"),
    };
    let remark = remark.map(|remark| format!(" ({remark})")).unwrap_or_default();
    (place, format!("{name}{port}{remark}"))
}

/// An address as it is written, before a port where one follows.
fn address(ip: IpAddr, has_port: bool) -> String {
    if ip.is_ipv6() && has_port { format!("[{ip}]") } else { ip.to_string() }
}

#[cfg(test)]
mod tests {
    use topology::entity::{ServiceRef, Workload};

    use super::*;

    fn names(peers: &[Peer], port: Option<u16>) -> String {
        line(peers.iter().map(|peer| named("shop", peer, port.map(|port| (port, Protocol::Tcp)))))
    }

    fn workload(namespace: &str, name: &str) -> Peer {
        Peer::Workload(Workload {
            namespace: namespace.to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
        })
    }

    #[test]
    fn each_kind_of_peer_reads_well() {
        let old = Peer::Service(ServiceRef { namespace: "shop".to_owned(), name: "old".to_owned() });
        assert_eq!(names(&[old, workload("shop", "catalog")], Some(80)), "catalog:80, old:80 (service)");
        let outside = Peer::External { ip: "10.1.2.3".parse().expect("an address") };
        assert_eq!(names(&[outside], Some(80)), "10.1.2.3:80 (external)");
        assert_eq!(names(&[workload("infra", "dns"), workload("shop", "cart")], None), "cart, infra/dns");
        assert_eq!(
            names(&[Peer::External { ip: "fd00::1".parse().expect("an address") }], Some(1)),
            "[fd00::1]:1 (external)"
        );
        let some_pod = Peer::SomePod { ip: "10.244.1.7".parse().expect("an address") };
        assert_eq!(names(&[some_pod], Some(80)), "10.244.1.7:80 (unknown pod)");
        let group = Peer::ExternalGroup { name: "payments".to_owned() };
        let name = Peer::ExternalName { name: "api.example.com".to_owned() };
        assert_eq!(names(&[name, group.clone()], Some(443)), "payments:443 (external), +1 more");
        assert_eq!(names(std::slice::from_ref(&group), None), "payments (external)");
        assert_eq!(
            names(&[Peer::ExternalName { name: "api.example.com".to_owned() }], Some(443)),
            "api.example.com:443"
        );
        assert_eq!(names(&[Peer::ApiServer], Some(6443)), "kubernetes-api:6443");
        assert_eq!(names(&[Peer::OtherExternal], Some(443)), "others:443 (external)");
        assert_eq!(names(&[Peer::OtherExternal], Some(0)), "others (external)");
        assert_eq!(names(&[], None), "-");
    }

    #[test]
    fn udp_is_named_and_tcp_goes_without_saying() {
        let ports = [(53, Protocol::Udp), (53, Protocol::Tcp)];
        let dns = workload("kube-system", "dns");
        let names = ports.into_iter().map(|port| named("shop", &dns, Some(port)));
        assert_eq!(line(names), "kube-system/dns:53, +1 more");
        assert_eq!(named("kube-system", &dns, Some((53, Protocol::Udp))).1, "dns:53/UDP");
    }

    #[test]
    fn a_long_line_says_how_many_are_missing() {
        let peers: Vec<Peer> = (10..40).map(|number| workload("shop", &format!("service-{number}"))).collect();
        assert_eq!(names(&peers, None), "service-10, service-11, +28 more");
        let long = workload("shop", &"x".repeat(90));
        assert_eq!(names(std::slice::from_ref(&long), None), format!("{}…", "x".repeat(35)));
        assert_eq!(names(&[long, workload("shop", "yy")], None), format!("{}…, yy", "x".repeat(26)));
    }
}
