//! Describes how an edge is known.

use crds::SeenEnds;

use crate::{map::Edge, render::Names};

/// Returns some lines about an edge: who observed it, its counts, and what is not known.
#[must_use]
pub fn edge(edge: &Edge, names: &Names<'_>) -> String {
    let counters = &edge.counters;
    let (client, server) = (names.name(&edge.client), names.name(&edge.server));
    let mut lines = vec![format!("{client} -> {} ({})", edge.called_by_name(server), edge.id)];
    if edge.service.is_some() {
        let port = edge.port.map(|port| format!(" at port {port}")).unwrap_or_default();
        lines.push(format!("answered by {server}{port}"));
    }
    if !edge.via.is_empty() {
        lines.push(format!("through {}", edge.via.join(", ")));
    }
    lines.push(format!("{} opened, {} of them open now", counters.opened, counters.active));
    if counters.has_failures() {
        let last = edge.last_failed.as_ref().map(|time| format!(", the last one at {}", time.0)).unwrap_or_default();
        lines.push(format!("{} attempts failed{last}, {} have no answer yet", counters.failed, counters.pending));
    }
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "an unknown number of".to_owned(), |bytes| bytes.to_string());
    lines.push(format!(
        "{} bytes to the server, {} bytes back",
        bytes(counters.bytes_sent),
        bytes(counters.bytes_received)
    ));
    if counters.without_bytes > 0 {
        lines.push(format!("at least: not all bytes of {} connections are known", counters.without_bytes));
    }
    lines.extend(match edge.seen {
        Some(SeenEnds::Both) => Some("agents observed both ends".to_owned()),
        Some(SeenEnds::Client) => {
            Some("an agent observed the client; the server is known by its address alone".to_owned())
        }
        Some(SeenEnds::Server) => {
            Some("an agent observed the server; the client is known by its address alone".to_owned())
        }
        None => None,
    });
    if edge.is_inferred {
        lines.push("the direction of some connections is a guess".to_owned());
    }
    let time = |what: &str, time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.as_ref().map(|time| format!("{what} {}", time.0))
    };
    lines.extend(time("first seen", &edge.first_seen));
    lines.extend(time("last seen, at the earliest,", &edge.last_seen));
    let mut text = lines.join("\n  ");
    text.push('\n');
    text
}
