//! The attached `sock_ops` program, and its place behind programs of other owners.
//!
//! The kernel calls the programs of a cgroup in the order in which they were attached. A program that is called later can
//! overwrite the callback flags of a socket. If another program was attached since, this one is attached again behind it:
//! see [`node_agent_common::handover`].

use std::{
    collections::HashMap as StdHashMap,
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
    programs::{CgroupAttachMode, ProgramError, SockOps, sock_ops::SockOpsLinkId},
};
use nix::libc;
use node_agent_common::handover::{CHECKS, NOTES, TWIN};

use super::{
    object::{program, take},
    preexisting::SETTLE,
};
use crate::capture::errors::Refusal;

/// Names of both copies in the object.
pub(super) const COPIES: [&str; 2] = ["connections", "connections_twin"];

/// Time after which this program is attached again behind the same program. Two agents at one cgroup would otherwise do so
/// in turns.
const MOVE_EVERY: Duration = Duration::from_mins(1);

/// Maximum number of programs that one cgroup may have (`BPF_CGROUP_MAX_PROGS`), and that are listed here.
const MAX_PROGRAMS: u32 = 64;

/// The attached copy of the program.
pub(super) struct SockOpsPlace {
    phase: Array<MapData, u32>,
    notes: HashMap<MapData, [u64; 2], u32>,
    cgroup: Option<File>,
    /// Index of the attached copy, and its link.
    attached: Option<(usize, SockOpsLinkId)>,
    /// Times at which this program was attached again, by the program behind which it went.
    moved: StdHashMap<u32, Instant>,
}

/// A place that could not be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("cannot list the programs of the cgroup: {0}")]
    Query(#[from] io::Error),
}

impl SockOpsPlace {
    /// Takes the maps out of the object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Refusal> {
        Ok(Self {
            phase: take(object, "HANDOVER")?,
            notes: take(object, "HANDED_OVER")?,
            cgroup: None,
            attached: None,
            moved: StdHashMap::new(),
        })
    }

    /// Attaches the first copy to a cgroup. The link ends with the process, and others may be attached beside it.
    pub(super) fn attach(&mut self, object: &mut Ebpf, cgroup: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let cgroup = File::open(cgroup)?;
        let link = program::<SockOps>(object, COPIES[0])?.attach(&cgroup, CgroupAttachMode::Single)?;
        (self.cgroup, self.attached) = (Some(cgroup), Some((0, link)));
        Ok(())
    }

    /// Returns the IDs of programs that the kernel has called after this one since the last call of this function. Attaches
    /// this program again behind those of its own cgroup.
    ///
    /// # Errors
    /// Returns an error if the kernel does not list the programs, or refuses to attach another one.
    pub(super) fn fall_behind(&mut self, object: &mut Ebpf, now: Instant) -> Result<Vec<u32>, PlaceError> {
        let (Some(cgroup), Some((copy, _))) = (&self.cgroup, &self.attached) else { return Ok(Vec::new()) };
        let own = program::<SockOps>(object, COPIES[*copy])?.info()?.id();
        let behind = after(own, &query(cgroup, Programs::Effective)?);
        // Those of the cgroups above stay behind in any case.
        let movable = if behind.is_empty() { Vec::new() } else { after(own, &query(cgroup, Programs::Attached)?) };
        let is_due =
            |id: &u32| self.moved.get(id).is_none_or(|moved| now.saturating_duration_since(*moved) >= MOVE_EVERY);
        if movable.iter().any(is_due) {
            self.moved.retain(|id, _| movable.contains(id));
            self.moved.extend(movable.iter().map(|id| (*id, now)));
            self.hand_over(object)?;
        }
        Ok(behind)
    }

    /// Attaches the other copy, behind all programs, and detaches this one.
    fn hand_over(&mut self, object: &mut Ebpf) -> Result<(), PlaceError> {
        let (Some(cgroup), Some((copy, link))) = (&self.cgroup, self.attached.take()) else { return Ok(()) };
        let next = 1 - copy;
        let counts = |copy: usize| if copy == 0 { 0 } else { TWIN };
        self.phase.set(0, counts(copy) | NOTES, 0)?;
        let attached = program::<SockOps>(object, COPIES[next])
            .and_then(|program| program.attach(cgroup, CgroupAttachMode::Single));
        let next_link = match attached {
            Ok(next_link) => next_link,
            Err(error) => {
                self.attached = Some((copy, link));
                self.phase.set(0, counts(copy), 0)?;
                return Err(error.into());
            }
        };
        self.attached = Some((next, next_link));
        thread::sleep(SETTLE);
        self.phase.set(0, counts(copy) | NOTES | CHECKS, 0)?;
        let detached = program::<SockOps>(object, COPIES[copy]).and_then(|program| program.detach(link));
        thread::sleep(SETTLE);
        self.phase.set(0, counts(next), 0)?;
        detached?;
        let notes = self.notes.keys().collect::<Result<Vec<_>, _>>()?;
        for note in notes {
            self.notes.remove(&note)?;
        }
        tracing::info!("the sock_ops program was attached again, behind another one");
        Ok(())
    }
}

/// Returns the programs after the own one; none if that is not among them.
fn after(own: u32, programs: &[u32]) -> Vec<u32> {
    let place = programs.iter().position(|id| *id == own);
    place.map_or_else(Vec::new, |place| programs[place + 1..].to_vec())
}

/// Programs of a cgroup, in the order in which the kernel calls them.
#[derive(Clone, Copy)]
enum Programs {
    /// Those attached to it.
    Attached = 0,
    /// Those that are called for its sockets, of the cgroups above, too (`BPF_F_QUERY_EFFECTIVE`).
    Effective = 1,
}

/// Attributes of `BPF_PROG_QUERY` (`union bpf_attr` of `include/uapi/linux/bpf.h`).
#[derive(Default)]
#[repr(C)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

/// Returns the IDs of the `sock_ops` programs of a cgroup.
#[expect(unsafe_code, reason = "aya offers this for other kinds of programs only")]
fn query(cgroup: &File, which: Programs) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_CGROUP_SOCK_OPS: u32 = 3;
    let mut ids = [0_u32; MAX_PROGRAMS as usize];
    let mut attributes = QueryAttributes {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_SOCK_OPS,
        query_flags: which as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS,
        ..QueryAttributes::default()
    };
    // SAFETY: the attributes are as long as is said; the kernel writes at most `MAX_PROGRAMS` IDs, and their number.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attributes, size_of_val(&attributes)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(attributes.prog_cnt as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_behind_are_those_that_are_called_later() {
        assert_eq!(after(3, &[1, 3, 5, 2]), [5, 2]);
        assert_eq!(after(3, &[1, 3]), Vec::<u32>::new());
        assert_eq!(after(3, &[1]), Vec::<u32>::new());
    }
}
