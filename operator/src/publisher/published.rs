//! The published Topology objects, and their differences from the desired ones.

use std::collections::{HashMap, HashSet};

use crds::Topology;
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::watcher::Event};

use super::{
    labels, noise,
    packed::Packed,
    schedule::Urgency,
    structure,
    writer::{Desired, Key},
};
use crate::guarded::{Guarded, Malformed};

/// Objects to check again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Recheck {
    Nothing,
    One(Key),
    All,
}

/// An object, and its version.
#[derive(Debug)]
struct KnownObject {
    version: Version,
    /// `None` if nothing is known but that it exists.
    object: Option<Packed<Topology>>,
}

/// Version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    uid: Option<String>,
    /// `metadata.resourceVersion`, if it is a number.
    number: Option<u64>,
}

impl Version {
    fn of(topology: &Topology) -> Self {
        let number = topology.resource_version().and_then(|version| version.parse().ok());
        Self { uid: topology.uid(), number }
    }

    /// Returns whether it is of another object, or later.
    fn is_newer_than(&self, known: &Self) -> bool {
        self.uid != known.uid || self.number.is_none() || self.number > known.number
    }
}

/// The objects, as last seen or written.
#[derive(Debug, Default)]
pub(super) struct PublishedObjects {
    objects: HashMap<Key, KnownObject>,
    /// Those of them that do not decode as a whole: of these, what does is known.
    malformed: HashSet<Key>,
    listing: Option<HashSet<Key>>,
    listed: bool,
    /// Objects that were there at the first list and have not been written since.
    from_before: HashSet<Key>,
    being_written: HashSet<Key>,
}

impl PublishedObjects {
    /// Applies an event of the watch.
    pub(super) fn apply(&mut self, event: Event<Guarded<Topology>>) -> Recheck {
        match event {
            Event::Init => {
                self.listing = Some(HashSet::new());
                Recheck::Nothing
            }
            Event::InitApply(topology) => {
                let key = key(&topology);
                if let Some(listing) = &mut self.listing {
                    listing.insert(key.clone());
                }
                // What does not decode is written anew as soon as possible.
                if !self.listed && topology.0.is_ok() {
                    self.from_before.insert(key);
                }
                self.upsert_newer(topology);
                Recheck::Nothing
            }
            Event::InitDone => {
                let listing = self.listing.take().unwrap_or_default();
                self.objects.retain(|key, _| listing.contains(key));
                self.malformed.retain(|key| listing.contains(key));
                self.listed = true;
                // Also those that should be there and are not.
                Recheck::All
            }
            Event::Apply(topology) => {
                let key = key(&topology);
                if self.upsert_newer(topology) { Recheck::One(key) } else { Recheck::Nothing }
            }
            Event::Delete(topology) => {
                let key = key(&topology);
                self.remove(&key);
                Recheck::One(key)
            }
        }
    }

    /// Returns whether all objects are known.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(super) fn get(&self, key: &Key) -> Option<Topology> {
        self.objects.get(key)?.object.as_ref()?.unpack()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Topology> {
        self.objects.values().filter_map(|known| known.object.as_ref()?.unpack())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    pub(super) fn is_from_before(&self, key: &Key) -> bool {
        self.from_before.contains(key)
    }

    pub(super) fn is_malformed(&self, key: &Key) -> bool {
        self.malformed.contains(key)
    }

    pub(super) fn is_being_written(&self, key: &Key) -> bool {
        self.being_written.contains(key)
    }

    pub(super) fn begin_write(&mut self, key: &Key) {
        self.being_written.insert(key.clone());
    }

    pub(super) fn end_write(&mut self, key: &Key) {
        self.being_written.remove(key);
        self.from_before.remove(key);
    }

    /// The watch may lag behind what a write has returned. Returns whether it is news.
    fn upsert_newer(&mut self, topology: Guarded<Topology>) -> bool {
        let is_malformed = topology.0.is_err();
        let Some(topology) = topology.0.map_or_else(Malformed::into_rest, Some) else { return true };
        let key = key(&topology);
        let is_newer = self.objects.get(&key).is_none_or(|known| Version::of(&topology).is_newer_than(&known.version));
        if is_newer {
            self.upsert(topology);
            if is_malformed {
                self.malformed.insert(key);
            }
        }
        is_newer
    }

    pub(super) fn upsert(&mut self, mut topology: Topology) {
        // Whose fields they are matters, which they are only of labels.
        let managers = topology.metadata.managed_fields.iter_mut().flatten();
        for entry in managers.filter(|entry| entry.manager.as_deref() != Some(labels::FIELD_MANAGER)) {
            entry.fields_v1 = None;
        }
        let key = key(&topology);
        self.malformed.remove(&key);
        let object = Packed::new(&topology).inspect_err(|error| tracing::error!(%error, "cannot keep a Topology")).ok();
        self.objects.insert(key, KnownObject { version: Version::of(&topology), object });
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.objects.remove(key);
        self.malformed.remove(key);
        self.from_before.remove(key);
    }
}

fn key(topology: &impl ResourceExt) -> Key {
    Key { namespace: topology.namespace().unwrap_or_default(), name: topology.name_any() }
}

/// Returns whether the object belongs to the current workload.
pub(super) fn is_owned(topology: &Topology, desired: &Desired) -> bool {
    topology.owner_references().iter().any(|owner| owner.uid == desired.owner.uid)
}

/// Returns the write that is needed, if any.
pub(super) fn difference(known: Option<&Topology>, desired: Option<&Desired>) -> Option<Urgency> {
    let Some(desired) = desired else {
        // An object without status was made by another client.
        let status = known?.status.as_ref()?;
        let is_empty = status.egress.is_empty() && status.ingress.is_empty() && status.conditions.is_empty();
        return (!is_empty).then_some(Urgency::Structure);
    };
    let Some(known) = known.filter(|known| is_owned(known, desired)) else { return Some(Urgency::Structure) };
    let Some(status) = &known.status else { return Some(Urgency::Structure) };
    if labels::differ(known, &desired.app) {
        return Some(Urgency::Structure);
    }
    let Some(mut wanted) = desired.status.unpack() else { return Some(Urgency::Structure) };
    structure::keep(&mut wanted, Some(status), Timestamp::UNIX_EPOCH);
    structure::ignore_last_seen(&mut wanted, status);
    let checkpoint = std::mem::replace(&mut wanted.checkpoint, status.checkpoint.clone());
    let is_only_checkpoint = wanted == *status;
    wanted.checkpoint = checkpoint;
    if is_only_checkpoint && noise::is_checkpoint_kept(status, &wanted) {
        return None;
    }
    if !structure::has_same_structure(&wanted, status) {
        return Some(Urgency::Structure);
    }
    Some(if noise::is_noise(status, &wanted) { Urgency::Noise } else { Urgency::Counters })
}
