//! Objects that an operator of an earlier shape of `v1alpha1` has left: replaced or deleted, never a reason to stop.

use kube::{
    ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams},
};
use scopeprobe_tests::{Error, Result, eventually};
use serde_json::{Value, json};

use crate::lab::{Lab, opened, owner_uids, status};

/// The kind as it was, as far as it matters here: a status of another shape is taken.
const EARLIER_KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: topologies.scopeprobe.io}
spec:
  group: scopeprobe.io
  names: {kind: Topology, plural: topologies, singular: topology, shortNames: [stopo]}
  scope: Namespaced
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// A status as it was written before `v1alpha1` had its lasting shape.
fn earlier_status(kind: &str, name: &str) -> Value {
    json!({
        "workload": {"kind": kind, "name": name, "app": name, "instance": "prod"},
        "summary": {"to": "192.0.2.1:443 (external)", "from": "-"},
        "totals": {"opened": 40, "active": 0, "failed": 1, "bytesSent": 5, "bytesReceived": 6},
        "egress": [{
            "peer": {"kind": "External", "ip": "192.0.2.1"},
            "port": 443, "protocol": "TCP", "opened": 40, "active": 0, "failed": 1, "bytesSent": 5, "bytesReceived": 6,
            "containers": ["main"], "peerContainers": [], "seen": "Client", "identity": "Ip", "methods": ["Ebpf"],
            "direction": "Observed", "earlier": {"opened": 3},
            "pods": [{"pod": name, "container": "main", "opened": 40, "failed": 1, "earlierOpened": 3}],
            "peerPods": [{"pod": "other", "container": "main", "opened": 40, "failed": 0}],
        }],
        "omitted": {"egress": 0, "ingress": 0},
        "conditions": [{
            "type": "Observed", "status": "True", "reason": "AgentsReport", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    })
}

impl Lab {
    /// As the operator of that time did.
    async fn leave_earlier(&self, topology: &str, status: &Value) -> Result<()> {
        let by = PatchParams::apply("scopeprobe-topology").force();
        let metadata = json!({
            "apiVersion": "scopeprobe.io/v1alpha1", "kind": "Topology",
            "metadata": {"name": topology, "namespace": crate::lab::NAMESPACE},
        });
        let mut with_status = metadata.clone();
        with_status["status"] = status.clone();
        let apply = |body: Value| Patch::Apply(serde_json::from_value::<DynamicObject>(body).expect("an object"));
        self.raw().patch(topology, &by, &apply(metadata)).await.map_err(Error::api("leave a Topology"))?;
        eventually("the earlier kind to be served", async || {
            let left = self.raw().patch_status(topology, &by, &apply(with_status.clone())).await;
            let left = left.map_err(|error| error.to_string())?;
            if left.data["status"] == *status { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await
    }
}

#[tokio::test]
async fn objects_of_the_earlier_shape_are_replaced() -> Result<()> {
    let mut lab = Lab::new().await?;
    let (web, quiet) = (lab.pod("web", None).await?, lab.pod("quiet", None).await?);
    lab.apply(EARLIER_KIND).await?;
    for (topology, kind, name) in [
        ("pod-web", "Pod", "web"),
        // Its workload has no traffic any more, or is gone, or has its group in the name by now.
        ("pod-quiet", "Pod", "quiet"),
        ("pod-gone", "Pod", "gone"),
        ("job-sums", "Job", "sums"),
    ] {
        lab.leave_earlier(topology, &earlier_status(kind, name)).await?;
    }
    lab.kubectl(&["label", "topology", "pod-web", "-n", "shop", "team=a"]).await?;
    let before = lab.raw().get("pod-web").await.map_err(Error::api("read a Topology"))?;
    lab.control_plane.install_kinds().await?;
    eventually("the present kind to be served", async || {
        let left = lab.raw().get("pod-web").await.map_err(|error| error.to_string())?;
        let edge = &left.data["status"]["egress"][0];
        if edge.get("peerPods").is_none() { Ok(()) } else { Err(format!("{edge}")) }
    })
    .await?;

    lab.publish_as_administrator();
    let sums = lab.pod("sums-1", Some(("batch.example.com/v1", "Job", "sums"))).await?;
    lab.report(&web, &[(1, 41)]).await;
    lab.report(&sums, &[(1, 2)]).await;
    let replaced = lab.topology("pod-web", |it| opened(it) == 41).await?;
    assert_eq!((replaced.uid(), replaced.labels().get("team").map(String::as_str)), (before.uid(), Some("a")));
    assert_eq!(owner_uids(&replaced), [web.as_str()]);
    let workload = status(&replaced).workload;
    assert_eq!((workload.api_version.as_str(), workload.kind.as_str()), ("v1", "Pod"));
    let raw = lab.raw().get("pod-web").await.map_err(Error::api("read a Topology"))?;
    let text = serde_json::to_string(&raw.data["status"]).expect("it was JSON");
    for former in ["earlier", "peerPods", "peerContainers", "instance", "\"Ip\"", "Ebpf", "External\""] {
        assert!(!text.contains(former), "{former} is left: {text}");
    }
    lab.topology("job.batch.example.com-sums", |it| opened(it) == 2).await?;
    for gone in ["pod-quiet", "pod-gone", "job-sums"] {
        lab.absent(gone).await?;
    }
    // The workload that was quiet gets its object as every other one does.
    lab.report(&quiet, &[(1, 3)]).await;
    lab.topology("pod-quiet", |it| opened(it) == 3).await?;
    assert_eq!(lab.writes("failed"), 0, "{}", lab.metrics.encode().expect("it is text"));
    Ok(())
}
