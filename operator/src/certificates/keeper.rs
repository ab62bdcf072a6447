//! Keeps the certificate that is served, the Secret that stores it and the `ConfigMap` by which agents verify it. Writes run
//! only while the operator holds the Lease.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::CertificateError,
    generation::{Generation, UnixSeconds},
    rotation::{Generations, Publications},
    serving::ServingCertificate,
    stored,
};
use crate::operator_deployment;

/// Maximum time between two rounds: another program may replace its Secret, and a person may delete ours.
const INTERVAL: Duration = Duration::from_mins(1);
/// Number of rounds within a lifetime.
const ROUNDS: u32 = 60;
/// Time to the next round after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Names and lifetimes of certificates.
#[derive(Clone, Debug)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's Deployment, with which its objects are garbage-collected.
    pub deployment: Option<String>,
    /// The collector's Service.
    pub service: String,
    /// Secret of another program; `None` if the operator makes its own.
    pub foreign_secret: Option<String>,
    /// Lifetime of certificates that the operator makes.
    pub lifetime: Duration,
}

impl CertificateSettings {
    /// Returns the name that agents verify.
    #[must_use]
    pub fn server_name(&self) -> String {
        server_name(&self.service, &self.namespace)
    }

    fn secret(&self) -> String {
        self.foreign_secret.clone().unwrap_or_else(|| format!("{}-tls", self.service))
    }
}

/// Returns the name that agents verify: the Service's.
#[must_use]
pub fn server_name(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}

/// Key of the `ConfigMap`.
pub const CA_FILE: &str = stored::CA;

/// Returns the name of the `ConfigMap` with the certificates of CAs, in [`CA_FILE`].
#[must_use]
pub fn ca_config_map(service: &str) -> String {
    format!("{service}-ca")
}

/// Keeps the certificate.
#[derive(Clone)]
pub struct CertificateKeeper {
    client: Client,
    settings: CertificateSettings,
    serving: ServingCertificate,
    /// Certificates of another program's Secret, as this process has read them.
    foreign: Arc<Mutex<Generations>>,
    /// CAs in the `ConfigMap`.
    published: Arc<Mutex<Publications>>,
}

impl CertificateKeeper {
    /// Prepares to keep a certificate, without a request.
    #[must_use]
    pub fn new(client: Client, settings: CertificateSettings) -> Self {
        Self {
            client,
            settings,
            serving: ServingCertificate::default(),
            foreign: Arc::default(),
            published: Arc::default(),
        }
    }

    /// Returns the certificate that is served.
    #[must_use]
    pub fn serving(&self) -> ServingCertificate {
        self.serving.clone()
    }

