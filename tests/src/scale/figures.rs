//! Figures of a run, as JSON and as a table.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{oracle::Verdict, statistics::Percentiles};

/// Figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunFigures {
    /// Size of the simulated cluster at the start.
    pub size: Size,
    /// Upper bound of the length of a phase, in seconds.
    pub seconds: u64,
    /// Phases in their order.
    pub phases: Vec<PhaseFigures>,
    /// State after all connections had ended, and the time until it was published.
    pub end: EndFigures,
}

/// Size of a simulated cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Nodes, each with an agent.
    pub nodes: usize,
    /// Pods.
    pub pods: usize,
    /// Workloads, each with a Topology.
    pub workloads: usize,
    /// Edges.
    pub edges: usize,
    /// Flows of all agents.
    pub flows: usize,
}

/// Figures of a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseFigures {
    /// Name.
    pub name: &'static str,
    /// Duration, in seconds.
    pub seconds: f64,
    /// CPU time that the operator used per second.
    pub operator_cpu: f64,
    /// The same of the simulator.
    pub simulator_cpu: f64,
    /// The same of etcd and kube-apiserver.
    pub control_plane_cpu: f64,
    /// Resident memory of the operator at the end, in MiB.
    pub resident_mebibytes: f64,
    /// Maximum of it.
    pub peak_mebibytes: f64,
    /// Flows at the end.
    pub flows: usize,
    /// Messages that were acknowledged per second.
    pub messages_per_second: f64,
    /// Flows in them per second.
    pub flow_updates_per_second: f64,
    /// Time from a message to its acknowledgement, in milliseconds.
    pub reply_milliseconds: Option<Percentiles>,
    /// Streams that agents gave up because a reply was late.
    pub given_up: u64,
    /// Streams that ended otherwise, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub broken: BTreeMap<String, u64>,
    /// Time until all agents were connected again, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_seconds: Option<f64>,
    /// Requests of the operator to the API server per second.
    pub requests_per_second: f64,
    /// Maximum of it over 10 seconds.
    pub most_requests_per_second: f64,
    /// Number of these requests by verb and resource.
    pub requests: BTreeMap<String, u64>,
    /// Time from the beginning of an edge to its Topology, in seconds.
    pub new_edge_seconds: Option<Percentiles>,
    /// New edges that did not appear.
    pub new_edges_missing: usize,
    /// Time until exactly the expected edges were published, in seconds: since the operator started in the first phase, and
    /// since the end of the others. `None` if that did not happen.
    pub complete_seconds: Option<f64>,
    /// Load of the machine at the end.
    pub load: f64,
    /// Comparison with the expected edges.
    pub verdict: Verdict,
}

/// Figures of the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndFigures {
    /// Time until all counts were exact, in seconds; `None` if that did not happen.
    pub exact_seconds: Option<f64>,
    /// Comparison with the expected edges.
    pub verdict: Verdict,
    /// Some of the edges with wrong counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrong_counts: Vec<String>,
}

impl RunFigures {
    /// Returns a line for each phase that ended with a wrong map, and one for wrong counts at the end.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.phases.iter().filter_map(|phase| fault(phase.name, &phase.verdict)).collect();
        faults.extend(fault("end", &self.end.verdict));
        if self.end.verdict.exact != self.end.verdict.expected {
            let Verdict { exact, expected, .. } = self.end.verdict;
            let examples = self.end.wrong_counts.join("\n  ");
            faults.push(format!("end: {exact} of {expected} edges have exact counts\n  {examples}"));
        }
        faults
    }

    /// Returns the phases as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let Size { nodes, pods, workloads, edges, flows } = self.size;
        let mut text = format!("{nodes} nodes, {pods} pods, {workloads} workloads, {edges} edges, {flows} flows\n\n");
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend(self.phases.iter().map(PhaseFigures::row));
        let widths: Vec<usize> = (0..COLUMNS.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        let Verdict { exact, expected, .. } = self.end.verdict;
        let when = seconds(self.end.exact_seconds);
        let _ = writeln!(text, "\nAfter the end of all connections: {exact} of {expected} counts exact ({when}).");
        text
    }
}

