//! Histogram of the round-trip times of connections, from which a median is computed.

use serde::{Deserialize, Serialize};

/// Upper bound of the first bucket, in microseconds. That of each other bucket is twice as great; the last bucket has
/// none.
const SHORTEST: u32 = 64;

/// A range of round-trip times: below 64 µs, below 128 µs and so on by powers of two; the last one has 262.144 ms and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RttBucket(u8);

impl RttBucket {
    /// Number of buckets.
    pub const COUNT: usize = 14;

    /// Returns the bucket that holds this time.
    #[must_use]
    pub const fn of(microseconds: u32) -> Self {
        let bits = u32::BITS - (microseconds / SHORTEST).leading_zeros();
        #[expect(clippy::cast_possible_truncation, reason = "at most 32, and less than COUNT")]
        Self(if bits < Self::COUNT as u32 { bits as u8 } else { Self::COUNT as u8 - 1 })
    }

    /// Returns its number; the one of the shortest times is 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns its upper bound in microseconds, exclusive: a power of two from 64 to 524288. The last bucket has no upper
    /// bound; for it, the function returns twice its lower bound.
    #[must_use]
    pub const fn below(self) -> u32 {
        SHORTEST << self.0
    }

    /// Returns the bucket with this upper bound; `None` if none has it.
    #[must_use]
    pub const fn with_bound(below: u32) -> Option<Self> {
        if !below.is_power_of_two() || below < SHORTEST || below > SHORTEST << (Self::COUNT - 1) {
            return None;
        }
        // One of those that are below the bound.
        Some(Self::of(below / 2))
    }
}

/// Number of connections in each bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RttHistogram([u32; RttBucket::COUNT]);

impl RttHistogram {
    /// Converts counts, the shortest times' first; missing ones are 0. Returns `None` for more counts than buckets.
    #[must_use]
    pub fn from_counts(counts: &[u32]) -> Option<Self> {
        let mut histogram = Self::default();
        histogram.0.get_mut(..counts.len())?.copy_from_slice(counts);
        Some(histogram)
    }

    /// Returns the counts, the shortest times' first, without zeros at the end.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        let used = self.0.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        &self.0[..used]
    }

    /// Adds a connection.
    pub fn add(&mut self, bucket: RttBucket) {
        let count = &mut self.0[bucket.index()];
        *count = count.saturating_add(1);
    }

    /// Removes a connection, if there is one.
    pub fn remove(&mut self, bucket: RttBucket) {
        let count = &mut self.0[bucket.index()];
        *count = count.saturating_sub(1);
    }

    /// Returns the sum of both.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
        self
    }

    /// Limits the number of connections. Removes those of `first` at first, then those of the longest times.
    #[must_use]
    pub fn at_most(mut self, connections: u64, first: &Self) -> Self {
        let mut excess = self.connections().saturating_sub(connections);
        let longest_first = self.0.iter_mut().zip(first.0).rev();
        for (count, most) in longest_first {
            excess -= take(count, most, excess);
        }
        for count in self.0.iter_mut().rev() {
            excess -= take(count, u32::MAX, excess);
        }
        self
    }

    /// Returns the number of connections with a known time.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    /// Returns the bucket of the median (the lower one of an even number); `None` if no time is known.
    #[must_use]
    pub fn median(&self) -> Option<RttBucket> {
        let all = self.connections();
        let mut so_far = 0;
        for (bucket, count) in (0_u8..).zip(&self.0) {
            so_far += u64::from(*count);
            if all > 0 && so_far * 2 >= all {
                return Some(RttBucket(bucket));
            }
        }
        None
    }
}

/// Takes at most `most` and at most `wanted` out of a count. Returns how many.
fn take(count: &mut u32, most: u32, wanted: u64) -> u64 {
    let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(most).min(*count);
    *count -= taken;
    taken.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (microseconds, below) in
            [(0, 64), (63, 64), (64, 128), (127, 128), (128, 256), (1_000, 1_024), (262_143, 262_144)]
        {
            assert_eq!(RttBucket::of(microseconds).below(), below, "{microseconds} µs");
        }
        for long in [262_144, 524_288, 3_000_000, u32::MAX] {
            assert_eq!((RttBucket::of(long).below(), RttBucket::of(long).index()), (524_288, RttBucket::COUNT - 1));
        }
    }

    #[test]
    fn a_bound_names_its_bucket() {
        for index in 0..RttBucket::COUNT {
            let bucket = RttBucket(u8::try_from(index).unwrap());
            assert_eq!(RttBucket::with_bound(bucket.below()), Some(bucket));
        }
        for other in [0, 1, 32, 65, 1_048_576, u32::MAX] {
            assert_eq!(RttBucket::with_bound(other), None, "{other}");
        }
    }

    #[test]
    fn too_many_counts_are_refused() {
        assert_eq!(RttHistogram::from_counts(&[1; RttBucket::COUNT + 1]), None);
        assert_eq!(RttHistogram::from_counts(&[0, 2, 0]).unwrap().counts(), [0, 2]);
        assert_eq!(RttHistogram::default().counts(), [0_u32; 0]);
    }

    #[test]
    fn those_that_ended_go_first() {
        let of = |counts: &[u32]| RttHistogram::from_counts(counts).unwrap();
        let open = of(&[1, 2, 1]);
        assert_eq!(open.at_most(3, &of(&[0, 1])).counts(), [1, 1, 1]);
        assert_eq!(open.at_most(2, &of(&[0, 1])).counts(), [1, 1]);
        assert_eq!(open.at_most(4, &of(&[0, 1])), open, "the one that ended was not among them");
    }

    fn histogram() -> impl Strategy<Value = RttHistogram> {
        prop::collection::vec(0_u32..9, 0..RttBucket::COUNT)
            .prop_map(|counts| RttHistogram::from_counts(&counts).unwrap())
    }

    proptest! {
        /// The bucket of the median of the times is the median's bucket.
        #[test]
        fn the_median_is_exact_to_its_bucket(mut times in prop::collection::vec(0_u32..2_000_000, 0..50)) {
            let mut histogram = RttHistogram::default();
            for time in &times {
                histogram.add(RttBucket::of(*time));
            }
            times.sort_unstable();
            let median = times.get(times.len().saturating_sub(1) / 2).map(|time| RttBucket::of(*time));
            prop_assert_eq!(histogram.median(), median);
        }

        /// As many are left as there may be, and none that were not there.
        #[test]
        fn connections_are_conserved(all in histogram(), first in histogram(), most in 0_u64..60) {
            let left = all.at_most(most, &first);
            prop_assert_eq!(left.connections(), all.connections().min(most));
            prop_assert!(left.0.iter().zip(all.0).all(|(left, all)| *left <= all));
            let both = all.plus(&first);
            prop_assert_eq!(both.connections(), all.connections() + first.connections());
            prop_assert_eq!(both.at_most(all.connections(), &first), all);
        }
    }
}
