//! Compares the rights of our accounts with what they request, by the API server's audit log: over an installation with
//! everything that the operator does, each right is needed, and no request is refused.
#![forbid(unsafe_code)]

mod granted;

use std::{collections::BTreeSet, net::SocketAddr};

use crds::{Mode, Topology};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use prerequisites::{Prerequisite, skip};
use scopeprobe_tests::{Cluster, Error, Result, chart, eventually, namespace::Namespace, undo::Undo};
use serde_json::json;
use traffic::protocol::Connect;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// Lease of the installation that has the cluster.
const CLAIM: &str = "scopeprobe-cluster";

/// Waits until the API server's controller has checked the types of the policies' expressions, and found no error.
async fn policies_are_well_typed(cluster: &Cluster) -> Result<()> {
    let checks = "jsonpath={range .items[*]}{.status.observedGeneration}:{.status.typeChecking.expressionWarnings}{\"\\n\"}{end}";
    let ours = "--selector=app.kubernetes.io/part-of=scopeprobe";
    eventually("well-typed policies", async || {
        let checked = cluster.kubectl(&["get", "validatingadmissionpolicies", ours, "--output", checks]).await;
        let checked = checked.map_err(|error| error.to_string())?;
        let is_good = |line: &str| line.strip_suffix(':').is_some_and(|generation| !generation.is_empty());
        if checked.lines().count() == 3 && checked.lines().all(is_good) { Ok(()) } else { Err(checked) }
    })
    .await
}

