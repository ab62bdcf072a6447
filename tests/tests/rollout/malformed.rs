//! Objects of our own kinds that do not decode cost only themselves, and are mended as far as they are the operator's.

use std::collections::BTreeMap;

use crds::{Mode, NodeProbe, ScopeProbe};
use k8s_openapi::{
    api::apps::v1::DaemonSet,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use scopeprobe_tests::{Error, Result, eventually, manifest};
use serde_json::{Value, json};

use crate::{
    by_kernel, fleet,
    lab::{IMAGE, Lab, NAMESPACE, PROBE, works},
    rolled_out_fleet,
};

/// A condition whose time passes the API server's checks and is none.
fn poison() -> Value {
    json!({"status": {"conditions": [{
        "type": "X", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00+99:99",
    }]}})
}

impl Lab {
    /// The object as it is, whether it decodes or not.
    fn raw<K: Resource<DynamicType = ()>>(&self) -> Api<DynamicObject> {
        Api::all_with(self.client(), &ApiResource::erase::<K>(&()))
    }

    async fn poison<K: Resource<DynamicType = ()>>(&self, name: &str) -> Result<()> {
        let by = PatchParams { field_manager: Some("another-manager".to_owned()), ..PatchParams::default() };
        let patched = self.raw::<K>().patch_status(name, &by, &Patch::Merge(poison())).await;
        patched.map(|_| ()).map_err(Error::api(format!("poison {name}")))
    }

    /// Waits until a condition is there and that of the poison is not.
    async fn mended<K: Resource<DynamicType = ()>>(&self, name: &str, type_: &str) -> Result<Value> {
        eventually(&format!("{name} to be written anew"), async || {
            let object = self.raw::<K>().get(name).await.map_err(|error| error.to_string())?;
            let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let condition = |type_: &str| conditions.iter().find(|it| it["type"] == type_).cloned();
            match (condition("X"), condition(type_)) {
                (None, Some(found)) => Ok(found),
                _ => Err(object.data["status"].to_string()),
            }
        })
        .await
    }

    /// All that a rollout has made, by name, with the version or UID by which a change would show.
    async fn made(&self) -> Result<BTreeMap<String, String>> {
        let mut made = self.versions().await?;
        let sets: Api<DaemonSet> = Api::namespaced(self.client(), NAMESPACE);
        let sets = sets.list(&ListParams::default()).await.map_err(Error::api("list DaemonSets"))?;
        made.extend(sets.iter().map(|set| (format!("set {}", set.name_any()), set.uid().unwrap_or_default())));
        let probes = self.raw::<NodeProbe>().list(&ListParams::default()).await;
        let probes = probes.map_err(Error::api("list NodeProbes"))?;
        made.extend(probes.iter().map(|it| (format!("NodeProbe {}", it.name_any()), it.uid().unwrap_or_default())));
        Ok(made)
    }

    async fn all_node_probes_are_there(&self) -> Result<()> {
        let linux = by_kernel().values().flatten().count();
        eventually("a NodeProbe for each Linux node", async || {
            let all = self.node_probes().await?;
            if all.len() == linux { Ok(()) } else { Err(format!("{} of {linux}", all.len())) }
        })
        .await
    }
}

#[tokio::test]
async fn malformed_node_probe_is_written_anew_and_costs_no_other() -> Result<()> {
    let (mut lab, _) = rolled_out_fleet().await?;
    lab.all_node_probes_are_there().await?;
    let node = fleet::with_kernel("6.1.0-37-amd64");

    // One that an operator finds at its start,
    lab.stop_operator().await;
    lab.poison::<NodeProbe>(&node).await?;
    lab.start_operator(IMAGE).await?;
    lab.mended::<NodeProbe>(&node, "Reporting").await?;
    lab.all_node_probes_are_there().await?;

    // and one that becomes so while it runs.
    lab.poison::<NodeProbe>(&node).await?;
    lab.mended::<NodeProbe>(&node, "Reporting").await?;
    lab.node_probe(&node, |status| status.choice.agents == "ebpf").await?;
    Ok(())
}

#[tokio::test]
async fn malformed_status_of_scope_probe_is_written_anew_and_moves_no_node() -> Result<()> {
    let (mut lab, labels) = rolled_out_fleet().await?;
    lab.all_node_probes_are_there().await?;
    let before = lab.made().await?;
    lab.poison::<ScopeProbe>(PROBE).await?;
    lab.mended::<ScopeProbe>(PROBE, "Ready").await?;
    lab.stop_operator().await;
    lab.poison::<ScopeProbe>(PROBE).await?;
    lab.start_operator(IMAGE).await?;
    lab.mended::<ScopeProbe>(PROBE, "Ready").await?;
    lab.probe(&json!({"topology": {"retention": "2h"}})).await?;
    lab.labelled(&labels).await?;
    assert_eq!(lab.made().await?, before, "nothing was made anew or changed");
    Ok(())
}

/// The mode was written in other letters before `v1alpha1` had its lasting shape.
#[tokio::test]
async fn node_probe_of_the_earlier_shape_is_written_anew() -> Result<()> {
    let (mut lab, _) = rolled_out_fleet().await?;
    lab.all_node_probes_are_there().await?;
    let kernel = "6.1.0-37-amd64";
    let node = fleet::with_kernel(kernel);
    lab.report(&node, works("ebpf", kernel));
    let before = lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf)).await?;
    lab.stop_operator().await;
    take_any(&lab, "nodeprobes.scopeprobe.io", "status").await?;
    let earlier = Patch::Merge(json!({"status": {"mode": "Ebpf", "history": [{"mode": "Ebpf"}]}}));
    let raw = lab.raw::<NodeProbe>();
    eventually("the API server to take any status", async || {
        let patched = raw.patch_status(&node, &PatchParams::default(), &earlier).await;
        patched.map_err(|error| error.to_string())
    })
    .await?;
    let written = async |what: &str, is_it: &dyn Fn(&Value) -> bool| {
        eventually(what, async || {
            let status = raw.get(&node).await.map_err(|error| error.to_string())?.data["status"].clone();
            if is_it(&status) { Ok(()) } else { Err(status.to_string()) }
        })
        .await
    };
    written("the earlier mode to be there", &|status| status["mode"] == "Ebpf").await?;
    lab.start_operator(IMAGE).await?;
    lab.report(&node, works("ebpf", kernel));
    written("the mode to be written anew", &|status| status["mode"] == "EBPF" && !status.to_string().contains("Ebpf"))
        .await?;
    lab.node_probe(&node, |status| status.choice == before.choice).await?;
    lab.all_node_probes_are_there().await
}

