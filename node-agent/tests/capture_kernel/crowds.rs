//! Nodes with many sockets: the agent counts the sockets that do not fit into a table, and its capture continues.

use std::{collections::BTreeMap, time::Duration};

use scopeprobe_agent::capture::{Attach, Capture, Feature, Losses, Settings};
use topology::flow::{FlowCounters, FlowKey, Role};

use crate::lab::{Process, Watched, key, list_or_skip, node_or_skip, short, storm_size};

/// The flows of a crowd at one listener, both ends of whose connections are in one process.
fn ends(process: &mut Process, port: u16) -> [FlowKey; 2] {
    [Role::Client, Role::Server].map(|role| key(process, role, "127.0.0.1", "127.0.0.1", port))
}

fn all(keys: &[FlowKey], counters: FlowCounters) -> BTreeMap<FlowKey, FlowCounters> {
    keys.iter().map(|key| (*key, counters)).collect()
}

/// More sockets older than any agent, and more opened under an earlier one, than a node usually has.
#[test]
fn a_node_with_very_many_sockets_is_captured_exactly() {
    /// As many sockets as a process may have here and there.
    const PROCESSES: usize = 4;
    // Both ends: 66,800 sockets, and 17,000.
    let (old, earlier) = (storm_size(8_350), storm_size(8_500));
    let node = node_or_skip!();
    list_or_skip!();
    let mut crowds: Vec<Process> =
        (0..=PROCESSES).map(|number| node.process_in_own_netns(&format!("crowd-{number}"), false)).collect();
    let ports: Vec<u16> = crowds.iter_mut().map(|crowd| crowd.listen("l", "127.0.0.1:0")).collect();
    let keys: Vec<_> = crowds.iter_mut().zip(&ports).map(|(crowd, port)| ends(crowd, *port)).collect();
    let (new_keys, old_keys) = keys.split_last().unwrap();
    for crowd in &mut crowds[..PROCESSES] {
        crowd.open_pairs("l", old);
    }
    let before = |preexisting| FlowCounters { preexisting, ..FlowCounters::default() };
    let mut expected = all(&old_keys.concat(), before(old));
    let mut watched = node.capture(Attach::SockOps);
    watched.expect(&expected);
    crowds[PROCESSES].open_pairs("l", earlier);
    expected.extend(all(new_keys, FlowCounters { opened: earlier, ..FlowCounters::default() }));
    watched.expect(&expected);
    watched.assert_nothing_lost();
    drop(watched);

    let settings = Settings { gone_after: Duration::from_secs(1), ..node.settings(Attach::SockOps) };
    let mut watched = Watched::start(&settings);
    expected.extend(all(new_keys, before(earlier)));
    watched.expect(&expected);
    for crowd in &mut crowds {
        crowd.close_pairs();
    }
    let is_over = |counters: &FlowCounters| counters.closed >= counters.preexisting;
    watched.until("all ends", |watched| watched.flows.values().all(is_over));
    let unseen = watched.losses.closes_unseen;
    for (key, counters) in &watched.flows {
        // Of the oldest ones a tracepoint sees the end, which may miss it.
        let is_new = new_keys.contains(key);
        assert!(counters.without_bytes == 0 || !is_new, "{counters:?}");
        assert_eq!(counters.closed, if is_new { earlier } else { old }, "{counters:?}");
        assert_eq!(counters.preexisting, counters.closed, "{counters:?}");
    }
    println!("{unseen} ends were not seen");
    assert_eq!(watched.sum(|counters| counters.without_bytes), unseen);
    assert!(unseen <= old, "nearly all ends are seen");
    assert_eq!(watched.losses, Losses { closes_unseen: unseen, ..Losses::default() });
}

/// Tests a kernel table that is too small for all preexisting connections: the end of the others is noticed late.
pub fn more_old_connections_than_can_be_watched_are_counted(attach: Attach) {
    const ROOM: u32 = 6;
    const OLD: u64 = 10;
    let node = node_or_skip!();
    list_or_skip!();
    let mut crowd = node.process("crowd");
    let port = crowd.listen("l", "127.0.0.1:0");
    let keys = ends(&mut crowd, port);
    crowd.open_pairs("l", OLD);
    let settings = Settings {
        max_preexisting: Some(ROOM),
        gone_after: Duration::from_secs(1),
        listing_interval: Duration::from_millis(100),
        ..node.settings(attach)
    };
    let mut watched = Watched::start(&settings);
    let description = watched.capture.description();
    assert!(!description.has(Feature::OldCloses), "{:?}", description.degradations);
    watched.expect(&all(&keys, FlowCounters { preexisting: OLD, ..FlowCounters::default() }));
    crowd.close_pairs();
    watched.until("all ends", |watched| watched.sum(|counters| counters.closed) == 2 * OLD);
    let unseen = 2 * OLD - u64::from(ROOM);
    assert_eq!(watched.losses.closes_unseen, unseen);
    assert_eq!(watched.sum(|counters| counters.without_bytes), unseen);
    assert_eq!(watched.sum(|counters| counters.preexisting), 2 * OLD);
    // There is nothing more to come.
    crowd.open_pairs("l", 5);
    crowd.close_pairs();
    watched.until("new ones", |watched| watched.sum(|counters| counters.closed) == 2 * (OLD + 5));
    assert_eq!(watched.sum(|counters| counters.opened), 2 * 5);
}

/// Tests a start during which more sockets come and go than can be noted. Preexisting connections are left out and
/// count as lost: a number may fall short of the truth, and never exceeds it.
#[test]
fn what_cannot_be_noted_at_the_start_is_counted_as_lost() {
    const OLD: u64 = 10;
    let node = node_or_skip!();
    list_or_skip!();
    let mut crowd = node.process("crowd");
    let port = crowd.listen("l", "127.0.0.1:0");
    let keys = ends(&mut crowd, port);
    let early = node.capture(Attach::SockOps);
    crowd.open_pairs("l", OLD);
    drop(early);
    let (mut client, mut server) = (node.process("caller"), node.process("called"));
    let busy = server.listen("l", "127.0.0.1:0");
    server.begin_serve("l", short(1_000_000, 10, 20));
    client.begin_call_slowly(format_args!("127.0.0.1:{busy}"), 1_000_000);
    // Two that come while the capture starts are too many.
    let settings = Settings { max_start_notes: 1, ..node.settings(Attach::SockOps) };
    let mut starts = (0..100).map(|_| {
        let mut watched = Watched::start(&settings);
        watched.read();
        watched
    });
    let mut watched = starts.find(|watched| watched.losses.opened > 0).unwrap();
    drop((client, server));
    assert!(watched.losses.opened >= 2 * OLD, "{:?}", watched.losses);
    assert!(keys.iter().all(|key| !watched.flows.contains_key(key)), "{:?}", watched.flows);
    crowd.close_pairs();
    let closed = |watched: &Watched| {
        keys.iter().all(|key| watched.flows.get(key).is_some_and(|counters| counters.closed == OLD))
    };
    watched.until("their ends", closed);
    for counters in watched.flows.values() {
        assert!(counters.opened + counters.preexisting <= counters.closed, "{counters:?}");
    }
    assert_eq!(watched.losses, Losses { opened: watched.losses.opened, ..Losses::default() });
}
