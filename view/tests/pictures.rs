//! Pictures of any maps: nothing overlaps, and everything is there.

#![expect(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;

use crds::{PeerType, TopologyPeer};
use proptest::prelude::*;
use scopeprobe_view::{
    Edge, Map, Peer,
    layout::{self, Layout, Link, Point, Size},
    render,
};

/// Numbers of nodes and links between different ones.
fn graph() -> impl Strategy<Value = (usize, Vec<(usize, usize)>)> {
    (2..14_usize).prop_flat_map(|nodes| {
        let links = prop::collection::btree_set((0..nodes, 0..nodes), 0..30);
        (Just(nodes), links.prop_map(|links| links.into_iter().filter(|(from, to)| from != to).collect()))
    })
}

fn sizes(nodes: usize) -> Vec<Size> {
    (0..nodes).map(|node| Size { width: [60.0, 140.0, 95.0][node % 3], height: [30.0, 46.0][node % 2] }).collect()
}

fn picture(nodes: usize, links: &[(usize, usize)]) -> (Vec<Link>, Layout) {
    let links: Vec<Link> = links
        .iter()
        .map(|(from, to)| Link { from: *from, to: *to, label: Size { width: 70.0, height: 18.0 } })
        .collect();
    let layout = layout::layout(&sizes(nodes), &links);
    (links, layout)
}

/// Box of a node or label: left, right, top and bottom side.
fn sides(center: Point, size: Size) -> [f64; 4] {
    [
        center.x - size.width / 2.0,
        center.x + size.width / 2.0,
        center.y - size.height / 2.0,
        center.y + size.height / 2.0,
    ]
}

/// Returns whether two boxes have more than a rounding error in common.
fn overlaps(one: [f64; 4], other: [f64; 4]) -> bool {
    let common = |one: (f64, f64), other: (f64, f64)| one.0 + 1.0 < other.1 && other.0 + 1.0 < one.1;
    common((one[0], one[1]), (other[0], other[1])) && common((one[2], one[3]), (other[2], other[3]))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn boxes_and_labels_do_not_overlap((nodes, links) in graph()) {
        let (links, layout) = picture(nodes, &links);
        let boxes = layout.nodes.iter().zip(sizes(nodes)).map(|(at, size)| sides(*at, size));
        let labels = layout.links.iter().zip(&links).map(|(way, link)| sides(way.label, link.label));
        let all: Vec<[f64; 4]> = boxes.chain(labels).collect();
        for (number, one) in all.iter().enumerate() {
            for other in &all[number + 1..] {
                prop_assert!(!overlaps(*one, *other), "{one:?} and {other:?}");
            }
            let is_inside = one[0] >= -0.5 && one[2] >= -1.0 && one[1] <= layout.size.width + 0.5
                && one[3] <= layout.size.height + 1.0;
            prop_assert!(is_inside, "{one:?} in {:?}", layout.size);
        }
    }

    #[test]
    fn links_lead_from_side_to_side((nodes, links) in graph()) {
        let (links, layout) = picture(nodes, &links);
        let sizes = sizes(nodes);
        for (link, way) in links.iter().zip(&layout.links) {
            let is_at = |point: Point, node: usize| {
                let [left, right, ..] = sides(layout.nodes[node], sizes[node]);
                let is_near = |x: f64| (point.x - x).abs() < 0.01;
                (is_near(left) || is_near(right)) && (point.y - layout.nodes[node].y).abs() < 0.01
            };
            let (first, last) = (way.points[0], way.points[way.points.len() - 1]);
            prop_assert!(is_at(first, link.from) && is_at(last, link.to), "{link:?} {way:?}");
            prop_assert_eq!(way.points.len() % 2, 0);
        }
    }

    #[test]
    fn clients_are_left_of_servers_without_cycles((nodes, links) in graph()) {
        let forward: Vec<(usize, usize)> = links.into_iter().filter(|(from, to)| from < to).collect();
        let (links, layout) = picture(nodes, &forward);
        for link in links {
            prop_assert!(layout.nodes[link.from].x < layout.nodes[link.to].x);
        }
    }

    #[test]
    fn svg_has_each_peer_and_pair_with_any_names(names in prop::collection::vec("\\PC{1,60}|.{0,9}", 2..8), links in
        prop::collection::btree_set((0..8_usize, 0..8_usize), 1..12))
    {
        let links: BTreeSet<(usize, usize)> =
            links.into_iter().map(|(from, to)| (from % names.len(), to % names.len())).collect();
        let edges = links.iter().enumerate().map(|(number, (from, to))| edge(number, &peer(&names, *from), &peer(&names, *to)));
        let map = Map::new(edges.collect(), vec!["<gap> & \u{7}".to_owned()]);
        let text = render::svg(&map);
        let document = roxmltree::Document::parse(&text).expect("it is XML");
        let groups = document.descendants().filter(|node| node.has_tag_name("g")).count();
        let peers: BTreeSet<usize> = links.iter().flat_map(|(from, to)| [*from, *to]).collect();
        let pairs = links.iter().filter(|(from, to)| from != to).count();
        prop_assert_eq!(groups, peers.len() + pairs);
        let scripts = document.descendants().filter(|node| matches!(node.tag_name().name(), "script" | "a" | "image"));
        prop_assert_eq!(scripts.count(), 0);
    }
}

fn peer(names: &[String], number: usize) -> Peer {
    // Names are equal at times: the kind is not.
    Peer::one(TopologyPeer {
        type_: PeerType::Workload,
        kind: Some(format!("Kind{number}")),
        namespace: Some("shop".to_owned()),
        name: Some(names[number].clone()),
        ..TopologyPeer::default()
    })
}

fn edge(number: usize, client: &Peer, server: &Peer) -> Edge {
    let json = serde_json::json!({
        "id": number.to_string(), "client": client, "server": server, "port": 80, "protocol": "TCP",
        "counters": {"opened": 1, "active": 0, "failed": 0},
    });
    serde_json::from_value(json).expect("it is an edge")
}

#[test]
fn large_graphs_are_laid_out_in_bounded_time() {
    // As many as the largest supported maps have; a layout of quadratic cost would take minutes.
    let nodes = 5_000;
    let links: BTreeSet<(usize, usize)> = (0..20_000_usize)
        .map(|link| (link % nodes, (link * 7_919 + link / nodes * 31) % nodes))
        .filter(|(from, to)| from != to)
        .collect();
    let (links, layout) = picture(nodes, &links.into_iter().collect::<Vec<_>>());
    assert_eq!((layout.nodes.len(), layout.links.len()), (nodes, links.len()));
}
