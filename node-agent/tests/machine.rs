//! The program on this machine's kernel: `check`, `watch` and `run` against connections that the test makes and counts
//! itself. Needs root and cgroup v2.
//!
//! The test's own cgroups are the node: the rest of the machine is not in the picture.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod operator;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use prerequisites::{Prerequisite, skip};
use report::v1alpha1::{self as wire, AgentReport, identity::Owner};
use scopeprobe_agent::capture::find_cgroup_root;
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_scopeprobe-agent");

/// Only to fail instead of hanging: nothing here takes so long.
const GENEROUS: Duration = Duration::from_mins(1);

const POD: &str = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9fa";
const CONTAINER: &str = "5d3c8f1a2b4c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6";

/// This process can be in one cgroup at a time.
static IN_CGROUP: Mutex<()> = Mutex::new(());

/// A cgroup that plays a node's root, with a container of a pod and a service in it.
struct Node {
    /// Original namespace of this process.
    home: PathBuf,
    root: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Node {
    /// `None` where this machine doesn't allow it.
    fn new(name: &str) -> Option<Self> {
        let alone = IN_CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mount) = find_cgroup_root(Path::new("/sys/fs/cgroup")) else {
            skip(Prerequisite::CgroupV2, "no cgroup v2 here");
            return None;
        };
        if !geteuid().is_root() {
            skip(Prerequisite::Root, "not root");
            return None;
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup v2 path");
        let root = tempfile::Builder::new().prefix(&format!("scopeprobe-{name}-")).tempdir_in(&mount).unwrap().keep();
        let node = Self { home: mount.join(own), root, _alone: alone };
        fs::create_dir_all(node.container()).unwrap();
        fs::create_dir_all(node.service()).unwrap();
        Some(node)
    }

    fn container(&self) -> PathBuf {
        self.root.join(format!("kubepods/besteffort/pod{POD}/{CONTAINER}"))
    }

    fn service(&self) -> PathBuf {
        self.root.join("system.slice/web.service")
    }

    fn agent(&self, command: &str) -> Command {
        self.agent_of(&self.root, command)
    }

    /// Of another root of cgroups.
    #[expect(clippy::unused_self, reason = "it runs where this node is")]
    fn agent_of(&self, root: &Path, command: &str) -> Command {
        let mut agent = Command::new(AGENT);
        agent.arg(command).arg("--skip-self-test").arg("--cgroup-root").arg(root);
        agent
    }

    fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        enter(&self.home);
        let mut directory = self.container();
        while directory != self.root {
            let _ = fs::remove_dir(&directory);
            directory.pop();
        }
        let _ = (fs::remove_dir(self.service()), fs::remove_dir(self.root.join("system.slice")));
        let _ = fs::remove_dir(&self.root);
    }
}

/// Moves this process: sockets belong to the cgroup in which they are made.
fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// Connections from the pod to the service, counted as they are made.
struct Traffic<'a> {
    node: &'a Node,
    listener: TcpListener,
    refused_port: u16,
    open: Vec<(TcpStream, TcpStream)>,
    opened: u64,
    failed: u64,
    to_server: u64,
    to_client: u64,
}

impl<'a> Traffic<'a> {
    fn new(node: &'a Node) -> Self {
        enter(&node.service());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        enter(&node.home);
        Self { node, listener, refused_port, open: Vec::new(), opened: 0, failed: 0, to_server: 0, to_client: 0 }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// A connection with some payload both ways; kept open.
    fn open(&mut self) {
        let mut client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = self.listener.accept().unwrap();
        let (question, answer) = (vec![1; 100 + self.open.len()], vec![2; 1000]);
        client.write_all(&question).unwrap();
        server.read_exact(&mut vec![0; question.len()]).unwrap();
        server.write_all(&answer).unwrap();
        client.read_exact(&mut vec![0; answer.len()]).unwrap();
        self.opened += 1;
        self.to_server += question.len() as u64;
        self.to_client += answer.len() as u64;
        self.open.push((client, server));
    }

    fn make(&mut self, long: u64, short: u64, refused: u64) {
        enter(&self.node.container());
        for _ in 0..short {
            self.open();
            // The server first in one half of the cases.
            let (client, server) = self.open.pop().unwrap();
            if self.opened.is_multiple_of(2) {
                drop(server);
                drop(client);
            } else {
                drop(client);
                drop(server);
            }
        }
        for _ in 0..long {
            self.open();
        }
        for _ in 0..refused {
            TcpStream::connect(("127.0.0.1", self.refused_port)).unwrap_err();
            self.failed += 1;
        }
        enter(&self.node.home);
    }
}

/// A program that is ended with the test.
struct Running(Child);

impl Running {
    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn json(output: &[u8]) -> Value {
    serde_json::from_slice(output).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(output)))
}

