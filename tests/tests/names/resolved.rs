//! Hosts outside of the cluster that a pod knows by name: a name server in the cluster, behind its Service, is asked by the
//! system's resolver in the client's pod.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crds::{Topology, TopologyEdge, TransportProtocol};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::PostParams;
use scopeprobe_tests::{
    Cluster, Error, Result, eventually, namespace::Namespace, outside_host::OutsideHost, traffic_pod,
    traffic_pod::Traffic,
};
use serde_json::json;
use traffic::protocol::{Answer, Command, Connect, NameServer, Resolve};

use crate::{
    outside::ip,
    shown::{Edges, difference, edge, edges, print_case, topology},
};

/// Two names lead there, one of them to both addresses.
const SHOP: [&str; 2] = ["198.18.7.1", "fd98::1"];
const SHARED: &str = "198.18.7.2";
/// In an external group, which is what it is called by.
const PARTNER: &str = "198.18.5.1";
/// Address without a DNS name.
const NAMELESS: &str = "198.18.7.3";

/// Name of an address that no client calls.
const UNUSED: &str = "unused.example";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: names}
spec:
  selector: {app: names}
  ports: [{port: 53, protocol: UDP}]
";

fn table() -> BTreeMap<String, Vec<IpAddr>> {
    [
        ("shop.example", SHOP.map(ip).to_vec()),
        ("one.example", vec![ip(SHARED)]),
        ("other.example", vec![ip(SHARED)]),
        ("partner.example", vec![ip(PARTNER)]),
        (UNUSED, vec![ip("198.18.7.4")]),
    ]
    .map(|(name, addresses)| (name.to_owned(), addresses))
    .into()
}

/// Calls of the client: address, number, and the name it resolved before.
const CALLS: [(&str, u64, &[&str]); 5] = [
    (SHOP[0], 3, &["shop.example"]),
    (SHOP[1], 2, &[]),
    (SHARED, 4, &["one.example", "other.example"]),
    (PARTNER, 1, &["partner.example"]),
    (NAMELESS, 5, &[]),
];

/// Returns the expected edges. Those to the name server are UDP, which [`edges`] omits.
fn expected(port: u16, names_are_read: bool) -> Edges {
    let plain = |address: &str, count| edge("IP", address, None, port, count, 0);
    let shop = if names_are_read {
        vec![edge("DNSName", "shop.example", None, port, 5, 0)]
    } else {
        vec![plain(SHOP[0], 3), plain(SHOP[1], 2)]
    };
    let others = [plain(SHARED, 4), plain(NAMELESS, 5), edge("ExternalGroup", "partner", None, port, 1, 0)];
    shop.into_iter().chain(others).collect()
}

/// The port is the hosts', another one each time: what listens outlives the test.
pub async fn test(cluster: &Cluster, namespace: &str, port: u16, names_are_read: bool) -> Result<()> {
    let own = [SHOP[0], SHOP[1], SHARED, PARTNER, NAMELESS].map(ip);
    let host = OutsideHost::start(cluster, &own).await?;
    let namespace = cluster.namespace(namespace).await?;
    let name_server = serve_names(&namespace).await?;
    let client = client(&namespace, name_server).await?;
    for (address, count, names) in CALLS {
        for name in names {
            assert_eq!(resolve(&client, name).await?, table()[*name], "{name}");
        }
        host.echo((ip(address), port)).await?;
        let target = SocketAddr::new(ip(address), port);
        let outcome = client.connect(Connect { count, send: 10, receive: 10, ..Connect::to(target) }).await?;
        assert_eq!((outcome.opened, outcome.broken), (count, 0), "{outcome:?}");
    }
    let expected = expected(port, names_are_read);
    let shown = topology(&namespace, "pod-client", |it| difference(&edges(&of_tcp(it)), &expected)).await?;
    let case = if names_are_read { "DNS names" } else { "DNS names, `dnsNames: false`" };
    print_case(case, &expected, &edges(&of_tcp(&shown)));
    let several: Vec<_> = of_tcp(&shown).into_iter().filter(|edge| !edge.dns_names.is_empty()).collect();
    let several: Vec<_> = several.iter().map(|edge| (edge.peer.ip.as_deref(), edge.dns_names.join(" "))).collect();
    let both = names_are_read.then(|| (Some(SHARED), "one.example other.example".to_owned()));
    assert_eq!(several, Vec::from_iter(both), "of several names it cannot be told which one was meant");
    Ok(())
}

fn of_tcp(topology: &Topology) -> Vec<TopologyEdge> {
    let status = topology.status.clone().unwrap_or_default();
    status.egress.into_iter().filter(|edge| edge.protocol == TransportProtocol::Tcp).collect()
}

/// A name server in a pod of its own on the other node; returns its Service's address.
async fn serve_names(namespace: &Namespace) -> Result<IpAddr> {
    let server = namespace.traffic_pod("names", Some("node-2"), &["main"]).await?.remove(0);
    let at = SocketAddr::new(ip("0.0.0.0"), 53);
    let command = Command::NameServer(NameServer { address: at, names: table() });
    assert_eq!(server.ask(&command).await?, Answer::Listening(at));
    namespace.apply(SERVICE).await?;
    let service = namespace.api::<Service>().get("names").await.map_err(Error::api("get the Service names"))?;
    Ok(ip(&service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default()))
}

/// A pod whose resolver asks this name server, with the search list that pods have.
async fn client(namespace: &Namespace, name_server: IpAddr) -> Result<Traffic> {
    let pod = json!({
        "metadata": {"name": "client", "labels": {"app": "client"}},
        "spec": {
            "nodeName": "node-1",
            "terminationGracePeriodSeconds": 0,
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": [name_server],
                "searches": ["svc.cluster.local", "cluster.local"],
                "options": [{"name": "ndots", "value": "5"}],
            },
            "containers": [traffic_pod::container("main")],
        },
    });
    let pod: Pod = serde_json::from_value(pod).map_err(|error| Error::Unexpected(format!("no pod: {error}")))?;
    namespace.api().create(&PostParams::default(), &pod).await.map_err(Error::api("make the pod client"))?;
    namespace.ready_pods("app=client", 1).await?;
    let client = namespace.traffic("client", "main");
    eventually("the name server to answer through its Service", async || {
        resolve(&client, UNUSED).await.map_err(|error| error.to_string())
    })
    .await?;
    Ok(client)
}

/// In order, as the table has them.
async fn resolve(client: &Traffic, name: &str) -> Result<Vec<IpAddr>> {
    match client.ask(&Command::Resolve(Resolve { name: name.to_owned() })).await? {
        Answer::Addresses(addresses) => Ok(addresses),
        other => Err(Error::Unexpected(format!("{name} leads to {other:?}"))),
    }
}
