//! Starts the parts of the operator, and stops them in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use kube::{Client, Config};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    api_budget::ApiBudget,
    api_client::Clients,
    api_problems::ApiProblems,
    certificates::keeper::{CertificateKeeper, CertificateSettings},
    cleanup::{
        garbage_collector::GarbageCollector,
        prune::{self, Pruned},
    },
    cluster::{self, ClusterIndex, ClusterState, WatchedCluster},
    cluster_claim::ClusterClaim,
    collector::{self, Access, CollectorInputs, CollectorPort, identity::Authenticator},
    event_recorder::EventRecorder,
    fence::Fence,
    guarded_watch::backoff,
    health::{self, Readiness},
    leader_endpoints::LeaderEndpoints,
    lease::Lease,
    listen::bind,
    metrics::Metrics,
    observation::TopologyOverview,
    open_files::OpenFiles,
    progress::Progress,
    publisher, ready,
    rollout::{
        apply_cache::ApplyCache,
        assigner::Assigner,
        build::HTTP_PORT as AGENT_HTTP_PORT,
        controller::{self, Context},
        fallback_controller::FallbackController,
        obstacles::Obstacles,
        outcome::Outcomes,
    },
    settings::{Cli, Command, Settings},
    shared_ledger::SharedLedger,
    status::{events::Events, restore, writer::Writer},
};

/// Time limit for the parts to stop: a standby takes over after it. Below a pod's grace period of 30 s.
const DRAIN: Duration = Duration::from_secs(2);

/// Time limit for an answer of the API server to a single request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Executes the command line.
///
/// # Errors
/// Returns a human-readable error if a part failed.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(settings) => run(*settings).await,
        Command::Crds => print_crds(),
        Command::Ready { host, port } => print_readiness(&host, port).await,
        Command::Prune => Box::pin(prune()).await,
    }
}

fn print_crds() -> anyhow::Result<()> {
    use std::io::Write;
    let mut output = std::io::stdout().lock();
    for (_, manifest) in crds::manifests::files().context("cannot write the kinds as YAML")? {
        write!(output, "---\n{manifest}").context("cannot print the kinds")?;
    }
    Ok(())
}

async fn print_readiness(host: &str, port: u16) -> anyhow::Result<()> {
    let state = ready::ask(host, port).await?;
    tracing::info!("the operator is ready: {state}");
    Ok(())
}

async fn prune() -> anyhow::Result<()> {
    let client = Client::try_default().await.context("cannot connect to the API server")?;
    match prune::run(&client).await.context("cannot remove what an operator left behind")? {
        Pruned::Everything => tracing::info!("removed node labels, NodeProbes, Topologies and the cluster's Lease"),
        Pruned::Nothing { operators } => tracing::info!(?operators, "removed nothing: an operator is installed"),
    }
    Ok(())
}

async fn run(mut settings: Settings) -> anyhow::Result<()> {
    let config = Config::infer().await.context("cannot find out how to reach the API server")?;
    let fence = Fence::default();
    let clients = Clients::new(config.clone(), ANSWER_TIMEOUT, &fence).context("cannot connect to the API server")?;
    let metrics = Metrics::default();
    raise_open_files(&mut settings, &metrics);
    let lease = Lease::new(config, &settings, metrics.clone(), fence)?;
    let (sender, progress) = watch::channel(Progress::Starting);
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop));

    let listener = bind(settings.http_listen, "--http-listen").await?;
    let readiness = Readiness { standing: lease.standing(), progress };
    let health = tokio::spawn(health::serve(listener, readiness, metrics.clone(), stopped(stopping.clone())));

    let outcome = tokio::select! {
        result = lead(&settings, &clients, &lease, metrics, sender, stopping) => result,
        other = lease.keep() => Err(anyhow::anyhow!("operator {other} took the lease and writes now, so this one stops")),
    };
    lease.release().await;
    health.abort();
    outcome
}

/// Raises the limit of open files, and lowers the limit of connections where there are not enough files for them.
fn raise_open_files(settings: &mut Settings, metrics: &Metrics) {
    let open_files = match OpenFiles::raise() {
        Ok(open_files) => open_files,
        Err(error) => return tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE)"),
    };
    let limit = open_files.limit();
    metrics.open_files_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    let allowed = &mut settings.collector.limits.collector_max_connections;
    let connections = open_files.connections(*allowed);
    if connections < *allowed {
        tracing::warn!(
            "this process may have {limit} files open, so the collector accepts {connections} connections instead of \
             {allowed}; raise the container's hard limit (RLIMIT_NOFILE)"
        );
    } else {
        tracing::info!("this process may have {limit} files open, enough for {allowed} connections");
    }
    *allowed = connections;
}

