//! Accounts of flows, and the totals that follow. Pure.

use std::collections::HashMap;

use indexmap::IndexMap;
use node_agent_common::{FlowKey, FlowStats, Protocol, RTT_BUCKETS};
use topology::{
    flow,
    packed::{PackedNumbers, pack_histogram, unpack_histogram},
    rtt::{RttBucket, RttHistogram},
};

use super::keys::public_key;
use crate::{
    capture::{reading::Changes, traffic::Traffic},
    malloc::is_worth_shrinking,
};

/// Values of open connections, from the last or the first listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) traffic: Traffic,
    pub(super) rtt: RttHistogram,
}

impl Open {
    /// Adds another connection.
    pub(super) fn add(&mut self, traffic: Traffic, rtt: Option<RttBucket>) {
        self.traffic = self.traffic.plus(traffic);
        if let Some(rtt) = rtt {
            self.rtt.add(rtt);
        }
    }
}

/// Listed connections of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) connections: u64,
    /// Those among them whose payload may go past TCP.
    pub(super) past_tcp: u64,
}

/// One flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KernelAccount {
    opened: u64,
    closed: u64,
    failed: u64,
    preexisting: u64,
    preexisting_traffic: Traffic,
    /// Traffic of ended connections.
    closed_traffic: Traffic,
    closed_rtt: RttHistogram,
    /// Round-trip times of open connections; never more than there are.
    open_rtt: RttHistogram,
    /// Connections whose end was not observed.
    without_bytes: u64,
    /// Connections and UDP conversations whose direction is inferred.
    inferred: u64,
    /// Attempts that became pending, and those among them that are not pending any more.
    pending_begun: u64,
    pending_ended: u64,
    /// Open connections that the last listing did not have; never more than there are.
    unlisted: u64,
    /// Listed open connections whose payload may go past TCP; never more than there are beside `unlisted`.
    past_tcp: u64,
    /// Maximum of the known traffic, which never decreases; at least `closed_traffic`.
    traffic: Traffic,
}

/// Numbers of an account beside its histograms.
const PLAIN: usize = 19;
const NUMBERS: usize = PLAIN + 2 * RTT_BUCKETS;

impl From<&KernelAccount> for PackedNumbers {
    fn from(account: &KernelAccount) -> Self {
        // Mostly none: shorter than what closed connections have transferred.
        let open = account.traffic.minus(account.closed_traffic);
        let plain: [u64; PLAIN] = [
            account.opened,
            account.closed,
            account.closed_traffic.sent,
            account.closed_traffic.received,
            account.failed,
            account.closed_traffic.retransmits,
            open.sent,
            open.received,
            open.retransmits,
            account.inferred,
            account.without_bytes,
            account.preexisting,
            account.preexisting_traffic.sent,
            account.preexisting_traffic.received,
            account.preexisting_traffic.retransmits,
            account.pending_begun,
            account.pending_ended,
            account.unlisted,
            account.past_tcp,
        ];
        let mut numbers = [0; NUMBERS];
        numbers[..PLAIN].copy_from_slice(&plain);
        pack_histogram(&account.closed_rtt, &mut numbers[PLAIN..PLAIN + RTT_BUCKETS]);
        pack_histogram(&account.open_rtt, &mut numbers[PLAIN + RTT_BUCKETS..]);
        Self::pack(&numbers)
    }
}

impl From<&PackedNumbers> for KernelAccount {
    fn from(packed: &PackedNumbers) -> Self {
        let numbers = packed.unpack::<NUMBERS>();
        let [opened, closed, closed_sent, closed_received, failed, closed_again, ..] = numbers;
        let traffic =
            |at: usize| Traffic { sent: numbers[at], received: numbers[at + 1], retransmits: numbers[at + 2] };
        let closed_traffic = Traffic { sent: closed_sent, received: closed_received, retransmits: closed_again };
        Self {
            opened,
            closed,
            failed,
            preexisting: numbers[11],
            preexisting_traffic: traffic(12),
            closed_traffic,
            closed_rtt: unpack_histogram(&numbers[PLAIN..PLAIN + RTT_BUCKETS]),
            open_rtt: unpack_histogram(&numbers[PLAIN + RTT_BUCKETS..]),
            without_bytes: numbers[10],
            inferred: numbers[9],
            pending_begun: numbers[15],
            pending_ended: numbers[16],
            unlisted: numbers[17],
            past_tcp: numbers[18],
            traffic: closed_traffic.plus(traffic(6)),
        }
    }
}

