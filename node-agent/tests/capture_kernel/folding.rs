//! A table of flows that external addresses would fill: in-cluster flows and sums of external ones stay exact.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Attach, Capture, Losses, Settings};
use topology::{
    entity::Network,
    flow::{FlowCounters, FlowKey, Protocol, Role},
};

use crate::lab::{
    Node, Process, Watched, can_list, key, list_or_skip, node_or_skip, short, with_methods, without_measures,
};

by_each_way_to_attach!(
    external_addresses_share_rows_while_table_is_nearly_full,
    preexisting_external_connections_beyond_table_are_counted,
);

const SLOTS: u32 = 200;
/// Addresses of the server and of in-cluster clients.
const SERVER: [&str; 2] = ["10.99.0.1", "fd99::1"];
const SENT: usize = 10;
const RECEIVED: usize = 25;

/// Returns the server's counts of connections, some of them open: their bytes are known where the kernel lists sockets.
fn exchanged(opened: u64, open: u64) -> FlowCounters {
    let (listed, unlisted) = if can_list() { (open, 0) } else { (0, open) };
    FlowCounters {
        opened,
        closed: opened - open,
        bytes_sent: RECEIVED as u64 * (opened - unlisted),
        bytes_received: SENT as u64 * (opened - unlisted),
        open_bytes_sent: RECEIVED as u64 * listed,
        open_bytes_received: SENT as u64 * listed,
        open_without_bytes: unlisted,
        ..FlowCounters::default()
    }
}

/// Server on a node, and a client beside it outside of the node, with any address.
struct Site {
    server: Process,
    clients: Process,
    port: u16,
    /// Number of connections that were opened by address, counted here.
    opened: BTreeMap<IpAddr, u64>,
    /// Open connections by name, with their addresses.
    open: BTreeMap<String, IpAddr>,
    next: u32,
    /// Keeps the client's cgroup; goes after its process.
    _elsewhere: Node,
}

impl Site {
    fn new(node: &Node) -> Self {
        let elsewhere = Node::new();
        let mut server = node.process_in_own_netns("server", false);
        server.in_netns(
            "ip address add 10.99.0.1/32 dev lo && ip address add fd99::1/128 dev lo nodad\n\
             ip route add local 198.51.100.0/24 dev lo && ip route add local 203.0.113.0/24 dev lo\n\
             ip route add local 192.0.2.0/24 dev lo && ip -6 route add local 2001:db8::/64 dev lo\n\
             ip route add local 10.0.0.0/8 dev lo && sysctl -qw net.ipv6.ip_nonlocal_bind=1",
        );
        let clients = elsewhere.process_beside("clients", &server);
        let port = server.listen("l", "[::]:0");
        let (opened, open) = (BTreeMap::new(), BTreeMap::new());
        Self { server, clients, port, opened, open, next: 0, _elsewhere: elsewhere }
    }

    /// Opens a connection from an address, which stays open.
    fn open(&mut self, from: IpAddr) -> String {
        self.next += 1;
        let name = self.next.to_string();
        let (target, local) = match from {
            IpAddr::V4(_) => (format!("{}:{}", SERVER[0], self.port), format!("{from}:0")),
            IpAddr::V6(_) => (format!("[{}]:{}", SERVER[1], self.port), format!("[{from}]:0")),
        };
        self.clients.start_connect(&name, target, Some(&local));
        assert!(self.clients.await_handshake(&name), "{from}");
        self.server.accept(&name, "l");
        self.clients.send_bytes(&name, SENT);
        self.server.receive_bytes(&name, SENT);
        self.server.send_bytes(&name, RECEIVED);
        self.clients.receive_bytes(&name, RECEIVED);
        *self.opened.entry(from).or_default() += 1;
        self.open.insert(name.clone(), from);
        name
    }

    fn close(&mut self, name: &str) {
        self.clients.close(name);
        self.server.await_end(name);
        self.server.close(name);
        self.open.remove(name);
    }

    fn close_all(&mut self, is_meant: impl Fn(&IpAddr) -> bool) {
        let names: Vec<_> = self.open.iter().filter(|(_, from)| is_meant(from)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.close(&name);
        }
    }

    /// Makes connections from an address to its end.
    fn call(&mut self, from: IpAddr, times: u32) {
        for _ in 0..times {
            let name = self.open(from);
            self.close(&name);
        }
    }

    /// Returns the server's key for a client.
    fn key(&mut self, from: IpAddr) -> FlowKey {
        let local = if from.is_ipv4() { SERVER[0] } else { SERVER[1] };
        key(&mut self.server, Role::Server, local, &from.to_string(), self.port)
    }

