//! Which message comes next on a stream. Pure: the stream itself is [`super::stream`]'s.

use std::{collections::HashMap, time::Instant, vec};

use report::{MAX_FLOWS_PER_MESSAGE, v1alpha1 as wire};
use topology::flow::{FlowCounters, FlowKey};

use super::wire as to_wire;
use crate::{
    attribution::{Attributed, Attribution},
    observation::{CaptureState, Epoch, Observation},
};

/// One stream's memory: what the operator has been told on it.
#[derive(Debug)]
pub struct Session {
    node: String,
    sequence: u64,
    /// The epoch of the last message.
    epoch: Option<Epoch>,
    /// What is still to come of the snapshot under way.
    snapshot: Option<vec::IntoIter<FlowKey>>,
    /// The capture's state as it was told last.
    capture: Option<CaptureState>,
    identities: HashMap<u64, Attributed>,
}

impl Session {
    /// For a new stream.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            sequence: 0,
            epoch: None,
            snapshot: None,
            capture: None,
            identities: HashMap::new(),
        }
    }

    /// The number of the last message.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether there is something that the operator doesn't know.
    #[must_use]
    pub fn has_news(&self, observation: &Observation) -> bool {
        self.snapshot.is_some()
            || self.epoch != Some(observation.epoch())
            || observation.flows.has_news()
            || self.capture.as_ref() != Some(&observation.capture)
    }

    /// The next message; without news a mere sign of life.
    pub fn next(&mut self, observation: &mut Observation, now: Instant) -> wire::AgentReport {
        let begins_snapshot = self.epoch != Some(observation.epoch());
        if begins_snapshot {
            self.epoch = Some(observation.epoch());
            self.snapshot = Some(observation.flows.begin_snapshot().into_iter());
        }
        let flows = self.take_flows(observation);
        let ends_snapshot = self.snapshot.as_ref().is_some_and(|rest| rest.len() == 0);
        if ends_snapshot {
            self.snapshot = None;
        }
        let identities = match &mut observation.attribution {
            Some(attribution) if flows.is_empty() => self.corrections(attribution, now),
            Some(attribution) => self.introductions(&flows, attribution, now),
            None => Vec::new(),
        };
        self.capture = Some(observation.capture.clone());
        self.sequence += 1;
        wire::AgentReport {
            node: self.node.clone(),
            epoch: observation.epoch().to_vec(),
            sequence: self.sequence,
            begins_snapshot,
            ends_snapshot,
            capture: Some(to_wire::capture_state(&observation.capture)),
            identities,
            flows: flows.iter().map(|(key, counters)| to_wire::flow(key, counters)).collect(),
        }
    }

    fn take_flows(&mut self, observation: &mut Observation) -> Vec<(FlowKey, FlowCounters)> {
        let flows = &mut observation.flows;
        match &mut self.snapshot {
            Some(rest) => {
                rest.by_ref().take(MAX_FLOWS_PER_MESSAGE).filter_map(|key| Some((key, flows.get(&key)?))).collect()
            }
            None => flows.take_news(MAX_FLOWS_PER_MESSAGE),
        }
    }

    /// The owners of these flows, as far as they haven't been told.
    fn introductions(
        &mut self,
        flows: &[(FlowKey, FlowCounters)],
        attribution: &mut Attribution,
        now: Instant,
    ) -> Vec<wire::Identity> {
        let mut identities = Vec::new();
        for (key, _) in flows {
            let attributed = attribution.owner(key.cgroup_id, now);
            if self.identities.get(&key.cgroup_id) != Some(attributed) {
                self.identities.insert(key.cgroup_id, attributed.clone());
                identities.push(to_wire::identity(key.cgroup_id, attributed));
            }
        }
        identities
    }

    /// The owners that were told on this stream and have become better known since.
    fn corrections(&mut self, attribution: &mut Attribution, now: Instant) -> Vec<wire::Identity> {
        let mut identities = Vec::new();
        self.identities.retain(|id, _| attribution.is_known(*id));
        for (id, told) in &mut self.identities {
            let attributed = attribution.owner(*id, now);
            if told != attributed {
                told.clone_from(attributed);
                identities.push(to_wire::identity(*id, attributed));
            }
        }
        identities
    }
}
