//! Capabilities of this process on this machine, and their consequences.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use kernel_support::Reason;
use topology::plural::counted;

use super::{
    netlink::{conntrack::Conntrack, sock_diag::SockDiag, socket::Buffer},
    proc_net,
    settings::FallbackSettings,
    socket::Dump,
};
use crate::capture::{
    cgroup_root::is_cgroup2,
    description::{Degradation, Feature, Finding},
    errors::Refusal,
    proc::cgroups::Cgroups,
};

/// Available methods.
pub(super) struct Abilities {
    pub(super) cgroups: Cgroups,
    pub(super) conntrack: Option<Conntrack>,
    sock_diag: bool,
    degradations: Vec<Degradation>,
}

impl Abilities {
    /// # Errors
    /// Returns an error if no method works.
    pub(super) fn find(settings: &FallbackSettings) -> Result<Self, Refusal> {
        let find = || {
            let cgroups = cgroups(settings)?;
            let process = settings.proc.join(settings.host_pid.to_string());
            let mut degradations = Vec::new();
            let sock_diag = sockets_by_netlink(settings);
            if let Err(error) = &sock_diag {
                proc_net::dump(&process).map_err(|proc_error| nothing(&process, error, &proc_error))?;
                degradations.push(no_sock_diag(error));
            }
            if let Ok(dump) = &sock_diag
                && !has_cgroups(dump)
            {
                degradations.push(no_cgroup_ids());
            }
            let conntrack = Conntrack::open_in(&host_namespace(settings), settings.event_bytes);
            match &conntrack {
                Err(error) => degradations.push(no_conntrack(error)),
                Ok(_) if !accounts(&settings.proc) => degradations.push(no_accounting()),
                Ok(_) => {}
            }
            Ok(Self { cgroups, conntrack: conntrack.ok(), sock_diag: sock_diag.is_ok(), degradations })
        };
        // In a thread of its own, as it goes through network namespaces.
        std::thread::scope(|scope| scope.spawn(find).join()).unwrap_or_else(|_| {
            Err(Refusal { reason: Reason::LoadFailed, message: "finding out what is possible panicked".into() })
        })
    }

    /// Returns the attach type that the API shows for these methods.
    pub(super) fn attach(&self) -> &'static str {
        match (self.sock_diag, self.conntrack.is_some()) {
            (true, true) => "SockDiag+Conntrack",
            (true, false) => "SockDiag",
            (false, true) => "Procfs+Conntrack",
            (false, false) => "Procfs",
        }
    }

    pub(super) fn degradations(&self) -> Vec<Degradation> {
        self.degradations.clone()
    }
}

/// Each ability, and what to do where it lacks.
pub(super) fn probe(settings: &FallbackSettings) -> Vec<Finding> {
    let process = settings.proc.join(settings.host_pid.to_string());
    let line = |what, result: Result<String, String>, refusal: Option<Reason>| match result {
        Ok(detail) => Finding { attach: None, what, ok: true, detail, refusal: None },
        Err(detail) => Finding { attach: None, what, ok: false, detail, refusal },
    };
    let cgroups = cgroups(settings).map(|_| format!("{} can be read", settings.cgroup_root.display()));
    let sock_diag = sockets_by_netlink(settings);
    let by_proc = proc_net::dump(&process);
    let needs_proc = sock_diag.is_err().then_some(Reason::CapabilityMissing);
    let conntrack = Conntrack::open_in(&host_namespace(settings), settings.event_bytes);
    let cgroup_ids = match &sock_diag {
        Ok(dump) if has_cgroups(dump) => Ok("each socket comes with its cgroup".into()),
        Ok(_) => Err(no_cgroup_ids().message),
        Err(_) => Err("not without sock_diag".into()),
    };
    let accounting = match &conntrack {
        Ok(_) if accounts(&settings.proc) => Ok("bytes of tracked connections are counted".into()),
        Ok(_) => Err(no_accounting().message),
        Err(_) => Err("not without connection tracking".into()),
    };
    vec![
        line("cgroups", cgroups.map_err(|refusal| refusal.message), Some(Reason::CgroupV2Missing)),
        line(
            "network namespaces",
            enter(settings).map(|()| "can be entered".into()).map_err(|error| needs_namespaces(&error)),
            None,
        ),
        line("sock_diag", sock_diag.as_ref().map(sockets).map_err(|error| no_sock_diag(error).message), None),
        line("cgroups of sockets", cgroup_ids, None),
        line(
            "/proc/<pid>/net/tcp",
            by_proc.as_ref().map(sockets).map_err(|error| {
                format!("{}: {error}; the agent's pod needs hostPID", process.join("net/tcp").display())
            }),
            needs_proc,
        ),
        line(
            "connection tracking",
            conntrack.as_ref().map(|_| "its events are heard".into()).map_err(|error| no_conntrack(error).message),
            None,
        ),
        line("bytes by connection tracking", accounting, None),
        line("/proc/<pid>/fd", open_files(&process), None),
    ]
}

