//! Tests which agents each node of a large mixed cluster gets, and that only the nodes concerned are moved: against a
//! real API server, without kubelets.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod coverage;
mod fleet;
mod lab;
mod malformed;
mod owner;

use std::collections::{BTreeMap, BTreeSet};

use crds::Mode;
use fleet::Kind;
use k8s_openapi::api::events::v1::Event;
use kernel_support::Reason;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use lab::{IMAGE, Lab, PROBE, now_ms, works};
use scopeprobe_tests::{Error, Result, eventually};
use serde_json::json;

type Labels = BTreeMap<String, Option<String>>;

/// By the kernel alone.
fn by_kernel() -> Labels {
    fleet::nodes().map(|(name, kind)| (name, kind.agents.map(str::to_owned))).collect()
}

/// The nodes whose resource version is another.
fn written(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeSet<String> {
    after.iter().filter(|(node, version)| before.get(*node) != Some(version)).map(|(node, _)| node.clone()).collect()
}

fn set<const N: usize>(nodes: [&str; N]) -> BTreeSet<String> {
    nodes.into_iter().map(str::to_owned).collect()
}

async fn rolled_out_fleet() -> Result<(Lab, Labels)> {
    let mut lab = Lab::new().await?;
    lab.start_operator(IMAGE).await?;
    lab.probe(&json!({})).await?;
    let labels = by_kernel();
    lab.labelled(&labels).await?;
    Ok((lab, labels))
}

/// Says that the spec is another, in a way that concerns no node: when that is rolled out, so is all that came before.
async fn settle(lab: &Lab, spec: &serde_json::Value, turn: u32) -> Result<()> {
    let mut spec = spec.clone();
    spec["topology"] = json!({"retention": format!("{}s", 3600 + turn)});
    lab.probe(&spec).await
}

#[tokio::test]
async fn each_node_gets_the_agents_that_its_kernel_allows() -> Result<()> {
    let (lab, labels) = rolled_out_fleet().await?;
    let sets = lab.daemon_sets().await.map_err(Error::Unexpected)?;
    let expected = ["ebpf", "ebpf-memlock", "fallback"].map(|mode| (format!("scopeprobe-{PROBE}-{mode}"), mode.into()));
    assert_eq!(sets, BTreeMap::from(expected));

    // What is chosen can be read before any agent has reported.
    let linux: Vec<(String, Kind)> = fleet::nodes().filter(|(_, kind)| kind.agents.is_some()).collect();
    eventually("a NodeProbe for each Linux node", async || {
        let all = lab.node_probes().await?;
        let wrong: Vec<_> = linux
            .iter()
            .filter(|(name, kind)| {
                all.get(name).is_none_or(|status| {
                    (Some(status.choice.agents.as_str()), status.choice.reason.as_str()) != (kind.agents, kind.reason)
                })
            })
            .collect();
        if wrong.is_empty() && all.len() == linux.len() {
            Ok(())
        } else {
            Err(format!("{} of {}: {wrong:?}", all.len(), linux.len()))
        }
    })
    .await?;

    for (name, kind) in &linux {
        lab.report(name, works(kind.agents.unwrap_or_default(), kind.kernel));
    }
    eventually("`kubectl get nodeprobes` to show how each node is captured, and why", async || {
        let page = lab.kubectl(&["get", "nodeprobes"]).await.map_err(|error| error.to_string())?;
        let header = page.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        if header[..4] != ["NAME", "MODE", "REASON", "KERNEL"] {
            return Err(page);
        }
        for (name, kind) in &linux {
            let fallback = kind.agents == Some("fallback");
            let mode = if fallback { "Fallback" } else { "EBPF" };
            let reason = if fallback { kind.reason } else { "Supported" };
            let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).ok_or("no line")?;
            let words: Vec<_> = line.split_whitespace().collect();
            let kernel = Some(kind.kernel).filter(|kernel| !kernel.is_empty());
            if words[1..3] != [mode, reason] || kernel.is_some_and(|kernel| words[3] != kernel) {
                return Err(format!("{kind:?}: {line}"));
            }
        }
        Ok(())
    })
    .await?;
    let counted = |agents: &str| linux.iter().filter(|(_, kind)| kind.agents == Some(agents)).count() as u64;
    eventually("the ScopeProbe to count them", async || {
        let probe = lab.probes().get(PROBE).await.map_err(|error| error.to_string())?;
        let status = probe.status.unwrap_or_default();
        let nodes = &status.nodes;
        let right = (nodes.total, nodes.fallback) == (linux.len() as u64, counted("fallback"))
            && nodes.ebpf == counted("ebpf") + counted("ebpf-memlock");
        let complete = lab.condition("CaptureComplete").await?;
        let stalled = lab.condition("Stalled").await?;
        let honest = (complete.status.as_str(), complete.reason.as_str()) == ("Unknown", "Sampled");
        if right && honest && stalled.status == "False" { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await?;
    let page = lab.metrics.encode().expect("it is text");
    let bad = linux.iter().filter(|(_, kind)| kind.reason == "KnownBadKernel").count();
    let sample = format!("scopeprobe_operator_nodes{{mode=\"Fallback\",reason=\"KnownBadKernel\"}} {bad}");
    assert!(page.lines().any(|line| line == sample), "{sample}\n{page}");

    lab.probes().delete(PROBE, &DeleteParams::default()).await.map_err(Error::api("delete the ScopeProbe"))?;
    let none: Labels = labels.keys().map(|node| (node.clone(), None)).collect();
    lab.labelled(&none).await?;
    eventually("nothing to be left", async || {
        let (sets, probes) = (lab.daemon_sets().await?, lab.node_probes().await?);
        if sets.is_empty() && probes.is_empty() {
            Ok(())
        } else {
            Err(format!("{sets:?}, {} NodeProbes", probes.len()))
        }
    })
    .await
}

#[tokio::test]
async fn what_changes_moves_exactly_the_nodes_concerned() -> Result<()> {
    let (lab, mut labels) = rolled_out_fleet().await?;
    let spec = json!({});
    settle(&lab, &spec, 1).await?;

    // A kernel: one node is updated, another booted into an old one.
    let before = lab.versions().await?;
    let (updated, downdated) = (fleet::with_kernel("5.4.0-216-generic"), fleet::with_kernel("6.1.0-37-amd64"));
    let kind = |kernel| Kind { os: "linux", image: "Ubuntu", kernel, agents: None, reason: "" };
    lab.node_info(&updated, &kind("6.8.0-79-generic"), "second").await?;
    lab.node_info(&downdated, &kind("4.15.0-213-generic"), "second").await?;
    labels.insert(updated.clone(), Some("ebpf".to_owned()));
    labels.insert(downdated.clone(), Some("fallback".to_owned()));
    lab.labelled(&labels).await?;
    settle(&lab, &spec, 2).await?;
    assert_eq!(written(&before, &lab.versions().await?), set([&updated, &downdated]));

    // An override: the first that selects a node counts, and only those are written whose agents change.
    let before = lab.versions().await?;
    let pool: Vec<_> = ["node-004", "node-005", "node-008"].to_vec();
    for node in &pool {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"pool": "edge"}}}));
        lab.nodes().patch(node, &PatchParams::default(), &patch).await.map_err(Error::api("label a node"))?;
    }
    let labelled = lab.versions().await?;
    assert_eq!(written(&before, &labelled), set(["node-004", "node-005", "node-008"]));
    let spec = json!({"modeOverrides": [
        {"nodeSelector": {"pool": "edge"}, "mode": "Fallback"},
        {"nodeSelector": {"pool": "edge"}, "mode": "EBPF"},
    ]});
    lab.probe(&spec).await?;
    for node in &pool {
        labels.insert((*node).to_owned(), Some("fallback".to_owned()));
    }
    lab.labelled(&labels).await?;
    settle(&lab, &spec, 3).await?;
    // node-008 is Ubuntu 18.04 and had the fallback already.
    let overridden = lab.versions().await?;
    assert_eq!(written(&labelled, &overridden), set(["node-004", "node-005"]));
    lab.node_probe("node-008", |status| status.choice.reason == "ForcedByOverride").await?;

    // A node's labels: it leaves the pool.
    let patch = Patch::Merge(json!({"metadata": {"labels": {"pool": null}}}));
    lab.nodes().patch("node-005", &PatchParams::default(), &patch).await.map_err(Error::api("label a node"))?;
    labels.insert("node-005".to_owned(), Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;
    settle(&lab, &spec, 4).await?;
    let left = lab.versions().await?;
    assert_eq!(written(&overridden, &left), set(["node-005"]));

    // spec.mode: all but those that have the fallback already, and those that an override speaks for.
    let mut spec = spec;
    spec["mode"] = json!("Fallback");
    spec["modeOverrides"][0]["mode"] = json!("Auto");
    lab.probe(&spec).await?;
    let mut forced: Labels =
        labels.iter().map(|(node, agents)| (node.clone(), agents.as_ref().map(|_| "fallback".to_owned()))).collect();
    forced.insert("node-004".to_owned(), Some("ebpf".to_owned()));
    lab.labelled(&forced).await?;
    settle(&lab, &spec, 5).await?;
    let concerned: BTreeSet<String> = labels
        .iter()
        .filter(|(node, agents)| forced.get(*node) != Some(agents))
        .map(|(node, _)| node.clone())
        .collect();
    assert!(concerned.len() > 100 && concerned.contains("node-004"), "{concerned:?}");
    assert_eq!(written(&left, &lab.versions().await?), concerned);
    Ok(())
}

