//! Ways to break the schema of ScopeProbes.

use serde_json::Value;

/// One way to break the schema.
pub struct Case {
    /// Broken constraint, as [`crate::constraints::of`] names it.
    pub breaks: &'static str,
    pub spec: Value,
    /// Field that the API server must name.
    pub field: &'static str,
    /// Message of the API server; for a rule, the rule's message.
    pub says: &'static str,
}

pub fn case(breaks: &'static str, spec: Value, field: &'static str, says: &'static str) -> Case {
    Case { breaks, spec, field, says }
}

/// A case for a rule, whose message has to come.
pub fn rule(breaks: &'static str, spec: Value, field: &'static str) -> Case {
    let says = breaks.split_once(" rule: ").map_or(breaks, |(_, message)| message);
    Case { breaks, spec, field, says }
}
