//! `status.workload`: kind, pod selector, ServiceAccounts and network of a workload.

use scopeprobe_tests::{Error, Result};
use serde_json::{Value, json};

use crate::lab::{Lab, NODE, opened};

impl Lab {
    async fn uid(&self, resource: &str, name: &str) -> Result<String> {
        let uid = self.kubectl(&["get", resource, name, "-n", "shop", "-o", "jsonpath={.metadata.uid}"]).await?;
        Ok(uid.trim().to_owned())
    }

    async fn workload_of(&self, topology: &str) -> Result<Value> {
        let raw = self.raw().get(topology).await.map_err(Error::api("read a Topology"))?;
        Ok(raw.data["status"]["workload"].clone())
    }
}

#[tokio::test]
async fn workload_has_what_a_policy_needs() -> Result<()> {
    let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "edge"]}]});
    let template = json!({
        "metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": [{"name": "main", "image": "none"}]},
    });
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    lab.apply(
        &json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"selector": selector, "template": template},
        })
        .to_string(),
    )
    .await?;
    let deployment = lab.uid("deployment", "web").await?;
    lab.apply(
        &json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web-1", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": deployment, "controller": true,
            }]},
            "spec": {"selector": selector, "template": template},
        })
        .to_string(),
    )
    .await?;
    let replica_set = lab.uid("replicaset", "web-1").await?;
    for (number, account) in ["reader", "writer"].into_iter().enumerate() {
        let name = format!("web-1-{number}");
        lab.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name,
                    "labels": {"app": "web", "tier": "front", "pod-template-hash": "1", "number": number.to_string()},
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": replica_set, "controller": true,
                    }],
                },
                "spec": {
                    "nodeName": NODE, "serviceAccountName": account, "hostNetwork": number == 1,
                    "containers": [{"name": "main", "image": "none"}],
                },
            })
            .to_string(),
        )
        .await?;
        let uid = lab.uid_of(&name).await?;
        lab.report(&uid, &[(1, 1)]).await;
    }
    lab.topology("deployment-web", |it| opened(it) == 2).await?;
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "podSelector": selector,
        "serviceAccounts": ["reader", "writer"], "hostNetwork": true,
    });
    assert_eq!(lab.workload_of("deployment-web").await?, expected);
    Ok(())
}

/// Of a kind that has no selector, the labels that all pods share, without those that change with each release.
#[tokio::test]
async fn workload_without_a_selector_has_the_labels_of_its_pods() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let owner = Some(("example.com/v1", "Shop", "web"));
    for (name, track, version) in [("web-1", "a", "1.0"), ("web-2", "b", "2.0")] {
        let labels = [("app.kubernetes.io/name", "web"), ("app.kubernetes.io/version", version), ("track", track)];
        let uid = lab.labelled_pod(name, owner, &labels).await?;
        lab.report(&uid, &[(1, 1)]).await;
    }
    lab.topology("shop-web", |it| opened(it) == 2).await?;
    let workload = lab.workload_of("shop-web").await?;
    assert_eq!(workload["podSelector"], json!({"matchLabels": {"app.kubernetes.io/name": "web"}}));
    assert_eq!((&workload["apiVersion"], workload.get("hostNetwork")), (&json!("example.com/v1"), None));
    Ok(())
}
