//! Tests the chart's admission policies with a token of the operator's account: all that the operator writes is accepted,
//! and each harmful change of it is refused in the policy's own words.
#![forbid(unsafe_code)]

mod daemon_sets;
mod world;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, ObjectReference, Secret},
    events::v1::Event,
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    runtime::events::EventType,
};
use operator::{
    certificates::keeper::{CertificateKeeper, CertificateSettings},
    cluster::NodeFacts,
    event_recorder::EventRecorder,
    rollout::{apply, build, mode::AgentMode},
};
use scopeprobe_tests::{Error, Result, chart, eventually, manifest};
use serde_json::{Value, json};

use crate::world::{World, assert_refused, not_refused};

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {zone: a}, annotations: {note: a}}
spec: {taints: [{key: a, effect: NoSchedule}]}
";

fn text(error: impl std::error::Error) -> Error {
    Error::Unexpected(error.to_string())
}

/// Applies a DaemonSet as the operator's account; `is_dry` stores nothing.
async fn apply_daemon_set(world: &World, daemon_set: &Value, is_dry: bool) -> kube::Result<DaemonSet> {
    let api: Api<DaemonSet> = Api::namespaced(world.operator.clone(), chart::NAMESPACE);
    let params = PatchParams { dry_run: is_dry, ..PatchParams::apply("scopeprobe-operator").force() };
    let name = daemon_set["metadata"]["name"].as_str().unwrap_or_default();
    api.patch(name, &params, &Patch::Apply(daemon_set)).await
}

#[tokio::test]
async fn agents_of_each_mode_are_accepted_and_nothing_else() -> Result<()> {
    let world = World::new().await?;
    let mut accepted = Vec::new();
    for mode in AgentMode::ALL {
        let good = world.daemon_set(mode)?;
        apply_daemon_set(&world, &good, true).await.map_err(Error::api("apply the operator's DaemonSet"))?;
        for change in daemon_sets::CHANGES {
            if mode == AgentMode::Fallback && change.is_allowed_in_fallback {
                continue;
            }
            let harmful = change.of(&good);
            accepted.extend(not_refused(change.what, apply_daemon_set(&world, &harmful, true).await, change.words));
        }
    }

    assert!(accepted.is_empty(), "{accepted:#?}");

    // A change of what exists is refused as well, and the operator's own is not.
    let good = world.daemon_set(AgentMode::Ebpf)?;
    apply_daemon_set(&world, &good, false).await.map_err(Error::api("make agents"))?;
    let mut changed = good.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("registry.example/other");
    assert_refused("another image", apply_daemon_set(&world, &changed, false).await, "the image of agents is");
    changed = good;
    changed["spec"]["template"]["spec"]["priorityClassName"] = json!("system-node-critical");
    apply_daemon_set(&world, &changed, false).await.map_err(Error::api("change agents"))?;
    Ok(())
}

#[tokio::test]
async fn daemon_sets_of_others_are_neither_changed_nor_deleted() -> Result<()> {
    let world = World::new().await?;
    let theirs = world.daemon_set(AgentMode::Ebpf)?;
    let name = build::name("cluster", AgentMode::Ebpf);
    let mut foreign = theirs.clone();
    foreign["metadata"]["labels"]["app.kubernetes.io/name"] = json!("theirs");
    let foreign = serde_json::from_value(foreign).map_err(text)?;
    let admins: Api<DaemonSet> = Api::namespaced(world.control_plane.client.clone(), chart::NAMESPACE);
    admins.create(&PostParams::default(), &foreign).await.map_err(Error::api("make a DaemonSet of others"))?;
    let words = "the operator may only change and delete DaemonSets of agents";
    assert_refused("to take it over", apply_daemon_set(&world, &theirs, true).await, words);
    let api: Api<DaemonSet> = Api::namespaced(world.operator.clone(), chart::NAMESPACE);
    assert_refused("to delete it", api.delete(&name, &DeleteParams::default()).await, words);

    admins.delete(&name, &DeleteParams::default()).await.map_err(Error::api("delete it"))?;
    apply_daemon_set(&world, &theirs, false).await.map_err(Error::api("make agents"))?;
    apply::delete_daemon_sets(&api, chart::NAMESPACE, "app.kubernetes.io/name=scopeprobe-agent").await.map_err(text)?;
    let left = api.list(&ListParams::default()).await.map_err(Error::api("list DaemonSets"))?;
    assert!(left.items.is_empty());
    Ok(())
}