impl KernelAccount {
    fn counters(&self, known: CaptureAbilities) -> flow::FlowCounters {
        let open = self.traffic.minus(self.closed_traffic);
        flow::FlowCounters {
            run: 0,
            opened: self.opened,
            closed: self.closed,
            failed: self.failed,
            preexisting: self.preexisting,
            bytes_sent: self.traffic.sent,
            bytes_received: self.traffic.received,
            preexisting_bytes_sent: self.preexisting_traffic.sent,
            preexisting_bytes_received: self.preexisting_traffic.received,
            open_bytes_sent: open.sent,
            open_bytes_received: open.received,
            methods: flow::Methods::EBPF,
            inferred: self.inferred,
            without_bytes: self.without_bytes,
            open_without_bytes: if known.of_open { self.unlisted + self.past_tcp } else { self.open() },
            retransmits: known.retransmits.then_some(self.traffic.retransmits),
            preexisting_retransmits: self.preexisting_traffic.retransmits,
            open_retransmits: open.retransmits,
            pending_begun: self.pending_begun,
            pending_ended: self.pending_ended,
            rtt: self.closed_rtt.plus(&self.open_rtt),
        }
    }

    /// Returns the number of open connections; 0 if a loss made `closed` exceed the others.
    fn open(&self) -> u64 {
        (self.opened + self.preexisting).saturating_sub(self.closed)
    }

    fn has_open(&self) -> bool {
        self.open() > 0
    }

    fn has_pending(&self) -> bool {
        self.pending_begun > self.pending_ended
    }

    /// Sets the number of pending attempts.
    fn set_pending(&mut self, pending: u64) {
        let before = self.pending_begun - self.pending_ended;
        self.pending_begun += pending.saturating_sub(before);
        self.pending_ended += before.saturating_sub(pending);
    }

    fn settle(&mut self) {
        self.traffic = self.traffic.max(self.closed_traffic).max(self.preexisting_traffic);
        self.open_rtt = self.open_rtt.at_most(self.open(), &RttHistogram::default());
        self.unlisted = self.unlisted.min(self.open());
        self.past_tcp = self.past_tcp.min(self.open() - self.unlisted);
    }
}

/// Capabilities of the capture on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CaptureAbilities {
    /// True if the transfer of open connections is read; otherwise their bytes arrive at their end.
    pub(super) of_open: bool,
    /// True if the kernel reports retransmissions.
    pub(super) retransmits: bool,
}

impl CaptureAbilities {
    /// Returns the capabilities for this flow.
    fn of(self, key: &FlowKey) -> Self {
        Self { retransmits: self.retransmits && key.protocol() == Protocol::Tcp, ..self }
    }
}

/// One flow, in few bytes.
#[derive(Debug, Default)]
struct Stored {
    account: PackedNumbers,
    /// True if it is in [`KernelAccounts::changed`].
    has_changed: bool,
}

/// All flows. A table of a hundred thousand takes 110 bytes for each.
#[derive(Debug)]
pub(super) struct KernelAccounts {
    known: CaptureAbilities,
    flows: IndexMap<FlowKey, Stored>,
    /// Changed flows, each once; removed flows may be among them.
    changed: Vec<FlowKey>,
    /// Flows with pending attempts, and their numbers.
    pending: HashMap<FlowKey, u64>,
    seen: u64,
    closes_unseen: u64,
    /// Connections and failed attempts of keys that belong to no flow.
    nameless: (u64, u64),
}

impl KernelAccounts {
    /// Returns accounts without any flow.
    pub(super) fn new(known: CaptureAbilities) -> Self {
        Self {
            known,
            flows: IndexMap::new(),
            changed: Vec::new(),
            pending: HashMap::new(),
            seen: 0,
            closes_unseen: 0,
            nameless: (0, 0),
        }
    }

