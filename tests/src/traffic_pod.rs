//! The traffic program in a container: told what to do through a Unix socket, so that control makes no connection of the
//! pod's.

use std::{net::SocketAddr, path::PathBuf};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use traffic::{
    control,
    protocol::{Answer, Behaviour, Command, Connect, Listen, Outcome, Report},
};

use crate::{Cluster, Error, Result, container_root, eventually, namespace::Namespace, pod};

/// The image of `dist/scopeprobe-traffic.tar`.
pub const IMAGE: &str = "scopeprobe/traffic:dev";

/// One container that runs the traffic program.
#[derive(Clone)]
pub struct Traffic {
    cluster: Cluster,
    namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// A container with the traffic program, for a pod's or a template's `spec.containers`.
#[must_use]
pub fn container(name: &str) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        // A socket for each container: they share no file, and may share the network.
        "args": ["run"],
    })
}

/// Returns a bare pod of a node with these containers, labelled `app=<name>` and `testbed=yes`.
#[must_use]
pub fn pod_of(name: &str, node: &str, host_network: bool, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, "testbed": "yes"}},
        "spec": {
            "nodeName": node, "hostNetwork": host_network, "terminationGracePeriodSeconds": 0, "containers": containers,
        },
    })
}

impl Namespace {
    /// Makes a bare pod with a traffic program in each container, labelled `app=<name>`, and waits until it is ready.
    ///
    /// # Errors
    /// Returns an error if it cannot be created or is not ready in time.
    pub async fn traffic_pod(&self, name: &str, node: Option<&str>, containers: &[&str]) -> Result<Vec<Traffic>> {
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": containers.iter().map(|name| container(name)).collect::<Vec<_>>(),
            },
        });
        let pod: Pod =
            serde_json::from_value(pod).map_err(|error| Error::Unexpected(format!("a pod of no shape: {error}")))?;
        self.api().create(&PostParams::default(), &pod).await.map_err(Error::api(format!("make the pod {name}")))?;
        self.ready_pods(&format!("app={name}"), 1).await?;
        Ok(containers.iter().map(|container| self.traffic(name, container)).collect())
    }

    /// The traffic program of a container that exists.
    #[must_use]
    pub fn traffic(&self, pod: &str, container: &str) -> Traffic {
        Traffic {
            cluster: self.cluster.clone(),
            namespace: self.name.clone(),
            pod: pod.to_owned(),
            container: container.to_owned(),
        }
    }

    /// The traffic programs of all containers of all pods with these labels, by pod and container.
    ///
    /// # Errors
    /// The API server's.
    pub async fn traffic_of(&self, labels: &str) -> Result<Vec<Traffic>> {
        let pods = self
            .api::<Pod>()
            .list(&ListParams::default().labels(labels))
            .await
            .map_err(Error::api(format!("list pods with {labels}")))?;
        let mut found: Vec<_> = pods
            .items
            .into_iter()
            .flat_map(|pod| {
                let name = pod.metadata.name.unwrap_or_default();
                let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
                containers.into_iter().map(move |container| (name.clone(), container.name))
            })
            .collect();
        found.sort();
        Ok(found.iter().map(|(pod, container)| self.traffic(pod, container)).collect())
    }
}

impl Traffic {
    /// Has a command carried out.
    ///
    /// # Errors
    /// Returns an error if the program is unreachable, or answers with an error.
    pub async fn ask(&self, command: &Command) -> Result<Answer> {
        Ok(self.ask_all(std::slice::from_ref(command)).await?.remove(0))
    }

    /// Has commands carried out one after the other. As many answers as there are commands.
    ///
    /// # Errors
    /// Returns an error if the program is unreachable, or answers one command with an error.
    pub async fn ask_all(&self, commands: &[Command]) -> Result<Vec<Answer>> {
        let texts = commands.iter().map(serde_json::to_string).collect::<std::result::Result<Vec<_>, _>>();
        let texts = texts.map_err(|error| Error::Unexpected(format!("a command that JSON cannot hold: {error}")))?;
        let lines = match self.socket().await? {
            Some(socket) => self.talk(socket, &texts).await?,
            None => self.exec(&texts).await?,
        };
        let answers = lines.lines().map(serde_json::from_str).collect::<std::result::Result<Vec<_>, _>>();
        match answers {
            Ok(answers) if answers.len() == commands.len() => self.without_errors(answers),
            other => Err(Error::Unexpected(format!("{self} answered {lines:?} to {texts:?}: {other:?}"))),
        }
    }

    /// Returns the program's socket as this machine's file system shows it, or `None` if its node is a machine of its own.
    async fn socket(&self) -> Result<Option<PathBuf>> {
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let pod = api.get(&self.pod).await.map_err(Error::api(format!("read the pod of {self}")))?;
        let root = container_id(&pod, &self.container).and_then(|id| container_root::of(&id));
        Ok(root.map(|root| root.join(control::SOCKET.trim_start_matches('/'))))
    }