    /// Returns the server's counts of connections from these addresses.
    fn counts(&self, is_meant: impl Fn(&IpAddr) -> bool) -> FlowCounters {
        let opened = self.opened.iter().filter(|(from, _)| is_meant(from)).map(|(_, opened)| opened).sum();
        let open = self.open.values().filter(|from| is_meant(from)).count() as u64;
        exchanged(opened, open)
    }

    /// Expects each of these addresses in a row of its own.
    fn expect_own(&mut self, expected: &mut BTreeMap<FlowKey, FlowCounters>, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let counts = self.counts(|from| *from == address);
            expected.insert(self.key(address), counts);
        }
    }
}

fn v4(network: u8, number: u8) -> IpAddr {
    match network {
        0 => IpAddr::from([198, 51, 100, number]),
        1 => IpAddr::from([203, 0, 113, number]),
        _ => IpAddr::from([192, 0, 2, number]),
    }
}

fn v6(number: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number])
}

const ANY: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)];

fn settings(node: &Node, attach: Attach) -> Settings {
    Settings { max_flows: SLOTS, ..node.settings(attach) }
}

/// Makes in-cluster flows to this many new ports, and adds them to the expected ones.
fn call_within(node: &Node, expected: &mut BTreeMap<FlowKey, FlowCounters>, ports: usize) {
    let (mut client, mut server) = (node.process("within-client"), node.process("within-server"));
    for number in 0..ports {
        let port = server.listen(number, "127.0.0.1:0");
        server.begin_serve(number, short(3, 10, 20));
        client.call(format_args!("127.0.0.1:{port}"), short(3, 10, 20));
        server.finish();
        for (process, role, sent, received) in
            [(&mut client, Role::Client, 30, 60), (&mut server, Role::Server, 60, 30)]
        {
            let counters = FlowCounters {
                opened: 3,
                closed: 3,
                bytes_sent: sent,
                bytes_received: received,
                ..FlowCounters::default()
            };
            expected.insert(key(process, role, "127.0.0.1", "127.0.0.1", port), counters);
        }
    }
}

