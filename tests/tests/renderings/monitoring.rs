//! The rules and the dashboard: each metric and label in them exists, and the rules alert as they should.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path, sync::Arc, time::SystemTime};

use operator::{
    edge_metrics::SeriesBook,
    metrics::{LossLabels, Metrics, WindowLabels},
    settings::{EdgeMetricsLevel, EdgeMetricsSettings},
};
use scopeprobe_tests::{Error, Result, place};
use serde_json::Value as Json;
use serde_yaml::Value;
use topology::{
    edge::{Edge, EdgeCounters, EdgeKey, Peer},
    entity::{ServicePortRef, ServiceRef, Workload},
    examples,
    flow::Protocol,
};

use crate::helm::{documents, text};

fn read(path: &str) -> Result<String> {
    fs::read_to_string(place::repository().join(path)).map_err(Error::io(format!("read {path}")))
}

fn edge() -> Arc<Edge> {
    let workload = |name: &str| {
        let [namespace, kind, name, group] = ["shop", "Deployment", name, "apps"].map(str::to_owned);
        Peer::Workload(Workload { namespace, kind, name, group })
    };
    let service = ServiceRef { namespace: "shop".to_owned(), name: "redis".to_owned() };
    let key = EdgeKey {
        client: workload("cart"),
        server: workload("redis"),
        service: Some(ServicePortRef { service, port: 6379 }),
        port: Some(6379),
        protocol: Protocol::Tcp,
    };
    let counters = EdgeCounters { opened: 1, ..EdgeCounters::default() };
    Arc::new(Edge { knows_retransmits: true, ..examples::edge(key, counters) })
}

/// A page of the operator with a sample of every metric.
fn page() -> Result<String> {
    let metrics = Metrics::default();
    metrics.write("Topology", "done");
    metrics.losses.get_or_create(&LossLabels { kind: "opened" }).set(3);
    metrics.coverage.get_or_create(&WindowLabels { window: "hour" }).set(0.5);
    metrics.count_nodes([("Fallback", "KernelTooOld")].into_iter());
    metrics.count_conditions([("Ready", "True")].into_iter());
    let settings = EdgeMetricsSettings { level: EdgeMetricsLevel::Workload, max_series: 10 };
    let series = SeriesBook::new(settings).map(|mut book| book.follow([edge()].iter(), SystemTime::UNIX_EPOCH, true));
    metrics.show_edges(series.map(Arc::new));
    metrics.encode().map_err(|error| Error::Unexpected(format!("the page is not text: {error}")))
}

/// Words of a text that are names in queries.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_' || character == ':'))
}

fn metrics_of(text: &str) -> BTreeSet<&str> {
    words(text).filter(|word| word.starts_with("scopeprobe_") || word.starts_with("scopeprobe:")).collect()
}

fn labels_of(text: &str) -> BTreeSet<&str> {
    words(text).filter(|word| word.starts_with("source_") || word.starts_with("destination_")).collect()
}

/// Expressions, and texts with labels, of a rule file.
fn rules() -> Result<(Vec<String>, BTreeSet<String>)> {
    let rules = documents(&read("charts/scopeprobe/files/rules.yaml")?)?;
    let groups = rules[0]["groups"].as_sequence().cloned().unwrap_or_default();
    let all: Vec<Value> = groups.iter().filter_map(|group| group["rules"].as_sequence().cloned()).flatten().collect();
    assert!(all.len() > 10, "only {} rules", all.len());
    let mut texts = Vec::new();
    for rule in &all {
        for path in [&["expr"][..], &["annotations", "summary"], &["annotations", "description"]] {
            texts.push(text(rule, path).to_owned());
        }
    }
    let records = all.iter().map(|rule| text(rule, &["record"]).to_owned()).filter(|name| !name.is_empty());
    Ok((texts, records.collect()))
}

/// Builds promtool where it is missing, and runs it.
async fn promtool(words: &[&str], file: &Path) -> Result<String> {
    if !place::tool("promtool").exists() {
        place::run(&place::script("setup"), ["promtool"], &[]).await?;
    }
    let arguments = words.iter().map(std::ffi::OsStr::new).chain([file.as_os_str()]);
    place::run(&place::tool("promtool"), arguments, &[]).await
}

