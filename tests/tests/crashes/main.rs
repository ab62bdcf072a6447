//! Kills the operator, the agents and their captures under load: nothing counts twice, nothing observed is lost, and
//! everything unobserved is declared.
#![forbid(unsafe_code)]

mod growth;
mod handshakes;
mod load;

use crds::{Mode, NodeProbeStatus, Unobserved};
use kube::ResourceExt as _;
use scopeprobe_tests::{
    Cluster, Error, Result,
    crash::Sabotage,
    eventually,
    oracle::{EdgeCounts, agreement, expected, fleet::Fleet},
};

use self::{
    growth::{Moment, at_most, never_backwards},
    load::Load,
};

/// Counters are written this often, so that the test need not wait.
const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";
/// The node whose agent crashes.
const VICTIM: &str = "node-1";
/// Number of times that a capture is killed, unless `SCOPEPROBE_CRASHES_KILLS` sets another. Each fourth time, its next
/// start is refused.
const KILLS: u32 = 5;

fn kills() -> u32 {
    std::env::var("SCOPEPROBE_CRASHES_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

async fn node_probe(cluster: &Cluster, node: &str) -> Result<NodeProbeStatus> {
    let probes = cluster.node_probes().await?;
    let found = probes.into_iter().find(|probe| probe.name_any() == node).and_then(|probe| probe.status);
    found.ok_or_else(|| Error::Unexpected(format!("there is no NodeProbe of {node}")))
}

#[tokio::test]
async fn after_a_crash_of_the_operator_nothing_is_lost_and_nothing_doubled() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("operator").await?).await?;
    cluster.probe(SPEC).await?;

    load::open_long_ones(&fleet).await?;
    load::make_some_once_and_for_all(&fleet).await?;
    let load = Load::begin(&fleet).await?;
    never_backwards(&fleet, async {
        cluster.crash_operator().await?;
        load.shown_to_go_on().await
    })
    .await?;
    load::use_long_ones(&fleet).await?;
    println!("{} connections around the crash", load.end().await?);
    agreement::exact(&fleet, "after the operator's crash").await?;
    for node in ["node-1", "node-2"] {
        let status = node_probe(&cluster, node).await?;
        assert_eq!((status.lost, status.unobserved, status.coverage.as_str()), (0, Unobserved::default(), "100%"));
    }
    load::close_long_ones(&fleet, true).await?;
    agreement::exact(&fleet, "long ones closed").await
}

/// Nothing exceeds what happened; what clients of the other node did is exact, and so is what is open.
fn assert_honest(fleet: &Fleet, moment: &Moment) {
    let nothing = EdgeCounts::default();
    for (name, shown) in &moment.shown {
        let happened = moment.happened.get(name).unwrap_or(&nothing);
        assert!(at_most(shown, happened), "{name:?}: shown {shown:?}\n    happened {happened:?}");
    }
    let watched = |pod: &str| fleet.members.iter().any(|member| member.pod == pod && member.node != VICTIM);
    for (name, happened) in &moment.happened {
        let shown = moment.shown.get(name).unwrap_or(&nothing);
        assert_eq!(shown.active, happened.active, "{name:?}");
        for (client, opened) in happened.clients.iter().filter(|((pod, _), _)| watched(pod)) {
            assert_eq!(shown.clients.get(client), Some(opened), "{name:?} {client:?}");
        }
        if happened.clients.keys().all(|(pod, _)| watched(pod)) {
            let counts = |edge: &EdgeCounts| (edge.opened, edge.failed, edge.sent, edge.received);
            assert_eq!(counts(shown), counts(happened), "{name:?}");
        }
    }
}

/// The gap is in the node's NodeProbe and in the ScopeProbe's condition, and in no other node's.
async fn assert_declared(cluster: &Cluster) -> Result<()> {
    let status = node_probe(cluster, VICTIM).await?;
    assert!(status.unobserved.intervals >= 1, "{:?}", status.unobserved);
    assert_ne!(status.coverage, "100%");
    let of_type = |status: &NodeProbeStatus| {
        let conditions = status.conditions.iter().filter(|condition| condition.type_ == "CaptureComplete");
        conditions.map(|condition| (condition.status.clone(), condition.reason.clone())).collect::<Vec<_>>()
    };
    assert_eq!(of_type(&status), [("False".to_owned(), "Unobserved".to_owned())]);
    let other = node_probe(cluster, "node-2").await?;
    assert_eq!((other.unobserved, other.coverage.as_str()), (Unobserved::default(), "100%"));
    assert_eq!(of_type(&other), [("True".to_owned(), "NothingMissed".to_owned())]);
    eventually("the ScopeProbe to say that a node was not observed", async || {
        let condition = cluster.probe_condition("CaptureComplete").await.map_err(|error| error.to_string())?;
        let says = condition.message.contains("no agent observed for at most")
            && condition.message.contains(VICTIM)
            && !condition.message.contains("node-2");
        if condition.status == "False" && says { Ok(()) } else { Err(format!("{condition:?}")) }
    })
    .await
}

