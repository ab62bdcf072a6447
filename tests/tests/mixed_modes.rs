//! Tests one node with eBPF and one in Fallback mode: edges and counts are exact with any combination of methods, for
//! connections that last for a scan.
#![forbid(unsafe_code)]

use crds::{CaptureMethod, Mode, NodeProbe, Topology};
use kube::{Api, ResourceExt as _, api::ListParams};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    oracle::{
        agreement,
        fleet::{CLOSED, Fleet, Port, ports},
    },
};
use traffic::protocol::{Close, Command, Connect, End, Exchange};

/// The node without eBPF.
const LOOKED_AT: &str = "node-1";
const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}, capture: {fallback: {cpuBudget: 500m}},
  modeOverrides: [{nodeSelector: {kubernetes.io/hostname: node-1}, mode: Fallback}]}";

/// Two connections of each client to each of four servers, in both ways and families.
async fn open(fleet: &Fleet, held: &str) -> Result<()> {
    fleet
        .each_client(async |client, own, program| {
            for turn in 0..4 {
                let target = fleet.target(fleet.partner(client, turn, own), turn % 2 == 0, turn < 2, &ports()[0]);
                let plan =
                    Connect { count: 2, send: 300, receive: 300, hold: Some(held.into()), ..Connect::to(target) };
                let outcome = program.connect(plan).await?;
                assert_eq!((outcome.opened, outcome.broken), (2, 0), "{program}: {outcome:?}");
            }
            Ok(())
        })
        .await?;
    Ok(())
}

async fn each(fleet: &Fleet, command: &Command) -> Result<()> {
    fleet.each_client(async |_, _, program| program.outcome(command).await.map(|_| ())).await?;
    Ok(())
}

/// Attempts that are refused, by the clients of the node that counts in the kernel.
async fn be_refused(fleet: &Fleet) -> Result<()> {
    fleet
        .each_client(async |client, own, program| {
            if own.node == LOOKED_AT {
                return Ok(());
            }
            let closed = Port { service: CLOSED.0, server: CLOSED.1, ..ports()[0].clone() };
            let target = fleet.target(fleet.partner(client, 1, own), false, true, &closed);
            let outcome = program.connect(Connect { count: 3, ..Connect::to(target) }).await?;
            assert_eq!(outcome.failed.refused, 3, "{program}: {outcome:?}");
            Ok(())
        })
        .await?;
    Ok(())
}

/// Asserts that each edge reports the methods of its observation.
async fn edges_say_how_they_are_known(fleet: &Fleet) -> Result<()> {
    let api: Api<Topology> = fleet.namespace.api();
    let all = api.list(&ListParams::default()).await.map_err(Error::api("list Topologies"))?;
    let methods: Vec<_> = all
        .iter()
        .filter_map(|topology| topology.status.as_ref())
        .flat_map(|status| status.egress.iter().map(|edge| edge.methods.clone()))
        .collect();
    assert!(!methods.is_empty());
    for set in &methods {
        let known = [CaptureMethod::Ebpf, CaptureMethod::SockDiag, CaptureMethod::Conntrack];
        assert!(!set.is_empty() && set.iter().all(|method| known.contains(method)), "{set:?}");
    }
    assert!(methods.iter().any(|set| set.contains(&CaptureMethod::Ebpf) && set.contains(&CaptureMethod::SockDiag)));
    Ok(())
}

fn status_of(probes: &[NodeProbe], node: &str) -> crds::NodeProbeStatus {
    probes.iter().find(|probe| probe.name_any() == node).and_then(|probe| probe.status.clone()).unwrap_or_default()
}

#[tokio::test]
async fn what_lasts_is_exact_whichever_end_is_seen_in_which_way() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("mixed").await?).await?;
    open(&fleet, "before").await?;
    let mode = |node: &str| if node == LOOKED_AT { Mode::Fallback } else { Mode::Ebpf };
    cluster.probe_as(SPEC, mode).await?;
    let probes = cluster.node_probes().await?;
    let looked_at = status_of(&probes, LOOKED_AT);
    assert_eq!((looked_at.reason.as_str(), looked_at.attach.as_str()), ("ForcedByOverride", "SockDiag+Conntrack"));
    agreement::exact(&fleet, "what was there before").await?;

    open(&fleet, "long").await?;
    be_refused(&fleet).await?;
    each(&fleet, &Command::Exchange(Exchange { held: "long".into(), send: 20_000, receive: 20_000 })).await?;
    agreement::exact(&fleet, "long ones open").await?;
    edges_say_how_they_are_known(&fleet).await?;

    for held in ["before", "long"] {
        each(&fleet, &Command::Close(Close { held: held.into(), count: None, end: End::Close })).await?;
    }
    agreement::exact(&fleet, "all closed").await?;
    eventually("the ScopeProbe to be ready although a node has no eBPF", async || {
        let ready = cluster.probe_condition("Ready").await.map_err(|error| error.to_string())?;
        if ready.status == "True" { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await
}
