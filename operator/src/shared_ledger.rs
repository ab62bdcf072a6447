//! The ledger as the tasks of the operator share it. The collector applies reports. The publisher reads it, and evicts
//! expired flows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, watch};
use topology::ledger::{Ledger, News};

/// Account of all agents' flows. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct SharedLedger {
    ledger: Arc<Mutex<Ledger>>,
    structure: Arc<watch::Sender<()>>,
    counters: Arc<watch::Sender<()>>,
    /// Number of agents that report.
    agents: Arc<AtomicUsize>,
}

/// Number of agents up to which each reports counters with each message.
const FEW_AGENTS: usize = 100;
/// Time between two reports of counters per agent beyond that.
const INTERVAL_PER_AGENT: Duration = Duration::from_millis(10);
/// The longest time between two reports of counters.
const MAX_COUNTER_INTERVAL: Duration = Duration::from_secs(30);

impl Default for SharedLedger {
    fn default() -> Self {
        let sender = || Arc::new(watch::Sender::new(()));
        Self { ledger: Arc::default(), structure: sender(), counters: sender(), agents: Arc::default() }
    }
}

impl SharedLedger {
    /// Returns the ledger. Its lock is to be held for a moment only: agents wait for it. A graph is built from a
    /// [`snapshot`](Ledger::snapshot).
    #[must_use]
    pub fn ledger(&self) -> &Mutex<Ledger> {
        &self.ledger
    }

    /// Records the number of agents that report.
    pub fn set_agents(&self, number: usize) {
        self.agents.store(number, Ordering::Relaxed);
    }

    /// Returns the time that agents leave between two reports of changed counters, so that their number bounds the work: zero
    /// for up to 100 agents, then 10 ms per agent, at most 30 s. New flows are reported at once.
    #[must_use]
    pub fn counter_interval(&self) -> Duration {
        match self.agents.load(Ordering::Relaxed) {
            agents if agents <= FEW_AGENTS => Duration::ZERO,
            agents => {
                INTERVAL_PER_AGENT.saturating_mul(u32::try_from(agents).unwrap_or(u32::MAX)).min(MAX_COUNTER_INTERVAL)
            }
        }
    }

    /// Notifies the receivers of news.
    pub fn mark(&self, news: News) {
        match news {
            News::Nothing => {}
            News::Counters => self.counters.send_replace(()),
            News::Structure => self.structure.send_replace(()),
        }
    }

    /// Returns a receiver that is notified when edges may come or go.
    #[must_use]
    pub fn subscribe_structure(&self) -> watch::Receiver<()> {
        self.structure.subscribe()
    }

    /// Returns a receiver that is notified when counters alone have changed.
    #[must_use]
    pub fn subscribe_counters(&self) -> watch::Receiver<()> {
        self.counters.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_interval_grows_with_the_number_of_agents() {
        let shared_ledger = SharedLedger::default();
        let of = |agents| {
            shared_ledger.set_agents(agents);
            shared_ledger.counter_interval()
        };
        assert_eq!([0, 100, 101, 500].map(of), [0, 0, 1010, 5000].map(Duration::from_millis));
        assert_eq!([3000, 5000, usize::MAX].map(of), [MAX_COUNTER_INTERVAL; 3]);
    }
}
