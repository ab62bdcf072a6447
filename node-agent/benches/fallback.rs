//! Benchmarks a full scan of the fallback on a large node: 20,000 sockets in 2,000 processes and 200 network
//! namespaces. Verifies that the scan stays within its budget. Needs root; creates and removes its own cgroups and
//! namespaces. `SCOPEPROBE_BENCH=<sockets>,<processes>,<namespaces>` makes it smaller.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark ends where it cannot go on")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Capture as _, FallbackCapture, FallbackSettings, find_cgroup_root, start_fallback};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("namespace") => namespace(arguments[2].parse().unwrap(), arguments[3].parse().unwrap()),
        Some("holder") => {
            let _sockets = hold(arguments[2].parse().unwrap());
            say_and_wait();
        }
        _ => measure(),
    }
}

/// A namespace: processes that hold both ends of connections among themselves.
fn namespace(processes: usize, connections: usize) {
    let program = std::env::current_exe().unwrap();
    let mut children: Vec<Child> = Vec::new();
    // This process is one of them.
    for number in 1..processes {
        let share = connections / processes + usize::from(number < connections % processes);
        let child = Command::new(&program)
            .args(["holder", &share.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        children.push(child);
    }
    for child in &mut children {
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    }
    let _sockets = hold(connections / processes + usize::from(!connections.is_multiple_of(processes)));
    say_and_wait();
    for mut child in children {
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

fn hold(connections: usize) -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        held.push(listener.accept().unwrap().0);
    }
    held
}

/// Until the input ends.
fn say_and_wait() {
    println!("ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

struct Node {
    root: PathBuf,
    namespaces: Vec<Child>,
}

impl Node {
    fn new(sockets: usize, processes: usize, namespaces: usize) -> Self {
        let mount = find_cgroup_root("/sys/fs/cgroup".as_ref()).unwrap();
        let root = mount.join(format!("scopeprobe-bench-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let mut node = Self { root, namespaces: Vec::new() };
        let program = std::env::current_exe().unwrap();
        for number in 0..namespaces {
            let cgroup = node.root.join(format!("pod{number}"));
            fs::create_dir(&cgroup).unwrap();
            let script = "echo $$ > \"$0/cgroup.procs\" && exec unshare --net sh -c 'ip link set lo up && exec \"$@\"' sh \"$@\"";
            let mut child = Command::new("sh")
                .args(["-c", script])
                .arg(&cgroup)
                .arg(&program)
                .args(["namespace", &(processes / namespaces).to_string(), &(sockets / 2 / namespaces).to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
            node.namespaces.push(child);
        }
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for namespace in &mut self.namespaces {
            drop(namespace.stdin.take());
        }
        for namespace in &mut self.namespaces {
            let _ = namespace.wait();
        }
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                let _ = fs::remove_dir(entry.path());
            }
        }
        if let Err(error) = fs::remove_dir(&self.root) {
            println!("{} stays behind: {error}", self.root.display());
        }
    }
}

fn wait_for_pass(capture: &FallbackCapture, number: u64) -> bool {
    let deadline = Instant::now() + Duration::from_mins(2);
    while capture.passes().count < number {
        if Instant::now() > deadline {
            println!("no pass {number} within two minutes");
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

fn measure() {
    let size = std::env::var("SCOPEPROBE_BENCH").unwrap_or_else(|_| String::from("20000,2000,200"));
    let size: Vec<usize> = size.split(',').map(|number| number.parse().unwrap()).collect();
    let &[sockets, processes, namespaces] = size.as_slice() else { panic!("three numbers are needed") };
    let begun = Instant::now();
    let node = Node::new(sockets, processes, namespaces);
    println!(
        "{sockets} sockets in {processes} processes and {namespaces} network namespaces, made in {:?}",
        begun.elapsed()
    );

    let settings = |cpu_millicores| FallbackSettings {
        cgroup_root: node.root.clone(),
        cpu_millicores,
        host_pid: std::process::id(),
        ..FallbackSettings::default()
    };
    let mut unbound = start_fallback(&settings(2000)).unwrap();
    println!("by {}", unbound.description().attach);
    if !wait_for_pass(&unbound, 1) {
        return;
    }
    let first = unbound.passes();
    let found: u64 = unbound.read().unwrap().flows.iter().map(|(_, counters)| counters.preexisting).sum();
    println!("first pass, everything is looked at: {:?} of CPU, {found} ends found", first.cost);
    if wait_for_pass(&unbound, 6) {
        println!("a pass in which nothing has changed: {:?} of CPU", unbound.passes().cost);
    }
    drop(unbound);

    let budget = 50;
    let mut bound = start_fallback(&settings(budget)).unwrap();
    let begun = Instant::now();
    thread::sleep(Duration::from_mins(1));
    let (used, passes) = (bound.passes(), bound.read().is_ok());
    println!(
        "within {budget} thousandths of a CPU: {} passes in {:?}, of {:?} each with {:?} of CPU; {:?} of CPU in all ({:.0} thousandths), reads fine: {passes}",
        used.count,
        begun.elapsed(),
        used.last,
        used.cost,
        used.in_all,
        used.in_all.as_secs_f64() / begun.elapsed().as_secs_f64() * 1000.0,
    );
    drop(bound);
    drop(node);
    assert_eq!(usize::try_from(found), Ok(sockets), "every socket is found");
    assert!(first.cost <= Duration::from_secs(1), "a full pass takes more than a second of CPU: {:?}", first.cost);
}
