//! Peers outside of the cluster, as objects.

use crds::{ExternalGroup, Topology, TopologyEdge};
use scopeprobe_tests::Result;

use crate::lab::{Lab, opened, status};

/// Kind, name or address, connections, addresses of each outgoing edge.
fn egress(topology: &Topology) -> Vec<(String, String, u64, u64)> {
    let of = |edge: &TopologyEdge| {
        let peer = edge.peer.clone();
        (peer.kind, peer.name.or(peer.ip).unwrap_or_default(), edge.opened, edge.addresses)
    };
    status(topology).egress.iter().map(of).collect()
}

fn row(kind: &str, name: &str, opened: u64, addresses: u64) -> (String, String, u64, u64) {
    (kind.to_owned(), name.to_owned(), opened, addresses)
}

#[tokio::test]
async fn few_addresses_are_shown_others_are_counted_and_groups_have_names() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.pod("scanner", None).await?;
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_external = 2);
    lab.report(&uid, &[(1, 10), (2, 50), (3, 20), (4, 40), (5, 30)]).await;
    let busiest =
        [row("External", "192.0.2.2", 50, 0), row("External", "192.0.2.4", 40, 0), row("OtherExternal", "", 60, 3)];
    let topology = lab.topology("pod-scanner", |it| egress(it) == busiest).await?;
    assert_eq!((opened(&topology), status(&topology).omitted.egress), (150, 0));
    assert_eq!(status(&topology).summary.to, "192.0.2.2:443 (external), +2 more");

    let groups = vec![
        ExternalGroup { name: "examples".to_owned(), cidrs: vec!["192.0.2.0/29".to_owned()] },
        ExternalGroup { name: "partner".to_owned(), cidrs: vec!["192.0.2.2/32".to_owned()] },
        ExternalGroup { name: "elsewhere".to_owned(), cidrs: vec!["2001:db8::/32".to_owned()] },
    ];
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").external_groups = groups);
    let named = [row("ExternalGroup", "examples", 100, 0), row("ExternalGroup", "partner", 50, 0)];
    let topology = lab.topology("pod-scanner", |it| egress(it) == named).await?;
    assert_eq!(opened(&topology), 150);
    assert_eq!(status(&topology).summary.to, "examples:443 (external), +1 more");

    // A publisher that begins anew takes over what was there under other names, once.
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").external_groups.clear());
    lab.topology("pod-scanner", |it| egress(it) == busiest).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

#[tokio::test]
async fn a_publisher_that_begins_anew_counts_nobody_twice() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_external = 1);
    lab.publish_as_administrator();
    let uid = lab.pod("scanner", None).await?;
    lab.report(&uid, &[(1, 10), (2, 50), (3, 20)]).await;
    let shown = [row("External", "192.0.2.2", 50, 0), row("OtherExternal", "", 30, 2)];
    lab.topology("pod-scanner", |it| egress(it) == shown).await?;
    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 11), (2, 50), (3, 20)]).await;
    let shown = [row("External", "192.0.2.2", 50, 0), row("OtherExternal", "", 31, 2)];
    lab.topology("pod-scanner", |it| egress(it) == shown).await?;
    Ok(())
}
