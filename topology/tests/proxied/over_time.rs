//! Calls through proxies in situations that change: what is shown stays, and nothing counts twice.

use std::time::Duration;

use scopeprobe_topology::flow::Role::{Client, Server};

use crate::history::{Container, DB, History, INBOUND, LOOPBACK, OUTBOUND, PORT, SERVICE, WEB};

const APP: Container = Container("web", "app", 0);
const PROXY: Container = Container("web", "proxy", 0);
const DB_APP: Container = Container("db", "app", 0);
const DB_PROXY: Container = Container("db", "proxy", 0);
/// Another port of the server.
const OTHER_PORT: u16 = 9090;
const SERVICE_EDGE: &str = "web -> db:5432 via db:80";

/// Calls of an application through a proxy beside it, which opens fewer connections if it shares them.
fn call(history: &mut History, app: Container, proxy: Container, opened: u64, upstream: u64) {
    history.open(app, Client, (WEB, SERVICE, 80), opened);
    history.open(proxy, Server, (LOOPBACK, WEB, OUTBOUND), opened);
    history.open(proxy, Client, (WEB, DB, PORT), upstream);
    history.open(DB_APP, Server, (DB, WEB, PORT), upstream);
}

/// Calls of a client without a sidecar that arrive at a proxy in front of the server.
fn arrive(history: &mut History, port: u16, accepted: u64, opened: u64) {
    history.open(DB_PROXY, Server, (DB, WEB, INBOUND), accepted);
    history.open(DB_PROXY, Client, (LOOPBACK, LOOPBACK, port), opened);
    history.open(DB_APP, Server, (LOOPBACK, LOOPBACK, port), opened);
}

#[test]
fn first_calls_stay_on_their_edge_when_a_proxy_begins_to_share_connections() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 1, 1);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 1+0"]);
    call(&mut history, APP, PROXY, 19, 2);
    let shown = ["web -> db:5432 2+0", "web -> db:5432 via db:80 1+0", "web -> web:15001 via db:80 19+0"];
    assert_eq!(history.settled(), shown);
    call(&mut history, APP, PROXY, 5, 5);
    let shown = ["web -> db:5432 7+0", "web -> db:5432 via db:80 1+0", "web -> web:15001 via db:80 24+0"];
    assert_eq!(history.settled(), shown, "what is shared once is not told apart later");
}

#[test]
fn bytes_of_first_calls_stay_when_later_ones_have_fewer() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 1, 1);
    history.settled();
    let bytes =
        |history: &History| -> Vec<u64> { history.shown.edges.iter().map(|edge| edge.counters.bytes_sent).collect() };
    assert_eq!(bytes(&history), [10]);
    history.open(APP, Client, (WEB, SERVICE, 80), 19);
    for (who, counters) in history.agents[0].values_mut() {
        if *who == APP {
            counters.bytes_sent = 29;
        }
    }
    history.settled();
    assert_eq!(bytes(&history), [10, 19]);
}

#[test]
fn new_calls_wait_until_it_shows_whether_a_proxy_shares_connections() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 5, 1);
    history.report(0);
    history.report(1);
    assert_eq!(history.look_after(500), Vec::<String>::new());
    assert_eq!(history.shown.unsettled, 7, "as many legs");
    assert_eq!(history.look_after(2000), ["web -> db:5432 1+0", "web -> web:15001 via db:80 5+0"]);
}

#[test]
fn restarted_application_and_its_sidecar_that_goes_on_are_one_for_one() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 20, 20);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 20+0"]);
    history.evict(|_, who| who == APP);
    let next = Container("web", "app", 1);
    call(&mut history, next, PROXY, 5, 5);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 25+0"]);
    history.retire(|history| call(history, next, PROXY, 1, 1));
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 85+0"]);
    history.restart_operator();
    for _ in 0..8 {
        assert_eq!(history.settled(), ["web -> db:5432 via db:80 85+0"]);
    }
    call(&mut history, next, PROXY, 3, 3);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 88+0"]);
}

