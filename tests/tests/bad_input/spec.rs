//! Tests ScopeProbes that break a rule or a bound: the API server rejects each, with a message that names the remedy.

use std::{collections::BTreeSet, fs};

use crds::ScopeProbe;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, manifest, place};
use serde_json::{Value, json};

use crate::{
    case::{Case, case, rule},
    constraints, node_affinity, topology_spec,
};

fn durations() -> Vec<Case> {
    let report = "spec.capture.reportInterval";
    let report_rule =
        "spec.capture.reportInterval rule: reportInterval has to be a duration between 200ms and 60s, for example 1s";
    let counter = "spec.topology.counterInterval";
    let counter_rule =
        "spec.topology.counterInterval rule: counterInterval has to be a duration between 1s and 1h, for example 30s";
    let retention = "spec.topology.retention";
    let retention_rule =
        "spec.topology.retention rule: retention has to be a duration between 1m and 168h, for example 1h";
    let mut cases = Vec::new();
    for wrong in ["199ms", "61s", "soon", "", "-1s", "1", "1d", "999999999h"] {
        cases.push(rule(report_rule, json!({"capture": {"reportInterval": wrong}}), report));
    }
    for wrong in ["999ms", "61m", "a while"] {
        cases.push(rule(counter_rule, json!({"topology": {"counterInterval": wrong}}), counter));
    }
    for wrong in ["59s", "169h", "forever"] {
        cases.push(rule(retention_rule, json!({"topology": {"retention": wrong}}), retention));
    }
    // Seventeen characters that would be a good duration otherwise.
    let long = "may not be more than 16";
    let text = |seconds: u8| format!("{}{seconds}s", "1ms".repeat(5));
    cases.push(case(
        "spec.capture.reportInterval maxLength",
        json!({"capture": {"reportInterval": text(1)}}),
        report,
        long,
    ));
    cases.push(case(
        "spec.topology.counterInterval maxLength",
        json!({"topology": {"counterInterval": text(2)}}),
        counter,
        long,
    ));
    cases.push(case(
        "spec.topology.retention maxLength",
        json!({"topology": {"retention": text(90)}}),
        retention,
        long,
    ));
    cases.push(rule(
        "spec rule: topology.counterInterval has to be at least capture.reportInterval: counters cannot be written more often than they are reported",
        json!({"capture": {"reportInterval": "10s"}, "topology": {"counterInterval": "9s"}}),
        "spec",
    ));
    cases.push(rule(
        "spec rule: topology.retention has to be at least topology.counterInterval",
        json!({"topology": {"counterInterval": "1h", "retention": "59m"}}),
        "spec",
    ));
    cases
}

fn nodes() -> Vec<Case> {
    let keys =
        "spec.nodeSelector rule: every key of nodeSelector has to be a label's name, for example kubernetes.io/os";
    let own = "spec.nodeSelector rule: nodeSelector cannot name labels of scopeprobe.io/, which the operator sets by what it selects: name another label";
    let selector = |key: &str, value: &str| json!({"nodeSelector": {key: value}});
    let many: serde_json::Map<_, _> = (0..17).map(|number| (format!("key-{number}"), json!("x"))).collect();
    vec![
        rule(keys, selector("a b", "x"), "spec.nodeSelector"),
        rule(keys, selector("", "x"), "spec.nodeSelector"),
        rule(keys, selector("Example.com/a", "x"), "spec.nodeSelector"),
        rule(keys, selector(&"x".repeat(64), "x"), "spec.nodeSelector"),
        rule(own, selector("scopeprobe.io/probe", "x"), "spec.nodeSelector"),
        case(
            "spec.nodeSelector maxProperties",
            json!({ "nodeSelector": many }),
            "spec.nodeSelector",
            "must have at most 16 items",
        ),
        case("spec.nodeSelector.* pattern", selector("zone", "a b"), "spec.nodeSelector.zone", "should match"),
        case(
            "spec.nodeSelector.* maxLength",
            selector("zone", &"x".repeat(64)),
            "spec.nodeSelector.zone",
            "may not be more than 63",
        ),
        case(
            "spec.mode enum",
            json!({"mode": "Magic"}),
            "spec.mode",
            "supported values: \"Auto\", \"EBPF\", \"Fallback\"",
        ),
    ]
}