    /// Runs without end.
    pub async fn run(self) {
        let mut problem = None;
        loop {
            let pause = match self.once().await {
                Ok(()) => {
                    problem = None;
                    INTERVAL.min(self.settings.lifetime / ROUNDS)
                }
                Err(error) => {
                    let error = error.to_string();
                    if problem.as_ref() != Some(&error) {
                        tracing::warn!(error, "cannot keep the collector's certificate; trying again");
                        problem = Some(error);
                    }
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Serves a valid certificate, and publishes its CA before agents need it.
    ///
    /// # Errors
    /// Returns the reason if an object is unusable or cannot be read or written. The certificate stays as it was.
    pub async fn once(&self) -> Result<(), CertificateError> {
        let now = now();
        let generations = match &self.settings.foreign_secret {
            Some(_) => self.read_foreign(now).await?,
            None => self.keep_own(now).await?,
        };
        self.publish(&generations).await?;
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let name = self.settings.server_name();
        let mut problem = None;
        for generation in generations.by_preference(&published, now) {
            match generation.certified(&name, now) {
                Ok(certificate) => {
                    if self.serving.set(certificate) {
                        let (created, expires) = (generation.created, generation.expires);
                        tracing::info!(
                            name,
                            created,
                            expires,
                            "presenting another certificate at the collector's port"
                        );
                    }
                    return Ok(());
                }
                Err(error) => problem = Some(error),
            }
        }
        // Without any certificate, an error was returned before.
        problem.map_or(Ok(()), Err)
    }

    async fn read_foreign(&self, now: UnixSeconds) -> Result<Generations, CertificateError> {
        let (namespace, name) = (self.settings.namespace.clone(), self.settings.secret());
        let Some(secret) = self.get::<Secret>("Secret", &name).await? else {
            return Err(CertificateError::Missing { namespace, name });
        };
        let read = stored::foreign(&secret, &self.settings.server_name(), now).map_err(|source| {
            let cure = "let its issuer name the Service in the certificate and store ca.crt, tls.crt and tls.key";
            CertificateError::Content { namespace, name, source: Box::new(source), cure }
        })?;
        let mut known = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        known.add(read);
        known.drop_replaced(&self.published.lock().unwrap_or_else(PoisonError::into_inner), now);
        Ok(known.clone())
    }

    async fn keep_own(&self, now: UnixSeconds) -> Result<Generations, CertificateError> {
        let name = self.settings.secret();
        let there = self.get::<Secret>("Secret", &name).await?;
        let mut generations = match &there {
            Some(secret) if !stored::is_ours(&secret.metadata) => return Err(self.is_foreign("Secret", &name)),
            Some(secret) => self.read_own(secret, &name, now),
            None => Generations::default(),
        };
        let mut is_news = generations.drop_expired(now);
        if generations.needs_renewal(now) {
            let next = Generation::make(&self.settings.server_name(), now, self.settings.lifetime)?;
            tracing::info!(expires = next.expires, "made a certificate for the collector's port");
            generations.add(next);
            is_news = true;
        }
        if is_news {
            let owner = self.owner().await?;
            let secret = stored::secret(&name, &generations, there.as_ref(), owner)?;
            self.write("Secret", &name, &secret, there.is_some()).await?;
        }
        Ok(generations)
    }

    /// Returns the certificates of the operator's Secret; none if they are unusable, so that others replace them.
    fn read_own(&self, secret: &Secret, name: &str, now: UnixSeconds) -> Generations {
        stored::generations(secret, &self.settings.server_name(), now).unwrap_or_else(|source| {
            let namespace = self.settings.namespace.clone();
            let cure = "replacing its content by a new certificate";
            let error = CertificateError::Content { namespace, name: name.to_owned(), source: Box::new(source), cure };
            tracing::warn!(%error, "the operator's Secret was damaged");
            Generations::default()
        })
    }

    async fn publish(&self, generations: &Generations) -> Result<(), CertificateError> {
        let (name, bundle) = (ca_config_map(&self.settings.service), generations.bundle());
        let there = self.get::<ConfigMap>("ConfigMap", &name).await?;
        if there.as_ref().is_some_and(|map| !stored::is_ours(&map.metadata)) {
            return Err(self.is_foreign("ConfigMap", &name));
        }
        let before = there.as_ref().map(stored::bundle).unwrap_or_default().to_owned();
        if before != bundle {
            let map = stored::config_map(&name, &bundle, there.as_ref(), self.owner().await?);
            self.write("ConfigMap", &name, &map, there.is_some()).await?;
        }
        self.published.lock().unwrap_or_else(PoisonError::into_inner).note(generations, &before, now());
        Ok(())
    }

    async fn owner(
        &self,
    ) -> Result<Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>, CertificateError> {
        let CertificateSettings { namespace, deployment, .. } = &self.settings;
        Ok(operator_deployment::owner(&self.client, namespace, deployment.as_deref()).await?)
    }

    async fn get<K>(&self, kind: &'static str, name: &str) -> Result<Option<K>, CertificateError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.map_err(|source| self.request("read", kind, name, source))
    }

    async fn write<K>(&self, kind: &'static str, name: &str, object: &K, exists: bool) -> Result<(), CertificateError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let (api, parameters) = (self.api::<K>(), PostParams::default());
        let written =
            if exists { api.replace(name, &parameters, object).await } else { api.create(&parameters, object).await };
        written.map(|_| ()).map_err(|source| self.request("write", kind, name, source))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    fn request(&self, verb: &'static str, kind: &'static str, name: &str, source: kube::Error) -> CertificateError {
        let (namespace, name) = (self.settings.namespace.clone(), name.to_owned());
        CertificateError::Request { verb, kind, namespace, name, source: Box::new(source) }
    }

    fn is_foreign(&self, kind: &'static str, name: &str) -> CertificateError {
        CertificateError::Foreign { kind, namespace: self.settings.namespace.clone(), name: name.to_owned() }
    }
}

fn now() -> UnixSeconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
