//! One network namespace, and how it is looked at.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use topology::flow::Methods;

use super::{
    netlink::Buffer,
    proc_net::{self, TcpCounter, TcpCounts},
    sock_diag::SockDiag,
    socket::Dump,
};

/// A namespace in which nothing opens or closes is looked at this seldom, for what its connections transfer.
const REFRESH: Duration = Duration::from_secs(30);

/// How the sockets of a namespace are listed.
#[derive(Debug)]
enum Table {
    SockDiag(SockDiag),
    Procfs,
}

/// One namespace.
#[derive(Debug)]
pub(super) struct Source {
    table: Table,
    counter: Option<TcpCounter>,
    /// What it had counted before the latest look.
    counts: Option<TcpCounts>,
    looked: Option<Instant>,
    /// It was there when the capture began.
    pub(super) is_old: bool,
    pub(super) passes: u32,
}

impl Source {
    /// Of the namespace of a process; by netlink where that is possible.
    pub(super) fn open(process: &Path, is_old: bool) -> io::Result<Self> {
        let table = match SockDiag::open_in(&process.join("ns/net")) {
            Ok(sock_diag) => Table::SockDiag(sock_diag),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "no sock_diag in the namespace of {}", process.display());
                Table::Procfs
            }
        };
        Ok(Self { table, counter: TcpCounter::open(process).ok(), counts: None, looked: None, is_old, passes: 0 })
    }

    pub(super) fn methods(&self) -> Methods {
        match self.table {
            Table::SockDiag(_) => Methods::SOCK_DIAG,
            Table::Procfs => Methods::PROCFS,
        }
    }

    /// What the namespace has counted so far.
    pub(super) fn counts(&self) -> Option<TcpCounts> {
        self.counter.as_ref()?.read().ok()
    }

    /// Whether this is the first look.
    pub(super) fn is_new(&self) -> bool {
        self.looked.is_none()
    }

    /// Whether a look can show something new.
    pub(super) fn is_due(&self, counts: Option<TcpCounts>, now: Instant) -> bool {
        counts.is_none() || counts != self.counts || self.looked.is_none_or(|looked| now - looked >= REFRESH)
    }

    /// Lists everything that is open, by a process of the namespace where netlink is refused.
    pub(super) fn look(
        &mut self,
        counts: Option<TcpCounts>,
        processes: impl Iterator<Item = std::path::PathBuf>,
        buffer: &mut Buffer,
    ) -> io::Result<Dump> {
        let dump = match &mut self.table {
            Table::SockDiag(sock_diag) => match sock_diag.dump(buffer) {
                Ok(dump) => Ok(dump),
                Err(error) => {
                    tracing::warn!(%error, "sock_diag failed; a namespace is read from /proc from now on");
                    self.table = Table::Procfs;
                    by_proc(processes)
                }
            },
            Table::Procfs => by_proc(processes),
        }?;
        self.looked = Some(Instant::now());
        self.counts = counts;
        Ok(dump)
    }
}

fn by_proc(processes: impl Iterator<Item = std::path::PathBuf>) -> io::Result<Dump> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for process in processes.take(3) {
        match proc_net::dump(&process) {
            Ok(dump) => return Ok(dump),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}
