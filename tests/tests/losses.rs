//! Tests a table of flows that is far too small: every connection that does not fit is counted and reported as lost.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crds::{NodeProbe, NodeProbeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use scopeprobe_tests::{
    Cluster, Result, eventually,
    kernel_counts::KernelCounts,
    oracle::{
        EdgeCounts, Edges, Workload, expected,
        fleet::{CLOSED, Fleet, Port, ports},
        observed,
    },
};
use traffic::protocol::{Behaviour, Connect, End};

/// Settings with the smallest table that the API allows.
const SPEC: &str = "{capture: {maxFlows: 64}, topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";
/// Time without a change after which an account counts as settled: agents and operator report every few seconds.
const STILL: Duration = Duration::from_secs(20);

/// Difference between the counts of a node's kernel and its NodeProbe.
#[derive(Clone, Debug)]
struct Account {
    /// Connections and failed attempts, less all that the NodeProbe reports as seen or lost.
    unreported: i128,
    kernel: KernelCounts,
}

impl Account {
    /// Returns the range in which `unreported` is now if everything since `self` is reported, once. The NodeProbe counts
    /// conversations over UDP as well, of which the kernel keeps no count: any datagram may have begun one. Without
    /// datagrams the range is one number.
    fn expected(&self, now: &Self) -> RangeInclusive<i128> {
        let datagrams = now.kernel.datagrams.saturating_sub(self.kernel.datagrams);
        self.unreported - i128::from(datagrams)..=self.unreported
    }
}

/// Returns the account of each node. The NodeProbe is later than the events and is read before the kernel's counters.
/// The result is therefore at least the number from before the agent's start, and exactly that once everything is
/// reported.
async fn accounts(cluster: &Cluster) -> Result<BTreeMap<String, Account>> {
    let mut nodes = BTreeMap::new();
    for probe in cluster.node_probes().await? {
        let node = probe.name_any();
        let status = probe.status.unwrap_or_default();
        let kernel = cluster.kernel_counts(&node).await?;
        let unreported = i128::from(kernel.total()) - i128::from(status.seen) - i128::from(status.lost);
        nodes.insert(node, Account { unreported, kernel });
    }
    Ok(nodes)
}

/// Waits until no attempt is under way on any node. Of one that an agent finds at its start, it may tell the end a minute
/// later, after the account was settled.
async fn nothing_is_under_way(cluster: &Cluster) -> Result<()> {
    eventually("all attempts to end", async || {
        for node in ["node-1", "node-2"] {
            let kernel = cluster.kernel_counts(node).await.map_err(|error| error.to_string())?;
            if kernel.pending > 0 {
                return Err(format!("{} on {node}", kernel.pending));
            }
        }
        Ok(())
    })
    .await
}

/// Returns the counts that each NodeProbe declares, for a message.
async fn declared(cluster: &Cluster) -> Result<String> {
    let probes = cluster.node_probes().await?;
    let line = |probe: &NodeProbe| {
        let status = probe.status.clone().unwrap_or_default();
        format!("{}: seen {}, lost {}, {:?}", probe.name_any(), status.seen, status.lost, status.unobserved)
    };
    Ok(probes.iter().map(line).collect::<Vec<_>>().join("; "))
}

/// Returns the minimum of several reads: for some of them, everything was reported.
async fn before_the_agents(cluster: &Cluster) -> Result<BTreeMap<String, Account>> {
    let mut least = accounts(cluster).await?;
    let mut changed = Instant::now();
    while changed.elapsed() < STILL {
        for (node, now) in accounts(cluster).await? {
            if least.get(&node).is_none_or(|known| now.unreported < known.unreported) {
                least.insert(node, now);
                changed = Instant::now();
            }
        }
    }
    Ok(least)
}

