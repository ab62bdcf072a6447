//! Containers of every kind, pods that live for a moment, and owners of other people's kinds.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::{Edges, Endpoint, Workload, cases::Case, observed},
};
use serde_json::json;
use traffic::protocol::Connect;

use crate::shown::difference;

const PORT: u16 = 9000;
/// A kind as Argo's.
const ROLLOUT_KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.names.example.com}
spec:
  group: names.example.com
  names: {kind: Rollout, plural: rollouts}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
";
const ROLLOUT: &str = "{apiVersion: names.example.com/v1, kind: Rollout, metadata: {name: shop}}";

pub async fn test(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("parts").await?;
    let server = namespace.traffic_pod("server", Some("node-2"), &["main"]).await?.remove(0);
    server.echo(&format!("[::]:{PORT}")).await?;
    let at = namespace.pod_ips("server").await?;
    let at = at.into_iter().find(IpAddr::is_ipv4).expect("the cluster is dual stack");

    let mut expected = BTreeMap::new();
    expected.extend(containers_of_every_kind(&namespace, at).await?);
    expected.extend(a_brief_pod(&namespace, at).await?);
    expected.extend(a_rollout(&namespace, at).await?);
    let all: u64 = expected.values().map(|caller| caller.opened).sum();
    server.served(all, 0).await?;
    let shown = eventually("the server's callers to be shown as they called", async || {
        let (_, by_servers) = observed::edges(&namespace).await.map_err(|error| error.to_string())?;
        let callers = callers(by_servers);
        difference(&callers, &expected).map_or(Ok(callers), Err)
    })
    .await?;
    println!(
        "{}",
        Case::of(
            "init, sidecar, ephemeral containers; a pod gone at once; a foreign owner",
            &expected,
            &shown,
            |caller| caller.opened,
            |caller| caller.parts.clone(),
        )
    );
    let labels = "app.kubernetes.io/part-of=shops,app.kubernetes.io/version=3.1";
    let found = cluster.kubectl(&["get", "topology", "-n", &namespace.name, "-l", labels, "-o", "name"]).await?;
    assert_eq!(found.trim(), "topology.scopeprobe.io/rollout-shop");
    cluster.kubectl(&["delete", "crd", "rollouts.names.example.com", "--wait=false"]).await.map(|_| ())
}

/// Connections of a caller: all of them, and those by pod and container that its own object lists.
#[derive(Clone, Debug, PartialEq)]
struct Caller {
    opened: u64,
    parts: BTreeMap<Endpoint, u64>,
}

/// Callers by kind and name.
type Callers = BTreeMap<Workload, Caller>;

fn callers(by_servers: Edges) -> Callers {
    let of_server = by_servers.into_iter().filter(|(name, _)| name.server.1 == "server" && name.port == Some(PORT));
    of_server.map(|(name, counts)| (name.client, Caller { opened: counts.opened, parts: counts.clients })).collect()
}

fn caller(kind: &str, name: &str, parts: &[(&str, &str, u64)]) -> Callers {
    let opened = parts.iter().map(|(_, _, opened)| opened).sum();
    let parts = parts.iter().map(|(pod, container, opened)| (((*pod).to_owned(), (*container).to_owned()), *opened));
    [((kind.to_owned(), name.to_owned()), Caller { opened, parts: parts.collect() })].into()
}

/// A container that calls the server so often, and ends.
fn once(name: &str, at: IpAddr, count: u64) -> serde_json::Value {
    json!({
        "name": name, "image": "scopeprobe/traffic:dev", "imagePullPolicy": "Never",
        "args": ["once", "--target", format!("{at}:{PORT}"), "--count", count.to_string()],
    })
}

/// An init container, a sidecar, a container and an ephemeral one, in one pod.
async fn containers_of_every_kind(namespace: &Namespace, at: IpAddr) -> Result<Callers> {
    let mut sidecar = scopeprobe_tests::traffic_pod::container("sidecar");
    sidecar["restartPolicy"] = json!("Always");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "parts", "labels": {"app": "parts"}},
        "spec": {
            "nodeName": "node-1", "terminationGracePeriodSeconds": 0,
            "initContainers": [once("prepare", at, 3), sidecar],
            "containers": [scopeprobe_tests::traffic_pod::container("main")],
        },
    });
    namespace.apply(&pod.to_string()).await?;
    namespace.ready_pods("app=parts", 1).await?;
    for (container, count) in [("sidecar", 1), ("main", 4)] {
        let plan = Connect { count, send: 5, receive: 5, ..Connect::to((at, PORT).into()) };
        let outcome = namespace.traffic("parts", container).connect(plan).await?;
        assert_eq!((outcome.opened, outcome.broken), (count, 0), "{container}: {outcome:?}");
    }
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [once("debug", at, 2)]}}));
    let patched = namespace.api::<Pod>().patch_ephemeral_containers("parts", &PatchParams::default(), &patch).await;
    patched.map_err(Error::api("add an ephemeral container"))?;
    Ok(caller(
        "Pod",
        "parts",
        &[("parts", "prepare", 3), ("parts", "sidecar", 1), ("parts", "main", 4), ("parts", "debug", 2)],
    ))
}

/// A pod that is gone as soon as it has called.
async fn a_brief_pod(namespace: &Namespace, at: IpAddr) -> Result<Callers> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "brief"},
        "spec": {"nodeName": "node-1", "restartPolicy": "Never", "containers": [once("main", at, 4)]},
    });
    namespace.apply(&pod.to_string()).await?;
    let api = namespace.api::<Pod>();
    eventually("the brief pod to be done", async || {
        let pod = api.get("brief").await.map_err(|error| error.to_string())?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Succeeded" { Ok(()) } else { Err(phase) }
    })
    .await?;
    let at_once = DeleteParams::default().grace_period(0);
    api.delete("brief", &at_once).await.map_err(Error::api("delete the brief pod"))?;
    // Its own object, which listed its container, is gone with it.
    let mut callers = caller("Pod", "brief", &[("brief", "main", 4)]);
    for caller in callers.values_mut() {
        caller.parts.clear();
    }
    Ok(callers)
}

/// A pod of a ReplicaSet whose owner is of a kind that only its own operator knows.
async fn a_rollout(namespace: &Namespace, at: IpAddr) -> Result<Callers> {
    namespace.apply(ROLLOUT_KIND).await?;
    let made =
        eventually("a Rollout to be made", async || namespace.apply(ROLLOUT).await.map_err(|error| error.to_string()))
            .await?;
    let uid = made.first().and_then(kube::ResourceExt::uid).unwrap_or_default();
    let owner = json!({
        "apiVersion": "names.example.com/v1", "kind": "Rollout", "name": "shop", "uid": uid, "controller": true,
    });
    let labels = json!({
        "app": "shop", "app.kubernetes.io/name": "shop", "app.kubernetes.io/part-of": "shops",
        "app.kubernetes.io/version": "3.1",
    });
    let replica_set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "shop-1", "ownerReferences": [owner]},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "shop"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [scopeprobe_tests::traffic_pod::container("main")],
                },
            },
        },
    });
    namespace.apply(&replica_set.to_string()).await?;
    let pod = namespace.ready_pods("app=shop", 1).await?.remove(0).name_any();
    let plan = Connect { count: 2, send: 5, receive: 5, ..Connect::to((at, PORT).into()) };
    let outcome = namespace.traffic(&pod, "main").connect(plan).await?;
    assert_eq!((outcome.opened, outcome.broken), (2, 0), "{outcome:?}");
    Ok(caller("Rollout", "shop", &[(&pod, "main", 2)]))
}
