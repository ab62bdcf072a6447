//! Ensures a single writer: the holder of a Lease. The holder stops writing well before another operator may take the
//! lease. It takes the lease again after an outage of the API server. Each write of the lease is conditional on the
//! version that was read. `fence` stops other writes at the lease's end.

mod candidate;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::{Api, Client, Config, api::PostParams, runtime::utils::Backoff};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

use self::candidate::{Candidate, Decision};
use crate::{
    api_client,
    fence::Fence,
    guarded_watch::{backoff, with_cause},
    metrics::Metrics,
    operator_deployment::{self, OwnerError},
    settings::Settings,
};

/// Timeout of one request about the lease: a hanging API server must not let the lease lapse unnoticed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum pause before another operator's lease is read again, so that it is taken soon after its release.
const POLL: Duration = Duration::from_secs(1);

/// Reason for which the lease is not held.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The configuration allows no client.
    #[error("cannot make a client for the lease: {0}")]
    Client(Box<kube::Error>),
    /// The API server did not read or write the lease.
    #[error("cannot {verb} Lease {namespace}/{name}: {}", with_cause(source.as_ref()))]
    Request {
        /// Attempted operation.
        verb: &'static str,
        /// The operator's namespace.
        namespace: String,
        /// The lease's name.
        name: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The lease has no owner with which it would be deleted.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

/// Permission of this operator to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The operator holds the lease.
    Holding,
    /// Another operator of the installation holds it, for this one to take over.
    Standby(String),
    /// The operator does not hold the lease, for this reason.
    Waiting(String),
}

/// The lease, and whether this operator holds it.
pub struct Lease {
    api: Api<Object>,
    client: Client,
    settings: Settings,
    metrics: Metrics,
    standing: watch::Sender<Standing>,
    holds: watch::Sender<bool>,
    fence: Fence,
}

/// Outcome of an attempt to take or renew the lease.
enum Attempt {
    /// This operator holds the lease, from this moment on.
    Held(Instant),
    /// This other operator holds it, until this moment at least.
    Taken(String, Instant),
    /// Another operator wrote it at the same time.
    Conflict,
}

impl Lease {
    /// Prepares to take the lease, without a request. The holder's name is that of the operator's pod: a restarted
    /// container in that pod continues at once, because its predecessor has certainly ended. `fence` is opened while the
    /// lease is held.
    ///
    /// # Errors
    /// Returns an error if the configuration allows no client.
    pub fn new(mut config: Config, settings: &Settings, metrics: Metrics, fence: Fence) -> Result<Self, LeaseError> {
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        config.read_timeout = Some(REQUEST_TIMEOUT);
        config.write_timeout = Some(REQUEST_TIMEOUT);
        let own_client = api_client::unfenced(config).map_err(|error| LeaseError::Client(Box::new(error)))?;
        Ok(Self {
            api: Api::namespaced(own_client.clone(), &settings.namespace),
            client: own_client,
            settings: settings.clone(),
            metrics,
            standing: watch::Sender::new(Standing::Waiting("the lease was not read yet".to_owned())),
            holds: watch::Sender::new(false),
            fence,
        })
    }

    /// Returns a receiver that is true while this operator may write.
    #[must_use]
    pub fn holds(&self) -> watch::Receiver<bool> {
        self.holds.subscribe()
    }

    /// Returns a receiver of the operator's permission to write, with the reason if it may not.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes the lease and renews it. Takes a lease again that lapsed during an outage of the API server. Returns the name
    /// of another operator that took the lease meanwhile: this operator must then stop.
    pub async fn keep(&self) -> String {
        let mut candidate = self.candidate();
        let mut pauses = backoff();
        let mut has_held = false;
        let mut held_until: Option<Instant> = None;
        loop {
            let attempt = match held_until {
                Some(until) => timeout_at(until, self.attempt(&mut candidate)).await.ok(),
                None => Some(self.attempt(&mut candidate).await),
            };
            let mut pause = || Instant::now() + pauses.next().unwrap_or(POLL);
            let next = match attempt {
                Some(Ok(Attempt::Held(since))) => {
                    pauses.reset();
                    has_held = true;
                    let until = since + self.duration() * 2 / 3;
                    held_until = Some(until);
                    self.fence.open_until(until);
                    self.set(Standing::Holding);
                    since + self.duration() / 3
                }
                Some(Ok(Attempt::Taken(holder, _))) if has_held => {
                    self.set(Standing::Waiting(format!("operator {holder} took the lease")));
                    return holder;
                }
                Some(Ok(Attempt::Taken(holder, over_at))) => {
                    pauses.reset();
                    self.set(Standing::Standby(format!("operator {holder} holds the lease")));
                    over_at.min(Instant::now() + POLL)
                }
                Some(Ok(Attempt::Conflict)) => pause(),
                Some(Err(error)) => {
                    self.fail(&error);
                    pause()
                }
                None => Instant::now(),
            };
            sleep_until(held_until.map_or(next, |until| next.min(until))).await;
            if held_until.is_some_and(|until| until <= Instant::now()) {
                held_until = None;
                self.set(Standing::Waiting("the lease lapsed, as the API server did not renew it".to_owned()));
            }
        }
    }

