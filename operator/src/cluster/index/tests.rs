use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1,
};
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use topology::{entity::HostPort, flow::Protocol};

use super::*;
use crate::cluster::pods;

fn pod(metadata: &Value) -> Change {
    let object: v1::Pod = serde_json::from_value(json!({"metadata": metadata})).expect("it is a pod");
    Change::Pod(Box::new(Step::Upsert(pods::facts(object).expect("it has all that it needs"))))
}

fn owner<K>(metadata: &Value) -> Change
where
    K: kube::Resource<DynamicType = ()> + k8s_openapi::Resource,
{
    let object: PartialObjectMeta<K> = serde_json::from_value(json!({"metadata": metadata})).expect("it has metadata");
    let facts = owners::facts(object).expect("it has all that it needs");
    Change::Owner(K::KIND, K::API_VERSION, Step::Upsert(facts))
}

fn begins<K: k8s_openapi::Resource>() -> Change {
    Change::Owner(K::KIND, K::API_VERSION, Step::Begin)
}

fn controller(api_version: &str, kind: &str, name: &str) -> Value {
    json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": format!("{kind}-{name}"), "controller": true}])
}

fn index(changes: impl IntoIterator<Item = Change>) -> Index {
    let mut index = Index::default();
    for change in changes {
        index.apply(change, SystemTime::UNIX_EPOCH);
    }
    index
}

#[test]
fn static_pods_with_one_uid_are_told_apart_by_node_and_container() {
    let uid = "0123456789abcdef0123456789abcdef";
    let mirror = |node: &str| {
        let object = json!({
            "metadata": {
                "namespace": "kube-system", "name": format!("proxy-{node}"), "uid": format!("mirror-{node}"),
                "annotations": {"kubernetes.io/config.hash": uid},
            },
            "spec": {"nodeName": node, "containers": []},
            "status": {"containerStatuses": [{
                "name": "proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://id-{node}"),
            }]},
        });
        let object = serde_json::from_value(object).expect("it is a pod");
        Change::Pod(Box::new(Step::Upsert(pods::facts(object).expect("it has all that it needs"))))
    };
    let mut index = index(["node-1", "node-2"].map(mirror));
    let name = |index: &Index, node: &str, container: &str| {
        index.directory().pod_on(node, uid, container).map(|pod| pod.name.clone())
    };
    for node in ["node-1", "node-2"] {
        for container in ["", "id-node-1", "id-node-2"] {
            // An agent that names a container of another node does not get that node's pod.
            assert_eq!(name(&index, node, container), Some(format!("proxy-{node}")), "{node} {container}");
        }
    }
    let Change::Pod(step) = mirror("node-1") else { unreachable!("it is a pod") };
    let Step::Upsert(gone) = *step else { unreachable!("it is there") };
    index.apply(Change::Pod(Box::new(Step::Remove(gone))), SystemTime::UNIX_EPOCH);
    index.forget_removed(SystemTime::UNIX_EPOCH, Duration::ZERO);
    assert_eq!(name(&index, "node-2", ""), Some("proxy-node-2".to_owned()));
}

#[test]
fn host_ports_are_those_of_pods_with_a_network_of_their_own() {
    let pod = |host_network: bool| {
        let ports = json!([
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"containerPort": 90, "hostIP": "0.0.0.0", "hostPort": 9090},
            {"containerPort": 81}, {"containerPort": 82, "hostPort": 0}, {"containerPort": 83, "hostPort": 83, "protocol": "SCTP"},
        ]);
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "u"},
            "spec": {"hostNetwork": host_network, "containers": [{"name": "main", "ports": ports}]},
        });
        pods::facts(serde_json::from_value(object).expect("it is a pod")).expect("it has all that it needs").pod
    };
    let host_port = |ip: Option<&str>, port, container_port, protocol| HostPort {
        ip: ip.map(|ip| ip.parse().expect("it is an address")),
        port,
        container_port,
        protocol,
    };
    let expected = [
        host_port(None, 8080, 80, Protocol::Tcp),
        host_port(Some("192.0.2.1"), 5353, 53, Protocol::Udp),
        host_port(None, 9090, 90, Protocol::Tcp),
    ];
    assert_eq!(pod(false).host_ports, expected);
    assert_eq!(pod(true).host_ports, []);
}

