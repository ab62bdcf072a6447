//! Vertical positions.

use super::Layered;

/// Rounds over all layers, in both directions in turn.
const ROUNDS: usize = 16;
/// Space between nodes of a layer.
const NODE_GAP: f64 = 22.0;
/// Space between links that pass a layer.
const PASSAGE_GAP: f64 = 8.0;

/// Returns the center of each vertex, so that neighbours are near and nothing overlaps. The smallest upper side is 0.
pub(super) fn rows(graph: &Layered) -> Vec<f64> {
    let mut rows = vec![0.0; graph.vertices.len()];
    for layer in &graph.layers {
        let offsets = offsets(graph, layer);
        let middle = offsets.last().copied().unwrap_or_default() / 2.0;
        for (vertex, offset) in layer.iter().zip(offsets) {
            rows[*vertex] = offset - middle;
        }
    }
    for round in 0..ROUNDS {
        let count = graph.layers.len();
        for step in 0..count {
            let layer = if round % 2 == 0 { step } else { count - 1 - step };
            align(graph, layer, &mut rows);
        }
    }
    let top = |vertex: usize| rows[vertex] - graph.vertices[vertex].size.height / 2.0;
    let highest = (0..rows.len()).map(top).fold(f64::INFINITY, f64::min);
    // Pictures of one map are equal on all machines.
    rows.iter().map(|row| (row - highest).round()).collect()
}

/// Returns the smallest distances of a layer's vertices from the first one.
fn offsets(graph: &Layered, layer: &[usize]) -> Vec<f64> {
    let mut offset = 0.0;
    let mut offsets = Vec::with_capacity(layer.len());
    for (place, vertex) in layer.iter().enumerate() {
        if let Some(before) = place.checked_sub(1) {
            let (above, below) = (graph.vertices[layer[before]], graph.vertices[*vertex]);
            let gap = if above.is_passage && below.is_passage { PASSAGE_GAP } else { NODE_GAP };
            offset += f64::midpoint(above.size.height, below.size.height) + gap;
        }
        offsets.push(offset);
    }
    offsets
}

/// Moves a layer's vertices towards the mean of their neighbours: the least squares that keep the order and the distances.
fn align(graph: &Layered, layer: usize, rows: &mut [f64]) {
    let vertices = &graph.layers[layer];
    let offsets = offsets(graph, vertices);
    // Blocks of vertices that touch each other: sum of weighted wishes, weight, and number.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for (vertex, offset) in vertices.iter().zip(&offsets) {
        let near = || graph.left[*vertex].iter().chain(&graph.right[*vertex]);
        #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52 neighbours")]
        let mean = match near().count() {
            0 => rows[*vertex],
            count => near().map(|other| rows[*other]).sum::<f64>() / count as f64,
        };
        // Links that pass are straight first.
        let weight = if graph.vertices[*vertex].is_passage { 4.0 } else { 1.0 };
        let mut block = ((mean - offset) * weight, weight, 1);
        while let Some(above) = blocks.pop_if(|above| above.0 / above.1 >= block.0 / block.1) {
            block = (above.0 + block.0, above.1 + block.1, above.2 + block.2);
        }
        blocks.push(block);
    }
    let positions = blocks.iter().flat_map(|(sum, weight, number)| std::iter::repeat_n(sum / weight, *number));
    for ((vertex, offset), position) in vertices.iter().zip(offsets).zip(positions) {
        rows[*vertex] = position + offset;
    }
}
