//! Divides servers' counts among the client flows that may have led to them, so that as many connections as possible
//! have both ends.
//!
//! A server does not observe which Service its client called. A client may call several Services that share backends.
//! If each server's count went to the first flow that fits, a flow could remain without a server and a server without a
//! flow, although all counts fit together. Augmenting paths undo such choices.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Connections of one flow: those whose other end has been reported, if it ever will be, and the newest ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    settled: u64,
    fresh: u64,
}

impl Count {
    /// Of so many connections, at most so many are fresh.
    pub(super) fn new(all: u64, fresh: u64) -> Self {
        let fresh = fresh.min(all);
        Self { settled: all - fresh, fresh }
    }
}

/// Connections that a client's flow shares with a server's.
#[derive(Clone, Copy, Debug)]
struct Cell {
    source: usize,
    /// By its place among `sinks`.
    sink: usize,
    amount: u64,
    is_contested: bool,
}

/// A server's flow that may be the other end of some clients' flows.
#[derive(Debug)]
struct Sink {
    /// The number by which it was added.
    index: usize,
    offered: Count,
    /// Rest without a client.
    free: u64,
    cells: Vec<usize>,
}

/// A server's flow that may be the other end of a client's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) sink: usize,
    /// So many of its connections are the client's.
    pub(super) opened: u64,
    /// Other clients' flows compete for the same servers, and the counts leave a choice, or do not fit together.
    pub(super) is_contested: bool,
}

/// Division of the servers' counts.
#[derive(Debug)]
pub(super) struct Matching {
    wanted: Vec<Count>,
    /// Rest of each client's flow without another end.
    left: Vec<u64>,
    sinks: Vec<Sink>,
    /// By the number by which a server's flow was added, its place among `sinks`.
    places: HashMap<usize, usize>,
    cells: Vec<Cell>,
    of_source: Vec<Vec<usize>>,
}

/// In which order clients' flows choose.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Those that take what fits, best first.
    greedy: Vec<usize>,
    /// Cells of one client's flow each, by which it can reach one server only, or a server can be reached.
    forced: Vec<Vec<usize>>,
    /// Cells of one client's flow each that compete with others for the same servers: the counts leave a choice.
    contested: Vec<Vec<usize>>,
}

impl Plan {
    /// All of so many clients' flows take what fits, in order.
    pub(super) fn greedy(sources: usize) -> Self {
        Self { greedy: (0..sources).collect(), ..Self::default() }
    }
}

impl Matching {
    /// Of clients' flows with so many connections.
    pub(super) fn new(wanted: Vec<Count>) -> Self {
        Self {
            left: vec![0; wanted.len()],
            of_source: vec![Vec::new(); wanted.len()],
            sinks: Vec::new(),
            places: HashMap::new(),
            cells: Vec::new(),
            wanted,
        }
    }

    /// A server's flow, by any number, may be the other end of a client's; for each client's flow, the best come first.
    pub(super) fn add(&mut self, source: usize, index: usize, offered: impl FnOnce() -> Count) {
        let sink = *self.places.entry(index).or_insert_with(|| {
            self.sinks.push(Sink { index, offered: offered(), free: 0, cells: Vec::new() });
            self.sinks.len() - 1
        });
        self.of_source[source].push(self.cells.len());
        self.sinks[sink].cells.push(self.cells.len());
        self.cells.push(Cell { source, sink, amount: 0, is_contested: false });
    }

