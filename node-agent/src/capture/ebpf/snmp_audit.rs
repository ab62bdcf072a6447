//! Estimates connections that the tracepoint missed without the kernel reporting it, by comparing our counts with each
//! namespace's own TCP counters (RFC 4022, `/proc/net/snmp`).
//!
//! A namespace's counters are read first, then the sockets are listed, then the programs' counts are read. Each
//! connection that the namespace had counted is in one of the two by then, so no connection in progress is taken for
//! missing. Connections that open in between hide as many missing ones, until a quieter time. A namespace that is gone
//! cannot be audited.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use node_agent_common::{FlowKey, FlowStats, Protocol, Role};

use super::{programs::Programs, tasks};
use crate::capture::{
    errors::{CaptureError, failed},
    proc::{
        cgroups::Cgroups,
        processes::{Namespace, Processes},
        tcp_counters::{TcpCounter, TcpCounts},
    },
    settings::Settings,
};

/// Maximum number of namespaces without processes that are kept, because processes may return to them.
const MOST_EMPTY: usize = 4096;

/// Beginnings of connections, from both ends' sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// Attempts, with any result.
    pub(super) clients: u64,
    /// Accepted connections.
    pub(super) servers: u64,
}

impl Begun {
    fn since(self, earlier: Self) -> Self {
        Self {
            clients: self.clients.saturating_sub(earlier.clients),
            servers: self.servers.saturating_sub(earlier.servers),
        }
    }

    fn sum(self) -> u64 {
        self.clients + self.servers
    }
}

impl From<TcpCounts> for Begun {
    fn from(counts: TcpCounts) -> Self {
        Self { clients: counts.active_opens, servers: counts.passive_opens }
    }
}

/// One namespace's account.
#[derive(Clone, Copy, Debug, Default)]
struct NamespaceBalance {
    /// The namespace's own counts when counting began, and the programs' counts for it until then.
    base: [Begun; 2],
    /// The namespace's latest counts.
    said: Begun,
    counted: Begun,
    missing: u64,
}

impl NamespaceBalance {
    /// Records the namespace's own counts.
    fn record_heartbeat(&mut self, said: Begun) {
        if said.clients < self.said.clients || said.servers < self.said.servers {
            // Another namespace with the same inode number.
            self.base = [Begun::default(), self.counted];
        }
        self.said = said;
    }

    /// Compares with the present counts, while the given number of attempts is in progress.
    fn settle(&mut self, under_way: u64) {
        let counted = self.counted.since(self.base[1]);
        let known = Begun { clients: counted.clients + under_way, ..counted };
        self.missing = self.missing.max(self.said.since(self.base[0]).since(known).sum());
    }
}

/// Namespace with readable counters.
#[derive(Debug)]
struct Asked {
    netns: u32,
    counter: TcpCounter,
}

/// All namespaces that only processes of this node use.
#[derive(Debug)]
pub(super) struct SnmpAudit {
    processes: Processes,
    cgroups: Cgroups,
    /// Namespaces by their name in `/proc`, which may not be their inode number.
    asked: HashMap<u32, Asked>,
    accounts: HashMap<u32, NamespaceBalance>,
    /// Namespaces that others used, too, when they were found, by name: their counts contain the others' connections.
    shared: HashSet<u32>,
    /// True if the counters of all namespaces at the start were read.
    has_begun: bool,
    /// Missing connections of dropped namespaces.
    missing_elsewhere: u64,
}

impl SnmpAudit {
    /// Opens the audit for the processes below the settings' cgroup root; `None` if the kernel does not report enough.
    pub(super) fn open(settings: &Settings, programs: &Programs) -> io::Result<Option<Self>> {
        if !programs.can_list_tasks() || !tasks::are_known_by_number(&settings.proc) {
            return Ok(None);
        }
        Ok(Some(Self {
            processes: Processes::new(&settings.proc),
            cgroups: Cgroups::open(&settings.cgroup_root, &settings.proc)?,
            asked: HashMap::new(),
            accounts: HashMap::new(),
            shared: HashSet::new(),
            has_begun: false,
            missing_elsewhere: 0,
        }))
    }

    /// Adds the programs' counts of a flow since the last reading. Namespaces count TCP connections only.
    pub(super) fn count(&mut self, key: &FlowKey, since: &FlowStats) {
        if key.protocol() != Protocol::Tcp {
            return;
        }
        let counted = &mut self.accounts.entry(key.netns()).or_default().counted;
        match key.role() {
            Some(Role::Client) => counted.clients += u64::from(since.opened) + u64::from(since.failed),
            Some(Role::Server) => counted.servers += u64::from(since.opened),
            None => {}
        }
    }

