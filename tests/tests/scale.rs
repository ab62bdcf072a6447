//! The operator as a process, with 20 simulated nodes: what it publishes is the expected map after each change, and every
//! count is exact at the end. `make bench-scale` measures the same with more nodes.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{env, path::PathBuf, time::Duration};

use scopeprobe_tests::{
    Result,
    scale::{self, Plan, phases::Phase},
};

/// Returns the operator that cargo has built beside this test.
fn operator() -> PathBuf {
    let test = env::current_exe().expect("the test has a path");
    let programs = test.ancestors().nth(2).expect("the test is two folders below the programs");
    programs.join("scopeprobe-operator")
}

async fn run(phases: &[Phase]) -> Result<()> {
    let figures = scale::run(&Plan {
        operator: operator(),
        nodes: 20,
        seconds: 5,
        backends: 2,
        // Counts become exact without a wait for the next interval.
        probe: "{topology: {counterInterval: 1s}}".to_owned(),
        phases: phases.to_vec(),
        patience: Duration::from_mins(3),
    })
    .await?;
    println!("{}", figures.table());
    let faults = figures.faults();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(figures.phases.len(), phases.len());
    assert!(figures.phases.iter().all(|phase| phase.flow_updates_per_second > 0.0 && phase.operator_cpu > 0.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_publishes_exact_map_while_pods_are_replaced() -> Result<()> {
    run(&[Phase::Start, Phase::NewEdges, Phase::Churn, Phase::Reconnect]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_publishes_exact_map_after_a_crash() -> Result<()> {
    run(&[Phase::Start, Phase::Steady, Phase::Restart, Phase::Reconnect]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_publishes_exact_map_after_a_crash_that_follows_churn() -> Result<()> {
    run(&[Phase::Start, Phase::Churn, Phase::Restart]).await
}
