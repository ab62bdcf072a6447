//! Of two installations, the one that came first works until its Deployment is gone.

use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease};
use kube::{Api, api::DeleteParams};
use scopeprobe_tests::{ControlPlane, Error, Result, manifest};
use serde_json::json;

use crate::{
    control_plane, holder,
    process::{NAMESPACE, Operator},
};

const OTHER_NAMESPACE: &str = "other";
const DEPLOYMENT: &str = "scopeprobe-operator";

fn deployments(control_plane: &ControlPlane, namespace: &str) -> Api<Deployment> {
    Api::namespaced(control_plane.client.clone(), namespace)
}

async fn install(control_plane: &ControlPlane, namespace: &str) -> Result<()> {
    let labels = json!({"app.kubernetes.io/name": DEPLOYMENT});
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": DEPLOYMENT, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "operator", "image": "none"}]},
            },
        },
    });
    manifest::apply(&control_plane.client, namespace, &object.to_string()).await.map(|_| ())
}

async fn claim(control_plane: &ControlPlane) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(control_plane.client.clone(), "kube-system");
    let lease = leases.get_opt("scopeprobe-cluster").await.map_err(Error::api("read the cluster's Lease"))?;
    Ok(lease.and_then(|lease| lease.spec?.holder_identity))
}

fn operator(control_plane: &ControlPlane, namespace: &str) -> Result<Operator> {
    Operator::start_in(namespace, control_plane, "operator", &[&format!("--deployment={DEPLOYMENT}")])
}

#[tokio::test]
async fn of_two_installations_one_works() -> Result<()> {
    let control_plane = control_plane().await?;
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {OTHER_NAMESPACE}}}}}");
    manifest::apply(&control_plane.client, "", &namespace).await?;
    for namespace in [NAMESPACE, OTHER_NAMESPACE] {
        install(&control_plane, namespace).await?;
    }
    let mut first = operator(&control_plane, NAMESPACE)?;
    first.is_ready().await?;
    let mut second = operator(&control_plane, OTHER_NAMESPACE)?;
    second.stands_by("Deployment scopeprobe-system/scopeprobe-operator has this cluster").await?;

    // A restart of the first leaves it the cluster, however long it takes.
    first.signal("TERM").await?;
    assert!(first.end().await?);
    assert_eq!(holder(&control_plane).await?, None);
    second.stands_by("so this operator does nothing").await?;
    let mut first = operator(&control_plane, NAMESPACE)?;
    first.is_ready().await?;

    // Uninstalled, it leaves the cluster to the second.
    let deleted = deployments(&control_plane, NAMESPACE).delete(DEPLOYMENT, &DeleteParams::default()).await;
    deleted.map_err(Error::api("uninstall the first"))?;
    first.signal("TERM").await?;
    first.end().await?;
    second.is_ready().await?;
    assert_eq!(claim(&control_plane).await?.as_deref(), Some("other/scopeprobe-operator"));
    second.runs()
}
