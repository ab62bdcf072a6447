//! All that a schema forbids, by path and kind, so that a test can tell whether it has a case for each.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Schema keywords that restrict a value beyond its type.
const BOUNDS: [&str; 14] = [
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
];
/// These say how wide an integer is, which the bounds narrow down anyway.
const WIDTHS: [&str; 2] = ["int32", "int64"];

/// `spec.capture.maxFlows maximum`, `spec.topology rule: <its message>`, … for everything in the schema but `status`.
pub fn of(schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(schema, "", &mut found);
    found
}

fn collect(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(schema) = schema.as_object() else { return };
    for bound in BOUNDS.iter().filter(|bound| schema.contains_key(**bound)) {
        if !is_width(schema, bound) {
            found.insert(format!("{path} {bound}"));
        }
    }
    for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        found.insert(format!("{path} rule: {}", rule["message"].as_str().unwrap_or("(without a message)")));
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        // What has a default is never missing.
        if schema["properties"][name].get("default").is_none() {
            found.insert(format!("{path}.{name} required"));
        }
    }
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        match (path, name.as_str()) {
            ("", "status") => {}
            ("", _) => collect(property, name, found),
            _ => collect(property, &format!("{path}.{name}"), found),
        }
    }
    for (keyword, step) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let Some(inner) = schema.get(keyword) {
            collect(inner, &format!("{path}{step}"), found);
        }
    }
}

fn is_width(schema: &Map<String, Value>, bound: &str) -> bool {
    bound == "format" && schema["format"].as_str().is_some_and(|format| WIDTHS.contains(&format))
}
