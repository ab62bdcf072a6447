//! The kernel's tables of UDP conversations: a small one, and the largest one where many conversations begin.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya_obj::{Map, generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH};
use node_agent_common::conversation::{CURRENT, EARLIER, KEY_BYTES, VALUE_BYTES};

/// Number of conversations in the first table.
const FIRST: u32 = 8192;
/// Number of conversations for each processor in the first table: the kernel hands free entries to processors in portions
/// of 128, and evicts when one runs out.
const FOR_PROCESSOR: u32 = 512;
/// Time after which a table that could not be created is tried again.
const RETRY: Duration = Duration::from_mins(1);

/// The tables, of which new conversations use one.
pub(super) struct ConversationTables {
    tables: ArrayOfMaps<MapData, MapData>,
    current: MapData,
    /// Maximum number of conversations in the current table.
    size: u32,
    /// The same for the largest table.
    most: u32,
    /// True if the first table was replaced.
    has_grown: bool,
    /// Time from which on no conversation of the earlier table goes on; `None` if there is no such table.
    earlier_until: Option<Instant>,
    /// Time before which no other table is created.
    next_growth: Instant,
}

impl ConversationTables {
    /// Creates the first table.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses it.
    pub(super) fn new(tables: ArrayOfMaps<MapData, MapData>, most: u32) -> Result<Self, MapError> {
        let size = first_size(thread::available_parallelism().map_or(1, usize::from)).min(most);
        let current = create(size)?;
        let mut created =
            Self { tables, current, size, most, has_grown: false, earlier_until: None, next_growth: Instant::now() };
        for index in [EARLIER, CURRENT] {
            created.tables.set(index, &created.current, 0)?;
        }
        Ok(created)
    }

    /// Returns the number of conversations that may begin within the time for which one is kept without an early
    /// eviction. The kernel evicts the least recently used ones only approximately.
    pub(super) fn room(&self) -> u64 {
        u64::from(self.size / 2)
    }

    /// Returns the number of conversations up to which none was evicted since the first table was created.
    pub(super) fn complete_up_to(&self) -> u64 {
        if self.has_grown { 0 } else { self.room() }
    }

    /// Creates the largest table if so many conversations, which began within `memory`, are many for the first one.
    /// Conversations that go on are moved by the programs.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the exchange of tables.
    pub(super) fn fit(&mut self, begun: u64, memory: Duration, now: Instant) -> Result<(), MapError> {
        if self.earlier_until.is_some_and(|until| now >= until) {
            self.tables.set(EARLIER, &self.current, 0)?;
            self.earlier_until = None;
        }
        let may_grow = self.size < self.most && self.earlier_until.is_none() && now >= self.next_growth;
        if !may_grow || begun <= u64::from(self.size / 4) {
            return Ok(());
        }
        let larger = match create(self.most) {
            Ok(larger) => larger,
            Err(error) => {
                tracing::warn!(size = self.size, %error, "the table of UDP conversations cannot grow: some may count more than once, and are marked as inferred");
                self.next_growth = now + RETRY;
                return Ok(());
            }
        };
        self.tables.set(EARLIER, &self.current, 0)?;
        self.tables.set(CURRENT, &larger, 0)?;
        self.has_grown = true;
        (self.current, self.size, self.earlier_until) = (larger, self.most, Some(now + memory));
        Ok(())
    }
}

fn create(size: u32) -> Result<MapData, MapError> {
    let map = Map::new_from_params(BPF_MAP_TYPE_LRU_HASH as u32, KEY_BYTES, VALUE_BYTES, size, 0);
    MapData::create(map, "conversations", None)
}

fn first_size(processors: usize) -> u32 {
    u32::try_from(processors).unwrap_or(u32::MAX).saturating_mul(FOR_PROCESSOR).max(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_table_has_entries_for_each_processor() {
        assert_eq!((first_size(2), first_size(64), first_size(usize::MAX)), (8192, 32_768, u32::MAX));
    }
}
