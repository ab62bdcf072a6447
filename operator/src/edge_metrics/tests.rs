//! Properties of series, compared with sums of the edges themselves.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use topology::{
    edge::{Edge, EdgeCounters, EdgeKey, Peer},
    entity::Workload,
    examples,
    flow::Protocol,
};

use super::{
    chunks,
    series::{EdgeSeries, SeriesBook, SeriesCounts, SeriesSnapshot},
};
use crate::settings::{EdgeMetricsLevel, EdgeMetricsSettings};

/// Number of different edges in the properties.
const EDGES: u8 = 24;

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

/// Returns the edge with this number. Several have the same namespaces, and none have the same workloads.
pub(crate) fn edge(number: u8, counters: EdgeCounters) -> Arc<Edge> {
    let workload = |namespace: u8, name: u8| {
        let (namespace, name) = (format!("namespace-{namespace}"), format!("workload-{name}"));
        Peer::Workload(Workload { namespace, kind: "Deployment".to_owned(), name, group: "apps".to_owned() })
    };
    let key = EdgeKey {
        client: workload(number % 2, number),
        server: workload(number % 3, 0),
        service: None,
        port: Some(80),
        protocol: Protocol::Tcp,
    };
    Arc::new(Edge { knows_retransmits: true, ..examples::edge(key, counters) })
}

fn counters() -> impl Strategy<Value = EdgeCounters> {
    let small = || 0_u64..1000;
    (small(), small(), small(), small(), small(), small(), small()).prop_map(
        |(opened, active, failed, pending, bytes_sent, bytes_received, retransmits)| EdgeCounters {
            opened,
            active,
            failed,
            pending,
            bytes_sent,
            bytes_received,
            retransmits,
            without_bytes: active,
            ..EdgeCounters::default()
        },
    )
}

/// A graph: some of the edges, in any order.
fn graph() -> impl Strategy<Value = Vec<Arc<Edge>>> {
    let edges = prop::collection::btree_map(0..EDGES, counters(), 0..usize::from(EDGES));
    edges
        .prop_map(|edges| edges.into_iter().map(|(number, counters)| edge(number, counters)).collect::<Vec<_>>())
        .prop_shuffle()
}

/// Graphs one after the other, whose edges neither leave nor lose counts.
fn growing_graphs() -> impl Strategy<Value = Vec<Vec<Arc<Edge>>>> {
    let growth = prop::collection::vec(prop::option::of(counters()), usize::from(EDGES));
    prop::collection::vec(growth, 2..12).prop_map(|graphs| {
        let mut known: BTreeMap<u8, EdgeCounters> = BTreeMap::new();
        let follow = |growth: Vec<Option<EdgeCounters>>| {
            for (number, growth) in (0..).zip(growth) {
                if let Some(growth) = growth {
                    known.entry(number).or_default().add(&growth);
                }
            }
            known.iter().map(|(number, counters)| edge(*number, *counters)).collect()
        };
        graphs.into_iter().map(follow).collect()
    })
}

fn level() -> impl Strategy<Value = EdgeMetricsLevel> {
    prop_oneof![Just(EdgeMetricsLevel::Namespace), Just(EdgeMetricsLevel::Workload)]
}

fn book(level: EdgeMetricsLevel, max_series: u32) -> SeriesBook {
    SeriesBook::new(EdgeMetricsSettings { level, max_series }).expect("the level is on")
}

/// Returns a book that began while there was no edge.
fn begun(level: EdgeMetricsLevel, max_series: u32) -> SeriesBook {
    let mut book = book(level, max_series);
    book.follow([].iter(), time(0), true);
    book
}

/// All numbers of an edge or a series, in one order.
type Numbers = [u64; 8];

fn sum(all: impl Iterator<Item = Numbers>) -> Numbers {
    all.fold(Numbers::default(), |sum, numbers| std::array::from_fn(|place| sum[place] + numbers[place]))
}

fn numbers_of_edge(edge: &Edge) -> Numbers {
    let it = &edge.counters;
    [it.opened, it.failed, it.bytes_sent, it.bytes_received, it.retransmits, it.active, it.pending, it.without_bytes]
}

fn counts(counts: SeriesCounts) -> [u64; 5] {
    let SeriesCounts { opened, failed, bytes_sent, bytes_received, retransmits } = counts;
    [opened, failed, bytes_sent, bytes_received, retransmits]
}

