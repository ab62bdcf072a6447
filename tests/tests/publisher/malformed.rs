//! A Topology that does not decode costs only itself, and is written anew.

use kube::{
    ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use scopeprobe_tests::{Error, Result};
use serde_json::json;

use crate::{
    has_condition,
    lab::{Lab, opened, owner_uids},
};

impl Lab {
    /// Adds a condition whose time passes the API server's checks and is none.
    async fn poison(&self, name: &str) -> Result<()> {
        let by = PatchParams { field_manager: Some("another-manager".to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"status": {"conditions": [{
            "type": "X", "status": "True", "reason": "X", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00+99:99",
        }]}}));
        let patched = self.raw().patch_status(name, &by, &patch).await;
        patched.map(|_| ()).map_err(Error::api(format!("poison {name}")))
    }
}

#[tokio::test]
async fn malformed_topology_stops_no_other_and_is_written_anew() -> Result<()> {
    let mut lab = Lab::new().await?;
    let (web, other) = (lab.pod("web", None).await?, lab.pod("other", None).await?);
    // Without a workload, so that the operator would not write it again.
    let stray = json!({"apiVersion": "scopeprobe.io/v1alpha1", "kind": "Topology", "metadata": {"name": "pod-gone"}, "spec": {}});
    let stray: DynamicObject = serde_json::from_value(stray).expect("an object");
    let by = PostParams { field_manager: Some("scopeprobe-topology".to_owned()), ..PostParams::default() };
    lab.raw().create(&by, &stray).await.map_err(Error::api("make a stray Topology"))?;
    lab.publish_as_administrator();
    lab.report(&web, &[(1, 3)]).await;
    let before = lab.topology("pod-web", |it| opened(it) == 3).await?;
    lab.restart().await;

    // Those that an operator finds at its start,
    lab.poison("pod-web").await?;
    lab.poison("pod-gone").await?;
    lab.publish_as_administrator();
    lab.report(&web, &[(1, 3), (2, 1)]).await;
    lab.report(&other, &[(1, 5)]).await;
    lab.topology("pod-other", |it| opened(it) == 5).await?;
    let mended = lab.topology("pod-web", |it| opened(it) == 4 && !has_condition(it, "X", "True")).await?;
    assert_eq!(owner_uids(&mended), [web.as_str()]);
    assert_eq!(mended.uid(), before.uid(), "labels and annotations of others would be lost with the object");
    lab.absent("pod-gone").await?;

    // and one that becomes so while it runs.
    lab.poison("pod-other").await?;
    lab.topology("pod-other", |it| opened(it) == 5 && !has_condition(it, "X", "True")).await?;
    lab.report(&web, &[(1, 3), (2, 1), (3, 1)]).await;
    lab.topology("pod-web", |it| opened(it) == 5).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

#[tokio::test]
async fn what_decodes_of_malformed_topology_is_restored() -> Result<()> {
    let mut lab = Lab::new().await?;
    let web = lab.pod("web", None).await?;
    lab.publish_as_administrator();
    lab.report(&web, &[(1, 3)]).await;
    lab.topology("pod-web", |it| opened(it) == 3).await?;
    lab.restart().await;
    lab.poison("pod-web").await?;
    lab.publish_as_administrator();
    // The agent has forgotten the first: its count is in the object alone.
    lab.report(&web, &[(2, 1)]).await;
    lab.topology("pod-web", |it| opened(it) == 4 && !has_condition(it, "X", "True")).await?;
    Ok(())
}

#[tokio::test]
async fn malformed_topologies_are_cleared_as_others_are() -> Result<()> {
    let mut lab = Lab::new().await?;
    let uid = lab.pod("web", None).await?;
    let labelled = "{apiVersion: scopeprobe.io/v1alpha1, kind: Topology, metadata: {name: pod-theirs, labels: {team: a}}, spec: {}}";
    lab.apply(labelled).await?;
    let theirs = lab.pod("theirs", None).await?;
    lab.publish_as_administrator();
    for uid in [&uid, &theirs] {
        lab.report(uid, &[(1, 3)]).await;
    }
    for name in ["pod-web", "pod-theirs"] {
        lab.topology(name, |it| opened(it) == 3).await?;
    }
    lab.restart().await;
    for name in ["pod-web", "pod-theirs"] {
        lab.poison(name).await?;
    }
    let client = lab.control_plane.client.clone();
    operator::publisher::clear(&client).await.map_err(Error::api("clear the Topologies"))?;
    let left = lab.raw().get("pod-theirs").await.map_err(Error::api("read what is left"))?;
    assert!(left.labels().contains_key("team"), "{left:?}");
    assert!(left.data["status"].is_null(), "what was observed is gone: {left:?}");
    // Another manager wrote to it, but only to the status, which was removed.
    lab.absent("pod-web").await
}
