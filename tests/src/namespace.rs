//! A namespace for one test, gone when the test is.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::{Namespace as Object, Pod, Service, ServiceAccount};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams, ObjectMeta, PostParams},
};

use crate::{Cluster, Error, Result, eventually, manifest, place, pod};

/// A namespace of one test's own. Deleted when dropped, unless `SCOPEPROBE_KEEP` is set.
pub struct Namespace {
    /// The cluster it is in.
    pub cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Cluster {
    /// Makes a namespace, `test-<what>-<random>`.
    ///
    /// # Errors
    /// The API server's.
    pub async fn namespace(&self, what: &str) -> Result<Namespace> {
        let object = Object {
            metadata: ObjectMeta { generate_name: Some(format!("test-{what}-")), ..ObjectMeta::default() },
            ..Object::default()
        };
        let made = Api::<Object>::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await
            .map_err(Error::api(format!("make a namespace for the test {what}")))?;
        let namespace = Namespace { cluster: self.clone(), name: made.name_any() };
        // Pods are refused before it exists.
        let accounts = namespace.api::<ServiceAccount>();
        eventually("the namespace's default service account", async || {
            accounts.get("default").await.map_err(|error| error.to_string())
        })
        .await?;
        Ok(namespace)
    }
}

impl Namespace {
    /// The objects of one kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// Applies YAML; see [`manifest::apply`].
    ///
    /// # Errors
    /// See there.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        manifest::apply(&self.cluster.client, &self.name, yaml).await
    }

    /// Runs a command in a container; see [`pod::exec`].
    ///
    /// # Errors
    /// See there.
    pub async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        pod::exec(&self.cluster.client, &self.name, pod, container, command).await
    }

    /// A container's log; see [`pod::logs`].
    ///
    /// # Errors
    /// See there.
    pub async fn logs(&self, pod: &str, container: &str) -> Result<String> {
        pod::logs(&self.cluster.client, &self.name, pod, container).await
    }

    /// Waits until so many pods with these labels (`app=a`; empty: all) are ready; returns them by name.
    ///
    /// # Errors
    /// Returns an error if they are not ready in time.
    pub async fn ready_pods(&self, labels: &str, count: usize) -> Result<Vec<Pod>> {
        let (api, parameters) = (self.api::<Pod>(), ListParams::default().labels(labels));
        let what = format!("{count} ready pods with {labels:?} in {}", self.name);
        eventually(&what, async || {
            let mut pods = api.list(&parameters).await.map_err(|error| error.to_string())?.items;
            if pods.len() == count && pods.iter().all(is_ready) {
                pods.sort_by_key(Pod::name_any);
                return Ok(pods);
            }
            Err(pods.iter().map(describe).collect::<Vec<_>>().join("; "))
        })
        .await
    }

    /// A pod's addresses, IPv4 first where the cluster prefers it.
    ///
    /// # Errors
    /// Returns an error if there is no such pod.
    pub async fn pod_ips(&self, name: &str) -> Result<Vec<IpAddr>> {
        let pod = self.api::<Pod>().get(name).await.map_err(Error::api(format!("get the pod {name}")))?;
        let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        Ok(ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect())
    }

    /// Returns a pod's address of IPv4.
    ///
    /// # Errors
    /// Returns an error if there is no such pod, or it has none.
    pub async fn pod_ip(&self, name: &str) -> Result<IpAddr> {
        let ip = self.pod_ips(name).await?.into_iter().find(IpAddr::is_ipv4);
        ip.ok_or_else(|| Error::Unexpected(format!("the pod {name} has no address")))
    }

    /// Returns a Service's first cluster IP.
    ///
    /// # Errors
    /// Returns an error if there is no such Service, or it has none.
    pub async fn service_ip(&self, name: &str) -> Result<IpAddr> {
        let service = self.api::<Service>().get(name).await.map_err(Error::api(format!("get the Service {name}")))?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip?.parse().ok());
        ip.ok_or_else(|| Error::Unexpected(format!("the Service {name} has no address")))
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn describe(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let waiting = status.container_statuses.unwrap_or_default().into_iter().filter_map(|container| {
        let waiting = container.state?.waiting?;
        Some(format!("{}: {} {}", container.name, waiting.reason?, waiting.message.unwrap_or_default()))
    });
    let words: Vec<_> = status.phase.into_iter().chain(waiting).collect();
    format!("{} {}", pod.name_any(), words.join(", "))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::env::var_os("SCOPEPROBE_KEEP").is_some() {
            return;
        }
        // Not by the client: its runtime may be going down with a test that has failed.
        let deleted = Command::new(place::tool("kubectl"))
            .args(["delete", "namespace", &self.name, "--wait=false"])
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete the namespace {}: delete it by hand", self.name);
        }
    }
}
