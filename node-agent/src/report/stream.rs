//! Connection to the operator: connects, sends one message at a time, waits for its reply, and reconnects.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use report::v1alpha1::{AgentReport, CollectorReply, collector_client::CollectorClient};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming, transport::Endpoint};

use super::{
    credentials::{Credentials, CredentialsError},
    operator_url::Operator,
    session::Session,
    wire,
};
use crate::{
    backoff::Backoff,
    endpoints::ReportMetrics,
    epoch,
    observation::{Observation, SharedObservation},
};

/// Timeouts of a reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Timeout of a connection attempt, and of an HTTP/2 ping.
    pub connect: Duration,
    /// Time after which a stream with an unanswered message is closed.
    pub reply: Duration,
    /// Maximum time without a message, and the time between HTTP/2 pings.
    pub silence: Duration,
    /// Minimum and maximum time between two attempts.
    pub retry: (Duration, Duration),
    /// Minimum and maximum time before a new epoch replaces one that the operator has ended. Two agents of the same node
    /// would otherwise end each other's epochs all the time.
    pub new_epoch: (Duration, Duration),
    /// Time for which the first stream waits for the capture's start, to report a known state first.
    pub start: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            reply: Duration::from_secs(10),
            silence: Duration::from_secs(10),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
            new_epoch: (Duration::from_secs(1), Duration::from_secs(5)),
            start: Duration::from_secs(10),
        }
    }
}

/// Reason for the end of a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file for TLS is unusable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No connection.
    #[error("can't connect: {}", innermost(.0))]
    Connect(#[source] tonic::transport::Error),
    /// The operator refused, or the connection broke.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(#[source] Box<tonic::Status>),
    /// The operator did not answer in time.
    #[error("message {sequence} was not answered within {patience:?}")]
    Silent {
        /// Sequence number of the message.
        sequence: u64,
        /// Time waited.
        patience: Duration,
    },
    /// The operator ended the stream.
    #[error("the operator ended the stream")]
    Ended,
    /// The operator acknowledged a message that was never sent.
    #[error("message {replied} was acknowledged, but only {sent} have been sent")]
    Garbage {
        /// Sequence number that the operator acknowledged.
        replied: u64,
        /// Highest sequence number that was sent.
        sent: u64,
    },
}

/// Returns the innermost error, which is the system's: outer errors only wrap it.
fn innermost(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).last().unwrap_or(error).to_string()
}

impl StreamError {
    /// Returns whether the operator asks for a fresh token.
    fn needs_token(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::Unauthenticated)
    }

    /// Returns whether the operator accepts nothing under this epoch any more.
    fn ends_epoch(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::FailedPrecondition)
    }
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
    /// Address of the operator.
    pub operator: Operator,
    /// State to report.
    pub observation: SharedObservation,
    /// Notified when the observation has changed.
    pub changed: Arc<Notify>,
    /// Metrics of the reports.
    pub metrics: ReportMetrics,
    /// Timeouts.
    pub patience: Patience,
}

/// Delays before new epochs are drawn: they grow if the operator ends one epoch after the other.
struct NewEpochs {
    backoff: Backoff,
    last: Option<Instant>,
}

impl NewEpochs {
    /// Time after which an epoch counts as uncontested: the next delay is short again.
    const UNDISPUTED: Duration = Duration::from_mins(1);

    fn new((min, max): (Duration, Duration)) -> Self {
        Self { backoff: Backoff::new(min, max), last: None }
    }

    fn next_delay(&mut self) -> Duration {
        if self.last.replace(Instant::now()).is_some_and(|last| last.elapsed() >= Self::UNDISPUTED) {
            self.backoff.reset();
        }
        self.backoff.next_delay()
    }
}

/// An open stream.
struct Stream {
    messages: mpsc::Sender<AgentReport>,
    replies: Streaming<CollectorReply>,
    patience: Duration,
}

impl Reporter {
    /// Reports until `closing` becomes true and everything has been reported. Does not return while the operator can't
    /// be reached: the caller sets a limit.
    pub async fn run(self, mut closing: watch::Receiver<bool>) {
        let operator = &self.operator.uri;
        let endpoint = Endpoint::from(operator.clone())
            .connect_timeout(self.patience.connect)
            .http2_keep_alive_interval(self.patience.silence)
            .keep_alive_timeout(self.patience.connect)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        self.wait_for_start(&mut closing).await;
        let mut backoff = Backoff::new(self.patience.retry.0, self.patience.retry.1);
        let mut epochs = NewEpochs::new(self.patience.new_epoch);
        loop {
            let error = match self.stream(&endpoint, &mut backoff, &mut closing).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let (was_connected, _) = self.metrics.connections();
            self.metrics.disconnected();
            let (ends_epoch, closes) = (error.ends_epoch(), *closing.borrow());
            if ends_epoch && closes {
                // An agent that is ending was replaced by its successor.
                tracing::info!(%operator, "another agent of this node reports; nothing more is reported: {error}");
                return;
            }
            let delay = match (closes, ends_epoch) {
                (true, _) => self.patience.retry.0,
                (false, true) => epochs.next_delay(),
                (false, false) => backoff.next_delay(),
            };
            if error.needs_token() && was_connected {
                // A token expires about once an hour, and the kubelet has written the next one by then.
                tracing::info!(%operator, "the operator asks for a fresh token: {error}");
            } else {
                tracing::warn!(%operator, ?delay, "the report stream ended and is opened again: {error}");
            }
            tokio::select! {
                () = sleep(delay) => {}
                // A shutdown ends the delay, so that the last report is sent at once.
                _ = closing.wait_for(|closing| *closing), if !closes => {}
            }
            if ends_epoch {
                self.draw_epoch();
            }
        }
    }