    /// Hands commands over directly: an exec costs API server, kubelet and runtime more than most commands.
    async fn talk(&self, socket: PathBuf, commands: &[String]) -> Result<String> {
        let (attempt, commands) = (format!("ask {self}"), commands.to_vec());
        let ask = move || commands.iter().map(|command| control::ask(&socket, command)).collect::<std::io::Result<_>>();
        let answers = spawn_blocking(ask).await.map_err(|error| Error::Unexpected(format!("{attempt}: {error}")))?;
        answers.map_err(Error::io(attempt))
    }

    async fn exec(&self, commands: &[String]) -> Result<String> {
        let words: Vec<_> = ["/traffic", "ctl"].into_iter().chain(commands.iter().map(String::as_str)).collect();
        pod::exec(&self.cluster.client, &self.namespace, &self.pod, &self.container, &words).await
    }

    fn without_errors(&self, answers: Vec<Answer>) -> Result<Vec<Answer>> {
        match answers.iter().find(|answer| matches!(answer, Answer::Error(_))) {
            Some(error) => Err(self.unexpected(error)),
            None => Ok(answers),
        }
    }

    /// Echoes at an address.
    ///
    /// # Errors
    /// See [`Traffic::ask`].
    pub async fn echo(&self, address: &str) -> Result<SocketAddr> {
        self.listen(address, Behaviour::Echo).await
    }

    /// Listens at an address; returns it with the port that was chosen where 0 was asked for.
    ///
    /// # Errors
    /// See [`Traffic::ask`].
    pub async fn listen(&self, address: &str, behaviour: Behaviour) -> Result<SocketAddr> {
        let address =
            address.parse().map_err(|error| Error::Unexpected(format!("{address:?} is no address: {error}")))?;
        match self.ask(&Command::Listen(Listen { address, v6_only: false, behaviour })).await? {
            Answer::Listening(address) => Ok(address),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Makes connections and waits until all are made.
    ///
    /// # Errors
    /// See [`Traffic::ask`]. Connections that fail are no error but counted.
    pub async fn connect(&self, plan: Connect) -> Result<Outcome> {
        self.outcome(&Command::Connect(Connect { background: false, ..plan })).await
    }

    /// Executes a command that has an outcome, and returns it.
    ///
    /// # Errors
    /// See [`Traffic::ask`].
    pub async fn outcome(&self, command: &Command) -> Result<Outcome> {
        Ok(self.outcomes(std::slice::from_ref(command)).await?.remove(0))
    }

    /// Has commands carried out that come to outcomes each.
    ///
    /// # Errors
    /// See [`Traffic::ask_all`].
    pub async fn outcomes(&self, commands: &[Command]) -> Result<Vec<Outcome>> {
        let answers = self.ask_all(commands).await?.into_iter();
        let outcomes = answers.map(|answer| match answer {
            Answer::Outcome(outcome) => Ok(outcome),
            other => Err(self.unexpected(&other)),
        });
        outcomes.collect()
    }

    /// Begins all these connections at once and waits until all are made; as many outcomes.
    ///
    /// # Errors
    /// See [`Traffic::ask_all`]. Connections that fail are no error but counted.
    pub async fn connect_all(&self, plans: Vec<Connect>) -> Result<Vec<Outcome>> {
        let plans = plans.into_iter().map(|plan| Command::Connect(Connect { background: true, ..plan }));
        let answers = self.ask_all(&plans.collect::<Vec<_>>()).await?.into_iter();
        let runs = answers.map(|answer| match answer {
            Answer::Running(run) => Ok(Command::Await(run)),
            other => Err(self.unexpected(&other)),
        });
        self.outcomes(&runs.collect::<Result<Vec<_>>>()?).await
    }

    /// All counts so far.
    ///
    /// # Errors
    /// See [`Traffic::ask`].
    pub async fn report(&self) -> Result<Report> {
        match self.ask(&Command::Report).await? {
            Answer::Report(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits until the program's servers have accepted `opened` connections in total, and `open` of them are open. A
    /// client's count is final when its call returns, a server's when it has read the end.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn served(&self, opened: u64, open: u64) -> Result<Report> {
        eventually(&format!("{self} to have served {opened} connections, {open} of them open"), async || {
            let report = self.report().await.map_err(|error| error.to_string())?;
            let seen = report.servers.iter().fold((0, 0), |sum, row| (sum.0 + row.opened, sum.1 + row.open));
            if seen == (opened, open) { Ok(report) } else { Err(format!("{} opened, {} open", seen.0, seen.1)) }
        })
        .await
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        Error::Unexpected(format!("{self} answered {answer:?}"))
    }
}

/// Returns the ID of a container that has started, without the runtime's name.
fn container_id(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let started = [&status.container_statuses, &status.init_container_statuses];
    let mut started = started.into_iter().flatten().flatten();
    let id = started.find(|started| started.name == container)?.container_id.as_deref()?;
    Some(id.rsplit_once("//").map_or(id, |(_, id)| id).to_owned())
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}/{}", self.namespace, self.pod, self.container)
    }
}
