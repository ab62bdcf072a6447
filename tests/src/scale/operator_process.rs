//! The operator as a process of its own, as its Deployment would start it.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tempfile::TempDir;

use super::processes;
use crate::{ControlPlane, Error, Result, control_plane::free_ports};

/// The operator's namespace.
pub const NAMESPACE: &str = "scopeprobe-system";

/// A running operator. It is killed when dropped.
pub struct OperatorProcess {
    program: PathBuf,
    kubeconfig: PathBuf,
    ports: [u16; 2],
    folder: TempDir,
    child: Child,
    process_id: Arc<AtomicU32>,
    /// CPU time of earlier processes, in milliseconds.
    earlier_cpu: u64,
}

impl OperatorProcess {
    /// Starts the program.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn start(program: &Path, control_plane: &ControlPlane) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("make a folder for the operator's log"))?;
        let (ports, kubeconfig) = (free_ports()?, control_plane.operator_kubeconfig());
        let child = spawn(program, kubeconfig, ports, &folder)?;
        Ok(Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            ports,
            folder,
            process_id: Arc::new(child.id().into()),
            child,
            earlier_cpu: 0,
        })
    }

    /// Address at which it accepts reports.
    #[must_use]
    pub fn collector(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    /// Identifier of its present process.
    #[must_use]
    pub fn process_id(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.process_id)
    }

    /// CPU time of all its processes, in milliseconds.
    #[must_use]
    pub fn cpu_milliseconds(&self) -> u64 {
        self.earlier_cpu + processes::cpu_milliseconds(&self.child.id().to_string())
    }

    /// Kills it and starts it again, as a kubelet does after a crash.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn crash(&mut self) -> Result<()> {
        self.earlier_cpu = self.cpu_milliseconds();
        self.end();
        self.child = spawn(&self.program, &self.kubeconfig, self.ports, &self.folder)?;
        self.process_id.store(self.child.id(), Relaxed);
        Ok(())
    }

    /// Returns an error with the end of its log if it has ended by itself.
    ///
    /// # Errors
    /// The described one.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().map_err(Error::io("look after the operator"))? {
            None => Ok(()),
            Some(status) => {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let output = lines[lines.len().saturating_sub(10)..].join("\n");
                let command = self.program.display().to_string();
                Err(Error::Program { command, status: status.to_string(), output })
            }
        }
    }

    fn end(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for OperatorProcess {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(program: &Path, kubeconfig: &Path, ports: [u16; 2], folder: &TempDir) -> Result<Child> {
    let attempt =
        || Error::io(format!("start {}; `cargo build --package scopeprobe-operator` builds it", program.display()));
    let log = File::options().create(true).append(true).open(folder.path().join("log")).map_err(attempt())?;
    let [collector, http] = ports.map(|port| format!("127.0.0.1:{port}"));
    Command::new(program)
        .arg("run")
        .env("KUBECONFIG", kubeconfig)
        .env("SCOPEPROBE_NAMESPACE", NAMESPACE)
        .env("SCOPEPROBE_IDENTITY", "operator-0")
        .env("SCOPEPROBE_COLLECTOR_URL", format!("http://{collector}"))
        .env("SCOPEPROBE_COLLECTOR_LISTEN", collector)
        .env("SCOPEPROBE_HTTP_LISTEN", http)
        // Thousands of simulated agents report from one address, without pods of their own.
        .envs([
            ("SCOPEPROBE_COLLECTOR_PLAINTEXT", "true"),
            ("SCOPEPROBE_COLLECTOR_MAX_CONNECTIONS", "65536"),
            ("SCOPEPROBE_COLLECTOR_MAX_CONNECTIONS_PER_ADDRESS", "65536"),
            ("SCOPEPROBE_COLLECTOR_MAX_FLOWS", "4000000"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(attempt())
}
