//! Phrases of messages for people.

/// Returns at most five names, and the number of further ones.
#[must_use]
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_names_stand_for_many() {
        let names: Vec<_> = (1..=7).map(|number| format!("n{number}")).collect();
        assert_eq!(some_of(&names[..2]), "n1, n2");
        assert_eq!(some_of(&names), "n1, n2, n3, n4, n5 and 2 more");
    }
}