#[tokio::test]
async fn only_two_labels_of_a_node_change() -> Result<()> {
    let world = World::new().await?;
    let made = manifest::apply(&world.control_plane.client, "", NODE).await?.remove(0);
    let node =
        NodeFacts { name: "node-1".to_owned(), uid: made.metadata.uid.unwrap_or_default(), ..NodeFacts::default() };
    for mode in [AgentMode::Ebpf, AgentMode::Fallback] {
        let labels = build::node_labels("cluster", mode);
        let labelled = apply::label_node(&world.operator, &node, &labels).await.map_err(text)?;
        assert_eq!(labelled, apply::Labelled::Done);
    }
    apply::unlabel_node(&world.operator, "node-1").await.map_err(text)?;

    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.operator.clone());
    let mut refused = 0;
    for harmful in [
        json!({"metadata": {"labels": {"zone": "b"}}}),
        json!({"metadata": {"labels": {"zone": null}}}),
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}),
        json!({"metadata": {"annotations": {"note": "b"}}}),
        json!({"metadata": {"finalizers": ["example.com/stay"]}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "b"}]}}),
        json!({"spec": {"taints": null}}),
        json!({"spec": {"unschedulable": true}}),
        json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
        // Together with its own label.
        json!({"metadata": {"labels": {"scopeprobe.io/mode": "ebpf"}}, "spec": {"unschedulable": true}}),
    ] {
        let patched = nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(&harmful)).await;
        assert_refused(
            &harmful.to_string(),
            patched,
            "the operator may only change the labels scopeprobe.io/probe and",
        );
        refused += 1;
    }
    assert_eq!(refused, 10);
    Ok(())
}

async fn create(world: &World, object: Value) -> kube::Result<()> {
    let object: DynamicObject = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    let namespace = object.metadata.namespace.clone().unwrap_or_else(|| chart::NAMESPACE.to_owned());
    let types = object.types.clone().unwrap_or_default();
    let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
    let kind = kube::core::GroupVersionKind::gvk(group, version, &types.kind);
    let api: Api<DynamicObject> =
        Api::namespaced_with(world.operator.clone(), &namespace, &kube::api::ApiResource::from_gvk(&kind));
    api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await.map(|_| ())
}

#[tokio::test]
async fn objects_are_created_under_their_own_names_alone() -> Result<()> {
    let world = World::new().await?;
    let settings = CertificateSettings {
        namespace: chart::NAMESPACE.to_owned(),
        deployment: None,
        service: format!("{}-collector", chart::RELEASE),
        foreign_secret: None,
        lifetime: std::time::Duration::from_hours(1),
    };
    let keeper = CertificateKeeper::new(world.operator.clone(), settings);
    keeper.once().await.map_err(text)?;
    let admin = &world.control_plane.client;
    let secrets = Api::<Secret>::namespaced(admin.clone(), chart::NAMESPACE);
    secrets
        .delete("scopeprobe-collector-tls", &DeleteParams::default())
        .await
        .map_err(Error::api("delete a Secret"))?;
    let maps = Api::<ConfigMap>::namespaced(admin.clone(), chart::NAMESPACE);
    assert!(maps.get("scopeprobe-collector-ca").await.is_ok());

    let lease = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace}, "spec": {},
        })
    };
    for (namespace, name) in [(chart::NAMESPACE, "scopeprobe-operator"), ("kube-system", "scopeprobe-cluster")] {
        create(&world, lease(namespace, name)).await.map_err(Error::api("make the operator's Lease"))?;
    }
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": "scopeprobe-collector-tls",
            "annotations": {"kubernetes.io/service-account.name": "scopeprobe-operator"},
        },
    });
    let named = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "other"}});
    for (what, object, words) in [
        ("a token in a Secret of its name", token, "the operator may only create the Secret scopeprobe-collector-tls"),
        ("another Secret", named("Secret"), "the operator may only create the Secret scopeprobe-collector-tls"),
        ("another ConfigMap", named("ConfigMap"), "the operator may only create the ConfigMap scopeprobe-collector-ca"),
        ("another Lease", lease(chart::NAMESPACE, "other"), "the operator may only create the Leases"),
        ("a Lease of a controller", lease("kube-system", "kube-scheduler"), "the operator may only create the Leases"),
    ] {
        assert_refused(what, create(&world, object).await, words);
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_belong_to_the_service_of_the_collector() -> Result<()> {
    let world = World::new().await?;
    let slice = |name: &str, service: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        })
    };
    let api: Api<k8s_openapi::api::discovery::v1::EndpointSlice> =
        Api::namespaced(world.operator.clone(), chart::NAMESPACE);
    let apply = async |slice: Value| {
        let name = slice["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        api.patch(&name, &PatchParams::apply("scopeprobe-operator").force(), &Patch::Apply(slice)).await
    };
    let own = slice("scopeprobe-collector-ipv4", "scopeprobe-collector");
    apply(own.clone()).await.map_err(Error::api("write the operator's EndpointSlice"))?;
    apply(own).await.map_err(Error::api("write it again"))?;
    let words = "EndpointSlices of the operator belong to the Service scopeprobe-collector";
    assert_refused("of another Service", apply(slice("scopeprobe-collector-ipv4", "theirs")).await, words);
    assert_refused("of another Service", apply(slice("scopeprobe-collector-ipv6", "theirs")).await, words);
    // Without a policy: RBAC has the names.
    assert_refused("another name", apply(slice("other", "scopeprobe-collector")).await, "cannot patch resource");
    Ok(())
}

