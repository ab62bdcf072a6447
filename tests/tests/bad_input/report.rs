//! Reports with nonsense in them, sent to the operator: each is refused with the field that is wrong, and the reports of
//! the real agents still come through.

use std::net::SocketAddr;

use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use report::v1alpha1::{self as wire, AgentReport, collector_client::CollectorClient, identity::Owner};
use scopeprobe_tests::{
    Cluster, Error, Result, chart, eventually, forward::Forward, manifest, namespace::Namespace, undo::Undo,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status, transport::Channel};
use traffic::protocol::Connect;

use crate::edges;

/// Name of a Node without a machine, so that reports under it disturb no real agent.
const STRANGER: &str = "stranger";
/// Values of the chart by which the operator accepts reports from this test, which is no agent. The policies allow no agents
/// that send plain text.
const PLAINTEXT: [&str; 3] = [
    "operator.extraEnv[2].name=SCOPEPROBE_COLLECTOR_PLAINTEXT",
    "operator.extraEnv[2].value=yes",
    "admissionPolicy.enabled=false",
];
/// Port at which the operator accepts reports.
const PORT: u16 = 9463;

/// A snapshot with nothing wrong in it.
fn good() -> AgentReport {
    AgentReport {
        node: STRANGER.to_owned(),
        epoch: vec![7; 16],
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: Some(wire::CaptureState {
            mode: wire::Mode::Ebpf.into(),
            reason: wire::Reason::Supported.into(),
            attach: "SockOps".to_owned(),
            ..wire::CaptureState::default()
        }),
        identities: vec![wire::Identity {
            cgroup_id: 5,
            cgroup_path: "/system.slice/sshd.service".to_owned(),
            owner: Some(Owner::HostProcess(wire::HostProcess { name: "sshd.service".to_owned() })),
        }],
        flows: vec![wire::Flow {
            cgroup_id: 5,
            netns: 9,
            role: wire::Role::Server.into(),
            local_ip: vec![192, 0, 2, 1],
            remote_ip: vec![192, 0, 2, 2],
            port: 22,
            counters: Some(wire::Counters { opened: 3, closed: 1, bytes_sent: 10, ..wire::Counters::default() }),
            ..wire::Flow::default()
        }],
        ..AgentReport::default()
    }
}

/// Breaks a good message, or several.
type Fault = fn(&mut AgentReport);

fn flow(report: &mut AgentReport) -> &mut wire::Flow {
    &mut report.flows[0]
}

fn counters(report: &mut AgentReport) -> &mut wire::Counters {
    report.flows[0].counters.as_mut().expect("a good message has counters")
}

fn capture(report: &mut AgentReport) -> &mut wire::CaptureState {
    report.capture.as_mut().expect("a good message says how it captures")
}

