//! All simulated agents, and what they measure together.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};

use super::{
    agent::{Agent, Order},
    agent_flows::{AgentFlows, ConversationEnd},
    conversation::Clock,
};

/// Counts of all agents since the start, and times of replies since they were last taken.
#[derive(Debug, Default)]
pub struct FleetStatistics {
    connected: AtomicU64,
    streams: AtomicU64,
    messages: AtomicU64,
    flow_updates: AtomicU64,
    given_up: AtomicU64,
    reply_milliseconds: Mutex<Vec<f64>>,
    broken: Mutex<BTreeMap<String, u64>>,
}

/// Counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetCounts {
    /// Messages that were acknowledged.
    pub messages: u64,
    /// Flows in them.
    pub flow_updates: u64,
    /// Streams that agents gave up because a reply was late.
    pub given_up: u64,
}

impl FleetStatistics {
    pub(super) fn connected(&self) {
        self.connected.fetch_add(1, Relaxed);
        self.streams.fetch_add(1, Relaxed);
    }

    pub(super) fn disconnected(&self) {
        self.connected.fetch_sub(1, Relaxed);
    }

    pub(super) fn given_up(&self) {
        self.given_up.fetch_add(1, Relaxed);
    }

    pub(super) fn broken(&self, reason: String) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(super) fn acknowledged(&self, after: Duration, flows: usize) {
        self.messages.fetch_add(1, Relaxed);
        self.flow_updates.fetch_add(flows as u64, Relaxed);
        let milliseconds = after.as_secs_f64() * 1e3;
        self.reply_milliseconds.lock().unwrap_or_else(PoisonError::into_inner).push(milliseconds);
    }

    /// Returns the counts up to now.
    #[must_use]
    pub fn counts(&self) -> FleetCounts {
        FleetCounts {
            messages: self.messages.load(Relaxed),
            flow_updates: self.flow_updates.load(Relaxed),
            given_up: self.given_up.load(Relaxed),
        }
    }

    /// Number of agents of which the operator has acknowledged a message on the present stream.
    #[must_use]
    pub fn connected_agents(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    /// Number of streams so far on which a message was acknowledged.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.streams.load(Relaxed)
    }

    /// Returns the times of replies since the last call, in milliseconds.
    #[must_use]
    pub fn take_reply_times(&self) -> Vec<f64> {
        std::mem::take(&mut *self.reply_milliseconds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the reasons for which streams broke since the last call, with their number.
    #[must_use]
    pub fn take_broken(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.broken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All simulated agents. They end when it is dropped.
pub struct Fleet {
    /// Measurements.
    pub statistics: Arc<FleetStatistics>,
    clock: Clock,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    waiting: Vec<mpsc::UnboundedReceiver<Order>>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Makes agents that do not report yet.
    #[must_use]
    pub fn new(nodes: usize, clock: Clock) -> Self {
        let (orders, waiting) = (0..nodes).map(|_| mpsc::unbounded_channel()).unzip();
        Self { statistics: Arc::default(), clock, orders, waiting, tasks: JoinSet::new() }
    }

    /// Notes that a conversation has begun on a node.
    pub fn open(&self, node: usize, end: ConversationEnd) {
        self.order(node, Order::Open(end));
    }

    /// Breaks all streams; the agents connect again at once.
    pub fn reconnect(&self) {
        (0..self.orders.len()).for_each(|node| self.order(node, Order::Reconnect));
    }

    fn order(&self, node: usize, order: Order) {
        // An agent runs until it is dropped with its sender.
        let _ = self.orders[node].send(order);
    }

    /// Starts the agents, spread over a time.
    pub fn start(&mut self, operator: SocketAddr, spread: Duration) {
        let waiting = std::mem::take(&mut self.waiting);
        let count = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        for ((node, orders), place) in waiting.into_iter().enumerate().zip(0u32..) {
            let (clock, statistics) = (self.clock, Arc::clone(&self.statistics));
            let agent = Agent { flows: AgentFlows::new(node), operator, orders, clock, statistics };
            self.tasks.spawn(agent.run(spread * place / count));
        }
    }
}
