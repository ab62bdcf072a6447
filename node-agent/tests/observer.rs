//! Tests the observer with a capture that the test controls.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::VecDeque,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use kernel_support::Reason;
use scopeprobe_agent::{
    capture::{Capture, CaptureError, Description, Mode, Reading},
    capture_starters::{Captures, Refused, Starter},
    flow_store::Bounds,
    observation::{Epoch, Observation, SharedObservation},
    observer::Observer,
};
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use topology::{
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Protocol, Role},
};

/// Only to fail instead of hanging: nothing here takes so long.
const GENEROUS: Duration = Duration::from_mins(1);

/// Results of the next readings; nothing new afterwards.
type Readings = Arc<Mutex<VecDeque<Result<Reading, &'static str>>>>;

struct Scripted {
    description: Description,
    readings: Readings,
    forgotten: Arc<Mutex<Vec<FlowKey>>>,
    sights: Option<std::os::unix::net::UnixStream>,
    last: Reading,
}

impl Capture for Scripted {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        if let Some(sights) = &mut self.sights {
            let _ = std::io::Read::read(sights, &mut [0; 64]);
        }
        match self.readings.lock().unwrap().pop_front() {
            Some(Ok(reading)) => {
                self.last = Reading { flows: Vec::new(), nat_peers: Vec::new(), answers: Vec::new(), ..reading };
                Ok(reading)
            }
            Some(Err(why)) => Err(CaptureError { attempted: "reading".into(), source: why.into() }),
            None => Ok(self.last.clone()),
        }
    }

    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
        self.sights.as_ref().map(AsFd::as_fd)
    }

    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey> {
        self.forgotten.lock().unwrap().extend(keys);
        keys.to_vec()
    }
}

/// An observer and what it works with.
struct Lab {
    observation: SharedObservation,
    readings: Readings,
    forgotten: Arc<Mutex<Vec<FlowKey>>>,
    closing: watch::Sender<bool>,
    observer: JoinHandle<()>,
    root: tempfile::TempDir,
}

impl Lab {
    /// The first starts are refused for these reasons.
    fn new(refusals: &[Reason], interval: Duration, sights: Option<std::os::unix::net::UnixStream>) -> Self {
        Self::with_stand_in(refusals, interval, sights, None)
    }

    fn with_stand_in(
        refusals: &[Reason],
        interval: Duration,
        sights: Option<std::os::unix::net::UnixStream>,
        stand_in: Option<Readings>,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (readings, forgotten) = (Readings::default(), Arc::<Mutex<Vec<FlowKey>>>::default());
        let bounds = Bounds { flows: 16, retention: Duration::from_hours(1) };
        let observation = SharedObservation::new(Observation::new(Epoch::default(), bounds, "6.12".into()));
        let (closing, closes) = watch::channel(false);
        let directory: PathBuf = root.path().to_owned();
        let preferred = starter(Mode::Ebpf, refusals, Arc::clone(&readings), Arc::clone(&forgotten), sights);
        let stand_in = stand_in.map(|readings| starter(Mode::Fallback, &[], readings, Arc::clone(&forgotten), None));
        let observer = Observer {
            captures: Captures { preferred, stand_in },
            observation: observation.clone(),
            changed: Arc::new(Notify::new()),
            interval,
            cgroup_root: Box::new(move || Ok(directory.clone())),
        };
        let observer = tokio::spawn(observer.run(closes));
        Self { observation, readings, forgotten, closing, observer, root }
    }

    fn flow(&self, port: u16) -> (FlowKey, FlowCounters) {
        let cgroup_id = std::fs::metadata(self.root.path()).unwrap().ino();
        let ip = IpAddr::from([127, 0, 0, 1]);
        let key =
            FlowKey { cgroup_id, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp };
        (key, FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() })
    }

    fn bring(&self, flows: Vec<(FlowKey, FlowCounters)>) {
        let seen = flows.len() as u64;
        self.readings.lock().unwrap().push_back(Ok(Reading { flows, seen, ..Reading::default() }));
    }

    async fn until(&self, what: &str, condition: impl Fn(&Observation) -> bool) {
        let waiting = async {
            while !condition(&self.observation.lock()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(GENEROUS, waiting).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.observation.lock().capture));
    }
}

fn starter(
    mode: Mode,
    refusals: &[Reason],
    readings: Readings,
    forgotten: Arc<Mutex<Vec<FlowKey>>>,
    sights: Option<std::os::unix::net::UnixStream>,
) -> Starter {
    let refusals = Mutex::new(VecDeque::from(refusals.to_vec()));
    Arc::new(move || {
        if let Some(reason) = refusals.lock().unwrap().pop_front() {
            return Err(Refused { reason, message: "the test says so".into() });
        }
        let description = Description {
            mode,
            attach: if mode == Mode::Ebpf { "SockOps" } else { "SockDiag" },
            attached_at: SystemTime::now(),
            kernel: "6.12".into(),
            degradations: Vec::new(),
        };
        Ok(Box::new(Scripted {
            description,
            readings: Arc::clone(&readings),
            forgotten: Arc::clone(&forgotten),
            sights: sights.as_ref().map(|sights| sights.try_clone().unwrap()),
            last: Reading::default(),
        }))
    })
}

