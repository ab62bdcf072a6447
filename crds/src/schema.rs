//! Parts of the kinds' schemas that the Rust types cannot express: limits, list types and CEL rules.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::{Schema, SchemaGenerator, json_schema, transform::transform_subschemas};
use serde_json::{Value, json};

use crate::{
    CoveragePeriod, ExternalGroup, MAX_HISTORY, MAX_LABELS, MAX_PERIODS, MAX_REQUIREMENT_VALUES, MAX_REQUIREMENTS,
    ModeChange, ModeOverride,
};

/// Replaces the integer formats that Kubernetes warns about: it has `int32` and `int64` only. Unsigned formats become
/// signed ones; their `minimum` of 0 stays.
pub fn signed_integers(schema: &mut Schema) {
    let signed = match schema.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "int16") => Some("int32"),
        Some("uint32" | "uint64" | "uint") => Some("int64"),
        _ => None,
    };
    if let Some(signed) = signed {
        schema.insert("format".to_owned(), signed.into());
    }
    transform_subschemas(&mut signed_integers, schema);
}

/// Schema of at most 16 conditions, one per type.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": generator.subschema_for::<Condition>(),
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Returns the status of a ScopeProbe that no operator has observed. The API server sets it when the object is created.
pub fn unobserved() -> Value {
    json!({"conditions": [{
        "type": "Ready",
        "status": "Unknown",
        "reason": "Unobserved",
        "message": "no operator has observed this ScopeProbe: see whether the operator runs and holds its Lease",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]})
}

/// Schema of a duration in Go's format, between two bounds. A CEL rule checks the format: unlike a `pattern`, it has a
/// message that explains the format.
fn duration(field: &str, min: &str, max: &str, example: &str) -> Schema {
    let message = format!("{field} has to be a duration between {min} and {max}, for example {example}");
    let rule = format!(
        "self.matches({DURATION_PATTERN}) && duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"
    );
    json_schema!({
        "type": "string",
        "maxLength": 16,
        "x-kubernetes-validations": [{"rule": rule, "message": message, "reason": "FieldValueInvalid"}],
    })
}

/// Regular expression of a duration, as a CEL string. CEL can parse every duration that matches.
const DURATION_PATTERN: &str = r"'^([0-9]{1,9}([.][0-9]{1,9})?m?s|[0-9]{1,6}([.][0-9]{1,9})?[mh])+$'";

/// Returns a CEL rule: the field `longer` is at least the field `shorter`. It holds if either is not a duration, since
/// that field's own rule reports the error.
pub fn not_below(longer: &str, shorter: &str) -> String {
    format!(
        "!self.{longer}.matches({DURATION_PATTERN}) || !self.{shorter}.matches({DURATION_PATTERN}) \
         || duration(self.{longer}) >= duration(self.{shorter})"
    )
}

/// Returns the rules of a container's `resources`: no request exceeds its limit.
pub fn requests_within_limits() -> Value {
    let rule = |resource: &str| {
        format!(
            "!has(self.limits.{resource}) || !isQuantity(string(self.limits.{resource})) \
             || !isQuantity(string(self.requests.{resource})) \
             || quantity(string(self.requests.{resource})).compareTo(quantity(string(self.limits.{resource}))) <= 0"
        )
    };
    let message = |resource: &str| format!("requests.{resource} has to be at most limits.{resource}");
    json!([
        {"rule": rule("cpu"), "message": message("cpu"), "reason": "FieldValueInvalid"},
        {"rule": rule("memory"), "message": message("memory"), "reason": "FieldValueInvalid"},
    ])
}

/// Schema of `CaptureSpec::report_interval`.
pub fn report_interval(_: &mut SchemaGenerator) -> Schema {
    duration("reportInterval", "200ms", "60s", "1s")
}

/// Schema of `TopologySettings::counter_interval`.
pub fn counter_interval(_: &mut SchemaGenerator) -> Schema {
    duration("counterInterval", "1s", "1h", "30s")
}

/// Schema of `TopologySettings::retention`.
pub fn retention(_: &mut SchemaGenerator) -> Schema {
    duration("retention", "1m", "168h", "1h")
}

/// Schema of an amount of CPU or memory, as in a container's `resources`.
pub fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        // kube's default is true, but the Rust type cannot decode a null.
        "nullable": false,
        "maxLength": 32,
        "x-kubernetes-validations": [{
            "rule": "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
            "message": "has to be an amount that is not negative, for example 100m or 64Mi",
            "reason": "FieldValueInvalid",
        }],
    })
}