#[test]
fn revision_stays_while_nothing_is_forgotten() {
    let metadata = json!({"namespace": "shop", "name": "web-1", "uid": "u"});
    let object = serde_json::from_value(json!({"metadata": metadata})).expect("it is a pod");
    let gone = pods::facts(object).expect("it has all that it needs");
    let mut index = index([pod(&metadata), Change::Pod(Box::new(Step::Remove(gone)))]);
    let mut revision_after = |retention| {
        index.forget_removed(SystemTime::UNIX_EPOCH + Duration::from_mins(1), retention);
        index.revision()
    };
    let kept = [Duration::from_hours(1); 2].map(&mut revision_after);
    assert_eq!(kept[0], kept[1]);
    assert!(revision_after(Duration::from_secs(1)) > kept[1]);
}

#[test]
fn a_static_pod_is_found_by_the_hash_that_its_node_knows() {
    let hash = "0123456789abcdef0123456789abcdef";
    let metadata = json!({
        "namespace": "kube-system", "name": "etcd-node-1", "uid": "u",
        "annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
    });
    let mut index = index([pod(&metadata)]);
    let name = |index: &Index| index.directory().pod(hash).map(|pod| (pod.uid.clone(), pod.name.clone()));
    assert_eq!(name(&index), Some(("u".to_owned(), "etcd-node-1".to_owned())));
    // Its object is made again, and the old one forgotten.
    let mut again = metadata.clone();
    again["uid"] = json!("v");
    index.apply(pod(&again), SystemTime::UNIX_EPOCH);
    let object = serde_json::from_value(json!({"metadata": metadata})).expect("it is a pod");
    let gone = pods::facts(object).expect("it has all that it needs");
    index.apply(Change::Pod(Box::new(Step::Remove(gone))), SystemTime::UNIX_EPOCH);
    index.forget_removed(SystemTime::UNIX_EPOCH, Duration::ZERO);
    assert_eq!(name(&index), Some(("v".to_owned(), "etcd-node-1".to_owned())));
}

#[test]
fn kinds_of_the_same_name_in_other_groups_are_not_taken_for_ours() {
    let own = |name: &str, owners: Value| {
        pod(&json!({"namespace": "shop", "name": name, "uid": name, "ownerReferences": owners}))
    };
    let job = json!({
        "namespace": "shop", "name": "report", "uid": "job",
        "ownerReferences": controller("batch/v1", "CronJob", "nightly"),
    });
    let index = index([
        begins::<Job>(),
        begins::<CronJob>(),
        owner::<CronJob>(&json!({"namespace": "shop", "name": "nightly", "uid": "cron"})),
        owner::<Job>(&job),
        own("ours", controller("batch/v1", "Job", "report")),
        own("other", controller("batch.example.com/v1", "Job", "report")),
    ]);
    let workload_of = |uid: &str| index.directory().pod(uid).expect("it is known").workload.clone();
    let named = |kind: &str, name: &str, group: &str| Workload {
        namespace: "shop".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        group: group.to_owned(),
    };
    assert_eq!(workload_of("ours"), named("CronJob", "nightly", "batch"));
    assert_eq!(workload_of("other"), named("Job", "report", "batch.example.com"));
    let owner = index.owner_identity(&named("CronJob", "nightly", "batch")).expect("it exists");
    assert_eq!((owner.api_version.as_str(), owner.uid.as_str()), ("batch/v1", "cron"));
}

#[test]
fn index_is_complete_when_each_awaited_kind_is_listed() {
    let mut index = Index::default();
    index.note_list("Pod");
    assert!(!index.is_complete(), "no watch has begun");
    index.await_lists(["Pod", "Node"]);
    index.note_list("Node");
    index.note_list("Node");
    assert!(!index.is_complete(), "no pod is listed");
    index.note_list("Pod");
    assert!(index.is_complete());
    index.note_list("Pod");
    assert!(index.is_complete(), "a later list changes nothing");
}
