//! Bar charts of CPU time and memory of the operator, by phase.

use std::fmt::Write as _;

use serde_json::Value;

use super::figures::{PHASES, number, phase};

/// Sizes, in pixels.
const WIDTH: f64 = 720.0;
const LABELS: f64 = 100.0;
const BAR: f64 = 16.0;
const ROW: f64 = 24.0;
const TOP: f64 = 32.0;

/// Colors that are legible on light and dark pages.
const COLOR: &str = "#2f7ed8";
const TEXT: &str = "#6b7480";

/// Parts of the chart: title, figure, and its digits behind the point.
const PARTS: [(&str, &str, usize); 2] =
    [("CPU time of the operator per second", "operatorCpu", 2), ("Most resident memory, in MiB", "peakMebibytes", 0)];

/// Returns the chart.
pub(super) fn svg(measured: &Value) -> anyhow::Result<String> {
    let rows = f64::from(u8::try_from(PHASES.len())?);
    let part_height = TOP + rows * ROW + 12.0;
    let height = 2.0 * part_height;
    let mut text = String::new();
    writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{TEXT}">"#
    )?;
    writeln!(text, "  <title>CPU time and memory of the operator with {} nodes</title>", measured["size"]["nodes"])?;
    let mut y = 0.0;
    for (title, figure, digits) in PARTS {
        writeln!(text, r#"  <text x="0" y="{}" font-weight="bold">{title}</text>"#, y + 18.0)?;
        let values = PHASES.iter().map(|name| number(phase(measured, name)?, figure));
        let values: Vec<f64> = values.collect::<anyhow::Result<_>>()?;
        let scale = (WIDTH - LABELS - 60.0) / values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut top = y + TOP;
        for (name, value) in PHASES.iter().zip(values) {
            let width = value * scale;
            writeln!(text, r#"  <text x="0" y="{}">{name}</text>"#, top + 13.0)?;
            writeln!(text, r#"  <rect x="{LABELS}" y="{top}" width="{width:.1}" height="{BAR}" fill="{COLOR}"/>"#)?;
            writeln!(text, r#"  <text x="{:.1}" y="{}">{value:.digits$}</text>"#, LABELS + width + 6.0, top + 13.0)?;
            top += ROW;
        }
        y += part_height;
    }
    text.push_str("</svg>\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::figures::sample;
    use super::*;

    #[test]
    fn each_phase_has_its_bars() {
        let chart = svg(&sample(0.4)).unwrap();
        assert_eq!(chart.matches("<rect").count(), 2 * PHASES.len());
        assert_eq!(chart.matches(">0.40</text>").count(), PHASES.len());
        assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n"));
    }
}
