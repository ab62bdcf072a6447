//! Time and memory of a start of the capture, in a process of its own.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use nix::{
    sys::resource::{UsageWho, getrusage},
    sys::time::TimeValLike as _,
};
use scopeprobe_agent::{capture::Capture as _, malloc::keep_small};
use serde_json::Value;

use crate::hooks;

/// Starts that are measured; of each figure the median counts.
const STARTS: usize = 5;

/// Figures of a start, by their names in the result.
const FIGURES: [&str; 4] = ["milliseconds", "cpuMilliseconds", "peakKibibytes", "kibibytes"];

/// Returns the figures of a start.
pub fn measure(cgroup: &Path) -> Value {
    let starts: Vec<Value> = (0..STARTS).map(|_| start(cgroup)).collect();
    let median = |figure: &&str| {
        let mut values: Vec<u64> = starts.iter().map(|start| start[figure].as_u64().unwrap()).collect();
        values.sort_unstable();
        ((*figure).to_owned(), Value::from(values[STARTS / 2]))
    };
    Value::Object(FIGURES.iter().map(median).collect())
}

fn start(cgroup: &Path) -> Value {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.arg("start").arg(cgroup).stderr(Stdio::inherit()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The child's main function: starts a capture, and prints the figures.
pub fn run(cgroup: &Path) {
    // As the agent does.
    keep_small();
    let begun = Instant::now();
    let mut capture = hooks::capture(cgroup, true);
    capture.read().unwrap();
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let cpu = usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kibibytes = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let values = [
        u64::try_from(begun.elapsed().as_millis()).unwrap(),
        u64::try_from(cpu).unwrap(),
        kibibytes("VmHWM:"),
        kibibytes("VmRSS:"),
    ];
    println!("{}", Value::Object(FIGURES.iter().map(|name| (*name).to_owned()).zip(values.map(Value::from)).collect()));
}
