//! Connections without a valid first message. Where there are too many, the oldest one has to go: an agent needs
//! milliseconds, so no one keeps agents out with idle connections.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Places of waiting connections. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct WaitingRoom {
    waiting: Arc<Mutex<VecDeque<Arc<Notify>>>>,
    max: usize,
}

/// Place of one waiting connection, free again when dropped.
#[derive(Debug)]
pub(super) struct WaitingPlace {
    room: WaitingRoom,
    displaced: Arc<Notify>,
}

impl WaitingRoom {
    pub fn new(max: u32) -> Self {
        Self { waiting: Arc::default(), max: usize::try_from(max).unwrap_or(usize::MAX) }
    }

    /// Returns a place, in that of the oldest connection if there is no other.
    pub fn enter(&self) -> WaitingPlace {
        let displaced = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= self.max
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        waiting.push_back(Arc::clone(&displaced));
        WaitingPlace { room: self.clone(), displaced }
    }
}

impl WaitingPlace {
    /// Done when another connection has taken the place: this one is to be closed.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        let mut waiting = self.room.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|other| !Arc::ptr_eq(other, &self.displaced));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn newest_connection_has_the_place_of_the_oldest() {
        let room = WaitingRoom::new(2);
        let is_displaced = |place: &WaitingPlace| place.displaced().now_or_never().is_some();
        let [first, second] = [room.enter(), room.enter()];
        drop(first);
        let third = room.enter();
        assert!(!is_displaced(&second), "a place was free");
        let fourth = room.enter();
        assert_eq!([&second, &third, &fourth].map(is_displaced), [true, false, false]);
        drop(second);
        assert_eq!(room.waiting.lock().unwrap().len(), 2);
    }
}
