//! Stream of a simulated agent: connects, sends one message at a time, waits for its reply, and reconnects with a snapshot.
//! Timeouts and delays are those of an agent (`Patience` in `node-agent/src/report/stream.rs`).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use report::v1alpha1::{AgentReport, CollectorReply, collector_client::CollectorClient};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Endpoint};

use super::{
    agent_flows::{AgentFlows, ConversationEnd},
    conversation::Clock,
    fleet::FleetStatistics,
};

/// Timeout of a connection attempt, and of an HTTP/2 ping.
const CONNECT: Duration = Duration::from_secs(5);
/// Time after which a stream with an unanswered message is given up.
const REPLY: Duration = Duration::from_secs(10);
/// Maximum time without a message, and the time between HTTP/2 pings.
const SILENCE: Duration = Duration::from_secs(10);
/// Minimum and maximum time between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Interval at which an agent reports changed counters.
const INTERVAL: Duration = Duration::from_secs(1);

/// Order to an agent.
#[derive(Debug)]
pub enum Order {
    /// A conversation has begun on the node.
    Open(ConversationEnd),
    /// Break the stream and connect at once.
    Reconnect,
}

/// A simulated agent.
pub struct Agent {
    /// Its flows.
    pub flows: AgentFlows,
    /// Address of the operator.
    pub operator: SocketAddr,
    /// Orders that it has not carried out yet.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Time of the run.
    pub clock: Clock,
    /// Receiver of its measurements.
    pub statistics: Arc<FleetStatistics>,
}

/// Reason for the end of a stream.
enum StreamEnd {
    /// An order to reconnect.
    Ordered,
    /// No answer in time.
    GivenUp,
    /// Anything else.
    Broken(String),
    /// The run is over: nothing orders any more.
    Over,
}

impl From<Status> for StreamEnd {
    fn from(status: Status) -> Self {
        Self::Broken(format!("{}: {}", status.code(), status.message()))
    }
}

/// An open stream.
struct Stream {
    messages: mpsc::Sender<AgentReport>,
    replies: Streaming<CollectorReply>,
}

impl Agent {
    /// Reports after `delay` until the run is over.
    pub async fn run(mut self, delay: Duration) {
        sleep(delay).await;
        let mut delays = delays();
        loop {
            let mut is_connected = false;
            let end = self.stream(&mut is_connected).await;
            if is_connected {
                self.statistics.disconnected();
                delays = self::delays();
            }
            match end {
                StreamEnd::Over => return,
                StreamEnd::Ordered => continue,
                StreamEnd::GivenUp => self.statistics.given_up(),
                StreamEnd::Broken(reason) => self.statistics.broken(reason),
            }
            sleep(delays.next().unwrap_or(RETRY.1).min(RETRY.1)).await;
        }
    }

    /// Runs one stream to its end.
    async fn stream(&mut self, is_connected: &mut bool) -> StreamEnd {
        match self.report(is_connected).await {
            Ok(()) => StreamEnd::Over,
            Err(end) => end,
        }
    }

    async fn report(&mut self, is_connected: &mut bool) -> Result<(), StreamEnd> {
        self.take_orders()?;
        self.flows.begin_stream();
        let first = self.next();
        let flows = first.flows.len();
        let began = Instant::now();
        let mut stream = open(self.operator, first).await?;
        self.flows.set_counter_interval(stream.reply(1).await?);
        self.statistics.acknowledged(began.elapsed(), flows);
        self.statistics.connected();
        *is_connected = true;
        let mut due = interval_at(Instant::now() + INTERVAL, INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive_until = Instant::now() + SILENCE;
        loop {
            if !self.flows.is_urgent() {
                tokio::select! {
                    _ = due.tick() => {}
                    order = self.orders.recv() => {
                        let Some(order) = order else { return Ok(()) };
                        self.obey(order)?;
                        self.take_orders()?;
                        if !self.flows.is_urgent() { continue }
                    }
                    unasked = stream.replies.message() => {
                        unasked?;
                        return Err(StreamEnd::Broken("the operator ended the stream".to_owned()));
                    }
                }
            }
            self.take_orders()?;
            let message = self.next();
            // A message without content is due as a heartbeat only.
            if message.flows.is_empty() && !message.ends_snapshot && Instant::now() < alive_until {
                self.flows.take_back();
                continue;
            }
            let (sequence, flows) = (message.sequence, message.flows.len());
            let began = Instant::now();
            let closed = || StreamEnd::Broken("the stream is closed".to_owned());
            stream.messages.send(message).await.map_err(|_| closed())?;
            self.flows.set_counter_interval(stream.reply(sequence).await?);
            self.statistics.acknowledged(began.elapsed(), flows);
            alive_until = Instant::now() + SILENCE;
        }
    }

    fn next(&mut self) -> AgentReport {
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let message = self.flows.next(self.clock.now());
        AgentReport { sent_unix_ms: u64::try_from(sent).unwrap_or_default(), ..message }
    }

    /// Carries out the orders that wait.
    fn take_orders(&mut self) -> Result<(), StreamEnd> {
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<(), StreamEnd> {
        match order {
            Order::Open(end) => {
                self.flows.open(end);
                Ok(())
            }
            Order::Reconnect => Err(StreamEnd::Ordered),
        }
    }
}

fn delays() -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(RETRY.0).with_max_delay(RETRY.1 / 2);
    builder.with_jitter().without_max_times().build()
}

async fn open(operator: SocketAddr, first: AgentReport) -> Result<Stream, StreamEnd> {
    let unusable = |error: tonic::transport::Error| StreamEnd::Broken(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{operator}")).map_err(unusable)?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(CONNECT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(unusable)?;
    let (messages, queue) = mpsc::channel(1);
    messages.try_send(first).map_err(|error| StreamEnd::Broken(error.to_string()))?;
    let mut client = CollectorClient::new(channel);
    let answer = timeout(REPLY, client.report(ReceiverStream::new(queue))).await;
    let replies = answer.map_err(|_| StreamEnd::GivenUp)??.into_inner();
    Ok(Stream { messages, replies })
}

impl Stream {
    /// Waits for the reply to a message. Returns the time between two reports of changed counters that it asks for, in
    /// milliseconds.
    async fn reply(&mut self, sequence: u64) -> Result<u32, StreamEnd> {
        let answered = async {
            loop {
                let reply = self.replies.message().await?;
                let reply = reply.ok_or_else(|| StreamEnd::Broken("the operator ended the stream".to_owned()))?;
                if reply.sequence >= sequence {
                    return Ok(reply.counter_interval_ms);
                }
            }
        };
        timeout(REPLY, answered).await.unwrap_or(Err(StreamEnd::GivenUp))
    }
}
