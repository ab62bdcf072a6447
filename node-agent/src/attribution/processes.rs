//! Names a cgroup by the commands of its processes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use procfs::process::{Process, StatFlags};

/// Maximum number of processes that are read per cgroup: the root cgroup of a machine can hold thousands.
const MAX_PROCESSES: usize = 1024;

/// Maximum number of commands in a name.
const MAX_COMMANDS: usize = 3;

/// Returns the commands of the processes in the cgroup at `directory`. `None` if it has none (any more) or they are
/// hidden: a process outside of the reader's PID namespace has no number there.
#[must_use]
pub fn commands(directory: &Path) -> Option<String> {
    let file = File::open(directory.join("cgroup.procs")).ok()?;
    let pids = BufReader::new(file).lines().map_while(Result::ok).take(MAX_PROCESSES);
    name(pids.filter_map(|pid| pid.parse().ok()).filter_map(command_and_start))
}

/// A process's command and its start in clock ticks since boot; nothing for threads of the kernel, whose sockets are
/// not anybody's connections.
fn command_and_start(pid: i32) -> Option<(String, u64)> {
    let stat = Process::new(pid).ok()?.stat().ok()?;
    let of_kernel = stat.flags().is_ok_and(|flags| flags.contains(StatFlags::PF_KTHREAD));
    (!of_kernel).then_some((stat.comm, stat.starttime))
}

/// The three commands that have been there longest, sorted by name: what comes and goes doesn't change a cgroup's
/// name.
fn name(processes: impl Iterator<Item = (String, u64)>) -> Option<String> {
    let mut oldest = BTreeMap::<String, u64>::new();
    for (command, start) in processes {
        let known = oldest.entry(command).or_insert(start);
        *known = start.min(*known);
    }
    let mut by_age: Vec<_> = oldest.into_iter().map(|(command, start)| (start, command)).collect();
    by_age.sort();
    let others = by_age.len() > MAX_COMMANDS;
    let mut commands: Vec<_> = by_age.into_iter().take(MAX_COMMANDS).map(|(_, command)| command).collect();
    commands.sort();
    let listed = commands.join(", ");
    match (listed.is_empty(), others) {
        (true, _) => None,
        (false, true) => Some(format!("{listed} and others")),
        (false, false) => Some(listed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(processes: &[(&str, u64)]) -> Option<String> {
        name(processes.iter().map(|(command, start)| ((*command).to_owned(), *start)))
    }

    #[test]
    fn names_list_the_longest_running_commands() {
        assert_eq!(named(&[]), None);
        assert_eq!(named(&[("sshd", 7)]), Some("sshd".into()));
        assert_eq!(named(&[("b", 1), ("a", 2), ("b", 9)]), Some("a, b".into()));
        assert_eq!(
            named(&[("curl", 900), ("kubelet", 20), ("containerd", 10), ("kube-proxy", 30), ("curl", 800)]),
            Some("containerd, kube-proxy, kubelet and others".into())
        );
    }

    #[test]
    fn this_process_is_found_and_a_missing_cgroup_is_none() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(command_and_start(pid).unwrap().0, comm.trim_end());
        assert_eq!(commands(Path::new("/no/such/cgroup")), None);
    }
}
