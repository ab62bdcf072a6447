//! Selects the next message of a stream. Pure: [`super::stream`] does the I/O.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use report::{MAX_FLOWS_PER_MESSAGE, MAX_IDENTITIES_PER_MESSAGE, octets, v1alpha1 as wire};
use topology::{
    flow::{FlowCounters, FlowKey},
    sighting::Ages,
};

use super::wire as to_wire;
use crate::{
    attribution::{Attributed, Attribution},
    flow_store::{FlowStore, News, Snapshot},
    observation::{CaptureState, Epoch, Observation},
};

/// State of one stream: the facts that were reported on it.
#[derive(Debug)]
pub struct Session {
    node: String,
    sequence: u64,
    /// The epoch of the last message.
    epoch: Option<Epoch>,
    /// Remaining flows of the current snapshot.
    snapshot: Option<Snapshot>,
    /// Flows of the last message, which is acknowledged when the operator requests the next one.
    under_way: Vec<(FlowKey, FlowCounters)>,
    /// The capture's state as it was reported last.
    capture: Option<CaptureState>,
    /// The node's addresses as they were reported last.
    node_addresses: BTreeSet<IpAddr>,
    /// Owners by cgroup as the operator knows them. It forgets those of cgroups without flows in a snapshot.
    identities: HashMap<u64, Attributed>,
    /// Cgroups of the flows in the current snapshot.
    in_snapshot: HashSet<u64>,
    /// Time between two reports of changed counters, as the operator has set it.
    counter_interval: Duration,
    /// Time of the last message after which no changed counters were left; none before the first one.
    counters_reported: Option<Instant>,
    /// Time up to which this stream's messages contain all events.
    complete_until: Option<Instant>,
}

/// Upper bound of the time between two reports of changed counters.
const MAX_COUNTER_INTERVAL: Duration = Duration::from_mins(1);

