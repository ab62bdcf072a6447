//! Compares a capture's results with what happened.

use std::{fmt, sync::Once};

use scopeprobe_agent::capture::Losses;
use topology::flow::FlowCounters;

use crate::{
    lab::kernel_release,
    methods::Promise,
    oracle::{Done, Kind, Oracle},
    witness::Testimony,
};

/// A part of a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    fn of<T>(all: impl Iterator<Item = T>, counts: impl Fn(T) -> bool) -> Self {
        all.fold(Self::default(), |share, one| Self {
            part: share.part + u64::from(counts(one)),
            whole: share.whole + 1,
        })
    }

    fn is_whole(self) -> bool {
        self.part == self.whole
    }

    fn is_at_least(self, percent: u64) -> bool {
        self.part * 100 >= self.whole * percent
    }

    fn lacks(self) -> u64 {
        self.whole - self.part
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole == 0 { f.write_str("none") } else { write!(f, "{} of {}", self.part, self.whole) }
    }
}

/// Completeness of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    Exact,
    /// Some bytes are missing, and each edge without all bytes is marked.
    Marked,
    Wrong,
}

#[derive(Debug)]
pub struct Figures {
    /// Edges that were found, of all.
    long: Share,
    short: Share,
    /// Edges that there were, of those that the capture shows.
    true_edges: Share,
    /// Connections that were found, of all.
    connections: Share,
    /// Connections that there were, of those that the capture shows.
    true_connections: Share,
    failed: Share,
    true_failed: Share,
    bytes: Bytes,
    losses: Losses,
    /// Bytes that are wrong, shown and done.
    different: Vec<(FlowCounters, Done)>,
}

impl Figures {
    pub fn new(oracle: &Oracle, testimony: &Testimony) -> Self {
        let shown = |key| testimony.flows.get(key).copied().unwrap_or_default();
        let found = |kind| {
            let edges = oracle.edges.iter().filter(move |(_, done)| done.kind == kind);
            Share::of(edges, |(key, _)| opened(&shown(key)) > 0)
        };
        let both = |of_shown: fn(&FlowCounters) -> u64, of_done: fn(&Done) -> u64| -> u64 {
            oracle.edges.iter().map(|(key, done)| of_shown(&shown(key)).min(of_done(done))).sum()
        };
        let done = |of: fn(&Done) -> u64| oracle.edges.values().map(of).sum();
        let all_shown = |of: fn(&FlowCounters) -> u64| testimony.flows.values().map(of).sum();
        let connections = both(opened, |done| done.opened);
        let failed = both(|counters| counters.failed, |done| done.failed);
        Self {
            long: found(Kind::Long),
            short: found(Kind::Short),
            true_edges: Share::of(testimony.flows.keys(), |key| oracle.edges.contains_key(key)),
            connections: Share { part: connections, whole: done(|done| done.opened) },
            true_connections: Share { part: connections, whole: all_shown(opened) },
            failed: Share { part: failed, whole: done(|done| done.failed) },
            true_failed: Share { part: failed, whole: all_shown(|counters| counters.failed) },
            bytes: oracle.edges.iter().map(|(key, done)| bytes(&shown(key), done)).max_by_key(|it| *it as u8).unwrap(),
            losses: testimony.losses,
            different: oracle
                .edges
                .iter()
                .map(|(key, done)| (shown(key), *done))
                .filter(|(shown, done)| bytes(shown, done) == Bytes::Wrong)
                .collect(),
        }
    }

    fn said_to_be_lost(&self) -> u64 {
        self.losses.missed_runs + self.losses.opened + self.losses.failed
    }

    /// Returns the violations of a promise.
    pub fn complaints(&self, method: &str, promise: Promise) -> Vec<String> {
        let all_but_lost = self.connections.lacks() + self.failed.lacks() <= self.said_to_be_lost();
        let kept = |promise| match promise {
            Promise::All => {
                self.connections.is_whole()
                    && self.failed.is_whole()
                    && self.bytes == Bytes::Exact
                    && self.losses == Losses::default()
            }
            Promise::AllButLost => all_but_lost,
            Promise::OnlyTruth => true,
            Promise::WhatLasts => all_but_lost && self.long.is_whole(),
            Promise::WhatLastsAndShortEdges => all_but_lost && self.long.is_whole() && self.short.is_at_least(99),
        };
        let true_alone = [self.true_edges, self.true_connections, self.true_failed].into_iter().all(Share::is_whole);
        let mut complaints = Vec::new();
        if !kept(promise) {
            complaints.push(format!("{method} has not kept {promise:?}: {self:?}"));
        }
        if !true_alone || self.bytes == Bytes::Wrong {
            complaints.push(format!("{method} shows what was not: {self:?} {:?}", self.different));
        }
        complaints
    }
}

fn opened(counters: &FlowCounters) -> u64 {
    counters.opened + counters.preexisting
}

fn bytes(shown: &FlowCounters, done: &Done) -> Bytes {
    let (sent, received) = (shown.bytes_sent, shown.bytes_received);
    if (sent, received) == (done.sent, done.received) {
        return Bytes::Exact;
    }
    // Of an open connection, more may come.
    let says_so = shown.without_bytes > 0 || shown.active() > 0 || opened(shown) < done.opened;
    if says_so && sent <= done.sent && received <= done.received { Bytes::Marked } else { Bytes::Wrong }
}

/// Lines that tools can find, and people can read.
pub struct Table {
    kernel: String,
    workload: String,
}

impl Table {
    pub fn new(workload: &str) -> Self {
        static HEAD: Once = Once::new();
        HEAD.call_once(|| {
            println!(
                "\nparity: | kernel | workload | method | edges ≥ 2 s | short edges | edges that were | connections | \
                 connections that were | failed attempts | bytes | said to be lost |"
            );
            println!("parity: |---|---|---|---|---|---|---|---|---|---|---|");
        });
        let (major, minor) = kernel_release().version();
        Self { kernel: format!("{major}.{minor}"), workload: String::from(workload) }
    }

    pub fn row(&self, method: &str, of: &Figures) {
        let bytes = match of.bytes {
            Bytes::Exact => "exact",
            Bytes::Marked => "not all, and marked",
            Bytes::Wrong => "WRONG",
        };
        println!(
            "parity: | {} | {} | {method} | {} | {} | {} | {} | {} | {} | {bytes} | {} |",
            self.kernel,
            self.workload,
            of.long,
            of.short,
            of.true_edges,
            of.connections,
            of.true_connections,
            of.failed,
            of.said_to_be_lost()
        );
    }

    /// A method that cannot be had here.
    pub fn absent(&self, method: &str, reason: &str) {
        println!("parity: | {} | {} | {method} | {reason} | | | | | | | |", self.kernel, self.workload);
    }
}
