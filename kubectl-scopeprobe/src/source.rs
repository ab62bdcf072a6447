//! Reads objects from a cluster, files or standard input.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use crds::Topology;
use futures::future;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use view::{Map, filter::Filter, inventory::Inventory, read};

use crate::{files, inventory};

/// Objects of one answer of the API server.
const PAGE: u32 = 200;

/// Resource of the map's objects.
const TOPOLOGIES: &str = "topologies.scopeprobe.io";

/// Source of objects: clusters, or files.
#[derive(Debug, Args)]
pub struct Source {
    /// Files or folders instead of a cluster: Topology objects or lists, as JSON or YAML, or a map that `graph -o json` has
    /// written. `-` is standard input. All files are of one cluster.
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Part of clusters.
#[derive(Debug, Args)]
pub struct Place {
    /// Namespace whose objects are read. The default is that of the context. Of files, edges of this namespace are selected.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Read the objects of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "file")]
    all_namespaces: bool,
    /// Label selector of the objects.
    #[arg(short = 'l', long, conflicts_with = "file")]
    selector: Option<String>,
    #[command(flatten)]
    access: Access,
}

impl Source {
    /// Reads the objects.
    ///
    /// # Errors
    /// Returns an error if they cannot be read, with the right that is missing.
    pub async fn read(&self) -> Result<Map> {
        if self.file.is_empty() {
            return self.place.read().await;
        }
        self.place.checked(files::map(&files::contents(&self.file)?)?)
    }

    /// Reads the objects, and Services, workloads and the state of the nodes' agents.
    ///
    /// # Errors
    /// Returns an error if the objects of the map cannot be read, with the right that is missing.
    pub async fn read_with_inventory(&self) -> Result<(Map, Inventory)> {
        if self.file.is_empty() {
            let scope = self.scope().await?;
            let map = self.place.cluster(&scope).await?;
            let (inventory, missing) = inventory::read(&scope).await;
            let caveats = map.caveats.into_iter().chain(missing).collect();
            let inventory = match &scope.namespace {
                Some(namespace) => inventory.of_namespace(namespace),
                None => inventory,
            };
            return Ok((Map::new(map.edges, caveats), inventory));
        }
        let (map, inventory) = files::map_with_inventory(&files::contents(&self.file)?)?;
        if map.edges.is_empty() {
            bail!("the files have no edge; add the output of `kubectl get topologies.scopeprobe.io -A -o yaml`");
        }
        let map = of_one_cluster(map)?;
        let inventory = match &self.place.namespace {
            Some(namespace) => inventory.of_namespace(namespace),
            None => inventory,
        };
        Ok((self.place.checked(map)?, inventory))
    }

    /// Returns the part of the cluster that is read.
    ///
    /// # Errors
    /// Returns an error if no cluster is configured, or several.
    pub async fn scope(&self) -> Result<Scope> {
        self.place.scope(self.place.access.only()?).await
    }

    /// Returns whether objects come from files.
    pub fn is_of_files(&self) -> bool {
        !self.file.is_empty()
    }

    /// Returns what a watch of the objects needs.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed, with the right that is missing.
    pub async fn watched(&self) -> Result<Watched> {
        let scope = self.scope().await?;
        let (api, place) = (scope.api::<Topology>(), scope.place());
        let caveat = self.place.gap(&self.place.with_labels(&place));
        let watched = Watched { api, selector: self.place.selector.clone(), caveat, place };
        // A watch would retry what is forbidden.
        let list = watched.api.list_metadata(&ListParams::default().limit(1)).await;
        list.map_err(|error| watched.explained(error, "list"))?;
        Ok(watched)
    }

    /// Returns the arguments by which a command reads the same objects.
    pub fn arguments(&self) -> Vec<String> {
        let place = &self.place;
        let files = self.file.iter().map(|file| ("--file", file.display().to_string()));
        let options = [("--namespace", place.namespace.clone()), ("--selector", place.selector.clone())];
        let options = options.into_iter().filter_map(|(option, value)| Some((option, value?)));
        let all = place.all_namespaces.then(|| "--all-namespaces".to_owned());
        let own = all.into_iter().chain(files.chain(options).flat_map(|(option, value)| [option.to_owned(), value]));
        own.chain(place.access.arguments()).collect()
    }
}

impl Place {
    /// Reads the objects of all contexts. Of several, peers have the context's name as their cluster.
    ///
    /// # Errors
    /// Returns an error if the objects of a context cannot be read, with the right that is missing.
    pub async fn read(&self) -> Result<Map> {
        if let Ok(context) = self.access.only() {
            return self.cluster(&self.scope(context).await?).await;
        }
        let maps = self.read_each().await?;
        let maps = maps.into_iter().map(|(context, map)| map.of_cluster(&context));
        let (edges, caveats): (Vec<_>, Vec<_>) = maps.map(|map| (map.edges, map.caveats)).unzip();
        Ok(Map::joined(edges.concat(), caveats.concat()))
    }

