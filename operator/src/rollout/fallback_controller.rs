//! Processes agents' requests for Fallback mode, and records the nodes that were moved to it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    assigner::Assigner,
    fallback_policy::{FallbackFacts, NodeFallback, Request, decide},
};
use crate::{
    observation::{NodeObservation, Observations},
    settings::AgentSettings,
    share_of_time::pause_after,
};

/// Minimum time between two runs.
const PAUSE: Duration = Duration::from_secs(1);
/// Interval of a run without a report, since deadlines pass.
const INTERVAL: Duration = Duration::from_secs(5);

/// Dependencies of the controller.
pub struct FallbackController {
    /// Assignments, and the store of the moved nodes.
    pub assigner: Arc<Assigner>,
    /// Reports of agents.
    pub observations: Observations,
    /// Settings of agents.
    pub agents: AgentSettings,
}

impl FallbackController {
    /// Runs after every report, without end.
    pub async fn run(self) {
        let mut reports = self.observations.subscribe();
        let mut changes = self.assigner.cluster().subscribe_requests();
        loop {
            let began = Instant::now();
            // In whole seconds as in the API, so that a restored time is the same.
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            self.turn(now);
            tokio::time::sleep(pause_after(began.elapsed(), PAUSE)).await;
            let _ = tokio::time::timeout(INTERVAL, async {
                tokio::select! {
                    _ = reports.changed() => {}
                    _ = changes.changed() => {}
                }
            })
            .await;
        }
    }

    fn turn(&self, now: Timestamp) {
        let before = self.assigner.fallbacks();
        let nodes = self.assigner.cluster().nodes();
        let observations = self.observations.all();
        let mut after = BTreeMap::new();
        for (name, assignment) in self.assigner.assignments().nodes {
            let Some(node) = nodes.get(&name) else { continue };
            let observation = observations.get(&name).map(Arc::as_ref);
            let facts = FallbackFacts {
                node: &name,
                up_to_agent: assignment.is_up_to_agent(),
                kernel: &node.kernel,
                boot_id: &node.boot_id,
                image: &self.agents.agent_image,
                request: observation.and_then(request),
                sees_by_ebpf: observation.is_some_and(|it| it.connected && it.mode == Some(crds::Mode::Ebpf)),
            };
            let previous = before.get(&name);
            let decided = decide(previous, &facts, self.agents.ebpf_retry, now);
            tell(&name, previous, decided.as_ref());
            after.extend(decided.map(|decided| (name, decided)));
        }
        self.assigner.set_fallbacks(after);
    }
}

fn request(observation: &NodeObservation) -> Option<Request<'_>> {
    let since = observation.asks_for_fallback_since_unix_ms.filter(|_| observation.connected)?;
    Some(Request {
        reason: observation.reason,
        message: &observation.message,
        since: time(since),
        last: time(observation.last_report_unix_ms),
    })
}

fn time(unix_ms: u64) -> Timestamp {
    let since = SignedDuration::from_millis(i64::try_from(unix_ms).unwrap_or(i64::MAX));
    Timestamp::UNIX_EPOCH.checked_add(since).unwrap_or(Timestamp::MAX)
}

fn tell(node: &str, before: Option<&NodeFallback>, after: Option<&NodeFallback>) {
    let waits = |it: Option<&NodeFallback>| it.is_some_and(|it| !it.retrying);
    match (waits(before), after) {
        (false, Some(after)) if !after.retrying => {
            let NodeFallback { reason, message, attempts, retry_at, .. } = after;
            tracing::warn!(node, %reason, message, attempts, %retry_at, "its agent cannot use eBPF: moved to the fallback");
        }
        (true, Some(after)) if after.retrying => tracing::info!(node, after.attempts, "trying eBPF again"),
        (true, None) => tracing::info!(node, "something has changed: trying eBPF again"),
        _ => {}
    }
}