/// Every client calls many servers in every way: some ten times as many flows as fit, on each node.
async fn overflow(fleet: &Fleet) -> Result<()> {
    fleet
        .each_client(async |client, own, program| {
            for turn in 0..12 {
                let port = &ports()[(client + turn) % 4];
                let (send, receive, end) = match port.behaviour {
                    Behaviour::Reply { request, response, .. } => (request, response, End::AwaitServer),
                    Behaviour::Source { bytes, .. } => (0, bytes, End::Close),
                    Behaviour::Sink => (500, 0, End::Close),
                    Behaviour::Echo => (500, 500, End::Close),
                };
                let target =
                    fleet.target(fleet.partner(client, turn, own), turn % 3 == 0, (client + turn) % 2 == 0, port);
                let plan = Connect { count: 5, concurrency: 2, send, receive, end, ..Connect::to(target) };
                let outcome = program.connect(plan).await?;
                assert_eq!((outcome.opened, outcome.broken), (5, 0), "{program} → {target}: {outcome:?}");
            }
            let closed = Port { service: CLOSED.0, server: CLOSED.1, ..ports()[0].clone() };
            let target = fleet.target(fleet.partner(client, 1, own), client % 2 == 0, client % 4 < 2, &closed);
            let outcome = program.connect(Connect { count: 3, ..Connect::to(target) }).await?;
            assert_eq!(outcome.failed.refused, 3, "{program} → {target}: {outcome:?}");
            Ok(())
        })
        .await?;
    Ok(())
}

/// The programs and the kernel count the same for each of the fleet's pods: so the kernel is an oracle for what else
/// goes on in a node.
async fn assert_oracles_agree(cluster: &Cluster, fleet: &Fleet) -> Result<()> {
    let mut by_programs: BTreeMap<&str, u64> = BTreeMap::new();
    let reports = expected::reports(fleet).await?;
    for ((pod, _), report) in &reports {
        let called: u64 = report.clients.iter().map(|row| row.opened + row.failed.total()).sum();
        let accepted: u64 = report.servers.iter().map(|row| row.opened).sum();
        *by_programs.entry(pod).or_default() += called + accepted;
    }
    let mut by_kernel = BTreeMap::new();
    for node in cluster.node_probes().await? {
        by_kernel.extend(cluster.kernel_counts(&node.name_any()).await?.pods);
    }
    for member in &fleet.members {
        assert_eq!(by_programs.get(member.pod.as_str()), by_kernel.get(&member.uid), "{}", member.pod);
    }
    Ok(())
}

/// By client, server and port: where one end of a connection is lost, the Service may be as well.
fn without_services(edges: &Edges) -> BTreeMap<(Workload, Workload, Option<u16>), EdgeCounts> {
    let mut sums: BTreeMap<_, EdgeCounts> = BTreeMap::new();
    for (name, counts) in edges {
        let sum = sums.entry((name.client.clone(), name.server.clone(), name.port)).or_default();
        sum.opened += counts.opened;
        sum.failed += counts.failed;
        sum.sent += counts.sent;
        sum.received += counts.received;
    }
    sums
}

fn sum(edges: &Edges, of: fn(&EdgeCounts) -> u64) -> u64 {
    edges.values().map(of).sum()
}

/// Nothing is shown that did not happen.
async fn assert_shown_at_most(fleet: &Fleet, happened: &Edges) -> Result<()> {
    let most = without_services(happened);
    for shown in <[Edges; 2]>::from(observed::edges(&fleet.namespace).await?) {
        for (name, counts) in without_services(&shown) {
            let nothing = EdgeCounts::default();
            let most = most.get(&name).unwrap_or(&nothing);
            let fits = counts.opened <= most.opened
                && counts.failed <= most.failed
                && counts.sent <= most.sent
                && counts.received <= most.received;
            assert!(fits, "{name:?}: shown {counts:?}, happened {most:?}");
        }
        let opened = sum(&shown, |edge| edge.opened);
        assert!(opened < sum(happened, |edge| edge.opened), "everything is shown: too little was tried");
    }
    Ok(())
}

/// Waits until what is not shown was lost. Topologies are written later than NodeProbes.
async fn rest_is_lost(fleet: &Fleet, happened: &Edges, lost: (u64, u64)) -> Result<()> {
    let [all, all_failed] = [sum(happened, |edge| edge.opened), sum(happened, |edge| edge.failed)];
    eventually("all to be shown that was not lost", async || {
        let shown = observed::edges(&fleet.namespace).await.map_err(|error| error.to_string())?;
        for shown in <[Edges; 2]>::from(shown) {
            let (opened, failed) = (sum(&shown, |edge| edge.opened), sum(&shown, |edge| edge.failed));
            if opened + lost.0 < all || failed + lost.1 < all_failed {
                return Err(format!("{opened} and {failed} shown, {lost:?} lost, of {all} and {all_failed}"));
            }
        }
        Ok(())
    })
    .await
}

