//! Flows of a simulated agent, and the messages that report them. Pure: [`super::agent`] does the I/O.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    sync::Arc,
};

use report::{MAX_FLOWS_PER_MESSAGE, v1alpha1 as wire};

use super::{
    conversation::{Conversation, RECEIVED, SENT},
    world::{self, Pod},
};

/// Resolution of a capture, in milliseconds: it scans once per second.
const SCAN: u64 = 1_000;
/// First identifier of a pod's cgroup and first inode number of its network namespace.
const FIRST_CGROUP: u64 = 10_000;
const FIRST_NETNS: u32 = 4_026_533_000;
/// Index of the histogram bucket of all round-trip times: 128 to 256 µs.
const RTT_BUCKET: usize = 2;

/// End of a conversation on a node.
#[derive(Clone, Debug)]
pub struct ConversationEnd {
    /// Pod of this end.
    pub pod: Arc<Pod>,
    /// Role of this end.
    pub role: wire::Role,
    /// Address of the other end, as this end sees it.
    pub remote: Ipv4Addr,
    /// Port of the server, as this end sees it.
    pub port: u16,
    /// The connections.
    pub conversation: Arc<Conversation>,
}

/// Key of a flow within its node.
type Key = (u32, wire::Role, Ipv4Addr, u16);

/// A flow: all conversations with the same key.
#[derive(Debug)]
struct Flow {
    /// The message's form, without counters and ages.
    template: wire::Flow,
    conversations: Vec<Arc<Conversation>>,
    /// Counts of opened and closed connections in the last message, and its time; `None` if there was none on this stream.
    reported: Option<(u64, u64, u64)>,
}

impl Flow {
    fn counts(&self, now: u64) -> (u64, u64) {
        let counts = self.conversations.iter().map(|it| (it.opened(now), it.closed(now)));
        counts.fold((0, 0), |(opened, closed), (more, ended)| (opened + more, closed + ended))
    }

    fn has_changed(&self, now: u64) -> bool {
        let (opened, closed) = self.counts(now);
        self.reported.is_none_or(|(old, old_closed, _)| (old, old_closed) != (opened, closed))
    }

    /// Returns the flow as a message has it, and notes it as reported.
    fn report(&mut self, now: u64) -> wire::Flow {
        let (opened, closed) = self.counts(now);
        let times = |of: fn(&Conversation) -> u64| self.conversations.iter().map(move |it| of(it));
        let first = times(Conversation::born).min().unwrap_or(now);
        let news = self.reported.map_or(first, |(_, _, at)| self.first_change_after(at).unwrap_or(at));
        let changed = self.conversations.iter().map(|it| it.changed(now)).max().unwrap_or(now);
        let age = |time: u64| now.saturating_sub(time);
        self.reported = Some((opened, closed, now));
        wire::Flow {
            counters: Some(counters(self.template.role(), opened, closed)),
            first_seen_age_ms: age(first) + SCAN,
            news_age_ms: age(news).min(age(first)) + SCAN,
            changed_age_ms: age(changed),
            ..self.template.clone()
        }
    }

    /// Returns the time of the first change since a report.
    fn first_change_after(&self, reported: u64) -> Option<u64> {
        let change = |it: &Arc<Conversation>| {
            if it.born() >= reported { it.born() } else { it.change_after(it.opened(reported)) }
        };
        self.conversations.iter().map(change).min()
    }
}

fn counters(role: wire::Role, opened: u64, closed: u64) -> wire::Counters {
    let is_client = role == wire::Role::Client;
    let (sent, received) = if is_client { (SENT, RECEIVED) } else { (RECEIVED, SENT) };
    let open = opened - closed;
    let mut rtt = vec![0; RTT_BUCKET];
    rtt.push(u32::try_from(opened).unwrap_or(u32::MAX));
    wire::Counters {
        opened,
        closed,
        bytes_sent: sent * opened,
        bytes_received: received * opened,
        open_bytes_sent: sent * open,
        open_bytes_received: received * open,
        methods: 1,
        retransmits: Some(0),
        rtt,
        ..wire::Counters::default()
    }
}

