//! Streams whose first message is still to come: one for each agent, so that one token does not hold the bytes of many
//! messages that it sends slowly.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// The waiting stream of each agent, by its pod. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstMessages(Arc<Mutex<HashMap<String, Arc<Notify>>>>);

/// Turn of one stream to send its first message, over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    all: FirstMessages,
    pod: String,
    displaced: Arc<Notify>,
}

impl FirstMessages {
    /// Begins to wait, in the place of an older stream of the same pod.
    pub fn begin(&self, pod: &str) -> Turn {
        let displaced = Arc::new(Notify::new());
        let older = self.waiting().insert(pod.to_owned(), Arc::clone(&displaced));
        if let Some(older) = older {
            older.notify_one();
        }
        Turn { all: self.clone(), pod: pod.to_owned(), displaced }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Done when a newer stream of the same pod waits: this one is to be ended.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut waiting = self.all.waiting();
        if waiting.get(&self.pod).is_some_and(|turn| Arc::ptr_eq(turn, &self.displaced)) {
            waiting.remove(&self.pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn newer_stream_has_the_turn_of_an_older_one_of_its_pod() {
        let all = FirstMessages::default();
        let is_displaced = |turn: &Turn| turn.displaced().now_or_never().is_some();
        let [first, other] = ["agent-1", "agent-2"].map(|pod| all.begin(pod));
        assert!(!is_displaced(&first));
        let second = all.begin("agent-1");
        assert_eq!([&first, &other, &second].map(is_displaced), [true, false, false]);
        drop(first);
        let third = all.begin("agent-1");
        assert_eq!([&second, &third].map(is_displaced), [true, false], "the end of the first one changes nothing");
        drop((second, third, other));
        assert!(all.waiting().is_empty());
    }
}
