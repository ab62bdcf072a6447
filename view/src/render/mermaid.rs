//! A picture in the language of Mermaid, which pages of Markdown show.

use super::{Names, label};
use crate::map::Map;

/// Returns a flowchart. Edges with failed or pending attempts are dotted.
#[must_use]
pub fn mermaid(map: &Map) -> String {
    let names = Names::of(map);
    let mut text = vec!["flowchart LR\n".to_owned()];
    for (peer, name) in names.all() {
        let number = names.number(peer);
        let (open, close) = if peer.is_external() { ("([", "])") } else { ("[", "]") };
        text.push(format!("  n{number}{open}{}{close}\n", quoted(name)));
    }
    for edge in &map.edges {
        let arrow = if edge.counters.has_failures() { "-.->" } else { "-->" };
        let label = label(edge);
        let label = if label.is_empty() { String::new() } else { format!("|{}|", quoted(&label.join(", "))) };
        text.push(format!("  n{} {arrow}{label} n{}\n", names.number(&edge.client), names.number(&edge.server)));
    }
    text.concat()
}

fn quoted(text: &str) -> String {
    let escaped = text
        .replace('#', "#35;")
        .replace('&', "#amp;")
        .replace('"', "#quot;")
        .replace('<', "#lt;")
        .replace('>', "#gt;");
    format!("\"{escaped}\"")
}