impl Session {
    /// For a new stream.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            sequence: 0,
            epoch: None,
            snapshot: None,
            under_way: Vec::new(),
            capture: None,
            node_addresses: BTreeSet::new(),
            identities: HashMap::new(),
            in_snapshot: HashSet::new(),
            counter_interval: Duration::ZERO,
            counters_reported: None,
            complete_until: None,
        }
    }

    /// Sets the time between two reports of changed counters, at most a minute.
    pub fn set_counter_interval(&mut self, interval: Duration) {
        self.counter_interval = interval.min(MAX_COUNTER_INTERVAL);
    }

    /// Returns the time from which on changed counters are reported; none if they come with each report.
    fn counters_due(&self) -> Option<Instant> {
        let reported = self.counters_reported.filter(|_| self.counter_interval > Duration::ZERO);
        reported.map(|reported| reported + self.counter_interval)
    }

    /// Returns the time at which changes are due that are kept back now; none if there are none.
    #[must_use]
    pub fn next_due(&self, observation: &Observation) -> Option<Instant> {
        self.counters_due().filter(|_| observation.flows.has_news(News::All))
    }

    /// Returns which changes are due to be reported. A crowded store keeps nothing back: it evicts flows.
    fn due(&self, flows: &FlowStore, now: Instant) -> News {
        let is_early = self.counters_due().is_some_and(|due| now < due);
        if is_early && !flows.is_crowded() { News::Flows } else { News::All }
    }

    /// The number of the last message.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns whether there are changes that are due to be reported.
    #[must_use]
    pub fn has_news(&self, observation: &Observation, now: Instant) -> bool {
        self.snapshot.is_some()
            || self.epoch != Some(observation.epoch())
            || observation.flows.has_news(self.due(&observation.flows, now))
            || has_many_left(&observation.flows)
            || self.capture.as_ref() != Some(&observation.capture)
            || self.node_addresses != observation.node_addresses
    }

    /// The next message; without news a mere sign of life. To be asked for when the last one has been acknowledged.
    pub fn next(&mut self, observation: &mut Observation, now: Instant) -> wire::AgentReport {
        let is_new_epoch = self.epoch != Some(observation.epoch());
        if self.sequence == 0 {
            observation.flows.begin_stream();
        }
        if !is_new_epoch {
            observation.flows.acknowledge(&self.under_way);
        }
        let begins_snapshot = is_new_epoch || (self.snapshot.is_none() && has_many_left(&observation.flows));
        if begins_snapshot {
            self.epoch = Some(observation.epoch());
            self.snapshot = Some(observation.flows.begin_snapshot());
            self.in_snapshot = HashSet::new();
            if is_new_epoch {
                self.complete_until = None;
            }
        }
        let flows = self.take_flows(observation, now);
        let ends_snapshot = self.snapshot.is_some_and(|snapshot| snapshot.is_complete());
        if self.snapshot.is_some() {
            self.in_snapshot.extend(flows.iter().map(|(key, _)| key.cgroup_id));
        }
        if ends_snapshot {
            self.snapshot = None;
            let in_snapshot = std::mem::take(&mut self.in_snapshot);
            self.identities.retain(|id, _| in_snapshot.contains(id));
        }
        if self.snapshot.is_none() && !observation.flows.has_news(News::All) {
            self.complete_until = observation.complete_until();
        }
        let identities = match &mut observation.attribution {
            Some(attribution) if flows.is_empty() => self.corrections(attribution, now),
            Some(attribution) => self.introductions(&flows, attribution, now),
            None => Vec::new(),
        };
        self.capture = Some(observation.capture.clone());
        self.node_addresses.clone_from(&observation.node_addresses);
        self.sequence += 1;
        let report = wire::AgentReport {
            node: self.node.clone(),
            epoch: observation.epoch().to_vec(),
            sequence: self.sequence,
            begins_snapshot,
            ends_snapshot,
            capture: Some(to_wire::capture_state(&observation.capture, self.complete_until, now)),
            identities,
            flows: flows
                .iter()
                .map(|(key, counters)| {
                    let (names, ages) = (observation.flows.names(key), ages(&observation.flows, key, now));
                    to_wire::flow(key, counters, names, ages, observation.nat_peers(key))
                })
                .collect(),
            node_addresses: observation.node_addresses.iter().map(|ip| octets(*ip)).collect(),
            origin_epoch: observation.origin().to_vec(),
            // The stream knows when it is sent.
            sent_unix_ms: 0,
        };
        self.under_way = flows;
        report
    }

    fn take_flows(&mut self, observation: &mut Observation, now: Instant) -> Vec<(FlowKey, FlowCounters)> {
        let flows = &mut observation.flows;
        if let Some(snapshot) = &mut self.snapshot {
            return flows.take_of_snapshot(snapshot, MAX_FLOWS_PER_MESSAGE);
        }
        let due = self.due(flows, now);
        let news = flows.take_news(due, MAX_FLOWS_PER_MESSAGE);
        if due == News::All && !flows.has_news(News::All) {
            self.counters_reported = Some(now);
        }
        news
    }

    /// Returns the owners of these flows that were not reported on this stream yet.
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

    /// Returns the owners that were reported on this stream and are known more precisely since.
    fn corrections(&mut self, attribution: &mut Attribution, now: Instant) -> Vec<wire::Identity> {
        let mut identities = Vec::new();
        self.identities.retain(|id, _| attribution.is_known(*id));
        for (id, told) in &mut self.identities {
            if identities.len() >= MAX_IDENTITIES_PER_MESSAGE {
                break;
            }
            let attributed = attribution.owner(*id, now);
            if told != attributed {
                told.clone_from(attributed);
                identities.push(to_wire::identity(*id, attributed));
            }
        }
        identities
    }
}

/// Returns the ages of a flow's events.
fn ages(flows: &FlowStore, key: &FlowKey, now: Instant) -> Ages {
    let Some(times) = flows.times(key) else { return Ages::default() };
    let before_first = now.saturating_duration_since(times.before_first);
    let before_news = now.saturating_duration_since(times.before_news);
    Ages::of(before_first, before_news, now.saturating_duration_since(times.changed))
}

