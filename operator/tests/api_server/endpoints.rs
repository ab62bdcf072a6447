//! The working operator enters its own address into the collector's Service.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually};
use serde_json::json;

use crate::{
    control_plane,
    process::{NAMESPACE, Operator},
};

const SLICE: &str = "scopeprobe-collector-ipv4";

fn slices(control_plane: &ControlPlane) -> Api<EndpointSlice> {
    Api::namespaced(control_plane.client.clone(), NAMESPACE)
}

async fn leads_to(control_plane: &ControlPlane, address: &str) -> Result<()> {
    eventually(&format!("the Service to lead to {address}"), async || {
        let slice = slices(control_plane).get(SLICE).await.map_err(|error| error.to_string())?;
        let labels = slice.metadata.labels.unwrap_or_default();
        let addresses: Vec<_> = slice.endpoints.into_iter().flat_map(|endpoint| endpoint.addresses).collect();
        let is_right = labels.get("kubernetes.io/service-name").is_some_and(|name| name == "scopeprobe-collector")
            && addresses == [address];
        if is_right { Ok(()) } else { Err(format!("{labels:?} {addresses:?}")) }
    })
    .await
}

fn operator(control_plane: &ControlPlane, name: &str, address: &str) -> Result<Operator> {
    let arguments = [format!("--pod-ips={address}"), format!("--pod-uid=uid-of-{name}")];
    Operator::start_in(NAMESPACE, control_plane, name, &arguments.each_ref().map(String::as_str))
}

#[tokio::test]
async fn service_leads_to_the_operator_that_works() -> Result<()> {
    let control_plane = control_plane().await?;
    let mut first = operator(&control_plane, "operator-1", "192.0.2.1")?;
    leads_to(&control_plane, "192.0.2.1").await?;
    let mut second = operator(&control_plane, "operator-2", "192.0.2.2")?;
    second.stands_by("operator-1").await?;
    leads_to(&control_plane, "192.0.2.1").await?;

    // What others change or delete, it writes again.
    let foreign = json!({"endpoints": [{"addresses": ["192.0.2.99"]}]});
    let patched = slices(&control_plane).patch(SLICE, &PatchParams::default(), &Patch::Merge(foreign)).await;
    patched.map_err(Error::api("change the slice"))?;
    leads_to(&control_plane, "192.0.2.1").await?;
    slices(&control_plane).delete(SLICE, &DeleteParams::default()).await.map_err(Error::api("delete the slice"))?;
    leads_to(&control_plane, "192.0.2.1").await?;

    first.signal("TERM").await?;
    assert!(first.end().await?);
    leads_to(&control_plane, "192.0.2.2").await?;
    second.is_ready().await
}
