//! Flows as the two roles that they have in the joining: a client's is a client flow, a server's a server flow.

use std::{
    net::IpAddr,
    rc::Rc,
    time::{Duration, SystemTime},
};

use super::{
    Options,
    address::{Called, Scope},
    key::Key,
    names::EndpointId,
    placed_legs::{FlowId, PlacedLeg},
};
use crate::{
    count,
    directory::Directory,
    edge::{EdgeCounters, LastSeen, Side, Times},
    flow::{FlowTotals, Methods, Protocol, Role},
    history::{Counted, Part},
    ledger::{FlowView, is_silent},
    nat_peer::NatPeers,
    rtt::RttHistogram,
};

/// The two ends of a conversation see it at the same time, but for what clocks and ways differ.
pub(super) const INEXACT: Duration = Duration::from_millis(500);

/// Pods' addresses can become known a little later than their connections.
const NAMING_GRACE: Duration = Duration::from_secs(5);

/// The addresses, the port and its protocol that both ends of a direct conversation see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tuple<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl<'a> Tuple<'a> {
    /// Returns whether both ends have one address, or are on loopback.
    pub(super) fn is_inner(&self) -> bool {
        self.scope.is_loopback() || self.client == self.server
    }

    /// Returns the address and port that the client called.
    pub(super) fn called(&self) -> Called<'a> {
        Called { scope: self.scope, ip: self.server, port: self.port, protocol: self.protocol }
    }
}

/// Time range of an event. For a flow: from its first connection to its last change, or to the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Span {
    fn of(flow: &FlowView<'_>, options: &Options) -> Self {
        Self { from: flow.first_seen, until: known_until(flow, options).max(flow.first_seen) }
    }

    /// Both, and what is between them.
    pub(super) fn with(&self, other: &Self) -> Self {
        Self { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// The time between the two; none where they overlap.
    pub(super) fn gap(&self, other: &Self) -> Duration {
        let after = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
        after(self.from, other.until).max(after(other.from, self.until))
    }
}

/// The newest connections of a flow: the report of their other end may still be on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fresh {
    pub(super) opened: u64,
    /// The oldest of them happened, or were reported, then.
    pub(super) since: Option<SystemTime>,
}

impl Fresh {
    /// Returns what of a flow was opened after `settled`. If the flow was not known by then, nothing is expected of the
    /// other end.
    pub(super) fn of(opened: u64, reported: SystemTime, parts: &[Part], settled: SystemTime) -> Self {
        if reported > settled {
            return Self { opened, since: Some(reported) };
        }
        Self::of_parts(parts, settled)
    }

    /// Returns what of a flow was opened after `settled`.
    pub(super) fn of_parts(parts: &[Part], settled: SystemTime) -> Self {
        let mut fresh = Self::default();
        for part in parts.iter().filter(|part| part.counted.opened > 0 && part.until > settled) {
            fresh.opened = count::add(fresh.opened, part.counted.opened);
            fresh.since = Some(fresh.since.map_or(part.until, |since| since.min(part.until)));
        }
        fresh
    }
}

/// TCP measurements at one end, and their times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) knows_retransmits: bool,
    pub(super) rtt: RttHistogram,
    pub(super) times: Times,
}

impl Measured {
    fn of(flow: &FlowView<'_>, totals: &FlowTotals, options: &Options) -> Self {
        let times =
            Times { first_seen: flow.first_seen, last_seen: last_seen(flow, options), last_failed: flow.last_failed };
        Self { knows_retransmits: totals.retransmits.is_some(), rtt: totals.rtt, times }
    }

    /// Measurements of the connections that were opened within a time, of which some `are_open` now or none.
    pub(super) fn within(&self, span: Span, are_open: bool) -> Self {
        let Times { first_seen, last_seen, last_failed } = self.times;
        let times = Times {
            first_seen: first_seen.max(span.from),
            last_seen: if are_open { last_seen } else { last_seen.min(LastSeen::At(span.until)) },
            last_failed: last_failed.map(|failed| failed.min(span.until)),
        };
        Self { times, ..*self }
    }
}

