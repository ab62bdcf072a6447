//! Programs under measurement: none, empty ones of the capture's hooks, and the capture itself.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, SockOps},
};
use scopeprobe_agent::capture::{Attach, Capture as _, EbpfCapture, Feature, Settings, start_ebpf};

use crate::load::Work;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf-object/scopeprobe.o");

/// Interval at which the capture is read; an agent reads it every second, or when a flow is new.
const READ_INTERVAL: Duration = Duration::from_millis(200);

/// One set of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// None.
    Off,
    /// An empty program on connections.
    EmptyOps,
    /// An empty program on connections that requests state changes.
    EmptyStates,
    /// Empty programs on packets.
    EmptyPackets,
    /// The capture without UDP.
    Connections,
    /// The capture.
    Capture,
}

impl Hooks {
    /// Returns the names of its programs in the kernel, which keeps 15 characters.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Off => &[],
            Self::EmptyOps => &["empty_ops"],
            Self::EmptyStates => &["empty_states"],
            Self::EmptyPackets => &["empty_out", "empty_in"],
            Self::Connections => &["connections"],
            Self::Capture => &["connections", "datagrams_in", "datagrams_out"],
        }
    }

    /// Returns the loads for which they run.
    pub fn works(self) -> &'static [Work] {
        match self {
            Self::Off | Self::EmptyOps | Self::EmptyStates | Self::Connections => &[Work::Fin, Work::Rst],
            Self::EmptyPackets | Self::Capture => &[Work::Fin, Work::Rst, Work::Udp, Work::UdpInTurn],
        }
    }

    /// Attaches the programs to a cgroup.
    pub fn attach(self, cgroup: &Path) -> Attached {
        match self {
            Self::Off => Attached::Nothing,
            Self::EmptyOps | Self::EmptyStates | Self::EmptyPackets => {
                Attached::Empty { _programs: Box::new(empty(self.programs(), cgroup)) }
            }
            Self::Connections | Self::Capture => Attached::Capture(Box::new(capture(cgroup, self == Self::Capture))),
        }
    }
}

/// Programs in the kernel; they leave with this value.
pub enum Attached {
    Nothing,
    Empty { _programs: Box<Ebpf> },
    Capture(Box<EbpfCapture>),
}

impl Attached {
    /// Returns the ends of connections that the capture has counted; 0 without it.
    pub fn seen(&mut self) -> u64 {
        match self {
            Self::Nothing | Self::Empty { .. } => 0,
            Self::Capture(capture) => capture.read().unwrap().seen,
        }
    }

    /// Runs a function to its end on another thread, and reads the capture meanwhile.
    pub fn read_until<T: Send>(&mut self, end: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let ending = scope.spawn(end);
            while !ending.is_finished() {
                if let Self::Capture(capture) = self {
                    capture.read().unwrap();
                }
                thread::sleep(READ_INTERVAL);
            }
            ending.join().unwrap()
        })
    }
}

/// Starts the capture of a cgroup.
pub fn capture(cgroup: &Path, datagrams: bool) -> EbpfCapture {
    let settings = Settings {
        cgroup_root: cgroup.to_owned(),
        self_test: false,
        attach: Some(Attach::SockOps),
        datagrams,
        ..Settings::default()
    };
    let capture = start_ebpf(&settings).unwrap();
    let description = capture.description();
    assert!(!datagrams || description.has(Feature::Datagrams), "{:?}", description.degradations);
    capture
}

/// Returns the memory of all maps of a capture that has just begun, in bytes, as the kernel charges it.
pub fn map_bytes(cgroup: &Path) -> u64 {
    let _capture = capture(cgroup, true);
    let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap();
    let of_map = |text: String| text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok());
    let is_map = |text: &String| text.contains("map_type:");
    descriptors
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter(is_map)
        .filter_map(of_map)
        .sum::<u64>()
}

fn empty(names: &[&str], cgroup: &Path) -> Ebpf {
    let mut object = EbpfLoader::new().btf(None).load(OBJECT).unwrap();
    for name in names {
        let directory = File::open(cgroup).unwrap();
        let program = object.program_mut(name).unwrap();
        let packets = |program: &mut CgroupSkb, attach| {
            program.load().unwrap();
            program.attach(&directory, attach, CgroupAttachMode::Single).unwrap();
        };
        match *name {
            "empty_out" => packets(program.try_into().unwrap(), CgroupSkbAttachType::Egress),
            "empty_in" => packets(program.try_into().unwrap(), CgroupSkbAttachType::Ingress),
            _ => {
                let program: &mut SockOps = program.try_into().unwrap();
                program.load().unwrap();
                program.attach(&directory, CgroupAttachMode::Single).unwrap();
            }
        }
    }
    object
}
