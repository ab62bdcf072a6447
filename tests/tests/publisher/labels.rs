//! The recommended labels of pods, on their workloads' Topologies.

use crds::Topology;
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use scopeprobe_tests::{Result, eventually};
use serde_json::json;

use crate::lab::{Lab, opened, status};

const NAME: &str = "app.kubernetes.io/name";
const INSTANCE: &str = "app.kubernetes.io/instance";
const VERSION: &str = "app.kubernetes.io/version";
const PART_OF: &str = "app.kubernetes.io/part-of";

fn label<'a>(topology: &'a Topology, key: &str) -> Option<&'a str> {
    topology.labels().get(key).map(String::as_str)
}

impl Lab {
    async fn found_by(&self, selector: &str) -> Vec<String> {
        let found = self.topologies().list(&ListParams::default().labels(selector)).await.expect("the server answers");
        found.iter().map(kube::ResourceExt::name_any).collect()
    }

    /// As a person does.
    async fn set_label(&self, topology: &str, key: &str, value: Option<&str>) {
        let by = PatchParams { field_manager: Some("kubectl-label".to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        self.topologies().patch(topology, &by, &patch).await.expect("the administrator may");
    }
}

#[tokio::test]
async fn a_topology_has_the_labels_of_its_newest_pod_and_leaves_peoples_alone() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let owner = Some(("example.com/v1", "Shop", "web"));
    let labels = &[(NAME, "web"), (VERSION, "1.0"), (INSTANCE, "web-prod"), (PART_OF, "shop")];
    let first = lab.labelled_pod("web-1", owner, labels).await?;
    lab.report(&first, &[(1, 1)]).await;
    let topology = lab.topology("shop-web", |it| label(it, VERSION) == Some("1.0") && opened(it) == 1).await?;
    let workload = status(&topology).workload;
    assert_eq!((workload.app.as_deref(), workload.part_of.as_deref()), (Some("web"), Some("shop")));
    assert_eq!(workload.version.as_deref(), Some("1.0"));
    // Older versions of Argo CD delete objects with this label that they did not create.
    assert_eq!(label(&topology, INSTANCE), None);
    assert_eq!(lab.found_by("app.kubernetes.io/part-of=shop").await, ["shop-web"]);

    // Another manager changes one label, and adds one of its own.
    lab.set_label("shop-web", PART_OF, Some("retail")).await;
    lab.set_label("shop-web", "team", Some("a")).await;

    // Pods of one second are as old as each other, then their UIDs decide: wait until the next one is newer.
    let made = eventually("a pod that is newer", async || {
        let uid = lab
            .labelled_pod("web-2", owner, &[(NAME, "web"), (VERSION, "2.0"), (PART_OF, "shop")])
            .await
            .map_err(|error| error.to_string())?;
        if lab.is_newer("web-2", "web-1").await {
            return Ok(uid);
        }
        lab.delete_pod("web-2").await.map_err(|error| error.to_string())?;
        Err("made in the same second".to_owned())
    })
    .await?;
    lab.report(&made, &[(1, 1)]).await;
    // Labels and status are two writes.
    let says = |it: &_, version| {
        label(it, VERSION) == Some(version) && status(it).workload.version.as_deref() == Some(version)
    };
    let topology = lab.topology("shop-web", |it| says(it, "2.0")).await?;
    assert_eq!(status(&topology).workload.part_of.as_deref(), Some("shop"), "the status says what the pods say");
    assert_eq!((label(&topology, PART_OF), label(&topology, "team")), (Some("retail"), Some("a")));

    // Rolled back.
    lab.delete_pod("web-2").await?;
    lab.topology("shop-web", |it| label(it, VERSION) == Some("1.0")).await?;
    // A removed label returns with the pods' value: no manager owns it any more.
    lab.set_label("shop-web", PART_OF, None).await;
    lab.topology("shop-web", |it| label(it, PART_OF) == Some("shop")).await?;
    assert_eq!(lab.writes("failed"), 0, "{}", lab.metrics.encode().expect("it is text"));

    // With the last pod the workload is gone: what is left is what a person has written.
    lab.delete_pod("web-1").await?;
    let topology = lab.topology("shop-web", |it| status(it).egress.is_empty()).await?;
    assert_eq!((label(&topology, NAME), label(&topology, "team")), (None, Some("a")));
    Ok(())
}

#[tokio::test]
async fn an_object_with_labels_of_ours_alone_goes_with_its_workload() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.labelled_pod("plain", None, &[(NAME, "plain")]).await?;
    lab.report(&uid, &[(1, 1)]).await;
    lab.topology("pod-plain", |it| label(it, NAME) == Some("plain")).await?;
    lab.delete_pod("plain").await?;
    lab.absent("pod-plain").await?;
    Ok(())
}
