//! The agent's tests on Debian's oldest and newest kernel that we support, in virtual machines (`scripts/kernels test --quick`).
#![forbid(unsafe_code)]

use std::path::Path;

use scopeprobe_tests::{Result, place};

/// Less than tests on a cluster, which go on meanwhile and mostly wait.
const NICE: (&str, &str) = ("NICE", "5");

async fn run(kernel: &str) -> Result<()> {
    let variables = [(NICE.0, Path::new(NICE.1))];
    let output = place::run(&place::script("kernels"), ["test", "--quick", kernel], &variables).await?;
    println!("{output}");
    Ok(())
}

#[tokio::test]
async fn agent_captures_on_the_oldest_kernel() -> Result<()> {
    run("5.10").await
}

#[tokio::test]
async fn agent_captures_on_the_newest_kernel() -> Result<()> {
    run("7.x").await
}
