//! Capture without eBPF: combines scans of the kernel's socket tables with conntrack events between two scans.
//!
//! - `worker` scans the network namespaces that `processes` finds, by `sock_diag` or `proc_net` (`source`). It leaves out
//!   namespaces without changes.
//! - `conntrack` reports the connections that open and close between two scans.
//! - `connections` merges both. It has a `space` for each namespace, and `tracks` for connections that no scan has
//!   returned (`unseen`).
//! - `accounts` holds the flows' counters.
//! - `pace` keeps the scans within their share of the CPU.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    utsname,
};
use topology::{flow::FlowKey, plural::counted};

use super::{
    Capture, CaptureError, Changes, Degradation, Description, Feature, Finding, Losses, MAX_FLOWS_PER_READING, Mode,
    Reading, Reason, Refusal,
};

use crate::budget::Shortage;

mod abilities;
mod accounts;
mod cgroups;
mod connections;
#[cfg(test)]
mod connections_crowd;
#[cfg(test)]
mod connections_model;
mod conntrack;
mod conntrack_message;
mod entries;
mod holders;
mod messages;
mod netlink;
mod pace;
mod proc_net;
mod processes;
mod sock_diag;
mod socket;
mod source;
mod space;
mod track;
mod tracks;
mod unseen;
mod worker;

use self::{abilities::Abilities, connections::Connections, worker::Worker};
// The capture by a tracepoint compares with what namespaces count themselves.
pub(super) use self::{
    cgroups::Cgroups,
    proc_net::{TcpCounter, TcpCounts},
    processes::{Namespace, Processes},
};

/// Passes that take longer than this miss connections that live for less.
const LONGEST_PASS: Duration = Duration::from_secs(2);

/// No number, so that a message does not change with each.
const CROWDED: &str = "more connections were tracked at a time than there is room for (half of maxFlows): of them, those that \
                       no look at the sockets has shown are counted as lost where their network namespace is one pod's, and \
                       missing elsewhere. Raise spec.capture.maxFlows";

/// Settings of a capture without eBPF.
#[derive(Clone, Debug)]
pub struct FallbackSettings {
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// A directory of the cgroup v2 hierarchy: the sockets made below it are this node's.
    pub cgroup_root: PathBuf,
    /// The process whose network namespace is the node's own: there connections between pods are tracked.
    pub host_pid: u32,
    /// The share of one CPU that looking may take, in thousandths.
    pub cpu_millicores: u32,
    /// The time between two passes, where the budget allows it.
    pub interval: Duration,
    /// Flows that are counted at a time; more are counted as [`Losses`].
    pub max_flows: usize,
    /// Why that are fewer than were asked for, if so.
    pub shortage: Option<Shortage>,
    /// Size of the queue of conntrack's events, in bytes: what happens while the thread does something else waits there.
    pub event_bytes: usize,
}

impl Default for FallbackSettings {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            host_pid: 1,
            cpu_millicores: 50,
            interval: Duration::from_millis(1500),
            max_flows: 65_536,
            shortage: None,
            // About 20,000 messages.
            event_bytes: 16 << 20,
        }
    }
}

/// A running capture. Ends with its value.
pub struct FallbackCapture {
    description: Description,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// State shared between the thread and its owner.
struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
    first_sights: EventFd,
}

struct State {
    connections: Connections,
    overflows: u64,
    /// Namespaces with sockets whose process was not looked for, for want of budget.
    unattributed: HashSet<u32>,
    passes: u64,
    /// Start of the latest complete scan, and of the one before. Conntrack events in between are settled by a later
    /// scan.
    passed_from: [Option<Instant>; 2],
    last_pass: Duration,
    cost: Duration,
    used: Duration,
}

/// Statistics of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// Complete passes.
    pub count: u64,
    /// From the beginning of the latest one to that of the next.
    pub last: Duration,
    /// CPU that the latest one took.
    pub cost: Duration,
    /// CPU that the thread has taken so far.
    pub in_all: Duration,
}

/// Begins to look, and returns when everything has been looked at once, for which there is no budget: about a second of
/// CPU for 20,000 sockets in 2,000 processes.
///
/// # Errors
/// Returns an error if the node's processes or cgroups are unreadable.
pub fn start_fallback(settings: &FallbackSettings) -> Result<FallbackCapture, Refusal> {
    let abilities = Abilities::find(settings)?;
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal {
        reason: Reason::LoadFailed,
        message: format!("{what}: {error}"),
    };
    let first_sights = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| failed("making the descriptor that tells of new flows", &error))?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            connections: Connections::new(settings.max_flows),
            overflows: 0,
            unattributed: HashSet::new(),
            passes: 0,
            passed_from: [None; 2],
            last_pass: Duration::ZERO,
            cost: Duration::ZERO,
            used: Duration::ZERO,
        }),
        stop: AtomicBool::new(false),
        first_sights,
    });
    let mut description = Description {
        mode: Mode::Fallback,
        attach: abilities.attach(),
        attached_at: SystemTime::now(),
        kernel: utsname::uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned()),
        degradations: abilities.degradations(),
    };
    description.note_shortage(settings.shortage);
    let (settings, for_thread) = (settings.clone(), Arc::clone(&shared));
    let (first_pass, has_looked) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("fallback".into())
        // Made in the thread: the budget is of its CPU.
        .spawn(move || Worker::new(settings, for_thread, abilities.cgroups, abilities.conntrack, first_pass).run())
        .map_err(|error| failed("starting the thread that looks", &error))?;
    // Without a word, it has ended.
    if has_looked.recv().is_err() {
        return Err(failed("looking for the first time", &why_it_ended(thread)));
    }
    Ok(FallbackCapture { description, shared, thread: Some(thread) })
}

