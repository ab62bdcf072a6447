//! Tests the protocol of scripted processes: every command and answer is read as it was written, and errors reach the
//! test with their text.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fmt::Debug,
    io::{self, BufReader},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use proptest::{collection::vec, prelude::*};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use traffic::script::{
    Reply, execute_all,
    load::{LoadCounts, LoadPlan},
    pod::{PodAnswer, PodCalls, PodCommand, PodScript, UnansweredCall},
    read_reply,
    step::{DatagramRequests, DatagramStep, ShortConnections, Step, StepAnswer, StreamAction},
    write_command,
};

/// Arbitrary parts of commands and answers.
#[derive(Clone, Debug)]
struct Parts {
    name: String,
    other: String,
    names: Vec<String>,
    address: SocketAddr,
    local: Option<SocketAddr>,
    addresses: Vec<SocketAddr>,
    numbers: [u64; 3],
    small: u32,
    size: u16,
    backlog: Option<i32>,
    payload: Vec<u8>,
}

fn addresses() -> impl Strategy<Value = SocketAddr> {
    let scoped = (any::<Ipv6Addr>(), any::<u16>(), any::<u32>())
        .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip, port, 0, scope).into());
    prop_oneof![(any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from), scoped]
}

prop_compose! {
    fn parts()(
        (name, other, names) in (any::<String>(), any::<String>(), vec(any::<String>(), 0..4)),
        (address, local, addresses) in (addresses(), proptest::option::of(addresses()), vec(addresses(), 0..4)),
        (numbers, small, size) in (any::<[u64; 3]>(), any::<u32>(), any::<u16>()),
        (backlog, payload) in (any::<Option<i32>>(), any::<Vec<u8>>()),
    ) -> Parts {
        Parts { name, other, names, address, local, addresses, numbers, small, size, backlog, payload }
    }
}

/// One step of each kind; [`assert_complete`] reports those that are missing.
fn steps(parts: &Parts) -> Vec<Step> {
    let Parts { name, other, names, address, local, addresses, numbers, small, size, backlog, .. } = parts.clone();
    let [count, .., hold_ms] = numbers;
    let connections = ShortConnections { count, request: small as usize, response: size.into() };
    let mut steps = vec![
        Step::Netns,
        Step::Listen { listener: name.clone(), address, backlog },
        Step::ListenMptcp { listener: name.clone() },
        Step::Unlisten { listener: name.clone() },
        Step::DropSyns { listener: name.clone() },
        Step::AcceptSyns { listener: name.clone() },
        Step::Accept { stream: name.clone(), listener: other.clone() },
        Step::Connect { stream: name.clone(), target: address },
        Step::StartConnect { stream: name.clone(), target: address, local },
        Step::Share { stream: name.clone() },
        Step::Unshare { stream: name.clone() },
        Step::FailToConnect { target: address, count },
        Step::Serve { listener: name.clone(), connections },
        Step::Call { target: address, connections },
        Step::CallSlowly { target: address, count },
        Step::CallItself { listener: name.clone(), port: size, count },
        Step::OpenPairs { listener: name.clone(), count },
        Step::ClosePairs,
        Step::ServeAndCall { address, threads: count, connections, until: Some(other.into()) },
        Step::ServeAndCall { address, threads: count, connections, until: None },
        Step::ServeAndCallAt { listeners: names.clone(), connections },
        Step::ServeEach { listeners: names, connections, server_closes_every: hold_ms },
        Step::CallInTurns { targets: addresses.clone(), count: small, rate: small },
        Step::HoldEach { targets: addresses, connections, hold_ms },
    ];
    steps.extend(actions(parts).into_iter().map(|action| Step::Use { stream: name.clone(), action }));
    steps.extend(datagram_steps(parts).into_iter().map(Step::Datagram));
    steps
}

fn actions(parts: &Parts) -> Vec<StreamAction> {
    vec![
        StreamAction::Send(parts.size.into()),
        StreamAction::Receive(parts.size.into()),
        StreamAction::AwaitEnd,
        StreamAction::ShutDown,
        StreamAction::Close,
        StreamAction::Reset,
        StreamAction::LocalPort,
        StreamAction::AwaitHandshake,
        StreamAction::StartConnect(parts.address),
        StreamAction::Disconnect,
        StreamAction::Measure,
        StreamAction::AwaitAcknowledged,
        StreamAction::AwaitRetransmits(parts.small),
        StreamAction::DropIncoming,
        StreamAction::AcceptIncoming,
        StreamAction::DelayAcknowledgement,
    ]
}

fn datagram_steps(parts: &Parts) -> Vec<DatagramStep> {
    let Parts { name: socket, address, local, numbers: [count, times, _], size, payload, .. } = parts.clone();
    let bytes = usize::from(size);
    let requests = DatagramRequests { sockets: size, times, request: bytes, port: size };
    vec![
        DatagramStep::Bind { socket: socket.clone(), address },
        DatagramStep::Connect { socket: socket.clone(), target: address },
        DatagramStep::Send { socket: socket.clone(), bytes, target: local },
        DatagramStep::Receive { socket: socket.clone(), bytes },
        DatagramStep::Respond { socket: socket.clone(), bytes },
        DatagramStep::RespondWith { socket: socket.clone(), payload },
        DatagramStep::Serve { socket, count, response: bytes },
        DatagramStep::Call { target: address, requests },
    ]
}

