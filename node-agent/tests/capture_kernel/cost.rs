//! Measures the cost of the UDP programs for TCP; no test.

use std::{fs, path::Path};

use scopeprobe_agent::capture::{Attach, Settings};

use crate::lab::{
    Node, Watched, node_or_skip,
    routed::{Routed, addresses},
    short,
};

const PAIRS: usize = 15;
const CONNECTIONS: u64 = 3000;
const MEGABYTES: u64 = 600;

/// Processor time of everything in the node's cgroups, in microseconds.
fn used(root: &Path) -> u64 {
    let stat = fs::read_to_string(root.join("cpu.stat")).unwrap();
    let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    line.parse().unwrap()
}

/// Microseconds for a connection, with a request and an answer, and for a gigabyte, of processor time of both ends.
fn measure(node: &Node, lab: &mut Routed<2>, datagrams: bool) -> [f64; 2] {
    let settings = Settings { datagrams, ..node.settings(Attach::SockOps) };
    let _watched = Watched::start(&settings);
    let [client, server] = &mut lab.pods;
    let port = server.listen("l", "0.0.0.0:0");
    let target = format!("{}:{port}", addresses(1)[0]);
    let before = used(node.root());
    server.begin_serve("l", short(CONNECTIONS, 100, 1000));
    client.call(&target, short(CONNECTIONS, 100, 1000));
    server.finish();
    let between = used(node.root());
    client.connect("c", &target);
    server.accept("s", "l");
    let begun = used(node.root());
    for _ in 0..MEGABYTES / 100 {
        server.begin_receive_bytes("s", 100_000_000);
        client.send_bytes("c", 100_000_000);
        server.finish();
    }
    let ended = used(node.root());
    client.close("c");
    server.close("s");
    #[expect(clippy::cast_precision_loss, reason = "a measurement")]
    let per = |microseconds: u64, of: u64| microseconds as f64 / of as f64;
    [per(between - before, CONNECTIONS), per(ended - begun, MEGABYTES) * 1000.0]
}

#[test]
#[ignore = "a measurement of some minutes; prints what it finds"]
fn what_counting_datagrams_costs_tcp() {
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["client", "server"]);
    measure(&node, &mut lab, false);
    let pairs: Vec<_> = (0..PAIRS)
        .map(|turn| {
            // Each comes first as often as the other.
            let first = measure(&node, &mut lab, turn % 2 == 0);
            let second = measure(&node, &mut lab, turn % 2 != 0);
            if turn % 2 == 0 { (second, first) } else { (first, second) }
        })
        .collect();
    for (index, what) in ["microseconds for a connection", "microseconds for a gigabyte"].into_iter().enumerate() {
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let without = median(pairs.iter().map(|(without, _)| without[index]).collect());
        let with = median(pairs.iter().map(|(_, with)| with[index]).collect());
        let more = median(pairs.iter().map(|(without, with)| 100.0 * (with[index] / without[index] - 1.0)).collect());
        println!("{what}: {without:.1} without, {with:.1} with; median of the pairs' differences {more:+.1} %");
    }
}
