//! Follows controller references up from a pod to what a person deployed.

use std::{borrow::Cow, collections::HashMap, marker::PhantomData, sync::Arc, time::SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::{Resource, core::PartialObjectMeta};
use serde::Deserialize;
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
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerFacts {
    pub(super) namespace: String,
    pub(super) api_version: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) controller: Option<Reference>,
    /// `spec.selector`, of the kinds whose objects keep it for life.
    pub(super) selector: Option<Arc<LabelSelector>>,
}

/// The `spec.selector` of a workload.
#[derive(Clone, Debug, Default, Deserialize)]
struct SelectorSpec {
    selector: Option<LabelSelector>,
}

/// Metadata and selector of an object of the kind `K`: a Deployment, StatefulSet or DaemonSet.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub(super) struct Selecting<K> {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SelectorSpec,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource> Resource for Selecting<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

pub(super) fn facts<K: k8s_openapi::Resource>(object: PartialObjectMeta<K>) -> Option<OwnerFacts> {
    of_metadata(object.metadata, K::API_VERSION, None)
}

pub(super) fn selecting_facts<K: k8s_openapi::Resource>(object: Selecting<K>) -> Option<OwnerFacts> {
    of_metadata(object.metadata, K::API_VERSION, object.spec.selector.map(Arc::new))
}

fn of_metadata(metadata: ObjectMeta, api_version: &str, selector: Option<Arc<LabelSelector>>) -> Option<OwnerFacts> {
    let controller = Reference::controller_of(&metadata);
    Some(OwnerFacts {
        namespace: metadata.namespace?,
        api_version: api_version.to_owned(),
        name: metadata.name?,
        uid: metadata.uid?,
        controller,
        selector,
    })
}

impl OwnerFacts {
    /// Returns the workload that an object of this kind is.
    pub(super) fn workload(&self, kind: &str) -> Workload {
        Workload {
            namespace: self.namespace.clone(),
            kind: kind.to_owned(),
            name: self.name.clone(),
            group: group(&self.api_version).to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
struct KnownOwner {
    facts: OwnerFacts,
    removed: Option<SystemTime>,
}

/// All owners of the kinds that are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    known: HashMap<Workload, KnownOwner>,
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
        let workload = facts.workload(kind);
        let news = self.known.get(&workload).is_none_or(|known| known.removed.is_some() || known.facts != facts);
        self.known.insert(workload, KnownOwner { facts, removed: None });
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

    pub(super) fn forget_removed(&mut self, expired: impl Fn(SystemTime) -> bool) -> bool {
        let before = self.known.len();
        self.known.retain(|_, known| !known.removed.is_some_and(&expired));
        self.known.len() != before
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
    Workload {
        namespace: namespace.to_owned(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        group: group(&reference.api_version).to_owned(),
    }
}
