//! The kernel's table of counters, mapped into this process: reading it costs no system call. It has chunks, of which
//! there are as many as the flows of this node need.

use std::{
    io,
    num::NonZeroUsize,
    ops::Range,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{Array, ArrayOfMaps, IterableMap as _, MapData, MapError};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use node_agent_common::{FlowStats, chunk};

/// `BPF_F_MMAPABLE` of `linux/bpf.h` (kernel 5.5).
const MMAPABLE: u32 = 1 << 10;

type ChunkMap = Array<MapData, FlowStats>;

/// Error of a table that cannot grow.
#[derive(Debug, thiserror::Error)]
pub(super) enum GrowthError {
    #[error("cannot create or fill a map")]
    Map(#[from] MapError),
    #[error("cannot map a map into memory")]
    Mapping(#[from] io::Error),
}

/// A view of the table. The counters themselves are the kernel's programs' to change.
pub(super) struct Counters {
    chunks: Vec<Chunk>,
    table: ArrayOfMaps<MapData, ChunkMap>,
    /// Maximum number of slots.
    most: u32,
}

impl Counters {
    /// Takes a table without chunks that may have so many slots.
    pub(super) fn new(table: ArrayOfMaps<MapData, ChunkMap>, most: u32) -> Self {
        Self { chunks: Vec::new(), table, most }
    }

    /// Returns the size of the kernel's index of chunks for so many slots.
    pub(super) fn chunks_for(slots: u32) -> u32 {
        slots.div_ceil(chunk::SLOTS).max(1)
    }

    /// Returns the number of slots that have counters.
    pub(super) fn slots(&self) -> u32 {
        let chunks = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        chunks.saturating_mul(chunk::SLOTS).min(self.most)
    }

    /// Returns the maximum number of slots.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Adds a chunk and returns its slots: none if the table has its maximum size. The kernel may have them once programs
    /// can find their counters, which is so when this returns.
    ///
    /// # Errors
    /// Returns an error if there is no memory for it; the table stays as it is.
    pub(super) fn grow(&mut self) -> Result<Range<u32>, GrowthError> {
        let first = self.slots();
        if first < self.most {
            let map = ChunkMap::create(chunk::SLOTS, MMAPABLE)?;
            let chunk = Chunk::map(map)?;
            self.table.set(first / chunk::SLOTS, &chunk.map, 0)?;
            self.chunks.push(chunk);
        }
        Ok(first..self.slots())
    }

    /// Returns the counters of this slot, or `None` if there are none yet.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    fn at(&self, slot: u32) -> Option<*mut FlowStats> {
        let chunk = self.chunks.get((slot / chunk::SLOTS) as usize)?;
        // SAFETY: inside of the mapping, which has `chunk::SLOTS` values and lives as long as `self`.
        Some(unsafe { chunk.table.add((slot % chunk::SLOTS) as usize) }.as_ptr())
    }

    /// Ends the use of this slot by programs that remember it for a flow. To be called after its key was deleted.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn end_generation(&self, slot: u32) {
        if let Some(stats) = self.at(slot) {
            // SAFETY: a mapped value; an aligned u32 that programs only read.
            unsafe { AtomicU32::from_ptr(&raw mut (*stats).generation).fetch_add(1, Ordering::Release) };
        }
    }

    /// Adds connections to the opened ones of this slot, which the caller leaves out of the slot's counts.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn add_opened(&self, slot: u32, connections: u32) {
        if let Some(stats) = self.at(slot) {
            // SAFETY: a mapped value; an aligned u32 that programs change by atomic additions.
            unsafe { AtomicU32::from_ptr(&raw mut (*stats).opened).fetch_add(connections, Ordering::AcqRel) };
        }
    }

    /// Returns the counters of this slot; zeros beyond the table.
    ///
    /// Read in the order opposite to the kernel's: `closed` first, whose connections were counted as opened, and their
    /// bytes added, before.
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    pub(super) fn read(&self, slot: u32) -> FlowStats {
        let Some(stats) = self.at(slot) else { return FlowStats::default() };
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
                past_tcp: load(&raw mut (*stats).past_tcp),
                reserved: 0,
                failed: load(&raw mut (*stats).failed),
                opened: load(&raw mut (*stats).opened),
            }
        }
    }
}

/// A part of the table.
struct Chunk {
    table: NonNull<FlowStats>,
    map: ChunkMap,
}

// SAFETY: the view is used by atomic operations alone; the mapping belongs to the process, not to a thread.
#[expect(unsafe_code, reason = "memory shared with the kernel")]
unsafe impl Send for Chunk {}

impl Chunk {
    // Unwrapped by the compiler, which knows that it is not zero.
    const BYTES: NonZeroUsize = NonZeroUsize::new(chunk::SLOTS as usize * size_of::<FlowStats>()).unwrap();

    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    fn map(map: ChunkMap) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let descriptor = map.map().fd().as_fd();
        // SAFETY: a new mapping, at an address of the kernel's choice; the kernel refuses it if the map is smaller.
        let table = unsafe { mmap(None, Self::BYTES, access, MapFlags::MAP_SHARED, descriptor, 0) }?;
        Ok(Self { table: table.cast(), map })
    }
}

impl Drop for Chunk {
    #[expect(unsafe_code, reason = "memory shared with the kernel")]
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.table.cast(), Self::BYTES.get()) };
    }
}
