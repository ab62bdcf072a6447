//! The page in Chromium, and its bundle. Node.js, the packages of `web/` and Chromium come by `scripts/setup web`.

#![expect(clippy::expect_used, reason = "a test")]

use std::process::Command;

fn run(command: &mut Command) {
    let output = command.output().expect("`scripts/setup web` installs what is missing");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}

#[test]
fn page_works_in_a_browser() {
    run(Command::new("node").args(["web/tests/page.mjs", env!("CARGO_BIN_EXE_kubectl-scopeprobe")]));
}

#[test]
fn bundle_is_built_from_its_sources() {
    run(Command::new("../scripts/web").arg("--check"));
}
