//! The objects of the last state, which stay the same for as long as all that they are made of does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use crds::TopologyStatus;
use kube::core::{Selector, SelectorExt as _};
use topology::{
    counts::Earlier,
    edge::{Edge, Peer},
    entity::Workload,
    graph::{Graph, RecordedLeg},
    ledger::Ledger,
};

use super::{
    adjacency::Edges,
    leg_owners::LegOwners,
    object::{self, Limits, ObjectInputs},
    packed::Packed,
    pod_records::PodRecords,
    writer::Desired,
};
use crate::cluster::{Index, OwnerIdentity};

/// Inputs of objects, beside edges.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub index: &'a Index,
    pub ledger: &'a Ledger,
    pub limits: Limits,
    /// Namespaces whose workloads get objects.
    pub namespaces: &'a Selector,
    /// The present.
    pub now: SystemTime,
}

/// The objects of the last state.
#[derive(Debug, Default)]
pub(super) struct RenderedObjects {
    /// Inputs that all of them share.
    basis: Option<Basis>,
    objects: BTreeMap<Workload, Rendered>,
    leg_owners: LegOwners,
}

#[derive(Debug, PartialEq)]
struct Basis {
    index: u64,
    limits: Limits,
    namespaces: Selector,
}

/// An object, and what it was made of.
#[derive(Debug)]
struct Rendered {
    egress: Vec<Arc<Edge>>,
    ingress: Vec<Arc<Edge>>,
    /// Parts of these edges that agents no longer report.
    earlier: Vec<Option<Earlier>>,
    beside: Beside,
    /// `None` for a workload that gets no object.
    desired: Option<Arc<Desired>>,
}

/// Inputs of an object, beside edges.
#[derive(Debug, Default, PartialEq)]
struct Beside {
    /// Records of proxied connections of the workload's pods.
    legs: Vec<RecordedLeg>,
    /// Nodes of the workload without a reporting agent.
    silent: BTreeSet<String>,
}

impl RenderedObjects {
    /// Returns the objects of all workloads that exist, have edges and are in a selected namespace.
    ///
    /// Invariant: each is what it would be without the last state.
    pub(super) fn follow(
        &mut self,
        graph: &Graph,
        workloads: &BTreeMap<&Workload, Edges<'_>>,
        around: Surroundings<'_>,
    ) -> Vec<Arc<Desired>> {
        let Surroundings { index, limits, namespaces, .. } = around;
        let basis = Basis { index: index.revision(), limits, namespaces: namespaces.clone() };
        let has_same_basis = self.basis.as_ref() == Some(&basis);
        self.basis = Some(basis);
        let mut known = std::mem::take(&mut self.objects);
        let mut objects = BTreeMap::new();
        let mut stale = Vec::new();
        let mut legs = self.leg_owners.by_workload(&graph.recorded_legs, index);
        for (workload, edges) in workloads {
            let beside =
                Beside { legs: legs.remove(*workload).unwrap_or_default(), silent: around.silent_nodes(workload) };
            match known.remove(*workload) {
                Some(known) if has_same_basis && known.is_of(edges, graph, &beside) => {
                    objects.insert((*workload).clone(), known);
                }
                known => stale.push((*workload, edges, beside, known.and_then(|known| known.desired))),
            }
        }
        if !stale.is_empty() {
            let without_object = workloads.keys().copied().filter(|workload| around.owner(workload).is_none());
            let records = PodRecords::new(index, without_object);
            let world = ObjectInputs { index, earlier: &graph.earlier, records: &records, limits, now: around.now };
            let rendered = stale.into_iter().map(|(workload, edges, beside, before)| {
                let desired = around.owner(workload).and_then(|owner| {
                    let new = render(workload, owner, edges, &beside, &world);
                    let new =
                        new.inspect_err(|error| tracing::error!(?workload, %error, "cannot make a Topology")).ok()?;
                    // Something else may come to the same.
                    Some(before.filter(|before| **before == new).unwrap_or_else(|| Arc::new(new)))
                });
                (workload.clone(), Rendered::new(edges, graph, beside, desired))
            });
            objects.extend(rendered);
        }
        self.objects = objects;
        self.objects.values().filter_map(|object| object.desired.clone()).collect()
    }
}

impl Surroundings<'_> {
    /// Returns the owner of a workload's object: the workload, if it exists and its namespace is selected. A namespace whose
    /// labels are unknown is not, unless all are.
    fn owner(&self, workload: &Workload) -> Option<OwnerIdentity> {
        // The workload may be gone; its object goes with it.
        self.selects(workload).then(|| self.index.owner_identity(workload)).flatten()
    }

    /// Returns whether a workload's namespace is selected.
    fn selects(&self, workload: &Workload) -> bool {
        let labels = || self.index.labels_of_namespace(&workload.namespace);
        self.namespaces.selects_all() || labels().is_some_and(|labels| self.namespaces.matches(labels))
    }

    /// Returns whether an edge belongs to the object of either end.
    pub(super) fn has_object(&self, edge: &Edge) -> bool {
        let is_selected = |peer: &Peer| matches!(peer, Peer::Workload(workload) if self.selects(workload));
        is_selected(&edge.key.client) || is_selected(&edge.key.server)
    }

    fn silent_nodes(&self, workload: &Workload) -> BTreeSet<String> {
        let nodes = self.index.nodes_of(workload).into_iter();
        nodes.filter(|node| !self.ledger.observes(node, self.now)).map(str::to_owned).collect()
    }
}

impl Rendered {
    fn new(edges: &Edges<'_>, graph: &Graph, beside: Beside, desired: Option<Arc<Desired>>) -> Self {
        let shared = |edges: &[&Arc<Edge>]| edges.iter().copied().map(Arc::clone).collect();
        Self {
            egress: shared(&edges.egress),
            ingress: shared(&edges.ingress),
            earlier: earlier(edges, graph).map(Option::<&Earlier>::cloned).collect(),
            beside,
            desired,
        }
    }

    /// Returns whether it would be made of the same.
    fn is_of(&self, edges: &Edges<'_>, graph: &Graph, beside: &Beside) -> bool {
        are_same(&self.egress, &edges.egress)
            && are_same(&self.ingress, &edges.ingress)
            && self.beside == *beside
            && self.earlier.iter().map(Option::as_ref).eq(earlier(edges, graph))
    }
}

fn are_same(some: &[Arc<Edge>], others: &[&Arc<Edge>]) -> bool {
    some.len() == others.len() && some.iter().zip(others).all(|(one, other)| Arc::ptr_eq(one, other))
}

fn earlier<'e>(edges: &'e Edges<'_>, graph: &'e Graph) -> impl Iterator<Item = Option<&'e Earlier>> {
    edges.egress.iter().chain(&edges.ingress).map(|edge| graph.earlier.get(&edge.key))
}

fn render(
    workload: &Workload,
    owner: OwnerIdentity,
    edges: &Edges<'_>,
    Beside { legs, silent }: &Beside,
    world: &ObjectInputs<'_>,
) -> serde_json::Result<Desired> {
    let silent = silent.iter().map(String::as_str).collect();
    let facts = world.index.facts_of(workload);
    let status = object::status(workload, &facts, edges, &silent, legs, world);
    let packed = Packed::new(&status)?;
    let TopologyStatus { totals, omitted, .. } = status;
    Ok(Desired { workload: workload.clone(), owner, app: facts.app, totals, omitted, status: packed })
}
