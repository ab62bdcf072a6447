//! Ways of Services to pods in the nodes' own networks. A pod is ready before kube-proxy leads to it.

use std::net::IpAddr;

use crate::{Cluster, Result, eventually};

/// Nodes with a kube-proxy.
const NODES: [&str; 2] = ["node-1", "node-2"];

impl Cluster {
    /// Waits until nftables of all nodes leads from Services to each of these addresses. Makes no connection.
    ///
    /// # Errors
    /// Returns an error if it does not, or if the cluster is not our own.
    pub async fn await_routes_to(&self, pods: &[IpAddr]) -> Result<()> {
        for node in NODES {
            eventually(&format!("Services to lead to {} pods on {node}", pods.len()), async || {
                let rules = self.script(&["on", node, "nft", "list", "ruleset"]).await;
                let rules = rules.map_err(|error| error.to_string())?;
                let lacks = |ip: &&IpAddr| !destinations(**ip).iter().any(|destination| rules.contains(destination));
                let lacking: Vec<_> = pods.iter().filter(lacks).collect();
                if lacking.is_empty() { Ok(()) } else { Err(format!("no way to {lacking:?}")) }
            })
            .await?;
        }
        Ok(())
    }
}

/// Returns how rules name a Service's only destination, and one of several.
fn destinations(ip: IpAddr) -> [String; 2] {
    let only = match ip {
        IpAddr::V4(ip) => format!("dnat to {ip}:"),
        IpAddr::V6(ip) => format!("dnat to [{ip}]:"),
    };
    [only, format!(" : {ip} . ")]
}
