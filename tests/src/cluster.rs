//! The clusters of a test run.

use std::{
    env,
    ffi::OsString,
    fs,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result, audit::Audit, place};

/// The name of the usual cluster, unless `CLUSTER` names another. The other ones' names begin with it.
const NAME: &str = "scopeprobe-test";

/// What a test needs of its cluster. There is one cluster of each shape, which all tests share, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Two nodes; kube-proxy uses nftables.
    Usual,
    /// Two nodes with 12 addresses each for their pods, so that pods soon reuse them; kube-proxy uses iptables.
    FewAddresses,
    /// Two virtual machines; kube-proxy uses IPVS.
    Ipvs,
    /// Four virtual machines, each with another kernel.
    Kernels,
}

impl Shape {
    /// The end of the cluster's name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Usual => "",
            Self::FewAddresses => "-few-addresses",
            Self::Ipvs => "-ipvs",
            Self::Kernels => "-kernels",
        }
    }

    /// The nodes, as `scripts/cluster up` takes them.
    const fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Usual | Self::FewAddresses => &["2"],
            Self::Ipvs => &["6.12", "7.x"],
            Self::Kernels => &["kernels"],
        }
    }

    /// The variables of `scripts/cluster` that differ from its usual ones.
    const fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Usual | Self::Kernels => &[],
            Self::FewAddresses => &[("PROXY_MODE", "iptables"), ("POD_ADDRESSES", "12")],
            Self::Ipvs => &[("PROXY_MODE", "ipvs")],
        }
    }

    /// Whether the nodes are virtual machines, which have the images of `dist/` from the start.
    const fn is_virtual(self) -> bool {
        matches!(self, Self::Ipvs | Self::Kernels)
    }
}

