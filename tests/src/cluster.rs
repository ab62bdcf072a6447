//! The cluster that all tests of a run share.

use std::{
    env,
    ffi::OsString,
    fs,
    fs::File,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::fcntl::{Flock, FlockArg};

use crate::{Error, Result, audit::Audit, place};

/// The name of the cluster that the tests start, unless `CLUSTER` names another.
const NAME: &str = "scopeprobe-test";

/// The name of the cluster whose nodes are virtual machines.
const NAME_OF_KERNELS: &str = "scopeprobe-kernels";

/// A cluster with the project's images in its nodes.
#[derive(Clone)]
pub struct Cluster {
    /// The administrator's client. Belongs to the runtime in which [`Cluster::shared`] was called.
    pub client: Client,
    kubeconfig: PathBuf,
    own: Option<String>,
}

impl Cluster {
    /// Returns the cluster of `KUBECONFIG` as it is. Otherwise starts our own with two nodes if needed, and leaves it
    /// running for the next test (`CLUSTER=scopeprobe-test scripts/cluster down` ends it). Changed image archives of
    /// `dist/` are loaded into our own. `CLUSTER_NODES` chooses other nodes, as arguments of `scripts/cluster up`.
    ///
    /// # Errors
    /// Returns an error if it cannot be started or reached.
    pub async fn shared() -> Result<Self> {
        let value = |name: &str, usual: &str| env::var(name).unwrap_or_else(|_| usual.to_owned());
        Self::started(value("CLUSTER", NAME), &value("CLUSTER_NODES", "2")).await
    }

    /// The same with virtual machines as nodes, each with another kernel (`scripts/cluster up kernels`), which have the
    /// image archives of `dist/` from the start.
    ///
    /// # Errors
    /// Returns an error if it cannot be started or reached.
    pub async fn of_kernels() -> Result<Self> {
        Self::started(NAME_OF_KERNELS.to_owned(), "kernels").await
    }

    async fn started(name: String, nodes: &str) -> Result<Self> {
        if let Some(kubeconfig) = env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            return Self::connect(kubeconfig.into(), None).await;
        }
        let _one_at_a_time = lock(&format!("{name}.tests.lock")).await?;
        let up = ["up"].into_iter().chain(nodes.split_whitespace());
        place::run(&place::script("cluster"), up, &[("CLUSTER", Path::new(&name))]).await?;
        let are_machines = nodes.parse::<u32>().is_err();
        if !are_machines {
            load_images(&name).await?;
        }
        Self::connect(state(&name).join("admin.kubeconfig"), Some(name)).await
    }

    async fn connect(kubeconfig: PathBuf, own: Option<String>) -> Result<Self> {
        let unusable = |problem: String| {
            Error::Unexpected(format!("cannot use the kubeconfig {}: {problem}", kubeconfig.display()))
        };
        let parsed = Kubeconfig::read_from(&kubeconfig).map_err(|error| unusable(error.to_string()))?;
        let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let client = Client::try_from(config).map_err(|error| unusable(error.to_string()))?;
        client.apiserver_version().await.map_err(|error| unusable(error.to_string()))?;
        Ok(Self { client, kubeconfig, own })
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

    fn own_name(&self) -> Result<&str> {
        self.own.as_deref().ok_or_else(|| {
            Error::Unexpected("this needs the tests' own cluster; KUBECONFIG names another: unset it".to_owned())
        })
    }

    /// Lets one test process at a time do something once per cluster.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be created.
    pub async fn lock(&self, name: &str) -> Result<Flock<File>> {
        let cluster = self.own.as_deref().unwrap_or("other");
        lock(&format!("{cluster}.{name}.lock")).await
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
