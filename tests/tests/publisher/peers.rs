//! Peers of every type, as objects: which fields each has, and that the API server accepts no others.

use std::collections::BTreeMap;

use crds::ExternalGroup;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use operator::publish_settings::external_groups;
use scopeprobe_tests::{Error, Result, eventually};
use serde_json::{Value, json};
use topology::{entity::CgroupOwner, flow::Role};

use crate::{
    lab::{Lab, NODE},
    shop::{SERVER_PORT, SERVICE_PORT, container, counters, ip},
};

const FIELDS: [&str; 7] = ["apiVersion", "kind", "namespace", "name", "node", "ip", "uid"];
/// Uppermost of the addresses outside of the cluster by connections: it alone has an edge of its own.
const BUSIEST: &str = "192.0.2.1";

impl Lab {
    /// The node has an address, and its pods have a network.
    async fn give_node_addresses(&self) -> Result<()> {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}, spec: {{podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24]}}}}"
        ))
        .await?;
        let nodes: Api<Node> = Api::all(self.control_plane.client.clone());
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]}});
        let patched = nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await;
        patched.map(|_| ()).map_err(Error::api("give the node an address"))
    }
}

/// Peers of an object by type, as the API server returns them.
fn peers(topology: &Value) -> BTreeMap<String, Value> {
    let edges =
        ["egress", "ingress"].into_iter().flat_map(|list| topology["status"][list].as_array().into_iter().flatten());
    edges.map(|edge| (edge["peer"]["type"].as_str().unwrap_or_default().to_owned(), edge["peer"].clone())).collect()
}

/// One peer of each type; those that are seen at the other end of the node's own sockets are clients.
fn expected() -> BTreeMap<String, Value> {
    let peers = [
        json!({"type": "Workload", "apiVersion": "example.com/v2", "kind": "Shop", "namespace": "shop", "name": "db"}),
        json!({"type": "Service", "namespace": "shop", "name": "many"}),
        json!({"type": "Node", "name": NODE}),
        json!({"type": "HostProcess", "node": NODE, "name": "kubelet.service"}),
        json!({"type": "APIServer"}),
        json!({"type": "ExternalGroup", "name": "partner"}),
        json!({"type": "DNSName", "name": "api.example.com"}),
        json!({"type": "IP", "ip": BUSIEST}),
        json!({"type": "OtherExternal"}),
        json!({"type": "UnknownPod", "ip": "10.244.0.77"}),
    ];
    peers.into_iter().map(|peer| (peer["type"].as_str().unwrap_or_default().to_owned(), peer)).collect()
}

async fn with_a_peer_of_each_type() -> Result<(Lab, Value)> {
    let mut lab = Lab::new().await?;
    lab.give_node_addresses().await?;
    lab.set(|settings| {
        settings.max_external = 1;
        settings.external_groups = external_groups(&[ExternalGroup {
            name: "partner".to_owned(),
            cidrs: vec!["198.51.100.0/24".to_owned()],
            ..ExternalGroup::default()
        }])
        .expect("it is a range");
    });
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    let db = lab.run("db-1", Some(("example.com/v2", "Shop", "db")), &[], "10.244.0.3").await?;
    let cache = lab.run("cache-1", Some(("example.com/v2", "Shop", "cache")), &[], "10.244.0.4").await?;
    // Two backends, and neither has counted anything.
    lab.service("many", "10.96.0.10", &[&db, &cache]).await?;
    lab.publish_as_administrator();
    lab.call(&web, "10.244.0.3", SERVER_PORT, &counters(3, 0)).await;
    lab.call(&web, "10.96.0.10", SERVICE_PORT, &counters(2, 0)).await;
    lab.call(&web, "10.96.0.1", 443, &counters(1, 0)).await;
    lab.call(&web, "172.18.0.2", 9100, &counters(1, 0)).await;
    lab.call(&web, "10.244.0.77", SERVER_PORT, &counters(1, 0)).await;
    for (address, opened) in [("198.51.100.7", 1), (BUSIEST, 9), ("192.0.2.2", 2)] {
        lab.call(&web, address, 443, &counters(opened, 0)).await;
    }
    let named = (web.address, ip("203.0.113.1"), 443);
    lab.flow(container(&web), Role::Client, named, &counters(1, 0), &["api.example.com"]).await;
    let kubelet = CgroupOwner::HostProcess { name: "kubelet.service".to_owned() };
    let probe = (ip("172.18.0.2"), web.address, SERVER_PORT);
    lab.flow(kubelet, Role::Client, probe, &counters(4, 0), &[]).await;
    lab.flush().await;
    let expected = expected();
    lab.topology("pod-web", |it| {
        let topology = serde_json::to_value(it).expect("it was JSON");
        peers(&topology) == expected
    })
    .await?;
    let raw = lab.raw().get("pod-web").await.map_err(Error::api("read the Topology"))?;
    Ok((lab, serde_json::to_value(raw).expect("it was JSON")))
}

