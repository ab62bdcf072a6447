//! Runs the operator as a process, on free ports.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use scopeprobe_tests::{ControlPlane, Error, Result, eventually, place};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

use crate::proxy::Proxy;

pub const NAMESPACE: &str = "scopeprobe-system";

pub struct Operator {
    child: Child,
    http: SocketAddr,
    collector: SocketAddr,
}

impl Operator {
    /// Starts the operator with a short lease. Dropping this kills it.
    pub fn start(control_plane: &ControlPlane, identity: &str) -> Result<Self> {
        Self::start_in(NAMESPACE, control_plane, identity, &[])
    }

    /// Starts the operator with the API server behind a proxy.
    pub fn start_behind(proxy: &Proxy, identity: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_with(NAMESPACE, proxy.kubeconfig(), identity, arguments)
    }

    /// Starts the operator of an installation in this namespace, with further arguments.
    pub fn start_in(namespace: &str, control_plane: &ControlPlane, identity: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_with(namespace, control_plane.kubeconfig(), identity, arguments)
    }

    /// Starts the operator with its log on a full disk.
    pub fn start_without_log(control_plane: &ControlPlane, identity: &str) -> Result<Self> {
        let full = File::options().write(true).open("/dev/full").map_err(Error::io("open /dev/full"))?;
        Self::spawn(NAMESPACE, control_plane.kubeconfig(), identity, &[], full.into())
    }

    fn start_with(namespace: &str, kubeconfig: &Path, identity: &str, arguments: &[&str]) -> Result<Self> {
        Self::spawn(namespace, kubeconfig, identity, arguments, Stdio::inherit())
    }

    fn spawn(namespace: &str, kubeconfig: &Path, identity: &str, arguments: &[&str], log: Stdio) -> Result<Self> {
        let [http, collector] = free_addresses()?;
        let has_lease = arguments.iter().any(|argument| argument.starts_with("--lease-seconds"));
        let child = Command::new(env!("CARGO_BIN_EXE_scopeprobe-operator"))
            .args(["run", "--collector-url=http://192.0.2.1:9463", "--collector-plaintext"])
            .arg(format!("--namespace={namespace}"))
            .arg(format!("--identity={identity}"))
            .arg(format!("--http-listen={http}"))
            .arg(format!("--collector-listen={collector}"))
            .args(arguments)
            .args((!has_lease).then_some("--lease-seconds=5"))
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io("start the operator"))?;
        Ok(Self { child, http, collector })
    }

    /// Returns the address of the operator's collector.
    pub fn collector(&self) -> SocketAddr {
        self.collector
    }

    /// Fails if the process has ended.
    pub fn runs(&mut self) -> Result<()> {
        match self.child.try_wait().map_err(Error::io("look at the operator"))? {
            None => Ok(()),
            Some(status) => Err(Error::Unexpected(format!("the operator has ended: {status}"))),
        }
    }

    /// Waits until the operator reports that it is not ready, with a message that contains `text`.
    pub async fn waits_for(&mut self, text: &str) -> Result<()> {
        self.answers(&format!("the operator to wait for `{text}`"), |answer| {
            answer.starts_with("HTTP/1.1 503") && answer.contains(text)
        })
        .await
    }

    /// Waits until the operator works.
    pub async fn is_ready(&mut self) -> Result<()> {
        self.answers("the operator to work", |answer| answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"))
            .await
    }

    /// Waits until the operator is ready without work, for a reason that contains `text`.
    pub async fn stands_by(&mut self, text: &str) -> Result<()> {
        self.answers(&format!("the operator to stand by because of `{text}`"), |answer| {
            answer.starts_with("HTTP/1.1 200") && answer.contains("standby") && answer.contains(text)
        })
        .await
    }

    async fn answers(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<()> {
        let http = self.http;
        let child = &mut self.child;
        let ended = eventually(what, async || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Some(status));
            }
            let answer = get(http, "/readyz").await.map_err(|error| error.to_string())?;
            if is_it(&answer) { Ok(None) } else { Err(answer) }
        })
        .await?;
        ended.map_or(Ok(()), |status| Err(Error::Unexpected(format!("{what}: it has ended: {status}"))))
    }

    /// Waits until the operator has compared the NodeProbes with what it observes.
    pub async fn has_compared_node_probes(&self) -> Result<()> {
        eventually("the operator to compare NodeProbes", async || {
            let page = get(self.http, "/metrics").await.map_err(|error| error.to_string())?;
            if page.contains("writes_total{kind=\"NodeProbe\"") { Ok(()) } else { Err(page) }
        })
        .await
    }

    pub async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().map(|pid| pid.to_string()).unwrap_or_default();
        place::run("kill".as_ref(), ["-s", name, &pid], &[]).await.map(|_| ())
    }

    /// Waits until the process ends. Returns whether it succeeded.
    pub async fn end(&mut self) -> Result<bool> {
        let child = &mut self.child;
        let status = eventually("the operator to end", async || {
            child.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
        })
        .await?;
        Ok(status.success())
    }
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Returns two free addresses. Both listeners are open at the same time, so that the addresses differ.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let attempt = || Error::io("find a free port on the loopback");
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(attempt());
    let (one, other) = (listen()?, listen()?);
    Ok([one.local_addr().map_err(attempt())?, other.local_addr().map_err(attempt())?])
}
