//! The scripted process's end: executes steps with TCP sockets.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    process::{Child, Command},
    thread,
    time::Duration,
};

use traffic::script::{
    self,
    step::{ShortConnections, Step, StepAnswer, StreamAction},
};

use super::{datagrams::DatagramSockets, handshakes, measures, workload};

/// Interval of [`Step::CallSlowly`].
const SLOW_INTERVAL: Duration = Duration::from_millis(10);
/// Payload of one connection of [`Step::CallSlowly`].
const SLOW_CALL: ShortConnections = ShortConnections { count: 1, request: 10, response: 20 };

/// Executes steps until standard input ends, where [`Process`](super::Process) started this test.
pub fn run_scripted_process() {
    if script::is_scripted() {
        let mut sockets = Sockets::default();
        script::execute_stdin(|step| sockets.execute(step)).unwrap();
    }
}

#[derive(Default)]
struct Sockets {
    listeners: BTreeMap<String, TcpListener>,
    streams: BTreeMap<String, TcpStream>,
    holders: Vec<Child>,
    pairs: Vec<(TcpStream, TcpStream)>,
    datagrams: DatagramSockets,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

impl Sockets {
    fn execute(&mut self, step: Step) -> io::Result<StepAnswer> {
        match step {
            Step::Netns => return Ok(StepAnswer::Number(fs::metadata("/proc/self/ns/net")?.ino())),
            Step::Listen { listener, address, backlog: None } => {
                return self.add_listener(listener, TcpListener::bind(address)?);
            }
            Step::Listen { listener, address, backlog: Some(backlog) } => {
                return self.add_listener(listener, handshakes::listen_with_backlog(address, backlog)?);
            }
            Step::ListenMptcp { listener } => return self.add_listener(listener, handshakes::listen_mptcp()?),
            Step::Unlisten { listener } => drop(self.listeners.remove(&listener)),
            Step::DropSyns { listener } => measures::drop_incoming(self.listener(&listener)?)?,
            Step::AcceptSyns { listener } => measures::accept_incoming(self.listener(&listener)?)?,
            Step::Accept { stream, listener } => {
                let (accepted, _) = self.listener(&listener)?.accept()?;
                self.streams.insert(stream, accepted);
            }
            Step::Connect { stream, target } => drop(self.streams.insert(stream, TcpStream::connect(target)?)),
            Step::StartConnect { stream, target, local } => {
                self.streams.insert(stream, handshakes::start_connect(target, local)?);
            }
            Step::Use { stream, action: StreamAction::Close } => drop(self.streams.remove(&stream)),
            Step::Use { stream, action: StreamAction::Reset } => {
                reset(self.streams.remove(&stream).ok_or_else(|| unknown(&stream))?)?;
            }
            Step::Use { stream, action } => return self.use_stream(&stream, action),
            Step::Share { stream } => self.share(&stream)?,
            Step::Unshare { stream } => self.unshare(&stream)?,
            Step::OpenPairs { listener, count } => {
                let pairs = workload::open_pairs(self.listener(&listener)?, count)?;
                self.pairs.extend(pairs);
            }
            Step::ClosePairs => workload::close_pairs(&mut self.pairs)?,
            Step::Datagram(step) => return self.datagrams.execute(step),
            several => return self.execute_several(several),
        }
        Ok(StepAnswer::Done)
    }

    /// Executes a step that makes or serves several connections.
    fn execute_several(&self, step: Step) -> io::Result<StepAnswer> {
        match step {
            Step::FailToConnect { target, count } => fail_to_connect(target, count)?,
            Step::Serve { listener, connections } => serve(self.listener(&listener)?, connections)?,
            Step::Call { target, connections } => call(target, connections)?,
            Step::CallSlowly { target, count } => {
                for _ in 0..count {
                    call(target, SLOW_CALL)?;
                    thread::sleep(SLOW_INTERVAL);
                }
            }
            Step::CallItself { listener, port, count } => {
                for _ in 0..count {
                    let stream = TcpStream::connect(("127.0.0.1", port))?;
                    let (other, _) = self.listener(&listener)?.accept()?;
                    reset(stream)?;
                    drop(other);
                }
            }
            Step::ServeAndCall { address, threads, connections, until } => {
                let is_over = || until.as_ref().is_none_or(|file| file.exists());
                workload::serve_and_call(address, threads, connections, &is_over)?;
            }
            Step::ServeAndCallAt { listeners, connections } => {
                workload::serve_and_call_at(&self.listeners(&listeners)?, connections)?;
            }
            Step::ServeEach { listeners, connections, server_closes_every } => {
                return workload::serve_each(&self.listeners(&listeners)?, connections, server_closes_every);
            }
            Step::CallInTurns { targets, count, rate } => return workload::call_in_turns(&targets, count, rate),
            Step::HoldEach { targets, connections, hold_ms } => {
                return workload::hold_each(&targets, connections, Duration::from_millis(hold_ms));
            }
            other => return Err(io::Error::other(format!("no implementation of {other:?}"))),
        }
        Ok(StepAnswer::Done)
    }

