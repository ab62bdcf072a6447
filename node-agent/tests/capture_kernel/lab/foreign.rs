//! `sock_ops` programs of another owner, in a few instructions.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::libc;

/// Program of another owner, attached until it is dropped.
pub struct Foreign {
    program: OwnedFd,
    cgroup: File,
}

/// Of `bpf()` and its programs (`include/uapi/linux/bpf.h`).
mod abi {
    pub const PROG_LOAD: i64 = 5;
    pub const PROG_ATTACH: i64 = 8;
    pub const PROG_DETACH: i64 = 9;
    pub const TYPE_SOCK_OPS: u32 = 13;
    pub const CGROUP_SOCK_OPS: u32 = 3;
    pub const ALLOW_MULTI: u32 = 2;
    pub const CB_FLAGS_SET: i32 = 59;
}

/// One instruction: operation, destination and source registers, offset, constant.
const fn instruction(operation: u8, registers: u8, constant: i32) -> u64 {
    operation as u64 | (registers as u64) << 8 | (constant.cast_unsigned() as u64) << 32
}

/// Allows no other program here or below.
pub fn exclusive(cgroup: &Path) -> Foreign {
    // r0 = 1; exit
    Foreign::attach(cgroup, &[instruction(0xb7, 0, 1), instruction(0x95, 0, 0)], 0)
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
    Foreign::attach(cgroup, &program, abi::ALLOW_MULTI)
}

impl Foreign {
    fn attach(cgroup: &Path, program: &[u64], flags: u32) -> Self {
        let program = load(program).unwrap();
        let cgroup = File::open(cgroup).unwrap();
        call(abi::PROG_ATTACH, &attachment(&cgroup, &program, flags)).unwrap();
        Self { program, cgroup }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Err(error) = call(abi::PROG_DETACH, &attachment(&self.cgroup, &self.program, 0)) {
            println!("a program stays behind: {error}");
        }
    }
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    // Type, number of instructions, instructions, licence; the rest is zero.
    let mut attributes = [0_u64; 8];
    attributes[0] = u64::from(abi::TYPE_SOCK_OPS) | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    let fd = call(abi::PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made it, for this process alone.
    #[expect(unsafe_code, reason = "a descriptor as the kernel returns it")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attachment(cgroup: &File, program: &OwnedFd, flags: u32) -> [u64; 8] {
    let fd = |fd: RawFd| u64::from(fd.cast_unsigned());
    let mut attributes = [0; 8];
    attributes[0] = fd(cgroup.as_raw_fd()) | fd(program.as_raw_fd()) << 32;
    attributes[1] = u64::from(abi::CGROUP_SOCK_OPS) | u64::from(flags) << 32;
    attributes
}

#[expect(unsafe_code, reason = "aya always allows others beside its programs")]
fn call(command: i64, attributes: &[u64; 8]) -> io::Result<RawFd> {
    // SAFETY: the attributes are as long as is said, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(result).unwrap()) }
}