#[test]
fn check_tells_what_this_machine_can_do() {
    let Some(node) = Node::new("check") else { return };
    let output = node.agent("check").args(["-o", "json"]).output().unwrap();
    let verdict = json(&output.stdout);
    assert_eq!(output.status.code(), Some(if verdict["mode"] == "Ebpf" { 0 } else { 3 }), "{verdict:#}");
    assert_eq!(verdict["mode"] == "Ebpf", verdict["reason"] == "Supported");

    let output = node.agent("check").args(["--btf", "/no/such/file"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.ends_with("mode: Fallback (BtfMissing)\n"), "{text}");
    assert!(text.contains("Fallback: cgroups"), "{text}");

    let output = node.agent_of(Path::new("/proc"), "check").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.ends_with("mode: Unsupported (CgroupV2Missing)\n"), "{text}");
}

#[test]
fn check_tells_of_each_way_to_attach_and_can_be_told_which() {
    let Some(node) = Node::new("check-attach") else { return };
    let output = node.agent("check").args(["-o", "json"]).output().unwrap();
    let verdict = json(&output.stdout);
    if verdict["mode"] != "Ebpf" {
        skip(Prerequisite::Ebpf, &verdict["reason"].to_string());
        return;
    }
    assert_eq!(verdict["attach"], "SockOps");
    let findings = verdict["findings"].as_array().unwrap();
    for attach in ["SockOps", "TpBtf", "Tracepoint"] {
        assert!(findings.iter().any(|finding| finding["attach"] == attach), "{attach}: {verdict:#}");
    }
    for step in ["kernel", "capabilities", "lockdown", "cgroup v2", "BTF"] {
        let found = findings.iter().find(|finding| finding["what"] == step).unwrap();
        assert_eq!((&found["ok"], found.get("attach")), (&Value::Bool(true), None), "{verdict:#}");
    }

    let output = node.agent("check").args(["--attach", "tp-btf"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("mode: Ebpf by TpBtf (Supported)\n"), "{text}");
    assert!(text.contains("TpBtf: attach") && !text.contains("SockOps:"), "{text}");
}

#[test]
fn watch_refuses_in_plain_words() {
    let Some(node) = Node::new("refuse") else { return };
    let output = node.agent_of(Path::new("/proc"), "watch").arg("--once").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("CgroupV2Missing") && error.contains("/proc"), "{error}");
}

