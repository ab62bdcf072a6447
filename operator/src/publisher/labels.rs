//! The labels of Topology objects: the recommended ones of the workload's pods, so that `kubectl get topology -l` finds
//! them. A label that anybody else has set is theirs.

use std::collections::{BTreeMap, BTreeSet};

use crds::Topology;
use kube::ResourceExt;

use crate::cluster::AppLabels;

/// Field manager of the labels and the owner. It differs from the manager of the status, which forces its fields.
pub(super) const FIELD_MANAGER: &str = "scopeprobe-labels";

/// Returns the labels that are to be ours. What others have set is left to them.
pub(super) fn wanted<'a>(known: Option<&Topology>, app: &'a AppLabels) -> BTreeMap<&'static str, &'a str> {
    let mut wanted = app.labels();
    if let Some(known) = known {
        let (ours, there) = (ours(known), known.labels());
        wanted.retain(|key, _| ours.contains(*key) || !there.contains_key(*key));
    }
    wanted
}

/// Returns whether the object does not have our labels as they are to be.
pub(super) fn differ(known: &Topology, app: &AppLabels) -> bool {
    let (ours, there, wanted) = (ours(known), known.labels(), wanted(Some(known), app));
    let is_as_wanted = |key: &&str| there.get(*key).map(String::as_str) == wanted.get(*key).copied();
    ours.len() != wanted.len() || !ours.iter().all(|key| wanted.contains_key(*key) && is_as_wanted(key))
}

/// Returns the labels that the operator set and no other manager took over.
pub(super) fn ours(topology: &Topology) -> BTreeSet<&str> {
    let own = topology.managed_fields().iter().filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    let labels = own.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:metadata")?.get("f:labels")?.as_object());
    labels.flat_map(|labels| labels.keys()).filter_map(|key| key.strip_prefix("f:")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn topology(labels: &[(&str, &str)], ours: &[&str]) -> Topology {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let fields: BTreeMap<_, _> = ours.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
        serde_json::from_value(json!({
            "apiVersion": "scopeprobe.io/v1alpha1", "kind": "Topology", "spec": {},
            "metadata": {
                "name": "t", "labels": labels,
                "managedFields": [
                    {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:metadata": {"f:labels": fields}}},
                    {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:metadata": {"f:labels": {"f:team": {}}}}},
                ],
            },
        }))
        .expect("it is a Topology")
    }

    const NAME: &str = "app.kubernetes.io/name";
    const VERSION: &str = "app.kubernetes.io/version";

    #[test]
    fn what_is_as_it_should_be_is_left_and_what_others_have_set_is_theirs() {
        let app = AppLabels { name: Some("shop".to_owned()), version: Some("2".to_owned()), ..AppLabels::default() };
        let nothing = AppLabels::default();
        let both = BTreeMap::from([(NAME, "shop"), (VERSION, "2")]);
        let change = |known: &Topology, app| differ(known, app).then(|| wanted(Some(known), app));
        assert_eq!([wanted(None, &app), wanted(None, &nothing)], [both.clone(), BTreeMap::new()]);
        assert_eq!(change(&topology(&[], &[]), &app), Some(both.clone()));
        let as_wanted = topology(&[(NAME, "shop"), (VERSION, "2"), ("team", "a")], &[NAME, VERSION]);
        assert_eq!(change(&as_wanted, &app), None);
        assert_eq!(change(&as_wanted, &nothing), Some(BTreeMap::new()));
        let older = topology(&[(NAME, "shop"), (VERSION, "1")], &[NAME, VERSION]);
        assert_eq!(change(&older, &app), Some(both));
        let taken_over = topology(&[(NAME, "theirs"), (VERSION, "2")], &[VERSION]);
        assert_eq!(change(&taken_over, &app), None);
        let theirs = topology(&[(NAME, "theirs")], &[]);
        assert_eq!(change(&theirs, &app), Some(BTreeMap::from([(VERSION, "2")])));
        assert_eq!(change(&theirs, &nothing), None);
    }
}
