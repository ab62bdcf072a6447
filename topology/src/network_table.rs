//! Values by ranges of addresses.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{entity::Network, hash::HashMap};

/// Values by range. A look-up takes as many steps as there are different lengths of prefixes, however many ranges there
/// are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkTable<T> {
    /// By the range's first address and its prefix.
    values: HashMap<Network, T>,
    /// Number of ranges of each prefix length.
    prefixes: BTreeMap<u8, usize>,
}

impl<T> Default for NetworkTable<T> {
    fn default() -> Self {
        Self { values: HashMap::default(), prefixes: BTreeMap::new() }
    }
}

impl<T> NetworkTable<T> {
    /// Returns the value of a range, which is made if there is none.
    pub(crate) fn get_or_insert_with(&mut self, network: &Network, make: impl FnOnce() -> T) -> &mut T {
        let prefixes = &mut self.prefixes;
        self.values.entry(network.trimmed()).or_insert_with(|| {
            *prefixes.entry(network.prefix).or_default() += 1;
            make()
        })
    }

    /// Returns the value of a range.
    pub(crate) fn get_mut(&mut self, network: &Network) -> Option<&mut T> {
        self.values.get_mut(&network.trimmed())
    }

    /// Removes a range.
    pub(crate) fn remove(&mut self, network: &Network) {
        if self.values.remove(&network.trimmed()).is_none() {
            return;
        }
        if let Some(number) = self.prefixes.get_mut(&network.prefix) {
            *number -= 1;
            if *number == 0 {
                self.prefixes.remove(&network.prefix);
            }
        }
    }

    /// Returns the values of the ranges that contain an address, the smallest range's first.
    pub(crate) fn containing(&self, ip: IpAddr) -> impl Iterator<Item = &T> {
        let networks = self.prefixes.keys().rev().filter_map(move |prefix| Network::new(ip, *prefix));
        networks.filter_map(|network| self.values.get(&network.trimmed()))
    }

    /// Returns whether there is no range.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.prefixes.is_empty()
    }
}
