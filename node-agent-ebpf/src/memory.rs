//! Ways to read the kernel's memory.

use core::marker::PhantomData;

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// One way.
pub trait Access: Copy {
    /// Reads the value at this address; zeros if it cannot be read.
    fn read<T: Copy>(address: usize) -> T;
}

/// By direct loads that the verifier checks against the kernel's types: no helper calls, allowed under lockdown.
#[derive(Clone, Copy)]
pub struct Direct;

impl Access for Direct {
    #[inline(always)]
    fn read<T: Copy>(address: usize) -> T {
        // SAFETY: the verifier refuses the program unless this is a field of that size in a structure that the pointer
        // may point to; a fault (a structure freed meanwhile) reads as 0.
        unsafe { core::ptr::read_volatile(address as *const T) }
    }
}

/// By a helper that reads any address: for programs whose pointers the verifier does not know. Refused under lockdown
/// for confidentiality.
#[derive(Clone, Copy)]
pub struct Probing;

impl Access for Probing {
    #[inline(always)]
    fn read<T: Copy>(address: usize) -> T {
        // SAFETY: the helper checks the address; integers and arrays of them, of which zeros are a value.
        unsafe { bpf_probe_read_kernel(address as *const T).unwrap_or_else(|_| core::mem::zeroed()) }
    }
}

/// The kernel's pointer to a structure.
#[derive(Clone, Copy)]
pub struct Pointer<A>(u64, PhantomData<A>);

impl<A: Access> Pointer<A> {
    /// `None` for null: the verifier wants it tested.
    #[inline(always)]
    pub fn new(address: u64) -> Option<Self> {
        if address == 0 { None } else { Some(Self(address, PhantomData)) }
    }

    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0
    }

    /// The field at this offset.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: usize) -> T {
        A::read((self.0 as usize).wrapping_add(offset))
    }

    /// The pointer at this offset, which may be null: reading through null reads 0.
    #[inline(always)]
    pub fn follow(self, offset: usize) -> Self {
        Self(self.load(offset), PhantomData)
    }
}

/// A field of what the verifier knows by its beginning only (a context, a socket), by one instruction: the compiler would
/// add the offset to the pointer first where it reads several neighbours.
macro_rules! load {
    ($width:literal, $pointer:expr, $structure:ty, $field:ident $(, $beyond:literal)?) => {{
        let value: u64;
        // SAFETY: the verifier refuses the program unless this is a field of that width.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $width, " *)({pointer} + {offset})"),
                value = out(reg) value,
                pointer = in(reg) $pointer,
                offset = const core::mem::offset_of!($structure, $field) $(+ $beyond)?,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}
pub(crate) use load;
