//! Selects this node's sockets, where several nodes share a kernel.

use crate::{
    memory::{Access, Pointer},
    offsets::offset,
};

/// The id of the cgroup at the root of the node's. Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
static ROOT: u64 = 0;

/// Deeper cgroups are not recognised as the node's own. Kubernetes nests six deep.
const DEPTH: u32 = 24;

/// Returns whether a cgroup is the node's root or below it.
#[inline(always)]
pub fn is_own<A: Access>(mut cgroup: Pointer<A>) -> bool {
    if offset!(scoped) == 0 {
        return true;
    }
    // SAFETY: a static that is frozen before the program is loaded.
    let root = unsafe { core::ptr::read_volatile(&raw const ROOT) };
    for _ in 0..DEPTH {
        if cgroup.follow(offset!(cgroup_kn)).load::<u64>(offset!(kernfs_id)) == root {
            return true;
        }
        let Some(parent) = Pointer::<A>::new(cgroup.load(offset!(cgroup_self) + offset!(css_parent))) else {
            return false;
        };
        let Some(above) = Pointer::<A>::new(parent.load(offset!(css_cgroup))) else { return false };
        cgroup = above;
    }
    false
}
