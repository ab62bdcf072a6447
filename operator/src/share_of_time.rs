//! Keeps work that repeats within a share of the time. Its length grows with the cluster.

use std::time::Duration;

/// The work takes at most one part in so many of the time.
const PARTS: u32 = 4;
/// Longest pause after work.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Returns how long to pause after work that took so long, at least `least`.
#[must_use]
pub fn pause_after(took: Duration, least: Duration) -> Duration {
    least.max((took * (PARTS - 1)).min(MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_is_in_proportion_to_the_work_within_bounds() {
        let [least, long] = [Duration::from_millis(300), Duration::from_mins(1)];
        assert_eq!(pause_after(Duration::from_millis(1), least), least);
        assert_eq!(pause_after(Duration::from_secs(1), least), Duration::from_secs(3));
        assert_eq!(pause_after(long, least), MAX_PAUSE);
        assert_eq!(pause_after(long, long), long);
    }
}