fn numbers_of_series(series: &EdgeSeries) -> Numbers {
    let [opened, failed, sent, received, retransmits] = counts(series.counts);
    let state = series.state;
    [opened, failed, sent, received, retransmits, state.open, state.pending, state.without_bytes]
}

fn by_labels(snapshot: &SeriesSnapshot) -> BTreeMap<String, EdgeSeries> {
    snapshot.series.iter().map(|series| (series.labels.to_string(), series.clone())).collect()
}

/// Adds the growth of each series as Prometheus does. A value below the last one follows a restart from 0, and the created
/// time has a new series begin at 0.
#[derive(Default)]
struct Scraper {
    last: HashMap<String, [u64; 5]>,
    growth: HashMap<String, [u64; 5]>,
}

impl Scraper {
    fn read(&mut self, snapshot: &SeriesSnapshot) {
        for series in &snapshot.series {
            let labels = series.labels.to_string();
            let value = counts(series.counts);
            let last = self.last.insert(labels.clone(), value).unwrap_or_default();
            let growth = self.growth.entry(labels).or_default();
            for place in 0..5 {
                growth[place] += value[place].checked_sub(last[place]).unwrap_or(value[place]);
            }
        }
    }

    fn total(&self) -> [u64; 5] {
        std::array::from_fn(|place| self.growth.values().map(|growth| growth[place]).sum())
    }
}

proptest! {
    #[test]
    fn sums_are_those_of_the_edges_for_each_limit(edges in graph(), level in level(), max in 1_u32..30) {
        let snapshot = begun(level, max).follow(edges.iter(), time(1), true);
        prop_assert_eq!(
            sum(snapshot.series.iter().map(numbers_of_series)),
            sum(edges.iter().map(|edge| numbers_of_edge(edge)))
        );
        prop_assert!(snapshot.series.len() <= max as usize + 1);
        prop_assert_eq!(by_labels(&snapshot).len(), snapshot.series.len(), "labels are unique");
        if level == EdgeMetricsLevel::Workload {
            prop_assert_eq!(snapshot.summed_edges, edges.len().saturating_sub(max as usize));
        }
    }

    #[test]
    fn series_do_not_depend_on_the_order_of_edges(
        (edges, shuffled) in graph().prop_flat_map(|edges| (Just(edges.clone()), Just(edges).prop_shuffle())),
        level in level(),
        max in 1_u32..30,
    ) {
        let of = |edges: &[Arc<Edge>]| begun(level, max).follow(edges.iter(), time(1), true);
        prop_assert_eq!(of(&edges), of(&shuffled));
    }

    #[test]
    fn busiest_edges_have_series_of_their_own(edges in graph(), max in 1_u32..30) {
        let snapshot = begun(EdgeMetricsLevel::Workload, max).follow(edges.iter(), time(1), true);
        let (own, other): (Vec<_>, Vec<_>) =
            snapshot.series.iter().partition(|series| series.labels.contains("source_workload"));
        let activity = |edge: &Arc<Edge>| edge.counters.opened + edge.counters.failed;
        let mut busiest: Vec<_> = edges.iter().map(activity).collect();
        busiest.sort_unstable_by(|one, two| two.cmp(one));
        busiest.truncate(max as usize);
        let mut shown: Vec<_> = own.iter().map(|series| series.counts.opened + series.counts.failed).collect();
        shown.sort_unstable_by(|one, two| two.cmp(one));
        prop_assert_eq!(shown, busiest);
        prop_assert_eq!(other.len(), usize::from(snapshot.summed_edges > 0));
    }

    /// Edges come, go, lose counts and change places with others. Prometheus adds the growth of each series.
    #[test]
    fn series_never_decrease_and_grow_as_edges_do(
        graphs in prop::collection::vec(graph(), 1..8),
        level in level(),
        max in 1_u32..30,
    ) {
        let mut book = book(level, max);
        let mut before = by_labels(&book.follow(graphs[0].iter(), time(0), true));
        prop_assert!(before.values().all(|series| counts(series.counts) == [0; 5]), "counted before it began");
        let mut greatest: HashMap<EdgeKey, [u64; 5]> = HashMap::new();
        for (at, edges) in (0..).zip(&graphs) {
            let mut grown = [0; 5];
            let mut now: HashMap<EdgeKey, [u64; 5]> = HashMap::new();
            for edge in edges {
                let numbers: [u64; 5] = numbers_of_edge(edge)[..5].try_into().expect("there are five");
                let known = greatest.get(&edge.key).copied().unwrap_or_default();
                for place in 0..5 {
                    grown[place] += numbers[place].saturating_sub(known[place]);
                }
                now.insert(edge.key.clone(), std::array::from_fn(|place| numbers[place].max(known[place])));
            }
            greatest = now;
            if at == 0 {
                continue;
            }
            let after = by_labels(&book.follow(edges.iter(), time(at), true));
            let mut seen = [0; 5];
            for (labels, series) in &after {
                let known = before.get(labels).filter(|known| known.created == series.created);
                prop_assert!(known.is_some() || series.created == time(at - 1), "{labels} began in between");
                let known = known.map_or([0; 5], |known| counts(known.counts));
                for (place, count) in counts(series.counts).into_iter().enumerate() {
                    prop_assert!(count >= known[place], "{labels} has decreased");
                    seen[place] += count - known[place];
                }
            }
            prop_assert_eq!(seen, grown);
            // A series that returns goes on.
            before.extend(after);
        }
    }

    /// Edges appear and grow. Their ranks change between the graphs that a scraper reads.
    #[test]
    fn scraper_adds_up_no_more_than_the_growth_of_edges(
        graphs in growing_graphs(),
        level in level(),
        max in 1_u32..30,
        interval in 1_usize..5,
    ) {
        let mut book = book(level, max);
        let (mut of_all, mut of_some) = (Scraper::default(), Scraper::default());
        for (number, edges) in graphs.iter().enumerate() {
            let snapshot = book.follow(edges.iter(), time(number as u64), true);
            of_all.read(&snapshot);
            if number % interval != 0 {
                continue;
            }
            of_some.read(&snapshot);
            for series in snapshot.series.iter().map(|series| &*series.labels) {
                prop_assert_eq!(of_some.growth[series], of_all.growth[series], "growth of {}", series);
            }
            let total = |edges: &[Arc<Edge>]| sum(edges.iter().map(|edge| numbers_of_edge(edge)));
            let (first, last) = (total(&graphs[0]), total(edges));
            let (all, some) = (of_all.total(), of_some.total());
            for place in 0..5 {
                prop_assert_eq!(all[place], last[place] - first[place], "growth at place {}", place);
                prop_assert!(some[place] <= all[place], "{some:?} is more than the growth {all:?}");
            }
        }
    }
}

