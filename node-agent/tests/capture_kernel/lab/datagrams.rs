//! Executes steps with UDP sockets.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use traffic::script::step::{DatagramRequests, DatagramStep, StepAnswer};

use super::scripted::{expect, unknown};

/// Time limit for a datagram; none is lost between namespaces of one machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct DatagramSockets {
    sockets: BTreeMap<String, UdpSocket>,
    /// Source of the last datagram that each socket received.
    peers: BTreeMap<String, SocketAddr>,
}

impl DatagramSockets {
    pub fn execute(&mut self, step: DatagramStep) -> io::Result<StepAnswer> {
        match step {
            DatagramStep::Bind { socket, address } => {
                let bound = bind(address)?;
                let port = bound.local_addr()?.port();
                self.sockets.insert(socket, bound);
                return Ok(StepAnswer::Port(port));
            }
            DatagramStep::Connect { socket, target } => self.socket(&socket)?.connect(target)?,
            DatagramStep::Send { socket, bytes, target } => {
                let (socket, payload) = (self.socket(&socket)?, vec![7; bytes]);
                let sent = match target {
                    Some(target) => socket.send_to(&payload, target)?,
                    None => socket.send(&payload)?,
                };
                expect("bytes sent", sent, bytes)?;
            }
            DatagramStep::Receive { socket, bytes } => {
                let (received, peer) = self.socket(&socket)?.recv_from(&mut vec![0; 65_536])?;
                expect("bytes received", received, bytes)?;
                self.peers.insert(socket, peer);
            }
            DatagramStep::Respond { socket, bytes } => self.respond(&socket, &vec![8; bytes])?,
            DatagramStep::RespondWith { socket, payload } => self.respond(&socket, &payload)?,
            DatagramStep::Serve { socket, count, response } => {
                return serve(self.socket(&socket)?, count, &vec![1; response]);
            }
            DatagramStep::Call { target, requests } => return call(target, requests),
        }
        Ok(StepAnswer::Done)
    }

    fn respond(&self, name: &str, payload: &[u8]) -> io::Result<()> {
        let socket = self.socket(name)?;
        let peer = self.peers.get(name).ok_or_else(|| io::Error::other(format!("`{name}` received nothing")))?;
        expect("bytes sent", socket.send_to(payload, peer)?, payload.len())
    }

    fn socket(&self, name: &str) -> io::Result<&UdpSocket> {
        self.sockets.get(name).ok_or_else(|| unknown(name))
    }
}

fn serve(socket: &UdpSocket, count: u64, response: &[u8]) -> io::Result<StepAnswer> {
    let (mut request, mut bytes) = (vec![0; 65_536], 0);
    for _ in 0..count {
        let (received, peer) = socket.recv_from(&mut request)?;
        bytes += received as u64;
        socket.send_to(response, peer)?;
    }
    Ok(StepAnswer::Number(bytes))
}

fn call(target: SocketAddr, requests: DatagramRequests) -> io::Result<StepAnswer> {
    let (mut response, mut bytes) = (vec![0; 65_536], 0);
    let any: IpAddr = if target.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let request = vec![2; requests.request];
    for turn in 0..requests.sockets {
        let socket = bind(SocketAddr::new(any, requests.port + turn))?;
        let is_connected = turn % 2 == 0;
        if is_connected {
            socket.connect(target)?;
        }
        for _ in 0..requests.times {
            if is_connected {
                socket.send(&request)?
            } else {
                socket.send_to(&request, target)?
            };
            bytes += socket.recv(&mut response)? as u64;
        }
    }
    Ok(StepAnswer::Number(bytes))
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}