    /// The first `greedy` flows take what fits. Of the others, those that leave no choice come first: servers that only
    /// one of them reaches, then flows that reach only one server, and so on. `server_of` tells which servers' flows are
    /// one server.
    pub(super) fn plan<S: Copy + Ord>(&mut self, greedy: usize, server_of: impl Fn(usize) -> S) -> Plan {
        let mut pairs: BTreeMap<(usize, S), Vec<usize>> = BTreeMap::new();
        for (index, cell) in self.cells.iter().enumerate().filter(|(_, cell)| cell.source >= greedy) {
            pairs.entry((cell.source, server_of(self.sinks[cell.sink].index))).or_default().push(index);
        }
        let forced = peel(pairs.keys().copied());
        let forced = forced.into_iter().filter_map(|pair| pairs.remove(&pair)).collect();
        let mut contested: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for ((source, _), cells) in pairs {
            for cell in &cells {
                self.cells[*cell].is_contested = true;
            }
            contested.entry(source).or_default().extend(cells);
        }
        Plan { greedy: (0..greedy).collect(), forced, contested: contested.into_values().collect() }
    }

    /// Divides. Reports of both ends never come at the same moment: settled connections choose before fresh ones, which
    /// may have to wait.
    pub(super) fn divide(&mut self, plan: &Plan) {
        for (left, wanted) in self.left.iter_mut().zip(&self.wanted) {
            *left = wanted.settled;
        }
        for sink in &mut self.sinks {
            sink.free = sink.offered.settled;
        }
        self.round(plan);
        for sink in &mut self.sinks {
            sink.free += sink.offered.fresh;
        }
        self.round(plan);
        for (left, wanted) in self.left.iter_mut().zip(&self.wanted) {
            *left += wanted.fresh;
        }
        self.round(plan);
        self.mark_misfits();
    }

    /// The servers' flows that were added for a client's, in this order.
    pub(super) fn found(&self, source: usize) -> Vec<Found> {
        let found = |cell: &usize| {
            let Cell { sink, amount, is_contested, .. } = self.cells[*cell];
            Found { sink: self.sinks[sink].index, opened: amount, is_contested }
        };
        self.of_source[source].iter().map(found).collect()
    }

    fn round(&mut self, plan: &Plan) {
        for source in &plan.greedy {
            for cell in self.of_source[*source].clone() {
                self.take(cell, u64::MAX);
            }
        }
        for cell in plan.forced.iter().flatten() {
            self.take(*cell, u64::MAX);
        }
        self.share(&plan.contested);
        self.augment();
    }

    /// Marks flows as guesses if an end counted more than the others explain, or will once all reports are there: one
    /// of several flows lost connections on the way, and nothing shows which.
    fn mark_misfits(&mut self) {
        let sources = (0..self.left.len()).filter(|source| self.left[*source] > self.wanted[*source].fresh);
        let sinks = self.sinks.iter().filter(|sink| sink.free > sink.offered.fresh);
        let of_sinks = sinks.flat_map(|sink| &sink.cells).map(|cell| self.cells[*cell].source);
        let misfits: BTreeSet<usize> = sources.chain(of_sinks).collect();
        let mut seen: HashSet<usize> = HashSet::new();
        for source in misfits {
            let together = self.together(source, &mut seen);
            if together.len() > 1 {
                for cell in together.iter().flat_map(|source| &self.of_source[*source]) {
                    self.cells[*cell].is_contested = true;
                }
            }
        }
    }

    /// A client's flow and all that share servers with it, directly or by others; none if it was seen.
    fn together(&self, source: usize, seen: &mut HashSet<usize>) -> Vec<usize> {
        let mut together: Vec<usize> = Some(source).filter(|source| seen.insert(*source)).into_iter().collect();
        let mut at = 0;
        let mut sinks: HashSet<usize> = HashSet::new();
        while let Some(source) = together.get(at).copied() {
            at += 1;
            for sink in self.of_source[source].iter().map(|cell| self.cells[*cell].sink) {
                if sinks.insert(sink) {
                    let others = self.sinks[sink].cells.iter().map(|cell| self.cells[*cell].source);
                    together.extend(others.filter(|other| seen.insert(*other)));
                }
            }
        }
        together
    }

    fn take(&mut self, cell: usize, most: u64) {
        let Cell { source, sink, amount, .. } = &mut self.cells[cell];
        let free = &mut self.sinks[*sink].free;
        let taken = most.min(self.left[*source]).min(*free);
        *amount += taken;
        self.left[*source] -= taken;
        *free -= taken;
    }

