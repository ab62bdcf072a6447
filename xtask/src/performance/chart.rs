//! A bar chart of the kernel time beside its floor.

use std::fmt::Write as _;

use serde_json::Value;

use super::figures::{WORKS, floor, nanoseconds};

/// Sizes, in pixels.
const WIDTH: f64 = 720.0;
const LABELS: f64 = 220.0;
const BAR: f64 = 16.0;
const GROUP: f64 = 52.0;
const TOP: f64 = 44.0;

/// Colors of the bars: empty programs, capture. Both are legible on light and dark pages.
const COLORS: [&str; 3] = ["#9aa5b1", "#c3cad2", "#2f7ed8"];
const TEXT: &str = "#6b7480";

/// Returns the chart.
pub(super) fn svg(measured: &Value) -> anyhow::Result<String> {
    let longest = WORKS
        .iter()
        .map(|(work, _)| nanoseconds(measured, "Capture", work))
        .try_fold(1.0, |most: f64, time| time.map(|time| most.max(time)))?;
    let height = TOP + WORKS.iter().map(|_| GROUP).sum::<f64>();
    let scale = (WIDTH - LABELS - 90.0) / longest;
    let mut text = String::new();
    writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{TEXT}">"#
    )?;
    writeln!(text, "  <title>Kernel time of ScopeProbe's programs, beside empty programs of the same hooks</title>")?;
    writeln!(text, r#"  <text x="0" y="18" font-weight="bold">Kernel time, both ends, in nanoseconds</text>"#)?;
    let mut y = TOP;
    for (work, name) in WORKS {
        writeln!(text, r#"  <text x="0" y="{}">{name}</text>"#, y + 22.0)?;
        let mut x = LABELS;
        let mut sum = 0.0;
        for (programs, color) in floor(work).iter().zip(COLORS) {
            let time = nanoseconds(measured, programs, work)?;
            bar(&mut text, x, y, time * scale, color)?;
            (x, sum) = (x + time * scale, sum + time);
        }
        writeln!(text, r#"  <text x="{:.1}" y="{}">{sum:.0} empty programs</text>"#, x + 6.0, y + 13.0)?;
        let time = nanoseconds(measured, "Capture", work)?;
        bar(&mut text, LABELS, y + BAR + 3.0, time * scale, COLORS[2])?;
        writeln!(text, r#"  <text x="{:.1}" y="{}">{time:.0}</text>"#, LABELS + time * scale + 6.0, y + BAR + 16.0)?;
        y += GROUP;
    }
    text.push_str("</svg>\n");
    Ok(text)
}

fn bar(text: &mut String, x: f64, y: f64, width: f64, color: &str) -> std::fmt::Result {
    writeln!(text, r#"  <rect x="{x:.1}" y="{y}" width="{width:.1}" height="{BAR}" fill="{color}"/>"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::performance::figures::sample;

    #[test]
    fn every_load_has_its_bars() {
        let chart = svg(&sample(1000.0, 0.95)).unwrap();
        assert_eq!(chart.matches("<rect").count(), 3 + 3 + 2);
        assert_eq!(chart.matches(">1000</text>").count(), 3);
        assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n"));
    }
}
