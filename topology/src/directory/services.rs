//! Services, and where their ports lead and led.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    net::IpAddr,
    time::SystemTime,
};

use super::{changes::Change, recorded_pods::ServiceBackend};
use crate::{
    entity::{Backend, Service, ServicePort, ServiceRef},
    flow::Protocol,
    hash::HashMap,
};

/// Namespace and name of the Service of the API servers.
pub(super) const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// All Services, by what a flow shows of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    records: BTreeMap<ServiceRef, ServiceRecord>,
    by_address: HashMap<(IpAddr, PortKey), BTreeSet<ServiceRef>>,
    by_node_port: HashMap<PortKey, BTreeSet<ServiceRef>>,
    /// By address alone: of calls at ports that the Service does not have.
    by_ip: HashMap<IpAddr, BTreeSet<ServiceRef>>,
}

/// A Service's port: one number may be there for each protocol.
type PortKey = (u16, Protocol);

#[derive(Clone, Debug)]
struct ServiceRecord {
    service: Service,
    /// Time at which the directory first knew the Service.
    since: SystemTime,
    removed: Option<SystemTime>,
    /// Backends that were there once, by the Service's port: their connections are still in the account.
    former_backends: BTreeMap<(PortKey, Backend), SystemTime>,
}

/// A port of a Service that an address leads to.
#[derive(Clone, Debug)]
pub struct CalledService<'a> {
    /// The Service.
    pub service: &'a ServiceRef,
    /// Port of the Service, also if a node port was called.
    pub port: u16,
    /// Current and recent backends, sorted, without duplicates.
    pub backends: Vec<&'a Backend>,
}

impl Services {
    /// A Service is there, or it or its endpoints have changed; whether that is news.
    pub(super) fn upsert(&mut self, service: Service, now: SystemTime) -> bool {
        let name = service.name.clone();
        let (since, mut former_backends) = match self.records.get(&name) {
            Some(known) if known.service == service && known.removed.is_none() => return false,
            Some(known) => {
                let since = known.since;
                (since, self.take(&name).map(|known| known.former_backends_at(now)).unwrap_or_default())
            }
            None => (now, BTreeMap::new()),
        };
        for port in &service.ports {
            for backend in &port.backends {
                former_backends.remove(&(key_of(port), backend.clone()));
            }
        }
        for address in &service.addresses {
            self.by_ip.entry(*address).or_default().insert(name.clone());
        }
        for port in &service.ports {
            for address in &service.addresses {
                self.by_address.entry((*address, key_of(port))).or_default().insert(name.clone());
            }
            if let Some(node_port) = port.node_port {
                self.by_node_port.entry((node_port, port.protocol)).or_default().insert(name.clone());
            }
        }
        self.records.insert(name, ServiceRecord { service, since, removed: None, former_backends });
        true
    }

