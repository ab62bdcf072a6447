//! Tests the harness itself: the cluster, pods that communicate over both families and through a Service, their own
//! counts, and the API server's audit log.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use prerequisites::{Prerequisite, skip};
use scopeprobe_tests::{Cluster, Result};
use traffic::protocol::Connect;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
";

#[tokio::test]
async fn pods_connect_across_nodes_and_both_ends_count_the_same() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let namespace = cluster.namespace("harness").await?;
    let own = cluster.audit().ok();
    if own.is_none() {
        skip(Prerequisite::OwnCluster, "the audit log of another cluster is out of reach");
    }
    let mark = own.as_ref().map(scopeprobe_tests::audit::Audit::mark).transpose()?;
    namespace.apply(SERVICE).await?;
    let servers = namespace.traffic_pod("server", Some("node-1"), &["main"]).await?;
    let clients = namespace.traffic_pod("client", Some("node-2"), &["one", "two"]).await?;
    servers[0].echo("[::]:8080").await?;
    let mut targets: Vec<SocketAddr> =
        namespace.pod_ips("server").await?.into_iter().map(|ip| SocketAddr::new(ip, 8080)).collect();
    let mut expected = 0;
    for target in targets.clone() {
        for client in &clients {
            let plan = Connect { count: 50, concurrency: 5, send: 7, receive: 7, ..Connect::to(target) };
            let outcome = client.connect(plan).await?;
            assert_eq!((outcome.opened, outcome.broken, outcome.sent, outcome.received), (50, 0, 350, 350), "{target}");
            expected += 50;
        }
    }
    let service = scopeprobe_tests::eventually("the Service to answer", async || {
        let service = namespace.api::<Service>().get("server").await.map_err(|error| error.to_string())?;
        let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let Some(Ok(ip)) = ips.first().map(|ip| ip.parse()) else { return Err(format!("addresses {ips:?}")) };
        let outcome = clients[0]
            .connect(Connect { timeout_ms: 1000, ..Connect::to(SocketAddr::new(ip, 80)) })
            .await
            .map_err(|error| error.to_string())?;
        if outcome.opened == 1 { Ok(ip) } else { Err(format!("{outcome:?}")) }
    })
    .await?;
    targets.push(SocketAddr::new(service, 80));
    let report = servers[0].served(expected + 1, 0).await?;
    assert_eq!(report.servers.iter().map(|row| row.received).sum::<u64>(), 7 * expected);
    let called: Vec<_> = clients[0].report().await?.clients.iter().map(|row| row.target).collect();
    assert!(targets.iter().all(|target| called.contains(target)), "{called:?}");
    if let (Some(audit), Some(mark)) = (own, mark) {
        let written = audit.writes_since(mark, |write| {
            write.namespace == namespace.name && write.resource == "services" && write.user == "admin"
        })?;
        assert_eq!(written.len(), 1, "{written:?}");
    }
    Ok(())
}
