//! Figures that are comparable between runs: ratios to a floor or to a run without the programs.

use anyhow::Context as _;
use serde_json::Value;

use crate::comparison::{Better, Figure};

/// Loads of the benchmark, with their names for people.
pub(super) const WORKS: [(&str, &str); 3] =
    [("Fin", "connection that ends with FIN"), ("Rst", "connection that ends with RST"), ("Udp", "datagram")];

/// Loads that are measured with and without the capture.
pub(super) const PAIRED: [(&str, &str); 5] = [
    WORKS[0],
    WORKS[1],
    WORKS[2],
    ("Bulk", "megabyte of a stream"),
    ("Exchange", "request and response on an open connection"),
];

/// Loads of which the share is measured that the capture counts.
pub(super) const COUNTED: [(&str, &str); 2] = [WORKS[0], WORKS[1]];

/// Empty programs that are the floor for a load: what the kernel takes for the same hooks.
pub(super) fn floor(work: &str) -> &'static [&'static str] {
    if work == "Udp" { &["EmptyPackets"] } else { &["EmptyStates", "EmptyPackets"] }
}

/// Returns the kernel's time in nanoseconds for a set of programs and a load.
pub(super) fn nanoseconds(measured: &Value, programs: &str, work: &str) -> anyhow::Result<f64> {
    let time = &measured["kernelTime"][format!("{programs}{work}")]["nanoseconds"];
    time.as_f64().with_context(|| format!("the measurement has no kernel time of {programs} for {work}"))
}

/// Returns the time of the floor.
pub(super) fn floor_nanoseconds(measured: &Value, work: &str) -> anyhow::Result<f64> {
    floor(work).iter().map(|programs| nanoseconds(measured, programs, work)).sum()
}

/// Returns median, minimum and maximum of a ratio in pairs.
pub(super) fn pairs(measured: &Value, what: &str, work: &str) -> anyhow::Result<[f64; 3]> {
    let found = &measured["pairs"][format!("{what}{work}")];
    let number = |index: usize| found[index].as_f64();
    let three = number(0).zip(number(1)).zip(number(2)).map(|((median, least), most)| [median, least, most]);
    three.with_context(|| format!("the measurement has no pairs of {what} for {work}"))
}

/// Returns a figure of the capture's start: `milliseconds` until it counts, `cpuMilliseconds`, `peakKibibytes` of resident
/// memory and the `kibibytes` that stay.
pub(super) fn start(measured: &Value, what: &str) -> anyhow::Result<f64> {
    measured["start"][what].as_f64().with_context(|| format!("the measurement has no {what} of the start"))
}

/// Returns the size of the kernel's maps at the start, in MiB.
pub(super) fn map_mebibytes(measured: &Value) -> anyhow::Result<f64> {
    let bytes = measured["mapBytes"].as_f64().context("the measurement has no size of maps")?;
    Ok(bytes / f64::from(1 << 20))
}

/// Returns all figures, always in the same order.
pub(super) fn figures(measured: &Value) -> anyhow::Result<Vec<Figure>> {
    let mut found = Vec::new();
    for (work, name) in WORKS {
        let value = nanoseconds(measured, "Capture", work)? / floor_nanoseconds(measured, work)?;
        found.push(Figure { name: format!("kernel time of a {name} / empty programs"), value, better: Better::Less });
    }
    for (work, name) in PAIRED {
        let [value, ..] = pairs(measured, "rate", work)?;
        found.push(Figure { name: format!("rate of a {name}, with / without"), value, better: Better::More });
        let [value, ..] = pairs(measured, "cpu", work)?;
        found.push(Figure { name: format!("processor time of a {name}, with / without"), value, better: Better::Less });
    }
    for (work, name) in COUNTED {
        let [_, value, _] = pairs(measured, "counted", work)?;
        found.push(Figure { name: format!("least share counted of a {name}"), value, better: Better::More });
    }
    for (what, name) in
        [("peakKibibytes", "most resident memory of a start"), ("kibibytes", "resident memory after a start")]
    {
        let value = start(measured, what)?;
        found.push(Figure { name: format!("{name}, KiB"), value, better: Better::Less });
    }
    let value = map_mebibytes(measured)?;
    found.push(Figure { name: "maps at the start, MiB".to_owned(), value, better: Better::Less });
    Ok(found)
}

/// A measurement with this kernel time and this rate everywhere.
#[cfg(test)]
pub(super) fn sample(nanoseconds: f64, rate: f64) -> Value {
    let time = |value: f64| serde_json::json!({"runs": 17, "nanoseconds": value});
    let mut measured = serde_json::json!({
        "mapBytes": 1 << 20,
        "machine": {"kernel": "6.18", "processors": 2},
        "kernelTime": {}, "pairs": {},
        "start": {"milliseconds": 350, "cpuMilliseconds": 90, "peakKibibytes": 20480, "kibibytes": 10240},
    });
    for (work, _) in WORKS {
        for empty in ["EmptyStates", "EmptyPackets"] {
            measured["kernelTime"][format!("{empty}{work}")] = time(400.0);
        }
        measured["kernelTime"][format!("Capture{work}")] = time(nanoseconds);
    }
    for (work, _) in PAIRED {
        measured["pairs"][format!("rate{work}")] = serde_json::json!([rate, rate - 0.1, rate + 0.1]);
        measured["pairs"][format!("cpu{work}")] = serde_json::json!([1.0, 0.9, 1.1]);
        measured["pairs"][format!("counted{work}")] = serde_json::json!([1.0, 1.0, 1.0]);
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_named() {
        let mut measured = sample(1000.0, 1.0);
        assert_eq!(figures(&measured).unwrap().len(), 18);
        measured["kernelTime"]["CaptureUdp"] = Value::Null;
        assert!(figures(&measured).unwrap_err().to_string().contains("Capture for Udp"));
    }
}