/// Returns the findings about this machine, for `check`.
#[must_use]
pub fn probe_fallback(settings: &FallbackSettings) -> Vec<Finding> {
    // In a thread of its own, as it goes through network namespaces.
    let findings = std::thread::scope(|scope| scope.spawn(|| abilities::probe(settings)).join());
    findings.unwrap_or_else(|_| {
        vec![Finding {
            attach: None,
            what: "fallback",
            ok: false,
            detail: "looking at what is possible panicked".into(),
            refusal: Some(Reason::LoadFailed),
        }]
    })
}

impl FallbackCapture {
    /// Returns the statistics of the thread.
    #[must_use]
    pub fn passes(&self) -> Passes {
        let state = self.shared.lock();
        Passes { count: state.passes, last: state.last_pass, cost: state.cost, in_all: state.used }
    }

    /// Returns whether the kernel reports the cgroup of each socket.
    #[must_use]
    pub fn knows_cgroups(&self) -> bool {
        let lacks = |feature| self.description.degradations.iter().any(|degradation| degradation.feature == feature);
        !lacks(Feature::SockDiag) && !lacks(Feature::SocketCgroups)
    }

    /// Returns the number of conntrack entries that are remembered.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.shared.lock().connections.tracked()
    }

    /// Returns the error of the thread if it ended unexpectedly.
    fn failure(&mut self) -> Option<CaptureError> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        Some(why_it_ended(thread))
    }

    fn describe_passes(&mut self, last: Duration, cost: Duration, unattributed: usize) {
        let kept = |feature| !matches!(feature, Feature::PassInterval | Feature::SocketOwners);
        self.description.degradations.retain(|degradation| kept(degradation.feature));
        if last > LONGEST_PASS {
            self.description.degradations.push(Degradation {
                feature: Feature::PassInterval,
                message: format!(
                    "a pass over the network namespaces takes {:.1} s ({} ms of CPU) within its budget: of connections \
                     that live for less, only those are seen that conntrack knows. Raise \
                     spec.capture.fallback.cpuBudget",
                    last.as_secs_f64(),
                    cost.as_millis()
                ),
            });
        }
        if unattributed > 0 {
            self.description.degradations.push(Degradation {
                feature: Feature::SocketOwners,
                message: format!(
                    "in {}, sockets belong to the pod as a whole, as there was no budget to look for their processes. \
                     Raise spec.capture.fallback.cpuBudget",
                    counted(unattributed, "network namespace")
                ),
            });
        }
    }
}

fn why_it_ended(thread: JoinHandle<io::Result<()>>) -> CaptureError {
    failure(match thread.join() {
        Ok(Ok(())) => io::Error::other("it ended"),
        Ok(Err(error)) => error,
        Err(_) => io::Error::other("it panicked"),
    })
}

fn failure(source: io::Error) -> CaptureError {
    CaptureError { attempted: "looking at the open sockets".into(), source: Box::new(source) }
}

impl Capture for FallbackCapture {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        // Read first: later events notify again.
        let _ = self.shared.first_sights.read();
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        if self.thread.is_none() {
            return Err(failure(io::Error::other("it has ended")));
        }
        let mut state = self.shared.lock();
        let missed = state.connections.missed();
        let accounts = &mut state.connections.accounts;
        let lost = accounts.lost();
        let (Changes { flows, are_partial }, seen) = (accounts.report(MAX_FLOWS_PER_READING), accounts.seen());
        let nat_peers = flows.iter().filter_map(|(key, _)| Some((*key, accounts.nat_peers(key)?.to_vec()))).collect();
        let losses = Losses {
            opened: lost.opened + missed.opened,
            failed: lost.failed + missed.failed,
            event_overflows: state.overflows,
            ..Losses::default()
        };
        let (latest, cost, unattributed) = (state.last_pass, state.cost, state.unattributed.len());
        let is_crowded = state.connections.untracked() > 0;
        let complete_until = state.passed_from[1];
        drop(state);
        self.describe_passes(latest, cost, unattributed);
        if is_crowded {
            self.description.lack(Feature::ConntrackEvents, CROWDED);
        }
        let is_partial = are_partial;
        Ok(Reading { flows, nat_peers, losses, seen, complete_until, is_partial, ..Reading::default() })
    }

    fn first_sights(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.first_sights.as_fd())
    }

    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey> {
        let mut state = self.shared.lock();
        keys.iter().filter(|key| state.connections.accounts.forget(key)).copied().collect()
    }
}

impl Drop for FallbackCapture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        // It fails where the reader has been told so often that the counter is full: it knows.
        let _ = self.first_sights.write(1);
    }
}

impl State {
    fn passed(&mut self, began: Instant, cost: Duration, used: Duration) {
        self.passes += 1;
        self.passed_from = [Some(began), self.passed_from[0]];
        (self.last_pass, self.cost, self.used) = (began.elapsed(), cost, used);
    }

    fn unattributed(&mut self, netns: u32, is: bool) {
        if is {
            self.unattributed.insert(netns);
        } else {
            self.unattributed.remove(&netns);
        }
    }
}
