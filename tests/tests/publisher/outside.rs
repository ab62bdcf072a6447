//! Peers outside of the cluster, as objects.

use crds::{ExternalGroup, Topology, TopologyEdge};
use operator::publish_settings::external_groups;
use scopeprobe_tests::{Result, oracle::observed};

use topology::{external::ExternalGroups, flow::Role};

use crate::{
    lab::{Lab, opened, status},
    shop::{container, counters, ip},
};

/// Type, name or address, connections, addresses of each outgoing edge.
fn egress(topology: &Topology) -> Vec<(String, String, u64, u64)> {
    let of = |edge: &TopologyEdge| {
        let (type_, name) = observed::peer_name(&edge.peer);
        (type_, name, edge.opened, edge.addresses)
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
    let busiest = [row("IP", "192.0.2.2", 50, 0), row("IP", "192.0.2.4", 40, 0), row("OtherExternal", "", 60, 3)];
    let topology = lab.topology("pod-scanner", |it| egress(it) == busiest).await?;
    assert_eq!((opened(&topology), status(&topology).omitted.egress), (150, 0));
    assert_eq!(status(&topology).summary.to, "192.0.2.2:443 (external), +2 more");

    let groups = external_groups(&[
        ExternalGroup { name: "examples".to_owned(), cidrs: vec!["192.0.2.0/29".to_owned()], dns_names: Vec::new() },
        ExternalGroup { name: "partner".to_owned(), cidrs: vec!["192.0.2.2/32".to_owned()], dns_names: Vec::new() },
        ExternalGroup { name: "elsewhere".to_owned(), cidrs: vec!["2001:db8::/32".to_owned()], dns_names: Vec::new() },
    ])
    .expect("they are ranges");
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").external_groups = groups);
    let named = [row("ExternalGroup", "examples", 100, 0), row("ExternalGroup", "partner", 50, 0)];
    let topology = lab.topology("pod-scanner", |it| egress(it) == named).await?;
    assert_eq!(opened(&topology), 150);
    assert_eq!(status(&topology).summary.to, "examples:443 (external), +1 more");

    // A publisher that begins anew takes over what was there under other names, once.
    lab.settings
        .send_modify(|settings| settings.as_mut().expect("it is set").external_groups = ExternalGroups::default());
    lab.topology("pod-scanner", |it| egress(it) == busiest).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}

/// A range of addresses precedes a name, an exact name a pattern, and a longer pattern a shorter one.
#[tokio::test]
async fn dns_names_have_groups_as_addresses_have() -> Result<()> {
    let mut lab = Lab::new().await?;
    let group = |name: &str, dns_names: &[&str], cidrs: &[&str]| ExternalGroup {
        name: name.to_owned(),
        cidrs: cidrs.iter().map(|cidr| (*cidr).to_owned()).collect(),
        dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
    };
    lab.set(|settings| {
        settings.external_groups = external_groups(&[
            group("cloud", &["*.example.com"], &[]),
            group("storage", &["*.s3.example.com"], &[]),
            group("login", &["login.s3.example.com"], &[]),
            group("office", &[], &["192.0.2.5/32"]),
        ])
        .expect("they are ranges");
    });
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    lab.publish_as_administrator();
    let calls: [(u8, u64, &[&str]); 7] = [
        (1, 1, &["api.example.com"]),
        (2, 2, &["a.b.s3.example.com"]),
        (3, 4, &["login.s3.example.com"]),
        (4, 8, &["example.org"]),
        (5, 16, &["office.example.com"]),
        // Two names of one group, and two of different groups.
        (6, 32, &["one.example.com", "two.example.com"]),
        (7, 64, &["one.example.com", "one.s3.example.com"]),
    ];
    for (peer, opened, names) in calls {
        let to = (web.address, ip(&format!("192.0.2.{peer}")), 443);
        lab.flow(container(&web), Role::Client, to, &counters(opened, 0), names).await;
    }
    lab.flush().await;
    let expected = [
        row("ExternalGroup", "cloud", 33, 0),
        row("ExternalGroup", "login", 4, 0),
        row("ExternalGroup", "office", 16, 0),
        row("ExternalGroup", "storage", 2, 0),
        row("DNSName", "example.org", 8, 0),
        row("IP", "192.0.2.7", 64, 0),
    ];
    let sorted = |it: &Topology| {
        let mut egress = egress(it);
        egress.sort();
        egress
    };
    let mut wanted = expected.to_vec();
    wanted.sort();
    lab.topology("pod-web", |it| sorted(it) == wanted).await?;
    // Without groups, the names remain.
    lab.set(|settings| settings.external_groups = ExternalGroups::default());
    let plain = lab.topology("pod-web", |it| egress(it).contains(&row("DNSName", "api.example.com", 1, 0))).await?;
    assert_eq!(opened(&plain), 127);
    Ok(())
}

/// An agent with a full table counts external addresses together: they are other external peers of the pod's workload.
#[tokio::test]
async fn folded_rows_are_other_external_peers_of_their_workload() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_external = 1);
    let web = lab.run("web", None, &[], "10.244.0.2").await?;
    lab.publish_as_administrator();
    let call = async |lab: &Lab, role, remote: &str, port, connections| {
        let to = (web.address, ip(remote), port);
        lab.flow(container(&web), role, to, &counters(connections, 0), &[]).await;
    };
    call(&lab, Role::Server, "0.0.0.0", 443, 1000).await;
    call(&lab, Role::Server, "198.51.100.1", 443, 7).await;
    call(&lab, Role::Client, "0.0.0.0", 5432, 50).await;
    lab.flush().await;
    let ingress = |topology: &Topology| {
        let of = |edge: &TopologyEdge| (observed::peer_name(&edge.peer).0, edge.opened, edge.addresses);
        let mut edges: Vec<_> = status(topology).ingress.iter().map(of).collect();
        edges.sort();
        edges
    };
    let called = [row("OtherExternal", "", 50, 1)];
    let both = [("IP".to_owned(), 7, 0), ("OtherExternal".to_owned(), 1000, 1)];
    lab.topology("pod-web", |it| egress(it) == called && ingress(it) == both).await?;
    // An address without an edge of its own shares that of the folded row.
    call(&lab, Role::Server, "198.51.100.2", 443, 3).await;
    lab.flush().await;
    let shared = [("IP".to_owned(), 7, 0), ("OtherExternal".to_owned(), 1003, 1)];
    lab.topology("pod-web", |it| egress(it) == called && ingress(it) == shared).await?;
    lab.restart().await;
    lab.publish_as_administrator();
    call(&lab, Role::Server, "0.0.0.0", 443, 1010).await;
    call(&lab, Role::Server, "198.51.100.1", 443, 7).await;
    call(&lab, Role::Server, "198.51.100.2", 443, 3).await;
    call(&lab, Role::Client, "0.0.0.0", 5432, 50).await;
    lab.flush().await;
    let grown = [("IP".to_owned(), 7, 0), ("OtherExternal".to_owned(), 1013, 1)];
    lab.topology("pod-web", |it| egress(it) == called && ingress(it) == grown).await?;
    Ok(())
}

#[tokio::test]
async fn restarted_publisher_counts_no_external_peer_twice() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.settings.send_modify(|settings| settings.as_mut().expect("it is set").max_external = 1);
    lab.publish_as_administrator();
    let uid = lab.pod("scanner", None).await?;
    lab.report(&uid, &[(1, 10), (2, 50), (3, 20)]).await;
    let shown = [row("IP", "192.0.2.2", 50, 0), row("OtherExternal", "", 30, 2)];
    lab.topology("pod-scanner", |it| egress(it) == shown).await?;
    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 11), (2, 50), (3, 20)]).await;
    let shown = [row("IP", "192.0.2.2", 50, 0), row("OtherExternal", "", 31, 2)];
    lab.topology("pod-scanner", |it| egress(it) == shown).await?;
    Ok(())
}
