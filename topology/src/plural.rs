//! Numbers with their nouns, as people write them.

use std::fmt::Display;

/// Returns a number and its noun: `1 node`, `2 nodes`. Only the last word of the noun takes the plural.
#[must_use]
pub fn counted(number: impl Display, noun: &str) -> String {
    let number = number.to_string();
    let ending = match number.as_str() {
        "1" => "",
        _ if ["s", "x", "ch", "sh"].iter().any(|ending| noun.ends_with(ending)) => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let all = [0, 1, 2, 11].map(|number| counted(number, "failed attempt"));
        assert_eq!(all, ["0 failed attempts", "1 failed attempt", "2 failed attempts", "11 failed attempts"]);
        assert_eq!([counted(1_u64, "address"), counted(2_u64, "address")], ["1 address", "2 addresses"]);
    }
}
