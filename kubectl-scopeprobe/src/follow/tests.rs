//! Events and checks in, the map and the problem out.

use std::time::Duration;

use crds::Topology;
use kube::runtime::watcher::Event;

use super::store::{Check, READING, Step, Store};

const SHOP: &str = include_str!("../../tests/cmd/shop.in/shop.yaml");

/// Objects of the shop.
fn objects() -> Vec<Topology> {
    let list: serde_json::Value = serde_yaml::from_str(SHOP).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

/// Takes in a complete list.
fn list(store: &mut Store, objects: &[Topology]) {
    assert!(!store.take(Event::Init));
    for object in objects {
        assert!(!store.take(Event::InitApply(object.clone())), "it is not complete");
    }
    assert!(store.take(Event::InitDone));
}

fn listed() -> Store {
    let mut store = Store::default();
    list(&mut store, &objects());
    assert_eq!(store.problem(), "");
    store
}

fn edges(store: &Store) -> Option<usize> {
    store.map(None).map(|map| map.edges.len())
}

fn failed() -> Check {
    Check::Failed("no answer".to_owned())
}

fn refused() -> Check {
    Check::Refused("you may not watch".to_owned())
}

/// Number of edges in the lists of objects. Each has one client, which lists it.
fn edges_in(objects: &[Topology]) -> usize {
    let egress = objects.iter().filter_map(|object| object.status.as_ref()).map(|status| status.egress.len());
    egress.sum()
}

#[test]
fn map_is_unknown_until_the_first_list_is_complete() {
    let mut store = Store::default();
    assert_eq!((edges(&store), store.problem()), (None, READING));
    store.take(Event::Init);
    for object in objects() {
        store.take(Event::InitApply(object));
        assert_eq!((edges(&store), store.problem()), (None, READING));
    }
    store.take(Event::InitDone);
    assert_eq!((edges(&store), store.problem()), (Some(edges_in(&objects())), ""));
}

#[test]
fn new_list_replaces_the_earlier_one_when_it_is_complete() {
    let mut store = listed();
    store.interrupt("gone");
    store.take(Event::Init);
    assert_eq!(edges(&store), Some(edges_in(&objects())), "the earlier objects are shown meanwhile");
    store.take(Event::InitDone);
    assert_eq!(edges(&store), Some(0));
    assert_eq!(store.map(Some("partial")).unwrap().caveats, ["There are no Topology objects here.", "partial"]);
}

#[test]
fn list_that_breaks_off_leaves_no_object_behind() {
    let mut store = Store::default();
    store.take(Event::Init);
    for object in objects() {
        store.take(Event::InitApply(object));
    }
    store.interrupt("reset");
    list(&mut store, &[]);
    assert_eq!(edges(&store), Some(0));
}

#[test]
fn changes_apply_to_the_complete_list() {
    let mut store = listed();
    let objects = objects();
    for object in &objects {
        assert!(store.take(Event::Delete(object.clone())));
    }
    assert_eq!(edges(&store), Some(0));
    for object in &objects {
        assert!(store.take(Event::Apply(object.clone())));
    }
    assert_eq!(edges(&store), Some(edges_in(&objects)));
}

#[test]
fn problem_stays_until_objects_arrive() {
    let mut store = listed();
    let object = objects().remove(0);
    for proof in [Event::InitDone, Event::Apply(object.clone()), Event::Delete(object.clone())] {
        assert!(store.interrupt("you may not watch\u{1b}[2J"));
        assert!(!store.interrupt("you may not watch\u{1b}[2J"), "it is the same");
        let problem = "The watch of the cluster is interrupted: you may not watch?[2J";
        assert_eq!(store.problem(), problem);
        store.take(Event::Init);
        store.take(Event::InitApply(object.clone()));
        store.checked(Check::Works);
        assert_eq!(store.problem(), problem, "neither the attempt nor a check is proof");
        store.take(proof);
        assert_eq!((store.problem(), store.is_interrupted()), ("", false));
    }
}

#[test]
fn successful_check_restarts_an_interrupted_watch_once() {
    let mut store = listed();
    assert_eq!(store.checked(Check::Works), Step::Continue, "the watch works");
    store.interrupt("gone");
    assert_eq!(store.checked(Check::Works), Step::Restart);
    assert_eq!(store.checked(Check::Works), Step::Continue, "its list may take longer");
    store.take(Event::InitApply(objects().remove(0)));
    assert_eq!(store.checked(Check::Works), Step::Continue, "it goes on");
    assert_eq!(store.checked(Check::Works), Step::Restart, "it hangs");
}

#[test]
fn failed_checks_interrupt_a_watch_that_seems_to_work() {
    let mut store = listed();
    assert_eq!(store.checked(failed()), Step::Show);
    assert_eq!(store.problem(), "The watch of the cluster is interrupted: no answer");
    assert_eq!(store.checked(failed()), Step::Continue, "the problem is the same");
    assert_eq!(store.checked(refused()), Step::Show);
    assert_eq!(store.problem(), "The watch of the cluster is interrupted: you may not watch");
}

#[test]
fn refused_check_proves_the_connection_of_a_watch_that_works() {
    let mut store = listed();
    assert_eq!(store.checked(refused()), Step::Continue);
    assert_eq!((store.problem(), store.is_interrupted()), ("", false));
}

#[test]
fn pauses_between_attempts_grow_to_a_limit() {
    let mut store = listed();
    let seconds = |store: &Store| store.pause().as_secs();
    assert_eq!(seconds(&store), 15);
    store.interrupt("gone");
    let failing: Vec<u64> = (0..6).map(|_| (seconds(&store), store.checked(failed())).0).collect();
    assert_eq!(failing, [2, 4, 8, 16, 30, 30]);

    // Attempts that fail at once count as well, even if their list succeeds.
    let mut store = listed();
    let mut attempts = Vec::new();
    for _ in 0..6 {
        store.interrupt("gone");
        attempts.push(store.pause());
        assert_eq!(store.checked(Check::Works), Step::Restart);
        list(&mut store, &[]);
    }
    assert_eq!(attempts, [2, 4, 8, 16, 30, 30].map(Duration::from_secs));
    store.checked(Check::Works);
    store.interrupt("gone");
    assert_eq!(seconds(&store), 2, "it has worked in between");
}
