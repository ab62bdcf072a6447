//! The program's command line.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

const AGENT: &str = env!("CARGO_BIN_EXE_scopeprobe-agent");

#[test]
fn plain_text_is_refused_without_the_flag() {
    let output = Command::new(AGENT)
        .args(["run", "--node-name", "n", "--operator", "http://127.0.0.1:1", "--http-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("--insecure-plaintext"), "{error}");
}
