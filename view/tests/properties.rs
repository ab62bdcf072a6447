//! Properties of maps of any objects.

#![expect(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;

use crds::{
    EdgePod, PeerType, SeenEnds, Topology, TopologyEdge, TopologyPeer, TopologySpec, TopologyStatus, TransportProtocol,
    WorkloadRef,
};
use proptest::prelude::*;
use scopeprobe_view::{
    Edge, Map, Peer, bundle,
    diff::{Difference, Relation},
    filter::Filter,
    inventory::{Inventory, Listed},
    level::{self, Level},
    read, render,
    unused::{self, Finding},
};

const NAMESPACES: [&str; 2] = ["shop", "billing"];
const NAMES: [&str; 4] = ["web", "cart", "db", "a \"quoted\" one"];

/// Client, server, port, counts and the ends that have an object.
type Call = (usize, usize, u16, u64, u64, (bool, bool));

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let workload = || 0..NAMESPACES.len() * NAMES.len();
    let call = (workload(), workload(), 1..4_u16, 0..9_u64, 0..3_u64, any::<(bool, bool)>());
    prop::collection::vec(call, 0..30)
}

fn peer(number: usize) -> TopologyPeer {
    TopologyPeer {
        type_: PeerType::Workload,
        api_version: Some("apps/v1".to_owned()),
        kind: Some("Deployment".to_owned()),
        namespace: Some(NAMESPACES[number / NAMES.len()].to_owned()),
        name: Some(NAMES[number % NAMES.len()].to_owned()),
        ..TopologyPeer::default()
    }
}

fn edge((client, server, port, opened, failed, _): Call, peer: TopologyPeer, is_egress: bool) -> TopologyEdge {
    let base: TopologyEdge = serde_json::from_value(serde_json::json!({
        "id": format!("{client:05}{server:05}{port:06}"), "peer": {"type": "Node"}, "opened": 0, "active": 0,
        "failed": 0, "seen": "Both", "identity": "Cgroup", "methods": ["EBPF"], "direction": "Observed",
    }))
    .expect("it is an edge");
    let (sent, received) = if is_egress { (opened * 10, opened) } else { (opened, opened * 10) };
    TopologyEdge {
        peer,
        pods: vec![EdgePod { pod: format!("pod-{client}-{server}-{is_egress}"), opened, ..EdgePod::default() }],
        port: Some(port),
        opened,
        failed,
        bytes_sent: Some(sent),
        bytes_received: Some(received),
        ..base
    }
}

/// The objects of all workloads, as far as calls have one at this end.
fn objects(calls: &[Call]) -> Vec<Topology> {
    let mut seen = BTreeSet::new();
    let calls: Vec<Call> = calls.iter().copied().filter(|call| seen.insert((call.0, call.1, call.2))).collect();
    let object = |number: usize| {
        let own = peer(number);
        let mut topology = Topology::new(&format!("deployment-{number}"), TopologySpec::default());
        topology.metadata.namespace.clone_from(&own.namespace);
        let workload = WorkloadRef {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: own.name.unwrap_or_default(),
            ..WorkloadRef::default()
        };
        let mut status = TopologyStatus { workload, ..TopologyStatus::default() };
        let (egress, ingress) = (
            calls.iter().filter(|call| call.0 == number && call.5.0),
            calls.iter().filter(|call| call.1 == number && call.5.1),
        );
        status.egress = egress.map(|call| edge(*call, peer(call.1), true)).collect();
        status.ingress = ingress.map(|call| edge(*call, peer(call.0), false)).collect();
        topology.status = Some(status);
        topology
    };
    (0..NAMESPACES.len() * NAMES.len()).map(object).collect()
}

/// Edges that at least one object has, counted without the map.
fn expected(calls: &[Call]) -> BTreeSet<(usize, usize, u16)> {
    let mut seen = BTreeSet::new();
    let first = calls.iter().filter(|call| seen.insert((call.0, call.1, call.2)));
    first.filter(|call| call.5.0 || call.5.1).map(|call| (call.0, call.1, call.2)).collect()
}

/// Identifiers of the edges that the object of one end alone has, counted without the map.
fn edges_of_one_end(calls: &[Call]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let first = calls.iter().filter(|call| seen.insert((call.0, call.1, call.2)));
    let of_one_end = first.filter(|call| call.5.0 != call.5.1);
    of_one_end.map(|call| format!("{:05}{:05}{:06}", call.0, call.1, call.2)).collect()
}

