//! Layered layout of a directed graph, from left to right: a client is left of its servers, unless there is a cycle.
//!
//! The steps are those of Sugiyama: reverse the edges that close cycles, assign layers, order each layer for few crossings, and
//! align neighbours. Labels are vertices of layers of their own, so that nothing overlaps. The result depends on the input's
//! order alone.

mod coordinates;
mod layers;
mod order;

use std::collections::BTreeSet;

/// Width and height.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// Point of the picture; `y` grows downwards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Distance from the left.
    pub x: f64,
    /// Distance from the top.
    pub y: f64,
}

/// Edge between two nodes, by their numbers, with the size of its label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Node at which it begins.
    pub from: usize,
    /// Another node, at which it ends.
    pub to: usize,
    /// Size of its label.
    pub label: Size,
}

/// Position of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Size of the picture.
    pub size: Size,
    /// Center of each node.
    pub nodes: Vec<Point>,
    /// Way of each link.
    pub links: Vec<Way>,
}

/// Way of a link from its beginning to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// Points: it is curved from the first to the second, straight to the third, curved to the fourth, and so on.
    pub points: Vec<Point>,
    /// Center of its label.
    pub label: Point,
}

/// Space between layers. Each second layer has labels.
const LAYER_GAP: f64 = 28.0;

/// Most points at which links pass layers. Longer links go straight to the layer of their label, below other nodes.
const MOST_PASSAGES: usize = 100_000;

/// Vertex of the layered graph.
#[derive(Clone, Copy, Debug)]
struct Vertex {
    layer: usize,
    size: Size,
    /// True for a point at which a link passes a layer.
    is_passage: bool,
}

/// Layered graph. Each link is a chain of vertices, one in each layer.
#[derive(Default)]
struct Layered {
    vertices: Vec<Vertex>,
    chains: Vec<Vec<usize>>,
    /// Vertices of each layer, from top to bottom.
    layers: Vec<Vec<usize>>,
    left: Vec<Vec<usize>>,
    right: Vec<Vec<usize>>,
}

/// Returns the positions of nodes of these sizes, and of links between different ones.
#[must_use]
pub fn layout(nodes: &[Size], links: &[Link]) -> Layout {
    let reversed = layers::closing_cycles(nodes.len(), links);
    let ranks = layers::ranks(nodes.len(), links, &reversed);
    let mut graph = layered(nodes, links, &reversed, &ranks);
    order::order(&mut graph);
    let centers = coordinates::rows(&graph);
    let columns = columns(&graph);
    place(nodes.len(), &graph, &centers, &columns, &reversed)
}

/// Returns whether each link passes the layers between its ends: the shortest ones, as many as are drawn in bounded time.
fn passing(links: &[Link], ranks: &[usize]) -> Vec<bool> {
    let span = |link: &Link| ranks[link.from].abs_diff(ranks[link.to]);
    let mut order: Vec<usize> = (0..links.len()).collect();
    order.sort_by_key(|number| (span(&links[*number]), *number));
    let mut passing = vec![false; links.len()];
    let mut sum = 0;
    for number in order {
        sum += 2 * span(&links[number]);
        passing[number] = sum <= MOST_PASSAGES;
    }
    passing
}

/// Makes the chains of all links. Nodes are in even layers, labels in odd ones.
fn layered(nodes: &[Size], links: &[Link], reversed: &BTreeSet<usize>, ranks: &[usize]) -> Layered {
    let mut graph = Layered::default();
    for (size, rank) in nodes.iter().zip(ranks) {
        graph.vertices.push(Vertex { layer: 2 * rank, size: *size, is_passage: false });
    }
    let passing = passing(links, ranks);
    for (number, link) in links.iter().enumerate() {
        let (first, last) = if reversed.contains(&number) { (link.to, link.from) } else { (link.from, link.to) };
        let (begin, end) = (graph.vertices[first].layer, graph.vertices[last].layer);
        // The label is beside the server.
        let labelled = if reversed.contains(&number) { begin + 1 } else { end - 1 };
        let mut chain = vec![first];
        let between = if passing[number] { begin + 1..end } else { labelled..labelled + 1 };
        for layer in between {
            let size = if layer == labelled { link.label } else { Size::default() };
            chain.push(graph.vertices.len());
            graph.vertices.push(Vertex { layer, size, is_passage: true });
        }
        chain.push(last);
        graph.chains.push(chain);
    }
    let count = graph.vertices.iter().map(|vertex| vertex.layer + 1).max().unwrap_or_default();
    graph.layers = vec![Vec::new(); count];
    graph.left = vec![Vec::new(); graph.vertices.len()];
    graph.right.clone_from(&graph.left);
    for chain in &graph.chains {
        let is_next = |pair: &&[usize]| graph.vertices[pair[0]].layer + 1 == graph.vertices[pair[1]].layer;
        for pair in chain.windows(2).filter(is_next) {
            graph.right[pair[0]].push(pair[1]);
            graph.left[pair[1]].push(pair[0]);
        }
    }
    for vertex in layers::by_depth(&graph) {
        graph.layers[graph.vertices[vertex].layer].push(vertex);
    }
    graph
}

/// Returns left and right side of each layer.
fn columns(graph: &Layered) -> Vec<(f64, f64)> {
    let mut left = 0.0;
    let column = |layer: &Vec<usize>| {
        let width = layer.iter().map(|vertex| graph.vertices[*vertex].size.width).fold(0.0, f64::max);
        let column = (left, left + width);
        left = column.1 + LAYER_GAP;
        column
    };
    graph.layers.iter().map(column).collect()
}

fn place(nodes: usize, graph: &Layered, rows: &[f64], columns: &[(f64, f64)], reversed: &BTreeSet<usize>) -> Layout {
    let center = |vertex: usize| {
        let (left, right) = columns[graph.vertices[vertex].layer];
        Point { x: f64::midpoint(left, right), y: rows[vertex] }
    };
    let bottom = |vertex: usize| rows[vertex] + graph.vertices[vertex].size.height / 2.0;
    let height = (0..rows.len()).map(bottom).fold(0.0, f64::max);
    let width = columns.last().map_or(0.0, |(_, right)| *right);
    let links = graph.chains.iter().enumerate().map(|(number, chain)| {
        let is_reversed = reversed.contains(&number);
        let labelled = if is_reversed { chain[1] } else { chain[chain.len() - 2] };
        let mut points: Vec<Point> = chain.iter().flat_map(|vertex| sides(graph, columns, rows, *vertex)).collect();
        // The first and the last point are on the far sides of the nodes.
        points.pop();
        points.remove(0);
        if is_reversed {
            points.reverse();
        }
        Way { points, label: center(labelled) }
    });
    Layout { size: Size { width, height }, nodes: (0..nodes).map(center).collect(), links: links.collect() }
}

/// Returns the points at which links enter and leave a vertex: the sides of a node, or of the layer that they pass.
fn sides(graph: &Layered, columns: &[(f64, f64)], rows: &[f64], vertex: usize) -> [Point; 2] {
    let Vertex { layer, size, is_passage } = graph.vertices[vertex];
    let (left, right) = columns[layer];
    let half = size.width / 2.0;
    let middle = f64::midpoint(left, right);
    let (begin, end) = if is_passage { (left, right) } else { (middle - half, middle + half) };
    [Point { x: begin, y: rows[vertex] }, Point { x: end, y: rows[vertex] }]
}
