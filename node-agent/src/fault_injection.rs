//! Fault injection by signals, for tests of the agent's recovery. Off unless enabled.
//!
//! SIGUSR1 makes the running capture fail permanently. SIGUSR2 suspends its readings for five seconds. SIGRTMIN+1 makes
//! the next start fail.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use topology::flow::FlowKey;

use crate::{
    capture::{Capture, CaptureError, Description, Reading, Reason},
    capture_starters::{Refused, Starter},
};

/// Duration without readings after SIGUSR2.
const STARVING: Duration = Duration::from_secs(5);

/// Injected faults.
#[derive(Debug, Default)]
struct Orders {
    kills: AtomicU64,
    refusals: AtomicU64,
    starved: Mutex<Option<Instant>>,
}

impl Orders {
    /// Returns whether the signal suspends a capture's readings: only if its first reading was before the signal.
    /// Otherwise the agent would publish an empty first reading.
    fn starves(&self, first_read: Instant) -> bool {
        let starved = *self.starved.lock().unwrap_or_else(PoisonError::into_inner);
        starved.is_some_and(|at| at >= first_read && at.elapsed() < STARVING)
    }
}

/// Handles the signals from now on, in tasks of the runtime. Returns the starter that they affect.
///
/// # Errors
/// Returns an error if the signal handlers cannot be installed.
pub fn by_signals(starter: Starter) -> io::Result<Starter> {
    let orders = Arc::new(Orders::default());
    on(SignalKind::user_defined1(), &orders, |orders| {
        orders.kills.fetch_add(1, Ordering::Relaxed);
    })?;
    on(SignalKind::user_defined2(), &orders, |orders| {
        *orders.starved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    })?;
    on(SignalKind::from_raw(libc::SIGRTMIN() + 1), &orders, |orders| {
        orders.refusals.fetch_add(1, Ordering::Relaxed);
    })?;
    Ok(disobedient(starter, orders))
}

fn on(kind: SignalKind, orders: &Arc<Orders>, obey: impl Fn(&Orders) + Send + 'static) -> io::Result<()> {
    let (mut signals, orders): (Signal, _) = (signal(kind)?, Arc::clone(orders));
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            obey(&orders);
        }
    });
    Ok(())
}

fn disobedient(starter: Starter, orders: Arc<Orders>) -> Starter {
    Arc::new(move || {
        let refused = orders.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Err(Refused {
                reason: Reason::LoadFailed,
                message: "a debugging signal asks for a refusal".into(),
            });
        }
        let (inner, orders) = (starter()?, Arc::clone(&orders));
        let kills = orders.kills.load(Ordering::Relaxed);
        Ok(Box::new(Sabotaged { inner, orders, kills, first_read: None, last: Reading::default() }))
    })
}

/// A capture that can be broken.
struct Sabotaged {
    inner: Box<dyn Capture>,
    orders: Arc<Orders>,
    /// Number of kill signals before its start, which do not affect it.
    kills: u64,
    /// Time of its first reading: an earlier SIGUSR2 does not affect it.
    first_read: Option<Instant>,
    last: Reading,
}

impl Sabotaged {
    fn is_starving(&self) -> bool {
        self.first_read.is_some_and(|first| self.orders.starves(first))
    }
}

impl Capture for Sabotaged {
    fn description(&self) -> &Description {
        self.inner.description()
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        if self.orders.kills.load(Ordering::Relaxed) > self.kills {
            let source = "a debugging signal has killed the capture".into();
            return Err(CaptureError { attempted: "reading".into(), source });
        }
        if self.is_starving() {
            return Ok(self.last.clone());
        }
        let reading = self.inner.read()?;
        self.first_read.get_or_insert_with(Instant::now);
        self.last = Reading { flows: Vec::new(), nat_peers: Vec::new(), answers: Vec::new(), ..reading };
        Ok(reading)
    }

    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
        self.inner.new_flow_notifications()
    }

    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey> {
        if self.is_starving() { Vec::new() } else { self.inner.forget(keys) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::capture::Mode;

    struct Counting(Description, u64);

    impl Capture for Counting {
        fn description(&self) -> &Description {
            &self.0
        }

        fn read(&mut self) -> Result<Reading, CaptureError> {
            self.1 += 1;
            Ok(Reading { seen: self.1, ..Reading::default() })
        }

        fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey> {
            keys.to_vec()
        }
    }

    fn counting() -> Starter {
        let description = Description {
            mode: Mode::Ebpf,
            attach: "SockOps",
            attached_at: SystemTime::UNIX_EPOCH,
            kernel: String::new(),
            degradations: Vec::new(),
        };
        Arc::new(move || Ok(Box::new(Counting(description.clone(), 0))))
    }

    #[test]
    fn a_capture_dies_for_good_and_the_next_one_lives() {
        let orders = Arc::new(Orders::default());
        let start = disobedient(counting(), Arc::clone(&orders));
        let mut first = start().unwrap();
        assert_eq!(first.read().unwrap().seen, 1);
        orders.kills.fetch_add(1, Ordering::Relaxed);
        assert!(first.read().is_err() && first.read().is_err());
        assert_eq!(start().unwrap().read().unwrap().seen, 1);
    }

    #[test]
    fn a_starving_capture_brings_nothing_new_and_loses_nothing() {
        let orders = Arc::new(Orders::default());
        let mut capture = disobedient(counting(), Arc::clone(&orders))().unwrap();
        assert_eq!(capture.read().unwrap().seen, 1);
        *orders.starved.lock().unwrap() = Some(Instant::now());
        assert_eq!((capture.read().unwrap().seen, capture.read().unwrap().seen), (1, 1));
        *orders.starved.lock().unwrap() = None;
        assert_eq!(capture.read().unwrap().seen, 2);
    }

    #[test]
    fn a_capture_that_starts_while_another_starves_is_read() {
        let orders = Arc::new(Orders::default());
        let start = disobedient(counting(), Arc::clone(&orders));
        let mut starving = start().unwrap();
        starving.read().unwrap();
        *orders.starved.lock().unwrap() = Some(Instant::now());
        let mut next = start().unwrap();
        assert_eq!((starving.read().unwrap().seen, next.read().unwrap().seen, next.read().unwrap().seen), (1, 1, 2));
    }

    #[test]
    fn as_many_starts_as_asked_for_are_refused() {
        let orders = Arc::new(Orders::default());
        let start = disobedient(counting(), Arc::clone(&orders));
        orders.refusals.fetch_add(2, Ordering::Relaxed);
        assert!(start().is_err() && start().is_err() && start().is_ok());
    }
}