/// A client's flow.
#[derive(Debug)]
pub(super) struct ClientFlow<'a> {
    pub(super) node: &'a str,
    pub(super) id: FlowId,
    /// Inode number of its network namespace.
    pub(super) netns: u32,
    pub(super) cgroup_id: u64,
    pub(super) end: EndpointId,
    pub(super) tuple: Tuple<'a>,
    /// DNS names that led to the server's address.
    pub(super) names: &'a [String],
    pub(super) counters: EdgeCounters,
    pub(super) first_seen: SystemTime,
    pub(super) fresh: Fresh,
    pub(super) span: Span,
    /// Number of its attempts that were pending and are not any more.
    pub(super) pending_ended: u64,
    /// Times at which its connections were opened.
    pub(super) parts: &'a [Part],
    /// As of when its addresses are to be resolved.
    pub(super) at: SystemTime,
    pub(super) live: bool,
    pub(super) methods: Methods,
    pub(super) measured: Measured,
    pub(super) nat_peers: &'a NatPeers,
    /// Transparent proxy between its ends, and the end whose network has it.
    pub(super) via: Option<(Side, EndpointId)>,
    /// Record of its connections through proxies.
    pub(super) leg: PlacedLeg,
    /// True if it leads to a server in its own network, from what may be a proxy in front of it.
    pub(super) is_relayed: bool,
}

/// A client's flow that is the other end of a server's: who it is, on which edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Explanation {
    pub(super) key: Key,
    pub(super) client: EndpointId,
    /// True if the client's agent scans at intervals: it may never report the server's additional connections.
    pub(super) sampled: bool,
    /// The server has seen another address than the client's: what it has counted beyond may be others', too.
    pub(super) translated: bool,
    /// So many of the connections that the server has counted.
    pub(super) opened: u64,
}

/// Times of a client's flow that explains a server's.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExplainedAt<'a> {
    /// Number of the server's connections that are the client's.
    pub(super) opened: u64,
    /// Number of connections that the client opened before these times.
    pub(super) older: u64,
    /// Times at which the client opened connections.
    pub(super) parts: &'a [Part],
    /// Time by which the two ends' times of one event may differ.
    pub(super) inexact: Duration,
}

/// A server's flow.
#[derive(Clone, Debug)]
pub(super) struct ServerFlow<'a> {
    pub(super) node: &'a str,
    pub(super) id: FlowId,
    /// Inode number of its network namespace.
    pub(super) netns: u32,
    pub(super) end: EndpointId,
    pub(super) tuple: Tuple<'a>,
    /// Port at which the server listens: another than the tuple's if a proxy accepts its connections.
    pub(super) port: u16,
    /// Ports of the servers behind the proxy that accepts its connections, if there are several.
    pub(super) ports_behind: Option<Rc<[u16]>>,
    /// As the client would count.
    pub(super) counters: EdgeCounters,
    /// Connections among these that its agent no longer reports.
    pub(super) forgotten: u64,
    /// Counters that no client flow explains yet.
    pub(super) left: EdgeCounters,
    /// Payload, sent and received, of which the client's report may still be due.
    pub(super) fresh_bytes: [u64; 2],
    pub(super) changed: SystemTime,
    /// Counts that were taken, with their owners, if known.
    pub(super) taken: Vec<(Option<EndpointId>, Counted)>,
    /// Number of client flows that may lead here, where it matters.
    pub(super) ways: usize,
    /// True if bytes of connections that were taken are their share in the bytes of all: what is left is an estimate.
    pub(super) has_shared_bytes: bool,
    /// A client's flow has been found, even if it does not count as much.
    pub(super) explained: bool,
    /// Those that were, where it is known who they are.
    pub(super) explanations: Vec<Explanation>,
    /// Of each of these, how many connections are its own, and when its client opened connections.
    pub(super) explained_at: Vec<ExplainedAt<'a>>,
    pub(super) first_seen: SystemTime,
    pub(super) fresh: Fresh,
    pub(super) span: Span,
    /// Times at which its connections were opened, as its agent counts.
    pub(super) parts: &'a [Part],
    /// Time up to which they are on edges; none is left out without it.
    pub(super) shown_until: Option<SystemTime>,
    pub(super) live: bool,
    pub(super) methods: Methods,
    pub(super) measured: Measured,
    pub(super) nat_peers: &'a NatPeers,
    /// Transparent proxy through which its connections came.
    pub(super) via: Option<EndpointId>,
    /// Record of its connections through proxies.
    pub(super) leg: PlacedLeg,
}

