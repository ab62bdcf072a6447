//! Coverage: the share of what is known to have happened that was seen. Pure.

/// `seen` / (`seen` + `lost`) in percent, with at most one decimal, rounded down. Never `100%` if anything was lost or
/// if there were times in which nobody was looking. With `≤` where a part was `sampled`: what the fallback or a
/// tracepoint has missed is in neither number, so that it can only be less.
#[must_use]
pub fn coverage(seen: u64, lost: u64, always_observed: bool, sampled: bool) -> String {
    let (seen, lost) = (u128::from(seen), u128::from(lost));
    let mut permille = (seen * 1000).checked_div(seen + lost).unwrap_or(1000);
    if lost > 0 || !always_observed {
        permille = permille.min(999);
    }
    let at_most = if sampled { "≤" } else { "" };
    match (permille / 10, permille % 10) {
        (percent, 0) => format!("{at_most}{percent}%"),
        (percent, tenth) => format!("{at_most}{percent}.{tenth}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_rounded_down() {
        assert_eq!(coverage(1000, 0, true, false), "100%");
        assert_eq!(coverage(0, 0, true, false), "100%");
        assert_eq!(coverage(2, 1, true, false), "66.6%");
        assert_eq!(coverage(99, 1, true, false), "99%");
        assert_eq!(coverage(0, 5, true, false), "0%");
    }

    #[test]
    fn is_never_complete_where_something_is_missing() {
        assert_eq!(coverage(u64::MAX, 1, true, false), "99.9%");
        assert_eq!(coverage(1000, 0, false, false), "99.9%");
        assert_eq!(coverage(0, 0, false, false), "99.9%");
    }

    #[test]
    fn is_an_upper_bound_where_only_samples_were_taken() {
        assert_eq!(coverage(1000, 0, true, true), "≤100%");
        assert_eq!(coverage(1000, 0, false, true), "≤99.9%");
        assert_eq!(coverage(99, 1, true, true), "≤99%");
    }
}
