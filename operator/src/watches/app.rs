//! Application of pods, by the labels that Kubernetes recommends.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

const NAME: &str = "app.kubernetes.io/name";
const VERSION: &str = "app.kubernetes.io/version";
const INSTANCE: &str = "app.kubernetes.io/instance";
const COMPONENT: &str = "app.kubernetes.io/component";
const PART_OF: &str = "app.kubernetes.io/part-of";

/// The recommended labels that say what something is. An API server has checked them: at most 63 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppLabels {
    /// `app.kubernetes.io/name`.
    pub name: Option<String>,
    /// `app.kubernetes.io/version`.
    pub version: Option<String>,
    /// `app.kubernetes.io/instance`.
    pub instance: Option<String>,
    /// `app.kubernetes.io/component`.
    pub component: Option<String>,
    /// `app.kubernetes.io/part-of`.
    pub part_of: Option<String>,
}

impl AppLabels {
    fn of(labels: &BTreeMap<String, String>) -> Self {
        let value = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
        Self {
            name: value(NAME),
            version: value(VERSION),
            instance: value(INSTANCE),
            component: value(COMPONENT),
            part_of: value(PART_OF),
        }
    }

    /// As labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<&'static str, &str> {
        let all = [
            (NAME, &self.name),
            (VERSION, &self.version),
            (INSTANCE, &self.instance),
            (COMPONENT, &self.component),
            (PART_OF, &self.part_of),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))).collect()
    }
}

/// Recommended labels of one pod, and its creation time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AppOfPod {
    pub(super) created: Option<Timestamp>,
    pub(super) labels: Arc<AppLabels>,
}

impl AppOfPod {
    pub(super) fn of(metadata: &ObjectMeta) -> Self {
        Self {
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            labels: metadata.labels.as_ref().map(AppLabels::of).unwrap_or_default().into(),
        }
    }
}
