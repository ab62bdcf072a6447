//! Edges that Topologies have to show, by the simulated cluster alone, and their comparison with what is published.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::Serialize;

use super::{
    conversation::Conversation,
    world::{self, Call, Route, SERVER_PORT, SERVICE_PORT},
};

/// Maximum number of wrong edges that a verdict names.
const EXAMPLES: usize = 5;

/// Edge as Topologies show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Client: `namespace/name` of a workload, or a description of another peer.
    pub client: String,
    /// Server, in the same form.
    pub server: String,
    /// Service that the client called: `namespace/name:port`.
    pub service: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
}

impl Edge {
    /// Returns the edge that stands for a call.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        let workload = |number| format!("{}/{}", world::namespace(number), world::workload_name(number));
        let name = match call.route {
            Route::Direct => None,
            Route::Service => Some(world::workload_name(call.server)),
            Route::Pair => Some(world::pair_name(call.server / 2)),
        };
        Self {
            client: workload(call.client),
            server: workload(call.server),
            service: name.map(|name| format!("{}/{name}:{SERVICE_PORT}", world::namespace(call.server))),
            port: Some(SERVER_PORT),
        }
    }
}

/// Edges of one Topology, with their numbers of opened connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedTopology {
    /// Edges on which the workload is the client.
    pub egress: Vec<(Edge, u64)>,
    /// Edges on which the workload is the server.
    pub ingress: Vec<(Edge, u64)>,
    /// Number of edges that are not listed for lack of space.
    pub omitted: u64,
}

/// All Topologies by namespace and name.
pub type PublishedTopologies = HashMap<(String, String), PublishedTopology>;

/// Result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Edges that have to be there.
    pub expected: usize,
    /// Edges that are listed by both of their workloads.
    pub right: usize,
    /// Edges that are not listed by both.
    pub missing: usize,
    /// Listed edges that do not exist.
    pub surplus: usize,
    /// Edges that Topologies declare as not listed.
    pub omitted: u64,
    /// Edges with the exact number of connections in both Topologies.
    pub exact: usize,
    /// Some of the wrong edges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Verdict {
    /// Returns whether exactly the expected edges are listed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.surplus == 0
    }
}

/// The expected edges, with the conversations on each.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    edges: HashMap<Edge, Vec<Arc<Conversation>>>,
}

impl Oracle {
    /// Notes a conversation of a call.
    pub fn expect(&mut self, call: &Call, conversation: Arc<Conversation>) {
        self.edges.entry(Edge::of(call)).or_default().push(conversation);
    }

    /// Compares with what is published. The counts are meaningful only if no connection opens any more.
    #[must_use]
    pub fn judge(&self, published: &PublishedTopologies, now: u64) -> Verdict {
        let (egress, ingress) = (listed(published, |it| &it.egress), listed(published, |it| &it.ingress));
        let mut verdict = Verdict {
            expected: self.edges.len(),
            omitted: published.values().map(|it| it.omitted).sum(),
            ..Verdict::default()
        };
        let mut wrong = Vec::new();
        for (edge, conversations) in &self.edges {
            let counts = [&egress, &ingress].map(|side| side.get(edge).copied());
            let opened: u64 = conversations.iter().map(|it| it.opened(now)).sum();
            match counts {
                [Some(_), Some(_)] => verdict.right += 1,
                [client, server] => {
                    let lacks = |side: Option<u64>, name| if side.is_none() { name } else { "" };
                    wrong.push(format!("missing{}{}: {edge:?}", lacks(client, " egress"), lacks(server, " ingress")));
                }
            }
            verdict.exact += usize::from(counts == [Some(opened); 2]);
        }
        verdict.missing = verdict.expected - verdict.right;
        let all: HashSet<&Edge> = egress.keys().chain(ingress.keys()).copied().collect();
        let surplus: Vec<_> = all.into_iter().filter(|edge| !self.edges.contains_key(*edge)).collect();
        verdict.surplus = surplus.len();
        wrong.extend(surplus.into_iter().map(|edge| format!("surplus: {edge:?}")));
        wrong.sort_unstable();
        wrong.truncate(EXAMPLES);
        verdict.examples = wrong;
        verdict
    }

