//! The reporter against an operator in this process that speaks the real protocol over a real connection.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod operator;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use operator::{Manner, serve};
use report::v1alpha1::{self as wire, AgentReport};
use scopeprobe_agent::{
    attribution::Attribution,
    capture::{Description, Mode, Reading},
    endpoints::ReportMetrics,
    flow_store::Bounds,
    observation::{Epoch, Observation, SharedObservation},
    report::{
        operator_url::Operator,
        stream::{Patience, Reporter},
    },
};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use topology::flow::{FlowCounters, FlowKey, Protocol, Role};

/// Only to fail instead of hanging: nothing here takes so long.
const GENEROUS: Duration = Duration::from_mins(1);

/// A reporter, its operator, and what both share.
struct Lab {
    observation: SharedObservation,
    changed: Arc<Notify>,
    received: mpsc::UnboundedReceiver<(usize, AgentReport)>,
    answers: Arc<Semaphore>,
    closing: watch::Sender<bool>,
    reporter: JoinHandle<()>,
    /// The cgroups' root.
    root: tempfile::TempDir,
}

impl Lab {
    async fn new(manners: &[Manner], flows: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (received, answers) = serve(listener, manners);
        Self::with_operator(address, received, answers, flows)
    }

    fn with_operator(
        address: SocketAddr,
        received: mpsc::UnboundedReceiver<(usize, AgentReport)>,
        answers: Arc<Semaphore>,
        flows: u16,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let bounds = Bounds { flows: 100_000, retention: Duration::from_hours(1) };
        let mut observation = Observation::new(Epoch::default(), bounds, "6.12".into());
        observation.attribution = Some(Attribution::open(root.path()).unwrap());
        observation.begin_epoch([1; 16], &description());
        let observation = SharedObservation::new(observation);
        let changed = Arc::new(Notify::new());
        let (closing, closes) = watch::channel(false);
        let reporter = Reporter {
            node: "node-1".into(),
            operator: Operator::plaintext(format!("http://{address}").parse().unwrap()),
            observation: observation.clone(),
            changed: Arc::clone(&changed),
            metrics: ReportMetrics::default(),
            patience: Patience {
                reply: Duration::from_secs(2),
                retry: (Duration::from_millis(10), Duration::from_millis(50)),
                new_epoch: (Duration::from_millis(10), Duration::from_millis(50)),
                ..Patience::default()
            },
        };
        let lab = Self {
            observation,
            changed,
            received,
            answers,
            closing,
            reporter: tokio::spawn(reporter.run(closes)),
            root,
        };
        for port in 0..flows {
            lab.see(port, 1);
        }
        lab
    }

    /// A connection of the root's cgroup at this port.
    fn see(&self, port: u16, opened: u64) {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let cgroup_id = std::fs::metadata(self.root.path()).unwrap().ino();
        let key =
            FlowKey { cgroup_id, netns: 1, role: Role::Server, local: ip, remote: ip, port, protocol: Protocol::Tcp };
        let counters = FlowCounters { opened, ..FlowCounters::default() };
        let reading = Reading { flows: vec![(key, counters)], ..Reading::default() };
        self.observation.lock().absorb(reading, Instant::now());
        self.changed.notify_one();
    }

    async fn next(&mut self) -> (usize, AgentReport) {
        timeout(GENEROUS, self.received.recv()).await.expect("a message in time").expect("an operator")
    }

    /// Messages up to the one that ends a snapshot; the number of their stream and their flows' ports.
    async fn snapshot(&mut self) -> (usize, Vec<u32>) {
        let (stream, first) = self.next().await;
        assert!(first.begins_snapshot, "a stream begins with a snapshot");
        assert_eq!(first.sequence, 1);
        let mut ports: Vec<_> = first.flows.iter().map(|flow| flow.port).collect();
        let mut ended = first.ends_snapshot;
        while !ended {
            let (number, report) = self.next().await;
            assert_eq!(number, stream);
            assert!(!report.begins_snapshot);
            ports.extend(report.flows.iter().map(|flow| flow.port));
            ended = report.ends_snapshot;
        }
        ports.sort_unstable();
        (stream, ports)
    }
}

