//! Metrics of edges, compared with what agents reported. The lab has two series and one for all others.

use std::collections::BTreeMap;

use scopeprobe_tests::{Result, eventually};

use crate::lab::{Lab, opened};

/// Value of one metric in each series, by its destination.
fn values(page: &str, metric: &str) -> BTreeMap<String, f64> {
    let samples = page.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} "));
    samples
        .map(|(labels, value)| {
            let is_named = labels.contains("source_kind=\"Pod\",source_workload=\"web\"");
            let name = labels.split("destination_workload=\"").nth(1).and_then(|rest| rest.split('"').next());
            let name = name.filter(|_| is_named).unwrap_or(labels).to_owned();
            (name, value.parse().expect("a number"))
        })
        .collect()
}

async fn wait_for(lab: &Lab, expected: [(&str, f64); 3]) -> Result<BTreeMap<String, f64>> {
    let other = "source_kind=\"other\",destination_kind=\"other\"";
    let name = |name: &str| if name == "other" { other.to_owned() } else { format!("192.0.2.{name}") };
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(peer, value)| (name(peer), value)).collect();
    eventually(&format!("series to be {expected:?}"), async || {
        let page = lab.metrics.encode().expect("it is text");
        let is_right = values(&page, "scopeprobe_connections_opened_total") == expected;
        if is_right { Ok(values(&page, "scopeprobe_connections_opened_created")) } else { Err(page) }
    })
    .await
}

#[tokio::test]
async fn series_count_connections_since_their_creation() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.publish_as_administrator();
    let uid = lab.pod("web", None).await?;
    lab.report(&uid, &[(1, 3), (2, 2), (3, 1)]).await;
    lab.topology("pod-web", |it| opened(it) == 6).await?;
    let before = wait_for(&lab, [("1", 0.0), ("2", 0.0), ("other", 0.0)]).await?;

    lab.report(&uid, &[(1, 5), (2, 40), (3, 2)]).await;
    let after = wait_for(&lab, [("1", 2.0), ("2", 38.0), ("other", 1.0)]).await?;
    assert_eq!(before, after);

    // The third destination becomes busier than the first one: its series begins with what is new.
    lab.report(&uid, &[(1, 6), (2, 40), (3, 20)]).await;
    let changed = wait_for(&lab, [("2", 38.0), ("3", 18.0), ("other", 2.0)]).await?;
    assert!(changed["192.0.2.3"] > before["192.0.2.2"]);
    assert!(lab.metrics.encode().expect("it is text").contains("\nscopeprobe_connections_other_edges 1\n"));
    lab.topology("pod-web", |it| opened(it) == 66).await?;

    lab.restart().await;
    lab.publish_as_administrator();
    lab.report(&uid, &[(1, 6), (2, 41), (3, 20)]).await;
    let restarted = wait_for(&lab, [("2", 0.0), ("3", 0.0), ("other", 0.0)]).await?;
    assert!(restarted.values().all(|created| *created > changed["192.0.2.3"]), "{restarted:?} {changed:?}");
    Ok(())
}
