//! Makes the connections of a [`Connect`] plan.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use crate::{
    conversation::Conversation,
    counts::{Counts, Tallies, Tally},
    held::Held,
    program::spawn_scoped,
    protocol::{Connect, Outcome},
    runs::FirstError,
    stopwatch::Stopwatch,
};

/// Makes the connections until all are made or `stopped` says so.
pub fn run(plan: &Connect, counts: &Counts, held: &Held, stopped: &AtomicBool) -> Outcome {
    let tally = Arc::new(Tally::default());
    let worker = Worker {
        plan,
        tallies: counts.client(plan.target, &tally),
        held,
        stopped,
        begun: AtomicU64::new(0),
        first_error: FirstError::default(),
    };
    let stopwatch = Stopwatch::start();
    thread::scope(|scope| {
        // Fewer threads where the system gives no more: the connections are made all the same, by those that are there.
        for _ in 1..u64::from(plan.concurrency).min(plan.count) {
            if spawn_scoped(scope, || worker.work()).is_err() {
                break;
            }
        }
        worker.work();
    });
    stopwatch.time(Outcome { first_error: worker.first_error.take(), ..tally.outcome() })
}

struct Worker<'a> {
    plan: &'a Connect,
    tallies: Tallies,
    held: &'a Held,
    stopped: &'a AtomicBool,
    begun: AtomicU64,
    first_error: FirstError,
}

impl Worker<'_> {
    fn work(&self) {
        while !self.stopped.load(Relaxed) && self.begun.fetch_add(1, Relaxed) < self.plan.count {
            let begin = Instant::now();
            self.once();
            let every = Duration::from_millis(self.plan.every_ms);
            if let Some(rest) = every.checked_sub(begin.elapsed()) {
                thread::sleep(rest);
            }
        }
    }

    fn once(&self) {
        let stream = match self.connect() {
            Ok(stream) => stream,
            Err(attempt) => return self.count_failure(&attempt),
        };
        let conversation = Conversation::begin(stream, self.tallies.clone());
        if let Err(error) = self.converse(conversation) {
            self.tallies.add(|tally| &tally.broken, 1);
            self.first_error.set(|| format!("a connection to {} broke: {error}", self.plan.target));
        }
    }

    fn converse(&self, conversation: Conversation) -> io::Result<()> {
        conversation.exchange(self.plan.send, self.plan.receive)?;
        thread::sleep(Duration::from_millis(self.plan.pause_ms));
        match &self.plan.hold {
            Some(name) => {
                self.held.put(name, conversation);
                Ok(())
            }
            None => conversation.end(self.plan.end),
        }
    }

    fn connect(&self) -> Result<TcpStream, Attempt> {
        let socket = self.prepare().map_err(Attempt::NotMade)?;
        match socket.connect(&self.plan.target.into()) {
            Ok(()) => Ok(socket.into()),
            // No local port was left: nothing was sent.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Err(Attempt::NotMade(error)),
            Err(error) => Err(Attempt::Failed(error)),
        }
    }

    fn prepare(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.plan.target), Type::STREAM, None)?;
        // On Linux the time to send also limits connect(), which then says EINPROGRESS.
        let timeout = Some(Duration::from_millis(self.plan.timeout_ms));
        socket.set_write_timeout(timeout)?;
        socket.set_read_timeout(timeout)?;
        if let Some(ip) = self.plan.bind {
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        Ok(socket)
    }

    fn count_failure(&self, attempt: &Attempt) {
        let (Attempt::NotMade(error) | Attempt::Failed(error)) = attempt;
        self.tallies.add(|tally| attempt.counter(tally), 1);
        self.first_error.set(|| format!("cannot connect to {}: {error}", self.plan.target));
    }
}

enum Attempt {
    NotMade(io::Error),
    Failed(io::Error),
}

impl Attempt {
    fn counter<'a>(&self, tally: &'a Tally) -> &'a AtomicU64 {
        match self {
            Self::NotMade(_) => &tally.not_attempted,
            Self::Failed(error) => match error.kind() {
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => &tally.refused,
                ErrorKind::TimedOut | ErrorKind::WouldBlock => &tally.timed_out,
                ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => &tally.unreachable,
                _ if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => &tally.timed_out,
                _ => &tally.other,
            },
        }
    }
}
