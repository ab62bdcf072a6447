//! One connection at the collector's port: its bytes, its phase, and its end.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{places::Place, waiting_room::WaitingPlace};

/// Time for the last reply of a stream to leave before its connection is closed.
const LAST_REPLY: Duration = Duration::from_secs(2);

/// Phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No stream has begun.
    New,
    /// A stream was opened, without a valid first message so far.
    Opened,
    /// The stream of an agent.
    Reporting,
    /// The stream has ended.
    Ended,
}

/// The connection of a stream, as its handler sees it.
#[derive(Clone, Debug)]
pub(super) struct ConnectionHandle(Arc<watch::Sender<Phase>>);

impl ConnectionHandle {
    /// Records that a stream begins. Returns false if the connection has or had one already.
    pub fn open(&self) -> bool {
        self.0.send_if_modified(|phase| {
            let is_first = *phase == Phase::New;
            if is_first {
                *phase = Phase::Opened;
            }
            is_first
        })
    }

    /// Records that the stream is an agent's, so that the connection stays.
    pub fn establish(&self) {
        self.0.send_replace(Phase::Reporting);
    }

    /// Records that the stream has ended, so that the connection is closed.
    pub fn end(&self) {
        self.0.send_replace(Phase::Ended);
    }
}

/// Bytes of a connection, with or without TLS.
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that is closed once it has no stream to serve.
pub(super) struct Connection {
    transport: Transport,
    handle: ConnectionHandle,
    /// Its sender is dropped to close the connection.
    open: Option<oneshot::Receiver<Infallible>>,
    /// The connection's place among all.
    _place: Place,
}

impl Connection {
    pub fn plain(stream: TcpStream, place: Place, waiting: WaitingPlace, deadline: Duration) -> Self {
        Self::new(Transport::Plain(stream), place, waiting, deadline)
    }

    pub fn tls(stream: TlsStream<TcpStream>, place: Place, waiting: WaitingPlace, deadline: Duration) -> Self {
        Self::new(Transport::Tls(Box::new(stream)), place, waiting, deadline)
    }

    /// `waiting` is held until a valid first message, which has to come within `deadline`.
    fn new(transport: Transport, place: Place, waiting: WaitingPlace, deadline: Duration) -> Self {
        let (phases, phase) = watch::channel(Phase::New);
        let (closing, open) = oneshot::channel();
        tokio::spawn(supervise(phase, waiting, deadline, closing));
        Self { transport, handle: ConnectionHandle(Arc::new(phases)), open: Some(open), _place: place }
    }

    /// Returns an error once the connection is to be closed.
    fn check_open(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let is_open = self.open.as_mut().is_some_and(|open| Pin::new(open).poll(context).is_pending());
        if is_open {
            return Ok(());
        }
        self.open = None;
        Err(io::Error::new(io::ErrorKind::TimedOut, "the connection has no stream"))
    }
}

/// Closes a connection, by dropping `closing`, that has no valid first message in time or whose stream has ended.
async fn supervise(
    mut phase: watch::Receiver<Phase>,
    waiting: WaitingPlace,
    deadline: Duration,
    mut closing: oneshot::Sender<Infallible>,
) {
    let served = async {
        let established = phase.wait_for(|phase| matches!(phase, Phase::Reporting | Phase::Ended));
        tokio::select! {
            established = timeout(deadline, established) => if established.is_err() { return },
            () = waiting.displaced() => return,
        }
        drop(waiting);
        // An error means that the connection is gone.
        let _ = phase.wait_for(|phase| *phase == Phase::Ended).await;
        tokio::time::sleep(LAST_REPLY).await;
    };
    tokio::select! {
        () = served => {}
        () = closing.closed() => {}
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> ConnectionHandle {
        self.handle.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_open(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open(context)?;
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
