use report::v1alpha1::{CaptureState, Mode, Reason, collector_client::CollectorClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, transport::Channel};

use super::*;
use crate::{metrics::Metrics, observation::Observations, shared_ledger::SharedLedger};

/// Only to fail instead of hanging.
const GENEROUS: Duration = Duration::from_mins(1);

/// A collector in plain text, on a port of the loopback.
struct Port {
    address: std::net::SocketAddr,
    observations: Observations,
    shared_ledger: SharedLedger,
    metrics: Metrics,
}

impl Port {
    async fn new(change: impl FnOnce(&mut CollectorInputs)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let mut inputs = CollectorInputs::open(SharedLedger::default(), Observations::default());
        change(&mut inputs);
        let (observations, shared_ledger) = (inputs.observations.clone(), inputs.shared_ledger.clone());
        let metrics = inputs.metrics.clone();
        tokio::spawn(serve(listener, inputs, std::future::pending()));
        Self { address, observations, shared_ledger, metrics }
    }

    async fn client(&self) -> CollectorClient<Channel> {
        CollectorClient::connect(format!("http://{}", self.address)).await.expect("it listens")
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }
}

fn first(node: &str) -> AgentReport {
    AgentReport {
        node: node.to_owned(),
        epoch: vec![1; 16],
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: Some(CaptureState {
            mode: Mode::Ebpf.into(),
            reason: Reason::Supported.into(),
            ..CaptureState::default()
        }),
        ..AgentReport::default()
    }
}

/// Sends one message. Returns the replies, and what keeps the stream open.
async fn open(
    client: &mut CollectorClient<Channel>,
    message: AgentReport,
) -> Result<(Streaming<CollectorReply>, mpsc::Sender<AgentReport>), Status> {
    let (messages, queue) = mpsc::channel(1);
    messages.send(message).await.expect("the queue is open");
    let mut replies = client.report(ReceiverStream::new(queue)).await?.into_inner();
    replies.message().await?;
    Ok((replies, messages))
}

/// Waits until the other end closes the connection.
async fn closed(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = timeout(GENEROUS, stream.read_to_end(&mut bytes)).await.expect("the operator closes the connection");
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_not_connected_any_more() {
    let port = Port::new(|inputs| inputs.silence = Duration::from_millis(200)).await;
    let mut changed = port.observations.subscribe();
    let (mut replies, _messages) = open(&mut port.client().await, first("node-1")).await.expect("the message is good");
    // The queue stays open, the connection answers pings, but no message follows.
    let end = replies.message().await.expect_err("an agent that says nothing is given up");
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end}");
    while port.observations.get("node-1").is_some_and(|node| node.connected) {
        changed.changed().await.expect("the observations live");
    }
}

#[tokio::test]
async fn port_is_closed_while_another_operator_may_take_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has ports");
    let address = listener.local_addr().expect("it is bound");
    let inputs = CollectorInputs::open(SharedLedger::default(), Observations::default());
    let (holds, stop) = (watch::Sender::new(true), watch::Sender::new(false));
    let port = |handover| CollectorPort { address, inputs: inputs.clone(), holds: holds.subscribe(), handover };
    let connect = || CollectorClient::connect(format!("http://{address}"));
    let stream = async || {
        let client = timeout(GENEROUS, async {
            loop {
                if let Ok(client) = connect().await {
                    return client;
                }
                tokio::task::yield_now().await;
            }
        });
        open(&mut client.await.expect("the port is opened"), first("node-1")).await.expect("it takes reports in")
    };
    let is_ended = async |replies: &mut Streaming<CollectorReply>| {
        let end = timeout(GENEROUS, replies.message()).await.expect("the stream ends").expect_err("with a reason");
        assert_eq!(end.code(), Code::Unavailable, "{end}");
    };

    // No standby takes over within the test.
    let served = tokio::spawn(port(GENEROUS * 60).serve(listener, stop.subscribe()));
    let (mut replies, _messages) = stream().await;
    holds.send_replace(false);
    is_ended(&mut replies).await;
    timeout(GENEROUS, async { while TcpStream::connect(address).await.is_ok() {} }).await.expect("the port is closed");
    holds.send_replace(true);
    let (mut replies, _messages) = stream().await;
    stop.send_replace(true);
    is_ended(&mut replies).await;
    served.await.expect("it does not panic").expect("it was stopped");

    // There is no other operator.
    stop.send_replace(false);
    let listener = TcpListener::bind(address).await.expect("the port is free");
    let served = tokio::spawn(port(Duration::ZERO).serve(listener, stop.subscribe()));
    let (mut replies, _messages) = stream().await;
    holds.send_replace(false);
    is_ended(&mut replies).await;
    let (mut replies, _messages) = stream().await;
    stop.send_replace(true);
    is_ended(&mut replies).await;
    served.await.expect("it does not panic").expect("it was stopped");
}

