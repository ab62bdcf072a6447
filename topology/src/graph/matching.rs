//! Divides servers' counts among the client flows that may have led to them, so that as many connections as possible
//! have both ends.
//!
//! A server does not observe which Service its client called. A client may call several Services that share backends.
//! If each server's count went to the first flow that fits, a flow could remain without a server and a server without a
//! flow, although all counts fit together. Augmenting paths undo such choices.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::hash::{HashMap, HashSet};

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
    client_flow: usize,
    /// By its place among `server_flows`.
    server_flow: usize,
    amount: u64,
    is_contested: bool,
}

/// A server's flow that may be the other end of some clients' flows.
#[derive(Debug)]
struct Offer {
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
    pub(super) server_flow: usize,
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
    server_flows: Vec<Offer>,
    /// By the number by which a server's flow was added, its place among `server_flows`.
    places: HashMap<usize, usize>,
    cells: Vec<Cell>,
    of_client_flow: Vec<Vec<usize>>,
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
    pub(super) fn greedy(client_flows: usize) -> Self {
        Self { greedy: (0..client_flows).collect(), ..Self::default() }
    }
}

impl Matching {
    /// Of clients' flows with so many connections.
    pub(super) fn new(wanted: Vec<Count>) -> Self {
        Self {
            left: vec![0; wanted.len()],
            of_client_flow: vec![Vec::new(); wanted.len()],
            server_flows: Vec::new(),
            places: HashMap::default(),
            cells: Vec::new(),
            wanted,
        }
    }

    /// A server's flow, by any number, may be the other end of a client's; for each client's flow, the best come first.
    pub(super) fn add(&mut self, client_flow: usize, index: usize, offered: impl FnOnce() -> Count) {
        let server_flow = *self.places.entry(index).or_insert_with(|| {
            self.server_flows.push(Offer { index, offered: offered(), free: 0, cells: Vec::new() });
            self.server_flows.len() - 1
        });
        self.of_client_flow[client_flow].push(self.cells.len());
        self.server_flows[server_flow].cells.push(self.cells.len());
        self.cells.push(Cell { client_flow, server_flow, amount: 0, is_contested: false });
    }

    /// Plans the assignment. The first `greedy` flows take as much as fits. Of the others, those that leave no choice
    /// come first: servers that only one of them reaches, then flows that reach only one server, and so on. `server_of`
    /// returns the server of a server's flow.
    pub(super) fn plan<S: Copy + Ord>(&mut self, greedy: usize, server_of: impl Fn(usize) -> S) -> Plan {
        let mut pairs: BTreeMap<(usize, S), Vec<usize>> = BTreeMap::new();
        for (index, cell) in self.cells.iter().enumerate().filter(|(_, cell)| cell.client_flow >= greedy) {
            pairs
                .entry((cell.client_flow, server_of(self.server_flows[cell.server_flow].index)))
                .or_default()
                .push(index);
        }
        let forced = peel(pairs.keys().copied());
        let forced = forced.into_iter().filter_map(|pair| pairs.remove(&pair)).collect();
        let mut contested: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for ((client_flow, _), cells) in pairs {
            for cell in &cells {
                self.cells[*cell].is_contested = true;
            }
            contested.entry(client_flow).or_default().extend(cells);
        }
        Plan { greedy: (0..greedy).collect(), forced, contested: contested.into_values().collect() }
    }

    /// Divides. Reports of both ends never come at the same moment: settled connections choose before fresh ones, which
    /// may have to wait.
    pub(super) fn divide(&mut self, plan: &Plan) {
        for (left, wanted) in self.left.iter_mut().zip(&self.wanted) {
            *left = wanted.settled;
        }
        for server_flow in &mut self.server_flows {
            server_flow.free = server_flow.offered.settled;
        }
        self.round(plan);
        for server_flow in &mut self.server_flows {
            server_flow.free += server_flow.offered.fresh;
        }
        self.round(plan);
        for (left, wanted) in self.left.iter_mut().zip(&self.wanted) {
            *left += wanted.fresh;
        }
        self.round(plan);
        self.mark_misfits();
    }

