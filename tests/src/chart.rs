//! The chart, installed with Helm once per cluster.

use std::{env, fs, path::Path};

use crate::{Cluster, Error, Result, place};

/// The release's name.
pub const RELEASE: &str = "scopeprobe";
/// The namespace of operator and agents.
pub const NAMESPACE: &str = "scopeprobe-system";

/// Deployment of an operator in another namespace, under another name.
pub const OTHER_OPERATOR: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: elsewhere}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: another, namespace: elsewhere, labels: {app.kubernetes.io/name: scopeprobe-operator}}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: operator, image: none}]}}
";

/// The operator's intervals in tests: what a cluster repeats every few minutes happens several times in a test, and no
/// test waits for what agents read twice a minute.
const INTERVALS: [(&str, &str); 2] = [("SCOPEPROBE_AGENT_SCAN_INTERVAL", "2s"), ("SCOPEPROBE_RESYNC_INTERVAL", "10s")];

/// Variable that leaves the intervals as the chart has them.
const SHIPPED_INTERVALS: &str = "SCOPEPROBE_TEST_SHIPPED_INTERVALS";

impl Cluster {
    /// Installs the chart with the tests' intervals, or brings what is installed up to date; waits until the operator is
    /// ready. `values` are those of `helm --set`. Where the images have changed since, what runs is uninstalled first.
    ///
    /// # Errors
    /// Helm's, with what it printed.
    pub async fn install_chart(&self, values: &[&str]) -> Result<()> {
        if env::var_os(SHIPPED_INTERVALS).is_some() {
            return self.install_chart_as_shipped(values).await;
        }
        let intervals = INTERVALS.iter().enumerate().flat_map(|(index, (name, value))| {
            let variable = format!("operator.extraEnv[{index}]");
            [format!("{variable}.name={name}"), format!("{variable}.value={value}")]
        });
        let all: Vec<String> = intervals.chain(values.iter().map(|value| (*value).to_owned())).collect();
        self.install_chart_as_shipped(&all.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// As [`Cluster::install_chart`], with the intervals that the chart has.
    ///
    /// # Errors
    /// Helm's, with what it printed.
    pub async fn install_chart_as_shipped(&self, values: &[&str]) -> Result<()> {
        place::run(&place::script("setup"), ["helm"], &[]).await?;
        let images = self.state().ok().and_then(|state| fs::read_to_string(state.join("images")).ok());
        let record = self.state().ok().map(|state| state.join("chart-images"));
        let installed = record.as_ref().and_then(|record| fs::read_to_string(record).ok());
        if installed.is_some() && installed != images {
            self.uninstall_chart().await?;
        }
        let chart = place::repository().join("charts/scopeprobe");
        let chart = chart.to_string_lossy();
        let mut arguments = vec!["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE];
        arguments.extend(["--create-namespace", "--wait", "--timeout", "3m"]);
        for value in values {
            arguments.extend(["--set", value]);
        }
        if let Err(error) = self.helm(&arguments).await {
            eprintln!("{}", self.why_not_ready().await);
            return Err(error);
        }
        if let (Some(record), Some(images)) = (record, images) {
            fs::write(&record, images).map_err(Error::io(format!("write {}", record.display())))?;
        }
        Ok(())
    }

    /// Returns the nodes, and the pods of operator and agents with their events: Helm reports only that time is up.
    async fn why_not_ready(&self) -> String {
        let namespace = format!("--namespace={NAMESPACE}");
        let mut text = String::new();
        for arguments in [["describe", "nodes", "--show-events=false"], ["describe", "pods", &namespace]] {
            text += &self.kubectl(&arguments).await.unwrap_or_else(|error| error.to_string());
        }
        text
    }

    /// Uninstalls the chart and waits until it is gone.
    ///
    /// # Errors
    /// Helm's, with what it printed.
    pub async fn uninstall_chart(&self) -> Result<()> {
        let arguments =
            ["uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "3m"];
        self.helm(&arguments).await?;
        Ok(())
    }

    /// Runs Helm and returns what it prints.
    ///
    /// # Errors
    /// Returns an error with the output if it fails.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let variables: [(&str, &Path); 1] = [("KUBECONFIG", self.kubeconfig())];
        place::run(&place::tool("helm"), arguments, &variables).await
    }
}
