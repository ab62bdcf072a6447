//! Series as text, with the time from which each counter counts. The metrics library cannot write that time.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::series::{EdgeSeries, SeriesSnapshot};

/// Series per chunk: a page of all series would take tens of megabytes at once.
const SERIES_PER_CHUNK: usize = 500;

/// Description of a metric, and its value in a series.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<&'static str>,
    is_counter: bool,
    value: fn(&EdgeSeries) -> Option<u64>,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&EdgeSeries) -> Option<u64>) -> Family {
    Family { name, help, unit: None, is_counter: true, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&EdgeSeries) -> Option<u64>) -> Family {
    Family { name, help, unit: None, is_counter: false, value }
}

const fn in_bytes(family: Family) -> Family {
    Family { unit: Some("bytes"), ..family }
}

/// Metrics of each series.
const FAMILIES: [Family; 8] = [
    counter("scopeprobe_connections_opened", "Connections that were established", |it| Some(it.counts.opened)),
    counter("scopeprobe_connections_failed", "Attempts that were refused, timed out or were given up", |it| {
        Some(it.counts.failed)
    }),
    gauge("scopeprobe_connections_pending", "Attempts that are pending", |it| Some(it.state.pending)),
    gauge("scopeprobe_connections_open", "Connections that are open", |it| Some(it.state.open)),
    in_bytes(counter("scopeprobe_connections_sent_bytes", "Payload from client to server", |it| {
        Some(it.counts.bytes_sent)
    })),
    in_bytes(counter("scopeprobe_connections_received_bytes", "Payload from server to client", |it| {
        Some(it.counts.bytes_received)
    })),
    gauge(
        "scopeprobe_connections_without_bytes",
        "Connections of the present edges whose payload is not fully known: above 0, the bytes are a lower bound",
        |it| Some(it.state.without_bytes),
    ),
    counter(
        "scopeprobe_connections_retransmits",
        "TCP segments that were sent again, where an end reports them",
        |it| it.state.has_retransmits.then_some(it.counts.retransmits),
    ),
];

/// Returns the text of all series in pieces, without the mark at its end.
pub fn chunks(snapshot: Arc<SeriesSnapshot>) -> impl Iterator<Item = String> + Send + 'static {
    let summed = summed_edges(&snapshot);
    let pieces = snapshot.series.len().div_ceil(SERIES_PER_CHUNK).max(1);
    let places = FAMILIES.iter().flat_map(move |family| (0..pieces).map(move |piece| (family, piece)));
    let samples = places.map(move |(family, piece)| {
        let mut text = if piece == 0 { header(family) } else { String::new() };
        for series in snapshot.series.iter().skip(piece * SERIES_PER_CHUNK).take(SERIES_PER_CHUNK) {
            write_samples(&mut text, family, series);
        }
        text
    });
    samples.chain([summed])
}

fn header(family: &Family) -> String {
    let Family { name, help, unit, is_counter, .. } = family;
    let type_ = if *is_counter { "counter" } else { "gauge" };
    let unit = unit.map(|unit| format!("# UNIT {name} {unit}\n")).unwrap_or_default();
    format!("# HELP {name} {help}.\n# TYPE {name} {type_}\n{unit}")
}

fn write_samples(text: &mut String, family: &Family, series: &EdgeSeries) {
    let Some(value) = (family.value)(series) else { return };
    let (name, labels) = (family.name, &series.labels);
    // Writing to a String does not fail.
    let _ = if family.is_counter {
        let created = seconds(series.created);
        writeln!(text, "{name}_total{{{labels}}} {value}\n{name}_created{{{labels}}} {created}")
    } else {
        writeln!(text, "{name}{{{labels}}} {value}")
    };
}

fn summed_edges(snapshot: &SeriesSnapshot) -> String {
    let name = "scopeprobe_connections_other_edges";
    let help = "Edges in the series with the source_kind other, which sums all beyond the maximum number of series";
    format!("# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {}\n", snapshot.summed_edges)
}

/// Returns a time in seconds since 1970-01-01 UTC, to the millisecond.
fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}", since.as_secs(), since.subsec_millis())
}
