//! Connections through transparent proxies that were shown: which edge they are on is decided once.
//!
//! Whether two legs are the same calls follows from their counts, which change. What was decided stays, and only later
//! connections are compared. The record of a flow goes with the flow.

use std::time::SystemTime;

use crate::{
    count,
    edge::EdgeCounters,
    entity::CgroupOwner,
    flow::FlowKey,
    hash::{HashMap, HashSet},
    ledger::FlowView,
};

/// Part of a flow of a proxied pod that is on an edge, or on none because the other leg is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub struct PlacedLeg {
    /// Of an application's flow: connections on the edge to the server. Of a proxy's client flow: connections that are no
    /// calls of their own. Of a proxy's server flow: connections given to the server behind it.
    pub placed: EdgeCounters,
    /// Connections of an application's flow, or of a proxy's server flow, that the other leg has, too.
    pub matched: u64,
    /// Connections of an application's flow of which the other leg is a failed attempt.
    pub unanswered: u64,
    /// Failed attempts of a proxy's client flow that are the other leg of connections.
    pub attempts: u64,
    /// Connections of a client's flow that have no other leg.
    pub apart: u64,
    /// Connections of a pod with its own Service that its proxy has led to the server.
    pub inward: u64,
    /// Of a proxy's server flow: port of the server behind it. Of its client flow: port at which the proxy accepts redirected
    /// connections. 0 if it is not known.
    pub port: u16,
    /// Port of the proxy beside an application that shares connections. 0 if it is not known.
    pub proxys_port: u16,
    /// True if a server flow's port is one to which others are redirected.
    pub is_redirected: bool,
    /// True if a client's flow is of a proxy beside it.
    pub is_proxys: bool,
    /// True if the proxy shares or repeats connections.
    pub is_pooled: bool,
    /// True if the counts alone decide the same.
    pub is_evident: bool,
}

/// Records of all flows that have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacedLegs {
    by_node: HashMap<String, HashMap<FlowId, PlacedLeg>>,
}

/// Flow of a node. Numbers of cgroups are used again, and so are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowId {
    key: FlowKey,
    /// Time of its first report; `None` if an earlier operator has recorded it.
    reported: Option<SystemTime>,
    pod: PodHash,
}

/// Hash of a pod's UID (FNV-1a), the same in all programs. Two pods of one flow's key at different times are unlikely to
/// have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodHash(pub u64);

/// Record of a flow, as an operator publishes it for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedLeg {
    /// Name of the flow's node.
    pub node: String,
    /// Key of the flow.
    pub key: FlowKey,
    /// Pod of the flow.
    pub pod: PodHash,
    /// Places of the flow's connections.
    pub leg: PlacedLeg,
}

impl FlowId {
    pub(super) fn of(flow: &FlowView<'_>) -> Self {
        Self { key: *flow.key, reported: Some(flow.reported), pod: PodHash::of_owner(flow.owner) }
    }

    /// Returns the ID of the same flow as an earlier operator has recorded it.
    fn recorded(key: FlowKey, pod: PodHash) -> Self {
        Self { key, reported: None, pod }
    }
}

