//! Limit on the size of an object: 256 KiB, with the longest names and the most edges that the API allows.

use scopeprobe_tests::{Error, Result};
use topology::flow::Role;

use crate::{
    has_condition,
    lab::{Lab, status},
    shop::{container, counters, ip},
};

const LIMIT: usize = 256 * 1024;
const EDGES: u16 = 500;
const PODS: usize = 10;

/// Returns a name of 253 characters.
fn long(prefix: &str) -> String {
    let parts = [prefix, &"a".repeat(62 - prefix.len()), &"b".repeat(63), &"c".repeat(63), &"d".repeat(62)];
    let name = format!("{}{}.{}.{}.{}", parts[0], parts[1], parts[2], parts[3], parts[4]);
    assert_eq!(name.len(), 253);
    name
}

#[tokio::test]
async fn object_with_the_longest_names_and_the_most_edges_fits() -> Result<()> {
    let mut lab = Lab::new().await?;
    let owner = long("owner");
    lab.set(|settings| {
        (settings.max_edges, settings.max_pods, settings.max_external) = (EDGES.into(), PODS, EDGES.into());
    });
    let mut pods = Vec::new();
    for number in 0..PODS {
        let owner = Some(("example.com/v1", "Shop", owner.as_str()));
        pods.push(lab.run(&long(&format!("pod-{number}-")), owner, &[], &format!("10.244.0.{}", number + 1)).await?);
    }
    lab.publish_as_administrator();
    for number in 0..EDGES {
        let [high, low] = number.to_be_bytes();
        let peer = ip(&format!("198.18.{high}.{low}"));
        let name = long(&format!("host-{number}-"));
        // The busiest one comes last.
        let opened = counters(1 << (number / 16), 0);
        for pod in &pods {
            lab.flow(container(pod), Role::Client, (pod.address, peer, 443), &opened, &[&name]).await;
            lab.flow(container(pod), Role::Server, (pod.address, peer, 8080), &opened, &[]).await;
        }
    }
    lab.flush().await;
    let name = format!("shop-{owner}");
    let cut = lab.only_name_that_begins_with(&name[..100]).await?;
    let topology =
        lab.topology(&cut, |it| has_condition(it, "Truncated", "True") && status(it).totals.egress == 500).await?;
    let said = status(&topology);

    let raw = lab.raw().get(&cut).await.map_err(Error::api("read the Topology"))?;
    let bytes = serde_json::to_vec(&raw).expect("it was JSON").len();
    assert!(bytes <= LIMIT, "{bytes} bytes");
    assert!(bytes > LIMIT / 2, "{bytes} bytes: the limit is used");
    let listed = (said.egress.len() as u64, said.ingress.len() as u64);
    assert!(listed.0 > 10 && listed.1 > 10, "{listed:?}");
    assert_eq!((listed.0 + said.omitted.egress, listed.1 + said.omitted.ingress), (500, 500));
    assert_eq!((said.totals.egress, said.totals.ingress), (500, 500));
    let sum: u64 = (0..EDGES).map(|number| PODS as u64 * (1 << (number / 16))).sum();
    assert_eq!(said.totals.opened, 2 * sum, "sums are of all edges");
    let least = said.egress.iter().map(|edge| edge.opened).min().unwrap_or_default();
    let busier = (0..EDGES).filter(|number| PODS as u64 * (1 << (number / 16)) > least).count();
    assert!(busier as u64 <= listed.0, "{busier} are busier than the least of {} that are listed", listed.0);
    let condition = said.conditions.iter().find(|condition| condition.type_ == "Truncated").expect("it is there");
    assert_eq!(condition.reason, "MaxBytes");
    assert!(condition.message.contains("at most 256 KiB"), "{}", condition.message);

    // Without pods, more edges fit.
    lab.set(|settings| settings.max_pods = 0);
    lab.topology(&cut, |it| status(it).egress.len() as u64 > listed.0).await?;
    assert_eq!(lab.writes("failed"), 0);
    Ok(())
}
