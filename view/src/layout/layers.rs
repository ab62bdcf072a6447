//! Layers of nodes.

use std::collections::BTreeSet;

use super::{Layered, Link};

/// Returns the numbers of links that close cycles: those that lead back to a node of the path of a depth-first search.
pub(super) fn closing_cycles(nodes: usize, links: &[Link]) -> BTreeSet<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut outgoing = vec![Vec::new(); nodes];
    let mut is_called = vec![false; nodes];
    for (number, link) in links.iter().enumerate() {
        outgoing[link.from].push(number);
        is_called[link.to] = true;
    }
    let mut state = vec![State::New; nodes];
    let mut closing = BTreeSet::new();
    // Clients that are not called come first, so that they are on the left.
    let (first, others): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|node| !is_called[*node]);
    for root in first.into_iter().chain(others) {
        if state[root] != State::New {
            continue;
        }
        state[root] = State::Open;
        // Paths may be longer than the thread's stack is deep.
        let mut path = vec![(root, 0)];
        while let Some((node, next)) = path.last_mut() {
            let Some(link) = outgoing[*node].get(*next) else {
                state[*node] = State::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let to = links[*link].to;
            match state[to] {
                State::Open => _ = closing.insert(*link),
                State::Done => (),
                State::New => {
                    state[to] = State::Open;
                    path.push((to, 0));
                }
            }
        }
    }
    closing
}

/// Returns the layer of each node: the length of the longest way to it. Nodes that are not called move to the right, as far as
/// what they call allows.
pub(super) fn ranks(nodes: usize, links: &[Link], reversed: &BTreeSet<usize>) -> Vec<usize> {
    let mut next = vec![Vec::new(); nodes];
    let mut missing = vec![0_usize; nodes];
    for (number, link) in links.iter().enumerate() {
        let (from, to) = if reversed.contains(&number) { (link.to, link.from) } else { (link.from, link.to) };
        next[from].push(to);
        missing[to] += 1;
    }
    let is_first: Vec<bool> = missing.iter().map(|missing| *missing == 0).collect();
    let mut ready: Vec<usize> = (0..nodes).filter(|node| is_first[*node]).collect();
    let mut ranks = vec![0; nodes];
    while let Some(node) = ready.pop() {
        for &to in &next[node] {
            ranks[to] = ranks[to].max(ranks[node] + 1);
            missing[to] -= 1;
            if missing[to] == 0 {
                ready.push(to);
            }
        }
    }
    let moved = (0..nodes).map(|node| match next[node].iter().map(|to| ranks[*to]).min() {
        Some(nearest) if is_first[node] => nearest - 1,
        _ => ranks[node],
    });
    moved.collect()
}

/// Returns all vertices in the order of a depth-first search, which keeps parts of the graph together.
pub(super) fn by_depth(graph: &Layered) -> Vec<usize> {
    let mut is_known = vec![false; graph.vertices.len()];
    let mut order = Vec::with_capacity(graph.vertices.len());
    for root in 0..graph.vertices.len() {
        let mut stack = vec![root];
        while let Some(vertex) = stack.pop() {
            if std::mem::replace(&mut is_known[vertex], true) {
                continue;
            }
            order.push(vertex);
            stack.extend(graph.left[vertex].iter().chain(&graph.right[vertex]).rev());
        }
    }
    order
}