#[test]
fn watch_says_why_it_does_without_ebpf() {
    let Some(node) = Node::new("without") else { return };
    let output = node.agent("watch").args(["--once", "--btf", "/no/such/file"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("Fallback by") && text.contains("/no/such/file"), "{text}");
}

#[test]
fn watch_shows_what_was_and_what_happens() {
    let Some(node) = Node::new("watch") else { return };
    let mut traffic = Traffic::new(&node);
    traffic.make(3, 0, 0);
    let mut agent = Running(node.agent("watch").args(["-o", "json"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut pictures = BufReader::new(agent.0.stdout.take().unwrap()).lines();
    let mut next = move || json(pictures.next().expect("a picture").unwrap().as_bytes());
    let deadline = Instant::now() + GENEROUS;
    let mut until = |what: &str, condition: &dyn Fn(&Value) -> bool| loop {
        let picture = next();
        if condition(&picture) {
            return picture;
        }
        assert!(Instant::now() < deadline, "{what}: {picture:#}");
    };
    let row = |picture: &Value, role: &str, port: u16| {
        let rows = picture["rows"].as_array().unwrap();
        rows.iter().find(|row| row["role"] == role && row["port"] == port).cloned().unwrap_or_default()
    };
    let port = traffic.port();

    let picture = until("the connections from before", &|picture| row(picture, "Server", port)["preexisting"] == 3);
    assert_eq!(row(&picture, "Client", port)["preexisting"], 3, "{picture:#}");
    assert_eq!(picture["seen"], 0);

    traffic.make(2, 40, 7);
    let total = traffic.opened;
    let picture = until("the new ones", &|picture| {
        let (client, server) = (row(picture, "Client", port), row(picture, "Server", port));
        picture["seen"] == 2 * (total - 3) + 7
            && client["bytesSent"] == traffic.to_server
            && server["bytesSent"] == traffic.to_client
    });
    let (client, server) = (row(&picture, "Client", port), row(&picture, "Server", port));
    let pod = serde_json::json!({"podContainer": {"pod_uid": POD, "container_id": CONTAINER}});
    let web = serde_json::json!({"hostProcess": {"name": "web.service"}});
    assert_eq!((&client["owner"], &client["peers"][0]), (&pod, &web), "{picture:#}");
    assert_eq!((&server["owner"], &server["peers"][0]), (&web, &pod), "{picture:#}");
    for end in [&client, &server] {
        assert_eq!((end["opened"].as_u64(), end["active"].as_u64()), (Some(total - 3), Some(5)), "{picture:#}");
    }
    assert_eq!(client["bytesReceived"], traffic.to_client);
    assert_eq!(server["bytesReceived"], traffic.to_server);
    assert_eq!(row(&picture, "Client", traffic.refused_port)["failed"], traffic.failed);
    assert_eq!(picture["coverage"], "100%");
    assert_eq!(picture["rows"].as_array().unwrap().len(), 3, "nothing that did not happen: {picture:#}");
    assert!(agent.end(Signal::SIGINT).success());

    let once = node.agent("watch").arg("--once").output().unwrap();
    let table = String::from_utf8(once.stdout).unwrap();
    assert!(once.status.success() && table.lines().all(|line| line.chars().count() <= 120), "{table}");
    let row = table.lines().find(|line| line.starts_with("pod 0b1c2d3e/5d3c8f1a2b4c")).expect(&table);
    assert!(row.contains(&format!("→ 127.0.0.1:{port} (web.service)")), "{table}");
}

/// State of an operator that received all messages.
#[derive(Default)]
struct Told {
    owners: HashMap<u64, Owner>,
    flows: HashMap<(u64, i32, u32), wire::Counters>,
    seen: u64,
}

impl Told {
    fn take(&mut self, report: AgentReport) {
        for identity in report.identities {
            self.owners.insert(identity.cgroup_id, identity.owner.unwrap());
        }
        for flow in report.flows {
            self.flows.insert((flow.cgroup_id, flow.role, flow.port), flow.counters.unwrap());
        }
        self.seen = report.capture.unwrap().seen;
    }

    /// The counters of this owner's only flow in this role at this port.
    fn flow(&self, owner: &Owner, role: wire::Role, port: u16) -> Option<&wire::Counters> {
        let of_owner = |key: &(u64, i32, u32)| self.owners.get(&key.0) == Some(owner);
        let this = |key: &(u64, i32, u32)| key.1 == role as i32 && key.2 == u32::from(port);
        self.flows.iter().find(|(key, _)| this(key) && of_owner(key)).map(|(_, counters)| counters)
    }
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    Some(response)
}

#[test]
fn run_reports_exactly_and_ends_in_order() {
    let Some(node) = Node::new("run") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, mut received) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, operator::serve(listener, &[]).0)
    });
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut traffic = Traffic::new(&node);
    traffic.make(2, 0, 0);
    let before = traffic.opened;
    let agent = Running(
        node.agent("run")
            .args(["--node-name", "node-1", "--insecure-plaintext", "--report-interval", "100ms"])
            .args(["--operator", &format!("http://{address}"), "--http-listen", &http])
            .spawn()
            .unwrap(),
    );
    let mut told = Told::default();
    let mut until = |told: &mut Told, what: &str, condition: &dyn Fn(&Told) -> bool| {
        let deadline = Instant::now() + GENEROUS;
        while !condition(told) {
            let left = deadline.saturating_duration_since(Instant::now());
            let next = runtime.block_on(async { tokio::time::timeout(left, received.recv()).await });
            told.take(next.unwrap_or_else(|_| panic!("{what}: {:?}", told.flows)).expect("an operator").1);
        }
    };
    let port = traffic.port();
    let pod = Owner::PodContainer(wire::PodContainer { pod_uid: POD.into(), container_id: CONTAINER.into() });
    let web = Owner::HostProcess(wire::HostProcess { name: "web.service".into() });
    let preexisting = |told: &Told| told.flow(&web, wire::Role::Server, port).map(|counters| counters.preexisting);
    until(&mut told, "those from before", &|told| preexisting(told) == Some(before));

    traffic.make(3, 200, 9);
    let made = traffic.opened - before;
    until(&mut told, "the new ones", &|told| told.seen == 2 * made + 9);
    let metrics = get(&http, "/metrics").unwrap();
    assert!(metrics.contains(&format!("scopeprobe_agent_connections_seen_total {}", 2 * made + 9)), "{metrics}");
    assert!(metrics.contains("reason=\"Supported\"") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
    assert!(get(&http, "/livez").unwrap().starts_with("HTTP/1.0 200"));
    assert!(get(&http, "/readyz").unwrap().starts_with("HTTP/1.0 200"));

    // A container that is gone before its connection is read still has its name.
    let short_lived = node.container().with_file_name("e".repeat(CONTAINER.len()));
    fs::create_dir(&short_lived).unwrap();
    // The root, kubepods, besteffort, the pod, two containers, system.slice and the service.
    let deadline = Instant::now() + GENEROUS;
    while !get(&http, "/metrics").unwrap().contains("scopeprobe_agent_cgroups 8\n") {
        assert!(Instant::now() < deadline, "the new cgroup");
        std::thread::sleep(Duration::from_millis(10));
    }
    enter(&short_lived);
    TcpStream::connect(("127.0.0.1", traffic.refused_port)).unwrap_err();
    enter(&node.home);
    fs::remove_dir(&short_lived).unwrap();
    let owner = Owner::PodContainer(wire::PodContainer { pod_uid: POD.into(), container_id: "e".repeat(64) });
    until(&mut told, "the short-lived container", &|told| told.owners.values().any(|told| *told == owner));

    // These are known from the last read at the latest.
    traffic.make(0, 50, 0);
    assert!(agent.end(Signal::SIGTERM).success());
    let all = 2 * (traffic.opened - before) + traffic.failed + 1;
    until(&mut told, "the last report", &|told| told.seen == all);

    let sent = told.flow(&pod, wire::Role::Client, port).unwrap();
    let served = told.flow(&web, wire::Role::Server, port).unwrap();
    for counters in [sent, served] {
        let active = counters.opened + counters.preexisting - counters.closed;
        assert_eq!((counters.preexisting, counters.opened, active), (before, traffic.opened - before, 5));
    }
    assert_eq!(told.flow(&pod, wire::Role::Client, traffic.refused_port).unwrap().failed, traffic.failed);
    assert_eq!(told.flow(&owner, wire::Role::Client, traffic.refused_port).unwrap().failed, 1);
    assert_eq!(told.flows.len(), 4, "nothing that did not happen: {:?}", told.flows);
}

#[test]
fn run_goes_on_where_nothing_can_be_captured() {
    let Some(node) = Node::new("unsupported") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let nowhere = Path::new("/proc");
    let nothing = wire::Mode::Unspecified;
    for (root, arguments, mode, reason, asks_for) in [
        (nowhere, vec![], Some(wire::Mode::Unsupported), wire::Reason::CgroupV2Missing, wire::Mode::Fallback),
        // What it does meanwhile depends on its rights.
        (node.root(), vec!["--btf", "/no/such/file"], None, wire::Reason::BtfMissing, wire::Mode::Fallback),
        (node.root(), vec!["--mode", "fallback"], Some(wire::Mode::Fallback), wire::Reason::Supported, nothing),
        (nowhere, vec!["--mode", "fallback"], Some(wire::Mode::Unsupported), wire::Reason::CgroupV2Missing, nothing),
    ] {
        let (address, mut received) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            (address, operator::serve(listener, &[]).0)
        });
        let agent = Running(
            node.agent_of(root, "run")
                .args(["--node-name", "node-1", "--insecure-plaintext", "--http-listen", "127.0.0.1:0"])
                .args(["--operator", &format!("http://{address}")])
                .args(arguments)
                // The log is on a full disk.
                .stderr(std::fs::File::options().write(true).open("/dev/full").unwrap())
                .spawn()
                .unwrap(),
        );
        let first = runtime.block_on(async { tokio::time::timeout(GENEROUS, received.recv()).await }).unwrap();
        let capture = first.unwrap().1.capture.unwrap();
        assert_eq!((capture.reason(), capture.asks_for()), (reason, asks_for), "{capture:?}");
        assert!(mode.is_none_or(|mode| capture.mode() == mode), "{capture:?}");
        assert!(!capture.message.is_empty());
        assert!(agent.end(Signal::SIGTERM).success());
    }
}
