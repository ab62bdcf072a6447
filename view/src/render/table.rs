//! A table, one row for each edge.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Names, aligned};
use crate::map::{Edge, Map};

/// Names of the columns.
pub const HEADER: [&str; 11] =
    ["CLIENT", "SERVER", "SERVICE", "PORT", "OPENED", "ACTIVE", "FAILED", "PENDING", "SENT", "RECEIVED", "SEEN"];

/// Returns a table with aligned columns. Bytes with `≥` are lower bounds, `?` is unknown, and `~` marks a guessed direction.
#[must_use]
pub fn table(map: &Map) -> String {
    aligned(&[HEADER.map(str::to_owned)].into_iter().chain(rows(map)).collect::<Vec<_>>())
}

/// Returns the same with the times, the methods of observation and the identifier of each edge.
#[must_use]
pub fn wide(map: &Map) -> String {
    let header = ["FIRST SEEN", "LAST SEEN", "LAST FAILED", "METHODS", "ID"].map(str::to_owned);
    let times = map.edges.iter().map(|edge| {
        let time = |time: &Option<Time>| time.as_ref().map_or_else(|| "-".to_owned(), |time| time.0.to_string());
        // The object has the time of the last activity as a lower bound.
        let last_seen = edge.last_seen.as_ref().map_or_else(|| "-".to_owned(), |time| format!("≥{}", time.0));
        [time(&edge.first_seen), last_seen, time(&edge.last_failed), methods(edge), edge.id.clone()]
    });
    let rows = rows(map);
    let cells = [HEADER.map(str::to_owned)].into_iter().chain(rows).zip([header].into_iter().chain(times));
    let cells = cells.map(|(row, more)| {
        let mut cells = row.into_iter().chain(more);
        std::array::from_fn::<String, 16, _>(|_| cells.next().unwrap_or_default())
    });
    aligned(&cells.collect::<Vec<_>>())
}

/// Returns the methods of the agents that observed an edge, `-` if they are unknown.
fn methods(edge: &Edge) -> String {
    let methods = edge.methods.iter().map(|method| crate::explain::method(*method)).collect::<Vec<_>>();
    if methods.is_empty() { "-".to_owned() } else { methods.join("+") }
}

/// Returns the cells of all edges in their order.
#[must_use]
pub fn rows(map: &Map) -> Vec<[String; 11]> {
    let names = Names::of(map);
    map.edges.iter().map(|edge| row(edge, &names)).collect()
}

/// Returns the cells of an edge.
pub(super) fn row(edge: &Edge, names: &Names<'_>) -> [String; 11] {
    let counters = &edge.counters;
    let bound = if counters.without_bytes > 0 { "≥" } else { "" };
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{bound}{}", size(bytes)));
    let dash = || "-".to_owned();
    let protocol = if edge.protocol == crds::TransportProtocol::Udp { "/UDP" } else { "" };
    [
        names.name(&edge.client).to_owned(),
        names.name(&edge.server).to_owned(),
        edge.service.clone().unwrap_or_else(dash),
        edge.port.map_or_else(|| format!("-{protocol}"), |port| format!("{port}{protocol}")),
        counters.opened.to_string(),
        counters.active.to_string(),
        counters.failed.to_string(),
        counters.pending.to_string(),
        bytes(counters.bytes_sent),
        bytes(counters.bytes_received),
        format!(
            "{}{}",
            edge.seen.map_or_else(dash, |seen| format!("{seen:?}")),
            if edge.is_inferred { "~" } else { "" }
        ),
    ]
}

/// Returns a size with a binary prefix: exact below 1 KiB, else rounded down to three digits or fewer.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let step = bytes.ilog2() / 10;
    let unit = UNITS[step as usize - 1];
    let tenths = (u128::from(bytes) * 10) >> (10 * step);
    if tenths < 100 { format!("{}.{} {unit}", tenths / 10, tenths % 10) } else { format!("{} {unit}", tenths / 10) }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_rounded_down() {
        let sizes = [0, 1023, 1024, 1536, 10 * 1024 - 1, 10 * 1024, 1 << 20, (1 << 30) - 1, u64::MAX];
        let shown = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "9.9 KiB", "10 KiB", "1.0 MiB", "1023 MiB", "15 EiB"];
        assert_eq!(sizes.map(size), shown);
    }
}
