//! The test's end of a scripted process: one method for each step.

use std::{
    fmt::Display,
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Serialize, de::DeserializeOwned};
use traffic::script::{
    Reply, ScriptedProcess,
    step::{DatagramRequests, DatagramStep, ShortConnections, Step, StepAnswer, StreamAction},
};

/// Scripted process in a cgroup: this test's own program, started again.
pub struct Process {
    script: ScriptedProcess,
    cgroup: u64,
}

impl Process {
    pub(super) fn start(cgroup: &Path, wrapper: &[&str]) -> Self {
        let script = ScriptedProcess::start(ScriptedProcess::wrapper(wrapper), "scripted_process").unwrap();
        fs::write(cgroup.join("cgroup.procs"), script.pid().to_string()).unwrap();
        Self { script, cgroup: fs::metadata(cgroup).unwrap().ino() }
    }

    pub fn cgroup(&self) -> u64 {
        self.cgroup
    }

    pub fn pid(&self) -> u32 {
        self.script.pid()
    }

    /// Runs a shell command in this process's network namespace.
    pub fn in_netns(&self, command: &str) {
        assert!(self.succeeds_in_netns(command), "{command}");
    }

    /// Runs a shell command in this process's network namespace. Returns whether it succeeded.
    pub fn succeeds_in_netns(&self, command: &str) -> bool {
        let target = self.pid().to_string();
        Command::new("nsenter").args(["-t", &target, "-n", "sh", "-ec", command]).status().unwrap().success()
    }

    /// Sends a command of any protocol.
    pub fn send(&mut self, command: &impl Serialize) {
        self.script.send(command).unwrap();
    }

    /// Waits for the answer to a command.
    pub fn receive<A: DeserializeOwned>(&mut self) -> Reply<A> {
        self.script.receive().unwrap()
    }