/// Reads until the capture folds, or does so no longer.
fn until_folding(watched: &mut Watched, is_active: bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while watched.folded.is_active != is_active {
        assert!(Instant::now() < deadline, "{:?}, {} slots are free", watched.folded, watched.capture.free_slots());
        watched.read();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for exactly these flows. Where runs of a tracepoint were skipped, as many events may be missing.
fn expect(watched: &mut Watched, expected: &BTreeMap<FlowKey, FlowCounters>) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        watched.capture.list_again();
        watched.read();
        let (found, wanted) = (without_measures(&watched.flows), with_methods(expected));
        if found == wanted {
            break;
        }
        if Instant::now() > deadline {
            let differing: Vec<_> = wanted
                .iter()
                .map(|(key, counters)| (key, Some(counters), found.get(key)))
                .chain(found.iter().filter(|(key, _)| !wanted.contains_key(key)).map(|(key, it)| (key, None, Some(it))))
                .filter(|(_, wanted, found)| wanted != found)
                .collect();
            panic!("{} differ: {differing:#?}\n{:?}", differing.len(), watched.losses);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    watched.assert_nothing_lost();
}

/// Follows rows from their own ones through folding and draining back to their own ones.
fn external_addresses_share_rows_while_table_is_nearly_full(attach: Attach) {
    let node = node_or_skip!();
    let mut site = Site::new(&node);
    let mut watched = Watched::start(&settings(&node, attach));
    let mut expected = BTreeMap::new();
    let early = |from: &IpAddr| (0..100).any(|number| v4(0, number) == *from);
    let brief = |from: &IpAddr| (100..170).any(|number| v4(0, number) == *from);
    let folded = |from: &IpAddr| !early(from) && !brief(from);

    // The table is filled by rows of their own.
    for number in 0..100 {
        site.open(v4(0, number));
    }
    call_within(&node, &mut expected, 2);
    watched.read();
    assert!(!watched.folded.is_active);
    for number in 100..170 {
        site.call(v4(0, number), 2);
    }
    until_folding(&mut watched, true);
    site.expect_own(&mut expected, (0..170).map(|number| v4(0, number)));
    expect(&mut watched, &expected);
    assert_eq!(watched.folded.connections, 0);

    // More addresses than the table has slots, some with connections that stay open; in-cluster flows go on.
    for number in 0..150 {
        site.call(v4(1, number), 1);
        site.open(v4(1, number));
        site.call(v6(1 + u16::from(number)), 1);
    }
    site.open(v6(1));
    call_within(&node, &mut expected, 6);
    // An address with a row of its own stays there; a private one is never folded.
    site.open(v4(0, 1));
    site.call("10.7.7.7".parse().unwrap(), 2);
    let expect_folded = |site: &mut Site, expected: &mut BTreeMap<_, _>| {
        site.expect_own(expected, (0..170).map(|number| v4(0, number)));
        site.expect_own(expected, std::iter::once("10.7.7.7".parse().unwrap()));
        for any in ANY {
            let is_meant =
                |from: &IpAddr| folded(from) && from.is_ipv4() == any.is_ipv4() && from.to_string() != "10.7.7.7";
            let counts = site.counts(is_meant);
            expected.insert(site.key(any), counts);
        }
    };
    expect_folded(&mut site, &mut expected);
    expect(&mut watched, &expected);
    assert_eq!(watched.folded.connections, 2 * 150 + 151);

    // There is room again, but folded rows have open connections: their flows go on there.
    let brief_keys: Vec<_> = (100..170).map(|number| site.key(v4(0, number))).collect();
    let dropped = watched.capture.forget(&brief_keys);
    assert_eq!(dropped.len(), brief_keys.len());
    watched.wait_for_free_slots(SLOTS * 2 / 5);
    watched.read();
    assert!(watched.folded.is_active, "folded rows have open connections");
    site.call(v4(1, 200), 1);
    site.open(v4(1, 0));
    expect_folded(&mut site, &mut expected);
    expect(&mut watched, &expected);

    // Without open connections they are not used any more.
    site.close_all(folded);
    expect_folded(&mut site, &mut expected);
    expect(&mut watched, &expected);
    let by_folded_rows = watched.folded.connections;
    site.open(v4(2, 1));
    site.call(v4(1, 7), 1);
    let mut own = expected.clone();
    for (address, opened, open) in [(v4(2, 1), 1, 1), (v4(1, 7), 1, 0)] {
        own.insert(site.key(address), exchanged(opened, open));
    }
    expect(&mut watched, &own);
    assert_eq!(watched.folded.connections, by_folded_rows);

    // The folded rows are given back, and everything ends where it began.
    let rows: Vec<_> = ANY.iter().map(|any| site.key(*any)).collect();
    let dropped = watched.capture.forget(&rows);
    assert_eq!(dropped.len(), rows.len());
    until_folding(&mut watched, false);
    site.close_all(|_| true);
    let total = site.opened.values().sum::<u64>();
    let port = site.port;
    let is_servers = |key: &FlowKey| key.role == Role::Server && key.port == port;
    let sum = |watched: &Watched, field: fn(&FlowCounters) -> u64| -> u64 {
        watched.flows.iter().filter(|(key, _)| is_servers(key)).map(|(_, counters)| field(counters)).sum()
    };
    watched.until("all ends", |watched| sum(watched, |counters| counters.closed) == total);
    assert_eq!(sum(&watched, |counters| counters.opened), total);
    assert_eq!(sum(&watched, |counters| counters.bytes_sent), total * RECEIVED as u64);
    assert!(watched.flows.values().all(|counters| counters.active() == 0 && counters.preexisting == 0));
    watched.assert_nothing_lost();
}

/// Starts with more external connections than the table has slots; one agent replaces another.
fn preexisting_external_connections_beyond_table_are_counted(attach: Attach) {
    let node = node_or_skip!();
    list_or_skip!();
    let mut site = Site::new(&node);
    for number in 0..=250 {
        site.open(v4(0, number));
    }
    for number in 0..20 {
        site.open(IpAddr::from([10, 5, 5, number]));
    }
    let preexisting = |counters: FlowCounters| FlowCounters {
        opened: 0,
        preexisting: counters.opened,
        preexisting_bytes_sent: counters.bytes_sent,
        preexisting_bytes_received: counters.bytes_received,
        ..counters
    };
    for _ in 0..2 {
        let mut watched = Watched::start(&settings(&node, attach));
        watched.read();
        assert!(watched.folded.is_active);
        assert_eq!(watched.folded.connections, 251);
        let mut expected = BTreeMap::new();
        let counts = site.counts(|from| !from.to_string().starts_with("10."));
        expected.insert(site.key(ANY[0]), preexisting(counts));
        for address in (0..20).map(|number| IpAddr::from([10, 5, 5, number])) {
            let counts = site.counts(|from| *from == address);
            expected.insert(site.key(address), preexisting(counts));
        }
        expect(&mut watched, &expected);
        drop(watched);
    }
    let mut watched = Watched::start(&settings(&node, attach));
    watched.read();
    site.close_all(|_| true);
    let total = site.opened.values().sum::<u64>();
    watched.until("all ends", |watched| watched.sum(|counters| counters.closed) == total);
    assert_eq!(watched.sum(|counters| counters.preexisting), total);
    assert_eq!(watched.sum(|counters| counters.opened), 0);
    assert!(watched.flows.values().all(|counters| counters.active() == 0), "{:?}", watched.flows);
    let Losses { closes_unseen, missed_runs, .. } = watched.losses;
    assert_eq!(watched.losses, Losses { closes_unseen, missed_runs, ..Losses::default() });
    // A row of its own comes back with room.
    let row = site.key(ANY[0]);
    assert_eq!(watched.capture.forget(&[row]), [row]);
    until_folding(&mut watched, false);
}

#[test]
fn conversations_stay_in_rows_in_which_they_began() {
    let node = node_or_skip!();
    let mut site = Site::new(&node);
    let settings = Settings { conversations_settle: Duration::ZERO, ..settings(&node, Attach::SockOps) };
    let mut watched = Watched::start(&settings);
    for number in 0..165 {
        site.open(v4(0, number));
    }
    until_folding(&mut watched, true);
    let port = site.server.bind_udp("s", format_args!("{}:0", SERVER[0]));
    let exchange = |site: &mut Site, number: u8| {
        site.clients.send_datagram(number, 40);
        site.server.receive_datagram("s", 40);
        site.server.respond_datagram("s", 70);
        site.clients.receive_datagram(number, 70);
    };
    for number in 0..100 {
        site.clients.bind_udp(number, format_args!("{}:0", v4(1, number)));
        site.clients.connect_udp(number, format_args!("{}:{port}", SERVER[0]));
        exchange(&mut site, number);
    }
    let udp = |site: &mut Site, from: IpAddr| {
        let key = key(&mut site.server, Role::Server, SERVER[0], &from.to_string(), port);
        FlowKey { protocol: Protocol::Udp, ..key }
    };
    let counted = |opened: u64, exchanges: u64| FlowCounters {
        opened,
        closed: opened,
        bytes_sent: 70 * exchanges,
        bytes_received: 40 * exchanges,
        ..FlowCounters::default()
    };
    let mut expected = BTreeMap::new();
    site.expect_own(&mut expected, (0..165).map(|number| v4(0, number)));
    let folded = udp(&mut site, ANY[0]);
    expected.insert(folded, counted(100, 100));
    expect(&mut watched, &expected);
    // With room they go on there, and others have rows of their own.
    site.close_all(|_| true);
    site.expect_own(&mut expected, (0..165).map(|number| v4(0, number)));
    expect(&mut watched, &expected);
    let keys: Vec<_> = expected.keys().copied().filter(|key| *key != folded).collect();
    assert_eq!(watched.capture.forget(&keys).len(), keys.len());
    watched.wait_for_free_slots(SLOTS - 1);
    exchange(&mut site, 5);
    site.clients.bind_udp(200, format_args!("{}:0", v4(1, 200)));
    site.clients.connect_udp(200, format_args!("{}:{port}", SERVER[0]));
    exchange(&mut site, 200);
    expected.insert(folded, counted(100, 101));
    let own = udp(&mut site, v4(1, 200));
    expected.insert(own, counted(1, 1));
    expect(&mut watched, &expected);
}

#[test]
fn networks_of_the_cluster_are_never_folded() {
    let node = node_or_skip!();
    let mut site = Site::new(&node);
    let mut watched = Watched::start(&settings(&node, Attach::SockOps));
    let networks = ["192.0.2.0/25", "2001:db8::40/122"].map(|text| Network::parse(text).unwrap());
    watched.capture.set_own_networks(&networks);
    watched.read();
    for number in 0..165 {
        site.open(v4(0, number));
    }
    until_folding(&mut watched, true);
    let mut expected = BTreeMap::new();
    for (own, other) in [(v4(2, 127), v4(2, 128)), (v6(0x7f), v6(0x80))] {
        site.call(own, 2);
        site.call(other, 3);
        site.expect_own(&mut expected, std::iter::once(own));
        let (counts, row) = (site.counts(|from| *from == other), site.key(if own.is_ipv4() { ANY[0] } else { ANY[1] }));
        expected.insert(row, counts);
    }
    site.expect_own(&mut expected, (0..165).map(|number| v4(0, number)));
    expect(&mut watched, &expected);
}
