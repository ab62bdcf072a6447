//! Takes the agents' reports in: one gRPC stream per node, into the ledger and the observations.

mod authorize;
mod decode;
mod session;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use report::v1alpha1::{AgentReport, CollectorReply, collector_server};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, watch},
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use topology::ledger::Ledger;

use self::session::{Session, Sessions};
use crate::observation::Observations;

/// The most that one message may take on the wire.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// How long a new stream may stay without its first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent agent is asked on the transport's level whether it is still there, and how long it may take.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The account of all agents' flows. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Accounts {
    ledger: Arc<Mutex<Ledger>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { ledger: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Accounts {
    /// The ledger, for those who may wait for it. It is held while a graph is made.
    #[must_use]
    pub fn ledger(&self) -> &Mutex<Ledger> {
        &self.ledger
    }

    /// Tells those who wait that a flow has changed.
    pub fn mark_changed(&self) {
        self.changed.send_replace(());
    }

    /// Marked as changed with every change of a flow.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Serves the agents that connect to `listener` until `stop` is done. Streams end then; agents connect again elsewhere.
///
/// # Errors
/// If the transport fails as a whole; a failing stream harms only itself.
pub async fn serve(
    listener: TcpListener,
    accounts: Accounts,
    observations: Observations,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    // Open streams would hold a graceful shutdown up for ever: they are told first.
    let (stopping, stopped) = watch::channel(false);
    let collector = Collector { sessions: Sessions::new(accounts, observations), stopped };
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
        tokio::spawn(async move {
            if let Err(status) = converse(sessions, caller, incoming, &replies, stopped).await {
                // The agent may be gone already; then nobody is left to be told.
                let _ = replies.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// One stream, from its first message to its end.
async fn converse(
    sessions: Sessions,
    caller: authorize::Caller,
    mut incoming: Streaming<AgentReport>,
    replies: &mpsc::Sender<Result<CollectorReply, Status>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, incoming.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no message came; send a snapshot's first message"))?;
    let Some(first) = first.transpose()? else { return Ok(()) };
    let first = decode::decode(first).map_err(|invalid| refuse(&invalid))?;
    authorize::may_report(&caller, &first.node)?;
    let mut session = Session::open(sessions, &first)?;
    let mut report = first;
    loop {
        let sequence = session.take_in(report).await?;
        if replies.send(Ok(CollectorReply { sequence })).await.is_err() {
            return Ok(());
        }
        let next = tokio::select! {
            next = incoming.next() => next,
            () = session.replaced() => {
                return Err(Status::aborted("another stream of the same node has taken this one's place"));
            }
            _ = stopped.wait_for(|stopped| *stopped) => {
                return Err(Status::unavailable("the operator stops; connect again"));
            }
        };
        let Some(next) = next.transpose()? else { return Ok(()) };
        report = decode::decode(next).map_err(|invalid| refuse(&invalid))?;
    }
}

fn refuse(invalid: &decode::Invalid) -> Status {
    tracing::warn!(%invalid, "refused an agent's report");
    Status::invalid_argument(invalid.to_string())
}