fn filter() -> impl Strategy<Value = Filter> {
    (prop::option::of(0..NAMES.len()), 1..3_usize, prop::option::of(1..4_u16), any::<bool>()).prop_map(
        |(around, hops, port, failed)| Filter {
            around: around.map(|name| NAMES[name].to_owned()),
            hops,
            port,
            failed,
            ..Filter::default()
        },
    )
}

/// Name of a peer with another cluster at its end.
fn one_name(cluster: &str, peer: &Peer) -> String {
    let shown = peer.to_string();
    format!("{}@{cluster}", shown.split('@').next().unwrap_or_default())
}

fn list(objects: &[Topology]) -> String {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Returns the map of texts, each with any number of objects.
fn of_texts(texts: &[String]) -> Map {
    let mut objects = read::Objects::default();
    for text in texts {
        objects.add(text).expect("it has objects");
    }
    objects.map()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_edge_of_the_objects_is_there_once(calls in calls()) {
        let map = read::objects(&objects(&calls));
        let expected = expected(&calls);
        prop_assert_eq!(map.edges.len(), expected.len());
        for edge in &map.edges {
            let ends = [&edge.client_pods, &edge.server_pods].map(|pods| pods.listed.len());
            prop_assert!(ends == [1, 1] || edges_of_one_end(&calls).contains(&edge.id), "{:?}", ends);
            prop_assert_eq!(edge.counters.bytes_sent.zip(edge.counters.bytes_received),
                Some((edge.counters.opened * 10, edge.counters.opened)), "as the client sees it");
        }
    }

    #[test]
    fn order_of_objects_does_not_matter(calls in calls(), reverse in any::<bool>()) {
        let objects = objects(&calls);
        let map = read::objects(&objects);
        let other = if reverse { read::objects(objects.iter().rev()) } else { read::objects(objects.iter().skip(1).chain(&objects[..1])) };
        prop_assert_eq!(&map, &other);
        prop_assert_eq!(render::table(&map), render::table(&other));
        prop_assert_eq!(render::dot(&map), render::dot(&other));
        prop_assert_eq!(render::html(&map), render::html(&other), "with the picture");
    }

    #[test]
    fn written_map_is_read_again(calls in calls()) {
        let map = read::objects(&objects(&calls));
        let json = serde_json::to_string(&map).expect("it is JSON");
        prop_assert_eq!(&read::text(&json).expect("it is a map"), &map);
        let grouped = level::on(Level::Namespace, map);
        let yaml = serde_yaml::to_string(&grouped).expect("it is YAML");
        prop_assert_eq!(read::text(&yaml).expect("it is a map"), grouped);
    }

    /// The filter finds the same in the objects of one end and of both.
    #[test]
    fn filters_find_edges_of_the_whole_map(calls in calls(), filter in filter()) {
        let map = read::objects(&objects(&calls));
        let filtered = filter.apply(map.clone());
        prop_assert!(filtered.edges.iter().all(|edge| map.edges.contains(edge)));
        prop_assert_eq!(&filter.apply(filtered.clone()), &filtered, "again, it finds the same");
        if let Some(port) = filter.port {
            prop_assert!(filtered.edges.iter().all(|edge| edge.port == Some(port)));
        }
    }

    #[test]
    fn clusters_are_joined_in_any_order_and_stay_apart(one in calls(), other in calls()) {
        let [one, other] = [one, other].map(|calls| read::objects(&objects(&calls)));
        let [east, west] = [one.clone().of_cluster("east"), other.clone().of_cluster("west")];
        let join = |maps: [&Map; 2]| Map::joined(maps.map(|map| map.edges.clone()).concat(), maps.map(|map| map.caveats.clone()).concat());
        let both = join([&east, &west]);
        prop_assert_eq!(&join([&west, &east]), &both);
        prop_assert_eq!(&join([&both, &east]), &both, "what is there already does not count twice");
        prop_assert_eq!(both.edges.len(), one.edges.len() + other.edges.len());
        let peers = |map: &Map| map.ends().cloned().collect::<BTreeSet<Peer>>().len();
        prop_assert_eq!(peers(&both), peers(&one) + peers(&other));
        prop_assert_eq!(render::names(&both).lines().collect::<BTreeSet<_>>().len(), peers(&both), "names differ");
        let sum = |map: &Map| map.edges.iter().map(|edge| edge.counters.opened).sum::<u64>();
        prop_assert_eq!(sum(&level::on(Level::Namespace, both.clone())), sum(&one) + sum(&other));
        for peer in both.ends() {
            prop_assert!(peer.is_named(&peer.to_string()));
            prop_assert_eq!(peer.is_named(&one_name("east", peer)), peer.cluster() == Some("east"));
        }
        let json = serde_json::to_string(&both).expect("it is JSON");
        prop_assert_eq!(&read::text(&json).expect("it is a map"), &both);
        prop_assert_eq!(read::text(&format!("{json}\n---\n{json}")).expect("they are maps"), both);
    }

    #[test]
    fn files_are_joined_in_any_order(files in prop::collection::vec(calls(), 0..4), rotation in 0..4_usize) {
        let texts: Vec<String> = files.iter().map(|calls| list(&objects(calls))).collect();
        let mut rotated = texts.clone();
        rotated.rotate_left(rotation.min(texts.len()));
        prop_assert_eq!(of_texts(&rotated), of_texts(&texts));
        rotated.reverse();
        prop_assert_eq!(of_texts(&rotated), of_texts(&texts));
    }

    /// The object of a server may have other counters than that of a client.
    #[test]
    fn files_of_one_object_each_are_one_file_of_all(calls in calls(), late in any::<bool>()) {
        let mut objects = objects(&calls);
        for edge in objects.iter_mut().flat_map(|object| object.status.iter_mut()).flat_map(|status| &mut status.ingress) {
            edge.opened += u64::from(late);
        }
        let one_each: Vec<String> = objects.iter().map(|object| list(std::slice::from_ref(object))).collect();
        let map = read::objects(&objects);
        prop_assert_eq!(&of_texts(&one_each), &map);
        prop_assert_eq!(of_texts(&[list(&objects)]), map);
    }

    #[test]
    fn calls_from_and_to_are_those_of_the_ends(calls in calls(), from in 0..NAMES.len(), to in 0..NAMES.len()) {
        let map = read::objects(&objects(&calls));
        let is_of = |number: usize, name: usize| number % NAMES.len() == name;
        let expected = expected(&calls).into_iter().filter(|(client, server, _)| is_of(*client, from) && is_of(*server, to));
        let filter = Filter { from: Some(NAMES[from].to_owned()), to: Some(NAMES[to].to_owned()), ..Filter::default() };
        prop_assert_eq!(filter.apply(map).edges.len(), expected.count());
    }

    #[test]
    fn namespaces_have_the_sums_of_their_edges(calls in calls()) {
        let map = read::objects(&objects(&calls));
        let sum = |map: &Map| map.edges.iter().map(|edge| edge.counters.opened).sum::<u64>();
        let grouped = level::on(Level::Namespace, map.clone());
        prop_assert_eq!(sum(&grouped), sum(&map));
        prop_assert!(grouped.edges.len() <= NAMESPACES.len().pow(2));
    }

    #[test]
    fn difference_leads_from_one_map_to_the_other(before in calls(), after in calls()) {
        let (before, after) = (read::objects(&objects(&before)), read::objects(&objects(&after)));
        let difference = Difference::between(&before, &after, Relation::Later);
        let ids = |edges: &[Edge]| edges.iter().map(|edge| edge.id.clone()).collect::<BTreeSet<_>>();
        let mut ids_after = ids(&before.edges);
        ids_after.retain(|id| !ids(&difference.removed).contains(id));
        ids_after.extend(ids(&difference.added));
        prop_assert_eq!(ids_after, ids(&after.edges));
        prop_assert!(Difference::between(&after, &after, Relation::Later).is_empty());
    }

    #[test]
    fn workloads_without_callers_are_those_that_others_do_not_call(calls in calls()) {
        let map = read::objects(&objects(&calls));
        let edges = expected(&calls);
        let peers: BTreeSet<usize> = edges.iter().flat_map(|(client, server, _)| [*client, *server]).collect();
        let uncalled = |number: &usize| edges.iter().all(|(client, server, _)| server != number || client == server);
        let expected: BTreeSet<String> = peers.into_iter().filter(uncalled).map(|number| Peer::one(peer(number)).to_string()).collect();
        let unused = unused::unused(&map, &Inventory::default());
        let names: BTreeSet<String> = unused.iter().map(|of| format!("{}/{}", of.namespace, of.name)).collect();
        prop_assert_eq!(names, expected);
    }

    #[test]
    fn bundles_have_no_names_and_the_same_shape(calls in calls()) {
        let map = read::objects(&objects(&calls));
        let bundle = bundle::bundle(map.clone(), &Inventory::default(), false).expect("it is JSON").to_string();
        for name in NAMESPACES.iter().chain(&NAMES) {
            prop_assert!(!bundle.contains(&name.replace('"', "\\\"")), "{name} in {bundle}");
        }
        prop_assert!(!bundle.contains("pod-"), "{bundle}");
        for edge in &map.edges {
            prop_assert!(!bundle.contains(&format!("\"{}\"", edge.id)), "{} in {bundle}", edge.id);
        }
        let shape = |map: &Map| {
            let peers: BTreeSet<String> = map.ends().map(ToString::to_string).collect();
            let opened: u64 = map.edges.iter().map(|edge| edge.counters.opened).sum();
            (map.edges.len(), peers.len(), opened, render::svg(map).matches("<g>").count())
        };
        prop_assert_eq!(shape(&read::text(&bundle).expect("it is a map")), shape(&map));
    }

    #[test]
    fn any_text_is_read_without_failing(text in ".{0,200}") {
        let _ = read::text(&text);
    }
}

#[test]
fn other_objects_are_named_in_the_error() {
    let error = |text: &str| read::text(text).expect_err("it is no map").to_string();
    let ours = "apiVersion: scopeprobe.io/v1alpha1\nkind: Topology";
    assert_eq!(error(ours), "document 1: missing field `metadata`");
    let kueues = "document 1: it is a Topology of kueue.x-k8s.io/v1, not of scopeprobe.io";
    assert_eq!(error("apiVersion: kueue.x-k8s.io/v1\nkind: Topology"), kueues);
    assert_eq!(error("kind: Pod"), "document 1: it is a Pod; expected a Topology, a list of them, or a TopologyMap");
    assert!(error("").starts_with("no Topology in it"), "{}", error(""));
    assert!(error("{").starts_with("neither JSON nor YAML"), "{}", error("{"));
}

#[test]
fn seen_and_protocol_survive() {
    let map = read::objects(&objects(&[(0, 1, 80, 1, 0, (true, true))]));
    assert_eq!((map.edges[0].seen, map.edges[0].protocol), (Some(SeenEnds::Both), TransportProtocol::Tcp));
}

/// An edge with these counts.
fn one(opened: u64, failed: u64) -> Map {
    read::objects(&objects(&[(0, 1, 80, opened, failed, (true, true))]))
}

#[test]
fn further_failures_of_an_edge_are_a_difference() {
    let failing_by = |relation: Relation, before: u64, after: u64| {
        Difference::between(&one(5, before), &one(9, after), relation).failing.len()
    };
    let failing = |before: u64, after: u64| failing_by(Relation::Later, before, after);
    let failing_there = |before: u64, after: u64| failing_by(Relation::OtherCluster, before, after);
    assert_eq!(
        (failing_there(1, 2), failing_there(0, 2), failing_there(2, 0)),
        (0, 1, 0),
        "counters are not comparable"
    );
    assert_eq!([failing(0, 0), failing(0, 1), failing(2, 2), failing(2, 5)], [0, 1, 0, 1]);
}

#[test]
fn names_cannot_control_a_terminal() {
    let mut named = peer(0);
    named.name = Some("web\u{1b}]0;x\u{7}\n\u{202e}".to_owned());
    assert_eq!(Peer::one(named).to_string(), "shop/web?]0;x???");
}

#[test]
fn peers_are_found_by_each_form_of_their_name() {
    let workload = Peer::one(peer(0));
    for name in ["web", "shop/web", "deployment/web", "shop/Deployment/web", "shop/web (Deployment)"] {
        assert!(workload.is_named(name), "{name}");
    }
    for name in ["shop", "billing/web", "statefulset/web", "shop/web (StatefulSet)", ""] {
        assert!(!workload.is_named(name), "{name}");
    }
    let external =
        TopologyPeer { type_: PeerType::DnsName, name: Some("api.example.com".to_owned()), ..TopologyPeer::default() };
    assert!(Peer::one(external.clone()).is_named("api.example.com") && !Peer::one(external).is_named("web"));
    let service = TopologyPeer { type_: PeerType::Service, kind: None, api_version: None, ..peer(2) };
    for name in ["db", "shop/db", "shop/service/db", "shop/db (Service)"] {
        assert!(Peer::one(service.clone()).is_named(name), "{name}");
    }
}

/// A file may come from a stranger.
#[test]
fn maps_in_files_cannot_control_a_terminal() {
    let hostile = "a\u{1b}]0;x\u{7}\u{202e}";
    let mut map = one(1, 0);
    map.edges[0].id = hostile.to_owned();
    map.edges[0].service = Some(format!("shop/{hostile}:80"));
    map.edges[0].via = vec![hostile.to_owned()];
    map.caveats = vec![hostile.to_owned()];
    let text = serde_json::to_string(&map).expect("it is JSON");
    let read = read::text(&text).expect("it is a map");
    let edge = &read.edges[0];
    let texts = [edge.id.as_str(), edge.service.as_deref().expect("a Service"), &edge.via[0], &read.caveats[0]];
    assert_eq!(texts, ["a?]0;x??", "shop/a?]0;x??:80", "a?]0;x??", "a?]0;x??"]);
}

#[test]
fn bundles_name_only_kinds_of_kubernetes() {
    let kind_of = |api_version: &str| {
        let mut map = one(1, 0);
        map.edges[0].client = Peer::one(TopologyPeer { api_version: Some(api_version.to_owned()), ..peer(0) });
        let bundle = bundle::bundle(map, &Inventory::default(), false).expect("it is JSON");
        let client = &bundle["items"][0]["edges"][0]["client"];
        (client["kind"].to_string(), client["apiVersion"].to_string())
    };
    assert_eq!(kind_of("apps/v1"), ("\"Deployment\"".to_owned(), "\"apps/v1\"".to_owned()));
    assert_eq!(kind_of("apps.acme.internal/v1"), ("\"kind-1\"".to_owned(), "null".to_owned()));
}

/// Callers in other namespaces were not read.
#[test]
fn unused_of_one_namespace_has_no_workloads_of_others() {
    let mut map = one(1, 0);
    let other = TopologyPeer { namespace: Some("billing".to_owned()), ..peer(0) };
    map.edges[0].client = Peer::one(other);
    let names = |inventory: &Inventory| -> Vec<String> {
        unused::unused(&map, inventory).into_iter().map(|unused| unused.namespace).collect()
    };
    assert_eq!(names(&Inventory::default()), ["billing"]);
    assert_eq!(names(&Inventory::default().of_namespace("shop")), Vec::<String>::new());
}

#[test]
fn edges_without_an_observed_client_are_a_gap_of_unused() {
    let gaps = |seen| {
        let mut map = one(1, 0);
        map.edges[0].seen = Some(seen);
        let caveats = unused::caveats(&map, &Inventory::default());
        caveats.iter().filter(|caveat| caveat.starts_with("1 edge without an observed client")).count()
    };
    assert_eq!((gaps(SeenEnds::Server), gaps(SeenEnds::Both)), (1, 0));
}

#[test]
fn maps_that_differ_are_not_joined_silently() {
    let join = |one: Map, other: Map| Map::joined([one.edges, other.edges].concat(), Vec::new());
    assert_eq!(join(one(5, 0), one(5, 0)), one(5, 0));
    let joined = join(one(5, 0), one(6, 0));
    assert_eq!((joined.edges[0].counters.opened, joined.caveats.len()), (6, 1));
    assert_eq!(join(one(6, 0), one(5, 0)), joined);
}

#[test]
fn callers_from_nodes_are_marked_and_those_of_the_api_server_count() {
    let listed = |namespace: &str, name: &str| Listed {
        kind: "Service",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        property: None,
    };
    let mut map = one(1, 0);
    let service = TopologyPeer { type_: PeerType::Service, kind: None, api_version: None, ..peer(2) };
    let kubelet = TopologyPeer {
        type_: PeerType::HostProcess,
        name: Some("kubelet".to_owned()),
        node: Some("a".to_owned()),
        ..TopologyPeer::default()
    };
    let server = TopologyPeer { type_: PeerType::ApiServer, ..TopologyPeer::default() };
    map.edges[0].client = Peer::one(kubelet);
    map.edges.push(Edge {
        id: "2".to_owned(),
        client: Peer::one(peer(0)),
        server: Peer::one(server),
        ..map.edges[0].clone()
    });
    map.edges.push(Edge { id: "3".to_owned(), server: Peer::one(service), ..map.edges[1].clone() });
    let mut inventory = Inventory::default();
    for (namespace, name) in [("default", "kubernetes"), ("default", "cart"), ("shop", "db")] {
        inventory.add(listed(namespace, name));
    }
    let unused = unused::unused(&map, &inventory);
    let found: Vec<(&str, &str, Finding)> =
        unused.iter().map(|of| (of.namespace.as_str(), of.name.as_str(), of.finding)).collect();
    let expected = [
        ("shop", "cart", Finding::NodesOnly),
        ("shop", "web", Finding::NoCaller),
        ("default", "cart", Finding::NoCaller),
    ];
    assert_eq!(found, expected);
}
