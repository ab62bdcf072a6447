//! A picture for the terminal: each client with the servers that it calls.

use super::{Names, trouble, way};
use crate::map::Map;

/// Returns each client with its servers. `ascii` avoids characters for drawing lines.
#[must_use]
pub fn tree(map: &Map, ascii: bool) -> String {
    let (branch, last) = if ascii { ("|-", "`-") } else { ("├─", "└─") };
    let names = Names::of(map);
    let mut text = Vec::new();
    for edges in map.edges.chunk_by(|one, next| one.client == next.client) {
        for (number, edge) in edges.iter().enumerate() {
            if number == 0 {
                text.push(format!("{}\n", names.name(&edge.client)));
            }
            let line = if number + 1 == edges.len() { last } else { branch };
            let way = Some(way(edge)).filter(|way| !way.is_empty()).map(|way| format!("  {way}")).unwrap_or_default();
            let trouble = trouble(edge).map(|trouble| format!("  ! {trouble}")).unwrap_or_default();
            let opened = edge.counters.opened;
            text.push(format!("{line} {}{way}  {opened} opened{trouble}\n", names.name(&edge.server)));
        }
    }
    text.concat()
}