fn description() -> Description {
    Description {
        mode: Mode::Ebpf,
        attach: "SockOps",
        attached_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234),
        kernel: "6.12".into(),
        degradations: Vec::new(),
    }
}

#[tokio::test]
async fn a_stream_begins_with_a_bounded_snapshot_and_goes_on_with_changes() {
    let mut lab = Lab::new(&[], 2500).await;
    let mut ports = HashSet::new();
    for sequence in 1..=3 {
        let (stream, report) = lab.next().await;
        assert_eq!((stream, report.sequence, report.node.as_str()), (1, sequence, "node-1"));
        assert_eq!((report.begins_snapshot, report.ends_snapshot), (sequence == 1, sequence == 3));
        assert!(report.flows.len() <= report::MAX_FLOWS_PER_MESSAGE);
        assert_eq!(report.identities.len(), usize::from(sequence == 1), "the one identity comes once");
        let capture = report.capture.unwrap();
        assert_eq!((capture.reason(), capture.attached_unix_ms), (wire::Reason::Supported, 1_234));
        ports.extend(report.flows.iter().map(|flow| flow.port));
    }
    assert_eq!(ports.len(), 2500);

    lab.see(7, 2);
    let (_, report) = lab.next().await;
    assert_eq!((report.sequence, report.begins_snapshot, report.ends_snapshot), (4, false, false));
    assert_eq!(report.flows.len(), 1);
    assert_eq!((report.flows[0].port, report.flows[0].counters.as_ref().unwrap().opened), (7, 2));
    assert_eq!((report.flows[0].local_ip.as_slice(), report.identities.len()), ([127, 0, 0, 1].as_slice(), 0));
}

#[tokio::test]
async fn what_happens_while_a_message_is_under_way_is_merged_into_the_next() {
    let mut lab = Lab::new(&[], 1).await;
    lab.snapshot().await;
    lab.answers.forget_permits(usize::MAX);
    lab.see(1, 1);
    let (_, under_way) = lab.next().await;
    assert_eq!(under_way.flows.len(), 1);
    for opened in 2..=1000 {
        lab.see(1, opened);
        lab.see(2, opened);
        tokio::task::yield_now().await;
    }
    assert!(lab.received.try_recv().is_err(), "one message at a time");
    lab.answers.add_permits(100);
    let (_, merged) = lab.next().await;
    let counts: Vec<_> = merged.flows.iter().map(|flow| (flow.port, flow.counters.as_ref().unwrap().opened)).collect();
    assert_eq!(merged.sequence, under_way.sequence + 1);
    // New flows come first.
    assert_eq!(counts, [(2, 1000), (1, 1000)]);
}

#[tokio::test]
async fn agent_begins_each_stream_with_a_snapshot() {
    let manners = [Manner::Reject, Manner::EndAfter(1), Manner::Garbage, Manner::Silent, Manner::Repeat];
    let mut lab = Lab::new(&manners, 5).await;
    for stream in 1..=4 {
        assert_eq!(lab.snapshot().await, (stream, vec![0, 1, 2, 3, 4]), "stream {stream}");
    }
    // Repetitions don't end the fourth.
    for opened in 2..5 {
        lab.see(0, opened);
        let (stream, report) = lab.next().await;
        assert_eq!((stream, report.flows[0].counters.as_ref().unwrap().opened), (4, opened));
    }
}

#[tokio::test]
async fn a_new_epoch_begins_a_snapshot_on_the_same_stream() {
    let mut lab = Lab::new(&[], 3).await;
    lab.snapshot().await;
    lab.observation.lock().begin_epoch([2; 16], &description());
    lab.see(9, 1);
    let (stream, report) = lab.next().await;
    assert_eq!((stream, report.sequence, report.epoch), (1, 2, vec![2; 16]));
    assert!(report.begins_snapshot && report.ends_snapshot);
    assert_eq!(report.flows.iter().map(|flow| flow.port).collect::<Vec<_>>(), [9]);
}

