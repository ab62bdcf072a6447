use std::net::Ipv4Addr;

use topology::flow::{Protocol, Role};

use super::*;

const HOUR: Duration = Duration::from_hours(1);

fn key(cgroup_id: u64, port: u16) -> FlowKey {
    let ip = Ipv4Addr::LOCALHOST.into();
    FlowKey { cgroup_id, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp }
}

fn counters(opened: u64, closed: u64) -> FlowCounters {
    FlowCounters { opened, closed, ..FlowCounters::default() }
}

fn store(flows: usize) -> FlowStore {
    FlowStore::new(Bounds { flows, retention: HOUR })
}

fn tell(store: &mut FlowStore) -> Vec<(FlowKey, FlowCounters)> {
    let news = store.take_news(News::All, usize::MAX);
    store.acknowledge(&news);
    news
}

/// Expires flows with a capture that drops all requested ones.
fn expire(store: &mut FlowStore, now: Instant, is_live: impl Fn(u64) -> bool) -> Vec<FlowKey> {
    let mut keys = store.dispensable(now, &is_live);
    store.drop_flows(&keys, now, is_live);
    keys.sort();
    keys
}

#[test]
fn news_is_what_changed_and_comes_once() {
    let mut store = store(10);
    let now = Instant::now();
    assert!(store.record(key(1, 1), counters(1, 0), now));
    assert!(store.record(key(1, 2), counters(1, 0), now));
    assert!(store.record(key(1, 1), counters(2, 0), now));
    assert_eq!(store.take_news(News::All, 1), [(key(1, 1), counters(2, 0))]);
    assert_eq!(store.take_news(News::All, 9), [(key(1, 2), counters(1, 0))]);
    assert!(!store.has_news(News::All));
    assert!(!store.record(key(1, 1), counters(2, 0), now), "the same again");
    assert!(!store.has_news(News::All));
    assert!(store.record(key(1, 1), counters(2, 1), now));
    assert_eq!(store.take_news(News::All, 9), [(key(1, 1), counters(2, 1))]);
}

#[test]
fn first_and_last_pending_attempt_are_news_like_a_new_flow() {
    let mut store = store(10);
    let now = Instant::now();
    let pending =
        |pending_begun, pending_ended| FlowCounters { pending_begun, pending_ended, ..FlowCounters::default() };
    let mut news = |counters, kind| {
        assert!(store.record(key(1, 1), counters, now));
        store.take_news(kind, usize::MAX)
    };
    news(counters(1, 1), News::All);
    assert_eq!(news(pending(1, 0), News::Flows), [(key(1, 1), pending(1, 0))]);
    assert_eq!(news(pending(2, 0), News::Flows), [], "counters wait");
    assert_eq!(news(pending(2, 2), News::Flows), [(key(1, 1), pending(2, 2))]);
    assert!(store.take_news(News::All, usize::MAX).is_empty(), "it was in both queues");
    store.record(key(1, 1), pending(3, 2), now);
    tell(&mut store);
    assert_eq!(expire(&mut store, now + HOUR, |_| false), [], "an attempt is pending");
    store.record(key(1, 1), pending(3, 3), now);
    assert_eq!(expire(&mut store, now + HOUR, |_| false), [key(1, 1)]);
}

#[test]
fn a_snapshot_has_all_and_news_is_what_comes_after() {
    let mut store = store(10);
    let now = Instant::now();
    store.record(key(1, 1), counters(1, 0), now);
    store.record(key(1, 2), counters(1, 0), now);
    store.take_news(News::All, 1);
    let mut snapshot = store.begin_snapshot();
    let mut all: Vec<_> = store.take_of_snapshot(&mut snapshot, 9).into_iter().map(|(key, _)| key).collect();
    all.sort();
    assert_eq!(all, [key(1, 1), key(1, 2)]);
    assert!(snapshot.is_complete());
    assert!(!store.has_news(News::All));
    store.record(key(1, 1), counters(2, 0), now);
    assert_eq!(store.take_news(News::All, 9), [(key(1, 1), counters(2, 0))]);
}

