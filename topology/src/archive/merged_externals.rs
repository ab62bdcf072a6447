//! Edges of the outside that are called otherwise now than they were: by a group's name, or by none of their own.

use std::sync::Arc;

use crate::{
    directory::Directory,
    edge::{Edge, EdgeKey, Peer},
    graph::Outside,
};

/// Edges in the order of their keys.
pub(super) struct Parts<'a> {
    edges: &'a mut [Arc<Edge>],
}

impl<'a> Parts<'a> {
    pub(super) fn of(edges: &'a mut [Arc<Edge>]) -> Self {
        Self { edges }
    }

    /// The edge of this very key.
    pub(super) fn exactly(&mut self, key: &EdgeKey) -> Option<&mut Arc<Edge>> {
        let at = self.place(key)?;
        self.edges.get_mut(at)
    }

    fn place(&self, key: &EdgeKey) -> Option<usize> {
        self.edges.binary_search_by(|edge| edge.key.cmp(key)).ok()
    }

    /// The edge of this key, or the one that it is a part of now.
    pub(super) fn edge(&mut self, key: &EdgeKey, outside: &Outside, directory: &Directory) -> Option<&mut Arc<Edge>> {
        if let Some(at) = self.place(key) {
            return self.edges.get_mut(at);
        }
        let whole = in_group(key, directory).or_else(|| outside.shared(key))?;
        // The shared edges may be one for all ports.
        let at = self.place(&whole).or_else(|| self.place(&EdgeKey { port: None, service: None, ..whole }))?;
        self.edges.get_mut(at)
    }
}

/// The same edge with the name of the group that its address or DNS name is in.
fn in_group(key: &EdgeKey, directory: &Directory) -> Option<EdgeKey> {
    let groups = directory.external_groups();
    let named = |peer: &Peer| {
        let group = match peer {
            Peer::External { ip } => groups.of(*ip),
            Peer::ExternalName { name } => groups.of_dns_name(name),
            _ => None,
        };
        group.map(|name| Peer::ExternalGroup { name: name.to_owned() })
    };
    match (named(&key.client), named(&key.server)) {
        (Some(client), _) => Some(EdgeKey { client, ..key.clone() }),
        (None, Some(server)) => Some(EdgeKey { server, ..key.clone() }),
        (None, None) => None,
    }
}

/// Returns whether the edge stands for all addresses without an edge of their own.
pub(super) fn is_shared(key: &EdgeKey) -> bool {
    key.client == Peer::OtherExternal || key.server == Peer::OtherExternal
}

/// Returns whether the peer's group still exists. Members of a deleted group have other names now.
pub(super) fn is_named_yet(key: &EdgeKey, directory: &Directory) -> bool {
    let is_there = |peer: &Peer| match peer {
        Peer::ExternalGroup { name } => directory.external_groups().has(name),
        _ => true,
    };
    is_there(&key.client) && is_there(&key.server)
}
