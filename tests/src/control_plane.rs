//! etcd and kube-apiserver alone, for tests that need no node: ready in a few seconds, as often as wanted.

use std::{
    env, fs,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;
use tonic::codegen::http::Request;

use crate::{Error, Result, eventually, manifest, place};

/// A control plane of one test's own; ends when dropped.
pub struct ControlPlane {
    /// The administrator's client.
    pub client: Client,
    kubeconfig: PathBuf,
    operator_kubeconfig: PathBuf,
    // Dropped in this order: the programs before their files.
    apiserver: Program,
    etcd: Program,
    etcd_url: String,
    folder: TempDir,
}

/// A program that can be ended and begun again.
struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    purpose: Purpose,
    child: Option<Child>,
}

/// Purpose of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A test: it starts with little CPU time.
    Test,
    /// A measurement: it collects garbage as shipped, and records the requests of the user `operator`.
    Measurement,
}

impl Purpose {
    /// Variables of the programs.
    const fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // Each test starts them anew: without garbage collection below 1 GiB, a start takes a third less CPU time.
            Self::Test => &[("GOGC", "off"), ("GOMEMLIMIT", "1GiB")],
            Self::Measurement => &[],
        }
    }
}

/// Records each request of the operator once, when it was answered.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: Metadata, users: [operator]}
- {level: None}
";

impl Program {
    fn begin(&mut self) -> Result<()> {
        let attempt = || Error::io(format!("start {}", self.path.display()));
        let log = File::options().create(true).append(true).open(&self.log).map_err(attempt())?;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .envs(self.purpose.variables().iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(attempt())?)
            .stderr(log)
            .spawn()
            .map_err(attempt())?;
        self.child = Some(child);
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

impl ControlPlane {
    /// Makes our kinds known, as the chart does. The API server needs a moment until it serves them.
    ///
    /// # Errors
    /// Returns an error if the manifests are unreadable or refused.
    pub async fn install_kinds(&self) -> Result<()> {
        let folder = place::repository().join("charts/scopeprobe/files/crds");
        for file in fs::read_dir(&folder).map_err(Error::io("list the CRDs"))? {
            let path = file.map_err(Error::io("list the CRDs"))?.path();
            let yaml = fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
            manifest::apply(&self.client, "", &yaml).await?;
        }
        Ok(())
    }

    /// Starts the programs of `KUBEBUILDER_ASSETS` (etcd and kube-apiserver), or those of the test cluster.
    ///
    /// # Errors
    /// Returns an error with the end of the API server's log if they do not start or become ready.
    pub async fn start() -> Result<Self> {
        Self::start_for(Purpose::Test).await
    }

    /// Starts the same programs as shipped, with a log of the operator's requests.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_for_measurement() -> Result<Self> {
        Self::start_for(Purpose::Measurement).await
    }

    async fn start_for(purpose: Purpose) -> Result<Self> {
        let programs = assets().await?;
        let folder = tempfile::tempdir().map_err(Error::io("make a folder for a control plane"))?;
        let at = folder.path();
        let [client_port, peer_port, api_port] = free_ports()?;
        write_files(at).await?;
        let kubeconfig = write_kubeconfig(at, api_port, "administrator")?;
        let operator_kubeconfig = write_kubeconfig(at, api_port, "operator")?;
        let etcd = start(
            (&programs, purpose),
            at,
            "etcd",
            &[
                format!("--data-dir={}", at.join("data").display()),
                format!("--listen-client-urls=http://127.0.0.1:{client_port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client_port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        let mut flags = vec![
            format!("--etcd-servers=http://127.0.0.1:{client_port}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={api_port}"),
            format!("--cert-dir={}", at.display()),
            format!("--token-auth-file={}", at.join("tokens.csv").display()),
            "--authorization-mode=RBAC".to_owned(),
            // As clusters have it: policies alone refuse privileged pods.
            "--allow-privileged=true".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", at.join("accounts.key").display()),
            format!("--service-account-key-file={}", at.join("accounts.key").display()),
            // No controller creates service accounts here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        if purpose == Purpose::Measurement {
            flags.push(format!("--audit-policy-file={}", at.join("audit-policy.yaml").display()));
            flags.push(format!("--audit-log-path={}", audit_log(at).display()));
        }
        let apiserver = start((&programs, purpose), at, "kube-apiserver", &flags)?;
        let client = connect(&kubeconfig).await?;
        let etcd_url = format!("http://127.0.0.1:{client_port}");
        let control_plane = Self { client, kubeconfig, operator_kubeconfig, apiserver, etcd, etcd_url, folder };
        control_plane.serves().await?;
        Ok(control_plane)
    }

    /// Kills both programs, as a crash of their machine would. Their data and their address stay.
    pub fn stop(&mut self) {
        self.apiserver.end();
        self.etcd.end();
    }

    /// Starts both programs again, with what they had stored.
    ///
    /// # Errors
    /// Where they cannot be started or do not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        self.etcd.begin()?;
        self.apiserver.begin()?;
        self.serves().await
    }

    /// Raises or ends etcd's alarm NOSPACE, with which it refuses all writes.
    ///
    /// # Errors
    /// Returns an error if etcd does not do so.
    pub async fn refuse_writes_of_etcd(&self, refuse: bool) -> Result<()> {
        let failed = |error: &dyn std::error::Error| Error::Unexpected(format!("etcd's alarm: {error}"));
        let action = if refuse { "ACTIVATE" } else { "DEACTIVATE" };
        let body = serde_json::json!({"action": action, "memberID": "0", "alarm": "NOSPACE"});
        let request = Request::post("/v3/maintenance/alarm").body(body.to_string().into_bytes());
        let request = request.map_err(|error| failed(&error))?;
        let config = Config::new(self.etcd_url.parse().map_err(|error| failed(&error))?);
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        client.request_text(request).await.map(|_| ()).map_err(|error| failed(&error))
    }

    async fn serves(&self) -> Result<()> {
        // The server makes this namespace itself, when all else is there.
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let at = self.folder.path();
        eventually("the API server's own namespace `default`", async || {
            namespaces.get("default").await.map_err(|error| format!("{error}\n{}", end_of_log(at)))
        })
        .await?;
        Ok(())
    }

    /// The administrator's kubeconfig, for programs.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubeconfig of the user `operator`, who may do everything.
    #[must_use]
    pub fn operator_kubeconfig(&self) -> &Path {
        &self.operator_kubeconfig
    }

    /// Log of the operator's requests, of a control plane for measurements.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        audit_log(self.folder.path())
    }

    /// Process identifiers of both programs, as far as they run.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        [&self.etcd, &self.apiserver].into_iter().filter_map(|program| Some(program.child.as_ref()?.id())).collect()
    }
}

