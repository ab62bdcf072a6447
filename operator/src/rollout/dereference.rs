//! Reads the Service that agents connect to.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::{operator_deployment::OwnerError, settings::AgentSettings};

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
    /// The DaemonSets would have no owner.
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

impl DereferenceError {
    /// Returns the error as a condition's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Missing { .. } | Self::NoAddress { .. } => "CollectorUnreachable",
            Self::Owner(_) => "OperatorDeploymentMissing",
        }
    }
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
        Ok(Some(service)) => {
            url_of(&service, settings.collector_plaintext).ok_or(DereferenceError::NoAddress { namespace, name })
        }
        Ok(None) => Err(DereferenceError::Missing { namespace, name }),
        Err(source) => Err(DereferenceError::Read { namespace, name, source: Box::new(source) }),
    }
}

fn url_of(service: &Service, is_plaintext: bool) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let ip: IpAddr = spec.cluster_ip.as_ref()?.parse().ok()?;
    let port = spec.ports.iter().flatten().find(|port| port.name.as_deref() == Some("collector"))?.port;
    let scheme = if is_plaintext { "http" } else { "https" };
    Some(match ip {
        IpAddr::V4(ip) => format!("{scheme}://{ip}:{port}"),
        IpAddr::V6(ip) => format!("{scheme}://[{ip}]:{port}"),
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
        let url = |ip, is_plaintext| url_of(&service(ip, "collector"), is_plaintext);
        assert_eq!(url("10.96.0.7", false).as_deref(), Some("https://10.96.0.7:9463"));
        assert_eq!(url("fd96::7", false).as_deref(), Some("https://[fd96::7]:9463"));
        assert_eq!(url("10.96.0.7", true).as_deref(), Some("http://10.96.0.7:9463"));
    }

    #[test]
    fn a_headless_service_and_one_without_the_port_have_none() {
        assert_eq!(url_of(&service("None", "collector"), false), None);
        assert_eq!(url_of(&service("10.96.0.7", "grpc"), false), None);
    }
}
