//! Options of a ScopeProbe's agents, in the types of the DaemonSet. Pure.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use crds::{AgentResources, ScopeProbeSpec};
use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};

use super::millicores;
use crate::invalid_field::{InvalidField, interval};

/// CPU budget of the Fallback mode, in thousandths of a core.
const CPU_BUDGET: RangeInclusive<u32> = 5..=2000;

/// Options of all agents of a ScopeProbe.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentOptions {
    /// Maximum number of flows.
    pub max_flows: u32,
    /// Interval of reports.
    pub report_interval: Duration,
    /// CPU budget of the Fallback mode, in thousandths of a core.
    pub fallback_millicores: u32,
    /// True if agents read answers of name servers.
    pub dns_names: bool,
    /// Resources of the agents' container.
    pub resources: ResourceRequirements,
    /// Taints that the agents tolerate.
    pub tolerations: Vec<Toleration>,
    /// PriorityClass; `None` for the cluster's default.
    pub priority_class: Option<String>,
}

impl TryFrom<&ScopeProbeSpec> for AgentOptions {
    type Error = InvalidField;

    fn try_from(spec: &ScopeProbeSpec) -> Result<Self, InvalidField> {
        let budget = &spec.capture.fallback.cpu_budget;
        let fallback_millicores = millicores::within(budget, CPU_BUDGET).ok_or_else(|| {
            let expected = "an amount of cores between 5m and 2, for example 50m";
            InvalidField::new("spec.capture.fallback.cpuBudget", &budget.0, expected)
        })?;
        Ok(Self {
            max_flows: spec.capture.max_flows,
            report_interval: interval("spec.capture.reportInterval", spec.capture.report_interval)?,
            fallback_millicores,
            dns_names: spec.topology.dns_names,
            resources: resources(&spec.agent.resources),
            tolerations: spec.agent.tolerations.clone(),
            priority_class: Some(spec.agent.priority_class_name.clone()).filter(|name| !name.is_empty()),
        })
    }
}

fn resources(resources: &AgentResources) -> ResourceRequirements {
    let list = |cpu: Option<&Quantity>, memory: &Quantity| -> BTreeMap<String, Quantity> {
        let cpu = cpu.map(|cpu| ("cpu".to_owned(), cpu.clone()));
        cpu.into_iter().chain([("memory".to_owned(), memory.clone())]).collect()
    };
    ResourceRequirements {
        requests: Some(list(Some(&resources.requests.cpu), &resources.requests.memory)),
        limits: Some(list(resources.limits.cpu.as_ref(), &resources.limits.memory)),
        claims: None,
    }
}
