//! Activity classes, coarse enough that noise does not change them.

/// Into how many steps [`class`] divides what is between a count and its double.
pub const STEPS_PER_DOUBLING: u32 = 4;

/// The class of a count: grows with it, in steps of a quarter at most. What is ranked by classes, and by name within one,
/// changes places rarely, although all counts go on growing.
///
/// Invariants: `a <= b` means `class(a) <= class(b)`; of counts from 4 on, `class(2 * n) == class(n) + STEPS_PER_DOUBLING`.
#[must_use]
pub const fn class(count: u64) -> u32 {
    if count < STEPS_PER_DOUBLING as u64 {
        // The smallest counts are classes of their own.
        #[expect(clippy::cast_possible_truncation, reason = "less than 4")]
        return count as u32;
    }
    let magnitude = count.ilog2();
    // The two bits after the leading one: at most 3.
    #[expect(clippy::cast_possible_truncation, reason = "two bits")]
    let step = (count >> (magnitude - 2)) as u32 & (STEPS_PER_DOUBLING - 1);
    magnitude * STEPS_PER_DOUBLING + step
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_are_told_apart_and_many_coarsely() {
        assert_eq!([0, 1, 2, 3].map(class), [0, 1, 2, 3]);
        assert!(
            (4..9).all(|count| class(count) < class(count + 1) || count == 8),
            "{:?}",
            [4, 5, 6, 7, 8, 9].map(class)
        );
        assert_eq!(class(1_000), class(1_010));
        assert!(class(1_000) < class(1_280));
        assert!(class(u64::MAX) < 256);
    }

    proptest! {
        #[test]
        fn grows_with_the_count_and_by_four_when_it_doubles(one in any::<u64>(), other in any::<u64>()) {
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(class(less) <= class(more));
            let half = less / 2;
            if half >= 4 {
                prop_assert_eq!(class(half * 2), class(half) + STEPS_PER_DOUBLING);
            }
        }
    }
}
