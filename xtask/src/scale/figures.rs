//! Figures that are comparable between runs of the same size: CPU time and memory per unit of work.

use anyhow::Context as _;
use serde_json::Value;

use crate::comparison::{Better, Figure};

/// Phases of a run, in their order.
pub(super) const PHASES: [&str; 6] = ["start", "steady", "new edges", "churn", "restart", "reconnect"];

/// Returns a phase.
pub(super) fn phase<'a>(measured: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let phases = measured["phases"].as_array().into_iter().flatten();
    let found = phases.into_iter().find(|phase| phase["name"] == name);
    found.with_context(|| format!("the measurement has no phase {name:?}"))
}

/// Returns a number of a phase or of the size.
pub(super) fn number(of: &Value, name: &str) -> anyhow::Result<f64> {
    of[name].as_f64().with_context(|| format!("the measurement has no {name} in {}", of["name"]))
}

/// Returns the operator's CPU time for each flow in an agent's report, in microseconds.
pub(super) fn microseconds_per_update(phase: &Value) -> anyhow::Result<f64> {
    Ok(1e6 * number(phase, "operatorCpu")? / number(phase, "flowUpdatesPerSecond")?)
}

/// Returns the operator's memory for each flow, in bytes: all resident memory, divided by the number of flows.
pub(super) fn bytes_per_flow(phase: &Value, memory: &str) -> anyhow::Result<f64> {
    Ok(number(phase, memory)? * f64::from(1 << 20) / number(phase, "flows")?)
}

/// Returns all figures, always in the same order.
pub(super) fn figures(measured: &Value) -> anyhow::Result<Vec<Figure>> {
    let mut found = Vec::new();
    for name in PHASES {
        let phase = phase(measured, name)?;
        let value = microseconds_per_update(phase)?;
        let name = format!("CPU time of the operator per flow update, {name}, µs");
        found.push(Figure { name, value, better: Better::Less });
    }
    for (name, memory, title) in [
        ("steady", "residentMebibytes", "resident memory of the operator per flow, steady, bytes"),
        ("reconnect", "peakMebibytes", "most resident memory of the operator per flow, reconnect, bytes"),
    ] {
        let value = bytes_per_flow(phase(measured, name)?, memory)?;
        found.push(Figure { name: title.to_owned(), value, better: Better::Less });
    }
    Ok(found)
}

/// Returns a measurement in which each phase used so much CPU time per second.
#[cfg(test)]
pub(super) fn sample(cpu: f64) -> Value {
    let percentiles = serde_json::json!({"p50": 2.0, "p99": 40.0, "count": 3_000});
    let verdict = serde_json::json!({"expected": 4_000, "right": 4_000, "missing": 0, "surplus": 0});
    let phase = |name| {
        serde_json::json!({
            "name": name, "seconds": 30.0, "operatorCpu": cpu, "simulatorCpu": 0.1, "controlPlaneCpu": 0.5,
            "residentMebibytes": 200.0, "peakMebibytes": 220.0, "flows": 40_000, "messagesPerSecond": 100.0,
            "flowUpdatesPerSecond": 4_000.0, "replyMilliseconds": percentiles, "givenUp": 0, "requestsPerSecond": 12.0,
            "mostRequestsPerSecond": 20.0, "newEdgeSeconds": percentiles, "newEdgesMissing": 0, "completeSeconds": 3.0,
            "load": 2.5, "verdict": verdict,
        })
    };
    serde_json::json!({
        "machine": {"kernel": "6.18", "processors": 2},
        "size": {"nodes": 100, "pods": 2_000, "workloads": 400, "edges": 4_000, "flows": 40_000},
        "seconds": 30,
        "phases": PHASES.map(phase),
        "end": {"exactSeconds": 31.5, "verdict": {"expected": 4_000, "exact": 4_000}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::worse;

    #[test]
    fn figures_are_ratios_to_work() {
        let all = figures(&sample(0.4)).unwrap();
        assert_eq!(all.len(), PHASES.len() + 2);
        assert!((all[0].value - 100.0).abs() < 1e-9, "{all:?}");
        assert!((all[6].value - 5_242.88).abs() < 1e-9, "{all:?}");
        assert_eq!(worse(&all, &figures(&sample(0.43)).unwrap()), Vec::<String>::new());
        assert_eq!(worse(&all, &figures(&sample(0.5)).unwrap()).len(), PHASES.len());
    }

    #[test]
    fn missing_phase_is_named() {
        let mut measured = sample(0.4);
        measured["phases"][1]["name"] = "other".into();
        assert!(figures(&measured).unwrap_err().to_string().contains("\"steady\""));
    }
}