    /// A Service is gone; its addresses lead to it until another Service has them. Whether it was there.
    pub(super) fn remove(&mut self, name: &ServiceRef, now: SystemTime) -> bool {
        match self.records.get_mut(name) {
            Some(record) if record.removed.is_none() => {
                record.removed = Some(now);
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, name: &ServiceRef) -> Option<ServiceRecord> {
        let record = self.records.remove(name)?;
        for address in &record.service.addresses {
            remove_from(&mut self.by_ip, address, name);
        }
        for port in &record.service.ports {
            for address in &record.service.addresses {
                remove_from(&mut self.by_address, &(*address, key_of(port)), name);
            }
            if let Some(node_port) = port.node_port {
                remove_from(&mut self.by_node_port, &(node_port, port.protocol), name);
            }
        }
        Some(record)
    }

    /// Forgets Services and backends that have been gone for so long that they are `expired`. Returns what changes by it.
    pub(super) fn forget_removed(&mut self, expired: impl Fn(SystemTime) -> bool) -> Vec<Change> {
        let is_gone = |record: &ServiceRecord| record.removed.is_some_and(&expired);
        let is_concerned = |record: &&ServiceRecord| {
            is_gone(record) || record.former_backends.values().any(|removed| expired(*removed))
        };
        let changes = self.records.values().filter(is_concerned).flat_map(ServiceRecord::changes).collect();
        self.forget(is_gone, |_, removed| !expired(removed));
        changes
    }

    /// Forgets the Services that are gone, and the former backends that are not kept.
    fn forget(&mut self, is_gone: impl Fn(&ServiceRecord) -> bool, is_kept: impl Fn(&Backend, SystemTime) -> bool) {
        let gone = self.records.iter().filter(|(_, record)| is_gone(record));
        let gone: Vec<ServiceRef> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.take(&name);
        }
        for record in self.records.values_mut() {
            record.former_backends.retain(|(_, backend), removed| is_kept(backend, *removed));
        }
    }

    /// Returns what changes in the directory with a Service.
    pub(super) fn changes_of(&self, name: &ServiceRef) -> Vec<Change> {
        self.records.get(name).into_iter().flat_map(ServiceRecord::changes).collect()
    }

    /// Returns the backends of present Services, former ones included.
    pub(super) fn all_backends(&self) -> impl Iterator<Item = ServiceBackend<'_>> {
        let present = self.records.iter().filter(|(_, record)| record.removed.is_none());
        present.flat_map(|(service, record)| {
            let current = |port| std::iter::repeat(key_of(port)).zip(&port.backends);
            let current = record.service.ports.iter().flat_map(current);
            let former = record.former_backends.keys().map(|(port, backend)| (*port, backend));
            current.chain(former).map(move |(port, backend)| ServiceBackend { service, port, backend })
        })
    }

    /// Adds a former backend of a present Service's port, as one that was removed at `now`. Does nothing if the Service has
    /// no such port, or has the backend.
    pub(super) fn restore_former(&mut self, name: &ServiceRef, port: PortKey, backend: Backend, now: SystemTime) {
        let Some(record) = self.records.get_mut(name) else { return };
        let Some(current) = record.service.ports.iter().find(|candidate| key_of(candidate) == port) else { return };
        if !current.backends.contains(&backend) {
            record.former_backends.entry((port, backend)).or_insert(now);
        }
    }

    /// Drops removed Services, and former backends that are not `recorded`.
    pub(super) fn forget_unrecorded(&mut self, recorded: impl Fn(&Backend) -> bool) {
        self.forget(|record| record.removed.is_some(), |backend, _| recorded(backend));
    }

    /// Returns whether [`Self::forget_unrecorded`] would drop anything.
    pub(super) fn has_unrecorded(&self, recorded: impl Fn(&Backend) -> bool) -> bool {
        let is_forgotten = |record: &ServiceRecord| {
            record.removed.is_some() || record.former_backends.keys().any(|(_, backend)| !recorded(backend))
        };
        self.records.values().any(is_forgotten)
    }

    /// Returns whether removed entries are still kept.
    pub(super) fn has_removed(&self) -> bool {
        let changed = |record: &ServiceRecord| record.removed.is_some() || !record.former_backends.is_empty();
        self.records.values().any(changed)
    }

