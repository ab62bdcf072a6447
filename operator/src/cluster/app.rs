//! Recommended labels of pods that Topologies carry, too.
//!
//! `app.kubernetes.io/instance` and `managed-by` are not among them: tools use these to find the objects that they own.

use std::collections::BTreeMap;

const NAME: &str = "app.kubernetes.io/name";
const VERSION: &str = "app.kubernetes.io/version";
const COMPONENT: &str = "app.kubernetes.io/component";
const PART_OF: &str = "app.kubernetes.io/part-of";

/// Recommended labels that name an application. An API server has validated them: at most 63 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AppLabels {
    /// `app.kubernetes.io/name`.
    pub name: Option<String>,
    /// `app.kubernetes.io/version`.
    pub version: Option<String>,
    /// `app.kubernetes.io/component`.
    pub component: Option<String>,
    /// `app.kubernetes.io/part-of`.
    pub part_of: Option<String>,
}

impl AppLabels {
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Self {
        let value = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
        Self { name: value(NAME), version: value(VERSION), component: value(COMPONENT), part_of: value(PART_OF) }
    }

    /// Returns them as labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<&'static str, &str> {
        let all =
            [(NAME, &self.name), (VERSION, &self.version), (COMPONENT, &self.component), (PART_OF, &self.part_of)];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))).collect()
    }
}