    /// Adds the counts of a flow's slot since the last reading.
    pub(super) fn add(&mut self, key: FlowKey, since: &FlowStats, nothing_lost: bool) {
        if public_key(&key).is_none() {
            self.nameless.0 += u64::from(since.opened);
            self.nameless.1 += u64::from(since.failed);
            return;
        }
        let known = self.known;
        self.change(key, |account| {
            account.opened += u64::from(since.opened);
            account.closed += u64::from(since.closed);
            account.failed += u64::from(since.failed);
            account.preexisting += u64::from(since.older);
            let (sent, received, retransmits) = (since.sent, since.received, since.retransmits.into());
            account.closed_traffic = account.closed_traffic.plus(Traffic { sent, received, retransmits });
            account.without_bytes += u64::from(since.unseen) + u64::from(since.past_tcp);
            if since.rtt != [0; RTT_BUCKETS] {
                // The kernel's buckets are ours, so that none is left out.
                let ended = RttHistogram::from_counts(&since.rtt).unwrap_or_default();
                account.closed_rtt = account.closed_rtt.plus(&ended);
                account.open_rtt = account.open_rtt.at_most(account.open(), &ended);
            }
            // Where open sockets are listed, those whose role is a guess have been met there.
            if !known.of_open || key.protocol() == Protocol::Udp {
                account.inferred += u64::from(since.inferred);
            }
            if nothing_lost && account.closed > account.opened + account.preexisting {
                // Neither its opening nor a listing was observed (it waited for `accept()`): it is preexisting.
                account.preexisting = account.closed - account.opened;
            }
        });
        self.closes_unseen += u64::from(since.unseen);
        self.seen += u64::from(since.opened) + u64::from(since.failed);
    }

    /// Adds a preexisting connection with its traffic at the first listing. `is_inferred`: whether its role is inferred.
    pub(super) fn add_preexisting(&mut self, key: FlowKey, traffic: Traffic, is_inferred: bool) {
        self.change(key, |account| {
            account.preexisting += 1;
            account.inferred += u64::from(is_inferred);
            account.preexisting_traffic = account.preexisting_traffic.plus(traffic);
        });
    }

    /// Moves the preexisting connections of a flow without any reported count to another flow.
    pub(super) fn move_preexisting(&mut self, from: &FlowKey, to: FlowKey) -> u64 {
        let Some(stored) = self.flows.swap_remove(from) else { return 0 };
        let moved = KernelAccount::from(&stored.account);
        self.change(to, |account| {
            account.preexisting += moved.preexisting;
            account.inferred += moved.inferred;
            account.preexisting_traffic = account.preexisting_traffic.plus(moved.preexisting_traffic);
        });
        moved.preexisting
    }

    /// Returns the flows with open connections.
    pub(super) fn with_open(&self) -> impl Iterator<Item = FlowKey> {
        self.flows.iter().filter(|(_, stored)| KernelAccount::from(&stored.account).has_open()).map(|(key, _)| *key)
    }

    /// Adds the unobserved end of a connection, with its last known traffic.
    pub(super) fn add_unseen_close(&mut self, key: FlowKey, traffic: Traffic) {
        self.change(key, |account| {
            account.closed += 1;
            account.without_bytes += 1;
            account.closed_traffic = account.closed_traffic.plus(traffic);
        });
        self.closes_unseen += 1;
    }

    /// Adds the unobserved end of one of the flow's connections, with unknown traffic.
    pub(super) fn add_unseen_close_of_unknown_bytes(&mut self, key: FlowKey) {
        self.add_unseen_close(key, Traffic::default());
        self.change(key, |account| {
            account.unlisted = account.unlisted.saturating_sub(1);
            if !account.has_open() {
                account.closed_traffic = account.traffic;
            }
        });
    }

    /// Adds the unobserved failure of an attempt.
    pub(super) fn add_unseen_failure(&mut self, key: FlowKey) {
        self.change(key, |account| account.failed += 1);
        self.seen += 1;
    }

