//! The capture without eBPF on the running kernel: every count against that of the processes which made the
//! connections.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]

mod conntrack;
mod cost;
#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the tests of the other capture")]
#[path = "../capture_kernel/lab/mod.rs"]
mod lab;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Node, key,
    measures::{self, Measured},
    node_or_skip, run_scripted_process, run_with_capabilities, short,
    watched::take_in,
};
use scopeprobe_agent::capture::{Capture, FallbackCapture, FallbackSettings, Losses, probe_fallback, start_fallback};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use topology::{
    flow::{FlowCounters, FlowKey, Methods, Role},
    nat_peer::NatPeer,
};

/// Not a test: what [`lab::Process`] starts.
#[test]
#[ignore = "the process that other tests start"]
fn scripted_process() {
    run_scripted_process();
}

/// Time limit for a condition: several of the 30 s after which a quiet namespace is scanned again.
const PATIENCE: Duration = Duration::from_mins(3);

/// A capture, and all its results so far.
struct Watched {
    capture: FallbackCapture,
    flows: BTreeMap<FlowKey, FlowCounters>,
    nat_peers: BTreeMap<FlowKey, Vec<(NatPeer, u64)>>,
    losses: Losses,
    seen: u64,
}

impl Watched {
    fn start(settings: &FallbackSettings) -> Self {
        let capture = start_fallback(settings).unwrap();
        let (flows, nat_peers) = (BTreeMap::new(), BTreeMap::new());
        let mut watched = Self { capture, flows, nat_peers, losses: Losses::default(), seen: 0 };
        watched.wait_for_passes(1);
        watched
    }

    fn read(&mut self) {
        let reading = self.capture.read().unwrap();
        take_in(&mut self.flows, reading.flows);
        self.nat_peers.extend(reading.nat_peers);
        (self.losses, self.seen) = (reading.losses, reading.seen);
    }

    fn wait_for_passes(&mut self, more: u64) {
        let goal = self.capture.passes().count + more;
        let deadline = Instant::now() + PATIENCE;
        while self.capture.passes().count < goal {
            assert!(Instant::now() < deadline, "{:?}", self.capture.passes());
            thread::sleep(Duration::from_millis(20));
        }
        self.read();
    }

    /// Reads until a hundred ends of connections are seen or missed.
    fn wait_for_both_ends_of_fifty(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.losses.opened + self.seen < 100 {
            assert!(Instant::now() < deadline, "{:?} {:?}", self.losses, self.flows);
            self.wait_for_passes(1);
        }
    }

    /// Reads until it knows exactly this, of these fields, or for a minute; and a while longer, so that it stays.
    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, expected: &BTreeMap<FlowKey, T>, of: fn(&FlowCounters) -> T) {
        let deadline = Instant::now() + PATIENCE;
        let known = |watched: &Self| watched.flows.iter().map(|(key, now)| (*key, of(now))).collect::<BTreeMap<_, _>>();
        while known(self) != *expected {
            if Instant::now() > deadline {
                assert_eq!(known(self), *expected);
            }
            thread::sleep(Duration::from_millis(50));
            self.read();
        }
        self.wait_for_passes(2);
        assert_eq!(known(self), *expected);
    }
}

fn settings(node: &Node) -> FallbackSettings {
    FallbackSettings {
        cgroup_root: node.root().to_path_buf(),
        cpu_millicores: 1000,
        interval: Duration::from_millis(200),
        ..FallbackSettings::default()
    }
}

/// Opened, closed, failed, from before, of these inferred.
type Counts = (u64, u64, u64, u64, u64);

fn counts(of: &FlowCounters) -> Counts {
    (of.opened, of.closed, of.failed, of.preexisting, of.inferred)
}

fn open_bytes(of: &FlowCounters) -> (u64, u64, u64, u64) {
    (of.bytes_sent, of.bytes_received, of.open_bytes_sent, of.open_bytes_received)
}

