//! Tests bad input: the sender gets a clear error, and everything else continues.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod constraints;
mod edges;
mod node;
mod report;
mod spec;

/// One at a time of those tests that change what all of the cluster share.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
