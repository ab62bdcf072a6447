//! Numbers that no real agent reports, and that an object cannot hold.

use scopeprobe_tests::Result;

use crate::{
    has_condition,
    lab::{Lab, opened, status},
};

#[tokio::test]
async fn forged_counts_do_not_keep_other_edges_from_being_written() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.pod("web", None).await?;
    lab.report(&uid, &[(1, 5), (2, u64::MAX)]).await;
    let topology = lab.topology("pod-web", |it| has_condition(it, "Truncated", "True")).await?;
    let said = status(&topology);
    let listed: Vec<_> = said.egress.iter().map(|edge| (edge.peer.ip.as_deref(), edge.opened)).collect();
    assert_eq!(listed, [(Some("192.0.2.1"), 5)]);
    assert_eq!((said.omitted.egress, said.omitted.ingress, said.totals.opened), (1, 0, 5));
    assert_eq!(said.summary.to, "192.0.2.1:443 (external), +1 more", "who is called is said all the same");
    let condition = said.conditions.iter().find(|condition| condition.type_ == "Truncated").expect("it is there");
    assert_eq!(condition.reason, "CountersTooLarge");
    assert!(condition.message.contains("1 egress edge and 0 ingress edges"), "{}", condition.message);

    // What is new is written at once, and what can be written comes back.
    lab.report(&uid, &[(3, 7)]).await;
    lab.topology("pod-web", |it| status(it).egress.len() == 2 && opened(it) == 12).await?;
    assert_eq!(lab.writes("failed"), 0, "{}", lab.metrics.encode().expect("it is text"));
    Ok(())
}

#[tokio::test]
async fn totals_stop_where_the_api_does() -> Result<()> {
    const HUGE: u64 = i64::MAX as u64 - 1;
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.pod("web", None).await?;
    lab.report(&uid, &[(1, HUGE), (2, HUGE)]).await;
    let topology = lab.topology("pod-web", |it| status(it).egress.len() == 2).await?;
    assert!(has_condition(&topology, "Truncated", "True"));
    assert_eq!((opened(&topology), status(&topology).omitted.egress), (HUGE + 1, 0));
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}
