//! Objects of the simulated cluster in the API server, with what kubelets and controllers would write.

use std::fmt::Debug;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    Metadata, NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::world::{self, REPLICAS, SERVER_PORT, SERVICE_PORT, World};
use crate::{Error, Result};

/// Number of requests under way at a time.
const PARALLEL: usize = 16;

/// Creates all objects, and sets the UIDs of the pods.
///
/// # Errors
/// The API server's.
pub async fn create_world(client: &Client, world: &mut World) -> Result<()> {
    let namespaces = (0..world.workloads()).map(world::namespace).collect::<std::collections::BTreeSet<_>>();
    let namespaces = namespaces.into_iter().map(|name| {
        let api = Api::<Namespace>::all(client.clone());
        async move { create(&api, json!({"metadata": {"name": name}})).await }
    });
    in_parallel(namespaces).await?;
    in_parallel((0..world.nodes).map(|node| create_node(client, node))).await?;
    let owners = in_parallel((0..world.workloads()).map(|workload| create_owners(client, workload))).await?;
    let pods = world.pods.iter().map(|pod| create_pod(client, pod, &owners[pod.workload]));
    let uids = in_parallel(pods).await?;
    for (pod, uid) in world.pods.iter_mut().zip(uids) {
        pod.uid = uid;
    }
    let services = services(world).into_iter().map(|service| create_service(client, world, service));
    in_parallel(services).await?;
    Ok(())
}

/// Replaces a pod: its Services leave it, it is deleted, and another one takes its place.
///
/// # Errors
/// The API server's.
pub async fn replace_pod(client: &Client, world: &mut World, number: usize) -> Result<()> {
    let old = world.pods[number].clone();
    let namespace = world::namespace(old.workload);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let attempt = || Error::api(format!("replace the pod {namespace}/{}", old.name));
    let owner = pods.get_metadata(&old.name).await.map_err(attempt())?;
    let owner = owner.owner_references().first().map(|owner| owner.uid.clone()).unwrap_or_default();
    write_endpoints(client, world, old.workload, Some(number)).await?;
    pods.delete(&old.name, &DeleteParams::default().grace_period(0)).await.map_err(attempt())?;
    let mut new = world.replacement(number);
    new.uid = create_pod(client, &new, &owner).await?;
    world.pods[number] = new;
    write_endpoints(client, world, old.workload, None).await
}

/// Completes all, a bounded number at a time, and returns their results in order.
async fn in_parallel<T>(requests: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    stream::iter(requests).buffered(PARALLEL).try_collect().await
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<String>
where
    K: Clone + Debug + DeserializeOwned + Serialize + Metadata<Ty = ObjectMeta>,
{
    let name = object["metadata"]["name"].to_string();
    let object = serde_json::from_value(object)
        .map_err(|error| Error::Unexpected(format!("the {} {name} has another shape: {error}", K::KIND)))?;
    let created = api.create(&PostParams::default(), &object).await;
    let created = created.map_err(Error::api(format!("create the {} {name}", K::KIND)))?;
    Ok(created.metadata().uid.clone().unwrap_or_default())
}

async fn patch_status<K>(api: &Api<K>, name: &str, status: Value) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + k8s_openapi::Resource,
{
    let status = Patch::Merge(json!({"status": status}));
    let patched = api.patch_status(name, &PatchParams::default(), &status).await;
    patched.map(|_| ()).map_err(Error::api(format!("write the status of the {} {name}", K::KIND)))
}

fn namespaced<K>(client: &Client, workload: usize) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &world::namespace(workload))
}

async fn create_node(client: &Client, node: usize) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let (name, cidr) = (world::node_name(node), world::pod_cidr(node));
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
    let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    create(&api, json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).await?;
    let status = json!({
        "addresses": [
            {"type": "InternalIP", "address": world::node_ip(node)},
            {"type": "Hostname", "address": name},
        ],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "6.12.0", "osImage": "Simulated",
            "containerRuntimeVersion": "containerd://2.0.0", "kubeletVersion": "v1.33.0", "kubeProxyVersion": "v1.33.0",
            "bootID": "", "machineID": "", "systemUUID": "",
        },
    });
    patch_status(&api, &name, status).await
}

/// Creates a Deployment and its `ReplicaSet`. Returns the UID of the latter.
async fn create_owners(client: &Client, workload: usize) -> Result<String> {
    let (name, replica_set) = (world::workload_name(workload), world::replica_set_name(workload));
    let spec = json!({
        "replicas": REPLICAS,
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": labels(workload)},
            "spec": {"containers": [{"name": "main", "image": "simulated"}]},
        },
    });
    let metadata = json!({"name": name, "labels": labels(workload)});
    let deployment = json!({"metadata": metadata, "spec": spec});
    let deployment = create::<Deployment>(&namespaced(client, workload), deployment).await?;
    let owner = owner("Deployment", &name, &deployment);
    let metadata = json!({"name": replica_set, "labels": labels(workload), "ownerReferences": [owner]});
    create::<ReplicaSet>(&namespaced(client, workload), json!({"metadata": metadata, "spec": spec})).await
}