/// Schema of the CPU budget of Fallback mode.
pub fn cpu_budget(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": false,
        "maxLength": 32,
        "x-kubernetes-validations": [{
            "rule": "isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('5m')) >= 0 \
                     && quantity(string(self)).compareTo(quantity('2')) <= 0",
            "message": "cpuBudget has to be an amount of cores between 5m and 2, for example 50m",
            "reason": "FieldValueInvalid",
        }],
    })
}

/// Schema of at most 32 overrides.
pub fn mode_overrides(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": generator.subschema_for::<ModeOverride>(),
        "maxItems": 32,
        "x-kubernetes-list-type": "atomic",
    })
}

/// Returns the rule of an override: its `nodeSelector` is not empty.
pub fn selects_something() -> Value {
    json!([{
        "rule": "size(self.nodeSelector) > 0",
        "message": "an override has to name a label of its nodes in nodeSelector; for all nodes, set spec.mode",
        "reason": "FieldValueInvalid",
    }])
}

/// Rules of the union `TopologyPeer`: each type has its own fields and no others.
pub fn peer_rules() -> Value {
    let rule = |rule: &str, message: &str| json!({"rule": rule, "message": message, "reason": "FieldValueInvalid"});
    json!([
        rule(
            "has(self.apiVersion) == (self.type == 'Workload') && has(self.kind) == (self.type == 'Workload')",
            "a peer of type Workload has apiVersion and kind, and no other peer has them",
        ),
        rule(
            "has(self.__namespace__) == (self.type in ['Workload', 'Service'])",
            "a peer of type Workload or Service has a namespace, and no other peer has one",
        ),
        rule(
            "has(self.name) == (self.type in ['Workload', 'Service', 'Node', 'HostProcess', 'ExternalGroup', 'DNSName'])",
            "a peer of type Workload, Service, Node, HostProcess, ExternalGroup or DNSName has a name, and no other peer has one",
        ),
        rule(
            "has(self.node) == (self.type in ['HostProcess', 'External'])",
            "a peer of type HostProcess or External has a node, and no other peer has one",
        ),
        rule(
            "self.type == 'UnknownPod' ? has(self.ip) != has(self.uid) : has(self.ip) == (self.type == 'IP')",
            "a peer of type IP has an ip, one of type UnknownPod has either ip or uid, and no other peer has an ip",
        ),
        rule("!has(self.uid) || self.type == 'UnknownPod'", "only a peer of type UnknownPod has a uid",),
    ])
}

/// Schema of pod labels. The API server has validated them in the workload.
pub fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAX_LABELS,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

/// Schema of a label selector's requirements. The API server has validated them in the workload.
pub fn requirements(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_REQUIREMENTS,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["key", "operator"],
            "properties": {
                "key": {"type": "string", "maxLength": 317, "description": "Name of the label."},
                "operator": {
                    "type": "string",
                    "maxLength": 63,
                    "description": "Relation between the label and `values`.",
                },
                "values": {
                    "type": "array",
                    "description": "Values for `In` and `NotIn`.",
                    "maxItems": MAX_REQUIREMENT_VALUES,
                    "x-kubernetes-list-type": "atomic",
                    "items": {"type": "string", "maxLength": 63},
                },
            },
        },
    })
}

/// Schema of at most 64 groups, each name once.
pub fn external_groups(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": generator.subschema_for::<ExternalGroup>(),
        "maxItems": 64,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    })
}