    /// Shares contested counts: each flow takes from each server in proportion to what that offers.
    fn share(&mut self, contested: &[Vec<usize>]) {
        let mut shares = Vec::new();
        for cells in contested {
            let offered = |cell: &usize| u128::from(self.sinks[self.cells[*cell].sink].free);
            let all: u128 = cells.iter().map(offered).sum();
            let wanted = cells.first().map_or(0, |cell| u128::from(self.left[self.cells[*cell].source]));
            // Both are below 2^64, and no cell offers more than all do.
            let part = |cell: &usize| (wanted * offered(cell)).checked_div(all).unwrap_or(0);
            shares.extend(cells.iter().map(|cell| (*cell, u64::try_from(part(cell)).unwrap_or(u64::MAX))));
        }
        for (cell, share) in shares {
            self.take(cell, share);
        }
    }

    /// Finds other servers for connections that were matched, as long as that frees one for a connection that was not.
    fn augment(&mut self) {
        // From these no server is to be had any more.
        let mut exhausted: HashSet<usize> = HashSet::new();
        for source in 0..self.left.len() {
            while self.left[source] > 0 {
                match self.path(source, &mut exhausted) {
                    Some(path) => self.follow(source, &path),
                    None => break,
                }
            }
        }
    }

    /// The shortest way to a server with something to offer: cells to take, and between them cells to give back.
    fn path(&self, source: usize, exhausted: &mut HashSet<usize>) -> Option<Vec<usize>> {
        let mut queue = VecDeque::from([source]);
        // By which cell a server was reached, and by which its source was.
        let mut reached: HashMap<usize, usize> = HashMap::new();
        let mut given_back: HashMap<usize, usize> = HashMap::new();
        while let Some(from) = queue.pop_front() {
            for taking in &self.of_source[from] {
                let sink = self.cells[*taking].sink;
                if exhausted.contains(&sink) || reached.contains_key(&sink) {
                    continue;
                }
                reached.insert(sink, *taking);
                if self.sinks[sink].free > 0 {
                    return Some(self.back(sink, &reached, &given_back));
                }
                for giving in &self.sinks[sink].cells {
                    let Cell { source: other, amount, .. } = self.cells[*giving];
                    if amount > 0 && other != source && !given_back.contains_key(&other) {
                        given_back.insert(other, *giving);
                        queue.push_back(other);
                    }
                }
            }
        }
        exhausted.extend(reached.into_keys());
        None
    }

    /// The way from the source to this server: taking, giving back, taking and so on.
    fn back(&self, sink: usize, reached: &HashMap<usize, usize>, given_back: &HashMap<usize, usize>) -> Vec<usize> {
        let mut path = Vec::new();
        let mut at = sink;
        while let Some(taking) = reached.get(&at) {
            path.push(*taking);
            let Some(giving) = given_back.get(&self.cells[*taking].source) else { break };
            path.push(*giving);
            at = self.cells[*giving].sink;
        }
        path.reverse();
        path
    }

    fn follow(&mut self, source: usize, path: &[usize]) {
        let Some(last) = path.last() else { return };
        let end = self.cells[*last].sink;
        let giving = path.iter().skip(1).step_by(2).map(|cell| self.cells[*cell].amount);
        let most = giving.chain([self.left[source], self.sinks[end].free]).min().unwrap_or(0);
        for (step, cell) in path.iter().enumerate() {
            let amount = &mut self.cells[*cell].amount;
            if step % 2 == 0 { *amount += most } else { *amount -= most }
        }
        self.left[source] -= most;
        self.sinks[end].free -= most;
    }
}

