//! Connections from before the attach: found, told from those that were counted, and followed to their end.
//!
//! A connection that some agent has seen to open carries callback flags, and its end will be counted; whether its
//! opening was counted by *this* agent, the kernel notes while the first look lasts. One without flags is older than
//! any agent. It gets a seed: an entry that makes the kernel count its end. Whoever removes an entry, the kernel or
//! this code, accounts for the connection, so that everything happens once.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use node_agent_common::{FlowKey, Loss};

use super::{
    CaptureError,
    accounts::Accounts,
    kernel::Kernel,
    listing::{Connection, Listing},
    traffic::Traffic,
};

/// Between the two listings of the first look: a connection that was just being established in the first one will have
/// its flags in the second.
const SETTLE: Duration = Duration::from_millis(20);

/// A connection that no process holds any more may still be sending what is left; after this it is taken for one whose
/// end was missed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection without callbacks.
#[derive(Clone, Copy, Debug)]
struct Seed {
    flow: FlowKey,
    traffic: Traffic,
    /// The first of the looks since then that did not show it.
    missed_since: Option<Instant>,
}

/// The connections that are older than any agent.
#[derive(Debug, Default)]
pub(super) struct Existing {
    seeds: HashMap<u64, Seed>,
    /// Without callbacks at the last look, and not yet taken for old.
    suspects: HashMap<u64, Connection>,
}

impl Existing {
    /// Whether it is one of those that are older than any agent.
    pub(super) fn knows(&self, cookie: u64) -> bool {
        self.seeds.contains_key(&cookie)
    }

    /// The first look, while the kernel notes what it counts. Leaves a listing of what is open now.
    pub(super) fn first_look(&mut self, kernel: &mut Kernel, accounts: &mut Accounts) -> Result<Listing, CaptureError> {
        let mut old = list(kernel)?.connections;
        old.retain(|cookie, found| !found.has_callbacks || !kernel.has_counted_opening(*cookie));
        if old.is_empty() {
            return list(kernel);
        }
        if old.values().any(|found| !found.has_callbacks) {
            watch(kernel, true)?;
        }
        thread::sleep(SETTLE);
        // Again: one that was just being established has been noted, or has got its flags, meanwhile.
        let settled = list(kernel)?.connections;
        old.retain(|cookie, found| {
            settled.get(cookie).is_none_or(|now| {
                now.has_callbacks == found.has_callbacks
                    && now.flow == found.flow
                    && (!found.has_callbacks || !kernel.has_counted_opening(*cookie))
            })
        });
        for (cookie, found) in &old {
            let entered = if found.has_callbacks {
                kernel.note_opening(*cookie)
            } else {
                kernel.seeds.insert(cookie, found.flow, 0)
            };
            entered.map_err(|error| failed("noting an open connection from before", error))?;
        }
        let now = list(kernel)?;
        for (cookie, found) in old {
            self.settle(kernel, accounts, cookie, &found, now.connections.contains_key(&cookie))?;
        }
        Ok(now)
    }

    /// An old connection, which was there before it was entered, and is or is not there after.
    fn settle(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        cookie: u64,
        found: &Connection,
        still_there: bool,
    ) -> Result<(), CaptureError> {
        if still_there {
            accounts.add_preexisting(found.flow, found.traffic);
            if !found.has_callbacks {
                self.seeds.insert(cookie, Seed { flow: found.flow, traffic: found.traffic, missed_since: None });
            }
            return Ok(());
        }
        // Gone. With its entry: the kernel has counted its end and relied on us for the beginning. Without having
        // taken the entry, it ended before: the kernel knows it as older by itself, or nobody saw it end.
        let entry = if found.has_callbacks { kernel.forget_opening(cookie) } else { kernel.seeds.remove(&cookie) };
        if was_taken(entry).map_err(|error| failed("looking for the note of an open connection", error))? {
            accounts.add_preexisting(found.flow, found.traffic);
        }
        Ok(())
    }

