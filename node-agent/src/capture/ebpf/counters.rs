//! The kernel's table of counters, mapped into this process: reading it costs no system call.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use node_agent_common::FlowStats;

/// A view of the table. The counters themselves are the kernel's programs' to change.
#[derive(Debug)]
pub(super) struct Counters {
    table: NonNull<FlowStats>,
    slots: u32,
    /// Keeps the table in being.
    _map: MapData,
}

// SAFETY: the view is used by atomic operations alone; the mapping belongs to the process, not to a thread.
#[expect(unsafe_code, reason = "memory shared with the kernel")]
unsafe impl Send for Counters {}

impl Counters {
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn map(map: MapData, slots: u32) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes(slots)).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice; the kernel refuses it if the map is smaller.
        let table = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) }?;
        Ok(Self { table: table.cast(), slots, _map: map })
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Ends the use of this slot by programs that remember it for a flow. To be called after its key was deleted.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn end_generation(&self, slot: u32) {
        if slot < self.slots {
            // SAFETY: inside of the mapping, which lives as long as `self`; an aligned u32 that programs only read.
            unsafe {
                let stats = self.table.add(slot as usize).as_ptr();
                AtomicU32::from_ptr(&raw mut (*stats).generation).fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Returns the counters of this slot; zeros beyond the table.
    ///
    /// Read in the order opposite to the kernel's: `closed` first, whose connections were counted as opened, and their
    /// bytes added, before.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn read(&self, slot: u32) -> FlowStats {
        if slot >= self.slots {
            return FlowStats::default();
        }
        // SAFETY: inside of the mapping, which lives as long as `self`.
        let stats = unsafe { self.table.add(slot as usize).as_ptr() };
        // SAFETY: aligned u32 fields of a mapped value, which the kernel changes by atomic additions.
        let load = |field: *mut u32| unsafe { AtomicU32::from_ptr(field) }.load(Ordering::Acquire);
        // SAFETY: the same of u64 fields.
        let load_wide = |field: *mut u64| unsafe { AtomicU64::from_ptr(field) }.load(Ordering::Acquire);
        // SAFETY: addresses of fields, nothing is read here.
        unsafe {
            let closed = load(&raw mut (*stats).closed);
            FlowStats {
                closed,
                older: load(&raw mut (*stats).older),
                unseen: load(&raw mut (*stats).unseen),
                sent: load_wide(&raw mut (*stats).sent),
                received: load_wide(&raw mut (*stats).received),
                retransmits: load(&raw mut (*stats).retransmits),
                rtt: std::array::from_fn(|bucket| load(&raw mut (*stats).rtt[bucket])),
                inferred: load(&raw mut (*stats).inferred),
                generation: 0,
                failed: load(&raw mut (*stats).failed),
                opened: load(&raw mut (*stats).opened),
            }
        }
    }
}

impl Drop for Counters {
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.table.cast(), bytes(self.slots)) };
    }
}

fn bytes(slots: u32) -> usize {
    slots as usize * size_of::<FlowStats>()
}