/// From now on the API server takes any `spec`, as one of another version would.
async fn take_any_spec(lab: &Lab) -> Result<()> {
    take_any(lab, "scopeprobes.scopeprobe.io", "spec").await
}

async fn take_any(lab: &Lab, kind: &str, property: &str) -> Result<()> {
    let kinds: Api<CustomResourceDefinition> = Api::all(lab.client());
    let mut kind = kinds.get(kind).await.map_err(Error::api("read the kind"))?;
    let schema = kind.spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
    let properties = schema.and_then(|schema| schema.properties.as_mut()).expect("it has a schema");
    let any = JSONSchemaProps {
        type_: Some("object".to_owned()),
        x_kubernetes_preserve_unknown_fields: Some(true),
        ..JSONSchemaProps::default()
    };
    properties.insert(property.to_owned(), any);
    let name = kind.name_any();
    kinds.replace(&name, &PostParams::default(), &kind).await.map_err(Error::api("change the kind"))?;
    Ok(())
}

#[tokio::test]
async fn malformed_spec_says_so_and_leaves_its_nodes_as_they_are() -> Result<()> {
    let (mut lab, labels) = rolled_out_fleet().await?;
    lab.all_node_probes_are_there().await?;
    let before = lab.made().await?;
    take_any_spec(&lab).await?;
    let wrong = Patch::Merge(json!({"spec": {"capture": {"maxFlows": "many"}}}));
    eventually("the API server to take any spec", async || {
        let patched = lab.raw::<ScopeProbe>().patch(PROBE, &PatchParams::default(), &wrong).await;
        patched.map_err(|error| error.to_string())
    })
    .await?;
    let says_so = async |lab: &Lab| {
        eventually("the ScopeProbe to say what is wrong", async || {
            let ready = lab.mended::<ScopeProbe>(PROBE, "Ready").await.map_err(|error| error.to_string())?;
            let message = ready["message"].as_str().unwrap_or_default();
            let right = ready["reason"] == "Malformed" && message.contains("many");
            if right { Ok(()) } else { Err(ready.to_string()) }
        })
        .await
    };
    says_so(&lab).await?;

    // A younger one that selects the same nodes does not get them, also from an operator that knows of nothing else.
    lab.stop_operator().await;
    lab.start_operator(IMAGE).await?;
    says_so(&lab).await?;
    let young = json!({"apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": "young"}, "spec": {}});
    manifest::apply(&lab.client(), "", &young.to_string()).await?;
    eventually("the younger one to have no node", async || {
        let young = lab.probes().get("young").await.map_err(|error| error.to_string())?;
        let conditions = young.status.unwrap_or_default().conditions;
        let ready = conditions.iter().find(|it| it.type_ == "Ready").ok_or("nothing is said of it")?;
        if ready.reason == "NoNodeSelected" { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await?;
    lab.labelled(&labels).await?;
    assert_eq!(lab.made().await?, before, "nothing was removed, made anew or changed");

    // Mended, it goes on.
    let right = Patch::Merge(json!({"spec": {"capture": {"maxFlows": 1024}}}));
    let patched = lab.raw::<ScopeProbe>().patch(PROBE, &PatchParams::default(), &right).await;
    patched.map_err(Error::api("mend the spec"))?;
    eventually("the ScopeProbe to go on", async || {
        let ready = lab.condition("Ready").await?;
        if ready.reason == "RollingOut" { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await
}

#[tokio::test]
async fn invalid_spec_is_reported_and_leaves_agents_unchanged() -> Result<()> {
    let (lab, labels) = rolled_out_fleet().await?;
    lab.all_node_probes_are_there().await?;
    let before = lab.made().await?;
    take_any_spec(&lab).await?;
    let wrong = Patch::Merge(json!({"spec": {"topology": {"externalGroups": [{"name": "office", "cidrs": ["all"]}]}}}));
    eventually("the API server to take any spec", async || {
        let patched = lab.raw::<ScopeProbe>().patch(PROBE, &PatchParams::default(), &wrong).await;
        patched.map_err(|error| error.to_string())
    })
    .await?;
    eventually("the ScopeProbe to report the value", async || {
        let ready = lab.condition("Ready").await?;
        let right = ready.reason == "InvalidSpec" && ready.message.contains("externalGroups[office].cidrs");
        if right { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await?;
    let stalled = lab.condition("Stalled").await.map_err(Error::Unexpected)?;
    assert_eq!(stalled.status, "True");
    lab.labelled(&labels).await?;
    assert_eq!(lab.made().await?, before, "nothing was removed, made anew or changed");
    Ok(())
}
