//! Edges of two workloads behind a Service: the same in the objects of both ends, each with its own pods.

use std::time::Duration;

use crds::{EdgePod, Topology, TopologyEdge};
use kube::ResourceExt as _;
use scopeprobe_tests::{Error, Result};
use serde_json::{Value, json};

use crate::{
    lab::{Lab, status},
    shop::{Running, SERVER_PORT, SERVICE_PORT, counters},
};

const WEB: Option<(&str, &str, &str)> = Some(("example.com/v1", "Shop", "web"));
const DB: Option<(&str, &str, &str)> = Some(("example.com/v1", "Shop", "db"));
const SERVICE: &str = "10.96.0.20";

/// Two pods of the workload `web` that call two of the workload `db` through the Service `data`.
async fn shop(lab: &Lab) -> Result<([Running; 2], [Running; 2])> {
    let web = [lab.run("web-1", WEB, &[], "10.244.0.11").await?, lab.run("web-2", WEB, &[], "10.244.0.12").await?];
    let db = [lab.run("db-1", DB, &[], "10.244.0.21").await?, lab.run("db-2", DB, &[], "10.244.0.22").await?];
    lab.service("data", SERVICE, &[&db[0], &db[1]]).await?;
    Ok((web, db))
}

/// Each client has opened so many connections, all with the same server.
async fn talk(lab: &Lab, web: &[Running], db: &Running, opened: u64) {
    for client in web {
        lab.call(client, SERVICE, SERVICE_PORT, &counters(opened, 0)).await;
        lab.serve(db, client, &counters(opened, 0)).await;
    }
    lab.flush().await;
}

fn pods(edge: &TopologyEdge) -> Vec<(&str, &str, u64)> {
    let of = |pod| {
        let EdgePod { pod, container, opened, .. }: &EdgePod = pod;
        (pod.as_str(), container.as_str(), *opened)
    };
    edge.pods.iter().map(of).collect()
}

fn is_settled(topology: &Topology, opened: u64) -> bool {
    let status = status(topology);
    let edges: Vec<&TopologyEdge> = status.egress.iter().chain(&status.ingress).collect();
    edges.len() == 1 && edges[0].opened == opened
}

async fn raw(lab: &Lab, name: &str) -> Result<Value> {
    let raw = lab.raw().get(name).await.map_err(Error::api("read a Topology"))?;
    Ok(serde_json::to_value(raw).expect("it was JSON"))
}