impl<'a> ServerFlow<'a> {
    /// A client's flow on this edge is the other end of so many connections.
    pub(super) fn explain(&mut self, client_flow: &ClientFlow<'a>, key: Key, opened: u64) {
        let inexact = if client_flow.node == self.node { Duration::ZERO } else { INEXACT };
        let in_parts = client_flow.parts.iter().fold(0, |sum, part| count::add(sum, part.counted.opened));
        let older = client_flow.counters.opened.saturating_sub(in_parts);
        self.explained_at.push(ExplainedAt { opened, older, parts: client_flow.parts, inexact });
        self.explanations.push(Explanation {
            key,
            client: client_flow.end,
            sampled: client_flow.methods.is_sampled(),
            translated: client_flow.tuple.client != self.tuple.client,
            opened,
        });
    }

    /// Of several clients' flows that are the other end, the last one that counts anything.
    pub(super) fn explanation(&self) -> Option<&Explanation> {
        let counts = |by: &&Explanation| by.opened > 0;
        self.explanations.iter().rfind(counts).or(self.explanations.last())
    }

    /// Takes so many connections out of what is left, which are this client's.
    pub(super) fn take(&mut self, opened: u64, client: Option<EndpointId>) -> Taken {
        self.take_as(opened, client, None)
    }

    /// Leaves so many connections out of what is left: all that were opened after `settled`, if anything is left then.
    pub(super) fn leave(&mut self, waiting: u64, settled: SystemTime) {
        let mut share = self.left.share(waiting);
        if !self.has_shared_bytes {
            // It is part of what was not known a short while ago (`leave_fresh_bytes`).
            (share.bytes_sent, share.bytes_received) = (0, 0);
        }
        self.left = self.left.without(&share);
        self.shown_until = Some(self.shown_until.map_or(settled, |until| until.min(settled)));
        self.span.until = self.span.until.min(settled).max(self.span.from);
    }

    /// Returns the times at which its connections were opened, as the client would count.
    pub(super) fn parts(&self) -> Vec<Part> {
        let is_shown = |part: &&Part| self.shown_until.is_none_or(|until| part.until <= until);
        self.parts.iter().filter(is_shown).map(as_the_client_would_count).collect()
    }

    /// Leaves payload out of what is left that may be of other connections, of which the client's agent has not reported it
    /// yet. Returns whether there may be any.
    pub(super) fn leave_fresh_bytes(&mut self) -> bool {
        let [sent, received] = self.fresh_bytes;
        // A share in all bytes contains no others'.
        if !self.explained || self.has_shared_bytes || (sent, received) == (0, 0) {
            return false;
        }
        self.left.bytes_sent = self.left.bytes_sent.saturating_sub(sent);
        self.left.bytes_received = self.left.bytes_received.saturating_sub(received);
        true
    }

    /// Takes so many of the connections that a client has counted. Where others are among what is left (another way
    /// from the same client to the same server), what is theirs shows as far as the client knows its own.
    pub(super) fn take_of(&mut self, opened: u64, client_flow: &ClientFlow<'a>) -> Taken {
        let known = Some(&client_flow.counters).filter(|client| client.without_bytes == 0);
        self.take_as(opened, Some(client_flow.end), known)
    }

    /// Takes connections that an account other than the flows has, with the bytes that it has. A connection that was open
    /// when its client was observed last has more, which stay with the rest.
    pub(super) fn take_known(&mut self, known: &EdgeCounters, client: EndpointId) {
        self.take_as(known.opened, Some(client), Some(known));
    }

    fn take_as(&mut self, opened: u64, client: Option<EndpointId>, known: Option<&EdgeCounters>) -> Taken {
        let mut counters = self.left.share(opened);
        if let Some(known) = known.filter(|known| known.opened == counters.opened && counters.opened < self.left.opened)
        {
            counters.bytes_sent = known.bytes_sent.min(self.left.bytes_sent);
            counters.bytes_received = known.bytes_received.min(self.left.bytes_received);
            counters.active = known.active.min(self.left.active);
        } else if counters.opened > 0 && counters.opened < self.left.opened {
            self.has_shared_bytes = true;
        }
        self.left = self.left.without(&counters);
        self.explained = true;
        if counters.opened > 0 {
            self.taken.push((client, counted(&counters)));
        }
        Taken { counters, certain: self.ways == 1 && counters.opened == self.counters.opened }
    }
}