#[tokio::test]
async fn events_are_about_objects_of_scopeprobe() -> Result<()> {
    let world = World::new().await?;
    let object = |api_version: &str| ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some("Topology".to_owned()),
        name: Some("web".to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some("u".to_owned()),
        ..ObjectReference::default()
    };
    let recorder = EventRecorder::new(world.operator.clone(), "operator-1");
    for about in ["scopeprobe.io/v1alpha1", "v1", "scopeprobe.io/v1alpha1"] {
        recorder.record(&object(about), EventType::Normal, "Reason", "Action", about).await;
    }
    let events: Api<Event> = Api::namespaced(world.control_plane.client.clone(), "default");
    let ours = events.list(&ListParams::default()).await.map_err(Error::api("list events"))?.items;
    let ours: Vec<_> = ours.iter().filter(|event| event.reason.as_deref() == Some("Reason")).collect();
    assert_eq!(ours.len(), 1, "{ours:#?}");
    assert_eq!(ours[0].note.as_deref(), Some("scopeprobe.io/v1alpha1"));
    assert_eq!(ours[0].series.as_ref().map(|series| series.count), Some(2));
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z",
        "metadata": {"name": "a", "namespace": "default"}, "reason": "a", "action": "a",
        "reportingController": "scopeprobe.io/operator", "reportingInstance": "a",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "default"},
    });
    assert_refused(
        "about a pod",
        create(&world, event).await,
        "events of the operator are about objects of scopeprobe.io",
    );
    Ok(())
}

/// The account can neither change nor remove what restricts it. People can write what it cannot.
#[tokio::test]
async fn policies_restrict_the_operator_alone_and_it_cannot_write_them() -> Result<()> {
    let world = World::new().await?;
    let policies = "admissionregistration.k8s.io/v1";
    for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        let kind = kube::core::GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = kube::api::ApiResource::from_gvk(&kind);
        assert_eq!(resource.api_version, policies);
        let admins: Api<DynamicObject> = Api::all_with(world.control_plane.client.clone(), &resource);
        let there = admins.list(&ListParams::default()).await.map_err(Error::api("list policies"))?.items;
        let ours: Vec<_> = there.into_iter().filter_map(|policy| policy.metadata.name).collect();
        assert_eq!(ours, ["agents", "nodes", "objects"].map(|policy| format!("scopeprobe-operator-{policy}")));
        let api: Api<DynamicObject> = Api::all_with(world.operator.clone(), &resource);
        let change = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
        let patched = api.patch(&ours[0], &PatchParams::default(), &change).await;
        assert_refused("to change a policy", patched, "cannot patch resource");
        let deleted = api.delete(&ours[0], &DeleteParams::default()).await;
        assert_refused("to delete a policy", deleted, "cannot delete resource");
    }
    let theirs: DaemonSet = serde_json::from_value(json!({
        "metadata": {"name": "theirs"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"hostNetwork": true, "containers": [{"name": "a", "image": "b"}]},
            },
        },
    }))
    .map_err(text)?;
    let admins: Api<DaemonSet> = Api::namespaced(world.control_plane.client.clone(), chart::NAMESPACE);
    eventually("a DaemonSet of people", async || {
        admins.create(&PostParams::default(), &theirs).await.map_err(|error| error.to_string())
    })
    .await?;
    Ok(())
}