/// Pairs of a source and a server that leave no choice, in an order in which they can be decided.
///
/// In each pair, the server or the source is in no other remaining pair.
fn peel<S: Copy + Ord>(pairs: impl Iterator<Item = (usize, S)>) -> Vec<(usize, S)> {
    let mut servers: BTreeMap<usize, BTreeSet<S>> = BTreeMap::new();
    let mut sources: BTreeMap<S, BTreeSet<usize>> = BTreeMap::new();
    for (source, server) in pairs {
        servers.entry(source).or_default().insert(server);
        sources.entry(server).or_default().insert(source);
    }
    let only = |set: &BTreeSet<usize>| set.first().copied().filter(|_| set.len() == 1);
    let mut due: VecDeque<(usize, S)> = sources.iter().filter_map(|(server, of)| Some((only(of)?, *server))).collect();
    due.extend(
        servers.iter().filter(|(_, to)| to.len() == 1).flat_map(|(source, to)| to.iter().map(|it| (*source, *it))),
    );
    let mut forced = Vec::new();
    while let Some((source, server)) = due.pop_front() {
        let (Some(to), Some(of)) = (servers.get_mut(&source), sources.get_mut(&server)) else { continue };
        if !to.remove(&server) {
            continue;
        }
        of.remove(&source);
        forced.push((source, server));
        if let (Some(next), 1) = (to.first(), to.len()) {
            due.push_back((source, *next));
        }
        if let (Some(next), 1) = (of.first(), of.len()) {
            due.push_back((*next, server));
        }
    }
    forced
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Divides so many connections of clients' flows among servers' flows that each of them may have reached. Returns who
    /// has how many of which, and whether that is contested.
    fn divided(wanted: &[u64], offered: &[u64], cells: &[(usize, usize)], greedy: usize) -> Vec<(usize, Found)> {
        let mut matching = Matching::new(wanted.iter().map(|count| Count::new(*count, 0)).collect());
        for (source, sink) in cells {
            matching.add(*source, *sink, || Count::new(offered[*sink], 0));
        }
        let plan = matching.plan(greedy, |sink| sink);
        matching.divide(&plan);
        (0..wanted.len()).flat_map(|source| matching.found(source).into_iter().map(move |it| (source, it))).collect()
    }

    fn amounts(found: &[(usize, Found)]) -> Vec<(usize, usize, u64, bool)> {
        found.iter().map(|(source, it)| (*source, it.sink, it.opened, it.is_contested)).collect()
    }

    #[test]
    fn counts_that_fit_in_one_way_only_are_found() {
        // The second flow comes first where both could take from the second server.
        let cells = [(0, 1), (0, 2), (1, 0), (1, 1)];
        let exact = [(0, 1, 3, false), (0, 2, 7, false), (1, 0, 4, false), (1, 1, 6, false)];
        assert_eq!(amounts(&divided(&[10, 10], &[4, 9, 7], &cells, 0)), exact);
        let exact = exact.map(|(source, sink, opened, _)| (source, sink, opened));
        let greedy = amounts(&divided(&[10, 10], &[4, 9, 7], &cells, 2));
        assert_eq!(greedy.iter().map(|(source, sink, opened, _)| (*source, *sink, *opened)).collect::<Vec<_>>(), exact);
    }

    #[test]
    fn counts_that_leave_a_choice_are_shared_in_proportion() {
        let cells = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let shared = [(0, 0, 6, true), (0, 1, 4, true), (1, 0, 12, true), (1, 1, 8, true)];
        assert_eq!(amounts(&divided(&[10, 20], &[18, 12], &cells, 0)), shared);
    }

    #[test]
    fn settled_connections_choose_before_fresh_ones() {
        let mut matching = Matching::new(vec![Count::new(5, 5), Count::new(3, 0)]);
        for source in 0..2 {
            matching.add(source, 0, || Count::new(4, 1));
        }
        matching.divide(&Plan::greedy(2));
        let found: Vec<u64> = (0..2).flat_map(|source| matching.found(source)).map(|found| found.opened).collect();
        assert_eq!(found, [1, 3]);
    }

    #[test]
    fn counts_that_do_not_fit_together_are_a_guess_where_several_flows_are_concerned() {
        let cells = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)];
        let contested = |wanted: &[u64], offered: &[u64]| -> Vec<bool> {
            divided(wanted, offered, &cells, 0).iter().map(|(_, found)| found.is_contested).collect()
        };
        assert_eq!(contested(&[10, 10, 5], &[4, 9, 7, 5]), [false; 5]);
        assert_eq!(contested(&[13, 10, 5], &[4, 9, 7, 5]), [true, true, true, true, false]);
        assert_eq!(contested(&[10, 10, 5], &[4, 9, 8, 5]), [true, true, true, true, false]);
        assert_eq!(contested(&[10, 10, 6], &[4, 9, 7, 5]), [false; 5]);
    }

    type Counts = (Vec<u64>, Vec<u64>, Vec<(usize, usize)>);

    fn counts() -> impl Strategy<Value = Counts> {
        let count = || prop_oneof![4 => 0..20_u64, 1 => any::<u64>().prop_map(|count| count / 8)];
        (1..6_usize, 1..6_usize).prop_flat_map(move |(sources, sinks)| {
            let cells = prop::collection::btree_set((0..sources, 0..sinks), 0..=sources * sinks);
            let (wanted, offered) = (prop::collection::vec(count(), sources), prop::collection::vec(count(), sinks));
            (wanted, offered, cells.prop_map(|cells| cells.into_iter().collect()))
        })
    }

    proptest! {
        /// By the theorem of the least cut: of all sets of clients' flows, what the others want and what these can reach.
        #[test]
        fn as_much_is_matched_as_can_be((wanted, offered, cells) in counts(), greedy in 0..3_usize) {
            let found = divided(&wanted, &offered, &cells, greedy.min(wanted.len()));
            let cut = |set: usize| {
                let is_in = |source: usize| set >> source & 1 == 1;
                let others: u64 = (0..wanted.len()).filter(|it| !is_in(*it)).map(|it| wanted[it]).sum();
                let reaches = |sink: &usize| cells.iter().any(|(source, to)| to == sink && is_in(*source));
                others + (0..offered.len()).filter(reaches).map(|sink| offered[sink]).sum::<u64>()
            };
            let all: u64 = found.iter().map(|(_, it)| it.opened).sum();
            prop_assert_eq!(Some(all), (0..1 << wanted.len()).map(cut).min());
            for (source, wanted) in wanted.iter().enumerate() {
                let has: u64 = found.iter().filter(|(of, _)| *of == source).map(|(_, it)| it.opened).sum();
                prop_assert!(has <= *wanted);
            }
            for (sink, offered) in offered.iter().enumerate() {
                let given: u64 = found.iter().filter(|(_, it)| it.sink == sink).map(|(_, it)| it.opened).sum();
                prop_assert!(given <= *offered);
            }
        }

        /// Finds the truth wherever the result is not marked as a guess.
        #[test]
        fn what_leaves_no_choice_is_what_happened((_, _, cells) in counts(), opened in prop::collection::vec(0..20_u64, 25)) {
            let happened: Vec<(usize, usize, u64)> =
                cells.iter().zip(opened).map(|((source, sink), opened)| (*source, *sink, opened)).collect();
            let by = |index: usize, of: &dyn Fn(&(usize, usize, u64)) -> usize| {
                happened.iter().filter(|it| of(it) == index).map(|(_, _, opened)| opened).sum::<u64>()
            };
            let wanted: Vec<u64> = (0..5).map(|source| by(source, &|it| it.0)).collect();
            let offered: Vec<u64> = (0..5).map(|sink| by(sink, &|it| it.1)).collect();
            for (source, found) in divided(&wanted, &offered, &cells, 0) {
                let truly = happened.iter().find(|(of, sink, _)| (*of, *sink) == (source, found.sink));
                prop_assert!(found.is_contested || truly.is_some_and(|(_, _, opened)| *opened == found.opened));
            }
        }
    }
}