/// Lets the API server refuse agents' pods for a while, of which the operator reads the events.
async fn forbid_pods_for_a_while(cluster: &Cluster) -> Result<()> {
    let undo = Undo::by(cluster, &["label", "namespace", chart::NAMESPACE, &format!("{ENFORCE}-")]);
    let enforced = format!("{ENFORCE}=baseline");
    cluster.kubectl(&["label", "--overwrite", "namespace", chart::NAMESPACE, &enforced]).await?;
    cluster.apply_probe("{}").await?;
    eventually("the refusal of the agents' pods", async || {
        let ready = cluster.probe_condition("Ready").await.map_err(|error| error.to_string())?;
        if ready.reason == "PodsForbidden" { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await?;
    drop(undo);
    cluster.ready_probe().await
}

/// Two pods that talk, until both have a Topology.
async fn talk(cluster: &Cluster) -> Result<Namespace> {
    let namespace = cluster.namespace("rights").await?;
    let server = namespace.traffic_pod("server", Some("node-1"), &["main"]).await?.remove(0);
    let client = namespace.traffic_pod("client", Some("node-2"), &["main"]).await?.remove(0);
    let port = server.echo("0.0.0.0:0").await?.port();
    let target = SocketAddr::new(namespace.pod_ip("server").await?, port);
    client.connect(Connect { hold: Some("held".into()), ..Connect::to(target) }).await?;
    have_topologies(&namespace).await?;
    Ok(namespace)
}

async fn have_topologies(namespace: &Namespace) -> Result<()> {
    let topologies = namespace.api::<Topology>();
    eventually("two Topologies", async || {
        let there = topologies.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        if there == 2 { Ok(()) } else { Err(there.to_string()) }
    })
    .await
}

/// Returns the name of a Topology to which the operator has given labels, those of its pods.
async fn one_with_labels(namespace: &Namespace) -> Result<String> {
    let label = "app.kubernetes.io/part-of=rights";
    namespace.cluster.kubectl(&["label", "pods", "--all", label, "--namespace", &namespace.name]).await?;
    let topologies = namespace.api::<Topology>();
    eventually("a Topology with the label of its pods", async || {
        let labelled =
            topologies.list(&ListParams::default().labels(label)).await.map_err(|error| error.to_string())?;
        labelled.items.into_iter().find_map(|topology| topology.metadata.name).ok_or_else(|| "none".to_owned())
    })
    .await
}

/// Ends the operator. The next one finds a damaged certificate, and the cluster claimed by an installation that is gone.
async fn change_the_leader(cluster: &Cluster) -> Result<()> {
    let merge = PatchParams::default();
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    let gone = json!({"spec": {"holderIdentity": "elsewhere/gone"}});
    leases.patch(CLAIM, &merge, &Patch::Merge(gone)).await.map_err(Error::api("change the claim"))?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let name = format!("{}-collector-tls", chart::RELEASE);
    let damaged = json!({"data": {"generations.json": "AAAA"}});
    let damaged = secrets.patch(&name, &merge, &Patch::Merge(damaged)).await.map_err(Error::api("damage a Secret"))?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/name=scopeprobe-operator");
    let ended = pods.delete_collection(&DeleteParams::default(), &operators).await;
    ended.map_err(Error::api("delete the operator"))?;
    let own = format!("{}/{}-operator", chart::NAMESPACE, chart::RELEASE);
    eventually("the next operator to take its place", async || {
        let claim = leases.get(CLAIM).await.map_err(|error| error.to_string())?.spec.unwrap_or_default();
        let secret = secrets.get(&name).await.map_err(|error| error.to_string())?;
        if claim.holder_identity.as_ref() == Some(&own) && secret.data != damaged.data {
            return Ok(());
        }
        Err(format!("{claim:?}"))
    })
    .await?;
    cluster.ready_probe().await
}

#[tokio::test]
async fn every_right_is_needed_and_no_request_refused() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let Ok(audit) = cluster.audit() else {
        skip(Prerequisite::OwnCluster, "the audit log of another cluster is out of reach");
        return Ok(());
    };
    cluster.uninstall_chart().await?;
    let mark = audit.mark()?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let of_release = ["--namespace", chart::NAMESPACE];
    let manifest = cluster.helm(&[&["get", "manifest", chart::RELEASE][..], &of_release].concat()).await?;
    let hooks = cluster.helm(&[&["get", "hooks", chart::RELEASE][..], &of_release].concat()).await?;
    let rights = granted::of(&format!("{manifest}\n---\n{hooks}"))?;

    policies_are_well_typed(&cluster).await?;
    forbid_pods_for_a_while(&cluster).await?;
    let namespace = talk(&cluster).await?;
    cluster.probe_as("{mode: Fallback}", |_| Mode::Fallback).await?;
    // The same change twice is one event with a count.
    cluster.probe("{}").await?;
    change_the_leader(&cluster).await?;
    cluster.unprobe().await?;
    cluster.probe("{}").await?;
    have_topologies(&namespace).await?;
    // To one of them people have written.
    let theirs = one_with_labels(&namespace).await?;
    cluster
        .kubectl(&["annotate", "topologies.scopeprobe.io", &theirs, "note=a", "--namespace", &namespace.name])
        .await?;

    let ours = format!("system:serviceaccount:{}:", chart::NAMESPACE);
    let is_refused = |code: u16| code == 401 || code == 403;
    let refused = audit.requests_since(mark, |it| it.user.starts_with(&ours) && is_refused(it.code))?;
    // Helm deletes the operator's rights while it still ends.
    let end = audit.mark()?;
    cluster.uninstall_chart().await?;
    let operator = format!("{ours}{}-operator", chart::RELEASE);
    let late =
        audit.requests_since(end, |it| it.user.starts_with(&ours) && it.user != operator && is_refused(it.code))?;
    let refused: BTreeSet<_> = refused.into_iter().chain(late).collect();
    assert!(refused.is_empty(), "requests that were refused: {refused:#?}");

    let requests = audit.requests_since(mark, |it| it.user.starts_with(&ours) && !is_refused(it.code))?;
    assert!(requests.iter().any(|it| it.verb == "watch"), "the audit log has no reads");
    let never = granted::unneeded(&rights, &requests);
    assert!(never.is_empty(), "{} of {} rights were not needed: {never:#?}", never.len(), rights.len());
    Ok(())
}
