//! Decides when external flows share folded rows, and which row counts a connection. Pure.
//!
//! The programs fold while the table is nearly full ([`folding::ON`]). When there is room again, folded rows without open
//! connections are not used any more ([`folding::DRAINING`]), until none is left ([`folding::OFF`]).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use node_agent_common::{FlowKey, folding};
use topology::entity::Network;

use super::{accounts::KernelAccounts, keys::address};

/// Percentage of the maximum table size in use from which on the programs fold.
const ON_FROM: u64 = 80;
/// Percentage of the maximum table size in use below which the programs stop folding.
const OFF_BELOW: u64 = 60;

/// Minimum time between the end of folding and the last folded row: programs that have read the earlier phase have ended.
const SETTLED: Duration = Duration::from_secs(5);

/// Phase of the kernel's programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Off,
    On,
    Draining {
        since: Instant,
    },
}

impl Phase {
    /// Returns the phase that follows, with so many of the table's slots in use, some of them by folded rows.
    pub(super) fn next(self, used: u32, most: u32, folded_rows: u32, now: Instant) -> Self {
        let is_from = |percent| u64::from(used) * 100 >= u64::from(most) * percent;
        match self {
            _ if is_from(ON_FROM) => Self::On,
            Self::On if is_from(OFF_BELOW) => Self::On,
            Self::On => Self::Draining { since: now },
            Self::Draining { since } if folded_rows == 0 && now.saturating_duration_since(since) >= SETTLED => {
                Self::Off
            }
            Self::Off | Self::Draining { .. } => self,
        }
    }

    /// Returns the number by which the programs know it.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Off => folding::OFF,
            Self::On => folding::ON,
            Self::Draining { .. } => folding::DRAINING,
        }
    }

    /// Returns whether folded rows may exist.
    pub(super) fn has_rows(self) -> bool {
        self != Self::Off
    }
}

/// State of folding.
#[derive(Debug, Default)]
pub(super) struct Folding {
    pub(super) phase: Phase,
    /// The cluster's own networks beside the special ones, as the programs have them.
    networks: Vec<Network>,
    /// Networks that the programs get as soon as no folded row exists: until then, the ends of folded connections would
    /// not be found.
    next_networks: Option<Vec<Network>>,
    /// Upper bound of flows with open connections and without a slot, all of them preexisting. They will need slots.
    pub(super) without_slot: u32,
    /// Connections, conversations and attempts that folded rows have counted.
    pub(super) counted: u64,
}

impl Folding {
    /// Records the cluster's own networks.
    pub(super) fn set_networks(&mut self, networks: &[Network]) {
        self.next_networks = (self.networks != networks).then(|| networks.to_vec());
    }

    /// Returns networks that are to be given to the programs now.
    pub(super) fn take_networks(&mut self) -> Option<&[Network]> {
        if self.phase.has_rows() {
            return None;
        }
        self.networks = self.next_networks.take()?;
        Some(&self.networks)
    }

    /// Returns whether the flow's remote address is outside of the cluster, by the programs' rule.
    pub(super) fn is_external(&self, key: &FlowKey) -> bool {
        let ip: IpAddr = address(key.remote());
        !folding::is_special(&key.remote()) && !self.networks.iter().any(|network| network.contains(ip))
    }

    /// Returns the key of the row that counted an open connection of this flow. A flow has open connections in its own row
    /// or in the folded one, never in both.
    pub(super) fn row_of(&self, accounts: &KernelAccounts, flow: &FlowKey) -> FlowKey {
        let folded = flow.folded();
        let is_folded =
            self.phase.has_rows() && !accounts.has_open(flow) && self.is_external(flow) && accounts.has_open(&folded);
        if is_folded { folded } else { *flow }
    }