fn step_answers(parts: &Parts) -> Vec<StepAnswer> {
    vec![
        StepAnswer::Done,
        StepAnswer::Port(parts.size),
        StepAnswer::Number(parts.numbers[0]),
        StepAnswer::Connected(parts.size.is_multiple_of(2)),
        StepAnswer::Counts { counts: parts.numbers.to_vec(), milliseconds: parts.numbers[1] },
        StepAnswer::Measured { rtt_us: parts.small, retransmits: parts.small },
    ]
}

fn pod_commands(parts: &Parts) -> Vec<PodCommand> {
    let targets = parts.addresses.iter().map(SocketAddr::ip).collect();
    let [pause_ms, seed, _] = parts.numbers;
    vec![PodCommand::Start(PodScript { name: parts.name.clone(), pause_ms, seed, targets }), PodCommand::Stop]
}

fn pod_answers(parts: &Parts) -> Vec<PodAnswer> {
    let [since_unix_ms, until_unix_ms, times] = parts.numbers;
    let unanswered = UnansweredCall { target: parts.address.ip(), since_unix_ms, until_unix_ms };
    let answered = parts.names.iter().map(|name| (name.clone(), times)).collect();
    vec![PodAnswer::Done, PodAnswer::Calls(PodCalls { answered, unanswered: vec![unanswered] })]
}

/// Name of an enum's variant in JSON.
fn variant(value: &impl Serialize) -> String {
    match serde_json::to_value(value).unwrap() {
        Value::String(name) => name,
        Value::Object(fields) => fields.into_iter().next().unwrap().0,
        other => panic!("{other} is no variant"),
    }
}

/// Names of all variants of an enum, from the error about one that it does not have.
fn variants<T: DeserializeOwned + Debug>() -> BTreeSet<String> {
    let error = serde_json::from_str::<T>("\"\"").unwrap_err().to_string();
    let (_, listed) = error.split_once(", expected ").unwrap();
    let names: BTreeSet<_> = listed.split('`').skip(1).step_by(2).map(String::from).collect();
    assert!(names.len() > 1, "{error}");
    names
}

/// Asserts that these are all variants of the enum.
fn assert_complete<T: Serialize + DeserializeOwned + Debug>(samples: &[T]) {
    assert_eq!(samples.iter().map(variant).collect::<BTreeSet<_>>(), variants::<T>());
}

/// Sends the commands to a process that answers each with itself.
fn assert_round_trip<T: Serialize + DeserializeOwned + Debug + PartialEq>(samples: &[T]) {
    let (mut input, mut output) = (Vec::new(), b"running 1 test\ntest scripted_process ... ".to_vec());
    for sample in samples {
        write_command(&mut input, sample).unwrap();
    }
    execute_all(input.as_slice(), &mut output, Ok::<T, String>).unwrap();
    output.extend(b"ok\n");
    let mut output = output.as_slice();
    for sample in samples {
        assert_eq!(read_reply::<T>(&mut output).unwrap().as_ref(), Ok(sample));
    }
    assert_eq!(read_reply::<T>(&mut output).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

proptest! {
    #[test]
    fn commands_and_answers_are_read_as_they_were_written(parts in parts()) {
        assert_complete(&steps(&parts));
        assert_complete(&actions(&parts));
        assert_complete(&datagram_steps(&parts));
        assert_complete(&step_answers(&parts));
        assert_complete(&pod_commands(&parts));
        assert_complete(&pod_answers(&parts));
        assert_round_trip(&steps(&parts));
        assert_round_trip(&step_answers(&parts));
        assert_round_trip(&pod_commands(&parts));
        assert_round_trip(&pod_answers(&parts));
        let [udp, tcp, _] = parts.numbers;
        let [conversations, connections, held] = [parts.small, parts.size.into(), 0];
        assert_round_trip(&[LoadPlan { conversations, connections, held }]);
        assert_round_trip(&[LoadCounts { udp, tcp }]);
    }
}

/// Answers of a process to these lines, in which each command is a number of a list.
fn replies(input: &str) -> Vec<Reply<u32>> {
    let mut output = Vec::new();
    let execute = |index: usize| match index {
        0 => Ok(7),
        1 => Err(io::Error::other("connection refused")),
        _ => panic!("there is no number {index}"),
    };
    execute_all(input.as_bytes(), &mut output, execute).unwrap();
    let mut output = BufReader::new(output.as_slice());
    std::iter::from_fn(|| read_reply(&mut output).ok()).collect()
}

#[test]
fn errors_panics_and_unknown_commands_are_answered_with_their_text() {
    let replies = replies("1\n2\n\"fly\"\n0\n");
    assert_eq!(replies[0], Err(String::from("connection refused")));
    assert_eq!(replies[1], Err(String::from("panicked: there is no number 2")));
    let unknown = replies[2].as_ref().unwrap_err();
    assert!(unknown.starts_with("cannot read the command: ") && unknown.contains("fly"), "{unknown}");
    assert_eq!(replies[3], Ok(7));
    assert_eq!(replies.len(), 4);
}
