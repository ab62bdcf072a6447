//! Tests the publisher with objects that other clients change, and with workloads that come and go: against a real API
//! server, without nodes.
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod budget;
mod checkpoint;
mod columns;
mod earlier_version;
mod edge_metrics;
mod edges;
mod events;
mod lab;
mod labels;
mod malformed;
mod namespaces;
mod noise;
mod numbers;
mod outside;
mod owners;
mod peers;
mod shop;
mod times;
mod workloads;

use std::time::Instant;

use crds::Topology;
use kube::ResourceExt as _;
use lab::{Lab, opened, owner_uids, status};
use scopeprobe_tests::{Result, eventually};

fn has_condition(topology: &Topology, type_: &str, is: &str) -> bool {
    status(topology).conditions.iter().any(|condition| condition.type_ == type_ && condition.status == is)
}

#[tokio::test]
async fn of_too_many_edges_the_busiest_are_listed_and_the_rest_is_counted() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.pod("scanner", None).await?;
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_edges = 3);
    lab.report(&uid, &[(1, 10), (2, 50), (3, 20), (4, 40), (5, 30)]).await;
    let topology = lab.topology("pod-scanner", |it| has_condition(it, "Truncated", "True")).await?;
    let said = status(&topology);
    let listed: Vec<_> = said.egress.iter().map(|edge| (edge.peer.ip.as_deref(), edge.opened)).collect();
    assert_eq!(listed, [(Some("192.0.2.2"), 50), (Some("192.0.2.4"), 40), (Some("192.0.2.5"), 30)]);
    assert_eq!((said.omitted.egress, said.omitted.ingress, said.totals.opened), (2, 0, 150));
    let condition = said.conditions.iter().find(|condition| condition.type_ == "Truncated").expect("it is there");
    assert!(condition.message.contains("2 egress edges and 0 ingress edges"), "{}", condition.message);
    assert_eq!(owner_uids(&topology), [uid.as_str()]);

    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_edges = 5);
    let topology = lab.topology("pod-scanner", |it| has_condition(it, "Truncated", "False")).await?;
    assert_eq!((status(&topology).egress.len(), opened(&topology)), (5, 150));
    assert_eq!(lab.metrics.flows.get(), 5);
    assert!(lab.writes("done") >= 2 && lab.writes("failed") == 0, "{}", lab.metrics.encode().expect("it is text"));
    Ok(())
}

#[tokio::test]
async fn publisher_keeps_what_other_managers_wrote_and_deletes_the_rest_with_the_workload() -> Result<()> {
    let mut lab = Lab::new().await?;
    let expected = "{apiVersion: scopeprobe.io/v1alpha1, kind: Topology, metadata: {name: pod-expected, labels: {team: a}, \
                    annotations: {note: ours}}, spec: {}}";
    lab.apply(expected).await?;
    let others = [lab.pod("expected", None).await?, lab.pod("plain", None).await?];
    lab.publish_as_administrator();
    for uid in &others {
        lab.report(uid, &[(1, 2)]).await;
    }
    let untouched = |it: &Topology| {
        it.labels().get("team").is_some_and(|team| team == "a")
            && it.annotations().get("note").is_some_and(|note| note == "ours")
    };
    let topology = lab.topology("pod-expected", |it| opened(it) == 2).await?;
    assert!(untouched(&topology), "{:?}", topology.metadata);
    assert_eq!(owner_uids(&topology), [others[0].as_str()]);
    lab.topology("pod-plain", |it| opened(it) == 2).await?;

    // Another field manager's word about what was observed doesn't stand.
    let wrong = serde_json::json!({"status": {"totals": {"opened": 77}}});
    let merge = kube::api::Patch::Merge(wrong);
    let by = kube::api::PatchParams { field_manager: Some("another-manager".to_owned()), ..Default::default() };
    lab.topologies().patch_status("pod-expected", &by, &merge).await.expect("the administrator may");
    lab.topology("pod-expected", |it| opened(it) == 2).await?;
    assert_eq!(lab.writes("failed"), 0);

    lab.delete_pod("expected").await?;
    lab.delete_pod("plain").await?;
    lab.absent("pod-plain").await?;
    let topology = lab.topology("pod-expected", |it| status(it).egress.is_empty() && opened(it) == 0).await?;
    assert!(untouched(&topology), "{:?}", topology.metadata);
    Ok(())
}

