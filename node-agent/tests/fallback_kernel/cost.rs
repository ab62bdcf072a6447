//! Measures the capture's processor time beside fifty pods, and after which time connections are shown; no test.

use std::{
    thread,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Capture as _, FallbackSettings};
use topology::flow::Role;
use traffic::script::step::Step;

use super::{
    Watched,
    lab::{Node, Process, key, node_or_skip, routed::Routed, routed::addresses, short},
};

const PODS: usize = 50;
/// Short connections per second of each of the 25 clients.
const RATE: u32 = 40;
const SECONDS: u32 = 60;
/// Long connections of each client.
const LONG: u64 = 10;

/// As an agent's, but for the place.
fn settings_of(lab: &Routed<PODS>, node: &Node) -> FallbackSettings {
    FallbackSettings { cgroup_root: node.root().to_path_buf(), host_pid: lab.host.pid(), ..FallbackSettings::default() }
}

/// Runs for so many seconds, and prints the share of one processor for each five of them. Returns the CPU time.
fn watch(watched: &mut Watched, seconds: u32, what: &str) {
    for _ in 0..seconds / 5 {
        let (began, before) = (Instant::now(), watched.capture.passes());
        while began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(100));
            watched.read();
        }
        let passes = watched.capture.passes();
        let share = passes.in_all.saturating_sub(before.in_all).as_secs_f64() / began.elapsed().as_secs_f64();
        println!(
            "{what}: {:.1} % of a core, seen {}, lost {:?}, {} passes, the last one of {:.1} s",
            100.0 * share,
            watched.seen,
            watched.losses.opened,
            passes.count - before.count,
            passes.last.as_secs_f64()
        );
    }
}

/// Returns after which time both ends of a connection are shown.
fn first_sight(watched: &mut Watched, client: &mut Process, server: &mut Process, of: (usize, &str)) -> Duration {
    let (index, name) = of;
    let port = server.listen(name, "0.0.0.0:0");
    let [here, there] = [index, index + 1].map(|index| addresses(index)[0].clone());
    client.connect(name, format_args!("{there}:{port}"));
    server.accept(name, name);
    let opened = Instant::now();
    let ends = [key(client, Role::Client, &here, &there, port), key(server, Role::Server, &there, &here, port)];
    while !ends.iter().all(|end| watched.flows.contains_key(end)) {
        assert!(opened.elapsed() < super::PATIENCE, "{:?}", watched.capture.passes());
        thread::sleep(Duration::from_millis(20));
        watched.read();
    }
    opened.elapsed()
}

#[test]
#[ignore = "a measurement of some minutes; prints what it finds"]
fn cost_beside_fifty_pods() {
    let node = node_or_skip!();
    let names: Vec<String> = (0..PODS).map(|pod| format!("pod{pod}")).collect();
    let names: [&str; PODS] = std::array::from_fn(|pod| names[pod].as_str());
    let mut lab = Routed::new(&node, names);
    let mut watched = Watched::start(&settings_of(&lab, &node));
    println!("{:?}", watched.capture.description().attach);
    watch(&mut watched, 30, "idle");
    for (pair, ends) in lab.pods.chunks_exact_mut(2).enumerate() {
        let [client, server] = ends else { continue };
        let port = server.listen("long", "0.0.0.0:0");
        for number in 0..LONG {
            client.connect(format_args!("c{number}"), format_args!("{}:{port}", addresses(2 * pair + 1)[0]));
            server.accept(format_args!("c{number}"), "long");
        }
    }
    watch(&mut watched, 30, "50 x 10 long connections");
    let seen = watched.seen;
    let count = RATE * SECONDS;
    for (pair, ends) in lab.pods.chunks_exact_mut(2).enumerate() {
        let [client, server] = ends else { continue };
        let port = server.listen("short", "0.0.0.0:0");
        let calls = short(count.into(), 10, 20);
        server.begin(&Step::ServeEach { listeners: vec!["short".into()], connections: calls, server_closes_every: 2 });
        let targets = vec![format!("{}:{port}", addresses(2 * pair + 1)[0]).parse().unwrap()];
        client.begin(&Step::CallInTurns { targets, count, rate: RATE });
    }
    watch(&mut watched, SECONDS, "1,000 short connections per second");
    for process in &mut lab.pods {
        process.finish_counts();
    }
    let ended = Instant::now();
    let goal = seen + 2 * u64::from(count) * (PODS as u64 / 2);
    while watched.seen + watched.losses.opened < goal && ended.elapsed() < super::PATIENCE {
        thread::sleep(Duration::from_millis(20));
        watched.read();
    }
    println!("{} of {goal}, {:?} lost, {:?} after the end", watched.seen, watched.losses.opened, ended.elapsed());
    let mut sights: Vec<_> = (0..10)
        .map(|time| {
            let [client, server] = &mut lab.pods[4 * time..4 * time + 2] else { unreachable!() };
            first_sight(&mut watched, client, server, (4 * time, "sight"))
        })
        .collect();
    sights.sort();
    println!("first sights: {sights:?}");
}
