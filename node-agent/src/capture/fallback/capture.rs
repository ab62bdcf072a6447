//! Fallback capture: the state that the worker thread and the rest of the agent share.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use kernel_support::Reason;
use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    utsname,
};
use topology::{flow::FlowKey, plural::counted};

use super::{
    capabilities::{self, Abilities},
    settings::FallbackSettings,
    shared::{FallbackState, SharedState},
    state::connections::Connections,
    worker::Worker,
};
use crate::capture::{
    description::{Degradation, Description, Feature, Finding, Mode},
    errors::{self, CaptureError, Refusal},
    reading::{Capture, Changes, Losses, MAX_FLOWS_PER_READING, Reading},
};

/// Passes that take longer than this miss connections that live for less.
const LONGEST_PASS: Duration = Duration::from_secs(2);
/// The slowest pass of the last minute or two is described, so that the description does not change with each pass.
const SLOWEST_FOR: Duration = Duration::from_mins(1);

/// No number, so that a message does not change with each.
const CROWDED: &str = "more connections were tracked at a time than there is room for (half of maxFlows): of them, those that \
                       no scan of the sockets has shown are counted as lost where their network namespace is one pod's, and \
                       missing elsewhere. Raise spec.capture.maxFlows";

/// A running capture. Ends with its value.
pub struct FallbackCapture {
    description: Description,
    shared: Arc<SharedState>,
    thread: Option<JoinHandle<io::Result<()>>>,
    begun: Instant,
    slowest_pass: SlowestPass,
}

/// Longest passes of the present [`SLOWEST_FOR`], which began at this time, and of the one before.
struct SlowestPass(Instant, [Duration; 2]);

impl SlowestPass {
    /// Records a pass. Returns the longest of both times.
    fn note(&mut self, last: Duration) -> Duration {
        let Self(began, [present, before]) = self;
        if began.elapsed() >= SLOWEST_FOR {
            (*began, *before, *present) = (Instant::now(), *present, Duration::ZERO);
        }
        *present = last.max(*present);
        *present.max(before)
    }
}

/// Statistics of the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// Complete passes.
    pub count: u64,
    /// Age of what the scans have shown at the end of the latest one: its duration and pause, or more where the budget did
    /// not allow it to scan every namespace.
    pub last: Duration,
    /// CPU that the latest one took.
    pub cost: Duration,
    /// CPU that the thread has taken so far.
    pub in_all: Duration,
}

/// Starts the capture, and returns after the first complete scan. The CPU budget does not apply to that scan: it takes
/// about a second of CPU for 20,000 sockets in 2,000 processes.
///
/// # Errors
/// Returns an error if the node's processes or cgroups are unreadable.
pub fn start_fallback(settings: &FallbackSettings) -> Result<FallbackCapture, Refusal> {
    let begun = Instant::now();
    let abilities = Abilities::find(settings)?;
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal {
        reason: Reason::LoadFailed,
        message: format!("{what}: {error}"),
    };
    let new_flow_notifications = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| failed("making the descriptor that tells of new flows", &error))?;
    let shared = Arc::new(SharedState {
        state: Mutex::new(FallbackState {
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
        new_flow_notifications,
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
    let (first_pass, first_scan) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("fallback".into())
        // Made in the thread: the budget is of its CPU.
        .spawn(move || Worker::new(settings, for_thread, abilities.cgroups, abilities.conntrack, first_pass).run())
        .map_err(|error| failed("starting the scanning thread", &error))?;
    // Without a word, it has ended.
    if first_scan.recv().is_err() {
        return Err(failed("scanning for the first time", &why_it_ended(thread)));
    }
    let slowest_pass = SlowestPass(Instant::now(), [Duration::ZERO; 2]);
    Ok(FallbackCapture { description, shared, thread: Some(thread), begun, slowest_pass })
}

/// Returns the findings about this machine, for `check`.
#[must_use]
pub fn probe_fallback(settings: &FallbackSettings) -> Vec<Finding> {
    // In a thread of its own, as it goes through network namespaces.
    let findings = std::thread::scope(|scope| scope.spawn(|| capabilities::probe(settings)).join());
    findings.unwrap_or_else(|_| {
        vec![Finding {
            attach: None,
            what: "fallback",
            ok: false,
            detail: "checking the capabilities panicked".into(),
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

    fn describe_passes(&mut self, last: Duration, unattributed: usize) {
        let kept = |feature| !matches!(feature, Feature::PassInterval | Feature::SocketOwners);
        self.description.degradations.retain(|degradation| kept(degradation.feature));
        let slowest = self.slowest_pass.note(last);
        if slowest > LONGEST_PASS {
            self.description.degradations.push(Degradation {
                feature: Feature::PassInterval,
                message: format!(
                    "within the budget, scans of a network namespace are up to {} s apart: of connections that live for \
                     less, only those are seen that conntrack knows. Raise spec.capture.fallback.cpuBudget",
                    (slowest.as_secs() + 1).next_power_of_two()
                ),
            });
        }
        if unattributed > 0 {
            self.description.degradations.push(Degradation {
                feature: Feature::SocketOwners,
                message: format!(
                    "in {}, sockets belong to the pod as a whole, as there was no budget to search for their processes. \
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
    errors::failed("scanning the open sockets", source)
}

impl Capture for FallbackCapture {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        // Read first: later events notify again.
        let _ = self.shared.new_flow_notifications.read();
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
        let (latest, unattributed) = (state.last_pass, state.unattributed.len());
        let is_crowded = state.connections.untracked() > 0;
        let complete_until = Some(state.passed_from[1].unwrap_or(self.begun));
        drop(state);
        self.describe_passes(latest, unattributed);
        if is_crowded {
            self.description.lack(Feature::ConntrackEvents, CROWDED);
        }
        let is_partial = are_partial;
        Ok(Reading { flows, nat_peers, losses, seen, complete_until, is_partial, ..Reading::default() })
    }

    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.new_flow_notifications.as_fd())
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
