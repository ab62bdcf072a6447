//! Random histories of calls through proxies: no count that was shown falls, and each call is on one edge.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use scopeprobe_topology::{
    edge::{Edge, EdgeKey},
    flow::Role::{Client, Server},
};

use crate::history::{Container, DB, History, INBOUND, LOOPBACK, OUTBOUND, PORT, SERVICE, WEB};

/// Address of the Service of the calling pod itself.
const OWN: &str = "10.96.0.6";
/// Second port of the server, which is called without its Service.
const SECOND_PORT: u16 = 9090;
/// Containers of one name that a pod may have had.
const LAST_CONTAINER: u8 = 3;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Calls of which each has a connection of the proxy.
    Call(u64),
    /// The same at the server's second port.
    CallSecond(u64),
    /// Calls that share fewer connections of the proxy, or of the one in front of the server.
    Shared {
        calls: u64,
        by_client: u64,
        by_server: u64,
    },
    /// Calls that the proxy cannot pass on.
    Refused(u64),
    /// Calls of the pod to itself.
    SelfCall(u64),
    RestartApplication,
    RestartProxy,
    /// The client's pod is quiet for long: its agent evicts its flows.
    EvictClients,
    /// Of one agent, or of both with any other number.
    Report(usize),
    Look(u64),
    Forget,
    /// With the number of the agent that reports later than the other one, if there is such an agent.
    RestartOperator(usize),
}

/// Events besides calls of which each has a connection of the proxy.
#[derive(Clone, Copy, Debug, Default)]
struct May {
    share: bool,
    refuse: bool,
    call_second: bool,
}

fn events(may: May) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event(may), 1..25)
}

fn event(may: May) -> impl Strategy<Value = Event> {
    let shared = (1..6_u64).prop_flat_map(|calls| {
        (1..=calls).prop_flat_map(move |by_client| {
            (1..=by_client).prop_map(move |by_server| Event::Shared { calls, by_client, by_server })
        })
    });
    let call = || (1..5_u64).prop_map(Event::Call).boxed();
    let shared = if may.share { shared.boxed() } else { call() };
    let second = if may.call_second { (1..5_u64).prop_map(Event::CallSecond).boxed() } else { call() };
    let refused = if may.refuse { (1..4_u64).prop_map(Event::Refused).boxed() } else { call() };
    prop_oneof![
        6 => call(),
        2 => second,
        3 => shared,
        2 => refused,
        1 => (1..4_u64).prop_map(Event::SelfCall),
        1 => Just(Event::RestartApplication),
        1 => Just(Event::RestartProxy),
        1 => Just(Event::EvictClients),
        6 => (0..3_usize).prop_map(Event::Report),
        6 => prop_oneof![Just(100_u64), Just(700), Just(2500)].prop_map(Event::Look),
        // With shared connections, `over_time` has tests of it. With two ports, it is not known which of them those called
        // that are gone.
        1 => Just(if may.share || may.call_second { Event::Look(2500) } else { Event::Forget }),
        1 => (0..3_usize).prop_map(Event::RestartOperator),
    ]
}

impl Event {
    /// Returns the event with reports of both agents.
    fn without_delay(self) -> Self {
        match self {
            Self::Report(_) => Self::Report(2),
            Self::RestartOperator(_) => Self::RestartOperator(2),
            other => other,
        }
    }
}

struct World {
    history: History,
    application: Container,
    proxy: Container,
    calls: u64,
    calls_of_second: u64,
    refused: u64,
    self_calls: u64,
    has_been_quiet: bool,
    shown: BTreeMap<EdgeKey, u64>,
}

impl World {
    fn new() -> Self {
        Self {
            history: History::new(),
            application: Container("web", "app", 0),
            proxy: Container("web", "proxy", 0),
            calls: 0,
            calls_of_second: 0,
            refused: 0,
            self_calls: 0,
            has_been_quiet: false,
            shown: BTreeMap::new(),
        }
    }