/// Part of a server flow that belongs to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) counters: EdgeCounters,
    /// True if this is everything that the server counted and no other client can own it; otherwise the bytes are a
    /// guess.
    certain: bool,
}

impl Taken {
    /// A client's counters; where it does not know the bytes of all its connections, with those that are certain by the
    /// server's.
    pub(super) fn complete(&self, client: &EdgeCounters) -> EdgeCounters {
        client.with_bytes_known_to(&self.if_certain())
    }

    /// Returns the counters if their bytes are certain.
    pub(super) fn if_certain(&self) -> EdgeCounters {
        if self.certain { self.counters } else { EdgeCounters::default() }
    }
}

pub(super) fn client_flow<'a>(
    flow: &FlowView<'a>,
    end: EndpointId,
    scope: Scope<'a>,
    options: &Options,
) -> ClientFlow<'a> {
    let totals = flow.totals;
    ClientFlow {
        node: flow.node,
        id: FlowId::of(flow),
        netns: flow.key.netns,
        cgroup_id: flow.key.cgroup_id,
        end,
        tuple: Tuple {
            scope,
            client: flow.key.local,
            server: flow.key.remote,
            port: flow.key.port,
            protocol: flow.key.protocol,
        },
        names: flow.remote_names,
        counters: EdgeCounters {
            opened: totals.opened,
            active: totals.active,
            failed: totals.failed,
            pending: pending(flow, options),
            bytes_sent: totals.bytes_sent,
            bytes_received: totals.bytes_received,
            without_bytes: totals.without_bytes,
            inferred: totals.inferred,
            retransmits: totals.retransmits.unwrap_or_default(),
        },
        first_seen: flow.reported,
        fresh: fresh(flow, options),
        span: Span::of(flow, options),
        pending_ended: flow.pending_ended,
        parts: flow.parts,
        at: resolved_at(flow, options),
        live: is_live(flow, options),
        methods: totals.methods,
        measured: Measured::of(flow, &totals, options),
        nat_peers: flow.nat_peers,
        via: None,
        leg: PlacedLeg::default(),
        is_relayed: false,
    }
}

pub(super) fn server_flow<'a>(
    flow: &FlowView<'a>,
    end: EndpointId,
    scope: Scope<'a>,
    options: &Options,
) -> ServerFlow<'a> {
    let totals = flow.totals;
    let [known_sent, known_received] = flow.bytes_at(options.settled());
    let counters = EdgeCounters {
        opened: totals.opened,
        active: totals.active,
        failed: totals.failed,
        pending: 0,
        bytes_sent: totals.bytes_received,
        bytes_received: totals.bytes_sent,
        without_bytes: totals.without_bytes,
        inferred: totals.inferred,
        retransmits: totals.retransmits.unwrap_or_default(),
    };
    ServerFlow {
        node: flow.node,
        id: FlowId::of(flow),
        netns: flow.key.netns,
        end,
        tuple: Tuple {
            scope,
            client: flow.key.remote,
            server: flow.key.local,
            port: flow.key.port,
            protocol: flow.key.protocol,
        },
        port: flow.key.port,
        ports_behind: None,
        counters,
        forgotten: totals.opened.saturating_sub(flow.anew.opened),
        left: counters,
        fresh_bytes: [totals.bytes_received - known_received, totals.bytes_sent - known_sent],
        changed: flow.changed,
        taken: Vec::new(),
        ways: 0,
        has_shared_bytes: false,
        explained: false,
        explanations: Vec::new(),
        explained_at: Vec::new(),
        first_seen: flow.reported,
        fresh: fresh(flow, options),
        span: Span::of(flow, options),
        parts: flow.parts,
        shown_until: None,
        live: is_live(flow, options),
        methods: totals.methods,
        measured: Measured::of(flow, &totals, options),
        nat_peers: flow.nat_peers,
        via: None,
        leg: PlacedLeg::default(),
    }
}