    /// The servers' flows that were added for a client's, in this order.
    pub(super) fn found(&self, client_flow: usize) -> Vec<Found> {
        let found = |cell: &usize| {
            let Cell { server_flow, amount, is_contested, .. } = self.cells[*cell];
            Found { server_flow: self.server_flows[server_flow].index, opened: amount, is_contested }
        };
        self.of_client_flow[client_flow].iter().map(found).collect()
    }

    fn round(&mut self, plan: &Plan) {
        for client_flow in &plan.greedy {
            for cell in self.of_client_flow[*client_flow].clone() {
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
        let client_flows =
            (0..self.left.len()).filter(|client_flow| self.left[*client_flow] > self.wanted[*client_flow].fresh);
        let server_flows = self.server_flows.iter().filter(|server_flow| server_flow.free > server_flow.offered.fresh);
        let of_server_flows =
            server_flows.flat_map(|server_flow| &server_flow.cells).map(|cell| self.cells[*cell].client_flow);
        let misfits: BTreeSet<usize> = client_flows.chain(of_server_flows).collect();
        let mut seen: HashSet<usize> = HashSet::default();
        for client_flow in misfits {
            let together = self.together(client_flow, &mut seen);
            if together.len() > 1 {
                for cell in together.iter().flat_map(|client_flow| &self.of_client_flow[*client_flow]) {
                    self.cells[*cell].is_contested = true;
                }
            }
        }
    }

    /// A client's flow and all that share servers with it, directly or by others; none if it was seen.
    fn together(&self, client_flow: usize, seen: &mut HashSet<usize>) -> Vec<usize> {
        let mut together: Vec<usize> =
            Some(client_flow).filter(|client_flow| seen.insert(*client_flow)).into_iter().collect();
        let mut at = 0;
        let mut server_flows: HashSet<usize> = HashSet::default();
        while let Some(client_flow) = together.get(at).copied() {
            at += 1;
            for server_flow in self.of_client_flow[client_flow].iter().map(|cell| self.cells[*cell].server_flow) {
                if server_flows.insert(server_flow) {
                    let others = self.server_flows[server_flow].cells.iter().map(|cell| self.cells[*cell].client_flow);
                    together.extend(others.filter(|other| seen.insert(*other)));
                }
            }
        }
        together
    }

    fn take(&mut self, cell: usize, most: u64) {
        let Cell { client_flow, server_flow, amount, .. } = &mut self.cells[cell];
        let free = &mut self.server_flows[*server_flow].free;
        let taken = most.min(self.left[*client_flow]).min(*free);
        *amount += taken;
        self.left[*client_flow] -= taken;
        *free -= taken;
    }

    /// Shares contested counts: each flow takes from each server in proportion to what that offers.
    fn share(&mut self, contested: &[Vec<usize>]) {
        let mut shares = Vec::new();
        for cells in contested {
            let offered = |cell: &usize| u128::from(self.server_flows[self.cells[*cell].server_flow].free);
            let all: u128 = cells.iter().map(offered).sum();
            let wanted = cells.first().map_or(0, |cell| u128::from(self.left[self.cells[*cell].client_flow]));
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
        let mut exhausted: HashSet<usize> = HashSet::default();
        for client_flow in 0..self.left.len() {
            while self.left[client_flow] > 0 {
                match self.path(client_flow, &mut exhausted) {
                    Some(path) => self.follow(client_flow, &path),
                    None => break,
                }
            }
        }
    }

    /// The shortest way to a server with something to offer: cells to take, and between them cells to give back.
    fn path(&self, client_flow: usize, exhausted: &mut HashSet<usize>) -> Option<Vec<usize>> {
        let mut queue = VecDeque::from([client_flow]);
        // By which cell a server was reached, and by which its client flow was.
        let mut reached: HashMap<usize, usize> = HashMap::default();
        let mut given_back: HashMap<usize, usize> = HashMap::default();
        while let Some(from) = queue.pop_front() {
            for taking in &self.of_client_flow[from] {
                let server_flow = self.cells[*taking].server_flow;
                if exhausted.contains(&server_flow) || reached.contains_key(&server_flow) {
                    continue;
                }
                reached.insert(server_flow, *taking);
                if self.server_flows[server_flow].free > 0 {
                    return Some(self.back(server_flow, &reached, &given_back));
                }
                for giving in &self.server_flows[server_flow].cells {
                    let Cell { client_flow: other, amount, .. } = self.cells[*giving];
                    if amount > 0 && other != client_flow && !given_back.contains_key(&other) {
                        given_back.insert(other, *giving);
                        queue.push_back(other);
                    }
                }
            }
        }
        exhausted.extend(reached.into_keys());
        None
    }

    /// The way from the client flow to this server: taking, giving back, taking and so on.
    fn back(
        &self,
        server_flow: usize,
        reached: &HashMap<usize, usize>,
        given_back: &HashMap<usize, usize>,
    ) -> Vec<usize> {
        let mut path = Vec::new();
        let mut at = server_flow;
        while let Some(taking) = reached.get(&at) {
            path.push(*taking);
            let Some(giving) = given_back.get(&self.cells[*taking].client_flow) else { break };
            path.push(*giving);
            at = self.cells[*giving].server_flow;
        }
        path.reverse();
        path
    }

    fn follow(&mut self, client_flow: usize, path: &[usize]) {
        let Some(last) = path.last() else { return };
        let end = self.cells[*last].server_flow;
        let giving = path.iter().skip(1).step_by(2).map(|cell| self.cells[*cell].amount);
        let most = giving.chain([self.left[client_flow], self.server_flows[end].free]).min().unwrap_or(0);
        for (step, cell) in path.iter().enumerate() {
            let amount = &mut self.cells[*cell].amount;
            if step % 2 == 0 { *amount += most } else { *amount -= most }
        }
        self.left[client_flow] -= most;
        self.server_flows[end].free -= most;
    }
}

/// Pairs of a client flow and a server that leave no choice, in an order in which they can be decided.
///
/// In each pair, the server or the client flow is in no other remaining pair.
fn peel<S: Copy + Ord>(pairs: impl Iterator<Item = (usize, S)>) -> Vec<(usize, S)> {
    let mut servers: BTreeMap<usize, BTreeSet<S>> = BTreeMap::new();
    let mut client_flows: BTreeMap<S, BTreeSet<usize>> = BTreeMap::new();
    for (client_flow, server) in pairs {
        servers.entry(client_flow).or_default().insert(server);
        client_flows.entry(server).or_default().insert(client_flow);
    }
    let only = |set: &BTreeSet<usize>| set.first().copied().filter(|_| set.len() == 1);
    let mut due: VecDeque<(usize, S)> =
        client_flows.iter().filter_map(|(server, of)| Some((only(of)?, *server))).collect();
    due.extend(
        servers
            .iter()
            .filter(|(_, to)| to.len() == 1)
            .flat_map(|(client_flow, to)| to.iter().map(|it| (*client_flow, *it))),
    );
    let mut forced = Vec::new();
    while let Some((client_flow, server)) = due.pop_front() {
        let (Some(to), Some(of)) = (servers.get_mut(&client_flow), client_flows.get_mut(&server)) else { continue };
        if !to.remove(&server) {
            continue;
        }
        of.remove(&client_flow);
        forced.push((client_flow, server));
        if let (Some(next), 1) = (to.first(), to.len()) {
            due.push_back((client_flow, *next));
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
        for (client_flow, server_flow) in cells {
            matching.add(*client_flow, *server_flow, || Count::new(offered[*server_flow], 0));
        }
        let plan = matching.plan(greedy, |server_flow| server_flow);
        matching.divide(&plan);
        (0..wanted.len())
            .flat_map(|client_flow| matching.found(client_flow).into_iter().map(move |it| (client_flow, it)))
            .collect()
    }

    fn amounts(found: &[(usize, Found)]) -> Vec<(usize, usize, u64, bool)> {
        found.iter().map(|(client_flow, it)| (*client_flow, it.server_flow, it.opened, it.is_contested)).collect()
    }

    #[test]
    fn counts_that_fit_in_one_way_only_are_found() {
        // The second flow comes first where both could take from the second server.
        let cells = [(0, 1), (0, 2), (1, 0), (1, 1)];
        let exact = [(0, 1, 3, false), (0, 2, 7, false), (1, 0, 4, false), (1, 1, 6, false)];
        assert_eq!(amounts(&divided(&[10, 10], &[4, 9, 7], &cells, 0)), exact);
        let exact = exact.map(|(client_flow, server_flow, opened, _)| (client_flow, server_flow, opened));
        let greedy = amounts(&divided(&[10, 10], &[4, 9, 7], &cells, 2));
        assert_eq!(
            greedy
                .iter()
                .map(|(client_flow, server_flow, opened, _)| (*client_flow, *server_flow, *opened))
                .collect::<Vec<_>>(),
            exact
        );
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
        for client_flow in 0..2 {
            matching.add(client_flow, 0, || Count::new(4, 1));
        }
        matching.divide(&Plan::greedy(2));
        let found: Vec<u64> =
            (0..2).flat_map(|client_flow| matching.found(client_flow)).map(|found| found.opened).collect();
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
        (1..6_usize, 1..6_usize).prop_flat_map(move |(client_flows, server_flows)| {
            let cells =
                prop::collection::btree_set((0..client_flows, 0..server_flows), 0..=client_flows * server_flows);
            let (wanted, offered) =
                (prop::collection::vec(count(), client_flows), prop::collection::vec(count(), server_flows));
            (wanted, offered, cells.prop_map(|cells| cells.into_iter().collect()))
        })
    }

    proptest! {
        /// By the theorem of the least cut: of all sets of clients' flows, what the others want and what these can reach.
        #[test]
        fn as_much_is_matched_as_can_be((wanted, offered, cells) in counts(), greedy in 0..3_usize) {
            let found = divided(&wanted, &offered, &cells, greedy.min(wanted.len()));
            let cut = |set: usize| {
                let is_in = |client_flow: usize| set >> client_flow & 1 == 1;
                let others: u64 = (0..wanted.len()).filter(|it| !is_in(*it)).map(|it| wanted[it]).sum();
                let reaches = |server_flow: &usize| cells.iter().any(|(client_flow, to)| to == server_flow && is_in(*client_flow));
                others + (0..offered.len()).filter(reaches).map(|server_flow| offered[server_flow]).sum::<u64>()
            };
            let all: u64 = found.iter().map(|(_, it)| it.opened).sum();
            prop_assert_eq!(Some(all), (0..1 << wanted.len()).map(cut).min());
            for (client_flow, wanted) in wanted.iter().enumerate() {
                let has: u64 = found.iter().filter(|(of, _)| *of == client_flow).map(|(_, it)| it.opened).sum();
                prop_assert!(has <= *wanted);
            }
            for (server_flow, offered) in offered.iter().enumerate() {
                let given: u64 = found.iter().filter(|(_, it)| it.server_flow == server_flow).map(|(_, it)| it.opened).sum();
                prop_assert!(given <= *offered);
            }
        }

        /// Finds the truth wherever the result is not marked as a guess.
        #[test]
        fn what_leaves_no_choice_is_what_happened((_, _, cells) in counts(), opened in prop::collection::vec(0..20_u64, 25)) {
            let happened: Vec<(usize, usize, u64)> =
                cells.iter().zip(opened).map(|((client_flow, server_flow), opened)| (*client_flow, *server_flow, opened)).collect();
            let by = |index: usize, of: &dyn Fn(&(usize, usize, u64)) -> usize| {
                happened.iter().filter(|it| of(it) == index).map(|(_, _, opened)| opened).sum::<u64>()
            };
            let wanted: Vec<u64> = (0..5).map(|client_flow| by(client_flow, &|it| it.0)).collect();
            let offered: Vec<u64> = (0..5).map(|server_flow| by(server_flow, &|it| it.1)).collect();
            for (client_flow, found) in divided(&wanted, &offered, &cells, 0) {
                let truly = happened.iter().find(|(of, server_flow, _)| (*of, *server_flow) == (client_flow, found.server_flow));
                prop_assert!(found.is_contested || truly.is_some_and(|(_, _, opened)| *opened == found.opened));
            }
        }
    }
}
