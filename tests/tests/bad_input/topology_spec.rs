//! Cases for external groups and the namespace selector in `spec.topology`.

use serde_json::{Value, json};

use crate::case::{Case, case, rule};

pub fn outside() -> Vec<Case> {
    let groups = |groups: Value| json!({"topology": {"externalGroups": groups}});
    let named = |name: &str| groups(json!([{"name": name, "cidrs": ["192.0.2.0/24"]}]));
    let of = |cidr: &str| groups(json!([{"name": "a", "cidrs": [cidr]}]));
    let good = |number: usize| json!({"name": format!("group-{number}"), "cidrs": ["192.0.2.0/24"]});
    let name_rule = "spec.topology.externalGroups[].name rule: a group's name has to be lower-case letters, digits and dashes, with a letter or digit at both ends, for example payments";
    let cidr_rule = "spec.topology.externalGroups[].cidrs[] rule: has to be a range of addresses in CIDR notation, for example 203.0.113.0/24 or 2001:db8::/32; a single address ends with /32 or, for IPv6, /128";
    let (first, name, cidr) = (
        "spec.topology.externalGroups[0].cidrs",
        "spec.topology.externalGroups[0].name",
        "spec.topology.externalGroups[0].cidrs[0]",
    );
    let peers = |number: i64| json!({"topology": {"maxExternalPeers": number}});
    let mut cases = vec![
        rule(
            "spec.topology.externalGroups[] rule: a group has to have at least one range in cidrs, for example 203.0.113.0/24, or one name in dnsNames, for example *.example.com",
            groups(json!([{"name": "a", "cidrs": [], "dnsNames": []}])),
            "spec.topology.externalGroups[0]",
        ),
        case(
            "spec.topology.externalGroups[].dnsNames maxItems",
            groups(json!([{"name": "a", "dnsNames": vec!["a.example.com"; 65]}])),
            "spec.topology.externalGroups[0].dnsNames",
            "must have at most 64 items",
        ),
        case(
            "spec.topology.externalGroups[].dnsNames[] maxLength",
            groups(json!([{"name": "a", "dnsNames": [vec!["a"; 128].join(".")]}])),
            "spec.topology.externalGroups[0].dnsNames[0]",
            "may not be more than 253",
        ),
        case("spec.topology.externalGroups[].name maxLength", named(&"x".repeat(64)), name, "may not be more than 63"),
        case(
            "spec.topology.externalGroups[].cidrs[] maxLength",
            of(&format!("{}/32", "1".repeat(47))),
            cidr,
            "may not be more than 43",
        ),
        case(
            "spec.topology.externalGroups[].cidrs maxItems",
            groups(json!([{"name": "a", "cidrs": vec!["192.0.2.0/24"; 65]}])),
            first,
            "must have at most 64 items",
        ),
        case(
            "spec.topology.externalGroups maxItems",
            groups(json!((0..65).map(good).collect::<Vec<_>>())),
            "spec.topology.externalGroups",
            "must have at most 64 items",
        ),
        case(
            "spec.topology.externalGroups[].name required",
            groups(json!([{"cidrs": ["192.0.2.0/24"]}])),
            name,
            "Required value",
        ),
        case(
            "spec.topology.maxExternalPeers minimum",
            peers(0),
            "spec.topology.maxExternalPeers",
            "should be greater than or equal to 1",
        ),
        case(
            "spec.topology.maxExternalPeers maximum",
            peers(501),
            "spec.topology.maxExternalPeers",
            "should be less than or equal to 500",
        ),
    ];
    cases.extend(["", "Payments", "-a", "a-", "a.b", "a b"].map(|wrong| rule(name_rule, named(wrong), name)));
    let no_ranges = ["", "192.0.2.1", "192.0.2.0/33", "192.0.2/24", "2001:db8::/129", "example.com/24", "192.0.2.0/+8"];
    cases.extend(no_ranges.map(|wrong| rule(cidr_rule, of(wrong), cidr)));
    let dns_rule = "spec.topology.externalGroups[].dnsNames[] rule: has to be a DNS name in lower case, for example api.example.com, or *.example.com for all names below it";
    let no_names = [
        "",
        "*",
        "*.",
        "a.*.example.com",
        "*a.example.com",
        "Example.com",
        "a..b",
        "-a.example.com",
        "192.0.2.1",
        "a b",
    ];
    let called = |name: &str| groups(json!([{"name": "a", "dnsNames": [name]}]));
    cases.extend(no_names.map(|wrong| rule(dns_rule, called(wrong), "spec.topology.externalGroups[0].dnsNames[0]")));
    cases
}

