//! Small node: its own cgroups and network namespaces, with scripted processes that make connections step by step, so
//! that the test knows exactly what happened.

pub mod capabilities;
mod datagrams;
pub mod foreign;
mod handshakes;
pub mod measures;
mod process;
pub mod routed;
mod scripted;
pub mod watched;
mod workload;

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use kernel_support::{KernelFeature, Release};
use nix::sys::resource::{Resource, setrlimit};
use prerequisites::{Prerequisite, skip};
use scopeprobe_agent::capture::{Attach, Settings, find_cgroup_root};
use topology::flow::{FlowKey, Protocol, Role};

pub use self::{
    process::{Process, requests, short, socket_address},
    scripted::run_scripted_process,
    watched::{Watched, with_methods, without_measures},
};

/// Time that the processes of a node have to end.
const END_OF_PROCESSES: Duration = Duration::from_secs(30);

/// Whether the tests can run here; records a skip where they cannot.
pub fn is_suitable() -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(Prerequisite::Root, "not root");
        return false;
    }
    match find_cgroup_root(Path::new("/sys/fs/cgroup")) {
        Ok(_) => true,
        Err(refusal) => {
            skip(Prerequisite::CgroupV2, &refusal.to_string());
            false
        }
    }
}

/// Release of the running kernel.
pub fn kernel_release() -> Release {
    let name = nix::sys::utsname::uname().unwrap();
    Release::parse(name.release().to_str().unwrap()).unwrap()
}

/// Returns whether the running kernel has the feature.
pub fn kernel_has(feature: KernelFeature) -> bool {
    kernel_release().has(feature)
}

/// Returns whether this kernel can list the open sockets to a program.
pub fn can_list() -> bool {
    kernel_has(KernelFeature::SocketIterators)
}

/// Why the classic tracepoint cannot be had here, if so. It is not for the tests to mount tracefs.
pub fn no_classic_tracepoint() -> Option<String> {
    if !kernel_has(KernelFeature::ClassicTracepointMapUpdates) {
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

/// Returns the mask of all processors, for packet steering.
pub fn all_processors() -> String {
    let processors = thread::available_parallelism().unwrap().get().min(32);
    format!("{:x}", (1_u64 << processors) - 1)
}

/// Ends a test that needs open sockets to be listed where the kernel cannot; that the capture says so is asserted by
/// [`Watched::start`].
macro_rules! list_or_skip {
    () => {
        if !$crate::lab::can_list() {
            prerequisites::skip(prerequisites::Prerequisite::SocketListing, "this kernel cannot list the open sockets");
            return;
        }
    };
}
pub(crate) use list_or_skip;

/// A new node; ends the test where this machine allows none.
macro_rules! node_or_skip {
    () => {{
        if !$crate::lab::is_suitable() {
            return;
        }
        $crate::lab::capabilities::limit();
        $crate::lab::Node::new()
    }};
}
pub(crate) use node_or_skip;

/// A cgroup with cgroups below it. Goes with its value.
pub struct Node {
    root: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        let mount = find_cgroup_root(Path::new("/sys/fs/cgroup")).unwrap();
        // Not by the process: its number may be that of an earlier one, whose cgroup was left behind.
        let root = tempfile::Builder::new().prefix("scopeprobe-capture-").tempdir_in(mount).unwrap().keep();
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
        if let Err(error) = remove_cgroup(&self.root) {
            println!("{} stays behind: {error}", self.root.display());
            assert!(thread::panicking(), "a process outlives its node");
        }
    }
}

/// Removes a cgroup and those below it, once their processes have ended.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    let begun = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && begun.elapsed() < END_OF_PROCESSES => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
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

/// One end's key.
pub fn key(process: &mut Process, role: Role, local: &str, remote: &str, port: u16) -> FlowKey {
    FlowKey {
        cgroup_id: process.cgroup(),
        netns: process.netns(),
        role,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
    }
}
