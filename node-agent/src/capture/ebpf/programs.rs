//! The programs and maps in the kernel: loading, attaching, handing out.

use std::{collections::HashSet, fs::File, io, path::Path, time::Instant};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, MapData, MapError, PerCpuArray, Queue, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{BtfTracePoint, Iter, ProgramError, SockOps, links::LinkError, tp_btf::BtfTracePointLinkId},
};
use aya_obj::generated::BPF_NOEXIST;
use node_agent_common::{
    FlowKey, Loss, Offsets, PendingAttempt, ProgramRecord, TrackedSocket, chunk, folding, listing_phase, sockmap,
};

use super::{
    attach_types::AttachTypes,
    balancers::{self, Balancers},
    counters::{Counters, GrowthError},
    datagrams::Datagrams,
    keys::octets,
    listing::Listing,
    load_errors::{describe, load_refusal},
    loaded_programs,
    object::{program, take},
    preflight::Environment,
    preflight::no_listing,
    running_kernel::RunningKernel,
    sock_ops::{self, PlaceError, SockOpsPlace},
    table_sizes,
    tracepoint::Tracepoint,
};
use crate::capture::{
    attach::Attach,
    description::{Degradation, Feature},
    errors::Refusal,
    settings::Settings,
};
use kernel_support::Reason;
use topology::entity::Network;

/// The compiled programs: see build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/scopeprobe.o"));

/// Slots of flows that are there from the start.
const FIRST_SLOTS: u32 = 4 * chunk::SLOTS;

/// Names in the object.
const OPEN_SOCKETS: &str = "open_sockets";
const NAMESPACES: &str = "namespaces";
const LOADED_PROGRAMS: &str = "loaded_programs";
const OLD_CLOSES: &str = "old_closes";

/// Loaded and attached programs; they stay in the kernel while this value lives.
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts, not states")]
pub(super) struct Programs {
    object: Ebpf,
    pub(super) counters: Counters,
    pub(super) slot_of: HashMap<MapData, FlowKey, u32>,
    pub(super) free: Queue<MapData, u32>,
    pub(super) new_flow_notifications: RingBuf<MapData>,
    pub(super) seeds: HashMap<MapData, u64, FlowKey>,
    recent: HashMap<MapData, u64, u32>,
    pub(super) pending: HashMap<MapData, u64, PendingAttempt>,
    in_sockmap: HashMap<MapData, u64, u32>,
    sockmaps: Array<MapData, u32>,
    pub(super) tracked_sockets: HashMap<MapData, u64, TrackedSocket>,
    lost: PerCpuArray<MapData, u64>,
    listing_phase: Array<MapData, u32>,
    folding: Array<MapData, u32>,
    own_networks: LpmTrie<MapData, [u8; 16], u32>,
    balancers: Balancers,
    tracepoint: Tracepoint,
    sock_ops: SockOpsPlace,
    counts_misses: bool,
    can_list: bool,
    can_list_tasks: bool,
    has_program_list: bool,
    can_see_old_closes: bool,
    old_closes: Option<BtfTracePointLinkId>,
}

impl Programs {
    /// Creates the maps and loads the programs that this way to attach needs; nothing runs yet.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an indispensable program.
    pub(super) fn load(
        settings: &Settings,
        environment: &Environment,
        attach: Attach,
        degradations: &mut Vec<Degradation>,
    ) -> Result<Self, Refusal> {
        let follows = attach != Attach::SockOps;
        let offsets = Offsets { tracks_sockets: u32::from(follows), ..environment.offsets };
        let silence = u64::try_from(settings.conversation_silence.as_nanos()).unwrap_or(u64::MAX);
        let mut object = EbpfLoader::new()
            .btf(None)
            .override_global("OFFSETS", &offsets, true)
            .override_global("ROOT", &environment.root, true)
            .override_global("SILENCE", &silence, true)
            .override_global("WANTS_ANSWERS", &u32::from(settings.dns_names), true)
            .map_max_entries("SLOT_OF", settings.max_flows)
            .map_max_entries("STATS", Counters::chunks_for(settings.max_flows))
            .map_max_entries("FREE", settings.max_flows)
            .map_max_entries("NEW_FLOWS", settings.ring_bytes)
            .map_max_entries("ANSWERS", settings.answer_ring_bytes)
            .map_max_entries("SEEDS", table_sizes::for_old_connections(settings))
            .map_max_entries("RECENT", settings.max_start_notes)
            .map_max_entries("TRACKED_SOCKETS", if follows { settings.max_tracked_sockets } else { 1 })
            .load(OBJECT)
            .map_err(|error| load_refusal("creating the maps", &error))?;
        if !follows {
            load_connections(&mut object)?;
        }
        let tracepoint = Tracepoint::load(&mut object, attach, settings, environment)?;
        let mut programs = Self::take_maps(object, settings)?;
        programs.counts_misses = tracepoint.counts_misses(&environment.release);
        programs.tracepoint = tracepoint;
        while programs.counters.slots() < FIRST_SLOTS.min(settings.max_flows) {
            programs.add_slots().map_err(|error| load_refusal("creating the table of counters", &error))?;
        }
        programs.load_optional(environment.attach_types, attach, degradations);
        Ok(programs)
    }

