//! Attribution of sockets by the processes that hold them, where the kernel does not report their cgroup.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
};

use super::socket::{Dump, SocketId};

/// More are not remembered.
const MOST: usize = 200_000;

/// The cgroups of sockets by their inodes' numbers.
#[derive(Debug, Default)]
pub(super) struct SocketOwners {
    known: HashMap<u32, HashMap<u64, u64>>,
}

impl SocketOwners {
    /// Fills in the cgroups of what is listed, as far as they can be found among these processes of the namespace.
    /// `go_on` is asked before each process. Whether it was asked for all that was needed.
    pub(super) fn fill(
        &mut self,
        netns: u32,
        dump: &mut Dump,
        processes: impl Iterator<Item = (PathBuf, u64)>,
        mut go_on: impl FnMut() -> bool,
    ) -> bool {
        let known = self.known.entry(netns).or_default();
        let there: HashSet<u64> = inodes(dump).collect();
        known.retain(|inode, _| there.contains(inode));
        let mut wanted: HashSet<u64> = there.into_iter().filter(|inode| !known.contains_key(inode)).collect();
        let mut complete = true;
        for (process, cgroup) in processes {
            if wanted.is_empty() || known.len() >= MOST {
                break;
            }
            if !go_on() {
                complete = false;
                break;
            }
            for inode in sockets_of(&process) {
                if wanted.remove(&inode) {
                    known.insert(inode, cgroup);
                }
            }
        }
        for listener in &mut dump.listeners {
            listener.cgroup = listener.inode.and_then(|inode| known.get(&inode).copied());
        }
        let listeners: HashMap<_, _> =
            dump.listeners.iter().map(|listener| ((listener.address, listener.port), listener.cgroup)).collect();
        for socket in &mut dump.sockets {
            let (address, port) = socket.ends.local;
            // One that waits to be accepted has the cgroup of its listener.
            let listener = || listeners.get(&(Some(address), port)).or_else(|| listeners.get(&(None, port)));
            socket.cgroup = known.get(&socket.id.0).copied().or_else(|| listener().copied().flatten());
        }
        complete
    }

    /// A namespace is gone.
    pub(super) fn leave(&mut self, netns: u32) {
        self.known.remove(&netns);
    }
}

fn inodes(dump: &Dump) -> impl Iterator<Item = u64> {
    let sockets = dump.sockets.iter().map(|socket| socket.id);
    let listeners = dump.listeners.iter().filter_map(|listener| listener.inode.map(SocketId));
    sockets.chain(listeners).filter(|id| *id != SocketId::NOBODYS).map(|id| id.0)
}

/// The inodes of the sockets that a process holds, or none where it does not let us see.
fn sockets_of(process: &std::path::Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::fallback::socket::{Endpoints, Listener, Socket};

    #[test]
    fn sockets_are_found_among_the_open_files_of_processes() {
        let process = tempfile::tempdir().unwrap();
        fs::create_dir(process.path().join("fd")).unwrap();
        for (fd, target) in [("3", "socket:[100]"), ("4", "pipe:[101]"), ("5", "socket:[102]")] {
            std::os::unix::fs::symlink(target, process.path().join("fd").join(fd)).unwrap();
        }
        let here = (std::net::IpAddr::from([127, 0, 0, 1]), 80);
        let socket = |inode, port| Socket {
            id: SocketId(inode),
            ends: Endpoints { local: (here.0, port), remote: here },
            state: 1,
            cgroup: None,
            bytes: None,
            rtt: None,
            is_final: false,
        };
        let mut dump = Dump {
            sockets: vec![socket(100, 5), socket(101, 6), socket(0, 80)],
            listeners: vec![Listener { address: None, port: 80, cgroup: None, inode: Some(102) }],
        };
        let mut socket_owners = SocketOwners::default();
        let processes = || [(process.path().to_path_buf(), 9)].into_iter();
        assert!(!socket_owners.fill(1, &mut dump, processes(), || false), "no budget for it");
        assert!(dump.sockets.iter().all(|socket| socket.cgroup.is_none()));
        assert!(socket_owners.fill(1, &mut dump, processes(), || true));
        let found: Vec<_> = dump.sockets.iter().map(|socket| socket.cgroup).collect();
        // The last one waits to be accepted.
        assert_eq!((found, dump.listeners[0].cgroup), (vec![Some(9), None, Some(9)], Some(9)));
    }
}
