//! The kernel's own account of connections (`/proc/net/snmp`), which knows nothing of ScopeProbe: a second oracle, for
//! what no program of ours counts.

use std::collections::BTreeMap;

use crate::{Cluster, Error, Result, place};

/// Connections attempted and accepted in a node's network namespaces since their beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Of pods that have a namespace of their own, by UID.
    pub pods: BTreeMap<String, u64>,
    /// Of the node itself and its host-network pods.
    pub node: u64,
    /// UDP datagrams that were sent or received anywhere on the node: at least as many as conversations.
    pub datagrams: u64,
    /// Attempts that are under way: they are not counted yet.
    pub pending: u64,
}

impl KernelCounts {
    /// All connections of the node.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.node + self.pods.values().sum::<u64>()
    }
}

impl Cluster {
    /// Asks a node's kernel. Each connection between two namespaces of the node counts at both ends.
    ///
    /// # Errors
    /// Returns an error if the node is unreachable, or the cluster is not our own.
    pub async fn kernel_counts(&self, node: &str) -> Result<KernelCounts> {
        let script = place::repository().join("tests/cluster/count-connections.sh");
        parse(&self.script(&["on", node, &script.to_string_lossy()]).await?)
    }
}

fn parse(text: &str) -> Result<KernelCounts> {
    let mut counts = KernelCounts::default();
    for line in text.lines() {
        let unreadable = || Error::Unexpected(format!("{line:?} is no line of a node's counts"));
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[pod, active, passive, datagrams, pending] = words.as_slice() else { return Err(unreadable()) };
        let number = |word: &str| word.parse::<u64>().map_err(|_| unreadable());
        let both = number(active)? + number(passive)?;
        counts.datagrams += number(datagrams)?;
        counts.pending += number(pending)?;
        match pod {
            "-" => counts.node += both,
            uid => *counts.pods.entry(uid.to_owned()).or_default() += both,
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_add_up_by_whose_they_are() {
        let counts = parse("- 5 7 0 1\nabc 1 0 4 0\nabc 2 3 0 2\n- 1 1 5 0\n").unwrap();
        assert_eq!(
            (counts.node, counts.pods["abc"], counts.total(), counts.datagrams, counts.pending),
            (14, 6, 20, 9, 3)
        );
        assert!(parse("- 5 7 0").is_err());
        assert!(parse("- five 7 0 0").is_err());
    }
}
