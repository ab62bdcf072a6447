//! The node agent: captures the connections of its node, finds out whose they are, and reports them.
//!
//! The way of a connection: [`capture`] counts it, [`attribution`] says whose it is, [`observation`] is what is known
//! (with the flows in [`store`]), [`observer`] keeps that up to date, [`report`] tells the operator. [`watch`] shows
//! the same on a terminal, and [`check`] what this machine can do; [`commands`] reads the command line and wires it up.
#![deny(unsafe_code)]

pub mod attribution;
pub mod backoff;
pub mod budget;
#[allow(unsafe_code, reason = "the border to the kernel")]
pub mod capture;
pub mod check;
pub mod commands;
pub mod endpoints;
pub mod epoch;
#[allow(unsafe_code, reason = "a call into the C library")]
mod memory;
mod memory_limit;
pub mod names;
pub mod node_addresses;
pub mod observation;
pub mod observer;
mod packed;
#[allow(unsafe_code, reason = "the runtime asks for a promise about the descriptor")]
pub mod readiness;
pub mod report;
pub mod sabotage;
pub mod store;
pub mod supervision;
pub mod watch;
