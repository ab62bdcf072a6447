//! Bounds the number of edges to external peers: the busiest addresses of each peer and direction have edges of their
//! own, and all others share edges. Clients behind a node count as one address.

use std::{borrow::Cow, cmp::Reverse};

use super::{
    endpoints::Endpoints,
    key::{Key, ServiceKey},
    names::PeerId,
    sums::{self, Sum},
};
use crate::{
    activity,
    edge::{EdgeKey, Peer},
    flow::Protocol,
    hash::{HashMap, HashSet},
};

/// Number of steps of [`activity::class`] by which another address must be busier to replace one that is shown: about
/// twice as busy.
const LEAD: u32 = activity::STEPS_PER_DOUBLING;

/// In which direction the outside is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It is called.
    Out,
    /// It calls.
    In,
}

/// External addresses with edges of their own, for each peer and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    by_peer: HashMap<(Peer, Direction), Shown>,
}

/// One peer's addresses in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    addresses: HashSet<Peer>,
    /// There are others.
    others: bool,
}

impl Outside {
    /// Notes that an edge has been shown.
    pub(crate) fn note(&mut self, key: &EdgeKey) {
        for (peer, direction, other) in
            [(&key.client, Direction::Out, &key.server), (&key.server, Direction::In, &key.client)]
        {
            let shown = || (peer.clone(), direction);
            match other {
                address if is_address(address) => {
                    self.by_peer.entry(shown()).or_default().addresses.insert(address.clone());
                }
                Peer::OtherExternal => self.by_peer.entry(shown()).or_default().others = true,
                _ => {}
            }
        }
    }

    /// The edge that an address shares with others, if it does.
    pub(crate) fn shared(&self, key: &EdgeKey) -> Option<EdgeKey> {
        let (of, address, shared) = with_address(key)?;
        let is_other = |shown: &Shown| shown.others && !shown.addresses.contains(address);
        self.by_peer.get(&of).is_some_and(is_other).then_some(shared)
    }

    /// Takes an address in where there is room for another one, else names the edge that it is to share.
    pub(crate) fn admit(&mut self, key: &EdgeKey, limit: usize) -> Option<EdgeKey> {
        let (of, address, shared) = with_address(key)?;
        let shown = self.by_peer.entry(of).or_default();
        if shown.addresses.contains(address) {
            return None;
        }
        if shown.addresses.len() < limit {
            shown.addresses.insert(address.clone());
            return None;
        }
        shown.others = true;
        Some(shared)
    }
}

/// Of an edge with an address outside of the cluster: the other end and the direction, the address, and the edge that
/// it would share with others.
fn with_address(key: &EdgeKey) -> Option<((Peer, Direction), &Peer, EdgeKey)> {
    match (&key.client, &key.server) {
        (client, server) if is_address(server) => {
            Some(((client.clone(), Direction::Out), server, EdgeKey { server: Peer::OtherExternal, ..key.clone() }))
        }
        (client, server) if is_address(client) => {
            Some(((server.clone(), Direction::In), client, EdgeKey { client: Peer::OtherExternal, ..key.clone() }))
        }
        _ => None,
    }
}

/// Returns whether a peer is an address outside of the cluster, or stands for those behind a node.
fn is_address(peer: &Peer) -> bool {
    matches!(peer, Peer::External { .. } | Peer::BehindNode { .. })
}

/// Rules of the choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    /// At most so many for each peer and direction.
    pub limit: usize,
    /// Rather those that were shown before.
    pub before: &'a Outside,
    /// Chooses exactly the addresses that were shown before, if there were others.
    pub fixed: bool,
}

/// Result of merging addresses into shared edges.
pub(super) struct Collapsed<'s> {
    pub sums: HashMap<Key, Cow<'s, Sum>>,
    pub outside: Outside,
    /// Number of addresses behind each shared edge.
    pub addresses: HashMap<Key, u64>,
}

/// Has addresses share edges where there are too many. All sums stay what they are.
pub(super) fn collapse<'s>(
    sums: HashMap<Key, Cow<'s, Sum>>,
    ends: &mut Endpoints<'_>,
    choice: Choice<'_>,
) -> Collapsed<'s> {
    let mut groups: HashMap<(PeerId, Direction), HashMap<PeerId, u64>> = HashMap::default();
    for (key, sum) in &sums {
        if let Some(outer) = Outer::of(key, ends) {
            let busy = sum.counters.opened.saturating_add(sum.counters.failed).saturating_add(sum.counters.pending);
            let known = groups.entry((outer.inner, outer.direction)).or_default().entry(outer.peer).or_default();
            *known = known.saturating_add(busy);
        }
    }
    let mut outside = Outside::default();
    let mut kept: HashMap<(PeerId, Direction), HashSet<PeerId>> = HashMap::default();
    for ((inner, direction), addresses) in groups {
        let known_as = (ends.peer(inner).clone(), direction);
        let chosen = choose(&addresses, choice, &known_as, ends);
        let others = chosen.len() < addresses.len();
        let shown = chosen.iter().map(|peer| ends.peer(*peer).clone()).collect();
        outside.by_peer.insert(known_as, Shown { addresses: shown, others });
        if others {
            kept.insert((inner, direction), chosen);
        }
    }
    if kept.is_empty() {
        return Collapsed { sums, outside, addresses: HashMap::default() };
    }
    let (sums, addresses) = share(sums, ends, &kept, choice.limit);
    Collapsed { sums, outside, addresses }
}