/// Schema of `ExternalGroup::name`.
pub fn external_group_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "a group's name has to be lower-case letters, digits and dashes, with a letter or digit at both ends, for example payments",
            "reason": "FieldValueInvalid",
        }],
    })
}

/// Returns a CEL expression that is true of a range of addresses. CEL's own `isCIDR` is not in every supported version.
fn is_cidr() -> String {
    let byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    let v4 = format!("({byte}[.]){{3}}{byte}/(3[0-2]|[12]?[0-9])");
    // `before` parts before `::`, and at most `7 - before` parts after it.
    let part = "[0-9a-f]{1,4}";
    let shortened = (1..=6).map(|before| format!("({part}:){{1,{before}}}(:{part}){{1,{}}}", 7 - before));
    let whole = [format!("({part}:){{7}}{part}"), format!("({part}:){{1,7}}:"), format!(":((:{part}){{1,7}}|:)")];
    let v6 = whole.into_iter().chain(shortened).collect::<Vec<_>>().join("|");
    format!("self.matches('(?i)^({v4}|({v6})/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))$')")
}

/// Returns the rule of a group: it has at least one range of addresses or DNS name.
pub fn group_has_members() -> Value {
    json!([{
        "rule": "size(self.cidrs) + size(self.dnsNames) > 0",
        "message": "a group has to have at least one range in cidrs, for example 203.0.113.0/24, or one name in dnsNames, for example *.example.com",
        "reason": "FieldValueInvalid",
    }])
}

/// Schema of up to 64 DNS names or patterns.
pub fn dns_names(_: &mut SchemaGenerator) -> Schema {
    let rule = "self.matches('^([*][.])?[a-z0-9_]+(-+[a-z0-9_]+)*([.][a-z0-9_]+(-+[a-z0-9_]+)*)*$') \
                && !self.matches('^[0-9.]+$')";
    checked_strings(
        253,
        rule,
        "has to be a DNS name in lower case, for example api.example.com, or *.example.com for all names below it",
    )
}

/// Schema of a selector of namespaces by their labels.
pub fn namespace_selector(_: &mut SchemaGenerator) -> Schema {
    let key_message = "has to be a label's name, for example kubernetes.io/metadata.name";
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels with their values; a namespace needs all of them.",
                "maxProperties": 16,
                "additionalProperties": label_value(),
                "x-kubernetes-validations": [{
                    "rule": format!("self.all(key, {})", is_label_name("key")),
                    "message": format!("every key of matchLabels {key_message}"),
                    "reason": "FieldValueInvalid",
                }],
            },
            "matchExpressions": match_expressions("a namespace", "kubernetes.io/metadata.name"),
        },
    })
}

/// Returns the schema of requirements on labels.
fn match_expressions(subject: &str, example: &str) -> Value {
    json!({
        "type": "array",
        "description": format!("Requirements that {subject} has to meet as well; all of them."),
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "required": ["key", "operator"],
            "properties": {
                "key": {
                    "type": "string",
                    "description": "Name of the label.",
                    "maxLength": 317,
                    "x-kubernetes-validations": [{
                        "rule": is_label_name("self"),
                        "message": format!("key has to be a label's name, for example {example}"),
                        "reason": "FieldValueInvalid",
                    }],
                },
                "operator": {
                    "type": "string",
                    "description": "Relation between the label and `values`.",
                    "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                },
                "values": {
                    "type": "array",
                    "description": "Values for `In` and `NotIn`.",
                    "maxItems": 32,
                    "x-kubernetes-list-type": "atomic",
                    "items": label_value(),
                },
            },
            "x-kubernetes-validations": [{
                "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                "message": "In and NotIn need values, Exists and DoesNotExist have none",
                "reason": "FieldValueInvalid",
            }],
        },
    })
}

