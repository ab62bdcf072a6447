//! Flows as the two roles that they have in the joining: a client's is a source, a server's a sink.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{Options, ends::EndId};
use crate::{edge::EdgeCounters, ledger::FlowView};

/// Pods' addresses can become known a little later than their connections.
const NAMING_GRACE: Duration = Duration::from_secs(5);

/// Loopback addresses mean something only within one network namespace of one node.
pub(super) type Scope<'a> = Option<(&'a str, u32)>;

/// The addresses and the port that both ends of a direct conversation see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tuple<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) port: u16,
}

/// A client's flow.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) node: &'a str,
    pub(super) end: EndId,
    pub(super) tuple: Tuple<'a>,
    pub(super) counters: EdgeCounters,
    pub(super) first_seen: SystemTime,
    /// As of when its addresses are to be resolved.
    pub(super) at: SystemTime,
    pub(super) live: bool,
}

/// A server's flow.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) node: &'a str,
    pub(super) end: EndId,
    pub(super) tuple: Tuple<'a>,
    /// As the client would count.
    pub(super) counters: EdgeCounters,
    /// What no client's flow has explained yet.
    pub(super) left: EdgeCounters,
    /// A client's flow has been found, even if it does not count as much.
    pub(super) explained: bool,
    pub(super) first_seen: SystemTime,
    pub(super) at: SystemTime,
    pub(super) live: bool,
}

impl Sink<'_> {
    pub(super) fn take(&mut self, opened: u64) -> EdgeCounters {
        let taken = self.left.share(opened);
        self.left = self.left.without(&taken);
        self.explained = true;
        taken
    }
}

pub(super) fn source<'a>(flow: &FlowView<'a>, end: EndId, options: &Options) -> Source<'a> {
    let totals = flow.totals;
    Source {
        node: flow.node,
        end,
        tuple: Tuple { scope: scope(flow), client: flow.key.local, server: flow.key.remote, port: flow.key.port },
        counters: EdgeCounters {
            opened: totals.opened,
            active: totals.active,
            failed: totals.failed,
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
        },
        first_seen: flow.first_seen,
        at: resolved_at(flow, options),
        live: is_live(flow, options),
    }
}

pub(super) fn sink<'a>(flow: &FlowView<'a>, end: EndId, options: &Options) -> Sink<'a> {
    let totals = flow.totals;
    let counters = EdgeCounters {
        opened: totals.opened,
        active: totals.active,
        failed: totals.failed,
        bytes_sent: totals.bytes_received,
        bytes_received: totals.bytes_sent,
    };
    Sink {
        node: flow.node,
        end,
        tuple: Tuple { scope: scope(flow), client: flow.key.remote, server: flow.key.local, port: flow.key.port },
        counters,
        left: counters,
        explained: false,
        first_seen: flow.first_seen,
        at: resolved_at(flow, options),
        live: is_live(flow, options),
    }
}

pub(super) fn scope<'a>(flow: &FlowView<'a>) -> Scope<'a> {
    (flow.key.local.is_loopback() || flow.key.remote.is_loopback()).then_some((flow.node, flow.key.netns))
}

pub(super) fn resolved_at(flow: &FlowView<'_>, options: &Options) -> SystemTime {
    if flow.totals.active > 0 { options.now } else { flow.changed + NAMING_GRACE }
}

pub(super) fn is_live(flow: &FlowView<'_>, options: &Options) -> bool {
    flow.totals.active > 0 || options.now.duration_since(flow.changed).unwrap_or_default() < options.retention
}
