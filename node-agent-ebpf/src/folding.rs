//! Folding: while the table of flows is nearly full, flows with external remote addresses share rows.
//!
//! A folded row counts all flows of one cgroup, local address, port, protocol and role. The agent decides when to fold.
//! No state of a socket says in which row its connection was counted: an end whose flow has no row of its own belongs to
//! the folded row. Therefore no flow gets a row of its own while its folded row has open connections.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{
        Array,
        lpm_trie::{Key, LpmTrie},
    },
};
use node_agent_common::{
    FlowKey,
    folding::{NETWORKS, OFF, ON, is_special},
};

/// One of the phases. Written by the agent.
#[map(name = "FOLDING")]
static FOLDING: Array<u32> = Array::with_max_entries(1, 0);
/// The cluster's own networks beside the special ones, IPv4 as IPv4-mapped. Written by the agent.
#[map(name = "OWN_NETWORKS")]
static OWN_NETWORKS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(NETWORKS, BPF_F_NO_PREALLOC);

#[inline(always)]
pub fn phase() -> u32 {
    // SAFETY: an array's value.
    FOLDING.get_ptr(0).map_or(OFF, |phase| unsafe { core::ptr::read_volatile(phase) })
}

/// Returns whether the flow's remote address is outside of the cluster.
#[inline(always)]
pub fn is_external(key: &FlowKey) -> bool {
    !is_special(&key.remote()) && OWN_NETWORKS.get(Key::new(u128::BITS, key.remote())).is_none()
}

/// Returns whether an event of an external flow without a row of its own belongs to its folded row. `open`: balance of
/// that row; `None` if there is no such row.
#[inline(always)]
pub fn is_folded(phase: u32, is_end: bool, open: Option<i32>) -> bool {
    phase == ON || open.is_some_and(|open| is_end || open > 0)
}
