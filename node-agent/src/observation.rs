//! Current state of the agent: its capture, the flows, and their owners.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use kernel_support::Reason;
use topology::{
    entity::Network,
    flow::{FlowKey, Role},
    nat_peer::NatPeer,
};

use crate::{
    attribution::Attribution,
    capture::{Description, Folded, Losses, Mode, Reading},
    flow_store::{Bounds, FlowStore},
    malloc::is_worth_shrinking,
    names::Names,
};

pub use crate::epoch::Epoch;

/// Current state of the agent.
#[derive(Debug)]
pub struct Observation {
    epoch: Epoch,
    /// Epoch in which the counters began. It differs from the current epoch if the operator has ended it since.
    origin: Epoch,
    /// The state of the capture.
    pub capture: CaptureState,
    /// The flows of this epoch.
    pub flows: FlowStore,
    /// NAT peers of flows, if known.
    nat_peers: HashMap<FlowKey, Vec<(NatPeer, u64)>>,
    /// The node's own addresses.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The cluster's own networks beside private ones, as the operator has last reported them.
    pub own_networks: Arc<[Network]>,
    /// Attribution; `None` until the node's cgroups were read.
    pub attribution: Option<Attribution>,
    /// The names that have led to addresses.
    names: Names,
    /// End of the state's message: the description of the running capture.
    described: String,
    /// Time up to which all events are included.
    complete_until: Option<Instant>,
}

/// The state of the capture, in the terms of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureState {
    /// Kind of capture; `None` if nothing is captured.
    pub mode: Option<Mode>,
    /// Reason of the state.
    pub reason: Reason,
    /// Human-readable explanation of `reason`.
    pub message: String,
    /// Attach type; empty if nothing is attached.
    pub attach: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Time of the attach.
    pub attached_at: Option<SystemTime>,
    /// The same by the monotonic clock; `None` if that clock started later.
    pub attached_instant: Option<Instant>,
    /// Losses in this epoch, in the kernel or in the agent.
    pub losses: Losses,
    /// Connections opened and attempts failed, in this epoch.
    pub seen: u64,
    /// Folding in this epoch.
    pub folded: Folded,
    /// Flows that were evicted for lack of room before all of their counters were reported; included in the losses.
    pub unreported_flows: u64,
    /// True if the requested capture is impossible on this node, so that the agent asks for the rights of the Fallback
    /// mode.
    pub asks_for_fallback: bool,
    /// True if the capture observes UDP.
    pub observes_udp: bool,
}

/// Reason for which a stand-in captures, or nothing does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Reason of the failure.
    pub reason: Reason,
    /// Failed step, its object, its error, and how to fix it.
    pub message: String,
    /// True if the requested capture is impossible on this node, in any way.
    pub asks_for_fallback: bool,
}

impl CaptureState {
    /// Returns whether the capture has started or failed.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.reason != Reason::Starting
    }
}

impl Observation {
    /// Returns the state before the first start of a capture.
    #[must_use]
    pub fn new(epoch: Epoch, bounds: Bounds, kernel: String) -> Self {
        Self {
            epoch,
            origin: epoch,
            capture: CaptureState {
                mode: None,
                reason: Reason::Starting,
                message: "the capture is being started".into(),
                attach: "",
                kernel,
                attached_at: None,
                attached_instant: None,
                losses: Losses::default(),
                seen: 0,
                folded: Folded::default(),
                unreported_flows: 0,
                asks_for_fallback: false,
                observes_udp: false,
            },
            flows: FlowStore::new(bounds),
            nat_peers: HashMap::new(),
            node_addresses: BTreeSet::new(),
            own_networks: Arc::new([]),
            attribution: None,
            names: Names::default(),
            described: String::new(),
            complete_until: None,
        }
    }

    /// Returns the current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the epoch in which the counters began.
    #[must_use]
    pub fn origin(&self) -> Epoch {
        self.origin
    }

    /// Continues the counters under another epoch, because the operator has ended the present one.
    pub fn rename_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// Starts an epoch for a new capture. Its counters begin at zero, so the flows of the previous one are removed.
    pub fn begin_epoch(&mut self, epoch: Epoch, description: &Description) {
        (self.epoch, self.origin) = (epoch, epoch);
        self.flows.clear();
        self.nat_peers.clear();
        self.described = message(description);
        let running = description.attached_at.elapsed().unwrap_or_default();
        let attached_instant = Instant::now().checked_sub(running);
        self.complete_until = attached_instant;
        self.capture = CaptureState {
            mode: Some(description.mode),
            reason: Reason::Supported,
            message: message(description),
            attach: description.attach,
            kernel: description.kernel.clone(),
            attached_at: Some(description.attached_at),
            attached_instant,
            losses: Losses::default(),
            seen: 0,
            folded: Folded::default(),
            unreported_flows: 0,
            asks_for_fallback: false,
            observes_udp: description.observes_udp(),
        };
    }

