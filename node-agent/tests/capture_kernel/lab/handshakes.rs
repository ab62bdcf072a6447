//! Connections step by step: handshakes that wait, ports that are chosen, sockets that are used again.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, listen, setsockopt,
        socket, sockopt,
    },
};

use super::measures;

/// Listens with an accept queue of this length; the kernel admits one more.
pub(super) fn listen_with_backlog(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(backlog)?)?;
    Ok(socket.into())
}

/// Listens at 127.0.0.1 for MPTCP, which is TCP with clients that do not support it.
#[expect(unsafe_code, reason = "nix has no MPTCP")]
pub(super) fn listen_mptcp() -> io::Result<TcpListener> {
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP);
        Errno::result(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket.into())
}

/// Sends a SYN, from this local address or one that `connect()` chooses. The kernel retransmits it for ten minutes.
pub(super) fn start_connect(target: SocketAddr, local: Option<SocketAddr>) -> io::Result<TcpStream> {
    const SYNS: i32 = 12;
    let socket = tcp_socket(target)?;
    measures::set(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &SYNS)?;
    if let Some(local) = local {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
    }
    let stream = TcpStream::from(socket);
    connect_again(&stream, target)?;
    Ok(stream)
}

/// Sends a SYN with a socket that has no connection, or no longer has one.
pub(super) fn connect_again(stream: &TcpStream, target: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let target = SockaddrStorage::from(target);
    loop {
        match connect(stream.as_raw_fd(), &target) {
            Ok(()) | Err(Errno::EINPROGRESS) => return Ok(()),
            // Reports the end of an attempt that has failed.
            Err(Errno::ECONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for the end of a handshake, and returns whether it succeeded.
pub(super) fn await_handshake(stream: &TcpStream) -> io::Result<bool> {
    let fd = std::os::fd::AsFd::as_fd(stream);
    while poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE)? == 0 {}
    stream.set_nonblocking(false)?;
    Ok(stream.take_error()?.is_none())
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

fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}
