//! Capture by eBPF: combines the programs, the listings and the accounts.

mod balancing;
mod lost_flags;
mod pending;
mod scan;

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use node_agent_common::{FlowKey, FlowStats, Loss, chunk};
use topology::{entity::Network, flow};

use super::{
    accounts::{CaptureAbilities, KernelAccounts},
    datagrams::Datagrams,
    folding::{Folding, Phase},
    keys::kernel_key,
    new_flows::NewFlows,
    object::SETTLE,
    pending_attempts::PendingAttempts,
    preexisting::{Preexisting, end_first_look},
    programs::Programs,
    slots::Slots,
    snmp_audit::SnmpAudit,
    tracked_sockets::TrackedSockets,
};
use lost_flags::LostFlags;

use crate::capture::{
    description::{Description, Feature},
    errors::{CaptureError, failed},
    reading::{Capture, Changes, Folded, Losses, MAX_FLOWS_PER_READING, Reading},
    settings::Settings,
};
use crate::names::Answer;

/// Time until the next listing after one that found changing flows; it doubles each time.
const RETRY: Duration = Duration::from_secs(1);

/// Idle time after which a slot may be assigned to another flow, if slots are scarce or very scarce.
const IDLE_SCARCE: Duration = Duration::from_secs(30);
const IDLE_VERY_SCARCE: Duration = Duration::from_secs(1);

/// Number of free slots below which the table grows: room for the flows that begin until it has.
const LEAST_FREE: u32 = 2 * chunk::SLOTS;
/// Time after which a table that could not grow is tried again.
const GROWTH_RETRY: Duration = Duration::from_mins(1);

/// Message about lost DNS answers. It contains no number, so that it does not change with each of them.
const NAMES_LOST: &str =
    "some answers of name servers came faster than they could be read: the peers that they led to are shown by address";

/// See [`NAMES_LOST`].
const UNWATCHED: &str = "more connections from before the start are open than the kernel has room to watch: the end of the \
                         others will be noticed late, without their last bytes";
/// See [`NAMES_LOST`].
const ORIGINAL_DESTINATION_LOST: &str = "the kernel had no room to remember where some datagrams were sent to: where the node translates \
                            addresses of its own processes (to Services), these are shown with the translated ones";

/// A running capture. Ends with its value.
pub struct EbpfCapture {
    description: Description,
    programs: Programs,
    slots: Slots,
    new_flow_notifications: NewFlows,
    accounts: KernelAccounts,
    preexisting: Preexisting,
    pending: PendingAttempts,
    tracked: TrackedSockets,
    folding: Folding,
    /// UDP programs, if the kernel accepts them.
    datagrams: Option<Datagrams>,
    cgroup_root: PathBuf,
    /// Number of DNS answers that did not fit into the ring buffer so far.
    lost_answers: u64,
    /// SNMP audit, if a tracepoint is used.
    snmp_audit: Option<SnmpAudit>,
    lost_flags: LostFlags,
    /// Time after which a connection that is not listed has ended.
    gone_after: Duration,
    /// Maximum of the missing connections that were reported so far.
    said_missing: u64,
    /// Time at which the reported changes were collected.
    collected_at: Instant,
    /// True if some of these changes are not reported yet.
    has_rest: bool,
    listing_interval: Duration,
    next_look: Instant,
    retry: Duration,
    /// Time before which the table of flows is not made larger.
    next_growth: Instant,
}

/// Flows of which a connection has opened or ended since the last reading.
#[derive(Debug, Default)]
struct Moved {
    opened: HashSet<FlowKey>,
    ended: HashSet<FlowKey>,
}

impl EbpfCapture {
    pub(super) fn new(
        description: Description,
        programs: Programs,
        slots: Slots,
        new_flow_notifications: NewFlows,
        datagrams: Option<Datagrams>,
        snmp_audit: Option<SnmpAudit>,
        settings: &Settings,
    ) -> Self {
        let listing_interval = settings.listing_interval;
        let known =
            CaptureAbilities { of_open: programs.can_list(), retransmits: description.has(Feature::Retransmits) };
        Self {
            description,
            programs,
            slots,
            new_flow_notifications,
            accounts: KernelAccounts::new(known),
            preexisting: Preexisting::new(settings.gone_after),
            pending: PendingAttempts::default(),
            tracked: TrackedSockets::default(),
            folding: Folding::default(),
            datagrams,
            cgroup_root: settings.cgroup_root.clone(),
            lost_answers: 0,
            snmp_audit,
            lost_flags: LostFlags::default(),
            gone_after: settings.gone_after,
            said_missing: 0,
            collected_at: Instant::now(),
            has_rest: false,
            listing_interval,
            next_look: Instant::now() + listing_interval,
            retry: RETRY,
            next_growth: Instant::now(),
        }
    }