fn condition<'a>(status: &'a NodeProbeStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

/// The numbers, the condition and the coverage of a node.
#[expect(clippy::expect_used, reason = "a test")]
fn assert_declared(probe: &NodeProbe) {
    let node = probe.name_any();
    let status = probe.status.clone().unwrap_or_default();
    assert!(status.losses.opened > 0 && status.losses.failed > 0, "{node}: {:?}", status.losses);
    assert_eq!(status.lost, status.losses.opened + status.losses.failed, "{node}");
    let permille = status.seen * 1000 / (status.seen + status.lost);
    let coverage: f64 = status.coverage.trim_end_matches('%').parse().expect("a percentage");
    #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
    let expected = permille as f64 / 10.0;
    assert!(coverage < 100.0 && (coverage - expected).abs() < 0.05, "{node}: {coverage} instead of {expected}");
    let complete = condition(&status, "CaptureComplete").expect("the condition");
    assert_eq!((complete.status.as_str(), complete.reason.as_str()), ("False", "Lost"), "{node}");
    let numbers = format!("{} connections and {} failed attempts", status.losses.opened, status.losses.failed);
    assert!(complete.message.contains(&numbers), "{node}: {}", complete.message);
}

/// Asserts that the ScopeProbe's condition reports the number of lost connections and their nodes.
async fn assert_said(cluster: &Cluster) -> Result<()> {
    eventually("the ScopeProbe to say how much was lost", async || {
        let probes = cluster.node_probes().await.map_err(|error| error.to_string())?;
        let losses = probes.iter().filter_map(|probe| Some(probe.status.as_ref()?.losses));
        let (opened, failed) = losses.fold((0, 0), |sum, losses| (sum.0 + losses.opened, sum.1 + losses.failed));
        let condition = cluster.probe_condition("CaptureComplete").await.map_err(|error| error.to_string())?;
        let wanted = [
            format!("{opened} connections and {failed} failed attempts"),
            "maxFlows".to_owned(),
            "node-1".to_owned(),
            "node-2".to_owned(),
        ];
        let says = wanted.iter().all(|words| condition.message.contains(words));
        if condition.status == "False" && says { Ok(()) } else { Err(format!("{condition:?} without {wanted:?}")) }
    })
    .await
}

#[tokio::test]
async fn what_does_not_fit_is_counted_to_the_connection_and_said() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("losses").await?).await?;
    nothing_is_under_way(&cluster).await?;
    cluster.probe(SPEC).await?;
    let before = before_the_agents(&cluster).await?;
    assert_eq!(before.len(), 2);

    overflow(&fleet).await?;
    let happened = expected::edges(&fleet).await?;
    assert_oracles_agree(&cluster, &fleet).await?;
    eventually("the NodeProbes to have counted everything as seen or lost, once", async || {
        let now = accounts(&cluster).await.map_err(|error| error.to_string())?;
        // A look between a socket's change and the kernel's count of it is wrong by one. What counts twice stays wrong.
        let is_exact = |(node, now): (&String, &Account)| {
            before.get(node).is_some_and(|before| before.expected(now).contains(&now.unreported))
        };
        if now.len() == before.len() && now.iter().all(is_exact) {
            return Ok(());
        }
        let declared = declared(&cluster).await.map_err(|error| error.to_string())?;
        Err(format!("{now:?} of {before:?} from before the agents; {declared}"))
    })
    .await?;

    let probes = cluster.node_probes().await?;
    probes.iter().for_each(assert_declared);
    let losses = probes.iter().filter_map(|probe| Some(probe.status.as_ref()?.losses));
    let lost = losses.fold((0, 0), |sum, losses| (sum.0 + losses.opened, sum.1 + losses.failed));
    println!("{} connections and {} failed attempts did not fit", lost.0, lost.1);
    rest_is_lost(&fleet, &happened, lost).await?;
    assert_shown_at_most(&fleet, &happened).await?;
    assert_said(&cluster).await
}
