//! Manifests of all kinds, as the chart installs them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{NodeProbe, ScopeProbe, Topology};

/// Folder of the generated manifests, below the repository's root: inside the chart, because a chart reads no other files.
pub const DIRECTORY: &str = "charts/scopeprobe/files/crds";

/// Returns the definitions of all kinds.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![ScopeProbe::crd(), NodeProbe::crd(), Topology::crd()]
}

/// Returns file name and contents of each kind's manifest.
///
/// # Errors
/// A type that YAML cannot represent, which would be a defect.
pub fn files() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    all().iter().map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), serde_yaml::to_string(crd)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A category that has the name of a kind makes `kubectl get` list all kinds of the category.
    #[test]
    fn categories_have_no_names_of_kinds() {
        for crd in all() {
            let categories = crd.spec.names.categories.clone().unwrap_or_default();
            assert_eq!(categories, ["scopeprobe-all"]);
            for other in all() {
                let names = &other.spec.names;
                let mut called = vec![names.plural.clone()];
                called.extend(names.singular.clone());
                called.extend(names.short_names.clone().unwrap_or_default());
                assert!(!called.iter().any(|name| categories.contains(name)), "{called:?}");
            }
        }
    }
}