#[test]
fn application_and_its_restarted_sidecar_are_one_for_one() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 20, 20);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 20+0"]);
    history.evict(|_, who| who == PROXY);
    let next = Container("web", "proxy", 1);
    call(&mut history, APP, next, 5, 5);
    history.settled();
    history.retire(|history| call(history, APP, next, 1, 1));
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 85+0"]);
    history.restart_operator();
    call(&mut history, APP, next, 3, 3);
    for _ in 0..8 {
        assert_eq!(history.settled(), ["web -> db:5432 via db:80 88+0"]);
    }
}

#[test]
fn shared_connections_stay_apart_without_the_proxys_flows() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 20, 3);
    let shown = ["web -> db:5432 3+0", "web -> web:15001 via db:80 20+0"];
    assert_eq!(history.settled(), shown);
    history.evict(|key, who| who == PROXY && key.role == Client);
    let mut calls = 20;
    history.retire(|history| {
        calls += 1;
        history.open(APP, Client, (WEB, SERVICE, 80), 1);
        history.open(PROXY, Server, (LOOPBACK, WEB, OUTBOUND), 1);
    });
    let settled = history.settled();
    assert!(settled.contains(&format!("web -> web:15001 via db:80 {calls}+0")), "{settled:?}");
}

#[test]
fn restarted_application_behind_its_proxy_is_one_for_one() {
    let mut history = History::new();
    history.open(APP, Client, (WEB, SERVICE, 80), 20);
    arrive(&mut history, PORT, 20, 20);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 20+0"]);
    history.evict(|_, who| who == DB_APP);
    history.retire(|history| {
        history.open(APP, Client, (WEB, SERVICE, 80), 1);
        history.open(DB_PROXY, Server, (DB, WEB, INBOUND), 1);
        history.open(DB_PROXY, Client, (LOOPBACK, LOOPBACK, PORT), 1);
        history.open(Container("db", "app", 1), Server, (LOOPBACK, LOOPBACK, PORT), 1);
    });
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 80+0"]);
}

#[test]
fn calls_of_a_client_that_is_gone_leave_the_proxy_in_front_of_the_server_one_for_one() {
    let mut history = History::new();
    history.open(APP, Client, (WEB, SERVICE, 80), 20);
    arrive(&mut history, PORT, 20, 20);
    let other = "10.244.1.9";
    history.open(DB_PROXY, Server, (DB, other, INBOUND), 5);
    history.open(DB_PROXY, Client, (LOOPBACK, LOOPBACK, PORT), 5);
    history.open(DB_APP, Server, (LOOPBACK, LOOPBACK, PORT), 5);
    let settled = history.settled();
    assert_eq!(settled.len(), 2, "{settled:?}");
    assert!(settled.contains(&"web -> db:5432 via db:80 20+0".to_owned()), "{settled:?}");
    history.evict(|key, who| who == APP || key.remote.to_string() == WEB);
    history.retire(|history| {
        history.open(DB_PROXY, Server, (DB, other, INBOUND), 1);
        history.open(DB_PROXY, Client, (LOOPBACK, LOOPBACK, PORT), 1);
        history.open(DB_APP, Server, (LOOPBACK, LOOPBACK, PORT), 1);
    });
    let settled = history.settled();
    assert_eq!(settled.len(), 1, "{settled:?}");
    assert!(settled[0].ends_with("db:5432 65+0"), "{settled:?}");
    history.restart_operator();
    for _ in 0..8 {
        assert_eq!(history.settled(), settled);
    }
}

#[test]
fn server_behind_a_proxy_that_begins_to_share_connections_keeps_its_first_calls() {
    let mut history = History::new();
    history.open(APP, Client, (WEB, SERVICE, 80), 4);
    arrive(&mut history, PORT, 4, 4);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 4+0"]);
    history.open(APP, Client, (WEB, SERVICE, 80), 16);
    arrive(&mut history, PORT, 16, 1);
    assert_eq!(history.settled(), ["db -> db:5432 1+0", "web -> db:5432 via db:80 20+0"]);
    let servers = history.shown.edges[1].servers.iter().map(|end| (end.container.as_str(), end.opened));
    assert_eq!(servers.collect::<Vec<_>>(), [("app", 4), ("proxy", 16)]);
}