#[test]
fn what_tcp_has_measured_is_what_the_sockets_say() {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    let mut watched = Watched::start(&settings(&node));
    let keys = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port),
    ];
    let measured = |of: &FlowCounters| (of.closed, of.retransmits, of.open_retransmits, of.rtt);
    let mut all = [Measured::default(); 2];
    for (number, name) in (1..).zip(["prompt", "late", "clients-again", "servers-again", "silent"]) {
        measures::open(&mut client, &mut server, port, name);
        let now = [all[0].add(client.measure(name)), all[1].add(server.measure(name))];
        let expected = |closed, open: [u64; 2]| {
            let end = |at: usize| (keys[at], (closed, Some(all[at].retransmits), open[at], all[at].rtt));
            BTreeMap::from([end(0), end(1)])
        };
        watched.expect(&expected(number - 1, now.map(|end| end.retransmits)), measured);
        // At once and without an acknowledgement that would be measured, too.
        client.reset(name);
        server.close(name);
        watched.expect(&expected(number, [0, 0]), measured);
    }
    assert!(all[0].retransmits >= 2 && all[1].retransmits >= 1, "{all:?}");
}

#[test]
fn connections_that_last_are_known_over_every_kind_of_address() {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut watched = Watched::start(&settings(&node));
    let mut expected = BTreeMap::new();
    let cases = [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.1"),
        ("[::1]:0", "[::1]", "::1"),
        ("[::]:0", "127.0.0.1", "127.0.0.1"),
        ("[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]", "127.0.0.1"),
    ];
    for (number, (listen, dial, shown)) in cases.into_iter().enumerate() {
        let port = server.listen(format_args!("l{number}"), listen);
        for name in ["a", "b"] {
            client.connect(format_args!("{name}{number}"), format_args!("{dial}:{port}"));
            server.accept(format_args!("{name}{number}"), format_args!("l{number}"));
        }
        client.send_bytes(format_args!("a{number}"), 1000);
        server.receive_bytes(format_args!("a{number}"), 1000);
        server.send_bytes(format_args!("a{number}"), 70);
        client.receive_bytes(format_args!("a{number}"), 70);
        expected.insert(key(&mut client, Role::Client, shown, shown, port), (1000, 70));
        expected.insert(key(&mut server, Role::Server, shown, shown, port), (70, 1000));
    }
    watched.expect(&expected.keys().map(|key| (*key, (2, 0, 0, 0, 0))).collect(), counts);
    assert!(watched.flows.values().all(|counters| counters.methods == Methods::SOCK_DIAG), "{:?}", watched.flows);
    let bytes = |(sent, received): (u64, u64)| (sent, received, sent, received);
    watched.expect(&expected.iter().map(|(key, both)| (*key, bytes(*both))).collect(), open_bytes);
    for number in 0..cases.len() {
        for name in ["a", "b"] {
            client.close(format_args!("{name}{number}"));
            server.await_end(format_args!("{name}{number}"));
            server.close(format_args!("{name}{number}"));
        }
    }
    watched.expect(&expected.keys().map(|key| (*key, (2, 2, 0, 0, 0))).collect(), counts);
    assert_eq!(watched.seen, 2 * 2 * cases.len() as u64);
}

#[test]
fn listeners_that_open_during_a_scan_explain_their_connections() {
    const ROUNDS: u64 = 200;
    let node = node_or_skip!();
    let mut pod = node.process_in_own_netns("pod", false);
    // A scan of many sockets takes a while, and scans follow each other at once.
    pod.listen("crowd", "127.0.0.1:0");
    pod.open_pairs("crowd", 4000);
    let mut watched = Watched::start(&FallbackSettings { interval: Duration::ZERO, ..settings(&node) });
    let from_before: Vec<_> = watched.flows.keys().copied().collect();
    for number in 0..ROUNDS {
        let port = pod.listen(format_args!("l{number}"), "127.0.0.1:0");
        pod.connect(format_args!("c{number}"), format_args!("127.0.0.1:{port}"));
        pod.accept(format_args!("a{number}"), format_args!("l{number}"));
    }
    let deadline = Instant::now() + PATIENCE;
    while watched.seen < 2 * ROUNDS {
        assert!(Instant::now() < deadline, "{} {:?}", watched.seen, watched.losses);
        watched.wait_for_passes(1);
    }
    let inferred: Vec<_> =
        watched.flows.iter().filter(|(key, of)| of.inferred > 0 && !from_before.contains(key)).collect();
    assert_eq!(inferred, [], "of {} flows", watched.flows.len());
}

