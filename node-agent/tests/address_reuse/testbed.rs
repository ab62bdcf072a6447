//! Addresses in network namespaces, and the pods that have them one after the other.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use topology::entity::{Pod, PodLifetime, Workload};
use traffic::script::pod::{PodAnswer, PodCommand, PodScript};

use super::{
    lab::{Node, Process},
    truth::{self, Truth},
};

/// Number of addresses that each pod calls.
const TARGETS: usize = 5;
/// The average pause between two calls.
const PAUSE_MS: u64 = 300;
/// The router's, at each of its ends.
const GATEWAY: &str = "169.254.1.1";
/// Maximum delay of an API event.
const LATEST_MS: u64 = 1_500;

/// Event of the cluster's API.
pub enum Event {
    Is(Box<Pod>),
    Gone { uid: String, life: PodLifetime },
}

/// Events of the API, each due at a time.
#[derive(Default)]
pub struct Events {
    coming: Mutex<Vec<(Instant, Event)>>,
    over: AtomicBool,
}

impl Events {
    fn tell(&self, late: Duration, event: Event) {
        self.coming.lock().unwrap().push((Instant::now() + late, event));
    }

    /// Those that are due, oldest first.
    pub fn due(&self) -> Vec<Event> {
        let mut coming = self.coming.lock().unwrap();
        coming.sort_by_key(|(due, _)| *due);
        let due = coming.partition_point(|(due, _)| *due <= Instant::now());
        coming.drain(..due).map(|(_, event)| event).collect()
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) && self.coming.lock().unwrap().is_empty()
    }
}

/// One network namespace with an address, and the process in it.
struct Place {
    process: Process,
    ip: IpAddr,
    root: PathBuf,
    observed: bool,
}

pub struct Testbed {
    places: Vec<Place>,
    _router: Process,
}

fn ip(number: usize) -> IpAddr {
    let [.., high, low] = u32::try_from(number + 1).unwrap().to_be_bytes();
    Ipv4Addr::new(10, 202, high, low).into()
}

pub fn name_of(uid: &str) -> String {
    let number = u64::from_str_radix(uid.rsplit('-').next().unwrap(), 16).unwrap();
    format!("pod-{number}")
}

fn uid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

fn container_id(number: u64) -> String {
    format!("{number:064x}")
}

impl Testbed {
    /// Every other address is on the node with an agent.
    pub fn new(node: &Node, elsewhere: &Node, addresses: usize) -> Self {
        let router = node.process_in_own_netns("router", false);
        router.in_netns("sysctl -qw net.ipv4.ip_forward=1");
        let places: Vec<Place> = (0..addresses)
            .map(|number| {
                let observed = number % 2 == 0;
                let node = if observed { node } else { elsewhere };
                let process = node.process_in_own_netns("idle", false);
                Place { process, ip: ip(number), root: node.root().to_owned(), observed }
            })
            .collect();
        for (number, place) in places.iter().enumerate() {
            let (inside, outside, ip) = (place.process.pid(), router.pid(), place.ip);
            // Point to point: a kernel knows no more than a thousand neighbours.
            router.in_netns(&format!(
                "ip link add p{number} netns {outside} type veth peer name eth0 netns {inside}\n\
                 ip link set p{number} up\n\
                 ip address add {GATEWAY}/32 dev p{number}\n\
                 ip route add {ip}/32 dev p{number}"
            ));
            place.process.in_netns(&format!(
                "ip address add {ip}/32 dev eth0\n\
                 ip link set eth0 up\n\
                 ip route add {GATEWAY}/32 dev eth0\n\
                 ip route add default via {GATEWAY}"
            ));
        }
        Self { places, _router: router }
    }

    /// Runs pods for this duration, while `watch` receives the events of the API.
    pub fn run(mut self, lasting: Duration, watch: impl FnOnce(&Events)) -> Truth {
        let (events, numbers, truth) = (Events::default(), AtomicU64::new(1), Mutex::new(Truth::default()));
        let end = Instant::now() + lasting;
        let places = &mut self.places;
        let all = places.len();
        thread::scope(|scope| {
            let (events, numbers, truth) = (&events, &numbers, &truth);
            let running: Vec<_> = places
                .iter_mut()
                .enumerate()
                .map(|(index, place)| scope.spawn(move || place.host_pods(index, all, end, numbers, events, truth)))
                .collect();
            scope.spawn(move || {
                for one in running {
                    one.join().unwrap();
                }
                events.over.store(true, Ordering::Relaxed);
            });
            watch(events);
        });
        for place in &self.places {
            let _ = remove_below(&place.root.join("kubepods"));
        }
        truth.into_inner().unwrap()
    }
}

impl Place {
    fn host_pods(
        &mut self,
        index: usize,
        all: usize,
        end: Instant,
        numbers: &AtomicU64,
        events: &Events,
        truth: &Mutex<Truth>,
    ) {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut freed: Option<Instant> = None;
        while Instant::now() < end {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let cgroup = self.root.join(format!("kubepods/besteffort/pod{}/{}", uid(number), container_id(number)));
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), self.process.pid().to_string()).unwrap();
            let targets = (0..TARGETS).map(|_| ip(usize::try_from(next(all as u64)).unwrap())).collect();
            let from = SystemTime::now();
            let gap = freed.map(|freed| freed.elapsed());
            let pause_ms = PAUSE_MS / 2 + next(PAUSE_MS);
            let script = PodScript { name: format!("pod-{number}"), pause_ms, seed: number, targets };
            assert_eq!(self.process.execute::<PodAnswer>(&PodCommand::Start(script)), PodAnswer::Done);
            let mut pod = self.pod(number, from);
            let late = |ms| Duration::from_millis(ms);
            events.tell(late(next(LATEST_MS)), Event::Is(Box::new(pod.clone())));
            // Two to ten seconds.
            thread::sleep(Duration::from_millis(2_000 + next(8_000)));
            let calls = match self.process.execute(&PodCommand::Stop) {
                PodAnswer::Calls(calls) => calls,
                other @ PodAnswer::Done => panic!("{other:?}"),
            };
            let until = SystemTime::now();
            freed = Some(Instant::now());
            pod.life.finished = Some(cut(until));
            // The last event arrives last.
            let told = Event::Gone { uid: pod.uid, life: pod.life };
            events.tell(late(LATEST_MS + next(LATEST_MS)), told);
            let _ = fs::write(self.root.join("idle/cgroup.procs"), self.process.pid().to_string());
            let _ = remove_below(cgroup.parent().unwrap());
            let mut truth = truth.lock().unwrap();
            truth.gaps.extend(gap);
            truth.take(&format!("pod-{number}"), calls);
            let lived = truth::Pod { ip: self.ip, from, until, observed: self.observed };
            truth.pods.insert(format!("pod-{number}"), lived);
        }
    }

    fn pod(&self, number: u64, from: SystemTime) -> Pod {
        let name = format!("pod-{number}");
        let began = Some(cut(from));
        Pod {
            uid: uid(number),
            namespace: "lab".to_owned(),
            name: name.clone(),
            node: if self.observed { "node-1" } else { "node-2" }.to_owned(),
            host_network: false,
            ips: vec![self.ip],
            ended: false,
            workload: Workload { namespace: "lab".to_owned(), kind: "Pod".to_owned(), name, group: String::new() },
            containers: [(container_id(number), "main".to_owned())].into(),
            host_ports: Vec::new(),
            life: PodLifetime { created: began, started: began, ran: began, ..PodLifetime::default() },
        }
    }
}

/// As objects write times.
fn cut(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn remove_below(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_below(&entry.path())?;
    }
    fs::remove_dir(directory)
}
