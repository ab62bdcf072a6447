//! Keeps the observation up to date: starts the best available capture, reads it, and retries the preferred one without
//! limit.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kernel_support::Reason;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{
    attribution::Attribution,
    backoff::Backoff,
    capture::{Capture, CaptureError},
    capture_starters::{Captures, Refused, Starter},
    epoch, malloc, node_addresses,
    observation::{SharedObservation, Shortfall},
    readiness::Readiness,
};

/// The node's processes: the agent shares its process namespace.
const PROC: &str = "/proc";

/// Time for which notifications of new flows are gathered before a reading.
const GATHER: Duration = Duration::from_millis(50);

/// Minimum time between two readings because of new flows, so that a port scan causes little load.
const READ_GAP: Duration = Duration::from_millis(200);

/// Interval at which old flows are removed.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);

/// Number of consecutive failed readings after which the capture is restarted. Until then no event is missed.
const READ_ATTEMPTS: u32 = 3;

/// Minimum time between attempts to start a refused capture.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Maximum time between attempts to start a refused capture.
const RETRY_MAX: Duration = Duration::from_mins(5);

/// Maximum time between attempts to start a capture that ran before: the next attempt is likely to succeed.
const RETRY_FAILED_MAX: Duration = Duration::from_secs(10);

/// Running time after which a capture counts as working: its end is a new failure.
const WORKED: Duration = Duration::from_mins(1);

/// Keeps an observation up to date.
pub struct Observer {
    /// Captures to start.
    pub captures: Captures,
    /// State to keep up to date.
    pub observation: SharedObservation,
    /// Notified when the observation has changed.
    pub changed: Arc<Notify>,
    /// The longest time between two reads.
    pub interval: Duration,
    /// The directory of the node's cgroup v2 root, found when it is needed.
    pub cgroup_root: Box<dyn Fn() -> Result<PathBuf, Refused> + Send + Sync>,
}

/// Reason for the end of an observation.
enum Ended {
    Asked,
    Failed(CaptureError),
    /// The next attempt to start the preferred capture is due.
    Due,
}

/// Result of a period without the preferred capture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bridged {
    Asked,
    Due,
}

impl Observer {
    /// Observes until `closing` becomes true; then reads a last time and returns.
    pub async fn run(self, mut closing: watch::Receiver<bool>) {
        let mut refusals = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut failures = Backoff::new(RETRY_MIN, RETRY_FAILED_MAX);
        let mut has_worked = false;
        let mut stand_in = None;
        while !*closing.borrow() {
            // A stand-in continues meanwhile but is not read: the preferred capture observes the same events from now on.
            let attempted = Instant::now();
            let started = self.start(&self.captures.preferred).await;
            let attempt = attempted.elapsed();
            let (shortfall, delay) = match started {
                Ok(mut capture) => {
                    drop(stand_in.take());
                    has_worked = true;
                    refusals.reset();
                    let began = Instant::now();
                    let ended = match self.enter(capture.as_mut(), None) {
                        Ok(()) => self.observe(capture.as_mut(), None, &mut closing).await,
                        Err(error) => Ended::Failed(error),
                    };
                    let Ended::Failed(error) = ended else { return };
                    if began.elapsed() >= WORKED {
                        failures.reset();
                    }
                    tracing::error!(%error, "the capture failed and is started again");
                    let message = format!("the capture failed and is started again: {error}");
                    let shortfall = Shortfall { reason: Reason::CaptureFailed, message, asks_for_fallback: false };
                    (shortfall, failures.next_delay_after(attempt))
                }
                Err(refused) => {
                    tracing::warn!(reason = %refused.reason, "{}", refused.message);
                    // A capture that has worked on this node can work again.
                    let asks_for_fallback = self.captures.stand_in.is_some() && !has_worked;
                    let shortfall = Shortfall { reason: refused.reason, message: refused.message, asks_for_fallback };
                    (shortfall, refusals.next_delay_after(attempt))
                }
            };
            let until = Instant::now() + delay;
            if self.bridge(&mut stand_in, &shortfall, until, &mut closing).await == Bridged::Asked {
                return;
            }
        }
    }

