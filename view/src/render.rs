//! Pictures and tables of a map, as text.

mod csv;
mod dot;
mod html;
mod junit;
mod mermaid;
mod svg;
pub mod table;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use unicode_width::UnicodeWidthStr as _;

pub use self::{
    csv::csv,
    dot::dot,
    html::html,
    junit::junit,
    mermaid::mermaid,
    svg::svg,
    table::{table, wide},
    tree::tree,
};
use crate::map::{Edge, Map, Peer};

/// Returns the names of all peers, one per line.
#[must_use]
pub fn names(map: &Map) -> String {
    Names::of(map).all().flat_map(|(_, name)| [name, "\n"]).collect()
}

/// All peers of a map in order, each with a number and a name of its own: the kind is added where two have the same.
pub struct Names<'m>(BTreeMap<&'m Peer, (usize, String)>);

impl<'m> Names<'m> {
    /// Returns the names of a map's peers.
    #[must_use]
    pub fn of(map: &'m Map) -> Self {
        let all: BTreeSet<&Peer> = map.ends().collect();
        let mut count = BTreeMap::<String, usize>::new();
        for peer in &all {
            *count.entry(peer.to_string()).or_default() += 1;
        }
        let name = |peer: &Peer| {
            let name = peer.to_string();
            match (peer.kind(), count.get(&name)) {
                (Some(kind), Some(2..)) => format!("{name} ({kind})"),
                _ => name,
            }
        };
        Self(all.into_iter().enumerate().map(|(number, peer)| (peer, (number, name(peer)))).collect())
    }

    /// Returns all peers in order, each with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'m Peer, &str)> {
        self.0.iter().map(|(peer, (_, name))| (*peer, name.as_str()))
    }

    /// Returns the name of a peer of the map.
    #[must_use]
    pub fn name(&self, peer: &Peer) -> &str {
        self.0.get(peer).map_or("", |(_, name)| name)
    }

    /// Returns the number of a peer of the map.
    fn number(&self, peer: &Peer) -> usize {
        self.0.get(peer).map_or(0, |(number, _)| *number)
    }
}

/// Returns rows with aligned columns.
pub(crate) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or_default();
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| {
            // Characters of some scripts are two columns wide.
            format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width())))
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Returns a short text of what an edge leads to at its server: `:5432`, or `db:80 :5432` for a Service with another port,
/// with the protocol unless it is TCP.
fn way(edge: &Edge) -> String {
    let service = edge.service.as_deref().map(|service| service.split_once('/').map_or(service, |(_, name)| name));
    let port = edge.port.map(|port| format!(":{port}"));
    let port = port.filter(|port| service.is_none_or(|service| !service.ends_with(port.as_str())));
    let udp = (edge.protocol == crds::TransportProtocol::Udp).then(|| "UDP".to_owned());
    [service.map(str::to_owned), port, udp].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Returns the parts of an edge's label in pictures.
fn label(edge: &Edge) -> Vec<String> {
    [Some(way(edge)), trouble(edge)].into_iter().flatten().filter(|part| !part.is_empty()).collect()
}

/// Returns the state of an edge in words, if it is not as it should be.
fn trouble(edge: &Edge) -> Option<String> {
    let counters = &edge.counters;
    let part = |number: u64, what: &str| (number > 0).then(|| format!("{number} {what}"));
    let parts: Vec<String> =
        [part(counters.failed, "failed"), part(counters.pending, "pending")].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
