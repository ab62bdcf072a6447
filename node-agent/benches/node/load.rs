//! Load over the loopback, made by a child process in the cgroup that is observed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

const REQUEST: usize = 100;
const RESPONSE: usize = 1000;

/// Payload that is written at a time to a stream, in bytes.
const MEGABYTE: usize = 1_000_000;
/// Payload of a datagram, in bytes.
const DATAGRAM: usize = 18;
/// Datagrams that are sent before the receiver takes them: they fit into its buffer.
const WINDOW: u64 = 32;
/// Sockets of [`Work::UdpInTurn`].
const SENDERS: usize = 8;

/// Kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Connections with a request and a response, of which the client closes first (FIN).
    Fin,
    /// Connections with a request and a response, which the client resets (RST).
    Rst,
    /// Datagrams of one conversation.
    Udp,
    /// Datagrams of [`SENDERS`] sockets in turn to one socket.
    UdpInTurn,
    /// Megabytes in one direction of one connection.
    Bulk,
    /// Requests and responses on one connection, one after the other.
    Exchange,
}

impl Work {
    /// Those that docs/performance.md has.
    pub const ALL: [Self; 5] = [Self::Fin, Self::Rst, Self::Udp, Self::Bulk, Self::Exchange];

    /// Returns the work of this name.
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().chain([Self::UdpInTurn]).find(|work| format!("{work:?}") == name).unwrap()
    }

    /// Returns how many of these take about as long as so many connections.
    pub fn count(self, connections: u64) -> u64 {
        match self {
            Self::Fin | Self::Rst => connections,
            Self::Udp | Self::UdpInTurn => 8 * connections,
            Self::Bulk => connections / 8,
            Self::Exchange => 2 * connections,
        }
    }
}

/// Child process that makes connections on request.
pub struct Load {
    child: Child,
}

impl Load {
    /// Starts the process in a cgroup.
    pub fn start(cgroup: &Path, work: Work) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["load", &format!("{work:?}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self { child }
    }

    /// Begins so many connections, datagrams, megabytes or exchanges.
    pub fn begin(&mut self, count: u64) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{count}").unwrap();
    }

    /// Waits until they are done; returns the time that it took.
    pub fn end(&mut self) -> Duration {
        let mut line = String::new();
        let mut output = BufReader::with_capacity(1, self.child.stdout.as_mut().unwrap());
        output.read_line(&mut line).unwrap();
        Duration::from_nanos(line.trim().parse().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The child's main function: does as much as each line of the input says.
pub fn run(work: &str) {
    for line in std::io::stdin().lock().lines() {
        let count: u64 = line.unwrap().parse().unwrap();
        let begun = Instant::now();
        match work {
            "Udp" => send_datagrams(count),
            "UdpInTurn" => send_datagrams_in_turn(count),
            "Bulk" => transfer(count),
            "Exchange" => exchange(count),
            _ => connect(count, work == "Rst"),
        }
        println!("{}", begun.elapsed().as_nanos());
    }
}

fn send_datagrams(count: u64) {
    let [one, other] = [(), ()].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    one.connect(other.local_addr().unwrap()).unwrap();
    other.connect(one.local_addr().unwrap()).unwrap();
    for _ in 0..count / WINDOW {
        (0..WINDOW).for_each(|_| _ = one.send(&[1; DATAGRAM]).unwrap());
        (0..WINDOW).for_each(|_| _ = other.recv(&mut [0; DATAGRAM]).unwrap());
    }
}

fn send_datagrams_in_turn(count: u64) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = receiver.local_addr().unwrap();
    let senders = [(); SENDERS].map(|()| {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(address).unwrap();
        sender
    });
    let window = usize::try_from(WINDOW).unwrap();
    for _ in 0..count / WINDOW {
        senders.iter().cycle().take(window).for_each(|sender| _ = sender.send(&[1; DATAGRAM]).unwrap());
        (0..WINDOW).for_each(|_| _ = receiver.recv(&mut [0; DATAGRAM]).unwrap());
    }
}

/// Returns both ends of a connection.
fn pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [client, listener.accept().unwrap().0]
}

fn transfer(megabytes: u64) {
    let [mut client, mut server] = pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; MEGABYTE];
            while server.read(&mut buffer).unwrap() > 0 {}
        });
        let megabyte = vec![1; MEGABYTE];
        (0..megabytes).for_each(|_| client.write_all(&megabyte).unwrap());
        drop(client);
    });
}

fn exchange(times: u64) {
    let [mut client, mut server] = pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..times {
                server.read_exact(&mut [0; REQUEST]).unwrap();
                server.write_all(&[1; RESPONSE]).unwrap();
            }
        });
        for _ in 0..times {
            client.write_all(&[1; REQUEST]).unwrap();
            client.read_exact(&mut [0; RESPONSE]).unwrap();
        }
    });
}

fn connect(connections: u64, resets: bool) {
    // A port of its own for each load: no pair of ports is still in TIME_WAIT.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| (0..connections).for_each(|_| serve(listener.accept().unwrap().0)));
        for _ in 0..connections {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[1; REQUEST]).unwrap();
            stream.read_exact(&mut [0; RESPONSE]).unwrap();
            if resets {
                setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            }
        }
    });
}

fn serve(mut stream: TcpStream) {
    stream.read_exact(&mut [0; REQUEST]).unwrap();
    stream.write_all(&[1; RESPONSE]).unwrap();
    // An end or a reset.
    let _ = stream.read(&mut [0]);
}
