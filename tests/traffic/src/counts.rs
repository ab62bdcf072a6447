//! The program's own counts. The thread that holds a connection adds the results of its system calls when they return.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::protocol::{ClientCounts, Failures, Outcome, Report, ServerCounts};

/// Counters of one target, of one port and peer, or of one run.
#[derive(Debug, Default)]
pub struct Tally {
    /// Successful calls of `connect()` or `accept()`.
    pub opened: AtomicU64,
    /// Calls of `close()`.
    pub closed: AtomicU64,
    /// See [`Failures`].
    pub refused: AtomicU64,
    /// See [`Failures`].
    pub timed_out: AtomicU64,
    /// See [`Failures`].
    pub unreachable: AtomicU64,
    /// See [`Failures`].
    pub other: AtomicU64,
    /// See [`Outcome::not_attempted`].
    pub not_attempted: AtomicU64,
    /// See [`Outcome::broken`].
    pub broken: AtomicU64,
    /// Payload that `write()` accepted, in bytes.
    pub sent: AtomicU64,
    /// Payload that `read()` returned, in bytes.
    pub received: AtomicU64,
}

impl Tally {
    fn failures(&self) -> Failures {
        Failures {
            refused: self.refused.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            unreachable: self.unreachable.load(Relaxed),
            other: self.other.load(Relaxed),
        }
    }

    // Reads `closed` first: otherwise a connection that opens and closes in between would make the difference negative.
    fn opened_and_open(&self) -> (u64, u64) {
        let closed = self.closed.load(Relaxed);
        let opened = self.opened.load(Relaxed);
        (opened, opened.saturating_sub(closed))
    }

    /// Returns this tally as a run's outcome, without its time and first error.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome {
            opened: self.opened.load(Relaxed),
            failed: self.failures(),
            not_attempted: self.not_attempted.load(Relaxed),
            broken: self.broken.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            began_unix_micros: 0,
            micros: 0,
            first_error: None,
        }
    }
}

/// Tallies that count one connection: that of its target or peer, and that of its run, if it has one.
#[derive(Clone, Debug)]
pub struct Tallies {
    lasting: Arc<Tally>,
    run: Option<Arc<Tally>>,
}

impl Tallies {
    /// Adds `n` to one counter of each tally.
    pub fn add(&self, counter: impl Fn(&Tally) -> &AtomicU64, n: u64) {
        counter(&self.lasting).fetch_add(n, Relaxed);
        if let Some(run) = &self.run {
            counter(run).fetch_add(n, Relaxed);
        }
    }

    /// Returns the tallies of the same target or peer in another run.
    #[must_use]
    pub fn in_run(&self, run: &Arc<Tally>) -> Self {
        Self { lasting: Arc::clone(&self.lasting), run: Some(Arc::clone(run)) }
    }
}

/// All tallies of the program.
#[derive(Debug, Default)]
pub struct Counts {
    clients: Mutex<BTreeMap<SocketAddr, Arc<Tally>>>,
    servers: Mutex<BTreeMap<(u16, IpAddr), Arc<Tally>>>,
    /// See [`Report::accept_errors`].
    pub accept_errors: AtomicU64,
}

impl Counts {
    /// Returns the tallies of connections to this target.
    pub fn client(&self, target: SocketAddr, run: &Arc<Tally>) -> Tallies {
        let target = SocketAddr::new(target.ip().to_canonical(), target.port());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Tallies { lasting: Arc::clone(clients.entry(target).or_default()), run: Some(Arc::clone(run)) }
    }

    /// Returns the tallies of connections from this peer to this port.
    pub fn server(&self, port: u16, peer: IpAddr) -> Tallies {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        Tallies { lasting: Arc::clone(servers.entry((port, peer.to_canonical())).or_default()), run: None }
    }

    /// Returns the current counts.
    pub fn report(&self) -> Report {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            clients: clients.iter().map(|(target, tally)| client_counts(*target, tally)).collect(),
            servers: servers.iter().map(|((port, peer), tally)| server_counts(*port, *peer, tally)).collect(),
            echoes: Vec::new(),
            accept_errors: self.accept_errors.load(Relaxed),
        }
    }
}

fn client_counts(target: SocketAddr, tally: &Tally) -> ClientCounts {
    let (opened, open) = tally.opened_and_open();
    ClientCounts {
        target,
        opened,
        open,
        failed: tally.failures(),
        not_attempted: tally.not_attempted.load(Relaxed),
        broken: tally.broken.load(Relaxed),
        sent: tally.sent.load(Relaxed),
        received: tally.received.load(Relaxed),
    }
}

fn server_counts(port: u16, peer: IpAddr, tally: &Tally) -> ServerCounts {
    let (opened, open) = tally.opened_and_open();
    ServerCounts {
        port,
        peer,
        opened,
        open,
        broken: tally.broken.load(Relaxed),
        sent: tally.sent.load(Relaxed),
        received: tally.received.load(Relaxed),
    }
}
