//! Reads the state of the nodes' agents from a cluster or from files.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use crds::NodeProbe;
use kube::Api;

use crate::{
    files,
    source::{Access, explained, list},
};

/// Source of `NodeProbes`: a cluster, or files.
#[derive(Debug, Args)]
pub struct NodeSource {
    /// Files instead of a cluster, as `kubectl get nodeprobes -o yaml` writes them; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    access: Access,
}

impl NodeSource {
    /// Returns the state of a named node, or of all.
    ///
    /// # Errors
    /// Returns an error if they cannot be read, or if there is no such node.
    pub async fn read(&self, named: Option<&str>) -> Result<Vec<NodeProbe>> {
        let mut nodes = if self.file.is_empty() { self.cluster().await? } else { self.files()? };
        let name = |node: &NodeProbe| node.metadata.name.clone().unwrap_or_default();
        nodes.sort_by_key(name);
        if nodes.is_empty() {
            bail!("there are no NodeProbes: no ScopeProbe selects a node; see `kubectl get scopeprobes`");
        }
        let Some(named) = named else { return Ok(nodes) };
        let known: Vec<String> = nodes.iter().map(name).collect();
        nodes.retain(|node| node.metadata.name.as_deref() == Some(named));
        if nodes.is_empty() {
            const MOST: usize = 10;
            let more = known.len().checked_sub(MOST).filter(|more| *more > 0);
            let more = more.map(|more| format!(" and {more} more")).unwrap_or_default();
            let some = known.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
            bail!("no NodeProbe is named {named:?}: no ScopeProbe selects this node; there are {some}{more}");
        }
        Ok(nodes)
    }

    async fn cluster(&self) -> Result<Vec<NodeProbe>> {
        let (client, _) = self.access.client(self.access.only()?).await?;
        let nodes = list(&Api::<NodeProbe>::all(client), None).await;
        nodes.map_err(|error| explained(error, "nodeprobes.scopeprobe.io", "of the cluster"))
    }

    fn files(&self) -> Result<Vec<NodeProbe>> {
        let (_, inventory) = files::map_with_inventory(&files::contents(&self.file)?)?;
        Ok(inventory.nodes().into_iter().cloned().collect())
    }
}