/// The node's own network namespace, by a process that lets us see it.
fn host_namespace(settings: &FallbackSettings) -> PathBuf {
    let host = settings.proc.join(settings.host_pid.to_string());
    let file = |process: &Path| fs::metadata(process.join("net/tcp")).map(|file| file.ino()).ok();
    let number = file(&host);
    let of_host = |process: &PathBuf| number.is_some() && file(process) == number;
    let others = fs::read_dir(&settings.proc).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut candidates = [host.clone()].into_iter().chain(others.filter(of_host)).map(|process| process.join("ns/net"));
    candidates.find(|namespace| File::open(namespace).is_ok()).unwrap_or_else(|| host.join("ns/net"))
}

fn sockets(dump: &Dump) -> String {
    let (sockets, listeners) = (counted(dump.sockets.len(), "socket"), counted(dump.listeners.len(), "listener"));
    format!("{sockets} and {listeners} of the host")
}

fn cgroups(settings: &FallbackSettings) -> Result<Cgroups, Refusal> {
    let refusal = |message| Refusal { reason: Reason::CgroupV2Missing, message };
    let root = &settings.cgroup_root;
    if !is_cgroup2(root) {
        return Err(refusal(format!("{} does not belong to a cgroup v2 hierarchy", root.display())));
    }
    Cgroups::open(root, &settings.proc).map_err(|error| refusal(format!("reading {}: {error}", root.display())))
}

fn enter(settings: &FallbackSettings) -> io::Result<()> {
    SockDiag::open_in(&host_namespace(settings)).map(drop)
}

fn sockets_by_netlink(settings: &FallbackSettings) -> io::Result<Dump> {
    SockDiag::open_in(&host_namespace(settings))?.dump(&mut Buffer::new())
}

/// Returns whether all listed sockets have a cgroup, as since Linux 5.9. It is also true for a namespace without
/// sockets.
fn has_cgroups(dump: &Dump) -> bool {
    let of = dump.sockets.iter().map(|socket| socket.cgroup);
    of.chain(dump.listeners.iter().map(|listener| listener.cgroup)).all(|cgroup| cgroup.is_some())
}

/// Returns whether conntrack counts bytes of new connections. The file belongs to this process's own network namespace;
/// new namespaces start with the host's value.
fn accounts(proc: &Path) -> bool {
    let mut first = [0];
    File::open(proc.join("sys/net/netfilter/nf_conntrack_acct"))
        .and_then(|mut file| file.read_exact(&mut first))
        .is_ok_and(|()| &first == b"1")
}

fn open_files(process: &Path) -> Result<String, String> {
    let see = || {
        // Its files may be listed although none of them may be read.
        fs::read_dir(process.join("fd"))?
            .flatten()
            .next()
            .map_or(Ok(PathBuf::new()), |entry| fs::read_link(entry.path()))
    };
    see().map(|_| "the holders of sockets can be found".into()).map_err(|error: io::Error| {
        format!(
            "{}: {error}; where the kernel does not tell a socket's cgroup, it belongs to the pod as a whole. Add \
             SYS_PTRACE and DAC_READ_SEARCH to the container",
            process.join("fd").display()
        )
    })
}

fn needs_namespaces(error: &io::Error) -> String {
    format!(
        "a network namespace could not be entered: {error}; add SYS_ADMIN and SYS_PTRACE to the container, and see that \
         no AppArmor profile forbids it to trace"
    )
}

fn no_sock_diag(error: &io::Error) -> Degradation {
    Degradation {
        feature: Feature::SockDiag,
        message: format!(
            "no sock_diag in network namespaces ({error}): sockets are read from /proc, without bytes. Add SYS_ADMIN and \
             SYS_PTRACE to the container, and allow netlink in its seccomp profile"
        ),
    }
}

fn no_cgroup_ids() -> Degradation {
    Degradation {
        feature: Feature::SocketCgroups,
        message: "the kernel does not tell the cgroups of sockets (5.9 does): they are looked for by process".into(),
    }
}

fn no_conntrack(error: &io::Error) -> Degradation {
    Degradation {
        feature: Feature::ConntrackEvents,
        message: format!(
            "no events of connection tracking ({error}): connections that come and go between two passes are missed. Add \
             NET_ADMIN, SYS_ADMIN and SYS_PTRACE to the container, allow netlink in its seccomp profile, and see that the \
             module nf_conntrack_netlink is there"
        ),
    }
}

fn no_accounting() -> Degradation {
    Degradation {
        feature: Feature::ConntrackBytes,
        message:
            "connection tracking does not count bytes (net.netfilter.nf_conntrack_acct): those of connections that \
                  only it has seen are not known"
                .into(),
    }
}

fn nothing(process: &Path, netlink: &io::Error, proc: &io::Error) -> Refusal {
    Refusal {
        reason: Reason::CapabilityMissing,
        message: format!(
            "neither sock_diag ({netlink}) nor {} ({proc}) shows the node's sockets; the agent's pod needs hostPID",
            process.join("net/tcp").display()
        ),
    }
}