    /// Returns the addresses of present Services.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let present = self.records.values().filter(|record| record.removed.is_none());
        present.flat_map(|record| record.service.addresses.iter().copied())
    }

    /// Returns the current and recent backends of a Service, at all of its ports.
    pub(super) fn backends(&self, name: &ServiceRef) -> impl Iterator<Item = &Backend> {
        self.records.get(name).into_iter().flat_map(ServiceRecord::backends)
    }

    /// The Service that was reached at an address and port at the time `at`; at a node port only where the address
    /// `is_nodes`.
    pub(super) fn at(
        &self,
        ip: IpAddr,
        is_nodes: impl FnOnce() -> bool,
        port: PortKey,
        at: SystemTime,
    ) -> Option<CalledService<'_>> {
        if let Some(record) = self.best(self.by_address.get(&(ip, port)), at) {
            return record.called_at(port);
        }
        self.best(self.by_node_port.get(&port), at).filter(|_| is_nodes())?.called_at_node_port(port)
    }

    /// Returns all Services that were ever to be reached at an address and port, as [`Self::at`].
    pub(super) fn all_at(&self, ip: IpAddr, is_nodes: impl FnOnce() -> bool, port: PortKey) -> Vec<CalledService<'_>> {
        let by_address = self.by_address.get(&(ip, port)).into_iter().flatten();
        let by_address = by_address.filter_map(|name| self.records.get(name)?.called_at(port));
        let by_node_port = self.by_node_port.get(&port).filter(|_| is_nodes()).into_iter().flatten();
        let by_node_port = by_node_port.filter_map(|name| self.records.get(name)?.called_at_node_port(port));
        by_address.chain(by_node_port).collect()
    }

    /// Returns the Service of which an address is or was, at any port.
    pub(super) fn with_address(&self, ip: IpAddr) -> Option<&ServiceRef> {
        let records = self.by_ip.get(&ip)?.iter().filter_map(|name| self.records.get(name));
        let latest = records.max_by_key(|record| (record.removed.is_none(), record.removed, record.since));
        latest.map(|record| &record.service.name)
    }

    fn best(&self, names: Option<&BTreeSet<ServiceRef>>, at: SystemTime) -> Option<&ServiceRecord> {
        let was_there =
            |record: &ServiceRecord| record.since <= at && record.removed.is_none_or(|removed| removed > at);
        names?
            .iter()
            .filter_map(|name| self.records.get(name))
            .max_by_key(|record| (was_there(record), record.since <= at, record.removed.is_none(), record.removed))
    }
}

impl ServiceRecord {
    /// Returns what changes in a directory with this Service.
    fn changes(&self) -> Vec<Change> {
        if (&*self.service.name.namespace, &*self.service.name.name) == API_SERVER {
            return vec![Change::Everything];
        }
        let ports = self.service.ports.iter();
        let node_ports = ports.filter_map(|port| Some(Change::NodePort(port.node_port?, port.protocol)));
        let backends = self.backends().map(|backend| backend.ip);
        let addresses = self.service.addresses.iter().copied().chain(backends).map(Change::Address);
        addresses.chain(node_ports).collect()
    }

    /// Of all ports, those included that were there once.
    fn backends(&self) -> impl Iterator<Item = &Backend> {
        let now = self.service.ports.iter().flat_map(|port| &port.backends);
        now.chain(self.former_backends.keys().map(|(_, backend)| backend))
    }

    /// The backends that are former ones if the Service changes at `now`.
    fn former_backends_at(self, now: SystemTime) -> BTreeMap<(PortKey, Backend), SystemTime> {
        let mut former = self.former_backends;
        for port in self.service.ports {
            let key = key_of(&port);
            for backend in port.backends {
                former.entry((key, backend)).or_insert(now);
            }
        }
        former
    }

    fn called_at(&self, port: PortKey) -> Option<CalledService<'_>> {
        self.called(|candidate| key_of(candidate) == port)
    }

    fn called_at_node_port(&self, (number, protocol): PortKey) -> Option<CalledService<'_>> {
        self.called(|candidate| candidate.node_port == Some(number) && candidate.protocol == protocol)
    }

    fn called(&self, is_it: impl Fn(&ServicePort) -> bool) -> Option<CalledService<'_>> {
        let port = self.service.ports.iter().find(|port| is_it(port))?;
        let former = self.former_backends.keys().filter(|(of, _)| *of == key_of(port)).map(|(_, backend)| backend);
        let mut backends: Vec<&Backend> = port.backends.iter().chain(former).collect();
        backends.sort_unstable();
        backends.dedup();
        Some(CalledService { service: &self.service.name, port: port.port, backends })
    }
}

fn key_of(port: &ServicePort) -> PortKey {
    (port.port, port.protocol)
}

/// Removes an entry from the set at a key, and the set if it is empty.
pub(super) fn remove_from<K, V, Q>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, entry: &Q)
where
    K: Hash + Eq,
    V: Borrow<Q> + Ord,
    Q: Ord + ?Sized,
{
    if let Some(entries) = index.get_mut(key) {
        entries.remove(entry);
        if entries.is_empty() {
            index.remove(key);
        }
    }
}
