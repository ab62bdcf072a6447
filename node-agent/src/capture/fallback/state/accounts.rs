//! Counters of each flow, computed from its connections.

use indexmap::IndexMap;
use topology::{
    flow::{FlowCounters, FlowKey, Methods},
    nat_peer::{MAX_NAT_PEERS, NatPeer},
    packed::PackedCounters,
    rtt::RttBucket,
};

use crate::capture::{
    reading::{Changes, Losses},
    traffic::Traffic,
};
use crate::malloc::is_worth_shrinking;

#[derive(Debug, Default)]
struct FlowAccount {
    counters: PackedCounters,
    /// True if it is in [`FlowAccounts::changed`].
    has_changed: bool,
    nat_peers: Vec<(NatPeer, u64)>,
}

impl FlowAccount {
    fn counters(&self) -> FlowCounters {
        (&self.counters).into()
    }

    /// Changes the counters. Returns whether the account is newly changed.
    fn change(&mut self, change: impl FnOnce(&mut FlowCounters)) -> bool {
        let before = self.counters();
        let mut counters = before;
        change(&mut counters);
        if counters == before {
            return false;
        }
        self.counters = (&counters).into();
        !std::mem::replace(&mut self.has_changed, true)
    }
}

/// Evidence for what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) struct Evidence {
    pub(in crate::capture::fallback) methods: Methods,
    /// True if the direction is inferred.
    pub(in crate::capture::fallback) inferred: bool,
    /// True if a part of its payload is already known to be missing.
    pub(in crate::capture::fallback) without_bytes: bool,
}

/// Accounts of all flows, up to a maximum: connections of further flows are counted as lost.
#[derive(Debug)]
pub(in crate::capture::fallback) struct FlowAccounts {
    flows: IndexMap<FlowKey, FlowAccount>,
    /// Changed flows, each once.
    changed: Vec<FlowKey>,
    most: usize,
    lost: Losses,
    seen: u64,
    new_flows: bool,
}

impl FlowAccounts {
    pub(in crate::capture::fallback) fn new(most: usize) -> Self {
        Self { flows: IndexMap::new(), changed: Vec::new(), most, lost: Losses::default(), seen: 0, new_flows: false }
    }

    /// Counts an established connection. Returns whether it has an account, which later calls require.
    pub(in crate::capture::fallback) fn open(&mut self, key: FlowKey, evidence: Evidence) -> bool {
        let fits = self.change(key, |counters| {
            counters.opened += 1;
            evidence.note(counters);
        });
        if fits {
            self.seen += 1;
        } else {
            self.lost.opened += 1;
        }
        fits
    }

    /// Counts a preexisting connection. See [`FlowAccounts::open`].
    pub(in crate::capture::fallback) fn find(&mut self, key: FlowKey, bytes: Traffic, evidence: Evidence) -> bool {
        let fits = self.change(key, |counters| {
            counters.preexisting += 1;
            counters.preexisting_bytes_sent += bytes.sent;
            counters.preexisting_bytes_received += bytes.received;
            counters.preexisting_retransmits += bytes.retransmits;
            evidence.note(counters);
        });
        self.lost.opened += u64::from(!fits);
        fits
    }

    /// Counts a failed attempt.
    pub(in crate::capture::fallback) fn fail(&mut self, key: FlowKey, evidence: Evidence) {
        let fits = self.change(key, |counters| {
            counters.failed += 1;
            Evidence { without_bytes: false, ..evidence }.note(counters);
        });
        if fits {
            self.seen += 1;
        } else {
            self.lost.failed += 1;
        }
    }

    /// Counts further bytes of an open connection.
    pub(in crate::capture::fallback) fn transfer(&mut self, key: FlowKey, more: Traffic) {
        if more == Traffic::default() {
            return;
        }
        self.change_known(key, |counters| {
            counters.bytes_sent += more.sent;
            counters.bytes_received += more.received;
            counters.open_bytes_sent += more.sent;
            counters.open_bytes_received += more.received;
            if more.retransmits > 0 {
                *counters.retransmits.get_or_insert(0) += more.retransmits;
                counters.open_retransmits += more.retransmits;
            }
        });
    }

    /// Records TCP measurements of an open connection; `before` is its previous round-trip time.
    pub(in crate::capture::fallback) fn measure(
        &mut self,
        key: FlowKey,
        before: Option<RttBucket>,
        rtt: Option<RttBucket>,
    ) {
        if before == rtt && self.flows.get(&key).is_none_or(|account| account.counters().retransmits.is_some()) {
            return;
        }
        self.change_known(key, |counters| {
            counters.retransmits.get_or_insert(0);
            if let Some(before) = before {
                counters.rtt.remove(before);
            }
            if let Some(rtt) = rtt {
                counters.rtt.add(rtt);
            }
        });
    }