/// The end of an edge that is an address outside of the cluster.
struct Outer {
    /// The other end.
    inner: PeerId,
    direction: Direction,
    peer: PeerId,
}

impl Outer {
    fn of(key: &Key, ends: &Endpoints<'_>) -> Option<Self> {
        let (client, server) = (key.client, key.server);
        if is_address(ends.peer(server)) {
            Some(Self { inner: client, direction: Direction::Out, peer: server })
        } else {
            let is_outside = is_address(ends.peer(client));
            is_outside.then_some(Self { inner: server, direction: Direction::In, peer: client })
        }
    }
}

fn choose(
    addresses: &HashMap<PeerId, u64>,
    choice: Choice<'_>,
    known_as: &(Peer, Direction),
    ends: &Endpoints<'_>,
) -> HashSet<PeerId> {
    let before = choice.before.by_peer.get(known_as);
    let was_shown = |peer: PeerId| before.is_some_and(|before| before.addresses.contains(ends.peer(peer)));
    if choice.fixed && before.is_some_and(|before| before.others) {
        return addresses.keys().copied().filter(|peer| was_shown(*peer)).collect();
    }
    if addresses.len() <= choice.limit {
        return addresses.keys().copied().collect();
    }
    let rank = |(peer, busy): (&PeerId, &u64)| {
        let lead = if was_shown(*peer) { LEAD } else { 0 };
        (Reverse(activity::class(*busy) + lead), ends.peer(*peer), *peer)
    };
    let mut ranked: Vec<_> = addresses.iter().map(rank).collect();
    if choice.limit < ranked.len() {
        ranked.select_nth_unstable(choice.limit);
        ranked.truncate(choice.limit);
    }
    ranked.into_iter().map(|(_, _, peer)| peer).collect()
}

/// Ports of each protocol, with the Service through which they are reached.
type Ports = HashSet<(Option<ServiceKey>, Option<u16>, Protocol)>;
/// Edges, and how many addresses are behind those that are shared.
type Shared<'s> = (HashMap<Key, Cow<'s, Sum>>, HashMap<Key, u64>);

fn share<'s>(
    sums: HashMap<Key, Cow<'s, Sum>>,
    ends: &mut Endpoints<'_>,
    kept: &HashMap<(PeerId, Direction), HashSet<PeerId>>,
    limit: usize,
) -> Shared<'s> {
    let other_end = ends.other_external();
    let other = ends.peer_of(other_end);
    let shares = |key: &Key| {
        let outer = Outer::of(key, ends)?;
        let kept = kept.get(&(outer.inner, outer.direction))?;
        (!kept.contains(&outer.peer)).then_some(outer)
    };
    let several_ports = with_too_many_ports(sums.keys().filter_map(|key| Some((shares(key)?, key))), limit);
    let mut left: HashMap<Key, Cow<'s, Sum>> = HashMap::default();
    let mut behind: HashMap<Key, HashSet<PeerId>> = HashMap::default();
    for (key, mut sum) in sums {
        let Some(outer) = shares(&key) else {
            // A folded row has the key that addresses share.
            sums::add(&mut left, key, sum);
            continue;
        };
        let mut whole = match outer.direction {
            Direction::Out => Key { server: other, ..key },
            Direction::In => Key { client: other, ..key },
        };
        if several_ports.contains(&(outer.inner, outer.direction)) {
            (whole.port, whole.service) = (None, None);
        }
        match outer.direction {
            Direction::Out => sum.to_mut().merge_servers_to(other_end),
            Direction::In => sum.to_mut().merge_clients_to(other_end),
        }
        sums::add(&mut left, whole, sum);
        behind.entry(whole).or_default().insert(outer.peer);
    }
    let addresses = behind.into_iter().map(|(key, peers)| (key, peers.len() as u64)).collect();
    (left, addresses)
}

/// The peers and directions in which even the shared edges would be more than `limit`, by their ports and Services.
fn with_too_many_ports<'a, 'k>(
    sharing: impl Iterator<Item = (Outer, &'k Key)>,
    limit: usize,
) -> HashSet<(PeerId, Direction)>
where
    'a: 'k,
{
    let mut ports: HashMap<(PeerId, Direction), Ports> = HashMap::default();
    for (outer, key) in sharing {
        ports.entry((outer.inner, outer.direction)).or_default().insert((key.service, key.port, key.protocol));
    }
    ports.into_iter().filter(|(_, ports)| ports.len() > limit).map(|(of, _)| of).collect()
}
