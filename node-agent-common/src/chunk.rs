//! Chunks of the table of flow counters, which the agent adds by need.

/// Number of slots in a chunk: slots 0 to 4,095 are in the first one. A power of two, so that a slot's place costs no division.
pub const SLOTS: u32 = 4096;
const _: () = assert!(SLOTS.is_power_of_two());
