//! Measures what the agent's capture costs, and what it counts.
//!
//! - The time in the kernel for each connection and each datagram, beside empty programs of the same hooks.
//! - The rate with and without the programs, in pairs, and the share of the connections that are counted.
//! - Time and memory of a start.
//!
//! Needs root. It makes a cgroup of its own, and traffic over the loopback. `SCOPEPROBE_BENCH=<connections>,<pairs>`
//! changes the size. `SCOPEPROBE_BENCH_WORK=<work>` measures one kind of load alone, and the rate with empty programs as
//! well. The last line is JSON.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends where it cannot go on")]

mod hooks;
mod kernel_time;
mod load;
mod start;

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::sys::{Stats, enable_stats};
use scopeprobe_agent::capture::find_cgroup_root;

use crate::{
    hooks::Hooks,
    kernel_time::KernelTime,
    load::{Load, Work},
};

/// Repetitions of each measurement of kernel time; the median counts.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("load") => return load::run(&arguments[2]),
        Some("start") => return start::run(arguments[2].as_ref()),
        _ => {}
    }
    let size = std::env::var("SCOPEPROBE_BENCH").unwrap_or_else(|_| String::from("20000,9"));
    let (connections, pairs) = size.split_once(',').unwrap();
    let (connections, pairs): (u64, usize) = (connections.parse().unwrap(), pairs.parse().unwrap());
    let cgroup = Cgroup::new();
    if let Ok(work) = std::env::var("SCOPEPROBE_BENCH_WORK") {
        return measure_alone(&cgroup.0, Work::named(&work), connections, pairs);
    }
    let map_bytes = hooks::map_bytes(&cgroup.0);
    println!("the maps take {map_bytes} bytes at the start");
    let start = start::measure(&cgroup.0);
    println!("start of the capture: {start}");
    let times = kernel_times(&cgroup.0, connections, &Work::ALL);
    let rates = rates(&cgroup.0, connections, pairs, &Work::ALL, Hooks::Capture);
    let all = serde_json::json!({ "mapBytes": map_bytes, "start": start, "kernelTime": times, "pairs": rates });
    println!("{all}");
}

/// Measures one kind of load.
fn measure_alone(cgroup: &Path, work: Work, connections: u64, pairs: usize) {
    let times = kernel_times(cgroup, connections, &[work]);
    println!("empty programs on packets:");
    let floor = rates(cgroup, connections, pairs, &[work], Hooks::EmptyPackets);
    println!("the capture:");
    let rates = rates(cgroup, connections, pairs, &[work], Hooks::Capture);
    println!("{}", serde_json::json!({ "kernelTime": times, "floor": floor, "pairs": rates }));
}

/// Cgroup of the load; removed with this value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mount = find_cgroup_root("/sys/fs/cgroup".as_ref()).unwrap();
        let path = mount.join(format!("scopeprobe-bench-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            println!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// Prints and returns the kernel time of each set of programs, by the end of the connections.
fn kernel_times(cgroup: &Path, connections: u64, works: &[Work]) -> serde_json::Value {
    let _statistics = enable_stats(Stats::RunTime).unwrap();
    let mut found = serde_json::Map::new();
    println!("kernel time for a connection or a datagram, both ends; median of {ROUNDS} rounds of {connections}");
    println!("{:14} {:>4} {:>6} {:>8}", "programs", "", "runs", "ns");
    for hooks in [Hooks::EmptyOps, Hooks::EmptyStates, Hooks::Connections, Hooks::EmptyPackets, Hooks::Capture] {
        for work in hooks.works().iter().filter(|work| works.contains(work)) {
            let (runs, nanoseconds) = kernel_time(hooks, *work, cgroup, work.count(connections));
            println!("{:14} {:>4} {runs:>6.1} {nanoseconds:>8.0}", format!("{hooks:?}"), format!("{work:?}"));
            let key = format!("{hooks:?}{work:?}");
            found.insert(key, serde_json::json!({ "runs": runs, "nanoseconds": nanoseconds }));
        }
    }
    found.into()
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn kernel_time(hooks: Hooks, work: Work, cgroup: &Path, connections: u64) -> (f64, f64) {
    let mut attached = hooks.attach(cgroup);
    let mut load = Load::start(cgroup, work);
    let mut measure = |connections| {
        let before = KernelTime::of(hooks.programs());
        load.begin(connections);
        attached.read_until(|| load.end());
        KernelTime::of(hooks.programs()).since(before)
    };
    measure(connections / 10);
    let mut rounds: Vec<KernelTime> = (0..ROUNDS).map(|_| measure(connections)).collect();
    rounds.sort_by_key(|round| round.nanoseconds);
    let median = rounds[ROUNDS / 2];
    (median.runs as f64 / connections as f64, median.nanoseconds as f64 / connections as f64)
}

/// Prints and returns the ratio of rates and of processor time, with these programs and without, and the share of ends of
/// connections that the capture counted.
fn rates(cgroup: &Path, connections: u64, pairs: usize, works: &[Work], hooks: Hooks) -> serde_json::Value {
    let mut found = serde_json::Map::new();
    println!("with the programs / without, in {pairs} pairs: median (least to greatest)");
    for work in works {
        let work = *work;
        let count = work.count(connections);
        let (mut rate, mut cpu, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..pairs {
            // Each comes first as often as the other.
            let order = if turn % 2 == 0 { [Hooks::Off, hooks] } else { [hooks, Hooks::Off] };
            let mut pair = order.map(|hooks| (hooks == Hooks::Off, at_full_speed(hooks, work, cgroup, count)));
            pair.sort_by_key(|(is_off, _)| !is_off);
            let [(_, off), (_, on)] = pair;
            rate.push(off.seconds / on.seconds);
            cpu.push(on.cpu_seconds / off.cpu_seconds);
            counted.push(on.counted);
        }
        let mut all = vec![("rate", rate), ("cpu", cpu)];
        if matches!(work, Work::Fin | Work::Rst) {
            all.push(("counted", counted));
        }
        for (what, mut values) in all {
            values.sort_by(f64::total_cmp);
            let (median, least, most) = (values[pairs / 2], values[0], values[pairs - 1]);
            println!("{what:7} {work:?} {median:.3} ({least:.3} to {most:.3})");
            found.insert(format!("{what}{work:?}"), serde_json::json!([median, least, most]));
        }
    }
    found.into()
}

/// Time of a load at full speed.
struct Speed {
    seconds: f64,
    /// Processor time of the load and of the kernel's work for it.
    cpu_seconds: f64,
    /// Ends of connections that the capture counted, as a share of all; 0 without it.
    counted: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn at_full_speed(hooks: Hooks, work: Work, cgroup: &Path, count: u64) -> Speed {
    let mut attached = hooks.attach(cgroup);
    let mut load = Load::start(cgroup, work);
    load.begin(count / 10);
    load.end();
    let (before, seen) = (cpu_microseconds(cgroup), attached.seen());
    load.begin(count);
    let elapsed = attached.read_until(|| load.end());
    Speed {
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: (cpu_microseconds(cgroup) - before) as f64 / 1e6,
        counted: (attached.seen() - seen) as f64 / (2 * count) as f64,
    }
}

fn cpu_microseconds(cgroup: &Path) -> u64 {
    let stat = fs::read_to_string(cgroup.join("cpu.stat")).unwrap();
    stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
}