fn overrides() -> Vec<Case> {
    let keys = "spec.modeOverrides[].nodeSelector rule: every key of nodeSelector has to be a label's name, for example kubernetes.io/os";
    let of = |selector: Value| json!({"modeOverrides": [{"nodeSelector": selector, "mode": "EBPF"}]});
    let many: serde_json::Map<_, _> = (0..17).map(|number| (format!("key-{number}"), json!("x"))).collect();
    let good = json!({"nodeSelector": {"pool": "a"}, "mode": "EBPF"});
    let selector = "spec.modeOverrides[0].nodeSelector";
    vec![
        rule(
            "spec.modeOverrides[] rule: an override has to name a label of its nodes in nodeSelector; for all nodes, set spec.mode",
            of(json!({})),
            "spec.modeOverrides[0]",
        ),
        rule(keys, of(json!({"a b": "x"})), selector),
        rule(keys, of(json!({"": "x"})), selector),
        rule(keys, of(json!({"x".repeat(64): "x"})), selector),
        rule(
            "spec.modeOverrides[].nodeSelector rule: nodeSelector cannot name labels of scopeprobe.io/, which the operator sets by what it selects: name another label",
            of(json!({"pool": "a", "scopeprobe.io/mode": "ebpf"})),
            selector,
        ),
        case(
            "spec.modeOverrides[].nodeSelector maxProperties",
            of(json!(many)),
            selector,
            "must have at most 16 items",
        ),
        case(
            "spec.modeOverrides[].nodeSelector.* pattern",
            of(json!({"pool": "a b"})),
            "spec.modeOverrides[0].nodeSelector.pool",
            "should match",
        ),
        case(
            "spec.modeOverrides[].nodeSelector.* maxLength",
            of(json!({"pool": "x".repeat(64)})),
            "spec.modeOverrides[0].nodeSelector.pool",
            "may not be more than 63",
        ),
        case(
            "spec.modeOverrides[].mode enum",
            json!({"modeOverrides": [{"nodeSelector": {"pool": "a"}, "mode": "Magic"}]}),
            "spec.modeOverrides[0].mode",
            "supported values: \"Auto\", \"EBPF\", \"Fallback\"",
        ),
        case(
            "spec.modeOverrides maxItems",
            json!({"modeOverrides": vec![good; 33]}),
            "spec.modeOverrides",
            "must have at most 32 items",
        ),
        case(
            "spec.modeOverrides[].mode required",
            json!({"modeOverrides": [{"nodeSelector": {"pool": "a"}}]}),
            "spec.modeOverrides[0].mode",
            "Required value",
        ),
        case(
            "spec.modeOverrides[].nodeSelector required",
            json!({"modeOverrides": [{"mode": "EBPF"}]}),
            "spec.modeOverrides[0].nodeSelector",
            "Required value",
        ),
    ]
}

fn budgets() -> Vec<Case> {
    let field = "spec.capture.fallback.cpuBudget";
    let message = "spec.capture.fallback.cpuBudget rule: cpuBudget has to be an amount of cores between 5m and 2, for example 50m";
    let budget = |amount: Value| json!({"capture": {"fallback": {"cpuBudget": amount}}});
    let wrong = ["4m", "4999999n", "0", "-1", "2001m", "1Ki", "half a core", ""].map(|amount| json!(amount));
    let mut cases: Vec<_> = wrong.into_iter().map(|amount| rule(message, budget(amount), field)).collect();
    cases.push(rule(message, budget(json!(3)), field));
    cases.push(case(
        "spec.capture.fallback.cpuBudget maxLength",
        budget(json!(format!("{}1", "0".repeat(32)))),
        field,
        "may not be more than 32",
    ));
    cases
}

