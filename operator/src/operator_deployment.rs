//! The operator's own Deployment: the owner of the objects that are deleted with it.

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, Resource, core::PartialObjectMeta};

/// Value of `app.kubernetes.io/name` of every operator's Deployment.
pub const OPERATOR_APP: &str = "scopeprobe-operator";
/// Label of objects that the operator made, and may replace.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "scopeprobe-operator");

/// Error of the operator's Deployment as an owner.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The API server did not return the operator's Deployment.
    #[error("cannot read Deployment {namespace}/{name}, which owns the agents: {source}")]
    Read {
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
    Missing {
        /// The operator's namespace.
        namespace: String,
        /// The Deployment's name.
        name: String,
    },
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
) -> Result<Option<OwnerReference>, OwnerError> {
    let Some(name) = deployment else { return Ok(None) };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match Api::<Deployment>::namespaced(client.clone(), &namespace).get_metadata_opt(&name).await {
        Ok(found) => match found.as_ref().and_then(owner_reference) {
            Some(owner) => Ok(Some(owner)),
            None => Err(OwnerError::Missing { namespace, name }),
        },
        Err(source) => Err(OwnerError::Read { namespace, name, source: Box::new(source) }),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn owner_reference_needs_deployment_that_stays() {
        let deployment = |metadata| serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let there = owner_reference(&deployment(json!({"name": "operator", "uid": "u"}))).unwrap();
        assert_eq!((there.api_version.as_str(), there.kind.as_str()), ("apps/v1", "Deployment"));
        assert_eq!((there.name.as_str(), there.uid.as_str(), there.controller), ("operator", "u", None));
        let going = json!({"name": "operator", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(owner_reference(&deployment(going)), None);
    }
}
