//! Keeps the observation up to date: starts the capture, reads it when there is something to read, starts it again
//! when it fails.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    attribution::Attribution,
    backoff::Backoff,
    capture::{Capture, CaptureError},
    memory, node_addresses,
    observation::{Epoch, Shared},
    readiness::Readiness,
    supervision::{Refused, Starter},
};

/// The node's processes: the agent shares its process namespace.
const PROC: &str = "/proc";

/// First sights are gathered for this long before they are read.
const GATHER: Duration = Duration::from_millis(50);

/// Reads because of first sights are at least this far apart: a scan of ports is not a reason to work hard.
const READ_GAP: Duration = Duration::from_millis(200);

/// How often what is old leaves.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(10);

/// A capture that fails to be read so many times in a row is started again. It misses nothing before.
const READ_ATTEMPTS: u32 = 3;

/// Between attempts to start a capture.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_mins(5);

/// A capture that ran for this long is one that works: what ends it is new.
const WORKED: Duration = Duration::from_mins(1);

/// Keeps an observation up to date.
pub struct Observer {
    /// Starts the capture.
    pub start: Starter,
    /// What is kept up to date.
    pub observation: Shared,
    /// Told when the observation has changed.
    pub changed: Arc<Notify>,
    /// The longest time between two reads.
    pub interval: Duration,
    /// The directory of the node's cgroup v2 root, found when it is needed.
    pub cgroup_root: Box<dyn Fn() -> Result<PathBuf, Refused> + Send + Sync>,
}

/// Why observing has ended.
enum Ended {
    Asked,
    Failed(CaptureError),
}

impl Observer {
    /// Observes until `closing` becomes true; then reads a last time and returns.
    pub async fn run(self, mut closing: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        while !*closing.borrow() {
            match self.begin().await {
                Ok(capture) => {
                    self.changed.notify_one();
                    let began = Instant::now();
                    match self.observe(capture, &mut closing).await {
                        Ended::Asked => return,
                        Ended::Failed(error) => {
                            tracing::error!(%error, "the capture failed and is started again");
                            let message = format!("the capture failed and is started again: {error}");
                            self.observation.lock().stop("CaptureFailed", message);
                        }
                    }
                    if began.elapsed() >= WORKED {
                        backoff.reset();
                    }
                }
                Err(refused) => {
                    tracing::warn!(reason = refused.reason, "nothing is captured: {}", refused.message);
                    self.observation.lock().stop(refused.reason, refused.message);
                }
            }
            self.changed.notify_one();
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    /// Starts a capture and its epoch.
    async fn begin(&self) -> Result<Box<dyn Capture>, Refused> {
        let start = Arc::clone(&self.start);
        let started = tokio::task::spawn_blocking(move || start()).await;
        memory::give_back();
        let capture = started.unwrap_or_else(|error| {
            Err(Refused { reason: "LoadFailed", message: format!("starting the capture panicked: {error}") })
        })?;
        let epoch = new_epoch().map_err(|error| Refused {
            reason: "LoadFailed",
            message: format!("can't draw random bytes for the epoch: {error}"),
        })?;
        let attribution = if self.observation.lock().attribution.is_some() { None } else { Some(self.attribution()?) };
        let mut observation = self.observation.lock();
        if let Some(attribution) = attribution {
            observation.attribution = Some(attribution);
        }
        let description = capture.description();
        observation.begin_epoch(epoch, description);
        observation.node_addresses = node_addresses::read(Path::new(PROC));
        tracing::info!(attach = description.attach, kernel = %description.kernel, "capturing");
        for degradation in &description.degradations {
            tracing::warn!(feature = ?degradation.feature, "{}", degradation.message);
        }
        Ok(capture)
    }

    fn attribution(&self) -> Result<Attribution, Refused> {
        let root = (self.cgroup_root)()?;
        Attribution::open(&root).map_err(|error| Refused {
            reason: "CgroupV2Missing",
            message: format!("can't read the cgroups below {}: {error}", root.display()),
        })
    }

    /// Reads until asked to end or until reading fails for good.
    async fn observe(&self, mut capture: Box<dyn Capture>, closing: &mut watch::Receiver<bool>) -> Ended {
        let first_sights = Readiness::of(capture.first_sights());
        let births = Readiness::of(self.observation.lock().attribution.as_ref().and_then(Attribution::births));
        let mut failures = 0;
        let mut read_at = Instant::now();
        let mut sighted = false;
        let mut expire_at = read_at + EXPIRE_INTERVAL;
        loop {
            let closes = tokio::select! {
                () = sleep_until(read_at) => false,
                () = first_sights.ready(), if !sighted => {
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
                _ = closing.wait_for(|closing| *closing) => true,
            };
            match self.read(capture.as_mut()) {
                Ok(()) => failures = 0,
                Err(error) if closes || failures + 1 >= READ_ATTEMPTS => return Ended::Failed(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "a read failed and is tried again");
                }
            }
            if closes {
                return Ended::Asked;
            }
            let now = Instant::now();
            sighted = false;
            read_at = now + self.interval;
            if now >= expire_at || self.observation.lock().flows.is_crowded() {
                expire_at = now + EXPIRE_INTERVAL;
                self.expire(capture.as_mut());
            }
        }
    }

    fn read(&self, capture: &mut dyn Capture) -> Result<(), CaptureError> {
        let reading = capture.read()?;
        if self.observation.lock().absorb(reading, std::time::Instant::now()) {
            self.changed.notify_one();
        }
        Ok(())
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
        let untold = observation.flows.untold().flows;
        observation.drop_flows(&dropped, now);
        let untold = observation.flows.untold().flows - untold;
        if untold > 0 {
            tracing::warn!(flows = untold, "flows had to leave before they could be reported; raise --max-flows");
        }
    }
}

fn new_epoch() -> Result<Epoch, getrandom::Error> {
    let mut epoch = Epoch::default();
    getrandom::fill(&mut epoch)?;
    Ok(epoch)
}
