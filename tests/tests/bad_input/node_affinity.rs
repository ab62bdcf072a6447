//! Values of `spec.nodeAffinity` that the API server refuses.

use serde_json::{Value, json};

use crate::case::{Case, case, rule};

pub fn node_affinity() -> Vec<Case> {
    let requirements = |requirements: Value| json!({"nodeAffinity": {"matchExpressions": requirements}});
    let of = |key: &str, operator: &str, values: Value| {
        requirements(json!([{"key": key, "operator": operator, "values": values}]))
    };
    let all = "spec.nodeAffinity.matchExpressions";
    let first = "spec.nodeAffinity.matchExpressions[0]";
    let (key, operator) =
        ("spec.nodeAffinity.matchExpressions[0].key", "spec.nodeAffinity.matchExpressions[0].operator");
    let values = "spec.nodeAffinity.matchExpressions[0].values";
    let value = "spec.nodeAffinity.matchExpressions[0].values[0]";
    let key_rule =
        "spec.nodeAffinity.matchExpressions[].key rule: key has to be a label's name, for example kubernetes.io/os";
    let values_rule =
        "spec.nodeAffinity.matchExpressions[] rule: In and NotIn need values, Exists and DoesNotExist have none";
    let own_rule = "spec.nodeAffinity.matchExpressions rule: nodeAffinity cannot name labels of scopeprobe.io/, which the operator sets by what it selects: name another label";
    let mut cases = vec![
        case(
            "spec.nodeAffinity.matchExpressions maxItems",
            requirements(json!(vec![json!({"key": "a", "operator": "Exists"}); 17])),
            all,
            "must have at most 16 items",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].key maxLength",
            of(&"x".repeat(318), "In", json!(["a"])),
            key,
            "may not be more than 317",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].key required",
            requirements(json!([{"operator": "Exists"}])),
            key,
            "Required value",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].operator required",
            requirements(json!([{"key": "a"}])),
            operator,
            "Required value",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].operator enum",
            of("a", "Like", json!(["a"])),
            operator,
            "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].values maxItems",
            of("a", "In", json!(vec!["a"; 33])),
            values,
            "must have at most 32 items",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].values[] maxLength",
            of("a", "In", json!(["x".repeat(64)])),
            value,
            "may not be more than 63",
        ),
        case(
            "spec.nodeAffinity.matchExpressions[].values[] pattern",
            of("a", "In", json!(["a b"])),
            value,
            "should match",
        ),
        rule(own_rule, of("scopeprobe.io/probe", "Exists", json!(null)), all),
    ];
    for wrong in ["a b", "", "Example.com/a", &"x".repeat(64)] {
        cases.push(rule(key_rule, of(wrong, "In", json!(["a"])), key));
    }
    for (operator, values) in
        [("In", json!([])), ("NotIn", json!(null)), ("Exists", json!(["a"])), ("DoesNotExist", json!(["a"]))]
    {
        cases.push(rule(values_rule, of("a", operator, values), first));
    }
    cases
}
