//! Order of the vertices of each layer.

use super::Layered;

/// Sweeps over all layers, in both directions in turn.
const SWEEPS: usize = 12;

/// Orders layers by the medians of their neighbours' places, and keeps the order with the fewest crossings.
pub(super) fn order(graph: &mut Layered) {
    let mut places = vec![0; graph.vertices.len()];
    for layer in &graph.layers {
        note(&mut places, layer);
    }
    let mut best = (crossings(graph, &places), graph.layers.clone());
    for sweep in 0..SWEEPS {
        let count = graph.layers.len();
        let is_rightward = sweep % 2 == 0;
        for step in 1..count {
            let layer = if is_rightward { step } else { count - 1 - step };
            sort(graph, layer, is_rightward, &places);
            note(&mut places, &graph.layers[layer]);
        }
        let number = crossings(graph, &places);
        if number < best.0 {
            best = (number, graph.layers.clone());
        }
    }
    graph.layers = best.1;
}

/// Notes the place of each vertex of a layer.
fn note(places: &mut [usize], layer: &[usize]) {
    for (place, vertex) in layer.iter().enumerate() {
        places[*vertex] = place;
    }
}

fn sort(graph: &mut Layered, layer: usize, is_rightward: bool, places: &[usize]) {
    let neighbours = if is_rightward { &graph.left } else { &graph.right };
    let key = |(own, vertex): (usize, &usize)| {
        let mut near: Vec<usize> = neighbours[*vertex].iter().map(|other| places[*other]).collect();
        near.sort_unstable();
        // Twice the median, in whole numbers. Without a neighbour, a vertex keeps its place.
        let median = match near.len() {
            0 => 2 * own,
            many => near[(many - 1) / 2] + near[many / 2],
        };
        (median, own, *vertex)
    };
    let mut keys: Vec<(usize, usize, usize)> = graph.layers[layer].iter().enumerate().map(key).collect();
    keys.sort_unstable();
    graph.layers[layer] = keys.into_iter().map(|(_, _, vertex)| vertex).collect();
}

/// Returns the number of crossings between all neighbouring layers.
fn crossings(graph: &Layered, places: &[usize]) -> u64 {
    (1..graph.layers.len()).map(|layer| crossings_before(graph, layer, places)).sum()
}

fn crossings_before(graph: &Layered, layer: usize, places: &[usize]) -> u64 {
    let size = graph.layers[layer].len();
    // A Fenwick tree of the ends so far: each new one crosses those below it.
    let mut tree = vec![0_u64; size + 1];
    let (mut crossings, mut count) = (0, 0);
    for vertex in &graph.layers[layer - 1] {
        let mut ends: Vec<usize> = graph.right[*vertex].iter().map(|other| places[*other]).collect();
        ends.sort_unstable();
        for end in &ends {
            crossings += count - up_to(&tree, end + 1);
        }
        for end in ends {
            add(&mut tree, end + 1);
            count += 1;
        }
    }
    crossings
}

fn up_to(tree: &[u64], mut index: usize) -> u64 {
    let mut sum = 0;
    while index > 0 {
        sum += tree[index];
        index &= index - 1;
    }
    sum
}

fn add(tree: &mut [u64], mut index: usize) {
    while index < tree.len() {
        tree[index] += 1;
        index += index & index.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Link, Size, layered};

    #[test]
    fn crossings_are_counted_and_removed() {
        let link = |from, to| Link { from, to, label: Size::default() };
        // Two links that cross if the servers keep the order of their numbers.
        let links = [link(0, 3), link(1, 2)];
        let mut graph = layered(&[Size::default(); 4], &links, &[].into(), &[0, 0, 1, 1]);
        graph.layers = vec![vec![0, 1], vec![4, 5], vec![2, 3]];
        let count = |graph: &Layered| {
            let mut places = vec![0; graph.vertices.len()];
            graph.layers.iter().for_each(|layer| note(&mut places, layer));
            crossings(graph, &places)
        };
        assert_eq!(count(&graph), 1);
        order(&mut graph);
        assert_eq!(count(&graph), 0);
    }
}
