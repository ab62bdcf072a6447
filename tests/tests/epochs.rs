//! Tests a node for which a foreign program reports. The agent must report again by itself, and the operator's counts must
//! stay exact. Runs the real reporter and the real collector over a real connection.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agent::{
    capture::{Description, Mode, Reading},
    endpoints::ReportMetrics,
    flow_store::Bounds,
    observation::{Observation, SharedObservation},
    report::{
        operator_url::Operator,
        stream::{Patience, Reporter},
    },
};
use operator::{
    collector::{self, CollectorInputs},
    observation::Observations,
    shared_ledger::SharedLedger,
};
use report::v1alpha1::{AgentReport, CaptureState, Mode as WireMode, Reason, collector_client::CollectorClient};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use topology::flow::{FlowCounters, FlowKey, Protocol, Role};

const NODE: &str = "node-1";
const FLOWS: u16 = 5;

/// Only to fail instead of hanging.
const GENEROUS: Duration = Duration::from_mins(2);

fn key(port: u16) -> FlowKey {
    let ip = IpAddr::from([10, 0, 0, 1]);
    FlowKey { cgroup_id: 1, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp }
}

/// An agent whose capture counts what the test makes up, and its operator.
struct World {
    shared_ledger: SharedLedger,
    observations: Observations,
    operator: SocketAddr,
    observation: SharedObservation,
    changed: Arc<Notify>,
    /// True counters of each flow.
    truth: FlowCounters,
    /// Number of foreign epochs so far.
    foreign: u8,
    /// Ends the reporter with the test.
    _closing: watch::Sender<bool>,
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has ports");
        let operator = listener.local_addr().expect("it is bound");
        let (shared_ledger, observations) = (SharedLedger::default(), Observations::default());
        let inputs = CollectorInputs::open(shared_ledger.clone(), observations.clone());
        tokio::spawn(collector::serve(listener, inputs, std::future::pending()));
        let bounds = Bounds { flows: 1000, retention: Duration::from_hours(1) };
        let mut observation = Observation::new([0; 16], bounds, "6.12".to_owned());
        observation.begin_epoch([1; 16], &description());
        let (observation, changed) = (SharedObservation::new(observation), Arc::new(Notify::new()));
        let (closing, closes) = watch::channel(false);
        let reporter = Reporter {
            node: NODE.to_owned(),
            operator: Operator::plaintext(format!("http://{operator}").parse().expect("an address")),
            observation: observation.clone(),
            changed: Arc::clone(&changed),
            metrics: ReportMetrics::default(),
            patience: Patience {
                retry: (Duration::from_millis(10), Duration::from_millis(50)),
                new_epoch: (Duration::from_millis(10), Duration::from_millis(50)),
                ..Patience::default()
            },
        };
        tokio::spawn(reporter.run(closes));
        let truth = FlowCounters::default();
        Self { shared_ledger, observations, operator, observation, changed, truth, foreign: 0, _closing: closing }
    }

    /// Opens and closes connections in each flow and sends bytes over them; the capture counts it.
    fn happen(&mut self, opened: u64, closed: u64) {
        self.truth.opened += opened;
        self.truth.closed += closed;
        self.truth.bytes_sent += 100 * opened;
        self.truth.open_bytes_sent = 100 * self.truth.active();
        let flows = (1..=FLOWS).map(|port| (key(port), self.truth)).collect();
        let seen = self.truth.opened * u64::from(FLOWS);
        self.observation.lock().absorb(Reading { flows, seen, ..Reading::default() }, Instant::now());
        self.changed.notify_one();
    }

    /// Sends one message of a foreign program without any flow, and waits for its answer.
    async fn take_the_place(&mut self) {
        self.foreign += 1;
        let mut client = CollectorClient::connect(format!("http://{}", self.operator)).await.expect("it listens");
        let (messages, queue) = mpsc::channel(1);
        let message = AgentReport {
            node: NODE.to_owned(),
            epoch: vec![100_u8 + self.foreign; 16],
            sequence: 1,
            begins_snapshot: true,
            ends_snapshot: true,
            capture: Some(CaptureState {
                mode: WireMode::Ebpf.into(),
                reason: Reason::Supported.into(),
                ..CaptureState::default()
            }),
            ..AgentReport::default()
        };
        messages.send(message).await.expect("the queue is open");
        let mut replies = client.report(ReceiverStream::new(queue)).await.expect("it answers").into_inner();
        // Another stream may have taken its place already.
        let _ = replies.message().await;
    }

    /// Returns the operator's counts: connections, open ones and bytes of each flow, and connections seen on the node.
    async fn known(&self) -> (Vec<(u64, u64, u64)>, u64) {
        let ledger = self.shared_ledger.ledger().lock().await;
        let flows = ledger.flows().map(|flow| (flow.totals.opened, flow.totals.active, flow.totals.bytes_sent));
        (flows.collect(), self.observations.get(NODE).unwrap_or_default().total_seen())
    }

    async fn expect_the_truth(&self) {
        let flow = (self.truth.opened, self.truth.active(), self.truth.bytes_sent);
        let expected = (vec![flow; FLOWS.into()], self.truth.opened * u64::from(FLOWS));
        let begun = Instant::now();
        while self.known().await != expected {
            assert!(begun.elapsed() < GENEROUS, "{:?} instead of {expected:?}", self.known().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn description() -> Description {
    Description {
        mode: Mode::Ebpf,
        attach: "SockOps",
        attached_at: SystemTime::now(),
        kernel: "6.12".to_owned(),
        degradations: Vec::new(),
    }
}

#[tokio::test]
async fn agent_reports_again_exactly_after_each_foreign_report() {
    let mut world = World::new().await;
    world.happen(3, 1);
    world.expect_the_truth().await;
    for round in 0..20 {
        world.take_the_place().await;
        // Before, while or after the agent notices.
        if round % 3 > 0 {
            world.happen(2, 1);
        }
        world.expect_the_truth().await;
        world.happen(2, 2);
        world.expect_the_truth().await;
    }
}

#[tokio::test]
async fn agent_reports_again_after_many_foreign_epochs_in_a_row() {
    let mut world = World::new().await;
    world.happen(3, 1);
    world.expect_the_truth().await;
    for _ in 0..100 {
        world.take_the_place().await;
        world.happen(2, 2);
    }
    world.expect_the_truth().await;
}
