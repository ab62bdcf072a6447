//! The reference of all fields, made from the same schemas that the API server checks objects with.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

use crate::manifests;

/// Where the reference lives, below the repository's root.
pub const PATH: &str = "docs/api.md";

const INTRODUCTION: &str = "\
# The API: `scopeprobe.io/v1alpha1`

Written by `cargo run -p scopeprobe-crds --bin crdgen` from the types in `crds/`; do not edit.

Durations are written as Go does (`500ms`, `30s`, `1h30m`). Counters only grow, apart from those that say what is so
now. A list in `status` that has a limit says next to it how much it leaves out.
";

/// The page.
///
/// # Errors
/// Never, short of a defect of `fmt::Write for String`.
pub fn markdown() -> Result<String, std::fmt::Error> {
    let mut page = INTRODUCTION.to_owned();
    for crd in manifests::all() {
        kind(&mut page, &crd)?;
    }
    Ok(page)
}

fn kind(page: &mut String, crd: &CustomResourceDefinition) -> std::fmt::Result {
    let names = &crd.spec.names;
    let scope = if crd.spec.scope == "Namespaced" { "namespaced" } else { "cluster-scoped" };
    let short = names.short_names.as_deref().unwrap_or_default().join("`, `");
    writeln!(page, "\n## {}\n", names.kind)?;
    for version in &crd.spec.versions {
        let Some(schema) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else {
            continue;
        };
        writeln!(page, "{}\n", schema.description.as_deref().unwrap_or_default())?;
        writeln!(
            page,
            "`kubectl get {}.{}`, short `{short}`, {scope}.\n",
            names.singular.as_deref().unwrap_or(&names.plural),
            crd.spec.group
        )?;
        rules(page, schema)?;
        writeln!(page, "| Field | Type | Default | Meaning |\n|---|---|---|---|")?;
        for part in ["spec", "status"] {
            if let Some(schema) = schema.properties.as_ref().and_then(|properties| properties.get(part)) {
                field(page, part, schema)?;
            }
        }
    }
    Ok(())
}

/// The rules of an object as a whole; those of single fields stand with their fields.
fn rules(page: &mut String, schema: &JSONSchemaProps) -> std::fmt::Result {
    let spec = schema.properties.as_ref().and_then(|properties| properties.get("spec"));
    let rules =
        [Some(schema), spec].into_iter().flatten().flat_map(|part| part.x_kubernetes_validations.iter().flatten());
    let messages: Vec<_> = rules.filter_map(|rule| rule.message.as_deref()).collect();
    for message in &messages {
        writeln!(page, "- {message}.")?;
    }
    if messages.is_empty() { Ok(()) } else { writeln!(page) }
}

fn field(page: &mut String, path: &str, schema: &JSONSchemaProps) -> std::fmt::Result {
    let default = schema.default.as_ref().filter(|_| is_leaf(schema)).map_or_else(String::new, |default| {
        format!("`{}`", serde_json::to_string(&default.0).unwrap_or_default().replace('|', "\\|"))
    });
    writeln!(page, "| `{path}` | {} | {default} | {} |", kind_of_value(schema), meaning(schema))?;
    if is_conditions(schema) {
        return Ok(());
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        fields(page, &format!("{path}[]"), item)
    } else {
        fields(page, path, schema)
    }
}

fn fields(page: &mut String, path: &str, schema: &JSONSchemaProps) -> std::fmt::Result {
    for (name, property) in schema.properties.iter().flatten() {
        field(page, &format!("{path}.{name}"), property)?;
    }
    Ok(())
}

/// Conditions are Kubernetes' own type, which needs no table here.
fn is_conditions(schema: &JSONSchemaProps) -> bool {
    schema.x_kubernetes_list_map_keys.as_deref() == Some(&["type".to_owned()])
}

/// Whether the default of the field says more than those of its own fields.
fn is_leaf(schema: &JSONSchemaProps) -> bool {
    schema.properties.as_ref().is_none_or(BTreeMap::is_empty)
}

fn kind_of_value(schema: &JSONSchemaProps) -> String {
    if let Some(values) = &schema.enum_ {
        let values: Vec<_> = values.iter().map(|value| value.0.as_str().unwrap_or_default().to_owned()).collect();
        return values.join(", ");
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "quantity".to_owned();
    }
    if is_conditions(schema) {
        return "conditions".to_owned();
    }
    let name = match (schema.type_.as_deref(), schema.additional_properties.is_some()) {
        (Some("object"), true) => "map",
        (Some("array"), _) => "list",
        (Some("string"), _) if is_duration(schema) => "duration",
        (Some("string"), _) if schema.format.as_deref() == Some("date-time") => "time",
        (Some(name), _) => name,
        (None, _) => "any",
    };
    name.to_owned() + &bounds(schema)
}

fn is_duration(schema: &JSONSchemaProps) -> bool {
    schema.x_kubernetes_validations.iter().flatten().any(|rule| rule.rule.contains("duration(self)"))
}

fn bounds(schema: &JSONSchemaProps) -> String {
    match (schema.minimum, schema.maximum) {
        (Some(minimum), Some(maximum)) => format!(" {minimum}…{maximum}"),
        _ => schema.max_items.or(schema.max_properties).map_or_else(String::new, |most| format!(", at most {most}")),
    }
}

fn meaning(schema: &JSONSchemaProps) -> String {
    let text = schema.description.as_deref().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let rules = schema.x_kubernetes_validations.iter().flatten().filter(|_| is_duration(schema));
    let messages = rules.filter_map(|rule| rule.message.as_deref());
    messages.fold(text, |text, message| text + " Rule: " + message + ".").replace('|', "\\|")
}
