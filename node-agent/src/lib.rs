//! Node agent: captures the connections of its node, attributes them to pods and containers, and reports them.
//!
//! [`capture`] counts connections, and [`attribution`] finds their owners. [`observation`] combines both (with the
//! flows in [`flow_store`]), and [`observer`] keeps it up to date. [`report`] sends it to the operator. [`watch`] shows it
//! on a terminal, and [`check`] probes this machine. [`commands`] reads the command line and starts everything.
#![deny(unsafe_code)]

pub mod arguments;
pub mod attribution;
pub mod backoff;
pub mod budget;
#[allow(unsafe_code, reason = "the border to the kernel")]
pub mod capture;
pub mod capture_starters;
pub mod check;
pub mod commands;
pub mod endpoints;
pub mod epoch;
pub mod fault_injection;
pub mod flow_store;
#[allow(unsafe_code, reason = "a call into the C library")]
pub mod malloc;
mod memory_limit;
pub mod names;
pub mod node_addresses;
pub mod observation;
pub mod observer;
#[allow(unsafe_code, reason = "the runtime asks for a promise about the descriptor")]
pub mod readiness;
pub mod report;
pub mod watch;
