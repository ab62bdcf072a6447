//! Facts of a Namespace: its labels, by which `spec.topology.namespaceSelector` selects it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;

use super::{listed::Listed, steps::Step};

/// A Namespace by name, with its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
}

pub(super) fn facts(object: PartialObjectMeta<Namespace>) -> Option<NamespaceFacts> {
    Some(NamespaceFacts { name: object.metadata.name?, labels: object.metadata.labels.unwrap_or_default() })
}

/// Labels of all Namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces {
    labels: BTreeMap<String, BTreeMap<String, String>>,
    listed: Listed<String>,
}

impl Namespaces {
    pub(super) fn labels_of(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.labels.get(name)
    }

    /// Returns whether labels changed.
    pub(super) fn apply(&mut self, step: Step<NamespaceFacts>) -> bool {
        match step {
            Step::Begin => {
                self.listed.begin();
                false
            }
            Step::Upsert(NamespaceFacts { name, labels }) => {
                self.listed.upsert(name.clone());
                let is_news = self.labels.get(&name) != Some(&labels);
                self.labels.insert(name, labels);
                is_news
            }
            Step::Remove(NamespaceFacts { name, .. }) => {
                self.listed.remove(&name);
                self.labels.remove(&name).is_some()
            }
            Step::Complete => {
                for name in self.listed.complete() {
                    self.labels.remove(&name);
                }
                true
            }
        }
    }
}