#[test]
fn quiet_flows_of_dead_cgroups_leave_after_the_retention() {
    let mut store = store(10);
    let start = Instant::now();
    for (cgroup, closed) in [(1, 1), (2, 1), (2, 0)] {
        store.record(key(cgroup, u16::try_from(closed).unwrap()), counters(1, closed), start);
    }
    tell(&mut store);
    let alive = |id| id == 1;
    assert_eq!(expire(&mut store, start + HOUR / 2, |_| false), []);
    assert_eq!(expire(&mut store, start + HOUR, alive), [key(2, 1)], "1 lives, and 2's other connection is open");
    assert_eq!((store.len(), store.left_since_snapshot(), store.evicted()), (2, 1, 0));
    store.begin_snapshot();
    assert_eq!(store.left_since_snapshot(), 0);
}

#[test]
fn where_it_is_crowded_the_least_worth_leave_and_are_counted() {
    let mut store = store(4);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    store.record(key(1, 1), counters(1, 0), at(0));
    store.record(key(1, 2), counters(1, 1), at(1));
    store.record(key(1, 3), counters(1, 1), at(2));
    assert!(!store.is_crowded());
    store.record(key(2, 4), counters(1, 1), at(3));
    assert!(store.is_crowded());
    tell(&mut store);
    assert_eq!(expire(&mut store, at(4), |id| id == 1), [key(2, 4)], "of a dead cgroup, although youngest");
    store.record(key(1, 5), counters(1, 1), at(5));
    assert_eq!(expire(&mut store, at(6), |_| true), [key(1, 2)], "oldest of the quiet ones");
    assert_eq!((store.len(), store.evicted(), store.evicted_unreported()), (3, 2, EvictedUnreported::default()));
    assert!(store.get(&key(1, 1)).is_some(), "an open connection stays");
}

#[test]
fn a_flow_of_which_not_all_is_known_stays_until_it_is() {
    let mut store = store(10);
    let start = Instant::now();
    store.record(key(1, 1), counters(2, 2), start);
    expire(&mut store, start + HOUR, |_| false);
    assert_eq!(store.len(), 1);
    // It comes back before the operator knows what was before: its counters go on.
    store.record(key(1, 1), counters(3, 1), start + HOUR);
    assert_eq!(store.get(&key(1, 1)), Some(counters(5, 3)));
    store.record(key(1, 1), counters(3, 3), start + HOUR);
    expire(&mut store, start + 2 * HOUR, |_| false);
    assert_eq!(tell(&mut store), [(key(1, 1), counters(5, 5))]);
    assert!(store.is_empty());
    // After it, they begin at zero in a greater run.
    store.record(key(1, 1), counters(1, 0), start + 2 * HOUR);
    assert_eq!(tell(&mut store), [(key(1, 1), FlowCounters { run: 1, ..counters(1, 0) })]);
}

#[test]
fn where_there_is_no_room_for_what_is_untold_it_is_counted_as_lost() {
    let mut store = store(4);
    let start = Instant::now();
    for port in 0..6 {
        let failed = FlowCounters { failed: 2, ..counters(3, 3) };
        store.record(key(1, port), failed, start + Duration::from_secs(port.into()));
    }
    expire(&mut store, start, |_| true);
    assert_eq!(store.len(), 4);
    assert_eq!(store.evicted_unreported(), EvictedUnreported { flows: 2, opened: 6, failed: 4 });
    assert!(store.get(&key(1, 0)).is_none() && store.get(&key(1, 5)).is_some(), "the oldest leave");
}