    fn take_maps(mut object: Ebpf, settings: &Settings) -> Result<Self, Refusal> {
        let balancing = take(&mut object, "BALANCING")?;
        Ok(Self {
            balancers: Balancers::new(&settings.cgroup_root, balancing, settings.hook_positions),
            counters: Counters::new(take(&mut object, "STATS")?, settings.max_flows),
            slot_of: take(&mut object, "SLOT_OF")?,
            free: take(&mut object, "FREE")?,
            new_flow_notifications: take(&mut object, "NEW_FLOWS")?,
            seeds: take(&mut object, "SEEDS")?,
            recent: take(&mut object, "RECENT")?,
            pending: take(&mut object, "PENDING")?,
            in_sockmap: take(&mut object, "IN_SOCKMAP")?,
            sockmaps: take(&mut object, "SOCKMAPS")?,
            tracked_sockets: take(&mut object, "TRACKED_SOCKETS")?,
            lost: take(&mut object, "LOST")?,
            listing_phase: take(&mut object, "LISTING_PHASE")?,
            folding: take(&mut object, "FOLDING")?,
            own_networks: take(&mut object, "OWN_NETWORKS")?,
            sock_ops: SockOpsPlace::take(&mut object)?,
            object,
            tracepoint: Tracepoint::default(),
            counts_misses: true,
            can_list: false,
            can_list_tasks: false,
            has_program_list: false,
            can_see_old_closes: false,
            old_closes: None,
        })
    }

    /// Loads the programs without which the rest works.
    fn load_optional(&mut self, types: AttachTypes, attach: Attach, degradations: &mut Vec<Degradation>) {
        let btf = types.to_aya().map_err(|error| error.to_string());
        if let Ok(btf) = &btf {
            self.has_program_list = self.load_loaded_programs(btf).is_ok();
        }
        let list =
            |programs: &mut Self, btf: &AyaBtf| programs.load_open_sockets(btf).map_err(|error| describe(&error));
        match btf.and_then(|btf| list(self, &btf).map(|()| btf)) {
            Err(error) if degradations.iter().all(|known| known.feature != Feature::OpenSockets) => {
                degradations.push(no_listing(&error));
            }
            Err(_) => {}
            Ok(btf) => {
                self.can_list = true;
                // What follows every socket sees the ends of old ones, too.
                if attach == Attach::SockOps {
                    self.load_old_closes_if_possible(&btf, degradations);
                } else {
                    self.can_list_tasks = self.load_namespaces(&btf).is_ok();
                }
            }
        }
    }

    fn load_old_closes_if_possible(&mut self, btf: &AyaBtf, degradations: &mut Vec<Degradation>) {
        match self.load_old_closes(btf) {
            Ok(()) => self.can_see_old_closes = true,
            Err(error) => degradations.push(Degradation {
                feature: Feature::OldCloses,
                message: format!(
                    "the kernel refused the program on inet_sock_set_state: {}. The end of connections that are older \
                     than any agent of this boot will be noticed late, without their last bytes",
                    describe(&error)
                ),
            }),
        }
    }

    fn load_open_sockets(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<Iter>(&mut self.object, OPEN_SOCKETS)?.load("task_file", btf)
    }

    fn load_namespaces(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<Iter>(&mut self.object, NAMESPACES)?.load("task", btf)
    }

    fn load_loaded_programs(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<Iter>(&mut self.object, LOADED_PROGRAMS)?.load("bpf_prog", btf)
    }

    fn load_old_closes(&mut self, btf: &AyaBtf) -> Result<(), ProgramError> {
        program::<BtfTracePoint>(&mut self.object, OLD_CLOSES)?.load("inet_sock_set_state", btf)
    }

    /// From now on everything is counted, until the value is dropped.
    ///
    /// # Errors
    /// Returns an error if the cgroup or tracepoint refuses the program.
    pub(super) fn attach(&mut self, attach: Attach, cgroup_root: &Path) -> Result<(), Refusal> {
        match attach {
            Attach::SockOps => self.attach_sock_ops(cgroup_root),
            Attach::TpBtf | Attach::Tracepoint => self.tracepoint.attach(&mut self.object),
        }
    }

