//! Connections step by step: handshakes that wait, ports that are chosen, sockets that are used again.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket, sockopt,
    },
};

use super::measures;

/// Listens with room for so many connections that wait to be accepted; the kernel lets one more in.
pub(super) fn listen_with_room(address: &str, room: i32) -> io::Result<TcpListener> {
    let address = parsed(address);
    let socket = tcp_socket(address)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(room)?)?;
    Ok(socket.into())
}

/// Begins to connect, from a port that is chosen now, or by `connect()`. Does not give up for ten minutes.
pub(super) fn dial(address: &str, from: Option<&str>) -> io::Result<TcpStream> {
    const SYNS: i32 = 12;
    let to = parsed(address);
    let socket = tcp_socket(to)?;
    measures::set(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &SYNS)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(parsed(from)))?;
    }
    let stream = TcpStream::from(socket);
    redial(&stream, address)?;
    Ok(stream)
}

/// Begins to connect with a socket whose connection or attempt is over.
pub(super) fn redial(stream: &TcpStream, address: &str) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let to = SockaddrStorage::from(parsed(address));
    loop {
        match connect(stream.as_raw_fd(), &to) {
            Ok(()) | Err(Errno::EINPROGRESS) => return Ok(()),
            // The last that is heard of an attempt that has failed.
            Err(Errno::ECONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for what comes of an attempt: `connected` or `failed`.
pub(super) fn outcome(stream: &TcpStream) -> io::Result<String> {
    let fd = std::os::fd::AsFd::as_fd(stream);
    while poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE)? == 0 {}
    stream.set_nonblocking(false)?;
    Ok(String::from(if stream.take_error()?.is_none() { "connected" } else { "failed" }))
}

/// Ends the connection; the socket can be used again.
pub(super) fn disconnect(stream: &TcpStream) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC.cast_unsigned().try_into().unwrap(), sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap();
    // SAFETY: an address of that length.
    #[expect(unsafe_code, reason = "nix knows no address of AF_UNSPEC")]
    let result = unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) };
    Errno::result(result)?;
    Ok(())
}

fn parsed(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}