async fn assets() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").filter(|path| !path.is_empty()) {
        return Ok(folder.into());
    }
    place::run(&place::script("setup"), ["cluster"], &[]).await?;
    Ok(place::cache().join("bin"))
}

/// Returns free ports. All are held until all are known, so that they differ.
pub(crate) fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let attempt = || Error::io("find a free port on the loopback");
    let mut held = Vec::new();
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(attempt())?;
        *port = listener.local_addr().map_err(attempt())?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// Writes a key for service accounts, a token for each user and the audit policy.
async fn write_files(at: &Path) -> Result<()> {
    let key = at.join("accounts.key");
    place::run(Path::new("openssl"), ["genrsa".as_ref(), "-out".as_ref(), key.as_os_str(), "2048".as_ref()], &[])
        .await?;
    let attempt = || Error::io(format!("write into {}", at.display()));
    let tokens = "administrator,admin,admin,system:masters\noperator,operator,operator,system:masters\n";
    fs::write(at.join("tokens.csv"), tokens).map_err(attempt())?;
    fs::write(at.join("audit-policy.yaml"), AUDIT_POLICY).map_err(attempt())
}

fn audit_log(at: &Path) -> PathBuf {
    at.join("audit.log")
}

/// Writes a kubeconfig with a user's token. The server makes its own certificate, which is not verified: both ends are
/// this process's own, on loopback.
fn write_kubeconfig(at: &Path, api_port: u16, token: &str) -> Result<PathBuf> {
    let kubeconfig = at.join(format!("kubeconfig-{token}"));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
         clusters: [{{name: a, cluster: {{server: 'https://127.0.0.1:{api_port}', insecure-skip-tls-verify: true}}}}], \
         users: [{{name: a, user: {{token: {token}}}}}]}}\n"
    );
    fs::write(&kubeconfig, text).map_err(Error::io(format!("write into {}", at.display())))?;
    Ok(kubeconfig)
}

fn start((programs, purpose): (&Path, Purpose), at: &Path, name: &str, arguments: &[String]) -> Result<Program> {
    let mut program = Program {
        path: programs.join(name),
        arguments: arguments.to_vec(),
        log: at.join(format!("{name}.log")),
        purpose,
        child: None,
    };
    program.begin()?;
    Ok(program)
}

async fn connect(kubeconfig: &Path) -> Result<Client> {
    let unusable = |problem: String| Error::Unexpected(format!("cannot use {}: {problem}", kubeconfig.display()));
    let parsed = Kubeconfig::read_from(kubeconfig).map_err(|error| unusable(error.to_string()))?;
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(error.to_string()))?;
    Client::try_from(config).map_err(|error| unusable(error.to_string()))
}

fn end_of_log(at: &Path) -> String {
    let log = fs::read_to_string(at.join("kube-apiserver.log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::PostParams;

    use super::*;

    #[tokio::test]
    async fn a_control_plane_keeps_what_it_is_given_and_ends() {
        let control_plane = ControlPlane::start().await.unwrap();
        let folder = control_plane.kubeconfig().parent().unwrap().to_owned();
        let maps: Api<ConfigMap> = Api::namespaced(control_plane.client.clone(), "default");
        let map = serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        assert_eq!(maps.get("a").await.unwrap().data.unwrap()["k"], "v");
        drop(control_plane);
        assert!(!folder.exists());
        assert!(maps.get("a").await.is_err());
    }
}
