//! Tests agents that cannot run: the ScopeProbe says what the API server or the kubelet says, and becomes ready when the
//! cause is gone.
#![forbid(unsafe_code)]

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use scopeprobe_tests::{Cluster, Error, Result, chart, eventually, scope_probe, undo::Undo};
use serde_json::json;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Sets the level of pod security in the operator's namespace; none removes it.
async fn enforce(cluster: &Cluster, level: Option<&str>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let labels = json!({"metadata": {"labels": {ENFORCE: level}}});
    let patched = namespaces.patch(chart::NAMESPACE, &PatchParams::default(), &Patch::Merge(labels)).await;
    patched.map(|_| ()).map_err(Error::api("label the namespace"))
}

async fn expect(cluster: &Cluster, what: &str, is_so: impl Fn(&Condition) -> bool) -> Result<()> {
    eventually(what, async || {
        let ready = cluster.probe_condition("Ready").await.map_err(|error| error.to_string())?;
        if is_so(&ready) { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await
}

#[tokio::test]
async fn what_keeps_agents_from_running_is_said_with_its_cure() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;

    let undo = Undo::by(&cluster, &["label", "namespace", chart::NAMESPACE, &format!("{ENFORCE}-")]);
    enforce(&cluster, Some("baseline")).await?;
    cluster.apply_probe("{}").await?;
    expect(&cluster, "the refusal of the agents' pods", |ready| {
        (ready.status.as_str(), ready.reason.as_str()) == ("False", "PodsForbidden")
            && ready.message.contains("violates PodSecurity \"baseline:latest\"")
            && ready.message.contains("pod-security.kubernetes.io/enforce=privileged")
    })
    .await?;
    enforce(&cluster, None).await?;
    drop(undo);
    expect(&cluster, "agents in a namespace without a level", |ready| ready.status == "True").await?;

    cluster.apply_probe("{agent: {resources: {requests: {memory: 900Gi}, limits: {memory: 900Gi}}}}").await?;
    expect(&cluster, "the scheduler's words", |ready| {
        ready.reason == "PodsUnschedulable" && ready.message.contains("Insufficient memory")
    })
    .await?;
    cluster.apply_probe("{}").await?;
    expect(&cluster, "agents that fit", |ready| ready.status == "True").await?;

    // A person changes the DaemonSet, whose pods stay. The operator cannot correct it without writing what is forbidden.
    let set = format!("daemonset/scopeprobe-{}-ebpf", scope_probe::NAME);
    let namespace = format!("--namespace={}", chart::NAMESPACE);
    let patch = async |change: &str| cluster.kubectl(&["patch", &set, &namespace, "--patch", change]).await;
    let stay = r#""updateStrategy": {"type": "OnDelete", "rollingUpdate": null}"#;
    patch(&format!(r#"{{"spec": {{{stay}, "template": {{"spec": {{"hostNetwork": true}}}}}}}}"#)).await?;
    expect(&cluster, "the policy's words", |ready| {
        (ready.status.as_str(), ready.reason.as_str()) == ("False", "ApplyFailed")
            && ready.message.contains("ValidatingAdmissionPolicy 'scopeprobe-operator-agents'")
            && ready.message.matches("pods of agents have no network, ports or IPC of their node").count() == 1
    })
    .await?;
    patch(r#"{"spec": {"template": {"spec": {"hostNetwork": null}}}}"#).await?;
    expect(&cluster, "agents as they should be", |ready| ready.status == "True").await
}
