//! Word by which the programs on `connect()` and `sendmsg()` know whether there is a load balancer at the sockets.
//!
//! The lowest bit is set while there is one. The rest is the number of times that the agent has found one, so that notes
//! of an earlier time are not taken for those of now. It stays when the load balancer goes, as its connections go on.

/// There has been no load balancer since the agent attached.
pub const NEVER: u64 = 0;
/// Bit that is set while there is one.
pub const NOW: u64 = 1;

/// Returns the word for a load balancer that was found after this word was valid.
#[must_use]
pub const fn found(word: u64) -> u64 {
    gone(word) + 2 * NOW + NOW
}

/// Returns the word for a load balancer that has gone.
#[must_use]
pub const fn gone(word: u64) -> u64 {
    word & !NOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_two_times_differ_and_none_is_that_of_never() {
        let first = found(NEVER);
        let between = gone(first);
        let second = found(between);
        assert_eq!([first & NOW, between & NOW, second & NOW], [NOW, 0, NOW]);
        assert!(first != second && between != NEVER && gone(second) != between);
        assert_eq!(found(first) & NOW, NOW, "also where its end was missed");
    }
}