#[tokio::test]
async fn both_ends_show_one_edge_with_the_service_and_their_own_pods() -> Result<()> {
    let mut lab = Lab::new().await?;
    let (web, db) = shop(&lab).await?;
    lab.publish_as_administrator();
    talk(&lab, &web, &db[1], 5).await;
    let client = lab.topology("shop-web", |it| is_settled(it, 10)).await?;
    let server = lab.topology("shop-db", |it| is_settled(it, 10)).await?;
    let (client, server) = (status(&client), status(&server));
    let (out, inward) = (&client.egress[0], &server.ingress[0]);

    assert_eq!(out.id, inward.id);
    assert!(out.id.len() == 16 && out.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", out.id);
    for edge in [out, inward] {
        let service = serde_json::to_value(&edge.service).expect("JSON");
        assert_eq!(service, json!({"namespace": "shop", "name": "data", "port": SERVICE_PORT, "portName": "http"}));
        assert_eq!(edge.port, Some(SERVER_PORT));
        assert_eq!(edge.containers, ["main"]);
    }
    assert_eq!(pods(out), [("web-1", "main", 5), ("web-2", "main", 5)]);
    assert_eq!(pods(inward), [("db-2", "main", 10)]);
    // People know the Service, not the port behind it; a server knows its own port.
    assert_eq!((client.summary.to.as_str(), client.summary.from.as_str()), ("data:80", "-"));
    assert_eq!((server.summary.to.as_str(), server.summary.from.as_str()), ("-", "web→8080"));
    assert_eq!((client.totals.egress, client.totals.ingress), (1, 0));
    for (name, list) in [("shop-web", "egress"), ("shop-db", "ingress")] {
        let edge = &raw(&lab, name).await?["status"][list][0];
        assert!(edge.get("peerPods").is_none() && edge.get("peerContainers").is_none(), "{edge}");
        assert_eq!((&edge["methods"], &edge["identity"]), (&json!(["EBPF"]), &json!("Cgroup")));
    }

    // The identifier outlives the operator, the order of reports, and more edges.
    lab.restart().await;
    lab.publish_as_administrator();
    lab.call(&web[0], "192.0.2.1", 443, &counters(1, 0)).await;
    talk(&lab, &web, &db[0], 6).await;
    let again = lab.topology("shop-web", |it| status(it).egress.len() == 2).await?;
    assert!(status(&again).egress.iter().any(|edge| edge.id == out.id), "{again:#?}");
    Ok(())
}

#[tokio::test]
async fn number_of_listed_pods_is_a_setting() -> Result<()> {
    let mut lab = Lab::new().await?;
    let (web, db) = shop(&lab).await?;
    lab.set(|settings| settings.max_pods = 1);
    lab.publish_as_administrator();
    talk(&lab, &web[..1], &db[0], 50).await;
    talk(&lab, &web[1..], &db[0], 5).await;
    let is = |it: &Topology, listed: &[(&str, &str, u64)], omitted: u64| {
        is_settled(it, 55) && pods(&status(it).egress[0]) == listed && status(it).egress[0].omitted_pods == omitted
    };
    lab.topology("shop-web", |it| is(it, &[("web-1", "main", 50)], 1)).await?;
    lab.set(|settings| settings.max_pods = 0);
    lab.topology("shop-web", |it| is(it, &[], 2)).await?;
    lab.set(|settings| settings.max_pods = 10);
    lab.topology("shop-web", |it| is(it, &[("web-1", "main", 50), ("web-2", "main", 5)], 0)).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

/// Counters are not due for an hour: what is written now is structure.
#[tokio::test]
async fn rollout_of_a_peer_rewrites_nothing() -> Result<()> {
    let mut lab = Lab::new().await?;
    let (web, db) = shop(&lab).await?;
    lab.publish_as_administrator();
    talk(&lab, &web, &db[0], 500).await;
    lab.topology("shop-web", |it| is_settled(it, 1000)).await?;
    lab.topology("shop-db", |it| is_settled(it, 1000)).await?;
    lab.set(|settings| settings.counter_interval = Duration::from_hours(1));
    let versions = async |lab: &Lab| -> Result<Vec<Option<String>>> {
        let mut versions = Vec::new();
        for name in ["shop-web", "shop-db"] {
            versions.push(lab.topologies().get(name).await.map_err(Error::api("read a Topology"))?.resource_version());
        }
        Ok(versions)
    };
    let before = versions(&lab).await?;
    // New pods take over, one after the other.
    for (number, pod) in db.iter().enumerate() {
        let next = lab.run(&format!("db-{}", number + 3), DB, &[], &format!("10.244.0.2{}", number + 3)).await?;
        lab.service("data", SERVICE, &[&next]).await?;
        lab.delete_pod(&pod.name).await?;
        for client in &web {
            lab.call(client, SERVICE, SERVICE_PORT, &counters(501 + number as u64, 0)).await;
            lab.serve(&next, client, &counters(1, 0)).await;
        }
        lab.flush().await;
    }
    // An object of another workload shows that all of this was taken in, and its names as well.
    let other = lab.run("other", None, &[], "10.244.0.99").await?;
    lab.call(&other, "192.0.2.1", 443, &counters(1, 0)).await;
    lab.flush().await;
    lab.topology("pod-other", |it| is_settled(it, 1)).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(versions(&lab).await?, before);
    // Nothing is lost: it is written when counters are due.
    lab.set(|settings| settings.counter_interval = Duration::from_secs(1));
    lab.topology("shop-web", |it| is_settled(it, 1004)).await?;
    let server = lab.topology("shop-db", |it| is_settled(it, 1004)).await?;
    let listed: Vec<String> = status(&server).ingress[0].pods.iter().map(|pod| pod.pod.clone()).collect();
    assert!(listed.contains(&"db-4".to_owned()), "{listed:?}");
    Ok(())
}
