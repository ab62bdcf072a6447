//! Traffic program of the oracle: makes connections on command, and counts its own actions.
//!
//! Commands come in as [`protocol::Command`] through a unix socket ([`control`]), so that control makes no TCP
//! connection. [`client`] and [`server`] hold [`conversation`]s; what their system calls returned goes into
//! [`counts`], and nothing else does. Names are asked for where a command says so ([`names`]), and nowhere else.
//!
//! [`script`] is the protocol of other processes, which tests of the agent script over pipes.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod conversation;
pub mod counts;
pub mod datagrams;
pub mod demo;
pub mod held;
pub mod names;
pub mod program;
pub mod protocol;
pub mod runs;
pub mod script;
pub mod server;
pub mod stopwatch;