/// Schema of `NodeAffinity::match_expressions`.
pub fn node_requirements(_: &mut SchemaGenerator) -> Schema {
    let mut schema = match_expressions("a node", "kubernetes.io/os");
    schema["description"] =
        json!("Requirements that a node has to meet; all of them. An empty list includes virtual nodes.");
    // The operator sets these labels on the nodes that it selects, so selecting by them would be circular.
    schema["x-kubernetes-validations"] = json!([{
        "rule": "self.all(requirement, !requirement.key.startsWith('scopeprobe.io/'))",
        "message": "nodeAffinity cannot name labels of scopeprobe.io/, which the operator sets by what it selects: name another label",
        "reason": "FieldValueInvalid",
    }]);
    Schema::try_from(schema).unwrap_or_default()
}

fn label_value() -> Value {
    json!({"type": "string", "maxLength": 63, "pattern": LABEL_VALUE_PATTERN})
}

const LABEL_VALUE_PATTERN: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// Returns a CEL expression that is true of a label's name.
fn is_label_name(text: &str) -> String {
    format!(
        "size({text}) <= 317 && {text}.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$')"
    )
}

/// Schema of up to 64 ranges of addresses.
pub fn cidrs(_: &mut SchemaGenerator) -> Schema {
    checked_strings(
        43,
        &is_cidr(),
        "has to be a range of addresses in CIDR notation, for example 203.0.113.0/24 or 2001:db8::/32; a single address ends with /32 or, for IPv6, /128",
    )
}

/// Schema of up to 64 strings, each of which satisfies a rule.
fn checked_strings(max_length: u32, rule: &str, message: &str) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "maxLength": max_length,
            "x-kubernetes-validations": [{"rule": rule, "message": message, "reason": "FieldValueInvalid"}],
        },
    })
}

/// Schema of at most ten changes, the newest last.
pub fn history(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": generator.subschema_for::<ModeChange>(),
        "maxItems": MAX_HISTORY,
        "x-kubernetes-list-type": "atomic",
    })
}

/// Schema of at most 128 periods, oldest first.
pub fn periods(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": generator.subschema_for::<CoveragePeriod>(),
        "maxItems": MAX_PERIODS,
        "x-kubernetes-list-type": "atomic",
    })
}

/// Schema of the labels that select nodes.
pub fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": LABEL_VALUE_PATTERN,
        },
        "x-kubernetes-validations": [{
            "rule": format!("self.all(key, {})", is_label_name("key")),
            "message": "every key of nodeSelector has to be a label's name, for example kubernetes.io/os",
            "reason": "FieldValueInvalid",
        }, {
            // The operator sets these labels on the nodes that it selects, so selecting by them would be circular.
            "rule": "self.all(key, !key.startsWith('scopeprobe.io/'))",
            "message": "nodeSelector cannot name labels of scopeprobe.io/, which the operator sets by what it selects: name another label",
            "reason": "FieldValueInvalid",
        }],
    })
}

/// Schema of at most 16 tolerations.
pub fn tolerations(_: &mut SchemaGenerator) -> Schema {
    let text = |description: &str| json!({"type": "string", "maxLength": 317, "description": description});
    let choice =
        |values: &[&str], description: &str| json!({"type": "string", "enum": values, "description": description});
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "properties": {
                "key": text("Key of the taint."),
                "operator": choice(&["Exists", "Equal"], "Relation between the taint's value and `value`; `Equal` by default."),
                "value": text("Value of the taint."),
                "effect": choice(
                    &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    "Effect of the taint; all effects by default.",
                ),
                "tolerationSeconds": {
                    "type": "integer",
                    "format": "int64",
                    "description": "Time for which an agent stays on a node with a taint of effect NoExecute; without limit by default.",
                },
            },
            "x-kubernetes-validations": [{
                "rule": "has(self.key) && self.key != '' || has(self.operator) && self.operator == 'Exists'",
                "message": "a toleration without a key tolerates everything: say so with `operator: Exists`, or name a key",
                "reason": "FieldValueInvalid",
            }],
        },
    })
}
