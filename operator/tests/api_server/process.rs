//! Runs the operator as a process, on free ports.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
};

use scopeprobe_tests::{ControlPlane, Error, Result, eventually, place};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

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

    /// Starts the operator of an installation in this namespace, with further arguments.
    pub fn start_in(namespace: &str, control_plane: &ControlPlane, identity: &str, arguments: &[&str]) -> Result<Self> {
        let [http, collector] = free_addresses()?;
        let child = Command::new(env!("CARGO_BIN_EXE_scopeprobe-operator"))
            .args(["run", "--lease-seconds=5", "--collector-url=http://192.0.2.1:9463", "--collector-plaintext"])
            .arg(format!("--namespace={namespace}"))
            .arg(format!("--identity={identity}"))
            .arg(format!("--http-listen={http}"))
            .arg(format!("--collector-listen={collector}"))
            .args(arguments)
            .env("KUBECONFIG", control_plane.kubeconfig())
            .stdin(Stdio::null())
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
            let answer = readyz(http).await.map_err(|error| error.to_string())?;
            if is_it(&answer) { Ok(None) } else { Err(answer) }
        })
        .await?;
        ended.map_or(Ok(()), |status| Err(Error::Unexpected(format!("{what}: it has ended: {status}"))))
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

async fn readyz(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n").await?;
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
