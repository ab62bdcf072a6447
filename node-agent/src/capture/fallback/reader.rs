//! Scans the sockets of one network namespace.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use topology::flow::Methods;

use super::{
    netlink::{sock_diag::SockDiag, socket::Buffer},
    proc_net,
    socket::{Dump, Listener},
};
use crate::capture::proc::tcp_counters::{TcpCounter, TcpCounts};

/// Interval between scans of a namespace in which nothing opens or closes: these update bytes only.
const REFRESH: Duration = Duration::from_secs(30);

/// Method of listing a namespace's sockets.
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
    /// Counters before the latest scan.
    counts: Option<TcpCounts>,
    scanned_at: Option<Instant>,
    /// CPU that the latest scan took.
    pub(super) cost: Duration,
    /// True if the latest pass found that a scan could show something new.
    pub(super) changes: bool,
    /// Time up to which everything in it is known that scans can show.
    pub(super) known_until: Instant,
    /// It was there when the capture began.
    pub(super) is_old: bool,
    pub(super) passes: u32,
    /// Default owner of its connections at the latest scan.
    pub(super) owner: Option<u64>,
}

impl Source {
    /// Of the namespace of these processes; by netlink where one of them lets us in.
    pub(super) fn open(processes: &[PathBuf], is_old: bool) -> io::Result<Self> {
        let mut table = Err(io::Error::from(io::ErrorKind::NotFound));
        for process in processes {
            table = match SockDiag::open_in(&process.join("ns/net")) {
                Ok(sock_diag) => Ok(Table::SockDiag(sock_diag)),
                // Gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => table,
                Err(_) => Ok(Table::Procfs),
            };
            if matches!(table, Ok(Table::SockDiag(_))) {
                break;
            }
        }
        let counter = processes.iter().find_map(|process| TcpCounter::open(process).ok());
        Ok(Self {
            table: table?,
            counter,
            counts: None,
            scanned_at: None,
            cost: Duration::ZERO,
            changes: false,
            known_until: Instant::now(),
            is_old,
            passes: 0,
            owner: None,
        })
    }

    pub(super) fn methods(&self) -> Methods {
        match self.table {
            Table::SockDiag(_) => Methods::SOCK_DIAG,
            Table::Procfs => Methods::PROCFS,
        }
    }

    /// Returns the namespace's counters so far.
    pub(super) fn counts(&self) -> Option<TcpCounts> {
        self.counter.as_ref()?.read().ok()
    }

    /// Returns whether this is the first scan.
    pub(super) fn is_new(&self) -> bool {
        self.scanned_at.is_none()
    }

    /// Returns whether a scan can show something new.
    pub(super) fn is_due(&self, counts: Option<TcpCounts>, now: Instant) -> bool {
        counts.is_none()
            || counts != self.counts
            || self.scanned_at.is_none_or(|scanned_at| now - scanned_at >= REFRESH)
    }

    /// Returns whether the latest scan was less than this ago.
    pub(super) fn is_early(&self, now: Instant, spacing: Duration) -> bool {
        self.scanned_at.is_some_and(|scanned_at| now.saturating_duration_since(scanned_at) < spacing)
    }

    /// Lists everything that is open, by a process of the namespace where netlink is refused.
    pub(super) fn scan(
        &mut self,
        counts: Option<TcpCounts>,
        processes: impl Iterator<Item = PathBuf> + Clone,
        buffer: &mut Buffer,
    ) -> io::Result<Dump> {
        let mut dump = match &mut self.table {
            Table::SockDiag(sock_diag) => match sock_diag.dump(buffer) {
                Ok(dump) => Ok(dump),
                Err(error) => {
                    tracing::warn!(%error, "sock_diag failed; a namespace is read from /proc from now on");
                    self.table = Table::Procfs;
                    by_proc(processes.clone(), proc_net::dump)
                }
            },
            Table::Procfs => by_proc(processes.clone(), proc_net::dump),
        }?;
        // The kernel lists listeners first: one that opened after that is not among them, but its connections may be.
        if counts.is_none() || self.counts() != counts {
            match self.listeners(processes, buffer) {
                Ok(listeners) => dump.add_listeners(listeners),
                // The roles of connections without a known listener are marked as inferred.
                Err(error) => tracing::debug!(%error, "can't list the listeners of a network namespace again"),
            }
        }
        self.scanned_at = Some(Instant::now());
        self.counts = counts;
        Ok(dump)
    }

    /// Lists the listening sockets alone.
    fn listeners(
        &mut self,
        processes: impl Iterator<Item = PathBuf>,
        buffer: &mut Buffer,
    ) -> io::Result<Vec<Listener>> {
        match &mut self.table {
            Table::SockDiag(sock_diag) => sock_diag.listeners(buffer),
            Table::Procfs => by_proc(processes, proc_net::listeners),
        }
    }
}

/// Reads by the first process that is still there.
fn by_proc<T>(processes: impl Iterator<Item = PathBuf>, read: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for process in processes.take(3) {
        match read(&process) {
            Ok(found) => return Ok(found),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}
