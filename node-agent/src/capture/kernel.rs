//! The programs and maps in the kernel: loading, attaching, handing out.

use std::{fs::File, path::Path};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, Iter, ProgramError, SockOps, links::LinkError, tp_btf::BtfTracePointLinkId,
    },
};
use node_agent_common::{FlowKey, Loss, Offsets};

use super::{Degradation, Feature, Reason, Refusal, Settings, counters::Counters};

/// The compiled programs: see build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/scopeprobe.o"));

/// Names in the object.
const CONNECTIONS: &str = "connections";
const OPEN_SOCKETS: &str = "open_sockets";
const OLD_CLOSES: &str = "old_closes";

/// What is in the kernel as long as this value lives.
pub(super) struct Kernel {
    programs: Ebpf,
    pub(super) counters: Counters,
    pub(super) slot_of: HashMap<MapData, FlowKey, u32>,
    pub(super) free: Queue<MapData, u32>,
    pub(super) first_sights: RingBuf<MapData>,
    pub(super) seeds: HashMap<MapData, u64, FlowKey>,
    pub(super) recent: HashMap<MapData, u64, u32>,
    lost: PerCpuArray<MapData, u64>,
    looking: Array<MapData, u32>,
    can_list: bool,
    can_see_old_closes: bool,
    old_closes: Option<BtfTracePointLinkId>,
}

impl Kernel {
    /// Creates the maps and loads the programs; nothing runs yet.
    ///
    /// # Errors
    /// When the kernel refuses what nothing works without.
    pub(super) fn load(
        settings: &Settings,
        offsets: &Offsets,
        root: u64,
        degradations: &mut Vec<Degradation>,
    ) -> Result<Self, Refusal> {
        let mut programs = EbpfLoader::new()
            .btf(None)
            .override_global("OFFSETS", offsets, true)
            .override_global("ROOT", &root, true)
            .map_max_entries("SLOT_OF", settings.max_flows)
            .map_max_entries("STATS", settings.max_flows)
            .map_max_entries("FREE", settings.max_flows)
            .map_max_entries("FIRST_SIGHTS", settings.ring_bytes)
            .load(OBJECT)
            .map_err(|error| load_refusal("creating the maps", &error))?;
        load_connections(&mut programs)?;
        let mut kernel = Self::take_maps(programs, settings.max_flows)?;
        for slot in 0..settings.max_flows {
            kernel.free.push(slot, 0).map_err(|error| load_refusal("filling the table of free slots", &error))?;
        }
        kernel.load_optional(&settings.btf_path, degradations);
        Ok(kernel)
    }

    fn take_maps(mut programs: Ebpf, slots: u32) -> Result<Self, Refusal> {
        let Some(Map::Array(stats)) = programs.take_map("STATS") else { return Err(incomplete("STATS")) };
        Ok(Self {
            counters: Counters::map(stats, slots)
                .map_err(|error| load_refusal("mapping the table of counters", &error))?,
            slot_of: take(&mut programs, "SLOT_OF")?,
            free: take(&mut programs, "FREE")?,
            first_sights: take(&mut programs, "FIRST_SIGHTS")?,
            seeds: take(&mut programs, "SEEDS")?,
            recent: take(&mut programs, "RECENT")?,
            lost: take(&mut programs, "LOST")?,
            looking: take(&mut programs, "LOOKING")?,
            programs,
            can_list: false,
            can_see_old_closes: false,
            old_closes: None,
        })
    }

    /// Loads the programs without which the rest works.
    fn load_optional(&mut self, btf_path: &Path, degradations: &mut Vec<Degradation>) {
        let listing =
            AyaBtf::parse_file(btf_path, Endianness::default()).map_err(|error| error.to_string()).and_then(|btf| {
                self.load_open_sockets(&btf).map_err(|error| describe(&error))?;
                self.can_list = true;
                Ok(btf)
            });
        match listing {
            Err(error) => degradations.push(no_listing(&error)),
            Ok(btf) => match self.load_old_closes(&btf) {
                Ok(()) => self.can_see_old_closes = true,
                Err(error) => degradations.push(Degradation {
                    feature: Feature::OldCloses,
                    message: format!(
                        "the kernel refused the program on inet_sock_set_state: {}. The end of connections that are \
                         older than any agent of this boot will be noticed late, without their last bytes",
                        describe(&error)
                    ),
                }),
            },
        }
    }

    fn load_open_sockets(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<Iter>(&mut self.programs, OPEN_SOCKETS)?.load("task_file", btf)
    }

