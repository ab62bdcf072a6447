//! Values of a ScopeProbe's `spec` that the operator does not understand. The schema rejects them, unless it is older than
//! the operator.

use std::time::Duration;

/// Value of a field that has to be another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} is {value:?}: it has to be {expected}")]
pub struct InvalidField {
    /// Path of the field.
    pub path: String,
    /// Present value.
    pub value: String,
    /// Description and example of a valid value.
    pub expected: &'static str,
}

impl InvalidField {
    /// Returns the error of a field.
    pub fn new(path: impl Into<String>, value: impl Into<String>, expected: &'static str) -> Self {
        Self { path: path.into(), value: value.into(), expected }
    }
}

/// Reads an interval.
///
/// # Errors
/// Returns an error if the duration is zero or negative.
pub fn interval(path: &str, duration: kube::core::Duration) -> Result<Duration, InvalidField> {
    let interval = Duration::from(duration);
    if duration.is_negative() || interval.is_zero() {
        return Err(InvalidField::new(path, duration.to_string(), "a duration above zero, for example 30s"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_above_zero() {
        let read = |text: &str| interval("spec.topology.retention", text.parse().expect("a duration"));
        assert_eq!(read("1m30s"), Ok(Duration::from_secs(90)));
        for wrong in ["0s", "-1h"] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.to_string().starts_with("spec.topology.retention is "), "{error}");
        }
    }
}
