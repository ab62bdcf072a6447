//! Packets that a network namespace drops on arrival, as a firewall does.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{Cluster, Result, eventually, place};

/// Table of the rules.
const TABLE: &str = "dropped_packets";

/// Rules that drop packets. Gone when dropped.
pub struct DroppedPackets {
    namespace: String,
}

impl DroppedPackets {
    /// Drops all TCP packets to this port that arrive at a named network namespace, forwarded ones included.
    pub(crate) async fn to(namespace: String, port: u16) -> Result<Self> {
        let rules = format!(
            "add table inet {TABLE}; add chain inet {TABLE} arriving {{ type filter hook prerouting priority -300; }}; \
             add rule inet {TABLE} arriving tcp dport {port} counter drop"
        );
        place::run(Path::new("ip"), ["netns", "exec", &namespace, "nft", &rules], &[]).await?;
        Ok(Self { namespace })
    }

    /// Waits until so many packets have been dropped.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn reached(&self, packets: u64) -> Result<()> {
        let list = ["netns", "exec", &self.namespace, "nft", "list", "table", "inet", TABLE];
        eventually(&format!("{packets} packets to be dropped"), async || {
            let rules = place::run(Path::new("ip"), list, &[]).await.map_err(|error| error.to_string())?;
            let number =
                rules.split_once("counter packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
            if number.is_some_and(|number: u64| number >= packets) { Ok(()) } else { Err(rules) }
        })
        .await
    }
}

impl Cluster {
    /// Drops all TCP packets to this port that arrive at a node, for the node's pods as well.
    ///
    /// # Errors
    /// For a cluster that is not our own. Returns an error without nftables, or without the right to change them.
    pub async fn drop_packets_to(&self, node: &str, port: u16) -> Result<DroppedPackets> {
        DroppedPackets::to(format!("{}-{node}", self.own_name()?), port).await
    }
}

impl Drop for DroppedPackets {
    fn drop(&mut self) {
        let command = ["netns", "exec", &self.namespace, "nft", "delete", "table", "inet", TABLE];
        let _ = Command::new("ip").args(command).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