#[test]
fn late_report_of_a_client_shows_no_connection_past_its_proxy() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 20, 3);
    history.settled();
    call(&mut history, APP, PROXY, 20, 17);
    history.report(1);
    history.look_after(500);
    for _ in 0..4 {
        history.report(1);
        let shown = history.look_after(2500);
        assert!(shown.contains(&"web -> web:15001 via db:80 20+0".to_owned()), "{shown:?}");
    }
    let shown = ["web -> db:5432 20+0", "web -> web:15001 via db:80 40+0"];
    assert_eq!(history.settled(), shown);
}

#[test]
fn first_report_of_a_client_that_is_late_shows_no_connection_past_its_proxy() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 20, 3);
    history.report(0);
    // The proxy goes on, which the servers' agent reports first.
    history.open(DB_APP, Server, (DB, WEB, PORT), 17);
    for _ in 0..4 {
        history.report(1);
        let shown = history.look_after(2500);
        assert!(!shown.contains(&"web -> db:5432 via db:80 20+0".to_owned()), "{shown:?}");
    }
    history.open(PROXY, Client, (WEB, DB, PORT), 17);
    let shown = history.settled();
    assert_eq!(shown, ["web -> db:5432 20+0", "web -> web:15001 via db:80 20+0"]);
}

#[test]
fn second_port_behind_a_proxy_moves_no_unobserved_clients_connections() {
    let mut history = History::new();
    let other = "203.0.113.9";
    history.open(APP, Client, (WEB, DB, PORT), 5);
    arrive(&mut history, PORT, 5, 5);
    history.open(DB_PROXY, Server, (DB, other, INBOUND), 20);
    arrive(&mut history, PORT, 0, 20);
    let before = history.settled();
    assert!(before.iter().any(|edge| edge.ends_with("db:5432 20+0")), "{before:?}");
    history.open(APP, Client, (WEB, DB, 9000), 3);
    arrive(&mut history, 9000, 3, 3);
    let after = history.settled();
    assert!(before.iter().all(|edge| after.contains(edge)), "{before:?} {after:?}");
    history.open(DB_PROXY, Server, (DB, other, INBOUND), 2);
    arrive(&mut history, 9000, 0, 2);
    let last = history.settled();
    assert!(before.iter().all(|edge| last.contains(edge)), "{before:?} {last:?}");
    assert!(last.iter().any(|edge| edge.ends_with("db:15006 2+0")), "{last:?}");
}

#[test]
fn pod_that_calls_itself_through_its_sidecar_counts_each_call_once() {
    let own = "10.96.0.6";
    // The network leads the proxy's own call to the proxy, too.
    for is_led_in in [false, true] {
        let mut history = History::new();
        history.open(APP, Client, (WEB, own, 80), 20);
        history.open(PROXY, Server, (LOOPBACK, WEB, OUTBOUND), 20);
        history.open(PROXY, Client, (WEB, WEB, PORT), 20);
        if is_led_in {
            history.open(PROXY, Server, (LOOPBACK, WEB, INBOUND), 20);
            history.open(PROXY, Client, (LOOPBACK, LOOPBACK, PORT), 20);
            history.open(APP, Server, (LOOPBACK, LOOPBACK, PORT), 20);
        } else {
            history.open(APP, Server, (WEB, WEB, PORT), 20);
        }
        assert_eq!(history.settled(), ["web -> web:5432 via web:80 20+0"], "{is_led_in}");
        // Others call it as well.
        history.open(DB_APP, Client, (DB, own, 80), 5);
        history.open(PROXY, Server, (WEB, DB, INBOUND), 5);
        history.open(PROXY, Client, (LOOPBACK, LOOPBACK, PORT), 5);
        history.open(APP, Server, (LOOPBACK, LOOPBACK, PORT), 5);
        let shown = ["db -> web:5432 via web:80 5+0", "web -> web:5432 via web:80 20+0"];
        assert_eq!(history.settled(), shown, "{is_led_in}");
    }
}