/// All flows of a node, and the state of its stream.
#[derive(Debug)]
pub struct AgentFlows {
    node: usize,
    epoch: Vec<u8>,
    flows: Vec<Flow>,
    by_key: HashMap<Key, usize>,
    pods: HashMap<u64, Arc<Pod>>,
    sequence: u64,
    /// Number of flows of the snapshot under way that were sent.
    snapshot: Option<usize>,
    /// Cgroups whose owners were sent on this stream.
    introduced: HashSet<u64>,
    has_new: bool,
    /// Time between two reports of changed counters that the operator asks for, in milliseconds.
    counter_interval_ms: u64,
    /// Time of the last message after which no changed counters were left.
    counters_reported: u64,
}

impl AgentFlows {
    /// Returns a node without flows.
    #[must_use]
    pub fn new(node: usize) -> Self {
        let epoch = (0..16).map(|byte| (node + 1).to_be_bytes()[byte % 8]).collect();
        Self {
            node,
            epoch,
            flows: Vec::new(),
            by_key: HashMap::new(),
            pods: HashMap::new(),
            sequence: 0,
            snapshot: None,
            introduced: HashSet::new(),
            has_new: false,
            counter_interval_ms: 0,
            counters_reported: 0,
        }
    }

    /// Sets the time between two reports of changed counters.
    pub fn set_counter_interval(&mut self, milliseconds: u32) {
        self.counter_interval_ms = milliseconds.into();
    }

    /// Adds one end of a conversation.
    pub fn open(&mut self, end: ConversationEnd) {
        let ConversationEnd { pod, role, remote, port, conversation } = end;
        let cgroup_id = FIRST_CGROUP + u64::from(pod.serial);
        let index = *self.by_key.entry((pod.serial, role, remote, port)).or_insert_with(|| {
            let template = wire::Flow {
                cgroup_id,
                netns: FIRST_NETNS + pod.serial,
                role: role.into(),
                local_ip: pod.ip.octets().to_vec(),
                remote_ip: remote.octets().to_vec(),
                port: port.into(),
                protocol: wire::Protocol::Tcp.into(),
                ..wire::Flow::default()
            };
            self.has_new = true;
            self.flows.push(Flow { template, conversations: Vec::new(), reported: None });
            self.flows.len() - 1
        });
        self.flows[index].conversations.push(conversation);
        self.pods.entry(cgroup_id).or_insert(pod);
    }

    /// Begins a stream: its first messages are a snapshot.
    pub fn begin_stream(&mut self) {
        self.sequence = 0;
        self.snapshot = Some(0);
        self.introduced.clear();
        for flow in &mut self.flows {
            flow.reported = None;
        }
    }

    /// Takes back a message without flows that was not sent.
    pub fn take_back(&mut self) {
        self.sequence -= 1;
    }

    /// Returns whether a message is due before the next interval: new flows, or the rest of a snapshot.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.has_new || self.snapshot.is_some()
    }

    /// Number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns whether there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Returns the next message. The last one was acknowledged.
    pub fn next(&mut self, now: u64) -> wire::AgentReport {
        let begins_snapshot = self.snapshot == Some(0);
        let (flows, ends_snapshot): (Vec<wire::Flow>, bool) = if let Some(sent) = self.snapshot {
            let end = self.flows.len().min(sent + MAX_FLOWS_PER_MESSAGE);
            let is_last = end == self.flows.len();
            self.snapshot = (!is_last).then_some(end);
            (self.flows[sent..end].iter_mut().map(|flow| flow.report(now)).collect(), is_last)
        } else {
            let are_due = now >= self.counters_reported + self.counter_interval_ms;
            let news =
                self.flows.iter_mut().filter(|flow| flow.reported.is_none() || (are_due && flow.has_changed(now)));
            let flows: Vec<wire::Flow> = news.take(MAX_FLOWS_PER_MESSAGE).map(|flow| flow.report(now)).collect();
            if are_due && flows.len() < MAX_FLOWS_PER_MESSAGE {
                self.counters_reported = now;
            }
            (flows, false)
        };
        self.has_new = self.flows.iter().any(|flow| flow.reported.is_none());
        self.sequence += 1;
        wire::AgentReport {
            node: world::node_name(self.node),
            epoch: self.epoch.clone(),
            sequence: self.sequence,
            begins_snapshot,
            ends_snapshot,
            capture: Some(self.capture(now)),
            identities: self.introductions(&flows),
            flows,
            node_addresses: vec![world::node_ip(self.node).octets().to_vec()],
            origin_epoch: self.epoch.clone(),
            // The stream knows when it is sent.
            sent_unix_ms: 0,
        }
    }

    fn capture(&self, now: u64) -> wire::CaptureState {
        wire::CaptureState {
            mode: wire::Mode::Ebpf.into(),
            reason: wire::Reason::Supported.into(),
            message: "eBPF".to_owned(),
            attach: "SockOps".to_owned(),
            kernel: "6.12.0".to_owned(),
            attached_age_ms: now + SCAN,
            losses: Some(wire::Losses::default()),
            seen: self.flows.iter().map(|flow| flow.counts(now).0).sum(),
            ..wire::CaptureState::default()
        }
    }

    /// Returns the owners of these flows that were not sent on this stream yet.
    fn introductions(&mut self, flows: &[wire::Flow]) -> Vec<wire::Identity> {
        let new = flows.iter().map(|flow| flow.cgroup_id).filter(|id| self.introduced.insert(*id));
        new.filter_map(|id| Some(identity(id, self.pods.get(&id)?))).collect()
    }
}

