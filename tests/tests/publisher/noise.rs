//! Counters that grow by little are not worth a write until they rest; then they are exact.

use std::time::{Duration, Instant};

use scopeprobe_tests::{Result, eventually};

use crate::lab::{Lab, opened};

/// Counters that rest for as long are written.
const INTERVAL: Duration = Duration::from_secs(2);

#[tokio::test]
async fn less_than_a_percent_waits_until_nothing_changes() -> Result<()> {
    let mut lab = Lab::new().await?;
    lab.settings.send_modify(|settings| {
        settings.as_mut().expect("it is set").counter_interval = INTERVAL;
    });
    lab.publish_as_administrator();
    let uid = lab.pod("steady", None).await?;
    lab.report(&uid, &[(1, 10_000)]).await;
    lab.topology("pod-steady", |it| opened(it) == 10_000).await?;
    let before = lab.writes("done");
    // It never rests: each report comes before the last one's time is over. All together they are less than a percent.
    let (mut reported, mut rests) = (Instant::now(), 0);
    for count in 1..=60 {
        lab.report(&uid, &[(1, 10_000 + count)]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        // On a slow machine it may rest after all.
        rests += u64::from(reported.elapsed() > INTERVAL / 2);
        reported = Instant::now();
    }
    // Of three intervals with counters that changed all the time, none was written.
    let meanwhile = lab.writes("done") - before;
    assert!(meanwhile <= rests, "{meanwhile} writes of noise, {rests} rests");
    let topology = lab.topology("pod-steady", |it| opened(it) == 10_060).await?;
    drop(topology);
    // A percent is news.
    lab.report(&uid, &[(1, 10_200)]).await;
    lab.topology("pod-steady", |it| opened(it) == 10_200).await?;
    eventually("the last write to be counted", async || {
        let writes = lab.writes("done") - before;
        if writes == meanwhile + 2 { Ok(()) } else { Err(format!("{writes} writes")) }
    })
    .await
}
