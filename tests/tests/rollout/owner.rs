//! Tests that the agents' DaemonSets are deleted with the operator's Deployment.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use scopeprobe_tests::{Error, Result, eventually, manifest};
use serde_json::json;

use crate::lab::{IMAGE, Lab, NAMESPACE, PROBE};

const NAME: &str = "scopeprobe-operator";

impl Lab {
    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// Its UID.
    async fn install_deployment(&self) -> Result<String> {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "operator", "image": "none"}]},
                },
            },
        });
        manifest::apply(&self.client(), NAMESPACE, &object.to_string()).await?;
        let made = self.deployments().get(NAME).await.map_err(Error::api("read the Deployment"))?;
        Ok(made.uid().unwrap_or_default())
    }

    /// Waits until all DaemonSets have this one owner.
    async fn owned_by(&self, uid: &str) -> Result<()> {
        let api: Api<DaemonSet> = Api::namespaced(self.client(), NAMESPACE);
        eventually("all DaemonSets to be owned by the operator's Deployment", async || {
            let all = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let owners: Vec<_> = all.iter().map(|set| (set.name_any(), set.owner_references().to_vec())).collect();
            let right = |set: &DaemonSet| {
                let [owner] = set.owner_references() else { return false };
                (owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()) == ("Deployment", NAME, uid)
            };
            if all.len() == 3 && all.iter().all(right) { Ok(()) } else { Err(format!("{owners:?}")) }
        })
        .await
    }
}

#[tokio::test]
async fn daemon_sets_hang_on_operators_deployment() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.deployment = Some(NAME.to_owned());
    let first = lab.install_deployment().await?;
    lab.start_operator(IMAGE).await?;
    lab.probe(&json!({})).await?;
    lab.owned_by(&first).await?;

    // While it is gone nothing is made that would outlive the operator.
    lab.deployments().delete(NAME, &DeleteParams::default()).await.map_err(Error::api("delete the Deployment"))?;
    let spec = json!({"topology": {"retention": "2h"}});
    lab.probe(&spec).await?;
    eventually("the ScopeProbe to say that the Deployment is missing", async || {
        let ready = lab.condition("Ready").await?;
        let right = ready.reason == "OperatorDeploymentMissing" && ready.message.contains(NAME);
        if right { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await?;

    let second = lab.install_deployment().await?;
    assert_ne!(first, second);
    lab.owned_by(&second).await?;

    // A DaemonSet that goes is made again, though the ScopeProbe is not its owner.
    let sets: Api<DaemonSet> = Api::namespaced(lab.client(), NAMESPACE);
    let name = format!("scopeprobe-{PROBE}-fallback");
    sets.delete(&name, &DeleteParams::background()).await.map_err(Error::api("delete a DaemonSet"))?;
    lab.owned_by(&second).await
}
