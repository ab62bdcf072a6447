//! `status.checkpoint`: what the operator has to remember is opaque, bounded, and read again after a restart.

use crds::Topology;
use kube::api::{Patch, PatchParams};
use scopeprobe_tests::{Error, Result};

use crate::lab::{Lab, opened, status};

/// Agents and operator start anew several times: each time, agents count from a lower number.
#[tokio::test]
async fn what_agents_no_longer_count_is_restored_from_the_checkpoint() -> Result<()> {
    let mut lab = Lab::new().await?;
    let uid = lab.pod("web", None).await?;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 10), (2, 1)]).await;
    let first = lab.topology("pod-web", |it| opened(it) == 11).await?;
    let of_pods = status(&first).checkpoint.unwrap_or_default();

    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 3), (2, 1)]).await;
    // Agents counted all of it before: the first checkpoint had the pod only.
    let has_counts = |it: &Topology| status(it).checkpoint.is_some_and(|text| text.len() > of_pods.len() + 8);
    let second = lab.topology("pod-web", has_counts).await?;
    assert_eq!(opened(&second), 11);
    let checkpoint = status(&second).checkpoint.unwrap_or_default();
    assert!(checkpoint.starts_with("1:") && checkpoint.len() <= crds::MAX_CHECKPOINT, "{checkpoint}");

    // One connection more happened before the next operator's start: seven are remembered, four are counted.
    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 4), (2, 1)]).await;
    lab.topology("pod-web", |it| opened(it) == 12).await?;

    let raw = lab.raw().get("pod-web").await.map_err(Error::api("read the Topology"))?;
    let text = serde_json::to_string(&raw).expect("it was JSON");
    assert!(!text.contains("earlier"), "nothing else is remembered: {text}");
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

/// The agent reports what a pod did at its end to an operator that never watched the pod.
#[tokio::test]
async fn deleted_pod_is_resolved_by_the_checkpoint() -> Result<()> {
    let mut lab = Lab::new().await?;
    let owner = Some(("example.com/v1", "Rollout", "web"));
    let (gone, stays) = (lab.pod("web-1", owner).await?, lab.pod("web-2", owner).await?);
    lab.publish_as_administrator();
    lab.report(&gone, &[(1, 10)]).await;
    lab.report(&stays, &[(1, 1)]).await;
    lab.topology("rollout-web", |it| opened(it) == 11 && status(it).checkpoint.is_some()).await?;

    lab.restart().await;
    lab.delete_pod("web-1").await?;
    for connections in [12, 13] {
        lab.publish_as_administrator();
        lab.report(&stays, &[(1, 1)]).await;
        lab.report(&gone, &[(1, connections)]).await;
        let topology = lab.topology("rollout-web", |it| opened(it) == connections + 1).await?;
        let pods: Vec<(String, u64)> =
            status(&topology).egress[0].pods.iter().map(|pod| (pod.pod.clone(), pod.opened)).collect();
        assert_eq!(pods, [("web-1".to_owned(), connections), ("web-2".to_owned(), 1)]);
        // The next operator has its name from this one.
        lab.restart().await;
    }
    Ok(())
}

/// A checkpoint that cannot be read is written anew, and the edges stay.
#[tokio::test]
async fn malformed_checkpoint_is_replaced() -> Result<()> {
    let mut lab = Lab::new().await?;
    let uid = lab.pod("web", None).await?;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 10)]).await;
    let first = lab.topology("pod-web", |it| opened(it) == 10 && status(it).checkpoint.is_some()).await?;
    lab.restart().await;
    for checkpoint in ["1:GgL//w", "1:%", "9:AAAA"] {
        let patch = serde_json::json!({"status": {"checkpoint": checkpoint}});
        let patched = lab.topologies().patch_status("pod-web", &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map_err(Error::api("change the checkpoint"))?;
        lab.publish_as_administrator();
        lab.report(&uid, &[(1, 10)]).await;
        let is_same = |it: &Topology| status(it).checkpoint == status(&first).checkpoint && opened(it) == 10;
        lab.topology("pod-web", is_same).await?;
        lab.restart().await;
    }
    Ok(())
}
