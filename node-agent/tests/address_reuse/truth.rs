//! Real connections by the pods' own counts, and how many of them are shown.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use topology::{edge::Peer, graph::Graph};
use traffic::script::pod::PodCalls;

/// A pod as it was.
#[derive(Clone, Debug)]
pub struct Pod {
    pub ip: IpAddr,
    pub from: SystemTime,
    pub until: SystemTime,
    /// It is on the node with an agent.
    pub observed: bool,
}

/// A call that was accepted by the kernel of who had the address, and not answered before its end.
#[derive(Clone, Debug)]
pub struct Unanswered {
    pub client: String,
    pub ip: IpAddr,
    pub since: SystemTime,
    pub until: SystemTime,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Truth {
    pub pods: HashMap<String, Pod>,
    /// By client and server.
    pub answered: BTreeMap<(String, String), u64>,
    pub unanswered: Vec<Unanswered>,
    /// Time without an owner between two pods of an address.
    pub gaps: Vec<Duration>,
}

/// Clocks of one machine, read by two processes.
const CLOSE: Duration = Duration::from_millis(20);

impl Truth {
    /// Adds the counts that a pod reported at its end.
    pub fn take(&mut self, client: &str, calls: PodCalls) {
        for (server, times) in calls.answered {
            *self.answered.entry((client.to_owned(), server)).or_default() += times;
        }
        let at = |unix_ms| SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
        self.unanswered.extend(calls.unanswered.into_iter().map(|call| Unanswered {
            client: client.to_owned(),
            ip: call.target,
            since: at(call.since_unix_ms),
            until: at(call.until_unix_ms),
        }));
    }

    fn at_most(&self, client: &str, server: &str) -> u64 {
        let answered = self.answered.get(&(client.to_owned(), server.to_owned())).copied().unwrap_or_default();
        let Some(pod) = self.pods.get(server) else { return answered };
        let can_be = |call: &&Unanswered| {
            call.client == client
                && call.ip == pod.ip
                && call.since < pod.until + CLOSE
                && pod.from < call.until + CLOSE
        };
        answered + self.unanswered.iter().filter(can_be).count() as u64
    }

    /// No edge between two pods has more connections than these two have had.
    pub fn check_names(&self, graph: &Graph) {
        for edge in &graph.edges {
            let (Some(client), Some(server)) = (name(&edge.key.client), name(&edge.key.server)) else { continue };
            let most = self.at_most(&client, &server);
            assert!(
                edge.counters.opened <= most,
                "{client} -> {server}: {} shown, {most} happened; {:?} -> {:?}; {edge:?}",
                edge.counters.opened,
                self.pods.get(&client),
                self.pods.get(&server)
            );
        }
    }

    /// All connections of which an end was seen are on an edge.
    pub fn check_totals(&self, graph: &Graph) {
        let shown: u64 = graph.edges.iter().map(|edge| edge.counters.opened).sum::<u64>() + graph.unsettled;
        let sees = |pod: &str| self.pods[pod].observed;
        let known = self.answered.iter().filter(|((client, server), _)| sees(client) || sees(server));
        let least: u64 = known.map(|(_, times)| times).sum();
        let most = least + self.unanswered.len() as u64;
        assert!((least..=most).contains(&shown), "{shown} shown, {least} to {most} happened");
        let opened = |named: bool| -> u64 {
            let edges = graph.edges.iter().filter(|edge| is_named(&edge.key.client, &edge.key.server) == named);
            edges.map(|edge| edge.counters.opened).sum()
        };
        assert!(opened(true) > opened(false), "a map without names says nothing");
    }

    /// For people.
    pub fn summary(&self, graph: &Graph) -> String {
        let sees = |pod: &str| self.pods[pod].observed;
        let mut by_way: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let way = |client: bool, server: bool| match (client, server) {
            (true, true) => "both ends seen",
            (true, false) => "the client seen",
            (false, true) => "the server seen",
            (false, false) => "no end seen",
        };
        for ((client, server), times) in &self.answered {
            by_way.entry(way(sees(client), sees(server))).or_default().0 += times;
        }
        for edge in &graph.edges {
            if let (Some(client), Some(server)) = (name(&edge.key.client), name(&edge.key.server)) {
                by_way.entry(way(sees(&client), sees(&server))).or_default().1 += edge.counters.opened;
            }
        }
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        let median = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
        let failed: u64 = graph.edges.iter().map(|edge| edge.counters.failed).sum();
        let mut text = format!(
            "{} pods at {} addresses, reused within {median:?} (median); {} connections unanswered, {failed} attempts failed\n",
            self.pods.len(),
            self.pods.values().map(|pod| pod.ip).collect::<std::collections::HashSet<_>>().len(),
            self.unanswered.len()
        );
        for (way, (happened, named)) in by_way {
            let _ = writeln!(text, "{way:16} {happened:7} connections, {named:7} under both names");
        }
        text
    }
}

fn is_named(client: &Peer, server: &Peer) -> bool {
    name(client).is_some() && name(server).is_some()
}

/// A pod's name, where a peer is one. A pod without an object is known by its UID, whose last part is its number.
fn name(peer: &Peer) -> Option<String> {
    match peer {
        Peer::Workload(workload) => Some(workload.name.clone()),
        Peer::UnknownPod { uid } => Some(super::testbed::name_of(uid)),
        _ => None,
    }
}