/// Waits for the lease and the cluster, then runs the parts of its holder until the operator is stopped.
async fn lead(
    settings: &Settings,
    clients: &Clients,
    lease: &Lease,
    metrics: Metrics,
    progress: watch::Sender<Progress>,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut holds = lease.holds();
    tokio::select! {
        held = holds.wait_for(|holds| *holds) => drop(held.context("the lease's keeper has ended")?),
        () = stopped(stopping.clone()) => return Ok(()),
    }
    let claim = ClusterClaim::new(&clients.requesting, settings);
    if let Some(claim) = &claim {
        tokio::select! {
            () = claim.acquire(&progress) => drop(progress.send_replace(Progress::Starting)),
            () = stopped(stopping.clone()) => return Ok(()),
        }
    }
    let cluster = tokio::select! {
        listed = ClusterState::watch(&clients.watching) => listed.context("cannot list ScopeProbes, NodeProbes and Nodes")?,
        () = stopped(stopping.clone()) => return Ok(()),
    };
    let keeper = certificate_keeper(settings, clients);
    if let Some(keeper) = &keeper {
        tokio::select! {
            () = first_certificate(keeper, lease) => {}
            () = stopped(stopping.clone()) => return Ok(()),
        }
    }
    let listener = bind(settings.collector_listen, "--collector-listen").await?;
    let mut parts = Parts::start(settings, clients, lease, metrics, cluster, (listener, keeper), &stopping)?;
    progress.send_replace(Progress::Running);
    tracing::info!(collector = %settings.collector_listen, "the operator runs");
    let end = tokio::select! {
        end = parts.first_end(&stopping) => end,
        other = lost(claim.as_ref()) => Err(anyhow::anyhow!("Deployment {other} took the cluster, so this operator stops")),
    };
    progress.send_replace(Progress::Starting);
    parts.drain().await;
    end
}

fn own_workloads(settings: &Settings) -> publisher::OwnWorkloads {
    publisher::OwnWorkloads {
        namespace: settings.namespace.clone(),
        deployment: settings.deployment.clone(),
        agent_account: settings.agents.agent_service_account.clone(),
        probed_ports: vec![settings.http_listen.port(), AGENT_HTTP_PORT],
        recognized: Arc::default(),
    }
}

/// Returns what keeps the collector's certificate; nothing if it accepts plain text.
fn certificate_keeper(settings: &Settings, clients: &Clients) -> Option<CertificateKeeper> {
    if settings.agents.collector_plaintext {
        tracing::warn!("the collector accepts reports from anyone, without TLS and identity: --collector-plaintext");
        return None;
    }
    let certificates = CertificateSettings {
        namespace: settings.namespace.clone(),
        deployment: settings.deployment.clone(),
        service: settings.agents.collector_service.clone(),
        foreign_secret: settings.collector.collector_tls_secret.clone().filter(|name| !name.is_empty()),
        lifetime: settings.collector.collector_certificate_lifetime.unsigned_abs(),
    };
    Some(CertificateKeeper::new(clients.requesting.clone(), certificates))
}

/// Waits until there is a certificate, so that agents find one at the port.
async fn first_certificate(keeper: &CertificateKeeper, lease: &Lease) {
    let mut pauses = backoff();
    let mut holds = lease.holds();
    loop {
        // Only the lease's holder writes. An error means that its keeper has ended, as this will.
        let _ = holds.wait_for(|holds| *holds).await;
        match keeper.once().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the collector's port has no certificate yet; trying again"),
        }
        tokio::time::sleep(pauses.next().unwrap_or(ANSWER_TIMEOUT)).await;
    }
}

/// Returns the name of another installation that has taken the cluster.
async fn lost(claim: Option<&ClusterClaim>) -> String {
    match claim {
        Some(claim) => claim.keep().await,
        None => std::future::pending().await,
    }
}

/// Returns who may report: agents by their tokens, or anyone where the collector accepts plain text.
fn access(keeper: Option<&CertificateKeeper>, client: &Client, index: &ClusterIndex, settings: &Settings) -> Access {
    if keeper.is_none() {
        return Access::Anyone;
    }
    let (namespace, account) = (&settings.namespace, &settings.agents.agent_service_account);
    Access::Agents(Arc::new(Authenticator::new(client.clone(), index.clone(), namespace, account)))
}

/// Tasks of the lease's holder.
struct Parts {
    /// Tasks that finish their current work and end by themselves when the operator is stopped.
    draining: JoinSet<anyhow::Result<()>>,
    /// Tasks that are dropped at that point: each of their rounds starts from the current state.
    endless: JoinSet<()>,
}

