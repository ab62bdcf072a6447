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
use traffic::script::step::{StepAnswer, StreamAction};

use super::Process;

/// Answers the kernel's measurements of a connection.
pub(super) fn measure(stream: &TcpStream) -> io::Result<StepAnswer> {
    tcp_info(stream).map(|info| StepAnswer::Measured { rtt_us: info.rtt, retransmits: info.retransmits })
}

/// Waits until the peer has acknowledged everything that was sent.
pub(super) fn await_acknowledged(stream: &TcpStream) -> io::Result<()> {
    wait("everything is acknowledged", || Ok(tcp_info(stream)?.unacknowledged == 0))
}

/// Waits until the kernel has retransmitted this number of segments.
pub(super) fn await_retransmits(stream: &TcpStream, wanted: u32) -> io::Result<()> {
    wait("segments are retransmitted", || Ok(tcp_info(stream)?.retransmits >= wanted))
}

/// Delays the next acknowledgement.
pub(super) fn delay_acknowledgement(stream: &TcpStream) -> io::Result<()> {
    set(stream, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &0)
}

/// Attaches a socket filter that drops every packet that arrives.
pub(super) fn drop_incoming(socket: &impl AsRawFd) -> io::Result<()> {
    const DROP: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let mut drop_all = [DROP];
    let program = libc::sock_fprog { len: 1, filter: drop_all.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Detaches the filter of [`drop_incoming`].
pub(super) fn accept_incoming(socket: &impl AsRawFd) -> io::Result<()> {
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

fn wait(condition: &str, until: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !until()? {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("waited 2 minutes until {condition}")));
        }
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
    /// Adds the measurements of another socket, as [`Process::measure`] returns them. Returns its part.
    pub fn add(&mut self, (rtt, retransmits): (u32, u32)) -> Self {
        let mut one = Self { retransmits: retransmits.into(), rtt: RttHistogram::default() };
        // 0 stands for none.
        if rtt > 0 {
            one.rtt.add(RttBucket::of(rtt));
        }
        *self = Self { retransmits: self.retransmits + one.retransmits, rtt: self.rtt.plus(&one.rtt) };
        one
    }
}

/// Opens a connection and lets its ends cause the measurements that the name states.
pub fn open(client: &mut Process, server: &mut Process, port: u16, name: &str) {
    client.connect(name, format_args!("127.0.0.1:{port}"));
    server.accept(name, "l");
    match name {
        "prompt" => {
            pass(client, server, name, 100);
            pass(server, client, name, 200);
        }
        "late" => {
            for _ in 0..8 {
                server.act("late", StreamAction::DelayAcknowledgement);
                client.send_bytes("late", 1);
                client.act("late", StreamAction::AwaitAcknowledged);
            }
            server.receive_bytes("late", 8);
        }
        "clients-again" | "open" => lose_and_pass(client, server, name, 2),
        "servers-again" => lose_and_pass(server, client, name, 1),
        "silent" => {}
        other => panic!("{other}"),
    }
    for end in [client, server] {
        end.act(name, StreamAction::AwaitAcknowledged);
    }
}

fn pass(from: &mut Process, to: &mut Process, name: &str, bytes: usize) {
    from.send_bytes(name, bytes);
    to.receive_bytes(name, bytes);
}

/// As [`pass`], where the receiver drops the first segments.
fn lose_and_pass(from: &mut Process, to: &mut Process, name: &str, times: u32) {
    to.act(name, StreamAction::DropIncoming);
    from.send_bytes(name, 3000);
    from.act(name, StreamAction::AwaitRetransmits(times));
    to.act(name, StreamAction::AcceptIncoming);
    to.receive_bytes(name, 3000);
}
