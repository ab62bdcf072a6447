//! Phases of a run: each changes the simulated cluster, measures the operator, and compares the Topologies with the oracle.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use kube::Client;
use tokio::time::{interval, sleep};

use super::{
    conversation::Clock,
    figures::{EndFigures, PhaseFigures},
    meter::{Meter, Sources},
    objects,
    operator_process::OperatorProcess,
    oracle::{Edge, Verdict},
    published::Published,
    rounded_percentiles,
    sampler::Sampler,
    statistics::{percentiles, rounded},
    traffic::Traffic,
};
use crate::{ControlPlane, Result};

/// Time over which the agents' first connections are spread.
const SPREAD: Duration = Duration::from_secs(10);
/// Time between two new edges.
const NEW_EDGE: Duration = Duration::from_millis(200);
/// Share of pods that is replaced per minute: one of so many.
const REPLACED: u32 = 100;
/// Time between two looks for a condition.
const LOOK: Duration = Duration::from_millis(100);

/// Everything that runs. The API server is dropped last, since all else uses it.
pub struct Run {
    /// Agents and the oracle.
    pub traffic: Traffic,
    /// The published Topologies.
    pub published: Published,
    /// Samples of the operator.
    pub sampler: Sampler,
    /// The operator.
    pub operator: OperatorProcess,
    /// API server and etcd.
    pub control_plane: ControlPlane,
    /// Time of the run.
    pub clock: Clock,
    /// Upper bound of the length of a phase.
    pub limit: Duration,
    /// Time to wait for an expected state after a phase.
    pub patience: Duration,
}

/// Phase of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// All agents connect within ten seconds to an operator that has published nothing.
    Start,
    /// Counts grow on a tenth of the conversations in each second.
    Steady,
    /// Five new edges per second begin.
    NewEdges,
    /// As before, and one percent of the pods is replaced per minute.
    Churn,
    /// The operator is killed and started again. New edges begin meanwhile.
    Restart,
    /// All agents break their streams and connect again at once. New edges begin meanwhile.
    Reconnect,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Self; 6] = [Self::Start, Self::Steady, Self::NewEdges, Self::Churn, Self::Restart, Self::Reconnect];

    /// Name in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Steady => "steady",
            Self::NewEdges => "new edges",
            Self::Churn => "churn",
            Self::Restart => "restart",
            Self::Reconnect => "reconnect",
        }
    }
}

/// Changes during a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changes {
    new_edges: bool,
    churn: bool,
}

const NONE: Changes = Changes { new_edges: false, churn: false };
const NEW_EDGES: Changes = Changes { new_edges: true, churn: false };
const CHURN: Changes = Changes { new_edges: true, churn: true };

impl Run {
    /// Runs a phase.
    ///
    /// # Errors
    /// Returns an error if the operator ends by itself, or the API server refuses a change of the simulated cluster. A wrong
    /// map is no error.
    pub async fn phase(&mut self, phase: Phase) -> Result<PhaseFigures> {
        match phase {
            Phase::Start => self.start(phase).await,
            Phase::Steady => self.changing(phase, 180, NONE).await,
            Phase::NewEdges => self.changing(phase, 60, NEW_EDGES).await,
            Phase::Churn => self.changing(phase, 120, CHURN).await,
            Phase::Restart => self.reconnected(phase, |run| run.operator.crash()).await,
            Phase::Reconnect => {
                let reconnect = |run: &mut Self| {
                    run.traffic.fleet.reconnect();
                    Ok(())
                };
                self.reconnected(phase, reconnect).await
            }
        }
    }

    /// Ends all connections, and waits until all published counts are exact.
    ///
    /// # Errors
    /// Returns an error if the operator ends by itself.
    pub async fn end(&mut self) -> Result<EndFigures> {
        self.traffic.end_all();
        let began = Instant::now();
        let is_exact = |verdict: &Verdict| verdict.is_complete() && verdict.exact == verdict.expected;
        let (verdict, exact_seconds) = self.wait(began, is_exact).await?;
        let now = self.clock.now();
        let wrong_counts = self.published.with(|topologies| self.traffic.oracle.wrong_counts(topologies, now));
        Ok(EndFigures { exact_seconds, verdict, wrong_counts })
    }

