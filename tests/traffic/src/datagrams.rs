//! Datagrams: an echo, and clients that ask it. What the system calls returned is counted, and nothing else.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    program::spawn,
    protocol::{Datagrams, Outcome, ServerCounts},
    stopwatch::Stopwatch,
};

/// Longer than any datagram.
const ROOM: usize = 65_536;

/// Datagrams that servers exchanged, by port and peer.
#[derive(Clone, Debug, Default)]
pub struct Echoes {
    counts: Arc<Mutex<BTreeMap<(u16, IpAddr), Counts>>>,
}

#[derive(Debug, Default)]
struct Counts {
    /// The clients' ports: as much as a server can tell clients apart.
    ports: HashSet<u16>,
    broken: u64,
    sent: u64,
    received: u64,
}

impl Echoes {
    /// Sends back what comes to an address, from now on; returns it with the port that was chosen where 0 was asked for.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind(address)?;
        let address = socket.local_addr()?;
        let counts = Arc::clone(&self.counts);
        serve_each(socket, move |socket, datagram, peer| {
            let sent = socket.send_to(datagram, peer);
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            let of_peer = counts.entry((address.port(), peer.ip().to_canonical())).or_default();
            of_peer.ports.insert(peer.port());
            of_peer.received += datagram.len() as u64;
            match sent {
                Ok(sent) => of_peer.sent += sent as u64,
                Err(_) => of_peer.broken += 1,
            }
        })?;
        Ok(address)
    }

    /// All counts, as they are now.
    #[must_use]
    pub fn report(&self) -> Vec<ServerCounts> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = counts.iter().map(|((port, peer), counts)| ServerCounts {
            port: *port,
            peer: *peer,
            opened: counts.ports.len() as u64,
            open: 0,
            broken: counts.broken,
            sent: counts.sent,
            received: counts.received,
        });
        rows.collect()
    }
}

/// Hands over each datagram that comes to a socket, and whom it is from, from now on.
///
/// # Errors
/// Returns an error if no thread can be created.
pub(crate) fn serve_each(
    socket: UdpSocket,
    mut handle: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
) -> io::Result<()> {
    spawn(move || {
        let mut datagram = vec![0; ROOM];
        // Errors are of earlier datagrams: that a client is gone, for example.
        loop {
            let Ok((size, peer)) = socket.recv_from(&mut datagram) else { continue };
            handle(&socket, &datagram[..size], peer);
        }
    })
}

/// Asks an echo as the plan says, one socket after the other.
#[must_use]
pub fn ask(plan: &Datagrams) -> Outcome {
    let stopwatch = Stopwatch::start();
    let mut outcome = Outcome::default();
    for _ in 0..plan.sockets {
        if let Err(error) = ask_from_one(plan, &mut outcome) {
            outcome.broken += 1;
            outcome.first_error.get_or_insert(format!("a conversation with {} broke: {error}", plan.target));
        }
    }
    stopwatch.time(outcome)
}

fn ask_from_one(plan: &Datagrams, outcome: &mut Outcome) -> io::Result<()> {
    let any = if plan.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(plan.timeout_ms)))?;
    if plan.connected {
        socket.connect(plan.target)?;
    }
    let (question, mut answer) = (vec![b'.'; plan.bytes], vec![0; ROOM]);
    for turn in 0..plan.times {
        let sent = if plan.connected { socket.send(&question) } else { socket.send_to(&question, plan.target) }?;
        outcome.opened += u64::from(turn == 0);
        outcome.sent += sent as u64;
        let received = socket.recv(&mut answer)?;
        outcome.received += received as u64;
        if received != plan.bytes {
            return Err(io::Error::other(format!("{received} bytes came back instead of {}", plan.bytes)));
        }
    }
    Ok(())
}
