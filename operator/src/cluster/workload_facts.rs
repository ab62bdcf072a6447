//! Facts of a workload that its Topology shows: what policies and people need to refer to it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{app::AppLabels, profile::Profile};

/// Facts of a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadFacts {
    /// API group and version of its kind.
    pub api_version: String,
    /// Recommended labels of its newest pod.
    pub app: AppLabels,
    /// Selector of its pods: its own, else the labels that all of its pods share; `None` where there are none.
    pub pod_selector: Option<LabelSelector>,
    /// ServiceAccounts of its pods.
    pub service_accounts: BTreeSet<String>,
    /// Whether one of its pods uses its node's network.
    pub host_network: bool,
}

/// Returns the facts of a workload with its own selector, if it has one, and the profiles of its pods, newest first.
pub(super) fn of<'a>(
    api_version: String,
    own_selector: Option<&LabelSelector>,
    pods: impl Iterator<Item = &'a Profile>,
) -> WorkloadFacts {
    let mut facts = WorkloadFacts { api_version, ..WorkloadFacts::default() };
    let mut shared: Option<BTreeMap<&String, &String>> = None;
    for profile in pods {
        match &mut shared {
            None => {
                facts.app = profile.app.clone();
                shared = Some(profile.labels.iter().collect());
            }
            Some(shared) => shared.retain(|key, value| profile.labels.get(*key) == Some(*value)),
        }
        if !profile.service_account.is_empty() && !facts.service_accounts.contains(&profile.service_account) {
            facts.service_accounts.insert(profile.service_account.clone());
        }
        facts.host_network |= profile.host_network;
    }
    facts.pod_selector = own_selector.cloned().or_else(|| {
        let shared = shared.filter(|labels| !labels.is_empty())?;
        let labels = shared.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
    });
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(labels: &[(&str, &str)], service_account: &str, version: &str) -> Profile {
        Profile {
            app: AppLabels { version: Some(version.to_owned()), ..AppLabels::default() },
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            service_account: service_account.to_owned(),
            host_network: false,
        }
    }

    #[test]
    fn selector_holds_what_all_pods_share_where_the_workload_has_none() {
        let pods = [
            profile(&[("app", "web"), ("tier", "front"), ("track", "a")], "web", "2"),
            profile(&[("app", "web"), ("tier", "front"), ("track", "b")], "default", "1"),
            profile(&[("app", "web"), ("tier", "back")], "web", "1"),
        ];
        let facts = of("example.com/v1".to_owned(), None, pods.iter());
        let labels = facts.pod_selector.and_then(|selector| selector.match_labels).expect("a selector");
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("app".to_owned(), "web".to_owned())]);
        assert_eq!(facts.service_accounts.into_iter().collect::<Vec<_>>(), ["default", "web"]);
        assert_eq!(facts.app.version.as_deref(), Some("2"), "the newest pod's");

        let own: LabelSelector = serde_json::from_value(serde_json::json!({"matchLabels": {"run": "x"}})).expect("one");
        assert_eq!(of("apps/v1".to_owned(), Some(&own), pods.iter()).pod_selector, Some(own));
        let nothing_shared = [profile(&[("a", "1")], "", "1"), profile(&[("b", "1")], "", "1")];
        assert_eq!(of("v1".to_owned(), None, nothing_shared.iter()).pod_selector, None);
        assert_eq!(of("v1".to_owned(), None, std::iter::empty()).pod_selector, None);
    }
}
