//! Reads the objects that a rollout depends on: the Service that agents connect to, and the owner of the DaemonSets.

use std::net::IpAddr;

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, Resource, core::PartialObjectMeta};

use crate::settings::AgentSettings;

/// Error of an object that a rollout depends on.
#[derive(Debug, thiserror::Error)]
pub enum DereferenceError {
    /// The API server did not answer.
    #[error("cannot read Service {namespace}/{name}, whose address agents dial: {source}")]
    Read {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
        /// Error of the API server.
        source: Box<kube::Error>,
    },
    /// The Service does not exist.
    #[error(
        "there is no Service {namespace}/{name} for agents to report to: install the chart's Service or name another with --collector-service"
    )]
    Missing {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
    /// The Service has no address or no port.
    #[error("Service {namespace}/{name} has no cluster IP or no port named `collector`, so agents cannot dial it")]
    NoAddress {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
    /// The API server did not return the operator's Deployment.
    #[error("cannot read Deployment {namespace}/{name}, which owns the agents: {source}")]
    ReadOwner {
        /// The operator's namespace.
        namespace: String,
        /// The Deployment's name.
        name: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The operator's Deployment is gone or being deleted.
    #[error(
        "Deployment {namespace}/{name} of the operator is gone or being deleted, so agents would have no owner: install the chart again, or name another Deployment with --deployment"
    )]
    NoOwner {
        /// The operator's namespace.
        namespace: String,
        /// The Deployment's name.
        name: String,
    },
}

impl DereferenceError {
    /// Returns the error as a condition's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Missing { .. } | Self::NoAddress { .. } => "CollectorUnreachable",
            Self::ReadOwner { .. } | Self::NoOwner { .. } => "OperatorDeploymentMissing",
        }
    }
}

/// Returns the reference by which objects of the operator's namespace are garbage-collected with its Deployment; `None`
/// if the operator has no Deployment.
///
/// # Errors
/// Returns an error if the Deployment cannot be read, does not exist or is being deleted.
pub async fn owner(
    client: &Client,
    namespace: &str,
    deployment: Option<&str>,
) -> Result<Option<OwnerReference>, DereferenceError> {
    let Some(name) = deployment else { return Ok(None) };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match Api::<Deployment>::namespaced(client.clone(), &namespace).get_metadata_opt(&name).await {
        Ok(found) => match found.as_ref().and_then(owner_reference) {
            Some(owner) => Ok(Some(owner)),
            None => Err(DereferenceError::NoOwner { namespace, name }),
        },
        Err(source) => Err(DereferenceError::ReadOwner { namespace, name, source: Box::new(source) }),
    }
}

/// Returns a reference that is neither a controller's nor blocking: the Deployment's controller ignores such objects.
fn owner_reference(deployment: &PartialObjectMeta<Deployment>) -> Option<OwnerReference> {
    let metadata = deployment.meta();
    if metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(OwnerReference {
        api_version: Deployment::api_version(&()).into_owned(),
        kind: Deployment::kind(&()).into_owned(),
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

/// Returns the URL that agents connect to. It contains an address and no name, so that agents need no cluster DNS.
///
/// # Errors
/// Returns an error if the Service is unreadable or has no address.
pub async fn collector_url(
    client: &Client,
    namespace: &str,
    settings: &AgentSettings,
) -> Result<String, DereferenceError> {
    if let Some(url) = &settings.collector_url {
        return Ok(url.clone());
    }
    let (namespace, name) = (namespace.to_owned(), settings.collector_service.clone());
    match Api::<Service>::namespaced(client.clone(), &namespace).get_opt(&name).await {
        Ok(Some(service)) => url_of(&service).ok_or(DereferenceError::NoAddress { namespace, name }),
        Ok(None) => Err(DereferenceError::Missing { namespace, name }),
        Err(source) => Err(DereferenceError::Read { namespace, name, source: Box::new(source) }),
    }
}

fn url_of(service: &Service) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let ip: IpAddr = spec.cluster_ip.as_ref()?.parse().ok()?;
    let port = spec.ports.iter().flatten().find(|port| port.name.as_deref() == Some("collector"))?.port;
    Some(match ip {
        IpAddr::V4(ip) => format!("http://{ip}:{port}"),
        IpAddr::V6(ip) => format!("http://[{ip}]:{port}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(cluster_ip: &str, port_name: &str) -> Service {
        serde_json::from_value(json!({
            "spec": {"clusterIP": cluster_ip, "ports": [{"name": "http", "port": 80}, {"name": port_name, "port": 9463}]}
        }))
        .unwrap()
    }

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(url_of(&service("10.96.0.7", "collector")).as_deref(), Some("http://10.96.0.7:9463"));
        assert_eq!(url_of(&service("fd96::7", "collector")).as_deref(), Some("http://[fd96::7]:9463"));
    }

    #[test]
    fn owner_reference_needs_deployment_that_stays() {
        let deployment = |metadata| serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let there = owner_reference(&deployment(json!({"name": "operator", "uid": "u"}))).unwrap();
        assert_eq!((there.api_version.as_str(), there.kind.as_str()), ("apps/v1", "Deployment"));
        assert_eq!((there.name.as_str(), there.uid.as_str(), there.controller), ("operator", "u", None));
        let going = json!({"name": "operator", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(owner_reference(&deployment(going)), None);
    }

    #[test]
    fn a_headless_service_and_one_without_the_port_have_none() {
        assert_eq!(url_of(&service("None", "collector")), None);
        assert_eq!(url_of(&service("10.96.0.7", "grpc")), None);
    }
}
