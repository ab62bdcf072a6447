//! Simulates seven days of a node on which cgroups are born and die, from the capture's readings to the operator's ledger:
//! nothing grows, and every count is right.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the test of the flows' memory")]
mod counting_allocator;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use counting_allocator::{Counting, IN_USE};
use report::v1alpha1::{AgentReport, Flow};
use scopeprobe_agent::{
    attribution::Attribution,
    capture::{Description, Mode, Reading},
    flow_store::Bounds,
    observation::Observation,
    report::session::Session,
};
use topology::{
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Protocol, Role},
    ledger::{Epoch, Ledger},
    nat_peer::NatPeer,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NODE: &str = "node-1";
const MINUTE: Duration = Duration::from_mins(1);
const MINUTES: u64 = 7 * 24 * 60;
/// Cgroups that are born each minute; `SCOPEPROBE_BIRTHS` sets another number.
const BIRTHS: u64 = 4;
/// Time for which a cgroup lives, in minutes.
const LIFE: u64 = 3;
/// Time for which a flow of a dead cgroup is kept, by the agent and by the operator.
const RETENTION: Duration = Duration::from_mins(15);
/// Greatest number of the API.
const GREATEST: u64 = i64::MAX as u64;

fn address(number: u64) -> IpAddr {
    let [.., a, b, c] = number.to_be_bytes();
    IpAddr::from([10, a, b, c])
}

fn key(cgroup_id: u64, number: u64) -> FlowKey {
    let (local, remote) = (address(number % 250), address(number));
    FlowKey { cgroup_id, netns: 1, role: Role::Client, local, remote, port: 443, protocol: Protocol::Tcp }
}

fn key_of(flow: &Flow) -> FlowKey {
    let ip = |octets: &[u8]| IpAddr::from(<[u8; 4]>::try_from(octets).unwrap());
    FlowKey {
        cgroup_id: flow.cgroup_id,
        netns: flow.netns,
        role: Role::Client,
        local: ip(&flow.local_ip),
        remote: ip(&flow.remote_ip),
        port: u16::try_from(flow.port).unwrap(),
        protocol: Protocol::Tcp,
    }
}

fn counters_of(flow: &Flow) -> FlowCounters {
    let counters = flow.counters.as_ref().unwrap();
    FlowCounters {
        run: flow.run,
        opened: counters.opened,
        closed: counters.closed,
        bytes_sent: counters.bytes_sent,
        ..FlowCounters::default()
    }
}

struct Node {
    root: tempfile::TempDir,
    observation: Observation,
    session: Session,
    ledger: Ledger,
    start: Instant,
    /// Live cgroups by the minute of their birth, and what the kernel counts of them.
    live: BTreeMap<u64, Vec<PathBuf>>,
    counted: BTreeMap<FlowKey, FlowCounters>,
    seen: u64,
    /// Connections of the flows that the ledger has retired.
    retired: u64,
}

impl Node {
    fn new() -> Self {
        // There, as in the hierarchy of cgroups, no inode number is used twice.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut observation = Observation::new([0; 16], Bounds { flows: 65_536, retention: RETENTION }, "6.12".into());
        let (mode, attach, attached_at) = (Mode::Ebpf, "SockOps", SystemTime::UNIX_EPOCH);
        let description = Description { mode, attach, attached_at, kernel: "6.12".into(), degradations: Vec::new() };
        observation.begin_epoch([1; 16], &description);
        observation.attribution = Some(Attribution::open(root.path()).unwrap());
        Self {
            root,
            observation,
            session: Session::new(NODE),
            ledger: Ledger::new(),
            start: Instant::now(),
            live: BTreeMap::new(),
            counted: BTreeMap::new(),
            seen: 0,
            retired: 0,
        }
    }

    /// Cgroups are born and make a connection each; those of some minutes ago end.
    fn live_for_a_minute(&mut self, minute: u64, births: u64) {
        let mut born = Vec::new();
        for number in minute * births..(minute + 1) * births {
            let directory = self.root.path().join(format!("kubepods-pod{number}.slice"));
            fs::create_dir(&directory).unwrap();
            let key = key(fs::metadata(&directory).unwrap().ino(), number);
            born.push(directory);
            // Of a flow that another cgroup of this number left.
            self.counted.insert(key, FlowCounters { opened: 1, closed: 1, bytes_sent: 7, ..FlowCounters::default() });
            self.seen += 1;
        }
        self.live.insert(minute, born);
        for directory in minute.checked_sub(LIFE).and_then(|ended| self.live.remove(&ended)).into_iter().flatten() {
            fs::remove_dir(directory).unwrap();
        }
    }

