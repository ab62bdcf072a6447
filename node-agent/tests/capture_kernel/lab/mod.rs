//! A node in small: cgroups and network namespaces of our own, processes in them that make the connections they are
//! told to make, one step at a time, so that the test knows exactly what happened.

pub mod capabilities;
pub mod foreign;
pub mod routed;
mod workload;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, setrlimit};
use scopeprobe_agent::capture::{
    Attach, Capture, EbpfCapture, Feature, Losses, Refusal, Settings, find_cgroup_root, start_ebpf,
};
use topology::flow::{FlowCounters, FlowKey, Methods, Role};

/// Why the tests cannot run here, if so.
pub fn unsuitable() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some(String::from("not root"));
    }
    find_cgroup_root(Path::new("/sys/fs/cgroup")).err().map(|refusal| refusal.to_string())
}

/// The running kernel's version.
pub fn kernel_version() -> (u32, u32) {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_str().unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether this kernel can list the open sockets to a program: `bpf_sock_from_file` is of 5.11, a socket's cookie for
/// iterators of 5.12.
pub fn can_list() -> bool {
    kernel_version() >= (5, 12)
}

/// Why the classic tracepoint cannot be had here, if so. It is not for the tests to mount tracefs.
pub fn no_classic_tracepoint() -> Option<String> {
    if kernel_version() < (6, 1) {
        return Some(String::from("before 6.1 a classic tracepoint's program cannot allocate memory safely"));
    }
    let format = "events/sock/inet_sock_set_state/format";
    let found = Settings::default().tracefs_paths.iter().any(|path| path.join(format).exists());
    (!found).then(|| String::from("tracefs is not mounted"))
}

/// Connections that a storm makes in each of its threads: fewer where the machine is emulated.
pub fn storm_size(usual: u64) -> u64 {
    std::env::var("SCOPEPROBE_LAB_STORM").ok().and_then(|size| size.parse().ok()).unwrap_or(usual)
}

/// All processors, as the mask that steering is told.
pub fn all_processors() -> String {
    let processors = thread::available_parallelism().unwrap().get().min(32);
    format!("{:x}", (1_u64 << processors) - 1)
}

/// Ends a test that needs open sockets to be listed where the kernel cannot; that the capture says so is asserted by
/// [`Watched::start`].
macro_rules! list_or_skip {
    () => {
        if !$crate::lab::can_list() {
            println!("skipped: this kernel cannot list the open sockets");
            return;
        }
    };
}
pub(crate) use list_or_skip;

/// `let Some(node) = Node::new() else { return }`, with the reason printed.
macro_rules! node_or_skip {
    () => {
        match $crate::lab::unsuitable() {
            Some(reason) => {
                println!("skipped: {reason}");
                return;
            }
            None => {
                $crate::lab::capabilities::limit();
                $crate::lab::Node::new()
            }
        }
    };
}
pub(crate) use node_or_skip;

/// A cgroup with cgroups below it. Goes with its value.
pub struct Node {
    root: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mount = find_cgroup_root(Path::new("/sys/fs/cgroup")).unwrap();
        let root = mount.join(format!("scopeprobe-capture-{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        Self { root }
    }

    pub fn settings(&self, attach: Attach) -> Settings {
        // No process of the test's own is below the root: it would be moved with all its threads.
        Settings { cgroup_root: self.root.clone(), self_test: false, attach: Some(attach), ..Settings::default() }
    }

    pub fn capture(&self, attach: Attach) -> Watched {
        Watched::start(&self.settings(attach))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A process in the cgroup of this name, in the machine's own network namespace.
    pub fn process(&self, cgroup: &str) -> Process {
        Process::start(&self.cgroup(cgroup), &[])
    }

    /// A process in the network namespace of another one.
    pub fn process_beside(&self, cgroup: &str, other: &Process) -> Process {
        Process::start(&self.cgroup(cgroup), &["nsenter", "-t", &other.pid().to_string(), "-n"])
    }

    /// A process with a network namespace of its own, with or without receive packet steering.
    pub fn process_in_own_netns(&self, cgroup: &str, steering: bool) -> Process {
        let steer = if steering {
            format!("echo {} > /sys/class/net/lo/queues/rx-0/rps_cpus && ", all_processors())
        } else {
            String::new()
        };
        self.process_after(cgroup, &format!("mount -t sysfs none /sys && ip link set lo up && {steer}true"))
    }

    /// A process with a network namespace of its own, without IPv6.
    pub fn process_without_ipv6(&self, cgroup: &str) -> Process {
        self.process_after(cgroup, "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    }

    fn process_after(&self, cgroup: &str, setup: &str) -> Process {
        let script = format!("{setup} && exec \"$0\" \"$@\"");
        Process::start(&self.cgroup(cgroup), &["unshare", "--net", "--mount", "sh", "-c", &script])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Ok(below) = fs::read_dir(&self.root) else { return };
        for entry in below.flatten().filter(|entry| entry.path().is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
        if let Err(error) = fs::remove_dir(&self.root) {
            println!("{} stays behind: {error}", self.root.display());
        }
    }
}

/// A process that does what it is told: this test's own program, started once more.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    cgroup: u64,
}

impl Process {
    fn start(cgroup: &Path, wrapper: &[&str]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(["--exact", "obedient_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env("SCOPEPROBE_LAB_PROCESS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output, cgroup: fs::metadata(cgroup).unwrap().ino() }
    }

    pub fn cgroup(&self) -> u64 {
        self.cgroup
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command in this process's network namespace.
    pub fn in_netns(&self, command: &str) {
        let target = self.pid().to_string();
        let status = Command::new("nsenter").args(["-t", &target, "-n", "sh", "-ec", command]).status().unwrap();
        assert!(status.success(), "{command}");
    }

    /// Does one thing and returns what it says.
    pub fn tell(&mut self, command: &str) -> String {
        self.begin(command);
        self.finish()
    }

    pub fn begin(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    pub fn finish(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the process ended");
            // The harness of the process prints before the first answer, on the same line.
            if let Some(at) = line.find("@ ") {
                return String::from(line[at + 2..].trim());
            }
        }
    }

    /// Listens and returns the port.
    pub fn listen(&mut self, name: &str, address: &str) -> u16 {
        self.tell(&format!("listen {name} {address}")).parse().unwrap()
    }

    pub fn netns(&mut self) -> u32 {
        self.tell("netns").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of another test of this program, run alone with exactly these capabilities.
pub fn run_with_capabilities(test: &str, capabilities: &str, variables: &[(&str, &str)]) -> String {
    let wrapper = [
        format!("--bounding-set=-all,{capabilities}"),
        format!("--inh-caps=-all,{capabilities}"),
        String::from("--no-new-privs"),
    ];
    let mut command = Command::new("setpriv");
    command.args(wrapper).arg(std::env::current_exe().unwrap());
    if let Some((_, limit)) = variables.iter().find(|(name, _)| *name == "SCOPEPROBE_LAB_MEMLOCK") {
        use std::os::unix::process::CommandExt;
        let limit = limit.parse().unwrap();
        let set = move || Ok(setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit)?);
        // SAFETY: one system call, no memory is touched.
        #[expect(unsafe_code, reason = "what is to be done between fork and exec")]
        unsafe {
            command.pre_exec(set)
        };
    }
    run_test(command, test, variables)
}

/// The output of another test of this program, run alone in this cgroup.
pub fn run_in_cgroup(test: &str, cgroup: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(cgroup);
    command.arg(std::env::current_exe().unwrap());
    run_test(command, test, variables)
}

fn run_test(mut command: Command, test: &str, variables: &[(&str, &str)]) -> String {
    let output = command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The other side of [`Process`]: obeys until its input ends.
pub fn obey() {
    let mut lab = Sockets::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = lab.act(&words).unwrap_or_else(|error| format!("error {error}"));
        let mut out = std::io::stdout().lock();
        writeln!(out, "@ {answer}").unwrap();
        out.flush().unwrap();
    }
}

#[derive(Default)]
struct Sockets {
    listeners: BTreeMap<String, TcpListener>,
    streams: BTreeMap<String, TcpStream>,
    holders: Vec<Child>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

impl Sockets {
    fn act(&mut self, words: &[&str]) -> std::io::Result<String> {
        let number = |index: usize| words[index].parse::<usize>().unwrap();
        match words[0] {
            "netns" => return Ok(fs::metadata("/proc/self/ns/net")?.ino().to_string()),
            "listen" => {
                let listener = TcpListener::bind(words[2])?;
                let port = listener.local_addr()?.port();
                self.listeners.insert(String::from(words[1]), listener);
                return Ok(port.to_string());
            }
            // As Go's servers do by default: for MPTCP, which is TCP with those who do not speak it.
            "listen-mptcp" => {
                let listener = listen_mptcp()?;
                let port = listener.local_addr()?.port();
                self.listeners.insert(String::from(words[1]), listener);
                return Ok(port.to_string());
            }
            "unlisten" => drop(self.listeners.remove(words[1])),
            "connect" => {
                let stream = TcpStream::connect(words[2])?;
                self.streams.insert(String::from(words[1]), stream);
            }
            "accept" => {
                let (stream, _) = self.listeners[words[2]].accept()?;
                self.streams.insert(String::from(words[1]), stream);
            }
            "send" => self.stream(words[1]).write_all(&vec![7; number(2)])?,
            "receive" => self.stream(words[1]).read_exact(&mut vec![0; number(2)])?,
            "end" => assert_eq!(self.stream(words[1]).read(&mut [0])?, 0),
            "shutdown" => self.stream(words[1]).shutdown(std::net::Shutdown::Write)?,
            "close" => drop(self.streams.remove(words[1])),
            "reset" => reset(self.streams.remove(words[1]).unwrap())?,
            // Another process that holds the socket too, and a second descriptor in this one.
            "share" => {
                let stream = &self.streams[words[1]];
                let (there, here) = (stream.try_clone()?, stream.try_clone()?);
                let holder = Command::new("sleep").arg("1000").stdin(OwnedFd::from(there)).spawn()?;
                self.holders.push(holder);
                self.streams.insert(format!("{}-again", words[1]), here);
            }
            "unshare" => {
                for mut holder in self.holders.drain(..) {
                    holder.kill()?;
                    holder.wait()?;
                }
                let again = format!("{}-again", words[1]);
                self.streams.remove(&again);
            }
            // `refused ADDRESS N`
            "refused" => {
                for _ in 0..number(2) {
                    assert!(TcpStream::connect(words[1]).is_err());
                }
            }
            // `serve LISTENER N REQUEST ANSWER`, `call ADDRESS N REQUEST ANSWER`: short connections in a row.
            "serve" => serve(&self.listeners[words[1]], number(2), number(3), number(4))?,
            "call" => call(words[1], number(2), number(3), number(4))?,
            // `call-slowly ADDRESS N`: one after the other, a hundred in a second.
            "call-slowly" => {
                for _ in 0..number(2) {
                    call(words[1], 1, 10, 20)?;
                    thread::sleep(Duration::from_millis(10));
                }
            }
            "serve-each" | "call-in-turns" | "hold-each" | "storm-at" => return self.act_at_once(words),
            // `both LISTENER PORT N`: short connections of this process with itself.
            "both" => {
                for _ in 0..number(3) {
                    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(number(2)).unwrap()))?;
                    let (other, _) = self.listeners[words[1]].accept()?;
                    reset(stream)?;
                    drop(other);
                }
            }
            // `storm ADDRESS THREADS N REQUEST ANSWER`: both ends in this process, as fast as it can.
            "storm" => storm(words[1], number(2), number(3), number(4), number(5), &|| false),
            // `storm-until FILE ADDRESS THREADS N REQUEST ANSWER`: N at a time, until there is a file of this name.
            "storm-until" => {
                let more = || !Path::new(words[1]).exists();
                storm(words[2], number(3), number(4), number(5), number(6), &more);
            }
            other => panic!("unknown command {other}"),
        }
        Ok(String::from("done"))
    }

    /// What `workload` does.
    fn act_at_once(&self, words: &[&str]) -> std::io::Result<String> {
        let size = |index: usize| words[index].parse::<usize>().unwrap();
        let count = |index: usize| words[index].parse::<u32>().unwrap();
        let listeners = |names: &[&str]| names.iter().map(|name| &self.listeners[*name]).collect::<Vec<_>>();
        match words[0] {
            // `serve-each N REQUEST ANSWER HANGUPS LISTENER...`
            "serve-each" => workload::serve_each(&listeners(&words[5..]), size(1), size(2), size(3), size(4)),
            // `call-in-turns N RATE ADDRESS...`
            "call-in-turns" => workload::call_in_turns(&words[3..], count(1), count(2)),
            // `hold-each N MILLISECONDS REQUEST ANSWER ADDRESS...`
            "hold-each" => workload::hold_each(&words[5..], count(1), count(2).into(), size(3), size(4)),
            // `storm-at N REQUEST ANSWER LISTENER...`
            _ => workload::storm_at(&listeners(&words[4..]), size(1), size(2), size(3)).map(|()| "done".into()),
        }
    }

    fn stream(&mut self, name: &str) -> &mut TcpStream {
        self.streams.get_mut(name).unwrap()
    }
}

#[expect(unsafe_code, reason = "nix knows no MPTCP")]
fn listen_mptcp() -> std::io::Result<TcpListener> {
    use nix::{
        libc,
        sys::socket::{Backlog, SockaddrIn, bind, listen},
    };
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP);
        nix::errno::Errno::result(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket.into())
}

fn reset(stream: TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

fn serve(listener: &TcpListener, times: usize, request: usize, answer: usize) -> std::io::Result<()> {
    let (mut asked, answer) = (vec![0; request], vec![1; answer]);
    for time in 0..times {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut asked)?;
        stream.write_all(&answer)?;
        // In turns: the client closes first, the server does, or both at once.
        if time % 3 == 0 {
            let _ = stream.read(&mut [0]);
        }
    }
    Ok(())
}

fn call(address: &str, times: usize, request: usize, answer: usize) -> std::io::Result<()> {
    let (request, mut answered) = (vec![1; request], vec![0; answer]);
    for time in 0..times {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&request)?;
        stream.read_exact(&mut answered)?;
        if time % 3 == 1 {
            let _ = stream.read(&mut [0]);
        }
        // The ports of one pair of addresses would run out; a reset leaves none behind, whoever had closed first.
        reset(stream)?;
    }
    Ok(())
}

/// In each thread so many connections, and as many again as long as `more` says so.
fn storm(
    address: &str,
    threads: usize,
    times: usize,
    request: usize,
    answer: usize,
    more: &(impl Fn() -> bool + Sync),
) {
    thread::scope(|scope| {
        for _ in 0..threads {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap().to_string();
            let (again, asked) = mpsc::channel();
            scope.spawn(move || {
                for () in asked {
                    serve(&listener, times, request, answer).unwrap();
                }
            });
            scope.spawn(move || {
                loop {
                    again.send(()).unwrap();
                    call(&at, times, request, answer).unwrap();
                    if !more() {
                        break;
                    }
                }
            });
        }
    });
}

/// Adds what a capture has said to what it had said before; nothing may go backwards.
pub fn take_in(flows: &mut BTreeMap<FlowKey, FlowCounters>, news: Vec<(FlowKey, FlowCounters)>) {
    for (key, now) in news {
        let before = flows.insert(key, now).unwrap_or_default();
        let grows = |field: fn(&FlowCounters) -> u64| assert!(field(&before) <= field(&now), "{before:?} {now:?}");
        grows(|counters| counters.opened);
        grows(|counters| counters.closed);
        grows(|counters| counters.failed);
        grows(|counters| counters.preexisting);
        grows(|counters| counters.bytes_sent);
        grows(|counters| counters.bytes_received);
        grows(|counters| counters.inferred);
        grows(|counters| counters.without_bytes);
    }
}

/// A capture, and all that it has said so far.
pub struct Watched {
    pub capture: EbpfCapture,
    pub flows: BTreeMap<FlowKey, FlowCounters>,
    pub losses: Losses,
    pub seen: u64,
}

impl Watched {
    pub fn start(settings: &Settings) -> Self {
        Self::try_start(settings).unwrap()
    }

    /// As [`Watched::start`], where a refusal is of interest.
    pub fn try_start(settings: &Settings) -> Result<Self, Refusal> {
        let capture = start_ebpf(settings)?;
        let description = capture.description();
        assert_eq!(settings.attach.map(Attach::as_str), Some(description.attach));
        assert_eq!(description.has(Feature::OpenSockets), can_list(), "{:?}", description.degradations);
        let by_sock_ops = settings.attach == Some(Attach::SockOps);
        assert_eq!(description.has(Feature::EveryEvent), by_sock_ops, "{:?}", description.degradations);
        assert!(description.has(Feature::OldCloses), "{:?}", description.degradations);
        Ok(Self { capture, flows: BTreeMap::new(), losses: Losses::default(), seen: 0 })
    }

    /// Reads once; nothing may go backwards.
    pub fn read(&mut self) {
        let reading = self.capture.read().unwrap();
        take_in(&mut self.flows, reading.flows);
        (self.losses, self.seen) = (reading.losses, reading.seen);
    }

    /// Reads until that many flows have room.
    pub fn wait_for_free_slots(&mut self, slots: u32) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.capture.free_slots() < slots {
            assert!(Instant::now() < deadline, "{} of {slots} slots are free", self.capture.free_slots());
            self.read();
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Reads and looks until it knows exactly this, or for a minute. Where runs of a tracepoint were skipped, as many
    /// connections may be missing.
    pub fn expect(&mut self, expected: &BTreeMap<FlowKey, FlowCounters>) {
        /// Long enough to know that nothing more is coming.
        const SETTLED: Duration = Duration::from_secs(5);
        let began = Instant::now();
        loop {
            self.capture.look_again();
            self.read();
            if self.is(expected) {
                let seen = expected.values().map(|counters| counters.opened + counters.failed).sum::<u64>();
                assert_eq!(self.seen, seen);
                return;
            }
            if began.elapsed() > SETTLED
                && self.missing(expected).is_some_and(|missing| missing <= self.losses.missed_runs)
            {
                println!("{} runs were skipped", self.losses.missed_runs);
                return;
            }
            if began.elapsed() > Duration::from_mins(1) {
                assert_eq!(self.flows, with_methods(expected), "{:?}", self.losses);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing but what a tracepoint may have missed.
    pub fn assert_nothing_lost(&self) {
        let Losses { missed_runs, closes_unseen, .. } = self.losses;
        assert!(closes_unseen <= missed_runs, "{:?}", self.losses);
        assert_eq!(self.losses, Losses { missed_runs, closes_unseen, ..Losses::default() });
        assert!(missed_runs == 0 || self.capture.description().attach != "SockOps", "{:?}", self.losses);
    }

    fn is(&self, expected: &BTreeMap<FlowKey, FlowCounters>) -> bool {
        self.flows == with_methods(expected)
    }

    /// How many openings, failures or ends are missing, whichever are more; `None` where there are too many, or others.
    fn missing(&self, expected: &BTreeMap<FlowKey, FlowCounters>) -> Option<u64> {
        if !self.flows.keys().all(|key| expected.contains_key(key)) {
            return None;
        }
        let lack = |field: fn(&FlowCounters) -> u64| {
            let lacks = expected
                .iter()
                .map(|(key, counters)| field(counters).checked_sub(self.flows.get(key).map_or(0, field)));
            lacks.sum::<Option<u64>>()
        };
        let begun = lack(|counters| counters.opened + counters.preexisting)? + lack(|counters| counters.failed)?;
        Some(begun.max(lack(|counters| counters.closed)?))
    }
}

/// Whatever is counted here is counted by eBPF.
pub fn with_methods(expected: &BTreeMap<FlowKey, FlowCounters>) -> BTreeMap<FlowKey, FlowCounters> {
    let ebpf = |counters: &FlowCounters| FlowCounters { methods: Methods::EBPF, ..*counters };
    expected.iter().map(|(key, counters)| (*key, ebpf(counters))).collect()
}

/// One end's key.
pub fn key(process: &mut Process, role: Role, local: &str, remote: &str, port: u16) -> FlowKey {
    FlowKey {
        cgroup_id: process.cgroup(),
        netns: process.netns(),
        role,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        port,
    }
}
