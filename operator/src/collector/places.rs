//! Places of connections: a number in all, and a number for each address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Places of all connections. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_address: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Reason for which a connection has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    #[error("{0} connections are open; --collector-max-connections allows no more")]
    All(usize),
    #[error("{0} connections of this address are open; --collector-max-connections-per-address allows no more")]
    Address(usize),
}

/// Place of one connection, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    pub fn new(max: u32, max_per_address: u32) -> Self {
        // A platform has at least as many bits as these numbers.
        let [max, max_per_address] = [max, max_per_address].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Self { taken: Arc::default(), max, max_per_address }
    }

    /// Takes a place for a connection from an address.
    pub fn take(&self, address: IpAddr) -> Result<Place, NoPlace> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.max {
            return Err(NoPlace::All(taken.all));
        }
        let of_address = taken.by_address.entry(address).or_default();
        if *of_address >= self.max_per_address {
            return Err(NoPlace::Address(*of_address));
        }
        *of_address += 1;
        taken.all += 1;
        Ok(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address = of_address.saturating_sub(1);
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let places = Places::new(3, 2);
        let [one, other, third]: [IpAddr; 3] = ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
        let first = places.take(one).unwrap();
        let second = places.take(other).unwrap();
        assert_eq!(places.take(one).unwrap_err(), NoPlace::Address(2), "one address in two notations");
        let last = places.take(third).unwrap();
        assert_eq!(places.take(third).unwrap_err(), NoPlace::All(3));
        drop(first);
        let again = places.take(one).unwrap();
        drop((second, last, again));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0), "nothing is kept of an address without connections");
    }
}