    /// Updates the description: degradations can change at run time. Returns whether anything changed.
    pub fn describe(&mut self, description: &Description) -> bool {
        let now = message(description);
        if now == self.described {
            return false;
        }
        if let Some(why) = self.capture.message.strip_suffix(self.described.as_str()) {
            self.capture.message = format!("{why}{now}");
        }
        self.described = now;
        self.capture.observes_udp = description.observes_udp();
        true
    }

    /// Records that a stand-in captures, because the preferred capture cannot run.
    pub fn fall_short(&mut self, stand_in: &Description, shortfall: &Shortfall) {
        self.capture.reason = shortfall.reason;
        self.described = message(stand_in);
        self.capture.message = format!("{}; meanwhile {}", shortfall.message, self.described);
        self.capture.asks_for_fallback = shortfall.asks_for_fallback;
    }

    /// Records that no capture runs. The counters of this epoch stay valid.
    pub fn stop(&mut self, reason: Reason, message: String) {
        self.capture.mode = None;
        self.capture.reason = reason;
        self.capture.message = message;
        self.capture.attach = "";
    }

    /// Merges a reading of the capture. Returns whether anything has changed.
    pub fn absorb(&mut self, reading: Reading, now: Instant) -> bool {
        let evicted_unreported = self.flows.evicted_unreported();
        let losses = Losses {
            opened: reading.losses.opened + evicted_unreported.opened,
            failed: reading.losses.failed + evicted_unreported.failed,
            ..reading.losses
        };
        let mut changed =
            self.capture.losses != losses || self.capture.seen != reading.seen || self.capture.folded != reading.folded;
        self.capture.folded = reading.folded;
        self.capture.losses = losses;
        self.capture.unreported_flows = evicted_unreported.flows;
        self.capture.seen = reading.seen;
        if let Some(before) = self.complete_until {
            self.flows.looked(before);
        }
        if !reading.is_partial {
            self.complete_until = reading.complete_until.or(Some(now)).max(self.complete_until);
        }
        for (cgroup, answer) in &reading.answers {
            self.names.learn(*cgroup, answer, now);
        }
        self.nat_peers.extend(reading.nat_peers);
        for (key, counters) in reading.flows {
            changed |= self.flows.record(key, counters, now);
            if key.role == Role::Client && !self.names.is_empty() && !self.flows.has_names(&key) {
                changed |= self.flows.name(&key, self.names.of(key.cgroup_id, key.remote, now));
            }
            // Resolved now, while the processes that may name the cgroup still exist.
            if let Some(attribution) = &mut self.attribution {
                attribution.owner(key.cgroup_id, now);
            }
        }
        changed
    }

    /// Returns the time up to which all events are included; `None` before the first reading of the capture.
    #[must_use]
    pub fn complete_until(&self) -> Option<Instant> {
        self.complete_until
    }

    /// Returns the NAT peers of a flow; empty if none is known.
    #[must_use]
    pub fn nat_peers(&self, key: &FlowKey) -> &[(NatPeer, u64)] {
        self.nat_peers.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns the flows that the capture should drop, because they are too old or too many.
    #[must_use]
    pub fn dispensable(&self, now: Instant) -> Vec<FlowKey> {
        let Some(attribution) = &self.attribution else { return Vec::new() };
        self.flows.dispensable(now, |cgroup| attribution.is_live(cgroup))
    }

    /// Removes flows that the capture has dropped.
    pub fn drop_flows(&mut self, keys: &[FlowKey], now: Instant) {
        let Self { flows, nat_peers, attribution: Some(attribution), .. } = self else { return };
        flows.drop_flows(keys, now, |cgroup| attribution.is_live(cgroup));
        nat_peers.retain(|key, _| flows.get(key).is_some());
        let needed = flows.cgroups();
        attribution.forget_dead(now, |cgroup| needed.contains(&cgroup));
    }

    /// Frees memory that was needed only at the peak number of flows. Returns whether there was any.
    pub fn shrink(&mut self) -> bool {
        if is_worth_shrinking(self.nat_peers.capacity(), self.nat_peers.len()) {
            self.nat_peers.shrink_to(2 * self.nat_peers.len());
        }
        self.flows.shrink()
    }
}

fn message(description: &Description) -> String {
    let mut message = String::from("capturing");
    for degradation in &description.degradations {
        message.push_str("; ");
        message.push_str(&degradation.message);
    }
    message
}

/// Observation that the tasks of one process share. Locked for short times only, never across an await.
#[derive(Clone, Debug)]
pub struct SharedObservation(Arc<Mutex<Observation>>);

impl SharedObservation {
    /// Shares an observation.
    #[must_use]
    pub fn new(observation: Observation) -> Self {
        Self(Arc::new(Mutex::new(observation)))
    }

    /// Locks the observation. It ignores poisoning, because a panic elsewhere leaves each flow consistent.
    pub fn lock(&self) -> MutexGuard<'_, Observation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
