//! Tests the parser of commands: it reads every command that is written, and rejects other input with an explanation.

use std::{net::SocketAddr, sync::Arc};

use proptest::prelude::*;
use traffic::{
    control,
    program::Program,
    protocol::{Answer, Command, Connect, End},
};

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Close), Just(End::HalfClose), Just(End::AwaitServer), Just(End::Reset)]
}

fn targets() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), 1u16..).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn a_plan_is_read_as_it_was_written(
        target in targets(), count: u64, concurrency in 1u32..=4096, send: u64, receive: u64, end in ends(),
        pause_ms: u64, every_ms: u64, timeout_ms in 1u64.., hold: Option<String>, background: bool,
    ) {
        let plan = Connect {
            target, bind: Some(target.ip()), count, concurrency, send, receive, end, pause_ms, every_ms, timeout_ms,
            hold, background,
        };
        let command = Command::Connect(plan);
        prop_assert_eq!(Command::parse(&serde_json::to_string(&command).unwrap()).unwrap(), command);
    }

    #[test]
    fn nonsense_is_refused_and_nothing_panics(text: String) {
        prop_assert!(Command::parse(&text).is_err());
    }

    #[test]
    fn parser_rejects_unknown_field(name in "[a-z]{12,20}") {
        let text = format!(r#"{{"connect": {{"target": "127.0.0.1:80", "{name}": 1}}}}"#);
        prop_assert!(Command::parse(&text).unwrap_err().to_string().contains(&name));
    }
}

#[test]
fn a_value_out_of_range_is_named() {
    for (text, name) in [
        (r#"{"connect": {"target": "127.0.0.1:80", "concurrency": 0}}"#, "concurrency"),
        (r#"{"connect": {"target": "127.0.0.1:0"}}"#, "target"),
        (r#"{"connect": {"target": "127.0.0.1:80", "timeoutMs": 0}}"#, "timeoutMs"),
        (r#"{"connect": {"target": "127.0.0.1:80", "bind": "::1"}}"#, "bind"),
        (r#"{"listen": {"address": "[::]:80", "behaviour": {"reply": {"request": 0, "response": 1}}}}"#, "request"),
    ] {
        assert!(Command::parse(text).unwrap_err().to_string().contains(name), "{text}");
    }
}

#[test]
fn the_socket_answers_each_command_and_survives_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let program = Arc::new(Program::default());
    let at = path.clone();
    std::thread::spawn(move || control::serve(&at, &program));
    let ask = |command: &str| -> Answer {
        for _ in 0..3000 {
            if let Ok(answer) = control::ask(&path, command) {
                return serde_json::from_str(&answer).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("no answer at {}", path.display());
    };
    assert_eq!(ask(r#""ping""#), Answer::Done);
    assert!(matches!(ask("what?"), Answer::Error(_)));
    let Answer::Listening(address) = ask(r#"{"listen": {"address": "127.0.0.1:0"}}"#) else { panic!("no listener") };
    let Answer::Outcome(outcome) =
        ask(&format!(r#"{{"connect": {{"target": "{address}", "count": 3, "send": 5, "receive": 5}}}}"#))
    else {
        panic!("no outcome")
    };
    assert_eq!((outcome.opened, outcome.sent, outcome.received), (3, 15, 15));
}