    fn load_old_closes(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<BtfTracePoint>(&mut self.programs, OLD_CLOSES)?.load("inet_sock_set_state", btf)
    }

    /// From now on everything is counted, until the value is dropped.
    ///
    /// # Errors
    /// When the cgroup does not take the program.
    pub(super) fn attach(&mut self, cgroup_root: &Path) -> Result<(), Refusal> {
        let refusal = |error: &dyn std::error::Error| Refusal {
            reason: Reason::AttachFailed,
            message: format!(
                "attaching to the cgroup {}: {}; look for another sock_ops program on it or above it that allows no \
                 other (bpftool cgroup tree)",
                cgroup_root.display(),
                describe(error)
            ),
        };
        let directory = File::open(cgroup_root).map_err(|error| refusal(&error))?;
        let program = program::<SockOps>(&mut self.programs, CONNECTIONS).map_err(|error| refusal(&error))?;
        // A link: several may be attached to a cgroup, and this one goes with the process.
        program.attach(directory, CgroupAttachMode::Single).map_err(|error| refusal(&error))?;
        Ok(())
    }

    /// Whether the open sockets can be listed.
    pub(super) fn can_list(&self) -> bool {
        self.can_list
    }

    /// A new listing, to be read to its end.
    pub(super) fn list(&mut self) -> Result<File, ListError> {
        let iterator = program::<Iter>(&mut self.programs, OPEN_SOCKETS)?;
        let link = iterator.attach()?;
        Ok(iterator.take_link(link)?.into_file()?)
    }

    /// Turns the program on that sees the end of old connections, or off: no cost where there are none.
    pub(super) fn watch_old_closes(&mut self, on: bool) -> Result<(), ProgramError> {
        if !self.can_see_old_closes || on == self.old_closes.is_some() {
            return Ok(());
        }
        let program = program::<BtfTracePoint>(&mut self.programs, OLD_CLOSES)?;
        match self.old_closes.take() {
            None => self.old_closes = Some(program.attach()?),
            Some(link) => program.detach(link)?,
        }
        Ok(())
    }

    /// During the first look the programs note which connections they have counted.
    pub(super) fn set_first_look(&mut self, on: bool) -> Result<(), MapError> {
        self.looking.set(0, u32::from(on), 0)
    }

    /// What could not be stored, of one kind.
    pub(super) fn lost(&self, what: Loss) -> Result<u64, MapError> {
        Ok(self.lost.get(&(what as u32), 0)?.iter().sum())
    }
}

/// A listing that could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// The connections themselves.
fn load_connections(programs: &mut Ebpf) -> Result<(), Refusal> {
    program::<SockOps>(programs, CONNECTIONS)
        .and_then(SockOps::load)
        .map_err(|error| load_refusal("loading the sock_ops program", &error))
}

pub(super) fn no_listing(why: &str) -> Degradation {
    Degradation {
        feature: Feature::OpenSockets,
        message: format!(
            "the open sockets cannot be listed: {why}. Connections from before the start are not shown, nor the bytes \
             of connections before they end"
        ),
    }
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    programs.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

fn take<M>(programs: &mut Ebpf, name: &str) -> Result<M, Refusal>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = programs.take_map(name).ok_or_else(|| incomplete(name))?;
    map.try_into().map_err(|error: MapError| load_refusal("opening the maps", &error))
}

fn incomplete(name: &str) -> Refusal {
    Refusal {
        reason: Reason::LoadFailed,
        message: format!("the compiled programs lack the map {name}: this agent was built from mixed sources"),
    }
}

/// Where the kernel says no for want of a permission, the capabilities that were found were not enough.
fn load_refusal(attempted: &str, error: &(dyn std::error::Error + 'static)) -> Refusal {
    if is_permission(error) {
        return Refusal {
            reason: Reason::CapabilityMissing,
            message: format!(
                "{attempted}: {}; allow the agent BPF, PERFMON and NET_ADMIN in the initial user namespace, and check \
                 for a seccomp profile or security module that forbids bpf()",
                describe(error)
            ),
        };
    }
    Refusal { reason: Reason::LoadFailed, message: format!("{attempted}: {}", describe(error)) }
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error with its causes, and the end of what the verifier had to say.
fn describe(error: &dyn std::error::Error) -> String {
    const MOST: usize = 700;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let text = text.trim().replace('\n', "; ");
    let excess = text.len().saturating_sub(MOST);
    let begin = text.ceil_char_boundary(excess);
    if begin == 0 { text } else { format!("…{}", &text[begin..]) }
}
