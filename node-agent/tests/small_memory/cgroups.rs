//! A cgroup v2 directory that plays the node, and a cgroup with a memory limit for the agent, of whichever version the
//! machine limits memory by.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::geteuid;
use prerequisites::{Prerequisite, skip};
use scopeprobe_agent::capture::find_cgroup_root;

/// Names of files.
struct Version {
    limit: &'static str,
    now: &'static str,
    peak: &'static str,
    events: &'static str,
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    now: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const V2: Version =
    Version { limit: "memory.max", now: "memory.current", peak: "memory.peak", events: "memory.events" };

/// Goes with its value.
pub struct Machine {
    root: PathBuf,
    agent: PathBuf,
    version: Version,
}

impl Machine {
    /// `None` where this machine doesn't allow it.
    pub fn new(memory: u64) -> Option<Self> {
        if !geteuid().is_root() {
            skip(Prerequisite::Root, "limiting memory needs root");
            return None;
        }
        let Ok(mount) = find_cgroup_root(Path::new("/sys/fs/cgroup")) else {
            skip(Prerequisite::CgroupV2, "no cgroup v2 hierarchy is mounted");
            return None;
        };
        let root = tempfile::Builder::new().prefix("scopeprobe-memory-").tempdir_in(&mount).unwrap().keep();
        let name = root.file_name().unwrap().to_string_lossy().into_owned();
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (agent, version) = if v1.is_dir() {
            (v1.join(&name), V1)
        } else {
            fs::write(mount.join("cgroup.subtree_control"), "+memory").expect("memory can be limited");
            (mount.join(format!("{name}-agent")), V2)
        };
        fs::create_dir_all(root.join("traffic")).unwrap();
        fs::create_dir(&agent).unwrap();
        fs::write(agent.join(version.limit), memory.to_string()).unwrap();
        // Without swap, as a node of Kubernetes.
        let _ = fs::write(agent.join("memory.swap.max"), "0");
        Some(Self { root, agent, version })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A program that is in the agent's cgroup from its beginning.
    pub fn in_agents_cgroup(&self, program: &str) -> Command {
        started_in(&self.agent, program)
    }

    /// The same in a cgroup of the node.
    pub fn in_traffics_cgroup(&self, program: &str) -> Command {
        started_in(&self.root.join("traffic"), program)
    }

    /// The node's cgroup is no more.
    pub fn end_traffic(&self) {
        fs::remove_dir(self.root.join("traffic")).unwrap();
    }

    pub fn memory_now(&self) -> u64 {
        self.number(self.version.now)
    }

    pub fn memory_peak(&self) -> u64 {
        self.number(self.version.peak)
    }

    /// Processes that the kernel has killed for want of memory.
    pub fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.agent.join(self.version.events)).unwrap();
        events.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.agent.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }
}

fn started_in(cgroup: &Path, program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(cgroup).arg(program);
    command
}

impl Drop for Machine {
    fn drop(&mut self) {
        let left = [self.root.join("traffic"), self.root.clone(), self.agent.clone()];
        for directory in left {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    println!("{} stays behind: {error}", directory.display());
                }
                _ => {}
            }
        }
    }
}
