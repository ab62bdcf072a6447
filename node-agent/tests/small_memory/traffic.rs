//! A process with a network namespace of its own that talks to many addresses of its loopback, and counts.

use std::{
    fs,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::cgroups::Machine;

/// So many at a time, at this rate: more new flows come than the kernel's table has room for.
const BATCH: u32 = 50;
const CONVERSATIONS_A_SECOND: u32 = 10_500;
const CONNECTIONS_A_SECOND: u32 = 2_000;

/// Environment variable with the plan for [`play`].
const PLAN: &str = "SCOPEPROBE_SMALL_MEMORY_PLAN";

/// Plan of the traffic; both ends are the process's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Conversations of datagrams, each with an address of its own.
    pub conversations: u32,
    /// Short connections, each to an address of its own.
    pub connections: u32,
    /// Connections before these, each to an address of its own, that stay open until all is over.
    pub held: u32,
}

/// True counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truth {
    pub udp: u64,
    pub tcp: u64,
}

/// Runs the process to its end.
pub async fn make(machine: &Machine, plan: Plan) -> Truth {
    let mut process = machine.in_traffics_cgroup("unshare");
    process
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap());
    process.args(["--exact", "traffic_process", "--ignored", "--nocapture", "--test-threads=1"]);
    process.env(PLAN, format!("{} {} {}", plan.conversations, plan.connections, plan.held));
    let mut process = process.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = process.stdout.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        output.read_to_string(&mut said).map(|_| said)
    });
    let said = said.await.unwrap().unwrap();
    assert!(process.wait().unwrap().success(), "{said}");
    let numbers = said.lines().find_map(|line| line.split_once("@ ")).unwrap().1;
    let (udp, tcp) = numbers.trim().split_once(' ').unwrap();
    Truth { udp: udp.parse().unwrap(), tcp: tcp.parse().unwrap() }
}

/// Executes the plan in the process; `itself` is its directory in `/proc`.
pub fn play(itself: &Path) {
    let interfaces = fs::read_to_string(itself.join("net/dev")).unwrap().lines().skip(2).count();
    assert_eq!(interfaces, 1, "the loopback of its own network namespace alone");
    let plan = std::env::var(PLAN).expect("a plan");
    let numbers: Vec<u32> = plan.split(' ').map(|number| number.parse().unwrap()).collect();
    let [conversations, connections, held] = numbers[..] else { panic!("{plan}") };
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let open: Vec<_> = (0..held).map(|number| open(&listener, number).unwrap()).collect();
    let (udp, tcp) = thread::scope(|scope| {
        let converse = scope.spawn(|| converse(conversations).unwrap());
        let connect = scope.spawn(|| connect(&listener, held..held + connections).unwrap());
        (converse.join().unwrap(), connect.join().unwrap())
    });
    println!("@ {udp} {}", tcp + open.len() as u64);
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
