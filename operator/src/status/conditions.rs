//! Conditions by the API conventions: the time of a transition changes only with the status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Condition that reports whether connections were missed.
pub const CAPTURE_COMPLETE: &str = "CaptureComplete";
/// Condition of a node of which the operator left flows out.
pub const FLOWS_LEFT_OUT: &str = "FlowsLeftOut";
/// Maximum length of a condition's message, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// `True`.
    True,
    /// `False`.
    False,
    /// `Unknown`.
    Unknown,
}

impl Truth {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Self::True } else { Self::False }
    }
}

/// Condition of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The condition's type.
    pub type_: &'static str,
    /// Status of the condition.
    pub truth: Truth,
    /// Reason of the status.
    pub reason: String,
    /// Human-readable explanation of `reason`.
    pub message: String,
}

impl Statement {
    /// Returns a statement.
    pub fn new(
        type_: &'static str,
        truth: impl Into<Truth>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, truth: truth.into(), reason: reason.into(), message: message.into() }
    }
}

/// Returns the statements as conditions, in their order. The earlier conditions provide the times of transition.
#[must_use]
pub fn conditions(
    statements: Vec<Statement>,
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |statement: Statement| {
        let status = statement.truth.as_str().to_owned();
        let same = previous.iter().find(|it| it.type_ == statement.type_ && it.status == status);
        Condition {
            type_: statement.type_.to_owned(),
            last_transition_time: same.map_or(Time(now), |it| it.last_transition_time.clone()),
            status,
            reason: statement.reason,
            message: truncated(statement.message),
            observed_generation: generation,
        }
    };
    statements.into_iter().map(condition).collect()
}

/// Returns the condition of a type.
#[must_use]
pub fn of_type<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Returns whether the condition of a type is true.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    of_type(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Truncates a message to the maximum length of a condition's message.
#[must_use]
pub fn truncated(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - '…'.len_utf8()).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Returns whether two lists are equal, apart from times and growing numbers in the message of `CaptureComplete`.
#[must_use]
pub fn same_statements(one: &[Condition], other: &[Condition]) -> bool {
    let key = |it: &Condition| {
        let message = Some(it.message.clone()).filter(|_| it.type_ != CAPTURE_COMPLETE);
        (it.type_.clone(), it.status.clone(), it.reason.clone(), it.observed_generation, message)
    };
    one.iter().map(key).eq(other.iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_changes_with_the_status_only() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let say = |truth: bool, message: &str| vec![Statement::new("Ready", truth, "Because", message)];
        let first = conditions(say(false, "one"), &[], Some(1), at(10));
        let second = conditions(say(false, "two"), &first, Some(2), at(20));
        let third = conditions(say(true, "two"), &second, Some(2), at(30));
        let times: Vec<_> = [&first, &second, &third].map(|it| it[0].last_transition_time.0.as_second()).to_vec();
        assert_eq!(times, [10, 10, 30]);
        assert_eq!(second[0].message, "two");
        assert_eq!(second[0].observed_generation, Some(2));
    }

    #[test]
    fn long_messages_end_at_a_letter() {
        let message = truncated("ü".repeat(MAX_MESSAGE));
        assert!(message.len() <= MAX_MESSAGE);
        assert!(message.ends_with("ü…"));
        assert_eq!(truncated("short".to_owned()), "short");
    }
}