    /// Sets the numbers of pending attempts of all flows that have any.
    pub(super) fn set_pending(&mut self, pending: HashMap<FlowKey, u64>) {
        let before = std::mem::take(&mut self.pending);
        for key in before.keys().filter(|key| !pending.contains_key(*key)) {
            self.change(*key, |account| account.set_pending(0));
        }
        for (key, number) in pending.iter().filter(|(key, _)| public_key(key).is_some()) {
            if before.get(key) != Some(number) {
                self.change(*key, |account| account.set_pending(*number));
            }
        }
        self.pending = pending;
    }

    /// Sets the transfer of a flow's open connections, while no connection of the flow ended.
    pub(super) fn set_open(&mut self, key: FlowKey, open: &Open) {
        if self.has_open(&key) {
            self.change(key, |account| {
                account.traffic = account.traffic.max(account.closed_traffic.plus(open.traffic));
                account.open_rtt = open.rtt.at_most(account.open(), &RttHistogram::default());
            });
        }
    }

    /// Sets the open connections of each flow that `is_still` whose traffic is unknown, by those that were `listed`. No process
    /// has the socket of others: it waits for `accept()`, or belongs to MPTCP or `io_uring`.
    pub(super) fn set_listed(&mut self, listed: &HashMap<FlowKey, Listed>, is_still: impl Fn(&FlowKey) -> bool) {
        let mut changed = Vec::new();
        for (key, stored) in self.flows.iter().filter(|(key, _)| key.protocol() == Protocol::Tcp && is_still(key)) {
            let account = KernelAccount::from(&stored.account);
            let listed = listed.get(key).copied().unwrap_or_default();
            let unlisted = account.open().saturating_sub(listed.connections);
            if (unlisted, listed.past_tcp) != (account.unlisted, account.past_tcp) {
                changed.push((*key, unlisted, listed.past_tcp));
            }
        }
        for (key, unlisted, past_tcp) in changed {
            self.change(key, |account| (account.unlisted, account.past_tcp) = (unlisted, past_tcp));
        }
    }

    /// Returns whether the flow has open connections.
    pub(super) fn has_open(&self, key: &FlowKey) -> bool {
        self.flows.get(key).is_some_and(|stored| KernelAccount::from(&stored.account).has_open())
    }

    /// Returns the number of open connections of the flow.
    pub(super) fn open(&self, key: &FlowKey) -> u64 {
        self.flows.get(key).map_or(0, |stored| KernelAccount::from(&stored.account).open())
    }

    /// Returns the number of open connections of the flow that the last listing did not have.
    pub(super) fn unlisted(&self, key: &FlowKey) -> u64 {
        self.flows.get(key).map_or(0, |stored| KernelAccount::from(&stored.account).unlisted)
    }

    /// Returns whether the flow has an account.
    pub(super) fn has(&self, key: &FlowKey) -> bool {
        self.flows.contains_key(key)
    }