    /// Executes a command of any protocol, which must succeed.
    pub fn execute<A: DeserializeOwned>(&mut self, command: &(impl Serialize + std::fmt::Debug)) -> A {
        self.send(command);
        self.receive().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn done(&mut self, step: &Step) {
        assert_eq!(self.execute::<StepAnswer>(step), StepAnswer::Done, "{step:?}");
    }

    fn port(&mut self, step: &Step) -> u16 {
        match self.execute(step) {
            StepAnswer::Port(port) => port,
            other => panic!("{step:?}: {other:?}"),
        }
    }

    fn answer(&mut self) -> StepAnswer {
        self.receive().unwrap_or_else(|error| panic!("a step that was begun: {error}"))
    }

    /// Waits for the end of a step that was begun and has no result.
    pub fn finish(&mut self) {
        assert_eq!(self.answer(), StepAnswer::Done);
    }

    /// Begins a step, whose end one of the methods `finish...` waits for.
    pub fn begin(&mut self, step: &Step) {
        self.send(step);
    }

    /// Waits for the end of a step that was begun, and returns its number.
    pub fn finish_number(&mut self) -> u64 {
        number(&self.answer())
    }

    /// Waits for the end of a step that was begun, and returns its connections and milliseconds.
    pub fn finish_counts(&mut self) -> (Vec<u64>, u64) {
        match self.answer() {
            StepAnswer::Counts { counts, milliseconds } => (counts, milliseconds),
            other => panic!("{other:?} has no counts"),
        }
    }

    pub fn netns(&mut self) -> u32 {
        u32::try_from(number(&self.execute(&Step::Netns))).unwrap()
    }

    /// Listens and returns the port.
    pub fn listen(&mut self, listener: impl Display, address: impl Display) -> u16 {
        self.port(&Step::Listen { listener: listener.to_string(), address: socket_address(address), backlog: None })
    }

    /// Listens with an accept queue of this length; the kernel admits one more. Returns the port.
    pub fn listen_with_backlog(&mut self, listener: impl Display, address: impl Display, backlog: i32) -> u16 {
        let (listener, address) = (listener.to_string(), socket_address(address));
        self.port(&Step::Listen { listener, address, backlog: Some(backlog) })
    }

    /// Listens for MPTCP and returns the port, or the error's text.
    pub fn listen_mptcp(&mut self, listener: impl Display) -> Result<u16, String> {
        self.send(&Step::ListenMptcp { listener: listener.to_string() });
        self.receive().map(|answer| match answer {
            StepAnswer::Port(port) => port,
            other => panic!("{other:?} is no port"),
        })
    }

    pub fn unlisten(&mut self, listener: impl Display) {
        self.done(&Step::Unlisten { listener: listener.to_string() });
    }

    pub fn drop_syns(&mut self, listener: impl Display) {
        self.done(&Step::DropSyns { listener: listener.to_string() });
    }

    pub fn accept_syns(&mut self, listener: impl Display) {
        self.done(&Step::AcceptSyns { listener: listener.to_string() });
    }

    pub fn connect(&mut self, stream: impl Display, target: impl Display) {
        self.done(&Step::Connect { stream: stream.to_string(), target: socket_address(target) });
    }

    /// Sends a SYN, from a local port that is chosen before `connect()` where a local address is given.
    pub fn start_connect(&mut self, stream: impl Display, target: impl Display, local: Option<&str>) {
        let (stream, target) = (stream.to_string(), socket_address(target));
        self.done(&Step::StartConnect { stream, target, local: local.map(socket_address) });
    }

    pub fn accept(&mut self, stream: impl Display, listener: impl Display) {
        self.done(&Step::Accept { stream: stream.to_string(), listener: listener.to_string() });
    }

    /// Acts on a connection, without a result.
    pub fn act(&mut self, stream: impl Display, action: StreamAction) {
        self.done(&Step::Use { stream: stream.to_string(), action });
    }

    pub fn send_bytes(&mut self, stream: impl Display, bytes: usize) {
        self.act(stream, StreamAction::Send(bytes));
    }

    pub fn receive_bytes(&mut self, stream: impl Display, bytes: usize) {
        self.act(stream, StreamAction::Receive(bytes));
    }

    pub fn begin_receive_bytes(&mut self, stream: impl Display, bytes: usize) {
        self.send(&Step::Use { stream: stream.to_string(), action: StreamAction::Receive(bytes) });
    }

    pub fn await_end(&mut self, stream: impl Display) {
        self.act(stream, StreamAction::AwaitEnd);
    }

    /// Waits for the end of the handshake, and returns whether it succeeded.
    pub fn await_handshake(&mut self, stream: impl Display) -> bool {
        match self.execute(&Step::Use { stream: stream.to_string(), action: StreamAction::AwaitHandshake }) {
            StepAnswer::Connected(is_connected) => is_connected,
            other => panic!("{other:?} is no end of a handshake"),
        }
    }

    pub fn local_port(&mut self, stream: impl Display) -> u16 {
        self.port(&Step::Use { stream: stream.to_string(), action: StreamAction::LocalPort })
    }

    /// Returns the smoothed round-trip time in microseconds and the number of retransmitted segments.
    pub fn measure(&mut self, stream: impl Display) -> (u32, u32) {
        match self.execute(&Step::Use { stream: stream.to_string(), action: StreamAction::Measure }) {
            StepAnswer::Measured { rtt_us, retransmits } => (rtt_us, retransmits),
            other => panic!("{other:?} is no measurement"),
        }
    }

    pub fn close(&mut self, stream: impl Display) {
        self.act(stream, StreamAction::Close);
    }

    pub fn reset(&mut self, stream: impl Display) {
        self.act(stream, StreamAction::Reset);
    }

    pub fn share(&mut self, stream: impl Display) {
        self.done(&Step::Share { stream: stream.to_string() });
    }

    pub fn unshare(&mut self, stream: impl Display) {
        self.done(&Step::Unshare { stream: stream.to_string() });
    }

    pub fn fail_to_connect(&mut self, target: impl Display, count: u64) {
        self.done(&Step::FailToConnect { target: socket_address(target), count });
    }

    pub fn begin_fail_to_connect(&mut self, target: impl Display, count: u64) {
        self.send(&Step::FailToConnect { target: socket_address(target), count });
    }

    pub fn serve(&mut self, listener: impl Display, connections: ShortConnections) {
        self.done(&Step::Serve { listener: listener.to_string(), connections });
    }

    pub fn begin_serve(&mut self, listener: impl Display, connections: ShortConnections) {
        self.send(&Step::Serve { listener: listener.to_string(), connections });
    }

    pub fn call(&mut self, target: impl Display, connections: ShortConnections) {
        self.done(&Step::Call { target: socket_address(target), connections });
    }

    pub fn call_slowly(&mut self, target: impl Display, count: u64) {
        self.done(&Step::CallSlowly { target: socket_address(target), count });
    }

    pub fn begin_call_slowly(&mut self, target: impl Display, count: u64) {
        self.send(&Step::CallSlowly { target: socket_address(target), count });
    }

    pub fn call_itself(&mut self, listener: impl Display, port: u16, count: u64) {
        self.done(&Step::CallItself { listener: listener.to_string(), port, count });
    }

    pub fn open_pairs(&mut self, listener: impl Display, count: u64) {
        self.done(&Step::OpenPairs { listener: listener.to_string(), count });
    }

    pub fn close_pairs(&mut self) {
        self.done(&Step::ClosePairs);
    }

    /// Serves and calls as fast as possible in this number of threads.
    pub fn serve_and_call(&mut self, address: impl Display, threads: u64, connections: ShortConnections) {
        self.begin_serve_and_call(address, threads, connections, None);
        self.finish();
    }

    /// Begins to serve and call, again and again until the file exists, where one is given.
    pub fn begin_serve_and_call(
        &mut self,
        address: impl Display,
        threads: u64,
        connections: ShortConnections,
        until: Option<PathBuf>,
    ) {
        self.send(&Step::ServeAndCall { address: socket_address(address), threads, connections, until });
    }

    /// Executes a step that has no result and no method of its own.
    pub fn run(&mut self, step: &Step) {
        self.done(step);
    }

    /// Opens a UDP socket and returns its port.
    pub fn bind_udp(&mut self, socket: impl Display, address: impl Display) -> u16 {
        let (socket, address) = (socket.to_string(), socket_address(address));
        self.port(&Step::Datagram(DatagramStep::Bind { socket, address }))
    }

    pub fn connect_udp(&mut self, socket: impl Display, target: impl Display) {
        let (socket, target) = (socket.to_string(), socket_address(target));
        self.done(&Step::Datagram(DatagramStep::Connect { socket, target }));
    }

    /// Sends a datagram from a connected socket.
    pub fn send_datagram(&mut self, socket: impl Display, bytes: usize) {
        self.done(&Step::Datagram(DatagramStep::Send { socket: socket.to_string(), bytes, target: None }));
    }

    pub fn send_datagram_to(&mut self, socket: impl Display, bytes: usize, target: impl Display) {
        let (socket, target) = (socket.to_string(), Some(socket_address(target)));
        self.done(&Step::Datagram(DatagramStep::Send { socket, bytes, target }));
    }

    pub fn receive_datagram(&mut self, socket: impl Display, bytes: usize) {
        self.done(&Step::Datagram(DatagramStep::Receive { socket: socket.to_string(), bytes }));
    }

    pub fn respond_datagram(&mut self, socket: impl Display, bytes: usize) {
        self.done(&Step::Datagram(DatagramStep::Respond { socket: socket.to_string(), bytes }));
    }

    pub fn respond_datagram_with(&mut self, socket: impl Display, payload: &[u8]) {
        let (socket, payload) = (socket.to_string(), payload.to_vec());
        self.done(&Step::Datagram(DatagramStep::RespondWith { socket, payload }));
    }

    pub fn begin_serve_datagrams(&mut self, socket: impl Display, count: u64, response: usize) {
        self.send(&Step::Datagram(DatagramStep::Serve { socket: socket.to_string(), count, response }));
    }

    pub fn begin_call_datagrams(&mut self, target: impl Display, requests: DatagramRequests) {
        self.send(&Step::Datagram(DatagramStep::Call { target: socket_address(target), requests }));
    }

    /// Sends requests, and returns the number of bytes of the responses.
    pub fn call_datagrams(&mut self, target: impl Display, requests: DatagramRequests) -> u64 {
        self.begin_call_datagrams(target, requests);
        self.finish_number()
    }
}

/// Returns short connections with this number of bytes in each direction.
pub fn short(count: u64, request: usize, response: usize) -> ShortConnections {
    ShortConnections { count, request, response }
}

/// Returns requests from this number of sockets, whose ports begin at `port`.
pub fn requests(sockets: u16, times: u64, request: usize, port: u16) -> DatagramRequests {
    DatagramRequests { sockets, times, request, port }
}

/// Parses a socket address.
pub fn socket_address(text: impl Display) -> SocketAddr {
    let text = text.to_string();
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn number(answer: &StepAnswer) -> u64 {
    match answer {
        StepAnswer::Number(number) => *number,
        other => panic!("{other:?} is no number"),
    }
}