    fn length(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds).min(self.limit)
    }

    fn sources(&self) -> Sources<'_> {
        let (operator, control_plane, sampler) = (&self.operator, &self.control_plane, &self.sampler);
        Sources { operator, control_plane, fleet: &self.traffic.fleet.statistics, sampler }
    }

    fn begin(&self) -> Meter {
        let _ = self.published.take_new_edges();
        Meter::begin(self.sources())
    }

    async fn start(&mut self, phase: Phase) -> Result<PhaseFigures> {
        let meter = self.begin();
        let began = Instant::now();
        let connected = self.all_connected();
        self.traffic.fleet.start(self.operator.collector(), SPREAD.min(self.limit));
        let connected_seconds = connected.await;
        let (verdict, complete_seconds) = self.wait(began, Verdict::is_complete).await?;
        let figures = meter.finish(phase.name(), self.sources(), self.traffic.flows())?;
        Ok(PhaseFigures { connected_seconds, complete_seconds, verdict, ..figures })
    }

    /// A phase of changes.
    async fn changing(&mut self, phase: Phase, seconds: u64, changes: Changes) -> Result<PhaseFigures> {
        let meter = self.begin();
        self.change(self.length(seconds), changes).await?;
        self.finish(phase, meter).await
    }

    /// A phase in which all agents connect again, because of `change`.
    async fn reconnected(
        &mut self,
        phase: Phase,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<PhaseFigures> {
        let meter = self.begin();
        let connected = self.all_connected();
        change(self)?;
        let (changed, connected_seconds) = tokio::join!(self.change(self.length(60), NEW_EDGES), connected);
        changed?;
        let figures = self.finish(phase, meter).await?;
        Ok(PhaseFigures { connected_seconds, ..figures })
    }

    /// Returns the seconds from now until all agents have opened a stream and are connected; `None` if that does not happen.
    fn all_connected(&self) -> impl Future<Output = Option<f64>> + use<> {
        let (statistics, nodes) = (Arc::clone(&self.traffic.fleet.statistics), self.traffic.world.nodes as u64);
        let (began, streams, patience) = (Instant::now(), statistics.streams() + nodes, self.patience);
        async move {
            while statistics.streams() < streams || statistics.connected_agents() < nodes {
                if began.elapsed() > patience {
                    return None;
                }
                sleep(LOOK).await;
            }
            Some(rounded(began.elapsed().as_secs_f64()))
        }
    }

    /// Changes the simulated cluster for a time.
    async fn change(&mut self, length: Duration, Changes { new_edges, churn }: Changes) -> Result<()> {
        let until = Instant::now() + length;
        let pods = u32::try_from(self.traffic.world.pods.len()).unwrap_or(u32::MAX);
        // Late changes follow at once, so that each run has the same number of them.
        let mut edges = interval(NEW_EDGE);
        let mut replacements = interval(Duration::from_mins(1) * REPLACED / pods);
        let client = self.control_plane.client.clone();
        let mut next_pod = 0;
        while Instant::now() < until {
            tokio::select! {
                _ = edges.tick(), if new_edges => self.begin_edge(),
                _ = replacements.tick(), if churn => {
                    // A prime step reaches pods of all workloads.
                    next_pod = (next_pod + 37) % self.traffic.world.pods.len();
                    self.replace_pod(&client, next_pod).await?;
                }
                () = sleep(until.saturating_duration_since(Instant::now())) => {}
            }
        }
        self.operator.check()
    }

    fn begin_edge(&mut self) {
        if let Some(call) = self.traffic.begin_edge() {
            self.published.expect(Edge::of(&call));
        }
    }

    async fn replace_pod(&mut self, client: &Client, pod: usize) -> Result<()> {
        let conversations = self.traffic.end_pod(pod);
        objects::replace_pod(client, &mut self.traffic.world, pod).await?;
        self.traffic.begin_again(conversations);
        Ok(())
    }

    /// Ends the measurement, and waits for the expected map.
    async fn finish(&mut self, phase: Phase, meter: Meter) -> Result<PhaseFigures> {
        let figures = meter.finish(phase.name(), self.sources(), self.traffic.flows())?;
        let (verdict, complete_seconds) = self.wait(Instant::now(), Verdict::is_complete).await?;
        let (new, new_edges_missing) = self.published.take_new_edges();
        let new_edge_seconds = percentiles(new).map(rounded_percentiles);
        Ok(PhaseFigures { new_edge_seconds, new_edges_missing, complete_seconds, verdict, ..figures })
    }

    /// Waits until the published state is as wanted, and returns the seconds since `began`; `None` if it did not become so.
    async fn wait(&mut self, began: Instant, is_wanted: impl Fn(&Verdict) -> bool) -> Result<(Verdict, Option<f64>)> {
        let until = Instant::now() + self.patience;
        loop {
            self.operator.check()?;
            let (now, revision) = (self.clock.now(), self.published.revision());
            let verdict = self.published.with(|topologies| self.traffic.oracle.judge(topologies, now));
            if is_wanted(&verdict) {
                return Ok((verdict, Some(rounded(began.elapsed().as_secs_f64()))));
            }
            while self.published.revision() == revision && Instant::now() < until {
                sleep(LOOK).await;
            }
            if Instant::now() >= until {
                return Ok((verdict, None));
            }
        }
    }
}
