//! Offsets of fields in the running kernel's structures.

use crate::plain_data;

/// Byte offsets of the fields that the programs read. The agent finds them in the running kernel's BTF, and freezes
/// them into the programs before it loads these. Rust cannot emit relocations against the kernel's types, and an offset
/// of another kernel would read garbage without an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "each is named after the kernel's structure and field")]
pub struct Offsets {
    pub sock_family: u32,
    pub sock_state: u32,
    pub sock_num: u32,
    pub sock_dport: u32,
    pub sock_rcv_saddr: u32,
    pub sock_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_net: u32,
    pub sock_cookie: u32,
    pub sock_flags: u32,
    pub sock_cgroup: u32,
    pub skb_nfct: u32,
    pub skb_sk: u32,
    pub sock_protocol: u32,
    /// `SOCK_BINDPORT_LOCK` of `sk_userlocks`, in bits: set if a process chose the socket's port. 0 if this kernel lacks the
    /// field.
    pub sock_named_port_bit: u32,
    pub net_inum: u32,
    pub cgroup_kn: u32,
    pub cgroup_self: u32,
    pub css_parent: u32,
    pub css_cgroup: u32,
    pub kernfs_id: u32,
    pub tcp_bytes_sent: u32,
    pub tcp_bytes_received: u32,
    pub tcp_bytes_retrans: u32,
    pub tcp_callback_flags: u32,
    /// 0 if this kernel lacks the field.
    pub tcp_total_retrans: u32,
    /// 0 if this kernel lacks the field.
    pub tcp_srtt_us: u32,
    pub socket_sk: u32,
    pub task_tgid: u32,
    pub task_nsproxy: u32,
    pub nsproxy_net: u32,
    /// `SOCK_DONE` of `enum sock_flags`: the bit of `sk_flags` that is set when a FIN has been received.
    pub done_bit: u32,
    pub sock_backlog: u32,
    /// 0 if this kernel lacks the field.
    pub sock_user_data: u32,
    /// 0 if this kernel lacks the field.
    pub bind_bucket: u32,
    pub bucket_reuse: u32,
    pub prog_type: u32,
    pub prog_aux: u32,
    pub prog_aux_id: u32,
    pub prog_aux_name: u32,
    /// Not an offset: 1 if sockets outside of the node's cgroups exist and have to be excluded.
    pub scoped: u32,
    /// Not an offset: 1 if sockets have no callbacks, but are tracked by their state changes.
    pub tracks_sockets: u32,
}
const _: () = assert!(size_of::<Offsets>() == 43 * 4);
plain_data!(Offsets);
