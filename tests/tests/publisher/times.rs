//! Times of edges: `firstSeen` never changes, `lastFailed` changes with a failure alone, `lastSeen` with other changes alone.

use std::time::Duration;

use crds::{Topology, TopologyEdge};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use scopeprobe_tests::{Error, Result};
use serde_json::json;

use crate::{
    lab::{Lab, opened, status},
    shop::{Running, counters},
};

const PEER: &str = "192.0.2.1";
const LONG_AGO: &str = "2020-01-01T10:00:00Z";

async fn report(lab: &Lab, web: &Running, opened: u64, failed: u64) {
    lab.call(web, PEER, 443, &counters(opened, failed)).await;
    lab.flush().await;
}

fn edge(topology: &Topology) -> TopologyEdge {
    status(topology).egress[0].clone()
}

fn seconds(time: Option<&Time>) -> i64 {
    time.expect("it is set").0.as_second()
}

impl Lab {
    /// Another manager changes the only edge of an object.
    async fn change_edge(&self, name: &str, change: impl FnOnce(&mut TopologyEdge)) -> Result<Option<String>> {
        let topology = self.topologies().get(name).await.map_err(Error::api("read a Topology"))?;
        let mut edge = edge(&topology);
        change(&mut edge);
        let patch = Patch::Merge(json!({"status": {"egress": [edge]}}));
        let by = PatchParams { field_manager: Some("another".to_owned()), ..PatchParams::default() };
        let patched = self.topologies().patch_status(name, &by, &patch).await;
        Ok(patched.map_err(Error::api("change a Topology"))?.resource_version())
    }

    /// Waits until the publisher has taken in all that happened before.
    async fn catch_up(&self, pod: &str) -> Result<()> {
        let uid = self.pod(pod, None).await?;
        self.report(&uid, &[(9, 1)]).await;
        self.topology(&format!("pod-{pod}"), |it| opened(it) == 1).await.map(|_| ())
    }
}

#[tokio::test]
async fn times_are_rounded_and_kept() -> Result<()> {
    let mut lab = Lab::new().await?;
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    lab.publish_as_administrator();
    let begin = Timestamp::now().as_second();
    report(&lab, &web, 1, 0).await;
    let first = edge(&lab.topology("pod-web", |it| opened(it) == 1).await?);
    assert!((begin..=Timestamp::now().as_second()).contains(&seconds(first.first_seen.as_ref())), "{first:?}");
    assert_eq!(seconds(first.last_seen.as_ref()) % 3600, 0, "to the hour");
    assert_eq!(first.last_failed, None);

    report(&lab, &web, 1, 2).await;
    let failed = lab.topology("pod-web", |it| status(it).totals.failed == 2).await?;
    let at = seconds(edge(&failed).last_failed.as_ref());
    assert_eq!(at % 60, 0, "to the minute");
    assert!((begin - 60..=Timestamp::now().as_second()).contains(&at));
    assert_eq!(status(&failed).totals.last_failed, edge(&failed).last_failed);

    // Neither further connections nor another operator change either.
    report(&lab, &web, 100, 2).await;
    let grown = edge(&lab.topology("pod-web", |it| opened(it) == 100).await?);
    assert_eq!((&grown.first_seen, &grown.last_failed), (&first.first_seen, &edge(&failed).last_failed));
    lab.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.publish_as_administrator();
    report(&lab, &web, 200, 2).await;
    let again = edge(&lab.topology("pod-web", |it| opened(it) == 200).await?);
    assert_eq!((&again.id, &again.first_seen), (&first.id, &first.first_seen));
    Ok(())
}

#[tokio::test]
async fn first_seen_and_last_seen_cost_no_write() -> Result<()> {
    let mut lab = Lab::new().await?;
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    lab.publish_as_administrator();
    report(&lab, &web, 10, 0).await;
    lab.topology("pod-web", |it| opened(it) == 10).await?;
    // An object as it is after a long time without another change.
    let past: Timestamp = LONG_AGO.parse().expect("a time");
    let version = lab
        .change_edge("pod-web", |edge| (edge.first_seen, edge.last_seen) = (Some(Time(past)), Some(Time(past))))
        .await?;
    lab.catch_up("one").await?;
    lab.catch_up("two").await?;
    let topology = lab.topologies().get("pod-web").await.map_err(Error::api("read a Topology"))?;
    assert_eq!(topology.resource_version(), version, "neither time is worth a write");
    // With another change, the one is brought up to date, and the other one stays.
    report(&lab, &web, 20, 0).await;
    let edge = edge(&lab.topology("pod-web", |it| opened(it) == 20).await?);
    assert_eq!(edge.first_seen, Some(Time(past)));
    assert!(edge.last_seen > Some(Time(past)), "{edge:?}");
    Ok(())
}
