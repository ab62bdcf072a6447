//! The DaemonSet of one ScopeProbe's agents in one mode. Pure.

use std::collections::BTreeMap;

use crds::{MODE_LABEL, PROBE_LABEL};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet},
        core::v1::{
            AppArmorProfile, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, SeccompProfile, SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use super::{collector_access, mode::AgentMode, privileges, validate::ValidProbe};
use crate::{operator_deployment::MANAGED_BY, settings::AgentSettings};

/// The value of `app.kubernetes.io/name` of everything that belongs to agents.
pub const AGENT_APP: &str = "scopeprobe-agent";
/// Port of the agents' /livez, /readyz and /metrics.
pub const HTTP_PORT: u16 = 9464;
/// Mount path of the node's cgroup hierarchies in the agent's container.
const CGROUP_MOUNT: &str = "/host/sys/fs/cgroup";

/// Common properties of all agents of one operator.
#[derive(Clone, Debug)]
pub struct AgentTemplate<'a> {
    /// The operator's namespace.
    pub namespace: &'a str,
    /// The URL that agents dial.
    pub collector_url: &'a str,
    /// The object with which the DaemonSets are garbage-collected.
    pub owner: Option<&'a OwnerReference>,
    /// Image, pull policy and ServiceAccount.
    pub settings: &'a AgentSettings,
}

/// The name of a ScopeProbe's DaemonSet in one mode.
#[must_use]
pub fn name(probe: &str, mode: AgentMode) -> String {
    format!("scopeprobe-{probe}-{}", mode.as_str())
}

/// DaemonSet as it should be. It has no status, so that no progress can be read from it.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedDaemonSet(DaemonSet);

impl PreparedDaemonSet {
    /// Returns the object to apply.
    #[must_use]
    pub fn object(&self) -> &DaemonSet {
        &self.0
    }
}

/// Returns the DaemonSet of a ScopeProbe's agents in one mode.
#[must_use]
pub fn daemon_set(probe: &ValidProbe, mode: AgentMode, template: &AgentTemplate<'_>) -> PreparedDaemonSet {
    let selector = selector(&probe.name, mode);
    let mut labels = selector.clone();
    labels.insert("app.kubernetes.io/component".to_owned(), "agent".to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "scopeprobe".to_owned());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    PreparedDaemonSet(DaemonSet {
        metadata: ObjectMeta {
            name: Some(name(&probe.name, mode)),
            namespace: Some(template.namespace.to_owned()),
            labels: Some(labels.clone()),
            owner_references: template.owner.map(|owner| vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(DaemonSetSpec {
            selector: LabelSelector { match_labels: Some(selector), match_expressions: None },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod(probe, mode, template)),
            },
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::String("10%".to_owned())),
                    max_surge: None,
                }),
            }),
            ..DaemonSetSpec::default()
        }),
        status: None,
    })
}

fn selector(probe: &str, mode: AgentMode) -> BTreeMap<String, String> {
    let mut labels = node_labels(probe, mode);
    labels.insert("app.kubernetes.io/name".to_owned(), AGENT_APP.to_owned());
    labels
}

