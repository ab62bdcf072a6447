//! Destinations that tasks pass to `connect()` and `sendmsg()`.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};

use crate::{
    memory::load,
    socket::{joined, mapped},
};

/// An address, IPv4 ones as IPv4-mapped, and a port.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct End {
    pub address: [u8; 16],
    pub port: u16,
    reserved: [u16; 3],
}

impl End {
    #[inline(always)]
    pub fn of(address: [u8; 16], port: u16) -> Self {
        Self { address, port, reserved: [0; 3] }
    }

    #[inline(always)]
    pub fn words(&self) -> [u64; 3] {
        // SAFETY: three words, without padding.
        unsafe { core::mem::transmute::<Self, [u64; 3]>(*self) }
    }
}

impl PartialEq for End {
    /// Compares words: by fields, the addresses would be compared byte by byte.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.words(), other.words());
        ours[1] == theirs[1] && ours[2] == theirs[2] && ours[0] == theirs[0]
    }
}

/// Returns the destination of a call with an IPv4 address.
#[inline(always)]
pub fn destination_v4(call: *mut bpf_sock_addr) -> End {
    End::of(mapped(load!("u32", call, bpf_sock_addr, user_ip4) as u32), port(call))
}

/// Returns the destination of a call with an IPv6 address.
#[inline(always)]
pub fn destination_v6(call: *mut bpf_sock_addr) -> End {
    let words = [
        load!("u32", call, bpf_sock_addr, user_ip6),
        load!("u32", call, bpf_sock_addr, user_ip6, 4),
        load!("u32", call, bpf_sock_addr, user_ip6, 8),
        load!("u32", call, bpf_sock_addr, user_ip6, 12),
    ];
    End::of(joined(words), port(call))
}

#[inline(always)]
fn port(call: *mut bpf_sock_addr) -> u16 {
    u16::from_be(load!("u32", call, bpf_sock_addr, user_port) as u16)
}

/// Returns the socket of a call.
#[inline(always)]
pub fn socket_of(call: *mut bpf_sock_addr) -> Option<*mut bpf_sock> {
    // SAFETY: the context's own field, a pointer in a union that makes it 64 bits wide everywhere. Volatile: see
    // `datagrams`.
    let socket = unsafe { core::ptr::read_volatile((&raw const (*call).__bindgen_anon_1).cast::<u64>()) };
    if socket == 0 { None } else { Some(socket as *mut bpf_sock) }
}
