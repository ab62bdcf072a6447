//! A picture as SVG: a layered graph with text that screen readers and search find, without scripts or foreign fonts.

use std::collections::BTreeMap;

use unicode_width::UnicodeWidthStr as _;

use super::{Names, label, trouble, way};
use crate::{
    layout::{self, Layout, Link, Point, Size, Way},
    map::{Edge, Map, Peer, printable},
};

/// Width of a character of the monospaced font, in units of the picture.
const CHARACTER: f64 = 7.3;
/// Height of a line.
const LINE: f64 = 16.0;
/// Space around everything.
const MARGIN: f64 = 24.0;
/// Longest text of a line, in columns; longer ones end with an ellipsis.
const LONGEST: usize = 48;
/// Lines of a label; further ones are counted.
const LABEL_LINES: usize = 4;
/// Edges that the description lists; further ones are counted.
const DESCRIBED: usize = 40;
/// Light colours behind the workloads of a namespace. Black text on each has a contrast above 15 : 1.
const COLORS: [&str; 8] = ["#e3f2fd", "#e8f5e9", "#fff8e1", "#fce4ec", "#ede7f6", "#e0f7fa", "#f1f8e9", "#fbe9e7"];
const STYLE: &str = "text{font:12px ui-monospace,Menlo,Consolas,\"DejaVu Sans Mono\",monospace;fill:#111}\
    .name{font-weight:bold}.kind,.note{fill:#444;font-size:11px}\
    .peer{stroke:#333}.external{stroke-dasharray:5 3}\
    .edge{fill:none;stroke:#444;stroke-width:1.3}.failing{stroke:#b00020;stroke-width:1.8;stroke-dasharray:6 3}\
    .label{font-size:11px}.alarm{fill:#b00020;font-weight:bold}\
    .back{fill:#fff;fill-opacity:.88}";

/// A node of the picture.
struct Node<'m> {
    peer: &'m Peer,
    full: &'m str,
    lines: Vec<String>,
}

/// All edges from one peer to another.
struct Bundle<'m> {
    ends: (usize, usize),
    edges: Vec<&'m Edge>,
}

/// Returns the picture as a document.
#[must_use]
pub fn svg(map: &Map) -> String {
    let names = Names::of(map);
    let (loops, bundles) = bundles(map, &names);
    let nodes: Vec<Node<'_>> =
        names.all().map(|(peer, full)| node(peer, full, loops.get(&names.number(peer)))).collect();
    let sizes: Vec<Size> = nodes.iter().map(|node| size(&node.lines, 24.0, 14.0)).collect();
    let links = bundles.iter().map(|bundle| Link {
        from: bundle.ends.0,
        to: bundle.ends.1,
        label: size(&labels(&bundle.edges), 8.0, 2.0),
    });
    let layout = layout::layout(&sizes, &links.collect::<Vec<_>>());
    let gaps = gaps(map);
    let mut text = vec![head(map, &names, &layout, &gaps)];
    text.extend(bundles.iter().zip(&layout.links).map(|(bundle, way)| edge(bundle, way, &nodes)));
    let colors = colors(map);
    text.extend(
        nodes.iter().zip(&layout.nodes).zip(&sizes).map(|((node, at), size)| box_of(node, *at, *size, &colors)),
    );
    for (number, note) in (0_u32..).zip(&gaps) {
        let y = MARGIN * 2.0 + layout.size.height + LINE * f64::from(number);
        text.push(format!("<text class=\"note\" x=\"{MARGIN}\" y=\"{y}\">{}</text>\n", escaped(note)));
    }
    text.push("</svg>\n".to_owned());
    text.concat()
}

fn bundles<'m>(map: &'m Map, names: &Names<'_>) -> (BTreeMap<usize, Vec<&'m Edge>>, Vec<Bundle<'m>>) {
    let mut by_ends: BTreeMap<(usize, usize), Vec<&Edge>> = BTreeMap::new();
    for edge in &map.edges {
        by_ends.entry((names.number(&edge.client), names.number(&edge.server))).or_default().push(edge);
    }
    let (loops, others): (Vec<_>, Vec<_>) = by_ends.into_iter().partition(|((from, to), _)| from == to);
    let loops = loops.into_iter().map(|((node, _), edges)| (node, edges)).collect();
    (loops, others.into_iter().map(|(ends, edges)| Bundle { ends, edges }).collect())
}

