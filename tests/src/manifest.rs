//! Applying YAML, as `kubectl apply --server-side` does.

use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use serde::Deserialize as _;

use crate::{Error, Result};

const MANAGER: &str = "scopeprobe-tests";

/// Applies all documents of the text, in their order; namespaced ones without a namespace go into `namespace`.
///
/// # Errors
/// Text that is no manifest, a kind that the cluster does not know, and what the API server refuses.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for object in parse(yaml)? {
        let api = api(client, namespace, &object).await?;
        let name = object.name_any();
        let object = api
            .patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object))
            .await
            .map_err(Error::api(format!("apply {}", describe(&object))))?;
        applied.push(object);
    }
    Ok(applied)
}

async fn api(client: &Client, namespace: &str, object: &DynamicObject) -> Result<Api<DynamicObject>> {
    let types = object
        .types
        .as_ref()
        .ok_or_else(|| Error::Unexpected(format!("a manifest without apiVersion and kind: {}", object.name_any())))?;
    let kind = GroupVersionKind::try_from(types)
        .map_err(|error| Error::Unexpected(format!("a manifest with a bad apiVersion: {error}")))?;
    let (resource, capabilities) = pinned_kind(client, &kind)
        .await
        .map_err(Error::api(format!("find the kind {} {}", types.api_version, types.kind)))?;
    Ok(match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.namespace().unwrap_or_else(|| namespace.to_owned());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        }
    })
}

fn parse(yaml: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = Option::<DynamicObject>::deserialize(document)
            .map_err(|error| Error::Unexpected(format!("cannot read the manifest: {error}\n{yaml}")))?;
        objects.extend(object);
    }
    Ok(objects)
}

fn describe(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("?", |types| types.kind.as_str());
    format!("{kind} {}", object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_read_and_empty_ones_are_left_out() {
        let yaml = "---\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n";
        let described: Vec<_> = parse(yaml).unwrap().iter().map(describe).collect();
        assert_eq!(described, ["Pod a", "Service b"]);
    }

    #[test]
    fn text_that_is_no_manifest_is_shown() {
        assert!(parse("a: [").unwrap_err().to_string().contains("a: ["));
    }
}
