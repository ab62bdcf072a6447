//! `spec.topology.namespaceSelector`: which namespaces get objects. Counting is independent of it.

use std::collections::BTreeMap;

use crds::Topology;
use kube::{
    Api, ResourceExt as _,
    api::ListParams,
    core::{Expression, Selector},
};
use scopeprobe_tests::{Result, eventually, manifest};

use crate::{
    lab::{Lab, NAMESPACE, opened, status},
    shop::{SERVER_PORT, counters},
};

impl Lab {
    async fn label_namespace(&self, name: &str, team: &str) -> Result<()> {
        let yaml = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{team: {team}}}}}}}");
        self.apply(&yaml).await
    }

    /// Waits until exactly these namespaces have so many objects.
    async fn has_objects(&self, expected: &[(&str, usize)]) -> Result<()> {
        let all: Api<Topology> = Api::all(self.control_plane.client.clone());
        let expected: BTreeMap<String, usize> = expected.iter().map(|(name, of)| ((*name).to_owned(), *of)).collect();
        eventually("the selected namespaces to have objects", async || {
            let mut found: BTreeMap<String, usize> = BTreeMap::new();
            for topology in all.list(&ListParams::default()).await.map_err(|error| error.to_string())? {
                *found.entry(topology.namespace().unwrap_or_default()).or_default() += 1;
            }
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await
    }
}

#[tokio::test]
async fn selected_namespaces_have_objects_that_count_everything() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.label_namespace(NAMESPACE, "a").await?;
    lab.label_namespace("data", "b").await?;
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: db}, spec: {nodeName: node-1, containers: [{name: main, image: none}]}}";
    manifest::apply(&lab.control_plane.client, "data", pod).await?;
    lab.kubectl(&[
        "patch",
        "pod",
        "db",
        "-n",
        "data",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status": {"phase": "Running", "podIP": "10.244.0.3", "podIPs": [{"ip": "10.244.0.3"}]}}"#,
    ])
    .await?;
    lab.publish_as_administrator();
    lab.call(&web, "10.244.0.3", SERVER_PORT, &counters(7, 0)).await;
    lab.flush().await;
    lab.has_objects(&[(NAMESPACE, 1), ("data", 1)]).await?;

    let team = |names: &[&str]| {
        Selector::from(Expression::In("team".to_owned(), names.iter().map(|name| (*name).to_owned()).collect()))
    };
    lab.set(|settings| settings.namespaces = team(&["a"]));
    lab.has_objects(&[(NAMESPACE, 1)]).await?;
    let topology = lab.topology("pod-web", |it| opened(it) == 7).await?;
    let peer = &status(&topology).egress[0].peer;
    assert_eq!((peer.namespace.as_deref(), peer.name.as_deref()), (Some("data"), Some("db")));

    // A namespace's labels change.
    lab.label_namespace("data", "a").await?;
    lab.has_objects(&[(NAMESPACE, 1), ("data", 1)]).await?;
    lab.label_namespace("data", "c").await?;
    lab.has_objects(&[(NAMESPACE, 1)]).await?;
    lab.set(|settings| settings.namespaces = team(&["c"]));
    lab.has_objects(&[("data", 1)]).await?;
    lab.set(|settings| settings.namespaces = Selector::default());
    lab.has_objects(&[(NAMESPACE, 1), ("data", 1)]).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}
