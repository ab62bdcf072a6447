//! Scripted process with a network namespace of its own: it connects to many addresses of its loopback, and counts.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    path::Path,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use traffic::script::{
    self, ScriptedProcess,
    load::{LoadCounts, LoadPlan},
};

use crate::cgroups::Machine;

/// So many at a time, at this rate: more new flows come than the kernel's table has room for.
const BATCH: u32 = 50;
const CONVERSATIONS_A_SECOND: u32 = 10_500;
const CONNECTIONS_A_SECOND: u32 = 2_000;

/// Runs the plan in a process of the machine, to the process's end, and returns the process's counts.
pub async fn make(machine: &Machine, plan: LoadPlan) -> LoadCounts {
    let mut wrapper = machine.in_traffics_cgroup("unshare");
    wrapper.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    let run = move || {
        let mut process = ScriptedProcess::start(Some(wrapper), "traffic_process").unwrap();
        process.send(&plan).unwrap();
        let counts = process.receive::<LoadCounts>().unwrap().unwrap_or_else(|error| panic!("{plan:?}: {error}"));
        assert!(process.end().unwrap().success());
        counts
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Executes plans until standard input ends, where a test started this process. `itself` is its directory in `/proc`.
pub fn run_load(itself: &Path) {
    if script::is_scripted() {
        script::execute_stdin(|plan| execute(itself, plan)).unwrap();
    }
}

fn execute(itself: &Path, plan: LoadPlan) -> io::Result<LoadCounts> {
    let interfaces = fs::read_to_string(itself.join("net/dev"))?.lines().skip(2).count();
    assert_eq!(interfaces, 1, "the loopback of its own network namespace alone");
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let held = (0..plan.held).map(|number| open(&listener, number)).collect::<io::Result<Vec<_>>>()?;
    let (udp, tcp) = thread::scope(|scope| {
        let converse = scope.spawn(|| converse(plan.conversations));
        let connect = scope.spawn(|| connect(&listener, plan.held..plan.held + plan.connections));
        (join(converse), join(connect))
    });
    Ok(LoadCounts { udp: udp?, tcp: tcp? + held.len() as u64 })
}

/// Returns a thread's result. A panic of the thread goes on in this one, with its text.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// 127.16.0.0 and on: none has two.
fn address(number: u32, port: u16) -> SocketAddr {
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 16, 0, 0)) + number), port).into()
}

fn pace(begun: Instant, done: u32, a_second: u32) {
    let due = Duration::from_secs(1) * done / a_second;
    thread::sleep(due.saturating_sub(begun.elapsed()));
}

/// Returns how many datagrams have arrived, each from another socket with another address.
fn converse(conversations: u32) -> io::Result<u64> {
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let target = server.local_addr()?;
    let (begun, mut arrived) = (Instant::now(), 0);
    for first in (0..conversations).step_by(BATCH as usize) {
        let batch = first..(first + BATCH).min(conversations);
        for number in batch.clone() {
            UdpSocket::bind(address(number, 0))?.send_to(&number.to_ne_bytes(), target)?;
        }
        for _ in batch.clone() {
            server.recv(&mut [0; 8])?;
            arrived += 1;
        }
        pace(begun, batch.end, CONVERSATIONS_A_SECOND);
    }
    Ok(arrived)
}

/// Returns how many connections were accepted.
fn connect(listener: &TcpListener, numbers: Range<u32>) -> io::Result<u64> {
    let (begun, mut accepted) = (Instant::now(), 0);
    for (done, number) in (0..).zip(numbers) {
        let (client, server) = open(listener, number)?;
        accepted += 1;
        // A reset leaves nothing behind that waits.
        setsockopt(&client, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop((client, server));
        if done % BATCH == 0 {
            pace(begun, done, CONNECTIONS_A_SECOND);
        }
    }
    Ok(accepted)
}

/// Both ends of a connection to an address of its own.
fn open(listener: &TcpListener, number: u32) -> io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(address(number, listener.local_addr()?.port()))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}