    /// Returns the number of flows that the kernel can still store before it counts losses.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        self.programs.counters.most().saturating_sub(self.slots.used())
    }

    /// Makes the next [`Capture::read`] list all open sockets, so that the bytes of open connections are up to date.
    pub fn list_again(&mut self) {
        self.next_look = Instant::now();
    }

    /// Finds preexisting connections.
    pub(super) fn first_look(&mut self) -> Result<(), CaptureError> {
        if self.programs.can_list() {
            self.preexisting.first_look(&mut self.programs, &mut self.accounts)?;
            self.describe_unwatched();
            self.describe_earlier_balancing();
            if let Some(datagrams) = &mut self.datagrams {
                datagrams.set_listed().map_err(|error| failed("writing what the listing has shown", error))?;
            }
        } else {
            end_first_look(&mut self.programs)?;
        }
        self.collect(Instant::now())?;
        self.fold_preexisting().map_err(|error| failed("folding preexisting connections", error))?;
        self.ask_namespaces()?;
        self.next_look = Instant::now();
        Ok(())
    }

    /// Reads what the kernel has counted. Returns the flows of which a connection has opened or ended.
    fn collect(&mut self, now: Instant) -> Result<Moved, CaptureError> {
        let read = |error| failed("reading the kernel's flows", error);
        self.new_flow_notifications
            .drain(&mut self.programs, |key, slot| self.slots.assign(slot, key, now))
            .map_err(read)?;
        self.provide_slots(now);
        let nothing_lost = self.programs.lost(Loss::Opened).map_err(read)? + self.preexisting.undecided() == 0;
        let mut moved = Moved::default();
        let mut take = |key: FlowKey, since: &FlowStats| {
            self.accounts.add(key, since, nothing_lost);
            self.lost_flags.note_opened(key, since.opened);
            if key.is_folded() {
                self.folding.counted += u64::from(since.opened) + u64::from(since.failed);
            }
            if let Some(snmp_audit) = &mut self.snmp_audit {
                snmp_audit.count(&key, since);
            }
            // An end counts in several steps: the end itself may come with the next read.
            if *since != (FlowStats { opened: since.opened, failed: since.failed, ..FlowStats::default() }) {
                moved.ended.insert(key);
            }
            if since.opened > 0 {
                moved.opened.insert(key);
            }
        };
        self.slots.collect(|slot| self.programs.counters.read(slot), now, &mut take);
        // A flow that has begun meanwhile may be the other end of a connection that was just read.
        let mut begun = Vec::new();
        let assign = |key, slot| {
            if !self.slots.is_known(slot) {
                self.slots.assign(slot, key, now);
                begun.push(slot);
            }
        };
        self.new_flow_notifications.drain(&mut self.programs, assign).map_err(read)?;
        self.slots.collect_of(&begun, |slot| self.programs.counters.read(slot), now, &mut take);
        Ok(moved)
    }

    /// Collects everything that is due.
    fn collect_all(&mut self, now: Instant) -> Result<(), CaptureError> {
        self.check_balancers(now)?;
        self.fall_behind(now);
        self.read_pending(now)?;
        self.collect(now)?;
        self.release(now).map_err(|error| failed("giving slots back to the kernel", error))?;
        self.fold(now).map_err(|error| failed("folding external flows", error))?;
        if now >= self.next_look && self.programs.can_list() {
            self.scan()?;
        }
        self.recycle(now);
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.judge(now).map_err(|error| failed("counting conversations of datagrams", error))?;
        }
        self.count_pending(now)
    }

    fn describe_unwatched(&mut self) {
        if self.preexisting.unwatched() > 0 {
            self.description.lack(Feature::OldCloses, UNWATCHED);
        }
    }

    fn ask_namespaces(&mut self) -> Result<(), CaptureError> {
        self.snmp_audit.as_mut().map_or(Ok(()), |snmp_audit| snmp_audit.ask(&mut self.programs))
    }

    /// To be called after flows have been read: see [`Datagrams::answers`].
    fn answers(&mut self) -> Result<Vec<(u64, Answer)>, CaptureError> {
        let Some(datagrams) = &mut self.datagrams else { return Ok(Vec::new()) };
        let answers = datagrams.answers();
        let lost = |what| self.programs.lost(what).map_err(|error| failed("reading the kernel's losses", error));
        if lost(Loss::OriginalDestination)? > 0 {
            self.description.lack(Feature::OriginalDestinations, ORIGINAL_DESTINATION_LOST);
        }
        let lost = lost(Loss::Answer)?;
        if lost > self.lost_answers {
            let lost = lost - std::mem::replace(&mut self.lost_answers, lost);
            tracing::warn!(lost, "answers of name servers did not fit into their buffer: some peers will lack a name");
            self.description.lack(Feature::RemoteNames, NAMES_LOST);
        }
        Ok(answers)
    }

    fn losses(&mut self) -> Result<Losses, CaptureError> {
        let missed_runs =
            self.programs.missed_runs().map_err(|error| failed("asking how many runs were skipped", error))?;
        let lost = |what| self.programs.lost(what).map_err(|error| failed("reading the kernel's losses", error));
        let nameless = self.accounts.nameless();
        let opened = lost(Loss::Opened)? + lost(Loss::Unreadable)? + self.preexisting.undecided() + nameless.0;
        let failed = lost(Loss::Failed)? + self.preexisting.lost_attempts() + nameless.1;
        let missing = self.snmp_audit.as_ref().map_or(0, SnmpAudit::missing);
        self.said_missing = self.said_missing.max(missing.saturating_sub(opened + failed + missed_runs));
        Ok(Losses {
            opened: opened + self.said_missing,
            closed: lost(Loss::Closed)?,
            failed,
            new_flow_notifications: self.new_flow_notifications.dropped(),
            closes_unseen: self.accounts.closes_unseen(),
            missed_runs,
            ..Losses::default()
        })
    }

    /// Provides further slots where few are free.
    fn provide_slots(&mut self, now: Instant) {
        let counters = &self.programs.counters;
        let free = counters.slots().saturating_sub(self.slots.used());
        if free >= LEAST_FREE || counters.slots() == counters.most() || now < self.next_growth {
            return;
        }
        if let Err(error) = self.programs.add_slots() {
            tracing::warn!(slots = self.programs.counters.slots(), %error, "the table of flows cannot grow: flows that do not fit are counted as lost");
            self.next_growth = now + GROWTH_RETRY;
        }
    }

    /// Begins or ends folding, as the number of slots in use demands.
    fn fold(&mut self, now: Instant) -> Result<(), MapError> {
        if let Some(networks) = self.folding.take_networks() {
            self.programs.set_own_networks(networks)?;
        }
        let mut next = self.next_phase(now);
        if next == Phase::On && !self.folding.phase.has_rows() {
            let flows = self.flows_without_slot();
            self.folding.without_slot = u32::try_from(flows.len()).unwrap_or(u32::MAX);
            next = self.next_phase(now);
            // From then on, the end of a connection belongs to the folded row if its flow has no slot.
            if next == Phase::On && !self.provide_slots_for(&flows, now)? {
                return Ok(());
            }
        }
        self.enter(next)
    }

    fn next_phase(&self, now: Instant) -> Phase {
        let (used, folded) = (self.slots.used().saturating_add(self.folding.without_slot), self.slots.folded());
        self.folding.phase.next(used, self.max_slots(now), folded, now)
    }

    fn enter(&mut self, phase: Phase) -> Result<(), MapError> {
        if phase != self.folding.phase {
            self.programs.set_folding(phase.number())?;
            tracing::info!(?phase, slots = self.slots.used(), "folding of external flows");
            self.folding.phase = phase;
        }
        Ok(())
    }

    /// Returns external flows with open connections, all of them preexisting, that have no slot.
    fn flows_without_slot(&self) -> Vec<FlowKey> {
        let with_slot: HashSet<FlowKey> = self.slots.flows().collect();
        let is_meant = |flow: &FlowKey| !with_slot.contains(flow) && self.folding.is_external(flow);
        self.accounts.with_open().filter(is_meant).collect()
    }

    /// Returns whether all of these flows have slots.
    fn provide_slots_for(&mut self, flows: &[FlowKey], now: Instant) -> Result<bool, MapError> {
        for flow in flows {
            let Some(slot) = self.programs.provide_slot(flow)? else { return Ok(false) };
            self.slots.assign(slot, *flow, now);
        }
        self.folding.without_slot = 0;
        Ok(true)
    }

    /// Folds preexisting connections if their flows would fill the table. To be called before anything was reported.
    fn fold_preexisting(&mut self) -> Result<(), MapError> {
        self.folding.without_slot = u32::try_from(self.flows_without_slot().len()).unwrap_or(u32::MAX);
        if self.next_phase(Instant::now()) != Phase::On {
            return Ok(());
        }
        self.enter(Phase::On)?;
        // Programs that have read the earlier phase have provided their slots then.
        thread::sleep(SETTLE);
        let now = Instant::now();
        let mut moved = HashSet::new();
        for flow in self.flows_without_slot() {
            if let Ok(slot) = self.programs.slot_of.get(&flow, 0) {
                self.slots.assign(slot, flow, now);
            } else if let Some(slot) = self.programs.provide_slot(&flow.folded())? {
                self.slots.assign(slot, flow.folded(), now);
                let connections = self.accounts.move_preexisting(&flow, flow.folded());
                hold(&mut self.slots, &self.programs, slot, u32::try_from(connections).unwrap_or(u32::MAX));
                self.folding.counted += connections;
                moved.insert(flow);
            }
        }
        self.preexisting.move_to_rows(|flow| if moved.contains(flow) { flow.folded() } else { *flow });
        self.folding.without_slot = 0;
        Ok(())
    }

    /// Returns the number of slots to which the table may grow; those that it has if it could not grow just now.
    fn max_slots(&self, now: Instant) -> u32 {
        let counters = &self.programs.counters;
        if now < self.next_growth { counters.slots() } else { counters.most() }
    }

    /// Takes slots from flows that have been silent, where slots grow scarce.
    fn recycle(&mut self, now: Instant) {
        let (used, all) = (u64::from(self.slots.used()), u64::from(self.max_slots(now)));
        let least = match used * 100 / all.max(1) {
            0..50 if self.slots.folded() == 0 => return,
            0..50 => return self.recycle_folded(now),
            50..90 => IDLE_SCARCE,
            _ => IDLE_VERY_SCARCE,
        };
        self.take_idle(least, now, |_| true);
    }

    /// Takes slots from folded rows that have been silent.
    fn recycle_folded(&mut self, now: Instant) {
        self.take_idle(IDLE_SCARCE, now, FlowKey::is_folded);
    }

    fn take_idle(&mut self, least: Duration, now: Instant, is_meant: impl Fn(&FlowKey) -> bool) {
        for (slot, key) in self.slots.idle(least, now) {
            if is_meant(&key) && !self.accounts.has_open(&key) && self.programs.delete_key(&key, slot).is_ok() {
                self.slots.deleted(slot, now);
            }
        }
    }

    /// Lends out again what has come back. To be called right after `collect`.
    fn release(&mut self, now: Instant) -> Result<(), MapError> {
        for (slot, missing) in self.slots.release(now) {
            self.programs.counters.add_opened(slot, missing);
            self.programs.free.push(slot, 0)?;
        }
        Ok(())
    }
}