    fn use_stream(&mut self, name: &str, action: StreamAction) -> io::Result<StepAnswer> {
        let stream = self.streams.get_mut(name).ok_or_else(|| unknown(name))?;
        match action {
            StreamAction::Send(bytes) => stream.write_all(&vec![7; bytes])?,
            StreamAction::Receive(bytes) => stream.read_exact(&mut vec![0; bytes])?,
            StreamAction::AwaitEnd => expect("bytes before the end", stream.read(&mut [0])?, 0)?,
            StreamAction::ShutDown => stream.shutdown(Shutdown::Write)?,
            StreamAction::LocalPort => return Ok(StepAnswer::Port(stream.local_addr()?.port())),
            StreamAction::AwaitHandshake => return Ok(StepAnswer::Connected(handshakes::await_handshake(stream)?)),
            StreamAction::StartConnect(target) => handshakes::connect_again(stream, target)?,
            StreamAction::Disconnect => handshakes::disconnect(stream)?,
            StreamAction::Measure => return measures::measure(stream),
            StreamAction::AwaitAcknowledged => measures::await_acknowledged(stream)?,
            StreamAction::AwaitRetransmits(wanted) => measures::await_retransmits(stream, wanted)?,
            StreamAction::DropIncoming => measures::drop_incoming(stream)?,
            StreamAction::AcceptIncoming => measures::accept_incoming(stream)?,
            StreamAction::DelayAcknowledgement => measures::delay_acknowledgement(stream)?,
            StreamAction::Close | StreamAction::Reset => return Err(io::Error::other("needs the socket itself")),
        }
        Ok(StepAnswer::Done)
    }

    fn add_listener(&mut self, name: String, listener: TcpListener) -> io::Result<StepAnswer> {
        let port = listener.local_addr()?.port();
        self.listeners.insert(name, listener);
        Ok(StepAnswer::Port(port))
    }

    /// Duplicates the socket into another process, and into a second descriptor of this one.
    fn share(&mut self, name: &str) -> io::Result<()> {
        let stream = self.streams.get(name).ok_or_else(|| unknown(name))?;
        let (there, here) = (stream.try_clone()?, stream.try_clone()?);
        let holder = Command::new("sleep").arg("1000").stdin(OwnedFd::from(there)).spawn()?;
        self.holders.push(holder);
        self.streams.insert(second_descriptor(name), here);
        Ok(())
    }

    fn unshare(&mut self, name: &str) -> io::Result<()> {
        for mut holder in self.holders.drain(..) {
            holder.kill()?;
            holder.wait()?;
        }
        self.streams.remove(&second_descriptor(name));
        Ok(())
    }

    fn listener(&self, name: &str) -> io::Result<&TcpListener> {
        self.listeners.get(name).ok_or_else(|| unknown(name))
    }

    fn listeners(&self, names: &[String]) -> io::Result<Vec<&TcpListener>> {
        names.iter().map(|name| self.listener(name)).collect()
    }
}

fn second_descriptor(name: &str) -> String {
    format!("{name}-again")
}

/// Returns the error of a step that names no socket of this process.
pub(super) fn unknown(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no socket `{name}`"))
}

/// Returns an error if the numbers differ.
pub(super) fn expect(subject: &str, found: usize, expected: usize) -> io::Result<()> {
    if found == expected { Ok(()) } else { Err(io::Error::other(format!("{subject}: {found} instead of {expected}"))) }
}

pub(super) fn reset(stream: TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

fn fail_to_connect(target: SocketAddr, count: u64) -> io::Result<()> {
    for attempt in 0..count {
        if TcpStream::connect(target).is_ok() {
            return Err(io::Error::other(format!("attempt {attempt} to connect to {target} succeeded")));
        }
    }
    Ok(())
}

pub(super) fn serve(listener: &TcpListener, connections: ShortConnections) -> io::Result<()> {
    let (mut request, response) = (vec![0; connections.request], vec![1; connections.response]);
    for time in 0..connections.count {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut request)?;
        stream.write_all(&response)?;
        // In turns: the client closes first, the server does, or both at once.
        if time % 3 == 0 {
            let _ = stream.read(&mut [0]);
        }
    }
    Ok(())
}

pub(super) fn call(target: SocketAddr, connections: ShortConnections) -> io::Result<()> {
    let (request, mut response) = (vec![1; connections.request], vec![0; connections.response]);
    for time in 0..connections.count {
        let mut stream = TcpStream::connect(target)?;
        stream.write_all(&request)?;
        stream.read_exact(&mut response)?;
        if time % 3 == 1 {
            let _ = stream.read(&mut [0]);
        }
        // The ports of one pair of addresses would run out; a reset leaves none behind, on either end.
        reset(stream)?;
    }
    Ok(())
}
