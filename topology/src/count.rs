//! Counts that an object of the API can hold.

/// The greatest count: the API's integers are signed. It stands for everything beyond it.
pub const MAX_COUNT: u64 = i64::MAX as u64;

/// Both together, at most [`MAX_COUNT`].
///
/// Invariant: no less than either, if neither is beyond.
#[must_use]
pub const fn add(one: u64, other: u64) -> u64 {
    bounded(one.saturating_add(other))
}

/// The same, at most [`MAX_COUNT`].
#[must_use]
pub const fn bounded(count: u64) -> u64 {
    if count < MAX_COUNT { count } else { MAX_COUNT }
}