    /// Counts bytes of an ended connection that were unknown at its end.
    pub(in crate::capture::fallback) fn transfer_late(&mut self, key: FlowKey, more: Traffic) {
        self.change_known(key, |counters| {
            counters.bytes_sent += more.sent;
            counters.bytes_received += more.received;
        });
    }

    /// Counts the end of a connection with its known bytes. `without_bytes`: its end has revealed that some are unknown.
    pub(in crate::capture::fallback) fn close(&mut self, key: FlowKey, bytes: Traffic, without_bytes: bool) {
        self.change_known(key, |counters| {
            counters.closed += 1;
            counters.without_bytes += u64::from(without_bytes);
            counters.open_bytes_sent = counters.open_bytes_sent.saturating_sub(bytes.sent);
            counters.open_bytes_received = counters.open_bytes_received.saturating_sub(bytes.received);
            counters.open_retransmits = counters.open_retransmits.saturating_sub(bytes.retransmits);
        });
    }

    /// Counts the NAT peer of a connection that has just been counted. Further ones than [`MAX_NAT_PEERS`] are not stored.
    pub(in crate::capture::fallback) fn lead(&mut self, key: FlowKey, nat_peer: Option<NatPeer>) {
        let (Some(nat_peer), Some(account)) = (nat_peer, self.flows.get_mut(&key)) else { return };
        let is_known = account.nat_peers.iter_mut().find(|(end, _)| *end == nat_peer);
        if let Some((_, count)) = is_known {
            *count += 1;
        } else if account.nat_peers.len() < MAX_NAT_PEERS {
            account.nat_peers.push((nat_peer, 1));
        }
    }

    /// Returns the NAT peers of the flow's connections, if any are known.
    pub(in crate::capture::fallback) fn nat_peers(&self, key: &FlowKey) -> Option<&[(NatPeer, u64)]> {
        self.flows.get(key).map(|account| account.nat_peers.as_slice()).filter(|nat_peers| !nat_peers.is_empty())
    }

    /// Adds methods by which this flow's connections were observed.
    pub(in crate::capture::fallback) fn see(&mut self, key: FlowKey, methods: Methods) {
        self.change_known(key, |counters| counters.methods = counters.methods.union(methods));
    }

    /// Returns up to `most` flows that changed since their last report, and marks them as reported.
    pub(in crate::capture::fallback) fn report(&mut self, most: usize) -> Changes {
        let mut flows = Vec::with_capacity(self.changed.len().min(most));
        while flows.len() < most
            && let Some(key) = self.changed.pop()
        {
            if let Some(account) = self.flows.get_mut(&key)
                && std::mem::take(&mut account.has_changed)
            {
                flows.push((key, account.counters()));
            }
        }
        if is_worth_shrinking(self.flows.capacity(), self.flows.len()) {
            self.flows.shrink_to(2 * self.flows.len());
        }
        if is_worth_shrinking(self.changed.capacity(), self.changed.len()) {
            self.changed.shrink_to(2 * self.changed.len());
        }
        Changes { flows, are_partial: !self.changed.is_empty() }
    }

    /// Drops a flow without open connections and unreported changes.
    pub(in crate::capture::fallback) fn forget(&mut self, key: &FlowKey) -> bool {
        let at_rest = |account: &FlowAccount| !account.has_changed && account.counters().active() == 0;
        if !self.flows.get(key).is_none_or(at_rest) {
            return false;
        }
        self.flows.swap_remove(key);
        true
    }

    /// Returns whether a new flow appeared since the last call.
    pub(in crate::capture::fallback) fn has_new(&mut self) -> bool {
        std::mem::take(&mut self.new_flows)
    }

    /// Returns the losses.
    pub(in crate::capture::fallback) fn lost(&self) -> Losses {
        self.lost
    }

    /// Returns the number of opened connections and failed attempts.
    pub(in crate::capture::fallback) fn seen(&self) -> u64 {
        self.seen
    }

    fn change(&mut self, key: FlowKey, change: impl FnOnce(&mut FlowCounters)) -> bool {
        if !self.flows.contains_key(&key) {
            if self.flows.len() >= self.most {
                return false;
            }
            self.new_flows = true;
        }
        if self.flows.entry(key).or_default().change(change) {
            self.changed.push(key);
        }
        true
    }

    fn change_known(&mut self, key: FlowKey, change: impl FnOnce(&mut FlowCounters)) {
        if self.flows.get_mut(&key).is_some_and(|account| account.change(change)) {
            self.changed.push(key);
        }
    }
}

impl Evidence {
    fn note(self, counters: &mut FlowCounters) {
        counters.methods = counters.methods.union(self.methods);
        counters.inferred += u64::from(self.inferred);
        counters.without_bytes += u64::from(self.without_bytes);
    }
}

#[cfg(test)]
mod tests {
    use topology::flow::{Protocol, Role};

    use super::*;