#[test]
fn series_that_returns_continues() {
    let mut book = book(EdgeMetricsLevel::Workload, 1);
    book.follow([edge(0, opened(0)), edge(1, opened(0))].iter(), time(0), true);
    // Connections of both edges, and the values of the first one's series and of the one of all others.
    let graphs = [
        ((480, 0), Some(480), Some(0)),
        ((500, 0), Some(500), Some(0)),
        ((510, 600), None, Some(10)),
        ((620, 600), Some(610), Some(10)),
    ];
    for (at, ((first, second), own, other)) in (1..).zip(graphs) {
        let edges = [edge(0, opened(first)), edge(1, opened(second))];
        let series = by_labels(&book.follow(edges.iter(), time(at), true));
        let find = |part: &str| series.iter().find(|(labels, _)| labels.contains(part)).map(|(_, series)| series);
        let of_first = find("source_workload=\"workload-0\"");
        assert_eq!(of_first.map(|series| series.counts.opened), own, "at {at}");
        assert!(of_first.is_none_or(|series| series.created == time(0)), "at {at}: {of_first:?}");
        let of_others = find("source_kind=\"other\"");
        assert_eq!(of_others.map(|series| series.counts.opened), other, "at {at}");
    }
}

#[test]
fn series_of_all_others_continues_when_it_returns() {
    let mut book = begun(EdgeMetricsLevel::Workload, 1);
    let both = |less| [edge(0, opened(100)), edge(1, opened(less))];
    book.follow(both(5).iter(), time(1), true);
    assert_eq!(book.follow(both(5)[..1].iter(), time(2), true).series.len(), 1);
    let returned = book.follow(both(7).iter(), time(3), true);
    let other = returned.series.last().expect("one sums all others");
    // The edge that left and came back counts once more.
    assert_eq!((other.counts.opened, other.created), (12, time(0)));
}

