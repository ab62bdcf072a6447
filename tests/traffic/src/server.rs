//! Listens, and holds each connection's conversation as the listener's behaviour says.

use std::{
    collections::BTreeMap,
    io,
    net::{Shutdown, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    conversation::Conversation,
    counts::Counts,
    program::spawn,
    protocol::{Behaviour, Closer, Listen},
};

/// As many as net.core.somaxconn lets through: a burst of connections finds room.
const BACKLOG: i32 = 65_535;
/// Threads that wait in `accept()` at most; more are there only while they hold conversations.
const IDLE: usize = 16;

/// The listeners of the program.
#[derive(Debug, Default)]
pub struct Listeners {
    open: Mutex<BTreeMap<SocketAddr, Arc<Listener>>>,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    port: u16,
    behaviour: Behaviour,
    counts: Arc<Counts>,
    idle: AtomicUsize,
    ended: AtomicBool,
}

impl Listeners {
    /// Begins to listen; returns the address, with the port that the kernel chose where 0 was asked for.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn listen(&self, listen: &Listen, counts: &Arc<Counts>) -> io::Result<SocketAddr> {
        let socket = bind(listen)?;
        let address = socket.local_addr()?;
        let listener = Arc::new(Listener {
            socket,
            port: address.port(),
            behaviour: listen.behaviour.clone(),
            counts: Arc::clone(counts),
            idle: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(address, Arc::clone(&listener));
        spawn_acceptor(&listener)?;
        Ok(address)
    }

    /// Stops to listen at an address; returns whether anybody did.
    ///
    /// # Errors
    /// Those of `shutdown()`.
    pub fn unlisten(&self, address: SocketAddr) -> io::Result<bool> {
        let Some(listener) = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&address) else {
            return Ok(false);
        };
        listener.ended.store(true, Ordering::SeqCst);
        // Wakes those that wait in accept(); Linux only.
        SockRef::from(&listener.socket).shutdown(Shutdown::Both)?;
        Ok(true)
    }
}

fn bind(listen: &Listen) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen.address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if listen.address.is_ipv6() {
        socket.set_only_v6(listen.v6_only)?;
    }
    socket.bind(&listen.address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn spawn_acceptor(listener: &Arc<Listener>) -> io::Result<()> {
    listener.idle.fetch_add(1, Ordering::SeqCst);
    let acceptor = Arc::clone(listener);
    spawn(move || accept(&acceptor)).inspect_err(|_| {
        listener.idle.fetch_sub(1, Ordering::SeqCst);
    })
}

/// Accepts a connection, serves it in the same thread, and repeats. The last waiting thread starts another one, so that
/// a long connection blocks no other and a short one needs no thread.
fn accept(listener: &Arc<Listener>) {
    loop {
        let accepted = listener.socket.accept();
        if listener.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, peer)) = accepted else {
            listener.counts.accept_errors.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let conversation = Conversation::begin(stream, listener.counts.server(listener.port, peer.ip()));
        let last = listener.idle.fetch_sub(1, Ordering::SeqCst) == 1;
        // Without a thread the next connection waits in the queue until this conversation is over.
        if last && spawn_acceptor(listener).is_err() {
            listener.counts.accept_errors.fetch_add(1, Ordering::Relaxed);
        }
        if converse(&conversation, &listener.behaviour).is_err() {
            conversation.tallies().add(|tally| &tally.broken, 1);
        }
        drop(conversation);
        if listener.idle.fetch_add(1, Ordering::SeqCst) >= IDLE {
            listener.idle.fetch_sub(1, Ordering::SeqCst);
            return;
        }
    }
}

fn converse(conversation: &Conversation, behaviour: &Behaviour) -> io::Result<()> {
    match *behaviour {
        Behaviour::Echo => conversation.echo(),
        Behaviour::Sink => conversation.receive_all().map(drop),
        Behaviour::Source { bytes, closes } => {
            conversation.send(bytes)?;
            end(conversation, closes)
        }
        Behaviour::Reply { request, response, closes } => loop {
            match conversation.receive(request)? {
                0 => return Ok(()),
                got if got < request => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => conversation.send(response)?,
            }
            if closes != Closer::Client {
                return end(conversation, closes);
            }
        },
    }
}

fn end(conversation: &Conversation, closes: Closer) -> io::Result<()> {
    match closes {
        Closer::Client => conversation.receive_all().map(drop),
        Closer::Server => Ok(()),
        Closer::ServerReset => conversation.reset_on_close(),
    }
}
