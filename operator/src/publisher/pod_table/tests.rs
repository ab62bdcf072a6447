use proptest::prelude::*;

use super::*;

fn workload(name: &str) -> Workload {
    let [namespace, kind, group] = ["shop", "Deployment", "apps"].map(str::to_owned);
    Workload { namespace, kind, name: name.to_owned(), group }
}

fn time() -> impl Strategy<Value = Option<SystemTime>> {
    prop::option::of((0..4_000_000_000_u64).prop_map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)))
}

fn uid() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        1 => "[0-9a-f]{32}",
        1 => "[a-zA-Z0-9-]{1,40}",
    ]
}

fn backend() -> impl Strategy<Value = BackendPort> {
    ("[a-z]{1,3}", any::<u16>(), any::<bool>(), 0..2_usize, any::<u16>()).prop_map(
        |(name, port, is_udp, address, target)| BackendPort {
            service: ServiceRef { namespace: "shop".to_owned(), name },
            port,
            protocol: if is_udp { Protocol::Udp } else { Protocol::Tcp },
            address,
            target,
        },
    )
}

fn pod() -> impl Strategy<Value = Pod> {
    let names = (uid(), "web-[a-zé]{0,3}", "[a-z]{0,2}", prop_oneof!["web", "db", "web-2"]);
    let ips = prop::collection::vec(any::<IpAddr>(), 0..3);
    let containers = prop::collection::btree_map(prop_oneof!["[0-9a-f]{64}", "[g-z]{1,9}"], "[a-z]{1,3}", 0..4);
    (names, ips, containers, any::<[bool; 2]>(), [(); 5].map(|()| time())).prop_map(
        |((uid, name, node, owner), ips, containers, [host_network, ended], times)| {
            let [created, started, ran, deleted, finished] = times;
            Pod {
                uid,
                namespace: "shop".to_owned(),
                name,
                node,
                host_network,
                ips,
                ended,
                workload: workload(&owner),
                containers,
                host_ports: Vec::new(),
                life: PodLifetime { created, started, ran, deleted, finished },
            }
        },
    )
}

fn recorded() -> impl Strategy<Value = RecordedPod<'static>> {
    let observed = (time(), time(), time())
        .prop_map(|(known, ended, gone)| known.map(|known| ObservedTimes { known, ended, gone }));
    let backends = prop::collection::vec(backend(), 0..4);
    (pod(), prop::option::of("[0-9a-f]{32}"), observed, backends).prop_map(|(pod, node_uid, observed, backends)| {
        RecordedPod { pod: Cow::Owned(pod), node_uid, observed, backends }
    })
}

/// Returns a pod as the table keeps it.
fn kept(recorded: &RecordedPod<'static>) -> RecordedPod<'static> {
    let mut kept = recorded.clone();
    let names: std::collections::BTreeSet<&String> = recorded.pod.containers.values().collect();
    let shorten = |id: &str| match HEXLOWER.decode(id.as_bytes()) {
        _ if names.len() == 1 => String::new(),
        Ok(_) => id[..id.len().min(2 * CONTAINER_ID)].to_owned(),
        Err(_) => id.to_owned(),
    };
    let containers = recorded.pod.containers.iter().map(|(id, name)| (shorten(id), name.clone())).collect();
    kept.pod.to_mut().containers = containers;
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn table_is_read_as_it_is_written(pods in prop::collection::vec(recorded(), 0..20)) {
        let own = workload("web");
        let (table, count) = encode(&pods, &own, usize::MAX);
        prop_assert_eq!(count, pods.len());
        let (mut found, error) = decode(&table, &own);
        prop_assert_eq!(error, None);
        let mut wanted: Vec<RecordedPod<'_>> = pods.iter().map(kept).collect();
        for list in [&mut found, &mut wanted] {
            list.sort_by_key(|recorded| format!("{recorded:?}"));
        }
        prop_assert_eq!(found, wanted);
    }

    /// Each container is found by its whole ID.
    #[test]
    fn table_keeps_the_names_of_containers(pod in recorded()) {
        let own = pod.pod.workload.clone();
        let (found, _) = decode(&encode(std::slice::from_ref(&pod), &own, usize::MAX).0, &own);
        for (id, name) in &pod.pod.containers {
            prop_assert_eq!(found[0].pod.container_name(id), name);
        }
        prop_assert_eq!(found[0].pod.container_name(""), "");
    }

    #[test]
    fn table_within_a_limit_has_the_first_pods(pods in prop::collection::vec(recorded(), 1..30), bytes in 0..2000_usize) {
        let own = workload("web");
        let (table, count) = encode(&pods, &own, bytes);
        prop_assert!(table.len() <= bytes || table.is_empty());
        let (whole, _) = encode(&pods[..count], &own, usize::MAX);
        prop_assert_eq!(table, whole);
    }

    #[test]
    fn table_of_any_bytes_is_read_without_failing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode(&bytes, &workload("web"));
    }

    /// One changed byte affects the pods that it is a part of.
    #[test]
    fn table_with_an_error_is_read_as_far_as_possible(
        pods in prop::collection::vec(recorded(), 1..10),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let own = workload("web");
        let (mut table, count) = encode(&pods, &own, usize::MAX);
        let place = place.index(table.len());
        table[place] = byte;
        let (found, error) = decode(&table, &own);
        prop_assert!(found.len() <= count || error.is_none());
    }
}