/// The agent of a node that has no BTF, for so many seconds.
fn asks(lab: &Lab, node: &str, kernel: &str, seconds: u64) {
    let now = now_ms();
    lab.report(node, |observation| {
        observation.mode = Some(Mode::Unsupported);
        observation.reason = Reason::BtfMissing;
        "there is no /sys/kernel/btf/vmlinux".clone_into(&mut observation.message);
        observation.attach = String::new();
        kernel.clone_into(&mut observation.kernel);
        observation.last_report_unix_ms = now;
        observation.asks_for_fallback_since_unix_ms = Some(now - 1000 * seconds);
    });
}

#[tokio::test]
async fn a_node_whose_agent_asks_is_moved_and_comes_back() -> Result<()> {
    const KERNEL: &str = "6.12.40-talos";
    let (mut lab, mut labels) = rolled_out_fleet().await?;
    let spec = json!({});
    let node = fleet::with_kernel(KERNEL);
    let impatient = fleet::with_kernel("6.6.95-flatcar");
    lab.report(&node, works("ebpf", KERNEL));
    lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf)).await?;
    let before = lab.versions().await?;

    asks(&lab, &impatient, "6.6.95-flatcar", 19);
    asks(&lab, &node, KERNEL, 20);
    lab.node_probe(&node, |status| status.mode == Some(Mode::Unsupported)).await?;
    labels.insert(node.clone(), Some("fallback".to_owned()));
    lab.labelled(&labels).await?;
    lab.report(&node, works("fallback", KERNEL));
    let status = lab.node_probe(&node, |status| status.mode == Some(Mode::Fallback)).await?;
    assert_eq!((status.reason.as_str(), status.choice.reason.as_str()), ("BtfMissing", "BtfMissing"));
    let fallback = status.fallback.clone().expect("it was moved");
    assert_eq!((fallback.reason.as_str(), fallback.kernel.as_str(), fallback.attempts), ("BtfMissing", KERNEL, 1));
    assert_eq!((fallback.boot_id.as_str(), fallback.image.as_str()), ("first", IMAGE));
    assert!(fallback.message.contains("/sys/kernel/btf/vmlinux"), "{fallback:?}");
    let (since, retry) = (fallback.since.expect("a time").0, fallback.retry_at.expect("a time").0);
    assert!((3600..=4500).contains(&retry.duration_since(since).as_secs()), "{since} {retry}");
    let history: Vec<_> = status.history.iter().map(|it| (it.mode, it.reason.as_str(), it.attach.as_str())).collect();
    let expected = [
        (Mode::Ebpf, "Supported", "SockOps"),
        (Mode::Unsupported, "BtfMissing", ""),
        (Mode::Fallback, "BtfMissing", "SockDiag+Conntrack"),
    ];
    assert_eq!(history, expected);
    let told = ["SupportedBySockOps", "BtfMissing", "BtfMissingBySockDiagAndConntrack"];
    events(&lab, &node, &["CaptureEBPF", "CaptureUnsupported", "CaptureFallback"], &told).await?;
    settle(&lab, &spec, 1).await?;
    let moved = lab.versions().await?;
    assert_eq!(written(&before, &moved), set([&node]));

    // Another operator knows what this one has found out.
    lab.stop_operator().await;
    lab.start_operator(IMAGE).await?;
    settle(&lab, &spec, 2).await?;
    assert_eq!(written(&moved, &lab.versions().await?), set([]));
    lab.node_probe(&node, |status| status.fallback.as_ref().is_some_and(|it| it.attempts == 1)).await?;

    // When the time has come, eBPF is retried and fails: the next delay is doubled.
    lab.stop_operator().await;
    lab.retry_is_due(&node).await?;
    lab.start_operator(IMAGE).await?;
    labels.insert(node.clone(), Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;
    asks(&lab, &node, KERNEL, 25);
    labels.insert(node.clone(), Some("fallback".to_owned()));
    lab.labelled(&labels).await?;
    lab.report(&node, works("fallback", KERNEL));
    let status = lab.node_probe(&node, |it| it.fallback.as_ref().is_some_and(|it| it.attempts == 2)).await?;
    let fallback = status.fallback.expect("it was moved again");
    let wait = fallback.retry_at.expect("a time").0.duration_since(fallback.since.expect("a time").0);
    assert!((7200..=9000).contains(&wait.as_secs()), "{wait}");

    // After a boot eBPF is tried again at once.
    let kind = Kind { os: "linux", image: "Talos", kernel: KERNEL, agents: None, reason: "" };
    lab.node_info(&node, &kind, "second").await?;
    labels.insert(node.clone(), Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;
    asks(&lab, &node, KERNEL, 25);
    labels.insert(node.clone(), Some("fallback".to_owned()));
    lab.labelled(&labels).await?;
    lab.node_probe(&node, |status| status.fallback.as_ref().is_some_and(|it| it.boot_id == "second")).await?;

    // And with other agents.
    lab.stop_operator().await;
    lab.start_operator("registry.example/agent:2").await?;
    labels.insert(node.clone(), Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;
    lab.report(&node, works("ebpf", KERNEL));
    let status = lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf) && status.fallback.is_none()).await?;
    assert!(status.sampled && status.coverage != "100%", "a part of what it has seen is from the fallback: {status:?}");
    Ok(())
}

