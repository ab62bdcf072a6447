//! Finds the fields that the programs read in the running kernel's BTF.

use node_agent_common::Offsets;

use super::btf::{Btf, BtfError};

/// Number of the bit of `sk_userlocks` that is set if a process chose the socket's port (`include/net/sock.h`).
const SOCK_BINDPORT_LOCK: u32 = 3;

/// All offsets; those that only the optional programs read may be missing.
pub(super) struct KernelOffsets {
    pub(super) offsets: Offsets,
    /// Why the open sockets cannot be listed.
    pub(super) no_listing: Option<BtfError>,
    /// Why retransmissions are not known.
    pub(super) no_retransmits: Option<BtfError>,
    /// Why round-trip times are not known.
    pub(super) no_rtt: Option<BtfError>,
}

/// Looks up every field.
///
/// # Errors
/// The first field without which nothing can be counted.
pub(super) fn find(btf: &Btf<'_>) -> Result<KernelOffsets, BtfError> {
    let mut offsets = Offsets {
        sock_family: btf.offset("sock", "__sk_common.skc_family", 2)?,
        sock_state: btf.offset("sock", "__sk_common.skc_state", 1)?,
        sock_num: btf.offset("sock", "__sk_common.skc_num", 2)?,
        sock_dport: btf.offset("sock", "__sk_common.skc_dport", 2)?,
        sock_rcv_saddr: btf.offset("sock", "__sk_common.skc_rcv_saddr", 4)?,
        sock_daddr: btf.offset("sock", "__sk_common.skc_daddr", 4)?,
        sock_v6_rcv_saddr: btf.offset("sock", "__sk_common.skc_v6_rcv_saddr", 16)?,
        sock_v6_daddr: btf.offset("sock", "__sk_common.skc_v6_daddr", 16)?,
        sock_net: btf.offset("sock", "__sk_common.skc_net.net", 8)?,
        sock_cookie: btf.offset("sock", "__sk_common.skc_cookie", 8)?,
        sock_flags: btf.offset("sock", "sk_flags", 8).or_else(|_| btf.offset("sock", "__sk_common.skc_flags", 8))?,
        sock_cgroup: btf.offset("sock", "sk_cgrp_data.cgroup", 8)?,
        sock_backlog: btf.offset("sock", "sk_max_ack_backlog", 4)?,
        // Not there without connection tracking.
        skb_nfct: btf.offset("sk_buff", "_nfct", 8).unwrap_or_default(),
        net_inum: btf.offset("net", "ns.inum", 4)?,
        cgroup_kn: btf.offset("cgroup", "kn", 8)?,
        kernfs_id: btf.offset("kernfs_node", "id", 8)?,
        tcp_bytes_sent: btf.offset("tcp_sock", "bytes_sent", 8)?,
        tcp_bytes_received: btf.offset("tcp_sock", "bytes_received", 8)?,
        tcp_bytes_retrans: btf.offset("tcp_sock", "bytes_retrans", 8)?,
        done_bit: btf.enumerator("sock_flags", "SOCK_DONE")?,
        ..Offsets::default()
    };
    // Without, fewer sockets show which end they are.
    let bucket = btf.offset("tcp_sock", "inet_conn.icsk_bind_hash", 8);
    if let (Ok(bucket), Ok(reuse)) = (bucket, btf.offset("inet_bind_bucket", "fastreuse", 1)) {
        (offsets.bind_bucket, offsets.bucket_reuse) = (bucket, reuse);
    }
    // Without, payload that goes past TCP is not noticed.
    offsets.sock_user_data = btf.offset("sock", "sk_user_data", 8).unwrap_or_default();
    // Without, the direction of more UDP conversations is a guess.
    let named_port = btf.bit("sock", "sk_userlocks", SOCK_BINDPORT_LOCK);
    if let (Ok(named_port), Ok(sk)) = (named_port, btf.offset("sk_buff", "sk", 8)) {
        (offsets.sock_named_port_bit, offsets.skb_sk) = (named_port, sk);
    }
    // Without, programs of other owners have no names.
    let _ = programs(btf, &mut offsets);
    let no_listing = listing(btf, &mut offsets).err();
    let no_retransmits = set(&mut offsets.tcp_total_retrans, btf.offset("tcp_sock", "total_retrans", 4)).err();
    let no_rtt = set(&mut offsets.tcp_srtt_us, btf.offset("tcp_sock", "srtt_us", 4)).err();
    Ok(KernelOffsets { offsets, no_listing, no_retransmits, no_rtt })
}

fn set(offset: &mut u32, found: Result<u32, BtfError>) -> Result<(), BtfError> {
    *offset = found?;
    Ok(())
}

/// Kernels before 5.15, but for some that took it over, keep a socket's cgroup in a word that also has flags in it.
pub(super) fn keeps_cgroups_in_a_union(btf: &Btf<'_>) -> bool {
    btf.offset("sock", "sk_cgrp_data.cgroup", 8).is_err() && btf.offset("sock", "sk_cgrp_data.val", 8).is_ok()
}