#[test]
fn shared_connections_are_the_same_after_an_operators_restart() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 2, 2);
    history.settled();
    call(&mut history, APP, PROXY, 18, 1);
    let shown = ["web -> db:5432 1+0", "web -> db:5432 via db:80 2+0", "web -> web:15001 via db:80 18+0"];
    assert_eq!(history.settled(), shown);
    history.restart_operator();
    history.report(0);
    history.report(1);
    for _ in 0..40 {
        assert_eq!(history.look_after(300), shown);
        history.report(0);
        history.report(1);
    }
    call(&mut history, APP, PROXY, 2, 1);
    let shown = ["web -> db:5432 2+0", "web -> db:5432 via db:80 2+0", "web -> web:15001 via db:80 20+0"];
    assert_eq!(history.settled(), shown);
}

#[test]
fn calls_that_a_proxy_cannot_pass_on_are_failed_and_not_opened() {
    let mut history = History::new();
    history.open(APP, Client, (WEB, SERVICE, 80), 20);
    history.open(PROXY, Server, (LOOPBACK, WEB, OUTBOUND), 20);
    history.fail(PROXY, (WEB, DB, PORT), 20);
    assert_eq!(history.settled(), ["web -> db:5432 0+20"]);
    call(&mut history, APP, PROXY, 5, 5);
    assert_eq!(history.settled(), ["web -> db:5432 0+20", "web -> db:5432 via db:80 5+0"]);
    history.restart_operator();
    for _ in 0..8 {
        assert_eq!(history.settled(), ["web -> db:5432 0+20", "web -> db:5432 via db:80 5+0"]);
    }
}

#[test]
fn attempt_of_a_proxy_that_is_repeated_leaves_one_call() {
    let mut history = History::new();
    call(&mut history, APP, PROXY, 5, 5);
    history.settled();
    history.open(APP, Client, (WEB, SERVICE, 80), 1);
    history.fail(PROXY, (WEB, DB, PORT), 1);
    history.report(0);
    assert_eq!(history.look_after(100), ["web -> db:5432 0+1", &format!("{SERVICE_EDGE} 5+0")]);
    history.open(PROXY, Client, (WEB, DB, PORT), 1);
    history.open(DB_APP, Server, (DB, WEB, PORT), 1);
    assert_eq!(history.settled(), ["web -> db:5432 0+1", &format!("{SERVICE_EDGE} 6+0")]);
}

/// The server's agent reports to the next operator at once, the client's after the waiting time.
#[test]
fn restarted_operator_waits_for_clients_of_proxies() {
    let mut history = History::new();
    let call = |history: &mut History| {
        history.open(APP, Client, (WEB, SERVICE, 80), 20);
        arrive(history, PORT, 20, 20);
    };
    history.settled();
    history.restart_operator();
    call(&mut history);
    history.report(1);
    for _ in 0..4 {
        assert_eq!(history.look_after(5_000), Vec::<String>::new());
    }
    let shown = ["web -> db:5432 via db:80 20+0"];
    assert_eq!(history.settled(), shown);
    for late in [0, 1] {
        history.restart_operator();
        history.report(1 - late);
        for _ in 0..4 {
            assert_eq!(history.look_after(5_000), shown);
        }
        history.report(late);
        for _ in 0..4 {
            assert_eq!(history.look_after(5_000), shown);
            assert_eq!(history.settled(), shown);
        }
    }
    call(&mut history);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 40+0"]);
}