/// The labels by which a node gets the agent of a ScopeProbe in one mode.
#[must_use]
pub fn node_labels(probe: &str, mode: AgentMode) -> BTreeMap<String, String> {
    [(PROBE_LABEL, probe), (MODE_LABEL, mode.as_str())].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn pod(probe: &ValidProbe, mode: AgentMode, template: &AgentTemplate<'_>) -> PodSpec {
    let secrets = template.settings.agent_pull_secrets.iter();
    let access = collector_access::volume(template.collector_url, template.settings);
    let volumes = [cgroup_volume()].into_iter().chain(access).collect();
    let secrets: Vec<_> = secrets.map(|name| LocalObjectReference { name: name.clone() }).collect();
    PodSpec {
        node_selector: Some(node_labels(&probe.name, mode)),
        tolerations: Some(probe.agents.tolerations.clone()),
        priority_class_name: probe.agents.priority_class.clone(),
        service_account_name: Some(template.settings.agent_service_account.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: Some(secrets).filter(|secrets| !secrets.is_empty()),
        // The node's own pid namespace: open sockets, and for the fallback network namespaces, are found by walking its
        // tasks.
        host_pid: Some(true),
        termination_grace_period_seconds: Some(10),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(probe, mode, template)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn cgroup_volume() -> Volume {
    Volume {
        name: "cgroup".to_owned(),
        host_path: Some(HostPathVolumeSource {
            path: "/sys/fs/cgroup".to_owned(),
            type_: Some("Directory".to_owned()),
        }),
        ..Volume::default()
    }
}

fn container(probe: &ValidProbe, mode: AgentMode, template: &AgentTemplate<'_>) -> Container {
    let access = collector_access::mount(template.collector_url);
    Container {
        name: "agent".to_owned(),
        image: Some(template.settings.agent_image.clone()),
        image_pull_policy: Some(template.settings.agent_pull_policy.clone()),
        command: Some(vec!["/scopeprobe-agent".to_owned()]),
        args: Some(arguments(probe, mode, template)),
        env: Some(vec![EnvVar {
            name: "NODE_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector { api_version: None, field_path: "spec.nodeName".to_owned() }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: HTTP_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        liveness_probe: Some(http_probe("/livez", 10)),
        // Ready also where nothing can be captured: that is the node's state and stands in its NodeProbe.
        readiness_probe: Some(http_probe("/readyz", 5)),
        resources: Some(probe.agents.resources.clone()),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            privileged: Some(false),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: Some(capabilities(mode)) }),
            app_armor_profile: privileges::needs_no_apparmor(mode)
                .then(|| AppArmorProfile { type_: "Unconfined".to_owned(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some([cgroup_mount()].into_iter().chain(access).collect()),
        ..Container::default()
    }
}

fn cgroup_mount() -> VolumeMount {
    VolumeMount {
        name: "cgroup".to_owned(),
        mount_path: CGROUP_MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn arguments(probe: &ValidProbe, mode: AgentMode, template: &AgentTemplate<'_>) -> Vec<String> {
    let options = &probe.agents;
    let mut arguments = vec![
        "run".to_owned(),
        "--node-name=$(NODE_NAME)".to_owned(),
        format!("--operator={}", template.collector_url),
        format!("--mode={}", mode.flag()),
        format!("--cgroup-root={CGROUP_MOUNT}"),
        format!("--max-flows={}", options.max_flows),
        format!("--report-interval={}ms", options.report_interval.as_millis()),
        format!("--scan-interval={}ms", template.settings.agent_scan_interval.as_millis()),
        format!("--dns-names={}", options.dns_names),
        // Also for eBPF: its agents fall back, as far as they may, while their capture is started again.
        format!("--fallback-cpu-budget={}", options.fallback_millicores),
    ];
    arguments.extend(collector_access::arguments(template.collector_url, template.namespace, template.settings));
    if template.settings.agent_debug_signals {
        arguments.push("--debug-signals".to_owned());
    }
    arguments
}

fn capabilities(mode: AgentMode) -> Vec<String> {
    privileges::capabilities(mode).iter().map(|capability| capability.name.to_owned()).collect()
}

fn http_probe(path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(6),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn built(spec: &Value, mode: AgentMode) -> Value {
        let probe = json!({"metadata": {"name": "cluster", "uid": "p1"}, "spec": spec});
        let probe: crds::ScopeProbe = serde_json::from_value(probe).unwrap();
        let probe = ValidProbe::try_from(&probe).unwrap();
        let settings = AgentSettings {
            collector_service: "collector".to_owned(),
            collector_url: None,
            collector_plaintext: false,
            agent_image: "registry.example/agent:1".to_owned(),
            agent_pull_policy: "IfNotPresent".to_owned(),
            agent_pull_secrets: Vec::new(),
            agent_service_account: "agent".to_owned(),
            ebpf_retry: jiff::SignedDuration::from_hours(1),
            agent_scan_interval: jiff::SignedDuration::from_secs(30),
            agent_debug_signals: false,
        };
        let owner = OwnerReference { kind: "Deployment".to_owned(), uid: "u1".to_owned(), ..OwnerReference::default() };
        let template = AgentTemplate {
            namespace: "system",
            collector_url: "https://[fd96::7]:9463",
            owner: Some(&owner),
            settings: &settings,
        };
        serde_json::to_value(daemon_set(&probe, mode, &template).object()).unwrap()
    }

    fn container(daemon_set: &Value) -> &Value {
        &daemon_set["spec"]["template"]["spec"]["containers"][0]
    }

    #[test]
    fn daemon_set_goes_with_operator_and_runs_on_nodes_of_its_mode() {
        let daemon_set = built(&json!({}), AgentMode::Ebpf);
        assert_eq!(daemon_set["metadata"]["name"], "scopeprobe-cluster-ebpf");
        assert_eq!(daemon_set["metadata"]["namespace"], "system");
        let owners = json!([{"apiVersion": "", "kind": "Deployment", "name": "", "uid": "u1"}]);
        assert_eq!(daemon_set["metadata"]["ownerReferences"], owners, "another owner would keep it from going");
        let pod = &daemon_set["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"], json!({"scopeprobe.io/mode": "ebpf", "scopeprobe.io/probe": "cluster"}));
        let selector = daemon_set["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let labels = daemon_set["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "it selects its own pods");
    }

    #[test]
    fn an_agent_has_no_more_rights_than_its_mode_needs() {
        for (mode, capabilities, apparmor) in [
            (AgentMode::Ebpf, json!(["BPF", "PERFMON", "NET_ADMIN"]), Value::Null),
            (AgentMode::EbpfMemlock, json!(["BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"]), Value::Null),
            (
                AgentMode::Fallback,
                json!(["NET_ADMIN", "SYS_PTRACE", "SYS_ADMIN", "DAC_READ_SEARCH"]),
                json!({"type": "Unconfined"}),
            ),
        ] {
            let daemon_set = built(&json!({}), mode);
            let context = &container(&daemon_set)["securityContext"];
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(context["capabilities"]["add"], capabilities);
            assert_eq!(context["appArmorProfile"], apparmor);
            assert_eq!(context["privileged"], false);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            let pod = &daemon_set["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["hostNetwork"], Value::Null);
            assert_eq!(container(&daemon_set)["volumeMounts"][0]["readOnly"], true);
        }
    }

    #[test]
    fn what_the_probe_says_reaches_the_agent() {
        let spec = json!({
            "topology": {"dnsNames": false},
            "capture": {"maxFlows": 64, "reportInterval": "1m30s", "fallback": {"cpuBudget": "0.25"}},
            "agent": {
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "tolerations": [{"key": "a", "operator": "Exists"}],
                "priorityClassName": "system-node-critical",
            },
        });
        let daemon_set = built(&spec, AgentMode::Fallback);
        let arguments = container(&daemon_set)["args"].as_array().unwrap();
        for expected in [
            "--operator=https://[fd96::7]:9463",
            "--mode=fallback",
            "--max-flows=64",
            "--report-interval=90000ms",
            "--fallback-cpu-budget=250",
            "--dns-names=false",
        ] {
            assert!(arguments.contains(&json!(expected)), "{expected} in {arguments:?}");
        }
        let resources = &container(&daemon_set)["resources"];
        assert_eq!(resources["limits"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(resources["requests"], json!({"cpu": "10m", "memory": "32Mi"}), "the default stays");
        let pod = &daemon_set["spec"]["template"]["spec"];
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
    }

    #[test]
    fn agent_has_a_token_for_the_collector_and_no_other() {
        let daemon_set = built(&json!({}), AgentMode::Ebpf);
        let pod = &daemon_set["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let sources = &pod["volumes"][1]["projected"]["sources"];
        assert_eq!(sources[0]["serviceAccountToken"]["audience"], "scopeprobe-collector");
        assert_eq!((&sources[1]["configMap"]["name"], sources.as_array().unwrap().len()), (&json!("collector-ca"), 2));
        let mount = &container(&daemon_set)["volumeMounts"][1];
        let folder = "/var/run/scopeprobe/collector";
        assert_eq!(mount, &json!({"name": pod["volumes"][1]["name"], "mountPath": folder, "readOnly": true}));
        let arguments = container(&daemon_set)["args"].as_array().unwrap();
        for expected in [
            format!("--operator-ca={folder}/ca.crt"),
            format!("--token-file={folder}/token"),
            "--operator-name=collector.system.svc".to_owned(),
        ] {
            assert!(arguments.contains(&json!(expected)), "{expected} in {arguments:?}");
        }
        assert!(!arguments.contains(&json!("--insecure-plaintext")));
    }

    #[test]
    fn agents_with_locked_memory_use_ebpf_and_are_a_daemon_set_of_their_own() {
        let daemon_set = built(&json!({}), AgentMode::EbpfMemlock);
        assert_eq!(daemon_set["metadata"]["name"], "scopeprobe-cluster-ebpf-memlock");
        let selector = &daemon_set["spec"]["template"]["spec"]["nodeSelector"];
        assert_eq!(selector["scopeprobe.io/mode"], "ebpf-memlock");
        assert!(container(&daemon_set)["args"].as_array().unwrap().contains(&json!("--mode=ebpf")));
    }

    #[test]
    fn by_default_every_taint_is_tolerated_and_no_priority_is_asked_for() {
        let pod = &built(&json!({}), AgentMode::Ebpf)["spec"]["template"]["spec"];
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(pod["priorityClassName"], Value::Null);
    }
}
