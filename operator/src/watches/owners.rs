//! Follows controller references up from a pod to what a person deployed.

use std::{collections::HashMap, time::SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::PartialObjectMeta;
use topology::entity::Workload;

/// The longest chain of owners that is followed: Pod → Job → CronJob and one more.
const MAX_CHAIN: usize = 4;

/// Kinds that users deploy. Their owners (objects of an operator's own kind) are not followed.
const DEPLOYED: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "CronJob"];

/// An object that owns others, by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Reference {
    /// The object's controller, if it has one.
    pub(super) fn controller_of(metadata: &ObjectMeta) -> Option<Self> {
        let of = |owner: &OwnerReference| Self {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        };
        metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true)).map(of)
    }
}

/// An owner, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerFacts {
    pub(super) namespace: String,
    pub(super) api_version: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) controller: Option<Reference>,
}

pub(super) fn facts<K: k8s_openapi::Resource>(object: PartialObjectMeta<K>) -> Option<OwnerFacts> {
    let controller = Reference::controller_of(&object.metadata);
    Some(OwnerFacts {
        namespace: object.metadata.namespace?,
        api_version: K::API_VERSION.to_owned(),
        name: object.metadata.name?,
        uid: object.metadata.uid?,
        controller,
    })
}

#[derive(Clone, Debug)]
struct Known {
    facts: OwnerFacts,
    removed: Option<SystemTime>,
}

/// All owners of the kinds that are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    known: HashMap<Workload, Known>,
    /// API groups by kind.
    watched: HashMap<&'static str, &'static str>,
}

impl Owners {
    /// Says that objects of this kind are known, so that one that is not known does not exist.
    pub(super) fn watch(&mut self, kind: &'static str, api_version: &'static str) {
        self.watched.insert(kind, group(api_version));
    }

    /// Returns whether the reference is to a watched kind, and not to the same kind of another group.
    pub(super) fn watches(&self, reference: &Reference) -> bool {
        self.watched.get(reference.kind.as_str()) == Some(&group(&reference.api_version))
    }

    /// Returns whether the owner's place in the chain changed.
    pub(super) fn upsert(&mut self, kind: &str, facts: OwnerFacts) -> bool {
        let workload = Workload { namespace: facts.namespace.clone(), kind: kind.to_owned(), name: facts.name.clone() };
        let news = self.known.get(&workload).is_none_or(|known| known.removed.is_some() || known.facts != facts);
        self.known.insert(workload, Known { facts, removed: None });
        news
    }

    /// The owner stays in the chains of pods that outlive it.
    pub(super) fn remove(&mut self, workload: &Workload, now: SystemTime) -> bool {
        match self.known.get_mut(workload) {
            Some(known) if known.removed.is_none() => {
                known.removed = Some(now);
                true
            }
            _ => false,
        }
    }

    pub(super) fn forget_removed(&mut self, expired: impl Fn(SystemTime) -> bool) {
        self.known.retain(|_, known| !known.removed.is_some_and(&expired));
    }

    /// API version and UID of an owner that exists.
    pub(super) fn existing(&self, workload: &Workload) -> Option<&OwnerFacts> {
        self.known.get(workload).filter(|known| known.removed.is_none()).map(|known| &known.facts)
    }

    /// The topmost known owner, starting from a pod's controller. With it, the reference by which it was found.
    pub(super) fn topmost(&self, namespace: &str, controller: &Reference) -> (Workload, Reference) {
        let mut reference = controller.clone();
        for _ in 0..MAX_CHAIN {
            if DEPLOYED.contains(&reference.kind.as_str()) {
                break;
            }
            let known = self.known.get(&workload(namespace, &reference)).filter(|_| self.watches(&reference));
            match known.and_then(|known| known.facts.controller.clone()) {
                Some(next) => reference = next,
                None => break,
            }
        }
        (workload(namespace, &reference), reference)
    }
}

/// The API group of `group/version`; empty for the core's.
pub(super) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

pub(super) fn workload(namespace: &str, reference: &Reference) -> Workload {
    Workload { namespace: namespace.to_owned(), kind: reference.kind.clone(), name: reference.name.clone() }
}
