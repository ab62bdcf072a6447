//! Preexisting connections: finds them, separates them from those that were counted, and tracks them to their end.
//!
//! A connection that an agent saw open carries callback flags, so the kernel program counts its end. During the first
//! listing, the program notes each connection whose opening or end *this* agent counted.
//!
//! A connection without flags is older than any agent. It gets a seed: an entry that makes the kernel program count its
//! end. The side that removes an entry, the kernel program or this code, accounts for the connection. Each connection is
//! thus counted once.
//!
//! The number of seeds is limited. Connections beyond the limit are counted, too. Their end is noticed when they are not
//! listed any more, without their last bytes.

use std::{
    collections::{HashMap, HashSet},
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use node_agent_common::{FlowKey, Loss, Role};

use super::{
    accounts::KernelAccounts,
    attempts::Attempts,
    listing::{Connection, EndObserver, Listing},
    load_errors::describe,
    object::SETTLE,
    programs::Programs,
    seeds::remove_seed,
};
use crate::capture::{
    errors::{CaptureError, failed},
    traffic::Traffic,
};

/// A connection without callbacks.
#[derive(Clone, Copy, Debug)]
struct Seed {
    flow: FlowKey,
    traffic: Traffic,
    /// True if the kernel has an entry of it.
    is_watched: bool,
    /// Time of the first listing that lacks it, if all later ones lack it, too.
    missed_since: Option<Instant>,
}

/// Connections that are older than any agent.
#[derive(Debug)]
pub(super) struct Preexisting {
    /// See [`Settings::gone_after`](super::Settings::gone_after).
    gone_after: Duration,
    seeds: HashMap<u64, Seed>,
    attempts: Attempts,
    /// Connections without callbacks in the last listing that do not count as old yet.
    suspects: HashMap<u64, Connection>,
    /// Number of connections whose opening may or may not have been counted.
    undecided: u64,
    /// Connections that did not fit into the kernel's table.
    unwatched: u64,
    /// True if there are clients' connections whose opening an earlier agent observed.
    has_earlier_clients: bool,
    /// Connections that another program took the callback flags from.
    lost_flags: u64,
}

impl Preexisting {
    /// Returns a value without any connection.
    pub(super) fn new(gone_after: Duration) -> Self {
        Self {
            gone_after,
            seeds: HashMap::new(),
            attempts: Attempts::default(),
            suspects: HashMap::new(),
            undecided: 0,
            unwatched: 0,
            has_earlier_clients: false,
            lost_flags: 0,
        }
    }

    /// Returns whether an earlier agent observed the opening of a client's connection that was open at the attach.
    pub(super) fn has_earlier_clients(&self) -> bool {
        self.has_earlier_clients
    }

    /// Returns whether the connection is older than any agent.
    pub(super) fn knows(&self, cookie: u64) -> bool {
        self.seeds.contains_key(&cookie)
    }

    /// Returns the number of open connections that were left out, because the notes of counted ones had no room for all.
    pub(super) fn undecided(&self) -> u64 {
        self.undecided
    }

    /// Returns the number of connections whose end is noticed late, for lack of room.
    pub(super) fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Returns the number of connections that lost their callback flags after they were counted.
    pub(super) fn lost_flags(&self) -> u64 {
        self.lost_flags
    }

    /// Returns whether [`Self::scan`] will have to decide whether connections were counted.
    pub(super) fn has_to_decide(&self, listing: &Listing) -> bool {
        self.suspects.keys().any(|cookie| listing.connections.contains_key(cookie))
    }

    /// Returns the number of attempts with an unknown result, for lack of room.
    pub(super) fn lost_attempts(&self) -> u64 {
        self.attempts.unwatched()
    }

    /// Returns the attempts from before any agent that still wait for their answer, with the flows of their clients.
    pub(super) fn waiting_attempts(&self, programs: &Programs) -> Result<Vec<(u64, FlowKey)>, MapError> {
        self.attempts.waiting(programs)
    }

    /// Returns whether this attempt is one of [`Self::waiting_attempts`].
    pub(super) fn is_waiting(&self, programs: &Programs, cookie: u64) -> Result<bool, MapError> {
        self.attempts.is_waiting(programs, cookie)
    }

    /// Processes the first listings, while the programs note the connections that they count. Ends these notes.
    pub(super) fn first_look(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
    ) -> Result<(), CaptureError> {
        let mut listing = list(programs)?;
        let mut old = select(&listing, |_, found| found.end == EndObserver::Unseen);
        self.attempts = Attempts::of(programs, &listing);
        if !old.is_empty() || !self.attempts.is_empty() {
            watch(programs, true)?;
            thread::sleep(SETTLE);
            // Listed again: a connection that was just being established has got its flags meanwhile.
            let settled = list(programs)?.connections;
            old.retain(|cookie, found| {
                settled.get(cookie).is_none_or(|now| (now.end, now.flow) == (found.end, found.flow))
            });
            self.attempts.enter(programs);
            let mut entered = Vec::with_capacity(old.len());
            for (cookie, found) in old {
                entered.push((cookie, found, self.enter(programs, cookie, &found)));
            }
            listing = list(programs)?;
            for (cookie, found, is_watched) in entered {
                let still_there = listing.connections.contains_key(&cookie);
                self.settle(programs, accounts, (cookie, &found), is_watched, still_there)?;
            }
        }
        let noted = end_first_look(programs)?;
        self.attempts.scan(programs, accounts, &listing, &noted.cookies)?;
        self.attempts.enter_pending(programs, &listing);
        self.find_earlier(programs, accounts, &listing, &noted);
        Ok(())
    }

    /// Counts an old connection without callbacks. It was listed before its seed was entered; it may have ended since.
    fn settle(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        (cookie, found): (u64, &Connection),
        is_watched: bool,
        still_there: bool,
    ) -> Result<(), CaptureError> {
        if still_there {
            accounts.add_preexisting(found.flow, found.traffic, found.is_inferred);
            self.plant(cookie, found, is_watched);
        } else if is_watched && remove_seed(programs, cookie)? {
            // The connection and its entry are gone. Either the kernel counted the end and relies on this code for the
            // beginning, or the connection ended unobserved before the kernel used the entry.
            accounts.add_preexisting(found.flow, found.traffic, found.is_inferred);
        }
        Ok(())
    }

    /// Finds connections whose opening an earlier agent observed, by the notes of this agent's programs.
    fn find_earlier(&mut self, programs: &Programs, accounts: &mut KernelAccounts, listing: &Listing, noted: &Noted) {
        // A tracked socket was tracked from its opening on.
        if programs.follows() {
            return;
        }
        let is_earlier = |(cookie, found): &(&u64, &Connection)| {
            found.end == EndObserver::Callbacks && !noted.cookies.contains(cookie)
        };
        for (_, found) in listing.connections.iter().filter(is_earlier) {
            self.has_earlier_clients |= found.flow.role() == Some(Role::Client);
            if noted.is_complete {
                accounts.add_preexisting(found.flow, found.traffic, found.is_inferred);
            } else {
                self.undecided += 1;
            }
        }
    }

    /// Records that connections are counted in other rows than those of their flows.
    pub(super) fn move_to_rows(&mut self, row_of: impl Fn(&FlowKey) -> FlowKey) {
        for seed in self.seeds.values_mut() {
            seed.flow = row_of(&seed.flow);
        }
    }

    /// Processes a later listing: connections that were hidden (not accepted yet) appear, others are gone. `row_of` returns
    /// the row in which the programs count the end of a hidden connection. `was_counted` returns whether all listed connections
    /// of a flow were counted; `None` if that is not known yet.
    pub(super) fn scan(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        listing: &Listing,
        row_of: &mut dyn FnMut(&mut Programs, FlowKey) -> Result<FlowKey, CaptureError>,
        was_counted: &dyn Fn(&KernelAccounts, &FlowKey) -> Option<bool>,
    ) -> Result<(), CaptureError> {
        self.attempts.scan(programs, accounts, listing, &HashSet::new())?;
        self.find_late(programs, accounts, listing, row_of, was_counted)?;
        self.find_gone(programs, accounts, listing)?;
        watch(programs, !self.seeds.is_empty() || !self.attempts.is_empty())
    }

    fn find_late(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        listing: &Listing,
        row_of: &mut dyn FnMut(&mut Programs, FlowKey) -> Result<FlowKey, CaptureError>,
        was_counted: &dyn Fn(&KernelAccounts, &FlowKey) -> Option<bool>,
    ) -> Result<(), CaptureError> {
        let unknown =
            select(listing, |cookie, found| found.end != EndObserver::Callbacks && !self.seeds.contains_key(&cookie));
        let (certain, suspects) = unknown.into_iter().partition(|(cookie, _)| self.suspects.contains_key(cookie));
        self.suspects = suspects;
        let certain: HashMap<u64, Connection> = certain;
        for (cookie, found) in certain {
            let Some(was_counted) = was_counted(accounts, &found.flow) else {
                self.suspects.insert(cookie, found);
                continue;
            };
            let found = Connection { flow: row_of(programs, found.flow)?, ..found };
            watch(programs, true)?;
            let is_watched = self.enter(programs, cookie, &found);
            self.plant(cookie, &found, is_watched);
            if was_counted {
                self.lost_flags += 1;
            } else {
                accounts.add_preexisting(found.flow, found.traffic, found.is_inferred);
            }
        }
        Ok(())
    }

    /// Enters a seed, so that the kernel program counts the end of this connection. Returns whether there was room.
    fn enter(&mut self, programs: &mut Programs, cookie: u64, found: &Connection) -> bool {
        let entered = programs.seeds.insert(cookie, found.flow, 0);
        if let Err(error) = &entered {
            if self.unwatched == 0 {
                tracing::warn!(error = %describe(error), "the kernel can't be asked to watch all connections from before");
            }
            self.unwatched += 1;
        }
        entered.is_ok()
    }

    fn plant(&mut self, cookie: u64, found: &Connection, is_watched: bool) {
        self.seeds.insert(cookie, Seed { flow: found.flow, traffic: found.traffic, is_watched, missed_since: None });
    }

    /// Handles seeds whose socket is not listed: the kernel program counted its end, or no process holds it but it has not
    /// ended yet, or its end was missed.
    fn find_gone(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        let mut gone = Vec::new();
        let was_counted = |cookie| matches!(programs.seeds.get(cookie, 0), Err(MapError::KeyNotFound));
        for (cookie, seed) in &mut self.seeds {
            match listing.connections.get(cookie) {
                Some(found) => (seed.traffic, seed.missed_since) = (found.traffic, None),
                None if seed.is_watched && was_counted(cookie) => gone.push(*cookie),
                None if seed.missed_since.get_or_insert_with(Instant::now).elapsed() >= self.gone_after => {
                    gone.push(*cookie);
                }
                None => {}
            }
        }
        for cookie in gone {
            let Some(seed) = self.seeds.remove(&cookie) else { continue };
            if !seed.is_watched || !remove_seed(programs, cookie)? {
                accounts.add_unseen_close(seed.flow, seed.traffic);
            }
        }
        Ok(())
    }
}

fn select(listing: &Listing, is_meant: impl Fn(u64, &Connection) -> bool) -> HashMap<u64, Connection> {
    let meant = listing.connections.iter().filter(|(cookie, found)| is_meant(**cookie, found));
    meant.map(|(cookie, found)| (*cookie, *found)).collect()
}

/// Notes of the programs during the first listings.
#[derive(Debug)]
pub(super) struct Noted {
    /// Sockets whose opening or end was counted.
    cookies: HashSet<u64>,
    /// True if these are all.
    is_complete: bool,
}

/// Ends the notes of the first listings, and reads them.
pub(super) fn end_first_look(programs: &mut Programs) -> Result<Noted, CaptureError> {
    let what = "ending the first scan at the open connections";
    programs.set_first_look(false).map_err(|error| failed(what, error))?;
    thread::sleep(SETTLE);
    // Set again: a program may have found just then that there was no room.
    programs.set_first_look(false).map_err(|error| failed(what, error))?;
    let cookies = programs.take_notes().map_err(|error| failed(what, error))?;
    let lost = programs.lost(Loss::Recent).map_err(|error| failed(what, error))?;
    if lost > 0 {
        tracing::warn!(lost, "more connections came and went during the first scan than could be noted");
    }
    Ok(Noted { cookies, is_complete: lost == 0 })
}

/// Returns a listing of the open sockets.
pub(super) fn list(programs: &mut Programs) -> Result<Listing, CaptureError> {
    let follows = programs.follows();
    let file = programs.list().map_err(|error| failed("beginning to list the open sockets", error))?;
    Listing::read(file, follows).map_err(|error| failed("listing the open sockets", error))
}

fn watch(programs: &mut Programs, on: bool) -> Result<(), CaptureError> {
    programs.watch_old_closes(on).map_err(|error| failed("watching for the end of old connections", error))
}
