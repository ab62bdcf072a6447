//! Comparing what is shown at one time with what is shown at another.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use scopeprobe_tests::{
    Result, eventually,
    oracle::{EdgeCounts, Edges, agreement, differences, expected, fleet::Fleet, observed},
};
use tokio::time::sleep;

/// Pause between two reads.
const PAUSE: Duration = Duration::from_millis(250);
/// Connections that one end alone has counted wait for the other end's report, for 2 s and the interval of counters. What
/// has been the same for several times as long is complete.
const QUIET: Duration = Duration::from_secs(10);

/// Looks at the objects again and again while `action` goes on: no edge vanishes, and no count becomes less.
///
/// # Errors
/// The action's, and where the objects cannot be read.
pub async fn never_backwards<T>(fleet: &Fleet, action: impl Future<Output = Result<T>>) -> Result<T> {
    let mut action = pin!(action);
    let mut before = observed::edges(&fleet.namespace).await?;
    loop {
        let done = tokio::select! {
            done = &mut action => Some(done?),
            () = sleep(PAUSE) => None,
        };
        let now = observed::edges(&fleet.namespace).await?;
        for (before, now) in [(&before.0, &now.0), (&before.1, &now.1)] {
            let lost = what_went_back(before, now);
            assert!(lost.is_empty(), "{}", lost.join("\n"));
        }
        if let Some(done) = done {
            return Ok(done);
        }
        before = now;
    }
}

fn what_went_back(before: &Edges, now: &Edges) -> Vec<String> {
    let back = before.iter().filter_map(|(name, before)| {
        let Some(now) = now.get(name) else { return Some(format!("{name:?} has vanished with {before:?}")) };
        (!at_most(before, now)).then(|| format!("{name:?}: first {before:?}\n    then {now:?}"))
    });
    back.collect()
}

/// Returns whether no count of one edge exceeds the other's. Servers' parts are an estimate if a client's agent missed
/// connections, and may be corrected.
pub fn at_most(counts: &EdgeCounts, most: &EdgeCounts) -> bool {
    counts.opened <= most.opened
        && counts.failed <= most.failed
        && counts.sent <= most.sent
        && counts.received <= most.received
        && counts.clients.iter().all(|(client, opened)| opened <= most.clients.get(client).unwrap_or(&0))
}

/// Real and shown counts at a moment without traffic, when everything has been reported.
pub struct Moment {
    pub happened: Edges,
    pub shown: Edges,
}

impl Moment {
    /// Call after [`super::load::make_marks`].
    ///
    /// # Errors
    /// Returns an error if the marks are not shown, or the counts do not come to rest.
    pub async fn now(fleet: &Fleet) -> Result<Self> {
        let happened = expected::edges(fleet).await?;
        let mut last = (Edges::new(), Instant::now());
        let shown = eventually("all refused attempts to be shown, and nothing more", async || {
            let (shown, _) = observed::edges(&fleet.namespace).await.map_err(|error| error.to_string())?;
            let unmarked: Vec<_> = happened
                .iter()
                .filter(|(name, edge)| shown.get(name).map_or(0, |shown| shown.failed) != edge.failed)
                .map(|(name, edge)| {
                    format!("{name:?}: {} of {}", shown.get(name).map_or(0, |it| it.failed), edge.failed)
                })
                .collect();
            if !unmarked.is_empty() {
                return Err(unmarked.join("\n"));
            }
            if shown != last.0 {
                last = (shown, Instant::now());
            }
            if last.1.elapsed() >= QUIET { Ok(last.0.clone()) } else { Err("counts still grow".to_owned()) }
        })
        .await?;
        Ok(Self { happened, shown })
    }

    /// Waits until what is shown has grown since by exactly what has happened since.
    ///
    /// # Errors
    /// Returns an error if it does not.
    pub async fn grown_exactly(&self, fleet: &Fleet, when: &str) -> Result<()> {
        let happened = expected::edges(fleet).await?;
        let mut wanted = self.shown.clone();
        for (name, now) in &happened {
            let nothing = EdgeCounts::default();
            let before = self.happened.get(name).unwrap_or(&nothing);
            let edge = wanted.entry(name.clone()).or_default();
            edge.opened += now.opened - before.opened;
            edge.failed += now.failed - before.failed;
            edge.sent += now.sent - before.sent;
            edge.received += now.received - before.received;
            edge.active = now.active;
            for (client, opened) in &now.clients {
                *edge.clients.entry(client.clone()).or_default() += opened - before.clients.get(client).unwrap_or(&0);
            }
        }
        let wanted = without_servers(&wanted);
        eventually(&format!("{when}: what is shown to grow by exactly what happened"), async || {
            let (shown, _) = observed::edges(&fleet.namespace).await.map_err(|error| error.to_string())?;
            agreement::summary(differences(&wanted, &without_servers(&shown)), wanted.len()).map_or(Ok(()), Err)
        })
        .await
    }
}

fn without_servers(edges: &Edges) -> Edges {
    let mut edges = edges.clone();
    for edge in edges.values_mut() {
        edge.servers.clear();
    }
    edges
}