fn identity(cgroup_id: u64, pod: &Pod) -> wire::Identity {
    let container_id = pod.container_id();
    let slice = pod.uid.replace('-', "_");
    wire::Identity {
        cgroup_id,
        cgroup_path: format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{container_id}.scope"),
        owner: Some(wire::identity::Owner::PodContainer(wire::PodContainer { pod_uid: pod.uid.clone(), container_id })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::world::World;

    fn end(pod: usize, remote: u32, conversation: &Arc<Conversation>) -> ConversationEnd {
        let world = World::new(10).unwrap();
        ConversationEnd {
            pod: Arc::new(world.pods[pod].clone()),
            role: wire::Role::Client,
            remote: remote.into(),
            port: 80,
            conversation: Arc::clone(conversation),
        }
    }

    #[test]
    fn first_messages_are_a_snapshot_and_then_changes() {
        let conversation = Arc::new(Conversation::begin(0, 0));
        let mut flows = AgentFlows::new(0);
        (0..1_500).for_each(|remote| flows.open(end(0, remote, &conversation)));
        flows.begin_stream();
        let (first, second) = (flows.next(100), flows.next(200));
        assert_eq!((first.sequence, first.begins_snapshot, first.ends_snapshot), (1, true, false));
        assert_eq!((second.sequence, second.begins_snapshot, second.ends_snapshot), (2, false, true));
        assert_eq!((first.flows.len(), second.flows.len()), (1_000, 500));
        assert_eq!((first.identities.len(), second.identities.len()), (1, 0));
        assert!(!flows.is_urgent());
        assert!(flows.next(5_000).flows.is_empty());
        assert_eq!(flows.next(10_000).flows.len(), 1_000);
        assert_eq!(flows.next(10_100).flows.len(), 500);
        flows.begin_stream();
        assert!(flows.is_urgent() && flows.next(10_200).begins_snapshot);
    }

    #[test]
    fn flow_reports_counts_and_ages_of_its_conversations() {
        let (one, two) = (Arc::new(Conversation::begin(0, 0)), Arc::new(Conversation::begin(12_000, 0)));
        let mut flows = AgentFlows::new(0);
        flows.open(end(0, 7, &one));
        flows.begin_stream();
        flows.next(11_000);
        flows.open(end(0, 7, &two));
        let message = flows.next(20_500);
        let [flow] = &message.flows[..] else { panic!("{message:?}") };
        let counters = flow.counters.as_ref().unwrap();
        assert_eq!((counters.opened, counters.closed, counters.open_bytes_sent), (4, 2, 2 * SENT));
        assert_eq!((flow.first_seen_age_ms, flow.news_age_ms, flow.changed_age_ms), (21_500, 9_500, 500));
        assert_eq!(message.capture.unwrap().seen, 4);
    }

    #[test]
    fn new_flow_is_urgent_and_a_further_conversation_is_not() {
        let conversation = Arc::new(Conversation::begin(0, 0));
        let mut flows = AgentFlows::new(0);
        flows.open(end(0, 7, &conversation));
        flows.begin_stream();
        flows.next(0);
        flows.open(end(0, 7, &conversation));
        assert!(!flows.is_urgent());
        flows.open(end(0, 8, &conversation));
        assert!(flows.is_urgent());
        assert_eq!(flows.next(10).flows.len(), 2);
        assert!(!flows.is_urgent());
    }
}