    /// As the agent's tasks do.
    fn read_and_report(&mut self, minute: u64, long: &(FlowKey, FlowCounters)) {
        let (now, time) = (self.start + MINUTE * u32::try_from(minute).unwrap(), at(minute));
        self.observation.attribution.as_mut().unwrap().catch_up(now);
        let new = std::mem::take(&mut self.counted);
        let nat_peers =
            new.keys().map(|key| (*key, vec![(NatPeer { ip: address(9), port: 1 }, 1)])).collect::<Vec<_>>();
        let flows = new.into_iter().chain([*long]).collect();
        let reading = Reading { flows, nat_peers, seen: self.seen, ..Reading::default() };
        self.observation.absorb(reading, now);
        while self.session.has_news(&self.observation, Instant::now()) {
            let report = self.session.next(&mut self.observation, now);
            self.take_in(&report, time);
        }
        // The last message is acknowledged.
        let report = self.session.next(&mut self.observation, now);
        self.take_in(&report, time);
        let dispensable = self.observation.dispensable(now);
        self.observation.drop_flows(&dispensable, now);
        self.observation.shrink();
        let before: u64 = self.ledger.flows().map(|flow| flow.totals.opened).sum();
        self.ledger.retire(time, RETENTION);
        let after: u64 = self.ledger.flows().map(|flow| flow.totals.opened).sum();
        self.retired += before - after;
    }

    /// As the operator does.
    fn take_in(&mut self, report: &AgentReport, time: SystemTime) {
        let epoch = Epoch(report.epoch.clone().try_into().unwrap());
        if report.sequence == 1 {
            self.ledger.begin_stream(NODE);
        }
        if report.begins_snapshot {
            self.ledger.begin_snapshot(NODE, epoch).unwrap();
        }
        for identity in &report.identities {
            let owner = CgroupOwner::HostProcess { name: format!("{identity:?}") };
            self.ledger.identify(NODE, epoch, identity.cgroup_id, owner).unwrap();
        }
        for flow in &report.flows {
            self.ledger.apply(NODE, epoch, key_of(flow), &counters_of(flow), time).unwrap();
        }
        if report.ends_snapshot {
            self.ledger.end_snapshot(NODE, epoch, time).unwrap();
        }
    }
}

fn at(minute: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + MINUTE * u32::try_from(minute).unwrap()
}

/// The only test of this binary: the allocator would also count the memory of other tests' threads.
#[test]
fn seven_days_of_births_and_deaths_leave_no_memory_behind() {
    let births = std::env::var("SCOPEPROBE_BIRTHS").map_or(BIRTHS, |births| births.parse().unwrap());
    let mut node = Node::new();
    // A long connection, whose bytes pass the greatest number of the API after three days.
    let long = key(1, 0xff_ffff);
    let per_minute = 1 << 40;
    let mut bytes = GREATEST - 3 * 24 * 60 * per_minute;
    let (mut most_by_day, mut told) = ([0; 7], 0);
    for minute in 0..MINUTES {
        bytes += per_minute;
        node.live_for_a_minute(minute, births);
        let counters = FlowCounters { opened: 1, bytes_sent: bytes, ..FlowCounters::default() };
        node.read_and_report(minute, &(long, counters));
        let shown = node.ledger.flows().find(|flow| *flow.key == long).unwrap().totals.bytes_sent;
        assert!(shown >= told && shown == bytes.min(GREATEST), "{shown} after {told}, of {bytes}");
        told = shown;
        let most = &mut most_by_day[usize::try_from(minute / (24 * 60)).unwrap()];
        *most = IN_USE.load(Ordering::Relaxed).max(*most);
    }
    let known: u64 = node.ledger.flows().map(|flow| flow.totals.opened).sum();
    assert_eq!(known + node.retired, births * MINUTES + 1, "each connection was told once");
    assert_eq!(node.observation.capture.losses, scopeprobe_agent::capture::Losses::default());
    println!("most bytes in use, by day: {most_by_day:?}");
    let [first, .., last] = most_by_day;
    assert!(last <= first + first / 8, "{most_by_day:?}");
}