    /// Calls a port of the server at an address and port.
    fn call(&mut self, (address, called): (&'static str, u16), port: u16, [calls, by_client, by_server]: [u64; 3]) {
        let (db_app, db_proxy) = (Container("db", "app", 0), Container("db", "proxy", 0));
        let history = &mut self.history;
        history.open(self.application, Client, (WEB, address, called), calls);
        history.open(self.proxy, Server, (LOOPBACK, WEB, OUTBOUND), calls);
        history.open(self.proxy, Client, (WEB, DB, port), by_client);
        history.open(db_proxy, Server, (DB, WEB, INBOUND), by_client);
        history.open(db_proxy, Client, (LOOPBACK, LOOPBACK, port), by_server);
        history.open(db_app, Server, (LOOPBACK, LOOPBACK, port), by_server);
    }

    fn call_service(&mut self, calls: [u64; 3]) {
        self.call((SERVICE, 80), PORT, calls);
        self.calls += calls[0];
    }

    fn take_place(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (application, proxy) = (self.application, self.proxy);
        let ends_flows = matches!(event, Event::RestartApplication | Event::RestartProxy | Event::EvictClients);
        if ends_flows && self.has_been_quiet {
            // Without open connections, edges that have been quiet for long are gone at once.
            self.shown.clear();
        }
        match event {
            Event::Call(calls) => self.call_service([calls; 3]),
            Event::CallSecond(calls) => {
                self.call((DB, SECOND_PORT), SECOND_PORT, [calls; 3]);
                self.calls_of_second += calls;
            }
            Event::Shared { calls, by_client, by_server } => self.call_service([calls, by_client, by_server]),
            Event::Refused(calls) => {
                self.history.open(application, Client, (WEB, SERVICE, 80), calls);
                self.history.open(proxy, Server, (LOOPBACK, WEB, OUTBOUND), calls);
                self.history.fail(proxy, (WEB, DB, PORT), calls);
                self.calls += calls;
                self.refused += calls;
            }
            Event::SelfCall(calls) => {
                self.history.open(application, Client, (WEB, OWN, 80), calls);
                self.history.open(proxy, Server, (LOOPBACK, WEB, OUTBOUND), calls);
                self.history.open(proxy, Client, (WEB, WEB, PORT), calls);
                self.history.open(application, Server, (WEB, WEB, PORT), calls);
                self.self_calls += calls;
            }
            Event::RestartApplication if application.2 < LAST_CONTAINER => {
                self.report_all();
                self.history.evict(|_, who| who == application);
                self.application.2 += 1;
                self.report_all();
            }
            Event::RestartProxy if proxy.2 < LAST_CONTAINER => {
                self.report_all();
                self.history.evict(|_, who| who == proxy);
                self.proxy.2 += 1;
                self.report_all();
            }
            Event::EvictClients if application.2.max(proxy.2) < LAST_CONTAINER => {
                // Their containers are new, as those of another pod would be.
                self.report_all();
                self.history.evict(|_, who| who == application || who == proxy);
                self.application.2 += 1;
                self.proxy.2 += 1;
                self.report_all();
            }
            Event::RestartApplication | Event::RestartProxy | Event::EvictClients => {}
            Event::Report(node) if node < 2 => self.history.report(node),
            Event::Report(_) => self.report_all(),
            Event::Look(milliseconds) => self.look_after(milliseconds)?,
            Event::Forget => {
                self.settle()?;
                self.history.forget();
                // Edges of which nothing goes on are gone.
                self.history.look_after(100);
                self.shown.clear();
                self.has_been_quiet = true;
            }
            Event::RestartOperator(late) => {
                self.settle()?;
                self.history.restart_operator();
                if late < 2 {
                    self.history.report(1 - late);
                    self.look_after(2500)?;
                    self.look_after(10_000)?;
                }
                self.report_all();
                self.look_after(100)?;
                for _ in 0..8 {
                    self.report_all();
                    self.look_after(2500)?;
                }
            }
        }
        Ok(())
    }

    fn report_all(&mut self) {
        self.history.report(0);
        self.history.report(1);
    }

    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.report_all();
        self.look_after(100)?;
        self.report_all();
        self.look_after(2500)?;
        self.look_after(12_000)
    }

