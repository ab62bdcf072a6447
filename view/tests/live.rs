//! Properties of the map while it changes.

#![expect(clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use scopeprobe_view::{
    live::{CatchUp, Delta, Graph, Journal},
    read,
};

/// Connections by client, server and port. Few, so that graphs of one sequence have much in common.
type Calls = BTreeMap<(u8, u8, u16), u64>;

fn calls() -> impl Strategy<Value = Calls> {
    prop::collection::btree_map((0..5_u8, 0..5_u8, 1..3_u16), 0..4_u64, 0..12)
}

fn graph((calls, caveat): &(Calls, bool)) -> Graph {
    let workload = |number: &u8| {
        serde_json::json!({"type": "Workload", "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop",
            "name": format!("w{number}")})
    };
    let edge = |((client, server, port), opened): (&(u8, u8, u16), &u64)| {
        serde_json::json!({"id": format!("{client:05}{server:05}{port:06}"), "client": workload(client),
            "server": workload(server), "port": port, "protocol": "TCP",
            "counters": {"opened": opened, "active": 0, "failed": 0}})
    };
    let map = serde_json::json!({"apiVersion": "view.scopeprobe.io/v1alpha1", "kind": "TopologyMap",
        "edges": calls.iter().map(edge).collect::<Vec<_>>(),
        "caveats": if *caveat { vec!["one node has no agent"] } else { vec![] }});
    let mut graph = Graph::of(&read::text(&map.to_string()).expect("it is a map"));
    if *caveat {
        "the API server does not answer".clone_into(&mut graph.problem);
    }
    graph
}

fn graphs() -> impl Strategy<Value = Vec<Graph>> {
    prop::collection::vec((calls(), any::<bool>()).prop_map(|one| graph(&one)), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn graph_has_each_edge_and_its_ends(calls in calls()) {
        let graph = graph(&(calls.clone(), false));
        prop_assert_eq!(graph.edges.len(), calls.len());
        for (edge, ((client, server, port), opened)) in graph.edges.values().zip(&calls) {
            prop_assert_eq!(&graph.nodes[&edge.client].label, &format!("shop/w{client}"));
            prop_assert_eq!(&graph.nodes[&edge.server].label, &format!("shop/w{server}"));
            prop_assert_eq!((edge.port, edge.counters.opened), (Some(*port), *opened));
        }
        let used = |id: &String| graph.edges.values().any(|edge| edge.client == *id || edge.server == *id);
        prop_assert!(graph.nodes.keys().all(used), "a node without an edge");
    }

    #[test]
    fn graph_with_its_delta_is_the_next_graph(graphs in graphs()) {
        for pair in graphs.windows(2) {
            let delta = Delta::between(&pair[0], &pair[1]);
            let mut next = pair[0].clone();
            next.apply(&delta);
            prop_assert_eq!(&next, &pair[1]);
            prop_assert_eq!(delta.is_empty(), pair[0] == pair[1]);
        }
    }

    #[test]
    fn reader_of_any_revision_catches_up(graphs in graphs()) {
        let mut journal = Journal::default();
        let mut revisions = vec![Graph::default()];
        for graph in &graphs {
            if journal.record(graph.clone()) {
                revisions.push(graph.clone());
            }
            prop_assert_eq!(journal.graph(), graph);
        }
        prop_assert_eq!(journal.revision() + 1, revisions.len() as u64);
        for (revision, known) in revisions.iter().enumerate() {
            let CatchUp::Deltas(deltas) = journal.since(revision as u64) else { continue };
            let mut known = known.clone();
            for (at, delta) in deltas {
                known.apply(delta);
                prop_assert_eq!(&known, &revisions[usize::try_from(at).expect("it is small")]);
            }
            prop_assert_eq!(&known, journal.graph());
        }
        prop_assert_eq!(journal.since(journal.revision()), CatchUp::Deltas(Vec::new()));
        prop_assert_eq!(journal.since(journal.revision() + 1), CatchUp::Snapshot);
    }
}

#[test]
fn journal_keeps_no_more_than_a_snapshot_holds() {
    let with = |number: u64| graph(&(Calls::from([((0, 1, 1), number)]), false));
    let mut journal = Journal::default();
    for number in 0..10 {
        assert!(journal.record(with(number)));
    }
    assert!(matches!(journal.since(9), CatchUp::Deltas(deltas) if deltas.len() == 1));
    assert_eq!(journal.since(1), CatchUp::Snapshot);
}

#[test]
fn nodes_of_one_name_have_labels_with_their_kind() {
    let workload = |kind: &str, name: &str| serde_json::json!({"type": "Workload", "apiVersion": "apps/v1", "kind": kind, "namespace": "shop", "name": name});
    let edge = |id: &str, client, server| {
        serde_json::json!({"id": id, "client": client, "server": server, "protocol": "TCP",
            "counters": {"opened": 1, "active": 0, "failed": 0}})
    };
    let map = |edges: &[serde_json::Value]| {
        let map =
            serde_json::json!({"apiVersion": "view.scopeprobe.io/v1alpha1", "kind": "TopologyMap", "edges": edges});
        Graph::of(&read::text(&map.to_string()).expect("it is a map"))
    };
    let first = edge("1", workload("Deployment", "web"), workload("Deployment", "db"));
    let second = edge("2", workload("StatefulSet", "web"), workload("Deployment", "db"));
    let labels = |graph: &Graph| graph.nodes.values().map(|node| node.label.clone()).collect::<Vec<_>>();
    let (before, after) = (map(std::slice::from_ref(&first)), map(&[first, second]));
    assert_eq!(labels(&before), ["shop/db", "shop/web"]);
    assert_eq!(labels(&after), ["shop/db", "shop/web (Deployment)", "shop/web (StatefulSet)"]);
    let changed = Delta::between(&before, &after).nodes;
    assert_eq!(
        changed.keys().collect::<Vec<_>>(),
        ["Workload/shop/Deployment.apps/web", "Workload/shop/StatefulSet.apps/web"]
    );
}
