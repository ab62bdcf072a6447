//! The values with which the tests render the chart.

use std::fs;

use scopeprobe_tests::place;
use serde_yaml::Value;

/// Every value of the chart that leads to other text, alone.
pub const ALONE: [&[&str]; 51] = [
    &[],
    &["image.tag=1.2.3", "image.pullPolicy=Never"],
    &["image.registry="],
    &["image.registry=registry.example:5000/mirror"],
    &["image.registry=registry.example", "global.imageRegistry=other.example"],
    &["image.repository=registry.example:5000/scopeprobe/operator"],
    &["image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"],
    &[
        "agent.image.repository=registry.example:5000/scopeprobe/agent",
        "agent.image.tag=1.2.3",
        "agent.image.pullPolicy=Never",
    ],
    &["agent.image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"],
    &["agent.ebpfRetry=24h"],
    &["agent.debugSignals=true"],
    &["nameOverride=topology"],
    &["fullnameOverride=a-name-of-the-users-own-that-is-too-long"],
    &["commonLabels.team=a", "commonLabels.app\\.kubernetes\\.io/name=theirs"],
    &["imagePullSecrets={one,two}"],
    &["crds.enabled=false"],
    &["crds.keep=false"],
    &["rbac.aggregate=false"],
    &["admissionPolicy.enabled=false"],
    &["operator.replicas=0"],
    &["operator.replicas=3"],
    &["operator.podDisruptionBudget.enabled=true"],
    &["operator.log=info\\,kube=debug"],
    &["operator.extraEnv[0].name=SCOPEPROBE_RESYNC_INTERVAL", "operator.extraEnv[0].value=10s"],
    &["operator.resources=null"],
    &["operator.nodeSelector.a\\.example/b=c"],
    &["operator.tolerations[0].operator=Exists"],
    &[
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=a,\
       operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    ],
    &["operator.topologySpreadConstraints[0].maxSkew=1,operator.topologySpreadConstraints[0].topologyKey=zone,\
       operator.topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway"],
    &["operator.priorityClassName=system-cluster-critical"],
    &["operator.podSecurityContext.runAsUser=1234"],
    &["operator.annotations.a=b"],
    &["operator.podAnnotations.a=b"],
    &["operator.podLabels.a=b", "operator.podLabels.app\\.kubernetes\\.io/instance=theirs"],
    &["operator.serviceAccountAnnotations.a=b"],
    &["networkPolicy.enabled=true"],
    &["networkPolicy.enabled=true", "networkPolicy.apiServer.cidrs={192.0.2.1/32,2001:db8::/64}"],
    &["networkPolicy.enabled=true", "networkPolicy.apiServer.ports={6443}"],
    &["networkPolicy.enabled=true", "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b"],
    &["metrics.edges.level=None"],
    &["metrics.edges.level=Workload", "metrics.edges.maxSeries=20000"],
    &["metrics.rules.enabled=true"],
    &["metrics.rules.enabled=true", "metrics.rules.labels.a=b"],
    &["metrics.dashboard.enabled=true"],
    &[
        "metrics.dashboard.enabled=true",
        "metrics.dashboard.labels.grafana_dashboard=yes",
        "metrics.dashboard.annotations.a=b",
    ],
    &["metrics.serviceMonitor.enabled=true"],
    &["metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.interval=1m", "metrics.serviceMonitor.labels.a=b"],
    &["metrics.podMonitor.enabled=true"],
    &["metrics.podMonitor.enabled=true", "metrics.podMonitor.interval=1m", "metrics.podMonitor.labels.a=b"],
    &["collector.tls.secretName=a"],
    &["cleanup.enabled=false"],
];

/// Releases whose names lead to other names of objects.
pub const OTHER_RELEASES: [&str; 2] = ["r", "a-release-whose-name-is-as-long-as-helm-allows-it-now"];

/// Values that add, leave out or change whole objects. For each of the 16 combinations, a switch is on if the combination
/// and its number have an odd number of common bits: any two switches then occur in all four combinations.
const SWITCHES: [(u8, &str); 12] = [
    (1, "crds.enabled=false"),
    (2, "rbac.aggregate=false"),
    (3, "operator.replicas=2"),
    (4, "operator.podDisruptionBudget.enabled=true"),
    (5, "networkPolicy.enabled=true"),
    (6, "metrics.serviceMonitor.enabled=true"),
    (7, "metrics.podMonitor.enabled=true"),
    (8, "commonLabels.team=a"),
    (9, "fullnameOverride=n"),
    (10, "imagePullSecrets={one}"),
    (11, "metrics.rules.enabled=true"),
    (12, "metrics.dashboard.enabled=true"),
];

/// Combinations of the switches, and all values at once.
pub fn combinations() -> Vec<Vec<&'static str>> {
    let on = |combination: u8| SWITCHES.iter().filter(move |(bits, _)| (bits & combination).count_ones() % 2 == 1);
    let pairs = (0..16).map(|combination| on(combination).map(|(_, value)| *value).collect());
    let everything =
        ALONE.iter().flat_map(|values| values.iter().copied()).filter(|value| *value != "crds.enabled=false");
    pairs.chain([everything.collect()]).collect()
}

#[test]
fn any_two_switches_occur_in_all_combinations() {
    let combinations = combinations();
    for (at, (_, one)) in SWITCHES.iter().enumerate() {
        for (_, other) in &SWITCHES[..at] {
            let mut seen: Vec<_> =
                combinations[..16].iter().map(|values| (values.contains(one), values.contains(other))).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 4, "{one} and {other}");
        }
    }
}

/// So that a new value gets its rendering.
#[test]
fn every_value_of_the_chart_is_rendered() {
    let path = place::repository().join("charts/scopeprobe/values.yaml");
    let values: Value = serde_yaml::from_str(&fs::read_to_string(path).unwrap_or_default()).unwrap();
    let mut missing = Vec::new();
    leaves(&values, "", &mut missing);
    missing.retain(|leaf| !ALONE.iter().flat_map(|set| set.iter()).any(|value| value.starts_with(leaf.as_str())));
    assert!(missing.is_empty(), "no rendering sets {missing:?}: add it to ALONE");
}

/// Below this depth a value belongs to the user, not to the chart.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    let is_the_users = path == "operator.resources" || path == "operator.podSecurityContext";
    let Some(mapping) = value.as_mapping().filter(|mapping| !mapping.is_empty() && !is_the_users) else {
        found.push(path.to_owned());
        return;
    };
    for (key, value) in mapping {
        let key = key.as_str().unwrap_or_default();
        leaves(value, &if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }, found);
    }
}