    const SENT: Traffic = Traffic { sent: 5, received: 0, retransmits: 0 };
    const SEEN: Evidence = Evidence { methods: Methods::SOCK_DIAG, inferred: false, without_bytes: false };

    fn key(port: u16) -> FlowKey {
        let local = std::net::IpAddr::from([10, 0, 0, 1]);
        FlowKey { cgroup_id: 1, netns: 1, role: Role::Client, local, remote: local, port, protocol: Protocol::Tcp }
    }

    fn report(accounts: &mut FlowAccounts) -> Vec<(FlowKey, FlowCounters)> {
        accounts.report(usize::MAX).flows
    }

    #[test]
    fn a_flow_is_reported_once_per_change() {
        let mut accounts = FlowAccounts::new(8);
        assert!(accounts.open(key(1), SEEN) && accounts.has_new() && !accounts.has_new());
        accounts.transfer(key(1), SENT);
        let told = report(&mut accounts);
        assert_eq!((told[0].1.opened, told[0].1.bytes_sent, told[0].1.open_bytes_sent), (1, 5, 5));
        assert_eq!(report(&mut accounts), []);
        accounts.close(key(1), SENT, true);
        let closed = report(&mut accounts)[0].1;
        assert_eq!((closed.closed, closed.bytes_sent, closed.open_bytes_sent, closed.without_bytes), (1, 5, 0, 1));
    }

    #[test]
    fn what_was_measured_counts_once() {
        let mut accounts = FlowAccounts::new(8);
        let (short, long) = (RttBucket::of(70), RttBucket::of(700));
        accounts.open(key(1), SEEN);
        assert_eq!(report(&mut accounts)[0].1.retransmits, None, "nothing was measured yet");
        accounts.measure(key(1), None, Some(short));
        accounts.transfer(key(1), Traffic { retransmits: 3, ..SENT });
        let open = report(&mut accounts)[0].1;
        assert_eq!((open.retransmits, open.open_retransmits, open.rtt.median()), (Some(3), 3, Some(short)));
        accounts.measure(key(1), Some(short), Some(long));
        accounts.close(key(1), Traffic { retransmits: 3, ..SENT }, true);
        let closed = report(&mut accounts)[0].1;
        assert_eq!((closed.retransmits, closed.open_retransmits), (Some(3), 0));
        assert_eq!((closed.rtt.connections(), closed.rtt.median()), (1, Some(long)));
        accounts.measure(key(1), Some(long), Some(long));
        assert_eq!(report(&mut accounts), []);
    }

    #[test]
    fn no_more_nat_peers_are_told_than_the_report_has_room_for() {
        let mut accounts = FlowAccounts::new(8);
        accounts.open(key(1), SEEN);
        assert_eq!(accounts.nat_peers(&key(1)), None);
        let nat_peer = |last| Some(NatPeer { ip: std::net::IpAddr::from([10, 0, 0, last]), port: 80 });
        for last in (0..20).chain([3, 19]) {
            accounts.lead(key(1), nat_peer(last));
        }
        let known = accounts.nat_peers(&key(1)).unwrap();
        assert_eq!((known.len(), known[3].1), (MAX_NAT_PEERS, 2));
        assert_eq!(MAX_NAT_PEERS, ::report::MAX_NAT_PEERS);
    }

    #[test]
    fn connections_from_before_bring_what_they_had_sent_again() {
        let mut accounts = FlowAccounts::new(8);
        let had = Traffic { retransmits: 2, ..SENT };
        accounts.find(key(1), had, SEEN);
        accounts.transfer(key(1), had);
        let found = report(&mut accounts)[0].1;
        assert_eq!((found.retransmits, found.preexisting_retransmits, found.open_retransmits), (Some(2), 2, 2));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut accounts = FlowAccounts::new(1);
        assert!(accounts.open(key(1), SEEN));
        assert!(!accounts.open(key(2), SEEN) && !accounts.find(key(3), Traffic::default(), SEEN));
        accounts.fail(key(2), SEEN);
        accounts.close(key(2), Traffic::default(), true);
        assert_eq!((accounts.lost().opened, accounts.lost().failed, accounts.seen()), (2, 1, 1));
        assert_eq!(report(&mut accounts).len(), 1);
    }

    #[test]
    fn only_what_is_at_rest_and_told_is_forgotten() {
        let mut accounts = FlowAccounts::new(8);
        accounts.open(key(1), SEEN);
        report(&mut accounts);
        assert!(!accounts.forget(&key(1)), "open");
        accounts.close(key(1), Traffic::default(), true);
        assert!(!accounts.forget(&key(1)), "not told");
        report(&mut accounts);
        assert!(accounts.forget(&key(1)) && accounts.forget(&key(2)));
        accounts.open(key(1), SEEN);
        assert_eq!(report(&mut accounts)[0].1.opened, 1);
    }
}
