//! Reads objects from a cluster, files or standard input.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use crds::Topology;
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use view::{Map, filter::Filter, read};

/// Objects of one answer of the API server.
const PAGE: u32 = 200;

/// Source of objects: a cluster, or files.
#[derive(Debug, Args)]
pub struct Source {
    /// Files instead of a cluster: Topology objects or lists, as JSON or YAML, or a map that `graph -o json` has written. `-`
    /// is standard input. All files are of one cluster.
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Namespace whose objects are read. The default is that of the context. Of files, edges of this namespace are selected.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Read the objects of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "file")]
    all_namespaces: bool,
    /// Label selector of the objects.
    #[arg(short = 'l', long, conflicts_with = "file")]
    selector: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, conflicts_with = "file")]
    context: Option<String>,
    /// Path of the kubeconfig.
    #[arg(long, conflicts_with = "file")]
    kubeconfig: Option<PathBuf>,
    /// User on whose behalf objects are read.
    #[arg(long = "as", value_name = "USER", conflicts_with = "file")]
    impersonate: Option<String>,
}

impl Source {
    /// Reads the objects.
    ///
    /// # Errors
    /// Returns an error if they cannot be read, with the right that is missing.
    pub async fn read(&self) -> Result<Map> {
        if self.file.is_empty() {
            return self.cluster().await;
        }
        let mut edges = Vec::new();
        let mut caveats = Vec::new();
        for path in &self.file {
            let map = file(path)?;
            edges.extend(map.edges);
            caveats.extend(map.caveats);
        }
        let namespaces: BTreeSet<String> = self.namespace.iter().cloned().collect();
        Ok(Filter { namespaces, ..Filter::default() }.apply(Map::joined(edges, caveats)))
    }

    async fn cluster(&self) -> Result<Map> {
        let mut config = self.config().await.context("no cluster can be reached; --file reads objects from a file")?;
        if self.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&self.impersonate);
            config.auth_info.impersonate_groups = None;
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        let (api, place): (Api<Topology>, String) = if self.all_namespaces {
            (Api::all(client), "in all namespaces".to_owned())
        } else {
            (Api::namespaced(client, &namespace), format!("in the namespace {namespace}"))
        };
        let topologies = list(&api, self.selector.as_deref()).await.map_err(|error| explained(error, &place))?;
        let place = match &self.selector {
            Some(selector) => format!("{place} with the labels {selector}"),
            None => place,
        };
        if topologies.is_empty() {
            bail!("there are no Topology objects {place}");
        }
        let Map { edges, mut caveats, .. } = read::objects(&topologies);
        if !self.all_namespaces || self.selector.is_some() {
            caveats.push(format!("only objects {place} were read: edges between others are missing; -A reads all"));
        }
        Ok(Map::new(edges, caveats))
    }

    async fn config(&self) -> Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        Ok(match &self.kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        })
    }
}

/// Lists all objects, a page at a time.
async fn list(api: &Api<Topology>, selector: Option<&str>) -> kube::Result<Vec<Topology>> {
    let mut parameters = ListParams::default().limit(PAGE);
    parameters.label_selector = selector.map(str::to_owned);
    let mut all = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Returns an error with what to do about it.
fn explained(error: kube::Error, place: &str) -> anyhow::Error {
    // Its own text has the answer twice.
    let (code, words) = match error {
        kube::Error::Api(status) => (status.code, anyhow!(status.message)),
        other => (0, anyhow!(other)),
    };
    match code {
        403 => words.context(format!(
            "you may not list topologies.scopeprobe.io {place}: ask for the role `view` there, or for the ClusterRole \
             RELEASE-topology-reader"
        )),
        404 => words.context("the cluster does not know Topology objects: ScopeProbe is not installed"),
        _ => words,
    }
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// Returns an error with the file's name if it cannot be read, or is no map.
pub fn file(path: &Path) -> Result<Map> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    read::text(&text.with_context(|| name.clone())?).context(name)
}
