//! Tests ownership of addresses against simulated, fully known histories. Pods take over an address; objects report it
//! in whole seconds, by other clocks, late, twice, or not at all.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    clock::NodeClock,
    directory::{Directory, Owner},
    entity::{Pod, PodLifetime, Workload},
};

/// The same pod's other address.
const IP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 7));
/// The first pod begins then, by the operator's clock.
const BEGIN_MS: u64 = 1_000_000_000;
/// Further inside of a pod's time than this, it has to be found.
const WELL_INSIDE_MS: u64 = 5_000;

/// End of a pod's time, and how it is reported.
#[derive(Clone, Copy, Debug)]
enum End {
    /// All its containers finish.
    Finished { tells_when: bool },
    /// It is deleted, with so much grace, and gone when it has ended.
    Deleted { grace_ms: u64, tells_when: bool },
    /// Its object is gone at once, and it runs on.
    Forced { runs_on_ms: u64 },
    /// No event reports the end.
    Missed,
}

#[derive(Clone, Copy, Debug)]
struct Stay {
    /// After the end of the one before.
    gap_ms: u64,
    life_ms: u64,
    /// The kubelet takes the pod on so long before it has the address.
    lead_ms: u64,
    /// The first container runs so long after; within the pod's life.
    lag_ms: u64,
    tells_ran: bool,
    /// Events are so late.
    late_ms: u64,
    twice: bool,
    end: End,
}