/// Returns whether to send a snapshot that shows which flows were removed: it fits into one message, or an eighth of
/// all flows were removed.
fn has_many_left(flows: &FlowStore) -> bool {
    let left = flows.left_since_snapshot();
    left > 0 && (flows.len() <= MAX_FLOWS_PER_MESSAGE || left >= flows.len() / 8)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs, net::IpAddr, os::unix::fs::MetadataExt};

    use proptest::prelude::*;
    use topology::flow::{Protocol, Role};

    use super::*;
    use crate::{
        capture::{Description, Mode, Reading},
        flow_store::Bounds,
    };

    const BOUNDS: Bounds = Bounds { flows: 10_000, retention: Duration::from_hours(1) };

    fn observation() -> Observation {
        let mut observation = Observation::new([0; 16], BOUNDS, "6.12".into());
        observation.begin_epoch([1; 16], &description());
        observation
    }

    fn description() -> Description {
        Description {
            mode: Mode::Ebpf,
            attach: "SockOps",
            attached_at: std::time::SystemTime::UNIX_EPOCH,
            kernel: "6.12".into(),
            degradations: Vec::new(),
        }
    }

    fn key(cgroup_id: u64, port: u16) -> FlowKey {
        let ip = IpAddr::from([10, 0, 0, 1]);
        FlowKey { cgroup_id, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp }
    }

    fn see(observation: &mut Observation, key: FlowKey, opened: u64) {
        let counters = FlowCounters { opened, ..FlowCounters::default() };
        observation.absorb(Reading { flows: vec![(key, counters)], ..Reading::default() }, Instant::now());
    }

    /// Model of an operator that follows report.proto.
    #[derive(Default)]
    struct Operator {
        epoch: Vec<u8>,
        known: HashMap<(u64, u32), u64>,
        snapshot: Option<HashSet<(u64, u32)>>,
        named: HashSet<u64>,
    }

    impl Operator {
        fn take(&mut self, report: &wire::AgentReport) {
            assert!(report.flows.len() <= MAX_FLOWS_PER_MESSAGE);
            assert!(self.epoch == report.epoch || report.begins_snapshot, "a new epoch begins with a snapshot");
            if self.epoch != report.epoch {
                self.known.clear();
                self.epoch.clone_from(&report.epoch);
            }
            if report.begins_snapshot {
                self.snapshot = Some(HashSet::new());
            }
            self.named.extend(report.identities.iter().map(|identity| identity.cgroup_id));
            for flow in &report.flows {
                assert!(self.named.contains(&flow.cgroup_id), "an identity comes with its first flow");
                let id = (flow.cgroup_id, flow.port);
                self.known.insert(id, flow.counters.as_ref().unwrap().opened);
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.insert(id);
                }
            }
            if report.ends_snapshot {
                let snapshot = self.snapshot.take().expect("a snapshot that ends has begun");
                self.known.retain(|id, _| snapshot.contains(id));
                self.named = self.known.keys().map(|(cgroup, _)| *cgroup).collect();
            }
        }
    }

    #[test]
    fn an_empty_snapshot_is_one_message_and_then_there_is_no_news() {
        let mut observation = observation();
        let mut session = Session::new("node");
        assert!(session.has_news(&observation, Instant::now()));
        let first = session.next(&mut observation, Instant::now());
        assert!(first.begins_snapshot && first.ends_snapshot && first.flows.is_empty());
        assert_eq!((first.node.as_str(), first.sequence, first.epoch), ("node", 1, vec![1; 16]));
        assert!(!session.has_news(&observation, Instant::now()));
        observation.stop(kernel_support::Reason::LoadFailed, "why".into());
        assert!(
            session.has_news(&observation, Instant::now()),
            "a change of the capture's state is news without any flow"
        );
        let second = session.next(&mut observation, Instant::now());
        assert!(!second.begins_snapshot && !second.ends_snapshot);
        let capture = second.capture.unwrap();
        assert_eq!((capture.mode(), capture.reason()), (wire::Mode::Unsupported, wire::Reason::LoadFailed));
        assert!(!session.has_news(&observation, Instant::now()));
    }

    #[test]
    fn counters_wait_for_their_interval_and_new_flows_do_not() {
        let (mut observation, start) = (observation(), Instant::now());
        let mut session = Session::new("node");
        see(&mut observation, key(1, 80), 1);
        session.next(&mut observation, start);
        session.next(&mut observation, start);
        session.set_counter_interval(Duration::from_secs(30));
        let told = |session: &mut Session, observation: &mut Observation, at: Instant| {
            let flows = session.next(observation, at).flows.into_iter();
            flows.map(|flow| (flow.port, flow.counters.unwrap().opened)).collect::<Vec<_>>()
        };
        see(&mut observation, key(1, 80), 2);
        let [early, due] = [29, 30].map(|seconds| start + Duration::from_secs(seconds));
        assert!(!session.has_news(&observation, early));
        see(&mut observation, key(1, 81), 1);
        assert!(session.has_news(&observation, early), "a new flow is due at once");
        assert_eq!(told(&mut session, &mut observation, early), [(81, 1)]);
        assert!(!session.has_news(&observation, early));
        see(&mut observation, key(1, 81), 2);
        assert!(session.has_news(&observation, due));
        assert_eq!(told(&mut session, &mut observation, due), [(80, 2), (81, 2)]);
        assert_eq!(session.next_due(&observation), None);
        see(&mut observation, key(1, 80), 3);
        assert_eq!(session.next_due(&observation), Some(due + Duration::from_secs(30)));
        assert!(!session.has_news(&observation, due));
        session.set_counter_interval(Duration::ZERO);
        assert!(session.has_news(&observation, due), "as before");
    }

    #[test]
    fn crowded_store_keeps_no_counters_back() {
        let mut observation = observation();
        observation.flows = FlowStore::new(Bounds { flows: 4, ..BOUNDS });
        let (mut session, now) = (Session::new("node"), Instant::now());
        session.next(&mut observation, now);
        session.next(&mut observation, now);
        session.set_counter_interval(Duration::from_secs(30));
        for port in 0..4 {
            see(&mut observation, key(1, port), 1);
        }
        session.next(&mut observation, now);
        see(&mut observation, key(1, 1), 2);
        assert!(observation.flows.is_crowded() && session.has_news(&observation, now));
    }

    #[test]
    fn a_client_flow_tells_the_names_that_led_there() {
        let (mut observation, now) = (observation(), Instant::now());
        let answer = |name: &str| {
            let addresses = vec![IpAddr::from([10, 0, 0, 1])];
            crate::names::Answer { name: name.into(), addresses, ttl: Duration::from_mins(5) }
        };
        let server = FlowKey { role: Role::Server, ..key(1, 81) };
        let counters = FlowCounters { opened: 1, ..FlowCounters::default() };
        let flows = vec![(key(1, 80), counters), (key(2, 80), counters), (server, counters)];
        let answers = vec![(1, answer("b.example")), (1, answer("a.example"))];
        observation.absorb(Reading { flows, answers, ..Reading::default() }, now);
        let mut session = Session::new("node");
        let told = |session: &mut Session, observation: &mut Observation| {
            let flows = session.next(observation, now).flows.into_iter();
            let mut told: Vec<_> = flows.map(|flow| (flow.cgroup_id, flow.port, flow.remote_names)).collect();
            told.sort();
            told
        };
        let names = ["a.example".to_owned(), "b.example".to_owned()];
        let first = told(&mut session, &mut observation);
        assert_eq!(
            first,
            [(1, 80, names.to_vec()), (1, 81, vec![]), (2, 80, vec![])],
            "its own names, and no server's"
        );
        // Who has called by address first and by name later: with the next connection.
        observation.absorb(Reading { answers: vec![(2, answer("c.example"))], ..Reading::default() }, now);
        see(&mut observation, key(2, 80), 2);
        assert_eq!(told(&mut session, &mut observation), [(2, 80, vec!["c.example".to_owned()])]);
        assert!(!session.has_news(&observation, Instant::now()));
    }

    #[test]
    fn an_owner_that_becomes_better_known_is_told_again() {
        let root = tempfile::tempdir().unwrap();
        let mut observation = observation();
        observation.attribution = Some(Attribution::open(root.path()).unwrap());
        let job = root.path().join("job");
        fs::create_dir(&job).unwrap();
        let id = fs::metadata(&job).unwrap().ino();
        see(&mut observation, key(id, 1), 1);
        let mut session = Session::new("node");
        let now = Instant::now();
        let first = session.next(&mut observation, now);
        assert_eq!(first.identities.len(), 1);
        assert_eq!(first.identities[0].cgroup_path, "/job");
        fs::write(job.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let later = session.next(&mut observation, now + Duration::from_mins(1));
        let comm = fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned();
        let named = wire::identity::Owner::HostProcess(wire::HostProcess { name: comm });
        assert_eq!(later.identities[0].owner, Some(named));
        assert!(session.next(&mut observation, now + Duration::from_mins(2)).identities.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        See(u64, u16),
        Send,
        Reconnect,
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (1u64..4, 1u16..600).prop_map(|(cgroup, port)| Step::See(cgroup, port)),
            3 => Just(Step::Send),
            1 => Just(Step::Reconnect),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// A receiver that follows the protocol ends with the true state, regardless of broken streams and restarted
        /// captures.
        #[test]
        fn the_operator_knows_the_truth_in_the_end(flows_before in 0u16..2500, steps in steps()) {
            let root = tempfile::tempdir().unwrap();
            let mut observation = observation();
            observation.attribution = Some(Attribution::open(root.path()).unwrap());
            let mut opened = 1;
            for port in 0..flows_before {
                see(&mut observation, key(9, port), opened);
            }
            let (mut operator, mut session) = (Operator::default(), Session::new("node"));
            for (epoch, step) in (2u8..).zip(steps.iter().take(250)) {
                match step {
                    Step::See(cgroup, port) => {
                        opened += 1;
                        see(&mut observation, key(*cgroup, *port), opened);
                    }
                    Step::Send => operator.take(&session.next(&mut observation, Instant::now())),
                    Step::Reconnect => {
                        session = Session::new("node");
                        operator.snapshot = None;
                        operator.named.clear();
                    }
                    Step::Restart => observation.begin_epoch([epoch; 16], &description()),
                }
            }
            while session.has_news(&observation, Instant::now()) {
                operator.take(&session.next(&mut observation, Instant::now()));
            }
            let truth: HashMap<_, _> = observation
                .flows
                .iter()
                .map(|(key, counters)| ((key.cgroup_id, u32::from(key.port)), counters.opened))
                .collect();
            prop_assert_eq!(operator.known, truth);
            prop_assert_eq!(operator.epoch, observation.epoch().to_vec());
        }
    }
}
