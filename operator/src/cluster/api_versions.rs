//! API versions by which kinds of workloads are referred to.

use std::collections::HashMap;

use kube::core::Version;
use topology::entity::Workload;

/// The version of each kind: of several that references name, the most stable one, so that it does not alternate.
#[derive(Clone, Debug, Default)]
pub(super) struct ApiVersions {
    /// Version by group and kind.
    known: HashMap<(String, String), String>,
}

impl ApiVersions {
    /// Notes that a reference names this API version (`group/version`, or a version alone) and kind.
    pub(super) fn note(&mut self, api_version: &str, kind: &str) {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let known = self.known.entry((group.to_owned(), kind.to_owned())).or_default();
        if known.is_empty() || Version::parse(known).priority() < Version::parse(version).priority() {
            version.clone_into(known);
        }
    }

    /// Returns the API version of a workload's kind. A kind that no reference has named gets `v1`.
    pub(super) fn of(&self, workload: &Workload) -> String {
        let key = (workload.group.clone(), workload.kind.clone());
        let version = self.known.get(&key).map_or("v1", String::as_str);
        if workload.group.is_empty() { version.to_owned() } else { format!("{}/{version}", workload.group) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(versions: &ApiVersions, group: &str, kind: &str) -> String {
        let (group, kind) = (group.to_owned(), kind.to_owned());
        versions.of(&Workload { namespace: "shop".to_owned(), kind, name: "a".to_owned(), group })
    }

    #[test]
    fn api_versions_keep_the_most_stable_version_of_each_kind() {
        let mut versions = ApiVersions::default();
        for version in ["example.com/v1beta1", "example.com/v2alpha1", "example.com/v1", "example.com/v1beta2"] {
            versions.note(version, "Shop");
        }
        versions.note("other.example.com/v1alpha1", "Shop");
        versions.note("v1", "Pod");
        assert_eq!(of(&versions, "example.com", "Shop"), "example.com/v1");
        assert_eq!(of(&versions, "other.example.com", "Shop"), "other.example.com/v1alpha1");
        assert_eq!(of(&versions, "", "Pod"), "v1");
        assert_eq!(of(&versions, "apps", "Unheard"), "apps/v1");
    }
}