    /// Reads the objects of each context, in the order of the command line.
    ///
    /// # Errors
    /// Returns an error with the context's name if its objects cannot be read.
    pub async fn read_each(&self) -> Result<Vec<(String, Map)>> {
        let contexts = self.access.contexts();
        let of_context = |context: &String| format!("context {context}");
        let scope = async |context: &&String| self.scope(Some(context)).await.with_context(|| of_context(context));
        let scopes = future::try_join_all(contexts.iter().map(scope)).await?;
        if let Some((one, other)) =
            scopes.iter().zip(&scopes[1..]).find(|(one, other)| one.namespace != other.namespace)
        {
            let name = |scope: &Scope| scope.namespace.clone().unwrap_or_default();
            bail!(
                "the contexts have different namespaces, {} and {}; name one with --namespace, or read all with -A",
                name(one),
                name(other)
            );
        }
        let read = async |(context, scope): (&&String, &Scope)| {
            let map = self.cluster(scope).await.with_context(|| of_context(context))?;
            anyhow::Ok(((*context).clone(), map))
        };
        future::try_join_all(contexts.iter().zip(&scopes).map(read)).await
    }

    /// Returns the number of different contexts.
    pub fn contexts(&self) -> usize {
        self.access.contexts().len()
    }

    /// Returns the edges of the namespace, if one is selected.
    ///
    /// # Errors
    /// Returns an error if it has none, as a namespace whose name is mistyped.
    fn checked(&self, map: Map) -> Result<Map> {
        let map = self.of_namespace(map);
        if map.edges.is_empty() {
            self.check_namespace()?;
        }
        Ok(map)
    }

    /// Returns an error for a selected namespace without edges.
    ///
    /// # Errors
    /// Returns an error if a namespace is selected.
    pub fn check_namespace(&self) -> Result<()> {
        match &self.namespace {
            Some(namespace) => bail!("no edge has an end in the namespace {namespace}"),
            None => Ok(()),
        }
    }

    /// Returns the edges of the namespace, if one is selected.
    pub fn of_namespace(&self, map: Map) -> Map {
        let namespaces: BTreeSet<String> = self.namespace.iter().cloned().collect();
        Filter { namespaces, ..Filter::default() }.apply(map)
    }

    async fn cluster(&self, scope: &Scope) -> Result<Map> {
        let topologies = list(&scope.api::<Topology>(), self.selector.as_deref())
            .await
            .map_err(|error| explained(error, TOPOLOGIES, &scope.place()))?;
        let place = self.with_labels(&scope.place());
        if topologies.is_empty() {
            bail!("there are no Topology objects {place}");
        }
        let map = read::objects(&topologies);
        Ok(Map::new(map.edges, map.caveats.into_iter().chain(self.gap(&place)).collect()))
    }

    /// Returns what is missing from the objects of a place.
    fn gap(&self, place: &str) -> Option<String> {
        let remedy = match (self.all_namespaces, &self.selector) {
            (true, None) => return None,
            (true, Some(_)) => "without --selector, all are read",
            (false, None) => "-A reads all",
            (false, Some(_)) => "-A without --selector reads all",
        };
        Some(format!("only objects {place} were read: edges between others are missing; {remedy}"))
    }

    async fn scope(&self, context: Option<&String>) -> Result<Scope> {
        let (client, default) = self.access.client(context).await?;
        let namespace = self.namespace.clone().unwrap_or(default);
        Ok(Scope { client, namespace: (!self.all_namespaces).then_some(namespace) })
    }

    fn with_labels(&self, place: &str) -> String {
        match &self.selector {
            Some(selector) => format!("{place} with the labels {selector}"),
            None => place.to_owned(),
        }
    }
}

/// Returns a map if it is of one cluster.
///
/// # Errors
/// Returns an error if its peers have clusters.
pub fn of_one_cluster(map: Map) -> Result<Map> {
    if map.clusters().is_empty() {
        return Ok(map);
    }
    bail!("the files have a map of several clusters; this command reads one cluster")
}

/// Objects of a cluster to watch.
#[derive(Clone)]
pub struct Watched {
    /// The objects.
    pub api: Api<Topology>,
    /// Their labels.
    pub selector: Option<String>,
    /// Gap, if these are not all.
    pub caveat: Option<String>,
    place: String,
}

impl Watched {
    /// Returns the error of a request with what to do about it.
    pub fn explained(&self, error: kube::Error, verb: &str) -> anyhow::Error {
        explained_request(error, verb, TOPOLOGIES, &self.place)
    }
}

/// Access to a cluster.
#[derive(Debug, Args)]
pub struct Access {
    /// Context of the kubeconfig. Where a command reads several clusters, it may be repeated.
    #[arg(long, conflicts_with = "file")]
    context: Vec<String>,
    /// Path of the kubeconfig.
    #[arg(long, conflicts_with = "file")]
    kubeconfig: Option<PathBuf>,
    /// User on whose behalf objects are read.
    #[arg(long = "as", value_name = "USER", conflicts_with = "file")]
    impersonate: Option<String>,
}

impl Access {
    /// Returns the arguments by which a command has the same access.
    fn arguments(&self) -> impl Iterator<Item = String> {
        let kubeconfig = self.kubeconfig.as_ref().map(|path| path.display().to_string());
        let options = [("--kubeconfig", kubeconfig), ("--as", self.impersonate.clone())];
        let contexts = self.context.iter().map(|context| ("--context", Some(context.clone())));
        contexts.chain(options).filter_map(|(option, value)| Some([option.to_owned(), value?])).flatten()
    }

