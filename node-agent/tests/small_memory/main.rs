//! The agent in the memory that its DaemonSet gives it, on a node that talks to a million addresses: it lives, and every
//! connection is counted as seen or as lost. Needs root and cgroup v2.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cgroups;
#[path = "../operator/mod.rs"]
mod operator;
mod tally;
mod traffic;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use cgroups::Machine;
use tally::Tally;
use tokio::net::TcpListener;
use traffic::Truth;

const AGENT: &str = env!("CARGO_BIN_EXE_scopeprobe-agent");

/// As in the DaemonSet by default.
const MEMORY: u64 = 128 << 20;
const MAX_FLOWS: &str = "65536";

/// Only to fail instead of hanging.
const GENEROUS: Duration = Duration::from_mins(10);

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_agent(machine: &Machine, operator: SocketAddr, http: SocketAddr, mode: &[&str]) -> Running {
    let mut agent = machine.in_agents_cgroup(AGENT);
    agent.args(["run", "--node-name", "node-1", "--insecure-plaintext", "--skip-self-test", "--retention", "1s"]);
    agent.args(["--operator", &format!("http://{operator}"), "--http-listen", &http.to_string()]);
    agent.args(["--max-flows", MAX_FLOWS]).args(mode).arg("--cgroup-root").arg(machine.root());
    Running(agent.spawn().unwrap())
}

/// Private memory that the process has now, in bytes.
fn private_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    1024 * line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default()
}

/// The counter or gauge of this name.
fn metric(http: SocketAddr, name: &str) -> Option<u64> {
    let mut connection = TcpStream::connect(http).ok()?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    connection.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("scopeprobe_agent_{name} ")))?;
    line.trim().parse().ok()
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < GENEROUS, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_survives_a_million_flows_in_its_default_memory() {
    let Some(machine) = Machine::new(MEMORY) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The port is free again when this listener is gone: no other process of the test requests that port.
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (received, _answers) = operator::serve(listener, &[]);
    let tally = Tally::of(received);
    let mut agent = start_agent(&machine, address, http, &["--mode", "ebpf"]);
    let pid = agent.0.id();
    until("the agent captures", || tally.lock().is_capturing()).await;
    println!("at the start: {} MiB, private {} MiB", machine.memory_now() >> 20, private_memory(pid) >> 20);

    let Truth { udp, tcp } = traffic::make(&machine).await;
    // Each is seen at both ends.
    let truth = 2 * (udp + tcp);
    assert!(truth >= 1_000_000, "{truth}");
    // What left before it could be reported was seen and is said to be missing, too.
    let mut untold = 0;
    until("every connection is seen or lost, and what is seen is told or said to be missing", || {
        assert!(agent.0.try_wait().unwrap().is_none(), "the agent ended: {} kills for want of memory", machine.kills());
        untold = metric(http, "connections_untold_total").unwrap_or(untold);
        let tally = tally.lock();
        tally.seen() + tally.lost() == truth + untold && tally.told() + untold >= tally.seen()
    })
    .await;
    let (seen, lost, told) = {
        let tally = tally.lock();
        (tally.seen(), tally.lost(), tally.told())
    };
    println!("{truth} made; {seen} seen, {lost} lost, {told} told, {untold} left before they were told");
    assert!(told <= seen && told + lost >= truth);
    println!("peak: {} MiB of {} MiB", machine.memory_peak() >> 20, MEMORY >> 20);
    assert_eq!(machine.kills(), 0);

    machine.end_traffic();
    until("the flows have left", || metric(http, "flows").is_some_and(|flows| flows <= 10)).await;
    until("the agent is small again", || private_memory(pid) < 32 << 20).await;
    println!("afterwards: {} MiB, private {} MiB", machine.memory_now() >> 20, private_memory(pid) >> 20);
    assert_eq!(machine.kills(), 0);
}

/// Plays the node's processes; started by the test.
#[test]
#[ignore = "a part of the test above"]
fn traffic_process() {
    traffic::play(Path::new("/proc/self"));
}
