//! Nodes that are not as an agent expects them.

use std::{collections::BTreeMap, net::SocketAddr};

use crds::{Mode, NodeProbe, NodeProbeStatus, ScopeProbe};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{EnvVar, Pod, Toleration},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use scopeprobe_tests::{
    Cluster, Error, Result, chart, eventually, manifest, namespace::Namespace, pod, scope_probe, undo::Undo,
};
use traffic::protocol::Connect;

use crate::edges;

/// A cgroup that no kubelet and no systemd would make, with a process in it that calls the server and says nothing.
/// What is in it when it begins says where it is; it ends with its standard input.
const STRANGE: &str = r#"
set -eu
root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
mkdir -p "$root/$1"
setsid bash -c '
  printf %s "$1" > /proc/$$/comm
  echo $$ > "$2/cgroup.procs"
  exec 3<> "/dev/tcp/$3/$4"
  read -r -t 600 -u 3
' strange "$2" "$root/$1" "$3" "$4" > /dev/null 2>&1 < /dev/null &
echo $!
"#;

const END_STRANGE: &str = r#"
root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
for pid in $(cat "$root/$1/cgroup.procs"); do kill -KILL "$pid"; done
for try in $(seq 50); do rmdir -p --ignore-fail-on-non-empty "$root/$1" 2> /dev/null; [ -d "$root/$1" ] || exit 0; sleep 0.1; done
exit 1
"#;

/// Path below the node's cgroup v2 root, the command of the process in it, and how that is shown.
const STRANGERS: [(&str, &str, &str); 4] = [
    ("kubepods.of.none/pod not a uid:x/*", "odd one", "odd one"),
    ("batch/kubepods/burstable/pod-1/5d3c8f", "odd two", "odd two"),
    ("\u{1f980}.slice\\x2d/ü", "odd three ü", "odd three ü"),
    ("-rf/$(reboot)/%n%s", "odd\tfour", "odd?four"),
];

async fn on_node(cluster: &Cluster, script: &str, arguments: &[&str]) -> Result<String> {
    let command = ["on", "node-1", "bash", "-c", script, "bash"];
    cluster.script(&[&command, arguments].concat()).await
}

#[tokio::test]
async fn processes_in_cgroups_of_unknown_shape_are_shown_by_their_command() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe("{topology: {counterInterval: 1s}}").await?;
    let namespace = cluster.namespace("strange").await?;
    namespace.traffic_pod("server", Some("node-2"), &["main"]).await?;
    namespace.traffic_pod("client", Some("node-1"), &["main"]).await?;
    let port = namespace.traffic("server", "main").echo("0.0.0.0:0").await?.port();
    let target = SocketAddr::new(namespace.pod_ips("server").await?[0], port);
    for (path, command, _) in STRANGERS {
        on_node(&cluster, STRANGE, &[path, command, &target.ip().to_string(), &port.to_string()]).await?;
    }
    for (_, _, shown) in STRANGERS {
        edges::eventually_shown(&namespace, "pod-server", &format!("the host process {shown:?}"), |edge| {
            edge.peer.kind == "HostProcess"
                && edge.peer.node.as_deref() == Some("node-1")
                && edge.peer.name.as_deref() == Some(shown)
                && (edge.port, edge.opened, edge.active) == (port, 1, 1)
        })
        .await?;
    }
    for (path, _, _) in STRANGERS {
        on_node(&cluster, END_STRANGE, &[path]).await?;
    }
    assert_shown(&namespace, target).await
}

/// A connection between pods is shown as ever.
async fn assert_shown(namespace: &Namespace, target: SocketAddr) -> Result<()> {
    namespace.traffic("client", "main").connect(Connect { count: 3, ..Connect::to(target) }).await?;
    edges::eventually_shown(namespace, "pod-server", "the pod `client`", |edge| {
        edge.peer.kind == "Pod" && edge.peer.name.as_deref() == Some("client") && edge.opened == 3
    })
    .await
}

/// Keeps the operator's own agents from a node, so that another one can be put there.
const TAINT: &str = "scopeprobe.io/test-no-agent";
const WITHOUT_BTF: &str = "agent-without-btf";
const NO_BTF: &str = "/no/such/btf";

