//! Certificates and tokens are replaced while streams run.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agent::{
    capture::{Description, Mode, Reading},
    endpoints::ReportMetrics,
    flow_store::Bounds,
    observation::{Observation, SharedObservation},
    report::{
        credentials::Credentials,
        operator_url::Operator,
        stream::{Patience, Reporter},
    },
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use operator::certificates::keeper::CertificateKeeper;
use scopeprobe_tests::{ControlPlane, Error, Result, eventually};
use serde_json::json;
use tokio::sync::{Notify, watch};
use topology::flow::{FlowCounters, FlowKey, Protocol, Role};

use crate::{
    LONG, tokens,
    world::{self, NAME, SECRET, World},
};

/// Seconds until the first token expires: later than the first renewal.
const TOKEN_SECONDS: i64 = 60;
/// Lifetime of a certificate: the next one is made after two thirds of it.
const LIFETIME: Duration = Duration::from_secs(45);

/// An agent whose capture counts what the test makes up.
struct Agent {
    observation: SharedObservation,
    changed: Arc<Notify>,
    metrics: ReportMetrics,
    _closing: watch::Sender<bool>,
}

impl Agent {
    fn start(world: &World) -> Self {
        let bounds = Bounds { flows: 1000, retention: Duration::from_hours(1) };
        let mut observation = Observation::new([0; 16], bounds, "6.12".to_owned());
        let description = Description {
            mode: Mode::Ebpf,
            attach: "SockOps",
            attached_at: SystemTime::now(),
            kernel: "6.12".to_owned(),
            degradations: Vec::new(),
        };
        observation.begin_epoch([1; 16], &description);
        let (observation, changed) = (SharedObservation::new(observation), Arc::new(Notify::new()));
        let (closing, closes) = watch::channel(false);
        let metrics = ReportMetrics::default();
        let at = |name: &str| world.folder.path().join(name);
        let reporter = Reporter {
            node: "node-1".to_owned(),
            operator: Operator {
                uri: format!("https://{}", world.collector).parse().expect("an address"),
                credentials: Some(Credentials { ca: at("ca.crt"), name: NAME.to_owned(), token: at("token") }),
            },
            observation: observation.clone(),
            changed: Arc::clone(&changed),
            metrics: metrics.clone(),
            patience: Patience::default(),
        };
        tokio::spawn(reporter.run(closes));
        Self { observation, changed, metrics, _closing: closing }
    }

    fn count(&self, opened: u64) {
        let ip = [10, 0, 0, 1].into();
        let (role, protocol) = (Role::Client, Protocol::Tcp);
        let key = FlowKey { cgroup_id: 1, netns: 1, role, local: ip, remote: ip, port: 80, protocol };
        let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
        let reading = Reading { flows: vec![(key, counters)], seen: opened, ..Reading::default() };
        self.observation.lock().absorb(reading, Instant::now());
        self.changed.notify_one();
    }

