//! Tests uninstalling: in either order of release and ScopeProbe, only what docs/uninstall.md lists remains.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, fs, net::SocketAddr};

use crds::{ScopeProbe, Topology};
use k8s_openapi::{
    api::core::v1::{Namespace as KubeNamespace, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use scopeprobe_tests::{
    Cluster, Error, Result, chart, eventually, inventory, namespace::Namespace, place, scope_probe,
};
use traffic::protocol::Connect;

const KINDS: [&str; 3] = ["nodeprobes.scopeprobe.io", "scopeprobes.scopeprobe.io", "topologies.scopeprobe.io"];

/// Returns what Helm and Kubernetes leave in a namespace that Helm created.
fn namespace_and_what_is_in_any() -> BTreeSet<String> {
    let namespace = chart::NAMESPACE;
    [
        format!("Namespace {namespace}"),
        format!("ServiceAccount {namespace}/default"),
        format!("ConfigMap {namespace}/kube-root-ca.crt"),
    ]
    .into()
}

fn kinds() -> BTreeSet<String> {
    let version = crds::VERSION;
    let definitions = KINDS.iter().map(|kind| format!("CustomResourceDefinition {kind}"));
    // The API server's own note that it serves the group.
    definitions.chain([format!("APIService {version}.{}", crds::GROUP)]).collect()
}

fn asked_for() -> BTreeSet<String> {
    [format!("ScopeProbe {}", scope_probe::NAME)].into()
}

fn union<const N: usize>(parts: [&BTreeSet<String>; N]) -> BTreeSet<String> {
    parts.into_iter().flatten().cloned().collect()
}

/// Waits until the cluster holds exactly this.
async fn assert_holds(cluster: &Cluster, when: &str, expected: &BTreeSet<String>) -> Result<()> {
    eventually(&format!("{when}: the cluster to hold what it should"), async || {
        let there = inventory::take(cluster).await.map_err(|error| error.to_string())?;
        let left: Vec<_> = there.difference(expected).collect();
        let missing: Vec<_> = expected.difference(&there).collect();
        if left.is_empty() && missing.is_empty() {
            Ok(())
        } else {
            Err(format!("left {left:#?}, missing {missing:#?}"))
        }
    })
    .await
}

/// Removes what docs/uninstall.md says has to be removed by hand.
async fn remove_by_hand(cluster: &Cluster) -> Result<()> {
    let kinds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for kind in KINDS {
        absent(kinds.delete(kind, &DeleteParams::default()).await.map(|_| ()))?;
    }
    let namespaces: Api<KubeNamespace> = Api::all(cluster.client.clone());
    absent(namespaces.delete(chart::NAMESPACE, &DeleteParams::default()).await.map(|_| ()))?;
    eventually("kinds and namespace to be gone", async || {
        let namespace = namespaces.get_opt(chart::NAMESPACE).await.map_err(|error| error.to_string())?;
        let kinds = kinds.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let ours = kinds.iter().filter(|kind| kind.spec.group == crds::GROUP).count();
        if namespace.is_none() && ours == 0 { Ok(()) } else { Err(format!("{ours} kinds, namespace {namespace:?}")) }
    })
    .await
}

fn absent(result: kube::Result<()>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code != 404 => {
            Err(Error::Unexpected(format!("cannot remove it: {status:?}")))
        }
        Err(kube::Error::Api(_)) | Ok(()) => Ok(()),
        Err(error) => Err(Error::api("remove it")(error)),
    }
}

/// Two pods that talk, so that there is something to show.
async fn talk(cluster: &Cluster) -> Result<Namespace> {
    let namespace = cluster.namespace("uninstall").await?;
    let server = namespace.traffic_pod("server", Some("node-1"), &["main"]).await?.remove(0);
    let client = namespace.traffic_pod("client", Some("node-2"), &["main"]).await?.remove(0);
    let port = server.echo("0.0.0.0:0").await?.port();
    let target = SocketAddr::new(namespace.pod_ips("server").await?[0], port);
    client.connect(Connect { hold: Some("held".into()), ..Connect::to(target) }).await?;
    Ok(namespace)
}

async fn topologies(namespace: &Namespace) -> Result<usize, String> {
    let list = namespace.api::<Topology>().list(&ListParams::default()).await;
    match list {
        Ok(list) => Ok(list.items.len()),
        // Without the kind there is none of them.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks for the topology and waits until everything that the operator makes is there.
async fn use_it(cluster: &Cluster, namespace: &Namespace) -> Result<()> {
    cluster.probe("{}").await?;
    eventually("two Topologies", async || match topologies(namespace).await? {
        2 => Ok(()),
        other => Err(other.to_string()),
    })
    .await?;
    let there = inventory::take(cluster).await?;
    let set = format!("DaemonSet {}/scopeprobe-{}-ebpf", chart::NAMESPACE, scope_probe::NAME);
    let label = format!("{}={}", crds::PROBE_LABEL, scope_probe::NAME);
    let lease = format!("Lease {}/scopeprobe-operator", chart::NAMESPACE);
    let claim = "Lease kube-system/scopeprobe-cluster".to_owned();
    for expected in [set, lease, claim, format!("Node node-1 {label}"), "NodeProbe node-2".to_owned()] {
        assert!(there.contains(&expected), "without {expected} there is nothing to remove: {there:#?}");
    }
    Ok(())
}

/// Returns the EndpointSlices that the operator makes: one for each address family of its pod.
async fn operators_slices(cluster: &Cluster) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/name=scopeprobe-operator");
    let pods = pods.list(&operators).await.map_err(Error::api("list the operators"))?.items;
    let addresses = pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ips.as_ref()).flatten();
    let families = addresses.map(|address| if address.ip.contains(':') { "ipv6" } else { "ipv4" });
    Ok(families.map(|family| format!("EndpointSlice {}/scopeprobe-collector-{family}", chart::NAMESPACE)).collect())
}

async fn assert_no_topologies(namespace: &Namespace) -> Result<()> {
    eventually("the Topologies to go", async || match topologies(namespace).await? {
        0 => Ok(()),
        other => Err(other.to_string()),
    })
    .await
}

#[test]
fn the_docs_say_what_is_left() {
    let path = place::repository().join("docs/uninstall.md");
    let page = fs::read_to_string(path).unwrap_or_default();
    for left in KINDS.into_iter().chain(["scopeprobe-system", "crds.keep=false", "kubectl delete namespace", "Events"])
    {
        assert!(page.contains(left), "docs/uninstall.md does not speak of {left}");
    }
}

#[tokio::test]
async fn nothing_is_left_but_what_the_docs_say() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.uninstall_chart().await?;
    remove_by_hand(&cluster).await?;
    let before = inventory::take(&cluster).await?;
    let namespace = talk(&cluster).await?;
    let documented = namespace_and_what_is_in_any();

    // The release first: the ScopeProbe stays, and asks for nothing that anybody would do.
    cluster.install_chart(&[]).await?;
    use_it(&cluster, &namespace).await?;
    cluster.uninstall_chart().await?;
    let kept = union([&before, &documented, &kinds(), &asked_for()]);
    assert_holds(&cluster, "uninstalled before the ScopeProbe was deleted", &kept).await?;
    assert_no_topologies(&namespace).await?;
    let probes: Api<ScopeProbe> = Api::all(cluster.client.clone());
    probes.delete(scope_probe::NAME, &DeleteParams::default()).await.map_err(Error::api("delete the ScopeProbe"))?;
    assert_holds(&cluster, "the ScopeProbe deleted as well", &union([&before, &documented, &kinds()])).await?;

    // The ScopeProbe first: the operator stays, and removes all that it has made for it.
    cluster.install_chart(&[]).await?;
    let slices = operators_slices(&cluster).await?;
    let unused = eventually("the objects of a working operator", async || {
        let there = inventory::take(&cluster).await.map_err(|error| error.to_string())?;
        let leases = [
            format!("Lease {}/scopeprobe-operator", chart::NAMESPACE),
            "Lease kube-system/scopeprobe-cluster".to_owned(),
        ];
        let missing: Vec<_> = leases.iter().chain(&slices).filter(|it| !there.contains(*it)).cloned().collect();
        if missing.is_empty() { Ok(there) } else { Err(missing.join(", ")) }
    })
    .await?;
    use_it(&cluster, &namespace).await?;
    probes.delete(scope_probe::NAME, &DeleteParams::default()).await.map_err(Error::api("delete the ScopeProbe"))?;
    assert_holds(&cluster, "the ScopeProbe deleted, the operator there", &unused).await?;
    assert_no_topologies(&namespace).await?;
    cluster.uninstall_chart().await?;
    assert_holds(&cluster, "uninstalled as well", &union([&before, &documented, &kinds()])).await?;

    // All at once.
    cluster.install_chart(&["crds.keep=false"]).await?;
    use_it(&cluster, &namespace).await?;
    cluster.uninstall_chart().await?;
    assert_holds(&cluster, "uninstalled with the kinds", &union([&before, &documented])).await?;
    assert_no_topologies(&namespace).await?;

    remove_by_hand(&cluster).await?;
    assert_holds(&cluster, "the rest removed by hand", &before).await
}