/// The client's agent reports to the next operator later than any agent that runs.
#[test]
fn restarted_operator_shows_both_legs_if_clients_stay_silent() {
    let mut history = History::new();
    history.settled();
    history.restart_operator();
    history.open(APP, Client, (WEB, SERVICE, 80), 20);
    arrive(&mut history, PORT, 20, 20);
    history.report(1);
    assert_eq!(history.look_after(30_000), Vec::<String>::new());
    assert_eq!(history.look_after(31_000), ["db -> db:5432 20+0", "web -> db:15006 20+0"]);
}

/// Two clients call one after the other. What waits for the proxy's other leg are the connections that came last, whichever
/// client's flow comes first.
#[test]
fn connections_of_the_client_that_called_last_wait_for_their_other_leg() {
    let before = "10.244.1.3";
    let mut history = History::new();
    let arrive_from = |history: &mut History, client, accepted, opened| {
        history.open(APP, Client, (WEB, SERVICE, 80), if client == WEB { accepted } else { 0 });
        history.open(DB_PROXY, Server, (DB, client, INBOUND), accepted);
        history.open(DB_PROXY, Client, (LOOPBACK, LOOPBACK, PORT), opened);
        history.open(DB_APP, Server, (LOOPBACK, LOOPBACK, PORT), opened);
        history.report(0);
        history.report(1);
    };
    for client in [before, WEB] {
        arrive_from(&mut history, client, 1, 1);
    }
    history.look_after(10_000);
    arrive_from(&mut history, before, 36, 36);
    history.now += Duration::from_millis(1_900);
    arrive_from(&mut history, WEB, 40, 39);
    for _ in 0..8 {
        history.look_after(100);
    }
    arrive_from(&mut history, WEB, 0, 1);
    let shown = history.settled();
    assert!(shown.contains(&"web -> db:5432 via db:80 41+0".to_owned()), "{shown:?}");
    assert_eq!(shown.len(), 2, "{shown:?}");
}

/// The server's agent reads while a proxy has accepted a connection and not opened its other leg. An operator that begins with
/// what was published then does not take the proxy for one that shares connections.
#[test]
fn connection_on_its_way_through_a_proxy_is_undecided_for_the_next_operator() {
    let mut history = History::new();
    let call = |history: &mut History, app, accepted, opened| {
        history.open(app, Client, (WEB, SERVICE, 80), accepted);
        arrive(history, PORT, accepted, opened);
    };
    call(&mut history, APP, 20, 20);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 20+0"]);
    // A container that is gone leaves a history.
    history.evict(|_, who| who == APP);
    let next = Container("web", "app", 1);
    call(&mut history, next, 2, 2);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 22+0"]);
    call(&mut history, next, 5, 4);
    history.report(0);
    history.report(1);
    history.look_after(100);
    history.restart_operator();
    arrive(&mut history, PORT, 0, 1);
    call(&mut history, next, 10, 10);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 37+0"]);
}

/// A proxy leads to two ports of its server, to the second one later. The next operator has all of what was decided, or
/// nothing, and so shows no call of the server to itself.
#[test]
fn proxy_of_a_server_with_two_ports_is_the_same_for_the_next_operator() {
    let mut history = History::new();
    let call = |history: &mut History, number| {
        history.open(APP, Client, (WEB, DB, OTHER_PORT), number);
        arrive(history, OTHER_PORT, number, number);
    };
    history.open(APP, Client, (WEB, SERVICE, 80), 1);
    arrive(&mut history, PORT, 1, 1);
    assert_eq!(history.settled(), ["web -> db:5432 via db:80 1+0"]);
    call(&mut history, 2);
    assert_eq!(history.settled(), ["web -> db:9090 2+0", "web -> db:5432 via db:80 1+0"]);
    history.restart_operator();
    assert_eq!(history.settled(), ["web -> db:9090 2+0", "web -> db:5432 via db:80 1+0"]);
    call(&mut history, 10);
    assert_eq!(history.settled(), ["web -> db:9090 12+0", "web -> db:5432 via db:80 1+0"]);
}
