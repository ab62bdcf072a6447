//! Runs a capture while connections are made, on a thread with only the capabilities of its agent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Capture, FallbackSettings, Losses, Refusal, Settings, start_ebpf, start_fallback};
use topology::flow::{FlowCounters, FlowKey};

use crate::{
    lab::{capabilities::keep_only, watched::take_in},
    methods::{How, Method},
};

/// Four passes of the fallback without news: nothing more is coming.
const QUIET: Duration = Duration::from_secs(6);
/// News that never end are a defect.
const PATIENCE: Duration = Duration::from_mins(2);

pub struct Witness {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Testimony>,
}

/// Results of one capture.
#[derive(Debug, Default)]
pub struct Testimony {
    pub flows: BTreeMap<FlowKey, FlowCounters>,
    pub losses: Losses,
}

impl Witness {
    /// Starts the capture for cgroups below this root.
    ///
    /// # Errors
    /// Why this method cannot be had here.
    pub fn start(method: &Method, root: &Path, host_pid: u32) -> Result<Self, String> {
        if let Some(reason) = &method.absent {
            return Err(reason.clone());
        }
        let over = Arc::new(AtomicBool::new(false));
        let (started, has_started) = mpsc::channel();
        let (how, capabilities, root) = (method.how, method.capabilities.clone(), root.to_path_buf());
        let is_over = Arc::clone(&over);
        let thread = thread::spawn(move || {
            keep_only(&capabilities);
            match open(how, root, host_pid) {
                Err(refusal) => {
                    started.send(Err(refusal.to_string())).unwrap();
                    Testimony::default()
                }
                Ok(capture) => {
                    started.send(Ok(capture.description().clone())).unwrap();
                    watch(capture, &is_over)
                }
            }
        });
        let description = has_started.recv().unwrap()?;
        let witness = Self { over, thread };
        if description.attach == method.name {
            return Ok(witness);
        }
        witness.end();
        let lacking: Vec<_> = description.degradations.into_iter().map(|lacking| lacking.message).collect();
        Err(lacking.join("; "))
    }

    /// Nothing more is made.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing more is coming.
    pub fn testimony(self) -> Testimony {
        self.end();
        self.thread.join().unwrap()
    }
}

/// Starts a capture as in production, but with frequent listings of the open sockets.
fn open(how: How, cgroup_root: PathBuf, host_pid: u32) -> Result<Box<dyn Capture>, Refusal> {
    match how {
        How::Ebpf(attach) => {
            let listing_interval = Duration::from_secs(1);
            // No process of the test's own is below the root.
            let settings = Settings {
                cgroup_root,
                self_test: false,
                attach: Some(attach),
                listing_interval,
                ..Settings::default()
            };
            Ok(Box::new(start_ebpf(&settings)?))
        }
        How::Fallback => {
            let settings = FallbackSettings { cgroup_root, host_pid, ..FallbackSettings::default() };
            Ok(Box::new(start_fallback(&settings)?))
        }
    }
}

fn watch(mut capture: Box<dyn Capture>, over: &AtomicBool) -> Testimony {
    let mut testimony = Testimony::default();
    let mut news = Instant::now();
    let mut ended = None;
    while news.elapsed() < QUIET {
        let reading = capture.read().unwrap();
        if over.load(Ordering::Relaxed) {
            let since: &mut Instant = ended.get_or_insert_with(Instant::now);
            assert!(since.elapsed() < PATIENCE, "there are always news: {:?}", reading.flows);
        }
        if !reading.flows.is_empty() || ended.is_none() {
            news = Instant::now();
        }
        take_in(&mut testimony.flows, reading.flows);
        testimony.losses = reading.losses;
        thread::sleep(Duration::from_millis(100));
    }
    testimony
}
