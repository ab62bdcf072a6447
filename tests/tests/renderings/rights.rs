//! The rights of the chart, and of the docs.

use std::fs;

use scopeprobe_tests::{Result, chart, place};
use serde_yaml::Value;

use crate::helm::{documents, helm_is_there, rendered, text};

/// Each rule of the documents as a row of docs/privileges.md begins.
fn rows_of(documents: &[Value]) -> Vec<String> {
    let words = |value: &Value, key: &str| -> Vec<String> {
        let words = value.get(key).and_then(Value::as_sequence).into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rows = Vec::new();
    for document in documents {
        let place = match (text(document, &["kind"]), text(document, &["metadata", "namespace"])) {
            ("Role", chart::NAMESPACE) => "own namespace".to_owned(),
            ("Role", namespace) => format!("`{namespace}`"),
            _ => "cluster".to_owned(),
        };
        for rule in document.get("rules").and_then(Value::as_sequence).into_iter().flatten() {
            let group = match words(rule, "apiGroups").concat().as_str() {
                "" => "core".to_owned(),
                group => format!("`{group}`"),
            };
            let resources: Vec<_> = words(rule, "resources").iter().map(|it| format!("`{it}`")).collect();
            rows.push(format!(
                "| {group} | {} | {} | {place} |",
                resources.join(", "),
                words(rule, "verbs").join(", ")
            ));
        }
    }
    rows.sort();
    rows
}

fn documented(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(place::repository().join("docs/privileges.md")).unwrap_or_default();
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| API group"));
    let mut rows: Vec<_> = rows.map(|row| row.splitn(6, '|').take(5).collect::<Vec<_>>().join("|") + "|").collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn the_docs_list_every_right() -> Result<()> {
    helm_is_there().await?;
    let all = documents(&rendered(chart::RELEASE, &[], &[]).await?.yaml)?;
    let is_for_people = |document: &Value| text(document, &["metadata", "name"]).ends_with("-reader");
    let (people, operator): (Vec<_>, Vec<_>) = all.into_iter().partition(is_for_people);
    assert_eq!(documented("Operator"), rows_of(&operator));
    assert_eq!(documented("Roles for people"), rows_of(&people));

    // Only Helm renders the Job's.
    let path = place::repository().join("charts/scopeprobe/templates/prune.yaml");
    let template = fs::read_to_string(path).unwrap_or_default();
    let roles = template.split("\n---\n").filter_map(|object| {
        let (head, rules) = object.split_once("\nrules:\n")?;
        let kind = if head.contains("kind: ClusterRole\n") { "ClusterRole" } else { "Role" };
        let namespace = head.lines().find_map(|line| line.strip_prefix("  namespace: ")).unwrap_or_default();
        Some(format!("kind: {kind}\nmetadata: {{namespace: '{namespace}'}}\nrules:\n{rules}\n---\n"))
    });
    assert_eq!(documented("Job after an uninstallation"), rows_of(&documents(&roles.collect::<String>())?));
    Ok(())
}
