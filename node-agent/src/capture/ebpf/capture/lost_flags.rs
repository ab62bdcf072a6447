//! Callback flags that other programs took from sockets: the kernel calls no program at the end of such a connection.
//!
//! A program that the kernel calls after this one can overwrite flags: see [`sock_ops`](super::super::sock_ops). Listings
//! show which connections lack them although they were counted. Their ends are then counted like those of preexisting
//! connections. Connections that are not listed a minute later have ended.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use node_agent_common::{FlowKey, Protocol};

use super::{EbpfCapture, Moved};
use crate::capture::{
    description::Feature,
    ebpf::{accounts::KernelAccounts, loaded_programs},
};

/// State of the search for lost flags.
#[derive(Debug, Default)]
pub(super) struct LostFlags {
    /// True if the kernel has called another program after this one since the last reading.
    is_exposed: bool,
    /// The programs that the kernel has called after this one, as `bpftool` shows them; empty if there were none.
    programs: String,
    /// Connections that opened meanwhile, by flow.
    suspects: HashMap<FlowKey, Suspects>,
    /// True if the kernel has refused to list the programs.
    is_refused: bool,
}

#[derive(Debug)]
struct Suspects {
    opened: u64,
    since: Instant,
}

impl LostFlags {
    /// Returns whether flags may have been lost since the capture began.
    pub(super) fn are_possible(&self) -> bool {
        !self.programs.is_empty()
    }

    /// Records opened connections.
    pub(super) fn note_opened(&mut self, key: FlowKey, opened: u32) {
        if self.is_exposed && opened > 0 && key.protocol() == Protocol::Tcp {
            let suspects = self.suspects.entry(key).or_insert_with(|| Suspects { opened: 0, since: Instant::now() });
            suspects.opened += u64::from(opened);
            suspects.since = Instant::now();
        }
    }

    /// Settles the connections that opened after the flags' loss became possible, after a listing: those of flows that are
    /// still are open if they are listed. Returns whether any has ended unobserved.
    fn settle(
        &mut self,
        accounts: &mut KernelAccounts,
        gone_after: Duration,
        is_still: impl Fn(&FlowKey) -> bool,
    ) -> bool {
        let mut has_lost = false;
        self.suspects.retain(|key, suspects| {
            if !is_still(key) {
                return true;
            }
            let unlisted = accounts.unlisted(key).min(suspects.opened);
            if unlisted > 0 && suspects.since.elapsed() < gone_after {
                return true;
            }
            for _ in 0..unlisted {
                accounts.add_unseen_close_of_unknown_bytes(*key);
            }
            has_lost |= unlisted > 0;
            false
        });
        has_lost
    }
}

impl EbpfCapture {
    /// Goes behind programs that were attached since the last reading. To be called before the counts are read.
    pub(super) fn fall_behind(&mut self, now: Instant) {
        let behind = self.programs.fall_behind(now).unwrap_or_else(|error| {
            if !std::mem::replace(&mut self.lost_flags.is_refused, true) {
                tracing::warn!(%error, "cannot keep the sock_ops program behind those of other owners");
            }
            Vec::new()
        });
        self.lost_flags.is_exposed = !behind.is_empty();
        if behind.is_empty() {
            return;
        }
        let loaded = self.programs.list_programs().unwrap_or_default();
        self.lost_flags.programs = loaded_programs::describe(&behind, &loaded);
        if !self.programs.can_list() {
            // Nothing shows whether it took any.
            self.describe_lost_flags("may have taken");
        }
    }

    /// To be called after a listing and the reading that followed it.
    pub(super) fn settle_lost_flags(&mut self, moved: &Moved) {
        let is_still = |key: &FlowKey| !moved.ended.contains(key) && !moved.opened.contains(key);
        let has_lost = self.lost_flags.settle(&mut self.accounts, self.gone_after, is_still);
        if has_lost || self.preexisting.lost_flags() > 0 {
            self.describe_lost_flags("took");
        }
    }

    fn describe_lost_flags(&mut self, took: &str) {
        let programs = &self.lost_flags.programs;
        let message = format!(
            "a sock_ops program of another owner {took} the callback flags of sockets: {programs}. The ends of connections \
             that opened before the agent's program was attached behind it are counted late, without their last bytes. \
             Let that program add its flags to those that a socket has"
        );
        self.description.lack(Feature::CallbackFlags, &message);
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::{FlowStats, Role};

    use super::*;
    use crate::capture::ebpf::accounts::{CaptureAbilities, Listed};

    fn key() -> FlowKey {
        FlowKey::new(1, 1, Role::Server, 80, [1; 16], [2; 16])
    }

    fn listed_connections(connections: u64) -> Listed {
        Listed { connections, past_tcp: 0 }
    }

    /// Returns accounts with so many open connections, of which as many are listed.
    fn accounts(opened: u32, listed: u64) -> KernelAccounts {
        let mut accounts = KernelAccounts::new(CaptureAbilities { of_open: true, retransmits: true });
        accounts.add(key(), &FlowStats { opened, ..FlowStats::default() }, true);
        accounts.set_listed(&HashMap::from([(key(), listed_connections(listed))]), |_| true);
        accounts
    }

    #[test]
    fn suspects_that_are_not_listed_have_ended_after_a_while() {
        let mut flags = LostFlags { is_exposed: true, ..LostFlags::default() };
        let mut accounts = accounts(5, 2);
        flags.note_opened(key(), 2);
        assert!(!flags.settle(&mut accounts, Duration::from_hours(1), |_| true), "they may be accepted yet");
        assert!(!flags.settle(&mut accounts, Duration::ZERO, |_| false), "the flow is moving");
        assert!(flags.settle(&mut accounts, Duration::ZERO, |_| true));
        assert_eq!(
            (accounts.unlisted(&key()), accounts.closes_unseen()),
            (1, 2),
            "one is older than the other program"
        );
        assert!(!flags.settle(&mut accounts, Duration::ZERO, |_| true));
    }

    #[test]
    fn listed_connections_and_those_from_before_are_no_suspects() {
        let mut flags = LostFlags::default();
        let mut accounts = accounts(5, 2);
        flags.note_opened(key(), 5);
        assert!(!flags.settle(&mut accounts, Duration::ZERO, |_| true));
        flags.is_exposed = true;
        flags.note_opened(key(), 2);
        accounts.set_listed(&HashMap::from([(key(), listed_connections(5))]), |_| true);
        assert!(!flags.settle(&mut accounts, Duration::ZERO, |_| true));
        assert_eq!(accounts.closes_unseen(), 0);
    }
}
