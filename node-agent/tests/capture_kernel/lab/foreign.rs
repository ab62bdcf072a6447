//! Programs of another owner, in a few instructions.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::libc;

/// Program of another owner, attached until it is dropped.
pub struct Foreign {
    program: OwnedFd,
    cgroup: File,
    hook: u32,
}

/// Of `bpf()` and its programs (`include/uapi/linux/bpf.h`).
mod abi {
    pub const MAP_CREATE: i64 = 0;
    pub const PROG_LOAD: i64 = 5;
    pub const PROG_ATTACH: i64 = 8;
    pub const PROG_DETACH: i64 = 9;
    pub const PROG_QUERY: i64 = 16;
    pub const TYPE_SOCK_OPS: u32 = 13;
    pub const TYPE_SOCK_ADDR: u32 = 18;
    pub const TYPE_SK_MSG: u32 = 16;
    pub const SK_MSG_VERDICT: u32 = 7;
    pub const SOCKHASH: u32 = 18;
    pub const CGROUP_SOCK_OPS: u32 = 3;
    pub const CONNECT: [u32; 2] = [10, 11];
    pub const SENDMSG: [u32; 2] = [14, 15];
    pub const RECVMSG: [u32; 2] = [19, 20];
    pub const GETPEERNAME: [u32; 2] = [29, 30];
    pub const ALLOW_OVERRIDE: u32 = 1;
    pub const ALLOW_MULTI: u32 = 2;
    pub const QUERY_EFFECTIVE: u32 = 1;
    pub const CB_FLAGS_SET: i32 = 59;
    /// Offsets in `struct bpf_sock_addr`.
    pub const USER_IP4: i16 = 4;
    pub const USER_IP6: i16 = 8;
    pub const USER_PORT: i16 = 24;
}

/// Length of `bpf()`'s attributes, in words: up to `expected_attach_type` of a program.
const ATTRIBUTES: usize = 9;

/// One instruction: operation, destination and source registers, offset, constant.
const fn instruction(operation: u8, registers: u8, constant: i32) -> u64 {
    operation as u64 | (registers as u64) << 8 | (constant.cast_unsigned() as u64) << 32
}

/// An instruction with an offset.
fn at(offset: i16, instruction: u64) -> u64 {
    instruction | u64::from(offset.cast_unsigned()) << 16
}

/// Allows no other program here or below.
pub fn exclusive(cgroup: &Path) -> Foreign {
    // r0 = 1; exit
    Foreign::attach(
        cgroup,
        (abi::TYPE_SOCK_OPS, abi::CGROUP_SOCK_OPS),
        &[instruction(0xb7, 0, 1), instruction(0x95, 0, 0)],
        0,
    )
}

/// Changes nothing.
pub fn idle(cgroup: &Path) -> Foreign {
    Foreign::attach(
        cgroup,
        (abi::TYPE_SOCK_OPS, abi::CGROUP_SOCK_OPS),
        &[instruction(0xb7, 0, 1), instruction(0x95, 0, 0)],
        abi::ALLOW_MULTI,
    )
}

/// Takes all callbacks away from every socket, at every call.
pub fn flag_owner(cgroup: &Path) -> Foreign {
    flags_setter(cgroup, 0)
}

/// Gives every socket these callbacks, and no others, at every call.
pub fn flags_setter(cgroup: &Path, flags: u8) -> Foreign {
    // r2 = flags; call bpf_sock_ops_cb_flags_set(r1, r2); r0 = 1; exit
    let program = [
        instruction(0xb7, 2, flags.into()),
        instruction(0x85, 0, abi::CB_FLAGS_SET),
        instruction(0xb7, 0, 1),
        instruction(0x95, 0, 0),
    ];
    Foreign::attach(cgroup, (abi::TYPE_SOCK_OPS, abi::CGROUP_SOCK_OPS), &program, abi::ALLOW_MULTI)
}

/// Load balancer at the sockets, attached until it is dropped.
pub struct Balancer {
    _programs: Vec<Foreign>,
}

/// Properties of a load balancer at the sockets.
#[derive(Clone, Copy, Debug)]
pub struct Balancing {
    /// `getpeername()` returns the Service's address.
    pub renames_peers: bool,
    /// Other programs may run beside it, at the same cgroup and below.
    pub is_shared: bool,
}

impl Balancing {
    pub const USUAL: Self = Self { renames_peers: true, is_shared: true };

