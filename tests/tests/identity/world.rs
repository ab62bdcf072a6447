//! A collector with TLS and identity, and the API server that it asks.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use operator::{
    certificates::keeper::{CertificateKeeper, CertificateSettings},
    cluster::ClusterIndex,
    collector::{self, Access, CollectorInputs, identity::Authenticator},
    observation::Observations,
    shared_ledger::SharedLedger,
};
use report::v1alpha1::{AgentReport, CaptureState, CollectorReply, Mode, Reason, collector_client::CollectorClient};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, manifest};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{NAMESPACE, tokens};

/// The collector's Service.
pub const SERVICE: &str = "scopeprobe-collector";
/// Name that agents verify.
pub const NAME: &str = "scopeprobe-collector.scopeprobe-system.svc";
/// Name of the Secret that the operator makes.
pub const SECRET: &str = "scopeprobe-collector-tls";

const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: scopeprobe-system}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-1}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2}}
";

pub struct World {
    pub control_plane: ControlPlane,
    pub collector: SocketAddr,
    pub keeper: CertificateKeeper,
    pub shared_ledger: SharedLedger,
    pub observations: Observations,
    /// The agents' pods, by node.
    pub agents: BTreeMap<String, Pod>,
    /// An agent's files.
    pub folder: TempDir,
}

/// Settings of a Service's certificates that last so long.
pub fn certificates(service: &str, lifetime: Duration, foreign_secret: Option<&str>) -> CertificateSettings {
    CertificateSettings {
        namespace: NAMESPACE.to_owned(),
        deployment: None,
        service: service.to_owned(),
        foreign_secret: foreign_secret.map(str::to_owned),
        lifetime,
    }
}

/// Starts an API server with two nodes.
pub async fn control_plane() -> Result<ControlPlane> {
    let control_plane = ControlPlane::start().await?;
    manifest::apply(&control_plane.client, "", CLUSTER).await?;
    Ok(control_plane)
}

impl World {
    pub async fn new(lifetime: Duration) -> Result<Self> {
        let control_plane = control_plane().await?;
        let agents = tokens::agents(&control_plane, &["node-1", "node-2"]).await?;
        let client = &control_plane.client;
        let keeper = CertificateKeeper::new(client.clone(), certificates(SERVICE, lifetime, None));
        keeper.once().await.map_err(|error| Error::Unexpected(error.to_string()))?;
        let (shared_ledger, observations) = (SharedLedger::default(), Observations::default());
        let authenticator = Authenticator::new(client.clone(), ClusterIndex::default(), NAMESPACE, tokens::ACCOUNT);
        let inputs = CollectorInputs {
            is_node: Arc::new(|name| ["node-1", "node-2"].contains(&name)),
            access: Access::Agents(Arc::new(authenticator)),
            tls: Some(keeper.serving().acceptor().map_err(|error| Error::Unexpected(error.to_string()))?),
            ..CollectorInputs::open(shared_ledger.clone(), observations.clone())
        };
        let attempt = || Error::io("listen on the loopback");
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(attempt())?;
        let collector = listener.local_addr().map_err(attempt())?;
        tokio::spawn(collector::serve(listener, inputs, std::future::pending()));
        let folder = tempfile::tempdir().map_err(Error::io("make a folder for an agent's files"))?;
        Ok(Self { control_plane, collector, keeper, shared_ledger, observations, agents, folder })
    }

    /// Returns a token of the agent on a node.
    pub async fn token(&self, node: &str) -> Result<String> {
        tokens::issued(&self.control_plane, tokens::ACCOUNT, self.agents.get(node), tokens::AUDIENCE).await
    }

    /// Returns the published CAs.
    pub async fn bundle(&self) -> Result<String> {
        bundle(&self.control_plane, SERVICE).await
    }

    /// Writes an agent's file, as a kubelet does.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).map_err(Error::io("write an agent's file"))?;
        Ok(path)
    }

    /// Keeps an agent's file of CAs up to date.
    pub fn kubelet(&self) -> JoinHandle<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.control_plane.client.clone(), NAMESPACE);
        let (path, next) = (self.folder.path().join("ca.crt"), self.folder.path().join("next"));
        tokio::spawn(async move {
            loop {
                let map = maps.get("scopeprobe-collector-ca").await;
                if let Some(bundle) = map.ok().and_then(|map| map.data?.remove("ca.crt")) {
                    // In one step, as a kubelet does.
                    let written = std::fs::write(&next, bundle).and_then(|()| std::fs::rename(&next, &path));
                    written.expect("the folder is there");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    }

    /// Connects by TLS, with these CAs.
    pub async fn connect(&self, bundle: &str) -> std::result::Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bundle)).domain_name(NAME);
        Endpoint::from_shared(format!("https://{}", self.collector))?.tls_config(tls)?.connect().await
    }

    /// Opens a stream with one message. Waits until the collector is there.
    pub async fn report(&self, token: Option<&str>, message: AgentReport) -> Result<std::result::Result<Open, Status>> {
        let bundle = self.bundle().await?;
        let channel = eventually("the collector's port", async || {
            self.connect(&bundle).await.map_err(|error| format!("{error:?}"))
        })
        .await?;
        Ok(open(channel, token, message).await)
    }
}

/// Returns the published CAs of a Service.
pub async fn bundle(control_plane: &ControlPlane, service: &str) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let map = maps.get(&format!("{service}-ca")).await.map_err(Error::api("read the CAs"))?;
    Ok(map.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default())
}

pub fn secrets(control_plane: &ControlPlane) -> Api<Secret> {
    Api::namespaced(control_plane.client.clone(), NAMESPACE)
}

/// An open stream.
pub struct Open {
    pub messages: mpsc::Sender<AgentReport>,
    pub replies: Streaming<CollectorReply>,
}

/// Opens a stream with one message, and waits for its reply.
pub async fn open(channel: Channel, token: Option<&str>, message: AgentReport) -> std::result::Result<Open, Status> {
    let mut open = silent(channel, token).await?;
    // It may be closed already.
    let _ = open.messages.send(message).await;
    open.replies.message().await?;
    Ok(open)
}

/// Opens a stream without a message, and waits until its caller is authenticated.
pub async fn silent(channel: Channel, token: Option<&str>) -> std::result::Result<Open, Status> {
    let (messages, queue) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(queue));
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().map_err(|_| Status::internal("the token is no header"))?;
        request.metadata_mut().insert("authorization", value);
    }
    let replies = CollectorClient::new(channel).report(request).await?.into_inner();
    Ok(Open { messages, replies })
}

/// Returns the message with this number on a stream of a node, under an epoch of which each byte is `epoch`.
pub fn message(node: &str, epoch: u8, sequence: u64) -> AgentReport {
    AgentReport {
        node: node.to_owned(),
        epoch: vec![epoch; 16],
        sequence,
        begins_snapshot: sequence == 1,
        ends_snapshot: sequence == 1,
        capture: Some(CaptureState {
            mode: Mode::Ebpf.into(),
            reason: Reason::Supported.into(),
            attach: "SockOps".to_owned(),
            ..CaptureState::default()
        }),
        ..AgentReport::default()
    }
}
