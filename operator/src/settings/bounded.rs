//! Durations within bounds.

use jiff::SignedDuration;

/// Reads a duration between two others, which `words` name.
pub(super) fn between(
    text: &str,
    least: SignedDuration,
    most: SignedDuration,
    words: &str,
) -> Result<SignedDuration, String> {
    let duration: SignedDuration = text.parse().map_err(|error| format!("{error}; write a duration such as 1h"))?;
    if (least..=most).contains(&duration) { Ok(duration) } else { Err(format!("it has to be between {words}")) }
}
