use crds::Losses;
use topology::entity::CgroupOwner;

use super::*;

fn sessions() -> Sessions {
    Sessions::new(&CollectorInputs::open(SharedLedger::default(), Observations::default()))
}

fn capture(attached_age_ms: u64, seen: u64) -> Capture {
    Capture {
        mode: crds::Mode::Ebpf,
        reason: kernel_support::Reason::Supported,
        message: String::new(),
        attach: "SockOps".to_owned(),
        kernel: "6.1".to_owned(),
        attached_age: Duration::from_millis(attached_age_ms),
        complete_age: None,
        observes_udp: false,
        losses: Losses { opened: 1, ..Losses::default() },
        seen,
        folding: crds::Folding::default(),
        asks_for_fallback: false,
    }
}

fn report(epoch: u8, attached_age_ms: u64, seen: u64) -> Report {
    Report {
        node: "n".to_owned(),
        epoch: topology::ledger::Epoch([epoch; 16]),
        origin: topology::ledger::Epoch([epoch; 16]),
        sequence: 1,
        begins_snapshot: true,
        ends_snapshot: true,
        capture: capture(attached_age_ms, seen),
        identities: Vec::new(),
        flows: Vec::new(),
        node_addresses: Vec::new(),
        sent: None,
    }
}

fn see(node: &mut NodeObservation, report: &Report, ms: u64) {
    let at = UNIX_EPOCH + Duration::from_millis(ms);
    observe(node, report, at, at, &LeftOut::default());
}

#[test]
fn the_time_between_two_epochs_is_declared() {
    let mut node = NodeObservation::default();
    see(&mut node, &report(1, 900, 5), 1_000);
    see(&mut node, &report(1, 1_900, 9), 2_000);
    see(&mut node, &report(2, 250, 1), 3_000);
    assert_eq!((node.earlier.seen, node.earlier.losses.opened, node.seen), (9, 1, 1));
    let account = node.coverage.expect("a capture has reported");
    let unobserved =
        account.periods(None).iter().filter_map(|it| it.shortfall.as_ref()).map(|it| it.unobserved_ms).sum::<u64>();
    assert_eq!((account.since(), account.until(), unobserved), (100, 3_000, 750));
}

#[test]
fn an_agent_that_sees_nothing_observes_nothing() {
    let mut node = NodeObservation::default();
    let plain = report(1, 0, 0);
    let blind = Report { capture: Capture { mode: crds::Mode::Unsupported, ..plain.capture.clone() }, ..plain };
    see(&mut node, &blind, 1_000);
    assert_eq!(node.coverage, None);
}

#[test]
fn who_asks_for_the_fallback_does_so_since_its_first_report_that_does() {
    let asking = |asks_for_fallback| {
        let plain = report(1, 100, 0);
        Report { capture: Capture { asks_for_fallback, ..plain.capture }, ..plain }
    };
    let mut node = NodeObservation::default();
    let mut since = Vec::new();
    for (asks, ms) in [(false, 1000), (true, 2000), (true, 9000), (false, 10_000), (true, 11_000)] {
        see(&mut node, &asking(asks), ms);
        since.push(node.asks_for_fallback_since_unix_ms);
    }
    assert_eq!(since, [None, Some(2000), Some(2000), None, Some(11_000)]);
    node.disconnect();
    assert_eq!((node.connected, node.asks_for_fallback_since_unix_ms), (false, None));
}

#[tokio::test]
async fn a_second_stream_takes_the_place_of_the_first() {
    let sessions = sessions();
    let mut first = Session::open(sessions.clone(), &report(1, 1, 1)).expect("it begins a snapshot");
    first.take_in(report(1, 1, 1)).await.expect("the message is in order");
    let mut second = Session::open(sessions.clone(), &report(1, 1, 1)).expect("it begins a snapshot");
    first.replaced().await;
    let mut late = report(1, 1, 1);
    late.sequence = 2;
    assert_eq!(first.take_in(late).await.expect_err("replaced").code(), tonic::Code::Aborted);
    second.take_in(report(1, 1, 1)).await.expect("the message is in order");
    drop(first);
    assert!(sessions.observations.get("n").is_some_and(|node| node.connected));
    drop(second);
    assert!(sessions.observations.get("n").is_some_and(|node| !node.connected));
}

fn flow_at(local: [u8; 4], opened: u64) -> Flow {
    let (local, remote) = (IpAddr::from(local), IpAddr::from([10, 0, 0, 1]));
    let (role, protocol) = (topology::flow::Role::Server, topology::flow::Protocol::Tcp);
    Flow {
        key: FlowKey { cgroup_id: 1, netns: 1, role, local, remote, port: 80, protocol },
        counters: FlowCounters { opened, ..FlowCounters::default() },
        ages: topology::sighting::Ages::default(),
        remote_names: Vec::new(),
        nat_peers: Vec::new(),
    }
}

