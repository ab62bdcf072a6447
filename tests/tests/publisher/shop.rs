//! Pods with addresses, Services, and flows between them.

use std::{net::IpAddr, time::SystemTime};

use kube::api::{Patch, PatchParams};
use scopeprobe_tests::{Error, Result};
use serde_json::json;
use topology::{
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
};

use crate::lab::{EPOCH, Lab, NODE};

/// Port at which all servers listen, and to which all Services lead.
pub const SERVER_PORT: u16 = 8080;
/// Port of all Services.
pub const SERVICE_PORT: u16 = 80;

/// A pod that runs, with its address.
#[derive(Clone, Debug)]
pub struct Running {
    pub name: String,
    pub uid: String,
    pub address: IpAddr,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn counters(opened: u64, failed: u64) -> FlowCounters {
    FlowCounters {
        opened,
        closed: opened,
        failed,
        bytes_sent: 10 * opened,
        methods: Methods::EBPF,
        ..FlowCounters::default()
    }
}

/// Who calls, or is called, at one end.
pub fn container(pod: &Running) -> CgroupOwner {
    CgroupOwner::PodContainer { pod_uid: pod.uid.clone(), container_id: container_id(&pod.name) }
}

fn container_id(pod: &str) -> String {
    format!("{pod:0<64}").replace(|character: char| !character.is_ascii_hexdigit(), "0")
}

impl Lab {
    /// A pod of an owner (API version, kind and name), with labels, at an address.
    pub async fn run(
        &self,
        name: &str,
        owner: Option<(&str, &str, &str)>,
        labels: &[(&str, &str)],
        address: &str,
    ) -> Result<Running> {
        let uid = self.labelled_pod(name, owner, labels).await?;
        self.give_address(name, address).await?;
        Ok(Running { name: name.to_owned(), uid, address: ip(address) })
    }

    /// As the pod's kubelet does.
    pub async fn give_address(&self, pod: &str, address: &str) -> Result<()> {
        let status = json!({"status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": [{
                "name": "main", "image": "none", "imageID": "none", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://{}", container_id(pod)), "state": {"running": {}},
            }],
        }});
        let patched = self.pods().patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await;
        patched.map(|_| ()).map_err(Error::api(format!("give {pod} an address")))
    }

    /// A Service that leads to these pods.
    pub async fn service(&self, name: &str, address: &str, pods: &[&Running]) -> Result<()> {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.address], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "namespace": crate::lab::NAMESPACE, "name": pod.name, "uid": pod.uid},
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": SERVER_PORT, "protocol": "TCP"}],
            "endpoints": endpoints,
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {
                "clusterIP": address,
                "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": SERVER_PORT, "protocol": "TCP"}],
            },
        });
        self.apply(&service.to_string()).await?;
        self.apply(&slice.to_string()).await
    }

    /// The agent reports a flow at one end, and the DNS names of the remote address.
    pub async fn flow(
        &self,
        owner: CgroupOwner,
        role: Role,
        (local, remote, port): (IpAddr, IpAddr, u16),
        counters: &FlowCounters,
        names: &[&str],
    ) {
        let mut ledger = self.shared_ledger.ledger().lock().await;
        let cgroup_id =
            format!("{owner:?}").bytes().fold(7, |id: u64, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
        let key = FlowKey { cgroup_id, netns: 1, role, local, remote, port, protocol: Protocol::Tcp };
        ledger.identify(NODE, EPOCH, cgroup_id, owner).expect("there is one epoch");
        ledger.apply(NODE, EPOCH, key, counters, SystemTime::now()).expect("there is one epoch");
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            ledger.set_remote_names(NODE, EPOCH, &key, &names).expect("there is one epoch");
        }
    }

    /// The agent reports a client's flow to an address.
    pub async fn call(&self, client: &Running, remote: &str, port: u16, counters: &FlowCounters) {
        self.flow(container(client), Role::Client, (client.address, ip(remote), port), counters, &[]).await;
    }

    /// The agent reports a server's flow from a client.
    pub async fn serve(&self, server: &Running, client: &Running, counters: &FlowCounters) {
        self.flow(container(server), Role::Server, (server.address, client.address, SERVER_PORT), counters, &[]).await;
    }
}