/// Texts of the dashboard under any of these keys.
fn dashboard(keys: &[&str]) -> Result<Vec<String>> {
    fn collect(value: &Json, keys: &[&str], key: &str, found: &mut Vec<String>) {
        match value {
            Json::String(text) if keys.contains(&key) => found.push(text.clone()),
            Json::Object(fields) => fields.iter().for_each(|(key, value)| collect(value, keys, key, found)),
            Json::Array(values) => values.iter().for_each(|value| collect(value, keys, key, found)),
            _ => {}
        }
    }
    let dashboard: Json = serde_json::from_str(&read("charts/scopeprobe/files/dashboard.json")?)
        .map_err(|error| Error::Unexpected(format!("the dashboard is not JSON: {error}")))?;
    let mut found = Vec::new();
    collect(&dashboard, keys, "", &mut found);
    assert!(found.len() > 20, "only {} texts", found.len());
    Ok(found)
}

#[test]
fn rules_and_dashboard_use_metrics_that_exist() -> Result<()> {
    let page = page()?;
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let exported: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    let labels = labels_of(&page);
    let (mut texts, records) = rules()?;
    texts.extend(dashboard(&["expr", "legendFormat", "query"])?);
    // The agent's page needs a capture.
    let agent = read("node-agent/src/endpoints.rs")?;
    let is_of_agent =
        |name: &str| name.strip_prefix("scopeprobe_agent_").is_some_and(|name| agent.contains(&format!("\"{name}\"")));
    for text in &texts {
        for name in metrics_of(text) {
            assert!(exported.contains(name) || records.contains(name) || is_of_agent(name), "no metric {name}: {text}");
        }
        for label in labels_of(text) {
            assert!(labels.contains(label), "no label {label}: {text}");
        }
    }
    Ok(())
}

#[test]
fn page_of_docs_names_every_metric() -> Result<()> {
    let docs = read("docs/metrics.md")?;
    // Every second part is code; a block of code begins and ends with three of these marks.
    let code = docs.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = code.filter_map(|code| code.split('{').next()).collect();
    let page = page()?;
    let described: Vec<(&str, &str)> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert!(described.len() > 30, "{described:?}");
    for (name, kind) in described {
        let name = name.strip_prefix("scopeprobe_operator_").unwrap_or(name);
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        assert!(named.contains(name.as_str()), "docs/metrics.md lacks {name}");
    }
    Ok(())
}

/// `promtool` evaluates the rules over series of tests/rules/alerts.yaml.
#[tokio::test]
async fn rules_alert_as_their_tests_say() -> Result<()> {
    let repository = place::repository();
    promtool(&["check", "rules", "--lint-fatal"], &repository.join("charts/scopeprobe/files/rules.yaml")).await?;
    promtool(&["test", "rules"], &repository.join("tests/rules/alerts.yaml")).await?;
    Ok(())
}

/// Alerts that a file of tests expects to fire.
fn fired_in(file: &Value) -> BTreeSet<String> {
    fn all<'a>(values: impl IntoIterator<Item = &'a Value>, key: &str) -> Vec<&'a Value> {
        values.into_iter().filter_map(|value| value[key].as_sequence()).flatten().collect()
    }
    let tests = all([file], "tests");
    let by_rule = all(tests.iter().copied(), "alert_rule_test").into_iter();
    let by_rule = by_rule.filter(|test| test["exp_alerts"].as_sequence().is_some_and(|alerts| !alerts.is_empty()));
    let by_rule = by_rule.map(|test| text(test, &["alertname"]).to_owned());
    let samples = all(all(tests.iter().copied(), "promql_expr_test"), "exp_samples").into_iter();
    let by_sample = samples.filter_map(|sample| {
        let (_, rest) = text(sample, &["labels"]).split_once("alertname=\"")?;
        rest.split('"').next().map(str::to_owned)
    });
    by_rule.chain(by_sample).collect()
}