#[test]
fn connections_from_before_are_told_by_their_listeners() {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "0.0.0.0:0");
    let lonely = server.listen("gone", "127.0.0.1:0");
    for (name, listener, port) in [("a", "l", port), ("b", "l", port), ("c", "gone", lonely)] {
        client.connect(name, format_args!("127.0.0.1:{port}"));
        server.accept(name, listener);
        client.send_bytes(name, 100);
        server.receive_bytes(name, 100);
    }
    // Held by two processes and two descriptors, it is still one connection.
    client.share("a");
    server.unlisten("gone");
    let ends = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port),
    ];
    let mut watched = Watched::start(&settings(&node));
    client.connect("d", format_args!("127.0.0.1:{port}"));
    server.accept("d", "l");
    let deadline = Instant::now() + PATIENCE;
    let known = |watched: &Watched| ends.map(|end| watched.flows.get(&end).map_or((0, 0, 0, 0, 0), counts));
    while known(&watched) != [(1, 0, 0, 2, 0); 2] {
        assert!(Instant::now() < deadline, "{:?}", watched.flows);
        watched.wait_for_passes(1);
    }
    let bytes = watched.flows[&ends[0]];
    assert_eq!((bytes.preexisting_bytes_sent, bytes.bytes_sent, bytes.open_bytes_sent), (200, 200, 200));
    // The listener is gone: both ends are shown, and the direction is marked as inferred.
    let guessed: Vec<_> = watched.flows.iter().filter(|(key, _)| !ends.contains(key)).collect();
    assert_eq!(guessed.len(), 2, "{guessed:?}");
    assert!(guessed.iter().all(|(_, of)| (of.preexisting, of.inferred) == (1, 1)), "{guessed:?}");
    client.unshare("a");
    for name in ["a", "b", "d"] {
        client.close(name);
        server.await_end(name);
        server.close(name);
    }
    while known(&watched) != [(1, 3, 0, 2, 0); 2] {
        assert!(Instant::now() < deadline, "{:?}", watched.flows);
        watched.wait_for_passes(1);
    }
}

#[test]
fn what_nothing_has_shown_is_counted_as_missed() {
    let node = node_or_skip!();
    let mut pod = node.process_in_own_netns("pod", false);
    let port = pod.listen("l", "127.0.0.1:0");
    // Nothing tracks connections within a pod; between two looks fifty come and go.
    let slow = FallbackSettings { interval: Duration::from_secs(3), ..settings(&node) };
    let mut watched = Watched::start(&slow);
    pod.begin_serve("l", short(0, 0, 0));
    pod.finish();
    pod.call_itself("l", port, 50);
    watched.wait_for_both_ends_of_fifty();
    watched.wait_for_passes(1);
    assert_eq!(watched.losses.opened + watched.seen, 100, "both ends of each, seen or missed");
    assert!(watched.losses.opened > 0);
}

#[test]
fn what_happened_before_the_last_process_ended_is_counted_as_missed() {
    let node = node_or_skip!();
    let mut pod = node.process_in_own_netns("pod", false);
    let port = pod.listen("l", "127.0.0.1:0");
    let slow = FallbackSettings { interval: Duration::from_secs(3), ..settings(&node) };
    let mut watched = Watched::start(&slow);
    pod.begin_serve("l", short(0, 0, 0));
    pod.finish();
    // The namespace has an owner once it was scanned.
    watched.wait_for_passes(2);
    pod.call_itself("l", port, 50);
    drop(pod);
    watched.wait_for_both_ends_of_fifty();
    assert_eq!(watched.losses.opened + watched.seen, 100, "both ends of each, seen or missed");
}

/// Not a test of its own: run by the one below, with few capabilities.
#[test]
#[ignore = "run by other tests with few capabilities"]
fn look_here() {
    let Some(root) = std::env::var_os("SCOPEPROBE_LAB_ROOT") else { return };
    if std::env::var_os("SCOPEPROBE_LAB_WITHOUT_NETLINK").is_some() {
        refuse_netlink().unwrap();
    }
    let settings = FallbackSettings {
        cgroup_root: root.into(),
        cpu_millicores: 1000,
        host_pid: std::env::var("SCOPEPROBE_LAB_HOST").unwrap().parse().unwrap(),
        ..FallbackSettings::default()
    };
    for finding in probe_fallback(&settings) {
        println!("{}: {} {:?} {}", finding.what, finding.ok, finding.refusal, finding.detail);
    }
    let watched = Watched::start(&settings);
    println!("attach {}", watched.capture.description().attach);
    for (key, of) in &watched.flows {
        let bytes = (of.bytes_sent, of.bytes_received, of.without_bytes);
        println!("flow {} {:?} {} {:?} {bytes:?}", key.cgroup_id, key.role, of.preexisting, of.methods);
    }
}

