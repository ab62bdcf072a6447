//! Receives the agents' reports: one gRPC stream per node, into the ledger and the observations.
//!
//! `accept`, `places`, `waiting_room` and `connection` bound the connections, `identity` and `access` authenticate their
//! callers, `byte_budget` and `first_messages` bound messages in memory. `decode` validates a message, `foreign_pods` and
//! `flow_limits` leave out parts of it, and `session` applies it. `port` closes the port while another operator may take over.

mod accept;
mod access;
mod byte_budget;
mod connection;
mod decode;
mod first_messages;
mod flow_limits;
mod foreign_pods;
pub mod identity;
mod inputs;
#[cfg(test)]
mod mutations;
mod own_networks;
mod places;
mod port;
mod refusals;
mod session;
mod waiting_room;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use report::v1alpha1::{AgentReport, CollectorReply, collector_server};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use self::{
    accept::Acceptor,
    access::Caller,
    byte_budget::{Budgeted, ByteBudget, MAX_MESSAGE_BYTES},
    connection::{Connection, ConnectionHandle},
    first_messages::{FirstMessages, Turn},
    own_networks::Unsent,
    refusals::Refusals,
    session::{Session, Sessions},
};
pub use self::{
    access::Access,
    inputs::{CollectorInputs, SILENCE},
    own_networks::{KnownNetworks, keep_own_networks},
    port::CollectorPort,
};

/// Interval of keep-alive pings to a silent agent, and their timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Window of a connection and its stream: the bytes that HTTP/2 buffers before they are read. Messages on the way beyond it
/// wait at the agent.
const WINDOW_BYTES: u32 = 64 << 10;
/// Maximum size of a request's headers. A token has less than 2 KiB.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Time for which a stream's last status waits for room.
const LAST_STATUS: Duration = Duration::from_secs(2);
/// Maximum number of streams that a client may reset before they are handled, and with errors of its own.
const MAX_RESET_STREAMS: usize = 8;

/// Serves the agents that connect to `listener` until `stop` is done, which ends all streams. Agents reconnect.
///
/// # Errors
/// Returns an error if the transport fails as a whole. A failing stream affects no other stream.
pub async fn serve(
    listener: TcpListener,
    inputs: CollectorInputs,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    // Open streams would block a graceful shutdown: they are stopped first.
    let (stopping, stopped) = watch::channel(false);
    let limits = inputs.limits.clone();
    let refusals = Refusals::new(inputs.metrics.clone());
    let acceptor = Acceptor::new(inputs.tls.clone(), &limits, refusals.clone());
    let (connections, accepted) = mpsc::channel::<Connection>(16);
    let accepting = tokio::spawn(acceptor.run(listener, connections));
    let end_accepting = accepting.abort_handle();
    let sessions = Sessions::new(&inputs);
    let first_messages = FirstMessages::default();
    let collector = Collector { sessions, first_messages, inputs: Arc::new(inputs), refusals, stopped };
    let inner = collector_server::CollectorServer::new(collector).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let budget = ByteBudget::new(limits.collector_max_bytes, limits.message_timeout());
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(1))
        .initial_stream_window_size(Some(WINDOW_BYTES))
        .initial_connection_window_size(Some(WINDOW_BYTES))
        .http2_max_header_list_size(Some(MAX_HEADER_BYTES))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESET_STREAMS))
        .http2_max_local_error_reset_streams(Some(MAX_RESET_STREAMS))
        .serve_with_incoming_shutdown(
            Budgeted { inner, budget },
            ReceiverStream::new(accepted).map(Ok::<_, std::convert::Infallible>),
            async move {
                stop.await;
                // Closes the port before the last stream has ended.
                end_accepting.abort();
                stopping.send_replace(true);
            },
        )
        .await;
    accepting.abort();
    served
}