    /// Releases the lease for the next candidate.
    pub async fn release(&self) {
        if !*self.holds.borrow() {
            return;
        }
        self.set(Standing::Waiting("the operator stops".to_owned()));
        if let Err(error) = self.give_back().await {
            tracing::warn!(%error, "cannot release the lease; it ends by itself");
        }
    }

    async fn attempt(&self, candidate: &mut Candidate) -> Result<Attempt, LeaseError> {
        let there = self.read().await?;
        let exists = there.is_some();
        let lease = match candidate.decide(there.as_ref(), Instant::now(), Timestamp::now()) {
            Decision::Wait { holder, over_at } => return Ok(Attempt::Taken(holder, over_at)),
            Decision::Renew(renewed) => renewed,
            Decision::Take(taken) => self.owned(taken).await?,
        };
        let since = Instant::now();
        let written = if exists {
            self.api.replace(&self.settings.lease_name, &PostParams::default(), &lease).await
        } else {
            self.api.create(&PostParams::default(), &lease).await
        };
        match written {
            Ok(_) => Ok(Attempt::Held(since)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::Conflict),
            Err(source) => Err(self.error("write", source)),
        }
    }

    /// Adds the owner with which the lease is garbage-collected.
    async fn owned(&self, mut lease: Object) -> Result<Object, LeaseError> {
        let Settings { namespace, lease_name, deployment, .. } = &self.settings;
        let owner = operator_deployment::owner(&self.client, namespace, deployment.as_deref()).await?;
        lease.metadata.name = Some(lease_name.clone());
        lease.metadata.owner_references = owner.map(|owner| vec![owner]);
        Ok(lease)
    }

    async fn give_back(&self) -> Result<(), LeaseError> {
        let Some(free) = self.read().await?.and_then(|there| self.candidate().freed(there)) else { return Ok(()) };
        let written = self.api.replace(&self.settings.lease_name, &PostParams::default(), &free).await;
        written.map(|_| ()).map_err(|source| self.error("release", source))
    }

    async fn read(&self) -> Result<Option<Object>, LeaseError> {
        self.api.get_opt(&self.settings.lease_name).await.map_err(|source| self.error("read", source))
    }

    fn candidate(&self) -> Candidate {
        Candidate::new(&self.settings.identity, self.duration())
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.settings.lease_seconds)
    }

    fn error(&self, verb: &'static str, source: kube::Error) -> LeaseError {
        let Settings { namespace, lease_name, .. } = &self.settings;
        LeaseError::Request { verb, namespace: namespace.clone(), name: lease_name.clone(), source: Box::new(source) }
    }

    /// Records a failed request. A holder may write until its lease lapses.
    fn fail(&self, error: &LeaseError) {
        if *self.holds.borrow() {
            tracing::warn!(%error, "cannot renew the lease; trying again");
        } else {
            self.set(Standing::Waiting(error.to_string()));
        }
    }

    /// Logs each change once.
    fn set(&self, standing: Standing) {
        let holds = standing == Standing::Holding;
        if !holds {
            self.fence.close();
        }
        if *self.standing.borrow() != standing {
            match &standing {
                Standing::Holding => tracing::info!("holding the lease"),
                Standing::Standby(reason) => tracing::info!(reason, "standing by; nothing is written"),
                Standing::Waiting(reason) => tracing::warn!(reason, "waiting for the lease; nothing is written"),
            }
        }
        self.standing.send_if_modified(|known| {
            let is_news = *known != standing;
            *known = standing;
            is_news
        });
        self.holds.send_if_modified(|known| std::mem::replace(known, holds) != holds);
        self.metrics.leader.set(i64::from(holds));
    }
}
