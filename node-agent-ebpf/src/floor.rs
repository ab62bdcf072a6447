//! Empty programs of the capture's hooks: the least that a hook costs. Only `make bench-node` loads them.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB},
    macros::{cgroup_skb, sock_ops},
    programs::{SkBuffContext, SockOpsContext},
};
use node_agent_common::callback;

use crate::sock_ops::Call;

const PASS: i32 = 1;

#[sock_ops]
pub fn empty_ops(_: SockOpsContext) -> u32 {
    1
}

/// Requests the callbacks that the capture needs, and ignores them.
#[sock_ops]
pub fn empty_states(context: SockOpsContext) -> u32 {
    let call = Call(context.ops);
    if let BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = call.op() {
        call.add_flags(callback::STATE);
    }
    1
}

#[cgroup_skb(egress)]
pub fn empty_out(_: SkBuffContext) -> i32 {
    PASS
}

#[cgroup_skb(ingress)]
pub fn empty_in(_: SkBuffContext) -> i32 {
    PASS
}
