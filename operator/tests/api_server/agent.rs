//! Invents an agent's report.

use std::net::SocketAddr;

use futures::stream;
use report::v1alpha1::{self as wire, AgentReport, collector_client::CollectorClient};
use scopeprobe_tests::{Error, Result, eventually};

/// The agent of `node-1` reports, on a stream of its own, that the pod has opened so many connections in all. Waits until
/// the operator has taken that in.
pub async fn report(collector: SocketAddr, pod_uid: &str, opened: u64) -> Result<()> {
    let mut client = eventually("the operator to take reports in", async || {
        CollectorClient::connect(format!("http://{collector}")).await.map_err(|error| error.to_string())
    })
    .await?;
    let refused = |status| Error::Unexpected(format!("the operator refuses the report: {status}"));
    let mut replies = client.report(stream::iter([message(pod_uid, opened)])).await.map_err(refused)?.into_inner();
    let reply = replies.message().await.map_err(refused)?;
    assert_eq!(reply.map(|reply| reply.sequence), Some(1));
    Ok(())
}

fn message(pod_uid: &str, opened: u64) -> AgentReport {
    let owner = wire::PodContainer { pod_uid: pod_uid.to_owned(), container_id: String::new() };
    AgentReport {
        node: "node-1".to_owned(),
        epoch: vec![7; 16],
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: Some(wire::CaptureState {
            mode: wire::Mode::Ebpf.into(),
            reason: wire::Reason::Supported.into(),
            attach: "SockOps".to_owned(),
            seen: opened,
            ..wire::CaptureState::default()
        }),
        identities: vec![wire::Identity {
            cgroup_id: 5,
            cgroup_path: format!("/kubepods.slice/kubepods-pod{pod_uid}.slice"),
            owner: Some(wire::identity::Owner::PodContainer(owner)),
        }],
        flows: vec![wire::Flow {
            cgroup_id: 5,
            netns: 9,
            role: wire::Role::Client.into(),
            local_ip: vec![10, 244, 0, 1],
            remote_ip: vec![192, 0, 2, 9],
            port: 443,
            counters: Some(wire::Counters { opened, closed: opened, methods: 1, ..wire::Counters::default() }),
            ..wire::Flow::default()
        }],
        ..AgentReport::default()
    }
}