    /// Returns the key of the row that shows a pending attempt of this flow.
    pub(super) fn row_of_pending(&self, accounts: &KernelAccounts, flow: &FlowKey) -> FlowKey {
        let is_folded = self.phase.has_rows() && self.is_external(flow) && !accounts.has(flow);
        if is_folded { flow.folded() } else { *flow }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use node_agent_common::{FlowStats, Role};
    use proptest::prelude::*;
    use topology::{directory::Directory, entity::Node};

    use super::*;
    use crate::capture::ebpf::{accounts::CaptureAbilities, keys::octets};

    fn key(remote: &str) -> FlowKey {
        let octets = |text: &str| octets(text.parse().unwrap());
        FlowKey::new(1, 1, Role::Server, 80, octets("10.0.0.1"), octets(remote))
    }

    #[test]
    fn folding_begins_at_80_percent_and_ends_below_60() {
        let now = Instant::now();
        let draining = Phase::Draining { since: now };
        for (phase, used, rows, expected) in [
            (Phase::Off, 79, 0, Phase::Off),
            (Phase::Off, 80, 0, Phase::On),
            (Phase::On, 60, 0, Phase::On),
            (Phase::On, 59, 0, draining),
            (draining, 59, 0, draining),
            (draining, 79, 1, draining),
            (draining, 80, 1, Phase::On),
        ] {
            assert_eq!(phase.next(used, 100, rows, now), expected, "{phase:?} {used} {rows}");
        }
        let later = now + SETTLED;
        assert_eq!((draining.next(0, 100, 1, later), draining.next(79, 100, 0, later)), (draining, Phase::Off));
    }

    #[test]
    fn networks_change_only_while_no_row_is_folded() {
        let networks = [Network::parse("203.0.113.0/24").unwrap()];
        let mut folding = Folding { phase: Phase::On, ..Folding::default() };
        folding.set_networks(&networks);
        assert_eq!(folding.take_networks(), None);
        assert!(folding.is_external(&key("203.0.113.1")));
        folding.phase = Phase::Off;
        assert_eq!(folding.take_networks(), Some(&networks[..]));
        assert_eq!(folding.take_networks(), None);
        assert!(!folding.is_external(&key("203.0.113.1")) && folding.is_external(&key("198.51.100.1")));
        assert!(!folding.is_external(&key("10.1.2.3")) && !folding.is_external(&key("10.1.2.3").folded()));
        folding.set_networks(&networks);
        assert_eq!(folding.take_networks(), None);
    }

    #[test]
    fn open_socket_belongs_to_row_with_open_connections() {
        let mut accounts = KernelAccounts::new(CaptureAbilities { of_open: true, retransmits: true });
        let folding = Folding { phase: Phase::On, ..Folding::default() };
        let (own, other, inside) = (key("198.51.100.1"), key("198.51.100.2"), key("10.9.9.9"));
        assert_eq!(folding.row_of(&accounts, &own), own);
        for key in [own, own.folded()] {
            accounts.add(key, &FlowStats { opened: 1, ..FlowStats::default() }, true);
        }
        let rows = [own, other, inside].map(|flow| folding.row_of(&accounts, &flow));
        assert_eq!(rows, [own, other.folded(), inside]);
        let folding = Folding::default();
        assert_eq!(folding.row_of(&accounts, &other), other);
    }

    /// The programs' rule: see `folding.rs` of the programs.
    #[derive(Default)]
    struct Table {
        own: Option<i32>,
        folded: Option<i32>,
        phase: u32,
    }

    impl Table {
        fn row(&mut self, is_end: bool) -> (&mut Option<i32>, bool) {
            let is_folded = self.own.is_none()
                && match self.phase {
                    folding::OFF => false,
                    folding::ON => true,
                    _ => self.folded.is_some_and(|open| is_end || open > 0),
                };
            (if is_folded { &mut self.folded } else { &mut self.own }, is_folded)
        }
    }

    /// The operator has the ranges in a list, as it needs whole networks.
    #[test]
    fn operator_names_networks_outside_of_the_programs_special_ranges() {
        let near = |text: &str| {
            let ip = Ipv6Addr::from(octets(text.parse().unwrap())).to_bits();
            [ip.wrapping_sub(1), ip, ip + 1]
        };
        let edges = [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.0",
            "127.255.255.255",
            "169.254.0.0",
            "169.254.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.0",
            "192.168.255.255",
            "::1",
            "fc00::",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe80::",
            "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        for bits in edges.into_iter().flat_map(near) {
            let octets = bits.to_be_bytes();
            let (name, mut directory) = ("n".to_owned(), Directory::new());
            directory.upsert_node(Node { name, ips: vec![address(octets)], pod_networks: Vec::new() });
            let is_named = !directory.own_networks(1).networks.is_empty();
            assert_eq!(is_named, !folding::is_special(&octets), "{}", address(octets));
        }
    }

    proptest! {
        /// One address, for which the table has its own row and a folded one: each end is counted where its connection was.
        #[test]
        fn ends_are_counted_in_rows_of_their_connections(steps in prop::collection::vec(0..7_u8, 0..60)) {
            let mut table = Table::default();
            let mut open = Vec::new();
            for step in steps {
                match step {
                    0..=1 => {
                        let (row, is_folded) = table.row(false);
                        *row.get_or_insert(0) += 1;
                        open.push(is_folded);
                    }
                    2..=3 if !open.is_empty() => {
                        let was_folded = open.swap_remove(open.len() / 2);
                        let (row, is_folded) = table.row(true);
                        *row.get_or_insert(0) -= 1;
                        prop_assert_eq!(is_folded, was_folded);
                    }
                    // The agent takes slots only from rows without open connections.
                    4 => table.own = table.own.filter(|open| *open != 0),
                    5 => table.folded = table.folded.filter(|open| *open != 0),
                    6 => table.phase = match table.phase {
                        folding::OFF => folding::ON,
                        folding::ON => folding::DRAINING,
                        _ if table.folded.is_none() => folding::OFF,
                        _ => folding::ON,
                    },
                    _ => {}
                }
                prop_assert!(open.iter().all(|is_folded| *is_folded) || open.iter().all(|is_folded| !is_folded));
            }
        }
    }
}