/// Returns invalid reports, with the field that the operator must name.
fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("node", |report| report.node.clear()),
        ("node", |report| report.node = "x".repeat(254)),
        ("epoch", |report| report.epoch.clear()),
        ("epoch", |report| report.epoch.push(0)),
        ("sequence", |report| report.sequence = 0),
        ("sequence", |report| report.sequence = u64::MAX),
        ("begins_snapshot", |report| report.begins_snapshot = false),
        ("capture", |report| report.capture = None),
        ("capture.mode", |report| capture(report).mode = 0),
        ("capture.mode", |report| capture(report).mode = -1),
        ("capture.message", |report| capture(report).message = "x".repeat(1025)),
        ("capture.attach", |report| capture(report).attach = "x".repeat(65)),
        ("capture.kernel", |report| capture(report).kernel = "x".repeat(129)),
        ("capture.seen", |report| capture(report).seen = u64::MAX),
        ("capture.losses.opened", |report| {
            capture(report).losses = Some(wire::Losses { opened: u64::MAX, ..wire::Losses::default() });
        }),
        ("node_addresses[0]", |report| report.node_addresses = vec![vec![1, 2, 3]]),
        ("node_addresses", |report| report.node_addresses = vec![vec![192, 0, 2, 1]; 100_000]),
        ("identities", |report| report.identities = vec![report.identities[0].clone(); 4001]),
        ("identities[0].owner", |report| report.identities[0].owner = None),
        ("identities[0].cgroup_path", |report| report.identities[0].cgroup_path = "/x".repeat(2049)),
        ("identities[0].pod_container.pod_uid", |report| {
            report.identities[0].owner = Some(Owner::PodContainer(wire::PodContainer::default()));
        }),
        ("identities[0].host_process.name", |report| {
            report.identities[0].owner = Some(Owner::HostProcess(wire::HostProcess { name: "x".repeat(254) }));
        }),
        ("flows", |report| report.flows = vec![report.flows[0].clone(); 1001]),
        ("flows[0].role", |report| flow(report).role = 0),
        ("flows[0].role", |report| flow(report).role = 3),
        ("flows[0].local_ip", |report| flow(report).local_ip = Vec::new()),
        ("flows[0].local_ip", |report| flow(report).local_ip = vec![1; 5]),
        ("flows[0].remote_ip", |report| flow(report).remote_ip = vec![1; 17]),
        ("flows[0].remote_ip", |report| flow(report).remote_ip = vec![0x20; 16]),
        ("flows[0].port", |report| flow(report).port = 0),
        ("flows[0].port", |report| flow(report).port = 65_536),
        ("flows[0].protocol", |report| flow(report).protocol = 2),
        ("flows[0].remote_names", |report| flow(report).remote_names = vec!["example.com".to_owned(); 5]),
        ("flows[0].remote_names[0]", |report| flow(report).remote_names = vec!["x".repeat(254)]),
        ("flows[0].remote_names[0]", |report| flow(report).remote_names = vec!["two words".to_owned()]),
        ("flows[0].counters", |report| flow(report).counters = None),
        ("flows[0].counters.opened", |report| counters(report).opened = u64::MAX),
        ("flows[0].counters.bytes_received", |report| counters(report).bytes_received = 1 << 63),
        ("flows[0].counters.open_bytes_sent", |report| counters(report).open_bytes_sent = 11),
        ("flows[0].counters.preexisting_bytes_received", |report| counters(report).preexisting_bytes_received = 1),
        ("flows[0].counters.open_retransmits", |report| counters(report).open_retransmits = 1),
        ("flows[0].counters.rtt", |report| counters(report).rtt = vec![1; 100]),
        ("flows[0]", |report| counters(report).rtt = vec![1; 100_000]),
        ("flows[0]", |report| flow(report).nat_peers = vec![wire::NatPeer::default(); 1000]),
        ("flows[1].role", |report| {
            report.flows.push(report.flows[0].clone());
            report.flows[1].role = 77;
        }),
    ]
}

/// Returns messages that contradict earlier ones of their stream.
fn later_faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("node", |report| report.node.push_str("-and-another")),
        ("sequence", |report| report.sequence = 1),
        ("sequence", |report| report.sequence = 3),
        ("flows[0].port", |report| flow(report).port = 70_000),
    ]
}

async fn client(address: SocketAddr) -> Result<CollectorClient<Channel>> {
    CollectorClient::connect(format!("http://{address}"))
        .await
        .map_err(|error| Error::Unexpected(format!("cannot reach the operator at {address}: {error}")))
}

/// Sends the messages, waiting for each one's reply, until the operator refuses: how many it has taken in, and what it
/// said at the end.
async fn send(address: SocketAddr, messages: Vec<AgentReport>) -> Result<(u64, Option<Status>)> {
    let mut client = client(address).await?;
    let mut replies = match client.report(stream::iter(messages)).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => return Ok((0, Some(status))),
    };
    let mut taken = 0;
    loop {
        match replies.message().await {
            Ok(Some(reply)) => taken = reply.sequence,
            Ok(None) => return Ok((taken, None)),
            Err(status) => return Ok((taken, Some(status))),
        }
    }
}

async fn assert_refused(address: SocketAddr, messages: Vec<AgentReport>, field: &str) -> Result<()> {
    let good = messages.len() as u64 - 1;
    let (taken, status) = send(address, messages).await?;
    let status = status.unwrap_or_else(|| panic!("{field}: the operator has taken it in"));
    assert_eq!((taken, status.code()), (good, Code::InvalidArgument), "{field}: {status:?}");
    let named = status.message().starts_with(&format!("{field}: "));
    assert!(named && status.message().len() > field.len() + 5, "{field}: {status:?}");
    Ok(())
}

