//! The program's command line.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

const AGENT: &str = env!("CARGO_BIN_EXE_scopeprobe-agent");

/// Runs the agent with an address of the operator. Returns what it prints before it refuses.
fn refusal(operator: &str) -> String {
    let output = Command::new(AGENT)
        .args(["run", "--node-name", "n", "--operator", operator, "--http-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    error
}

#[test]
fn plain_text_is_refused_without_the_flag() {
    assert!(refusal("http://127.0.0.1:1").contains("--insecure-plaintext"));
}

#[test]
fn tls_is_refused_without_a_ca() {
    assert!(refusal("https://127.0.0.1:1").contains("--operator-ca=FILE"));
}
