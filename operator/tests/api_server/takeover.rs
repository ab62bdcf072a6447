//! One operator takes over from another one: at most one of them writes, also where the first
//! is stopped, killed or cut off.

use std::time::{Duration, Instant};

use axum::http::{Method, Uri};
use crds::NodeProbe;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Condition};
use kube::Api;
use scopeprobe_tests::{ControlPlane, Error, Result, eventually};
use tokio::net::TcpStream;

use crate::{
    agent::{open_stream, report},
    control_plane, holder, pod_uid,
    process::{NAMESPACE, Operator},
    proxy::Proxy,
    shows,
};

/// Selects writes of anything but the lease.
fn is_write(method: &Method, uri: &Uri) -> bool {
    method != Method::GET && !uri.path().contains("/leases")
}

#[tokio::test]
async fn of_two_operators_one_writes() -> Result<()> {
    let control_plane = control_plane().await?;
    let uid = pod_uid(&control_plane).await?;
    let proxy = Proxy::start(&control_plane, "first").await?;
    let mut first = Operator::start_behind(&proxy, "operator-1", &[])?;
    first.is_ready().await?;
    let mut second = Operator::start(&control_plane, "operator-2")?;
    second.stands_by("operator operator-1 holds the lease").await?;
    report(first.collector(), &uid, 3).await?;
    shows(&control_plane, 3).await?;

    // It does not run for longer than its lease; the other takes that. The first has something to write when it runs again.
    report(first.collector(), &uid, 6).await?;
    first.signal("STOP").await?;
    second.is_ready().await?;
    assert_eq!(holder(&control_plane).await?.as_deref(), Some("operator-2"));
    proxy.heal();
    first.signal("CONT").await?;
    assert!(!first.end().await?, "an operator that lost its lease to another ends with an error");
    assert!(!proxy.sent(|_, _| true).is_empty(), "it has read the lease");
    let written = proxy.sent(is_write);
    assert!(written.is_empty(), "{written:?}");
    second.runs()?;

    // Told to stop, it gives the lease back at once.
    let mut third = Operator::start(&control_plane, "operator-3")?;
    third.stands_by("operator operator-2 holds the lease").await?;
    let began = Instant::now();
    second.signal("TERM").await?;
    third.is_ready().await?;
    eprintln!("a standby works {:.1} s after SIGTERM of the operator", began.elapsed().as_secs_f64());
    assert!(second.end().await?, "it ends as it was told to");
    assert_eq!(holder(&control_plane).await?.as_deref(), Some("operator-3"));
    Ok(())
}

#[tokio::test]
async fn standby_takes_over_from_killed_operator() -> Result<()> {
    let control_plane = control_plane().await?;
    let uid = pod_uid(&control_plane).await?;
    let shipped = ["--lease-seconds=10"];
    let mut first = Operator::start_in(NAMESPACE, &control_plane, "operator-1", &shipped)?;
    first.is_ready().await?;
    let _stream = open_stream(first.collector(), &uid, 3).await?;
    shows(&control_plane, 3).await?;
    let reporting = eventually("the node to report", async || {
        let reporting = reporting(&control_plane).await.map_err(|error| error.to_string())?;
        reporting.filter(|reporting| reporting.status == "True").ok_or_else(|| "it does not".to_owned())
    })
    .await?;
    let mut second = Operator::start_in(NAMESPACE, &control_plane, "operator-2", &shipped)?;
    second.stands_by("operator operator-1 holds the lease").await?;

    let began = Instant::now();
    first.signal("KILL").await?;
    second.is_ready().await?;
    eprintln!("a standby works {:.1} s after SIGKILL of the operator", began.elapsed().as_secs_f64());
    assert!(!first.end().await?);
    // The same agent comes later than the first look at NodeProbes, with counters that went on.
    second.has_compared_node_probes().await?;
    let _stream = open_stream(second.collector(), &uid, 8).await?;
    shows(&control_plane, 8).await?;
    let later = self::reporting(&control_plane).await?.map(|it| (it.status, it.last_transition_time));
    assert_eq!(later, Some((reporting.status, reporting.last_transition_time)), "it was never called silent");
    Ok(())
}

/// Returns the condition `Reporting` of the node.
async fn reporting(control_plane: &ControlPlane) -> Result<Option<Condition>> {
    let probes: Api<NodeProbe> = Api::all(control_plane.client.clone());
    let probe = probes.get("node-1").await.map_err(Error::api("read the NodeProbe"))?;
    let conditions = probe.status.unwrap_or_default().conditions;
    Ok(conditions.into_iter().find(|condition| condition.type_ == "Reporting"))
}

/// Waits until the lease has another version. Its holder has renewed it just then.
async fn renewed(control_plane: &ControlPlane) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let version = async || {
        let lease = leases.get("scopeprobe-operator").await.map_err(Error::api("read the lease"))?;
        Ok::<_, Error>(lease.metadata.resource_version)
    };
    let before = version().await?;
    eventually("the lease to be renewed", async || match version().await {
        Ok(now) if now != before => Ok(()),
        Ok(_) => Err("it is the same".to_owned()),
        Err(error) => Err(error.to_string()),
    })
    .await
}

#[tokio::test]
async fn operator_without_its_api_server_stops_before_another_takes_over() -> Result<()> {
    let control_plane = control_plane().await?;
    let uid = pod_uid(&control_plane).await?;
    let proxy = Proxy::start(&control_plane, "first").await?;
    // A third of it, 5 s, is between the end of the one and the beginning of the other.
    let long = ["--lease-seconds=15"];
    let mut first = Operator::start_behind(&proxy, "operator-1", &long)?;
    first.is_ready().await?;
    report(first.collector(), &uid, 3).await?;
    shows(&control_plane, 3).await?;
    let mut second = Operator::start_in(NAMESPACE, &control_plane, "operator-2", &long)?;
    second.stands_by("operator operator-1 holds the lease").await?;

    // A network that drops its packets. Agents still reach it.
    let (mut replies, _messages) = open_stream(first.collector(), &uid, 4).await?;
    renewed(&control_plane).await?;
    proxy.cut();
    let end = tokio::time::timeout(Duration::from_mins(3), replies.message()).await;
    let end = end.map_err(|_| Error::Unexpected("the stream has no end".to_owned()))?.expect_err("it is ended");
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    let collector = first.collector();
    eventually("the port to be closed", async || match TcpStream::connect(collector).await {
        Ok(_) => Err("it is open".to_owned()),
        Err(_) => Ok(()),
    })
    .await?;
    first.waits_for("the lease lapsed").await?;
    assert_eq!(holder(&control_plane).await?.as_deref(), Some("operator-1"), "no other one may write yet");

    second.is_ready().await?;
    report(second.collector(), &uid, 5).await?;
    shows(&control_plane, 5).await?;
    proxy.heal();
    assert!(!first.end().await?, "an operator that lost its lease to another ends with an error");
    let written = proxy.sent(is_write);
    assert!(written.is_empty(), "{written:?}");
    shows(&control_plane, 5).await
}