#[tokio::test]
async fn reporter_goes_on_under_a_new_epoch_when_the_operator_has_ended_its_own() {
    let mut lab = Lab::new(&[Manner::ReplaceAfter(2), Manner::Answer, Manner::ReplaceAfter(1)], 3).await;
    assert_eq!(lab.snapshot().await, (1, vec![0, 1, 2]));
    lab.see(0, 5);
    let (_, last) = lab.next().await;
    assert_eq!((last.epoch.as_slice(), last.origin_epoch.as_slice()), (&[1; 16][..], &[1; 16][..]));
    // Each other stream still has the epoch that has ended.
    let mut epochs = HashSet::from([last.epoch]);
    for (stream, opened) in [(3, 5), (5, 5)] {
        let (number, report) = lab.next().await;
        assert_eq!((number, report.sequence, report.begins_snapshot, report.ends_snapshot), (stream, 1, true, true));
        assert_eq!(report.origin_epoch, [1; 16], "the counters began in the first epoch");
        let mut counts: Vec<_> =
            report.flows.iter().map(|flow| (flow.port, flow.counters.as_ref().unwrap().opened)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [(0, opened), (1, 1), (2, 1)]);
        epochs.insert(report.epoch);
    }
    assert_eq!(epochs.len(), 3, "each time a new one");
    // A capture that begins anew has counters that go on from nothing.
    lab.observation.lock().begin_epoch([2; 16], &description());
    lab.see(9, 1);
    let (_, report) = lab.next().await;
    assert_eq!((report.epoch, report.origin_epoch), (vec![2; 16], vec![2; 16]));
}

#[tokio::test]
async fn reporter_that_closes_leaves_the_place_to_its_successor() {
    let mut lab = Lab::new(&[Manner::ReplaceAfter(1)], 1).await;
    lab.answers.forget_permits(usize::MAX);
    let (_, first) = lab.next().await;
    assert_eq!(first.epoch, [1; 16]);
    lab.closing.send_replace(true);
    lab.answers.add_permits(100);
    timeout(GENEROUS, lab.reporter).await.expect("an end").unwrap();
    assert!(lab.received.try_recv().is_err(), "nothing was accepted any more");
}

#[tokio::test]
async fn an_agent_that_captures_nothing_says_why() {
    let mut lab = Lab::new(&[], 0).await;
    lab.snapshot().await;
    lab.observation.lock().stop(kernel_support::Reason::BtfMissing, "x".repeat(5000));
    lab.changed.notify_one();
    let (_, report) = lab.next().await;
    let capture = report.capture.unwrap();
    assert_eq!((capture.mode(), capture.reason()), (wire::Mode::Unsupported, wire::Reason::BtfMissing));
    assert_eq!(capture.message.len(), report::MAX_CAPTURE_MESSAGE_BYTES);
}

#[tokio::test]
async fn all_is_told_before_the_end() {
    let mut lab = Lab::new(&[], 1).await;
    lab.snapshot().await;
    for port in 0..1500 {
        lab.see(port, 5);
    }
    lab.closing.send_replace(true);
    timeout(GENEROUS, lab.reporter).await.expect("an end").unwrap();
    let mut told = HashSet::new();
    while let Ok((_, report)) = lab.received.try_recv() {
        told.extend(report.flows.iter().map(|flow| (flow.port, flow.counters.as_ref().unwrap().opened)));
    }
    assert_eq!(told.len(), 1500);
    assert!(told.iter().all(|(_, opened)| *opened == 5));
}

#[tokio::test]
async fn an_operator_that_comes_late_is_found() {
    // The port is free again when this listener is gone: no other process of the test requests that port.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (idle, received) = mpsc::unbounded_channel();
    drop(idle);
    let mut lab = Lab::with_operator(address, received, Arc::new(Semaphore::new(0)), 4);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!lab.reporter.is_finished());
    let listener = TcpListener::bind(address).await.unwrap();
    (lab.received, lab.answers) = serve(listener, &[]);
    assert_eq!(lab.snapshot().await.1, [0, 1, 2, 3]);
}
