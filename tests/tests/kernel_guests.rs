//! The agent's tests on the oldest kernel that we support, in a virtual machine (`scripts/kernels test --quick`).
//! `scripts/test-long kernels` runs all of them on all kernels.
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