const COLUMNS: [&str; 15] = [
    "phase",
    "s",
    "operator CPU",
    "RSS MiB (peak)",
    "updates/s",
    "acks p50/p99 ms",
    "given up",
    "requests/s (most)",
    "new edge p50/p99 s",
    "complete s",
    "connected s",
    "right/missing/surplus",
    "load",
    "simulator CPU",
    "API CPU",
];

impl PhaseFigures {
    fn row(&self) -> [String; COLUMNS.len()] {
        let pair =
            |of: Option<Percentiles>| of.map_or_else(|| "-".to_owned(), |it| format!("{:.1}/{:.1}", it.p50, it.p99));
        let missing = match self.new_edges_missing {
            0 => String::new(),
            missing => format!(", {missing} missing"),
        };
        let Verdict { right, missing: lacking, surplus, .. } = self.verdict;
        [
            self.name.to_owned(),
            format!("{:.0}", self.seconds),
            format!("{:.2}", self.operator_cpu),
            format!("{:.0} ({:.0})", self.resident_mebibytes, self.peak_mebibytes),
            format!("{:.0}", self.flow_updates_per_second),
            pair(self.reply_milliseconds),
            self.given_up.to_string(),
            format!("{:.1} ({:.1})", self.requests_per_second, self.most_requests_per_second),
            pair(self.new_edge_seconds) + &missing,
            seconds(self.complete_seconds),
            self.connected_seconds.map_or_else(|| "-".to_owned(), |it| format!("{it:.1}")),
            format!("{right}/{lacking}/{surplus}"),
            format!("{:.1}", self.load),
            format!("{:.2}", self.simulator_cpu),
            format!("{:.2}", self.control_plane_cpu),
        ]
    }
}

fn seconds(time: Option<f64>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{time:.1}"))
}

fn fault(phase: &str, verdict: &Verdict) -> Option<String> {
    let Verdict { expected, missing, surplus, omitted, .. } = verdict;
    let examples = verdict.examples.join("\n  ");
    let line = || {
        format!(
            "{phase}: of {expected} edges {missing} are missing, {surplus} are surplus, {omitted} omitted\n  {examples}"
        )
    };
    (!verdict.is_complete()).then(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(verdict: Verdict) -> PhaseFigures {
        PhaseFigures {
            name: "steady",
            seconds: 30.0,
            operator_cpu: 0.25,
            simulator_cpu: 0.1,
            control_plane_cpu: 0.2,
            resident_mebibytes: 100.0,
            peak_mebibytes: 110.0,
            flows: 39_000,
            messages_per_second: 100.0,
            flow_updates_per_second: 3_900.0,
            reply_milliseconds: Some(Percentiles { p50: 1.0, p99: 9.5, count: 10 }),
            given_up: 0,
            broken: BTreeMap::new(),
            connected_seconds: None,
            requests_per_second: 9.0,
            most_requests_per_second: 20.0,
            requests: BTreeMap::new(),
            new_edge_seconds: None,
            new_edges_missing: 0,
            complete_seconds: Some(0.0),
            load: 1.0,
            verdict,
        }
    }

    fn run(verdict: Verdict) -> RunFigures {
        let size = Size { nodes: 100, pods: 2_000, workloads: 400, edges: 4_000, flows: 39_000 };
        let end = EndFigures { exact_seconds: Some(31.0), verdict: verdict.clone(), wrong_counts: Vec::new() };
        RunFigures { size, seconds: 30, phases: vec![phase(verdict)], end }
    }

    #[test]
    fn right_map_has_no_fault_and_a_wrong_one_is_described() {
        let right = Verdict { expected: 2, right: 2, exact: 2, ..Verdict::default() };
        assert_eq!(run(right.clone()).faults(), Vec::<String>::new());
        let wrong = Verdict { right: 1, missing: 1, exact: 1, examples: vec!["missing: a".to_owned()], ..right };
        let faults = run(wrong).faults();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].starts_with("steady: of 2 edges 1 are missing") && faults[0].contains("missing: a"));
    }

    #[test]
    fn table_has_a_row_for_each_phase() {
        let table = run(Verdict { expected: 2, right: 2, exact: 2, ..Verdict::default() }).table();
        assert!(table.starts_with("100 nodes, 2000 pods"), "{table}");
        assert!(table.contains("100 (110)") && table.contains("1.0/9.5") && table.contains("2/0/0"), "{table}");
    }
}