    /// Leads a Service's address to a backend, as Cilium does without kube-proxy: at `connect()` and `sendmsg()`, with the
    /// reverse at `recvmsg()`.
    pub fn attach(self, cgroup: &Path, service: SocketAddr, backend: SocketAddr) -> Balancer {
        let (there, back) = ([service, backend], [backend, service]);
        let mut hooks = vec![(abi::CONNECT, there), (abi::SENDMSG, there), (abi::RECVMSG, back)];
        if self.renames_peers {
            hooks.push((abi::GETPEERNAME, back));
        }
        let flags = if self.is_shared { abi::ALLOW_MULTI } else { abi::ALLOW_OVERRIDE };
        let mut programs = Vec::new();
        for ([v4, v6], ends) in hooks {
            if service.is_ipv4() {
                programs.push(Foreign::attach(cgroup, (abi::TYPE_SOCK_ADDR, v4), &replacement(ends, false), flags));
            }
            programs.push(Foreign::attach(cgroup, (abi::TYPE_SOCK_ADDR, v6), &replacement(ends, true), flags));
        }
        Balancer { _programs: programs }
    }
}

/// Program that replaces one end by another, in the hook of IPv4 or in that of IPv6, where IPv4 is mapped.
fn replacement([from, to]: [SocketAddr; 2], is_v6: bool) -> Vec<u64> {
    let words = |end: SocketAddr| -> Vec<(i16, u32)> {
        let octets = match end.ip() {
            IpAddr::V4(ip) if is_v6 => ip.to_ipv6_mapped().octets().to_vec(),
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let first = if is_v6 { abi::USER_IP6 } else { abi::USER_IP4 };
        let address = octets.as_chunks().0.iter().map(|word: &[u8; 4]| u32::from_ne_bytes(*word));
        let port = u32::from(end.port().to_be());
        (0..).map(|index| first + 4 * index).zip(address).chain([(abi::USER_PORT, port)]).collect()
    };
    let number = |register: u8, word: u32| [instruction(0x18, register, word.cast_signed()), 0];
    let (old, new) = (words(from), words(to));
    // For each word: r2 = *(r1 + offset); r3 = word; if r2 != r3 goto end. Then: r2 = word; *(r1 + offset) = r2.
    let length = 4 * old.len() + 3 * new.len();
    let mut program = Vec::new();
    for (offset, word) in old {
        program.push(at(offset, instruction(0x61, 0x12, 0)));
        program.extend(number(3, word));
        let rest = length - program.len() - 1;
        program.push(at(i16::try_from(rest).unwrap(), instruction(0x5d, 0x32, 0)));
    }
    for (offset, word) in new {
        program.extend(number(2, word));
        program.push(at(offset, instruction(0x63, 0x21, 0)));
    }
    // r0 = 1; exit
    program.extend([instruction(0xb7, 0, 1), instruction(0x95, 0, 0)]);
    program
}

/// Returns the number of programs that run at `connect()` and `sendmsg()` for sockets of a cgroup, by hook.
pub fn programs_at(cgroup: &Path) -> [usize; 4] {
    let cgroup = File::open(cgroup).unwrap();
    let [connect_v4, connect_v6] = abi::CONNECT;
    let [sendmsg_v4, sendmsg_v6] = abi::SENDMSG;
    [connect_v4, connect_v6, sendmsg_v4, sendmsg_v6].map(|hook| {
        // Cgroup, hook, flags; no room for IDs: the kernel writes their number.
        let mut attributes = [0; ATTRIBUTES];
        attributes[0] = u64::from(cgroup.as_raw_fd().cast_unsigned()) | u64::from(hook) << 32;
        attributes[1] = abi::QUERY_EFFECTIVE.into();
        call(abi::PROG_QUERY, &mut attributes).unwrap();
        usize::try_from(attributes[3] & u64::from(u32::MAX)).unwrap()
    })
}

/// Leads the payload of connections of this port past TCP, from one socket of the node to the other one, as service meshes do.
/// The program lasts as long as both values.
pub fn shortcut(cgroup: &Path, port: u16) -> (Foreign, OwnedFd) {
    const LOCAL_PORT: i16 = -8;
    const REMOTE_PORT: i16 = -4;
    let port = i32::from(port);
    // Key of 8 bytes, value of 4.
    let mut attributes = [0; ATTRIBUTES];
    (attributes[0], attributes[1]) = (u64::from(abi::SOCKHASH) | 8 << 32, 4 | 1024 << 32);
    let sockets = owned(call(abi::MAP_CREATE, &mut attributes).unwrap());
    let map = sockets.as_raw_fd();
    // r1 = r6; r2 = the map; r3 = the key on the stack; r4 = flags; call
    let with_key = |function: i32, flags: i32| {
        [
            operation(0xbf, 1, 6, 0, 0),
            operation(0x18, 2, 1, 0, map),
            0,
            operation(0xbf, 3, 10, 0, 0),
            operation(0x07, 3, 0, 0, LOCAL_PORT.into()),
            operation(0xb7, 4, 0, 0, flags),
            operation(0x85, 0, 0, 0, function),
            operation(0xb7, 0, 0, 0, 1),
            operation(0x95, 0, 0, 0, 0),
        ]
    };
    // To the socket whose own port is the remote one. The remote port is in network order.
    let mut verdict = vec![
        operation(0xbf, 6, 1, 0, 0),
        operation(0x61, 2, 6, 60, 0),
        operation(0xdc, 2, 0, 0, 32),
        operation(0x61, 3, 6, 64, 0),
        operation(0x63, 10, 2, LOCAL_PORT, 0),
        operation(0x63, 10, 3, REMOTE_PORT, 0),
    ];
    verdict.extend(with_key(71, 1));
    let verdict = load((abi::TYPE_SK_MSG, abi::SK_MSG_VERDICT), &verdict).unwrap();
    attributes = [0; ATTRIBUTES];
    attributes[0] = u64::from(map.cast_unsigned()) | u64::from(verdict.as_raw_fd().cast_unsigned()) << 32;
    attributes[1] = abi::SK_MSG_VERDICT.into();
    call(abi::PROG_ATTACH, &mut attributes).unwrap();
    // Established sockets of this port.
    let mut keep = vec![
        operation(0xbf, 6, 1, 0, 0),
        operation(0x61, 2, 1, 0, 0),
        operation(0x15, 2, 0, 1, 4),
        operation(0x55, 2, 0, 14, 5),
        operation(0x61, 2, 6, 68, 0),
        operation(0x61, 3, 6, 64, 0),
        operation(0xdc, 3, 0, 0, 32),
        operation(0x15, 2, 0, 1, port),
        operation(0x55, 3, 0, 9, port),
        operation(0x63, 10, 2, LOCAL_PORT, 0),
        operation(0x63, 10, 3, REMOTE_PORT, 0),
    ];
    keep.extend(with_key(70, 0));
    (Foreign::attach(cgroup, (abi::TYPE_SOCK_OPS, abi::CGROUP_SOCK_OPS), &keep, abi::ALLOW_MULTI), sockets)
}

/// As [`instruction`], with destination, source and offset.
const fn operation(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> u64 {
    instruction(code, to | from << 4, constant) | (offset.cast_unsigned() as u64) << 16
}

impl Foreign {
    fn attach(cgroup: &Path, (kind, hook): (u32, u32), program: &[u64], flags: u32) -> Self {
        let program = load((kind, hook), program).unwrap();
        let cgroup = File::open(cgroup).unwrap();
        let foreign = Self { program, cgroup, hook };
        call(abi::PROG_ATTACH, &mut foreign.attributes(flags)).unwrap();
        foreign
    }

    fn attributes(&self, flags: u32) -> [u64; ATTRIBUTES] {
        let fd = |fd: RawFd| u64::from(fd.cast_unsigned());
        let mut attributes = [0; ATTRIBUTES];
        attributes[0] = fd(self.cgroup.as_raw_fd()) | fd(self.program.as_raw_fd()) << 32;
        attributes[1] = u64::from(self.hook) | u64::from(flags) << 32;
        attributes
    }
}

impl Foreign {
    /// Returns its ID, as `bpftool` shows it.
    pub fn id(&self) -> u32 {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd())).unwrap();
        info.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Err(error) = call(abi::PROG_DETACH, &mut self.attributes(0)) {
            println!("a program stays behind: {error}");
        }
    }
}

fn load((kind, hook): (u32, u32), program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    // Type, number of instructions, instructions, licence; from byte 48 on the name, and at the end the hook; the rest is
    // zero.
    let mut attributes = [0_u64; ATTRIBUTES];
    attributes[0] = u64::from(kind) | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    attributes[6] = u64::from_ne_bytes(*b"another\0");
    attributes[ATTRIBUTES - 1] = u64::from(hook) << 32;
    Ok(owned(call(abi::PROG_LOAD, &mut attributes)?))
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it, for this process alone.
    #[expect(unsafe_code, reason = "a descriptor as the kernel returns it")]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

#[expect(unsafe_code, reason = "aya always allows others beside its programs")]
fn call(command: i64, attributes: &mut [u64; ATTRIBUTES]) -> io::Result<RawFd> {
    // SAFETY: the attributes are as long as is said, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(result).unwrap()) }
}
