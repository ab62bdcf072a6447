//! Attach types: the kernel hooks by which the programs observe connections.

use std::fmt;

use clap::ValueEnum;

/// Attach types, in the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Attach {
    /// `sock_ops` at the node's cgroup root: called by TCP for each connection, misses nothing.
    SockOps,
    /// The tracepoint `inet_sock_set_state`, as a program that knows the kernel's types.
    TpBtf,
    /// The same tracepoint by way of perf and tracefs.
    Tracepoint,
}

impl Attach {
    /// All attach types, the preferred one first.
    pub const ALL: [Self; 3] = [Self::SockOps, Self::TpBtf, Self::Tracepoint];

    /// Returns the name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SockOps => "SockOps",
            Self::TpBtf => "TpBtf",
            Self::Tracepoint => "Tracepoint",
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SockOps => "sock_ops",
            Self::TpBtf => "the BTF tracepoint",
            Self::Tracepoint => "the classic tracepoint",
        })
    }
}