    /// Returns the contexts in the order of the command line, each once.
    fn contexts(&self) -> Vec<&String> {
        let mut known = BTreeSet::new();
        self.context.iter().filter(|context| known.insert(*context)).collect()
    }

    /// Returns the only context, if one is named.
    ///
    /// # Errors
    /// Returns an error if several are.
    pub fn only(&self) -> Result<Option<&String>> {
        match self.contexts().as_slice() {
            [] => Ok(None),
            [context] => Ok(Some(context)),
            _ => bail!("this command reads one cluster; name one --context"),
        }
    }

    /// Returns a client, and the namespace of its context.
    ///
    /// # Errors
    /// Returns an error if no cluster is configured.
    pub async fn client(&self, context: Option<&String>) -> Result<(Client, String)> {
        let mut config =
            self.config(context).await.context("no cluster is configured; see `kubectl config get-contexts`")?;
        // A watch reports its errors and retries by itself.
        config.default_retry = false;
        if self.impersonate.is_some() {
            config.auth_info.impersonate.clone_from(&self.impersonate);
            config.auth_info.impersonate_groups = None;
        }
        let namespace = config.default_namespace.clone();
        Ok((Client::try_from(config)?, namespace))
    }

    async fn config(&self, context: Option<&String>) -> Result<Config> {
        let options = KubeConfigOptions { context: context.cloned(), ..KubeConfigOptions::default() };
        Ok(match &self.kubeconfig {
            Some(path) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
            None if context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        })
    }
}

/// Part of a cluster: one namespace, or all.
pub struct Scope {
    /// Client of the cluster.
    pub client: Client,
    namespace: Option<String>,
}

impl Scope {
    /// Returns the interface to objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Returns the part in words.
    pub fn place(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("in the namespace {namespace}"),
            None => "in all namespaces".to_owned(),
        }
    }
}

/// Lists all objects, a page at a time.
///
/// # Errors
/// Returns the error of a request.
pub async fn list<K>(api: &Api<K>, selector: Option<&str>) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
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

/// Returns the error of a list with what to do about it.
pub fn explained(error: kube::Error, resource: &str, place: &str) -> anyhow::Error {
    explained_request(error, "list", resource, place)
}

fn explained_request(error: kube::Error, verb: &str, resource: &str, place: &str) -> anyhow::Error {
    // Its own text has the answer twice.
    let (code, words) = match error {
        kube::Error::Api(status) => (status.code, anyhow!(status.message)),
        other => (0, anyhow!(other)),
    };
    let role = match resource {
        "nodeprobes.scopeprobe.io" => "the ClusterRole RELEASE-probe-reader",
        _ => "the role `view` there, or for the ClusterRole RELEASE-topology-reader",
    };
    match code {
        401 => words.context("the cluster does not accept your credentials; log in again"),
        403 => words.context(format!("you may not {verb} {resource} {place}: ask for {role}")),
        404 => words.context(format!("the cluster does not have {resource}: ScopeProbe is not installed")),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Source;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        source: Source,
    }

    fn gap(arguments: &str, place: &str) -> Option<String> {
        let Line { source } = Line::parse_from(format!("test {arguments}").split_whitespace());
        source.place.gap(&source.place.with_labels(place))
    }

    #[test]
    fn gap_names_the_labels_and_an_option_that_closes_it() {
        assert_eq!(gap("-A", "in all namespaces"), None);
        let gaps = [
            gap("-n shop", "in the namespace shop"),
            gap("-n shop -l app=x", "in the namespace shop"),
            gap("-A -l app=x", "in all namespaces"),
        ];
        let begin = "only objects in";
        let middle = "were read: edges between others are missing;";
        let expected = [
            format!("{begin} the namespace shop {middle} -A reads all"),
            format!("{begin} the namespace shop with the labels app=x {middle} -A without --selector reads all"),
            format!("{begin} all namespaces with the labels app=x {middle} without --selector, all are read"),
        ];
        assert_eq!(gaps.map(Option::unwrap), expected);
    }
}