#[tokio::test]
async fn a_refused_capture_is_reported_and_tried_again() {
    let lab = Lab::new(&[Reason::BtfMissing], Duration::from_millis(10), None);
    lab.until("the refusal", |observation| observation.capture.reason == Reason::BtfMissing).await;
    assert_eq!(lab.observation.lock().capture.mode, None);
    let before = lab.observation.lock().epoch();
    lab.bring(vec![lab.flow(1)]);
    lab.until("a flow", |observation| observation.flows.len() == 1).await;
    let mut observation = lab.observation.lock();
    assert_eq!((observation.capture.mode, observation.capture.reason), (Some(Mode::Ebpf), Reason::Supported));
    assert_ne!(observation.epoch(), before);
    let cgroup = lab.flow(1).0.cgroup_id;
    let owner = observation.attribution.as_mut().unwrap().owner(cgroup, std::time::Instant::now()).owner.clone();
    assert_eq!(owner, CgroupOwner::HostProcess { name: "host".into() });
}

#[tokio::test]
async fn a_capture_that_fails_is_started_again_with_a_new_epoch() {
    let lab = Lab::new(&[], Duration::from_millis(10), None);
    lab.bring(vec![lab.flow(1)]);
    lab.until("a flow", |observation| observation.flows.len() == 1).await;
    let epoch = lab.observation.lock().epoch();
    lab.readings.lock().unwrap().extend([Err("once"), Err("twice")]);
    lab.bring(vec![lab.flow(2)]);
    lab.until("the second flow", |observation| observation.flows.len() == 2).await;
    assert_eq!(lab.observation.lock().epoch(), epoch, "one or two failures are passed over");

    lab.readings.lock().unwrap().extend([Err("once"), Err("twice"), Err("for good")]);
    lab.until("the failure", |observation| observation.capture.reason == Reason::CaptureFailed).await;
    assert!(lab.observation.lock().capture.message.contains("for good"));
    assert_eq!(lab.observation.lock().flows.len(), 2, "what was counted stays true");
    lab.until("another start", |observation| observation.capture.mode.is_some()).await;
    assert_ne!(lab.observation.lock().epoch(), epoch);
    assert!(lab.observation.lock().flows.is_empty(), "and a new epoch begins at zero");
}

#[tokio::test]
async fn first_sights_are_read_at_once() {
    let (kernel, sights) = std::os::unix::net::UnixStream::pair().unwrap();
    sights.set_nonblocking(true).unwrap();
    let lab = Lab::new(&[], Duration::from_hours(1), Some(sights));
    lab.until("the start", |observation| observation.capture.mode.is_some()).await;
    kernel.set_nonblocking(true).unwrap();
    let mut kernel = UnixStream::from_std(kernel).unwrap();
    for port in 1..=3u16 {
        lab.bring(vec![lab.flow(port)]);
        tokio::io::AsyncWriteExt::write_all(&mut kernel, b"!").await.unwrap();
        // Without the wake-up an hour would pass.
        lab.until("a new flow", |observation| observation.flows.len() >= usize::from(port)).await;
    }
}

#[tokio::test]
async fn the_last_read_comes_before_the_end() {
    let lab = Lab::new(&[], Duration::from_hours(1), None);
    lab.bring(vec![lab.flow(1)]);
    lab.until("the first read", |observation| observation.flows.len() == 1).await;
    lab.bring(vec![lab.flow(2)]);
    lab.closing.send_replace(true);
    timeout(GENEROUS, lab.observer).await.expect("an end").unwrap();
    assert_eq!(lab.observation.lock().flows.len(), 2);
}

#[tokio::test]
async fn too_many_flows_leave_the_capture_too() {
    let lab = Lab::new(&[], Duration::from_millis(10), None);
    lab.bring((0..40).map(|port| lab.flow(port)).collect());
    // Nothing acknowledges them here, so evicted flows are lost and counted.
    lab.until("the losses", |observation| observation.capture.losses.opened > 0).await;
    let observation = lab.observation.lock();
    let (kept, forgotten) = (observation.flows.len() as u64, lab.forgotten.lock().unwrap().len() as u64);
    assert!(kept <= 16, "{kept}");
    assert_eq!((observation.capture.losses.opened, observation.capture.unreported_flows), (40 - kept, 40 - kept));
    assert!(forgotten >= 40 - kept, "{forgotten}");
}

