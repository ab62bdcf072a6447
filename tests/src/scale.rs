//! Measurement of the operator at scale: an API server of its own, the operator as a process of its own, and one simulated
//! agent per node. The agents report as real ones do, and share no code with the operator but the wire format.
//!
//! An oracle computes the expected edges from the simulated cluster alone, and compares them with the published Topologies.

pub mod agent;
pub mod agent_flows;
pub mod conversation;
pub mod figures;
pub mod fleet;
pub mod meter;
pub mod objects;
pub mod operator_process;
pub mod oracle;
pub mod phases;
pub mod processes;
pub mod published;
pub mod sampler;
pub mod statistics;
pub mod traffic;
pub mod world;

use std::{path::PathBuf, time::Duration};

use crds::{NodeProbe, ScopeProbe, Topology};
use kube::{Api, Client, api::ListParams};

use self::{
    conversation::Clock,
    figures::{RunFigures, Size},
    fleet::Fleet,
    operator_process::OperatorProcess,
    phases::{Phase, Run},
    published::Published,
    sampler::Sampler,
    statistics::{Percentiles, rounded},
    traffic::Traffic,
    world::World,
};
use crate::{ControlPlane, Result, eventually, manifest};

/// Plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The operator's program.
    pub operator: PathBuf,
    /// Number of nodes.
    pub nodes: usize,
    /// Upper bound of the length of a phase, in seconds.
    pub seconds: u64,
    /// Number of backends that each client of a Service reaches.
    pub backends: usize,
    /// `spec` of the ScopeProbe, as JSON or YAML in flow style.
    pub probe: String,
    /// Phases. The first one is [`Phase::Start`].
    pub phases: Vec<Phase>,
    /// Time to wait for an expected state after a phase.
    pub patience: Duration,
}

/// Carries out a plan.
///
/// # Errors
/// Returns an error if a program does not run, or a request fails. A wrong map is no error: see [`RunFigures::faults`].
pub async fn run(plan: &Plan) -> Result<RunFigures> {
    let mut world = World::new(plan.nodes)?;
    let control_plane = ControlPlane::start_for_measurement().await?;
    let client = control_plane.client.clone();
    install(&client, &control_plane, &plan.probe).await?;
    eprintln!("creating {} nodes and {} pods", world.nodes, world.pods.len());
    objects::create_world(&client, &mut world).await?;
    let clock = Clock::default();
    let traffic = Traffic::begin(world, Fleet::new(plan.nodes, clock), clock, plan.backends);
    let size = Size {
        nodes: plan.nodes,
        pods: traffic.world.pods.len(),
        workloads: traffic.world.workloads(),
        edges: traffic.edges(),
        flows: traffic.flows(),
    };
    let operator = OperatorProcess::start(&plan.operator, &control_plane)?;
    let sampler = Sampler::begin(operator.process_id(), control_plane.audit_log());
    let (limit, published) = (Duration::from_secs(plan.seconds), Published::watch(&client));
    let mut run = Run { traffic, published, sampler, operator, control_plane, clock, limit, patience: plan.patience };
    let mut phases = Vec::new();
    for phase in &plan.phases {
        eprintln!("phase: {}", phase.name());
        phases.push(run.phase(*phase).await?);
    }
    let end = run.end().await?;
    Ok(RunFigures { size, seconds: plan.seconds, phases, end })
}

/// Installs the kinds, the operator's namespace and a ScopeProbe.
async fn install(client: &Client, control_plane: &ControlPlane, probe: &str) -> Result<()> {
    control_plane.install_kinds().await?;
    eventually("the API server to serve the kinds", async || {
        let all = ListParams::default();
        Api::<Topology>::all(client.clone()).list(&all).await.map_err(|error| error.to_string())?;
        Api::<NodeProbe>::all(client.clone()).list(&all).await.map_err(|error| error.to_string())?;
        Api::<ScopeProbe>::all(client.clone()).list(&all).await.map_err(|error| error.to_string())
    })
    .await?;
    let objects = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}\n---\n\
         {{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {{name: scale}}, spec: {probe}}}\n",
        operator_process::NAMESPACE
    );
    manifest::apply(client, "", &objects).await.map(|_| ())
}

fn rounded_percentiles(of: Percentiles) -> Percentiles {
    Percentiles { p50: rounded(of.p50), p99: rounded(of.p99), ..of }
}