fn opened(opened: u64) -> EdgeCounters {
    EdgeCounters { opened, ..EdgeCounters::default() }
}

#[test]
fn incomplete_first_graphs_have_no_series() {
    let mut book = book(EdgeMetricsLevel::Workload, 10);
    assert_eq!(book.follow([edge(0, opened(3))].iter(), time(0), false), SeriesSnapshot::default());
    let first = book.follow([edge(0, opened(3)), edge(1, opened(5))].iter(), time(1), true);
    assert_eq!(first.series.iter().map(|series| series.counts.opened).collect::<Vec<_>>(), [0, 0]);
    // A later one is incomplete only because a node has joined.
    let next = book.follow([edge(0, opened(4)), edge(1, opened(5))].iter(), time(2), false);
    assert_eq!(next.series.iter().map(|series| series.counts.opened).collect::<Vec<_>>(), [1, 0]);
    assert!(next.series.iter().all(|series| series.created == time(1)));
}

#[test]
fn level_off_has_no_book() {
    let settings = EdgeMetricsSettings { level: EdgeMetricsLevel::Off, max_series: 10 };
    assert!(SeriesBook::new(settings).is_none());
}

#[test]
fn text_has_created_times_and_omits_unknown_retransmits() {
    let mut book = begun(EdgeMetricsLevel::Namespace, 1);
    let mut quiet = Arc::unwrap_or_clone(edge(1, opened(2)));
    quiet.knows_retransmits = false;
    let edges = [edge(0, EdgeCounters { retransmits: 7, ..opened(5) }), Arc::new(quiet)];
    let text: String = chunks(Arc::new(book.follow(edges.iter(), time(1), true))).collect();
    let pair = "source_namespace=\"namespace-0\",source_kind=\"Namespace\",destination_namespace=\"namespace-0\",\
                destination_kind=\"Namespace\",protocol=\"TCP\"";
    let other = "source_kind=\"other\",destination_kind=\"other\"";
    let lines: Vec<_> = text.lines().collect();
    let opened = [
        "# HELP scopeprobe_connections_opened Connections that were established.".to_owned(),
        "# TYPE scopeprobe_connections_opened counter".to_owned(),
        format!("scopeprobe_connections_opened_total{{{pair}}} 5"),
        format!("scopeprobe_connections_opened_created{{{pair}}} 1700000000.000"),
        format!("scopeprobe_connections_opened_total{{{other}}} 2"),
        format!("scopeprobe_connections_opened_created{{{other}}} 1700000000.000"),
    ];
    assert_eq!(lines[..6], opened);
    assert!(lines.contains(&"# UNIT scopeprobe_connections_sent_bytes bytes"), "{text}");
    assert!(lines.contains(&format!("scopeprobe_connections_retransmits_total{{{pair}}} 7").as_str()), "{text}");
    assert!(!text.contains(&format!("scopeprobe_connections_retransmits_total{{{other}}}")), "{text}");
    assert_eq!(lines.last(), Some(&"scopeprobe_connections_other_edges 1"));
    // OpenMetrics has these characters escaped in descriptions.
    let descriptions: Vec<_> = lines.iter().filter(|line| line.starts_with("# HELP ")).collect();
    assert_eq!(descriptions.len(), 9);
    assert!(!descriptions.iter().any(|line| line.contains(['"', '\\'])), "{descriptions:?}");
}

/// Chunks divide samples, not descriptions.
#[test]
fn many_series_are_described_once() {
    let edges: Vec<_> = (0..u8::MAX)
        .flat_map(|number| (0..5).map(move |port| (number, port)))
        .map(|(number, port)| {
            let mut edge = Arc::unwrap_or_clone(edge(number, opened(1)));
            edge.key.port = Some(port);
            Arc::new(edge)
        })
        .collect();
    let snapshot = begun(EdgeMetricsLevel::Workload, 10_000).follow(edges.iter(), time(1), true);
    let text: String = chunks(Arc::new(snapshot)).collect();
    let count = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
    assert_eq!(count("# HELP scopeprobe_connections_opened "), 1);
    assert_eq!(count("scopeprobe_connections_opened_total{"), 5 * usize::from(u8::MAX));
}
