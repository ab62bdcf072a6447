//! Asks the API server to review tokens, once for each token and a while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tonic::{Status, metadata::MetadataMap};

use super::{
    agent::{Agent, Refusal},
    cache::{Cache, Known, TokenHash},
    claims::Claims,
    verdict::{BoundPod, judge},
};
use crate::{cluster::ClusterIndex, guarded_watch::with_cause, settings::COLLECTOR_AUDIENCE as AUDIENCE};

/// Maximum number of reviews at a time.
const MAX_REVIEWS: usize = 16;
/// Time limit of one review, the time in the queue included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds out who sends a report.
pub struct Authenticator {
    reviews: Api<TokenReview>,
    index: ClusterIndex,
    /// User name of the agents' ServiceAccount.
    account: String,
    cache: Mutex<Cache>,
    permits: Semaphore,
}

impl Authenticator {
    /// Accepts tokens of this ServiceAccount. `index` has the pods of API servers whose tokens name no node.
    #[must_use]
    pub fn new(client: Client, index: ClusterIndex, namespace: &str, service_account: &str) -> Self {
        Self {
            reviews: Api::all(client),
            index,
            account: format!("system:serviceaccount:{namespace}:{service_account}"),
            cache: Mutex::default(),
            permits: Semaphore::new(MAX_REVIEWS),
        }
    }

    /// Returns the agent of a request.
    ///
    /// # Errors
    /// Returns `UNAUTHENTICATED` or `PERMISSION_DENIED` with the reason, or `UNAVAILABLE` if the API server cannot be asked.
    pub(in crate::collector) async fn authenticate(&self, metadata: &MetadataMap) -> Result<Agent, Status> {
        let token = bearer(metadata).map_err(|refusal| refusal.status())?;
        let claims = Claims::read(token, &self.account).map_err(|refusal| refusal.status())?;
        let hash: TokenHash = Sha256::digest(token.as_bytes()).into();
        let stale = match self.cache().get(&hash, Instant::now()) {
            Known::Fresh(verdict) => return verdict.map_err(|refusal| refusal.status()),
            Known::Stale(agent) => Some(agent),
            Known::Nothing => None,
        };
        let reviewed = tokio::time::timeout(PATIENCE, self.review(token));
        let status = match (reviewed.await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))), stale) {
            (Ok(status), _) => status,
            (Err(error), Some(agent)) => {
                tracing::warn!(error, pod = agent.pod, "cannot review a token; the last review holds");
                return Ok(agent);
            }
            (Err(error), None) => {
                tracing::warn!(error, "cannot review a token");
                return Err(Status::unavailable(format!("the API server does not review the token: {error}")));
            }
        };
        let now = Instant::now();
        let verdict = match judge(&status, &self.account) {
            Ok(pod) => {
                let node = self
                    .node_of(&pod)
                    .ok_or_else(|| Status::unavailable(format!("pod {} is not known yet; come again", pod.name)))?;
                Ok(Agent { node, pod: pod.name, expires: now + claims.remaining(SystemTime::now()) })
            }
            Err(refusal) => Err(refusal),
        };
        self.cache().insert(hash, &verdict, now);
        verdict.map_err(|refusal| refusal.status())
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = self.reviews.create(&PostParams::default(), &review).await;
        reviewed.map(|review| review.status.unwrap_or_default()).map_err(|error| with_cause(&error))
    }

    /// Returns the node of a pod, by the token where the API server names it there.
    fn node_of(&self, pod: &BoundPod) -> Option<String> {
        let by_index = || {
            let index = self.index.read();
            index.directory().pod(&pod.uid).map(|pod| pod.node.clone()).filter(|node| !node.is_empty())
        };
        pod.node.clone().or_else(by_index)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Refusal> {
    let value = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = value.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    token.filter(|token| !token.is_empty()).ok_or(Refusal::NoToken)
}
