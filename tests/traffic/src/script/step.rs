//! Steps of a process with sockets. Each step is small, so that a test knows exactly which events it causes.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// One step. The test chooses the names of sockets; port 0 of an address lets the kernel choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Answers [`StepAnswer::Number`]: the inode of the process's network namespace.
    Netns,
    /// Listens at an address; answered with [`StepAnswer::Port`].
    Listen {
        /// Name of the listener.
        listener: String,
        /// Local address.
        address: SocketAddr,
        /// Length of the accept queue; the standard library's where absent.
        backlog: Option<i32>,
    },
    /// Listens at 127.0.0.1 for MPTCP, as servers in Go do by default; answered with [`StepAnswer::Port`].
    ListenMptcp {
        /// Name of the listener.
        listener: String,
    },
    /// Closes a listener.
    Unlisten {
        /// Name of the listener.
        listener: String,
    },
    /// Drops the packets that arrive at a listener. Clients retransmit their SYN.
    DropSyns {
        /// Name of the listener.
        listener: String,
    },
    /// Reverts [`Step::DropSyns`].
    AcceptSyns {
        /// Name of the listener.
        listener: String,
    },
    /// Accepts a connection.
    Accept {
        /// Name of the connection.
        stream: String,
        /// Name of the listener.
        listener: String,
    },
    /// Opens a connection.
    Connect {
        /// Name of the connection.
        stream: String,
        /// Address of the server.
        target: SocketAddr,
    },
    /// Sends the SYN of a connection and does not wait for the handshake.
    StartConnect {
        /// Name of the connection.
        stream: String,
        /// Address of the server.
        target: SocketAddr,
        /// Address to bind before `connect()`; where absent, `connect()` chooses it.
        local: Option<SocketAddr>,
    },
    /// Uses an open connection, or one that was started.
    Use {
        /// Name of the connection.
        stream: String,
        /// Action on the connection.
        action: StreamAction,
    },
    /// Shares a connection with another process, and with a second descriptor of this one.
    Share {
        /// Name of the connection.
        stream: String,
    },
    /// Reverts [`Step::Share`].
    Unshare {
        /// Name of the connection.
        stream: String,
    },
    /// Attempts to connect; fails if an attempt succeeds.
    FailToConnect {
        /// Address without a server.
        target: SocketAddr,
        /// Number of attempts.
        count: u64,
    },
    /// Serves short connections, one after the other.
    Serve {
        /// Name of the listener.
        listener: String,
        /// Connections to serve.
        connections: ShortConnections,
    },
    /// Makes short connections, one after the other.
    Call {
        /// Address of the server.
        target: SocketAddr,
        /// Connections to make.
        connections: ShortConnections,
    },
    /// Makes short connections with 10 bytes of request and 20 of response, up to 100 per second.
    CallSlowly {
        /// Address of the server.
        target: SocketAddr,
        /// Number of connections.
        count: u64,
    },
    /// Makes short connections of this process with itself, without payload.
    CallItself {
        /// Name of the listener.
        listener: String,
        /// Port of the listener at 127.0.0.1.
        port: u16,
        /// Number of connections.
        count: u64,
    },
    /// Opens connections of this process with itself, and keeps them until [`Step::ClosePairs`].
    OpenPairs {
        /// Name of the listener.
        listener: String,
        /// Number of connections.
        count: u64,
    },
    /// Closes the connections of all [`Step::OpenPairs`], the client ends first.
    ClosePairs,
    /// Serves and calls in this process as fast as possible, with a new listener for each thread.
    ServeAndCall {
        /// Local address of each listener.
        address: SocketAddr,
        /// Number of listeners, each with a client.
        threads: u64,
        /// Connections of each client.
        connections: ShortConnections,
        /// Path of a file: clients repeat their connections until it exists.
        until: Option<PathBuf>,
    },
    /// Serves and calls in this process as fast as possible, at existing listeners.
    ServeAndCallAt {
        /// Names of the listeners.
        listeners: Vec<String>,
        /// Connections of each client.
        connections: ShortConnections,
    },
    /// Serves connections at several listeners, all at the same time; answered with [`StepAnswer::Counts`] by listener.
    ServeEach {
        /// Names of the listeners.
        listeners: Vec<String>,
        /// Connections to serve at each.
        connections: ShortConnections,
        /// Interval of the connections that the server closes first: 3 is every third, 0 is none.
        server_closes_every: u64,
    },
    /// Makes short connections to the targets in turn; answered with [`StepAnswer::Counts`] by target.
    CallInTurns {
        /// Addresses of the servers.
        targets: Vec<SocketAddr>,
        /// Number of connections in all.
        count: u32,
        /// Connections per second.
        rate: u32,
    },
    /// Opens connections to each target and holds each of them; answered with [`StepAnswer::Counts`] by target. The
    /// milliseconds of the answer are the lifetime of the shortest connection.
    HoldEach {
        /// Addresses of the servers.
        targets: Vec<SocketAddr>,
        /// Connections to each.
        connections: ShortConnections,
        /// Lifetime of each connection in milliseconds.
        hold_ms: u64,
    },
    /// Uses a UDP socket.
    Datagram(DatagramStep),
}

