//! An API server with the chart, and a client with a token of the operator's account.

use std::fs;

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use operator::{
    rollout::{
        build::{self, AgentTemplate},
        mode::AgentMode,
        validate::ValidProbe,
    },
    settings::{Cli, Command, Settings},
};
use scopeprobe_tests::{ControlPlane, Error, Result, chart, eventually, manifest, place};
use serde_json::{Value, json};

pub struct World {
    pub control_plane: ControlPlane,
    /// The operator's account.
    pub operator: Client,
    settings: Settings,
}

impl World {
    /// Starts an API server, installs the chart and waits until its policies are in force.
    pub async fn new() -> Result<Self> {
        place::run(&place::script("setup"), ["helm"], &[]).await?;
        let control_plane = ControlPlane::start().await?;
        let namespaces = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}\n---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: kube-system}}}}",
            chart::NAMESPACE
        );
        manifest::apply(&control_plane.client, "", &namespaces).await?;
        let rendered = rendered().await?;
        let folder = tempfile::tempdir().map_err(Error::io("make a folder for a rendering"))?;
        let file = folder.path().join("rendered.yaml");
        fs::write(&file, &rendered).map_err(Error::io("write a rendering"))?;
        let file = file.to_string_lossy();
        let variables = [("KUBECONFIG", control_plane.kubeconfig())];
        let apply = ["apply", "--server-side", "--filename", &file];
        place::run(&place::tool("kubectl"), apply, &variables).await?;
        let operator = as_operator(&control_plane).await?;
        let world = Self { control_plane, operator, settings: settings(&rendered)? };
        world.policies_are_in_force().await?;
        Ok(world)
    }

    /// The DaemonSet of a ScopeProbe with all options, as the operator makes it with the chart's values.
    pub fn daemon_set(&self, mode: AgentMode) -> Result<Value> {
        let probe = json!({
            "metadata": {"name": "cluster"},
            "spec": {
                "topology": {"dnsNames": true},
                "capture": {"maxFlows": 64, "reportInterval": "1m30s", "fallback": {"cpuBudget": "0.25"}},
                "agent": {
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    "tolerations": [{"key": "a", "operator": "Exists"}],
                },
            },
        });
        let unexpected = |error: &dyn std::error::Error| Error::Unexpected(error.to_string());
        let probe: crds::ScopeProbe = serde_json::from_value(probe).map_err(|error| unexpected(&error))?;
        let probe = ValidProbe::try_from(&probe).map_err(|error| unexpected(&error))?;
        let template = AgentTemplate {
            namespace: chart::NAMESPACE,
            collector_url: "https://10.96.0.7:9463",
            owner: None,
            settings: &self.settings.agents,
        };
        let built = build::daemon_set(&probe, mode, &template);
        let mut built = serde_json::to_value(built.object()).map_err(|error| unexpected(&error))?;
        built["apiVersion"] = json!("apps/v1");
        built["kind"] = json!("DaemonSet");
        Ok(built)
    }

    /// The API server compiles policies a moment after they are written: each is tried with a harmful request.
    async fn policies_are_in_force(&self) -> Result<()> {
        let node = "{apiVersion: v1, kind: Node, metadata: {name: harmless}}";
        manifest::apply(&self.control_plane.client, "", node).await?;
        eventually("the policies to be in force", async || {
            let mut harmful = self.daemon_set(AgentMode::Ebpf).map_err(|error| error.to_string())?;
            harmful["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other"}});
            let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
            let dry = PatchParams { dry_run: true, ..PatchParams::default() };
            let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(self.operator.clone());
            let answers = [
                super::apply_daemon_set(self, &harmful, true).await.map(|_| ()),
                super::create(self, secret).await,
                nodes.patch("harmless", &dry, &cordon).await.map(|_| ()),
            ];
            if answers.iter().all(is_denied) { Ok(()) } else { Err(format!("{answers:?}")) }
        })
        .await
    }
}

fn is_denied(answer: &kube::Result<()>) -> bool {
    answer.as_ref().is_err_and(|error| error.to_string().contains("ValidatingAdmissionPolicy"))
}

/// Returns what is wrong with an answer that should be a refusal with these words.
pub fn not_refused<T>(what: &str, answer: kube::Result<T>, words: &str) -> Option<String> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains(words) => None,
        Err(error) => Some(format!("{what}: {error}")),
        Ok(_) => Some(format!("{what}: it was accepted")),
    }
}

/// Asserts that a request was refused with these words.
pub fn assert_refused<T>(what: &str, answer: kube::Result<T>, words: &str) {
    assert_eq!(not_refused(what, answer, words), None);
}

async fn rendered() -> Result<String> {
    let path = place::repository().join("charts/scopeprobe");
    let arguments = ["template", chart::RELEASE, &path.to_string_lossy(), "--namespace", chart::NAMESPACE];
    let values = ["--set", "imagePullSecrets={one,two}"];
    place::run(&place::tool("helm"), arguments.into_iter().chain(values), &[]).await
}

/// The operator's settings with the variables that the chart gives it.
fn settings(rendered: &str) -> Result<Settings> {
    let mut arguments = vec!["scopeprobe-operator".to_owned(), "run".to_owned()];
    arguments.extend(["--namespace", chart::NAMESPACE, "--identity", "operator-1"].map(str::to_owned));
    let mut name = "";
    for line in rendered.lines().map(str::trim) {
        if let Some(variable) = line.strip_prefix("- name: SCOPEPROBE_") {
            name = variable;
        } else if let (Some(value), false) = (line.strip_prefix("value: "), name.is_empty()) {
            let flag = name.to_lowercase().replace('_', "-");
            arguments.push(format!("--{flag}={}", value.trim_matches('"')));
            name = "";
        }
    }
    match <Cli as clap::Parser>::try_parse_from(arguments) {
        Ok(Cli { command: Command::Run(settings), .. }) => Ok(*settings),
        Ok(_) => Err(Error::Unexpected("another command".to_owned())),
        Err(error) => Err(Error::Unexpected(error.to_string())),
    }
}

/// Returns a client with a token of the operator's account.
async fn as_operator(control_plane: &ControlPlane) -> Result<Client> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client.clone(), chart::NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec { audiences: Vec::new(), bound_object_ref: None, expiration_seconds: Some(3600) },
        ..TokenRequest::default()
    };
    let account = format!("{}-operator", chart::RELEASE);
    let issued = accounts.create_token_request(&account, &PostParams::default(), &request).await;
    let token = issued.map_err(Error::api("request a token"))?.status.map(|status| status.token);
    let unusable = |error: &dyn std::error::Error| Error::Unexpected(error.to_string());
    let parsed = Kubeconfig::read_from(control_plane.kubeconfig()).map_err(|error| unusable(&error))?;
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| unusable(&error))?;
    config.auth_info.token = token.map(Into::into);
    Client::try_from(config).map_err(|error| unusable(&error))
}
