//! The table of docs/performance.md, between two comments.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

use super::figures::{COUNTED, PAIRED, WORKS, floor_nanoseconds, map_mebibytes, nanoseconds, pairs, start};

const BEGIN: &str = "<!-- figures: written by `make bench-node` -->\n";
const END: &str = "<!-- end of figures -->";

/// Returns the page with these figures in the place of those before.
pub(super) fn with_figures(page: &str, measured: &Value) -> anyhow::Result<String> {
    with_section(page, (BEGIN, END), &table(measured)?)
}

/// Returns the page with this text between two comments, in the place of that before.
pub(crate) fn with_section(page: &str, (begin, end): (&str, &str), text: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(begin).with_context(|| format!("the page lacks the line {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the page lacks the line {end}"))?;
    Ok(format!("{before}{begin}\n{text}\n{end}{after}"))
}

fn table(measured: &Value) -> anyhow::Result<String> {
    let mut text = String::new();
    let (kernel, processors) = (&measured["machine"]["kernel"], &measured["machine"]["processors"]);
    writeln!(text, "A run on Linux {} with {processors} processors:\n", kernel.as_str().unwrap_or("?"))?;
    writeln!(
        text,
        "| both ends of a | kernel time | empty programs | rate, with / without | processor time, with / without |"
    )?;
    writeln!(text, "|---|---|---|---|---|")?;
    for (work, name) in PAIRED {
        let times = if WORKS.iter().any(|(of_kernel, _)| *of_kernel == work) {
            let (time, floor) = (nanoseconds(measured, "Capture", work)?, floor_nanoseconds(measured, work)?);
            format!("{time:.0} ns | {floor:.0} ns")
        } else {
            "| ".to_owned()
        };
        let [rate, cpu] = [pairs(measured, "rate", work)?, pairs(measured, "cpu", work)?].map(ratio);
        writeln!(text, "| {name} | {times} | {rate} | {cpu} |")?;
    }
    let [fin, rst] = COUNTED.map(|(work, _)| pairs(measured, "counted", work));
    let ([_, fin, _], [_, rst, _]) = (fin?, rst?);
    writeln!(
        text,
        "\nAt full speed, at least {} % of the ends of connections were counted.",
        (1e5 * fin.min(rst)).floor() / 1e3
    )?;
    writeln!(
        text,
        "A start took {:.0} ms and {:.0} ms of processor time; up to {:.1} MiB were resident, and {:.1} MiB afterwards.",
        start(measured, "milliseconds")?,
        start(measured, "cpuMilliseconds")?,
        start(measured, "peakKibibytes")? / 1024.0,
        start(measured, "kibibytes")? / 1024.0
    )?;
    writeln!(text, "The kernel's maps take {:.1} MiB at the start.", map_mebibytes(measured)?)?;
    Ok(text)
}

fn ratio([median, least, most]: [f64; 3]) -> String {
    format!("{median:.2} ({least:.2} to {most:.2})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::performance::figures::sample;

    #[test]
    fn figures_replace_those_before() {
        let measured = sample(1000.0, 0.95);
        let page = format!("# Cost\n\n{BEGIN}\nold\n{END}\n\nMore.\n");
        let written = with_figures(&page, &measured).unwrap();
        assert!(written.contains("| datagram | 1000 ns | 400 ns | 0.95 (0.85 to 1.05) |") && !written.contains("old"));
        assert!(written.contains("| megabyte of a stream | |  | 0.95 (0.85 to 1.05) |"), "{written}");
        assert!(written.starts_with("# Cost") && written.ends_with("More.\n"));
        assert_eq!(with_figures(&written, &measured).unwrap(), written);
        assert!(with_figures("# Cost", &measured).is_err());
    }
}
