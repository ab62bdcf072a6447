//! Everything that is in a cluster, by name, so that two moments can be compared.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::{Cluster, Error, Result};

/// Kinds whose objects come and go by themselves, or that are another view of listed objects.
const LEFT_OUT: [&str; 3] = ["events", "events.events.k8s.io", "componentstatuses"];

/// All objects of all kinds, as `Kind namespace/name` or `Kind name`, and the labels of nodes as `Node name label=value`.
///
/// Namespaces of tests are left out.
///
/// # Errors
/// Returns an error if a kind cannot be listed.
pub async fn take(cluster: &Cluster) -> Result<BTreeSet<String>> {
    // What kubectl remembers of the kinds may be about an earlier moment.
    let cache = tempfile::tempdir().map_err(Error::io("make a folder for kubectl's cache"))?;
    let cache = format!("--cache-dir={}", cache.path().display());
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "--output=name", &cache]).await?;
    let kinds: Vec<_> = kinds.split_whitespace().filter(|kind| !LEFT_OUT.contains(kind)).collect();
    let columns = "--output=custom-columns=A:.kind,B:.metadata.namespace,C:.metadata.name";
    let listed =
        cluster.kubectl(&["get", &kinds.join(","), "--all-namespaces", "--no-headers", columns, &cache]).await?;
    let mut all: BTreeSet<String> = listed.lines().filter_map(describe).collect();
    for (node, labels) in node_labels(cluster).await? {
        all.extend(labels.iter().map(|(label, value)| format!("Node {node} {label}={value}")));
    }
    Ok(all)
}

fn describe(line: &str) -> Option<String> {
    let mut columns = line.split_whitespace();
    let (kind, namespace, name) = (columns.next()?, columns.next()?, columns.next()?);
    let of_a_test = namespace.starts_with("test-") || kind == "Namespace" && name.starts_with("test-");
    match namespace {
        _ if of_a_test => None,
        "<none>" => Some(format!("{kind} {name}")),
        _ => Some(format!("{kind} {namespace}/{name}")),
    }
}

async fn node_labels(cluster: &Cluster) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(Error::api("list nodes"))?.items;
    Ok(nodes.into_iter().map(|node| (node.name_any(), node.labels().clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_by_kind_and_name_and_those_of_tests_are_left_out() {
        assert_eq!(describe("Pod   shop   cart").as_deref(), Some("Pod shop/cart"));
        assert_eq!(describe("Node  <none>  node-1").as_deref(), Some("Node node-1"));
        assert_eq!(describe("Pod   test-a-b   cart"), None);
        assert_eq!(describe("Namespace   <none>   test-a-b"), None);
    }
}