    fn attach_sock_ops(&mut self, cgroup_root: &Path) -> Result<(), Refusal> {
        let refusal = |error: &dyn std::error::Error| Refusal {
            reason: Reason::AttachFailed,
            message: format!(
                "attaching to the cgroup {}: {}; look for another sock_ops program on it or above it that allows no \
                 other (bpftool cgroup tree)",
                cgroup_root.display(),
                describe(error)
            ),
        };
        self.sock_ops.attach(&mut self.object, cgroup_root).map_err(|error| refusal(error.as_ref()))
    }

    /// Returns the programs that the kernel has called after the `sock_ops` program: see [`SockOpsPlace::fall_behind`].
    pub(super) fn fall_behind(&mut self, now: Instant) -> Result<Vec<u32>, PlaceError> {
        self.sock_ops.fall_behind(&mut self.object, now)
    }

    /// Returns all programs in the kernel; none if the kernel does not list them.
    pub(super) fn list_programs(&mut self) -> Option<Vec<ProgramRecord>> {
        if !self.has_program_list {
            return None;
        }
        let listing = self.begin_listing(LOADED_PROGRAMS).ok()?;
        loaded_programs::read(listing).ok()
    }

    /// Counts datagrams, too, from now on until this value is dropped; where something keeps it from that, the rest goes on.
    pub(super) fn attach_datagrams(
        &mut self,
        settings: &Settings,
        degradations: &mut Vec<Degradation>,
    ) -> Option<Datagrams> {
        Datagrams::attach(&mut self.object, settings, degradations)
    }

    /// Looks for load balancers at the sockets if that is due, and attaches programs in the order in which original
    /// destinations show.
    ///
    /// # Errors
    /// Returns a message if the kernel refuses that; what was captured goes on.
    pub(super) fn check_balancers(
        &mut self,
        datagrams: Option<&mut Datagrams>,
        cgroup_root: &Path,
        now: Instant,
    ) -> Result<(), String> {
        if self.follows() && datagrams.is_none() {
            // Nothing asks for notes, and this process may have no right to attach them.
            return Ok(());
        }
        let are_present =
            self.balancers.check(&mut self.object, now).map_err(|refused| balancers::refusal(&refused))?;
        if are_present && let Some(datagrams) = datagrams {
            datagrams
                .run_last(&mut self.object, cgroup_root)
                .map_err(|error| format!("the programs on sendmsg() do not run after the load balancer's: {error}"))?;
        }
        Ok(())
    }

    /// Returns whether there were load balancers at the last check.
    pub(super) fn has_balancers(&self) -> bool {
        self.balancers.are_present()
    }

    /// The sockets of which the programs have noted that they have counted them, and forgets these notes.
    pub(super) fn take_notes(&mut self) -> Result<HashSet<u64>, MapError> {
        let cookies = self.recent.keys().collect::<Result<HashSet<_>, _>>()?;
        for cookie in &cookies {
            self.recent.remove(cookie)?;
        }
        Ok(cookies)
    }

    /// Returns whether a tracepoint tracks sockets.
    pub(super) fn follows(&self) -> bool {
        self.tracepoint.is_used()
    }

    /// Returns the number of skipped runs of the tracepoint's programs; 0 if the kernel does not report it.
    pub(super) fn missed_runs(&mut self) -> io::Result<u64> {
        self.tracepoint.missed_runs(&mut self.object)
    }

    /// Returns whether the kernel reports skipped runs.
    pub(super) fn counts_misses(&self) -> bool {
        self.counts_misses
    }

