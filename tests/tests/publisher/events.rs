//! Events of Topologies: once when a list is truncated, and a count when that happens again.

use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use scopeprobe_tests::{Result, eventually};

use crate::{
    has_condition,
    lab::{Lab, NAMESPACE},
};

impl Lab {
    /// Waits until the namespace has exactly one event, which stands for so many.
    async fn has_one_event(&self, times: i32) -> Result<Event> {
        let events: Api<Event> = Api::namespaced(self.control_plane.client.clone(), NAMESPACE);
        eventually(&format!("one event that happened {times} times"), async || {
            let there = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let counts: Vec<_> = there.iter().map(|event| event.series.as_ref().map_or(1, |it| it.count)).collect();
            if counts == [times] { Ok(there[0].clone()) } else { Err(format!("{there:#?}")) }
        })
        .await
    }
}

#[tokio::test]
async fn truncation_is_an_event_of_the_object() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.set(|settings| settings.max_edges = 1);
    lab.publish_as_administrator();
    let uid = lab.pod("busy", None).await?;
    lab.report(&uid, &[(1, 7), (2, 8), (3, 9)]).await;
    let topology = lab.topology("pod-busy", |it| has_condition(it, "Truncated", "True")).await?;
    let event = lab.has_one_event(1).await?;
    let about = event.regarding.unwrap_or_default();
    assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("Topology"), Some("pod-busy")));
    assert_eq!(about.uid, topology.metadata.uid);
    assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("TopologyTruncated")));
    let note = event.note.unwrap_or_default();
    assert!(note.contains("2 egress edges and 0 ingress edges are not listed"), "{note}");

    for (max_edges, is_truncated) in [(100, "False"), (1, "True")] {
        lab.set(|settings| settings.max_edges = max_edges);
        lab.topology("pod-busy", |it| has_condition(it, "Truncated", is_truncated)).await?;
    }
    lab.has_one_event(2).await.map(|_| ())
}
