//! Figures of nodes and ScopeProbes for the metrics, which alert rules compare.

use std::collections::BTreeMap;

use crds::{Losses, TopologyTotals};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::scope_probe::{NodeState, Sums, reports};
use crate::metrics::{LossLabels, Metrics, WindowLabels};

/// Counts nodes, and sums their coverage and losses. `connected` is the number of agents whose stream is open.
pub(super) fn count(metrics: &Metrics, nodes: &BTreeMap<String, NodeState>, totals: &TopologyTotals, connected: usize) {
    let statuses = || nodes.values().map(|node| &node.status);
    let sum = |of: fn(&Losses) -> u64| -> i64 {
        gauge(statuses().fold(0_u64, |sum, status| sum.saturating_add(of(&status.losses))))
    };
    let set = |kind: &'static str, number: i64| {
        metrics.losses.get_or_create(&LossLabels { kind }).set(number);
    };
    set("opened", sum(|losses| losses.opened));
    set("closed", sum(|losses| losses.closed));
    set("failed", sum(|losses| losses.failed));
    set("new_flow_notifications", sum(|losses| losses.new_flow_notifications));
    set("closes_unseen", sum(|losses| losses.closes_unseen));
    set("event_overflows", sum(|losses| losses.event_overflows));
    set("missed_runs", sum(|losses| losses.missed_runs));
    metrics.count_nodes(statuses().map(|status| {
        let mode = status.mode.map_or("none", |mode| mode.as_str());
        (mode, status.reason.as_str())
    }));
    let silent = nodes.values().filter(|node| !node.is_new && !reports(node)).count();
    metrics.nodes_not_reporting.set(i64::try_from(silent).unwrap_or(i64::MAX));
    metrics.edges.set(gauge(totals.edges));
    metrics.omitted_edges.set(gauge(totals.omitted_edges));
    metrics.agents_connected.set(i64::try_from(connected).unwrap_or(i64::MAX));
    set_coverage(metrics, nodes);
}

/// Sets the coverage of all nodes; none where nothing was ever observed.
fn set_coverage(metrics: &Metrics, nodes: &BTreeMap<String, NodeState>) {
    let sums = Sums::of(nodes);
    let shares = sums.shares;
    for (window, share) in [("hour", shares.last_hour), ("day", shares.last_day), ("total", shares.total)] {
        let labels = WindowLabels { window };
        if sums.is_known {
            // A share is at most 1,000 thousandths.
            let permille = u32::try_from(share.permille()).map_or(1000.0, f64::from);
            metrics.coverage.get_or_create(&labels).set(permille / 1000.0);
        } else {
            metrics.coverage.remove(&labels);
        }
    }
}

/// Counts the conditions of all ScopeProbes.
pub(super) fn count_conditions(metrics: &Metrics, conditions: &[Condition]) {
    metrics.count_conditions(conditions.iter().map(|condition| (condition.type_.as_str(), condition.status.as_str())));
}

fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use crds::{Mode, NodeProbeStatus};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;
    use crate::coverage::share::{Share, Shares};

    fn condition(type_: &str, status: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
            message: String::new(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }
    }

    fn node(seen: u64, is_reporting: bool) -> NodeState {
        let share = Share { due_ms: 1000, seen, ..Share::default() };
        NodeState {
            status: NodeProbeStatus {
                mode: Some(Mode::Ebpf),
                conditions: vec![condition("Reporting", if is_reporting { "True" } else { "False" })],
                ..NodeProbeStatus::default()
            },
            shares: Shares { last_hour: share, last_day: share, total: share },
            is_new: false,
        }
    }

    fn lines(metrics: &Metrics) -> Vec<String> {
        let page = metrics.encode().expect("numbers are text");
        page.lines().map(str::to_owned).collect()
    }

    #[test]
    fn figures_are_sums_over_nodes() {
        let metrics = Metrics::default();
        let mut half = node(50, false);
        half.shares.last_hour.shortfall.losses.opened = 100;
        let new = NodeState { is_new: true, ..NodeState::default() };
        let nodes = [("a", node(50, true)), ("b", half), ("c", new)];
        let nodes: BTreeMap<String, NodeState> = nodes.into_iter().map(|(name, it)| (name.to_owned(), it)).collect();
        let totals = TopologyTotals { omitted_edges: 3, edges: 9, ..TopologyTotals::default() };
        count(&metrics, &nodes, &totals, 1);
        let page = lines(&metrics);
        for sample in [
            "scopeprobe_operator_coverage_ratio{window=\"hour\"} 0.5",
            "scopeprobe_operator_coverage_ratio{window=\"day\"} 1.0",
            "scopeprobe_operator_nodes_not_reporting 1",
            "scopeprobe_operator_omitted_edges 3",
            "scopeprobe_operator_edges 9",
        ] {
            assert!(page.iter().any(|line| line == sample), "{sample}: {page:?}");
        }
        count(&metrics, &BTreeMap::new(), &totals, 1);
        assert!(!lines(&metrics).iter().any(|line| line.contains("coverage_ratio{")), "nothing was ever observed");
    }

    #[test]
    fn conditions_are_counted_by_status() {
        let metrics = Metrics::default();
        count_conditions(
            &metrics,
            &[condition("Ready", "True"), condition("Ready", "True"), condition("Ready", "False")],
        );
        let ready = |status| format!("scopeprobe_operator_scopeprobes{{condition=\"Ready\",status=\"{status}\"}}");
        let page = lines(&metrics);
        assert!(page.contains(&format!("{} 2", ready("True"))), "{page:?}");
        assert!(page.contains(&format!("{} 1", ready("False"))), "{page:?}");
        count_conditions(&metrics, &[condition("Ready", "True")]);
        let page = lines(&metrics);
        assert!(page.contains(&format!("{} 1", ready("True"))), "{page:?}");
        assert!(!page.iter().any(|line| line.starts_with(&ready("False"))), "{page:?}");
    }
}