pub fn namespaces() -> Vec<Case> {
    let selector = |selector: Value| json!({"topology": {"namespaceSelector": selector}});
    let labels = |key: &str, value: &str| selector(json!({"matchLabels": {key: value}}));
    let requirement = |requirement: Value| selector(json!({"matchExpressions": [requirement]}));
    let of = |key: &str, operator: &str, values: Value| {
        requirement(json!({"key": key, "operator": operator, "values": values}))
    };
    let many: serde_json::Map<_, _> = (0..17).map(|number| (format!("key-{number}"), json!("x"))).collect();
    let labels_rule = "spec.topology.namespaceSelector.matchLabels rule: every key of matchLabels has to be a label's name, for example kubernetes.io/metadata.name";
    let key_rule = "spec.topology.namespaceSelector.matchExpressions[].key rule: key has to be a label's name, for example kubernetes.io/metadata.name";
    let values_rule = "spec.topology.namespaceSelector.matchExpressions[] rule: In and NotIn need values, Exists and DoesNotExist have none";
    let (all, first) =
        ("spec.topology.namespaceSelector.matchExpressions", "spec.topology.namespaceSelector.matchExpressions[0]");
    let key = "spec.topology.namespaceSelector.matchExpressions[0].key";
    let value = "spec.topology.namespaceSelector.matchExpressions[0].values[0]";
    let mut cases = vec![
        case(
            "spec.topology.namespaceSelector.matchLabels maxProperties",
            selector(json!({ "matchLabels": many })),
            "spec.topology.namespaceSelector.matchLabels",
            "must have at most 16 items",
        ),
        case(
            "spec.topology.namespaceSelector.matchLabels.* pattern",
            labels("team", "a b"),
            "spec.topology.namespaceSelector.matchLabels.team",
            "should match",
        ),
        case(
            "spec.topology.namespaceSelector.matchLabels.* maxLength",
            labels("team", &"x".repeat(64)),
            "spec.topology.namespaceSelector.matchLabels.team",
            "may not be more than 63",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions maxItems",
            selector(json!({"matchExpressions": vec![json!({"key": "a", "operator": "Exists"}); 17]})),
            all,
            "must have at most 16 items",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].key maxLength",
            of(&"x".repeat(318), "In", json!(["a"])),
            key,
            "may not be more than 317",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].key required",
            requirement(json!({"operator": "Exists"})),
            key,
            "Required value",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].operator required",
            requirement(json!({"key": "a"})),
            "spec.topology.namespaceSelector.matchExpressions[0].operator",
            "Required value",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].operator enum",
            of("a", "Like", json!(["a"])),
            "spec.topology.namespaceSelector.matchExpressions[0].operator",
            "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].values maxItems",
            of("a", "In", json!(vec!["a"; 33])),
            "spec.topology.namespaceSelector.matchExpressions[0].values",
            "must have at most 32 items",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].values[] maxLength",
            of("a", "In", json!(["x".repeat(64)])),
            value,
            "may not be more than 63",
        ),
        case(
            "spec.topology.namespaceSelector.matchExpressions[].values[] pattern",
            of("a", "In", json!(["a b"])),
            value,
            "should match",
        ),
    ];
    for wrong in ["a b", "", "Example.com/a", &"x".repeat(64)] {
        cases.push(rule(labels_rule, labels(wrong, "x"), "spec.topology.namespaceSelector.matchLabels"));
        cases.push(rule(key_rule, of(wrong, "In", json!(["a"])), key));
    }
    for (operator, values) in
        [("In", json!([])), ("NotIn", json!(null)), ("Exists", json!(["a"])), ("DoesNotExist", json!(["a"]))]
    {
        cases.push(rule(values_rule, of("a", operator, values), first));
    }
    cases
}
