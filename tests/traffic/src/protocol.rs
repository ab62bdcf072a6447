//! Commands to the program and their answers, as JSON.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// One command. In JSON: `{"connect": {"target": "10.0.0.1:80"}}`, `"report"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Is anybody there?
    Ping,
    /// Accept connections.
    Listen(Listen),
    /// Accept no more at this address; connections that are open go on.
    Unlisten(Unlisten),
    /// Send back the datagrams that come to an address; answered with [`Answer::Listening`].
    Echo(Echo),
    /// Exchange datagrams with an echo; answered with an [`Outcome`] in which a conversation is a socket that has sent.
    Datagrams(Datagrams),
    /// Be a name server; answered with [`Answer::Listening`].
    NameServer(NameServer),
    /// Ask the system's resolver where a name leads; answered with [`Answer::Addresses`].
    Resolve(Resolve),
    /// Make connections.
    Connect(Connect),
    /// Wait for a run in the background; answered with its [`Outcome`].
    Await(Run),
    /// Let a run make no more connections, and wait for those under way; answered with its [`Outcome`].
    Stop(Run),
    /// Send and receive on each connection that is held under a name.
    Exchange(Exchange),
    /// Close connections that are held under a name.
    Close(Close),
    /// All counts since the program's start.
    Report,
}

/// Answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Done,
    /// The address at which the program listens now: the port is chosen where 0 was asked for.
    Listening(SocketAddr),
    /// Addresses of a name, sorted.
    Addresses(Vec<IpAddr>),
    /// The number of the run that goes on in the background.
    Running(Run),
    /// Result of a run, an exchange or a close.
    Outcome(Outcome),
    /// Answer to [`Command::Report`].
    Report(Report),
    /// Nothing was done, and why.
    Error(String),
}

/// See [`Command::Listen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// `0.0.0.0:80`, `[::]:80` (both families, unless `v6Only`) or one address.
    pub address: SocketAddr,
    /// Leave IPv4 out at `[::]`.
    #[serde(default)]
    pub v6_only: bool,
    /// Treatment of each connection.
    #[serde(default)]
    pub behaviour: Behaviour,
}

/// Treatment of a connection by a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Behaviour {
    /// Send back what comes, until the client ends.
    #[default]
    Echo,
    /// Read until the client ends.
    Sink,
    /// Send without being asked, then as `closes` says.
    Source {
        /// Bytes to send.
        bytes: u64,
        /// End that closes the connection.
        #[serde(default)]
        closes: Closer,
    },
    /// Answer each `request` bytes (at least 1) with `response` bytes; where the server closes, after the first.
    Reply {
        /// Bytes of a request.
        request: u64,
        /// Bytes of a response.
        response: u64,
        /// End that closes the connection.
        #[serde(default)]
        closes: Closer,
    },
}

/// End that closes a connection, as the server sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Closer {
    /// The client; the server reads until then.
    #[default]
    Client,
    /// The server, with FIN.
    Server,
    /// The server, with RST.
    ServerReset,
}

/// See [`Command::Echo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Echo {
    /// `0.0.0.0:53`, `[::]:53` (both families) or one address.
    pub address: SocketAddr,
}

/// See [`Command::Datagrams`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Datagrams {
    /// Destination.
    pub target: SocketAddr,
    /// From how many sockets, one after the other.
    pub sockets: u64,
    /// Number of datagrams from each socket; each response is awaited before the next.
    pub times: u64,
    /// Bytes of each.
    pub bytes: usize,
    /// True if the sockets are connected to the target.
    #[serde(default)]
    pub connected: bool,
    /// Milliseconds after which an answer is given up.
    #[serde(default = "half_a_minute")]
    pub timeout_ms: u64,
}

/// See [`Command::NameServer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameServer {
    /// `0.0.0.0:53`, `[::]:53` (both families) or one address; UDP only.
    pub address: SocketAddr,
    /// Addresses of each name; other names do not exist. Lower case, without the final dot.
    pub names: BTreeMap<String, Vec<IpAddr>>,
}

/// See [`Command::Resolve`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resolve {
    /// As one gives it to `getaddrinfo()`.
    pub name: String,
}

/// See [`Command::Unlisten`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unlisten {
    /// As [`Answer::Listening`] gave it.
    pub address: SocketAddr,
}

/// See [`Command::Connect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connect {
    /// Destination.
    pub target: SocketAddr,
    /// The local address, where it matters.
    #[serde(default)]
    pub bind: Option<IpAddr>,
    /// Number of attempts.
    #[serde(default = "one")]
    pub count: u64,
    /// Maximum number of concurrent attempts.
    #[serde(default = "one_at_a_time")]
    pub concurrency: u32,
    /// Bytes to send on each.
    #[serde(default)]
    pub send: u64,
    /// Bytes to receive on each, no more and no fewer.
    #[serde(default)]
    pub receive: u64,
    /// Way in which each connection ends.
    #[serde(default)]
    pub end: End,
    /// Milliseconds between the last byte and the end.
    #[serde(default)]
    pub pause_ms: u64,
    /// Milliseconds between two beginnings of each of the `concurrency`.
    #[serde(default)]
    pub every_ms: u64,
    /// Milliseconds after which a system call gives up.
    #[serde(default = "half_a_minute")]
    pub timeout_ms: u64,
    /// Keep the connections open under this name instead of ending them.
    #[serde(default)]
    pub hold: Option<String>,
    /// Answer at once, with [`Answer::Running`].
    #[serde(default)]
    pub background: bool,
}

