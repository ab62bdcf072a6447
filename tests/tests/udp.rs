//! Tests datagrams between pods on two nodes: the Topology objects equal the programs' own counts, to the conversation
//! and to the byte. Directly and through a Service, over both families, with connected and unconnected sockets.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, net::SocketAddr};

use crds::{CaptureMethod, SeenEnds, Topology, TopologyEdge, TransportProtocol};
use k8s_openapi::api::core::v1::Service;
use scopeprobe_tests::{Cluster, Error, Result, eventually, namespace::Namespace, oracle::cases::Case};
use traffic::protocol::{Answer, Command, Datagrams, Echo};

/// Ports of the Service and the server; other programs use TCP at the same numbers.
const PORTS: (u16, u16) = (53, 5353);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: server}
  ipFamilyPolicy: PreferDualStack
  ports:
  - {name: datagrams, port: 53, targetPort: 5353, protocol: UDP}
  - {name: connections, port: 53, targetPort: 5353, protocol: TCP}
";

/// Conversations, bytes sent and bytes received, by the Service that was called, if any.
type Counts = BTreeMap<Option<String>, (u64, u64, u64)>;

fn counted(edges: &[TopologyEdge], peer: &str) -> Counts {
    let udp = edges.iter().filter(|edge| edge.protocol == TransportProtocol::Udp && edge.port == Some(PORTS.1));
    let of_peer = udp.filter(|edge| edge.peer.name.as_deref() == Some(peer));
    let counts = of_peer.map(|edge| {
        let service = edge.service.as_ref().map(|service| service.name.clone());
        (service, (edge.opened, edge.bytes_sent.unwrap_or_default(), edge.bytes_received.unwrap_or_default()))
    });
    counts.collect()
}

async fn service_targets(namespace: &Namespace) -> Result<Vec<SocketAddr>> {
    namespace.apply(SERVICE).await?;
    let service =
        namespace.api::<Service>().get("echo").await.map_err(Error::api("get the Service echo".to_owned()))?;
    let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    Ok(ips.iter().filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, PORTS.0))).collect())
}

#[tokio::test]
async fn datagrams_between_pods_are_shown_exactly() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe("{topology: {counterInterval: 1s}}").await?;
    let namespace = cluster.namespace("udp").await?;
    let server = namespace.traffic_pod("server", Some("node-2"), &["main"]).await?.remove(0);
    let client = namespace.traffic_pod("client", Some("node-1"), &["main"]).await?.remove(0);
    let at = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), PORTS.1);
    assert_eq!(server.ask(&Command::Echo(Echo { address: at })).await?, Answer::Listening(at));
    let direct = namespace.pod_ips("server").await?.into_iter().map(|ip| (None, SocketAddr::new(ip, PORTS.1)));
    let service = service_targets(&namespace).await?.into_iter().map(|target| (Some("echo".to_owned()), target));
    let targets: Vec<_> = direct.chain(service).collect();
    assert_eq!(targets.len(), 4, "both families, directly and through the Service: {targets:?}");
    // The proxies have to know the Service before anything is counted. Another pod tries, as an attempt that came too
    // early may count as a conversation of the Service or not.
    let knocker = namespace.traffic_pod("knocker", Some("node-1"), &["main"]).await?.remove(0);
    for (_, target) in &targets {
        let knock = Command::Datagrams(Datagrams {
            target: *target,
            sockets: 1,
            times: 1,
            bytes: 1,
            connected: false,
            timeout_ms: 2000,
        });
        eventually(&format!("an answer from {target}"), async || {
            let outcome = knocker.outcome(&knock).await.map_err(|error| error.to_string())?;
            if outcome.broken == 0 { Ok(()) } else { Err(format!("{outcome:?}")) }
        })
        .await?;
    }

    let mut expected = Counts::new();
    for (turn, (service, target)) in targets.iter().enumerate() {
        for connected in [true, false] {
            let bytes = 100 + 700 * turn;
            let plan = Datagrams { target: *target, sockets: 5, times: 7, bytes, connected, timeout_ms: 30_000 };
            let outcome = client.outcome(&Command::Datagrams(plan)).await?;
            assert_eq!((outcome.opened, outcome.broken), (5, 0), "{target}: {outcome:?}");
            let sum = expected.entry(service.clone()).or_default();
            *sum = (sum.0 + outcome.opened, sum.1 + outcome.sent, sum.2 + outcome.received);
        }
    }
    let by_client = eventually("the client's edges to be exact", async || {
        let status = status(&namespace, "pod-client").await?;
        let shown = counted(&status.egress, "server");
        if shown == expected { Ok(shown) } else { Err(format!("shown {shown:?}, happened {expected:?}")) }
    })
    .await?;
    let mirrored: Counts = expected
        .iter()
        .map(|(service, (opened, sent, received))| (service.clone(), (*opened, *received, *sent)))
        .collect();
    let by_server = eventually("the server's edges to be exact", async || {
        let status = status(&namespace, "pod-server").await?;
        let shown = counted(&status.ingress, "client");
        if shown == mirrored { Ok(shown) } else { Err(format!("shown {shown:?}, happened {mirrored:?}")) }
    })
    .await?;
    for (case, happened, shown) in
        [("UDP, at the client", &expected, &by_client), ("UDP, at the server", &mirrored, &by_server)]
    {
        println!("{}", Case::of(case, happened, shown, |counts| *counts, |_| ()));
    }

    let status = status(&namespace, "pod-client").await.map_err(Error::Unexpected)?;
    let udp: Vec<_> = status.egress.iter().filter(|edge| edge.protocol == TransportProtocol::Udp).collect();
    assert_eq!(udp.len(), 2, "nothing else was exchanged: {udp:#?}");
    for edge in udp {
        assert_eq!((edge.active, edge.failed, edge.without_bytes), (0, 0, 0), "{edge:#?}");
        assert_eq!(
            (edge.seen, edge.methods.as_slice()),
            (SeenEnds::Both, [CaptureMethod::Ebpf].as_slice()),
            "{edge:#?}"
        );
    }
    assert_eq!(status.summary.to, "server:5353/UDP, echo:53/UDP", "the Service has its own name, and DNS comes last");
    Ok(())
}

async fn status(namespace: &Namespace, topology: &str) -> std::result::Result<crds::TopologyStatus, String> {
    let object = namespace.api::<Topology>().get(topology).await.map_err(|error| error.to_string())?;
    Ok(object.status.unwrap_or_default())
}