/// Makes the programs regard connections as open that they have not seen open.
fn hold(slots: &mut Slots, programs: &Programs, slot: u32, connections: u32) {
    programs.counters.add_opened(slot, connections);
    slots.leave_out_opened(slot, connections);
}

impl Capture for EbpfCapture {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        // The rest of what was collected last comes first.
        if !self.has_rest {
            self.collected_at = Instant::now();
            self.collect_all(self.collected_at)?;
        }
        let answers = self.answers()?;
        let losses = self.losses()?;
        // Addresses are translated in the node's network namespace, which this capture does not see.
        let nat_peers = Vec::new();
        let Changes { flows, are_partial } = self.accounts.report(MAX_FLOWS_PER_READING);
        self.has_rest = are_partial;
        let (seen, complete_until) = (self.accounts.seen(), Some(self.collected_at));
        let folded = Folded { is_active: self.folding.phase.has_rows(), connections: self.folding.counted };
        Ok(Reading { flows, nat_peers, answers, losses, folded, seen, complete_until, is_partial: are_partial })
    }

    fn set_own_networks(&mut self, networks: &[Network]) {
        self.folding.set_networks(networks);
    }

    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
        Some(self.programs.new_flow_notifications.as_fd())
    }

    fn forget(&mut self, keys: &[flow::FlowKey]) -> Vec<flow::FlowKey> {
        let now = Instant::now();
        let mut dropped = Vec::new();
        for public in keys {
            let key = kernel_key(public);
            if !self.accounts.is_at_rest(&key) {
                continue;
            }
            match self.programs.slot_of.get(&key, 0) {
                // It has just come back: the new flow is still to be read.
                Ok(slot) if !self.slots.is_known(slot) => continue,
                // What programs that have found the slot still count there opens a new account.
                Ok(slot) if self.programs.delete_key(&key, slot).is_ok() => self.slots.deleted(slot, now),
                Ok(_) => continue,
                Err(_) => {}
            }
            self.accounts.remove(&key);
            dropped.push(*public);
        }
        dropped
    }
}