#[tokio::test]
async fn a_stand_in_sees_what_it_can_until_the_better_capture_is_back() {
    let (interval, stand_in) = (Duration::from_millis(10), Readings::default());
    let lab =
        Lab::with_stand_in(&[Reason::BtfMissing, Reason::BtfMissing], interval, None, Some(Arc::clone(&stand_in)));
    stand_in.lock().unwrap().push_back(Ok(Reading { flows: vec![lab.flow(1)], seen: 1, ..Reading::default() }));
    lab.until("a flow of the stand-in", |observation| observation.flows.len() == 1).await;
    let (epoch, capture) = {
        let observation = lab.observation.lock();
        (observation.epoch(), observation.capture.clone())
    };
    assert_eq!((capture.mode, capture.reason), (Some(Mode::Fallback), Reason::BtfMissing));
    assert!(capture.asks_for_fallback && capture.message.contains("the test says so"), "{capture:?}");
    lab.bring(vec![lab.flow(2)]);
    lab.until("the better one", |observation| observation.capture.mode == Some(Mode::Ebpf)).await;
    let observation = lab.observation.lock();
    assert_ne!(observation.epoch(), epoch, "other eyes, another epoch");
    assert_eq!((observation.capture.reason, observation.capture.asks_for_fallback), (Reason::Supported, false));
}

#[tokio::test]
async fn a_capture_that_fails_has_a_stand_in_that_asks_for_nothing() {
    let (interval, stand_in) = (Duration::from_millis(10), Readings::default());
    let lab = Lab::with_stand_in(&[], interval, None, Some(Arc::clone(&stand_in)));
    lab.until("the start", |observation| observation.capture.mode == Some(Mode::Ebpf)).await;
    lab.readings.lock().unwrap().extend([Err("once"), Err("twice"), Err("for good")]);
    lab.until("the stand-in", |observation| observation.capture.mode == Some(Mode::Fallback)).await;
    {
        let observation = lab.observation.lock();
        assert_eq!(observation.capture.reason, Reason::CaptureFailed);
        assert!(!observation.capture.asks_for_fallback && observation.capture.message.contains("for good"));
    }
    // The stand-in fails too: nothing runs until the next attempt, and that is said.
    stand_in.lock().unwrap().extend([Err("once"), Err("twice"), Err("too")]);
    lab.until("the better one", |observation| observation.capture.mode == Some(Mode::Ebpf)).await;
}

/// Notes whether its epoch had begun when it was first read.
struct Noting {
    inner: Box<dyn Capture>,
    observation: SharedObservation,
    begun_at_first_read: Arc<Mutex<Vec<bool>>>,
    read: bool,
}

impl Capture for Noting {
    fn description(&self) -> &Description {
        self.inner.description()
    }

    fn read(&mut self) -> Result<Reading, CaptureError> {
        if !std::mem::replace(&mut self.read, true) {
            let mode = self.observation.lock().capture.mode;
            self.begun_at_first_read.lock().unwrap().push(mode.is_some());
        }
        self.inner.read()
    }

    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>> {
        self.inner.new_flow_notifications()
    }

    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey> {
        self.inner.forget(keys)
    }
}

/// Else a snapshot of nothing would end what is open, and a second start in a row would count it again.
#[tokio::test]
async fn an_epoch_begins_with_what_is_open() {
    let (observation, begun) = {
        let bounds = Bounds { flows: 16, retention: Duration::from_hours(1) };
        let observation = SharedObservation::new(Observation::new(Epoch::default(), bounds, "6.12".into()));
        (observation, Arc::<Mutex<Vec<bool>>>::default())
    };
    let readings = Readings::default();
    let scripted = starter(Mode::Ebpf, &[], Arc::clone(&readings), Arc::default(), None);
    let (shared, noted) = (observation.clone(), Arc::clone(&begun));
    let preferred: Starter = Arc::new(move || {
        let (inner, observation) = (scripted()?, shared.clone());
        Ok(Box::new(Noting { inner, observation, begun_at_first_read: Arc::clone(&noted), read: false }))
    });
    let (root, (closing, closes)) = (tempfile::tempdir().unwrap(), watch::channel(false));
    let directory = root.path().to_owned();
    let observer = Observer {
        captures: Captures { preferred, stand_in: None },
        observation: observation.clone(),
        changed: Arc::new(Notify::new()),
        interval: Duration::from_millis(10),
        cgroup_root: Box::new(move || Ok(directory.clone())),
    };
    // Fails at its first read; the next one does not, and fails later.
    readings.lock().unwrap().extend([Err("at once"), Ok(Reading::default()), Err("1"), Err("2"), Err("3")]);
    let observer = tokio::spawn(observer.run(closes));
    let three = async {
        while begun.lock().unwrap().len() < 3 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(GENEROUS, three).await.expect("three starts");
    assert_eq!(*begun.lock().unwrap(), [false; 3]);
    closing.send_replace(true);
    timeout(GENEROUS, observer).await.expect("an end").unwrap();
}