#[test]
fn snapshot_has_every_flow_that_stays_although_others_leave_meanwhile() {
    let now = Instant::now();
    for left in 0..20 {
        let mut store = store(100);
        (0..20).for_each(|port| assert!(store.record(key(1, port), counters(1, 1), now)));
        tell(&mut store);
        let mut snapshot = store.begin_snapshot();
        let mut told = Vec::new();
        let leaving: Vec<_> = (0..20).map(|port| key(1, (port * 7 + left) % 20)).collect();
        for (step, leaving) in leaving.iter().enumerate().take(10) {
            let some = store.take_of_snapshot(&mut snapshot, 2);
            store.acknowledge(&some);
            told.extend(some.into_iter().map(|(key, _)| key));
            store.drop_flows(&[*leaving], now, |_| true);
            store.record(key(2, u16::try_from(step).unwrap()), counters(1, 1), now);
        }
        assert!(snapshot.is_complete());
        let stayed = (0..20).map(|port| key(1, port)).filter(|key| store.get(key).is_some());
        assert!(stayed.clone().count() < 20, "some have left");
        assert!(stayed.clone().all(|key| told.contains(&key)), "{left}: {told:?}");
    }
}

#[test]
fn news_of_flows_that_have_left_does_not_pile_up() {
    let mut store = store(1000);
    let now = Instant::now();
    let mut recorded = 0_u64;
    // The changes are never taken.
    for round in 0..200_u64 {
        for port in 0..500 {
            store.record(key(1 + round % 7, port), FlowCounters { failed: 1 + round, ..counters(1, 1) }, now);
            recorded += 1;
        }
        expire(&mut store, now, |_| true);
        store.shrink();
    }
    assert!(store.news.len() < news::MANY_STALE + 2 * store.len(), "{} of {recorded}", store.news.len());
    // What is left comes once.
    let left = store.len();
    let news = tell(&mut store);
    let distinct: HashSet<_> = news.iter().map(|(key, _)| *key).collect();
    assert_eq!((news.len(), distinct.len()), (left, left));
}

#[test]
fn flows_of_which_the_operator_knows_all_leave_first() {
    let mut store = store(8);
    let start = Instant::now();
    for port in 0..4 {
        store.record(key(1, port), counters(1, 1), start + Duration::from_secs(1));
    }
    tell(&mut store);
    for port in 4..8 {
        store.record(key(1, port), counters(1, 1), start);
    }
    expire(&mut store, start + Duration::from_secs(2), |_| true);
    assert!((4..8).all(|port| store.get(&key(1, port)).is_some()), "older, but not told yet");
    assert!(store.len() < 8);
}

#[test]
fn no_more_flows_are_dropped_than_have_to_leave() {
    let mut store = store(100);
    let now = Instant::now();
    for port in 0..80 {
        store.record(key(1, port), counters(1, 1), now);
    }
    let dropped = expire(&mut store, now, |_| true).len();
    assert!((5..20).contains(&dropped), "{dropped}");
    assert!(!store.is_crowded());
    assert_eq!((expire(&mut store, now, |_| true).len(), store.len()), (0, 80), "they stay until they are reported");
    tell(&mut store);
    assert_eq!(store.len(), 80 - dropped);
}

#[test]
fn names_take_no_more_than_they_may() {
    let mut store = store(100_000);
    let now = Instant::now();
    let name: Arc<str> = "x".repeat(250).into();
    for port in 0..20_000 {
        store.record(key(1, port), counters(1, 1), now);
        store.name(&key(1, port), vec![Arc::clone(&name)]);
    }
    let named = |store: &FlowStore| (0..20_000).filter(|port| store.has_names(&key(1, *port))).count();
    assert_eq!(named(&store), MAX_NAME_BYTES / 250);
    assert_eq!(store.unnamed(), 20_000 - named(&store) as u64);
    tell(&mut store);
    let all: Vec<_> = (0..20_000).map(|port| key(1, port)).collect();
    store.drop_flows(&all, now, |_| true);
    assert_eq!((store.len(), store.name_bytes), (0, 0));
}
