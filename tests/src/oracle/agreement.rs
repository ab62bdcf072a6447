//! Waiting until the Topology objects say what happened.

use super::{Edges, differences, expected, fleet::Fleet, observed};
use crate::{Result, eventually};

/// Maximum number of differences in an error.
const SHOWN: usize = 12;

/// Waits until the objects show exactly what the fleet's programs counted, from both sides.
///
/// # Errors
/// Returns an error with the differences if they do not become equal, or if the programs contradict each other.
pub async fn exact(fleet: &Fleet, when: &str) -> Result<()> {
    shown(fleet, when, &expected::edges(fleet).await?).await
}

/// Waits until the objects show these edges and no others, from both sides.
///
/// # Errors
/// Returns an error with the differences if they do not become equal.
pub async fn shown(fleet: &Fleet, when: &str, edges: &Edges) -> Result<()> {
    eventually(&format!("{when}: the Topology objects to show exactly what happened"), async || {
        let (by_clients, by_servers) = observed::edges(&fleet.namespace).await.map_err(|error| error.to_string())?;
        let mut wrong = differences(edges, &by_clients);
        wrong.extend(differences(edges, &by_servers).into_iter().map(|line| format!("at the server, {line}")));
        summary(wrong, edges.len()).map_or(Ok(()), Err)
    })
    .await
}

/// Differences as an error's text, the first of them in words; none where there are none.
#[must_use]
pub fn summary(mut differences: Vec<String>, edges: usize) -> Option<String> {
    let number = differences.len();
    differences.truncate(SHOWN);
    (number > 0).then(|| format!("{number} differences in {edges} edges:\n{}", differences.join("\n")))
}