#[tokio::test]
async fn name_that_is_no_node_is_refused() {
    let port = Port::new(|inputs| inputs.is_node = Arc::new(|name| name == "node-1")).await;
    open(&mut port.client().await, first("node-1")).await.expect("it is a Node");
    let refused = open(&mut port.client().await, first("elsewhere")).await.expect_err("it is none");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("\"elsewhere\""), "{refused}");
    assert!(port.observations.get("elsewhere").is_none(), "nothing is kept of it");
    assert_eq!(port.metrics.refused_streams.get(), 1);
}

#[tokio::test]
async fn connection_has_one_stream() {
    let port = Port::new(|_| {}).await;
    let mut client = port.client().await;
    let (replies, messages) = open(&mut client, first("node-1")).await.expect("the first stream");
    drop((replies, messages));
    let second = open(&mut client, first("node-1")).await.expect_err("the second one");
    // Refused, or the connection is closed already.
    assert!(matches!(second.code(), Code::ResourceExhausted | Code::Unavailable | Code::Unknown), "{second}");
    open(&mut port.client().await, first("node-1")).await.expect("another connection");
}

#[tokio::test]
async fn connections_beyond_the_limits_are_closed_and_agents_stay() {
    let port = Port::new(|inputs| inputs.limits.collector_max_connections_per_address = 3).await;
    let (mut replies, messages) = open(&mut port.client().await, first("node-1")).await.expect("an agent");
    let held = [port.connect().await, port.connect().await];
    let mut beyond = port.connect().await;
    closed(&mut beyond).await;
    assert_eq!(port.metrics.refused_connections.get(), 1);
    let second = AgentReport { sequence: 2, begins_snapshot: false, ends_snapshot: false, ..first("node-1") };
    messages.send(second).await.expect("the stream is open");
    assert_eq!(replies.message().await.expect("the stream is open").map(|reply| reply.sequence), Some(2));
    drop(held);
}

#[tokio::test]
async fn connection_without_a_first_message_is_closed_in_time() {
    let port = Port::new(|inputs| {
        inputs.limits.collector_message_timeout = jiff::SignedDuration::from_millis(300);
        inputs.limits.collector_max_waiting_connections = 8;
    })
    .await;
    let mut idle = port.connect().await;
    let mut preface = port.connect().await;
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it is open");
    closed(&mut idle).await;
    closed(&mut preface).await;
    // A stream without a message.
    let (_messages, queue) = mpsc::channel(1);
    let mut client = port.client().await;
    let end = async {
        let mut replies = client.report(ReceiverStream::new(queue)).await?.into_inner();
        replies.message().await
    };
    timeout(GENEROUS, end).await.expect("it ends").expect_err("without a message");
    // An agent's connection has no such limit.
    let (mut replies, _open) = open(&mut port.client().await, first("node-1")).await.expect("an agent");
    let mut later = port.connect().await;
    closed(&mut later).await;
    assert!(timeout(Duration::ZERO, replies.message()).await.is_err(), "its stream is open");
}