#[tokio::test]
async fn flows_at_addresses_of_other_nodes_are_left_out_and_lost() {
    let sessions = sessions();
    let node = |name: &str, last: u8| topology::entity::Node {
        name: name.to_owned(),
        // A virtual address that both Node objects have.
        ips: vec![IpAddr::from([172, 18, 0, last]), IpAddr::from([172, 18, 0, 100])],
        pod_networks: Vec::new(),
    };
    sessions.index.add_nodes([node("m", 2), node("n", 3)]);
    let (own, others, both, unknown) = ([172, 18, 0, 3], [172, 18, 0, 2], [172, 18, 0, 100], [192, 0, 2, 1]);
    let flows = vec![flow_at(own, 1), flow_at(others, 10), flow_at(both, 100), flow_at(unknown, 1000)];
    let first = Report { flows, ..report(1, 1, 1111) };
    let mut session = Session::open(sessions.clone(), &first).expect("it begins a snapshot");
    session.take_in(first).await.expect("the message is in order");
    let later = Report { flows: vec![flow_at(others, 15)], sequence: 2, begins_snapshot: false, ..report(1, 1, 1116) };
    session.take_in(later).await.expect("the message is in order");
    let ledger = sessions.shared_ledger.ledger().lock().await;
    assert_eq!(ledger.flows().map(|flow| flow.totals.opened).sum::<u64>(), 1101);
    let node = sessions.observations.get("n").expect("it has reported");
    // It has lost one by its own word.
    assert_eq!((node.seen, node.losses.opened), (1101, 16));
    assert_eq!(node.left_out.reason, Some(crate::observation::LeftOutReason::ForeignAddress));
    assert_eq!(sessions.metrics.foreign_flows.get(), 1, "one flow");
}

#[tokio::test]
async fn agent_whose_epoch_was_ended_goes_on_under_a_new_one() {
    let sessions = sessions();
    let flow = |opened| {
        let ip = std::net::IpAddr::from([10, 0, 0, 1]);
        let (role, protocol) = (topology::flow::Role::Client, topology::flow::Protocol::Tcp);
        let counters = topology::flow::FlowCounters { opened, ..topology::flow::FlowCounters::default() };
        Flow {
            key: topology::flow::FlowKey { cgroup_id: 1, netns: 1, role, local: ip, remote: ip, port: 80, protocol },
            counters,
            ages: topology::sighting::Ages::default(),
            remote_names: Vec::new(),
            nat_peers: Vec::new(),
        }
    };
    let send = async |report: Report| {
        let mut session = Session::open(sessions.clone(), &report).expect("it begins a snapshot");
        session.take_in(report).await
    };
    send(Report { flows: vec![flow(5)], ..report(1, 1, 5) }).await.expect("the first epoch");
    send(report(9, 1, 0)).await.expect("a stranger's epoch");
    let refused = send(Report { flows: vec![flow(6)], ..report(1, 1, 6) }).await.expect_err("its epoch has ended");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "as report.proto says");
    let origin = topology::ledger::Epoch([1; 16]);
    send(Report { flows: vec![flow(7)], origin, ..report(2, 1, 7) }).await.expect("a new epoch");
    let ledger = sessions.shared_ledger.ledger().lock().await;
    assert_eq!(ledger.flows().map(|flow| (flow.totals.opened, flow.totals.active)).collect::<Vec<_>>(), [(7, 7)]);
    let node = sessions.observations.get("n").expect("it has reported");
    // Each of the two has lost one, by its own word.
    assert_eq!((node.total_seen(), node.total_losses().opened), (7, 2));
    let account = node.coverage.clone().expect("a capture has reported");
    assert_eq!(
        account.periods(None).iter().filter_map(|it| it.shortfall.as_ref()).map(|it| it.intervals).sum::<u64>(),
        0
    );
}

#[tokio::test]
async fn owners_are_bounded_by_flows() {
    let sessions = sessions();
    let mut session = Session::open(sessions.clone(), &report(1, 1, 1)).expect("it begins a snapshot");
    let owner = || CgroupOwner::HostProcess { name: "a".to_owned() };
    for sequence in 1..=4 {
        let first = sequence * 3000;
        let identities = (first..first + 3000).map(|cgroup| (cgroup, owner())).collect();
        let is_first = sequence == 1;
        let (begins_snapshot, ends_snapshot) = (is_first, is_first);
        let report = Report { sequence, begins_snapshot, ends_snapshot, identities, ..report(1, 1, 1) };
        session.take_in(report).await.expect("the message is in order");
    }
    let ledger = sessions.shared_ledger.ledger().lock().await;
    assert_eq!(ledger.owner_count("n"), MAX_OWNERS_WITHOUT_FLOWS);
}

#[tokio::test]
async fn what_is_out_of_order_is_refused() {
    let sessions = sessions();
    let mut no_snapshot = report(1, 1, 1);
    no_snapshot.begins_snapshot = false;
    assert!(Session::open(sessions.clone(), &no_snapshot).is_err());
    let mut session = Session::open(sessions, &report(1, 1, 1)).expect("it begins a snapshot");
    session.take_in(report(1, 1, 1)).await.expect("the message is in order");
    let repeated = session.take_in(report(1, 1, 1)).await.expect_err("a sequence number comes once");
    assert!(repeated.message().starts_with("sequence: 1 where 2 was due"), "{repeated}");
    let mut other = report(1, 1, 1);
    other.node = "m".to_owned();
    assert!(session.take_in(other).await.expect_err("another node").message().starts_with("node: \"m\""));
}
