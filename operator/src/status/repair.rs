//! Repairs objects of the operator that do not decode: removes and rewrites a malformed status. Leaves a `spec`, which
//! belongs to users, unchanged and reports its errors in the status.

use std::collections::BTreeMap;

use crds::{NodeProbe, ScopeProbe, ScopeProbeSpec, ScopeProbeStatus};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::scope_probe;
use crate::{
    guarded::Guarded,
    rollout::{
        FIELD_MANAGER,
        apply::{ApplyError, delete_node_probe, is_not_found},
    },
};

/// Makes a NodeProbe decode again: removes its status, regardless of the writer, or deletes it if that does not help.
///
/// # Errors
/// Returns an error if the API server refused.
pub async fn node_probe(client: &Client, name: &str) -> Result<(), ApplyError> {
    let api: Api<Guarded<NodeProbe>> = Api::all(client.clone());
    match api.patch_status(name, &manager(), &no_status()).await {
        Ok(Guarded(Ok(_))) => Ok(()),
        Ok(Guarded(Err(_))) => delete_node_probe(client, name).await,
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("take the status from NodeProbe", name, source)),
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn no_status() -> Patch<Value> {
    Patch::Merge(json!({ "status": null }))
}

/// Malformed ScopeProbes, each with the version that was handled.
#[derive(Debug, Default)]
pub struct MalformedProbes {
    done: BTreeMap<String, Option<String>>,
}

impl MalformedProbes {
    /// Repairs each of these that has changed since. Logs a failure and retries it at the next turn.
    pub async fn mend(&mut self, client: &Client, versions: &BTreeMap<String, Option<String>>, now: Timestamp) {
        self.done.retain(|name, _| versions.contains_key(name));
        for (name, version) in versions {
            if self.done.get(name) == Some(version) {
                continue;
            }
            if let Err(error) = self.mend_one(client, name, now).await {
                tracing::warn!(%error, "cannot mend a ScopeProbe that does not decode; trying again");
            }
        }
    }

    async fn mend_one(&mut self, client: &Client, name: &str, now: Timestamp) -> Result<(), ApplyError> {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<ScopeProbe>(&()));
        // The operator may list them for its watch, so that it needs no right to get one.
        let listed = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await;
        let listed = listed.map_err(|source| ApplyError::new("read ScopeProbe", name, source))?;
        let Some(object) = listed.items.into_iter().next() else { return Ok(()) };
        if self.done.get(name) == Some(&object.resource_version()) {
            return Ok(());
        }
        let written = match remedy(&object, now) {
            Remedy::None => Some(object),
            Remedy::TakeStatus => write(&api, name, &no_status(), manager()).await?,
            Remedy::Tell(status) => {
                let body = json!({
                    "apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": name},
                    "status": status,
                });
                write(&api, name, &Patch::Apply(body), PatchParams::apply(FIELD_MANAGER).force()).await?
            }
        };
        if let Some(written) = written {
            self.done.insert(name.to_owned(), written.resource_version());
        }
        Ok(())
    }
}

async fn write(
    api: &Api<DynamicObject>,
    name: &str,
    patch: &Patch<Value>,
    params: PatchParams,
) -> Result<Option<DynamicObject>, ApplyError> {
    match api.patch_status(name, &params, patch).await {
        Ok(object) => Ok(Some(object)),
        Err(source) if is_not_found(&source) => Ok(None),
        Err(source) => Err(ApplyError::new("write the status of ScopeProbe", name, source)),
    }
}

/// Action for an object that may not decode.
#[derive(Debug, PartialEq)]
enum Remedy {
    /// No action: the object decodes, or its status reports the error already.
    None,
    /// Removes its status. The next turn checks it again.
    TakeStatus,
    /// Writes a status that reports the errors of `spec`.
    Tell(Box<ScopeProbeStatus>),
}

fn remedy(object: &DynamicObject, now: Timestamp) -> Remedy {
    let Ok(previous) = decoded::<Option<ScopeProbeStatus>>(&object.data["status"]) else { return Remedy::TakeStatus };
    let Err(error) = decoded::<ScopeProbeSpec>(&object.data["spec"]) else { return Remedy::None };
    let status = scope_probe::malformed(&error.to_string(), previous.as_ref(), object.metadata.generation, now);
    if previous.as_ref() == Some(&status) { Remedy::None } else { Remedy::Tell(Box::new(status)) }
}

fn decoded<T: DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
    T::deserialize(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: &Value, status: Option<&Value>) -> DynamicObject {
        let mut object = json!({
            "apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe",
            "metadata": {"name": "p", "generation": 3}, "spec": spec,
        });
        if let Some(status) = status {
            object["status"] = status.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn remedy_takes_status_and_leaves_spec() {
        let now = Timestamp::from_second(1).unwrap();
        let bad_status = json!({"conditions": [{"type": "X", "lastTransitionTime": "2026-01-01T00:00:00+99:99"}]});
        let bad_spec = json!({"capture": {"maxFlows": "many"}});
        assert_eq!(remedy(&object(&json!({}), None), now), Remedy::None);
        assert_eq!(remedy(&object(&json!({}), Some(&bad_status)), now), Remedy::TakeStatus);
        assert_eq!(remedy(&object(&bad_spec, Some(&bad_status)), now), Remedy::TakeStatus);
        let Remedy::Tell(told) = remedy(&object(&bad_spec, None), now) else { panic!("nothing is reported") };
        let condition = |type_: &str| told.conditions.iter().find(|it| it.type_ == type_).unwrap();
        assert_eq!((condition("Ready").status.as_str(), condition("Stalled").status.as_str()), ("False", "True"));
        assert!(condition("Ready").message.contains("many"), "{}", condition("Ready").message);
        assert_eq!(told.observed_generation, Some(3));
        let told = serde_json::to_value(&told).unwrap();
        let later = Timestamp::from_second(9).unwrap();
        assert_eq!(remedy(&object(&bad_spec, Some(&told)), later), Remedy::None, "it is reported once");
    }
}
