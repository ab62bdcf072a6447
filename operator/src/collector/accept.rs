//! Accepts connections within their limits, and completes the TLS handshake of each.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    connection::Connection,
    places::{Place, Places},
    refusals::Refusals,
};
use crate::settings::Limits;

/// Pause after the system refused to accept, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections.
pub(super) struct Acceptor {
    tls: Option<TlsAcceptor>,
    places: Places,
    waiting: Arc<Semaphore>,
    max_waiting: u32,
    handshake: Duration,
    first_message: Duration,
    refusals: Refusals,
}

impl Acceptor {
    pub fn new(tls: Option<TlsAcceptor>, limits: &Limits, refusals: Refusals) -> Self {
        let max_waiting = limits.collector_max_waiting_connections;
        Self {
            tls,
            places: Places::new(limits.collector_max_connections, limits.collector_max_connections_per_address),
            waiting: Arc::new(Semaphore::new(usize::try_from(max_waiting).unwrap_or(Semaphore::MAX_PERMITS))),
            max_waiting,
            handshake: limits.handshake_timeout(),
            first_message: limits.message_timeout(),
            refusals,
        }
    }

    /// Accepts until nothing receives connections any more.
    pub async fn run(self, listener: TcpListener, connections: mpsc::Sender<Connection>) {
        let acceptor = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.closed() => return,
            };
            match accepted {
                Ok((stream, peer)) => acceptor.begin(stream, peer, &connections),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Refuses a connection beyond the limits by closing it.
    fn begin(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, connections: &mpsc::Sender<Connection>) {
        let place = match self.places.take(peer.ip()) {
            Ok(place) => place,
            Err(no_place) => return self.refusals.connection(peer, &no_place),
        };
        let Ok(waiting) = Arc::clone(&self.waiting).try_acquire_owned() else {
            let max = self.max_waiting;
            let reason = format!("{max} connections wait for a first message; --collector-max-waiting-connections");
            return self.refusals.connection(peer, &reason);
        };
        let (acceptor, connections) = (Arc::clone(self), connections.clone());
        tokio::spawn(async move {
            if let Some(connection) = acceptor.handshake(stream, peer, place, waiting).await {
                // The collector may have stopped.
                let _ = connections.send(connection).await;
            }
        });
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        place: Place,
        waiting: OwnedSemaphorePermit,
    ) -> Option<Connection> {
        // Replies are small, and the agent waits for each.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return Some(Connection::plain(stream, place, waiting, self.first_message));
        };
        match timeout(self.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => Some(Connection::tls(stream, place, waiting, self.first_message)),
            Ok(Err(error)) => {
                self.refusals.connection(peer, &format!("the TLS handshake failed: {error}"));
                None
            }
            Err(_) => {
                self.refusals.connection(peer, &format!("the TLS handshake took longer than {:?}", self.handshake));
                None
            }
        }
    }
}
