//! Slots of new flows: reported by the ring buffer, and looked up if it was full.

use aya::maps::MapError;
use node_agent_common::{FlowKey, Loss, NewFlow};

use super::programs::Programs;

/// Reads the ring buffer, and the kernel's whole index when something did not fit into the ring.
#[derive(Debug, Default)]
pub(super) struct NewFlows {
    dropped: u64,
}

impl NewFlows {
    /// Everything new, and maybe things known.
    ///
    /// # Errors
    /// Returns an error if the index is unreadable; unreported slots come with the next call.
    pub(super) fn drain(
        &mut self,
        programs: &mut Programs,
        mut tell: impl FnMut(FlowKey, u32),
    ) -> Result<(), MapError> {
        // Looked at first: what is dropped after this is found by the next call.
        let dropped = programs.lost(Loss::NewFlow)?;
        while let Some(item) = programs.new_flow_notifications.next() {
            if let Some(bytes) = item.first_chunk() {
                let new_flow = parse_new_flow(bytes);
                tell(new_flow.key, new_flow.slot);
            }
        }
        if dropped != self.dropped {
            for entry in &programs.slot_of {
                let (key, slot) = entry?;
                tell(key, slot);
            }
            self.dropped = dropped;
        }
        Ok(())
    }

    /// Returns the number of dropped notifications.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[expect(unsafe_code, reason = "the kernel's record as it comes")]
fn parse_new_flow(bytes: &[u8; size_of::<NewFlow>()]) -> NewFlow {
    // SAFETY: plain data of exactly this size, for which any bytes are a value; read without asking for alignment.
    unsafe { bytes.as_ptr().cast::<NewFlow>().read_unaligned() }
}
