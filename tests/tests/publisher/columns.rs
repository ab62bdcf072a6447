//! `kubectl get topology`, as people read it.

use scopeprobe_tests::Result;

use crate::{
    lab::{Lab, status},
    shop::{SERVER_PORT, SERVICE_PORT, container, counters, ip},
};
use topology::flow::Role;

#[tokio::test]
async fn columns_show_services_and_put_what_everyone_calls_last() -> Result<()> {
    let mut lab = Lab::new().await?;
    let owner = |name: &'static str| Some(("example.com/v1", "Shop", name));
    let web = lab.run("web-1", owner("web"), &[], "10.244.0.11").await?;
    let dns = lab.run("coredns-1", owner("coredns"), &[], "10.244.0.53").await?;
    let cart = lab.run("cart-1", owner("cart"), &[], "10.244.0.21").await?;
    lab.run("zebra-1", owner("zebra"), &[], "10.244.0.41").await?;
    let agent = lab.run("prometheus-1", owner("prometheus"), &[], "10.244.0.31").await?;
    lab.service("apples", "10.96.0.20", &[&cart]).await?;
    lab.publish_as_administrator();
    lab.call(&web, "10.96.0.20", SERVICE_PORT, &counters(5, 0)).await;
    lab.serve(&cart, &web, &counters(5, 0)).await;
    lab.call(&web, "10.244.0.53", 53, &counters(9, 0)).await;
    lab.flow(container(&dns), Role::Server, (dns.address, web.address, 53), &counters(9, 0), &[]).await;
    lab.call(&web, "10.244.0.41", SERVER_PORT, &counters(1, 2)).await;
    lab.call(&agent, "10.244.0.11", 9090, &counters(3, 0)).await;
    lab.flow(container(&web), Role::Server, (web.address, agent.address, 9090), &counters(3, 0), &[]).await;
    lab.call(&cart, "10.244.0.11", SERVER_PORT, &counters(1, 0)).await;
    lab.flow(container(&web), Role::Server, (web.address, ip("10.244.0.21"), SERVER_PORT), &counters(1, 0), &[]).await;
    lab.flush().await;
    lab.topology("shop-web", |it| status(it).totals.egress == 3 && status(it).totals.ingress == 2).await?;

    let table = lab.kubectl(&["get", "topology", "shop-web", "-n", "shop"]).await?;
    let columns = |table: &str| -> Vec<Vec<String>> {
        let split =
            |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect();
        table.lines().map(split).collect()
    };
    let short = columns(&table);
    assert_eq!(short[0], ["NAME", "FROM", "TO", "LAST-FAILED", "AGE"]);
    let [name, from, to, last_failed, _] = &short[1][..] else { panic!("{table}") };
    assert_eq!(name, "shop-web");
    assert_eq!(to, "apples:80, zebra:8080, coredns:53");
    assert_eq!(from, "cart→8080, prometheus→9090");
    assert!(last_failed.ends_with(['s', 'm']), "an age: {last_failed}");
    let wide = columns(&lab.kubectl(&["get", "topology", "shop-web", "-n", "shop", "-o", "wide"]).await?);
    let more =
        ["EGRESS", "INGRESS", "OPENED", "ACTIVE", "FAILED", "PENDING", "BYTES-SENT", "BYTES-RECEIVED", "OBSERVED"];
    assert_eq!(wide[0], ["NAME", "FROM", "TO", "LAST-FAILED", "AGE"].into_iter().chain(more).collect::<Vec<_>>());
    assert_eq!(wide[1][5..10], ["3", "2", "19", "0", "2"]);
    assert_eq!(wide[1][12], "True");
    // The server's own line shows its own port.
    let cart = columns(&lab.kubectl(&["get", "topology", "shop-cart", "-n", "shop"]).await?);
    assert_eq!(cart[1][1..3], ["web→8080", "web:8080"]);
    Ok(())
}