impl PodHash {
    /// Returns the hash of a pod.
    #[must_use]
    pub fn of(uid: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(uid.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    fn of_owner(owner: Option<&CgroupOwner>) -> Self {
        match owner {
            Some(CgroupOwner::PodContainer { pod_uid, .. }) => Self::of(pod_uid),
            Some(CgroupOwner::HostProcess { .. }) => Self(1),
            None => Self::default(),
        }
    }
}

impl PlacedLegs {
    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// Adds the record that an earlier operator has published of a flow.
    pub fn restore(&mut self, RecordedLeg { node, key, pod, leg }: RecordedLeg) {
        self.insert(&node, FlowId::recorded(key, pod), leg);
    }

    /// Returns all records, in any order.
    pub fn iter(&self) -> impl Iterator<Item = RecordedLeg> {
        let recorded = |(node, id, leg): (&str, &FlowId, &PlacedLeg)| RecordedLeg {
            node: node.to_owned(),
            key: id.key,
            pod: id.pod,
            leg: *leg,
        };
        self.all().map(recorded)
    }

    /// Returns the record of a flow.
    pub(super) fn of(&self, flow: &FlowView<'_>) -> PlacedLeg {
        let Some(of_node) = self.by_node.get(flow.node) else { return PlacedLeg::default() };
        let id = FlowId::of(flow);
        let recorded = || of_node.get(&FlowId::recorded(id.key, id.pod)).filter(|_| !flow.is_orphaned);
        of_node.get(&id).or_else(recorded).copied().unwrap_or_default()
    }

    /// Adds the record of a flow. Of several, the one with the most counts, in any order.
    pub(super) fn insert(&mut self, node: &str, id: FlowId, leg: PlacedLeg) {
        if let Some(of_node) = self.by_node.get_mut(node) {
            let known = of_node.entry(id).or_insert(leg);
            if leg.rank() > known.rank() {
                *known = leg;
            }
        } else {
            self.by_node.insert(node.to_owned(), [(id, leg)].into_iter().collect());
        }
    }

    /// Adds the records of flows that have none. What an earlier operator has recorded of a flow does not count if the flow
    /// has been reported since.
    pub(crate) fn complete(&mut self, others: &Self) {
        for (node, others) in &others.by_node {
            let own = self.by_node.get(node);
            let reported: HashSet<FlowId> =
                own.into_iter().flatten().map(|(id, _)| FlowId::recorded(id.key, id.pod)).collect();
            for (id, leg) in others.iter().filter(|(id, _)| !reported.contains(id)) {
                if self.by_node.get(node).is_none_or(|own| !own.contains_key(id)) {
                    self.insert(node, *id, *leg);
                }
            }
        }
    }

    /// Returns the flows, by node, with another record than before.
    pub(super) fn changed_since(&self, before: &Self) -> HashMap<String, HashSet<FlowKey>> {
        let mut changed: HashMap<String, HashSet<FlowKey>> = HashMap::default();
        for (one, other) in [(self, before), (before, self)] {
            let same = |node: &str, id: &FlowId| other.by_node.get(node).and_then(|of_node| of_node.get(id));
            for (node, id, _) in one.all().filter(|(node, id, leg)| same(node, id) != Some(*leg)) {
                changed.entry(node.to_owned()).or_default().insert(id.key);
            }
        }
        changed
    }

    /// Returns the records that an operator without any state needs.
    #[must_use]
    pub(crate) fn needed(&self) -> Self {
        let mut needed = Self::default();
        for (node, id, leg) in self.all() {
            let recorded = FlowId::recorded(id.key, id.pod);
            if !leg.is_evident {
                needed.insert(node, recorded, *leg);
            } else if leg.port > 0 && !leg.is_redirected {
                // The client's flow that shows it may be forgotten.
                needed.insert(node, recorded, PlacedLeg { port: leg.port, ..PlacedLeg::default() });
            }
        }
        needed
    }

    fn all(&self) -> impl Iterator<Item = (&str, &FlowId, &PlacedLeg)> {
        self.by_node.iter().flat_map(|(node, of_node)| of_node.iter().map(move |(id, leg)| (node.as_str(), id, leg)))
    }
}

impl PlacedLeg {
    /// Returns all that distinguishes records of one flow.
    fn rank(&self) -> impl Ord {
        let Self {
            placed,
            matched,
            unanswered,
            attempts,
            apart,
            inward,
            port,
            proxys_port,
            is_redirected,
            is_proxys,
            is_pooled,
            is_evident,
        } = *self;
        let EdgeCounters { opened, failed, bytes_sent, bytes_received, without_bytes, inferred, retransmits, .. } =
            placed;
        let placed = [opened, failed, bytes_sent, bytes_received, without_bytes, inferred, retransmits];
        let others = [matched, unanswered, attempts, apart, inward, port.into(), proxys_port.into()];
        (placed, others, is_redirected, is_proxys, is_pooled, is_evident)
    }

    /// Returns the record as far as a flow has these connections: one that began anew has fewer.
    pub(super) fn within(self, counters: &EdgeCounters) -> Self {
        let opened = counters.opened;
        Self {
            placed: EdgeCounters { active: 0, pending: 0, ..self.placed.at_most(counters) },
            matched: self.matched.min(opened),
            unanswered: self.unanswered.min(opened),
            attempts: self.attempts.min(counters.failed),
            apart: self.apart.min(opened),
            inward: self.inward.min(opened),
            ..self
        }
    }

    /// Returns the record without so many connections, the first ones, that the flow's agent no longer reports.
    pub(super) fn without_first(self, forgotten: &EdgeCounters) -> Self {
        let mut left = forgotten.opened;
        let mut rest = |number: u64| {
            let taken = number.min(left);
            left -= taken;
            number - taken
        };
        let (matched, unanswered) = (rest(self.matched), rest(self.unanswered));
        // A proxy's client flow has neither.
        let of_proxy = forgotten.opened.saturating_sub(self.placed.opened);
        let apart =
            if self.matched + self.unanswered > 0 { rest(self.apart) } else { self.apart.saturating_sub(of_proxy) };
        Self {
            placed: self.placed.without(forgotten),
            matched,
            unanswered,
            attempts: self.attempts.saturating_sub(forgotten.failed),
            apart,
            inward: self.inward.saturating_sub(forgotten.opened),
            ..self
        }
    }

    /// Returns whether a client's flow led through a proxy beside it, or is that proxy's.
    pub(super) fn is_proxied(&self) -> bool {
        self.matched > 0 || self.unanswered > 0 || self.is_pooled || self.is_proxys
    }

    /// Returns the connections of an application's flow on which nothing is decided.
    pub(super) fn undecided_of_application(&self, counters: &EdgeCounters) -> u64 {
        let decided = self.matched.saturating_add(self.unanswered).saturating_add(self.apart);
        counters.opened.saturating_sub(decided)
    }

    /// Returns the connections of a proxy's flow on which nothing is decided.
    pub(super) fn undecided_of_proxy(&self, counters: &EdgeCounters) -> u64 {
        counters.opened.saturating_sub(self.placed.opened).saturating_sub(self.apart)
    }

    /// Places so many further connections of a proxy's flow with these counters. A flow without any keeps no record of its
    /// payload: its part of calls is not shown.
    pub(super) fn place_more(&mut self, counters: &EdgeCounters, more: u64) {
        let opened = count::add(self.placed.opened, more);
        if opened > 0 {
            self.place(counters, opened);
        }
    }

    /// Places so many connections of a flow with these counters, at least those that are placed. Returns the placed part of
    /// the counters.
    ///
    /// Invariant: no placed count becomes less.
    pub(super) fn place(&mut self, counters: &EdgeCounters, opened: u64) -> EdgeCounters {
        let opened = opened.max(self.placed.opened).min(counters.opened);
        let part = if opened == counters.opened {
            EdgeCounters { failed: 0, pending: 0, ..*counters }
        } else {
            let mut part = self.placed;
            let rest = EdgeCounters { active: 0, ..counters.without(&self.placed) };
            part.add(&rest.share(opened - self.placed.opened));
            part.active = counters.active.saturating_sub(counters.opened - opened);
            EdgeCounters { failed: 0, pending: 0, ..part }
        };
        self.placed = EdgeCounters { active: 0, failed: self.placed.failed, ..part };
        part
    }
}