    /// Runs the stand-in, if there is one, until the next attempt to start the preferred capture.
    async fn bridge(
        &self,
        stand_in: &mut Option<Box<dyn Capture>>,
        shortfall: &Shortfall,
        until: Instant,
        closing: &mut watch::Receiver<bool>,
    ) -> Bridged {
        if let Some(capture) = stand_in {
            self.observation.lock().fall_short(capture.description(), shortfall);
            self.changed.notify_one();
        } else {
            *stand_in = self.start_stand_in(shortfall).await;
        }
        if let Some(capture) = stand_in {
            match self.observe(capture.as_mut(), Some(until), closing).await {
                Ended::Asked => return Bridged::Asked,
                Ended::Due => return Bridged::Due,
                Ended::Failed(error) => {
                    tracing::error!(%error, "the stand-in failed");
                    *stand_in = None;
                    self.stop(shortfall, &format!("; the fallback failed: {error}"));
                }
            }
        }
        tokio::select! {
            () = sleep_until(until) => Bridged::Due,
            _ = closing.wait_for(|closing| *closing) => Bridged::Asked,
        }
    }

    async fn start_stand_in(&self, shortfall: &Shortfall) -> Option<Box<dyn Capture>> {
        let refused = match &self.captures.stand_in {
            None => None,
            Some(starter) => match self.start(starter).await {
                Err(refused) => Some(refused.to_string()),
                Ok(mut capture) => match self.enter(capture.as_mut(), Some(shortfall)) {
                    Ok(()) => return Some(capture),
                    Err(error) => Some(error.to_string()),
                },
            },
        };
        let also = refused.map(|refused| format!("; and without eBPF: {refused}")).unwrap_or_default();
        self.stop(shortfall, &also);
        None
    }

    fn stop(&self, shortfall: &Shortfall, also: &str) {
        let message = format!("{}{also}", shortfall.message);
        tracing::warn!(reason = %shortfall.reason, "nothing is captured: {message}");
        let mut observation = self.observation.lock();
        observation.stop(shortfall.reason, message);
        observation.capture.asks_for_fallback = shortfall.asks_for_fallback;
        drop(observation);
        self.changed.notify_one();
    }

    async fn start(&self, starter: &Starter) -> Result<Box<dyn Capture>, Refused> {
        let start = Arc::clone(starter);
        let outcome = tokio::task::spawn_blocking(move || start()).await;
        malloc::give_back();
        outcome.unwrap_or_else(|error| {
            Err(Refused { reason: Reason::LoadFailed, message: format!("starting the capture panicked: {error}") })
        })
    }

    /// Starts an epoch for a new capture. It is not published before all open connections are known: a connection that
    /// is missing in a snapshot has ended.
    fn enter(&self, capture: &mut dyn Capture, shortfall: Option<&Shortfall>) -> Result<(), CaptureError> {
        let epoch = epoch::draw().map_err(|error| Refused {
            reason: Reason::LoadFailed,
            message: format!("can't draw random bytes for the epoch: {error}"),
        })?;
        let own_networks = Arc::clone(&self.observation.lock().own_networks);
        capture.set_own_networks(&own_networks);
        let attribution = if self.observation.lock().attribution.is_some() { None } else { Some(self.attribution()?) };
        let mut reading = capture.read()?;
        let mut observation = self.observation.lock();
        if let Some(attribution) = attribution {
            observation.attribution = Some(attribution);
        }
        let description = capture.description().clone();
        observation.begin_epoch(epoch, &description);
        if let Some(shortfall) = shortfall {
            observation.fall_short(&description, shortfall);
        }
        while reading.is_partial {
            observation.absorb(reading, std::time::Instant::now());
            reading = capture.read()?;
        }
        observation.absorb(reading, std::time::Instant::now());
        observation.node_addresses = node_addresses::read(Path::new(PROC));
        drop(observation);
        self.changed.notify_one();
        tracing::info!(mode = ?description.mode, attach = description.attach, kernel = %description.kernel, "capturing");
        for degradation in &description.degradations {
            tracing::warn!(feature = ?degradation.feature, "{}", degradation.message);
        }
        Ok(())
    }

