//! `status.checkpoint`: what the operator has to remember is opaque, bounded, and read again after a restart.

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
    assert_eq!(status(&first).checkpoint, None, "agents count all of it");

    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 3), (2, 1)]).await;
    let second = lab.topology("pod-web", |it| status(it).checkpoint.is_some()).await?;
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
