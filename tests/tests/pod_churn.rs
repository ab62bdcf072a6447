//! Tests pod churn with reused addresses on a node without an agent: only ownership over time identifies the pods. No
//! edge names a pod for more connections than the programs counted.
//!
//! On a cluster whose nodes have few addresses for pods, so that pods soon reuse them.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use crds::{Mode, Topology};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use scopeprobe_tests::{
    Cluster, Error, Result, cluster::Shape, eventually, namespace::Namespace, oracle::cases::Case, traffic_pod::Traffic,
};
use traffic::protocol::Connect;

/// The node with an agent; pods come and go on the other one.
const SEEN: &str = "node-1";
const UNSEEN: &str = "node-2";
const SPEC: &str =
    "{nodeSelector: {kubernetes.io/hostname: node-1}, topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";
const PORT: u16 = 8080;
/// Number of pods at a time.
const AT_A_TIME: usize = 4;
/// Maximum number of pods one after the other: many more than a node has addresses.
const MAX_TURNS: usize = 100;
/// Default duration; `SCOPEPROBE_POD_CHURN_SECONDS` overrides it.
const USUAL: Duration = Duration::from_mins(1);

/// Real connections between the permanent pod and each other one, in both directions.
#[derive(Default)]
struct Truth {
    called: BTreeMap<String, u64>,
    calls: BTreeMap<String, u64>,
    addresses: HashMap<IpAddr, Vec<String>>,
}

struct Testbed<'a> {
    namespace: &'a Namespace,
    stays: Traffic,
    stays_ip: IpAddr,
    truth: Mutex<Truth>,
}

fn lasting() -> Duration {
    let told = std::env::var("SCOPEPROBE_POD_CHURN_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    told.map_or(USUAL, Duration::from_secs)
}

impl Testbed<'_> {
    fn truth(&self) -> std::sync::MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts a pod, calls it, lets it call, and deletes it.
    async fn run_pod(&self, name: &str) -> Result<()> {
        let pod = self.namespace.traffic_pod(name, Some(UNSEEN), &["main"]).await?.remove(0);
        let ip = self.namespace.pod_ips(name).await?[0];
        self.truth().addresses.entry(ip).or_default().push(name.to_owned());
        pod.echo(&format!("0.0.0.0:{PORT}")).await?;
        let plan = |ip, count| Connect { count, send: 10, receive: 10, every_ms: 20, ..Connect::to((ip, PORT).into()) };
        let called = self.stays.connect(plan(ip, 30)).await?;
        let calls = pod.connect(plan(self.stays_ip, 20)).await?;
        self.truth().called.insert(name.to_owned(), called.opened);
        self.truth().calls.insert(name.to_owned(), calls.opened);
        let api: Api<Pod> = self.namespace.api();
        api.delete(name, &DeleteParams::default()).await.map_err(Error::api(format!("delete the pod {name}")))?;
        Ok(())
    }

    async fn slot(&self, slot: usize, end: Instant) -> Result<()> {
        // On a slow machine, no address has come round by then.
        for turn in 0..MAX_TURNS {
            if Instant::now() >= end && self.truth().addresses.values().any(|pods| pods.len() > 1) {
                break;
            }
            self.run_pod(&format!("pod-{slot}-{turn}")).await?;
        }
        Ok(())
    }

    /// Returns the content of the permanent pod's object: connections by the other pod's name and direction, and those
    /// that are known by an address only.
    async fn shown(&self) -> Result<Shown> {
        let api: Api<Topology> = self.namespace.api();
        let found = api.get_opt("pod-stays").await.map_err(Error::api("get the Topology of the pod that stays"))?;
        let status = found.and_then(|topology| topology.status).unwrap_or_default();
        let mut shown = Shown::default();
        let both = [(&status.egress, &mut shown.called), (&status.ingress, &mut shown.calls)];
        for (edges, named) in both {
            for edge in edges.iter().filter(|edge| edge.port == Some(PORT)) {
                if edge.peer.kind.as_deref() == Some("Pod") {
                    *named.entry(edge.peer.name.clone().unwrap_or_default()).or_default() += edge.opened;
                } else {
                    shown.nameless += edge.opened;
                }
            }
        }
        Ok(shown)
    }

    /// Returns wrong results, and the number of missing connections.
    fn compare(&self, shown: &Shown) -> (Vec<String>, u64) {
        let truth = self.truth();
        let mut wrong = Vec::new();
        for (shown, happened, what) in [(&shown.called, &truth.called, "called"), (&shown.calls, &truth.calls, "calls")]
        {
            for (pod, opened) in shown {
                let most = happened.get(pod).copied().unwrap_or_default();
                if *opened > most {
                    wrong.push(format!("{pod} {what}: {opened} are shown, {most} happened"));
                }
            }
        }
        let happened: u64 = truth.called.values().chain(truth.calls.values()).sum();
        (wrong, happened - shown.total().min(happened))
    }
}

#[derive(Debug, Default)]
struct Shown {
    called: BTreeMap<String, u64>,
    calls: BTreeMap<String, u64>,
    nameless: u64,
}

impl Shown {
    fn total(&self) -> u64 {
        self.called.values().chain(self.calls.values()).sum::<u64>() + self.nameless
    }
}

#[tokio::test]
async fn no_edge_names_a_pod_that_did_not_own_the_address_then() -> Result<()> {
    let cluster = Cluster::of(Shape::FewAddresses).await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.probe_some(SPEC, &[SEEN], Mode::Ebpf).await?;
    let namespace = cluster.namespace("pod-churn").await?;
    let stays = namespace.traffic_pod("stays", Some(SEEN), &["main"]).await?.remove(0);
    stays.echo(&format!("0.0.0.0:{PORT}")).await?;
    let stays_ip = namespace.pod_ips("stays").await?[0];
    let testbed = Testbed { namespace: &namespace, stays, stays_ip, truth: Mutex::default() };

    let end = Instant::now() + lasting();
    try_join_all((0..AT_A_TIME).map(|slot| testbed.slot(slot, end))).await?;

    let shown = eventually("all connections to be on edges", async || {
        let shown = testbed.shown().await.map_err(|error| error.to_string())?;
        match testbed.compare(&shown) {
            (_, 0) => Ok(shown),
            (wrong, missing) => Err(format!("{missing} are missing; wrong: {wrong:?}; {shown:?}")),
        }
    })
    .await?;
    let (wrong, _) = testbed.compare(&shown);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let truth = testbed.truth();
    let again: usize = truth.addresses.values().map(|pods| pods.len() - 1).sum();
    println!(
        "{} pods at {} addresses, {again} times one that another pod had had; {} connections under a name, {} by address",
        truth.called.len(),
        truth.addresses.len(),
        shown.total() - shown.nameless,
        shown.nameless
    );
    let edges = |called: &BTreeMap<String, u64>, calls: &BTreeMap<String, u64>| -> BTreeMap<(bool, String), u64> {
        let called = called.iter().map(|(pod, opened)| ((true, pod.clone()), *opened));
        called.chain(calls.iter().map(|(pod, opened)| ((false, pod.clone()), *opened))).collect()
    };
    let (happened, seen) = (edges(&truth.called, &truth.calls), edges(&shown.called, &shown.calls));
    println!(
        "{}",
        Case::of("pods that come and go with the same addresses", &happened, &seen, |opened| *opened, |_| ())
    );
    assert!(again > 0, "no address came round: this says nothing; use the cluster of few addresses");
    assert!(shown.total() - shown.nameless > shown.nameless, "a map without names says nothing");
    Ok(())
}
