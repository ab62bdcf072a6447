//! Bad input: whoever gives it is told what is wrong with it, and everything else goes on.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod constraints;
mod edges;
mod node;
mod report;
mod spec;

/// One at a time of those tests that change what all of the cluster share.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
