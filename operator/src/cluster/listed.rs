//! Keys of all objects of a kind, kept true over lists and events.

use std::{collections::HashSet, hash::Hash};

/// Existing objects, and those that the current list has named.
#[derive(Clone, Debug)]
pub(super) struct Listed<K> {
    known: HashSet<K>,
    listing: Option<HashSet<K>>,
}

impl<K> Default for Listed<K> {
    fn default() -> Self {
        Self { known: HashSet::new(), listing: None }
    }
}

impl<K: Clone + Eq + Hash> Listed<K> {
    pub(super) fn begin(&mut self) {
        self.listing = Some(HashSet::new());
    }

    pub(super) fn upsert(&mut self, key: K) {
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        self.known.insert(key);
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.known.remove(key);
    }

    /// Returns the objects that existed and were not listed.
    pub(super) fn complete(&mut self) -> Vec<K> {
        let Some(listing) = self.listing.take() else { return Vec::new() };
        let gone = self.known.difference(&listing).cloned().collect();
        self.known = listing;
        gone
    }
}
