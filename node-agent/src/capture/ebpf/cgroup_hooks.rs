//! Hooks of cgroups, with their programs in the order in which they run.
//!
//! In the kernel, the programs of a socket's own cgroup run first, then those of its ancestors; in one cgroup in the order
//! in which they were attached (`compute_effective_progs` in `kernel/bpf/cgroup.c`). From Linux 6.17 on, a link can ask to
//! run before all of them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use aya_obj::generated::{
    BPF_F_ALLOW_MULTI, BPF_F_BEFORE, BPF_F_QUERY_EFFECTIVE,
    bpf_attach_type::{
        BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT, BPF_CGROUP_SOCK_OPS, BPF_CGROUP_UDP4_RECVMSG,
        BPF_CGROUP_UDP4_SENDMSG, BPF_CGROUP_UDP6_RECVMSG, BPF_CGROUP_UDP6_SENDMSG,
    },
    bpf_cmd,
};
use nix::libc;

/// Runs the programs of a cgroup before those of its descendants (`include/uapi/linux/bpf.h`).
const BPF_F_PREORDER: u32 = 1 << 6;

/// Maximum number of programs of one hook (`BPF_CGROUP_MAX_PROGS` in the kernel).
const MAX_PROGRAMS: usize = 64;

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    SockOps,
}

impl Hook {
    fn number(self) -> u32 {
        (match self {
            Self::Connect4 => BPF_CGROUP_INET4_CONNECT,
            Self::Connect6 => BPF_CGROUP_INET6_CONNECT,
            Self::Sendmsg4 => BPF_CGROUP_UDP4_SENDMSG,
            Self::Sendmsg6 => BPF_CGROUP_UDP6_SENDMSG,
            Self::Recvmsg4 => BPF_CGROUP_UDP4_RECVMSG,
            Self::Recvmsg6 => BPF_CGROUP_UDP6_RECVMSG,
            Self::SockOps => BPF_CGROUP_SOCK_OPS,
        }) as u32
    }
}

/// Position of a program among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// Before all programs of the cgroup, its ancestors and its descendants.
    BeforeAll,
    /// After those of the cgroup, and before those of its ancestors.
    Appended,
}

/// Programs of a hook.
#[derive(Debug, Default)]
pub(super) struct AttachedPrograms {
    /// Their IDs, in the order in which they run.
    pub(super) ids: Vec<u32>,
    /// True if they allow other programs beside them, here and below.
    pub(super) allows_others: bool,
}

/// Returns the programs that are attached to a cgroup itself.
pub(super) fn own_programs(cgroup: &impl AsFd, hook: Hook) -> io::Result<AttachedPrograms> {
    query(cgroup, hook, 0)
}

/// Returns the IDs of the programs that run for sockets of a cgroup.
pub(super) fn effective_programs(cgroup: &impl AsFd, hook: Hook) -> io::Result<Vec<u32>> {
    query(cgroup, hook, BPF_F_QUERY_EFFECTIVE).map(|programs| programs.ids)
}

fn query(cgroup: &impl AsFd, hook: Hook, flags: u32) -> io::Result<AttachedPrograms> {
    const COUNT: usize = 3;
    // Of all hooks up to the root, in one list.
    let mut ids = vec![0_u32; 4 * MAX_PROGRAMS];
    // Cgroup and hook, flags of the query and of the answer, address of the IDs, their number.
    let mut attributes = [
        pair(number(cgroup.as_fd().as_raw_fd()), hook.number()),
        pair(flags, 0),
        ids.as_mut_ptr() as u64,
        ids.len() as u64,
        0,
        0,
        0,
        0,
    ];
    call(bpf_cmd::BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(halves(attributes[COUNT])[0] as usize);
    let allows_others = ids.is_empty() || halves(attributes[1])[1] & BPF_F_ALLOW_MULTI != 0;
    Ok(AttachedPrograms { ids, allows_others })
}

/// Attaches a program until the returned link is closed.
///
/// # Errors
/// `EINVAL` if this kernel has no such position.
pub(super) fn attach(program: &impl AsFd, cgroup: &impl AsFd, hook: Hook, position: Position) -> io::Result<OwnedFd> {
    let flags = match position {
        Position::BeforeAll => BPF_F_PREORDER | BPF_F_BEFORE,
        Position::Appended => 0,
    };
    let (program, cgroup) = (program.as_fd().as_raw_fd(), cgroup.as_fd().as_raw_fd());
    let mut attributes = [pair(number(program), number(cgroup)), pair(hook.number(), flags), 0, 0, 0, 0, 0, 0];
    let link = call(bpf_cmd::BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just made it, for this process alone.
    #[expect(unsafe_code, reason = "a descriptor as the kernel returns it")]
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

fn number(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

/// Returns two numbers as they lie in memory, one after the other.
fn pair(first: u32, second: u32) -> u64 {
    let (first, second) = (u64::from(first), u64::from(second));
    if cfg!(target_endian = "little") { first | second << 32 } else { first << 32 | second }
}

/// The reverse of [`pair`].
fn halves(word: u64) -> [u32; 2] {
    let [low, high] = [word & u64::from(u32::MAX), word >> 32].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

#[expect(unsafe_code, reason = "aya offers neither positions of links nor queries")]
fn call(command: bpf_cmd, attributes: &mut [u64; 8]) -> io::Result<RawFd> {
    // SAFETY: the attributes are as long as is said, and what they point to outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes.as_mut_ptr(), size_of_val(attributes))
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_lies_in_memory_as_its_numbers() {
        let [first, second] = [7_u32, u32::MAX].map(u32::to_ne_bytes);
        assert_eq!(pair(7, u32::MAX).to_ne_bytes(), [first, second].concat()[..]);
        assert_eq!(halves(pair(7, u32::MAX)), [7, u32::MAX]);
    }
}
