//! Programs of other owners that take callback flags from sockets, or could.

use std::{collections::BTreeMap, thread, time::Duration};

use scopeprobe_agent::capture::{Attach, Capture, Feature, Losses, Settings};
use topology::flow::{FlowCounters, Role};

use crate::{
    counted,
    lab::{Watched, can_list, foreign, key, list_or_skip, node_or_skip, short, storm_size},
    mirrored,
};

const HERE: &str = "127.0.0.1";
/// A flag that shows neither role nor end: `BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG`.
const OTHER_FLAG: u8 = 16;

#[test]
fn capture_goes_behind_a_program_that_takes_flags() {
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    let mut ours = counted(0, 0, 0, 0);
    // The second one comes when the other copy of the program is attached.
    let mut others = Vec::new();
    for flags in [OTHER_FLAG, 1, 0] {
        others.push(foreign::flags_setter(node.root(), flags));
        watched.read();
        server.begin_serve("l", short(20, 100, 200));
        client.call(format_args!("{HERE}:{port}"), short(20, 100, 200));
        server.finish();
        ours = counted(ours.opened + 20, ours.closed + 20, ours.bytes_sent + 2_000, ours.bytes_received + 4_000);
    }
    watched.expect(&BTreeMap::from([
        (key(&mut client, Role::Client, HERE, HERE, port), ours),
        (key(&mut server, Role::Server, HERE, HERE, port), mirrored(ours)),
    ]));
    watched.assert_nothing_lost();
    // Where sockets are not listed, nothing shows that none has lost any.
    assert_eq!(watched.capture.description().has(Feature::CallbackFlags), can_list());
}

#[test]
fn connections_that_lose_their_flags_end_once() {
    // With the first one, the kernel calls the program at each packet. With the second one, it calls none.
    for flags in [OTHER_FLAG, 0] {
        lose_flags(flags);
    }
}

fn lose_flags(flags: u8) {
    const SHORT: u64 = 5;
    let node = node_or_skip!();
    list_or_skip!();
    let settings = Settings { gone_after: Duration::from_secs(3), ..node.settings(Attach::SockOps) };
    let mut watched = Watched::start(&settings);
    watched.read();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    client.connect("before", format_args!("{HERE}:{port}"));
    server.accept("before", "l");
    let other = foreign::flags_setter(node.root(), flags);
    client.connect("lost", format_args!("{HERE}:{port}"));
    server.accept("lost", "l");
    server.begin_serve("l", short(SHORT, 10, 20));
    client.call(format_args!("{HERE}:{port}"), short(SHORT, 10, 20));
    server.finish();
    let [ours, theirs] = [(&mut client, Role::Client), (&mut server, Role::Server)]
        .map(|(process, role)| key(process, role, HERE, HERE, port));
    let expect = |watched: &mut Watched, counters: FlowCounters| {
        watched.expect(&BTreeMap::from([(ours, counters), (theirs, mirrored(counters))]));
    };
    client.send_bytes("lost", 1000);
    server.receive_bytes("lost", 1000);
    // The short ones have ended without a call of the program.
    let settled = FlowCounters { without_bytes: SHORT, open_bytes_sent: 1000, ..counted(SHORT + 2, SHORT, 1000, 0) };
    expect(&mut watched, settled);
    assert_eq!(watched.losses, Losses { closes_unseen: 2 * SHORT, ..Losses::default() });
    let message = watched.capture.description().degradations.iter().find(|it| it.feature == Feature::CallbackFlags);
    assert!(message.is_some_and(|it| it.message.contains(&format!("another (ID {})", other.id()))), "{message:?}");
    // The others are open, and end with all of their bytes.
    client.send_bytes("lost", 234);
    server.receive_bytes("lost", 234);
    for name in ["lost", "before"] {
        client.close(name);
        server.await_end(name);
        server.close(name);
    }
    expect(&mut watched, FlowCounters { without_bytes: SHORT, ..counted(SHORT + 2, SHORT + 2, 1234, 0) });
}

/// Handovers from one copy of the program to the other at full speed. Nothing counts twice.
#[test]
fn each_event_counts_once_while_the_capture_goes_behind_others() {
    const THREADS: u64 = 4;
    let times = storm_size(12_000);
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let mut storm = node.process_in_own_netns("storm", true);
    storm.begin_serve_and_call("127.0.0.1:0", THREADS, short(times, 20, 30), None);
    let mut others = Vec::new();
    for _ in 0..20 {
        others.push(foreign::idle(node.root()));
        watched.read();
        thread::sleep(Duration::from_millis(50));
    }
    storm.finish();
    let both: Vec<_> =
        [Role::Client, Role::Server].into_iter().map(|role| (role, key(&mut storm, role, HERE, HERE, 0))).collect();
    watched.until("all connections", |watched| watched.seen >= 2 * THREADS * times);
    let ours = counted(times, times, 20 * times, 30 * times);
    let ports: Vec<u16> = watched.flows.keys().map(|key| key.port).collect();
    let mut expected = BTreeMap::new();
    for port in ports {
        for (role, key) in &both {
            let counters = if *role == Role::Client { ours } else { mirrored(ours) };
            expected.insert(topology::flow::FlowKey { port, ..*key }, counters);
        }
    }
    assert_eq!(expected.len() as u64, 2 * THREADS);
    watched.expect(&expected);
    watched.assert_nothing_lost();
}