    /// Reads the counters of all namespaces. Must be called before the sockets are listed; the programs' counts are read
    /// after that.
    pub(super) fn ask(&mut self, programs: &mut Programs) -> Result<(), CaptureError> {
        let namespaces =
            self.processes.scan(&mut self.cgroups).map_err(|error| failed("listing the processes", error))?;
        self.shared.retain(|name| namespaces.contains_key(name));
        let is_met = |name: &u32| self.asked.contains_key(name);
        let shared = namespaces.iter().filter(|(name, namespace)| namespace.is_shared && !is_met(name));
        self.shared.extend(shared.map(|(name, _)| *name));
        self.asked.retain(|name, _| namespaces.get(name).is_some_and(|namespace| !namespace.is_shared));
        let is_new = |(name, namespace): &(&u32, &Namespace)| !namespace.is_shared && !self.asked.contains_key(name);
        let new: Vec<(u32, &Namespace)> = namespaces.iter().filter(is_new).map(|(name, it)| (*name, it)).collect();
        if !new.is_empty() {
            let what = "listing who is in which network namespace";
            let listing = programs.list_tasks().map_err(|error| failed(what, error))?;
            let numbers = tasks::read(listing).map_err(|error| failed(what, error))?;
            for (name, namespace) in new {
                self.meet(name, namespace, &numbers);
            }
        }
        for asked in self.asked.values() {
            if let (Ok(said), Some(account)) = (asked.counter.read(), self.accounts.get_mut(&asked.netns)) {
                account.record_heartbeat(said.into());
            }
        }
        self.has_begun = true;
        self.forget_empty();
        Ok(())
    }

    fn meet(&mut self, name: u32, namespace: &Namespace, numbers: &HashMap<u32, u32>) {
        let Some(netns) = number_of(namespace, numbers) else { return };
        let directories = namespace.pids.iter().map(|pid| self.processes.directory(*pid));
        let Some(counter) = directories.take(8).find_map(|process| TcpCounter::open(&process).ok()) else { return };
        let account = self.accounts.entry(netns).or_default();
        if (!self.has_begun || self.shared.remove(&name))
            && let Ok(said) = counter.read()
        {
            account.base = [said.into(), account.counted];
        }
        self.asked.insert(name, Asked { netns, counter });
    }

    fn forget_empty(&mut self) {
        if self.accounts.len() <= self.asked.len() + MOST_EMPTY {
            return;
        }
        let asked: HashSet<u32> = self.asked.values().map(|asked| asked.netns).collect();
        let gone = self.accounts.extract_if(|netns, _| !asked.contains(netns));
        self.missing_elsewhere += gone.map(|(_, account)| account.missing).sum::<u64>();
    }

    /// Compares the namespaces' counts with the programs' counts. `under_way`: attempts by namespace, listed in between.
    pub(super) fn settle(&mut self, under_way: &HashMap<u32, u64>) {
        for Asked { netns, .. } in self.asked.values() {
            if let Some(account) = self.accounts.get_mut(netns) {
                account.settle(under_way.get(netns).copied().unwrap_or_default());
            }
        }
    }

    /// Returns a lower bound of missing connections and attempts, those with other known reasons included.
    pub(super) fn missing(&self) -> u64 {
        self.accounts.values().map(|account| account.missing).sum::<u64>() + self.missing_elsewhere
    }
}

/// Returns the namespace's inode number, if all of its listed processes agree.
fn number_of(namespace: &Namespace, numbers: &HashMap<u32, u32>) -> Option<u32> {
    let mut listed = namespace.pids.iter().filter_map(|pid| numbers.get(pid).copied());
    let first = listed.next()?;
    listed.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(clients: u64, servers: u64) -> Begun {
        Begun { clients, servers }
    }

    #[test]
    fn what_is_neither_counted_nor_under_way_is_missing() {
        let mut account = NamespaceBalance { base: [begun(100, 50), begun(7, 0)], ..NamespaceBalance::default() };
        account.record_heartbeat(begun(110, 55));
        account.counted = begun(7 + 6, 5);
        account.settle(4);
        assert_eq!(account.missing, 0);
        account.settle(1);
        assert_eq!(account.missing, 3);
        // More counted clients than the namespace opened do not compensate for missing servers.
        account.counted = begun(7 + 20, 3);
        account.settle(0);
        assert_eq!(account.missing, 3, "2 servers are fewer");
        account.record_heartbeat(begun(110, 60));
        account.settle(0);
        assert_eq!(account.missing, 7);
    }

    #[test]
    fn a_namespace_that_counts_backwards_is_another_one() {
        let mut account = NamespaceBalance { base: [begun(100, 0), begun(0, 0)], ..NamespaceBalance::default() };
        account.record_heartbeat(begun(110, 0));
        account.counted = begun(10, 0);
        account.settle(0);
        account.record_heartbeat(begun(3, 0));
        account.counted = begun(12, 0);
        account.settle(0);
        assert_eq!(account.missing, 1);
    }
}
