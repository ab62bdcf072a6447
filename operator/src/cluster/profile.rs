//! Facts of a pod that all pods of one workload share, more or less, so that they are kept once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

use super::app::AppLabels;

/// Labels that controllers give to single pods or generations of pods, and labels that change with each release: no
/// selector of a workload's pods may depend on them.
const VOLATILE_LABELS: [&str; 11] = [
    "app.kubernetes.io/version",
    "apps.kubernetes.io/pod-index",
    "controller-revision-hash",
    "controller-uid",
    "helm.sh/chart",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "rollouts-pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
    "version",
];
const VOLATILE_PREFIX: &str = "batch.kubernetes.io/";

/// Facts of a pod as a member of its workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Recommended labels.
    pub app: AppLabels,
    /// Labels that stay over releases.
    pub labels: BTreeMap<String, String>,
    /// `spec.serviceAccountName`; empty where it is not set.
    pub service_account: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
}

impl Profile {
    pub(super) fn of(metadata: &ObjectMeta, spec: &PodSpec) -> Self {
        let labels = metadata.labels.iter().flatten().filter(|(key, _)| !is_volatile(key));
        Self {
            app: metadata.labels.as_ref().map(AppLabels::of).unwrap_or_default(),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            service_account: spec.service_account_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or(false),
        }
    }
}

fn is_volatile(label: &str) -> bool {
    VOLATILE_LABELS.contains(&label) || label.starts_with(VOLATILE_PREFIX)
}

/// A pod's profile, and the time at which the pod was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodProfile {
    pub(super) created: Option<Timestamp>,
    pub(super) profile: Arc<Profile>,
}

/// Store that keeps equal profiles once.
#[derive(Clone, Debug, Default)]
pub(super) struct Profiles {
    known: HashSet<Arc<Profile>>,
}

impl Profiles {
    /// Returns the profile that is kept, if an equal one is, else keeps this one.
    pub(super) fn shared(&mut self, profile: &Arc<Profile>) -> Arc<Profile> {
        if let Some(known) = self.known.get(profile) {
            return Arc::clone(known);
        }
        self.known.insert(Arc::clone(profile));
        Arc::clone(profile)
    }

    /// Drops the profiles that nothing refers to.
    pub(super) fn drop_unused(&mut self) {
        self.known.retain(|profile| Arc::strong_count(profile) > 1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn profile_leaves_out_labels_that_change_with_pods_or_releases() {
        let metadata = serde_json::from_value(json!({"labels": {
            "app": "web", "pod-template-hash": "5d9", "app.kubernetes.io/version": "2", "app.kubernetes.io/name": "shop",
            "batch.kubernetes.io/job-name": "a", "job-name": "a", "version": "v2",
        }}))
        .expect("it is metadata");
        let spec = json!({"containers": [], "serviceAccountName": "builder", "hostNetwork": true});
        let profile = Profile::of(&metadata, &serde_json::from_value(spec).expect("it is a spec"));
        let labels: Vec<_> = profile.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(labels, [("app", "web"), ("app.kubernetes.io/name", "shop")]);
        assert_eq!((profile.app.version.as_deref(), profile.service_account.as_str()), (Some("2"), "builder"));
        assert!(profile.host_network);
    }

    #[test]
    fn profiles_keep_equal_ones_once_and_drop_unused_ones() {
        let mut profiles = Profiles::default();
        let of = |account: &str| Arc::new(Profile { service_account: account.to_owned(), ..Profile::default() });
        let one = profiles.shared(&of("a"));
        assert!(Arc::ptr_eq(&one, &profiles.shared(&of("a"))));
        drop(profiles.shared(&of("b")));
        profiles.drop_unused();
        assert_eq!(profiles.known.len(), 1);
    }
}