#[test]
fn pod_takes_few_bytes() {
    let pod = |number: u64| {
        let time =
            |seconds: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + 60 * number + seconds));
        let pod = Pod {
            uid: format!("{number:08x}-1234-4123-8123-{number:012x}"),
            namespace: "shop".to_owned(),
            name: format!("web-6d5f8b7c9d-{number:05}"),
            node: format!("node-{:04}", number % 10),
            host_network: false,
            ips: vec![IpAddr::from([10, 244, 1, u8::try_from(number).unwrap_or(0)])],
            ended: false,
            workload: workload("web"),
            containers: BTreeMap::from([(format!("{number:064x}"), "main".to_owned())]),
            host_ports: Vec::new(),
            life: PodLifetime { created: time(0), started: time(1), ran: time(3), ..PodLifetime::default() },
        };
        let known = time(4).unwrap_or(SystemTime::UNIX_EPOCH);
        let backend = BackendPort {
            service: ServiceRef { namespace: "shop".to_owned(), name: "web".to_owned() },
            port: 80,
            protocol: Protocol::Tcp,
            address: 0,
            target: 8080,
        };
        RecordedPod {
            pod: Cow::Owned(pod),
            node_uid: None,
            observed: Some(ObservedTimes { known, ended: None, gone: None }),
            backends: vec![backend],
        }
    };
    let pods: Vec<RecordedPod<'_>> = (0..100).map(pod).collect();
    let (table, _) = encode(&pods, &workload("web"), usize::MAX);
    assert!(table.len() < 100 * 60, "{} bytes", table.len());
}

#[test]
fn malformed_pod_is_counted_and_affects_no_other() {
    let row = |uid: &str, rest: &str| PodRow { uid: uid.to_owned(), rest: rest.to_owned(), ..PodRow::default() };
    let rows = vec![
        row("a", "web-1"),
        PodRow { node: 7, ..row("b", "web-2") },
        PodRow { shared: 1000, ..row("c", "web-3") },
        PodRow { workload: 2, ..row("d", "web-4") },
        PodRow { addresses: vec![vec![1, 2, 3]], ..row("e", "web-5") },
        PodRow { uuid: vec![1; 15], ..row("", "web-6") },
        PodRow { times: vec![i64::MIN], ..row("f", "web-7") },
        row("", "web-8"),
        row("g", "web-9"),
    ];
    let table = Table { nodes: vec!["node-1".to_owned()], pods: rows, ..Table::default() };
    let (found, error) = decode(&table.encode_to_vec(), &workload("web"));
    let uids: Vec<&str> = found.iter().map(|recorded| recorded.pod.uid.as_str()).collect();
    assert_eq!(uids, ["a", "g"]);
    let error = error.map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("7 of 9 pods are malformed"));
}