struct Collector {
    sessions: Sessions,
    first_messages: FirstMessages,
    inputs: Arc<CollectorInputs>,
    refusals: Refusals,
    stopped: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl collector_server::Collector for Collector {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<CollectorReply, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<AgentReport>>) -> Result<Response<Self::ReportStream>, Status> {
        let connection = request.extensions().get::<ConnectionHandle>().cloned();
        let connection = connection.ok_or_else(|| Status::internal("the connection is unknown"))?;
        if !connection.open() {
            return Err(Status::resource_exhausted("a connection has one stream; connect again for another"));
        }
        let ends = EndsConnection(connection);
        let authenticated = self.inputs.access.authenticate(request.metadata()).await;
        let caller = authenticated.inspect_err(|status| self.refusals.stream(&status.message()))?;
        let turn = caller.pod().map(|pod| self.first_messages.begin(pod));
        let own_networks = Unsent::new(self.inputs.own_networks.clone());
        let (replies, outgoing) = mpsc::channel(1);
        let (inputs, refusals) = (Arc::clone(&self.inputs), self.refusals.clone());
        let mut conversation = Conversation {
            sessions: self.sessions.clone(),
            caller,
            incoming: request.into_inner(),
            own_networks,
            stopped: self.stopped.clone(),
            inputs,
        };
        tokio::spawn(async move {
            let end = conversation.run(turn, &ends.0, &replies).await;
            // Gives back the bytes of the last message.
            drop(conversation);
            if let Err(status) = end {
                if is_refusal(&status) {
                    refusals.stream(&status.message());
                }
                // The agent may be gone already, or read nothing.
                let _ = timeout(LAST_STATUS, replies.send(Err(status))).await;
            }
            drop(ends);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Ends a stream's connection when dropped.
struct EndsConnection(ConnectionHandle);

impl Drop for EndsConnection {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Returns whether a stream ended for a fault of its sender.
fn is_refusal(status: &Status) -> bool {
    use tonic::Code::{InvalidArgument, OutOfRange, PermissionDenied};
    matches!(status.code(), InvalidArgument | OutOfRange | PermissionDenied)
}

/// One stream, from its first message to its end.
struct Conversation {
    sessions: Sessions,
    caller: Caller,
    incoming: Streaming<AgentReport>,
    own_networks: Unsent,
    stopped: watch::Receiver<bool>,
    inputs: Arc<CollectorInputs>,
}

impl Conversation {
    async fn run(
        &mut self,
        turn: Option<Turn>,
        connection: &ConnectionHandle,
        replies: &mpsc::Sender<Result<CollectorReply, Status>>,
    ) -> Result<(), Status> {
        let first_message = self.inputs.limits.message_timeout();
        let displaced = async {
            match &turn {
                Some(turn) => turn.displaced().await,
                None => std::future::pending().await,
            }
        };
        let first = tokio::select! {
            first = next(&mut self.incoming, first_message) => first?,
            () = displaced => return Err(Status::aborted("another stream of the same pod waits for its first message")),
            _ = self.stopped.wait_for(|stopped| *stopped) => return Err(Status::unavailable("the operator stops")),
        };
        drop(turn);
        let Some(first) = first else { return Ok(()) };
        self.caller.check_node(&first.node)?;
        self.check_exists(&first.node)?;
        let mut session = Session::open(self.sessions.clone(), &first)?;
        connection.establish();
        let node = first.node.clone();
        let mut report = first;
        loop {
            let sequence = session.take_in(report).await?;
            let (own_networks, counter_interval_ms) = (self.own_networks.take(), millis(session.counter_interval()));
            let reply = CollectorReply { sequence, own_networks, counter_interval_ms };
            // A client that reads no replies would hold the bytes of its last message without end.
            match timeout(self.inputs.limits.message_timeout(), replies.send(Ok(reply))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Status::deadline_exceeded("the replies are not read; connect again")),
            }
            let expires = self.caller.expires().map(Instant::from_std);
            let next = tokio::select! {
                next = next(&mut self.incoming, self.inputs.silence) => next?,
                () = session.replaced() => {
                    return Err(Status::aborted("another stream of the same node has taken this one's place"));
                }
                () = async { sleep_until(expires.unwrap_or_else(Instant::now)).await }, if expires.is_some() => {
                    return Err(Status::unauthenticated("the token has expired; come again with a fresh one"));
                }
                _ = self.stopped.wait_for(|stopped| *stopped) => {
                    return Err(Status::unavailable("the operator stops; connect again"));
                }
            };
            let Some(next) = next else { return Ok(()) };
            // It may be gone by now. A message for another node is refused for that.
            self.check_exists(&node)?;
            report = next;
        }
    }

    fn check_exists(&self, node: &str) -> Result<(), Status> {
        if (self.inputs.is_node)(node) {
            Ok(())
        } else {
            Err(Status::permission_denied(format!("node: {node:?} is no Node of this cluster")))
        }
    }
}

/// Returns the next report; `None` at the stream's end.
async fn next(incoming: &mut Streaming<AgentReport>, patience: Duration) -> Result<Option<decode::Report>, Status> {
    let Ok(next) = timeout(patience, incoming.next()).await else {
        return Err(Status::deadline_exceeded(format!("no message came within {patience:?}; connect again")));
    };
    let Some(message) = next.transpose()? else { return Ok(None) };
    decode::decode(message).map(Some).map_err(|invalid| Status::invalid_argument(invalid.to_string()))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