/// A cluster with the project's images in its nodes.
#[derive(Clone)]
pub struct Cluster {
    /// The administrator's client. Belongs to the runtime in which [`Cluster::shared`] was called.
    pub client: Client,
    kubeconfig: PathBuf,
    own: Option<String>,
    /// Held as long as the test goes on: nextest's groups let one test at a time use a cluster, other runners do not.
    _turn: Arc<Flock<File>>,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` leads to, as it is; otherwise our own of the usual shape.
    ///
    /// # Errors
    /// See [`Cluster::of`].
    pub async fn shared() -> Result<Self> {
        if let Some(kubeconfig) = env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            return Self::connect(kubeconfig.into(), None, lock("other.tests.lock").await?).await;
        }
        Self::of(Shape::Usual).await
    }

    /// Our own cluster of this shape, started where it does not run yet and left running for the next test
    /// (`CLUSTER=scopeprobe-test scripts/cluster down` ends the usual one). The image archives of `dist/` are loaded into
    /// its nodes where they have changed. Waits for other tests that use it.
    ///
    /// # Errors
    /// Returns an error if it cannot be started or reached.
    pub async fn of(shape: Shape) -> Result<Self> {
        let name = env::var("CLUSTER").unwrap_or_else(|_| NAME.to_owned()) + shape.suffix();
        let turn = lock(&format!("{name}.tests.lock")).await?;
        let up = ["up"].iter().chain(shape.nodes());
        let variables = shape.variables().iter().map(|(variable, value)| (*variable, Path::new(*value)));
        let variables: Vec<_> = variables.chain([("CLUSTER", Path::new(&name))]).collect();
        place::run(&place::script("cluster"), up, &variables).await?;
        if !shape.is_virtual() {
            load_images(&name).await?;
        }
        Self::connect(state(&name).join("admin.kubeconfig"), Some(name), turn).await
    }

    async fn connect(kubeconfig: PathBuf, own: Option<String>, turn: Flock<File>) -> Result<Self> {
        let unusable = |problem: String| {
            Error::Unexpected(format!("cannot use the kubeconfig {}: {problem}", kubeconfig.display()))
        };
        let parsed = Kubeconfig::read_from(&kubeconfig).map_err(|error| unusable(error.to_string()))?;
        let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let client = Client::try_from(config).map_err(|error| unusable(error.to_string()))?;
        client.apiserver_version().await.map_err(|error| unusable(error.to_string()))?;
        Ok(Self { client, kubeconfig, own, _turn: Arc::new(turn) })
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs `kubectl` and returns what it prints.
    ///
    /// # Errors
    /// Returns an error with the output if it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        place::run(&place::tool("kubectl"), arguments, &[("KUBECONFIG", &self.kubeconfig)]).await
    }

    /// Runs `scripts/cluster` for this cluster: `on`, `kill`, `rps`, …
    ///
    /// # Errors
    /// Returns an error if it fails, and for a cluster that is not our own.
    pub async fn script(&self, arguments: &[&str]) -> Result<String> {
        let name = self.own_name()?;
        place::run(&place::script("cluster"), arguments, &[("CLUSTER", Path::new(name))]).await
    }

    /// The API server's account of all writes.
    ///
    /// # Errors
    /// For a cluster that is not our own: its log is out of reach.
    pub fn audit(&self) -> Result<Audit> {
        Ok(Audit::at(state(self.own_name()?).join("audit.log")))
    }

    /// Directory of our own cluster: logs, audit log, kubeconfigs.
    ///
    /// # Errors
    /// For a cluster that is not our own.
    pub fn state(&self) -> Result<PathBuf> {
        Ok(state(self.own_name()?))
    }

    pub(crate) fn own_name(&self) -> Result<&str> {
        self.own.as_deref().ok_or_else(|| {
            Error::Unexpected("this needs the tests' own cluster; KUBECONFIG names another: unset it".to_owned())
        })
    }
}

fn state(name: &str) -> PathBuf {
    place::cache().join("clusters").join(name)
}

async fn lock(name: &str) -> Result<Flock<File>> {
    let folder = place::cache().join("clusters");
    let path = folder.join(name);
    let attempt = format!("lock {}", path.display());
    fs::create_dir_all(folder).map_err(Error::io(&attempt))?;
    let file = File::create(path).map_err(Error::io(&attempt))?;
    let locked = tokio::task::spawn_blocking(|| Flock::lock(file, FlockArg::LockExclusive)).await;
    match locked {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err((_, errno))) => Err(Error::Io { attempt, source: errno.into() }),
        Err(panicked) => Err(Error::Unexpected(format!("cannot {attempt}: {panicked}"))),
    }
}

/// Loads what `make images` wrote, and remembers which files those were.
async fn load_images(name: &str) -> Result<()> {
    let dist = place::repository().join("dist");
    let archives: Vec<_> = ["operator", "agent", "traffic"]
        .iter()
        .map(|image| dist.join(format!("scopeprobe-{image}.tar")))
        .filter(|archive| archive.exists())
        .collect();
    let stamp = archives.iter().map(|archive| describe(archive)).collect::<Result<Vec<_>>>()?.join("\n");
    let record = state(name).join("images");
    if fs::read_to_string(&record).is_ok_and(|loaded| loaded == stamp) {
        return Ok(());
    }
    if !dist.join("scopeprobe-traffic.tar").exists() {
        return Err(Error::Unexpected(format!("no image archives in {}: `make images` writes them", dist.display())));
    }
    let arguments = ["load".into()].into_iter().chain(archives.into_iter().map(OsString::from));
    place::run(&place::script("cluster"), arguments, &[("CLUSTER", Path::new(name))]).await?;
    fs::write(&record, stamp).map_err(Error::io(format!("write {}", record.display())))
}

fn describe(archive: &Path) -> Result<String> {
    let attempt = format!("read {}", archive.display());
    let metadata = fs::metadata(archive).map_err(Error::io(&attempt))?;
    let modified = metadata.modified().map_err(Error::io(&attempt))?;
    let nanos = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    Ok(format!("{} {} {nanos}", archive.display(), metadata.len()))
}