fn stay() -> impl Strategy<Value = Stay> {
    let end = prop_oneof![
        3 => any::<bool>().prop_map(|tells_when| End::Finished { tells_when }),
        4 => (0..30_000_u64, any::<bool>()).prop_map(|(grace_ms, tells_when)| End::Deleted { grace_ms, tells_when }),
        1 => (0..9_000_u64).prop_map(|runs_on_ms| End::Forced { runs_on_ms }),
        1 => Just(End::Missed),
    ];
    let life_ms = prop_oneof![1..3_000_u64, 10_000..60_000_u64];
    let gap_ms = prop_oneof![3 => 0..20_u64, 1 => 0..30_000_u64];
    (gap_ms, life_ms, 0..2_500_u64, 0..2_500_u64, any::<bool>(), 0..3_000_u64, any::<bool>(), end).prop_map(
        |(gap_ms, life_ms, lead_ms, lag_ms, tells_ran, late_ms, twice, end)| Stay {
            gap_ms,
            life_ms,
            lead_ms,
            lag_ms: lag_ms.min(life_ms),
            tells_ran,
            late_ms,
            twice,
            end,
        },
    )
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

/// As objects write it.
fn cut(ms: u64) -> SystemTime {
    at(ms / 1000 * 1000)
}

/// A pod's true time with the address, both ends included, by the operator's clock.
#[derive(Clone, Copy, Debug)]
struct Truth {
    from_ms: u64,
    until_ms: u64,
    end_is_told: bool,
}

/// Change of the directory, with its time.
enum Event {
    Upsert(Pod),
    Remove(Pod),
}

/// The node's clock is ahead by so much.
fn told(stays: &[Stay], ahead_ms: u64) -> (Vec<Truth>, Directory) {
    let mut truth = Vec::new();
    let mut events: Vec<(u64, Event)> = Vec::new();
    let mut free_ms = BEGIN_MS;
    for (number, stay) in stays.iter().enumerate() {
        let from_ms = free_ms + stay.gap_ms;
        let until_ms = from_ms + stay.life_ms;
        free_ms = until_ms + 1;
        truth.push(Truth { from_ms, until_ms, end_is_told: !matches!(stay.end, End::Missed) });
        let by_node = |ms: u64| Some(cut(ms + ahead_ms));
        let life = PodLifetime {
            created: Some(cut(from_ms - stay.lead_ms)),
            started: by_node(from_ms - stay.lead_ms),
            ran: by_node(from_ms + stay.lag_ms).filter(|_| stay.tells_ran),
            deleted: None,
            finished: None,
        };
        let pod = Pod {
            uid: format!("uid-{number}"),
            namespace: "shop".to_owned(),
            name: format!("pod-{number}"),
            node: "node-1".to_owned(),
            host_network: false,
            ips: vec![IP],
            ended: false,
            workload: Workload {
                namespace: "shop".to_owned(),
                kind: "Pod".to_owned(),
                name: format!("pod-{number}"),
                group: String::new(),
            },
            containers: [].into(),
            host_ports: Vec::new(),
            life,
        };
        let late = |ms: u64| ms + stay.late_ms;
        let mut tell = |ms: u64, event: fn(Pod) -> Event, pod: &Pod| {
            events.push((ms, event(pod.clone())));
            if stay.twice {
                events.push((ms, event(pod.clone())));
            }
        };
        tell(late(from_ms), Event::Upsert, &pod);
        let finished = |tells_when: bool| by_node(until_ms).filter(|_| tells_when);
        match stay.end {
            End::Finished { tells_when } => {
                let life = PodLifetime { finished: finished(tells_when), ..life };
                tell(late(until_ms), Event::Upsert, &Pod { ended: true, life, ..pod });
            }
            End::Deleted { grace_ms, tells_when } => {
                let asked_ms = until_ms - grace_ms.min(stay.life_ms);
                let life = PodLifetime { deleted: Some(cut(asked_ms)), ..life };
                tell(late(asked_ms), Event::Upsert, &Pod { life, ..pod.clone() });
                let life = PodLifetime { finished: finished(tells_when), ..life };
                tell(late(until_ms), Event::Remove, &Pod { life, ..pod });
            }
            End::Forced { runs_on_ms } => {
                let asked_ms = until_ms - runs_on_ms.min(stay.life_ms);
                let life = PodLifetime { deleted: Some(cut(asked_ms)), ..life };
                tell(late(asked_ms), Event::Remove, &Pod { life, ..pod });
            }
            End::Missed => {}
        }
    }
    events.sort_by_key(|(ms, _)| *ms);
    let mut directory = Directory::new();
    let mut clock = NodeClock::default();
    for transit_ms in [40, 5, 90] {
        clock.observe(at(BEGIN_MS + ahead_ms), at(BEGIN_MS + transit_ms));
    }
    directory.set_clocks(&BTreeMap::from([("node-1", clock)]));
    for (ms, event) in events {
        match event {
            Event::Upsert(pod) => {
                directory.upsert_pod(pod, at(ms));
            }
            Event::Remove(pod) => {
                directory.upsert_pod(Pod { life: PodLifetime { finished: None, ..pod.life }, ..pod.clone() }, at(ms));
                directory.note_life(&pod.uid, pod.life, pod.ended, at(ms));
                directory.remove_pod(&pod.uid, at(ms));
            }
        }
    }
    (truth, directory)
}

fn name(pod: &Pod) -> usize {
    pod.name.trim_start_matches("pod-").parse().unwrap_or(usize::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// A named owner held the address, or no pod did and the owner's time is near.
    #[test]
    fn ownership_names_only_owners_of_the_address(
        stays in prop::collection::vec(stay(), 1..12),
        ahead_ms in 0..7_200_000_u64,
        asked in prop::collection::vec((any::<prop::sample::Index>(), -8_000..8_000_i64, 0..6_000_u64), 40),
    ) {
        let (truth, directory) = told(&stays, ahead_ms);
        let edges: Vec<u64> = truth.iter().flat_map(|stay| [stay.from_ms, stay.until_ms]).collect();
        for (edge, off_ms, length_ms) in asked {
            // Near where it matters.
            let since_ms = edge.get(&edges).saturating_add_signed(off_ms);
            let until_ms = since_ms + length_ms;
            let owner = directory.owner_between(IP, at(since_ms), at(until_ms));
            let Some(pod) = owner.pod() else { continue };
            for (number, stay) in truth.iter().enumerate() {
                let owned = stay.from_ms <= until_ms && since_ms <= stay.until_ms;
                prop_assert!(!owned || number == name(pod), "{} was named of {since_ms}..{until_ms}: {truth:?}", pod.name);
            }
            let own = truth[name(pod)];
            let off = since_ms.saturating_sub(own.until_ms).max(own.from_ms.saturating_sub(until_ms));
            // A forced end may be up to 10 s after the reported one, and a pod whose end was missed may have lasted.
            prop_assert!(!own.end_is_told || off <= 24_000, "{off} ms off: {} of {since_ms}..{until_ms}: {truth:?}", pod.name);
        }
    }

    /// Finds the owner well inside of a pod's range if all holders reported their ends. Short-lived holders must also
    /// have reported their start, since their order is otherwise unknown.
    #[test]
    fn an_owner_is_found_well_inside_of_its_time(
        stays in prop::collection::vec(stay(), 1..12),
        ahead_ms in 0..7_200_000_u64,
        length_ms in 0..3_000_u64,
        place in 0.0..1.0_f64,
    ) {
        let stays: Vec<Stay> = stays
            .into_iter()
            .map(|stay| match stay.end {
                End::Deleted { tells_when: true, .. } => stay,
                _ if stay.life_ms < 10_000 => Stay { end: End::Finished { tells_when: true }, ..stay },
                End::Missed | End::Forced { .. } => Stay { end: End::Finished { tells_when: true }, ..stay },
                _ => stay,
            })
            .collect();
        let (truth, directory) = told(&stays, ahead_ms);
        for (number, stay) in truth.iter().enumerate() {
            let first = stay.from_ms + WELL_INSIDE_MS;
            let Some(room) = stay.until_ms.checked_sub(WELL_INSIDE_MS + length_ms).and_then(|last| last.checked_sub(first))
            else {
                continue;
            };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let since_ms = first + (room as f64 * place) as u64;
            let owner = directory.owner_between(IP, at(since_ms), at(since_ms + length_ms));
            prop_assert_eq!(owner.pod().map(name), Some(number), "{:?} at {}: {:?}", owner, since_ms, truth);
        }
    }

    /// Repeated events change nothing.
    #[test]
    fn what_is_told_twice_is_told_once(stays in prop::collection::vec(stay(), 1..8), off_ms in 0..200_000_u64) {
        let once: Vec<Stay> = stays.iter().map(|stay| Stay { twice: false, ..*stay }).collect();
        let twice: Vec<Stay> = stays.iter().map(|stay| Stay { twice: true, ..*stay }).collect();
        let at = at(BEGIN_MS + off_ms);
        let [one, other] = [once, twice].map(|stays| told(&stays, 0).1.owner_of(IP, at).map(name));
        prop_assert_eq!(one, other);
    }
}

fn pod(name: &str, life: PodLifetime) -> Pod {
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: "node-1".to_owned(),
        host_network: false,
        ips: vec![IP, IP6],
        ended: false,
        workload: Workload {
            namespace: "shop".to_owned(),
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            group: String::new(),
        },
        containers: [].into(),
        host_ports: Vec::new(),
        life,
    }
}

fn owner(directory: &Directory, since: u64, until: u64) -> Option<&str> {
    directory.owner_between(IP, at(since), at(until)).pod().map(|pod| pod.name.as_str())
}

#[test]
fn a_pod_that_has_finished_has_no_address_any_more_in_either_family() {
    let mut directory = Directory::new();
    let life = PodLifetime { started: Some(cut(1_000_000)), ran: Some(cut(1_001_000)), ..PodLifetime::default() };
    directory.upsert_pod(pod("job", life), at(1_001_500));
    let ended = PodLifetime { finished: Some(cut(1_030_000)), ..life };
    directory.upsert_pod(Pod { ended: true, ..pod("job", ended) }, at(1_033_000));
    for ip in [IP, IP6] {
        let owner = |ms| directory.owner_of(ip, at(ms)).map(|pod| pod.name.as_str());
        assert_eq!([owner(1_010_000), owner(1_030_500), owner(1_050_000)], [Some("job"), Some("job"), None]);
    }
}

#[test]
fn a_pod_in_its_nodes_network_and_one_without_an_address_own_none() {
    let mut directory = Directory::new();
    directory.upsert_pod(Pod { host_network: true, ..pod("proxy", PodLifetime::default()) }, at(0));
    directory.upsert_pod(Pod { ips: Vec::new(), ..pod("pending", PodLifetime::default()) }, at(0));
    assert!(matches!(directory.owner_between(IP, at(0), at(1)), Owner::NoPod));
    directory.upsert_pod(pod("pending", PodLifetime::default()), at(9_000));
    assert_eq!(owner(&directory, 9_000, 9_500), Some("pending"));
}

#[test]
fn a_delete_that_was_missed_ends_where_the_next_pod_begins() {
    let mut directory = Directory::new();
    let life = |ms| PodLifetime { started: Some(cut(ms)), ran: Some(cut(ms + 1000)), ..PodLifetime::default() };
    directory.upsert_pod(pod("former", life(1_000_000)), at(1_002_000));
    directory.upsert_pod(pod("latter", life(1_060_000)), at(1_062_500));
    assert_eq!(owner(&directory, 1_040_000, 1_045_000), Some("former"));
    assert_eq!(owner(&directory, 1_060_500, 1_060_600), None, "one of them");
    assert_eq!(owner(&directory, 1_055_000, 1_070_000), None, "both");
    assert_eq!(owner(&directory, 1_063_000, 1_063_000), Some("latter"));
    // The list that shows it comes later.
    directory.remove_pod("uid-former", at(1_090_000));
    assert_eq!(owner(&directory, 1_089_000, 1_089_500), Some("latter"));
}

#[test]
fn the_same_pod_made_anew_is_known_by_its_name() {
    let mut directory = Directory::new();
    directory.upsert_pod(pod("web-0", PodLifetime::default()), at(1_000_000));
    directory.remove_pod("uid-web-0", at(1_020_000));
    directory.upsert_pod(Pod { uid: "another".to_owned(), ..pod("web-0", PodLifetime::default()) }, at(1_021_000));
    assert_eq!(owner(&directory, 1_019_000, 1_023_000), Some("web-0"));
}
