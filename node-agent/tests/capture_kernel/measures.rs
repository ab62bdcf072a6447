//! Retransmissions and round-trip times, against what the sockets themselves say (`TCP_INFO`) before they end.

use std::time::{Duration, Instant};

use scopeprobe_agent::capture::{Attach, Capture as _, Feature};
use topology::flow::{FlowKey, Role};

use crate::lab::{
    Watched, can_list, key,
    measures::{Measured, open},
    node_or_skip,
};

pub fn what_tcp_has_measured_is_what_the_sockets_say(attach: Attach) {
    let node = node_or_skip!();
    let mut watched = node.capture(attach);
    let description = watched.capture.description();
    assert!(description.has(Feature::Retransmits) && description.has(Feature::RoundTripTimes), "{description:?}");
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    let keys = [Role::Client, Role::Server].map(|role| {
        let end = if role == Role::Client { &mut client } else { &mut server };
        key(end, role, "127.0.0.1", "127.0.0.1", port)
    });
    let mut measured = [Measured::default(); 2];
    for name in ["prompt", "late", "clients-again", "servers-again", "silent"] {
        open(&mut client, &mut server, port, name);
        measured[0].add(client.measure(name));
        measured[1].add(server.measure(name));
        // At once and without an acknowledgement that would be measured, too.
        client.reset(name);
        server.close(name);
    }
    assert!(measured[0].retransmits >= 2 && measured[1].retransmits >= 1, "{measured:?}");
    let buckets = |measured: &Measured| measured.rtt.counts().iter().filter(|count| **count > 0).count();
    assert!(buckets(&measured[0]) > 1, "more than one bucket has to be told apart: {measured:?}");
    expect(&mut watched, keys, measured, (5, 0));

    open(&mut client, &mut server, port, "open");
    let ended = measured;
    let ours = measured[0].add(client.measure("open"));
    let theirs = measured[1].add(server.measure("open"));
    if can_list() {
        expect(&mut watched, keys, measured, (6, 1));
        let open = keys.map(|key| watched.flows[&key].open_retransmits);
        assert_eq!(open, [ours.retransmits, theirs.retransmits]);
    } else {
        expect(&mut watched, keys, ended, (6, 1));
    }
    client.reset("open");
    server.close("open");
    expect(&mut watched, keys, measured, (6, 0));
    assert_eq!(keys.map(|key| watched.flows[&key].open_retransmits), [0, 0]);
}

/// Reads and looks until it knows exactly this, or for a minute. Where runs of a tracepoint were skipped, something may
/// be missing.
fn expect(watched: &mut Watched, keys: [FlowKey; 2], measured: [Measured; 2], (opened, active): (u64, u64)) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        watched.capture.list_again();
        watched.read();
        let found = keys.map(|key| watched.flows.get(&key).copied().unwrap_or_default());
        let wanted = measured.map(|end| (opened, active, Some(end.retransmits), end.rtt));
        let found = found.map(|it| (it.opened, it.active(), it.retransmits, it.rtt));
        if found == wanted || watched.losses.missed_runs > 0 {
            return;
        }
        if Instant::now() > deadline {
            assert_eq!(found, wanted, "{:?}", watched.losses);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
