//! Tests with a real API server, which issues and reviews tokens: an agent alone may report, for the node of its pod, over TLS.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod rotation;
mod tokens;
mod world;

use std::time::Duration;

use scopeprobe_tests::Result;
use tonic::{Code, Status, transport::Endpoint};
use world::{World, message, open, silent};

/// The operator's namespace.
pub const NAMESPACE: &str = "scopeprobe-system";

const LONG: Duration = Duration::from_hours(24);

/// Returns why the collector refused.
fn refusal(opened: std::result::Result<world::Open, Status>, what: &str) -> Status {
    match opened {
        Ok(_) => panic!("{what} was accepted"),
        Err(status) => status,
    }
}

#[tokio::test]
async fn agent_reports_for_its_node_and_strangers_for_none() -> Result<()> {
    let world = World::new(LONG).await?;
    let token = world.token("node-1").await?;
    let stolen = world.token("node-2").await?;
    let mut agent = world.report(Some(&token), message("node-1", 1, 1)).await?.expect("the agent of node-1");

    let control_plane = &world.control_plane;
    let other_audience = tokens::issued(control_plane, tokens::ACCOUNT, world.agents.get("node-1"), "api").await?;
    let other_account = tokens::issued(control_plane, "other", None, tokens::AUDIENCE).await?;
    let unbound = tokens::issued(control_plane, tokens::ACCOUNT, None, tokens::AUDIENCE).await?;
    // The API server allows for clocks that differ by a minute.
    let expired = tokens::short(control_plane, &world.agents["node-1"], -120).await?;
    let forged = format!("{}A{}", &token[..token.len() - 5], &token[token.len() - 4..]);
    for (what, token, code, words) in [
        ("no token", None, Code::Unauthenticated, "no bearer token"),
        ("garbage", Some("garbage"), Code::Unauthenticated, "no JSON Web Token"),
        ("the administrator's token", Some("administrator"), Code::Unauthenticated, "no JSON Web Token"),
        ("another audience", Some(other_audience.as_str()), Code::Unauthenticated, "[\"api\"]"),
        ("another account", Some(other_account.as_str()), Code::PermissionDenied, "scopeprobe-system:other"),
        ("a token without a pod", Some(unbound.as_str()), Code::PermissionDenied, "not bound to a pod"),
        ("an expired token", Some(expired.as_str()), Code::Unauthenticated, "does not accept the token"),
        ("a forged signature", Some(forged.as_str()), Code::Unauthenticated, "does not accept the token"),
    ] {
        let status = refusal(world.report(token, message("node-1", 9, 1)).await?, what);
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(words), "{what}: {status}");
    }

    let status = refusal(world.report(Some(&stolen), message("node-1", 9, 1)).await?, "the token of node-2's agent");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("\"node-1\"") && status.message().contains("\"node-2\""), "{status}");
    let status = refusal(world.report(Some(&stolen), message("elsewhere", 9, 1)).await?, "a name that is no Node");
    assert_eq!(status.code(), Code::PermissionDenied);

    // None of them has silenced the agent, or ended its epoch.
    agent.messages.send(message("node-1", 1, 2)).await.expect("the stream is open");
    let reply = agent.replies.message().await.expect("the stream is open").expect("a reply");
    assert_eq!(reply.sequence, 2);
    let node = world.observations.get("node-1").expect("it reports");
    assert_eq!((node.connected, node.epoch.as_slice()), (true, &[1; 16][..]));
    assert!(world.observations.get("elsewhere").is_none());
    world.report(Some(&stolen), message("node-2", 2, 1)).await?.expect("for its own node, the token is good");
    Ok(())
}

/// One token holds one place before its first message, so that it cannot hold the bytes of many.
#[tokio::test]
async fn of_each_agent_one_stream_waits_for_its_first_message() -> Result<()> {
    let world = World::new(LONG).await?;
    let (token, other) = (world.token("node-1").await?, world.token("node-2").await?);
    let bundle = world.bundle().await?;
    let connect = async || world.connect(&bundle).await.expect("the port is open");
    let mut first = silent(connect().await, Some(&token)).await.expect("an agent");
    let mut others = silent(connect().await, Some(&other)).await.expect("another agent");
    let mut second = silent(connect().await, Some(&token)).await.expect("the first agent again");
    let status = first.replies.message().await.expect_err("the second stream has its place");
    assert_eq!(status.code(), Code::Aborted, "{status}");
    for (stream, node) in [(&mut others, "node-2"), (&mut second, "node-1")] {
        stream.messages.send(message(node, 1, 1)).await.expect("the stream is open");
        assert!(stream.replies.message().await.expect("the stream is open").is_some(), "{node}");
    }
    Ok(())
}

#[tokio::test]
async fn port_speaks_tls_only_and_proves_its_name() -> Result<()> {
    let world = World::new(LONG).await?;
    let token = world.token("node-1").await?;
    world.report(Some(&token), message("node-1", 1, 1)).await?.expect("by TLS");
    let plain = Endpoint::from_shared(format!("http://{}", world.collector)).expect("an address");
    if let Ok(channel) = plain.connect().await {
        let status = refusal(open(channel, Some(&token), message("node-1", 1, 1)).await, "plain text");
        assert!(!matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied), "{status}");
    }
    let other = World::new(LONG).await?;
    assert!(world.connect(&other.bundle().await?).await.is_err(), "the certificate of another operator's CA");
    Ok(())
}

#[tokio::test]
async fn without_the_api_server_known_agents_report() -> Result<()> {
    let mut world = World::new(LONG).await?;
    let (known, new) = (world.token("node-1").await?, world.token("node-2").await?);
    let bundle = world.bundle().await?;
    let connect = async || world.connect(&bundle).await.expect("the port does not depend on the API server");
    let mut agent = open(connect().await, Some(&known), message("node-1", 1, 1)).await.expect("an agent");
    world.control_plane.stop();
    let bundle = &bundle;
    let connect =
        async |world: &World| world.connect(bundle).await.expect("the port does not depend on the API server");
    agent.messages.send(message("node-1", 1, 2)).await.expect("its stream is open");
    agent.replies.message().await.expect("its stream is open");
    open(connect(&world).await, Some(&known), message("node-1", 1, 1)).await.expect("the last review holds");
    let status = refusal(open(connect(&world).await, Some(&new), message("node-2", 2, 1)).await, "a new token");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    world.control_plane.start_again().await?;
    let again = open(connect(&world).await, Some(&new), message("node-2", 2, 1)).await;
    again.expect("the API server reviews it now");
    Ok(())
}