/// Number and payload of short connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShortConnections {
    /// Number of connections.
    pub count: u64,
    /// Bytes from the client.
    pub request: usize,
    /// Bytes from the server.
    pub response: usize,
}

/// Action on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StreamAction {
    /// Sends this number of bytes.
    Send(usize),
    /// Receives this number of bytes.
    Receive(usize),
    /// Waits for the peer's end of the stream; fails if a byte comes before.
    AwaitEnd,
    /// Closes the sending direction.
    ShutDown,
    /// Closes the connection, if it is open.
    Close,
    /// Ends the connection with RST.
    Reset,
    /// Answers [`StepAnswer::Port`]: the local port.
    LocalPort,
    /// Waits until the handshake has ended; answered with [`StepAnswer::Connected`].
    AwaitHandshake,
    /// Connects again to this address without waiting for the handshake. The earlier connection or attempt must be over.
    StartConnect(SocketAddr),
    /// Ends the connection with `connect(AF_UNSPEC)`, so that the socket can be used again.
    Disconnect,
    /// Answers [`StepAnswer::Measured`]: the kernel's measurements.
    Measure,
    /// Waits until the peer has acknowledged everything that was sent.
    AwaitAcknowledged,
    /// Waits until the kernel has retransmitted this number of segments.
    AwaitRetransmits(u32),
    /// Drops the packets that arrive.
    DropIncoming,
    /// Reverts [`StreamAction::DropIncoming`].
    AcceptIncoming,
    /// Delays the next acknowledgement.
    DelayAcknowledgement,
}

/// Step with a UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DatagramStep {
    /// Opens a socket; answered with [`StepAnswer::Port`].
    Bind {
        /// Name of the socket.
        socket: String,
        /// Local address.
        address: SocketAddr,
    },
    /// Connects a socket.
    Connect {
        /// Name of the socket.
        socket: String,
        /// Address of the peer.
        target: SocketAddr,
    },
    /// Sends a datagram.
    Send {
        /// Name of the socket.
        socket: String,
        /// Payload in bytes.
        bytes: usize,
        /// Destination; absent for a connected socket.
        target: Option<SocketAddr>,
    },
    /// Receives a datagram; fails if its size differs.
    Receive {
        /// Name of the socket.
        socket: String,
        /// Payload in bytes.
        bytes: usize,
    },
    /// Sends a datagram to the source of the last one that was received.
    Respond {
        /// Name of the socket.
        socket: String,
        /// Payload in bytes.
        bytes: usize,
    },
    /// Sends this payload to the source of the last datagram that was received.
    RespondWith {
        /// Name of the socket.
        socket: String,
        /// Payload.
        payload: Vec<u8>,
    },
    /// Responds to datagrams; answered with [`StepAnswer::Number`], the number of bytes received.
    Serve {
        /// Name of the socket.
        socket: String,
        /// Number of datagrams.
        count: u64,
        /// Bytes of each response.
        response: usize,
    },
    /// Sends requests and awaits each response; answered with [`StepAnswer::Number`], the number of bytes received.
    Call {
        /// Address of the server.
        target: SocketAddr,
        /// Sockets that send them.
        requests: DatagramRequests,
    },
}

/// Requests from several UDP sockets, one socket after the other. Every other socket is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatagramRequests {
    /// Number of sockets.
    pub sockets: u16,
    /// Number of requests from each socket.
    pub times: u64,
    /// Bytes of each request.
    pub request: usize,
    /// Local port of the first socket; the others have the ports that follow.
    pub port: u16,
}

/// Answer to a [`Step`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepAnswer {
    /// The step succeeded.
    Done,
    /// Local port of a socket.
    Port(u16),
    /// A number.
    Number(u64),
    /// True if the handshake succeeded.
    Connected(bool),
    /// Numbers of connections, and a time.
    Counts {
        /// Number of connections by target or listener.
        counts: Vec<u64>,
        /// Duration of the step, or of the shortest connection.
        milliseconds: u64,
    },
    /// Measurements of TCP.
    Measured {
        /// Smoothed round-trip time in microseconds; 0 if there is none.
        rtt_us: u32,
        /// Number of retransmitted segments.
        retransmits: u32,
    },
}