#[tokio::test]
async fn a_workload_that_is_gone_gets_no_object_again() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let (gone, stays) = (lab.pod("gone", None).await?, lab.pod("stays", None).await?);
    lab.report(&gone, &[(1, 1)]).await;
    lab.report(&stays, &[(1, 1)]).await;
    lab.topology("pod-gone", |it| opened(it) == 1).await?;
    lab.delete_pod("gone").await?;
    lab.absent("pod-gone").await?;
    for count in 2..6 {
        // Its last connections are reported after its end.
        lab.report(&gone, &[(1, count), (9, count)]).await;
        lab.report(&stays, &[(1, count)]).await;
        lab.topology("pod-stays", |it| opened(it) == count).await?;
        assert!(lab.topologies().get_opt("pod-gone").await.expect("the server answers").is_none());
    }
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

#[tokio::test]
async fn what_is_forbidden_is_tried_until_it_is_allowed() -> Result<()> {
    const MAY_READ: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [scopeprobe.io], resources: [topologies], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}]
";
    let mut lab = Lab::new().await?;
    lab.apply(MAY_READ).await?;
    let reader = lab.client_of("reader").await?;
    let uid = lab.pod("web", None).await?;
    lab.publish(&reader);
    lab.report(&uid, &[(1, 3)]).await;
    eventually("a write to be refused, in the API server's words", async || {
        let problems = lab.problems.lasting(Instant::now());
        let [problem] = &problems[..] else { return Err(format!("{problems:?}")) };
        let is_named = problem.starts_with("cannot write Topology shop/pod-web: ") && problem.contains("is forbidden");
        if is_named { Ok(()) } else { Err(problem.clone()) }
    })
    .await?;
    assert!(lab.writes("failed") > 0);
    assert!(lab.topologies().get_opt("pod-web").await.expect("the server answers").is_none());
    let more = MAY_READ.replace(
        "verbs: [get, list, watch]}]",
        "verbs: [get, list, watch, create, patch]}, \
         {apiGroups: [scopeprobe.io], resources: [topologies/status], verbs: [patch]}]",
    );
    lab.apply(&more).await?;
    lab.topology("pod-web", |it| opened(it) == 3).await?;
    eventually("nothing to be refused any more", async || {
        let problems = lab.problems.lasting(Instant::now());
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await
}

#[tokio::test]
async fn names_of_every_kind_and_length_become_objects() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let long = format!("{}.{}", "a".repeat(230), "b".repeat(20));
    let of_long = lab.pod("one", Some(("example.com/v1", "VirtualMachine", &long))).await?;
    let first = lab.pod("two", Some(("a.example.com/v1", "Job", "sums"))).await?;
    lab.report(&of_long, &[(1, 1)]).await;
    lab.report(&first, &[(1, 2)]).await;
    lab.topology("job.a.example.com-sums", |it| opened(it) == 2).await?;
    let second = lab.pod("three", Some(("b.example.com/v1", "Job", "sums"))).await?;
    lab.report(&second, &[(1, 4)]).await;
    // Of the same kind and name in two groups, each has its own object.
    let topology = lab.topology("job.b.example.com-sums", |it| opened(it) == 4).await?;
    assert_eq!(owner_uids(&topology), ["b.example.com/v1-sums"]);
    let topology = lab.topology("job.a.example.com-sums", |it| opened(it) == 2).await?;
    assert_eq!(owner_uids(&topology), ["a.example.com/v1-sums"]);

    // Where Kubernetes itself has no such kind, the first one has the short name, and keeps it.
    let (first, second) = (("b.example.com/v1", "Shop", "web"), ("a.example.com/v1", "Shop", "web"));
    let first = lab.pod("four", Some(first)).await?;
    lab.report(&first, &[(1, 8)]).await;
    lab.topology("shop-web", |it| opened(it) == 8).await?;
    let second = lab.pod("five", Some(second)).await?;
    lab.report(&second, &[(1, 16)]).await;
    lab.report(&first, &[(1, 32)]).await;
    let topology = lab.topology("shop.a.example.com-web", |it| opened(it) == 16).await?;
    assert_eq!(status(&topology).workload.api_version, "a.example.com/v1");
    let topology = lab.topology("shop-web", |it| opened(it) == 32).await?;
    assert_eq!(owner_uids(&topology), ["b.example.com/v1-web"]);

    let cut = lab.only_name_that_begins_with("virtualmachine-aaa").await?;
    assert!(cut.len() <= 253, "{cut}");
    let topology = lab.topology(&cut, |it| opened(it) == 1).await?;
    assert_eq!(status(&topology).workload.name, long);
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}
