//! Workloads that are known by what their pods' owner references say alone: bare pods, and owners of kinds that are not
//! watched.

use std::collections::{HashMap, HashSet};

use topology::entity::Workload;

/// Fields of an ownerReference to a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerIdentity {
    /// Group and version of its kind.
    pub api_version: String,
    /// Its UID.
    pub uid: String,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Referenced {
    /// Owners of each workload in order of appearance, each with its pods' UIDs: usually one.
    workloads: HashMap<Workload, Vec<(OwnerIdentity, HashSet<String>)>>,
}

impl Referenced {
    pub(super) fn note(&mut self, workload: Workload, identity: OwnerIdentity, pod_uid: &str) {
        let meant = self.workloads.entry(workload).or_default();
        let index = meant.iter().position(|(known, _)| *known == identity).unwrap_or_else(|| {
            meant.push((identity, HashSet::new()));
            meant.len() - 1
        });
        meant[index].1.insert(pod_uid.to_owned());
    }

    pub(super) fn forget(&mut self, workload: &Workload, pod_uid: &str) {
        let Some(meant) = self.workloads.get_mut(workload) else { return };
        for (_, pods) in &mut *meant {
            pods.remove(pod_uid);
        }
        meant.retain(|(_, pods)| !pods.is_empty());
        if meant.is_empty() {
            self.workloads.remove(workload);
        }
    }

    /// Returns the owner of a workload's object: the one that came last, as it was recreated under its name.
    pub(super) fn identity(&self, workload: &Workload) -> Option<&OwnerIdentity> {
        self.workloads.get(workload)?.last().map(|(identity, _)| identity)
    }

    pub(super) fn pods(&self, workload: &Workload) -> impl Iterator<Item = &String> {
        self.workloads.get(workload).into_iter().flatten().flat_map(|(_, pods)| pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(api_version: &str, uid: &str) -> OwnerIdentity {
        OwnerIdentity { api_version: api_version.to_owned(), uid: uid.to_owned() }
    }

    #[test]
    fn an_object_follows_one_that_was_made_again() {
        let workload = Workload {
            namespace: "shop".to_owned(),
            kind: "Job".to_owned(),
            name: "sums".to_owned(),
            group: "a.io".to_owned(),
        };
        let mut referenced = Referenced::default();
        let uid = |referenced: &Referenced| referenced.identity(&workload).map(|identity| identity.uid.clone());
        referenced.note(workload.clone(), identity("a.io/v1", "1"), "pod-1");
        referenced.note(workload.clone(), identity("a.io/v1", "1"), "pod-2");
        assert_eq!(uid(&referenced).as_deref(), Some("1"));
        referenced.note(workload.clone(), identity("a.io/v1beta1", "3"), "pod-3");
        assert_eq!(uid(&referenced).as_deref(), Some("3"));
        assert_eq!(referenced.pods(&workload).count(), 3);
        referenced.forget(&workload, "pod-3");
        assert_eq!(uid(&referenced).as_deref(), Some("1"));
        for pod in ["pod-1", "pod-2"] {
            referenced.forget(&workload, pod);
        }
        assert_eq!(uid(&referenced), None);
    }
}