/// Adds offsets for the iterator over programs.
fn programs(btf: &Btf<'_>, offsets: &mut Offsets) -> Result<(), BtfError> {
    offsets.prog_type = btf.offset("bpf_prog", "type", 4)?;
    offsets.prog_aux = btf.offset("bpf_prog", "aux", 8)?;
    offsets.prog_aux_id = btf.offset("bpf_prog_aux", "id", 4)?;
    offsets.prog_aux_name = btf.bit("bpf_prog_aux", "name", 0)? / 8;
    Ok(())
}

/// Adds offsets for the iterator, and for programs that are not limited to the node's cgroups by their attach point.
fn listing(btf: &Btf<'_>, offsets: &mut Offsets) -> Result<(), BtfError> {
    offsets.tcp_callback_flags = btf.offset("tcp_sock", "bpf_sock_ops_cb_flags", 1)?;
    offsets.sock_protocol = btf.offset("sock", "sk_protocol", 2)?;
    offsets.socket_sk = btf.offset("socket", "sk", 8)?;
    offsets.task_tgid = btf.offset("task_struct", "tgid", 4)?;
    offsets.task_nsproxy = btf.offset("task_struct", "nsproxy", 8)?;
    offsets.nsproxy_net = btf.offset("nsproxy", "net_ns", 8)?;
    offsets.css_parent = btf.offset("cgroup_subsys_state", "parent", 8)?;
    offsets.css_cgroup = btf.offset("cgroup_subsys_state", "cgroup", 8)?;
    offsets.cgroup_self = {
        // The size of the embedded structure may differ: its first field is looked up instead.
        btf.offset("cgroup", "self.cgroup", 8)? - offsets.css_cgroup
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use prerequisites::{Prerequisite, skip};
    use proptest::prelude::*;

    use super::*;

    /// BTF of a few types, made by hand: what the kernel would say of
    /// `struct inner { u16 b; }; struct sock { u32 x; struct { union { inner in; }; }; u8 bit:1; };
    /// enum sock_flags { SOCK_DEAD, SOCK_DONE };`.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut name = |text: &str| {
            let at = u32::try_from(strings.len()).unwrap();
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let info = |kind: u32, count: u32| kind << 24 | count;
        let words: Vec<u32> = [
            vec![name("u32"), info(1, 0), 4, 32],
            vec![name("u16"), info(1, 0), 2, 16],
            vec![name("inner"), info(4, 1), 2, name("b"), 2, 0],
            vec![0, info(5, 1), 2, name("in"), 3, 0],
            vec![0, info(4, 1), 2, 0, 4, 0],
            vec![name("sock"), info(4, 3) | 1 << 31, 8, name("x"), 1, 0, 0, 5, 32, name("bit"), 1, 1 << 24 | 0x31],
            vec![name("sock_flags"), info(6, 2), 4, name("SOCK_DEAD"), 0, name("SOCK_DONE"), 1],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut btf = 0xeb9f_u16.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        for word in [24, 0, length(&types), length(&types), length(&strings)] {
            btf.extend(word.to_ne_bytes());
        }
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn fields_are_found_through_anonymous_members() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("sock", "in.b", 2), Ok(4));
        assert_eq!(btf.offset("sock", "x", 4), Ok(0));
        assert_eq!(btf.bit("sock", "bit", 3), Ok(8 * 6 + 1 + 3));
        assert_eq!(btf.enumerator("sock_flags", "SOCK_DONE"), Ok(1));
    }

    #[test]
    fn what_is_missing_or_changed_is_named() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("sock", "in.c", 2), Err(BtfError::Missing(String::from("sock.in.c"))));
        assert_eq!(btf.offset("sock", "in.b", 4), Err(BtfError::Changed(String::from("sock.in.b"), 4)));
        assert_eq!(btf.offset("sock", "bit", 4), Err(BtfError::Changed(String::from("sock.bit"), 4)));
        assert!(btf.enumerator("sock_flags", "SOCK_GONE").is_err());
        assert_eq!(find(&btf).err(), Some(BtfError::Missing(String::from("sock.__sk_common.skc_family"))));
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            skip(Prerequisite::Btf, "this kernel has no BTF");
            return;
        };
        let found = find(&Btf::parse(&bytes).unwrap()).unwrap();
        assert_eq!((found.no_listing, found.no_retransmits, found.no_rtt), (None, None, None));
        // Part of the kernel's interface to programs of other kinds, and the same for many years.
        assert_eq!((found.offsets.sock_daddr, found.offsets.sock_rcv_saddr, found.offsets.done_bit), (0, 4, 1));
        assert_ne!((found.offsets.sock_named_port_bit, found.offsets.skb_sk), (0, 0));
    }

    proptest! {
        #[test]
        fn no_input_panics(cut in 0_usize..400, changes in prop::collection::vec((0_usize..400, any::<u8>()), 0..12)) {
            let mut bytes = sample();
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = find(&btf);
                let _ = (btf.offset("sock", "in.b", 2), btf.bit("sock", "bit", 3));
                let _ = btf.enumerator("sock_flags", "SOCK_DONE");
            }
        }

        #[test]
        fn random_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 24..600)) {
            bytes[..2].copy_from_slice(&0xeb9f_u16.to_ne_bytes());
            bytes[4..8].copy_from_slice(&24_u32.to_ne_bytes());
            let _ = Btf::parse(&bytes).map(|btf| find(&btf).is_ok());
        }
    }
}
