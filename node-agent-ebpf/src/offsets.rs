//! The running kernel's offsets, as constants for the verifier.

use node_agent_common::Offsets;

/// Written by the agent before the programs are loaded, then frozen.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = {
    // SAFETY: integers only.
    unsafe { core::mem::zeroed() }
};

/// The offsets, field by field.
pub fn at(field: impl FnOnce(*const Offsets) -> *const u32) -> usize {
    // SAFETY: a field of a static. Volatile, for the compiler must not take the zeros for the truth; the verifier
    // knows the frozen values, and so the types of what is found at these offsets.
    unsafe { core::ptr::read_volatile(field(&raw const OFFSETS)) as usize }
}

/// `offset!(sock_num)`: the running kernel's offset of that field.
macro_rules! offset {
    ($field:ident) => {
        $crate::offsets::at(|offsets| {
            // SAFETY: the address of a field, nothing is read here.
            unsafe { &raw const (*offsets).$field }
        })
    };
}
pub(crate) use offset;