    /// Continues under a new epoch. The counters do not change: a snapshot reports all of them.
    fn draw_epoch(&self) {
        match epoch::draw() {
            Ok(epoch) => {
                tracing::warn!(
                    "another agent has reported for this node; this one goes on under a new epoch. If this happens again \
                     and again, look for a second agent with --node-name {:?}, or for a stranger at the operator's port",
                    self.node
                );
                self.observation.lock().rename_epoch(epoch);
            }
            Err(error) => tracing::error!(%error, "can't draw random bytes for a new epoch; trying again"),
        }
    }

    /// Stores the cluster's own networks, if they are news.
    fn take_networks(&self, reply: &CollectorReply) {
        let Some(networks) = &reply.own_networks else { return };
        if networks.omitted > 0 {
            let omitted = networks.omitted;
            tracing::warn!(
                omitted,
                "the cluster has more public networks than an agent can store: flows to them may be folded"
            );
        }
        self.observation.lock().own_networks = wire::own_networks(networks);
    }

    async fn wait_for_start(&self, closing: &mut watch::Receiver<bool>) {
        let started = async {
            while !self.observation.lock().capture.is_decided() {
                self.changed.notified().await;
            }
        };
        tokio::select! {
            () = started => {}
            () = sleep(self.patience.start) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }

    /// Runs one stream to its end. Returns without an error only if everything was reported and the agent is closing.
    async fn stream(
        &self,
        endpoint: &Endpoint,
        backoff: &mut Backoff,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<(), StreamError> {
        let mut session = Session::new(&self.node);
        let first = next(&mut session, &mut self.observation.lock());
        let sequence = first.sequence;
        let mut stream = open(endpoint, self.operator.credentials.as_ref(), first, self.patience.reply).await?;
        session.set_counter_interval(stream.reply(sequence, |reply| self.take_networks(reply)).await?);
        backoff.reset();
        self.metrics.connected();
        self.metrics.sent();
        tracing::info!(operator = %self.operator.uri, "reporting");
        let mut alive_until = Instant::now() + self.patience.silence;
        loop {
            if *closing.borrow() {
                session.set_counter_interval(Duration::ZERO);
            }
            let (message, next_due) = {
                let mut observation = self.observation.lock();
                let now = Instant::now();
                let due = session.has_news(&observation, now.into_std()) || now >= alive_until;
                let message = due.then(|| next(&mut session, &mut observation));
                (message, session.next_due(&observation).map(Instant::from_std))
            };
            if let Some(message) = message {
                let sequence = message.sequence;
                stream.messages.send(message).await.map_err(|_| StreamError::Ended)?;
                session.set_counter_interval(stream.reply(sequence, |reply| self.take_networks(reply)).await?);
                self.metrics.sent();
                alive_until = Instant::now() + self.patience.silence;
            } else if *closing.borrow() {
                return Ok(());
            } else {
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(next_due.map_or(alive_until, |due| due.min(alive_until))) => {}
                    _ = closing.wait_for(|closing| *closing) => {}
                    unasked = stream.replies.message() => check_unasked(unasked?, session.sequence())?,
                }
            }
        }
    }
}

/// Returns the next message, with its time by both of the node's clocks. The ages in it are by the monotonic clock.
fn next(session: &mut Session, observation: &mut Observation) -> AgentReport {
    let message = session.next(observation, std::time::Instant::now());
    AgentReport { sent_unix_ms: wire::unix_ms(SystemTime::now()), ..message }
}

async fn open(
    endpoint: &Endpoint,
    credentials: Option<&Credentials>,
    first: AgentReport,
    patience: Duration,
) -> Result<Stream, StreamError> {
    let sequence = first.sequence;
    let mut endpoint = endpoint.clone();
    let mut authorization = None;
    if let Some(credentials) = credentials {
        endpoint = endpoint.tls_config(credentials.tls(patience)?).map_err(StreamError::Connect)?;
        authorization = Some(credentials.authorization()?);
    }
    let channel = endpoint.connect().await.map_err(StreamError::Connect)?;
    let (messages, queue) = mpsc::channel(1);
    // Sent before the call, because an operator may answer only after the first message.
    messages.try_send(first).map_err(|_| StreamError::Ended)?;
    let mut client = CollectorClient::new(channel);
    let mut request = Request::new(ReceiverStream::new(queue));
    if let Some(authorization) = authorization {
        request.metadata_mut().insert("authorization", authorization);
    }
    let replies = timeout(patience, client.report(request))
        .await
        .map_err(|_| StreamError::Silent { sequence, patience })??
        .into_inner();
    Ok(Stream { messages, replies, patience })
}

impl Stream {
    /// Waits for the reply to a message; older ones may come before. Each is passed to `take`. Returns the time between two
    /// reports of counters that it asks for.
    async fn reply(&mut self, sequence: u64, take: impl Fn(&CollectorReply)) -> Result<Duration, StreamError> {
        let answered = async {
            loop {
                let reply = self.replies.message().await?.ok_or(StreamError::Ended)?;
                if reply.sequence > sequence {
                    return Err(StreamError::Garbage { replied: reply.sequence, sent: sequence });
                }
                take(&reply);
                if reply.sequence == sequence {
                    return Ok(Duration::from_millis(reply.counter_interval_ms.into()));
                }
            }
        };
        timeout(self.patience, answered).await.unwrap_or(Err(StreamError::Silent { sequence, patience: self.patience }))
    }
}

/// Checks a reply that no message waits for: repeated ones are ignored.
fn check_unasked(reply: Option<CollectorReply>, sent: u64) -> Result<(), StreamError> {
    let replied = reply.ok_or(StreamError::Ended)?.sequence;
    if replied > sent { Err(StreamError::Garbage { replied, sent }) } else { Ok(()) }
}