fn node<'m>(peer: &'m Peer, full: &'m str, loops: Option<&Vec<&Edge>>) -> Node<'m> {
    let namespace = peer.namespace().map(printable);
    let name = namespace.as_ref().and_then(|namespace| full.strip_prefix(namespace.as_str())?.strip_prefix('/'));
    let kind = peer.kind().map(printable);
    let below: Vec<String> = [namespace.clone(), kind].into_iter().flatten().collect();
    let mut lines = vec![shortened(name.unwrap_or(full))];
    lines.extend(Some(below.join(" · ")).filter(|below| !below.is_empty()).map(|below| shortened(&below)));
    if let Some(edges) = loops {
        lines.extend(labels(edges).into_iter().map(|label| shortened(&format!("calls itself: {label}"))));
    }
    Node { peer, full, lines }
}

/// Returns the lines of the label of several edges.
fn labels(edges: &[&Edge]) -> Vec<String> {
    let mut lines: Vec<String> = edges.iter().flat_map(|edge| label(edge)).map(|line| shortened(&line)).collect();
    if let Some(more) = lines.len().checked_sub(LABEL_LINES).filter(|more| *more > 0) {
        lines.truncate(LABEL_LINES - 1);
        lines.push(format!("{} more lines", more + 1));
    }
    lines
}

fn size(lines: &[String], wider: f64, higher: f64) -> Size {
    let columns = lines.iter().map(|line| line.width()).max().unwrap_or_default();
    let number = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    if lines.is_empty() {
        return Size::default();
    }
    Size { width: (number(columns) * CHARACTER + wider).round(), height: number(lines.len()) * LINE + higher }
}

fn shortened(text: &str) -> String {
    if text.width() <= LONGEST {
        return text.to_owned();
    }
    let mut short = String::new();
    for character in text.chars() {
        if short.width() + 2 > LONGEST {
            break;
        }
        short.push(character);
    }
    short + "…"
}

/// Returns the colour of each namespace.
fn colors(map: &Map) -> BTreeMap<&str, &'static str> {
    let mut colors: BTreeMap<&str, &'static str> =
        map.ends().filter_map(Peer::namespace).map(|namespace| (namespace, "")).collect();
    for (color, namespace) in COLORS.into_iter().cycle().zip(colors.values_mut()) {
        *namespace = color;
    }
    colors
}

/// Returns what is missing from the map, in lines.
fn gaps(map: &Map) -> Vec<String> {
    const MOST: usize = 5;
    const COLUMNS: usize = 100;
    let mut notes = Vec::new();
    for caveat in map.caveats.iter().take(MOST) {
        let mut line = "incomplete:".to_owned();
        for word in caveat.split_whitespace() {
            if line.width() + 1 + word.width() > COLUMNS {
                notes.push(std::mem::replace(&mut line, "   ".to_owned()));
            }
            line.push(' ');
            line.push_str(word);
        }
        notes.push(line);
    }
    if map.caveats.len() > MOST {
        notes.push(format!("incomplete: {} more gaps are known", map.caveats.len() - MOST));
    }
    notes.iter().map(|note| printable(note)).collect()
}

fn head(map: &Map, names: &Names<'_>, layout: &Layout, notes: &[String]) -> String {
    let lines = f64::from(u32::try_from(notes.len()).unwrap_or(u32::MAX));
    let columns = size(notes, 0.0, 0.0).width;
    let width = layout.size.width.max(columns).max(240.0) + 2.0 * MARGIN;
    let height = layout.size.height + 2.0 * MARGIN + if notes.is_empty() { 0.0 } else { LINE * (lines + 0.5) };
    let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let title = format!("Topology: {}, {}", count(names.all().count(), "peer"), count(map.edges.len(), "edge"));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-labelledby=\"title description\">\n<title id=\"title\">{}</title>\n<desc \
         id=\"description\">{}</desc>\n<style>{STYLE}</style>\n<defs>{}{}</defs>\n<rect width=\"{width}\" \
         height=\"{height}\" fill=\"#fff\"/>\n",
        escaped(&title),
        escaped(&description(map, names)),
        marker("arrow", "#444"),
        marker("alarm", "#b00020"),
    )
}

fn marker(id: &str, color: &str) -> String {
    format!(
        "<marker id=\"{id}\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"9\" markerHeight=\"9\" \
         markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M0 1 10 5 0 9z\" fill=\"{color}\"/></marker>"
    )
}

