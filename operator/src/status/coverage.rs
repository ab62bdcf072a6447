//! Coverage: the share of what is known to have happened that was seen. Pure.

/// `seen` / (`seen` + `lost`) in percent, with at most one decimal, rounded down. Never `100%` if anything was lost or
/// if there were times in which nobody was looking.
#[must_use]
pub fn coverage(seen: u64, lost: u64, always_observed: bool) -> String {
    let (seen, lost) = (u128::from(seen), u128::from(lost));
    let mut permille = (seen * 1000).checked_div(seen + lost).unwrap_or(1000);
    if lost > 0 || !always_observed {
        permille = permille.min(999);
    }
    match (permille / 10, permille % 10) {
        (percent, 0) => format!("{percent}%"),
        (percent, tenth) => format!("{percent}.{tenth}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_rounded_down() {
        assert_eq!(coverage(1000, 0, true), "100%");
        assert_eq!(coverage(0, 0, true), "100%");
        assert_eq!(coverage(2, 1, true), "66.6%");
        assert_eq!(coverage(99, 1, true), "99%");
        assert_eq!(coverage(0, 5, true), "0%");
    }

    #[test]
    fn is_never_complete_where_something_is_missing() {
        assert_eq!(coverage(u64::MAX, 1, true), "99.9%");
        assert_eq!(coverage(1000, 0, false), "99.9%");
        assert_eq!(coverage(0, 0, false), "99.9%");
    }
}