fn labels(workload: usize) -> Value {
    let name = world::workload_name(workload);
    json!({"app": name, "app.kubernetes.io/name": name, "app.kubernetes.io/version": "1.0.0"})
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true})
}

/// Creates a pod that runs on its node. Returns its UID.
async fn create_pod(client: &Client, pod: &world::Pod, replica_set: &str) -> Result<String> {
    let api: Api<Pod> = namespaced(client, pod.workload);
    let owner = owner("ReplicaSet", &world::replica_set_name(pod.workload), replica_set);
    let object = json!({
        "metadata": {"name": pod.name, "labels": labels(pod.workload), "ownerReferences": [owner]},
        "spec": {"nodeName": world::node_name(pod.node), "containers": [{"name": "main", "image": "simulated"}]},
    });
    let uid = create(&api, object).await?;
    let status = json!({
        "phase": "Running",
        "hostIP": world::node_ip(pod.node),
        "podIP": pod.ip,
        "podIPs": [{"ip": pod.ip}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{
            "name": "main", "image": "simulated", "imageID": "simulated", "ready": true, "restartCount": 0,
            "containerID": format!("containerd://{}", pod.container_id()), "state": {"running": {}},
        }],
    });
    patch_status(&api, &pod.name, status).await?;
    Ok(uid)
}

/// A Service: its name, its address, and the workloads that serve it.
struct ServiceOf {
    name: String,
    ip: std::net::Ipv4Addr,
    workloads: Vec<usize>,
}

impl ServiceOf {
    fn workload(workload: usize) -> Self {
        Self { name: world::workload_name(workload), ip: world::service_ip(workload), workloads: vec![workload] }
    }

    fn pair(pair: usize) -> Self {
        let workloads = vec![2 * pair, 2 * pair + 1];
        Self { name: world::pair_name(pair), ip: world::pair_ip(pair), workloads }
    }
}

fn services(world: &World) -> Vec<ServiceOf> {
    let pairs = (0..world.workloads() / 2).map(ServiceOf::pair);
    (0..world.workloads()).map(ServiceOf::workload).chain(pairs).collect()
}

async fn create_service(client: &Client, world: &World, of: ServiceOf) -> Result<()> {
    let port = json!({"name": "http", "port": SERVICE_PORT, "targetPort": SERVER_PORT, "protocol": "TCP"});
    let service = json!({"metadata": {"name": of.name}, "spec": {"clusterIP": of.ip, "ports": [port]}});
    create::<Service>(&namespaced(client, of.workloads[0]), service).await?;
    let slice = json!({
        "metadata": {"name": slice_name(&of.name), "labels": {"kubernetes.io/service-name": of.name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": SERVER_PORT, "protocol": "TCP"}],
        "endpoints": endpoints(world, &of.workloads, None),
    });
    create::<EndpointSlice>(&namespaced(client, of.workloads[0]), slice).await.map(|_| ())
}

fn slice_name(service: &str) -> String {
    format!("{service}-s1m2t")
}

/// Returns the endpoints of workloads, without a pod.
fn endpoints(world: &World, workloads: &[usize], without: Option<usize>) -> Vec<Value> {
    let numbers = workloads.iter().flat_map(|workload| workload * REPLICAS..(workload + 1) * REPLICAS);
    let pods = numbers.filter(|number| Some(*number) != without).map(|number| &world.pods[number]);
    let endpoint = |pod: &world::Pod| {
        json!({
            "addresses": [pod.ip],
            "conditions": {"ready": true},
            "nodeName": world::node_name(pod.node),
            "targetRef": {
                "kind": "Pod", "namespace": world::namespace(pod.workload), "name": pod.name, "uid": pod.uid,
            },
        })
    };
    pods.map(endpoint).collect()
}

/// Writes the endpoints of both Services that lead to a workload.
async fn write_endpoints(client: &Client, world: &World, workload: usize, without: Option<usize>) -> Result<()> {
    let slices: Api<EndpointSlice> = namespaced(client, workload);
    for of in [ServiceOf::workload(workload), ServiceOf::pair(workload / 2)] {
        let patch = Patch::Merge(json!({"endpoints": endpoints(world, &of.workloads, without)}));
        let patched = slices.patch(&slice_name(&of.name), &PatchParams::default(), &patch).await;
        patched.map_err(Error::api(format!("write the endpoints of {}", of.name)))?;
    }
    Ok(())
}
