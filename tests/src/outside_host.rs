//! Host outside of the cluster, to which the nodes have a route: the traffic program in the network namespace between
//! our own cluster's nodes, with its own addresses. No link leads from there off the machine.

use std::{
    fs::File,
    net::IpAddr,
    path::Path,
    process::{Command as Process, Stdio},
    sync::{Arc, mpsc},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;
use traffic::{
    program::Program,
    protocol::{Answer, Behaviour, Command, Connect, Listen, Outcome, Report},
};

use crate::{Cluster, Error, Result, dropped_packets::DroppedPackets, place};

/// The bridge that joins the nodes.
const BRIDGE: &str = "fabric";

type Question = (Command, oneshot::Sender<Answer>);

/// The host. Gone when dropped, and its addresses with it.
pub struct OutsideHost {
    namespace: String,
    addresses: Vec<IpAddr>,
    questions: mpsc::Sender<Question>,
}

impl OutsideHost {
    /// Starts a host with these unused addresses; those of 198.18.0.0/15 are reserved for tests (RFC 2544).
    ///
    /// # Errors
    /// For a cluster that is not our own, and without the right to change its network.
    pub async fn start(cluster: &Cluster, addresses: &[IpAddr]) -> Result<Self> {
        let namespace = format!("{}-control", cluster.own_name()?);
        let (questions, asked) = mpsc::channel();
        enter(namespace.clone(), asked).await?;
        let host = Self { namespace, addresses: addresses.to_vec(), questions };
        for address in addresses {
            place::run(Path::new("ip"), address_command("replace", &host.namespace, *address), &[]).await?;
        }
        Ok(host)
    }

    /// Echoes at an address and port.
    ///
    /// # Errors
    /// Returns an error if it cannot listen.
    pub async fn echo(&self, address: (IpAddr, u16)) -> Result<()> {
        let listen = Listen { address: address.into(), v6_only: false, behaviour: Behaviour::Echo };
        match self.ask(Command::Listen(listen)).await? {
            Answer::Listening(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes connections from one of the addresses.
    ///
    /// # Errors
    /// Returns an error if it cannot connect; failed connections are counted instead.
    pub async fn connect(&self, from: IpAddr, plan: Connect) -> Result<Outcome> {
        match self.ask(Command::Connect(Connect { bind: Some(from), ..plan })).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Drops all TCP packets to this port until the returned value is dropped, as a firewall does.
    ///
    /// # Errors
    /// Returns an error without nftables, or without the right to change them.
    pub async fn drop_packets_to(&self, port: u16) -> Result<DroppedPackets> {
        DroppedPackets::to(self.namespace.clone(), port).await
    }

    /// All counts so far.
    ///
    /// # Errors
    /// Returns an error if the host has ended.
    pub async fn report(&self) -> Result<Report> {
        match self.ask(Command::Report).await? {
            Answer::Report(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, command: Command) -> Result<Answer> {
        let gone = || Error::Unexpected("the host outside of the cluster is gone".to_owned());
        let (answer, answered) = oneshot::channel();
        self.questions.send((command, answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }
}

impl Drop for OutsideHost {
    fn drop(&mut self) {
        for address in &self.addresses {
            // The whole namespace goes with the cluster; a test that fails to clean up is no failure of its own.
            let command = address_command("del", &self.namespace, *address);
            let _ = Process::new("ip").args(command).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

fn address_command(verb: &str, namespace: &str, address: IpAddr) -> Vec<String> {
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let address_in_cidr = format!("{address}/{whole}");
    let mut command = vec!["-n", namespace, "address", verb, &address_in_cidr, "dev", BRIDGE];
    if verb == "replace" && address.is_ipv6() {
        // An address of IPv6 is not used before duplicates were looked for.
        command.push("nodad");
    }
    command.into_iter().map(str::to_owned).collect()
}

/// Answers in a thread that is in the network namespace, as all that it starts will be.
async fn enter(namespace: String, asked: mpsc::Receiver<Question>) -> Result<()> {
    let (entered, result) = oneshot::channel();
    thread::spawn(move || {
        let path = Path::new("/run/netns").join(&namespace);
        let file = File::open(&path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
        let is_in = file.is_ok();
        // The receiver may be gone, and does not need the result then.
        let _ = entered.send(file.map_err(Error::io(format!("enter {}", path.display()))));
        let program = Arc::new(Program::default());
        while let (true, Ok((command, answer))) = (is_in, asked.recv()) {
            let _ = answer.send(program.answer(command));
        }
    });
    result.await.map_err(|_| Error::Unexpected("the thread of the host outside of the cluster has ended".to_owned()))?
}

fn unexpected(answer: &Answer) -> Error {
    Error::Unexpected(format!("the host outside of the cluster answered {answer:?}"))
}