    /// A later look: connections that had been hidden (not accepted yet) come up, others are gone.
    pub(super) fn look(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        self.find_late(kernel, accounts, listing)?;
        self.find_gone(kernel, accounts, listing)?;
        watch(kernel, !self.seeds.is_empty())
    }

    fn find_late(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        let new = |(cookie, found): &(&u64, &Connection)| !found.has_callbacks && !self.seeds.contains_key(*cookie);
        let unknown: HashMap<_, _> =
            listing.connections.iter().filter(new).map(|(cookie, found)| (*cookie, *found)).collect();
        let (certain, suspects) = unknown.into_iter().partition(|(cookie, _)| self.suspects.contains_key(cookie));
        self.suspects = suspects;
        let certain: HashMap<u64, Connection> = certain;
        for (cookie, found) in certain {
            watch(kernel, true)?;
            kernel
                .seeds
                .insert(cookie, found.flow, 0)
                .map_err(|error| failed("noting an open connection from before", error))?;
            self.seeds.insert(cookie, Seed { flow: found.flow, traffic: found.traffic, missed_since: None });
            accounts.add_preexisting(found.flow, found.traffic);
        }
        Ok(())
    }

    /// A seed whose socket is not listed: its end was counted by the kernel; or no process holds it but it has not
    /// ended yet; or its end was missed.
    fn find_gone(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        let mut gone = Vec::new();
        for (cookie, seed) in &mut self.seeds {
            match listing.connections.get(cookie) {
                Some(found) => (seed.traffic, seed.missed_since) = (found.traffic, None),
                None if matches!(kernel.seeds.get(cookie, 0), Err(MapError::KeyNotFound)) => gone.push(*cookie),
                None if seed.missed_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE => gone.push(*cookie),
                None => {}
            }
        }
        for cookie in gone {
            let Some(seed) = self.seeds.remove(&cookie) else { continue };
            let taken = was_taken(kernel.seeds.remove(&cookie))
                .map_err(|error| failed("removing the note of an old connection", error))?;
            if !taken {
                accounts.add_unseen_close(seed.flow, seed.traffic);
            }
        }
        Ok(())
    }
}

/// Ends the notes of the first look.
pub(super) fn end_first_look(kernel: &mut Kernel) -> Result<(), CaptureError> {
    let what = "ending the first look at the open connections";
    kernel.set_first_look(false).map_err(|error| failed(what, error))?;
    for cookie in kernel.noted_openings() {
        was_taken(kernel.forget_opening(cookie)).map_err(|error| failed(what, error))?;
    }
    match kernel.lost(Loss::Recent).map_err(|error| failed(what, error))? {
        0 => Ok(()),
        lost => {
            tracing::warn!(
                lost,
                "more connections opened during the first look than could be noted: of those, some may be counted twice, as opened and as older"
            );
            Ok(())
        }
    }
}

/// A listing of what is open now.
pub(super) fn list(kernel: &mut Kernel) -> Result<Listing, CaptureError> {
    let follows = kernel.follows();
    let file = kernel.list().map_err(|error| failed("beginning to list the open sockets", error))?;
    Listing::read(file, follows).map_err(|error| failed("listing the open sockets", error))
}

fn watch(kernel: &mut Kernel, on: bool) -> Result<(), CaptureError> {
    kernel.watch_old_closes(on).map_err(|error| failed("watching for the end of old connections", error))
}

/// Whether an entry had been taken by the kernel when we came to remove it.
pub(super) fn was_taken(removed: Result<(), MapError>) -> Result<bool, MapError> {
    match removed {
        Ok(()) => Ok(false),
        Err(MapError::KeyNotFound) => Ok(true),
        Err(error) => {
            if let MapError::SyscallError(call) = &error
                && call.io_error.kind() == std::io::ErrorKind::NotFound
            {
                return Ok(true);
            }
            Err(error)
        }
    }
}

pub(super) fn failed(attempted: &str, source: impl std::error::Error + Send + Sync + 'static) -> CaptureError {
    CaptureError { attempted: String::from(attempted), source: Box::new(source) }
}
