//! The manifests of all kinds, as the chart installs them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{NodeProbe, ScopeProbe, Topology};

/// Where the generated manifests live, below the repository's root: inside the chart, which cannot read outside of
/// itself.
pub const DIRECTORY: &str = "charts/scopeprobe/files/crds";

/// All kinds.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![ScopeProbe::crd(), NodeProbe::crd(), Topology::crd()]
}

/// File name and contents of each kind's manifest.
///
/// # Errors
/// Where a manifest cannot be written as YAML, which would be a defect of the types.
pub fn files() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    all().iter().map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), serde_yaml::to_string(crd)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kubectl takes a category's name for all of its kinds, also where one object of one kind was meant.
    #[test]
    fn no_category_is_called_like_a_kind() {
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
