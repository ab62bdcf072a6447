//! What a rollout needs from other objects: the address that agents dial.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::settings::AgentSettings;

/// Why the agents cannot be told where to report.
#[derive(Debug, thiserror::Error)]
pub enum DereferenceError {
    /// The API server did not answer.
    #[error("cannot read Service {namespace}/{name}, whose address agents dial: {source}")]
    Read {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// There is none.
    #[error(
        "there is no Service {namespace}/{name} for agents to report to: install the chart's Service or name another with --collector-service"
    )]
    Missing {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
    /// It has no address or no port.
    #[error("Service {namespace}/{name} has no cluster IP or no port named `collector`, so agents cannot dial it")]
    NoAddress {
        /// The operator's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
}

/// The URL that agents dial: an address and not a name, so that agents need no cluster DNS.
///
/// # Errors
/// Where the Service cannot be read or has no address.
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
    fn a_headless_service_and_one_without_the_port_have_none() {
        assert_eq!(url_of(&service("None", "collector")), None);
        assert_eq!(url_of(&service("10.96.0.7", "grpc")), None);
    }
}