/// Compares what the API server has, not what the operator's types keep of it.
#[tokio::test]
async fn peer_of_each_type_has_its_own_fields() -> Result<()> {
    let (lab, topology) = with_a_peer_of_each_type().await?;
    assert_eq!(peers(&topology), expected());
    assert_eq!(lab.writes("failed"), 0);
    let egress = topology["status"]["egress"].as_array().expect("edges");
    let port_of = |type_: &str| {
        let edge = egress.iter().find(|edge| edge["peer"]["type"] == type_).expect("it is listed");
        (edge.get("port").cloned(), edge.get("service").cloned())
    };
    let kubernetes = json!({"namespace": "default", "name": "kubernetes", "port": 443, "portName": "https"});
    let many = json!({"namespace": "shop", "name": "many", "port": SERVICE_PORT, "portName": "http"});
    assert_eq!(port_of("IP"), (Some(json!(443)), None));
    assert_eq!(port_of("Workload"), (Some(json!(SERVER_PORT)), None));
    assert_eq!(port_of("Service"), (None, Some(many)), "which backend answered, and at which port, is unknown");
    assert_eq!(port_of("APIServer").1, Some(kubernetes));
    Ok(())
}

#[tokio::test]
async fn fields_that_do_not_fit_the_type_of_a_peer_are_refused() -> Result<()> {
    let (lab, topology) = with_a_peer_of_each_type().await?;
    let edge = topology["status"]["egress"][0].clone();
    let mut peers: Vec<Value> = expected().into_values().collect();
    peers.push(json!({"type": "External", "node": NODE}));
    peers.push(json!({"type": "UnknownPod", "uid": "0e3c2a62-8f77-4b43-9d5f-7a6a4f8f2b61"}));
    let with = |peer: &Value| {
        let mut edge = edge.clone();
        edge["peer"] = peer.clone();
        json!({"status": {"egress": [edge]}})
    };
    let raw = lab.raw();
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = async |peer: &Value| raw.patch_status("pod-web", &dry, &Patch::Merge(with(peer))).await;
    let mut wrong = Vec::new();
    for peer in &peers {
        if let Err(error) = patch(peer).await {
            wrong.push(format!("{peer} is refused: {error}"));
        }
        for field in FIELDS {
            let mut other = peer.clone();
            let fields = other.as_object_mut().expect("an object");
            if fields.remove(field).is_none() {
                fields.insert(field.to_owned(), json!("x"));
            }
            match patch(&other).await {
                Err(kube::Error::Api(status)) if status.code == 422 && status.message.contains("a peer of type") => {}
                answer => wrong.push(format!("{other}: {answer:?}")),
            }
        }
    }
    for peer in [json!({"type": "Deployment", "name": "web"}), json!({"name": "web"})] {
        match patch(&peer).await {
            Err(kube::Error::Api(status)) if status.code == 422 => {}
            answer => wrong.push(format!("{peer}: {answer:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// An agent observes a pod whose object the API server does not have.
#[tokio::test]
async fn pod_without_an_object_is_known_by_its_uid() -> Result<()> {
    let mut lab = Lab::new().await?;
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    lab.publish_as_administrator();
    let stray = CgroupOwner::PodContainer { pod_uid: "stray".to_owned(), container_id: "0".repeat(64) };
    lab.flow(stray, Role::Client, (ip("10.244.0.9"), web.address, SERVER_PORT), &counters(2, 0), &[]).await;
    lab.flush().await;
    let topology = lab.topology("pod-web", |it| !crate::lab::status(it).ingress.is_empty()).await?;
    let peer = &crate::lab::status(&topology).ingress[0].peer;
    assert_eq!(serde_json::to_value(peer).expect("JSON"), json!({"type": "UnknownPod", "uid": "stray"}));
    Ok(())
}

/// `spec` is empty for good: what people expect belongs into a kind of its own.
#[tokio::test]
async fn spec_of_a_topology_has_no_fields() -> Result<()> {
    let lab = Lab::new().await?;
    let expecting =
        "{apiVersion: scopeprobe.io/v1alpha1, kind: Topology, metadata: {name: pod-x}, spec: {egress: [{to: y}]}}";
    lab.apply(expecting).await?;
    let kept = lab.raw().get("pod-x").await.map_err(Error::api("read the Topology"))?;
    assert_eq!(kept.data["spec"], json!({}), "the API server keeps no field");
    // An API server publishes the schema of a new kind after a while.
    let explained = eventually("the kind to be explained", async || {
        lab.kubectl(&["explain", "topology.spec"]).await.map_err(|error| error.to_string())
    })
    .await?;
    assert!(!explained.contains("FIELDS"), "{explained}");
    Ok(())
}