fn description(map: &Map, names: &Names<'_>) -> String {
    let sentence = |edge: &Edge| {
        let way = Some(way(edge)).filter(|way| !way.is_empty()).map(|way| format!(" ({way})")).unwrap_or_default();
        let trouble = trouble(edge).map(|trouble| format!(", {trouble}")).unwrap_or_default();
        format!("{} calls {}{way}{trouble}.", names.name(&edge.client), names.name(&edge.server))
    };
    let mut sentences: Vec<String> = map.edges.iter().take(DESCRIBED).map(sentence).collect();
    if map.edges.len() > DESCRIBED {
        sentences.push(format!("There are {} more edges.", map.edges.len() - DESCRIBED));
    }
    sentences.join(" ")
}

fn edge(bundle: &Bundle<'_>, way: &Way, nodes: &[Node<'_>]) -> String {
    let fails = bundle.edges.iter().any(|edge| edge.counters.has_failures());
    let (class, marker) = if fails { ("edge failing", "alarm") } else { ("edge", "arrow") };
    let lines = labels(&bundle.edges);
    let title = format!("{} calls {}: {}", nodes[bundle.ends.0].full, nodes[bundle.ends.1].full, lines.join(", "));
    let path = path(&way.points);
    let Size { width, height } = size(&lines, 6.0, 0.0);
    let (x, y) = (MARGIN + way.label.x, MARGIN + way.label.y);
    let back = if lines.is_empty() {
        String::new()
    } else {
        let (left, top) = (x - width / 2.0, y - height / 2.0);
        format!("<rect class=\"back\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\"/>")
    };
    let troubles: Vec<String> = bundle.edges.iter().filter_map(|edge| trouble(edge)).collect();
    let lines =
        text_lines(
            &lines,
            x,
            y,
            |line| {
                if troubles.iter().any(|trouble| trouble == line) { "label alarm" } else { "label" }
            },
        );
    format!(
        "<g><title>{}</title><path class=\"{class}\" marker-end=\"url(#{marker})\" d=\"{path}\"/>{back}{lines}</g>\n",
        escaped(&title)
    )
}

/// Returns a path: straight within each pair of points, and curved between pairs, with horizontal ends.
fn path(points: &[Point]) -> String {
    let mut path = String::new();
    let at = |point: &Point| format!("{} {}", MARGIN + point.x, MARGIN + point.y);
    for (number, point) in points.iter().enumerate() {
        let part = match number.checked_sub(1).map(|before| &points[before]) {
            None => format!("M{}", at(point)),
            // The first point leaves a node: curves end at those with an odd number.
            Some(before) if number % 2 == 1 => {
                let middle = f64::midpoint(before.x, point.x);
                let [first, last] = [before.y, point.y].map(|y| at(&Point { x: middle, y }));
                format!("C{first} {last} {}", at(point))
            }
            Some(_) => format!("L{}", at(point)),
        };
        path.push_str(&part);
    }
    path
}

fn box_of(node: &Node<'_>, at: Point, Size { width, height }: Size, colors: &BTreeMap<&str, &str>) -> String {
    let (x, y) = (MARGIN + at.x, MARGIN + at.y);
    let (left, top) = (x - width / 2.0, y - height / 2.0);
    let fill = node.peer.namespace().and_then(|namespace| colors.get(namespace)).copied().unwrap_or("#fff");
    let (class, radius) = if node.peer.is_external() { ("peer external", 14) } else { ("peer", 3) };
    let first = node.lines.first().cloned().unwrap_or_default();
    let lines = text_lines(&node.lines, x, y, |line| if line == first { "name" } else { "kind" });
    format!(
        "<g><title>{}</title><rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" \
         rx=\"{radius}\" fill=\"{fill}\"/>{lines}</g>\n",
        escaped(node.full)
    )
}

/// Returns lines of text around a center.
fn text_lines<'c>(lines: &[String], x: f64, y: f64, class: impl Fn(&str) -> &'c str) -> String {
    let count = f64::from(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    let line = |(number, line): (u32, &String)| {
        let y = y + (f64::from(number) - (count - 1.0) / 2.0) * LINE + 4.0;
        format!("<text class=\"{}\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", class(line), escaped(line))
    };
    (0..).zip(lines).map(line).collect()
}

/// Returns a text for XML and HTML.
pub(super) fn escaped(text: &str) -> String {
    let text = printable(text);
    // XML 1.0 has no such characters, even escaped.
    let text: String = text.chars().filter(|character| !matches!(character, '\u{fffe}' | '\u{ffff}')).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