    /// Returns edges whose published counts differ, with both published counts and the true one.
    #[must_use]
    pub fn wrong_counts(&self, published: &PublishedTopologies, now: u64) -> Vec<String> {
        let (egress, ingress) = (listed(published, |it| &it.egress), listed(published, |it| &it.ingress));
        let counts = self.edges.iter().map(|(edge, conversations)| {
            let opened: u64 = conversations.iter().map(|it| it.opened(now)).sum();
            (edge, opened, egress.get(edge).copied(), ingress.get(edge).copied())
        });
        let wrong = counts.filter(|(_, opened, client, server)| [*client, *server] != [Some(*opened); 2]);
        let lines = wrong.map(|(edge, opened, client, server)| {
            let shown = |count: Option<u64>| count.map_or_else(|| "none".to_owned(), |count| count.to_string());
            (edge, format!("{edge:?}: egress {}, ingress {}, true {opened}", shown(client), shown(server)))
        });
        lines.collect::<BTreeMap<_, _>>().into_values().take(EXAMPLES).collect()
    }
}

/// Returns all edges of one direction, with their counts.
fn listed<'a>(
    published: &'a PublishedTopologies,
    side: impl Fn(&'a PublishedTopology) -> &'a Vec<(Edge, u64)>,
) -> HashMap<&'a Edge, u64> {
    published.values().flat_map(side).map(|(edge, opened)| (edge, *opened)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call { client: 1, server: 60, route: Route::Pair };

    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        oracle.expect(&CALL, Conversation::begin(0, 0).into());
        oracle.expect(&CALL, Conversation::begin(0, 0).into());
        oracle
    }

    fn published(egress: &[(Edge, u64)], ingress: &[(Edge, u64)]) -> PublishedTopologies {
        let object = |egress: &[(Edge, u64)], ingress: &[(Edge, u64)]| PublishedTopology {
            egress: egress.to_vec(),
            ingress: ingress.to_vec(),
            omitted: 0,
        };
        let name = |name: &str| ("shop".to_owned(), name.to_owned());
        [(name("a"), object(egress, &[])), (name("b"), object(&[], ingress))].into()
    }

    #[test]
    fn edge_of_a_pair_names_the_service_of_both() {
        let edge = Edge::of(&CALL);
        assert_eq!((edge.client.as_str(), edge.server.as_str()), ("shop-0/app-00001", "shop-1/app-00060"));
        assert_eq!(edge.service.as_deref(), Some("shop-1/pair-00030:80"));
    }

    #[test]
    fn edge_is_right_if_both_sides_list_it() {
        let edge = Edge::of(&CALL);
        let both = oracle().judge(&published(&[(edge.clone(), 2)], &[(edge.clone(), 2)]), 0);
        assert_eq!((both.right, both.exact, both.is_complete()), (1, 1, true));
        let one = oracle().judge(&published(&[(edge.clone(), 2)], &[]), 0);
        assert_eq!((one.right, one.missing, one.surplus, one.exact), (0, 1, 0, 0));
        assert!(one.examples[0].starts_with("missing ingress"), "{:?}", one.examples);
    }

    #[test]
    fn edge_that_nothing_caused_is_surplus() {
        let edge = Edge::of(&CALL);
        let other = Edge { server: "UnknownPod".to_owned(), ..edge.clone() };
        let verdict = oracle().judge(&published(&[(edge.clone(), 2), (other, 1)], &[(edge, 3)]), 0);
        assert_eq!((verdict.right, verdict.surplus, verdict.exact), (1, 1, 0));
        assert!(!verdict.is_complete());
    }

    #[test]
    fn wrong_counts_are_named() {
        let edge = Edge::of(&CALL);
        let published = published(&[(edge.clone(), 2)], &[(edge, 3)]);
        let wrong = oracle().wrong_counts(&published, 0);
        assert!(wrong[0].ends_with("egress 2, ingress 3, true 2"), "{wrong:?}");
    }
}