#[tokio::test]
async fn idle_connections_keep_no_agent_out() {
    let connections = agents();
    let port = Port::new(|inputs| {
        inputs.limits.collector_max_connections_per_address = 65_536;
        let waiting = &mut inputs.limits.collector_max_waiting_connections;
        *waiting = (*waiting).min(u32::try_from(connections / 2).expect("it is less than 1000"));
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..connections {
        idle.push(port.connect().await);
    }
    open(&mut port.client().await, first("node-1")).await.expect("an agent");
    closed(&mut idle[0]).await;
}

#[tokio::test]
async fn client_that_reads_no_replies_is_given_up() {
    let port =
        Port::new(|inputs| inputs.limits.collector_message_timeout = jiff::SignedDuration::from_millis(300)).await;
    let endpoint = Channel::from_shared(format!("http://{}", port.address)).expect("a URL");
    let channel = endpoint.initial_stream_window_size(Some(0)).connect().await.expect("it listens");
    let mut changed = port.observations.subscribe();
    let (messages, queue) = mpsc::channel(8);
    messages.send(first("node-1")).await.expect("the queue is open");
    for sequence in 2..6 {
        let next = AgentReport { sequence, begins_snapshot: false, ends_snapshot: false, ..first("node-1") };
        messages.send(next).await.expect("the queue is open");
    }
    let _replies = CollectorClient::new(channel).report(ReceiverStream::new(queue)).await.expect("it is answered");
    let given_up = async {
        while port.observations.get("node-1").is_none_or(|node| node.connected) {
            changed.changed().await.expect("the observations live");
        }
    };
    // Well before the silence that ends other streams.
    timeout(SILENCE / 2, given_up).await.expect("it is not connected any more");
}

#[tokio::test]
async fn flows_beyond_the_limit_are_losses() {
    let port = Port::new(|inputs| inputs.limits.collector_max_flows_per_node = 2).await;
    let flow = |port: u32, opened| report::v1alpha1::Flow {
        cgroup_id: 1,
        role: report::v1alpha1::Role::Client.into(),
        local_ip: vec![10, 0, 0, 1],
        remote_ip: vec![10, 0, 0, 2],
        port,
        counters: Some(report::v1alpha1::Counters { opened, methods: 1, ..report::v1alpha1::Counters::default() }),
        ..report::v1alpha1::Flow::default()
    };
    let mut message = first("node-1");
    message.flows = vec![flow(1, 10), flow(2, 20), flow(3, 30), flow(4, 40)];
    message.capture.as_mut().expect("it is there").seen = 100;
    let (mut replies, messages) = open(&mut port.client().await, message).await.expect("it is taken in");
    let shown = |observation: &crate::observation::NodeObservation| {
        (observation.seen, observation.losses.opened, observation.left_out.reason.is_some())
    };
    let observed = || port.observations.get("node-1").expect("it reports");
    assert_eq!(shown(&observed()), (30, 70, true));
    let mut second = AgentReport { sequence: 2, begins_snapshot: false, ends_snapshot: false, ..first("node-1") };
    second.flows = vec![flow(1, 11), flow(3, 32)];
    second.capture.as_mut().expect("it is there").seen = 103;
    messages.send(second).await.expect("the stream is open");
    replies.message().await.expect("it is taken in");
    assert_eq!(shown(&observed()), (31, 72, true));
    let ledger = port.shared_ledger.ledger().lock().await;
    let stored: Vec<_> = ledger.flows().map(|flow| (flow.key.port, flow.totals.opened)).collect();
    assert_eq!(stored, [(1, 11), (2, 20)], "what is stored and what is lost are all connections");
}

/// Returns the number of agents, at most 1,000, that this process can simulate: each takes two of its descriptors.
fn agents() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    1000.min(files.unwrap_or(1000) / 3)
}

/// Reports as an agent does: opens a stream again and again, with growing pauses. Breaks it when `round` changes, and sets
/// the number of the round in which it has opened one.
async fn simulate(
    address: std::net::SocketAddr,
    node: usize,
    mut round: watch::Receiver<usize>,
    opened: watch::Sender<usize>,
) {
    let mut pause = Duration::from_millis(100);
    loop {
        let current = *round.borrow_and_update();
        if let Ok(mut client) = CollectorClient::connect(format!("http://{address}")).await
            && let Ok((mut replies, _messages)) = open(&mut client, first(&format!("node-{node}"))).await
        {
            opened.send_replace(current);
            pause = Duration::from_millis(100);
            tokio::select! {
                _ = replies.message() => {}
                _ = round.changed() => continue,
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_all_reconnect_at_once_are_all_taken_in() {
    let agents = agents();
    // They share an address here, and nothing else.
    let port = Port::new(|inputs| inputs.limits.collector_max_connections_per_address = 65_536).await;
    let round = watch::Sender::new(1);
    let mut tasks = tokio::task::JoinSet::new();
    let opened: Vec<_> = (0..agents)
        .map(|node| {
            let (sender, opened) = watch::channel(0);
            tasks.spawn(simulate(port.address, node, round.subscribe(), sender));
            opened
        })
        .collect();
    let mut changed = port.observations.subscribe();
    for number in 1..=2 {
        let began = std::time::Instant::now();
        round.send_replace(number);
        for mut opened in opened.clone() {
            timeout(GENEROUS, opened.wait_for(|opened| *opened == number)).await.expect("in time").expect("it runs");
        }
        // A stream that was given up may have taken the place of its successor, whose agent then opens another one.
        while port.observations.all().values().filter(|node| node.connected).count() < agents {
            timeout(GENEROUS, changed.changed()).await.expect("in time").expect("the observations live");
        }
        println!("{agents} agents connected in {:.1} s", began.elapsed().as_secs_f64());
    }
}