/// Returns the time at which a flow means something else to a join without having changed: the present if it may at any
/// time, `None` if it never does.
pub(super) fn deadline(flow: &FlowView<'_>, options: &Options, directory: &Directory) -> Option<SystemTime> {
    let now = options.now;
    let latest = flow.parts.iter().map(|part| part.until).chain([flow.changed, flow.reported]).max().unwrap_or(now);
    if latest > options.settled() || latest >= now {
        // Its newest connections may have to wait for the other end.
        return Some(now);
    }
    // An edge leaves the graph some time after the last event.
    let goes_on = goes_on(flow, options);
    let ended = Some(known_until(flow, options)).filter(|_| !goes_on);
    let ends = flow.parts.iter().map(|part| part.until).chain(ended);
    let leaves = ends.filter_map(|end| end.checked_add(options.retention)).filter(|leaves| *leaves > now);
    // An address that is in use for longer than its pod was there may be another one's.
    let addresses = [flow.key.local, flow.key.remote].into_iter().chain(flow.nat_peers.iter().map(|(peer, _)| peer.ip));
    let others = addresses.filter(|_| goes_on).flat_map(|ip| {
        // Up to the present, or up to when what is counted now was settled.
        [Duration::ZERO, options.settle].map(|delay| {
            let change = directory.next_change_of_owner(ip, now.checked_sub(delay)?)?;
            change.checked_add(delay)
        })
    });
    leaves.chain(others.flatten()).min()
}

fn fresh(flow: &FlowView<'_>, options: &Options) -> Fresh {
    Fresh::of(flow.totals.opened, flow.reported, flow.parts, options.settled())
}

/// Returns the connections, attempts and bytes of counters.
pub(super) fn counted(counters: &EdgeCounters) -> Counted {
    let EdgeCounters { opened, failed, bytes_sent, bytes_received, .. } = *counters;
    Counted { opened, failed, bytes_sent, bytes_received }
}

fn as_the_client_would_count(part: &Part) -> Part {
    let Counted { bytes_sent, bytes_received, .. } = part.counted;
    Part { counted: Counted { bytes_sent: bytes_received, bytes_received: bytes_sent, ..part.counted }, ..*part }
}

pub(super) fn resolved_at(flow: &FlowView<'_>, options: &Options) -> SystemTime {
    if goes_on(flow, options) { options.now } else { known_until(flow, options) + NAMING_GRACE }
}

pub(super) fn is_live(flow: &FlowView<'_>, options: &Options) -> bool {
    goes_on(flow, options)
        || options.now.duration_since(known_until(flow, options)).unwrap_or_default() < options.retention
}

/// Returns whether connections are open, or attempts are pending, according to an agent that still reports.
fn goes_on(flow: &FlowView<'_>, options: &Options) -> bool {
    (flow.totals.active > 0 || flow.totals.pending > 0) && !is_silent(flow.heard, options.now)
}

/// Returns the number of a client's pending attempts: those of a silent agent have ended, as far as known.
fn pending(flow: &FlowView<'_>, options: &Options) -> u64 {
    let has_them = flow.key.role == Role::Client && !is_silent(flow.heard, options.now);
    if has_them { flow.totals.pending } else { 0 }
}

/// Returns whether anything of a flow is to be joined.
pub(super) fn is_counted(flow: &FlowView<'_>, options: &Options) -> bool {
    FlowTotals { pending: pending(flow, options), ..flow.totals }.has_counts()
}

fn last_seen(flow: &FlowView<'_>, options: &Options) -> LastSeen {
    if goes_on(flow, options) {
        return LastSeen::Now;
    }
    LastSeen::At(known_until(flow, options).max(flow.first_seen))
}

/// Returns the time up to which a flow was observed: now while it goes on, otherwise its last change or, with open
/// connections, its agent's last message.
fn known_until(flow: &FlowView<'_>, options: &Options) -> SystemTime {
    if goes_on(flow, options) {
        return options.now;
    }
    let heard = flow.heard.filter(|_| flow.totals.active > 0 || flow.totals.pending > 0);
    heard.map_or(flow.changed, |heard| heard.max(flow.changed))
}