fn amounts() -> Vec<Case> {
    let unavailable = |percent: i64| json!({"readiness": {"maxUnavailablePercent": percent}});
    let flows = |number: i64| json!({"capture": {"maxFlows": number}});
    let edges = |number: i64| json!({"topology": {"maxEdges": number}});
    let pods = |number: i64| json!({"topology": {"pods": number}});
    vec![
        case("spec.topology.pods minimum", pods(-1), "spec.topology.pods", "should be greater than or equal to 0"),
        case("spec.topology.pods maximum", pods(11), "spec.topology.pods", "should be less than or equal to 10"),
        case(
            "spec.capture.maxFlows minimum",
            flows(63),
            "spec.capture.maxFlows",
            "should be greater than or equal to 64",
        ),
        case(
            "spec.capture.maxFlows minimum",
            flows(-1),
            "spec.capture.maxFlows",
            "should be greater than or equal to 64",
        ),
        case(
            "spec.capture.maxFlows maximum",
            flows(1_048_577),
            "spec.capture.maxFlows",
            "should be less than or equal to 1048576",
        ),
        case(
            "spec.readiness.maxUnavailablePercent minimum",
            unavailable(-1),
            "spec.readiness.maxUnavailablePercent",
            "should be greater than or equal to 0",
        ),
        case(
            "spec.readiness.maxUnavailablePercent maximum",
            unavailable(101),
            "spec.readiness.maxUnavailablePercent",
            "should be less than or equal to 100",
        ),
        case(
            "spec.topology.maxEdges minimum",
            edges(0),
            "spec.topology.maxEdges",
            "should be greater than or equal to 1",
        ),
        case(
            "spec.topology.maxEdges maximum",
            edges(501),
            "spec.topology.maxEdges",
            "should be less than or equal to 500",
        ),
    ]
}

