//! Counts the connections that agents report, with little memory.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard},
};

use report::v1alpha1::{AgentReport, CaptureState, Flow, Mode};
use tokio::sync::mpsc;

/// Shared with the task that takes the reports in.
pub struct Tally(Arc<Mutex<Told>>);

#[derive(Default)]
pub struct Told {
    capture: CaptureState,
    /// By the flow's key: the latest run, and its connections and failures.
    flows: HashMap<u64, (u64, u64)>,
    /// Of earlier runs.
    earlier: u64,
}

impl Tally {
    pub fn of(mut reports: mpsc::UnboundedReceiver<(usize, AgentReport)>) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let shared = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some((_, report)) = reports.recv().await {
                shared.lock().unwrap().take(report);
            }
        });
        Self(told)
    }

    pub fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }
}

impl Told {
    fn take(&mut self, report: AgentReport) {
        self.capture = report.capture.unwrap();
        for flow in report.flows {
            let counters = flow.counters.as_ref().unwrap();
            let count = counters.opened + counters.failed;
            let known = self.flows.entry(key(&flow)).or_insert((flow.run, 0));
            assert!(flow.run >= known.0, "runs only grow");
            if flow.run > known.0 {
                self.earlier += known.1;
                *known = (flow.run, 0);
            }
            assert!(count >= known.1, "counts only grow");
            known.1 = count;
        }
    }

    pub fn is_capturing(&self) -> bool {
        self.capture.mode() == Mode::Ebpf || self.capture.mode() == Mode::Fallback
    }

    pub fn message(&self) -> String {
        self.capture.message.clone()
    }

    pub fn seen(&self) -> u64 {
        self.capture.seen
    }

    pub fn lost(&self) -> u64 {
        self.capture.losses.as_ref().map_or(0, |losses| losses.opened + losses.failed)
    }

    pub fn told(&self) -> u64 {
        self.earlier + self.flows.values().map(|(_, count)| count).sum::<u64>()
    }
}

fn key(flow: &Flow) -> u64 {
    let mut hasher = DefaultHasher::new();
    (flow.cgroup_id, flow.netns, flow.role, &flow.local_ip, &flow.remote_ip, flow.port, flow.protocol)
        .hash(&mut hasher);
    hasher.finish()
}