    /// Returns the limitations of a capture by tracepoint.
    pub(super) fn weakness(&self, release: &RunningKernel) -> &'static str {
        self.tracepoint.weakness(release)
    }

    /// Returns whether open sockets can be listed.
    pub(super) fn can_list(&self) -> bool {
        self.can_list
    }

    /// A new listing of the open sockets, to be read to its end.
    pub(super) fn list(&mut self) -> Result<File, ListError> {
        self.begin_listing(OPEN_SOCKETS)
    }

    /// Returns whether tasks can be listed with their network namespaces; only if sockets are tracked.
    pub(super) fn can_list_tasks(&self) -> bool {
        self.can_list_tasks
    }

    /// A new listing of who is in which network namespace, to be read to its end.
    pub(super) fn list_tasks(&mut self) -> Result<File, ListError> {
        self.begin_listing(NAMESPACES)
    }

    fn begin_listing(&mut self, by: &'static str) -> Result<File, ListError> {
        let iterator = program::<Iter>(&mut self.object, by)?;
        let link = iterator.attach()?;
        Ok(iterator.take_link(link)?.into_file()?)
    }

    /// Turns the program on that sees the end of old connections, or off: no cost where there are none.
    pub(super) fn watch_old_closes(&mut self, on: bool) -> Result<(), ProgramError> {
        if !self.can_see_old_closes || on == self.old_closes.is_some() {
            return Ok(());
        }
        let program = program::<BtfTracePoint>(&mut self.object, OLD_CLOSES)?;
        match self.old_closes.take() {
            None => self.old_closes = Some(program.attach()?),
            Some(link) => program.detach(link)?,
        }
        Ok(())
    }

    /// Starts or ends the first listing. During it, the programs note which connections they have counted.
    pub(super) fn set_first_look(&mut self, on: bool) -> Result<(), MapError> {
        self.listing_phase.set(0, if on { listing_phase::NOTES_ALL } else { listing_phase::OVER }, 0)
    }

    /// Marks the listed sockets whose payload may go past TCP, so that their ends are counted so. Beyond
    /// [`sockmap::MARKS`], they are not. Also records whether other sockets' payload may.
    pub(super) fn mark_in_sockmap(&mut self, listing: &Listing) -> Result<(), MapError> {
        if let Some(programs) = self.list_programs() {
            let redirects = programs.iter().any(loaded_programs::redirects_payload);
            self.sockmaps.set(sockmap::HAS_PROGRAMS, u32::from(redirects), 0)?;
        }
        for (cookie, _) in listing.connections.iter().filter(|(_, connection)| connection.is_past_tcp) {
            if self.in_sockmap.insert(cookie, 1, 0).is_ok() {
                self.sockmaps.set(sockmap::HAS_MARKS, 1, 0)?;
            }
        }
        Ok(())
    }

    /// Sets the phase of folding: see [`node_agent_common::folding`].
    pub(super) fn set_folding(&mut self, phase: u32) -> Result<(), MapError> {
        self.folding.set(0, phase, 0)
    }

    /// Replaces the cluster's own networks. Networks beyond [`node_agent_common::folding::NETWORKS`] are left out.
    pub(super) fn set_own_networks(&mut self, networks: &[Network]) -> Result<(), MapError> {
        let before = self.own_networks.keys().collect::<Result<Vec<_>, _>>()?;
        for network in before {
            self.own_networks.remove(&network)?;
        }
        for network in networks.iter().take(folding::NETWORKS as usize) {
            let bits_before = if network.address.is_ipv4() { 96 } else { 0 };
            let key = Key::new(bits_before + u32::from(network.prefix), octets(network.address));
            self.own_networks.insert(&key, 1, 0)?;
        }
        Ok(())
    }

    /// Returns the slot of a flow, which gets one if it has none; `None` if no slot is free.
    pub(super) fn provide_slot(&mut self, key: &FlowKey) -> Result<Option<u32>, MapError> {
        if let Ok(slot) = self.slot_of.get(key, 0) {
            return Ok(Some(slot));
        }
        let Ok(slot) = self.free.pop(0) else { return Ok(None) };
        if self.slot_of.insert(key, slot, u64::from(BPF_NOEXIST)).is_ok() {
            return Ok(Some(slot));
        }
        // A program was faster, or the kernel has no memory just now.
        self.free.push(slot, 0)?;
        Ok(self.slot_of.get(key, 0).ok())
    }

    /// Adds a chunk to the table of flows and gives the kernel its slots. Does nothing if the table has its maximum size.
    ///
    /// # Errors
    /// Returns an error if there is no memory for it.
    pub(super) fn add_slots(&mut self) -> Result<(), GrowthError> {
        for slot in self.counters.grow()? {
            self.free.push(slot, 0)?;
        }
        Ok(())
    }

    /// Deletes the key of a flow, so that no program counts in its slot any more, as soon as those that run now have ended.
    pub(super) fn delete_key(&mut self, key: &FlowKey, slot: u32) -> Result<(), MapError> {
        self.slot_of.remove(key)?;
        self.counters.end_generation(slot);
        Ok(())
    }

    /// Returns the number of losses of one kind.
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
fn load_connections(object: &mut Ebpf) -> Result<(), Refusal> {
    for copy in sock_ops::COPIES {
        program::<SockOps>(object, copy)
            .and_then(SockOps::load)
            .map_err(|error| load_refusal("loading the sock_ops program", &error))?;
    }
    Ok(())
}
