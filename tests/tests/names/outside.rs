//! Hosts outside of the cluster, the API server both ways, and the kubelet.

use std::net::{IpAddr, SocketAddr};

use crds::{IdentitySource, ScopeProbe};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, api::ListParams};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually, namespace::Namespace, outside_host::OutsideHost, traffic_pod::Traffic,
};
use traffic::protocol::Connect;

use crate::shown::{Edges, difference, edge, edges, print_case, topology};

const PARTNER: &str = "198.18.5.1";
const STRANGER: &str = "198.18.5.2";
const PORT: u16 = 9000;
/// A pod that the kubelet asks whether it is ready, by TCP.
const PROBED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: scopeprobe/traffic:dev
    imagePullPolicy: Never
    args: [serve, --listen, '[::]:8081']
    readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}
";

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Callers from the outside, and how often each calls.
fn callers() -> Vec<(IpAddr, u64)> {
    (1..=5_u32).map(|number| (ip(&format!("198.18.6.{number}")), 5 << (number - 1))).collect()
}

pub async fn test(cluster: &Cluster) -> Result<()> {
    let own: Vec<IpAddr> =
        [PARTNER, STRANGER].into_iter().map(ip).chain(callers().into_iter().map(|(ip, _)| ip)).collect();
    let host = OutsideHost::start(cluster, &own).await?;
    let namespace = cluster.namespace("outside").await?;
    let web = namespace.traffic_pod("web", Some("node-1"), &["main"]).await?.remove(0);
    let mut called = call_out(&web, &host).await?;
    called.extend(call_api_server(cluster, &web).await?);
    let calling = call_in(&namespace, &web, &host).await?;
    let shown = topology(&namespace, "pod-web", |it| {
        let status = it.status.clone().unwrap_or_default();
        difference(&edges(&status.egress), &called).or_else(|| difference(&edges(&status.ingress), &calling))
    })
    .await?;
    let status = shown.status.unwrap_or_default();
    print_case("calls to the outside: group, address, API server", &called, &edges(&status.egress));
    print_case("calls from the outside: group, busiest addresses, the rest", &calling, &edges(&status.ingress));
    assert!(status.egress.iter().all(|edge| edge.identity == IdentitySource::Ip), "{:#?}", status.egress);
    assert_eq!(status.summary.from, "partner→8080 (external), +3 more");
    assert_eq!(status.summary.to, "partner:9000 (external), +2 more");
    own_services(cluster, &namespace).await
}

/// The pod calls hosts outside of the cluster.
async fn call_out(web: &Traffic, host: &OutsideHost) -> Result<Edges> {
    let mut expected = Edges::new();
    for (address, count, kind, name) in [(PARTNER, 3, "ExternalGroup", "partner"), (STRANGER, 2, "IP", STRANGER)] {
        host.echo((ip(address), PORT)).await?;
        let target = SocketAddr::new(ip(address), PORT);
        let outcome = web.connect(Connect { count, send: 10, receive: 10, ..Connect::to(target) }).await?;
        assert_eq!((outcome.opened, outcome.broken), (count, 0), "{outcome:?}");
        expected.extend([edge(kind, name, None, PORT, count, 0)]);
    }
    let served = host.report().await?.servers.iter().map(|row| row.opened).sum::<u64>();
    assert_eq!(served, 5, "the host's own count");
    Ok(expected)
}

async fn call_api_server(cluster: &Cluster, web: &Traffic) -> Result<Edges> {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let service = services.get("kubernetes").await.map_err(Error::api("get the Service kubernetes"))?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    let outcome = web.connect(Connect { count: 2, ..Connect::to(SocketAddr::new(ip(&address), 443)) }).await?;
    assert_eq!(outcome.opened, 2, "{outcome:?}");
    Ok([edge("APIServer", "", Some(("kubernetes", 443)), 6443, 2, 0)].into())
}

/// Hosts outside of the cluster call the pod: more of them than are to be shown each.
async fn call_in(namespace: &Namespace, web: &Traffic, host: &OutsideHost) -> Result<Edges> {
    let pod_ips = namespace.pod_ips("web").await?;
    let pod_ip = pod_ips.into_iter().find(IpAddr::is_ipv4).expect("the cluster is dual stack");
    web.echo("0.0.0.0:8080").await?;
    let target = SocketAddr::new(pod_ip, 8080);
    for (from, count) in callers().into_iter().chain([(ip(PARTNER), 4)]) {
        let outcome = host.connect(from, Connect { count, send: 10, receive: 10, ..Connect::to(target) }).await?;
        assert_eq!((outcome.opened, outcome.broken), (count, 0), "{from}: {outcome:?}");
    }
    let all = callers().iter().map(|(_, count)| count).sum::<u64>() + 4;
    web.served(all, 0).await?;
    Ok([
        edge("ExternalGroup", "partner", None, 8080, 4, 0),
        edge("IP", "198.18.6.4", None, 8080, 40, 0),
        edge("IP", "198.18.6.5", None, 8080, 80, 0),
        edge("OtherExternal", "", None, 8080, 5 + 10 + 20, 3),
    ]
    .into())
}

/// The kubelet is called by its unit, and the API server by what it is, also where they call.
async fn own_services(cluster: &Cluster, namespace: &Namespace) -> Result<()> {
    namespace.apply(PROBED).await?;
    namespace.ready_pods("app=probed", 1).await?;
    // The API server calls the pod itself, which does not answer in HTTP.
    let path = format!("/api/v1/namespaces/{}/pods/probed:8081/proxy/", namespace.name);
    let _ = cluster.kubectl(&["get", "--raw", &path, "--request-timeout=5s"]).await;
    topology(namespace, "pod-probed", |it| {
        let ingress = it.status.clone().unwrap_or_default().ingress;
        let names: Vec<_> = edges(&ingress).into_keys().map(|(kind, name, ..)| (kind, name)).collect();
        let known = |name: &str| ingress.iter().find(|edge| edge.peer.name.as_deref() == Some(name));
        let by_cgroup = known("kubelet.service").is_some_and(|edge| edge.identity == IdentitySource::Cgroup);
        let wanted = [("APIServer", ""), ("HostProcess", "node-1/kubelet.service")];
        let wanted = wanted.map(|(kind, name)| (kind.to_owned(), name.to_owned())).to_vec();
        difference(&names, &wanted).or_else(|| (!by_cgroup).then(|| format!("{ingress:#?}")))
    })
    .await?;
    // The nodes' own programs call the API server.
    let probes: Api<ScopeProbe> = Api::all(cluster.client.clone());
    eventually("the nodes' calls of the API server to be shown", async || {
        let probes = probes.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let statuses: Vec<_> = probes.into_iter().filter_map(|probe| probe.status).collect();
        let pairs = statuses.iter().flat_map(|status| &status.namespaces);
        let is_it = |from: &str, to: &str| from == "(node)" && to == "(api-server)";
        if pairs.into_iter().any(|pair| is_it(&pair.from, &pair.to)) { Ok(()) } else { Err(format!("{statuses:#?}")) }
    })
    .await
}
