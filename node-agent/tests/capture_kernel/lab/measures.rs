//! TCP measurements of a connection: caused by the ends' actions, and read from the sockets.

use std::{
    io,
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::libc;
use topology::rtt::{RttBucket, RttHistogram};

use super::Process;

/// Executes a command in the process that holds the socket.
pub(super) fn act(stream: &TcpStream, words: &[&str]) -> io::Result<String> {
    match words[0] {
        // `measured STREAM`
        "measured" => return tcp_info(stream).map(|info| format!("{} {}", info.rtt, info.retransmits)),
        // `acknowledged STREAM`: until everything that was sent is.
        "acknowledged" => wait(|| Ok(tcp_info(stream)?.unacknowledged == 0))?,
        // `resent STREAM N`: until so many segments were sent again.
        "resent" => {
            let wanted: u32 = words[2].parse().unwrap();
            wait(|| Ok(tcp_info(stream)?.retransmits >= wanted))?;
        }
        // `deafen STREAM`, `hear STREAM`
        "deafen" => deafen(stream)?,
        "hear" => hear(stream)?,
        // `delay STREAM`: the next acknowledgement comes late.
        _ => set(stream, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &0)?,
    }
    Ok(String::from("done"))
}

/// Has the socket drop what comes in, as if it had never come.
pub(super) fn deafen(socket: &impl AsRawFd) -> io::Result<()> {
    const DROP: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let mut drop_all = [DROP];
    let program = libc::sock_fprog { len: 1, filter: drop_all.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// The opposite.
pub(super) fn hear(socket: &impl AsRawFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
}

struct TcpInfo {
    unacknowledged: u32,
    rtt: u32,
    retransmits: u32,
}

/// `struct tcp_info` of `linux/tcp.h`.
fn tcp_info(stream: &TcpStream) -> io::Result<TcpInfo> {
    let mut info = [0_u32; 26];
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
    // SAFETY: a buffer of that length, in which any bytes are a value.
    #[expect(unsafe_code, reason = "nix knows no TCP_INFO")]
    let result = unsafe {
        let buffer = info.as_mut_ptr().cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, buffer, &raw mut length)
    };
    nix::errno::Errno::result(result)?;
    assert_eq!(length as usize, size_of_val(&info));
    Ok(TcpInfo { unacknowledged: info[6], rtt: info[17], retransmits: info[25] })
}

/// Sets an option that nix does not know.
pub(super) fn set<T>(socket: &impl AsRawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: a value of that length, which the kernel copies.
    #[expect(unsafe_code, reason = "nix knows none of these options")]
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

fn wait(until: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !until()? {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Measurements of the sockets of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    pub retransmits: u64,
    pub rtt: RttHistogram,
}

impl Measured {
    /// With what another socket says, by the answer to `measured`. Returns its own part.
    pub fn add(&mut self, said: &str) -> Self {
        let (rtt, retransmits) = said.split_once(' ').unwrap();
        let mut one = Self { retransmits: retransmits.parse().unwrap(), rtt: RttHistogram::default() };
        // 0 stands for none.
        if let Some(rtt) = Some(rtt.parse().unwrap()).filter(|rtt| *rtt > 0) {
            one.rtt.add(RttBucket::of(rtt));
        }
        *self = Self { retransmits: self.retransmits + one.retransmits, rtt: self.rtt.plus(&one.rtt) };
        one
    }
}

/// Opens a connection and lets its ends do something of which they measure something.
pub fn open(client: &mut Process, server: &mut Process, port: u16, name: &str) {
    client.tell(&format!("connect {name} 127.0.0.1:{port}"));
    server.tell(&format!("accept {name} l"));
    match name {
        "prompt" => {
            pass(client, server, name, 100);
            pass(server, client, name, 200);
        }
        "late" => {
            for _ in 0..8 {
                server.tell("delay late");
                client.tell("send late 1");
                client.tell("acknowledged late");
            }
            server.tell("receive late 8");
        }
        "clients-again" | "open" => lose_and_pass(client, server, name, 2),
        "servers-again" => lose_and_pass(server, client, name, 1),
        "silent" => {}
        other => panic!("{other}"),
    }
    for end in [client, server] {
        end.tell(&format!("acknowledged {name}"));
    }
}

fn pass(from: &mut Process, to: &mut Process, name: &str, bytes: u32) {
    from.tell(&format!("send {name} {bytes}"));
    to.tell(&format!("receive {name} {bytes}"));
}

/// The same, where the first ones are not heard.
fn lose_and_pass(from: &mut Process, to: &mut Process, name: &str, times: u32) {
    to.tell(&format!("deafen {name}"));
    from.tell(&format!("send {name} 3000"));
    from.tell(&format!("resent {name} {times}"));
    to.tell(&format!("hear {name}"));
    to.tell(&format!("receive {name} 3000"));
}
