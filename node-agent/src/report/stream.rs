//! The connection to the operator: dials, sends one message at a time, waits for its reply, dials again.

use std::{sync::Arc, time::Duration};

use report::v1alpha1::{AgentReport, CollectorReply, collector_client::CollectorClient};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Endpoint, Uri},
};

use super::session::Session;
use crate::{backoff::Backoff, endpoints::ReportMetrics, observation::Shared};

/// How long a connection attempt, and a reply, may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a message may stay unanswered before the stream is given up.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// The longest silence.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// HTTP/2 pings, for a peer that is gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Between attempts.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection.
    #[error("can't connect: {0}")]
    Connect(#[source] tonic::transport::Error),
    /// The operator said no, or the connection broke.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[source] Box<tonic::Status>),
    /// Silence.
    #[error("message {sequence} was not answered within {} s", REPLY_DEADLINE.as_secs())]
    Silent {
        /// Which message.
        sequence: u64,
    },
    /// The operator ended the stream.
    #[error("the operator ended the stream")]
    Ended,
    /// A reply to what was never sent.
    #[error("message {replied} was acknowledged, but only {sent} have been sent")]
    Garbage {
        /// What the operator says it has.
        replied: u64,
        /// What it can have at most.
        sent: u64,
    },
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Reports an observation to one operator.
pub struct Reporter {
    /// The Kubernetes node's name.
    pub node: String,
    /// Where the operator listens.
    pub operator: Uri,
    /// What is reported.
    pub observation: Shared,
    /// Says that the observation has changed.
    pub changed: Arc<Notify>,
    /// What becomes of the reports.
    pub metrics: ReportMetrics,
}

/// An open stream.
struct Stream {
    messages: mpsc::Sender<AgentReport>,
    replies: Streaming<CollectorReply>,
}

impl Reporter {
    /// Reports until `closing` becomes true and all has been told. Does not return while the operator can't be
    /// reached: the caller bounds that.
    pub async fn run(self, mut closing: watch::Receiver<bool>) {
        let endpoint = Endpoint::from(self.operator.clone())
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(CONNECT_DEADLINE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let error = match self.stream(&endpoint, &mut backoff, &mut closing).await {
                Ok(()) => return,
                Err(error) => error,
            };
            self.metrics.disconnected();
            let delay = if *closing.borrow() { RETRY_MIN } else { backoff.next_delay() };
            tracing::warn!(operator = %self.operator, ?delay, "the report stream ended and is opened again: {error}");
            let closes = *closing.borrow();
            tokio::select! {
                () = sleep(delay) => {}
                // What is to be said is said at once or never.
                _ = closing.wait_for(|closing| *closing), if !closes => {}
            }
        }
    }

    /// One stream from its beginning to its end: without error only when all has been told and closing was asked for.
    async fn stream(
        &self,
        endpoint: &Endpoint,
        backoff: &mut Backoff,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), StreamError> {
        let mut session = Session::new(&self.node);
        let first = session.next(&mut self.observation.lock(), std::time::Instant::now());
        let sequence = first.sequence;
        let mut stream = open(endpoint, first).await?;
        stream.reply(sequence).await?;
        backoff.reset();
        self.metrics.connected();
        self.metrics.sent();
        tracing::info!(operator = %self.operator, "reporting");
        let mut alive_until = Instant::now() + SIGN_OF_LIFE;
        loop {
            let message = {
                let mut observation = self.observation.lock();
                let due = session.has_news(&observation) || Instant::now() >= alive_until;
                due.then(|| session.next(&mut observation, std::time::Instant::now()))
            };
            if let Some(message) = message {
                let sequence = message.sequence;
                stream.messages.send(message).await.map_err(|_| StreamError::Ended)?;
                stream.reply(sequence).await?;
                self.metrics.sent();
                alive_until = Instant::now() + SIGN_OF_LIFE;
            } else if *closing.borrow() {
                return Ok(());
            } else {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(alive_until) => {}
                    _ = closing.wait_for(|closing| *closing) => {}
                    unasked = stream.replies.message() => check_unasked(unasked?, session.sequence())?,
                }
            }
        }
    }
}

async fn open(endpoint: &Endpoint, first: AgentReport) -> Result<Stream, StreamError> {
    let sequence = first.sequence;
    let channel = endpoint.connect().await.map_err(StreamError::Connect)?;
    let (messages, queue) = mpsc::channel(1);
    // Before the call: an operator may want to see the first message before it answers at all.
    messages.try_send(first).map_err(|_| StreamError::Ended)?;
    let mut client = CollectorClient::new(channel);
    let replies = timeout(REPLY_DEADLINE, client.report(ReceiverStream::new(queue)))
        .await
        .map_err(|_| StreamError::Silent { sequence })??
        .into_inner();
    Ok(Stream { messages, replies })
}

impl Stream {
    /// Waits for the reply to a message; older ones may come before.
    async fn reply(&mut self, sequence: u64) -> Result<(), StreamError> {
        let answered = async {
            loop {
                let reply = self.replies.message().await?.ok_or(StreamError::Ended)?;
                if reply.sequence > sequence {
                    return Err(StreamError::Garbage { replied: reply.sequence, sent: sequence });
                }
                if reply.sequence == sequence {
                    return Ok(());
                }
            }
        };
        timeout(REPLY_DEADLINE, answered).await.unwrap_or(Err(StreamError::Silent { sequence }))
    }
}

/// A reply that nothing waits for: repetitions do no harm.
fn check_unasked(reply: Option<CollectorReply>, sent: u64) -> Result<(), StreamError> {
    let replied = reply.ok_or(StreamError::Ended)?.sequence;
    if replied > sent { Err(StreamError::Garbage { replied, sent }) } else { Ok(()) }
}
