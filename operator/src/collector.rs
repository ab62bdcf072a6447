//! Receives the agents' reports: one gRPC stream per node, into the ledger and the observations.

mod authorize;
mod decode;
mod own_networks;
mod session;

use std::{future::Future, pin::Pin, time::Duration};

use report::v1alpha1::{AgentReport, CollectorReply, collector_server};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub use self::own_networks::{KnownNetworks, keep_own_networks};
use self::{
    own_networks::Unsent,
    session::{Session, Sessions},
};
use crate::{observation::Observations, shared_ledger::SharedLedger};

/// Maximum size of one message on the wire.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Interval of keep-alive pings to a silent agent, and their timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Maximum time without a message from an agent, including the first one. Agents send a heartbeat every 10 s.
pub const SILENCE: Duration = Duration::from_secs(25);

/// Serves the agents that connect to `listener` until `stop` is done, which ends all streams. Each stream receives
/// `own_networks`. It also ends after `silence` without a message. Agents reconnect.
///
/// # Errors
/// Returns an error if the transport fails as a whole. A failing stream affects no other stream.
pub async fn serve(
    listener: TcpListener,
    shared_ledger: SharedLedger,
    observations: Observations,
    own_networks: watch::Receiver<KnownNetworks>,
    silence: Duration,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    // Open streams would block a graceful shutdown: they are stopped first.
    let (stopping, stopped) = watch::channel(false);
    let collector = Collector { sessions: Sessions::new(shared_ledger, observations), own_networks, silence, stopped };
    let service = collector_server::CollectorServer::new(collector).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(16))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            stop.await;
            stopping.send_replace(true);
        })
        .await
}

struct Collector {
    sessions: Sessions,
    own_networks: watch::Receiver<KnownNetworks>,
    silence: Duration,
    stopped: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl collector_server::Collector for Collector {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<CollectorReply, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let caller = authorize::authorize(&request)?;
        let incoming = request.into_inner();
        let (replies, outgoing) = mpsc::channel(1);
        let sessions = self.sessions.clone();
        let stopped = self.stopped.clone();
        let messages = Messages { incoming, silence: self.silence };
        let own_networks = Unsent::new(self.own_networks.clone());
        tokio::spawn(async move {
            if let Err(status) = converse(sessions, caller, messages, &replies, own_networks, stopped).await {
                // The agent may be gone already, and nothing receives the status then.
                let _ = replies.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Messages of one agent.
struct Messages {
    incoming: Streaming<AgentReport>,
    silence: Duration,
}

impl Messages {
    /// Returns the next message; `None` at the stream's end.
    async fn next(&mut self) -> Result<Option<AgentReport>, Status> {
        let Ok(next) = tokio::time::timeout(self.silence, self.incoming.next()).await else {
            let silence = self.silence;
            return Err(Status::deadline_exceeded(format!("no message came within {silence:?}; connect again")));
        };
        next.transpose()
    }
}

/// Handles one stream, from its first message to its end.
async fn converse(
    sessions: Sessions,
    caller: authorize::Caller,
    mut messages: Messages,
    replies: &mpsc::Sender<Result<CollectorReply, Status>>,
    mut own_networks: Unsent,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Status> {
    let Some(first) = messages.next().await? else { return Ok(()) };
    let first = decode::decode(first).map_err(|invalid| refuse(&invalid))?;
    authorize::may_report(&caller, &first.node)?;
    let mut session = Session::open(sessions, &first)?;
    let mut report = first;
    loop {
        let sequence = session.take_in(report).await?;
        let (own_networks, counter_interval_ms) = (own_networks.take(), millis(session.counter_interval()));
        let reply = CollectorReply { sequence, own_networks, counter_interval_ms };
        if replies.send(Ok(reply)).await.is_err() {
            return Ok(());
        }
        let next = tokio::select! {
            next = messages.next() => next?,
            () = session.replaced() => {
                return Err(Status::aborted("another stream of the same node has taken this one's place"));
            }
            _ = stopped.wait_for(|stopped| *stopped) => {
                return Err(Status::unavailable("the operator stops; connect again"));
            }
        };
        let Some(next) = next else { return Ok(()) };
        report = decode::decode(next).map_err(|invalid| refuse(&invalid))?;
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn refuse(invalid: &decode::Invalid) -> Status {
    tracing::warn!(%invalid, "refused an agent's report");
    Status::invalid_argument(invalid.to_string())
}

#[cfg(test)]
mod tests {
    use report::v1alpha1::{CaptureState, Mode, Reason, collector_client::CollectorClient};

    use super::*;

    #[tokio::test]
    async fn an_agent_that_falls_silent_is_not_connected_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let observations = Observations::default();
        let mut changed = observations.subscribe();
        let silence = Duration::from_millis(200);
        let (_sender, own_networks) = watch::channel(None);
        let shared_ledger = SharedLedger::default();
        let serving =
            serve(listener, shared_ledger, observations.clone(), own_networks, silence, std::future::pending());
        let serving = tokio::spawn(serving);
        let mut client = CollectorClient::connect(format!("http://{address}")).await.expect("it listens");
        let (messages, queue) = mpsc::channel(1);
        let first = AgentReport {
            node: "node-1".to_owned(),
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
        };
        messages.send(first).await.expect("the queue is open");
        let mut replies = client.report(ReceiverStream::new(queue)).await.expect("it answers").into_inner();
        assert_eq!(replies.message().await.expect("the message is good").map(|reply| reply.sequence), Some(1));
        // The queue stays open, the connection answers pings, but no message follows.
        let end = replies.message().await.expect_err("an agent that says nothing is given up");
        assert_eq!(end.code(), tonic::Code::DeadlineExceeded, "{end}");
        while observations.get("node-1").is_some_and(|node| node.connected) {
            changed.changed().await.expect("the observations live");
        }
        drop(messages);
        serving.abort();
    }
}
