//! The node agent: captures the connections of its node, finds out whose they are, and reports them.

pub mod capture;
