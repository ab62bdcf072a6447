//! The table of a run for docs/performance.md.

use std::fmt::Write as _;

use serde_json::Value;

use super::figures::{PHASES, bytes_per_flow, microseconds_per_update, number, phase};

/// Returns the section.
pub(super) fn markdown(measured: &Value) -> anyhow::Result<String> {
    let (machine, size) = (&measured["machine"], &measured["size"]);
    let mut text = String::new();
    writeln!(
        text,
        "A run on Linux {} with {} processors, which the simulator and the API server share: {} nodes, {} pods,\n\
         {} workloads, {} edges and {} flows. A phase takes at most {} seconds.\n",
        machine["kernel"].as_str().unwrap_or("?"),
        machine["processors"],
        size["nodes"],
        size["pods"],
        size["workloads"],
        size["edges"],
        size["flows"],
        measured["seconds"]
    )?;
    writeln!(
        text,
        "| phase | CPU | per flow update | memory (most) | per flow | requests/s (most) | acknowledged after, p50 / p99 | \
         new edge after, p50 / p99 | complete after | wrong edges | streams given up | load |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for name in PHASES {
        writeln!(text, "{}", row(name, phase(measured, name)?)?)?;
    }
    let end = &measured["end"];
    let (exact, expected) = (&end["verdict"]["exact"], &end["verdict"]["expected"]);
    let after = seconds(&end["exactSeconds"]).unwrap_or_else(|| "the longest wait".to_owned());
    writeln!(
        text,
        "\nAll connections ended after the last phase. {after} later, {exact} of {expected} edges had exact counts in both Topologies.\n"
    )?;
    writeln!(text, "![CPU time and memory of the operator by phase](scale.svg)")?;
    Ok(text)
}

fn row(name: &str, phase: &Value) -> anyhow::Result<String> {
    let pair = |of: &Value, unit: &str| match (of["p50"].as_f64(), of["p99"].as_f64()) {
        (Some(p50), Some(p99)) => format!("{p50:.1} / {p99:.1} {unit}"),
        _ => String::new(),
    };
    let wrong = format!("{} missing, {} surplus", phase["verdict"]["missing"], phase["verdict"]["surplus"]);
    let cells = [
        name.to_owned(),
        format!("{:.2}", number(phase, "operatorCpu")?),
        format!("{:.0} µs", microseconds_per_update(phase)?),
        format!("{:.0} MiB ({:.0})", number(phase, "residentMebibytes")?, number(phase, "peakMebibytes")?),
        format!("{:.1} KiB", bytes_per_flow(phase, "residentMebibytes")? / 1024.0),
        format!("{:.1} ({:.1})", number(phase, "requestsPerSecond")?, number(phase, "mostRequestsPerSecond")?),
        pair(&phase["replyMilliseconds"], "ms"),
        pair(&phase["newEdgeSeconds"], "s"),
        seconds(&phase["completeSeconds"]).unwrap_or_else(|| "never".to_owned()),
        if wrong == "0 missing, 0 surplus" { "none".to_owned() } else { wrong },
        phase["givenUp"].to_string(),
        format!("{:.1}", number(phase, "load")?),
    ];
    Ok(format!("| {} |", cells.join(" | ")))
}

/// Returns a duration; `None` if the awaited state did not come.
fn seconds(of: &Value) -> Option<String> {
    of.as_f64().map(|seconds| format!("{seconds:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::super::figures::sample;
    use super::*;

    #[test]
    fn section_names_the_machine_and_has_a_row_for_each_phase() {
        let section = markdown(&sample(0.4)).unwrap();
        assert!(section.starts_with("A run on Linux 6.18 with 2 processors"), "{section}");
        assert_eq!(section.lines().filter(|line| line.contains("| 0.40 | 100 µs | 200 MiB (220) |")).count(), 6);
        let end = "31.5 s later, 4000 of 4000 edges had exact counts in both Topologies.\n";
        assert!(section.contains(end), "{section}");
        assert!(section.ends_with("(scale.svg)\n"), "{section}");
    }

    #[test]
    fn wrong_edges_are_shown() {
        let mut measured = sample(0.4);
        measured["phases"][4]["verdict"]["surplus"] = 12.into();
        measured["phases"][4]["completeSeconds"] = Value::Null;
        let section = markdown(&measured).unwrap();
        assert_eq!(section.matches("| none |").count(), PHASES.len() - 1);
        assert!(section.contains("| never | 0 missing, 12 surplus |"), "{section}");
    }
}