    fn attribution(&self) -> Result<Attribution, Refused> {
        let root = (self.cgroup_root)()?;
        Attribution::open(&root).map_err(|error| Refused {
            reason: Reason::CgroupV2Missing,
            message: format!("can't read the cgroups below {}: {error}", root.display()),
        })
    }

    /// Reads until shutdown, until the given time, or until reading fails permanently.
    async fn observe(
        &self,
        capture: &mut dyn Capture,
        until: Option<Instant>,
        closing: &mut watch::Receiver<bool>,
    ) -> Ended {
        let new_flow_notifications = Readiness::of(capture.new_flow_notifications());
        let births = Readiness::of(self.observation.lock().attribution.as_ref().and_then(Attribution::births));
        let mut failures = 0;
        let mut read_at = Instant::now() + self.interval;
        let mut sighted = false;
        let mut expire_at = read_at + EXPIRE_INTERVAL;
        loop {
            let closes = tokio::select! {
                () = sleep_until(read_at) => false,
                () = new_flow_notifications.ready(), if !sighted => {
                    sighted = true;
                    let last_read = read_at.checked_sub(self.interval).unwrap_or(read_at);
                    read_at = read_at.min((Instant::now() + GATHER).max(last_read + READ_GAP));
                    continue;
                }
                () = births.ready() => {
                    if let Some(attribution) = &mut self.observation.lock().attribution {
                        attribution.catch_up(std::time::Instant::now());
                    }
                    continue;
                }
                () = at(until) => return Ended::Due,
                _ = closing.wait_for(|closing| *closing) => true,
            };
            let is_partial = match self.read(capture) {
                Ok(is_partial) => {
                    failures = 0;
                    is_partial
                }
                Err(error) if closes || failures + 1 >= READ_ATTEMPTS => return Ended::Failed(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "a read failed and is tried again");
                    false
                }
            };
            if closes && !is_partial {
                return Ended::Asked;
            }
            let now = Instant::now();
            if is_partial {
                read_at = now;
                // Lets other tasks run, such as the one that reports this reading.
                tokio::task::yield_now().await;
            } else {
                sighted = false;
                read_at = now + self.interval;
            }
            if now >= expire_at || self.observation.lock().flows.is_crowded() {
                expire_at = now + EXPIRE_INTERVAL;
                self.expire(capture);
            }
        }
    }

    /// Returns whether there is more to read at once.
    fn read(&self, capture: &mut dyn Capture) -> Result<bool, CaptureError> {
        let own_networks = Arc::clone(&self.observation.lock().own_networks);
        capture.set_own_networks(&own_networks);
        let reading = capture.read()?;
        let is_partial = reading.is_partial;
        let mut observation = self.observation.lock();
        let news = observation.absorb(reading, std::time::Instant::now());
        if observation.describe(capture.description()) || news {
            self.changed.notify_one();
        }
        Ok(is_partial)
    }

    fn expire(&self, capture: &mut dyn Capture) {
        let addresses = node_addresses::read(Path::new(PROC));
        let mut observation = self.observation.lock();
        observation.node_addresses = addresses;
        let now = std::time::Instant::now();
        let dispensable = observation.dispensable(now);
        drop(observation);
        let dropped = if dispensable.is_empty() { dispensable } else { capture.forget(&dispensable) };
        let mut observation = self.observation.lock();
        let evicted_unreported = observation.flows.evicted_unreported().flows;
        observation.drop_flows(&dropped, now);
        let evicted_unreported = observation.flows.evicted_unreported().flows - evicted_unreported;
        if observation.shrink() {
            malloc::give_back();
        }
        drop(observation);
        if evicted_unreported > 0 {
            tracing::warn!(
                flows = evicted_unreported,
                "flows had to leave before they could be reported; raise --max-flows"
            );
        }
    }
}

/// Waits until a time; never returns without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
