//! The agent in the memory that its DaemonSet gives it, on a node that talks to a million addresses: it lives, and every
//! connection is counted as seen or as lost. Needs root and cgroup v2.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cgroups;
mod load;
#[path = "../operator/mod.rs"]
mod operator;
mod tally;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use cgroups::Machine;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tally::Tally;
use tokio::net::TcpListener;
use traffic::script::load::{LoadCounts, LoadPlan};

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

/// An agent on a node that does what a plan says.
struct Stage {
    // Ends before its cgroup does.
    agent: Running,
    machine: Machine,
    tally: Tally,
    http: SocketAddr,
}

impl Stage {
    /// `None` where this machine doesn't allow it.
    async fn set_up(memory: u64, mode: &[&str]) -> Option<Self> {
        let machine = Machine::new(memory)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let operator = listener.local_addr().unwrap();
        // The port is free again when this listener is gone: no other process of this machine asks for that port.
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (received, _answers) = operator::serve(listener, &[]);
        let tally = Tally::of(received);
        let mut agent = machine.in_agents_cgroup(AGENT);
        agent.args(["run", "--node-name", "node-1", "--insecure-plaintext", "--skip-self-test", "--retention", "1s"]);
        agent.args(["--operator", &format!("http://{operator}"), "--http-listen", &http.to_string()]);
        agent.args(["--max-flows", MAX_FLOWS]).args(mode).arg("--cgroup-root").arg(machine.root());
        let agent = Running(agent.spawn().unwrap());
        let stage = Self { agent, machine, tally, http };
        until("the agent captures", || stage.tally.lock().is_capturing()).await;
        let private = private_memory(stage.agent.0.id());
        println!("begins with {} MiB, private {} MiB", stage.machine.memory_now() >> 20, private >> 20);
        Some(stage)
    }

    /// Executes the plan and waits until all of its traffic is accounted for.
    ///
    /// Each connection and conversation must be observed or lost at both ends. Observed ones must be reported, or counted
    /// as evicted before their report.
    async fn account_for(&mut self, plan: LoadPlan) {
        let LoadCounts { udp, tcp } = load::make(&self.machine, plan).await;
        let truth = 2 * (udp + tcp);
        assert_eq!(truth, 2 * u64::from(plan.conversations + plan.connections + plan.held));
        let (mut evicted_unreported, mut last) = (0, (0, 0, 0));
        let Self { machine, agent, tally, http } = self;
        until("all is accounted for", || {
            let ended = agent.0.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {} kills for want of memory", machine.kills());
            evicted_unreported = metric(*http, "connections_unreported_total").unwrap_or(evicted_unreported);
            let counts = tally.lock();
            last = (counts.seen(), counts.lost(), counts.told());
            last.0 + last.1 == truth + evicted_unreported && last.2 + evicted_unreported >= last.0
        })
        .await;
        let (seen, dropped, reported) = last;
        println!(
            "{truth} made; {seen} seen, {dropped} lost, {reported} told, {evicted_unreported} evicted before they were reported"
        );
        assert!(reported <= seen && reported + dropped >= truth);
        println!("peak: {} MiB", machine.memory_peak() >> 20);
        assert_eq!(machine.kills(), 0);
    }

    /// The node's processes are gone: their flows leave, and so does the memory.
    async fn calm_down(&mut self) {
        self.machine.end_traffic();
        until("the flows have left", || metric(self.http, "flows").is_some_and(|flows| flows <= 10)).await;
        let pid = self.agent.0.id();
        until("the agent is small again", || private_memory(pid) < 32 << 20).await;
        let private = private_memory(pid);
        println!("afterwards: {} MiB, private {} MiB", self.machine.memory_now() >> 20, private >> 20);
        assert_eq!(self.machine.kills(), 0);
    }
}

/// Private memory that the process has now, in bytes.
fn private_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    1024 * line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default()
}

/// The counter or gauge of this name, or `None` if the agent does not answer just now.
fn metric(http: SocketAddr, name: &str) -> Option<u64> {
    let mut connection = TcpStream::connect(http).ok()?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    connection.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("scopeprobe_agent_{name} ")));
    let line = line.unwrap_or_else(|| panic!("the agent has no metric {name}:\n{text}"));
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
    let Some(mut stage) = Stage::set_up(MEMORY, &["--mode", "ebpf"]).await else { return };
    assert!(!stage.tally.lock().message().contains("flow table"), "its defaults fit");
    stage.account_for(LoadPlan { conversations: 420_000, connections: 80_000, held: 0 }).await;
    stage.calm_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_in_less_memory_keeps_fewer_flows_and_says_so() {
    let Some(mut stage) = Stage::set_up(MEMORY / 2, &["--mode", "ebpf"]).await else { return };
    let message = stage.tally.lock().message();
    assert!(
        message.contains("flow table reduced from 65536 to 26630 flows to fit the memory limit of 64 MiB"),
        "{message}"
    );
    stage.account_for(LoadPlan { conversations: 90_000, connections: 10_000, held: 0 }).await;
    stage.calm_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallback_survives_many_connections_in_its_default_memory() {
    let mode = ["--mode", "fallback", "--fallback-cpu-budget", "1000"];
    let Some(mut stage) = Stage::set_up(MEMORY, &mode).await else { return };
    stage.account_for(LoadPlan { conversations: 0, connections: 60_000, held: 8_000 }).await;
    stage.calm_down().await;
}

/// Not a test: runs the node's load; started by the tests.
#[test]
#[ignore = "a part of the tests above"]
fn traffic_process() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    load::run_load(Path::new("/proc/self"));
}
