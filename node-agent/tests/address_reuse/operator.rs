//! The agent's capture, account and messages, and what an operator makes of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use report::v1alpha1::{AgentReport, Flow, Role as WireRole, identity::Owner};
use scopeprobe_agent::{
    attribution::Attribution,
    capture::{Attach, Capture as _, EbpfCapture, start_ebpf},
    flow_store::Bounds,
    observation::Observation,
    report::session::Session,
};
use topology::{
    directory::Directory,
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
    sighting::{Ages, Sighting},
};

use super::{
    lab::Node,
    testbed::{Event, Events},
    truth::Truth,
};

const NODE: &str = "node-1";
const SETTLE: Duration = Duration::from_secs(2);
/// Everything that happened is shown.
const RETENTION: Duration = Duration::from_hours(1);

/// Interval between two readings of the agent.
const LOOK: Duration = Duration::from_millis(200);
/// Interval at which old flows are evicted.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// An agent's message, and when it was made.
type Message = (SystemTime, AgentReport);

struct Agent {
    capture: EbpfCapture,
    observation: Observation,
    session: Session,
    messages: Sender<Message>,
}

impl Agent {
    fn run(mut self, over: &AtomicBool) {
        let mut housekeeping_at = Instant::now() + HOUSEKEEPING;
        while !over.load(Ordering::Relaxed) {
            self.look();
            if Instant::now() >= housekeeping_at {
                housekeeping_at = Instant::now() + HOUSEKEEPING;
                let dispensable = self.observation.dispensable(Instant::now());
                let dropped = self.capture.forget(&dispensable);
                self.observation.drop_flows(&dropped, Instant::now());
            }
            thread::sleep(LOOK);
        }
    }

    fn look(&mut self) {
        if let Some(attribution) = &mut self.observation.attribution {
            attribution.catch_up(Instant::now());
        }
        let reading = self.capture.read().unwrap();
        let losses = reading.losses;
        assert_eq!((losses.opened, losses.failed), (0, 0), "{losses:?}");
        self.observation.absorb(reading, Instant::now());
        while self.session.has_news(&self.observation, Instant::now()) {
            let message = self.session.next(&mut self.observation, Instant::now());
            self.messages.send((SystemTime::now(), message)).unwrap();
        }
    }
}

pub struct Operator {
    messages: Receiver<Message>,
    over: Arc<AtomicBool>,
    agent: Option<JoinHandle<()>>,
    ledger: Ledger,
    directory: Directory,
}

impl Operator {
    pub fn new(node: &Node) -> Self {
        let capture = start_ebpf(&node.settings(Attach::SockOps)).unwrap();
        let bounds = Bounds { flows: 500_000, retention: Duration::from_secs(20) };
        let mut observation = Observation::new([0; 16], bounds, "a kernel".into());
        observation.begin_epoch([1; 16], capture.description());
        observation.attribution = Some(Attribution::open(node.root()).unwrap());
        let (sender, messages) = mpsc::channel();
        let agent = Agent { capture, observation, session: Session::new(NODE), messages: sender };
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let agent = Some(thread::spawn(move || agent.run(&told)));
        Self { messages, over, agent, ledger: Ledger::new(), directory: Directory::new() }
    }

    /// Receives the agent's messages.
    pub fn listen(&mut self) {
        while let Ok((made, message)) = self.messages.try_recv() {
            self.take_in(&message, made);
        }
        assert!(!self.agent.as_ref().is_some_and(JoinHandle::is_finished), "the agent has ended");
    }

    /// Merges parts that need not be kept apart.
    pub fn keep_house(&mut self) {
        let (directory, now) = (&self.directory, SystemTime::now());
        let nodes: Vec<String> = self.ledger.nodes().map(str::to_owned).collect();
        for node in nodes {
            self.ledger.condense(&node, |flow, one, next| directory.are_one(flow.remote, one, next, now));
        }
    }

    fn take_in(&mut self, message: &AgentReport, made: SystemTime) {
        let (epoch, now) = (Epoch(message.epoch.clone().try_into().unwrap()), SystemTime::now());
        self.ledger.enter(NODE, epoch).unwrap();
        self.ledger.record_heartbeat(NODE, now);
        if message.begins_snapshot {
            self.ledger.begin_snapshot(NODE, epoch).unwrap();
        }
        for identity in &message.identities {
            let owner = match identity.owner.clone().unwrap() {
                Owner::PodContainer(pod) => {
                    CgroupOwner::PodContainer { pod_uid: pod.pod_uid, container_id: pod.container_id }
                }
                Owner::HostProcess(process) => CgroupOwner::HostProcess { name: process.name },
            };
            self.ledger.identify(NODE, epoch, identity.cgroup_id, owner).unwrap();
        }
        for flow in &message.flows {
            let [first, news, changed] =
                [flow.first_seen_age_ms, flow.news_age_ms, flow.changed_age_ms].map(Duration::from_millis);
            let sighting = Sighting::new(&Ages::of(first, news, changed), made, now);
            self.ledger.apply(NODE, epoch, key(flow), &counters(flow), sighting).unwrap();
        }
        if message.ends_snapshot {
            self.ledger.end_snapshot(NODE, epoch, now).unwrap();
        }
    }

    /// Applies the events of the API.
    pub fn learn(&mut self, events: &Events) {
        let now = SystemTime::now();
        for event in events.due() {
            match event {
                Event::Is(pod) => {
                    self.directory.upsert_pod(*pod, now);
                }
                Event::Gone { uid, life } => {
                    self.directory.note_life(&uid, life, false, now);
                    self.directory.remove_pod(&uid, now);
                }
            }
        }
    }

    pub fn graph(&self) -> Graph {
        let options =
            Options { now: SystemTime::now(), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
        graph::build(&self.ledger, &self.directory, &options)
    }

    /// Returns the graph when everything was reported and no connection waits for its other end.
    pub fn settled(&mut self, truth: &Truth) -> Graph {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            self.listen();
            let graph = self.graph();
            if graph.settles_at.is_none_or(|at| at > SystemTime::now() + SETTLE) {
                return graph;
            }
            assert!(Instant::now() < deadline, "{} of {:?}", graph.unsettled, truth.pods.len());
            thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.agent.take().map(JoinHandle::join);
    }
}

fn key(flow: &Flow) -> FlowKey {
    let address = |bytes: &[u8]| std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap());
    FlowKey {
        cgroup_id: flow.cgroup_id,
        netns: flow.netns,
        role: if flow.role() == WireRole::Client { Role::Client } else { Role::Server },
        local: address(&flow.local_ip),
        remote: address(&flow.remote_ip),
        port: u16::try_from(flow.port).unwrap(),
        protocol: Protocol::Tcp,
    }
}

fn counters(flow: &Flow) -> FlowCounters {
    let counters = flow.counters.as_ref().unwrap();
    FlowCounters {
        run: flow.run,
        opened: counters.opened,
        closed: counters.closed,
        failed: counters.failed,
        bytes_sent: counters.bytes_sent,
        bytes_received: counters.bytes_received,
        methods: Methods::EBPF,
        ..FlowCounters::default()
    }
}
