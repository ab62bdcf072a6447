//! A picture in the language of Graphviz.

use std::collections::BTreeMap;

use super::{Names, label};
use crate::map::{Map, Peer};

/// Returns a directed graph with a cluster for each namespace. Edges with failed or pending attempts are dashed and red.
#[must_use]
pub fn dot(map: &Map) -> String {
    let names = Names::of(map);
    let mut text = vec!["digraph topology {\n  rankdir=LR;\n  node [shape=box];\n".to_owned()];
    let mut by_namespace: BTreeMap<Option<String>, Vec<(&Peer, &str)>> = BTreeMap::new();
    for (peer, name) in names.all() {
        let cluster = peer.cluster().map(|cluster| format!("@{cluster}")).unwrap_or_default();
        let namespace = peer.namespace().map(|namespace| format!("{namespace}{cluster}"));
        by_namespace.entry(namespace).or_default().push((peer, name));
    }
    for (number, (namespace, nodes)) in by_namespace.iter().enumerate() {
        let indent = if let Some(namespace) = namespace {
            text.push(format!("  subgraph cluster_{number} {{\n    label={};\n", quoted(namespace)));
            "    "
        } else {
            "  "
        };
        for (peer, name) in nodes {
            let node = names.number(peer);
            let style = if peer.is_external() { ", style=rounded" } else { "" };
            text.push(format!("{indent}n{node} [label={}{style}];\n", quoted(name)));
        }
        if namespace.is_some() {
            text.push("  }\n".to_owned());
        }
    }
    for edge in &map.edges {
        let style = if edge.counters.has_failures() { ", style=dashed, color=red" } else { "" };
        let label = label(edge);
        let (client, server) = (names.number(&edge.client), names.number(&edge.server));
        text.push(format!("  n{client} -> n{server} [label={}{style}];\n", quoted(&label.join("\n"))));
    }
    text.push("}\n".to_owned());
    text.concat()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
