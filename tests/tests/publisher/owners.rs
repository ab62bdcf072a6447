//! Owners of every kind, as real objects: whose Topology it is, and who owns it.

use kube::{
    Api, ResourceExt as _,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use scopeprobe_tests::{Error, Result, eventually};

use crate::lab::{Lab, NAMESPACE, opened, owner_uids};

const KINDS: [(&str, &str, &str); 4] = [
    ("argoproj.io", "Rollout", "rollouts"),
    ("kafka.example.com", "Kafka", "kafkas"),
    ("vms.example.com", "VirtualMachine", "virtualmachines"),
    ("flow.example.com", "Workflow", "workflows"),
];

impl Lab {
    async fn install(&self, (group, kind, plural): (&str, &str, &str)) -> Result<()> {
        self.apply(&format!(
            "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  names: {{kind: {kind}, plural: {plural}}}
  scope: Namespaced
  versions:
  - {{name: v1, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}
"
        ))
        .await?;
        let objects = self.objects(group, "v1", kind, plural);
        eventually(&format!("the kind {kind} to be served"), async || {
            objects.list(&kube::api::ListParams::default()).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await
    }

    fn objects(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Api::namespaced_with(self.control_plane.client.clone(), NAMESPACE, &kind)
    }

    /// Creates an object with this controller. Returns the reference to it.
    async fn owner(
        &self,
        (group, kind, plural): (&str, &str, &str),
        name: &str,
        of: Option<&str>,
        spec: &str,
    ) -> Result<String> {
        let owners = of.map_or_else(String::new, |of| format!("ownerReferences: [{of}],"));
        let version = format!("{group}/v1");
        self.apply(&format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{{owners} name: {name}}}, spec: {spec}}}"
        ))
        .await?;
        let made = self.objects(group, "v1", kind, plural).get(name).await;
        let uid = made.map_err(Error::api(format!("read {kind} {name}")))?.uid().unwrap_or_default();
        Ok(format!("{{apiVersion: {version}, kind: {kind}, name: {name}, uid: {uid}, controller: true}}"))
    }

    /// A pod of this owner that has opened so many connections.
    async fn talker(&self, name: &str, owner: &str, connections: u64) -> Result<()> {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, ownerReferences: [{owner}]}}, \
             spec: {{nodeName: node-1, containers: [{{name: main, image: none}}]}}}}"
        ))
        .await?;
        let uid = self.uid_of(name).await?;
        self.report(&uid, &[(1, connections)]).await;
        Ok(())
    }

    /// Asserts that the Topology has this number of connections, and this owner only.
    async fn is_of(&self, topology: &str, connections: u64, owner: &str) -> Result<()> {
        let found = self.topology(topology, |it| opened(it) == connections).await?;
        let uids = owner_uids(&found);
        assert!(uids.len() == 1 && owner.contains(&format!("uid: {},", uids[0])), "{topology}: {uids:?}, {owner}");
        Ok(())
    }
}

#[tokio::test]
async fn pods_belong_to_their_topmost_owner_of_any_kind() -> Result<()> {
    let template = "{selector: {matchLabels: {a: b}}, serviceName: s, template: {metadata: {labels: {a: b}}, \
                    spec: {containers: [{name: main, image: none}]}}}";
    let replicas = ("apps", "ReplicaSet", "replicasets");
    let replica_spec = template.replace("serviceName: s, ", "");
    let once = "{template: {spec: {restartPolicy: Never, containers: [{name: main, image: none}]}}}";
    let mut lab = Lab::new().await?;
    for kind in KINDS {
        lab.install(kind).await?;
    }
    lab.publish_as_administrator();

    // Pod → ReplicaSet → Rollout.
    let rollout = lab.owner(KINDS[0], "shop", None, "{}").await?;
    let replica_set = lab.owner(replicas, "shop-7d9", Some(&rollout), &replica_spec).await?;
    lab.talker("shop-7d9-x", &replica_set, 3).await?;
    lab.is_of("rollout-shop", 3, &rollout).await?;

    // Two of its generations are one workload.
    let next = lab.owner(replicas, "shop-8aa", Some(&rollout), &replica_spec).await?;
    lab.talker("shop-8aa-x", &next, 4).await?;
    lab.is_of("rollout-shop", 7, &rollout).await?;

    // Pod → StatefulSet → Kafka: people look for the StatefulSet.
    let kafka = lab.owner(KINDS[1], "events", None, "{}").await?;
    let set = lab.owner(("apps", "StatefulSet", "statefulsets"), "events-broker", Some(&kafka), template).await?;
    lab.talker("events-broker-0", &set, 5).await?;
    lab.is_of("statefulset-events-broker", 5, &set).await?;

    // Pod → VirtualMachine.
    let machine = lab.owner(KINDS[2], "legacy", None, "{}").await?;
    lab.talker("legacy-launcher", &machine, 6).await?;
    lab.is_of("virtualmachine-legacy", 6, &machine).await?;

    // Pod → Job → Workflow.
    let workflow = lab.owner(KINDS[3], "nightly", None, "{}").await?;
    let job = lab.owner(("batch", "Job", "jobs"), "nightly-1", Some(&workflow), once).await?;
    lab.talker("nightly-1-x", &job, 8).await?;
    lab.is_of("workflow-nightly", 8, &workflow).await?;

    // A ReplicaSet without an owner is itself a deployed workload.
    let alone = lab.owner(replicas, "alone", None, &replica_spec).await?;
    lab.talker("alone-x", &alone, 9).await?;
    lab.is_of("replicaset-alone", 9, &alone).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}
