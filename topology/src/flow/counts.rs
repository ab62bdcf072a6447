//! List of the counts of a flow. Their arithmetic, the wire format and the packed form in the agent follow from it.

/// Calls a macro with the names of the counts of [`FlowCounters`](super::FlowCounters), in three groups. These are counts
/// that only grow within a run, counts of open connections, and the whole of each count that is a part of another one.
#[macro_export]
macro_rules! with_flow_counts {
    ($callback:ident) => {
        $callback! {
            {
                opened closed bytes_sent bytes_received failed inferred without_bytes preexisting
                preexisting_bytes_sent preexisting_bytes_received preexisting_retransmits pending_begun pending_ended
            }
            { open_bytes_sent open_bytes_received open_retransmits open_without_bytes }
            {
                preexisting_bytes_sent: bytes_sent,
                preexisting_bytes_received: bytes_received,
                open_bytes_sent: bytes_sent,
                open_bytes_received: bytes_received,
                preexisting_retransmits: retransmits,
                open_retransmits: retransmits,
                pending_ended: pending_begun,
            }
        }
    };
}

macro_rules! lists {
    ({ $($growing:ident)* } { $($open:ident)* } { $($part:ident: $whole:ident,)* }) => {
        impl super::FlowCounters {
            /// Number of counts that only grow within a run.
            pub const GROWING: usize = [$(stringify!($growing)),*].len();
            /// Number of counts of open connections.
            pub const OPEN: usize = [$(stringify!($open)),*].len();

            /// Returns the counts that only grow within a run, and those of open connections, which shrink when
            /// connections close. `retransmits` is in neither list, as it may be unknown.
            pub fn counts_mut(&mut self) -> ([&mut u64; Self::GROWING], [&mut u64; Self::OPEN]) {
                // A field that is missing in the list does not compile.
                let Self { run: _, methods: _, retransmits: _, rtt: _, $($growing,)* $($open),* } = self;
                ([$($growing),*], [$($open),*])
            }
        }
    };
}
with_flow_counts!(lists);
