//! Listings of the open sockets, and what follows from them.

use std::{collections::HashMap, time::Instant};

use aya::maps::MapError;
use node_agent_common::FlowKey;

use super::{EbpfCapture, Moved, RETRY, hold};
use crate::capture::{
    ebpf::{
        accounts::{KernelAccounts, Listed, Open},
        folding::Folding,
        listing::{Connection, EndObserver, Listing},
        preexisting::list,
        programs::Programs,
        slots::Slots,
    },
    errors::{CaptureError, failed},
};

impl EbpfCapture {
    /// Lists the open sockets, and computes all that follows from it.
    pub(super) fn scan(&mut self) -> Result<(), CaptureError> {
        let begun = Instant::now();
        self.ask_namespaces()?;
        let listing = list(&mut self.programs)?;
        let mut moved = Moved::default();
        let may_lack_flags = self.lost_flags.are_possible() && self.preexisting.has_to_decide(&listing);
        if may_lack_flags {
            moved = self.collect(Instant::now())?;
        }
        self.programs
            .mark_in_sockmap(&listing)
            .map_err(|error| failed("marking sockets whose payload goes past TCP", error))?;
        let listed = self.rows_of(&listing);
        let (folding, slots) = (&self.folding, &mut self.slots);
        let mut row_of = |programs: &mut Programs, flow| {
            row_of_preexisting(programs, slots, folding, flow)
                .map_err(|error| failed("folding a preexisting connection", error))
        };
        let was_counted = |accounts: &KernelAccounts, flow: &FlowKey| {
            if !may_lack_flags {
                return Some(false);
            }
            let row = folding.row_of(accounts, flow);
            let is_still = !moved.opened.contains(&row) && !moved.ended.contains(&row);
            is_still.then(|| accounts.open(&row) >= listed.get(&row).map_or(0, |listed| listed.connections))
        };
        self.preexisting.scan(&mut self.programs, &mut self.accounts, &listing, &mut row_of, &was_counted)?;
        self.describe_unwatched();
        if self.programs.follows() {
            self.tracked.scan(&mut self.programs, &mut self.accounts, &self.folding, &listing)?;
        }
        let now = Instant::now();
        let later = self.collect(now)?;
        moved.opened.extend(later.opened);
        moved.ended.extend(later.ended);
        if let Some(snmp_audit) = &mut self.snmp_audit {
            snmp_audit.settle(&listing.dialling);
        }
        let all_still = self.weigh(&listing, &listed, &moved);
        self.settle_lost_flags(&moved);
        // Listings take at most a hundredth of the time, for any number of sockets.
        let soonest = 100 * (now - begun);
        self.next_look =
            now + if all_still { self.listing_interval } else { self.retry.max(soonest).min(self.listing_interval) };
        self.retry = if all_still { RETRY } else { (2 * self.retry).min(self.listing_interval) };
        Ok(())
    }

    /// Returns the number of listed connections of each row.
    fn rows_of(&self, listing: &Listing) -> HashMap<FlowKey, Listed> {
        let mut listed: HashMap<FlowKey, Listed> = HashMap::new();
        for connection in listing.connections.values() {
            let listed = listed.entry(self.folding.row_of(&self.accounts, &connection.flow)).or_default();
            listed.connections += 1;
            listed.past_tcp += u64::from(connection.is_past_tcp);
        }
        listed
    }

    /// Sums the values of open connections. Leaves out flows of which a connection may have ended since the listing began,
    /// because it would count twice. Returns whether there were none.
    fn weigh(&mut self, listing: &Listing, listed: &HashMap<FlowKey, Listed>, moved: &Moved) -> bool {
        let mut open: HashMap<FlowKey, Open> = HashMap::new();
        // One that is not accounted for may be one that has just ended.
        let known = |cookie, found: &Connection| found.end == EndObserver::Callbacks || self.preexisting.knows(cookie);
        for (cookie, connection) in &listing.connections {
            let row = self.folding.row_of(&self.accounts, &connection.flow);
            if known(*cookie, connection) {
                open.entry(row).or_default().add(connection.traffic, connection.rtt);
            }
        }
        let mut all_still = true;
        for (key, open) in open {
            if moved.ended.contains(&key) {
                all_still = false;
            } else {
                self.accounts.set_open(key, &open);
            }
        }
        self.accounts.set_listed(listed, |key| !moved.ended.contains(key) && !moved.opened.contains(key));
        all_still
    }
}

/// Returns the row in which the programs count the end of a preexisting connection that was found just now.
fn row_of_preexisting(
    programs: &mut Programs,
    slots: &mut Slots,
    folding: &Folding,
    flow: FlowKey,
) -> Result<FlowKey, MapError> {
    // A flow's own row must not come into being here: its folded row may have open connections.
    if !folding.phase.has_rows() || !folding.is_external(&flow) || programs.slot_of.get(&flow, 0).is_ok() {
        return Ok(flow);
    }
    let Some(slot) = programs.provide_slot(&flow.folded())? else { return Ok(flow) };
    slots.assign(slot, flow.folded(), Instant::now());
    hold(slots, programs, slot, 1);
    Ok(flow.folded())
}