/// Bytes that are no HTTP/2, or begin like it: the operator closes, or leaves it to us.
async fn send_garbage(address: SocketAddr) -> Result<()> {
    let pseudorandom: Vec<u8> =
        (0..65_536_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let broken_frame = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 4096]].concat();
    let garbage = [
        pseudorandom,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100),
        broken_frame,
        Vec::new(),
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(address).await.map_err(Error::io("connect to the operator"))?;
        // The operator may close before it has read everything.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    Ok(())
}

async fn operator_pod(cluster: &Cluster) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/name=scopeprobe-operator");
    eventually("one operator's pod to run", async || {
        let pods = pods.list(&ours).await.map_err(|error| error.to_string())?.items;
        let mut running = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        match (running.next(), running.next()) {
            (Some(pod), None) => Ok(pod),
            (one, other) => Err(format!("{} of them", usize::from(one.is_some()) + usize::from(other.is_some()))),
        }
    })
    .await
}

/// UID and restarts: the same as long as the operator has gone on.
fn life(pod: &Pod) -> (Option<String>, i32) {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    (pod.uid(), containers.iter().map(|container| container.restart_count).sum())
}

async fn assert_reports_come_through(namespace: &Namespace, connections: u64) -> Result<()> {
    let server = &namespace.traffic("server", "main");
    let client = &namespace.traffic("client", "main");
    let port = server.echo("0.0.0.0:0").await?.port();
    let target = SocketAddr::new(namespace.pod_ips("server").await?[0], port);
    client.connect(Connect { count: connections, send: 3, receive: 3, ..Connect::to(target) }).await?;
    edges::eventually_shown(namespace, "pod-server", &format!("an edge to port {port}"), |edge| {
        edge.port == Some(port) && edge.opened == connections && edge.peer.name.as_deref() == Some("client")
    })
    .await
}

#[tokio::test]
async fn nonsense_is_refused_with_its_field_and_the_agents_go_on() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&PLAINTEXT).await?;
    cluster.probe("{topology: {counterInterval: 1s}}").await?;
    let namespace = cluster.namespace("nonsense").await?;
    namespace.traffic_pod("server", Some("node-1"), &["main"]).await?;
    namespace.traffic_pod("client", Some("node-2"), &["main"]).await?;
    assert_reports_come_through(&namespace, 2).await?;
    let epochs = epochs(&cluster).await?;

    let stranger = format!("{{apiVersion: v1, kind: Node, metadata: {{name: {STRANGER}}}}}");
    manifest::apply(&cluster.client, "", &stranger).await?;
    let _undo = Undo::by(&cluster, &["delete", "node", STRANGER, "--ignore-not-found"]);
    let operator = operator_pod(&cluster).await?;
    let forward = Forward::to(&cluster.client, chart::NAMESPACE, &operator.name_any(), PORT).await?;
    for (field, fault) in faults() {
        let mut broken = good();
        fault(&mut broken);
        assert_refused(forward.address, vec![broken], field).await?;
    }
    for (field, fault) in later_faults() {
        let mut second = AgentReport { sequence: 2, begins_snapshot: false, ends_snapshot: false, ..good() };
        fault(&mut second);
        assert_refused(forward.address, vec![good(), second], field).await?;
    }
    let mut huge = good();
    huge.identities[0].cgroup_path = "x".repeat(5 << 20);
    let (taken, status) = send(forward.address, vec![huge]).await?;
    assert_eq!(
        (taken, status.map(|status| status.code())),
        (0, Some(Code::OutOfRange)),
        "more than a message may hold"
    );
    send_garbage(forward.address).await?;
    let (taken, status) = send(forward.address, vec![good()]).await?;
    assert!(taken == 1 && status.is_none(), "a good message is taken in as ever: {status:?}");

    assert_reports_come_through(&namespace, 5).await?;
    assert_eq!(life(&operator), life(&operator_pod(&cluster).await?), "the operator has gone on");
    assert_eq!(epochs, self::epochs(&cluster).await?, "no other agent has reported under the real agents' names");
    Ok(())
}

/// Returns each NodeProbe's epoch, which no other agent may change.
async fn epochs(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let probes = cluster.node_probes().await?;
    Ok(probes.iter().map(|probe| (probe.name_any(), probe.status.clone().unwrap_or_default().epoch)).collect())
}