impl Parts {
    fn start(
        settings: &Settings,
        Clients { watching, requesting }: &Clients,
        lease: &Lease,
        metrics: Metrics,
        WatchedCluster { state, node_steps }: WatchedCluster,
        (listener, keeper): (TcpListener, Option<CertificateKeeper>),
        stopping: &watch::Receiver<bool>,
    ) -> anyhow::Result<Self> {
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        let observations = restore::observations(&state.node_probes(), now);
        let assigner = Arc::new(Assigner::new(state));
        let outcomes = Outcomes::default();
        let shared_ledger = SharedLedger::default();
        let index = ClusterIndex::default();
        let (publish, publish_settings) = watch::channel(None);
        let (overview_sender, overview) = watch::channel(TopologyOverview::default());
        let (known_networks, own_networks) = watch::channel(None);
        let mut parts = Self { draining: JoinSet::new(), endless: JoinSet::new() };

        let acceptor = keeper.as_ref().map(|keeper| keeper.serving().acceptor()).transpose();
        let nodes = assigner.clone();
        let inputs = CollectorInputs {
            shared_ledger: shared_ledger.clone(),
            observations: observations.clone(),
            own_networks,
            index: index.clone(),
            is_node: Arc::new(move |name| nodes.cluster().has_node(name)),
            access: access(keeper.as_ref(), requesting, &index, settings),
            tls: acceptor.context("cannot prepare TLS for the collector's port")?,
            limits: settings.collector.limits.clone(),
            silence: collector::SILENCE,
            metrics: metrics.clone(),
        };
        let port = CollectorPort::new(settings, inputs, lease.holds());
        parts.draining.spawn(port.serve(listener, stopping.clone()));
        if let Some(keeper) = keeper {
            parts.endless.spawn(while_held(lease.holds(), move || keeper.clone().run()));
        }
        let context = Context {
            client: requesting.clone(),
            watching: watching.clone(),
            namespace: settings.namespace.clone(),
            deployment: settings.deployment.clone(),
            agents: settings.agents.clone(),
            assigner: assigner.clone(),
            apply_cache: ApplyCache::default(),
            obstacles: Obstacles::default(),
            outcomes: outcomes.clone(),
            resync: settings.resync(),
            metrics: metrics.clone(),
        };
        let context = Arc::new(context);
        let stop_controlling = stopping.clone();
        let controlling =
            while_held(lease.holds(), move || controller::run(context.clone(), stopped(stop_controlling.clone())));
        parts.draining.spawn(async move {
            controlling.await;
            Ok(())
        });
        parts.endless.spawn(cluster::keep_index(watching.clone(), node_steps, index.clone(), shared_ledger.clone()));
        parts.endless.spawn(collector::keep_own_networks(index.clone(), known_networks));
        let budget = ApiBudget::new(Instant::now());
        let problems = ApiProblems::default();
        let inputs = publisher::PublisherInputs {
            leader: lease.holds(),
            settings: publish_settings,
            shared_ledger,
            index,
            own: own_workloads(settings),
            overview: overview_sender,
            edge_metrics: settings.edge_metrics,
            scan_interval: settings.agents.agent_scan_interval.unsigned_abs(),
            budget: budget.clone(),
            problems: problems.clone(),
            events: EventRecorder::new(requesting.clone(), &settings.identity),
            metrics: metrics.clone(),
        };
        parts.endless.spawn(publisher::run(watching.clone(), inputs));
        let fallback_controller = FallbackController {
            assigner: assigner.clone(),
            observations: observations.clone(),
            agents: settings.agents.clone(),
        };
        parts.endless.spawn(fallback_controller.run());
        let garbage_collector = GarbageCollector {
            client: requesting.clone(),
            namespace: settings.namespace.clone(),
            assigner: assigner.clone(),
            observations: observations.clone(),
            interval: settings.resync(),
        };
        parts.endless.spawn(while_held(lease.holds(), move || garbage_collector.clone().run()));
        let endpoints = LeaderEndpoints::new(requesting, watching, settings);
        parts.endless.spawn(while_held(lease.holds(), move || endpoints.clone().keep()));
        let events = Events::new(requesting.clone(), &settings.identity);
        let writer = Writer {
            client: requesting.clone(),
            assigner,
            observations,
            outcomes,
            overview,
            publish,
            events,
            budget,
            problems,
            metrics,
        };
        parts.endless.spawn(while_held(lease.holds(), move || writer.clone().run()));
        Ok(parts)
    }

    /// Waits until the operator is stopped, which is no error, or until a part ended by itself, which is one.
    async fn first_end(&mut self, stopping: &watch::Receiver<bool>) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = stopped(stopping.clone()) => return Ok(()),
            Some(part) = self.draining.join_next() => part.map_err(anyhow::Error::from).and_then(|part| part),
            Some(part) = self.endless.join_next() => part.map_err(anyhow::Error::from),
        };
        // A part that ends because of the signal may come before the signal is seen here.
        if *stopping.borrow() {
            return ended;
        }
        ended.and_then(|()| anyhow::bail!("a part of the operator has ended by itself"))
    }

    async fn drain(mut self) {
        let drained = tokio::time::timeout(DRAIN, async { while self.draining.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("gave up waiting for open streams and writes");
        }
    }
}

/// Runs the writing tasks while the lease is held: drops them at once when the lease lapses, and restarts them when it is
/// held again.
async fn while_held<F: Future<Output = ()>>(mut holds: watch::Receiver<bool>, mut begin: impl FnMut() -> F) {
    // Only the end of the lease's keeper makes an error, and then the process ends as well.
    while holds.wait_for(|holds| *holds).await.is_ok() {
        tokio::select! {
            biased;
            _ = holds.wait_for(|holds| !*holds) => {}
            () = begin() => return,
        }
    }
}

async fn stop_on_signal(stop: watch::Sender<bool>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; the operator will be killed instead of stopping");
        std::future::pending::<()>().await;
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    stop.closed().await;
}

/// Returns when the operator is stopped.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
