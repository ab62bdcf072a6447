//! Reverts a test's changes of the shared cluster, also if the test fails.

use std::process::{Command, Stdio};

use crate::{Cluster, place};

/// Runs `kubectl` with these arguments when dropped.
pub struct Undo {
    cluster: Cluster,
    arguments: Vec<String>,
}

impl Undo {
    /// To be kept until it is time to undo.
    #[must_use]
    pub fn by(cluster: &Cluster, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { cluster: cluster.clone(), arguments }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Not by the client: its runtime may be going down with a test that has failed.
        let undone = Command::new(place::tool("kubectl"))
            .args(&self.arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !undone.is_ok_and(|status| status.success()) {
            eprintln!("`kubectl {}` failed: do it by hand", self.arguments.join(" "));
        }
    }
}
