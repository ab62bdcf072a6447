//! The attached `sock_ops` program, and its place behind programs of other owners.
//!
//! The kernel calls the programs of a cgroup in the order in which they were attached. A program that is called later can
//! overwrite the callback flags of a socket. If another program was attached since, this one is attached again behind it:
//! see [`node_agent_common::handover`].

use std::{
    collections::HashMap as StdHashMap,
    fs::File,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
    programs::{CgroupAttachMode, ProgramError, SockOps, sock_ops::SockOpsLinkId},
};
use node_agent_common::handover::{CHECKS, NOTES, TWIN};

use super::{
    cgroup_hooks::{Hook, effective_programs, own_programs},
    object::{SETTLE, program, take},
};
use crate::capture::errors::Refusal;

/// Names of both copies in the object.
pub(super) const COPIES: [&str; 2] = ["connections", "connections_twin"];

/// Time after which this program is attached again behind the same program. Two agents at one cgroup would otherwise do so
/// in turns.
const MOVE_EVERY: Duration = Duration::from_mins(1);

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
        let behind = after(own, &effective_programs(cgroup, Hook::SockOps)?);
        // Those of the cgroups above stay behind in any case.
        let movable =
            if behind.is_empty() { Vec::new() } else { after(own, &own_programs(cgroup, Hook::SockOps)?.ids) };
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