/// The operator's agent as it would run on node-2, on a kernel that has no BTF.
async fn agent_without_btf(cluster: &Cluster) -> Result<Pod> {
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let ours = ListParams::default().labels(crds::PROBE_LABEL);
    let set = eventually("the agents' DaemonSet", async || {
        let sets = sets.list(&ours).await.map_err(|error| error.to_string())?.items;
        sets.into_iter().next().ok_or_else(|| "none".to_owned())
    })
    .await?;
    let mut spec = set.spec.and_then(|spec| spec.template.spec).expect("a DaemonSet has a template");
    spec.node_name = Some("node-2".to_owned());
    spec.node_selector = None;
    spec.tolerations = Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]);
    let variable = EnvVar { name: "SCOPEPROBE_BTF".to_owned(), value: Some(NO_BTF.to_owned()), ..EnvVar::default() };
    spec.containers[0].env.get_or_insert_default().push(variable);
    let metadata = ObjectMeta {
        name: Some(WITHOUT_BTF.to_owned()),
        labels: Some(BTreeMap::from([("app".to_owned(), WITHOUT_BTF.to_owned())])),
        ..ObjectMeta::default()
    };
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let pod = Pod { metadata, spec: Some(spec), status: None };
    pods.create(&PostParams::default(), &pod).await.map_err(Error::api("make an agent without BTF"))
}

async fn node_status(cluster: &Cluster, node: &str) -> Result<NodeProbeStatus, String> {
    let api: Api<NodeProbe> = Api::all(cluster.client.clone());
    let probe = api.get(node).await.map_err(|error| error.to_string())?;
    Ok(probe.status.unwrap_or_default())
}

#[tokio::test]
async fn a_kernel_without_btf_is_told_and_the_other_node_goes_on() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.kubectl(&["taint", "node", "node-2", &format!("{TAINT}=yes:NoSchedule"), "--overwrite"]).await?;
    let untaint = Undo::by(&cluster, &["taint", "node", "node-2", &format!("{TAINT}-")]);
    let unprobe = Undo::by(&cluster, &["delete", "scopeprobes", scope_probe::NAME, "--ignore-not-found"]);
    let yaml = format!(
        "{{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {{name: {}}}, \
         spec: {{topology: {{counterInterval: 1s}}, agent: {{tolerations: []}}}}}}",
        scope_probe::NAME
    );
    manifest::apply(&cluster.client, "", &yaml).await?;
    agent_without_btf(&cluster).await?;
    let delete = Undo::by(&cluster, &["-n", chart::NAMESPACE, "delete", "pod", WITHOUT_BTF, "--ignore-not-found"]);

    eventually("node-2 to be Unsupported and node-1 to go on", async || {
        let (one, two) = (node_status(&cluster, "node-1").await?, node_status(&cluster, "node-2").await?);
        let told = (two.mode, two.reason.as_str()) == (Some(Mode::Unsupported), "BtfMissing")
            && two.message.contains(NO_BTF)
            && two.coverage == "-";
        if told && one.mode == Some(Mode::Ebpf) { Ok(()) } else { Err(format!("{one:?}\n{two:?}")) }
    })
    .await?;
    let probes: Api<ScopeProbe> = Api::all(cluster.client.clone());
    eventually("the ScopeProbe to say so", async || {
        let probe = probes.get(scope_probe::NAME).await.map_err(|error| error.to_string())?;
        let status = probe.status.unwrap_or_default();
        let incomplete = status.conditions.iter().any(|condition| {
            condition.type_ == "CaptureComplete" && condition.status == "False" && condition.message.contains("node-2")
        });
        let counted = (status.nodes.total, status.nodes.ebpf, status.nodes.unsupported) == (2, 1, 1);
        if incomplete && counted && status.coverage != "100%" { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;

    let namespace = cluster.namespace("btf").await?;
    namespace.traffic_pod("server", Some("node-1"), &["main"]).await?;
    namespace.traffic_pod("client", Some("node-1"), &["main"]).await?;
    let port = namespace.traffic("server", "main").echo("0.0.0.0:0").await?.port();
    assert_shown(&namespace, SocketAddr::new(namespace.pod_ips("server").await?[0], port)).await?;

    assert_check_says_so(&cluster).await?;
    drop((delete, unprobe, untaint));
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    // It may be gone by now.
    let _ = pods.delete(WITHOUT_BTF, &DeleteParams::default()).await;
    cluster.unprobe().await
}

/// `scopeprobe-agent check` in the same container, with the same environment.
async fn assert_check_says_so(cluster: &Cluster) -> Result<()> {
    let command = ["/scopeprobe-agent", "check", "--cgroup-root=/host/sys/fs/cgroup"];
    match pod::exec(&cluster.client, chart::NAMESPACE, WITHOUT_BTF, "agent", &command).await {
        Err(Error::Program { status, output, .. }) => {
            assert!(status.contains("exit code 3"), "{status}\n{output}");
            assert_eq!(output.lines().last(), Some("mode: Fallback (BtfMissing)"), "{output}");
            assert!(output.lines().any(|line| line.starts_with("missing") && line.contains(NO_BTF)), "{output}");
            Ok(())
        }
        Err(error) => Err(error),
        Ok(output) => panic!("`check` succeeded:\n{output}"),
    }
}
