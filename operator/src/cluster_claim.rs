//! Ensures that one installation works in a cluster: the one whose Deployment a Lease in `kube-system` names. Another one
//! waits as long as that Deployment exists, even if its operator does not run.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        coordination::v1::{Lease, LeaseSpec},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams, core::PartialObjectMeta};
use tokio::{sync::watch, time::Instant};

use crate::{guarded_watch::with_cause, operator_deployment::OPERATOR_APP, progress::Progress, settings::Settings};

/// Namespace of the Lease: one that every cluster has, and in which few may write.
pub const NAMESPACE: &str = "kube-system";
/// Name of the Lease.
pub const NAME: &str = "scopeprobe-cluster";

/// Pause between two attempts.
const POLL: Duration = Duration::from_secs(2);
/// Interval at which the holder checks that it is the holder.
const CHECK: Duration = Duration::from_secs(30);

/// This installation's claim to the cluster.
pub struct ClusterClaim {
    leases: Api<Lease>,
    client: Client,
    /// `namespace/name` of the own Deployment.
    own: String,
    /// Time for which another installation's Deployment has to be gone. Its operator stops within that time, because it
    /// cannot renew its own lease.
    patience: Duration,
}

/// Outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attempt {
    Held,
    /// Another installation has the cluster.
    Taken {
        other: String,
        is_installed: bool,
    },
}

impl ClusterClaim {
    /// Prepares the claim; `None` for an operator without a Deployment, which is not installed.
    #[must_use]
    pub fn new(client: &Client, settings: &Settings) -> Option<Self> {
        let deployment = settings.deployment.as_ref()?;
        Some(Self {
            leases: Api::namespaced(client.clone(), NAMESPACE),
            client: client.clone(),
            own: format!("{}/{deployment}", settings.namespace),
            patience: Duration::from_secs(settings.lease_seconds),
        })
    }

    /// Waits until this installation has the cluster. Reports the other one that has it.
    pub async fn acquire(&self, progress: &watch::Sender<Progress>) {
        let mut gone_since = None;
        let mut is_failing = false;
        loop {
            match self.attempt(&mut gone_since).await {
                Ok(Attempt::Held) => return,
                Ok(Attempt::Taken { other, is_installed }) => {
                    is_failing = false;
                    report(progress, Progress::Blocked(message(&other, is_installed)));
                }
                Err(error) => {
                    let reason = format!("cannot read or write Lease {NAMESPACE}/{NAME}: {}", with_cause(&error));
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!("{reason}; trying again");
                    }
                    progress.send_replace(Progress::Waiting(reason));
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Checks the claim now and then. Returns the name of another installation that has taken it: this one must then stop.
    pub async fn keep(&self) -> String {
        loop {
            tokio::time::sleep(CHECK).await;
            match self.attempt(&mut None).await {
                Ok(Attempt::Taken { other, .. }) => return other,
                Ok(Attempt::Held) => {}
                Err(error) => tracing::debug!(error = with_cause(&error), "cannot check Lease {NAMESPACE}/{NAME}"),
            }
        }
    }

    /// `gone_since`: the time since which the holder's Deployment has been missing.
    async fn attempt(&self, gone_since: &mut Option<Instant>) -> kube::Result<Attempt> {
        let there = self.leases.get_opt(NAME).await?;
        let other = there.as_ref().and_then(holder).filter(|other| !other.is_empty()).map(str::to_owned);
        if other.as_deref() == Some(&self.own) {
            return Ok(Attempt::Held);
        }
        if let Some(other) = other {
            let is_installed = self.is_installed(&other).await?;
            if is_installed {
                *gone_since = None;
            }
            if is_installed || gone_since.get_or_insert_with(Instant::now).elapsed() < self.patience {
                return Ok(Attempt::Taken { other, is_installed });
            }
        }
        let taken = taken(there.unwrap_or_default(), &self.own, Timestamp::now());
        // Conditional on the version that was read.
        let written = if taken.metadata.resource_version.is_some() {
            self.leases.replace(NAME, &PostParams::default(), &taken).await
        } else {
            self.leases.create(&PostParams::default(), &taken).await
        };
        match written {
            Ok(_) => {
                tracing::info!(deployment = self.own, "this installation has the cluster");
                Ok(Attempt::Held)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Ok(Attempt::Taken { other: "another installation".to_owned(), is_installed: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns whether the Deployment of an operator exists and is not being deleted.
    async fn is_installed(&self, other: &str) -> kube::Result<bool> {
        let Some((namespace, name)) = other.split_once('/') else { return Ok(false) };
        let found = Api::<Deployment>::namespaced(self.client.clone(), namespace).get_metadata_opt(name).await?;
        Ok(found.is_some_and(|deployment| is_of_operator(&deployment)))
    }
}

fn is_of_operator(deployment: &PartialObjectMeta<Deployment>) -> bool {
    let labels = deployment.metadata.labels.as_ref();
    let app = labels.and_then(|labels| labels.get("app.kubernetes.io/name"));
    deployment.metadata.deletion_timestamp.is_none() && app.is_some_and(|app| app == OPERATOR_APP)
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn taken(there: Lease, own: &str, now: Timestamp) -> Lease {
    let transitions = there.spec.as_ref().map_or(0, |spec| spec.lease_transitions.unwrap_or(0).saturating_add(1));
    Lease {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..there.metadata },
        spec: Some(LeaseSpec {
            holder_identity: Some(own.to_owned()),
            acquire_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

fn message(other: &str, is_installed: bool) -> String {
    let cure = if is_installed {
        "so this operator does nothing; uninstall one of them"
    } else {
        "and is gone; this operator takes its place within seconds"
    };
    format!("Deployment {other} has this cluster (Lease {NAMESPACE}/{NAME}), {cure}")
}

/// Logs each change once.
fn report(progress: &watch::Sender<Progress>, new: Progress) {
    progress.send_if_modified(|known| {
        if *known == new {
            return false;
        }
        if let Progress::Blocked(reason) = &new {
            tracing::warn!("{reason}");
        }
        *known = new;
        true
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lease_is_taken_on_the_version_that_was_read() {
        let now = Timestamp::UNIX_EPOCH;
        let first = taken(Lease::default(), "a/operator", now);
        assert_eq!((holder(&first), first.metadata.name.as_deref()), (Some("a/operator"), Some(NAME)));
        let mut stored = first;
        stored.metadata.resource_version = Some("7".to_owned());
        let second = taken(stored, "b/operator", now);
        assert_eq!((holder(&second), second.metadata.resource_version.as_deref()), (Some("b/operator"), Some("7")));
        assert_eq!(second.spec.unwrap().lease_transitions, Some(1));
    }

    #[test]
    fn only_the_deployment_of_an_operator_that_stays_counts() {
        let deployment = |metadata| serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let labels = json!({"app.kubernetes.io/name": OPERATOR_APP});
        assert!(is_of_operator(&deployment(json!({"labels": labels}))));
        assert!(!is_of_operator(&deployment(json!({"labels": {"app.kubernetes.io/name": "web"}}))));
        assert!(!is_of_operator(&deployment(json!({"labels": labels, "deletionTimestamp": "2026-01-01T00:00:00Z"}))));
    }
}
