//! Comma-separated values (RFC 4180), one line for each edge.

use super::Names;
use crate::map::Map;

const HEADER: &str = "id,client,server,service,port,protocol,opened,active,failed,pending,bytes_sent,bytes_received,\
                      without_bytes,seen,inferred,first_seen,last_seen,last_failed";

/// Returns all edges. A value that a spreadsheet would take for a formula begins with an apostrophe.
#[must_use]
pub fn csv(map: &Map) -> String {
    let names = Names::of(map);
    let mut text = format!("{HEADER}\r\n");
    for edge in &map.edges {
        let counters = &edge.counters;
        let or_empty = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref().map_or_else(String::new, |time| time.0.to_string())
        };
        let cells = [
            edge.id.clone(),
            names.name(&edge.client).to_owned(),
            names.name(&edge.server).to_owned(),
            edge.service.clone().unwrap_or_default(),
            edge.port.map_or_else(String::new, |port| port.to_string()),
            format!("{:?}", edge.protocol).to_uppercase(),
            counters.opened.to_string(),
            counters.active.to_string(),
            counters.failed.to_string(),
            counters.pending.to_string(),
            or_empty(counters.bytes_sent),
            or_empty(counters.bytes_received),
            counters.without_bytes.to_string(),
            edge.seen.map_or_else(String::new, |seen| format!("{seen:?}")),
            edge.is_inferred.to_string(),
            time(&edge.first_seen),
            time(&edge.last_seen),
            time(&edge.last_failed),
        ];
        text.push_str(&cells.map(|cell| quoted(&cell)).join(","));
        text.push_str("\r\n");
    }
    text
}

fn quoted(cell: &str) -> String {
    let cell = if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\r', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn cells_are_no_formulas_and_no_other_cells() {
        assert_eq!(quoted("a"), "a");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("=1+1"), "'=1+1");
    }
}