#[test]
fn every_alert_has_a_test() -> Result<()> {
    let tests = documents(&read("tests/rules/alerts.yaml")?)?;
    let fired = fired_in(&tests[0]);
    let rules = documents(&read("charts/scopeprobe/files/rules.yaml")?)?;
    let groups = rules[0]["groups"].as_sequence().cloned().unwrap_or_default();
    let rules = groups.iter().filter_map(|group| group["rules"].as_sequence()).flatten();
    let alerts: Vec<_> = rules.map(|rule| text(rule, &["alert"])).filter(|alert| !alert.is_empty()).collect();
    assert!(alerts.len() > 5, "only {alerts:?}");
    for alert in alerts {
        assert!(fired.contains(alert), "no test of tests/rules/alerts.yaml has {alert} fire");
    }
    Ok(())
}

/// Returns the first query of a panel, with values in the place of Grafana's variables.
fn query_of_panel(title: &str) -> Result<String> {
    let missing = |_| Error::Unexpected("the dashboard is not JSON".to_owned());
    let dashboard: Json = serde_json::from_str(&read("charts/scopeprobe/files/dashboard.json")?).map_err(missing)?;
    let panels = dashboard["panels"].as_array().cloned().unwrap_or_default();
    let panel = panels.iter().find(|panel| panel["title"] == title);
    let query = panel.and_then(|panel| panel["targets"][0]["expr"].as_str());
    let query = query.ok_or_else(|| Error::Unexpected(format!("the dashboard has no query in {title}")))?;
    Ok(query.replace("$__range", "15m").replace("$namespace", ".*"))
}

/// The operator `b` has the lease; `a` had it before. `cart` has called a destination once.
#[tokio::test]
async fn panels_count_the_leader_alone_and_single_calls() -> Result<()> {
    let call = "source_namespace=\"shop\",source_workload=\"cart\",destination_kind=\"DNSName\",\
                destination_workload=\"a.example\"";
    let series = |metric: &str, labels: &str, values: &str| serde_json::json!({"series": format!("scopeprobe_{metric}{{{labels}}}"), "values": values});
    let of = |instance: &str, metric: &str, labels: &str, values: &str| {
        series(&format!("operator_{metric}"), &format!("job=\"m\",instance=\"{instance}\"{labels}"), values)
    };
    let nodes = ",mode=\"Fallback\",reason=\"KernelTooOld\"";
    let losses = ",kind=\"opened\"";
    let input = [
        of("a", "leader", "", "0x20"),
        of("b", "leader", "", "1x20"),
        of("a", "nodes", nodes, "3x20"),
        of("b", "nodes", nodes, "4x20"),
        of("a", "agent_losses", losses, "0+60x20"),
        of("b", "agent_losses", losses, "0+30x20"),
        series("connections_opened_total", call, "_x10 1x10"),
    ];
    let mut tests = Vec::new();
    for (title, labels, value) in [
        ("Nodes by capture", nodes.trim_start_matches(','), 4),
        ("Losses", losses.trim_start_matches(','), 150),
        ("Calls to destinations outside", call, 0),
    ] {
        let samples = [serde_json::json!({"labels": format!("{{{labels}}}"), "value": value})];
        tests.push(serde_json::json!({"expr": query_of_panel(title)?, "eval_time": "18m", "exp_samples": samples}));
    }
    let test = serde_json::json!({"interval": "1m", "input_series": input, "promql_expr_test": tests});
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for promtool"))?;
    let file = folder.path().join("dashboard.yaml");
    // JSON is YAML.
    fs::write(&file, serde_json::json!({"tests": [test]}).to_string()).map_err(Error::io("write dashboard.yaml"))?;
    promtool(&["test", "rules"], &file).await?;
    Ok(())
}

/// Queries of the dashboard parse, with values in the place of Grafana's variables.
#[tokio::test]
async fn queries_of_the_dashboard_are_valid() -> Result<()> {
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, expression) in dashboard(&["expr"])?.iter().enumerate() {
        let expression =
            expression.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$namespace", ".*");
        assert!(!expression.contains('$'), "unknown variable: {expression}");
        let expression = serde_json::Value::from(expression);
        // JSON's texts are YAML's. Writing to a String does not fail.
        let _ = writeln!(rules, "  - {{record: 'dashboard:{number}', expr: {expression}}}");
    }
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for promtool"))?;
    let file = folder.path().join("rules.yaml");
    fs::write(&file, rules).map_err(Error::io("write rules.yaml"))?;
    promtool(&["check", "rules"], &file).await?;
    Ok(())
}