    fn look_after(&mut self, milliseconds: u64) -> Result<(), TestCaseError> {
        let lines = self.history.look_after(milliseconds);
        let edges = &self.history.shown.edges;
        for (key, before) in &self.shown {
            let now = edges.iter().find(|edge| edge.key == *key).map_or(0, |edge| edge.counters.opened);
            prop_assert!(now >= *before, "{before} became {now}: {lines:?} {key:?}");
        }
        self.shown = edges.iter().map(|edge| (edge.key.clone(), by_clients(edge))).collect();
        Ok(())
    }

    /// Returns the number of connections on edges through a Service: only applications call it.
    fn opened_through(&self, service: &str) -> u64 {
        let is_through = |edge: &&Arc<Edge>| edge.key.service.as_ref().is_some_and(|of| of.service.name == service);
        self.history.shown.edges.iter().filter(is_through).map(by_clients).sum()
    }
}

/// Returns what clients have counted. The rest is theirs, too, once they report it.
fn by_clients(edge: &Arc<Edge>) -> u64 {
    edge.counters.opened - edge.from_servers.opened
}

fn check(events: &[Event]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    world.report_all();
    for event in events {
        world.take_place(*event)?;
    }
    world.settle()?;
    let forgets = events.iter().any(|event| matches!(event, Event::Forget));
    let (through, own) = (world.opened_through("db"), world.opened_through("web"));
    let shown = crate::history::edges(&world.history.shown);
    // Servers go on with connections of clients' flows that are forgotten.
    if !forgets {
        prop_assert!(through <= world.calls, "{through} of {}: {shown:?}", world.calls);
        prop_assert!(through >= world.calls - world.refused, "{through} of {}: {shown:?}", world.calls);
        prop_assert_eq!(own, world.self_calls, "{:?}", shown);
    }
    let is_plain = |event: &Event| !matches!(event, Event::Shared { .. } | Event::Refused(_));
    if !forgets && events.iter().all(is_plain) {
        // If a client's agent is late, the way from the proxy to the server is shown.
        let is_late = events.iter().any(|event| matches!(event, Event::Report(0 | 1) | Event::RestartOperator(0 | 1)));
        let second = format!("web -> db:{SECOND_PORT} ");
        let is_expected = |edge: &String| {
            edge.contains(" via ") || edge.starts_with(&second) || is_late && edge.starts_with("db -> db")
        };
        prop_assert!(shown.iter().all(is_expected), "{:?}", shown);
        // Of clients that are gone, it is not known which of the two ports they called.
        if world.calls_of_second > 0 && !events.iter().any(|event| matches!(event, Event::EvictClients)) {
            prop_assert!(shown.contains(&format!("{second}{}+0", world.calls_of_second)), "{:?}", shown);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_count_falls_if_each_call_is_one_of_the_proxys(events in events(May::default())) {
        check(&events)?;
    }

    #[test]
    fn each_call_is_shown_once_if_the_server_has_two_ports(
        events in events(May { call_second: true, ..May::default() }),
        is_delayed in any::<bool>(),
    ) {
        let events: Vec<Event> =
            events.into_iter().map(|event| if is_delayed { event } else { event.without_delay() }).collect();
        check(&events)?;
    }

    #[test]
    fn no_count_falls_if_proxies_share_connections(events in events(May { share: true, ..May::default() })) {
        check(&events)?;
    }

    #[test]
    fn no_count_falls_if_servers_refuse_connections(
        events in events(May { share: true, refuse: true, ..May::default() }),
    ) {
        check(&events)?;
    }
}