/// As a container's seccomp profile may do it.
fn refuse_netlink() -> Result<(), Box<dyn std::error::Error>> {
    let netlink =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::try_from(libc::AF_NETLINK)?)?;
    let filter: BpfProgram = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_socket, vec![SeccompRule::new(vec![netlink])?])]),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::EPERM)?),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()?;
    Ok(seccompiler::apply_filter_all_threads(&filter)?)
}

/// Each ability with exactly the capabilities that it needs, and what is left without them.
#[test]
fn every_capability_that_is_missing_costs_its_own_ability_only() {
    let node = node_or_skip!();
    let mut server = node.process_in_own_netns("server", false);
    let mut client = node.process_beside("client", &server);
    let port = server.listen("l", "127.0.0.1:0");
    client.connect("c", format_args!("127.0.0.1:{port}"));
    server.accept("c", "l");
    client.send_bytes("c", 300);
    server.receive_bytes("c", 300);
    let root = node.root().to_path_buf();
    let root_id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&root).unwrap());
    let look = |capabilities, more: &[(&str, &str)]| {
        let pid = server.pid().to_string();
        let told = [("SCOPEPROBE_LAB_ROOT", root.to_str().unwrap()), ("SCOPEPROBE_LAB_HOST", &pid)];
        run_with_capabilities("look_here", capabilities, &[&told, more].concat())
    };
    let flows = |methods: Methods, [of_client, of_server]: [u64; 2], [sent, received]: [(u64, u64, u64); 2]| {
        [
            format!("flow {of_client} Client 1 {methods:?} {sent:?}"),
            format!("flow {of_server} Server 1 {methods:?} {received:?}"),
        ]
    };
    let exact = [client.cgroup(), server.cgroup()];
    let by_netlink = flows(Methods::SOCK_DIAG, exact, [(300, 0, 0), (0, 300, 0)]);
    let by_process = flows(Methods::PROCFS, exact, [(0, 0, 1); 2]);
    // No more is known than that it is one of the two in this namespace.
    let by_namespace = flows(Methods::PROCFS, [root_id; 2], [(0, 0, 1); 2]);
    let cases = [
        ("+sys_admin,+sys_ptrace,+net_admin", "SockDiag+Conntrack", &by_netlink, &[][..]),
        ("+sys_admin,+sys_ptrace", "SockDiag", &by_netlink, &["connection tracking"][..]),
        ("+sys_ptrace", "Procfs", &by_process, &["network namespaces", "sock_diag"]),
        ("+sys_admin,+net_admin", "Procfs", &by_namespace, &["network namespaces", "sock_diag"]),
        ("+net_bind_service", "Procfs", &by_namespace, &["network namespaces", "/proc/<pid>/fd"]),
    ];
    for (capabilities, attach, expected, lacking) in cases {
        let output = look(capabilities, &[]);
        assert!(output.contains(&format!("attach {attach}\n")), "{capabilities}: {output}");
        for line in expected {
            assert!(output.contains(line.as_str()), "{capabilities}: no {line} in {output}");
        }
        for what in lacking {
            assert!(output.contains(&format!("{what}: false")), "{capabilities}: {what} in {output}");
        }
        assert!(output.contains("/proc/<pid>/net/tcp: true"), "{capabilities}: {output}");
    }
    let output = look("+sys_admin,+sys_ptrace,+net_admin", &[("SCOPEPROBE_LAB_WITHOUT_NETLINK", "1")]);
    assert!(output.contains("attach Procfs\n"), "netlink is refused: {output}");
    for line in &by_process {
        assert!(output.contains(line.as_str()), "netlink is refused: no {line} in {output}");
    }
    for what in ["sock_diag", "connection tracking"] {
        let line = output.lines().find(|line| line.starts_with(&format!("{what}: false")));
        assert!(line.is_some_and(|line| line.contains("Operation not permitted")), "netlink is refused: {output}");
    }
    assert!(output.contains("allow netlink in its seccomp profile"), "{output}");
}