fn resources() -> Vec<Case> {
    let resources = |which: &str, what: &str, amount: &str| json!({"agent": {"resources": {which: {what: amount}}}});
    let mut cases = vec![
        rule(
            "spec.agent.resources rule: requests.cpu has to be at most limits.cpu",
            json!({"agent": {"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "999m"}}}}),
            "spec.agent.resources",
        ),
        rule(
            "spec.agent.resources rule: requests.memory has to be at most limits.memory",
            resources("requests", "memory", "129Mi"),
            "spec.agent.resources",
        ),
    ];
    let fields = [
        ("requests", "cpu", "spec.agent.resources.requests.cpu"),
        ("requests", "memory", "spec.agent.resources.requests.memory"),
        ("limits", "cpu", "spec.agent.resources.limits.cpu"),
        ("limits", "memory", "spec.agent.resources.limits.memory"),
    ];
    let amount: [&str; 4] = [
        "spec.agent.resources.requests.cpu rule: has to be an amount that is not negative, for example 100m or 64Mi",
        "spec.agent.resources.requests.memory rule: has to be an amount that is not negative, for example 100m or 64Mi",
        "spec.agent.resources.limits.cpu rule: has to be an amount that is not negative, for example 100m or 64Mi",
        "spec.agent.resources.limits.memory rule: has to be an amount that is not negative, for example 100m or 64Mi",
    ];
    let length: [&str; 4] = [
        "spec.agent.resources.requests.cpu maxLength",
        "spec.agent.resources.requests.memory maxLength",
        "spec.agent.resources.limits.cpu maxLength",
        "spec.agent.resources.limits.memory maxLength",
    ];
    for (index, (which, what, field)) in fields.into_iter().enumerate() {
        for wrong in ["lots", "", "-1"] {
            cases.push(rule(amount[index], resources(which, what, wrong), field));
        }
        cases.push(case(length[index], resources(which, what, &"0".repeat(33)), field, "may not be more than 32"));
    }
    cases
}

fn pods() -> Vec<Case> {
    let tolerations = |tolerations: Value| json!({"agent": {"tolerations": tolerations}});
    let first = |toleration: Value| tolerations(json!([toleration]));
    let without_key = "spec.agent.tolerations[] rule: a toleration without a key tolerates everything: say so with `operator: Exists`, or name a key";
    let long = "x".repeat(318);
    vec![
        rule(without_key, first(json!({"effect": "NoSchedule"})), "spec.agent.tolerations[0]"),
        rule(without_key, first(json!({"key": "", "operator": "Equal"})), "spec.agent.tolerations[0]"),
        case(
            "spec.agent.tolerations[].operator enum",
            first(json!({"key": "a", "operator": "Like"})),
            "spec.agent.tolerations[0].operator",
            "supported values: \"Exists\", \"Equal\"",
        ),
        case(
            "spec.agent.tolerations[].effect enum",
            first(json!({"key": "a", "effect": "Never"})),
            "spec.agent.tolerations[0].effect",
            "supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ),
        case(
            "spec.agent.tolerations[].key maxLength",
            first(json!({ "key": long })),
            "spec.agent.tolerations[0].key",
            "may not be more than 317",
        ),
        case(
            "spec.agent.tolerations[].value maxLength",
            first(json!({"key": "a", "value": long})),
            "spec.agent.tolerations[0].value",
            "may not be more than 317",
        ),
        case(
            "spec.agent.tolerations maxItems",
            tolerations(json!(vec![json!({"key": "a"}); 17])),
            "spec.agent.tolerations",
            "must have at most 16 items",
        ),
        case(
            "spec.agent.priorityClassName maxLength",
            json!({"agent": {"priorityClassName": "x".repeat(254)}}),
            "spec.agent.priorityClassName",
            "may not be more than 253",
        ),
    ]
}

/// Names are bad input too, though not of the spec.
const NAME_RULE: &str = " rule: a ScopeProbe's name has to be at most 40 lower-case letters, digits and dashes: it becomes a label's value and a part of DaemonSets' names";

fn cases() -> Vec<Case> {
    [
        durations(),
        nodes(),
        node_affinity::node_affinity(),
        overrides(),
        amounts(),
        budgets(),
        topology_spec::outside(),
        topology_spec::namespaces(),
        resources(),
        pods(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns valid values at the bounds, so that no case above is refused for another reason.
fn good() -> Vec<Value> {
    vec![
        json!({}),
        json!({"capture": {"reportInterval": "200ms", "maxFlows": 64}, "topology": {"counterInterval": "1s", "retention": "1m", "maxEdges": 1}}),
        json!({"capture": {"reportInterval": "60s", "maxFlows": 1_048_576}, "topology": {"counterInterval": "1h", "retention": "168h", "maxEdges": 500}}),
        json!({"capture": {"reportInterval": "1ms1ms1ms1ms30s"}, "topology": {"counterInterval": "0.5h30s", "retention": "1h0.5m"}}),
        json!({"nodeAffinity": {"matchExpressions": []}}),
        json!({"nodeAffinity": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", ""]}, {"key": "c.d/e", "operator": "DoesNotExist"}]}}),
        json!({"nodeSelector": {"example.com/zone": "a.B_c-1", "x".repeat(63): "", "kubernetes.io/os": "linux"}}),
        json!({"agent": {"tolerations": [], "resources": {"requests": {"cpu": 0, "memory": "1e6"}, "limits": {"cpu": 2, "memory": "0.5Gi"}}}}),
        json!({"agent": {"tolerations": [{"operator": "Exists"}, {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}]}}),
        json!({"mode": "Fallback", "agent": {"priorityClassName": "system-node-critical"}}),
        json!({"modeOverrides": [], "capture": {"fallback": {"cpuBudget": "5m"}}}),
        json!({"capture": {"fallback": {"cpuBudget": 2}}}),
        json!({"capture": {"fallback": {"cpuBudget": "0.05"}}, "modeOverrides": vec![json!({
            "nodeSelector": (0..16).map(|number| (format!("{}/{}", "d".repeat(253), "x".repeat(61) + &format!("{number:02}")), json!("x".repeat(63))))
                .collect::<serde_json::Map<_, _>>(),
            "mode": "Auto",
        }); 32]}),
        json!({"topology": {"maxExternalPeers": 1, "externalGroups": [
            {"name": "a", "cidrs": ["192.0.2.7/24", "0.0.0.0/0", "::/0", "2001:db8::7/128", "fd00:0:0:0:0:0:0:0/8"]},
            {"name": "x".repeat(63), "cidrs": vec!["203.0.113.0/24"; 64]},
        ]}}),
        json!({"topology": {"maxExternalPeers": 500, "externalGroups": (0..64)
            .map(|number| json!({"name": format!("group-{number}"), "cidrs": vec!["203.0.113.0/24"; 64]}))
            .collect::<Vec<_>>()}}),
        json!({"topology": {"pods": 0, "externalGroups": [
            {"name": "names", "dnsNames": ["example.com", "*.example.com", "*.com", "a-b.c--d.example.org", "_spf.example.net", "3com.example"]},
            {"name": "both", "cidrs": ["192.0.2.0/24"], "dnsNames": vec![[vec!["a"; 126].join("."), "b".to_owned()].join("."); 64]},
        ]}}),
        json!({"topology": {"pods": 10, "namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": "shop", "team": ""},
            "matchExpressions": vec![
                json!({"key": "a", "operator": "In", "values": vec!["x".repeat(63); 32]}),
                json!({"key": "example.com/b", "operator": "NotIn", "values": [""]}),
                json!({"key": "c", "operator": "Exists"}),
                json!({"key": "d", "operator": "DoesNotExist", "values": []}),
            ],
        }}}),
        json!({"topology": {"namespaceSelector": {}, "externalGroups": []}}),
        json!({"topology": {"namespaceSelector": null, "pods": null}}),
        // What a template without values leaves behind.
        json!({"mode": null, "modeOverrides": null, "nodeSelector": null, "capture": null, "topology": null, "agent": null}),
        json!({"capture": {"fallback": null}}),
        json!({"capture": {"fallback": {"cpuBudget": null}}}),
        json!({"agent": {"tolerations": null, "priorityClassName": null, "resources": {"requests": {"cpu": null, "memory": null}, "limits": {"cpu": null, "memory": null}}}}),
    ]
}

/// A control plane with the kinds as the chart installs them.
async fn with_kinds() -> Result<(ControlPlane, Api<DynamicObject>)> {
    let control_plane = ControlPlane::start().await?;
    let folder = place::repository().join("charts/scopeprobe/files/crds");
    for kind in ["nodeprobes", "scopeprobes", "topologies"] {
        let path = folder.join(format!("{kind}.yaml"));
        let yaml = fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
        manifest::apply(&control_plane.client, "", &yaml).await?;
    }
    let kinds: Api<CustomResourceDefinition> = Api::all(control_plane.client.clone());
    eventually("the kind ScopeProbe to be established", async || {
        let kind = kinds.get("scopeprobes.scopeprobe.io").await.map_err(|error| error.to_string())?;
        let conditions = kind.status.and_then(|status| status.conditions).unwrap_or_default();
        let is = |type_: &str| conditions.iter().any(|it| it.type_ == type_ && it.status == "True");
        if is("Established") { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await?;
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("scopeprobe.io", "v1alpha1", "ScopeProbe"),
        "scopeprobes",
    );
    let probes = Api::all_with(control_plane.client.clone(), &kind);
    eventually("ScopeProbes to be served", async || {
        probes.list(&kube::api::ListParams::default()).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await?;
    Ok((control_plane, probes))
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": name}, "spec": spec,
    }))
    .expect("a manifest")
}

/// Returns the API server's errors per field, `field: message`; empty if it accepts the object.
async fn refusal(probes: &Api<DynamicObject>, name: &str, spec: &Value) -> Vec<(String, String)> {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    match probes.create(&dry, &object(name, spec)).await {
        Ok(_) => Vec::new(),
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422, "{spec}: refused for another reason than its contents: {status:?}");
            let causes = status.details.map(|details| details.causes).unwrap_or_default();
            causes.into_iter().map(|cause| (cause.field, in_newest_words(&cause.message))).collect()
        }
        Err(error) => panic!("{spec}: {error}"),
    }
}

/// Returns a message in the words of Kubernetes 1.37. In those of 1.30, a rule's message has the type of the value, and
/// a text is longer, not more, than a bound.
fn in_newest_words(message: &str) -> String {
    let without_type = ["object", "string", "array", "integer"].iter().find_map(|type_| {
        let rule = message.strip_prefix(&format!("Invalid value: \"{type_}\": "))?;
        Some(format!("Invalid value: {rule}"))
    });
    without_type.unwrap_or_else(|| message.replace("may not be longer than", "may not be more than"))
}

fn committed_constraints() -> BTreeSet<String> {
    let path = place::repository().join("charts/scopeprobe/files/crds/scopeprobes.yaml");
    let yaml = fs::read_to_string(path).expect("the manifest is committed");
    let kind: Value = serde_yaml::from_str(&yaml).expect("the manifest is YAML");
    let versions = kind["spec"]["versions"].as_array().expect("a list of versions");
    versions.iter().flat_map(|version| constraints::of(&version["schema"]["openAPIV3Schema"])).collect()
}

#[test]
fn each_rule_and_each_bound_has_a_case() {
    let cased: BTreeSet<String> =
        cases().iter().map(|case| case.breaks.to_owned()).chain([NAME_RULE.to_owned()]).collect();
    let there = committed_constraints();
    let without: Vec<_> = there.difference(&cased).collect();
    let stale: Vec<_> = cased.difference(&there).collect();
    assert!(without.is_empty() && stale.is_empty(), "without a case: {without:#?}\nof no rule any more: {stale:#?}");
}

/// Returns whether a message is only a note that other rules were not checked.
fn is_note(message: &str) -> bool {
    message.contains("some validation rules were not checked")
}

#[tokio::test]
async fn each_is_refused_where_it_is_wrong_and_told_what_to_change() -> Result<()> {
    let (_control_plane, probes) = with_kinds().await?;
    let mut wrong = Vec::new();
    let rules: Vec<_> = cases().iter().filter(|case| case.breaks.contains(" rule: ")).map(|case| case.says).collect();
    for Case { breaks, spec, field, says } in cases() {
        let mut causes = refusal(&probes, "probe", &spec).await;
        causes.retain(|(_, message)| !is_note(message));
        let as_said = |(at, message): &(String, String)| {
            at == field && message.contains(says) && !message.contains("evaluating rule")
        };
        // What is wrong by itself may also be wrong beside another field: a rule of a field around it says so.
        let around = |(at, message): &(String, String)| {
            field.starts_with(&format!("{at}."))
                && rules.iter().any(|rule| *message == format!("Invalid value: {rule}"))
        };
        if !causes.iter().any(as_said) || !causes.iter().all(|cause| as_said(cause) || around(cause)) {
            wrong.push(format!("{breaks}\n  with {spec}\n  should say at {field}: {says}\n  but says: {causes:#?}"));
        }
    }
    for name in ["x".repeat(41), "a.b".to_owned()] {
        let causes = refusal(&probes, &name, &json!({})).await;
        let message = &NAME_RULE[" rule: ".len()..];
        if !causes.iter().any(|(_, said)| said.contains(message)) {
            wrong.push(format!("the name {name}: {causes:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} cases are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Also read back as the operator reads it: an object that it cannot read would keep it from seeing all others.
#[tokio::test]
async fn what_is_at_the_bounds_is_taken_and_can_be_read() -> Result<()> {
    let (control_plane, probes) = with_kinds().await?;
    let typed: Api<ScopeProbe> = Api::all(control_plane.client.clone());
    for (number, spec) in good().iter().enumerate() {
        let name = format!("good-{number}");
        let made = probes.create(&PostParams::default(), &object(&name, spec)).await;
        made.map_err(Error::api(format!("make a ScopeProbe with {spec}")))?;
        let read = typed.get(&name).await.map_err(Error::api(format!("read the ScopeProbe with {spec}")))?;
        assert_eq!(read.name_any(), name);
        for cidr in read.spec.topology.external_groups.iter().flat_map(|group| &group.cidrs) {
            assert!(topology::entity::Network::parse(cidr).is_some(), "the operator cannot read {cidr}");
        }
        typed.delete(&name, &DeleteParams::default()).await.map_err(Error::api("delete it"))?;
    }
    let without_spec = json!({
        "apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": "x".repeat(40)},
    });
    let without_spec = serde_json::from_value(without_spec).expect("a manifest");
    probes.create(&PostParams::default(), &without_spec).await.map_err(Error::api("make one without a spec"))?;
    let read = typed.get(&"x".repeat(40)).await.map_err(Error::api("read the one without a spec"))?;
    assert_eq!(read.spec, crds::ScopeProbeSpec::default());
    let conditions = read.status.unwrap_or_default().conditions;
    let stated: Vec<_> =
        conditions.iter().map(|it| (it.type_.as_str(), it.status.as_str(), it.reason.as_str())).collect();
    assert_eq!(stated, [("Ready", "Unknown", "Unobserved")], "no operator runs");
    Ok(())
}