    async fn is_shown(&self, world: &World, opened: u64) -> Result<()> {
        eventually(&format!("{opened} connections in the ledger"), async || {
            let ledger = world.shared_ledger.ledger().lock().await;
            let shown: Vec<_> = ledger.flows().map(|flow| flow.totals.opened).collect();
            if shown == [opened] { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await
    }
}

#[tokio::test]
async fn stream_outlives_its_certificate_and_ends_with_its_token() -> Result<()> {
    let world = World::new(LIFETIME).await?;
    tokio::spawn(world.keeper.clone().run());
    let first_bundle = world.bundle().await?;
    let first_token = tokens::short(&world.control_plane, &world.agents["node-1"], TOKEN_SECONDS).await?;
    world.write("ca.crt", &first_bundle)?;
    world.write("token", &first_token)?;
    let kubelet = world.kubelet();
    let agent = Agent::start(&world);
    agent.count(3);
    agent.is_shown(&world, 3).await?;

    // The next CA is published before its certificate is served, so that both work for agents that have the new file.
    let both = eventually("a second CA", async || {
        let bundle = world.bundle().await.map_err(|error| error.to_string())?;
        if bundle.contains(first_bundle.trim()) && bundle != first_bundle { Ok(bundle) } else { Err(bundle) }
    })
    .await?;
    let only_second = both.replace(first_bundle.trim(), "");
    eventually("the second certificate", async || {
        world.connect(&only_second).await.map(|_| ()).map_err(|error| format!("{error:?}"))
    })
    .await?;
    agent.count(5);
    agent.is_shown(&world, 5).await?;
    assert_eq!(agent.metrics.connections(), (true, 0), "the stream goes on with the certificate that it began with");
    assert!(world.connect(&first_bundle).await.is_err(), "and new ones have the next");

    // The kubelet replaces both files, and the agent reads them when its token has expired.
    world.write("token", &world.token("node-1").await?)?;
    eventually("the agent to come again", async || match agent.metrics.connections() {
        (true, 1..) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    agent.count(9);
    agent.is_shown(&world, 9).await?;
    assert_eq!(agent.metrics.connections(), (true, 1), "it came again at once");
    kubelet.abort();
    Ok(())
}

#[tokio::test]
async fn damaged_secret_is_replaced_and_a_foreign_one_stays() -> Result<()> {
    let world = World::new(LONG).await?;
    let keep = async || world.keeper.once().await.map_err(|error| error.to_string());
    let first = world.bundle().await?;
    let damage = json!({"data": {"generations.json": "eyJh"}});
    let (parameters, secrets) = (PatchParams::default(), world::secrets(&world.control_plane));
    secrets.patch(SECRET, &parameters, &Patch::Merge(&damage)).await.map_err(Error::api("damage the Secret"))?;
    keep().await.expect("it is the operator's own");
    let second = world.bundle().await?;
    assert_ne!(first, second, "the key was lost");
    world.connect(&second).await.expect("the new certificate");

    let strip = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "person"}}});
    secrets.patch(SECRET, &parameters, &Patch::Merge(&strip)).await.map_err(Error::api("take the Secret over"))?;
    let there = secrets.get(SECRET).await.map_err(Error::api("read the Secret"))?;
    let error = keep().await.expect_err("it is not the operator's");
    assert!(error.contains("Secret scopeprobe-system/scopeprobe-collector-tls has no label"), "{error}");
    assert_eq!(secrets.get(SECRET).await.map_err(Error::api("read the Secret"))?, there);
    world.connect(&second).await.expect("what was served is still served");
    Ok(())
}

/// Makes a certificate for the Service `theirs`, in the format of cert-manager.
async fn issue(control_plane: &ControlPlane) -> Result<BTreeMap<String, ByteString>> {
    let secrets = world::secrets(control_plane);
    let issuer = CertificateKeeper::new(control_plane.client.clone(), world::certificates("theirs", LONG, None));
    issuer.once().await.map_err(|error| Error::Unexpected(error.to_string()))?;
    let secret = secrets.get("theirs-tls").await.map_err(Error::api("read the Secret"))?;
    let json = secret.data.and_then(|mut data| data.remove("generations.json")).expect("the operator wrote it");
    let made: serde_json::Value = serde_json::from_slice(&json.0).expect("it is JSON");
    let text = |field: &str| ByteString(made[0][field].as_str().expect("a text").as_bytes().to_vec());
    let data = [("ca.crt", text("ca")), ("tls.crt", text("certificate")), ("tls.key", text("key"))];
    secrets.delete("theirs-tls", &DeleteParams::default()).await.map_err(Error::api("delete the Secret"))?;
    Ok(data.map(|(key, value)| (key.to_owned(), value)).into())
}

#[tokio::test]
async fn certificate_of_another_program_is_used_and_read_again() -> Result<()> {
    let control_plane = world::control_plane().await?;
    let secrets = world::secrets(&control_plane);
    let settings = world::certificates("theirs", LONG, Some("given"));
    let keeper = CertificateKeeper::new(control_plane.client.clone(), settings);
    let missing = keeper.once().await.expect_err("there is none").to_string();
    assert!(missing.contains("there is no Secret scopeprobe-system/given"), "{missing}");

    let [one, other] = [issue(&control_plane).await?, issue(&control_plane).await?];
    let secret = |data: BTreeMap<String, ByteString>| Secret {
        metadata: serde_json::from_value(json!({"name": "given"})).expect("a name"),
        data: Some(data),
        ..Secret::default()
    };
    let created = secrets.create(&PostParams::default(), &secret(one.clone())).await;
    created.map_err(Error::api("make a Secret"))?;
    keeper.once().await.expect("it is valid");
    let published = world::bundle(&control_plane, "theirs").await?;
    assert_eq!(published.trim().as_bytes(), one["ca.crt"].0.trim_ascii());

    let replace = async |data| {
        let replaced = secrets.replace("given", &PostParams::default(), &secret(data)).await;
        replaced.map(|_| ()).map_err(Error::api("replace a Secret"))
    };
    let key = ("tls.key".to_owned(), other["tls.key"].clone());
    let mixed = one.clone().into_iter().chain([key]).collect();
    for (data, expected) in [(mixed, "not valid for"), (BTreeMap::new(), "ca.crt is missing")] {
        replace(data).await?;
        let error = keeper.once().await.expect_err("it is unusable").to_string();
        assert!(error.contains("cannot use Secret scopeprobe-system/given") && error.contains(expected), "{error}");
    }
    replace(other.clone()).await?;
    keeper.once().await.expect("it is valid");
    let published = world::bundle(&control_plane, "theirs").await?;
    for ca in [&one["ca.crt"], &other["ca.crt"]] {
        assert!(published.contains(String::from_utf8_lossy(&ca.0).trim()), "agents trust both for a while");
    }
    Ok(())
}
