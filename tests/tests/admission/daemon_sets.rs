//! Harmful changes of the agents' DaemonSets.

use serde_json::{Value, json};

/// A change, and the words with which the policy refuses it.
pub struct Change {
    pub what: &'static str,
    /// Path in the pod's `spec`, or in the whole object if it begins with `/`.
    path: &'static str,
    /// Value that is set there, or appended to a list if the path ends in `+`.
    value: &'static str,
    pub words: &'static str,
    /// Whether agents in Fallback mode may have it.
    pub is_allowed_in_fallback: bool,
}

impl Change {
    const fn new(what: &'static str, path: &'static str, value: &'static str, words: &'static str) -> Self {
        Self { what, path, value, words, is_allowed_in_fallback: false }
    }

    /// Returns the DaemonSet with this change.
    pub fn of(&self, good: &Value) -> Value {
        let value: Value = serde_json::from_str(self.value).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let mut changed = good.clone();
        let begin = if self.path.starts_with('/') { "" } else { "spec/template/spec/" };
        let path = format!("{begin}{}", self.path.trim_start_matches('/'));
        let mut at = &mut changed;
        for key in path.trim_end_matches("/+").split('/').map(|key| key.replace("~1", "/")) {
            at = match key.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[key.as_str()],
            };
        }
        if path.ends_with("/+") {
            if at.is_null() {
                *at = json!([]);
            }
            at.as_array_mut().unwrap_or_else(|| panic!("{}: no list", self.what)).push(value);
        } else {
            *at = value;
        }
        assert_ne!(changed, *good, "{} changes nothing", self.what);
        changed
    }
}

const ONLY_AGENTS: &str = "the operator may only write DaemonSets of agents, in its own namespace";
const ONE_CONTAINER: &str = "a pod of agents has one container, and no init container";
const PROGRAM: &str = "agents run /scopeprobe-agent with the arguments that the operator uses";
const VARIABLES: &str = "agents have the environment variable NODE_NAME alone";
const PROBES: &str = "probes of agents are HTTP requests to the pod itself";
const ACCOUNT: &str = "pods of agents have the ServiceAccount of agents, without its token";
const VOLUMES: &str = "the volumes of agents are the host path /sys/fs/cgroup";
const MOUNTS: &str = "agents mount their volumes read-only, at the paths";
const NODE: &str = "pods of agents have no network, ports or IPC of their node";
const SECCOMP: &str = "agents have the seccomp profile RuntimeDefault";
const APPARMOR: &str = "AppArmor is off for agents in Fallback mode alone";
const KERNEL: &str = "agents have no types of SELinux, no sysctls and the default view of /proc";
const PRIVILEGED: &str = "agents are not privileged, and their root file system is read-only";
const CAPABILITIES: &str = "agents have no capabilities but those of their mode";
const TRACE: &str = "a capability of Fallback mode";

