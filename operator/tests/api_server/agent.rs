//! Invents agents' reports.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use report::v1alpha1::{self as wire, AgentReport, CollectorReply, collector_client::CollectorClient};
use scopeprobe_tests::{Error, Result, eventually};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// The agent of `node-1` reports, on a stream of its own, that the pod has opened so many connections in all. Waits until
/// the operator has taken that in.
pub async fn report(collector: SocketAddr, pod_uid: &str, opened: u64) -> Result<()> {
    open_stream(collector, pod_uid, opened).await.map(|_| ())
}

/// The same with a stream that stays open: returns its replies, and its messages.
pub async fn open_stream(
    collector: SocketAddr,
    pod_uid: &str,
    opened: u64,
) -> Result<(Streaming<CollectorReply>, mpsc::Sender<AgentReport>)> {
    let mut client = eventually("the operator to take reports in", async || {
        CollectorClient::connect(format!("http://{collector}")).await.map_err(|error| error.to_string())
    })
    .await?;
    let refused = |status| Error::Unexpected(format!("the operator refuses the report: {status}"));
    let (messages, queue) = mpsc::channel(1);
    messages.try_send(message(pod_uid, opened)).map_err(|error| Error::Unexpected(error.to_string()))?;
    let mut replies = client.report(ReceiverStream::new(queue)).await.map_err(refused)?.into_inner();
    let reply = replies.message().await.map_err(refused)?;
    assert_eq!(reply.map(|reply| reply.sequence), Some(1));
    Ok((replies, messages))
}

/// An agent of `node-1` that counts all the time, and reports whenever an operator takes its reports in. The
/// clock of its node jumps.
pub struct CountingAgent {
    counting: JoinHandle<u64>,
    stop: watch::Sender<bool>,
}

/// Number of connections that an agent counts at least.
const FEWEST: u64 = 10;
/// Time between two connections of the agent's pod.
const PACE: Duration = Duration::from_millis(50);

impl CountingAgent {
    /// Starts the agent, which reports to this collector about this pod.
    pub fn start(collector: SocketAddr, pod_uid: &str) -> Self {
        let stop = watch::Sender::new(false);
        let counting = tokio::spawn(count(collector, pod_uid.to_owned(), stop.subscribe()));
        Self { counting, stop }
    }

    /// Ends the pod's connections. Returns their number when all of them are reported.
    pub async fn stop(self) -> Result<u64> {
        self.stop.send_replace(true);
        self.counting.await.map_err(|error| Error::Unexpected(format!("the agent has ended: {error}")))
    }
}

async fn count(collector: SocketAddr, pod_uid: String, stop: watch::Receiver<bool>) -> u64 {
    let (mut opened, mut stream) = (0, None);
    loop {
        let is_last = opened >= FEWEST && *stop.borrow();
        opened += u64::from(!is_last);
        let message = AgentReport { sent_unix_ms: jumping_clock(opened), ..message(&pod_uid, opened) };
        stream = match stream.take() {
            Some(stream) => next(stream, message).await,
            None => first(collector, message).await,
        };
        if is_last && stream.is_some() {
            return opened;
        }
        sleep(PACE).await;
    }
}

/// An open stream, and the number of its messages.
type OpenStream = (Streaming<CollectorReply>, mpsc::Sender<AgentReport>, u64);

/// Opens a stream with a snapshot. Returns it if the operator has taken that in.
async fn first(collector: SocketAddr, message: AgentReport) -> Option<OpenStream> {
    let mut client = CollectorClient::connect(format!("http://{collector}")).await.ok()?;
    let (messages, queue) = mpsc::channel(1);
    messages.try_send(message).ok()?;
    let mut replies = client.report(ReceiverStream::new(queue)).await.ok()?.into_inner();
    let reply = replies.message().await.ok()??;
    (reply.sequence == 1).then_some((replies, messages, 1))
}

/// Sends a further message. Returns the stream if the operator has taken that in.
async fn next((mut replies, messages, sent): OpenStream, message: AgentReport) -> Option<OpenStream> {
    let sequence = sent + 1;
    messages.send(AgentReport { sequence, begins_snapshot: false, ends_snapshot: false, ..message }).await.ok()?;
    let reply = replies.message().await.ok()??;
    (reply.sequence == sequence).then_some((replies, messages, sequence))
}

/// Number of hours by which the agent's clock jumps.
pub const JUMP_HOURS: i64 = 6;

/// A clock that is right for a second, [`JUMP_HOURS`] ahead in the next one, and as many behind in the third.
fn jumping_clock(turn: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let hours = [0, JUMP_HOURS, -JUMP_HOURS][usize::try_from(turn / 20 % 3).unwrap_or_default()];
    u64::try_from(now).unwrap_or_default().saturating_add_signed(hours * 3_600_000)
}

fn message(pod_uid: &str, opened: u64) -> AgentReport {
    let owner = wire::PodContainer { pod_uid: pod_uid.to_owned(), container_id: String::new() };
    AgentReport {
        node: "node-1".to_owned(),
        epoch: vec![7; 16],
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: Some(wire::CaptureState {
            mode: wire::Mode::Ebpf.into(),
            reason: wire::Reason::Supported.into(),
            attach: "SockOps".to_owned(),
            seen: opened,
            ..wire::CaptureState::default()
        }),
        identities: vec![wire::Identity {
            cgroup_id: 5,
            cgroup_path: format!("/kubepods.slice/kubepods-pod{pod_uid}.slice"),
            owner: Some(wire::identity::Owner::PodContainer(owner)),
        }],
        flows: vec![wire::Flow {
            cgroup_id: 5,
            netns: 9,
            role: wire::Role::Client.into(),
            local_ip: vec![10, 244, 0, 1],
            remote_ip: vec![192, 0, 2, 9],
            port: 443,
            counters: Some(wire::Counters { opened, closed: opened, methods: 1, ..wire::Counters::default() }),
            ..wire::Flow::default()
        }],
        ..AgentReport::default()
    }
}
