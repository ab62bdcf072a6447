//! Netlink sockets, and how one gets into another network namespace: a socket stays where it was made.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt::{RcvBuf, RcvBufForce},
    },
};

use super::codec::{Message, messages};

/// The kernel hands out at most 32 KiB at a time.
const BUFFER: usize = 64 * 1024;

/// A netlink socket of one network namespace. It keeps the namespace alive.
#[derive(Debug)]
pub(in crate::capture::fallback) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// A socket in the caller's network namespace that has joined these multicast groups (a bit each).
    pub(in crate::capture::fallback) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// A socket in the network namespace at this path, to which the calling thread goes and from which it comes back.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` without `SYS_PTRACE` (to open another's namespace) and `SYS_ADMIN` (to enter it).
    pub(in crate::capture::fallback) fn open_in(
        namespace: &Path,
        protocol: SockProtocol,
        groups: u32,
    ) -> io::Result<Self> {
        let (namespace, home) = (File::open(namespace)?, File::open("/proc/thread-self/ns/net")?);
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let opened = Self::open(protocol, groups);
        // Staying there would keep the namespace alive.
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        opened
    }

    /// Asks for a receive buffer of this size, beyond the system's limit where `NET_ADMIN` allows it.
    pub(in crate::capture::fallback) fn grow(&self, bytes: usize) {
        if setsockopt(&self.socket, RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(&self.socket, RcvBuf, &bytes);
        }
    }

    /// Sends a request to list something and hands out what comes. Returns whether the list may have holes, as
    /// something changed meanwhile.
    pub(in crate::capture::fallback) fn dump(
        &self,
        request: &[u8],
        buffer: &mut Buffer,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        send(self.socket.as_raw_fd(), request, MsgFlags::empty())?;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer.0, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received?,
            };
            for message in messages(buffer.0.get(..length).unwrap_or_default()) {
                match message {
                    Message::Data { body, .. } => each(body),
                    Message::Done { interrupted } => return Ok(interrupted),
                    Message::Error(0) => {}
                    Message::Error(number) => return Err(io::Error::from_raw_os_error(number)),
                }
            }
        }
    }

    /// Hands out what has come without being asked for; `false` where nothing has.
    ///
    /// # Errors
    /// `ENOBUFS` where the socket's queue has overflowed since the last call.
    pub(in crate::capture::fallback) fn receive(
        &self,
        buffer: &mut Buffer,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<bool, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer.0, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error),
                Ok(length) => {
                    messages(buffer.0.get(..length).unwrap_or_default()).for_each(&mut each);
                    return Ok(true);
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for what the kernel sends.
pub(in crate::capture::fallback) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(in crate::capture::fallback) fn new() -> Self {
        Self(vec![0; BUFFER].into_boxed_slice())
    }
}