/// Each is refused for this reason alone: without it, the DaemonSet is accepted.
pub const CHANGES: &[Change] = &[
    Change::new("no label of agents", "/metadata/labels/app.kubernetes.io~1name", r#""other""#, ONLY_AGENTS),
    Change::new(
        "no label of the operator",
        "/metadata/labels/app.kubernetes.io~1managed-by",
        r#""other""#,
        ONLY_AGENTS,
    ),
    Change::new("another name", "/metadata/name", r#""kube-proxy""#, ONLY_AGENTS),
    Change::new("a second container", "containers/+", r#"{"name": "b", "image": "b"}"#, ONE_CONTAINER),
    Change::new("an init container", "initContainers/+", r#"{"name": "b", "image": "b"}"#, ONE_CONTAINER),
    Change::new(
        "another image",
        "containers/0/image",
        r#""registry.example/agent:1""#,
        "the image of agents is localhost/",
    ),
    Change::new("another program", "containers/0/command", r#"["/bin/sh"]"#, PROGRAM),
    Change::new("the image's own program", "containers/0/command", "null", PROGRAM),
    Change::new("another subcommand", "containers/0/args", r#"["watch"]"#, PROGRAM),
    Change::new("an operator by plain text", "containers/0/args/+", r#""--operator=http://192.0.2.1:80""#, PROGRAM),
    Change::new("a token from a file of the node", "containers/0/args/+", r#""--token-file=/proc/1/environ""#, PROGRAM),
    Change::new("no TLS", "containers/0/args/+", r#""--insecure-plaintext""#, PROGRAM),
    Change::new("signals that break the capture", "containers/0/args/+", r#""--debug-signals""#, PROGRAM),
    Change::new("another variable", "containers/0/env/+", r#"{"name": "LD_PRELOAD", "value": "/a"}"#, VARIABLES),
    Change::new(
        "variables of a Secret",
        "containers/0/envFrom",
        r#"[{"secretRef": {"name": "scopeprobe-collector-tls"}}]"#,
        VARIABLES,
    ),
    Change::new("a command as a probe", "containers/0/livenessProbe", r#"{"exec": {"command": ["/a"]}}"#, PROBES),
    Change::new("a probe of another host", "containers/0/readinessProbe/httpGet/host", r#""169.254.169.254""#, PROBES),
    Change::new(
        "a start probe",
        "containers/0/startupProbe",
        r#"{"tcpSocket": {"port": 1, "host": "192.0.2.1"}}"#,
        PROBES,
    ),
    Change::new("a lifecycle hook", "containers/0/lifecycle", r#"{"preStop": {"exec": {"command": ["/a"]}}}"#, PROBES),
    Change::new("the operator's account", "serviceAccountName", r#""scopeprobe-operator""#, ACCOUNT),
    Change::new("a token of the API server", "automountServiceAccountToken", "true", ACCOUNT),
    Change::new("another pull secret", "imagePullSecrets/+", r#"{"name": "three"}"#, ACCOUNT),
    Change::new("the node's root", "volumes/0/hostPath/path", r#""/""#, VOLUMES),
    Change::new("another host path", "volumes/+", r#"{"name": "root", "hostPath": {"path": "/"}}"#, VOLUMES),
    Change::new(
        "a Secret",
        "volumes/+",
        r#"{"name": "tls", "secret": {"secretName": "scopeprobe-collector-tls"}}"#,
        VOLUMES,
    ),
    Change::new(
        "a projected Secret",
        "volumes/1/projected/sources/+",
        r#"{"secret": {"name": "scopeprobe-collector-tls"}}"#,
        VOLUMES,
    ),
    Change::new(
        "a projected token of the API server",
        "volumes/1/projected/sources/+",
        r#"{"serviceAccountToken": {"path": "api"}}"#,
        VOLUMES,
    ),
    Change::new("another ConfigMap", "volumes/1/projected/sources/+", r#"{"configMap": {"name": "other"}}"#, VOLUMES),
    Change::new("a volume of the node that can be written", "containers/0/volumeMounts/0/readOnly", "false", MOUNTS),
    Change::new("a volume at another place", "containers/0/volumeMounts/0/mountPath", r#""/sys/fs/cgroup""#, MOUNTS),
    Change::new("a part of a volume", "containers/0/volumeMounts/0/subPath", r#""system.slice""#, MOUNTS),
    Change::new("the node's network", "hostNetwork", "true", NODE),
    Change::new("the node's IPC", "hostIPC", "true", NODE),
    Change::new("a port of the node", "containers/0/ports/0/hostPort", "9464", NODE),
    Change::new("another runtime", "runtimeClassName", r#""privileged""#, NODE),
    Change::new(
        "a privileged container",
        "containers/0/securityContext",
        r#"{"privileged": true, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}"#,
        PRIVILEGED,
    ),
    Change::new("more rights by setuid", "containers/0/securityContext/allowPrivilegeEscalation", "true", PRIVILEGED),
    Change::new("a root file system", "containers/0/securityContext/readOnlyRootFilesystem", "false", PRIVILEGED),
    Change::new("no seccomp of the pod", "securityContext/seccompProfile/type", r#""Unconfined""#, SECCOMP),
    Change::new(
        "no seccomp of the container",
        "containers/0/securityContext/seccompProfile",
        r#"{"type": "Unconfined"}"#,
        SECCOMP,
    ),
    Change::new("a type of SELinux", "containers/0/securityContext/seLinuxOptions", r#"{"type": "spc_t"}"#, KERNEL),
    Change::new("a sysctl", "securityContext/sysctls", r#"[{"name": "net.ipv4.ip_forward", "value": "1"}]"#, KERNEL),
    Change {
        is_allowed_in_fallback: true,
        ..Change::new(
            "no AppArmor",
            "containers/0/securityContext/appArmorProfile",
            r#"{"type": "Unconfined"}"#,
            APPARMOR,
        )
    },
    Change::new("no AppArmor of the pod", "securityContext/appArmorProfile", r#"{"type": "Unconfined"}"#, APPARMOR),
    Change::new(
        "a capability of no mode",
        "containers/0/securityContext/capabilities/add/+",
        r#""SYS_MODULE""#,
        CAPABILITIES,
    ),
    Change::new("all capabilities", "containers/0/securityContext/capabilities/add/+", r#""ALL""#, CAPABILITIES),
    Change {
        is_allowed_in_fallback: true,
        ..Change::new(TRACE, "containers/0/securityContext/capabilities/add/+", r#""SYS_PTRACE""#, CAPABILITIES)
    },
    Change::new("capabilities of the runtime", "containers/0/securityContext/capabilities/drop", "[]", CAPABILITIES),
];
