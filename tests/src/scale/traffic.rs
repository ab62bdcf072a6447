//! Conversations between the pods of the simulated cluster: the same facts go to the agents and to the oracle.

use std::{collections::HashSet, sync::Arc};

use report::v1alpha1::Role;

use super::{
    agent_flows::ConversationEnd,
    conversation::{Clock, Conversation},
    fleet::Fleet,
    oracle::Oracle,
    world::{Call, Route, SERVER_PORT, World},
};

/// A conversation that has not ended.
struct Live {
    call: Call,
    client: usize,
    server: usize,
    conversation: Arc<Conversation>,
}

/// All conversations.
pub struct Traffic {
    /// The simulated cluster.
    pub world: World,
    /// The agents.
    pub fleet: Fleet,
    /// The expected edges.
    pub oracle: Oracle,
    clock: Clock,
    calls: HashSet<Call>,
    live: Vec<Live>,
    /// Number of conversations so far.
    begun: u64,
    /// Number of flows so far: keys that agents have.
    flows: HashSet<(Role, u32, u32, u16)>,
}

impl Traffic {
    /// Begins the conversations of the start, with so many backends for each client of a Service.
    #[must_use]
    pub fn begin(world: World, fleet: Fleet, clock: Clock, backends: usize) -> Self {
        let (oracle, calls) = (Oracle::default(), world.calls.iter().copied().collect());
        let mut traffic =
            Self { world, fleet, oracle, clock, calls, live: Vec::new(), begun: 0, flows: HashSet::new() };
        for call in traffic.world.calls.clone() {
            for (client, server) in traffic.world.conversations(&call, backends) {
                traffic.converse(call, client, server);
            }
        }
        traffic
    }

    /// Number of flows that agents have reported or will report.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Number of edges.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.calls.len()
    }

    /// Begins a conversation on an edge that does not exist yet. Returns the edge; `None` if there is no such edge.
    pub fn begin_edge(&mut self) -> Option<Call> {
        let workloads = self.world.workloads();
        let number = usize::try_from(self.begun).unwrap_or_default();
        let client = number.wrapping_mul(7) % workloads;
        let others = (1..workloads).map(|offset| (client + offset * 3 + number) % workloads);
        let is_called = |server: usize| {
            let routes = [Route::Direct, Route::Service, Route::Pair];
            routes.iter().any(|route| self.calls.contains(&Call { client, server, route: *route }))
        };
        let server = others.into_iter().find(|server| *server != client && !is_called(*server))?;
        let route = if number.is_multiple_of(10) { Route::Direct } else { Route::Service };
        let call = Call { client, server, route };
        let (client, server) = *self.world.conversations(&call, 1).get(number % 5)?;
        self.calls.insert(call);
        self.converse(call, client, server);
        Some(call)
    }

    /// Ends the conversations of a pod, and returns them for its replacement.
    #[must_use]
    pub fn end_pod(&mut self, pod: usize) -> Vec<(Call, usize, usize)> {
        let now = self.clock.now();
        let is_of_pod = |live: &mut Live| live.client == pod || live.server == pod;
        let ended = self.live.extract_if(.., is_of_pod).map(|live| {
            live.conversation.end(now);
            (live.call, live.client, live.server)
        });
        ended.collect()
    }

    /// Begins conversations again, with the pods that are in their places now.
    pub fn begin_again(&mut self, conversations: Vec<(Call, usize, usize)>) {
        for (call, client, server) in conversations {
            self.converse(call, client, server);
        }
    }

    /// Ends all conversations: counts are final then.
    pub fn end_all(&mut self) {
        let now = self.clock.now();
        self.live.drain(..).for_each(|live| live.conversation.end(now));
    }

    fn converse(&mut self, call: Call, client: usize, server: usize) {
        let conversation = Arc::new(Conversation::begin(self.clock.now(), self.begun));
        self.begun += 1;
        let pods = [client, server].map(|number| Arc::new(self.world.pods[number].clone()));
        let (dialled, port) = self.world.dialled(call.route, &pods[1]);
        let ends = [(Role::Client, dialled, port), (Role::Server, pods[0].ip, SERVER_PORT)];
        for (pod, (role, remote, port)) in pods.into_iter().zip(ends) {
            self.flows.insert((role, pod.ip.into(), remote.into(), port));
            let (node, conversation) = (pod.node, Arc::clone(&conversation));
            self.fleet.open(node, ConversationEnd { pod, role, remote, port, conversation });
        }
        self.oracle.expect(&call, Arc::clone(&conversation));
        self.live.push(Live { call, client, server, conversation });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic() -> Traffic {
        let clock = Clock::default();
        Traffic::begin(World::new(10).unwrap(), Fleet::new(10, clock), clock, 1)
    }

    #[test]
    fn new_edges_are_between_workloads_that_did_not_converse() {
        let mut traffic = traffic();
        let before = traffic.edges();
        assert_eq!(before, 400);
        let new: HashSet<Call> = (0..200).map(|_| traffic.begin_edge().unwrap()).collect();
        assert_eq!((new.len(), traffic.edges()), (200, before + 200));
        assert!(new.iter().all(|call| call.client != call.server));
    }

    #[test]
    fn conversations_of_a_replaced_pod_begin_anew() {
        let mut traffic = traffic();
        let (live, flows) = (traffic.live.len(), traffic.flows());
        let conversations = traffic.end_pod(3);
        assert!(conversations.len() > 5 && traffic.live.len() == live - conversations.len());
        traffic.world.pods[3] = traffic.world.replacement(3);
        let added = conversations.len();
        traffic.begin_again(conversations);
        assert_eq!(traffic.live.len(), live);
        assert!(traffic.flows() > flows + added, "{} after {flows}", traffic.flows());
        traffic.end_all();
        assert!(traffic.live.is_empty());
    }
}