impl Connect {
    /// One connection to the target, with nothing sent.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            bind: None,
            count: one(),
            concurrency: one_at_a_time(),
            send: 0,
            receive: 0,
            end: End::default(),
            pause_ms: 0,
            every_ms: 0,
            timeout_ms: half_a_minute(),
            hold: None,
            background: false,
        }
    }
}

const fn one() -> u64 {
    1
}

const fn one_at_a_time() -> u32 {
    1
}

const fn half_a_minute() -> u64 {
    30_000
}

/// Way in which a client ends a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// Close.
    #[default]
    Close,
    /// Shut the sending direction, read until the server ends, close.
    HalfClose,
    /// Read until the server ends, close.
    AwaitServer,
    /// RST.
    Reset,
}

/// A run in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    /// Its number.
    pub run: u64,
}

/// See [`Command::Exchange`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exchange {
    /// The name under which they are held.
    pub held: String,
    /// Bytes to send on each.
    #[serde(default)]
    pub send: u64,
    /// Bytes to receive on each, no more and no fewer.
    #[serde(default)]
    pub receive: u64,
}

/// See [`Command::Close`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Close {
    /// The name under which they are held.
    pub held: String,
    /// Number of connections to close, oldest first; all if absent.
    #[serde(default)]
    pub count: Option<u64>,
    /// Way in which they end.
    #[serde(default)]
    pub end: End,
}

/// Results of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outcome {
    /// `connect()` succeeded.
    pub opened: u64,
    /// `connect()` failed, by what it returned.
    pub failed: Failures,
    /// The kernel made no attempt: no descriptor or no local port was left.
    pub not_attempted: u64,
    /// Opened, and something went otherwise than planned later.
    pub broken: u64,
    /// Payload that `write()` took.
    pub sent: u64,
    /// Payload that `read()` gave.
    pub received: u64,
    /// Start of the first one, in microseconds since 1970 by the machine's clock.
    pub began_unix_micros: u64,
    /// Microseconds from the first `connect()` to the last `close()`.
    pub micros: u64,
    /// The first thing that went wrong, in words.
    pub first_error: Option<String>,
}

/// Why `connect()` failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failures {
    /// `ECONNREFUSED`, `ECONNRESET`.
    pub refused: u64,
    /// `ETIMEDOUT`, or `timeoutMs` passed.
    pub timed_out: u64,
    /// `ENETUNREACH`, `EHOSTUNREACH`.
    pub unreachable: u64,
    /// Anything else.
    pub other: u64,
}

impl Failures {
    /// All.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.refused + self.timed_out + self.unreachable + self.other
    }
}

/// All counts of a program since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// As a client, by target.
    pub clients: Vec<ClientCounts>,
    /// As a server, by local port and peer.
    pub servers: Vec<ServerCounts>,
    /// As an echo of datagrams, by local port and peer: conversations are as many as there were ports of the peer.
    pub echoes: Vec<ServerCounts>,
    /// `accept()` failed: no descriptor was left. The connections are in the queue still.
    pub accept_errors: u64,
}

/// Counts of the program as a client of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCounts {
    /// The address that was called; IPv4-mapped ones appear as IPv4.
    pub target: SocketAddr,
    /// `connect()` succeeded.
    pub opened: u64,
    /// Of these, open now.
    pub open: u64,
    /// `connect()` failed.
    pub failed: Failures,
    /// See [`Outcome::not_attempted`].
    pub not_attempted: u64,
    /// See [`Outcome::broken`].
    pub broken: u64,
    /// Payload that `write()` took.
    pub sent: u64,
    /// Payload that `read()` gave.
    pub received: u64,
}

/// Counts of the program as a server at one port for one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerCounts {
    /// The port it listens at.
    pub port: u16,
    /// The client's address as `accept()` gave it; IPv4-mapped ones appear as IPv4.
    pub peer: IpAddr,
    /// `accept()` succeeded.
    pub opened: u64,
    /// Of these, open now.
    pub open: u64,
    /// A `read()` or `write()` failed, or the client ended in the middle of a request.
    pub broken: u64,
    /// Payload that `write()` took.
    pub sent: u64,
    /// Payload that `read()` gave.
    pub received: u64,
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// Text that is no command, or one that cannot be carried out, with what to change.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        let command: Self = serde_json::from_str(text)?;
        match &command {
            Self::Connect(connect) => connect.check()?,
            Self::Listen(Listen { behaviour: Behaviour::Reply { request: 0, .. }, .. }) => {
                return Err(CommandError::Value("request", "has to be at least 1; `source` sends without being asked"));
            }
            _ => {}
        }
        Ok(command)
    }
}

impl Connect {
    fn check(&self) -> Result<(), CommandError> {
        if self.concurrency == 0 || self.concurrency > 4096 {
            return Err(CommandError::Value("concurrency", "has to be from 1 to 4096"));
        }
        if self.timeout_ms == 0 {
            return Err(CommandError::Value("timeoutMs", "has to be at least 1"));
        }
        if self.target.port() == 0 {
            return Err(CommandError::Value("target", "has to have a port"));
        }
        if self.bind.is_some_and(|bind| bind.is_ipv4() != self.target.is_ipv4()) {
            return Err(CommandError::Value("bind", "has to be of the target's address family"));
        }
        Ok(())
    }
}

/// Why text is no command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No JSON, or of another shape.
    #[error("cannot read the command: {0}")]
    Shape(#[from] serde_json::Error),
    /// A value out of range.
    #[error("`{0}` {1}")]
    Value(&'static str, &'static str),
}
