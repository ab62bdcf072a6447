//! Accepts connections within their limits, and completes the TLS handshake of each.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    connection::Connection,
    places::{Place, Places},
    refusals::Refusals,
    waiting_room::{WaitingPlace, WaitingRoom},
};
use crate::settings::Limits;

/// Pause after the system refused to accept, for example for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Reason for the end of a connection that waited.
const DISPLACED: &str =
    "more connections than --collector-max-waiting-connections waited for a first message, this one the longest";

/// Accepts connections.
pub(super) struct Acceptor {
    tls: Option<TlsAcceptor>,
    places: Places,
    waiting: WaitingRoom,
    handshake: Duration,
    first_message: Duration,
    refusals: Refusals,
}

impl Acceptor {
    pub fn new(tls: Option<TlsAcceptor>, limits: &Limits, refusals: Refusals) -> Self {
        Self {
            tls,
            places: Places::new(limits.collector_max_connections, limits.collector_max_connections_per_address),
            waiting: WaitingRoom::new(limits.collector_max_waiting_connections),
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
        let waiting = self.waiting.enter();
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
        waiting: WaitingPlace,
    ) -> Option<Connection> {
        // Replies are small, and the agent waits for each.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return Some(Connection::plain(stream, place, waiting, self.first_message));
        };
        let accepted = tokio::select! {
            accepted = timeout(self.handshake, tls.accept(stream)) => accepted,
            () = waiting.displaced() => {
                self.refusals.connection(peer, &DISPLACED);
                return None;
            }
        };
        match accepted {
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