#[tokio::test]
async fn what_was_missed_while_an_agent_was_down_is_declared_and_the_rest_is_exact() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("agent").await?).await?;
    cluster.probe(SPEC).await?;

    load::open_long_ones(&fleet).await?;
    load::make_some_once_and_for_all(&fleet).await?;
    agreement::exact(&fleet, "before the crash").await?;
    let load = Load::begin(&fleet).await?;
    never_backwards(&fleet, async {
        cluster.crash_agent(VICTIM).await?;
        eventually("the new agent's report", async || {
            let status = node_probe(&cluster, VICTIM).await.map_err(|error| error.to_string())?;
            if status.unobserved.intervals > 0 { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await?;
        load.shown_to_go_on().await
    })
    .await?;
    println!("{} connections around the crash", load.end().await?);
    expected::edges(&fleet).await?;
    load::make_marks(&fleet).await?;
    let moment = Moment::now(&fleet).await?;
    assert_honest(&fleet, &moment);
    assert_declared(&cluster).await?;

    never_backwards(&fleet, async {
        load::make_some(&fleet).await?;
        load::use_long_ones(&fleet).await?;
        load::close_long_ones(&fleet, false).await?;
        moment.grown_exactly(&fleet, "with the new agent").await
    })
    .await?;

    // Only the operator remembers what the agent before has counted.
    let load = Load::begin(&fleet).await?;
    never_backwards(&fleet, async {
        cluster.crash_operator().await?;
        load.shown_to_go_on().await
    })
    .await?;
    println!("{} connections around the operator's crash", load.end().await?);
    never_backwards(&fleet, async {
        load::use_long_ones(&fleet).await?;
        load::close_long_ones(&fleet, true).await?;
        moment.grown_exactly(&fleet, "with a new agent and a new operator").await
    })
    .await?;
    assert_declared(&cluster).await
}

/// Waits until the node's agent has begun another epoch by eBPF.
async fn recovered(cluster: &Cluster, epoch: &str) -> Result<String> {
    eventually("another epoch by eBPF", async || {
        let status = node_probe(cluster, VICTIM).await.map_err(|error| error.to_string())?;
        let is_back = status.mode == Some(Mode::Ebpf) && status.reason == "Supported" && status.epoch != epoch;
        if is_back { Ok(status.epoch) } else { Err(format!("{status:?}")) }
    })
    .await
}

#[tokio::test]
async fn a_capture_that_is_killed_again_and_again_comes_back_each_time_and_what_it_missed_is_declared() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&["agent.debugSignals=true"]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("captures").await?).await?;
    cluster.probe(SPEC).await?;
    let restarts = cluster.agent_restarts(VICTIM).await?;

    load::open_long_ones(&fleet).await?;
    let load = Load::begin(&fleet).await?;
    for node in [VICTIM, "node-2"] {
        cluster.break_capture(node, Sabotage::Starve).await?;
    }
    load.shown_to_go_on().await?;
    for node in [VICTIM, "node-2"] {
        let status = node_probe(&cluster, node).await?;
        assert_eq!(status.coverage, "100%", "a capture that was not read for a time has missed nothing: {status:?}");
    }
    let mut epoch = node_probe(&cluster, VICTIM).await?.epoch;
    never_backwards(&fleet, async {
        for round in 0..kills() {
            if round % 4 == 3 {
                cluster.break_capture(VICTIM, Sabotage::RefuseNext).await?;
            }
            cluster.break_capture(VICTIM, Sabotage::Kill).await?;
            epoch = recovered(&cluster, &epoch).await?;
        }
        load.shown_to_go_on().await
    })
    .await?;
    println!("{} connections around {} kills", load.end().await?, kills());
    assert_eq!(cluster.agent_restarts(VICTIM).await?, restarts, "the agent itself lives on");

    expected::edges(&fleet).await?;
    load::make_marks(&fleet).await?;
    assert_honest(&fleet, &Moment::now(&fleet).await?);
    assert_declared(&cluster).await?;
    let history = node_probe(&cluster, VICTIM).await?.history;
    assert!(history.iter().any(|change| change.reason == "CaptureFailed"), "{history:?}");
    let last = history.last().map(|change| (change.mode, change.reason.as_str(), change.attach.as_str()));
    assert_eq!(last, Some((Mode::Ebpf, "Supported", "SockOps")), "{history:?}");
    Ok(())
}