async fn events(lab: &Lab, node: &str, reasons: &[&str], actions: &[&str]) -> Result<()> {
    let api: Api<Event> = Api::namespaced(lab.client(), "default");
    eventually("an Event for each change", async || {
        let all = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let about = all.iter().filter(|event| event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(node));
        let told: Vec<_> = about.map(|event| [event.reason.as_deref(), event.action.as_deref()]).collect();
        let all = reasons.iter().zip(actions).all(|(reason, action)| told.contains(&[Some(*reason), Some(*action)]));
        if all { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await
}

#[tokio::test]
async fn rollout_reports_foreign_label_and_keeps_it() -> Result<()> {
    let (lab, mut labels) = rolled_out_fleet().await?;
    let node = fleet::with_kernel("6.1.0-37-amd64");
    let moved = fleet::with_kernel("5.4.0-216-generic");
    lab.kubectl(&["label", "node", &node, "scopeprobe.io/mode=fallback", "--overwrite"]).await?;
    labels.insert(node.clone(), Some("fallback".to_owned()));
    eventually("the ScopeProbe to say so", async || {
        let degraded = lab.condition("Degraded").await?;
        let words = [node.as_str(), "scopeprobe.io/mode", "kubectl-label", "spec.modeOverrides"];
        let said = degraded.status == "True" && words.iter().all(|word| degraded.message.contains(word));
        // It is one node of many.
        let stalled = lab.condition("Stalled").await?;
        if said && stalled.status == "False" { Ok(()) } else { Err(format!("{degraded:?} {stalled:?}")) }
    })
    .await?;
    // Others are labelled all the same, and this one is left as it is.
    lab.node_info(&moved, &Kind { os: "linux", image: "", kernel: "6.8.0", agents: None, reason: "" }, "second")
        .await?;
    labels.insert(moved, Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;

    lab.kubectl(&["label", "node", &node, "scopeprobe.io/mode-"]).await?;
    labels.insert(node, Some("ebpf".to_owned()));
    lab.labelled(&labels).await?;
    eventually("the ScopeProbe to go on", async || {
        let degraded = lab.condition("Degraded").await?;
        if degraded.message.contains("kubectl-label") { Err(format!("{degraded:?}")) } else { Ok(()) }
    })
    .await
}