    /// Returns whether the flow has nothing open, nothing pending and nothing unreported.
    pub(super) fn is_at_rest(&self, key: &FlowKey) -> bool {
        self.flows.get(key).is_none_or(|stored| {
            let account = KernelAccount::from(&stored.account);
            !stored.has_changed && !account.has_open() && !account.has_pending()
        })
    }

    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.flows.swap_remove(key);
    }

    /// Returns the number of opened connections and failed attempts.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn closes_unseen(&self) -> u64 {
        self.closes_unseen
    }

    /// Returns opened connections and failed attempts of keys that belong to no flow: they are lost.
    pub(super) fn nameless(&self) -> (u64, u64) {
        self.nameless
    }

    /// Returns up to `most` flows that changed since their last report, and marks them as reported.
    pub(super) fn report(&mut self, most: usize) -> Changes {
        let mut flows = Vec::with_capacity(self.changed.len().min(most));
        while flows.len() < most
            && let Some(key) = self.changed.pop()
        {
            let Some(stored) = self.flows.get_mut(&key) else { continue };
            if std::mem::take(&mut stored.has_changed) {
                let counters = KernelAccount::from(&stored.account).counters(self.known.of(&key));
                flows.extend(public_key(&key).map(|key| (key, counters)));
            }
        }
        self.shrink();
        Changes { flows, are_partial: !self.changed.is_empty() }
    }

    /// Frees memory that is not needed any more.
    fn shrink(&mut self) {
        if is_worth_shrinking(self.flows.capacity(), self.flows.len()) {
            self.flows.shrink_to(2 * self.flows.len());
        }
        if is_worth_shrinking(self.changed.capacity(), self.changed.len()) {
            self.changed.shrink_to(2 * self.changed.len());
        }
    }

    /// Changes a flow's account, which is new if there is none.
    fn change(&mut self, key: FlowKey, change: impl FnOnce(&mut KernelAccount)) {
        let stored = self.flows.entry(key).or_default();
        let before = KernelAccount::from(&stored.account);
        let mut account = before;
        change(&mut account);
        account.settle();
        if account == before {
            return;
        }
        stored.account = (&account).into();
        if !std::mem::replace(&mut stored.has_changed, true) {
            self.changed.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::{Role, rtt_bucket};

    use super::*;

    fn key() -> FlowKey {
        FlowKey::new(1, 1, Role::Server, 80, [1; 16], [2; 16])
    }

    const ALL: CaptureAbilities = CaptureAbilities { of_open: true, retransmits: true };

    fn sent(sent: u64) -> Traffic {
        Traffic { sent, ..Traffic::default() }
    }

    fn with_open(bytes: u64) -> Open {
        Open { traffic: sent(bytes), ..Open::default() }
    }

    fn rtt(counts: &[u32]) -> RttHistogram {
        RttHistogram::from_counts(counts).unwrap()
    }

    /// Returns the kernel's counters of one connection with a round-trip time in this bucket.
    fn ended_in(bucket: usize) -> FlowStats {
        FlowStats { closed: 1, rtt: std::array::from_fn(|it| u32::from(it == bucket)), ..FlowStats::default() }
    }

    fn report(accounts: &mut KernelAccounts) -> Vec<(flow::FlowKey, flow::FlowCounters)> {
        accounts.report(usize::MAX).flows
    }

    fn now(accounts: &mut KernelAccounts) -> flow::FlowCounters {
        let report = report(accounts);
        assert_eq!(report.len(), 1, "{report:?}");
        report[0].1
    }

    #[test]
    fn a_flow_is_reported_once_per_change() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 2, failed: 1, ..FlowStats::default() }, true);
        let counters = now(&mut accounts);
        assert_eq!((counters.opened, counters.failed, accounts.seen()), (2, 1, 3));
        accounts.set_open(key(), &with_open(0));
        assert_eq!(report(&mut accounts), []);
    }

    #[test]
    fn what_is_no_flow_is_lost_and_not_seen() {
        let mut accounts = KernelAccounts::new(ALL);
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let mixed = FlowKey::new(1, 1, Role::Client, 53, [1; 16], mapped).over_udp();
        accounts.add(mixed, &FlowStats { opened: 2, failed: 1, closed: 2, ..FlowStats::default() }, true);
        assert_eq!((accounts.seen(), accounts.nameless()), (0, (2, 1)));
        assert_eq!(report(&mut accounts), []);
    }

    #[test]
    fn bytes_of_a_connection_count_once_when_it_ends() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 2, ..FlowStats::default() }, true);
        accounts.set_open(key(), &with_open(70));
        let open = now(&mut accounts);
        assert_eq!((open.bytes_sent, open.open_bytes_sent), (70, 70));
        // One of the two ends: no telling how much of the 70 was its own.
        accounts.add(key(), &FlowStats { closed: 1, sent: 60, ..FlowStats::default() }, true);
        let closing = now(&mut accounts);
        assert_eq!((closing.bytes_sent, closing.open_bytes_sent), (70, 10));
        accounts.set_open(key(), &with_open(25));
        let looked = now(&mut accounts);
        assert_eq!((looked.bytes_sent, looked.open_bytes_sent), (85, 25));
    }

    #[test]
    fn open_connections_that_are_not_listed_have_unknown_bytes() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 3, ..FlowStats::default() }, true);
        let mut unknown = |listed: u64, is_still: bool| {
            let listed = Listed { connections: listed, past_tcp: 0 };
            accounts.set_listed(&HashMap::from([(key(), listed)]), |_| is_still);
            accounts.report(usize::MAX).flows.first().map(|(_, counters)| counters.open_without_bytes)
        };
        assert_eq!(unknown(3, true), Some(0), "the first report");
        assert_eq!(
            [unknown(1, false), unknown(1, true), unknown(1, true), unknown(2, true)],
            [None, Some(2), None, Some(1)]
        );
        accounts.add(key(), &FlowStats { closed: 3, sent: 60, ..FlowStats::default() }, true);
        let closed = now(&mut accounts);
        assert_eq!((closed.bytes_sent, closed.open_without_bytes, closed.without_bytes), (60, 0, 0));
    }

    #[test]
    fn pending_attempts_begin_and_end() {
        let mut accounts = KernelAccounts::new(ALL);
        let other = key().folded();
        let mut set = |pending: &[(FlowKey, u64)]| {
            accounts.set_pending(pending.iter().copied().collect());
            let mut flows = accounts.report(usize::MAX).flows;
            flows.sort_by_key(|(key, _)| key.remote);
            let at_rest = accounts.is_at_rest(&key());
            (flows.iter().map(|(_, it)| [it.pending_begun, it.pending_ended]).collect::<Vec<_>>(), at_rest)
        };
        assert_eq!(set(&[(key(), 2)]), (vec![[2, 0]], false));
        assert_eq!(set(&[(key(), 2)]), (vec![], false));
        assert_eq!(set(&[(key(), 3)]), (vec![[3, 0]], false));
        // One goes on in another row.
        assert_eq!(set(&[(key(), 1), (other, 1)]).0.len(), 2);
        assert_eq!(set(&[(other, 1)]), (vec![[3, 3]], true));
    }

    #[test]
    fn more_ends_than_beginnings_are_connections_from_before_unless_beginnings_were_lost() {
        let ended = FlowStats { closed: 1, ..FlowStats::default() };
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &ended, true);
        assert_eq!(now(&mut accounts).preexisting, 1);
        let mut lossy = KernelAccounts::new(ALL);
        lossy.add(key(), &ended, false);
        assert_eq!(now(&mut lossy).preexisting, 0);
    }

    #[test]
    fn accounts_keep_known_bytes_after_unobserved_close() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add_preexisting(key(), sent(10), false);
        accounts.set_open(key(), &with_open(40));
        accounts.add_unseen_close(key(), sent(40));
        let counters = now(&mut accounts);
        assert_eq!((counters.preexisting, counters.closed, accounts.closes_unseen()), (1, 1, 1));
        assert_eq!((counters.bytes_sent, counters.open_bytes_sent, counters.preexisting_bytes_sent), (40, 0, 10));
        assert_eq!(counters.without_bytes, 1);
    }

    #[test]
    fn ends_that_a_tracepoint_missed_leave_no_bytes_open() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 3, ..FlowStats::default() }, true);
        accounts.set_open(key(), &with_open(90));
        accounts.add(key(), &FlowStats { closed: 1, unseen: 1, ..FlowStats::default() }, true);
        accounts.add(key(), &FlowStats { closed: 1, sent: 20, ..FlowStats::default() }, true);
        accounts.add_unseen_close_of_unknown_bytes(key());
        let counters = now(&mut accounts);
        assert_eq!((counters.closed, counters.without_bytes, accounts.closes_unseen()), (3, 2, 2));
        assert_eq!((counters.bytes_sent, counters.open_bytes_sent), (90, 0), "what was known is not given up");
    }

    #[test]
    fn a_guess_counts_once_by_the_listing_or_else_by_the_end() {
        let ended = FlowStats { closed: 1, inferred: 1, ..FlowStats::default() };
        let mut listed = KernelAccounts::new(ALL);
        listed.add_preexisting(key(), sent(10), true);
        listed.add(key(), &ended, true);
        let counters = now(&mut listed);
        assert_eq!((counters.preexisting, counters.inferred), (1, 1));
        let mut unlisted = KernelAccounts::new(CaptureAbilities { of_open: false, ..ALL });
        unlisted.add(key(), &ended, true);
        let counters = now(&mut unlisted);
        assert_eq!((counters.preexisting, counters.inferred), (1, 1));
    }

    #[test]
    fn where_bytes_come_at_the_end_open_connections_say_so() {
        let mut accounts = KernelAccounts::new(CaptureAbilities { of_open: false, ..ALL });
        accounts.add(key(), &FlowStats { opened: 2, ..FlowStats::default() }, true);
        let open = now(&mut accounts);
        assert_eq!((open.bytes_sent, open.open_without_bytes, open.without_bytes), (0, 2, 0));
        accounts.add(key(), &FlowStats { closed: 2, sent: 60, ..FlowStats::default() }, true);
        let closed = now(&mut accounts);
        assert_eq!((closed.bytes_sent, closed.open_without_bytes, closed.without_bytes), (60, 0, 0));
    }

    #[test]
    fn the_kernels_buckets_are_those_of_the_report() {
        assert_eq!(RTT_BUCKETS, RttBucket::COUNT);
        for microseconds in (0..2_000).chain((1..32).flat_map(|bits| [(1 << bits) - 1, 1 << bits])) {
            assert_eq!(rtt_bucket(microseconds), RttBucket::of(microseconds).index(), "{microseconds} µs");
        }
    }

    #[test]
    fn retransmits_count_like_bytes() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add_preexisting(key(), Traffic { retransmits: 3, ..sent(10) }, false);
        accounts.set_open(key(), &Open { traffic: Traffic { retransmits: 5, ..sent(20) }, ..Open::default() });
        let looked = now(&mut accounts);
        assert_eq!((looked.retransmits, looked.preexisting_retransmits, looked.open_retransmits), (Some(5), 3, 5));
        accounts.add(key(), &FlowStats { closed: 1, sent: 30, retransmits: 6, ..FlowStats::default() }, true);
        let ended = now(&mut accounts);
        assert_eq!((ended.retransmits, ended.preexisting_retransmits, ended.open_retransmits), (Some(6), 3, 0));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_zero() {
        let mut accounts = KernelAccounts::new(CaptureAbilities { retransmits: false, ..ALL });
        accounts.add(key(), &FlowStats { opened: 1, ..FlowStats::default() }, true);
        assert_eq!(now(&mut accounts).retransmits, None);
    }

    #[test]
    fn a_connection_has_one_round_trip_time() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 2, ..FlowStats::default() }, true);
        accounts.set_open(key(), &Open { rtt: rtt(&[0, 1, 1]), ..with_open(1) });
        assert_eq!(now(&mut accounts).rtt, rtt(&[0, 1, 1]));
        // The connection moved to another bucket since the listing.
        accounts.add(key(), &ended_in(3), true);
        assert_eq!(now(&mut accounts).rtt.connections(), 2);
        accounts.set_open(key(), &Open { rtt: rtt(&[1]), ..with_open(1) });
        assert_eq!(now(&mut accounts).rtt, rtt(&[1, 0, 0, 1]));
    }

    #[test]
    fn a_short_connection_takes_no_long_ones_place() {
        let mut accounts = KernelAccounts::new(ALL);
        accounts.add(key(), &FlowStats { opened: 1, ..FlowStats::default() }, true);
        accounts.set_open(key(), &Open { rtt: rtt(&[0, 0, 1]), ..with_open(1) });
        accounts.add(key(), &FlowStats { opened: 1, ..ended_in(2) }, true);
        assert_eq!(now(&mut accounts).rtt, rtt(&[0, 0, 2]));
        accounts.add_unseen_close_of_unknown_bytes(key());
        assert_eq!(now(&mut accounts).rtt, rtt(&[0, 0, 1]), "of one whose end was not seen nothing is known");
    }
}
